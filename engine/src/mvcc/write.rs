//! The one writer of the store, and the views it publishes.
//!
//! The writer works on `Mvcc::live`, a [`ReadView`] like those that it publishes. Publishing clones a few references. A
//! [`Write`] is one writing request. Its changes get one main revision and the sub revisions 0, 1, 2 ... Reads through
//! it see them.
//!
//! Invariants:
//! - `Roots::revision`, `compact_revision` and `applied_index` never decrease.
//! - Every version in the key tree has its record in `ReadView::recent` or in `Roots::directory`, under its revision.
//! - A version that compaction at C drops is invisible from `compact` on, whether or not the sweep has passed it. Of
//!   each key, the newest version with main <= C is kept; a tombstone only if it is exactly at C.
//! - Key tree and meta tree change in one publish, and are sealed together.
//!
//! It does not check revisions that a caller asks for (the server answers "compacted" and "future revision" itself). It
//! expires no lease and reads no file.

use std::{fmt, ops::Deref, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::{
    cursor::{KeyRange, Version},
    recent::Recent,
    view::{ReadView, Roots},
};
use crate::{
    Fault, Place, Record, Revision, Unreadable,
    extent::{BlockCache, Directory},
    planted::is_planted,
    record::tombstone_len,
    tree::{self, EndedKeys, EntryMeta, Hand, Ledger, NEWEST, NewEntry, Separator, Swept, TOMBSTONE, Terms, VALUE},
    victims::Victims,
};

/// The cell from which other threads load the newest [`ReadView`].
#[derive(Clone)]
pub struct Published {
    view: Arc<ArcSwap<ReadView>>,
    unreadable: Arc<Unreadable>,
}

impl Published {
    /// The newest view.
    pub fn load(&self) -> Arc<ReadView> {
        self.view.load_full()
    }

    /// Looks at the newest view. It costs less than to take it.
    pub fn with<T>(&self, look: impl FnOnce(&ReadView) -> T) -> T {
        look(&self.view.load())
    }

    /// Its revision, for callers that need nothing else of it.
    pub fn revision(&self) -> i64 {
        self.view.load().revision()
    }

    /// The pages that could not be read. All readers of the store note theirs there.
    pub fn unreadable(&self) -> &Arc<Unreadable> {
        &self.unreadable
    }
}

impl fmt::Debug for Published {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Published").field(&self.view.load().revision()).finish()
    }
}

/// The writer: owned by the apply core.
#[derive(Debug)]
pub struct Mvcc {
    pub(super) live: ReadView,
    published: Published,
    pub(super) ledger: Ledger,
    /// The state that the running checkpoint writes. It is held here so that no place that the checkpoint sets is
    /// missed.
    sealed: Option<Sealed>,
    /// Whether a request has written since the last publish.
    pub(super) is_ahead: bool,
    /// The request under way, if it makes its changes in several steps.
    pub(super) unfinished: Option<Unfinished>,
    /// The sweep drops nothing that is visible at this revision or above.
    sweep_floor: i64,
    /// The revision up to which the present pass of the sweep drops, and how far it has come.
    sweep: (i64, tree::Pass),
    clock: Clock,
}

/// A request of which some changes are made, and others not yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unfinished {
    /// The revision before it.
    pub(super) base: i64,
    /// Changes so far.
    pub(super) written: i64,
}

/// The clock that finds nodes to evict. It goes round through the key tree and the meta tree.
#[derive(Debug, Default)]
struct Clock {
    hand: Hand,
    is_in_meta: bool,
    /// Rounds since the last one that evicted something.
    idle_rounds: u32,
    evicted: usize,
}

impl Mvcc {
    /// A writer over recovered roots.
    pub fn new(recovered: Roots) -> Self {
        assert!(recovered.revision >= 1, "a fresh store stands at revision 1");
        assert!(recovered.compact_revision <= recovered.revision, "nothing to come is compacted");
        let mut live = ReadView::new(recovered);
        let view = Arc::new(ArcSwap::from_pointee(live.clone()));
        let published = Published { view, unreadable: Arc::default() };
        let written = std::mem::take(&mut live.roots.unfinished);
        let unfinished = (written > 0).then_some(Unfinished { base: live.roots.revision, written });
        live.roots.revision += i64::from(written > 0);
        let ledger = Ledger::new(Arc::clone(live.roots.key_root.residency()));
        Self {
            live,
            published,
            ledger,
            sealed: None,
            is_ahead: false,
            unfinished,
            sweep_floor: i64::MAX,
            sweep: (i64::MIN, tree::Pass::default()),
            clock: Clock::default(),
        }
    }

    /// A writer of an empty store that keeps its records in memory, for tests.
    #[doc(hidden)]
    pub fn in_memory() -> Self {
        Self::new(Roots::fresh(Directory::empty(BlockCache::new(0))))
    }

    /// The view published last.
    pub fn view(&self) -> Arc<ReadView> {
        self.published.load()
    }

    /// The state with everything written so far, published or not. The next request will see it.
    pub fn live(&self) -> &ReadView {
        &self.live
    }

    /// The pages that could not be read. All readers of the store note theirs there.
    pub fn unreadable(&self) -> &Arc<Unreadable> {
        &self.published.unreadable
    }

    /// The cell from which every other thread loads views.
    pub fn published(&self) -> Published {
        self.published.clone()
    }

    /// Encoded length of the records that no checkpoint has written. **Units** bytes.
    pub fn recent_bytes(&self) -> u64 {
        self.live.recent().bytes()
    }

    /// Memory of the trees' nodes, including nodes that only older views reach. **Units** bytes.
    pub fn node_bytes(&self) -> u64 {
        self.live.roots.key_root.residency().bytes()
    }

    /// Memory of the nodes that the next checkpoint will write. **Units** bytes.
    pub fn dirty_bytes(&self) -> u64 {
        self.ledger.dirty_bytes()
    }

    /// Looks at about `budget` nodes. Takes nodes out of the unpublished trees that can be read again and that no
    /// search passed lately. Their memory is freed once a view without them is published and the older views are
    /// dropped.
    pub fn evict(&mut self, budget: usize) -> Eviction {
        let clock = &mut self.clock;
        let roots = &mut self.live.roots;
        let root = if clock.is_in_meta { &mut roots.meta_root } else { &mut roots.key_root };
        let lap = tree::evict(root, &mut self.ledger, &mut clock.hand, budget.max(1));
        clock.evicted += lap.evicted;
        if lap.is_over {
            clock.is_in_meta = !clock.is_in_meta;
            if !clock.is_in_meta {
                clock.idle_rounds = if clock.evicted == 0 { clock.idle_rounds + 1 } else { 0 };
                clock.evicted = 0;
            }
        }
        Eviction { evicted: lap.evicted, idle_rounds: clock.idle_rounds }
    }

    /// Begins one writing request. All its changes get the next main revision. If a request is under way
    /// ([`Write::pause`]), this goes on with it.
    pub fn begin(&mut self) -> Write<'_> {
        let fresh = Unfinished { base: self.live.revision(), written: 0 };
        let pauses = self.unfinished.is_some();
        let Unfinished { base, written } = self.unfinished.take().unwrap_or(fresh);
        Write { mvcc: self, base, written, changes: Vec::new(), pauses }
    }

    /// Goes on from the state of `other`, which is not behind this one. The next publish shows it.
    pub(crate) fn take_over(&mut self, other: Self) {
        let Self { mut live, ledger, sealed, unfinished, .. } = other;
        live.roots.state = self.live.roots.state + 1;
        assert!(unfinished.is_none() && self.sealed.is_none(), "whole states take over from each other");
        assert!(live.applied_index() >= self.published.view.load().applied_index(), "entries are applied in log order");
        (self.live, self.ledger, self.sealed) = (live, ledger, sealed);
        (self.is_ahead, self.unfinished) = (true, None);
        (self.sweep, self.clock) = ((i64::MIN, tree::Pass::default()), Clock::default());
    }

    /// Whether something was changed since the last publish.
    pub fn is_ahead(&self) -> bool {
        self.is_ahead
    }

    /// Whether a request is under way that has made changes. Views that are published meanwhile show none of them.
    pub fn is_unfinished(&self) -> bool {
        self.unfinished.is_some()
    }

    /// The state as others may see it: without the changes of a request under way.
    fn visible(&self) -> Roots {
        let roots = self.live.roots.clone();
        match self.unfinished {
            Some(_) if is_planted("a long entry seen in parts") => roots,
            Some(Unfinished { base, written }) => Roots { revision: base, unfinished: written, ..roots },
            None => roots,
        }
    }

    /// Makes one whole writing request in one descent. It puts `key` without a lease, unless the version that it
    /// replaces has one.
    ///
    /// A fault leaves everything as it was.
    pub fn put_plain(&mut self, key: Bytes, value: Bytes) -> Result<PutPlain, Fault> {
        assert!(self.unfinished.is_none(), "one request after the other");
        let revision = Revision::new(self.live.revision() + 1, 0);
        let (create_revision, version) = (revision.main, 1);
        let record = Record { key, value, create_revision, revision, version, lease: 0, is_tombstone: false };
        Ok(match self.insert(record, |live| live.lease == 0)? {
            Some((record, previous)) => PutPlain::Done { record, previous: previous.map(|previous| previous.revision) },
            None => PutPlain::HasLease,
        })
    }

    /// Inserts a version. Returns it with the fields that continue from the live version of its key, and returns that
    /// live version. Inserts nothing if the live version must not be replaced.
    fn insert(
        &mut self,
        mut record: Record,
        may_replace: impl Fn(&EntryMeta) -> bool,
    ) -> Result<Option<(Record, Option<EntryMeta>)>, Fault> {
        assert!(!record.key.is_empty(), "a key is not empty");
        let (key, revision) = (record.key.clone(), record.revision);
        let mut previous = None;
        let mut bytes = None;
        let mut make = |newest: Option<&EntryMeta>| {
            previous = newest.filter(|newest| !newest.is_tombstone()).copied();
            if !previous.as_ref().is_none_or(&may_replace) {
                return None;
            }
            if let Some(previous) = previous.filter(|_| !record.is_tombstone) {
                record.create_revision = previous.create_revision;
                record.version = previous.version + 1;
            }
            let flags = if record.is_tombstone { NEWEST | TOMBSTONE } else { NEWEST };
            let Record { create_revision, version, lease, .. } = record;
            let len = *bytes.insert(record.stored_len());
            Some(EntryMeta { flags, revision, create_revision, version, lease, bytes: len })
        };
        let mut new = NewEntry { key: &key, revision, value: &[], make: &mut make };
        tree::put(&mut self.live.roots.key_root, &mut self.ledger, &mut new)?;
        let Some(bytes) = bytes else { return Ok(None) };
        assert!(revision.main >= self.live.roots.revision, "revisions ascend");
        self.live.roots.revision = revision.main;
        self.live.recent.push(record.clone(), bytes);
        self.is_ahead = true;
        Ok(Some((record, previous)))
    }

    /// Moves the compact revision. Versions that become droppable are invisible at once; [`Mvcc::sweep`] removes them.
    pub fn compact(&mut self, revision: i64) {
        assert!(revision > self.live.compact_revision(), "compaction goes forward");
        assert!(revision <= self.live.revision(), "nothing to come is compacted");
        assert!(self.unfinished.is_none(), "one request after the other");
        self.live.roots.compact_revision = revision;
    }

    /// Holds the sweep back. Whatever is compacted, the sweep drops only versions that no revision from `floor` on
    /// shows. `None` ends that. It is for walks over one revision that take longer than a view lives.
    pub fn hold_sweep(&mut self, floor: Option<i64>) {
        self.sweep_floor = floor.unwrap_or(i64::MAX);
    }

    /// Drops versions that compaction made invisible. Looks at about `budget` entries. Passes by pages that cannot be
    /// read; the next pass looks at them again.
    ///
    /// A fault keeps what was done so far; the same call goes on.
    pub fn sweep(&mut self, budget: usize) -> Result<SweepProgress, Fault> {
        let too_far = if is_planted("a sweep that goes too far") { 5 } else { 0 };
        let up_to = self.live.compact_revision().min(self.sweep_floor) + too_far;
        if self.sweep.0 != up_to {
            self.sweep = (up_to, tree::Pass::default());
        }
        let mut progress = SweepProgress { dropped: 0, is_done: false };
        let mut examined = 0;
        while examined < budget.max(1) {
            let root = &mut self.live.roots.key_root;
            match tree::sweep(root, &mut self.ledger, up_to, &mut self.sweep.1, &self.published.unreadable)? {
                Swept::Leaf { looked, dropped } => {
                    examined += looked.max(1);
                    progress.dropped += u64::try_from(dropped).expect("a leaf is small");
                }
                Swept::Passed => examined += 1,
                Swept::Done => {
                    self.sweep.1 = tree::Pass::default();
                    progress.is_done = true;
                    break;
                }
            }
        }
        Ok(progress)
    }

    /// Makes pages dirty that lie in segments of `victims`, and looks at about `budget` of them. Returns whether the
    /// tour has passed both trees. It changes no answer.
    ///
    /// Faults keep what was done so far; the same call goes on.
    pub(crate) fn rewrite(&mut self, tour: &mut Tour, victims: &Victims, budget: usize) -> Result<bool, Vec<Fault>> {
        let terms = Terms { victims, unreadable: &self.published.unreadable };
        let roots = &mut self.live.roots;
        let mut examined = 0;
        while examined < budget.max(1) {
            let root = match tour.tree {
                0 => &mut roots.key_root,
                1 => &mut roots.meta_root,
                _ => return Ok(true),
            };
            let step = tree::rewrite(root, &mut self.ledger, terms, &tour.from, budget)?;
            examined += step.examined;
            tour.passed += step.passed;
            tour.tree += usize::from(step.next.is_none());
            tour.from = step.next.unwrap_or_else(tree::start);
        }
        Ok(false)
    }

    /// Makes everything so far visible to readers, as of the applied entry, but for the changes of a request under way.
    /// It costs O(1), once per batch.
    pub fn publish(&mut self, applied_index: u64, applied_term: u64) -> Arc<ReadView> {
        assert!(applied_index >= self.live.applied_index(), "entries are applied in log order");
        assert!(applied_term >= self.live.applied_term(), "terms ascend along the log");
        self.live.roots.applied_index = applied_index;
        self.live.roots.applied_term = applied_term;
        self.is_ahead = false;
        let view = Arc::new(ReadView { roots: self.visible(), recent: self.live.recent.clone() });
        let before = self.published.view.swap(Arc::clone(&view));
        assert!(before.revision() <= view.revision(), "revisions ascend");
        assert!(before.compact_revision() <= view.compact_revision(), "compaction goes forward");
        view
    }

    /// Faults on the pages that a put or delete of `key` needs.
    pub fn touch(&self, key: &[u8]) -> Result<(), Fault> {
        self.live.touch(key)
    }

    /// Faults on the pages that a put or delete of `key` in the meta tree needs.
    pub fn touch_meta(&self, key: &[u8]) -> Result<(), Fault> {
        self.live.touch_meta(key)
    }

    /// Freezes the last published state for a checkpoint. There is no second one until [`Mvcc::checkpoint_done`] or
    /// [`Mvcc::checkpoint_failed`].
    pub fn seal_for_checkpoint(&mut self) -> Sealed {
        assert!(!self.is_ahead, "what a request wrote is sealed with its applied index");
        self.ledger.seal();
        let mut sealed = Sealed { roots: self.visible(), recent: self.live.recent.clone() };
        let behind = u64::from(is_planted("an applied index behind its data"));
        sealed.roots.applied_index = sealed.roots.applied_index.saturating_sub(behind);
        self.sealed = Some(sealed.clone());
        sealed
    }

    /// The sealed state is durable. `directory` now holds every record up to `up_to`, and these records leave memory.
    /// Readers get the new directory with the next publish.
    pub fn checkpoint_done(&mut self, directory: Arc<Directory>, up_to: Revision) {
        let sealed = self.sealed.take().expect("a checkpoint was sealed");
        assert!(sealed.recent.last().is_none_or(|last| up_to <= last), "only what was sealed was written");
        assert!(!sealed.roots.key_root.is_dirty() && !sealed.roots.meta_root.is_dirty(), "the roots were written");
        self.ledger.unseal();
        // The nodes that it wrote can be evicted now, however long the clock has found nothing.
        self.clock.idle_rounds = 0;
        self.live.roots.directory = directory;
        self.live.recent.drop_up_to(up_to, Record::stored_len);
    }

    /// The sealed state did not become durable. Places that were set stay set.
    pub fn checkpoint_failed(&mut self) {
        assert!(self.sealed.take().is_some(), "a checkpoint was sealed");
        self.ledger.unseal();
    }

    /// Pages that the unpublished trees no longer reach. The sealed trees do not reach pages either that are taken
    /// directly before [`Mvcc::seal_for_checkpoint`]. They may reach pages that are taken later.
    pub fn take_dead_places(&mut self) -> Vec<Place> {
        std::mem::take(&mut self.ledger.dead_places)
    }

    /// Versions that the sweep has dropped, with the lengths of their encoded records. They must be taken like the
    /// places.
    pub fn take_dead_records(&mut self) -> Vec<(Revision, u32)> {
        std::mem::take(&mut self.ledger.dead_records)
    }
}

/// The state that a checkpoint writes.
#[derive(Clone, Debug)]
pub struct Sealed {
    /// Roots, revisions and applied entry, and the directory on which the new one is built.
    pub roots: Roots,
    /// Records that are not in the directory yet.
    pub recent: Recent,
}

/// The result of a step of eviction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Eviction {
    /// Nodes that were taken out.
    pub evicted: usize,
    /// Rounds over both trees since the last one that evicted something. A first round only clears the marks of
    /// searches.
    pub idle_rounds: u32,
}

/// The position at which [`Mvcc::rewrite`] goes on.
#[derive(Debug)]
pub(crate) struct Tour {
    /// Number of trees that it has passed.
    tree: usize,
    from: Separator,
    /// Pages that it went round, because they cannot be read.
    pub(crate) passed: usize,
}

impl Tour {
    /// A tour that begins before everything.
    pub(crate) fn new() -> Self {
        Self { tree: 0, from: tree::start(), passed: 0 }
    }
}

/// How far a sweep has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SweepProgress {
    /// Versions that this step dropped.
    pub dropped: u64,
    /// Whether nothing is left to drop.
    pub is_done: bool,
}

/// One writing request under way. Reads through it (it is a [`ReadView`]) see its own changes. If one is dropped that
/// has been paused before, as when a page is missing, that is a pause.
#[derive(Debug)]
pub struct Write<'a> {
    mvcc: &'a mut Mvcc,
    /// The revision before the request.
    base: i64,
    /// Changes that it has made so far.
    written: i64,
    changes: Vec<Change>,
    /// Whether this step does not end the request.
    pauses: bool,
}

impl Drop for Write<'_> {
    fn drop(&mut self) {
        if self.pauses && self.written > 0 {
            self.mvcc.unfinished = Some(Unfinished { base: self.base, written: self.written });
        }
    }
}

impl Deref for Write<'_> {
    type Target = ReadView;

    fn deref(&self) -> &ReadView {
        &self.mvcc.live
    }
}

impl Write<'_> {
    /// Appends a version of `key`. Returns the version that it replaces, if the key was live.
    ///
    /// A fault leaves only this one change undone.
    pub fn put(&mut self, key: Bytes, value: Bytes, lease: i64) -> Result<Option<Version>, Fault> {
        let revision = self.next_revision();
        let (create_revision, version) = (revision.main, 1);
        let record = Record { key, value, create_revision, revision, version, lease, is_tombstone: false };
        self.append(record)
    }

    /// Appends a tombstone if `key` is live. Returns the version that it ends.
    ///
    /// A fault leaves only this one change undone.
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<Version>, Fault> {
        let newest = tree::find(&self.roots.key_root, key, Revision::MAX)?;
        if newest.is_none_or(|newest| newest.is_tombstone()) {
            return Ok(None);
        }
        self.append(Record::tombstone(Bytes::copy_from_slice(key), self.next_revision()))
    }

    /// Deletes the first live keys of `range`, as many as lie in one leaf, by one change of that leaf. Returns the
    /// versions that it ended, in order; none if no key of the range is live.
    ///
    /// A fault leaves only these changes undone.
    pub fn delete_some(&mut self, range: &KeyRange) -> Result<Vec<Version>, Fault> {
        let mut metas = Vec::new();
        let Some((mut revision, EndedKeys { keys, ends })) =
            self.end_leaf(range, None, |_, before| metas.push(*before))?
        else {
            return Ok(Vec::new());
        };
        let mut ended = Vec::with_capacity(metas.len());
        let mut start = 0;
        for (end, meta) in ends.iter().zip(&metas) {
            let end = usize::try_from(*end).expect("it was a length");
            let previous = Version::new(keys.slice(start..end), meta);
            let record = Record::tombstone(previous.key.clone(), revision);
            let bytes = record.stored_len();
            self.mvcc.live.recent.push(record.clone(), bytes);
            self.changes.push(Change { record, previous: Some(previous.clone()) });
            ended.push(previous);
            (start, revision.sub) = (end, revision.sub + 1);
        }
        Ok(ended)
    }

    /// As [`Write::delete_some`], but the changes are not listed: not in the result of [`Write::finish`] either. It
    /// costs a fraction. Hands each version that it ends to `ended`. Returns the last key that it has deleted.
    ///
    /// A fault leaves only these changes undone.
    pub fn end_some(&mut self, range: &KeyRange, ended: impl FnMut(&Ended<'_>)) -> Result<Option<Bytes>, Fault> {
        self.end_unlisted(range, None, ended)
    }

    /// As [`Write::end_some`], but deletes only the keys with `lease`. The first live key of the range must have it.
    pub fn end_some_of(&mut self, lease: i64, range: &KeyRange) -> Result<Option<Bytes>, Fault> {
        self.end_unlisted(range, Some(lease), |_| {})
    }

    fn end_unlisted(
        &mut self,
        range: &KeyRange,
        lease: Option<i64>,
        mut ended: impl FnMut(&Ended<'_>),
    ) -> Result<Option<Bytes>, Fault> {
        let mut bytes = 0;
        let found = self.end_leaf(range, lease, |key, before| {
            bytes += u64::from(tombstone_len(key));
            ended(&Ended { key, revision: before.revision, lease: before.lease });
        })?;
        let Some((first, EndedKeys { keys, ends })) = found else { return Ok(None) };
        let number = |end: u32| usize::try_from(end).expect("it was a length");
        let last = ends.len().checked_sub(2).map_or(0, |last_but_one| number(ends[last_but_one]));
        let last = keys.slice(last..);
        self.mvcc.live.recent.push_ended(first, keys, &ends, bytes);
        Ok(Some(last))
    }

    /// Ends the live versions of `range` in the leaf of the first of them. Returns their keys, and the revision of the
    /// first tombstone. The records are still to be written.
    fn end_leaf(
        &mut self,
        range: &KeyRange,
        lease: Option<i64>,
        mut ended: impl FnMut(&[u8], &EntryMeta),
    ) -> Result<Option<(Revision, EndedKeys)>, Fault> {
        let Some(first) = self.cursor(range, i64::MAX).next()? else { return Ok(None) };
        let first_revision = self.next_revision();
        let mut revision = first_revision;
        let Mvcc { live, ledger, is_ahead, .. } = &mut *self.mvcc;
        let end = range.end_key();
        let keys =
            tree::end_live(&mut live.roots.key_root, ledger, (&first.key, end.as_deref(), lease), |key, before| {
                ended(key, before);
                let (flags, bytes) = (NEWEST | TOMBSTONE, tombstone_len(key));
                let ending = EntryMeta { flags, revision, create_revision: 0, version: 0, lease: 0, bytes };
                revision.sub += 1;
                ending
            })?;
        assert!(!keys.ends.is_empty() && revision.main >= live.roots.revision, "revisions ascend");
        self.written = revision.sub;
        live.roots.revision = revision.main;
        *is_ahead = true;
        Ok(Some((first_revision, keys)))
    }

    /// Sets `key` in the meta tree.
    pub fn meta_put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Fault> {
        let bytes = u32::try_from(value.len()).expect("a value is smaller than 4 GiB");
        let flags = NEWEST | VALUE;
        let meta = EntryMeta { flags, revision: Revision::MIN, create_revision: 0, version: 0, lease: 0, bytes };
        self.mvcc.is_ahead = true;
        let mut new = NewEntry { key, revision: meta.revision, value, make: &mut |_| Some(meta) };
        tree::put(&mut self.mvcc.live.roots.meta_root, &mut self.mvcc.ledger, &mut new)
    }

    /// Removes `key` from the meta tree. Returns whether it was there.
    pub fn meta_delete(&mut self, key: &[u8]) -> Result<bool, Fault> {
        self.meta_delete_some(key, key).map(|removed| removed > 0)
    }

    /// Removes the entry `from` of the meta tree, and those behind it in its leaf up to `last`. Returns how many these
    /// were; 0 if there is no entry `from`.
    pub fn meta_delete_some(&mut self, from: &[u8], last: &[u8]) -> Result<usize, Fault> {
        self.mvcc.is_ahead = true;
        tree::remove(&mut self.mvcc.live.roots.meta_root, &mut self.mvcc.ledger, from, last)
    }

    /// Returns the changes. The revision has moved if and only if a record was written.
    pub fn finish(mut self) -> Changes {
        self.pauses = false;
        self.changes()
    }

    /// Ends this step of the request, which will go on with the next [`Mvcc::begin`]. Returns the changes of the step.
    pub fn pause(mut self) -> Changes {
        self.pauses = true;
        self.changes()
    }

    fn changes(&mut self) -> Changes {
        Changes { revision: self.mvcc.live.revision(), records: std::mem::take(&mut self.changes) }
    }

    fn next_revision(&self) -> Revision {
        // The first change of a request moves the revision, so that reads through the request see it.
        Revision::new(self.base + 1, self.written)
    }

    /// Inserts a version. If its key is live, fills in its create revision and version number.
    fn append(&mut self, record: Record) -> Result<Option<Version>, Fault> {
        let (record, previous) = self.mvcc.insert(record, |_| true)?.expect("every version may be replaced");
        let previous = previous.map(|previous| Version::new(record.key.clone(), &previous));
        self.written += 1;
        self.changes.push(Change { record, previous: previous.clone() });
        Ok(previous)
    }
}

/// A version that a tombstone has ended.
#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The revision of the version.
    pub revision: Revision,
    /// Its lease; 0 for none.
    pub lease: i64,
}

/// The result of [`Mvcc::put_plain`].
#[derive(Clone, Debug)]
pub enum PutPlain {
    /// It put this record, as a revision of its own.
    Done {
        /// The record.
        record: Record,
        /// Revision of the version that it replaced, if the key was live.
        previous: Option<Revision>,
    },
    /// It put nothing: the version that it would replace has a lease.
    HasLease,
}

/// The changes of one writing request.
#[derive(Clone, Debug, Default)]
pub struct Changes {
    /// Current main revision after the request.
    pub revision: i64,
    /// The records that it wrote, by sub revision.
    pub records: Vec<Change>,
}

/// One record, and the version that it replaced.
#[derive(Clone, Debug)]
pub struct Change {
    /// The new record.
    pub record: Record,
    /// The version it replaced, if the key was live.
    pub previous: Option<Version>,
}
