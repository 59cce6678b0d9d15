//! Runs on: raft core, connection core.
//!
//! Numbers about each other member: what passes between it and this one, and how long that takes.
//!
//! Invariants: only present members have numbers, so nobody decides how many series there are but the cluster; a member
//! that was removed takes its numbers along. Each number has one writer: raft's core has those of connections and the
//! list of members, the connection core that sends and fetches states has the others.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arc_swap::{ArcSwap, Guard};

use super::histogram::{Count, Histogram};

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;

/// Whole states in one direction.
#[derive(Debug)]
pub struct OfStates {
    /// Those that came whole.
    pub succeeded: Count,
    /// Those that did not.
    pub failed: Count,
    /// Those under way.
    pub under_way: Count,
    /// What was moved of them. **Units** bytes.
    pub bytes: Count,
    /// Durations of those that came whole.
    pub seconds: Histogram<10>,
}

impl Default for OfStates {
    fn default() -> Self {
        let [succeeded, failed, under_way, bytes] = Default::default();
        Self { succeeded, failed, under_way, bytes, seconds: Histogram::new(100 * MS) }
    }
}

impl OfStates {
    /// One has begun.
    pub fn begun(&self) {
        self.under_way.add(1);
    }

    /// One that had begun has ended: it took so long, or failed.
    pub fn ended(&self, took: Option<Duration>) {
        assert!(self.under_way.get() > 0, "it had begun");
        self.under_way.set(self.under_way.get() - 1);
        match took {
            Some(took) => {
                self.succeeded.add(1);
                self.seconds.observe_time(took);
            }
            None => self.failed.add(1),
        }
    }
}

/// The numbers of one other member.
#[derive(Debug)]
pub struct OfPeer {
    /// 1 while it is connected.
    pub is_active: Count,
    /// How often it was connected, and then was not.
    pub disconnections: Count,
    /// What was written to it, without states. **Units** bytes.
    pub sent_bytes: Count,
    /// What was read from it, without states. **Units** bytes.
    pub received_bytes: Count,
    /// Messages, or streams of them, that were lost before it had them.
    pub send_failures: Count,
    /// Streams that brought what no member sends.
    pub receive_failures: Count,
    /// The time from a probe to its answer.
    pub round_trips: Histogram<16>,
    /// The last one; 0 if the last probe was not answered. **Units** nanoseconds.
    pub last_round_trip_ns: Count,
    /// States sent to it.
    pub sent_states: OfStates,
    /// States fetched from it.
    pub received_states: OfStates,
}

impl Default for OfPeer {
    fn default() -> Self {
        let [is_active, disconnections, sent_bytes, received_bytes, send_failures, receive_failures] =
            Default::default();
        let (round_trips, last_round_trip_ns) = (Histogram::new(MS / 10), Count::default());
        let (sent_states, received_states) = (OfStates::default(), OfStates::default());
        Self {
            is_active,
            disconnections,
            sent_bytes,
            received_bytes,
            send_failures,
            receive_failures,
            round_trips,
            last_round_trip_ns,
            sent_states,
            received_states,
        }
    }
}

/// The numbers of all other members, by id.
#[derive(Debug, Default)]
pub struct Peers(ArcSwap<BTreeMap<u64, Arc<OfPeer>>>);

impl Peers {
    /// Other members are these from now on. Raft's core alone says so.
    pub fn set_members(&self, ids: impl Iterator<Item = u64>) {
        let before = self.0.load();
        let of = |id| (id, before.get(&id).cloned().unwrap_or_default());
        self.0.store(Arc::new(ids.map(of).collect()));
    }

    /// All of them.
    pub fn all(&self) -> Guard<Arc<BTreeMap<u64, Arc<OfPeer>>>> {
        self.0.load()
    }

    /// Those of the member `id`. A member that is not one, or not yet, has some that nobody sees.
    pub fn of(&self, id: u64) -> Arc<OfPeer> {
        self.0.load().get(&id).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_present_members() {
        let peers = Peers::default();
        peers.set_members([1, 2].into_iter());
        peers.of(1).sent_bytes.add(5);
        peers.of(3).sent_bytes.add(5);
        peers.set_members([1, 3].into_iter());
        let shown: Vec<_> = peers.all().iter().map(|(id, of)| (*id, of.sent_bytes.get())).collect();
        assert_eq!(shown, [(1, 5), (3, 0)]);
        let states = &peers.of(1).sent_states;
        states.begun();
        states.begun();
        states.ended(None);
        assert_eq!((states.under_way.get(), states.failed.get(), states.succeeded.get()), (1, 1, 0));
        states.ended(Some(Duration::from_secs(1)));
        assert_eq!((states.under_way.get(), states.failed.get(), states.succeeded.get()), (0, 1, 1));
    }
}
