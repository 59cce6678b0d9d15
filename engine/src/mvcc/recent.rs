//! Records that no checkpoint has written yet, in revision order.
//!
//! An append-only list of slabs. A clone shares the slabs and sees the records that were there when it was made. The
//! writer goes on filling the last slab after the `end` of every clone, where nobody reads. Tombstones that a request
//! writes for many keys at once are kept as a run of keys, which takes a fraction of the memory of as many records.
//!
//! Invariants:
//! - Revisions ascend strictly. The records are at the positions `start..end`, which never change. Each slab begins
//!   where the one before it ends.
//! - A record never changes. It shares its bytes with the log entry that brought it. A run grows only while no clone
//!   has it.
//!
//! It does not bound itself. Its records are also in the log, and the bytes of the log make a checkpoint due.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
};

use bytes::Bytes;

use crate::{Record, Revision};

/// Records of a slab.
const SLAB_LEN: usize = 1024;
/// A run that has so many keys grows no more.
const RUN_LEN: usize = 8 * SLAB_LEN;

#[derive(Clone, Debug)]
struct Slab {
    first: Revision,
    /// Position of the first record.
    base: usize,
    content: Content,
}

#[derive(Clone, Debug)]
enum Content {
    /// At most [`SLAB_LEN`] records.
    Records(Arc<[OnceLock<Record>]>),
    /// Tombstones of one main revision with consecutive sub revisions.
    Run(Arc<Run>),
}

/// Keys whose generations one request has ended.
#[derive(Debug, Default)]
struct Run {
    /// The number of the first key of each part, and the keys of the part, one behind the other.
    parts: Vec<(usize, Bytes)>,
    /// The end of each key in its part.
    ends: Vec<u32>,
    /// **Units** bytes of the encoded records.
    bytes: u64,
}

impl Run {
    fn push(&mut self, keys: Bytes, ends: &[u32], bytes: u64) {
        self.parts.push((self.ends.len(), keys));
        self.ends.extend_from_slice(ends);
        self.bytes += bytes;
    }

    /// The key with this number.
    fn key(&self, number: usize) -> Option<Bytes> {
        let end = usize::try_from(*self.ends.get(number)?).expect("a leaf is small");
        let part = self.parts.partition_point(|(first, _)| *first <= number) - 1;
        let (first, keys) = &self.parts[part];
        let start = if number > *first { self.ends[number - 1] } else { 0 };
        Some(keys.slice(usize::try_from(start).expect("a leaf is small")..end))
    }
}

impl Slab {
    /// The record at `offset`.
    fn at(&self, offset: usize) -> Option<Cow<'_, Record>> {
        match &self.content {
            Content::Records(records) => records.get(offset)?.get().map(Cow::Borrowed),
            Content::Run(run) => {
                let Revision { main, sub } = self.first;
                let revision = Revision::new(main, sub.saturating_add(i64::try_from(offset).ok()?));
                run.key(offset).map(|key| Cow::Owned(Record::tombstone(key, revision)))
            }
        }
    }

    fn revision_at(&self, offset: usize) -> Option<Revision> {
        match &self.content {
            Content::Records(records) => records.get(offset)?.get().map(|record| record.revision),
            Content::Run(run) => {
                let Revision { main, sub } = self.first;
                (offset < run.ends.len())
                    .then_some(Revision::new(main, sub.saturating_add(i64::try_from(offset).ok()?)))
            }
        }
    }
}

/// The records above the last checkpoint. A clone is cheap, and does not grow.
#[derive(Clone, Debug, Default)]
pub struct Recent {
    slabs: Arc<Vec<Slab>>,
    /// Positions before it were dropped after a checkpoint had written them.
    start: usize,
    end: usize,
    bytes: u64,
}

impl Recent {
    /// Appends a record above all others.
    pub(crate) fn push(&mut self, record: Record, bytes: u32) {
        assert!(self.last().is_none_or(|last| last < record.revision), "revisions ascend");
        let has_room = |slab: &Slab| matches!(slab.content, Content::Records(_)) && self.end - slab.base < SLAB_LEN;
        if !self.slabs.last().is_some_and(has_room) {
            let records = std::iter::repeat_with(OnceLock::new).take(SLAB_LEN).collect();
            self.push_slab(record.revision, Content::Records(records));
        }
        let slab = self.slabs.last().expect("a slab was made");
        let Content::Records(records) = &slab.content else { unreachable!("it has room for records") };
        assert!(records[self.end - slab.base].set(record).is_ok(), "there is one writer");
        self.end += 1;
        self.bytes += u64::from(bytes);
    }

    /// Appends the tombstones of keys, above all other records. The first one has the revision `first`, and each next
    /// one the next sub revision. `keys` holds the keys one behind the other, and `ends` where each of them ends.
    /// `bytes` is the sum of the lengths of the encoded records.
    pub(crate) fn push_ended(&mut self, first: Revision, keys: Bytes, ends: &[u32], bytes: u64) {
        assert!(self.last().is_none_or(|last| last < first), "revisions ascend");
        assert!(ends.last().is_some_and(|end| usize::try_from(*end) == Ok(keys.len())), "each key has its end");
        let last = Arc::get_mut(&mut self.slabs).and_then(|slabs| slabs.last_mut());
        let room = last.and_then(|slab| {
            let Content::Run(run) = &mut slab.content else { return None };
            let run = Arc::get_mut(run).filter(|run| run.ends.len() < RUN_LEN)?;
            let next = slab.first.sub.saturating_add(i64::try_from(run.ends.len()).ok()?);
            (first == Revision::new(slab.first.main, next)).then_some(run)
        });
        match room {
            Some(run) => run.push(keys, ends, bytes),
            None => {
                let mut run = Run::default();
                run.push(keys, ends, bytes);
                self.push_slab(first, Content::Run(Arc::new(run)));
            }
        }
        self.end += ends.len();
        self.bytes += bytes;
    }

    fn push_slab(&mut self, first: Revision, content: Content) {
        let base = self.end;
        Arc::make_mut(&mut self.slabs).push(Slab { first, base, content });
    }

    /// The record at a position of this clone.
    pub(crate) fn at(&self, position: usize) -> Option<Cow<'_, Record>> {
        if position < self.start || position >= self.end {
            return None;
        }
        let slab = &self.slabs[self.slab_at(position)];
        slab.at(position - slab.base)
    }

    fn revision_at(&self, position: usize) -> Option<Revision> {
        if position < self.start || position >= self.end {
            return None;
        }
        let slab = &self.slabs[self.slab_at(position)];
        slab.revision_at(position - slab.base)
    }

    /// The slab that holds a position of this clone.
    fn slab_at(&self, position: usize) -> usize {
        // Most slabs are full ones of records. So the guess is tried before a search.
        let guess = (position - self.slabs[0].base) / SLAB_LEN;
        let begins_by = |slab: &Slab| slab.base <= position;
        let is_guessed =
            self.slabs.get(guess).is_some_and(begins_by) && !self.slabs.get(guess + 1).is_some_and(begins_by);
        if is_guessed { guess } else { self.slabs.partition_point(begins_by) - 1 }
    }

    /// Position of the first record at or above `revision`.
    pub(crate) fn lower_bound(&self, revision: Revision) -> usize {
        let Some(at) = self.slab_of(revision) else { return self.start };
        let slab = &self.slabs[at];
        let slab_end = self.slabs.get(at + 1).map_or(self.end, |next| next.base.min(self.end));
        let (mut low, mut high) = (slab.base.max(self.start).min(slab_end), slab_end);
        let distance = (revision.main - slab.first.main).saturating_add(revision.sub.saturating_sub(slab.first.sub));
        let guess = slab.base.saturating_add(usize::try_from(distance).unwrap_or(usize::MAX));
        if (low..high).contains(&guess) && slab.revision_at(guess - slab.base) == Some(revision) {
            return guess;
        }
        while low < high {
            let middle = low.midpoint(high);
            if slab.revision_at(middle - slab.base).is_some_and(|found| found < revision) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The last slab that begins at or below `revision`.
    fn slab_of(&self, revision: Revision) -> Option<usize> {
        let first = self.slabs.first()?.first;
        // Each main revision has at least one record, and mostly just one. So the guess is tried before a search.
        let guess = usize::try_from(revision.main.saturating_sub(first.main)).unwrap_or(0) / SLAB_LEN;
        let begins_by = |slab: &Slab| slab.first <= revision;
        let is_guessed =
            self.slabs.get(guess).is_some_and(begins_by) && !self.slabs.get(guess + 1).is_some_and(begins_by);
        if is_guessed { Some(guess) } else { self.slabs.partition_point(begins_by).checked_sub(1) }
    }

    /// The record at `revision`.
    pub(crate) fn find(&self, revision: Revision) -> Option<Cow<'_, Record>> {
        self.at(self.lower_bound(revision)).filter(|record| record.revision == revision)
    }

    /// Drops the records up to `up_to`, which a checkpoint has written. `bytes_of` returns the bytes with which a
    /// record was pushed.
    pub(crate) fn drop_up_to(&mut self, up_to: Revision, bytes_of: impl Fn(&Record) -> u32) {
        let start = self.lower_bound(Revision::new(up_to.main, up_to.sub.saturating_add(1)));
        let mut gone = 0;
        while self.start < start {
            let slab = &self.slabs[gone];
            let slab_end = self.slabs.get(gone + 1).map_or(self.end, |next| next.base);
            let to = slab_end.min(start);
            self.bytes -= match &slab.content {
                Content::Run(run) if (self.start, to) == (slab.base, slab_end) => run.bytes,
                _ => {
                    let records = (self.start..to).filter_map(|at| slab.at(at - slab.base));
                    records.map(|record| u64::from(bytes_of(&record))).sum()
                }
            };
            self.start = to;
            let is_open = gone + 1 == self.slabs.len() && to < slab.base + SLAB_LEN;
            gone += usize::from(to == slab_end && !is_open);
        }
        if gone > 0 {
            self.slabs = Arc::new(self.slabs[gone..].to_vec());
        }
    }

    /// The records in revision order.
    pub fn iter(&self) -> impl Iterator<Item = Cow<'_, Record>> {
        (self.start..self.end).filter_map(|position| self.at(position))
    }

    /// The records from `from` on, in revision order.
    pub fn iter_from(&self, from: Revision) -> impl Iterator<Item = Cow<'_, Record>> {
        (self.lower_bound(from)..self.end).filter_map(|position| self.at(position))
    }

    /// Revision of the first record.
    pub fn first(&self) -> Option<Revision> {
        self.revision_at(self.start)
    }

    /// Revision of the last record.
    pub fn last(&self) -> Option<Revision> {
        self.revision_at(self.end.checked_sub(1)?)
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Sum of the lengths of the encoded records. **Units** bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn record(main: i64, sub: i64) -> Record {
        Record {
            key: Bytes::from_static(b"k"),
            value: Bytes::new(),
            create_revision: main,
            revision: Revision::new(main, sub),
            version: 1,
            lease: 0,
            is_tombstone: false,
        }
    }

    #[test]
    fn every_record_is_found_and_a_clone_does_not_grow() {
        let mut recent = Recent::default();
        let mut all = Vec::new();
        for main in 2..2500 {
            for sub in 0..=(main % 3) {
                recent.push(record(main, sub), 1);
                all.push(Revision::new(main, sub));
            }
        }
        let clone = recent.clone();
        recent.push(record(9999, 0), 1);
        assert_eq!(clone.last(), all.last().copied());
        assert_eq!(clone.iter().map(|record| record.revision).collect::<Vec<_>>(), all);
        for revision in &all {
            assert_eq!(clone.find(*revision).map(|record| record.revision), Some(*revision));
            assert_eq!(clone.find(Revision::new(revision.main, 7)), None);
        }
    }

    #[test]
    fn runs_of_tombstones_are_records_as_others_are() {
        let (mut runs, mut single) = (Recent::default(), Recent::default());
        let mut clones = Vec::new();
        let mut random = crate::disk::sim::Random::new(1);
        let mut below = |bound| usize::try_from(random.below(bound)).unwrap();
        for main in 2..400 {
            let mut sub = 0;
            for _ in 0..below(3) {
                if below(2) == 0 {
                    for recent in [&mut runs, &mut single] {
                        recent.push(record(main, sub), 1);
                    }
                    sub += 1;
                    continue;
                }
                let names: Vec<String> = (0..=below(40)).map(|number| format!("k{number}")).collect();
                let first = Revision::new(main, sub);
                let (mut keys, mut ends) = (Vec::new(), Vec::new());
                for name in &names {
                    keys.extend_from_slice(name.as_bytes());
                    ends.push(u32::try_from(keys.len()).unwrap());
                    let tombstone = Record::tombstone(name.clone().into(), Revision::new(main, sub));
                    single.push(tombstone, 1);
                    sub += 1;
                }
                runs.push_ended(first, keys.into(), &ends, names.len() as u64);
            }
            if below(9) == 0 {
                clones.push((runs.clone(), single.clone()));
            }
            if below(20) == 0 && !single.is_empty() {
                let up_to = single.iter().nth(below(single.len() as u64)).unwrap().revision;
                for recent in [&mut runs, &mut single] {
                    recent.drop_up_to(up_to, |_| 1);
                }
            }
        }
        clones.push((runs, single));
        for (runs, single) in clones {
            assert!(runs.iter().eq(single.iter()));
            let facts = |recent: &Recent| (recent.len(), recent.bytes(), recent.first(), recent.last());
            assert_eq!(facts(&runs), facts(&single));
            for record in single.iter() {
                assert_eq!(runs.find(record.revision).as_deref(), Some(&*record));
                let Revision { main, sub } = record.revision;
                assert!(
                    runs.iter_from(Revision::new(main, sub + 1)).eq(single.iter_from(Revision::new(main, sub + 1)))
                );
            }
        }
    }

    #[test]
    fn what_was_written_goes_and_the_rest_stays() {
        let mut recent = Recent::default();
        let mut all = Vec::new();
        for main in 2..6000 {
            recent.push(record(main, 0), 1);
            all.push(Revision::new(main, 0));
            if main % 97 == 0 {
                let up_to = all[all.len() * usize::try_from(main % 5).unwrap() / 5];
                recent.drop_up_to(up_to, |_| 1);
                all.retain(|revision| *revision > up_to);
                assert!(recent.iter().map(|record| record.revision).eq(all.iter().copied()));
                assert_eq!((recent.bytes(), recent.find(up_to)), (recent.len() as u64, None));
                for revision in &all {
                    assert_eq!(recent.find(*revision).map(|record| record.revision), Some(*revision));
                }
            }
            if main == 3000 {
                recent.drop_up_to(Revision::new(main, 0), |_| 1);
                all.clear();
                assert!(recent.is_empty() && recent.first().is_none());
            }
        }
    }
}
