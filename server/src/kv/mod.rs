//! Runs on: connection core (reads, checks) and apply core (the same code inside an entry).
//!
//! The meaning of Range, Put, DeleteRange and Txn, without core, channel or wait.
//!
//! - `check`: what a request must satisfy before anything else looks at it
//! - `range`: what a Range asks for, and the job that reads it from a view
//! - `txn`: which branch a Txn takes
//!
//! Nothing here writes: that is `apply`'s. A read names a view and gets either an answer or a fault.

use bytes::Bytes;
use engine::{KeyRange, Outline, RangeEnd, Record};
use proto::{mvccpb, wire_range::WireRange};

pub mod check;
pub mod range;
pub mod txn;

/// What a request's `key` and `range_end` mean, in the engine's words.
pub fn keys(key: &Bytes, range_end: &Bytes) -> KeyRange {
    match WireRange::new(key.clone(), range_end.clone()) {
        WireRange::Single(start) => KeyRange { start, end: RangeEnd::Single },
        WireRange::From(start) => KeyRange { start, end: RangeEnd::Open },
        WireRange::Bounded { start, end } => KeyRange { start, end: RangeEnd::Before(end) },
    }
}

/// A record as etcd's message; keys and values share its memory.
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

/// A version without its value and, as etcd's index-only path has it, without its lease.
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
