//! Runs on: raft core.
//!
//! Linearizable reads on their way: who has asked since the last turn, and who waits for the index of a round.
//!
//! All reads that have come by a turn, from all connection cores, get one number, and raft is asked for that. When it
//! confirms the number, they go to apply with the index, and apply answers them once it has published that.
//!
//! Invariants:
//! - `asked` is ordered by number and by time. Its last number is `last` or lower.
//! - Each read is in `coming`, or in `asked`, or in `confirmed`, or gone: handed to apply, or forgotten because its
//!   slot timed out. The reply slots of all cores bound them.

use std::{collections::VecDeque, time::Duration};

use consensus::ConfirmedRead;

use crate::{apply::message::ReadsAt, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Reads {
    last: u64,
    coming: Vec<ReplyTo>,
    asked: VecDeque<(u64, Duration, Vec<ReplyTo>)>,
    confirmed: Vec<ReadsAt>,
}

impl Reads {
    /// A read has come.
    pub(super) fn push(&mut self, reply: ReplyTo) {
        self.coming.push(reply);
    }

    /// A number for a read of raft's own.
    pub(super) fn next(&mut self) -> u64 {
        self.last += 1;
        self.last
    }

    /// The number under which raft is to be asked for all that have come; `None` if none has.
    pub(super) fn number(&mut self, now: Duration) -> Option<u64> {
        if self.coming.is_empty() {
            return None;
        }
        let number = self.next();
        self.asked.push_back((number, now, std::mem::take(&mut self.coming)));
        Some(number)
    }

    /// Raft has confirmed a number, and all below it.
    pub(super) fn confirm(&mut self, read: ConfirmedRead) {
        assert!(read.context <= self.last, "read {} was never asked for", read.context);
        while let Some((_, _, replies)) = self.asked.pop_front_if(|(number, ..)| *number <= read.context) {
            self.confirmed.push(ReadsAt { index: read.index, replies });
        }
    }

    /// Whether some are confirmed.
    pub(super) fn has_confirmed(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// The reads that were confirmed since the last call.
    pub(super) fn take_confirmed(&mut self) -> Vec<ReadsAt> {
        std::mem::take(&mut self.confirmed)
    }

    /// Forgets reads that have waited for longer than `lifetime`. Their slots timed out long ago.
    pub(super) fn forget_lost(&mut self, now: Duration, lifetime: Duration) {
        while self.asked.pop_front_if(|(_, at, _)| now.saturating_sub(*at) >= lifetime).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_of_a_turn_share_a_number_and_are_confirmed_with_all_before_them() {
        let mut reads = Reads::default();
        let second = Duration::from_secs(1);
        assert_eq!(reads.number(second), None);
        for turn in 1..=3 {
            (0..turn).for_each(|_| reads.push(ReplyTo::NOBODY));
            assert_eq!(reads.number(second * turn), Some(u64::from(turn)));
        }
        let confirmed = |reads: &mut Reads| -> Vec<(u64, usize)> {
            reads.take_confirmed().iter().map(|at| (at.index, at.replies.len())).collect()
        };
        reads.confirm(ConfirmedRead { context: 2, index: 9 });
        assert_eq!(confirmed(&mut reads), [(9, 1), (9, 2)]);
        reads.push(ReplyTo::NOBODY);
        assert_eq!((reads.next(), reads.number(9 * second)), (4, Some(5)));
        reads.forget_lost(10 * second, 7 * second);
        reads.confirm(ConfirmedRead { context: 5, index: 11 });
        assert_eq!(confirmed(&mut reads), [(11, 1)], "those of the third turn were forgotten");
    }
}
