//! etcd's MVCC over the two trees: the writer, and the views it publishes.

use std::sync::Arc;

use bytes::Bytes;

use crate::cursor::{Count, Cursor, KeyRange, MetaCursor, RevisionCursor, Version};
use crate::extent::Directory;
use crate::node::Slot;
use crate::recent::Recent;
use crate::{Fault, Place, Record, Revision};

/// What [`Mvcc::new`] starts from: what the newest superblock says, or [`Roots::fresh`].
#[derive(Clone, Debug)]
pub struct Roots {
    /// Root of the key tree.
    pub key_root: Arc<Slot>,
    /// Root of the meta tree.
    pub meta_root: Arc<Slot>,
    /// Current main revision, 1 for a fresh store.
    pub revision: i64,
    /// Compacted main revision, -1 if never.
    pub compact_revision: i64,
    /// Raft index of the last entry that is in the trees.
    pub applied_index: u64,
    /// Its term.
    pub applied_term: u64,
    /// The checkpointed records.
    pub directory: Arc<Directory>,
}

impl Roots {
    /// Roots of an empty store.
    pub fn fresh(_directory: Arc<Directory>) -> Self {
        unimplemented!()
    }
}

/// One immutable state of the store, published once per batch. Any thread reads it, for one turn of its loop.
#[derive(Clone, Debug)]
pub struct ReadView {
    roots: Roots,
}

#[expect(unused_variables, reason = "signatures")]
impl ReadView {
    /// Current main revision.
    pub fn revision(&self) -> i64 {
        self.roots.revision
    }

    /// Compacted main revision; -1 if there never was a compaction.
    pub fn compact_revision(&self) -> i64 {
        self.roots.compact_revision
    }

    /// Raft index of the last entry it holds.
    pub fn applied_index(&self) -> u64 {
        self.roots.applied_index
    }

    /// Term of that entry.
    pub fn applied_term(&self) -> u64 {
        self.roots.applied_term
    }

    /// The newest version of `key` with main revision <= `at`, tombstones included (unless compaction dropped it).
    pub fn version_of(&self, key: &[u8], at: i64) -> Result<Option<Version>, Fault> {
        unimplemented!()
    }

    /// The record of `key` at revision `at`; `None` if absent or deleted.
    pub fn get(&self, key: &[u8], at: i64) -> Result<Option<Record>, Fault> {
        unimplemented!()
    }

    /// The record written at `revision`, if it is stored.
    pub fn record(&self, revision: Revision) -> Result<Option<Record>, Fault> {
        unimplemented!()
    }

    /// Number of live keys of `range` at revision `at`: O(log n) at the current revision, else a walk over the keys
    /// (for a large range prefer [`ReadView::counter`]).
    pub fn count(&self, range: &KeyRange, at: i64) -> Result<u64, Fault> {
        unimplemented!()
    }

    /// Counts like [`ReadView::count`] in bounded steps.
    pub fn counter(&self, range: &KeyRange, at: i64) -> Count {
        unimplemented!()
    }

    /// Live keys of `range` at the current revision and the sum of their encoded lengths, in O(log n).
    pub fn sums(&self, range: &KeyRange) -> Result<(u64, u64), Fault> {
        unimplemented!()
    }

    /// The live versions of `range` at revision `at`.
    pub fn cursor(&self, range: &KeyRange, at: i64) -> Cursor {
        unimplemented!()
    }

    /// Like [`ReadView::cursor`], from behind `last_key` on.
    pub fn cursor_after(&self, range: &KeyRange, at: i64, last_key: &[u8]) -> Cursor {
        unimplemented!()
    }

    /// Every stored record from `from` on, in revision order.
    pub fn records_from(&self, from: Revision) -> RevisionCursor {
        unimplemented!()
    }

    /// The value of `key` in the meta tree.
    pub fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        unimplemented!()
    }

    /// The entries of the meta tree whose keys begin with `prefix`.
    pub fn meta_cursor(&self, prefix: &[u8]) -> MetaCursor {
        unimplemented!()
    }

    /// The HashKV of this store at `revision`, computed in steps on this or any newer view.
    pub fn hash_kv(&self, revision: i64) -> HashKv {
        unimplemented!()
    }

    /// The hash etcd takes while compacting to `revision`, where `previous` was the compact revision before (-1: none).
    pub fn hash_compaction(&self, previous: i64, revision: i64) -> HashKv {
        unimplemented!()
    }

    /// Walks both trees and panics where an invariant does not hold; for tests.
    pub fn verify(&self) -> Result<(), Fault> {
        unimplemented!()
    }
}

/// A HashKV under way.
#[derive(Debug)]
pub struct HashKv {}

#[expect(unused_variables, reason = "signatures")]
impl HashKv {
    /// Hashes on, about `budget` records; the hash and the compact revision it was computed with, once complete.
    pub fn step(&mut self, view: &ReadView, budget: usize) -> Result<Option<(u32, i64)>, Fault> {
        unimplemented!()
    }
}

/// Where other threads get the newest [`ReadView`].
#[derive(Clone, Debug)]
pub struct Published {}

impl Published {
    /// The newest view.
    pub fn load(&self) -> Arc<ReadView> {
        unimplemented!()
    }
}

/// The writer: owned by the apply core.
#[derive(Debug)]
pub struct Mvcc {
    _live: ReadView,
}

#[expect(unused_variables, reason = "signatures")]
impl Mvcc {
    /// A writer over recovered roots.
    pub fn new(recovered: Roots) -> Self {
        unimplemented!()
    }

    /// The view published last.
    pub fn view(&self) -> Arc<ReadView> {
        unimplemented!()
    }

    /// The cell every other thread loads views from.
    pub fn published(&self) -> Published {
        unimplemented!()
    }

    /// Begins one writing request: all its changes get the next main revision.
    pub fn begin(&mut self) -> Write<'_> {
        unimplemented!()
    }

    /// Moves the compact revision; what becomes droppable is invisible at once and removed by [`Mvcc::sweep`].
    pub fn compact(&mut self, revision: i64) {
        unimplemented!()
    }

    /// Drops versions below the compact revision, about `budget` entries.
    pub fn sweep(&mut self, budget: usize) -> Result<SweepProgress, Fault> {
        unimplemented!()
    }

    /// Makes everything so far visible to readers, as of the applied entry; O(1), once per batch.
    pub fn publish(&mut self, applied_index: u64, applied_term: u64) -> Arc<ReadView> {
        unimplemented!()
    }

    /// Faults in what a put or delete of `key` needs.
    pub fn touch(&self, key: &[u8]) -> Result<(), Fault> {
        unimplemented!()
    }

    /// Faults in what reads and deletes of the live keys in `range` need.
    pub fn touch_range(&self, range: &KeyRange) -> Result<(), Fault> {
        unimplemented!()
    }

    /// Faults in what a put or delete of `key` in the meta tree needs.
    pub fn touch_meta(&self, key: &[u8]) -> Result<(), Fault> {
        unimplemented!()
    }

    /// Freezes the state published last for a checkpoint. Until [`Mvcc::checkpoint_done`] or
    /// [`Mvcc::checkpoint_failed`] there is no second one.
    pub fn seal_for_checkpoint(&mut self) -> Sealed {
        unimplemented!()
    }

    /// The sealed state is durable: `directory` now holds every record up to `up_to`; they leave memory.
    pub fn checkpoint_done(&mut self, directory: Arc<Directory>, up_to: Revision) {
        unimplemented!()
    }

    /// The sealed state did not become durable. Places it has set stay set.
    pub fn checkpoint_failed(&mut self) {
        unimplemented!()
    }

    /// Pages the live trees no longer reach. What is taken right before [`Mvcc::seal_for_checkpoint`] is not reached by
    /// the sealed trees either.
    pub fn take_dead_places(&mut self) -> Vec<Place> {
        unimplemented!()
    }

    /// Versions dropped by the sweep, with the lengths of their encoded records; to be taken like the places.
    pub fn take_dead_records(&mut self) -> Vec<(Revision, u32)> {
        unimplemented!()
    }
}

/// What a checkpoint writes.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Roots, revisions and applied entry, and the directory the new one is built upon.
    pub roots: Roots,
    /// Records that may not be in the directory yet: skip those up to `Directory::last`.
    pub recent: Recent,
}

/// How far a sweep is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepProgress {
    /// Versions this step dropped.
    pub dropped: u64,
    /// Whether nothing below the compact revision is left to drop.
    pub is_done: bool,
}

/// One writing request under way. Reads through it (it is a [`ReadView`]) see its own changes.
#[derive(Debug)]
pub struct Write<'a> {
    mvcc: &'a mut Mvcc,
}

#[expect(unused_variables, reason = "signatures")]
impl Write<'_> {
    /// Appends a version of `key`; the version it replaces, if the key was live.
    ///
    /// A fault leaves this one change undone, and only this one.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<Option<Version>, Fault> {
        unimplemented!()
    }

    /// Appends a tombstone if `key` is live; the version it ends.
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<Version>, Fault> {
        unimplemented!()
    }

    /// Sets `key` in the meta tree.
    pub fn meta_put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        unimplemented!()
    }

    /// Removes `key` from the meta tree; whether it was there.
    pub fn meta_delete(&mut self, key: &[u8]) -> Result<bool, Fault> {
        unimplemented!()
    }

    /// What changed. The revision has moved iff a record was written.
    pub fn finish(self) -> Changes {
        unimplemented!()
    }
}

impl std::ops::Deref for Write<'_> {
    type Target = ReadView;

    fn deref(&self) -> &ReadView {
        &self.mvcc._live
    }
}

/// What one writing request changed.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Current main revision after it.
    pub revision: i64,
    /// The records it wrote, by sub revision.
    pub records: Vec<Change>,
}

/// One record with what it replaced.
#[derive(Clone, Debug)]
pub struct Change {
    /// The new record.
    pub record: Record,
    /// The version it replaced, if the key was live.
    pub previous: Option<Version>,
}
