//! Runs on: connection core.
//!
//! Encodes `WatchResponse` and `mvccpb.Event`. This is written by hand because an event goes to many watchers. Its
//! bytes are made once, with tag and length. A response is a few fields and a copy of these bytes.
//!
//! Invariants: fields are written in the order of their numbers, and zero values are left out. prost and Go's protobuf
//! do the same, so the bytes equal theirs (a test compares). Every `*_len` equals the number of bytes that its `put_*`
//! appends.

use bytes::{BufMut, Bytes};
use engine::Record;

use crate::{
    header::{Header, Ids},
    protobuf::{bytes_len, field_len, nested_len, put_bytes, put_field, put_key_value, put_varint},
};

/// The watch id of a response that does not belong to a single watcher.
pub(super) const NO_WATCH_ID: i64 = -1;

/// gRPC's frame in front of a message: a flag (uncompressed) and the length.
pub(super) const FRAME_LEN: usize = 5;

const WATCH_ID_TAG: u8 = 2 << 3;
const CREATED_TAG: u8 = 3 << 3;
const CANCELED_TAG: u8 = 4 << 3;
const COMPACT_REVISION_TAG: u8 = 5 << 3;
const CANCEL_REASON_TAG: u8 = 6 << 3 | 2;
const FRAGMENT_TAG: u8 = 7 << 3;
const EVENTS_TAG: u8 = 11 << 3 | 2;

/// The sender of watch responses: what is in each header besides a revision.
#[derive(Clone, Copy, Debug, Default)]
pub struct Responder {
    /// Ids of cluster and member.
    pub ids: Ids,
    /// The term of this member.
    pub raft_term: u64,
}

impl Responder {
    /// The header at `revision`.
    pub(super) fn header(&self, revision: i64) -> Header {
        Header::new(&self.ids, revision, self.raft_term)
    }
}

/// A response without its events.
#[derive(Clone, Copy)]
pub(super) struct Response<'a> {
    pub(super) header: &'a Header,
    pub(super) watch_id: i64,
    pub(super) is_created: bool,
    pub(super) is_canceled: bool,
    pub(super) compact_revision: i64,
    pub(super) cancel_reason: &'a str,
    pub(super) is_fragment: bool,
}

impl<'a> Response<'a> {
    /// A response with only a header and the watch id.
    pub(super) fn new(header: &'a Header, watch_id: i64) -> Self {
        Self {
            header,
            watch_id,
            is_created: false,
            is_canceled: false,
            compact_revision: 0,
            cancel_reason: "",
            is_fragment: false,
        }
    }

    /// Length of the fields. **Units** bytes.
    pub(super) fn len(&self) -> usize {
        let reason = bytes_len(self.cancel_reason.as_bytes());
        self.header.as_slice().len()
            + field_len(self.watch_id)
            + 2 * (usize::from(self.is_created) + usize::from(self.is_canceled) + usize::from(self.is_fragment))
            + field_len(self.compact_revision)
            + reason
    }

    /// Appends the fields without the events. The events have the highest field number, and follow.
    pub(super) fn put(&self, out: &mut Vec<u8>) {
        out.put_slice(self.header.as_slice());
        put_field(out, WATCH_ID_TAG, self.watch_id);
        if self.is_created {
            out.put_slice(&[CREATED_TAG, 1]);
        }
        if self.is_canceled {
            out.put_slice(&[CANCELED_TAG, 1]);
        }
        put_field(out, COMPACT_REVISION_TAG, self.compact_revision);
        if !self.cancel_reason.is_empty() {
            put_bytes(out, CANCEL_REASON_TAG, self.cancel_reason.as_bytes());
        }
        if self.is_fragment {
            out.put_slice(&[FRAGMENT_TAG, 1]);
        }
    }
}

/// The field `events` of a response, with one event in it. Several of these fields, one after the other, are the list
/// of events of a response.
pub(super) fn event(record: &Record, prev: Option<&Record>) -> Bytes {
    let kv_len = record.key_value_len();
    let prev_len = prev.map(Record::key_value_len);
    let type_len = if record.is_tombstone { 2 } else { 0 };
    let body_len = type_len + nested_len(kv_len) + prev_len.map_or(0, nested_len);
    let mut out = Vec::with_capacity(nested_len(body_len));
    out.put_u8(EVENTS_TAG);
    put_varint(&mut out, body_len as u64);
    if record.is_tombstone {
        out.put_slice(&[1 << 3, 1]);
    }
    out.put_u8(2 << 3 | 2);
    put_varint(&mut out, kv_len as u64);
    put_key_value(&mut out, record);
    if let (Some(prev), Some(len)) = (prev, prev_len) {
        out.put_u8(3 << 3 | 2);
        put_varint(&mut out, len as u64);
        put_key_value(&mut out, prev);
    }
    debug_assert_eq!(out.len(), nested_len(body_len), "the length in front of an event is its own");
    out.into()
}

#[cfg(test)]
mod tests {
    use engine::Revision;
    use prost::Message;
    use proto::{
        etcdserverpb::{ResponseHeader, WatchResponse},
        mvccpb::{Event, KeyValue},
    };
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    fn number(rng: &mut SmallRng) -> i64 {
        let bits = rng.random_range(0..=64u32);
        if bits == 0 { 0 } else { rng.random::<i64>() >> (64 - bits) }
    }

    fn record(rng: &mut SmallRng) -> Record {
        let bytes = |rng: &mut SmallRng, min: usize| {
            let len = [min, 1, 127, 128, 300, 20_000][rng.random_range(0..6)];
            Bytes::from(vec![rng.random::<u8>(); len])
        };
        let is_tombstone = rng.random();
        let key = bytes(rng, 1);
        let revision = Revision::new(number(rng), number(rng));
        if is_tombstone {
            return Record {
                key,
                value: Bytes::new(),
                create_revision: 0,
                revision,
                version: 0,
                lease: 0,
                is_tombstone,
            };
        }
        let value = bytes(rng, 0);
        let (create_revision, version, lease) = (number(rng), number(rng), number(rng));
        Record { key, value, create_revision, revision, version, lease, is_tombstone }
    }

    fn key_value(record: &Record) -> KeyValue {
        KeyValue {
            key: record.key.clone(),
            create_revision: record.create_revision,
            mod_revision: record.revision.main,
            version: record.version,
            value: record.value.clone(),
            lease: record.lease,
        }
    }

    #[test]
    fn bytes_equal_those_of_prost() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..2_000 {
            let [cluster_id, member_id, raft_term] = [(); 3].map(|()| number(&mut rng).cast_unsigned());
            let responder = Responder { ids: Ids::new(cluster_id, member_id), raft_term };
            let revision = number(&mut rng);
            let header = responder.header(revision);
            let response = Response {
                header: &header,
                watch_id: number(&mut rng),
                is_created: rng.random(),
                is_canceled: rng.random(),
                compact_revision: number(&mut rng),
                cancel_reason: ["", "because"][rng.random_range(0..2)],
                is_fragment: rng.random(),
            };
            let mut out = vec![];
            response.put(&mut out);
            assert_eq!(out.len(), response.len());
            let mut events = vec![];
            for _ in 0..rng.random_range(0..4) {
                let record = record(&mut rng);
                let prev = rng.random::<bool>().then(|| self::record(&mut rng));
                out.put_slice(&event(&record, prev.as_ref()));
                events.push(Event {
                    r#type: i32::from(record.is_tombstone),
                    kv: Some(key_value(&record)),
                    prev_kv: prev.as_ref().map(key_value),
                });
            }
            let expected = WatchResponse {
                header: Some(ResponseHeader { cluster_id, member_id, revision, raft_term }),
                watch_id: response.watch_id,
                created: response.is_created,
                canceled: response.is_canceled,
                compact_revision: response.compact_revision,
                cancel_reason: response.cancel_reason.to_owned(),
                fragment: response.is_fragment,
                events,
            };
            assert_eq!(out, expected.encode_to_vec());
        }
    }
}
