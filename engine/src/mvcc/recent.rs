//! Records that no checkpoint has written yet, in revision order.
//!
//! An append-only list of slabs. A clone shares the slabs and sees the records that were there when it was made. The
//! writer goes on filling the last slab after the `end` of every clone, where nobody reads.
//!
//! Invariants:
//! - Revisions ascend strictly. All slabs except the last are full. The records are at the positions `start..end` of
//!   the slabs.
//! - A record never changes. It shares its bytes with the log entry that brought it.
//!
//! It does not bound itself. Its records are also in the log, and the bytes of the log make a checkpoint due.

use std::sync::{Arc, OnceLock};

use crate::{Record, Revision};

const SLAB_LEN: usize = 1024;

#[derive(Clone, Debug)]
struct Slab {
    first: Revision,
    records: Arc<[OnceLock<Record>]>,
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
        let position = self.end % SLAB_LEN;
        if position == 0 {
            let records = std::iter::repeat_with(OnceLock::new).take(SLAB_LEN).collect();
            Arc::make_mut(&mut self.slabs).push(Slab { first: record.revision, records });
        }
        let slab = self.slabs.last().expect("a slab was made");
        assert!(slab.records[position].set(record).is_ok(), "there is one writer");
        self.end += 1;
        self.bytes += u64::from(bytes);
    }

    /// The record at a position of this clone.
    pub(crate) fn at(&self, position: usize) -> Option<&Record> {
        if position < self.start || position >= self.end {
            return None;
        }
        self.slabs[position / SLAB_LEN].records[position % SLAB_LEN].get()
    }

    /// Position of the first record at or above `revision`.
    pub(crate) fn lower_bound(&self, revision: Revision) -> usize {
        let Some(slab) = self.chunk_of(revision) else { return self.start };
        let base = slab * SLAB_LEN;
        let (mut low, mut high) = (base.max(self.start), (base + SLAB_LEN).min(self.end));
        let first = self.slabs[slab].first;
        let distance = (revision.main - first.main).saturating_add(revision.sub);
        let guess = base.saturating_add(usize::try_from(distance).unwrap_or(usize::MAX));
        if (low..high).contains(&guess) && self.at(guess).is_some_and(|record| record.revision == revision) {
            return guess;
        }
        while low < high {
            let middle = low.midpoint(high);
            if self.at(middle).is_some_and(|record| record.revision < revision) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The last slab that begins at or below `revision`.
    fn chunk_of(&self, revision: Revision) -> Option<usize> {
        let first = self.slabs.first()?.first;
        // Each main revision has at least one record, and mostly just one. So the guess is tried before a search.
        let guess = usize::try_from(revision.main.saturating_sub(first.main)).unwrap_or(0) / SLAB_LEN;
        let begins_by = |slab: &Slab| slab.first <= revision;
        let is_guessed =
            self.slabs.get(guess).is_some_and(begins_by) && !self.slabs.get(guess + 1).is_some_and(begins_by);
        if is_guessed { Some(guess) } else { self.slabs.partition_point(begins_by).checked_sub(1) }
    }

    /// The record at `revision`.
    pub(crate) fn find(&self, revision: Revision) -> Option<&Record> {
        self.at(self.lower_bound(revision)).filter(|record| record.revision == revision)
    }

    /// Drops the records up to `up_to`, which a checkpoint has written. `bytes_of` returns the bytes with which a
    /// record was pushed.
    pub(crate) fn drop_up_to(&mut self, up_to: Revision, bytes_of: impl Fn(&Record) -> u32) {
        let start = self.lower_bound(Revision::new(up_to.main, up_to.sub.saturating_add(1)));
        let dropped: u64 =
            (self.start..start).filter_map(|at| self.at(at)).map(|record| u64::from(bytes_of(record))).sum();
        self.bytes -= dropped;
        let gone = start / SLAB_LEN;
        if gone > 0 {
            self.slabs = Arc::new(self.slabs[gone..].to_vec());
        }
        self.start = start - gone * SLAB_LEN;
        self.end -= gone * SLAB_LEN;
    }

    /// The records in revision order.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        (self.start..self.end).filter_map(|position| self.at(position))
    }

    /// The records from `from` on, in revision order.
    pub fn iter_from(&self, from: Revision) -> impl Iterator<Item = &Record> {
        (self.lower_bound(from)..self.end).filter_map(|position| self.at(position))
    }

    /// Revision of the first record.
    pub fn first(&self) -> Option<Revision> {
        self.at(self.start).map(|record| record.revision)
    }

    /// Revision of the last record.
    pub fn last(&self) -> Option<Revision> {
        self.at(self.end.checked_sub(1)?).map(|record| record.revision)
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
