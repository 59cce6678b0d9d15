//! Ranges of keys and the cursors over them.

use bytes::Bytes;

use crate::{Fault, Record, Revision};

/// Keys from `start` on, up to `end`. A range may be empty; it matches nothing then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// Where it ends.
    pub end: RangeEnd,
}

/// Where a [`KeyRange`] ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RangeEnd {
    /// It is the one key `start`.
    Single,
    /// All keys from `start` on.
    Open,
    /// Up to this key, exclusive.
    Before(Bytes),
}

impl KeyRange {
    /// The one key `key`.
    pub fn single(key: Bytes) -> Self {
        Self { start: key, end: RangeEnd::Single }
    }

    /// Every key.
    pub fn all() -> Self {
        Self { start: Bytes::new(), end: RangeEnd::Open }
    }

    /// Whether `key` lies in it.
    pub fn contains(&self, key: &[u8]) -> bool {
        match &self.end {
            RangeEnd::Single => key == self.start,
            RangeEnd::Open => key >= &self.start[..],
            RangeEnd::Before(end) => key >= &self.start[..] && key < &end[..],
        }
    }
}

/// One version of a key as the tree knows it: everything but the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The key.
    pub key: Bytes,
    /// Where this version stands; its record is found by it.
    pub revision: Revision,
    /// Main revision of the put that began this generation; 0 for a tombstone.
    pub create_revision: i64,
    /// Puts in this generation, from 1; 0 for a tombstone.
    pub version: i64,
    /// Lease id; 0 for none.
    pub lease: i64,
    /// Whether this version ends the generation.
    pub is_tombstone: bool,
    /// Length of the record as an encoded `mvccpb.KeyValue`. **Units** bytes.
    pub bytes: u32,
}

/// Live versions of a range at one revision, in key order.
#[derive(Debug)]
pub struct Cursor {}

impl Cursor {
    /// The next live version. After a [`Fault`] is resolved the same call goes on exactly where it was.
    #[expect(clippy::should_implement_trait, reason = "a fault is not the end of an iterator")]
    pub fn next(&mut self) -> Result<Option<Version>, Fault> {
        unimplemented!()
    }

    /// The key returned last: [`crate::ReadView::cursor_after`] goes on from here on a newer view.
    pub fn position(&self) -> Option<&Bytes> {
        unimplemented!()
    }
}

/// Counts the live keys of a range at one revision in bounded steps.
#[derive(Debug)]
pub struct Count {}

impl Count {
    /// Counts on for at most about `budget` keys; the count once it is complete.
    pub fn step(&mut self, _budget: usize) -> Result<Option<u64>, Fault> {
        unimplemented!()
    }
}

/// Entries of the meta tree with one prefix, in key order.
#[derive(Debug)]
pub struct MetaCursor {}

impl MetaCursor {
    /// The next key and value. After a [`Fault`] is resolved the same call goes on exactly where it was.
    #[expect(clippy::should_implement_trait, reason = "a fault is not the end of an iterator")]
    pub fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, Fault> {
        unimplemented!()
    }
}

/// Stored records in revision order.
#[derive(Debug)]
pub struct RevisionCursor {
    _next: Revision,
}

impl RevisionCursor {
    /// The next record, tombstones included. After a [`Fault`] is resolved the same call goes on exactly where it was.
    #[expect(clippy::should_implement_trait, reason = "a fault is not the end of an iterator")]
    pub fn next(&mut self) -> Result<Option<Record>, Fault> {
        unimplemented!()
    }
}
