//! Runs on: connection core (writing), main thread (reading, offline).
//!
//! etcd's buckets, and the forms of the keys and values in them.
//!
//! | bucket | key | value |
//! |---|---|---|
//! | key | revision, see [`revision_key`] | `mvccpb.KeyValue`; of a tombstone only its key |
//! | meta | `consistent_index`, `term` | 8 bytes, big-endian |
//! | meta | `confState` | JSON |
//! | meta | `scheduledCompactRev`, `finishedCompactRev` | revision |
//! | meta | `storageVersion` | text |
//! | lease | id, 8 bytes, big-endian | [`Lease`] |
//! | alarm | `AlarmMember` | empty |
//! | cluster | `clusterVersion` | text |
//! | cluster | `downgrade` | JSON |
//! | members | id in hexadecimal | JSON |
//! | members_removed | id in hexadecimal | `removed` |
//! | auth | `authEnabled` | 0 or 1, a byte |
//! | auth | `authRevision` | 8 bytes, big-endian |
//! | authUsers | name | `authpb.User` |
//! | authRoles | name | `authpb.Role` |
//!
//! **Source** etcd v3.7.1 `server/storage/schema/`, `server/storage/mvcc/revision.go`.

use bytes::Bytes;
use consensus::ConfState;
use engine::{Record, Revision};
use prost::Message;
use proto::mvccpb::KeyValue;
use serde_json::Value;

use crate::{lease::Grant, shared::Downgrade};

/// Name of a bucket.
pub type Name = &'static str;
/// Versions of keys.
pub const KEY: Name = "key";
/// The place in the log, and the compacted revisions.
pub const META: Name = "meta";
/// Leases.
pub const LEASE: Name = "lease";
/// Active alarms.
pub const ALARM: Name = "alarm";
/// Decisions of the cluster.
pub const CLUSTER: Name = "cluster";
/// Members.
pub const MEMBERS: Name = "members";
/// Former members. Their ids never come back.
pub const MEMBERS_REMOVED: Name = "members_removed";
/// The state of authentication.
pub const AUTH: Name = "auth";
/// Users.
pub const AUTH_USERS: Name = "authUsers";
/// Roles.
pub const AUTH_ROLES: Name = "authRoles";

/// In [`META`]: index of the last applied entry.
pub const CONSISTENT_INDEX: &[u8] = b"consistent_index";
/// In [`META`]: the term of that entry.
pub const TERM: &[u8] = b"term";
/// In [`META`]: raft's configuration.
pub const CONF_STATE: &[u8] = b"confState";
/// In [`META`]: the compact revision that was asked for.
pub const SCHEDULED_COMPACT: &[u8] = b"scheduledCompactRev";
/// In [`META`]: the compact revision up to which everything is dropped.
pub const FINISHED_COMPACT: &[u8] = b"finishedCompactRev";
/// In [`META`]: the version of this schema.
pub const STORAGE_VERSION: &[u8] = b"storageVersion";
/// In [`CLUSTER`]: the decided cluster version.
pub const CLUSTER_VERSION: &[u8] = b"clusterVersion";
/// In [`CLUSTER`]: the last decision about a downgrade.
pub const DOWNGRADE: &[u8] = b"downgrade";
/// In [`AUTH`]: whether authentication is enabled.
pub const AUTH_ENABLED: &[u8] = b"authEnabled";
/// In [`AUTH`]: the revision of users and roles.
pub const AUTH_REVISION: &[u8] = b"authRevision";
/// The value of each row of [`MEMBERS_REMOVED`].
pub const REMOVED: &[u8] = b"removed";

const REVISION_LEN: usize = 17;

/// The main revision, `_`, the sub revision, and a `t` for a tombstone. Main and sub take 8 bytes each, big-endian.
pub fn revision_key(revision: Revision, is_tombstone: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(REVISION_LEN + 1);
    key.extend_from_slice(&revision.main.to_be_bytes());
    key.push(b'_');
    key.extend_from_slice(&revision.sub.to_be_bytes());
    if is_tombstone {
        key.push(b't');
    }
    key
}

/// The inverse of [`revision_key`]; `None` if the bytes are not such a key.
pub fn parse_revision(key: &[u8]) -> Option<(Revision, bool)> {
    let (main, rest) = key.split_first_chunk::<8>()?;
    let (sub, mark) = rest.strip_prefix(b"_")?.split_first_chunk::<8>()?;
    let revision = Revision::new(i64::from_be_bytes(*main), i64::from_be_bytes(*sub));
    let is_sound = revision.main >= 0 && revision.sub >= 0 && mark.len() <= 1;
    is_sound.then_some((revision, mark == b"t"))
}

/// Appends the value that a record has in bucket [`KEY`].
pub fn write_record(record: Record, out: &mut Vec<u8>) {
    let is_bare = record.is_tombstone || record.is_gap();
    let mod_revision = if is_bare { 0 } else { record.revision.main };
    let Record { key, value, create_revision, version, lease, .. } = record;
    let kv = KeyValue { key, create_revision, mod_revision, version, value, lease };
    kv.encode(out).expect("a vector grows");
}

/// The record in a key and a value of bucket [`KEY`]; `None` if they are not one. It shares no memory with them.
pub fn read_record(key: &[u8], value: &[u8]) -> Option<Record> {
    let (revision, is_tombstone) = parse_revision(key)?;
    let kv = KeyValue::decode(value).ok()?;
    let is_gap = kv.key.is_empty() && value.is_empty() && !is_tombstone;
    let is_created = (1..=revision.main).contains(&kv.create_revision) && kv.version > 0;
    let is_put = !kv.key.is_empty() && kv.mod_revision == revision.main && is_created;
    if !(is_gap || is_put || is_tombstone && !kv.key.is_empty()) || revision.main == 0 {
        return None;
    }
    let record = Record {
        key: kv.key,
        value: if is_tombstone { Bytes::new() } else { kv.value },
        create_revision: if is_tombstone { 0 } else { kv.create_revision },
        revision,
        version: if is_tombstone { 0 } else { kv.version },
        lease: if is_tombstone { 0 } else { kv.lease },
        is_tombstone,
    };
    Some(record)
}

/// etcd's `leasepb.Lease`.
#[derive(Clone, PartialEq, Message)]
pub struct Lease {
    /// Its id.
    #[prost(int64, tag = "1")]
    pub id: i64,
    /// Granted time to live. **Units** seconds.
    #[prost(int64, tag = "2")]
    pub ttl_s: i64,
    /// Time that was left at the last checkpoint; 0 if there was none. **Units** seconds.
    #[prost(int64, tag = "3")]
    pub remaining_s: i64,
}

impl Lease {
    /// The stored form of a grant.
    pub fn of(id: i64, grant: Grant) -> Self {
        Self { id, ttl_s: grant.ttl_s, remaining_s: grant.remaining_s }
    }

    /// The id and the grant.
    pub fn grant(&self) -> (i64, Grant) {
        (self.id, Grant { ttl_s: self.ttl_s, remaining_s: self.remaining_s })
    }
}

/// A member's key.
pub fn member_key(id: u64) -> Vec<u8> {
    format!("{id:x}").into_bytes()
}

/// The id in a key of [`member_key`]'s form; `None` if it has another form.
pub fn parse_member_key(key: &[u8]) -> Option<u64> {
    let id = u64::from_str_radix(std::str::from_utf8(key).ok()?, 16).ok()?;
    (member_key(id) == key).then_some(id)
}

/// A decision about a downgrade as JSON, in Go's order.
pub fn downgrade_json(downgrade: &Downgrade) -> Vec<u8> {
    let target = Value::from(downgrade.target.as_str());
    format!("{{\"target-version\":{target},\"enabled\":{}}}", downgrade.is_enabled).into_bytes()
}

/// The inverse of [`downgrade_json`]; `None` if it is not such a decision.
pub fn parse_downgrade(json: &[u8]) -> Option<Downgrade> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let is_enabled = value.get("enabled")?.as_bool()?;
    let target = value.get("target-version")?.as_str()?;
    Some(Downgrade { is_enabled, target: target.to_owned() })
}

/// A configuration as JSON, in the order and with the omissions of Go.
pub fn conf_state_json(state: &ConfState) -> Vec<u8> {
    let list = |name: &str, ids: &[u64]| {
        let ids: Vec<String> = ids.iter().map(u64::to_string).collect();
        if ids.is_empty() { String::new() } else { format!("\"{name}\":[{}],", ids.join(",")) }
    };
    let (voters, learners) = (list("voters", &state.voters), list("learners", &state.learners));
    format!("{{{voters}{learners}\"auto_leave\":false}}").into_bytes()
}

/// The inverse of [`conf_state_json`]; `None` if it is not a configuration, or one that is changing to another.
pub fn parse_conf_state(json: &[u8]) -> Option<ConfState> {
    let value: Value = serde_json::from_slice(json).ok()?;
    let list = |name: &str| match value.get(name) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(ids) => ids.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>(),
    };
    let is_joint = !list("voters_outgoing")?.is_empty() || !list("learners_next")?.is_empty();
    let sorted = |mut ids: Vec<u64>| {
        ids.sort_unstable();
        ids
    };
    let state = ConfState { voters: sorted(list("voters")?), learners: sorted(list("learners")?) };
    (!is_joint).then_some(state)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &'static [u8], is_tombstone: bool) -> Record {
        let live = i64::from(!is_tombstone && !key.is_empty());
        Record {
            key: Bytes::from_static(key),
            value: if live == 1 { Bytes::from_static(b"value") } else { Bytes::new() },
            create_revision: 5 * live,
            revision: Revision::new(9, 2),
            version: 3 * live,
            lease: -7 * live,
            is_tombstone,
        }
    }

    #[test]
    fn records_are_read_back_and_nothing_else_is() {
        for record in [record(b"k", false), record(b"k", true), record(b"", false)] {
            let key = revision_key(record.revision, record.is_tombstone);
            let mut value = Vec::new();
            write_record(record.clone(), &mut value);
            assert_eq!(value.is_empty(), record.is_gap());
            assert_eq!(read_record(&key, &value), Some(record.clone()));
            assert_eq!(read_record(&key[..16], &value), None);
            let other = revision_key(Revision::new(10, 2), false);
            assert_eq!(read_record(&other, &value).is_some(), record.is_gap(), "the revision stands in both");
        }
        assert_eq!(parse_revision(b"\xff\0\0\0\0\0\0\x01_\0\0\0\0\0\0\0\0"), None);
    }

    #[test]
    fn a_configuration_is_what_go_writes() {
        let one = ConfState { voters: vec![10_276_657_743_932_975_437], learners: vec![] };
        let json = conf_state_json(&one);
        assert_eq!(json, br#"{"voters":[10276657743932975437],"auto_leave":false}"#);
        assert_eq!(parse_conf_state(&json), Some(one));
        let two = ConfState { voters: vec![1, 2], learners: vec![3] };
        assert_eq!(parse_conf_state(&conf_state_json(&two)), Some(two));
        assert_eq!(parse_conf_state(br#"{"voters":[1],"voters_outgoing":[2]}"#), None);
        for downgrade in [Downgrade { is_enabled: true, target: "3.6.0".to_owned() }, Downgrade::default()] {
            assert_eq!(parse_downgrade(&downgrade_json(&downgrade)), Some(downgrade));
        }
        let go: &[u8] = br#"{"target-version":"3.6.0","enabled":true}"#;
        assert_eq!(downgrade_json(&parse_downgrade(go).unwrap()), go);
        assert_eq!((parse_downgrade(b"{}"), parse_member_key(&member_key(u64::MAX))), (None, Some(u64::MAX)));
        assert_eq!([&b"0a"[..], b"A", b"", b"x"].map(parse_member_key), [None; 4]);
        assert_eq!(parse_conf_state(b"[]").map(|state| state.voters.len()), Some(0));
    }
}
