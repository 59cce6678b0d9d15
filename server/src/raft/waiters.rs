//! Runs on: raft core.
//!
//! Proposals on their way through the log. The entries that come out of the log find them again.
//!
//! Invariants:
//! - `by_id` holds each proposal from the moment raft has accepted it until its entry is committed or the proposal is
//!   lost. The reply slots of all cores bound it: their timeout is half of the lifetime of a proposal here.
//! - A proposal is found by exactly the bytes that it proposed. An entry from elsewhere may have the same id; then the
//!   proposal stays.
//! - `accepted` is ordered by time. A proposal that was taken out keeps its place there until it comes to the front.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use engine::planted::is_planted;
use foldhash::HashMap;

use crate::apply::proposal::Proposal;

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Waiters {
    /// This process draws the ids. Nobody else chooses what is hashed.
    by_id: HashMap<u64, Box<Proposal>>,
    /// The time of acceptance, and the id.
    accepted: VecDeque<(Duration, u64)>,
}

impl Waiters {
    /// Number of proposals that wait.
    pub fn count(&self) -> usize {
        self.by_id.len()
    }

    /// Whether the one that was added last waits still. One that is lost does so for long.
    pub fn is_last_waiting(&self) -> bool {
        self.accepted.back().is_some_and(|(_, id)| self.by_id.contains_key(id))
    }

    /// Adds `proposal`, which raft has accepted.
    pub fn insert(&mut self, proposal: Box<Proposal>, now: Duration) {
        self.accepted.push_back((now, proposal.id));
        let taken = self.by_id.insert(proposal.id, proposal);
        assert!(taken.is_none(), "request ids are unique");
    }

    /// Takes out the proposal with this id whose entry is committed.
    pub fn take(&mut self, id: u64, entry: &Bytes) -> Option<Box<Proposal>> {
        let is_its = is_same(&self.by_id.get(&id)?.entry, entry) || is_planted("a waiter found by its id alone");
        if !is_its {
            return None;
        }
        // Entries are committed in the order of their proposals. So this one is at the front, unless an earlier one was
        // lost.
        self.accepted.pop_front_if(|(_, front)| *front == id);
        self.by_id.remove(&id)
    }

    /// Forgets proposals that have waited for longer than `lifetime`. Their slots timed out long ago.
    pub fn forget_lost(&mut self, now: Duration, lifetime: Duration) {
        while let Some((_, id)) = self.accepted.pop_front_if(|(at, _)| now.saturating_sub(*at) >= lifetime) {
            self.by_id.remove(&id);
        }
    }
}

/// Whether both hold the same bytes. Mostly they share the same memory.
fn is_same(one: &Bytes, other: &Bytes) -> bool {
    (one.as_ptr(), one.len()) == (other.as_ptr(), other.len()) || one == other
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        apply::outcome::Outcome,
        quota::Purpose,
        slots::{ReplyTo, Slots},
    };

    fn proposal(id: u64, entry: &'static [u8]) -> Box<Proposal> {
        let slot = Slots::<()>::new(1).open(Duration::ZERO).unwrap().id();
        Box::new(Proposal {
            reply: ReplyTo { core: 0, slot },
            id,
            purpose: Purpose::Other,
            entry: Bytes::from_static(entry),
            request: None,
            stamps: crate::insight::trace::Stamps::default(),
            share: None,
            result: Ok(Outcome::Internal),
        })
    }

    #[test]
    fn a_proposal_is_found_by_its_own_bytes_alone() {
        let mut waiters = Waiters::default();
        waiters.insert(proposal(7, b"mine"), Duration::ZERO);
        assert!(waiters.take(7, &Bytes::from_static(b"another's")).is_none(), "its entry was replaced");
        assert!(waiters.take(8, &Bytes::from_static(b"mine")).is_none());
        assert_eq!(waiters.count(), 1, "it waits on");
        assert!(waiters.take(7, &Bytes::copy_from_slice(b"mine")).is_some(), "the same bytes read from elsewhere");
        assert!(waiters.take(7, &Bytes::from_static(b"mine")).is_none(), "it was found once");
        assert!(waiters.accepted.is_empty());
    }

    #[test]
    fn lost_proposals_are_forgotten_and_leave_nothing_behind() {
        let mut waiters = Waiters::default();
        let second = Duration::from_secs(1);
        for id in 1..=3 {
            waiters.insert(proposal(id, b"x"), second * u32::try_from(id).unwrap());
        }
        assert!(waiters.is_last_waiting());
        assert!(waiters.take(2, &Bytes::from_static(b"x")).is_some());
        waiters.forget_lost(11 * second, 10 * second);
        assert_eq!((waiters.count(), waiters.accepted.len()), (1, 2));
        assert!(waiters.is_last_waiting());
        waiters.forget_lost(13 * second, 10 * second);
        assert_eq!((waiters.count(), waiters.accepted.len()), (0, 0));
        assert!(!waiters.is_last_waiting());
    }
}
