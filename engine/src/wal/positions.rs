//! The positions and the terms of the log's entries. This is the part of the log that is kept in memory.
//!
//! Invariants:
//! - `Positions` holds one position per entry from `first` on, without gaps. They ascend in file order, because an
//!   entry that replaces others is written after them.
//! - `Terms` holds runs with ascending first indexes. Neighbouring runs have different terms, and terms never decrease.
//!
//! An entry takes 12 bytes: a log of 256 MiB of 300-byte entries costs 10 MiB. Payloads are not kept here, on purpose.

use std::collections::VecDeque;

/// The start of an entry's frame, and the chain with which it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) sequence: u32,
    pub(super) offset: u32,
    pub(super) chain: u32,
}

/// The positions of the entries after the mark.
#[derive(Debug)]
pub(super) struct Positions {
    first: u64,
    at: VecDeque<Position>,
}

impl Positions {
    /// No entries; the next one is `first`.
    pub(super) const fn starting_at(first: u64) -> Self {
        Self { first, at: VecDeque::new() }
    }

    pub(super) const fn first(&self) -> u64 {
        self.first
    }

    /// One more than the last index.
    pub(super) fn next(&self) -> u64 {
        self.first + self.at.len() as u64
    }

    pub(super) fn front(&self) -> Option<Position> {
        self.at.front().copied()
    }

    pub(super) fn get(&self, index: u64) -> Option<Position> {
        let at = usize::try_from(index.checked_sub(self.first)?).ok()?;
        self.at.get(at).copied()
    }

    /// The first entry in the segment `sequence` or behind it.
    pub(super) fn first_in(&self, sequence: u32) -> u64 {
        self.first + self.at.partition_point(|position| position.sequence < sequence) as u64
    }

    /// Puts entry `index` at `position`. It replaces the old entry and everything after it. An index below `first`
    /// drops everything.
    pub(super) fn put(&mut self, index: u64, position: Position) {
        assert!(index <= self.next(), "entry {index} leaves a gap behind {}", self.next());
        let kept = usize::try_from(index.saturating_sub(self.first)).expect("at most the length");
        self.at.truncate(kept);
        self.first = self.first.min(index);
        if let Some(last) = self.at.back() {
            assert!((last.sequence, last.offset) < (position.sequence, position.offset));
        }
        self.at.push_back(position);
    }

    /// Forgets the entries up to `index`.
    pub(super) fn trim(&mut self, index: u64) {
        assert!(index < self.next());
        let dropped = usize::try_from((index + 1).saturating_sub(self.first)).expect("at most the length");
        self.at.drain(..dropped);
        self.first = self.first.max(index + 1);
        if self.at.capacity() > 4 * self.at.len() + 4096 {
            self.at.shrink_to(2 * self.at.len());
        }
    }

    /// Forgets all entries; the next one is `first`.
    pub(super) fn restart(&mut self, first: u64) {
        *self = Self::starting_at(first);
    }
}

/// The terms of the entries after the mark, and of the mark itself.
#[derive(Debug)]
pub struct Terms {
    /// First index and term of each run; the first run begins at the mark.
    runs: VecDeque<(u64, u64)>,
    last: u64,
}

impl Terms {
    /// A log that starts after entry `mark` (index, term).
    pub fn starting_after(mark: (u64, u64)) -> Self {
        Self { runs: VecDeque::from([mark]), last: mark.0 }
    }

    /// Index of the last entry; the mark's if there is none.
    pub const fn last_index(&self) -> u64 {
        self.last
    }

    /// Index and term of the entry after which the log starts.
    pub fn mark(&self) -> (u64, u64) {
        *self.runs.front().expect("the mark's run is always there")
    }

    /// The term of the entry at `index`, if it is the mark or in the log.
    pub fn get(&self, index: u64) -> Option<u64> {
        if index < self.mark().0 || index > self.last {
            return None;
        }
        let at = self.runs.partition_point(|(first, _)| *first <= index);
        Some(self.runs[at - 1].1)
    }

    /// Notes that entry `index` has `term`. It replaces the old entry and everything after it.
    pub fn put(&mut self, index: u64, term: u64) {
        assert!(index > self.mark().0 && index <= self.last + 1, "entry {index} is not behind {}", self.last);
        while self.runs.len() > 1 && self.runs.back().is_some_and(|(first, _)| *first >= index) {
            self.runs.pop_back();
        }
        self.last = index;
        let before = self.runs.back().expect("the mark's run is always there").1;
        assert!(term >= before, "terms never decrease");
        if term > before {
            self.runs.push_back((index, term));
        }
    }

    /// Whether the mark `(index, term)` is an entry of this log. If not, the log must restart after it.
    pub fn holds(&self, index: u64, term: u64) -> bool {
        self.get(index) == Some(term)
    }

    /// Moves the mark up to an entry of this log.
    pub fn trim(&mut self, index: u64, term: u64) {
        assert!(self.holds(index, term));
        while self.runs.get(1).is_some_and(|(first, _)| *first <= index) {
            self.runs.pop_front();
        }
        self.runs[0] = (index, term);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_answer_for_the_mark_and_what_is_behind_it() {
        let mut terms = Terms::starting_after((0, 0));
        for (index, term) in [(1, 1), (2, 1), (3, 2), (4, 2), (5, 5)] {
            terms.put(index, term);
        }
        terms.put(4, 6);
        assert_eq!(
            (0..6).map(|index| terms.get(index)).collect::<Vec<_>>(),
            [Some(0), Some(1), Some(1), Some(2), Some(6), None]
        );
        terms.trim(3, 2);
        assert_eq!((2..6).map(|index| terms.get(index)).collect::<Vec<_>>(), [None, Some(2), Some(6), None]);
        terms.put(4, 7);
        assert_eq!((terms.mark(), terms.last_index(), terms.get(4)), ((3, 2), 4, Some(7)));
    }

    #[test]
    fn positions_follow_replacement_and_trim() {
        let at = |offset| Position { sequence: 1, offset, chain: 0 };
        let mut positions = Positions::starting_at(1);
        for index in 1..=5 {
            positions.put(index, at(u32::try_from(index).unwrap() * 10));
        }
        positions.put(3, at(60));
        assert_eq!(positions.next(), 4);
        positions.trim(2);
        assert_eq!((positions.first(), positions.front(), positions.get(2)), (3, Some(at(60)), None));
        positions.put(2, at(70));
        assert_eq!((positions.first(), positions.next()), (2, 3));
    }
}
