//! Runs on: raft core.
//!
//! What waits to be proposed, in its order, and until when it gathers.
//!
//! Each step of raft costs every member the same few system calls, however much is proposed in it. So proposals gather
//! while others are on their way, as bytes do for a socket that is written to: what comes meanwhile leaves together
//! when those are committed.
//!
//! Invariants:
//! - A proposal that comes while none is on its way does not wait for others.
//! - What gathers is due [`GATHER_MAX`] behind what was proposed last (a timer may ring a millisecond later), so
//!   distant members do not make it much slower; or when so much has come that a step is worth it.

use std::time::Duration;

use bytes::Bytes;
use consensus::EntryKind;

use crate::apply::proposal::Proposal;

/// How long proposals gather while others are on their way. Between hosts nearby those are committed before.
const GATHER_MAX: Duration = Duration::from_millis(1);
/// So many do not gather any longer: a step with them costs little for each.
const GATHER_ENTRIES_MAX: usize = 64;
/// Nor so much. **Units** bytes.
const GATHER_BYTES_MAX: u64 = 32 << 10;

/// A request that will be proposed.
pub struct Waiting {
    /// Which kind of entry it becomes.
    pub kind: EntryKind,
    /// Its bytes.
    pub entry: Bytes,
    /// The client's proposal; `None` for a request of the server's own, and for one that another member has forwarded.
    pub proposal: Option<Box<Proposal>>,
    /// Its client does not wait for longer. A request of the server's own does not wait for a leader at all.
    pub until: Duration,
    /// The term in which this member decided it as the leader: nobody proposes it when that is over.
    pub of_leader_in: Option<u64>,
}

/// See the head of this file.
#[derive(Default)]
pub struct Proposals {
    waiting: Vec<Waiting>,
    bytes: u64,
    waits_for_segment: bool,
    /// When something was proposed last.
    proposed_at: Option<Duration>,
    gather_until: Option<Duration>,
}

impl Proposals {
    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// **Units** bytes of entries.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds one behind the others.
    pub fn push(&mut self, waiting: Waiting) {
        self.bytes += waiting.entry.len() as u64;
        self.waiting.push(waiting);
    }

    /// Takes all of them, to be proposed `now`.
    pub fn take(&mut self, now: Duration) -> Vec<Waiting> {
        let all = Self { proposed_at: Some(now), ..Self::default() };
        std::mem::replace(self, all).waiting
    }

    /// Keeps the memory of what was taken.
    pub fn give_back(&mut self, mut taken: Vec<Waiting>) {
        taken.clear();
        taken.append(&mut self.waiting);
        self.waiting = taken;
    }

    /// Some wait for the log's next segment, as far as is known since the last `take`.
    pub fn wait_for_segment(&mut self) {
        self.waits_for_segment = true;
    }

    /// Whether some wait for the log's next segment.
    pub fn waits_for_segment(&self) -> bool {
        self.waits_for_segment
    }

    /// Whether they are to gather, rather than be proposed; others are on their way if `is_under_way`.
    pub fn gather(&mut self, is_under_way: bool, now: Duration) -> bool {
        let is_enough = self.waiting.len() >= GATHER_ENTRIES_MAX || self.bytes >= GATHER_BYTES_MAX;
        let until = self.proposed_at.map(|at| at + GATHER_MAX);
        let gathers = is_under_way && !is_enough && !self.waiting.is_empty();
        self.gather_until = until.filter(|until| gathers && now < *until);
        self.gather_until.is_some()
    }

    /// Until when they gather at the latest, if they do.
    pub fn gather_until(&self) -> Option<Duration> {
        self.gather_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(len: usize) -> Waiting {
        let entry = vec![0; len].into();
        Waiting { kind: EntryKind::Normal, entry, proposal: None, until: Duration::MAX, of_leader_in: None }
    }

    #[test]
    fn proposals_gather_only_while_others_are_on_their_way_and_not_for_long() {
        let us = Duration::from_micros;
        let mut proposals = Proposals::default();
        proposals.push(waiting(8));
        assert!(!proposals.gather(true, us(100)), "nothing of this member is on its way");
        assert_eq!(proposals.take(us(100)).len(), 1);
        assert!(!proposals.gather(true, us(150)), "there is none");
        proposals.push(waiting(8));
        assert!(proposals.gather(true, us(200)));
        assert_eq!(proposals.gather_until(), Some(us(1100)));
        assert!(!proposals.gather(false, us(300)), "the others are committed");
        assert!(proposals.gather(true, us(1099)) && !proposals.gather(true, us(1100)), "long enough");
        assert_eq!(proposals.gather_until(), None);
        assert_eq!(proposals.take(us(1200)).len(), 1);
        (1..GATHER_ENTRIES_MAX).for_each(|_| proposals.push(waiting(8)));
        assert!(proposals.gather(true, us(1300)));
        proposals.push(waiting(8));
        assert!(!proposals.gather(true, us(1300)), "enough of them");
        drop(proposals.take(us(1300)));
        (1..GATHER_BYTES_MAX >> 10).for_each(|_| proposals.push(waiting(1 << 10)));
        proposals.push(waiting((1 << 10) - 1));
        assert!(proposals.gather(true, us(1400)));
        proposals.push(waiting(1));
        assert!(!proposals.gather(true, us(1400)), "enough bytes");
        assert_eq!(proposals.bytes(), GATHER_BYTES_MAX);
    }
}
