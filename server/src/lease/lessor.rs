//! Runs on: apply core.
//!
//! Knows which leases there are and, on the leader, when each expires.
//!
//! The existence of a lease changes only with the log: `grant`, `revoke`. The expiry time belongs to the present
//! leader. It is never stored, and starts anew with each leader. An expired lease stays until its revocation has been
//! applied. The lessor says which revocations to propose, at a bounded rate. It asks again for a revocation that was
//! not applied.
//!
//! Invariants:
//! - `by_expiry` holds exactly the leases that are `Timing::Running`, by `Lease::expiry`. `proposed` holds exactly
//!   those that are `Timing::Proposed`, by retry time. While the lessor does not lead, all leases are `Timing::Stopped`
//!   and both are empty.
//! - `proposed` holds at most [`PROPOSED_MAX`] leases; all of them have expired.
//! - The time to live of a lease counts from the moment the leader granted the lease, renewed it or took it over. The
//!   lease never expires earlier.
//!
//! All calls are O(log n), except `list`, `restore`, `promote` and `demote`, which visit all leases. The lessor makes
//! no ids, knows no keys and proposes nothing itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use engine::planted::is_planted;

use super::{Grant, checkpoints::Checkpoints};

/// The parameters of timing. They may differ between members.
#[derive(Clone, Copy, Debug)]
pub struct Params {
    /// Shorter grants are raised to this; see [`ttl_min_s`]. **Units** seconds.
    pub ttl_min_s: i64,
    /// Time after which a revocation that was not applied is asked for again: the time in which a proposal is answered.
    pub retry_after: Duration,
    /// How often the leader takes down the time that a lease has left; `None` for never. A lease that has less left is
    /// not taken down: it ends sooner.
    pub checkpoint_every: Option<Duration>,
}

/// How often etcd takes down the time that leases have left, if it does. **Source** etcd v3.7.1 `lease/lessor.go`
/// `defaultLeaseCheckpointInterval`.
pub const CHECKPOINT_EVERY: Duration = Duration::from_secs(300);

/// The shortest time to live that a member grants, from its heartbeat interval and the heartbeats in its election
/// timeout.
///
/// **Source** etcd v3.7.1 `server/etcdserver/server.go` `minTTL`.
pub fn ttl_min_s(heartbeat: Duration, election_ticks: u32) -> i64 {
    let ttl = heartbeat * (3 * election_ticks / 2);
    let is_whole = ttl.subsec_nanos() == 0;
    seconds(ttl) + i64::from(!is_whole)
}

/// Length of one round of expiring leases. A new round begins when this has passed and a lease has expired. **Source**
/// of this and of the next constants: etcd v3.7.1 `lease/lessor.go`, `etcdserver/server.go`.
const ROUND: Duration = Duration::from_millis(500);

/// Revocations that are asked for in one round at most.
const ROUND_REVOCATIONS_MAX: usize = 500;

/// Revocations that are asked for and not yet applied, at most.
const PROPOSED_MAX: usize = 16;

/// A new leader with at least this many leases spreads their expiry.
const SPREAD_LEASES_MIN: usize = 1000;

/// Leases that then expire within any one second, at most.
const SPREAD_PER_S: usize = 750;

/// The leases of the store.
#[derive(Debug)]
pub struct Lessor {
    params: Params,
    leases: BTreeMap<i64, Lease>,
    by_expiry: BTreeSet<(Duration, i64)>,
    proposed: BTreeSet<(Duration, i64)>,
    checkpoints: Checkpoints,
    leads: bool,
    /// When the current round began, and how many revocations may still be asked for in it.
    round_at: Duration,
    round_left: usize,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    grant: Grant,
    /// When the lease expires. It has no meaning while the lease is stopped.
    expiry: Duration,
    timing: Timing,
}

/// What became of a renewal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The time to live, in seconds, begins anew.
    Renewed(i64),
    /// There is no such lease.
    Unknown,
    /// The lease has expired and is not revoked yet, or the lessor does not lead. Whether the lease lives will be known
    /// later.
    Waits,
    /// Less time may be recorded of it than it would get. That must be taken back first ([`Lessor::takes_back`]).
    IsRecorded,
}

/// The state of a lease's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Timing {
    /// The time does not run: this member does not lead.
    Stopped,
    Running,
    /// The lease has expired, and its revocation was asked for. It is asked for again at `retry_at`.
    Proposed {
        retry_at: Duration,
    },
}

impl Lessor {
    /// A lessor without leases that does not lead.
    pub fn new(params: Params) -> Self {
        assert!(params.ttl_min_s > 0 && params.retry_after > Duration::ZERO);
        Self {
            params,
            leases: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            proposed: BTreeSet::new(),
            checkpoints: Checkpoints::default(),
            leads: false,
            round_at: Duration::ZERO,
            round_left: ROUND_REVOCATIONS_MAX,
        }
    }

    /// A lessor with the same settings, without leases, that does not lead.
    pub fn afresh(&self) -> Self {
        Self::new(self.params)
    }

    /// Takes in the stored leases, before any other call.
    pub fn restore(&mut self, grants: impl IntoIterator<Item = (i64, Grant)>) {
        assert!(self.leases.is_empty() && !self.leads, "leases are restored first");
        let lease = |grant: Grant| {
            let grant = Grant { ttl_s: grant.ttl_s.max(self.params.ttl_min_s), ..grant };
            Lease { grant, expiry: Duration::ZERO, timing: Timing::Stopped }
        };
        self.leases = grants.into_iter().map(|(id, grant)| (id, lease(grant))).collect();
    }

    /// Adds a lease. Returns its time to live in seconds, which may be longer than asked for. Returns `None` if there
    /// is a lease with this id, or if the id is 0, which means no lease.
    pub fn grant(&mut self, id: i64, ttl_s: i64, now: Duration) -> Option<i64> {
        if id == 0 || self.leases.contains_key(&id) {
            return None;
        }
        let ttl_s = ttl_s.max(self.params.ttl_min_s);
        let mut lease =
            Lease { grant: Grant { ttl_s, remaining_s: 0 }, expiry: Duration::ZERO, timing: Timing::Stopped };
        if self.leads {
            lease.expiry = now.saturating_add(duration(ttl_s));
            lease.timing = Timing::Running;
            self.by_expiry.insert((lease.expiry, id));
            self.plan_checkpoint(id, lease.expiry, now);
        }
        self.leases.insert(id, lease);
        Some(ttl_s)
    }

    /// Plans when the time of a lease is taken down next, if it lives for long enough.
    fn plan_checkpoint(&mut self, id: i64, expiry: Duration, now: Duration) {
        if let Some(every) = self.params.checkpoint_every
            && expiry.saturating_sub(now) > every
        {
            self.checkpoints.plan(id, now + every);
        }
    }

    /// The leases whose time left must be taken down now, with that time in seconds; at most `max`.
    pub fn checkpoints(&mut self, now: Duration, max: usize) -> Vec<(i64, i64)> {
        let mut due = Vec::new();
        while due.len() < max
            && let Some(id) = self.checkpoints.take_due(now)
        {
            let lease = self.leases[&id];
            if lease.timing != Timing::Running || lease.expiry <= now {
                continue;
            }
            self.plan_checkpoint(id, lease.expiry, now);
            let left = lease.expiry - now;
            let left_s = seconds(left) + i64::from(left.subsec_nanos() > 0);
            // There is nothing to say of one that was renewed just now.
            if left_s < lease.grant.ttl_s {
                self.checkpoints.note_recorded(id);
                due.push((id, left_s));
            }
        }
        due
    }

    /// Takes in that the time that a lease had left was taken down, or taken back (0). Returns the lease as it is to be
    /// stored; `None` if it is gone.
    pub fn checkpointed(&mut self, id: i64, remaining_s: i64) -> Option<Grant> {
        let lease = self.leases.get_mut(&id)?;
        lease.grant.remaining_s = remaining_s.max(0);
        match (self.leads, lease.grant.remaining_s) {
            (false, _) => {}
            (true, 0) => self.checkpoints.note_taken_back(id),
            (true, _) => self.checkpoints.note_applied(id),
        }
        Some(lease.grant)
    }

    /// Whether it must be proposed now to take back the time that was recorded of a lease.
    pub fn takes_back(&mut self, id: i64, now: Duration) -> bool {
        self.checkpoints.takes_back(id, now, self.params.retry_after)
    }

    /// Removes a lease. Returns whether there was one.
    pub fn revoke(&mut self, id: i64) -> bool {
        let Some(lease) = self.leases.remove(&id) else {
            return false;
        };
        let was_queued = match lease.timing {
            Timing::Stopped => true,
            Timing::Running => self.by_expiry.remove(&(lease.expiry, id)),
            Timing::Proposed { retry_at } => self.proposed.remove(&(retry_at, id)),
        };
        assert!(was_queued, "a lease stands where its timing says");
        self.checkpoints.forget(id);
        true
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }

    /// Whether there is a lease with this id, expired or not.
    pub fn contains(&self, id: i64) -> bool {
        self.leases.contains_key(&id)
    }

    /// Begins a lease's time to live anew.
    pub fn renew(&mut self, id: i64, now: Duration) -> Renewal {
        let Some(lease) = self.leases.get_mut(&id) else { return Renewal::Unknown };
        if lease.timing != Timing::Running || lease.expiry <= now {
            return Renewal::Waits;
        }
        if self.checkpoints.is_recorded(id) && !is_planted("a renewal beside a recorded rest") {
            return Renewal::IsRecorded;
        }
        let was_queued = self.by_expiry.remove(&(lease.expiry, id));
        assert!(was_queued, "a running lease stands in the queue");
        lease.expiry = now.saturating_add(duration(lease.grant.ttl_s));
        self.by_expiry.insert((lease.expiry, id));
        Renewal::Renewed(lease.grant.ttl_s)
    }

    /// The whole seconds left and the granted ones; `None` if the lease is unknown. The seconds left are negative for a
    /// lease that has expired and waits to be revoked. A lessor that does not lead says that the whole time is left.
    pub fn time_to_live(&self, id: i64, now: Duration) -> Option<(i64, i64)> {
        let lease = self.leases.get(&id)?;
        let left = match lease.timing {
            Timing::Stopped => lease.grant.left_s(),
            _ if lease.expiry >= now => seconds(lease.expiry - now),
            _ => -seconds(now - lease.expiry),
        };
        Some((left, lease.grant.ttl_s))
    }

    /// All ids. Leases with the least time left come first.
    pub fn list(&self) -> Vec<i64> {
        if !self.leads {
            return self.leases.keys().copied().collect();
        }
        let mut ids: Vec<_> = self.by_expiry.iter().copied().collect();
        ids.extend(self.proposed.iter().map(|&(_, id)| (self.leases[&id].expiry, id)));
        // This is a long sorted run and a few more. The stable sort takes the run as it is.
        ids.sort();
        ids.into_iter().map(|(_, id)| id).collect()
    }

    /// Takes in that this member leads now. Every lease gets its whole time, plus `extend` (the election timeout). If
    /// there are many leases, some get more, so that they do not all expire at once.
    pub fn promote(&mut self, now: Duration, extend: Duration) {
        self.leads = true;
        self.proposed.clear();
        let from = now.saturating_add(extend);
        let mut expiries: Vec<_> = (self.leases.iter())
            .map(|(&id, lease)| (from.saturating_add(duration(lease.grant.left_s())), id))
            .collect();
        expiries.sort_unstable();
        if expiries.len() >= SPREAD_LEASES_MIN {
            for at in SPREAD_PER_S..expiries.len() {
                let earliest = expiries[at - SPREAD_PER_S].0.saturating_add(Duration::from_secs(1));
                expiries[at].0 = expiries[at].0.max(earliest);
            }
        }
        for &(expiry, id) in &expiries {
            let lease = self.leases.get_mut(&id).expect("its id was just read");
            assert!(expiry >= from, "a new leader takes nothing away");
            lease.expiry = expiry;
            lease.timing = Timing::Running;
        }
        self.checkpoints = Checkpoints::default();
        for &(expiry, id) in &expiries {
            self.plan_checkpoint(id, expiry, now);
            if self.leases[&id].grant.remaining_s > 0 {
                self.checkpoints.note_recorded(id);
            }
        }
        self.by_expiry = expiries.into_iter().collect();
    }

    /// Whether leases run here.
    pub fn leads(&self) -> bool {
        self.leads
    }

    /// Takes in that this member no longer leads: nothing expires here.
    pub fn demote(&mut self) {
        self.leads = false;
        self.by_expiry.clear();
        self.proposed.clear();
        self.checkpoints = Checkpoints::default();
        self.leases.values_mut().for_each(|lease| lease.timing = Timing::Stopped);
    }

    /// When [`Lessor::expired`] will have something to return; `None` if only another call can change that.
    pub fn next_wake(&self) -> Option<Duration> {
        let retry_at = self.proposed.first().map(|&(retry_at, _)| retry_at);
        let expiry = self.by_expiry.first().map(|&(expiry, _)| expiry).filter(|_| self.proposed.len() < PROPOSED_MAX);
        let due = retry_at.into_iter().chain(expiry).min()?;
        Some(if self.round_left == 0 { due.max(self.round_at + ROUND) } else { due })
    }

    /// Appends the leases whose revocation must be proposed now.
    ///
    /// **Bounds** [`ROUND_REVOCATIONS_MAX`] in [`ROUND`], [`PROPOSED_MAX`] at a time. When some are applied, the next
    /// follow.
    pub fn expired(&mut self, now: Duration, out: &mut Vec<i64>) {
        if self.next_wake().is_none_or(|wake| wake > now) {
            return;
        }
        if now >= self.round_at + ROUND {
            self.round_at = now;
            self.round_left = ROUND_REVOCATIONS_MAX;
        }
        while self.round_left > 0
            && let Some(&(retry_at, id)) = self.proposed.first()
            && retry_at <= now
        {
            self.proposed.pop_first();
            self.ask(id, now, out);
        }
        while self.round_left > 0
            && self.proposed.len() < PROPOSED_MAX
            && let Some(&(expiry, id)) = self.by_expiry.first()
            && expiry <= now
        {
            self.by_expiry.pop_first();
            self.ask(id, now, out);
        }
    }

    /// Lets a lease live until `until` that has expired, and whose revocation will not be proposed now.
    pub fn put_off(&mut self, id: i64, until: Duration) {
        let Some(lease) = self.leases.get_mut(&id) else { return };
        let Timing::Proposed { retry_at } = lease.timing else { return };
        let was_queued = self.proposed.remove(&(retry_at, id));
        assert!(was_queued, "a lease stands where its timing says");
        (lease.expiry, lease.timing) = (until, Timing::Running);
        self.by_expiry.insert((until, id));
    }

    fn ask(&mut self, id: i64, now: Duration, out: &mut Vec<i64>) {
        let retry_at = now + self.params.retry_after;
        let lease = self.leases.get_mut(&id).expect("a queued lease exists");
        assert!(lease.timing != Timing::Stopped && lease.expiry <= now, "only what has expired is revoked");
        lease.timing = Timing::Proposed { retry_at };
        self.proposed.insert((retry_at, id));
        assert!(self.proposed.len() <= PROPOSED_MAX);
        self.round_left -= 1;
        out.push(id);
    }
}

impl Grant {
    /// The time with which a new leader starts. **Units** seconds.
    fn left_s(&self) -> i64 {
        if self.remaining_s > 0 { self.remaining_s } else { self.ttl_s }
    }
}

fn duration(seconds: i64) -> Duration {
    Duration::from_secs(seconds.max(0).cast_unsigned())
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    const RETRY: Duration = Duration::from_secs(7);
    const PARAMS: Params = Params { ttl_min_s: 2, retry_after: RETRY, checkpoint_every: None };

    fn leader() -> Lessor {
        let mut lessor = Lessor::new(PARAMS);
        lessor.promote(Duration::ZERO, Duration::ZERO);
        lessor
    }

    fn expired(lessor: &mut Lessor, now: Duration) -> Vec<i64> {
        let mut ids = vec![];
        lessor.expired(now, &mut ids);
        ids
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn shortest_time_to_live_is_etcds() {
        assert_eq!(ttl_min_s(Duration::from_millis(100), 10), 2);
        assert_eq!(ttl_min_s(Duration::from_millis(100), 11), 2);
        assert_eq!(ttl_min_s(Duration::from_millis(500), 10), 8);
        assert_eq!(ttl_min_s(Duration::from_millis(200), 10), 3);
        assert_eq!(ttl_min_s(Duration::from_millis(10), 10), 1);
    }

    #[test]
    fn grants_are_raised_to_the_minimum_and_ids_are_used_once() {
        let mut lessor = leader();
        assert_eq!(lessor.grant(1, 1, s(0)), Some(2));
        assert_eq!(lessor.grant(2, -5, s(0)), Some(2));
        assert_eq!(lessor.grant(3, super::super::TTL_MAX_S, s(0)), Some(9_000_000_000));
        assert_eq!(lessor.grant(1, 10, s(0)), None);
        assert_eq!(lessor.grant(0, 10, s(0)), None);
        assert!(lessor.revoke(1) && !lessor.revoke(1) && !lessor.contains(1));
        assert_eq!(lessor.grant(1, 10, s(0)), Some(10));
    }

    #[test]
    fn lease_expires_when_its_time_has_passed_since_the_last_renewal() {
        let mut lessor = leader();
        lessor.grant(1, 10, s(0));
        assert_eq!(lessor.next_wake(), Some(s(10)));
        assert_eq!(lessor.time_to_live(1, Duration::from_millis(3_500)), Some((6, 10)));
        assert_eq!(lessor.renew(1, s(9)), Renewal::Renewed(10));
        assert_eq!(lessor.renew(2, s(9)), Renewal::Unknown);
        assert!(expired(&mut lessor, Duration::from_millis(18_999)).is_empty());
        assert_eq!(expired(&mut lessor, s(19)), [1]);
        assert_eq!(lessor.renew(1, s(19)), Renewal::Waits, "an expired lease is not renewed");
        assert_eq!(lessor.time_to_live(1, Duration::from_millis(21_500)), Some((-2, 10)));
        assert!(lessor.contains(1));
        assert!(lessor.revoke(1));
        assert_eq!((lessor.time_to_live(1, s(21)), lessor.next_wake()), (None, None));
    }

    #[test]
    fn revocation_that_is_not_applied_is_asked_for_again() {
        let mut lessor = leader();
        lessor.grant(1, 10, s(0));
        assert_eq!(expired(&mut lessor, s(10)), [1]);
        assert_eq!(lessor.next_wake(), Some(s(10) + RETRY));
        assert!(expired(&mut lessor, s(16)).is_empty());
        assert_eq!(expired(&mut lessor, s(17)), [1]);
        assert!(expired(&mut lessor, s(17)).is_empty());
        assert!(lessor.revoke(1));
        assert!(expired(&mut lessor, s(100)).is_empty());
    }

    #[test]
    fn revocations_are_bounded_in_flight_and_in_rate() {
        let mut lessor = leader();
        for id in 1..=2_000 {
            lessor.grant(id, 10, s(0));
        }
        let first = expired(&mut lessor, s(10));
        assert_eq!(first, (1..=16).collect::<Vec<_>>());
        assert!(expired(&mut lessor, s(10)).is_empty());
        assert_eq!(lessor.next_wake(), Some(s(17)), "nothing to do before one is applied or lost");
        let mut in_flight = first;
        let mut revoked = vec![];
        let mut now = s(10);
        while lessor.contains(2_000) {
            for id in in_flight.drain(..) {
                assert!(lessor.revoke(id));
                revoked.push((now, id));
            }
            let Some(wake) = lessor.next_wake() else { break };
            now = now.max(wake);
            in_flight = expired(&mut lessor, now);
            assert!(in_flight.len() <= 16 && !in_flight.is_empty());
        }
        assert!(revoked.is_sorted());
        for round in 0..4u32 {
            let at = s(10) + ROUND * round;
            assert_eq!(revoked.iter().filter(|(when, _)| *when == at).count(), 500);
        }
    }

    #[test]
    fn only_a_leader_expires_and_a_new_one_starts_anew() {
        let mut lessor = Lessor::new(PARAMS);
        lessor.restore([
            (1, Grant { ttl_s: 10, remaining_s: 0 }),
            (2, Grant { ttl_s: 100, remaining_s: 4 }),
            (3, Grant { ttl_s: 1, remaining_s: 0 }),
        ]);
        assert_eq!((expired(&mut lessor, s(1_000)), lessor.next_wake()), (vec![], None));
        assert_eq!(lessor.renew(1, s(0)), Renewal::Waits);
        assert_eq!(lessor.time_to_live(2, s(1_000)), Some((4, 100)));
        assert_eq!(lessor.grant(4, 20, s(0)), Some(20));
        lessor.promote(s(50), s(1));
        assert_eq!(lessor.list(), [3, 2, 1, 4]);
        let left = |lessor: &Lessor| [1, 2, 3, 4].map(|id| lessor.time_to_live(id, s(50)).unwrap());
        assert_eq!(left(&lessor), [(11, 10), (5, 100), (3, 2), (21, 20)]);
        assert_eq!(expired(&mut lessor, s(55)), [3, 2]);
        lessor.demote();
        assert_eq!((expired(&mut lessor, s(1_000)), lessor.next_wake()), (vec![], None));
        lessor.promote(s(60), s(1));
        assert_eq!(lessor.renew(2, s(64)), Renewal::IsRecorded, "the next leader would take it for an older one");
        assert!(lessor.takes_back(2, s(64)) && !lessor.takes_back(2, s(64)));
        assert_eq!(lessor.checkpointed(2, 0), Some(Grant { ttl_s: 100, remaining_s: 0 }));
        assert_eq!(lessor.renew(2, s(64)), Renewal::Renewed(100), "a renewed lease has all its time");
        assert_eq!(lessor.list(), [3, 1, 4, 2]);
    }

    #[test]
    fn the_time_of_long_leases_is_taken_down_and_taken_back_before_they_are_renewed() {
        let params = Params { checkpoint_every: Some(s(10)), ..PARAMS };
        let mut lessor = Lessor::new(params);
        lessor.promote(s(0), s(0));
        for (id, ttl) in [(1, 10), (2, 25), (3, 100), (4, 100)] {
            lessor.grant(id, ttl, s(0));
        }
        assert!(lessor.checkpoints(Duration::from_millis(9_999), 10).is_empty());
        assert_eq!(lessor.renew(4, Duration::from_millis(9_900)), Renewal::Renewed(100));
        assert_eq!(lessor.checkpoints(Duration::from_millis(10_500), 1), [(2, 15)]);
        assert_eq!(lessor.checkpoints(Duration::from_millis(10_500), 10), [(3, 90)], "4 was renewed, 1 ends");
        // What is on its way through the log counts already.
        assert_eq!(lessor.renew(3, s(11)), Renewal::IsRecorded);
        assert!(lessor.takes_back(3, s(11)));
        assert_eq!(lessor.checkpointed(3, 90), Some(Grant { ttl_s: 100, remaining_s: 90 }));
        assert_eq!(lessor.renew(3, s(11)), Renewal::IsRecorded);
        assert!(!lessor.takes_back(3, s(12)) && lessor.takes_back(3, s(11) + RETRY), "that was lost");
        // Before it is taken back, it is taken down once more.
        assert_eq!(lessor.checkpoints(s(21), 10), [(2, 4), (3, 79), (4, 89)]);
        assert_eq!(lessor.checkpointed(3, 0).unwrap().remaining_s, 0);
        assert_eq!(lessor.renew(3, s(21)), Renewal::IsRecorded, "that was asked for before");
        assert!(lessor.takes_back(3, s(21)));
        assert_eq!(lessor.checkpointed(3, 79).unwrap().remaining_s, 79);
        assert_eq!(lessor.checkpointed(3, 0).unwrap().remaining_s, 0);
        assert_eq!(lessor.renew(3, s(21)), Renewal::Renewed(100));
        assert_eq!(lessor.checkpointed(9, 5), None);
        assert!(lessor.revoke(4));
        assert_eq!(lessor.checkpoints(s(31), 10), [(3, 90)]);
        lessor.demote();
        assert!(lessor.checkpoints(s(2000), 10).is_empty());
        assert_eq!(lessor.checkpointed(3, 40), Some(Grant { ttl_s: 100, remaining_s: 40 }));
        lessor.promote(s(2000), s(1));
        assert_eq!(lessor.time_to_live(3, s(2000)), Some((41, 100)), "a new leader gives what was left");
    }

    #[test]
    fn many_leases_of_a_new_leader_are_spread() {
        for count in [999, 1_000, 5_000] {
            let mut rng = SmallRng::seed_from_u64(1);
            let mut lessor = Lessor::new(PARAMS);
            let ttls: Vec<i64> = (0..count).map(|_| rng.random_range(5..8)).collect();
            lessor.restore((1..).zip(&ttls).map(|(id, &ttl_s)| (id, Grant { ttl_s, remaining_s: 0 })));
            lessor.promote(s(1), s(1));
            let expiries: Vec<_> = lessor.by_expiry.iter().copied().collect();
            assert_eq!(expiries.len(), ttls.len());
            for &(expiry, id) in &expiries {
                let ttl = ttls[usize::try_from(id).unwrap() - 1];
                assert!(expiry >= s(2) + duration(ttl));
                assert_eq!(expiry, lessor.leases[&id].expiry);
            }
            let at_once = |window: &[(Duration, i64)]| window[750].0 - window[0].0 < s(1);
            if count < 1_000 {
                assert!(
                    expiries
                        .iter()
                        .all(|&(expiry, id)| expiry == s(2) + duration(ttls[usize::try_from(id).unwrap() - 1]))
                );
            } else {
                assert!(!expiries.windows(751).any(at_once), "at most 750 in any second");
            }
            let longest = expiries.last().unwrap().0 - s(2 + 7);
            assert!(longest <= s(ttls.len() as u64 / 750));
        }
    }

    #[test]
    fn queues_agree_with_a_plain_model() {
        let mut rng = SmallRng::seed_from_u64(5);
        let mut lessor = leader();
        let mut model: BTreeMap<i64, Duration> = BTreeMap::new();
        let mut ttls: BTreeMap<i64, u64> = BTreeMap::new();
        let mut now = s(0);
        let mut revoked = 0;
        for _ in 0..20_000 {
            let id = rng.random_range(1..60);
            match rng.random_range(0..10) {
                0..3 => {
                    let ttl = rng.random_range(2..20u64);
                    let granted = lessor.grant(id, ttl.cast_signed(), now);
                    assert_eq!(granted.is_some(), !model.contains_key(&id));
                    if granted.is_some() {
                        ttls.insert(id, ttl);
                        model.insert(id, now + s(ttl));
                    }
                }
                3..6 => {
                    let renewed = lessor.renew(id, now);
                    let is_live = model.get(&id).is_some_and(|expiry| *expiry > now);
                    assert_eq!(renewed == Renewal::Unknown, !model.contains_key(&id));
                    assert_eq!(renewed == Renewal::Renewed(ttls.get(&id).map_or(0, |ttl| ttl.cast_signed())), is_live);
                    if is_live {
                        model.insert(id, now + s(ttls[&id]));
                    }
                }
                6 => assert_eq!(lessor.revoke(id), model.remove(&id).is_some()),
                _ => {
                    now += Duration::from_millis(rng.random_range(0..300));
                    for id in expired(&mut lessor, now) {
                        assert!(model[&id] <= now);
                        // Some revocations get lost.
                        if rng.random_range(0..4) > 0 {
                            assert!(lessor.revoke(id));
                            model.remove(&id);
                            revoked += 1;
                        }
                    }
                    let overdue = model.values().filter(|expiry| **expiry <= now).count();
                    assert!(overdue <= 16 || lessor.proposed.len() == 16, "what expires is asked for");
                }
            }
            let mut by_expiry: Vec<_> = model.iter().map(|(id, expiry)| (*expiry, *id)).collect();
            by_expiry.sort();
            assert_eq!(lessor.list(), by_expiry.into_iter().map(|(_, id)| id).collect::<Vec<_>>());
        }
        assert!(revoked > 1_000, "{revoked}");
    }
}
