//! When a member campaigns, and when a leader should lead no more.
//!
//! Time is counted in parts of a heartbeat interval, so that two members seldom campaign at once. A timeout lies in
//! [T, 1.25 T), T being the election timeout, and is drawn anew for each campaign. It follows from the member's seed,
//! its id, its term and the number of its campaigns, so that a simulation repeats itself.
//!
//! A leader whose process is gone is not waited for: who finds its port closed forgets it, and campaigns within a tenth
//! of T. That needs the pre-votes of a majority that has forgotten it as well, so one that errs disturbs nobody. Two
//! may do so at the same moment and each vote for itself: a candidate that is not elected soon campaigns again, after a
//! time drawn anew, up to [`SPLITS_MAX`] times.
//!
//! A leader whose disk hangs goes on with its heartbeats, and nobody campaigns. But it commits nothing. So it hands
//! leadership over, and if nobody takes it, it steps down. What it has promised stays: nothing that waits for its disk
//! leaves before that is durable.
//!
//! Owns counts alone; the driver acts on them.

use crate::start::{Options, PARTS_PER_TICK};

/// Elections in haste for one leader that is gone, after the first one.
const SPLITS_MAX: u32 = 3;
/// Parts within which a candidate has most votes that it will get: half a heartbeat interval.
const SPLIT_PARTS: u32 = PARTS_PER_TICK / 2;

/// What a leader should do about its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hung {
    /// Nothing.
    No,
    /// Hand leadership to another voter.
    HandOver,
    /// Lead no more, whoever leads then.
    StepDown,
}

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Elections {
    /// Campaigns of this life.
    campaigns: u64,
    /// Parts since pre-votes were asked for last.
    unanswered: u32,
    /// Elections that may still be held soon after one that nobody wins, as the leader is known to be gone.
    splits_left: u32,
    /// Parts since votes were asked for.
    undecided: u32,
    /// How far the log was durable at the last look, if it waited for its disk.
    waited_at: Option<u64>,
    /// Ticks for which that has not changed.
    hung_ticks: usize,
}

impl Elections {
    /// Parts without a leader after which `member_id` campaigns in `term`.
    pub(crate) fn timeout_parts(&self, options: &Options, member_id: u64, term: u64) -> usize {
        options.election_timeout_parts(member_id, term, self.campaigns)
    }

    /// Parts after which `member_id` campaigns in `term` when its leader is known to be gone.
    pub(crate) fn haste_parts(&self, options: &Options, member_id: u64, term: u64) -> usize {
        options.haste_parts(member_id, term, self.campaigns)
    }

    /// A campaign begins.
    pub(crate) fn begin(&mut self) {
        self.campaigns += 1;
        (self.unanswered, self.undecided) = (0, 0);
    }

    /// The leader is known to be gone.
    pub(crate) fn hurry(&mut self) {
        (self.splits_left, self.undecided) = (SPLITS_MAX, 0);
    }

    /// There is a leader.
    pub(crate) fn settle(&mut self) {
        self.splits_left = 0;
    }

    /// One part has passed for a candidate, which waits for `haste_parts` after most votes must be there. Whether it
    /// campaigns again: votes may be split.
    pub(crate) fn is_split(&mut self, haste_parts: usize) -> bool {
        if self.splits_left == 0 {
            return false;
        }
        self.undecided += 1;
        if (self.undecided as usize) < SPLIT_PARTS as usize + haste_parts {
            return false;
        }
        self.splits_left -= 1;
        true
    }

    /// Parts until [`Elections::is_split`].
    pub(crate) fn split_parts(&self, haste_parts: usize) -> u32 {
        let whole = SPLIT_PARTS.saturating_add(u32::try_from(haste_parts).unwrap_or(u32::MAX));
        if self.splits_left == 0 { u32::MAX } else { whole.saturating_sub(self.undecided) }
    }

    /// One part has passed for a member whose pre-votes are not answered by enough. Whether they are to be asked for
    /// again: a message may have been lost, or a voter may have heard of the last leader a moment later than others.
    pub(crate) fn is_due_again(&mut self) -> bool {
        self.unanswered += 1;
        if self.unanswered < PARTS_PER_TICK {
            return false;
        }
        self.unanswered = 0;
        true
    }

    /// Parts until [`Elections::is_due_again`].
    pub(crate) fn due_again_parts(&self) -> u32 {
        PARTS_PER_TICK.saturating_sub(self.unanswered)
    }

    /// One tick has passed for a leader among other voters. Its log waits for its disk and is durable up to `waits_at`,
    /// if it waits.
    pub(crate) fn look_at_disk(&mut self, waits_at: Option<u64>, election_ticks: usize) -> Hung {
        if waits_at.is_none() || waits_at != self.waited_at {
            self.forget_disk();
            self.waited_at = waits_at;
            return Hung::No;
        }
        self.hung_ticks += 1;
        match self.hung_ticks {
            ticks if ticks < election_ticks => Hung::No,
            ticks if ticks == election_ticks => Hung::HandOver,
            ticks if ticks < 2 * election_ticks => Hung::No,
            _ => Hung::StepDown,
        }
    }

    /// This member leads no other voter.
    pub(crate) fn forget_disk(&mut self) {
        (self.waited_at, self.hung_ticks) = (None, 0);
    }
}

#[cfg(test)]
mod tests {
    use engine::wal;

    use super::*;

    #[test]
    fn timeouts_are_between_one_and_one_and_a_quarter_and_seldom_the_same() {
        let knobs = tuning::Consensus::default();
        let options = |seed| Options::from_knobs(&knobs, true, seed, wal::Options::default());
        let (mine, other) = (options(1), options(2));
        let parts = mine.election_ticks * PARTS_PER_TICK as usize;
        let (mut elections, mut same, mut lowest, mut highest) = (Elections::default(), 0, usize::MAX, 0);
        for term in 0..1000 {
            let drawn = elections.timeout_parts(&mine, 7, term);
            assert!((parts..parts + parts / 4).contains(&drawn), "{drawn} parts");
            assert_eq!(drawn, elections.timeout_parts(&mine, 7, term), "a seed repeats itself");
            same += u32::from(drawn == elections.timeout_parts(&other, 8, term));
            (lowest, highest) = (lowest.min(drawn), highest.max(drawn));
        }
        assert!(same < 30, "{same} of 1000 are the same");
        assert!(lowest < parts + parts / 64 && highest > parts + parts / 4 - parts / 64, "{lowest} to {highest}");
        let first = elections.timeout_parts(&mine, 7, 5);
        let later: Vec<usize> = (0..10)
            .map(|_| {
                elections.begin();
                elections.timeout_parts(&mine, 7, 5)
            })
            .collect();
        assert!(later.iter().any(|drawn| *drawn != first), "each campaign draws anew");
    }

    #[test]
    fn votes_that_are_split_are_asked_for_again_soon_and_not_for_ever() {
        let mut elections = Elections::default();
        assert!(!(0..1000).any(|_| elections.is_split(0)), "nobody is known to be gone");
        elections.hurry();
        for left in (0..SPLITS_MAX).rev() {
            elections.begin();
            let expected = SPLIT_PARTS + 7;
            assert_eq!(elections.split_parts(7), expected);
            assert!((1..expected).all(|_| !elections.is_split(7)));
            assert!(elections.is_split(7));
            assert_eq!(elections.splits_left, left);
        }
        elections.begin();
        assert!(!(0..1000).any(|_| elections.is_split(0)) && elections.split_parts(0) == u32::MAX);
        elections.hurry();
        elections.settle();
        assert!(!(0..1000).any(|_| elections.is_split(0)), "there is a leader");
    }

    #[test]
    fn a_disk_hangs_when_it_ends_nothing_for_an_election_timeout() {
        let mut elections = Elections::default();
        let mut look = |waits_at| elections.look_at_disk(waits_at, 3);
        for durable in 0..20 {
            assert_eq!(look(Some(durable)), Hung::No, "it is slow, and goes on");
        }
        assert_eq!(look(None), Hung::No);
        let looks: Vec<Hung> = (0..8).map(|_| look(Some(7))).collect();
        use Hung::*;
        assert_eq!(looks, [No, No, No, HandOver, No, No, StepDown, StepDown]);
        assert_eq!(look(Some(8)), Hung::No);
    }
}
