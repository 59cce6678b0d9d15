//! Runs on: connection core (reads, checks) and apply core (the same code inside an entry).
//!
//! The meaning of Range, Put, DeleteRange and Txn. No core, no channel and no wait is involved.
//!
//! - `check`: the checks that a request must pass before anything else looks at it
//! - `range`: what a Range asks for, and the job that reads it from a view
//! - `txn`: which branch a Txn takes
//!
//! Nothing here writes; `apply` does. A read names a view and returns an answer or a fault.

use bytes::Bytes;
use engine::{KeyRange, Outline, RangeEnd, Record};
use proto::{mvccpb, wire_range::WireRange};

pub mod check;
pub mod range;
pub mod txn;

/// The range that a request's `key` and `range_end` mean, as the engine's type.
pub fn keys(key: &Bytes, range_end: &Bytes) -> KeyRange {
    match WireRange::new(key.clone(), range_end.clone()) {
        WireRange::Single(start) => KeyRange { start, end: RangeEnd::Single },
        WireRange::From(start) => KeyRange { start, end: RangeEnd::Open },
        WireRange::Bounded { start, end } => KeyRange { start, end: RangeEnd::Before(end) },
    }
}

/// A record as etcd's message. Keys and values share the record's memory.
pub fn key_value(record: Record) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: record.key,
        create_revision: record.create_revision,
        mod_revision: record.revision.main,
        version: record.version,
        value: record.value,
        lease: record.lease,
    }
}

/// A version without its value. It has no lease either, as on etcd's index-only path.
pub fn key_only(key: Bytes, outline: &Outline) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key,
        create_revision: outline.create_revision,
        mod_revision: outline.revision.main,
        version: outline.version,
        value: Bytes::new(),
        lease: 0,
    }
}
