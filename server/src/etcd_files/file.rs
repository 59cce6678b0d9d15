//! Runs on: main thread, offline.
//!
//! A snapshot file, or the database of a stopped etcd, as what a member knows.
//!
//! Invariants: everything is checked as it is read; what is not as etcd writes it is an error that names the bucket. Records are read
//! one at a time, the rest is as small as it is in a member's memory.

use std::collections::BTreeMap;
use std::path::Path;

use bytes::Bytes;
use consensus::{ConfState, Member};
use engine::Record;
use engine::disk::Disk;
use prost::Message;
use proto::etcdserverpb::AlarmMember;
use sha2::{Digest, Sha256};

use super::{Error, schema};
use crate::bolt::reader::{BoltFile, Bucket, Cursor, DiskSource, Source};
use crate::lease::Grant;

const HASH_LEN: u64 = 32;
/// A file is of whole sectors; what is that much longer has a SHA-256 behind it. **Source** etcd v3.7.1
/// `etcdutl/snapshot/v3_snapshot.go hasChecksum`.
const SECTOR: u64 = 512;
const CHUNK_BYTES: usize = 1 << 20;

/// Whether the checksum at a snapshot file's end is that of the bytes before it.
///
/// **Errors** it is not, or there is none; in etcdutl's words.
pub fn check_hash(disk: Box<dyn Disk>, path: &Path) -> Result<(), Error> {
    let mut source = DiskSource::open(disk, path)?;
    if source.bytes() % SECTOR != HASH_LEN {
        return Err(Error::Refused("snapshot missing hash but --skip-hash-check=false".into()));
    }
    let end = source.bytes() - HASH_LEN;
    let mut digest = Sha256::new();
    let mut offset = 0;
    while offset < end {
        let len = usize::try_from(end - offset).unwrap_or(CHUNK_BYTES).min(CHUNK_BYTES);
        let bytes = source.read(offset, len)?;
        if bytes.is_empty() {
            return Err(engine::Error::corrupt(path, offset, "the file is cut short").into());
        }
        digest.update(&bytes);
        offset += bytes.len() as u64;
    }
    let told = source.read(end, usize::try_from(HASH_LEN).expect("a few bytes"))?;
    let found = digest.finalize();
    if told[..] != found[..] {
        let text = |bytes: &[u8]| bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(" ");
        return Err(Error::Refused(format!("expected sha256 [{}], got [{}]", text(&told), text(&found))));
    }
    Ok(())
}

/// What is in [`schema::META`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Last applied entry, 0 for none.
    pub applied_index: u64,
    /// Its term, 0 if it is not known.
    pub applied_term: u64,
    /// Raft's configuration, if it is known.
    pub conf_state: Option<ConfState>,
    /// What was asked to be compacted, or was: -1 for nothing.
    pub compact_revision: i64,
    /// The version of the schema, if it stands there.
    pub storage_version: Option<String>,
}

/// See the head of this file.
pub struct Backup {
    file: BoltFile<DiskSource>,
    buckets: BTreeMap<Bytes, Bucket>,
}

impl Backup {
    /// Opens the file at `path`.
    ///
    /// **Errors** it is no bbolt file, or none of etcd's.
    pub fn open(disk: Box<dyn Disk>, path: &Path) -> Result<Self, Error> {
        let mut file = BoltFile::open(DiskSource::open(disk, path)?)?;
        file.note_reached();
        let buckets: BTreeMap<Bytes, Bucket> = file.buckets()?.into_iter().collect();
        Ok(Self { file, buckets })
    }

    /// The file's size as its meta page tells it. **Units** bytes.
    pub fn bytes(&self) -> u64 {
        self.file.meta().high_water * u64::from(self.file.meta().page_size)
    }

    /// The file itself, for walks over buckets of any name.
    pub fn file(&mut self) -> &mut BoltFile<DiskSource> {
        &mut self.file
    }

    /// The buckets by name.
    pub fn buckets(&self) -> &BTreeMap<Bytes, Bucket> {
        &self.buckets
    }

    fn cursor(&self, name: schema::Name) -> Option<Cursor> {
        self.buckets.get(name.as_bytes()).map(|bucket| self.file.cursor(bucket))
    }

    fn pairs(&mut self, name: schema::Name) -> Result<Vec<(Bytes, Bytes)>, Error> {
        let mut pairs = Vec::new();
        let Some(mut cursor) = self.cursor(name) else { return Ok(pairs) };
        while let Some(entry) = cursor.next(&mut self.file)? {
            pairs.push((entry.key, entry.value));
        }
        Ok(pairs)
    }

    /// Where the log stood, and what is compacted.
    ///
    /// **Errors** damage.
    pub fn meta(&mut self) -> Result<Meta, Error> {
        let damaged = || Error::Bucket { name: schema::META };
        let pairs: BTreeMap<Bytes, Bytes> = self.pairs(schema::META)?.into_iter().collect();
        let number = |key| match pairs.get(key) {
            None => Ok(0),
            Some(value) => value.as_ref().try_into().map(u64::from_be_bytes).map_err(|_length| damaged()),
        };
        let revision = |key| match pairs.get(key) {
            None => Ok(-1),
            Some(value) => schema::parse_revision(value).map(|(revision, _)| revision.main).ok_or_else(damaged),
        };
        let conf_state = match pairs.get(schema::CONF_STATE) {
            None => None,
            Some(json) => Some(schema::parse_conf_state(json).ok_or_else(damaged)?),
        };
        let version = pairs.get(schema::STORAGE_VERSION).map(|text| String::from_utf8(text.to_vec()));
        let compact_revision = revision(schema::SCHEDULED_COMPACT)?.max(revision(schema::FINISHED_COMPACT)?);
        Ok(Meta {
            applied_index: number(schema::CONSISTENT_INDEX)?,
            applied_term: number(schema::TERM)?,
            conf_state,
            // A revision 0 is none, too.
            compact_revision: if compact_revision > 0 { compact_revision } else { -1 },
            storage_version: version.transpose().map_err(|_not_text| damaged())?,
        })
    }

    /// Leases.
    ///
    /// **Errors** damage.
    pub fn leases(&mut self) -> Result<Vec<(i64, Grant)>, Error> {
        let lease = |(key, value): (Bytes, Bytes)| {
            let lease = schema::Lease::decode(value).ok()?;
            let (id, grant) = lease.grant();
            let is_sound = key[..] == id.to_be_bytes() && grant.ttl_s > 0 && grant.remaining_s >= 0;
            is_sound.then_some((id, grant))
        };
        let leases: Option<Vec<_>> = self.pairs(schema::LEASE)?.into_iter().map(lease).collect();
        leases.ok_or(Error::Bucket { name: schema::LEASE })
    }

    /// Active alarms: member id and type.
    ///
    /// **Errors** damage.
    pub fn alarms(&mut self) -> Result<Vec<(u64, i32)>, Error> {
        let alarm =
            |(key, _): (Bytes, Bytes)| AlarmMember::decode(key).ok().map(|alarm| (alarm.member_id, alarm.alarm));
        let alarms: Option<Vec<_>> = self.pairs(schema::ALARM)?.into_iter().map(alarm).collect();
        alarms.ok_or(Error::Bucket { name: schema::ALARM })
    }

    /// Members.
    ///
    /// **Errors** damage.
    pub fn members(&mut self) -> Result<Vec<Member>, Error> {
        let member = |(key, json): (Bytes, Bytes)| {
            let member = Member::from_json(&json).ok()?;
            (key[..] == schema::member_key(member.id)).then_some(member)
        };
        let members: Option<Vec<_>> = self.pairs(schema::MEMBERS)?.into_iter().map(member).collect();
        members.ok_or(Error::Bucket { name: schema::MEMBERS })
    }

    /// Decided cluster version.
    ///
    /// **Errors** damage.
    pub fn cluster_version(&mut self) -> Result<Option<String>, Error> {
        let version = self.pairs(schema::CLUSTER)?.into_iter().find(|(key, _)| key[..] == *schema::CLUSTER_VERSION);
        let version = version.map(|(_, text)| String::from_utf8(text.to_vec()));
        version.transpose().map_err(|_not_text| Error::Bucket { name: schema::CLUSTER })
    }

    /// Whether users or roles are in use.
    ///
    /// **Errors** damage.
    pub fn has_auth(&mut self) -> Result<bool, Error> {
        let mut has = false;
        for name in schema::AUTH {
            for (key, value) in self.pairs(name)? {
                has |= match key.as_ref() {
                    b"authEnabled" => value[..] != [0],
                    b"authRevision" => false,
                    _ => true,
                };
            }
        }
        Ok(has)
    }

    /// The records in revision order.
    pub fn records(&self) -> Records {
        Records { cursor: self.cursor(schema::KEY) }
    }
}

/// Walks over the records of a [`Backup`].
#[derive(Debug)]
pub struct Records {
    cursor: Option<Cursor>,
}

impl Records {
    /// The next record. It shares no memory with the file's pages.
    ///
    /// **Errors** damage.
    pub fn next(&mut self, backup: &mut Backup) -> Result<Option<Record>, Error> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        let Some(entry) = cursor.next(&mut backup.file)? else { return Ok(None) };
        // A slice, so that decoding copies.
        let record = schema::read_record(&entry.key, &entry.value[..]);
        record.map(Some).ok_or(Error::Bucket { name: schema::KEY })
    }
}
