//! Runs on: main thread, in place of the server.
//!
//! The report of `snapshot status` about a snapshot file. The command prints it.
//!
//! **Source** etcd v3.7.1 `etcdutl/snapshot/v3_snapshot.go Status`.

use std::{collections::BTreeSet, path::Path};

use prost::Message;
use proto::mvccpb::KeyValue;
use sha2::{Digest, Sha256};

use super::{error::Error, file::Database, schema};

/// The report about a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of all names, keys and values.
    pub hash: u32,
    /// Revision of the last record.
    pub revision: i64,
    /// Keys that are not deleted.
    pub total_keys: usize,
    /// Size of the file's content. **Units** bytes.
    pub total_size: u64,
    /// Version of the schema; empty before 3.6.
    pub version: String,
}

/// Reads the whole file, and checks it as bbolt does.
///
/// **Errors** damage.
pub fn status(path: &Path) -> Result<Status, Error> {
    let mut database = Database::open(path)?;
    let total_size = database.bytes();
    let mut status = Status { hash: 0, revision: 0, total_keys: 0, total_size, version: String::new() };
    // Half a SHA-256 represents a key: the keys themselves may not fit in memory.
    let mut keys: BTreeSet<u128> = BTreeSet::new();
    for (name, bucket) in database.buckets().clone() {
        status.hash = crc32c::crc32c_append(status.hash, &name);
        let mut cursor = database.file().cursor(&bucket);
        while let Some(entry) = cursor.next(database.file())? {
            status.hash = crc32c::crc32c_append(status.hash, &entry.key);
            status.hash = crc32c::crc32c_append(status.hash, &entry.value);
            if name[..] == *schema::META.as_bytes() && entry.key[..] == *schema::STORAGE_VERSION {
                status.version = String::from_utf8(entry.value.to_vec())
                    .map_err(|_not_text| Error::Bucket { name: schema::META })?;
            }
            if name[..] != *schema::KEY.as_bytes() {
                continue;
            }
            let damaged = || Error::Bucket { name: schema::KEY };
            let (revision, is_tombstone) = schema::parse_revision(&entry.key).ok_or_else(damaged)?;
            let kv = KeyValue::decode(entry.value).map_err(|_malformed| damaged())?;
            let digest = Sha256::digest(&kv.key);
            let key = u128::from_be_bytes(*digest.first_chunk().expect("32 bytes"));
            status.revision = revision.main;
            if is_tombstone {
                keys.remove(&key);
            } else {
                keys.insert(key);
            }
        }
    }
    database.file().check_free()?;
    status.total_keys = keys.len();
    Ok(status)
}
