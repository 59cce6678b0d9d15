//! One immutable state of the store, and every read of it.
//!
//! Any thread may read a view, for one turn of its loop. All reads are synchronous and use resident pages only. A
//! `Fault` says which page must be read before the same call is tried again.
//!
//! It does not check that a requested revision is between `compact_revision` and `revision`. Below that, answers are
//! those of no revision. Above it, they are those of the newest.

use std::{borrow::Cow, sync::Arc};

use bytes::Bytes;

use super::{
    cursor::{self, Count, Cursor, KeyRange, MetaCursor, RevisionCursor, Usage, Version},
    recent::Recent,
};
use crate::{
    Fault, Record, Revision,
    extent::{Directory, ExtentCursor, Fingers, Stored},
    tree::{self, EntryMeta, Node, Profile, Slot},
};

/// A record at its present place.
#[derive(Clone, Debug)]
pub enum Found<'a> {
    /// It was written since the last checkpoint.
    Recent(Cow<'a, Record>),
    /// It is in a block.
    Stored(Stored<'a>),
}

impl Found<'_> {
    /// The record, free of its place.
    pub fn to_record(self) -> Record {
        match self {
            Self::Recent(record) => record.into_owned(),
            Self::Stored(stored) => stored.record(),
        }
    }
}

/// The state with which [`crate::Mvcc::new`] starts: that of the newest superblock, or [`Roots::fresh`].
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
    /// Changes of the revision after `revision` that the trees and the records hold already, because a request of many
    /// changes is under way. No read shows them.
    pub unfinished: i64,
    /// How many states have come in the place of this store's since it was opened ([`crate::Store::install_begin`]).
    pub state: u64,
    /// The checkpointed records.
    pub directory: Arc<Directory>,
}

impl Roots {
    /// Roots of an empty store.
    pub fn fresh(directory: Arc<Directory>) -> Self {
        let key_root = Slot::new_dirty(Node::empty());
        let meta_root = Slot::born_in(Node::empty(), 0, key_root.residency());
        let (revision, compact_revision) = (1, -1);
        Self {
            key_root,
            meta_root,
            revision,
            compact_revision,
            applied_index: 0,
            applied_term: 0,
            unfinished: 0,
            state: 0,
            directory,
        }
    }
}

/// One immutable state of the store, published once per batch.
#[derive(Clone, Debug)]
pub struct ReadView {
    pub(super) roots: Roots,
    pub(super) recent: Recent,
}

impl ReadView {
    pub(super) fn new(roots: Roots) -> Self {
        Self { roots, recent: Recent::default() }
    }

    /// Current main revision.
    pub fn revision(&self) -> i64 {
        self.roots.revision
    }

    /// Compacted main revision; -1 if there never was a compaction.
    pub fn compact_revision(&self) -> i64 {
        self.roots.compact_revision
    }

    /// Tells states apart that have come in each other's place. What was held in one need not be in the next.
    pub fn state(&self) -> u64 {
        self.roots.state
    }

    /// Raft index of the last entry it holds.
    pub fn applied_index(&self) -> u64 {
        self.roots.applied_index
    }

    /// Term of that entry.
    pub fn applied_term(&self) -> u64 {
        self.roots.applied_term
    }

    /// The records that no checkpoint has written, with their number and encoded bytes.
    pub fn recent(&self) -> &Recent {
        &self.recent
    }

    /// Faults on the pages that a put or delete of `key` needs.
    #[inline]
    pub fn touch(&self, key: &[u8]) -> Result<(), Fault> {
        tree::touch(&self.roots.key_root, key)
    }

    /// Faults on the pages that a put or delete of `key` in the meta tree needs.
    pub fn touch_meta(&self, key: &[u8]) -> Result<(), Fault> {
        tree::touch(&self.roots.meta_root, key)
    }

    /// The lease of `key` now; 0 if it has none, or is not live. It needs the pages that a put of `key` needs.
    pub fn lease_of(&self, key: &[u8]) -> Result<i64, Fault> {
        if self.is_unfinished() {
            // Where the version before is need not be where the next one comes.
            self.touch(key)?;
        }
        let newest = self.find(key, self.revision())?;
        Ok(newest.filter(|newest| !newest.is_tombstone()).map_or(0, |newest| newest.lease))
    }

    /// The newest version of `key` with main revision <= `at`, tombstones included, unless compaction dropped it.
    pub fn version_of(&self, key: &[u8], at: i64) -> Result<Option<Version>, Fault> {
        let meta = self.find(key, at)?;
        let is_dropped = |meta: &EntryMeta| meta.is_tombstone() && meta.revision.main < self.compact_revision();
        Ok(meta.filter(|meta| !is_dropped(meta)).map(|meta| Version::new(Bytes::copy_from_slice(key), &meta)))
    }

    /// The record of `key` at revision `at`; `None` if absent or deleted.
    pub fn get(&self, key: &[u8], at: i64) -> Result<Option<Record>, Fault> {
        let Some(meta) = self.find(key, at)?.filter(|meta| !meta.is_tombstone()) else { return Ok(None) };
        let record = self.record(key, meta.revision)?;
        assert!(record.as_ref().is_some_and(|record| record.key == key), "every version has its record");
        Ok(record)
    }

    /// The version of `key` written at `revision`, if it is stored.
    pub fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Fault> {
        match self.recent.find(revision) {
            Some(record) => Ok(Some(record.into_owned())),
            None => self.roots.directory.record(key, revision),
        }
    }

    /// The place of the version of `key` written at `revision`, if it is stored. It is for walks over keys.
    pub fn locate<'a>(
        &'a self,
        key: &[u8],
        revision: Revision,
        fingers: &'a mut Fingers,
    ) -> Result<Option<Found<'a>>, Fault> {
        if self.recent.first().is_some_and(|first| first <= revision) {
            return Ok(self.recent.find(revision).map(Found::Recent));
        }
        Ok(self.roots.directory.stored(key, revision, fingers)?.map(Found::Stored))
    }

    /// Record blocks read from disk so far. The number may wrap around. A scan reads it when it begins, for
    /// [`Fault::scanning`].
    pub fn block_reads(&self) -> u32 {
        self.roots.directory.block_reads()
    }

    /// Number of live keys of `range` at revision `at`. At the current revision this costs O(log n). Otherwise it walks
    /// over the keys; if that may be long, use [`ReadView::counter`].
    pub fn count(&self, range: &KeyRange, at: i64) -> Result<u64, Fault> {
        let count = self.counter(range, at).step(usize::MAX)?;
        Ok(count.expect("the budget has no end"))
    }

    /// Counts like [`ReadView::count`], in bounded steps.
    pub fn counter(&self, range: &KeyRange, at: i64) -> Count {
        let (at, is_newest) = self.reading(at);
        Count::new(Arc::clone(&self.roots.key_root), range, at, is_newest)
    }

    /// Whether a request of many changes is under way.
    pub fn is_unfinished(&self) -> bool {
        self.roots.unfinished > 0
    }

    /// Whether a read at `at` takes the newest version of each key, so that the sums of the tree are about it. Not so
    /// while a request of many changes is under way: then the newest versions are not all visible yet.
    pub fn is_newest(&self, at: i64) -> bool {
        self.reading(at).1
    }

    /// The first live keys of `range`, at most `max` of them, by their newest versions ([`ReadView::is_newest`]).
    /// Returns their number, and the bytes that they take in the answer to a Range, in O(log n).
    pub fn sums(&self, range: &KeyRange, max: u64) -> Result<(u64, u64), Fault> {
        cursor::sums_of_first(&self.roots.key_root, range, max)
    }

    /// The space that `range` takes by the newest versions, in O(log n).
    pub fn usage(&self, range: &KeyRange) -> Result<Usage, Fault> {
        cursor::usage(&self.roots.key_root, range)
    }

    /// The live versions of `range` at revision `at`.
    pub fn cursor(&self, range: &KeyRange, at: i64) -> Cursor {
        let (at, is_newest) = self.reading(at);
        Cursor::new(Arc::clone(&self.roots.key_root), range, at, is_newest)
    }

    /// Lets `cursor` go on in this view, which must not be older than its own. A walk that takes longer than a view
    /// lives calls it at each step. The sweep must have been held back for the cursor's revision.
    pub fn lead(&self, cursor: &mut Cursor) {
        cursor.follow(&self.roots.key_root, self.newest_from());
    }

    /// As [`ReadView::lead`], for a count.
    pub fn lead_count(&self, count: &mut Count) {
        count.follow(&self.roots.key_root, self.newest_from());
    }

    /// As [`ReadView::cursor`], but it takes the path that the same read will take once `at` is a past revision. So it
    /// meets every page of that path.
    pub fn cursor_past(&self, range: &KeyRange, at: i64) -> Cursor {
        Cursor::new(Arc::clone(&self.roots.key_root), range, at, false)
    }

    /// As [`ReadView::cursor`], but it begins after `last_key`.
    pub fn cursor_after(&self, range: &KeyRange, at: i64, last_key: &[u8]) -> Cursor {
        self.cursor(range, at).after(last_key)
    }

    /// Every stored record from `from` on up to this view's revision, in revision order. Up to the compact revision it
    /// may or may not meet versions that compaction dropped.
    pub fn records_from(&self, from: Revision) -> RevisionCursor {
        let is_recent = self.recent.first().is_some_and(|first| first <= from);
        let extents = (!is_recent).then(|| ExtentCursor::new(Arc::clone(&self.roots.directory), from));
        RevisionCursor::new(extents, self.recent.clone(), from, self.revision())
    }

    /// The pages that a walk at `at` over `range`, from `start` on, still has to read, in order and at most `max`. So
    /// they can be read together.
    pub fn missing(&self, range: &KeyRange, start: &[u8], at: i64, max: usize) -> Vec<Fault> {
        let start = start.max(&range.start[..]);
        let end = range.end_key();
        let (_, skips_dead) = self.reading(at);
        tree::missing(&self.roots.key_root, (start, end.as_deref()), skips_dead, max).collect()
    }

    /// Whether compaction at `compact_revision` keeps `record`, a record of this store. It keeps all records above that
    /// revision. Of each key it also keeps the newest record up to it; a tombstone only exactly at it. This is for
    /// walks over one revision that go on in newer and newer views, while the sweep is held there.
    pub fn is_kept(&self, record: &Record, compact_revision: i64) -> Result<bool, Fault> {
        let main = record.revision.main;
        if main > compact_revision {
            return Ok(true);
        }
        let newest = self.find(&record.key, compact_revision)?;
        let is_newest = newest.is_some_and(|newest| newest.revision == record.revision);
        Ok(is_newest && (!record.is_tombstone || main == compact_revision))
    }

    /// The value of `key` in the meta tree.
    pub fn meta_get(&self, key: &[u8]) -> Result<Option<Bytes>, Fault> {
        tree::value_of(&self.roots.meta_root, key)
    }

    /// The entries of the meta tree whose keys begin with `prefix`.
    pub fn meta_cursor(&self, prefix: &[u8]) -> MetaCursor {
        MetaCursor::new(Arc::clone(&self.roots.meta_root), prefix)
    }

    /// As [`ReadView::meta_cursor`], but it begins after `last_key`.
    pub fn meta_cursor_after(&self, prefix: &[u8], last_key: &[u8]) -> MetaCursor {
        self.meta_cursor(prefix).after(last_key)
    }

    /// As [`ReadView::meta_cursor`], but it begins at `first_key`, or behind where that would be.
    pub fn meta_cursor_from(&self, prefix: &[u8], first_key: &[u8]) -> MetaCursor {
        self.meta_cursor(prefix).from(first_key)
    }

    /// Number of entries in the meta tree whose keys begin with `prefix`, in O(log n).
    pub fn meta_count(&self, prefix: &[u8]) -> Result<u64, Fault> {
        cursor::sums_of_first(&self.roots.meta_root, &KeyRange::prefix(prefix), u64::MAX).map(|(entries, _)| entries)
    }

    /// Number of entries in the meta tree, and the bytes of their keys and values.
    pub fn meta_sums(&self) -> Result<(u64, u64), Fault> {
        tree::total(&self.roots.meta_root)
    }

    /// Walks both trees, and panics if an invariant does not hold. Returns the shape of the key tree. For tests.
    pub fn verify(&self) -> Result<Profile, Fault> {
        tree::verify(&self.roots.meta_root)?;
        tree::verify(&self.roots.key_root)
    }

    /// The lowest revision at which a read may take the newest version of each key.
    fn newest_from(&self) -> i64 {
        self.revision() + i64::from(self.roots.unfinished > 0)
    }

    /// The revision at which to read for a caller that asks for `at`, and whether the newest versions are those.
    #[inline]
    fn reading(&self, at: i64) -> (i64, bool) {
        if self.roots.unfinished > 0 { (at.min(self.revision()), false) } else { (at, at >= self.revision()) }
    }

    /// The newest version with main revision <= `at`, whether or not it is compacted.
    pub(super) fn find(&self, key: &[u8], at: i64) -> Result<Option<EntryMeta>, Fault> {
        // At the newest revision, the search need not read any revision.
        let (at, is_newest) = self.reading(at);
        let revision = if is_newest { Revision::MAX } else { Revision::new(at, i64::MAX) };
        tree::find(&self.roots.key_root, key, revision)
    }
}
