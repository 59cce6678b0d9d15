//! Ranges of keys, and the walks over them: live versions at a revision, their number, entries of the meta tree,
//! records in revision order.
//!
//! Invariants:
//! - A cursor owns the state that it reads. It may outlive its view, and later writes do not change it. It pins the
//!   pages of that state until it is led on to a newer one (`ReadView::lead`). A walk that takes longer than one turn
//!   does that at each step.
//! - After a `Fault`, `Cursor::step` still names the step that faulted. The same call then goes on exactly there.
//! - At the newest revision a step costs O(1) amortised, whatever lies between live keys: subtrees without live keys
//!   are skipped. At an older revision each key costs O(1), or O(log n) if its versions must be skipped.
//!
//! It reads no records. A `Version` holds the revision by which its record is found.

use std::sync::Arc;

use bytes::Bytes;

use super::recent::Recent;
use crate::{
    Fault, Record, Revision,
    extent::ExtentCursor,
    tree::{AFTER, EntryMeta, NEWEST, Slot, TOMBSTONE, Walk, bytes_of_first, entries_before, rank, total},
};

/// Keys from `start` up to `end`. A range may be empty; then it matches nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyRange {
    /// First key.
    pub start: Bytes,
    /// The end of the range.
    pub end: RangeEnd,
}

/// The end of a [`KeyRange`].
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

    /// Every key that begins with `prefix`.
    pub fn prefix(prefix: &[u8]) -> Self {
        let mut end = prefix.to_vec();
        while end.pop_if(|last| *last == u8::MAX).is_some() {}
        let end = match end.last_mut() {
            None => RangeEnd::Open,
            Some(last) => {
                *last += 1;
                RangeEnd::Before(end.into())
            }
        };
        Self { start: Bytes::copy_from_slice(prefix), end }
    }

    /// Its keys after `key`, a key of it. It must not be a single key.
    pub fn after(self, key: &[u8]) -> Self {
        assert!(self.end != RangeEnd::Single && self.contains(key), "there may be keys behind it");
        Self { start: [key, &[0]].concat().into(), end: self.end }
    }

    /// Whether no key can be in it.
    pub fn is_empty(&self) -> bool {
        matches!(&self.end, RangeEnd::Before(end) if *end <= self.start)
    }

    /// The first key after it; `None` if it is open.
    pub(crate) fn end_key(&self) -> Option<Bytes> {
        match &self.end {
            RangeEnd::Single => Some([&self.start[..], &[0]].concat().into()),
            RangeEnd::Open => None,
            RangeEnd::Before(end) => Some(end.clone()),
        }
    }

    /// Whether `key` is in it.
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
    /// The revision of this version. Its record is found by it.
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

impl Version {
    pub(crate) fn new(key: Bytes, meta: &EntryMeta) -> Self {
        Self {
            key,
            revision: meta.revision,
            create_revision: meta.create_revision,
            version: meta.version,
            lease: meta.lease,
            is_tombstone: meta.is_tombstone(),
            bytes: meta.bytes,
        }
    }

    /// Its [`Outline`].
    pub fn outline(&self) -> Outline {
        let Self { ref key, revision, create_revision, version, bytes, .. } = *self;
        Outline { key_bytes: key.len(), revision, create_revision, version, bytes }
    }
}

/// The parts of a version that decide the length of an answer and find its record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Length of the key. **Units** bytes.
    pub key_bytes: usize,
    /// As [`Version::revision`].
    pub revision: Revision,
    /// As [`Version::create_revision`].
    pub create_revision: i64,
    /// As [`Version::version`].
    pub version: i64,
    /// As [`Version::bytes`].
    pub bytes: u32,
}

/// How a bounded step of a cursor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met<T> {
    /// It met a live version.
    Live(T),
    /// The range has ended.
    End,
    /// The budget has ended.
    Paused,
}

/// Pages that a cursor reads into the tree for everyone, at most ([`Cursor::wanted`]). A leaf is one page, and holds
/// about 50 keys.
const PAGES_SHARED_MAX: usize = 512;

/// Live versions of a range at one revision, in key order.
#[derive(Clone, Debug)]
pub struct Cursor {
    root: Arc<Slot>,
    at: i64,
    /// `at` is not below the state's revision, so the marks and sums of the newest versions are valid.
    is_newest: bool,
    end: Option<Bytes>,
    walk: Walk,
    step: Step,
    /// Pages that it may still read into the tree.
    shared: usize,
}

#[derive(Clone, Debug)]
enum Step {
    /// Go to the first entry from here on. It is the newest of its key.
    Seek(Bytes, Revision),
    /// Go on from the walk's position.
    Here,
    /// Go to the version of this key at `at`.
    Within(Bytes),
    Done,
}

/// Where [`Cursor::advance`] stopped.
enum Stop {
    /// At a live version, at this position of the walk's leaf.
    Live(usize),
    End,
    /// The budget is spent.
    Paused,
}

impl Cursor {
    pub(crate) fn new(root: Arc<Slot>, range: &KeyRange, at: i64, is_newest: bool) -> Self {
        let step = if range.is_empty() { Step::Done } else { Step::Seek(range.start.clone(), Revision::MAX) };
        let (end, shared) = (range.end_key(), PAGES_SHARED_MAX);
        Self { root, at, is_newest, end, walk: Walk::default(), step, shared }
    }

    /// Goes on after `last_key`.
    pub(crate) fn after(self, last_key: &[u8]) -> Self {
        self.seek(last_key, AFTER)
    }

    /// Goes on at `first_key`, or behind where that would be.
    pub(crate) fn from(self, first_key: &[u8]) -> Self {
        self.seek(first_key, Revision::MAX)
    }

    fn seek(mut self, key: &[u8], revision: Revision) -> Self {
        let key = Bytes::copy_from_slice(key);
        if let Step::Seek(start, _) = &self.step
            && key >= *start
        {
            self.step = Step::Seek(key, revision);
        }
        self
    }

    /// Goes on in a newer state. The sweep of that state has dropped nothing that is visible at `at`, so everything
    /// that was still to come will come. The cursor releases the pages of the old state.
    pub(crate) fn follow(&mut self, root: &Arc<Slot>, revision: i64) {
        // A past revision stays one.
        let is_newest = self.is_newest && self.at >= revision;
        if Arc::ptr_eq(&self.root, root) {
            return;
        }
        self.root = Arc::clone(root);
        self.is_newest = is_newest;
        if matches!(self.step, Step::Here) {
            let (leaf, position) = (self.walk.leaf(), self.walk.position);
            self.step = match leaf.len() {
                0 => Step::Done,
                len if position == len => Step::Seek(leaf.key(len - 1), AFTER),
                _ if leaf.flags(position) & NEWEST != 0 => Step::Seek(leaf.key(position), Revision::MAX),
                // This is an older version of a key that was already handled.
                _ => Step::Seek(leaf.key(position), AFTER),
            };
        }
        self.walk.leave();
    }

    /// The next live version. After a [`Fault`] is resolved, the same call goes on exactly at the same place.
    #[expect(clippy::should_implement_trait, reason = "a fault is not the end of an iterator")]
    pub fn next(&mut self) -> Result<Option<Version>, Fault> {
        match self.next_version(&mut usize::MAX.clone())? {
            Met::Live(version) => Ok(Some(version)),
            Met::End => Ok(None),
            Met::Paused => unreachable!("the budget has no end"),
        }
    }

    /// As [`Cursor::next`], within a budget as that of [`Cursor::next_within`].
    pub fn next_version(&mut self, budget: &mut usize) -> Result<Met<Version>, Fault> {
        Ok(match self.advance(budget)? {
            Stop::Live(position) => {
                let leaf = self.walk.leaf();
                Met::Live(Version::new(leaf.key(position), &leaf.meta(position)))
            }
            Stop::End => Met::End,
            Stop::Paused => Met::Paused,
        })
    }

    /// As [`Cursor::next`], for walks over many keys. It takes one unit from `budget` for each key that it meets, live
    /// or not, and pauses when the budget is spent.
    pub fn next_within(&mut self, budget: &mut usize) -> Result<Met<Outline>, Fault> {
        Ok(match self.advance(budget)? {
            Stop::Live(position) => {
                let leaf = self.walk.leaf();
                let EntryMeta { revision, create_revision, version, bytes, .. } = leaf.meta(position);
                let key_bytes = leaf.key_len(position);
                Met::Live(Outline { key_bytes, revision, create_revision, version, bytes })
            }
            Stop::End => Met::End,
            Stop::Paused => Met::Paused,
        })
    }

    /// Appends the key of the last live version that [`Cursor::next_within`] has met.
    pub fn push_key(&self, out: &mut Vec<u8>) {
        let position = self.walk.position.checked_sub(1).expect("it stands behind what it met");
        self.walk.leaf().push_key(position, out);
    }

    /// The revision at which it reads.
    pub fn at(&self) -> i64 {
        self.at
    }

    /// A key. No key before it will come any more.
    fn ahead(&self) -> Bytes {
        match &self.step {
            Step::Seek(key, _) | Step::Within(key) => key.clone(),
            Step::Here => match self.walk.leaf().len() {
                0 => Bytes::new(),
                len => self.walk.leaf().key(self.walk.position.min(len - 1)),
            },
            Step::Done => self.end.clone().unwrap_or_default(),
        }
    }

    /// The pages to read after `fault` before the same call goes on: those that it will meet next, at most about `max`.
    /// A short walk leaves them in memory for others. Of a long walk, only the first pages stay. The others are dropped
    /// as it goes on.
    pub fn wanted(&mut self, fault: Fault, max: usize) -> Vec<Fault> {
        let start = self.ahead();
        let range = (&start[..], self.end.as_deref());
        let mut wanted = self.walk.wanted(&self.root, range, self.is_newest, max, &mut self.shared);
        if !wanted.iter().any(|wanted| wanted.place() == fault.place()) {
            wanted.push(fault);
        }
        wanted
    }

    fn advance(&mut self, budget: &mut usize) -> Result<Stop, Fault> {
        loop {
            let Some(left) = budget.checked_sub(1) else { return Ok(Stop::Paused) };
            *budget = left;
            match &self.step {
                Step::Done => return Ok(Stop::End),
                Step::Seek(key, revision) if self.is_newest => {
                    // What is behind a key may begin in a leaf of its former versions, which nobody has touched.
                    let is_there = self.walk.seek_live(&self.root, key, *revision)?
                        || self.walk.next_leaf(true, self.end.as_deref())?;
                    self.step = if is_there { Step::Here } else { Step::Done };
                }
                Step::Seek(key, revision) => {
                    self.walk.seek(&self.root, key, *revision)?;
                    self.step = Step::Here;
                }
                Step::Within(key) => {
                    let at = Revision::new(self.at, i64::MAX);
                    self.walk.seek(&self.root, key, at)?;
                    if self.walk.position == self.walk.leaf().len() && !self.walk.next_leaf(false, None)? {
                        self.step = Step::Done;
                        continue;
                    }
                    let position = self.walk.position;
                    let is_there = self.walk.leaf().is_of(position, key);
                    self.step = Step::Here;
                    if is_there && self.take(position) {
                        return Ok(Stop::Live(position));
                    }
                }
                Step::Here if self.is_newest => {
                    let leaf = self.walk.leaf();
                    let Some(position) = (self.walk.position..leaf.len()).find(|position| leaf.is_live(*position))
                    else {
                        self.turn_leaf()?;
                        continue;
                    };
                    if !self.ends_before(position) && self.take(position) {
                        return Ok(Stop::Live(position));
                    }
                }
                Step::Here => {
                    if let Some(position) = self.older()? {
                        return Ok(Stop::Live(position));
                    }
                }
            }
        }
    }

    /// Looks at the next key of the leaf at a past revision. Returns the position of its version at that time, if it
    /// was live.
    fn older(&mut self) -> Result<Option<usize>, Fault> {
        let leaf = self.walk.leaf();
        let begins = |position: usize| leaf.flags(position) & NEWEST != 0;
        let Some(position) = (self.walk.position..leaf.len()).find(|position| begins(*position)) else {
            self.turn_leaf()?;
            return Ok(None);
        };
        if self.ends_before(position) {
            return Ok(None);
        }
        let leaf = self.walk.leaf();
        if leaf.meta(position).revision.main <= self.at {
            return Ok(self.take(position).then_some(position));
        }
        let key = leaf.key(position);
        let older = leaf.lower_bound(&key, Revision::new(self.at, i64::MAX));
        if older == leaf.len() {
            self.step = Step::Within(key);
            return Ok(None);
        }
        if leaf.flags(older) & NEWEST != 0 {
            // The entry belongs to another key: this key had no version yet.
            self.walk.position = older;
            return Ok(None);
        }
        Ok(self.take(older).then_some(older))
    }

    /// Moves past the entry at `position`. Returns whether it is live.
    fn take(&mut self, position: usize) -> bool {
        self.walk.position = position + 1;
        self.walk.leaf().flags(position) & TOMBSTONE == 0
    }

    /// Whether the entry at `position` lies after the range. The walk is then over.
    fn ends_before(&mut self, position: usize) -> bool {
        let is_behind = self.end.as_ref().is_some_and(|end| self.walk.leaf().cmp_key(position, end).is_ge());
        if is_behind {
            self.step = Step::Done;
        }
        is_behind
    }

    fn turn_leaf(&mut self) -> Result<(), Fault> {
        if !self.walk.next_leaf(self.is_newest, self.end.as_deref())? {
            self.step = Step::Done;
            return Ok(());
        }
        let leaf = self.walk.leaf();
        // A run of versions of one key that fills leaves is passed in one step.
        let has_next_key = || (0..leaf.len()).any(|position| leaf.flags(position) & NEWEST != 0);
        if !self.is_newest && leaf.superseded_at() != i64::MAX && !has_next_key() {
            self.step = Step::Seek(leaf.key(0), AFTER);
        }
        Ok(())
    }
}

/// Counts the live keys of a range at one revision in bounded steps.
#[derive(Debug)]
pub struct Count {
    cursor: Cursor,
    range: KeyRange,
    counted: u64,
}

impl Count {
    pub(crate) fn new(root: Arc<Slot>, range: &KeyRange, at: i64, is_newest: bool) -> Self {
        Self { cursor: Cursor::new(root, range, at, is_newest), range: range.clone(), counted: 0 }
    }

    /// Goes on in a newer state, as [`Cursor::follow`] does.
    pub(crate) fn follow(&mut self, root: &Arc<Slot>, revision: i64) {
        self.cursor.follow(root, revision);
    }

    /// Counts at most about `budget` more keys. Returns the count once it is complete. After a [`Fault`] is resolved,
    /// the same call goes on at the same place.
    pub fn step(&mut self, budget: usize) -> Result<Option<u64>, Fault> {
        if self.cursor.is_newest {
            return Ok(Some(sums(&self.cursor.root, &self.range, false)?.0));
        }
        let mut budget = budget.max(1);
        loop {
            match self.cursor.advance(&mut budget)? {
                Stop::Live(_) => self.counted += 1,
                Stop::End => return Ok(Some(self.counted)),
                Stop::Paused => return Ok(None),
            }
        }
    }

    /// The pages to read after a fault, as [`Cursor::wanted`].
    pub fn wanted(&mut self, fault: Fault, max: usize) -> Vec<Fault> {
        self.cursor.wanted(fault, max)
    }

    /// The keys that were counted so far at an older revision.
    pub(crate) fn counted(&self) -> u64 {
        self.counted
    }
}

/// Live newest versions in a range and their bytes, from the sums.
pub(crate) fn sums(root: &Arc<Slot>, range: &KeyRange, with_bytes: bool) -> Result<(u64, u64), Fault> {
    if range.is_empty() {
        return Ok((0, 0));
    }
    let to = match range.end_key() {
        Some(end) => rank(root, &end, with_bytes)?,
        None => total(root)?,
    };
    let from = if range.start.is_empty() { (0, 0) } else { rank(root, &range.start, with_bytes)? };
    assert!(from.0 <= to.0, "ranks ascend");
    Ok((to.0 - from.0, if with_bytes { to.1 - from.1 } else { 0 }))
}

/// The first `max` live newest versions in a range: how many there are, and their bytes, from the sums.
pub(crate) fn sums_of_first(root: &Arc<Slot>, range: &KeyRange, max: u64) -> Result<(u64, u64), Fault> {
    let (keys, bytes) = sums(root, range, true)?;
    if keys <= max {
        return Ok((keys, bytes));
    }
    let from = if range.start.is_empty() { (0, 0) } else { rank(root, &range.start, true)? };
    Ok((max, bytes_of_first(root, from.0 + max)? - from.1))
}

/// The space that a range of keys takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Live keys.
    pub keys: u64,
    /// Bytes that these keys take in the answer to a Range. **Units** bytes.
    pub live_bytes: u64,
    /// Stored versions: live ones, past ones, tombstones, and versions that a sweep has not yet dropped.
    pub versions: u64,
}

/// The space that a range takes at the newest revision, from the sums.
pub(crate) fn usage(root: &Arc<Slot>, range: &KeyRange) -> Result<Usage, Fault> {
    if range.is_empty() {
        return Ok(Usage::default());
    }
    let (keys, live_bytes) = sums(root, range, true)?;
    let to = match range.end_key() {
        Some(end) => entries_before(root, &end)?,
        None => root.look()?.sums().versions,
    };
    let from = if range.start.is_empty() { 0 } else { entries_before(root, &range.start)? };
    assert!(keys <= to - from, "a live key has a version");
    Ok(Usage { keys, live_bytes, versions: to - from })
}

/// Entries of the meta tree with one prefix, in key order.
#[derive(Debug)]
pub struct MetaCursor {
    cursor: Cursor,
}

impl MetaCursor {
    pub(crate) fn new(root: Arc<Slot>, prefix: &[u8]) -> Self {
        Self { cursor: Cursor::new(root, &KeyRange::prefix(prefix), i64::MAX, true) }
    }

    /// Goes on after `last_key`.
    pub(crate) fn after(self, last_key: &[u8]) -> Self {
        Self { cursor: self.cursor.after(last_key) }
    }

    /// Goes on at `first_key`, or behind where that would be.
    pub(crate) fn from(self, first_key: &[u8]) -> Self {
        Self { cursor: self.cursor.from(first_key) }
    }

    /// The next key and value. After a [`Fault`] is resolved, the same call goes on exactly at the same place.
    #[expect(clippy::should_implement_trait, reason = "a fault is not the end of an iterator")]
    pub fn next(&mut self) -> Result<Option<(Bytes, Bytes)>, Fault> {
        match self.cursor.advance(&mut usize::MAX.clone())? {
            Stop::Live(position) => {
                let leaf = self.cursor.walk.leaf();
                Ok(Some((leaf.key(position), Bytes::copy_from_slice(leaf.value(position)))))
            }
            Stop::End => Ok(None),
            Stop::Paused => unreachable!("the budget has no end"),
        }
    }
}

/// Stored records in revision order: those of the extents, then the recent ones.
#[derive(Debug)]
pub struct RevisionCursor {
    extents: Option<ExtentCursor>,
    recent: Recent,
    position: usize,
    main_max: i64,
}

impl RevisionCursor {
    /// `extents` covers the revisions before those of `recent`. Neither goes past the main revision `main_max`.
    pub(crate) fn new(extents: Option<ExtentCursor>, recent: Recent, from: Revision, main_max: i64) -> Self {
        let position = recent.lower_bound(from);
        Self { extents, recent, position, main_max }
    }

    /// The next record, tombstones included. After a [`Fault`] is resolved, the same call goes on exactly at the same
    /// place.
    #[expect(clippy::should_implement_trait, reason = "a fault is not the end of an iterator")]
    pub fn next(&mut self) -> Result<Option<Record>, Fault> {
        if let Some(extents) = &mut self.extents {
            let first_recent = self.recent.first().unwrap_or(Revision::MAX);
            match extents.next()? {
                Some(record) if record.revision < first_recent => {
                    return Ok((record.revision.main <= self.main_max).then_some(record));
                }
                _ => self.extents = None,
            }
        }
        let Some(record) = self.recent.at(self.position).filter(|record| record.revision.main <= self.main_max) else {
            return Ok(None);
        };
        let record = record.into_owned();
        self.position += 1;
        Ok(Some(record))
    }
}
