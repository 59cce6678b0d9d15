//! Runs on: main thread, offline; threads of their own (states that arrive).
//!
//! A snapshot file, or the database of a stopped etcd. Its buckets are read as a member's values.
//!
//! Invariants: everything is checked as it is read. Content that etcd would not write is an error that names the
//! bucket. Records are read one at a time; the rest is as small as it is in a member's memory.
//!
//! It takes no lock; see `bolt::reader`.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use bytes::Bytes;
use consensus::{ConfState, EntryId, Member};
use engine::Record;
use prost::Message;
use proto::etcdserverpb::AlarmMember;
use sha2::{Digest, Sha256};

use super::{
    bolt::reader::{BoltFile, Bucket, Cursor},
    error::Error,
    schema,
    source::{DiskSource, Source},
};
use crate::{
    auth::Users,
    lease::Grant,
    shared::{Alarms, Downgrade, RaisedBy},
};

const HASH_LEN: u64 = 32;
/// A database consists of whole sectors. A file that is longer by a SHA-256 has one at its end. **Source** etcd v3.7.1
/// `etcdutl/snapshot/v3_snapshot.go hasChecksum`.
const SECTOR: u64 = 512;
const CHUNK_BYTES: usize = 1 << 20;

/// Checks that the checksum at a snapshot file's end is that of the bytes before it.
///
/// **Errors** it is a different one, or there is none; in etcdutl's words.
pub fn check_hash(path: &Path) -> Result<(), Error> {
    let mut source = DiskSource::open(path)?;
    if source.bytes() % SECTOR != HASH_LEN {
        return Err(Error::NoHash);
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
    if told[..] == found[..] { Ok(()) } else { Err(Error::Hash { told, found: found.to_vec() }) }
}

/// The content of [`schema::META`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Last applied entry. The index is 0 if there is none. The term is 0 if it is not known.
    pub applied: EntryId,
    /// Raft's configuration, if it is known.
    pub conf_state: Option<ConfState>,
    /// The revision of the newest compaction that was begun or finished; -1 for none.
    pub compact_revision: i64,
    /// The version of the schema, if the file names it.
    pub storage_version: Option<String>,
}

/// See the head of this file.
pub struct Database {
    file: BoltFile<DiskSource>,
    buckets: BTreeMap<Bytes, Bucket>,
}

impl Database {
    /// Opens the file at `path`.
    ///
    /// **Errors** the file is not a bbolt file, or not one of etcd's.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = BoltFile::open(DiskSource::open(path)?)?;
        file.note_reached();
        let buckets: BTreeMap<Bytes, Bucket> = file.buckets()?.into_iter().collect();
        Ok(Self { file, buckets })
    }

    /// The file's size by its meta page. **Units** bytes.
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
            applied: EntryId { index: number(schema::CONSISTENT_INDEX)?, term: number(schema::TERM)? },
            conf_state,
            // A revision of 0 also means that there was none.
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

    /// Active alarms. The file does not say who raised them, so they stay until a client disarms them.
    ///
    /// **Errors** damage.
    pub fn alarms(&mut self) -> Result<Alarms, Error> {
        let alarm = |(key, _): (Bytes, Bytes)| {
            let alarm = AlarmMember::decode(key).ok()?;
            Some(((alarm.member_id, alarm.alarm), RaisedBy::Hand))
        };
        let alarms: Option<Alarms> = self.pairs(schema::ALARM)?.into_iter().map(alarm).collect();
        alarms.ok_or(Error::Bucket { name: schema::ALARM })
    }

    /// Members by id.
    ///
    /// **Errors** damage.
    pub fn members(&mut self) -> Result<Vec<Member>, Error> {
        let member = |(key, json): (Bytes, Bytes)| {
            let member = Member::from_json(&json).ok()?;
            (key[..] == schema::member_key(member.id)).then_some(member)
        };
        let members: Option<Vec<_>> = self.pairs(schema::MEMBERS)?.into_iter().map(member).collect();
        let mut members = members.ok_or(Error::Bucket { name: schema::MEMBERS })?;
        // Their keys have as many digits as the ids need.
        members.sort_unstable_by_key(|member| member.id);
        Ok(members)
    }

    /// Ids of former members.
    ///
    /// **Errors** damage.
    pub fn removed(&mut self) -> Result<BTreeSet<u64>, Error> {
        let ids = self.pairs(schema::MEMBERS_REMOVED)?.into_iter().map(|(key, _)| schema::parse_member_key(&key));
        ids.collect::<Option<_>>().ok_or(Error::Bucket { name: schema::MEMBERS_REMOVED })
    }

    /// The last decision about a downgrade, if there was one.
    ///
    /// **Errors** damage.
    pub fn downgrade(&mut self) -> Result<Option<Downgrade>, Error> {
        let found = self.pairs(schema::CLUSTER)?.into_iter().find(|(key, _)| key[..] == *schema::DOWNGRADE);
        let Some((_, json)) = found else { return Ok(None) };
        let downgrade = schema::parse_downgrade(&json);
        downgrade.map(Some).ok_or(Error::Bucket { name: schema::CLUSTER })
    }

    /// Decided cluster version.
    ///
    /// **Errors** damage.
    pub fn cluster_version(&mut self) -> Result<Option<String>, Error> {
        let version = self.pairs(schema::CLUSTER)?.into_iter().find(|(key, _)| key[..] == *schema::CLUSTER_VERSION);
        let version = version.map(|(_, text)| String::from_utf8(text.to_vec()));
        version.transpose().map_err(|_not_text| Error::Bucket { name: schema::CLUSTER })
    }

    /// Users and roles. They are refused as long as nobody asks them for permission.
    ///
    /// **Errors** there are some; damage.
    pub fn users(&mut self) -> Result<Users, Error> {
        let damaged = |name| move |_undecodable| Error::Bucket { name };
        let mut users = Users::default();
        let (mut is_enabled, mut revision) = (false, users.revision().to_be_bytes().to_vec());
        for (key, value) in self.pairs(schema::AUTH)? {
            match &key[..] {
                schema::AUTH_ENABLED => is_enabled = value[..] == [1],
                schema::AUTH_REVISION => revision = value.to_vec(),
                _ => {}
            }
        }
        let state = [&[u8::from(is_enabled)], &revision[..]].concat();
        users.take_state(&state).map_err(damaged(schema::AUTH))?;
        for (_, value) in self.pairs(schema::AUTH_USERS)? {
            users.take_user(&value).map_err(damaged(schema::AUTH_USERS))?;
        }
        for (_, value) in self.pairs(schema::AUTH_ROLES)? {
            users.take_role(&value).map_err(damaged(schema::AUTH_ROLES))?;
        }
        users.taken();
        if users.is_empty() && !users.is_enabled() { Ok(users) } else { Err(Error::Auth) }
    }

    /// The records in revision order.
    pub fn records(&self) -> Records {
        Records { cursor: self.cursor(schema::KEY) }
    }
}

/// Walks over the records of a [`Database`].
#[derive(Debug)]
pub struct Records {
    cursor: Option<Cursor>,
}

impl Records {
    /// The next record. It shares no memory with the file's pages.
    ///
    /// **Errors** damage.
    pub fn next(&mut self, database: &mut Database) -> Result<Option<Record>, Error> {
        let Some(cursor) = &mut self.cursor else { return Ok(None) };
        let Some(entry) = cursor.next(&mut database.file)? else { return Ok(None) };
        // This is a slice, so that decoding copies.
        let record = schema::read_record(&entry.key, &entry.value[..]);
        record.map(Some).ok_or(Error::Bucket { name: schema::KEY })
    }
}
