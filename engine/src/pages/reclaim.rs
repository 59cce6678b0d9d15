//! Gives space back. It chooses the segments that are emptied, makes the trees leave them, and says when a checkpoint
//! is worth it for space alone.
//!
//! A round goes as follows. Victims are chosen by the account of live bytes. A tour goes once over both trees and makes
//! the pages in them dirty (`tree::rewrite`). The next checkpoint moves their records (`relocation`) and writes the
//! dirty pages. At its end nothing reaches the victims. Their files are removed two checkpoints later (`space`).
//!
//! Invariants:
//! - Victims are never open for appending. No segment that was begun after they were chosen is one of them. So what
//!   leaves them does not come back, and one tour is enough for all of them.
//! - `State::Ready` follows only on a whole tour. Only then does a checkpoint take the victims.
//! - A round moves at most `bytes_max` and one segment. All rounds together move at most `bytes_per_second`, unless a
//!   client asked for it (`Defragment`): that waits for no rate.
//! - A victim in which something could not be read is not emptied. It is left alone from then on (`left`), so that no
//!   round after it finds the same.
//! - A defragmentation empties segments that existed when it began, each once. It ends after a bounded number of
//!   checkpoints, whatever the traffic.
//!
//! Time comes from the caller. This file touches no file and no page.

use std::{collections::BTreeSet, time::Duration};

use super::space::{SegmentSpace, Space};
use crate::{
    Fault,
    mvcc::{Mvcc, Tour},
    victims::Victims,
};

/// Reclaim begins when this part of the live data could be given back ...
const BEGIN_PERCENT: u64 = 20;
/// ... and rests when only this part is left.
const REST_PERCENT: u64 = 15;
/// Dead files, and dead records that no checkpoint has counted, are worth a checkpoint of their own when they reach
/// this part of the live data.
const WAITING_PERCENT: u64 = 5;
/// A defragmentation does not touch segments that are fuller than this.
const FULL_PERCENT: u64 = 90;
/// Checkpoints of a defragmentation beside those that move. One counts what died, two remove what is dead, and a few
/// are for views that are held meanwhile.
const ROUNDS_MORE: u64 = 8;

#[derive(Debug)]
enum State {
    Idle,
    /// A tour walks the trees.
    Tour(Victims, Tour),
    /// No tree reaches the victims, but through so many pages that cannot be read.
    Ready(Victims, usize),
    /// The checkpoint under way has the victims.
    Moving(Victims),
}

#[derive(Clone, Copy, Debug)]
enum Defragment {
    No,
    /// What has died so far must be counted first, by a checkpoint that begins after the call.
    Asked {
        has_begun: bool,
    },
    /// Segments below `limit` are emptied.
    Under {
        limit: u32,
        rounds_left: u64,
    },
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Reclaim {
    bytes_per_second: u64,
    bytes_max: u64,
    /// Fewer bytes than this are not worth it, however small the store is.
    floor_bytes: u64,
    state: State,
    defragment: Defragment,
    /// Bytes that may be moved now. It is below zero after a round that moved more.
    allowance: i64,
    refilled: Duration,
    /// Whether the account may have changed since the last search for victims.
    is_due: bool,
    /// Victims of the round under way, and the live bytes in them when they were chosen.
    round: Reclaimed,
    reclaimed: Reclaimed,
    /// Segments that could not be emptied, because something in them or on the way to it cannot be read.
    left: BTreeSet<u32>,
}

/// The space that was given back since the store was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Segments that were emptied by moving their live data.
    pub segments: u64,
    /// Bytes that were moved. **Units** bytes.
    pub moved_bytes: u64,
}

impl Reclaim {
    pub(crate) fn new(bytes_per_second: u64, bytes_max: u64, floor_bytes: u64) -> Self {
        assert!(bytes_per_second > 0 && bytes_max > 0);
        Self {
            bytes_per_second,
            bytes_max,
            floor_bytes,
            state: State::Idle,
            defragment: Defragment::No,
            allowance: signed(bytes_max),
            refilled: Duration::ZERO,
            is_due: true,
            round: Reclaimed::default(),
            reclaimed: Reclaimed::default(),
            left: BTreeSet::new(),
        }
    }

    /// The same bounds, over another state.
    pub(crate) fn afresh(&self) -> Self {
        let fresh = Self::new(self.bytes_per_second, self.bytes_max, self.floor_bytes);
        Self { reclaimed: self.reclaimed, refilled: self.refilled, ..fresh }
    }

    /// The segments that could not be emptied.
    pub(crate) fn left(&self) -> &BTreeSet<u32> {
        &self.left
    }

    pub(crate) fn reclaimed(&self) -> Reclaimed {
        self.reclaimed
    }

    /// Whether there may be something to choose now.
    pub(crate) fn is_looking(&mut self, now: Duration) -> bool {
        if !self.is_due || !matches!(self.state, State::Idle) {
            return false;
        }
        self.refill(now);
        match self.defragment {
            Defragment::No => self.allowance > 0,
            Defragment::Asked { .. } => false,
            Defragment::Under { .. } => true,
        }
    }

    /// Starts to empty every sparse segment that exists now.
    pub(crate) fn defragment(&mut self) {
        if matches!(self.defragment, Defragment::No) {
            self.defragment = Defragment::Asked { has_begun: false };
        }
    }

    pub(crate) fn is_defragmenting(&self) -> bool {
        !matches!(self.defragment, Defragment::No)
    }

    /// Looks for victims among the segments that are not `open`. `aging_bytes` of dead files wait for checkpoints.
    pub(crate) fn look(&mut self, space: &Space, open: &[u32], aging_bytes: u64) {
        assert!(self.is_due && matches!(self.state, State::Idle), "one round at a time");
        let victims = match self.defragment {
            Defragment::Under { limit, .. } => self.sparse(space, open, limit),
            Defragment::No | Defragment::Asked { .. } => self.sparsest(space, open),
        };
        if !victims.is_empty() {
            let live = victims.iter().map(|victim| u64::from(space.segments()[victim].live_bytes)).sum();
            self.round = Reclaimed { segments: victims.len() as u64, moved_bytes: live };
            self.state = State::Tour(Victims::new(victims), Tour::new());
            return;
        }
        self.is_due = false;
        if let Defragment::Under { rounds_left, .. } = self.defragment
            && (aging_bytes == 0 || rounds_left == 0)
        {
            self.defragment = Defragment::No;
        }
    }

    fn refill(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.refilled);
        let more = passed.as_micros().saturating_mul(u128::from(self.bytes_per_second)) / 1_000_000;
        if more > 0 {
            let more = i64::try_from(more).unwrap_or(i64::MAX);
            self.allowance = self.allowance.saturating_add(more).min(signed(self.bytes_max));
            self.refilled = now;
        }
    }

    /// The sparsest segments. It stops when little is left, or when enough was chosen.
    fn sparsest(&mut self, space: &Space, open: &[u32]) -> Vec<u32> {
        let live = space.sizes().1;
        let is_closed = |segment: &u32| !open.contains(segment) && !self.left.contains(segment);
        let closed = space.segments().iter().filter(|(segment, _)| is_closed(segment));
        let mut closed: Vec<(u32, SegmentSpace)> = closed.map(|(segment, entry)| (*segment, *entry)).collect();
        let mut garbage: u64 = closed.iter().map(|(_, entry)| free(entry)).sum();
        if garbage <= part(live, BEGIN_PERCENT) + self.floor_bytes {
            return Vec::new();
        }
        closed.sort_unstable_by_key(|(segment, entry)| (share(entry), *segment));
        let mut victims = Vec::new();
        for (segment, entry) in closed {
            if garbage <= part(live, REST_PERCENT) + self.floor_bytes / 2 || self.allowance <= 0 || free(&entry) == 0 {
                break;
            }
            garbage -= free(&entry);
            self.allowance -= i64::from(entry.live_bytes);
            victims.push(segment);
        }
        victims
    }

    /// Segments of a defragmentation that are not full, until enough for one round are chosen.
    fn sparse(&self, space: &Space, open: &[u32], limit: u32) -> Vec<u32> {
        let mut bytes = 0;
        let mut victims = Vec::new();
        for (segment, entry) in space.segments().range(..limit) {
            let is_closed = !open.contains(segment) && !self.left.contains(segment);
            if is_closed && share(entry) < FULL_PERCENT * SHARE_UNITS / 100 && bytes < self.bytes_max {
                bytes += u64::from(entry.live_bytes);
                victims.push(*segment);
            }
        }
        victims
    }

    /// Goes on with the tour over about `pages` places. Returns whether there is more to do at once.
    pub(crate) fn step(&mut self, mvcc: &mut Mvcc, pages: usize) -> Result<bool, Vec<Fault>> {
        let State::Tour(victims, tour) = &mut self.state else { return Ok(false) };
        if mvcc.rewrite(tour, victims, pages)? {
            self.state = State::Ready(std::mem::take(victims), tour.passed);
        }
        Ok(matches!(self.state, State::Tour(..)))
    }

    /// Whether a checkpoint is wanted, if none is under way. `uncounted_bytes` have died since the last one. `is_idle`
    /// if nothing was applied since.
    pub(crate) fn wants_checkpoint(&self, live: u64, aging_bytes: u64, uncounted_bytes: u64, is_idle: bool) -> bool {
        let is_much = |bytes| bytes > part(live, WAITING_PERCENT) + self.floor_bytes;
        match (&self.state, self.defragment) {
            (State::Ready(..), _) => true,
            (State::Tour(..) | State::Moving(_), _) => false,
            (State::Idle, Defragment::Asked { has_begun }) => !has_begun,
            // Dead files must go first. Then there is one more search for victims.
            (State::Idle, Defragment::Under { .. }) => aging_bytes > 0 && !self.is_due,
            (State::Idle, Defragment::No) => {
                is_much(uncounted_bytes) || is_much(aging_bytes) || (is_idle && aging_bytes > 0)
            }
        }
    }

    /// Notes that a checkpoint begins. Returns the victims that it empties, and the number of pages that the tour went
    /// round.
    pub(crate) fn checkpoint_begins(&mut self) -> (Victims, usize) {
        if let Defragment::Asked { has_begun } = &mut self.defragment {
            *has_begun = true;
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Ready(victims, passed) => {
                self.state = State::Moving(victims.clone());
                (victims, passed)
            }
            state => {
                assert!(!matches!(state, State::Moving(_)), "one checkpoint at a time");
                self.state = state;
                (Victims::default(), 0)
            }
        }
    }

    /// Notes that the checkpoint has ended; `is_complete` unless it had no room to move its victims. Returns true if
    /// the open segments must be left, so that they can be emptied too. `next_segment` was never used.
    pub(crate) fn checkpoint_ended(&mut self, is_complete: bool, space: &Space, next_segment: u32) -> bool {
        let is_there = |segment: &u32| space.segments().contains_key(segment);
        self.left.retain(is_there);
        if let State::Moving(victims) = &self.state {
            if is_complete {
                let before = self.left.len();
                self.left.extend(victims.iter().filter(is_there));
                if self.left.len() == before {
                    self.reclaimed.segments += self.round.segments;
                    self.reclaimed.moved_bytes += self.round.moved_bytes;
                }
            }
            self.state = State::Idle;
        }
        self.is_due = true;
        match &mut self.defragment {
            Defragment::Asked { has_begun: true } => {
                let rounds_left = space.sizes().0 / self.bytes_max + ROUNDS_MORE;
                self.defragment = Defragment::Under { limit: next_segment, rounds_left };
                return true;
            }
            Defragment::Under { rounds_left, .. } => *rounds_left = rounds_left.saturating_sub(1),
            _ => {}
        }
        if !is_complete {
            // There was no room to move anything. It tries again after a while, as if the round had moved all that it
            // may.
            self.allowance = -signed(self.bytes_max);
            self.defragment = Defragment::No;
        }
        false
    }
}

/// The bytes that emptying a segment gives back. **Units** bytes.
fn free(segment: &SegmentSpace) -> u64 {
    u64::from(segment.file_bytes - segment.live_bytes)
}

/// The share of a full segment.
const SHARE_UNITS: u64 = 10_000;

/// The share of a segment that is live.
fn share(segment: &SegmentSpace) -> u64 {
    u64::from(segment.live_bytes) * SHARE_UNITS / u64::from(segment.file_bytes.max(1))
}

fn part(bytes: u64, percent: u64) -> u64 {
    bytes / 100 * percent
}

fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The segments 1, 2, ... of 1000 bytes each, with these live bytes.
    fn space(live: &[u64]) -> Space {
        let mut space = Space::default();
        for (segment, live) in (1..).zip(live) {
            space.create(segment, 1000);
            space.add_bytes(segment, *live);
        }
        space
    }

    fn chosen(reclaim: &Reclaim) -> Vec<u32> {
        match &reclaim.state {
            State::Tour(victims, _) => victims.iter().collect(),
            _ => Vec::new(),
        }
    }

    #[test]
    fn the_sparsest_closed_segments_are_chosen_as_fast_as_the_rate_allows() {
        let space = space(&[900, 100, 500, 300, 0, 950]);
        let mut reclaim = Reclaim::new(100, 300, 10);
        assert!(reclaim.is_looking(Duration::ZERO));
        reclaim.look(&space, &[5], 0);
        assert_eq!(chosen(&reclaim), [2, 4], "the allowance is spent before it comes to the third");
        assert_eq!(reclaim.allowance, -100);
        reclaim.state = State::Idle;
        assert!(!reclaim.is_looking(Duration::from_secs(1)), "what was taken too much has to be made up for");
        assert!(reclaim.is_looking(Duration::from_millis(1010)));
    }

    #[test]
    fn what_is_nearly_full_is_left_alone_until_somebody_asks() {
        let nearly_full = space(&[850, 880, 1000, 1000]);
        let mut reclaim = Reclaim::new(100, 10_000, 10);
        reclaim.look(&nearly_full, &[], 0);
        assert!(chosen(&reclaim).is_empty());
        assert!(!reclaim.is_looking(Duration::from_secs(9)), "nothing changes before the next checkpoint");
        reclaim.defragment();
        assert!(reclaim.wants_checkpoint(3730, 0, 0, false), "what died is counted first");
        assert!(reclaim.checkpoint_begins().0.is_empty());
        assert!(reclaim.checkpoint_ended(true, &nearly_full, 2), "open segments are left");
        reclaim.look(&nearly_full, &[], 0);
        assert_eq!(chosen(&reclaim), [1], "segments begun since are not its affair");
        reclaim.state = State::Moving(Victims::new(vec![1]));
        assert!(!reclaim.checkpoint_ended(true, &space(&[]), 9));
        reclaim.look(&space(&[]), &[], 1000);
        assert!(reclaim.is_defragmenting() && reclaim.wants_checkpoint(0, 1000, 0, false), "the file is still there");
        assert!(!reclaim.checkpoint_ended(true, &space(&[]), 9));
        reclaim.look(&space(&[]), &[], 0);
        assert!(!reclaim.is_defragmenting());
        assert_eq!(reclaim.reclaimed(), Reclaimed { segments: 1, moved_bytes: 850 });
    }

    #[test]
    fn a_segment_that_cannot_be_emptied_is_left_alone_as_long_as_it_is_there() {
        let mut reclaim = Reclaim::new(100, 10_000, 10);
        let with = space(&[100, 100, 950, 950]);
        reclaim.state = State::Moving(Victims::new(vec![1]));
        assert!(!reclaim.checkpoint_ended(false, &with, 5));
        assert!(reclaim.left().is_empty(), "it had no room");
        reclaim.state = State::Moving(Victims::new(vec![1, 7]));
        assert!(!reclaim.checkpoint_ended(true, &with, 5));
        assert_eq!(reclaim.left(), &BTreeSet::from([1]));
        assert_eq!(reclaim.reclaimed(), Reclaimed::default());
        reclaim.allowance = 10_000;
        reclaim.look(&with, &[], 0);
        assert_eq!(chosen(&reclaim), [2], "the other sparse one");
        reclaim.state = State::Idle;
        reclaim.defragment = Defragment::Under { limit: 5, rounds_left: 1 };
        reclaim.look(&with, &[], 0);
        assert_eq!(chosen(&reclaim), [2]);
        reclaim.state = State::Idle;
        assert!(!reclaim.checkpoint_ended(true, &space(&[]), 5));
        assert!(reclaim.left().is_empty());
    }

    #[test]
    fn an_idle_store_wants_checkpoints_until_its_dead_files_are_gone() {
        let mut reclaim = Reclaim::new(100, 10_000, 10);
        for (aging, uncounted, is_idle, wanted) in [
            (0, 0, true, false),
            (1, 0, true, true),
            (1, 0, false, false),
            (60, 0, false, false),
            (61, 0, false, true),
            (0, 60, true, false),
            (0, 61, true, true),
        ] {
            assert_eq!(
                reclaim.wants_checkpoint(1000, aging, uncounted, is_idle),
                wanted,
                "{aging} {uncounted} {is_idle}"
            );
        }
        reclaim.state = State::Ready(Victims::new(vec![1]), 0);
        assert!(reclaim.wants_checkpoint(1000, 0, 0, false));
        assert!(reclaim.checkpoint_begins().0.contains(1));
        assert!(!reclaim.wants_checkpoint(1000, 61, 61, true), "one at a time");
    }
}
