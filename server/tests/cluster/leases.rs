//! Clients with leases: each has one lease after another. It has it granted, renews it at whoever leads, and lets it go
//! one day.
//!
//! What is checked: a lease is not revoked before its time to live has passed since the last renewal that was answered,
//! or since its grant was asked for. A lease that a client was told is gone is gone. A lease that nobody renews is
//! revoked.

use std::{collections::BTreeMap, time::Duration};

use engine::disk::sim::Random;
use proto::{etcdserverpb as pb, internal::Request};
use server::apply::{outcome::Outcome, proposal::Proposal};

use super::{member::Member, plan::sequence, story::Story};

/// After this time a lease that nobody renews is revoked, once the cluster is whole.
pub(crate) const EXPIRY_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: i64,
    ttl: Duration,
    /// When its grant was asked for. A member whose disk hangs may answer when the others have long granted it.
    asked_at: Duration,
    /// It lives at least until then; `None` while its grant is not answered.
    lives_until: Option<Duration>,
    /// When its client gives it up.
    let_go_at: Duration,
}

#[derive(Default)]
pub(crate) struct Leases {
    held: Vec<Option<Lease>>,
    randoms: Vec<Random>,
    grants: BTreeMap<u64, usize>,
    last_id: i64,
    /// Every lease that was granted and not revoked, as the log has it.
    live: BTreeMap<i64, ()>,
    pub(crate) renewed: u64,
    pub(crate) revoked: u64,
}

impl Leases {
    pub(crate) fn new(seed: u64, clients: usize) -> Self {
        let randoms = (0..clients).map(|client| sequence(seed, "lease client", client)).collect();
        Self { held: vec![None; clients], randoms, ..Self::default() }
    }

    /// How long a client waits until it does what is next.
    pub(crate) fn pause(&mut self, client: usize) -> Duration {
        // At times it nearly comes too late, or does.
        let longest_ms = if self.randoms[client].chance(1, 5) { 8000 } else { 1400 };
        Duration::from_millis(100 + self.randoms[client].below(longest_ms))
    }

    pub(crate) fn below(&mut self, client: usize, bound: usize) -> usize {
        usize::try_from(self.randoms[client].below(bound as u64)).expect("below `bound`")
    }

    /// A lease that may be alive, for the client of another kind with this number; 0 for none.
    pub(crate) fn some(&self, client: usize) -> i64 {
        let held = self.held.get(client % self.held.len().max(1));
        held.and_then(|held| held.as_ref()).map_or(0, |lease| lease.id)
    }

    /// Client `client` does what is next, at `member`.
    pub(crate) fn ask(&mut self, client: usize, member: &mut Member, story: &mut Story) {
        let now = story.now;
        let random = &mut self.randoms[client];
        match self.held[client] {
            Some(lease) if now > lease.let_go_at => self.held[client] = None,
            Some(Lease { id, lives_until: Some(_), .. }) if member.is_leader() => {
                story.tell(now, || format!("lease {id} is to be renewed by m{}", member.id));
                member.renew(id);
            }
            Some(_) => {}
            None => {
                self.last_id += 1;
                let (id, ttl) = (self.last_id, 3 + random.below(6));
                let let_go_at = now + Duration::from_secs(5 + random.below(40));
                let request = pb::LeaseGrantRequest { id, ttl: ttl.cast_signed() };
                // A leader's clock may be fast.
                let ttl = Duration::from_secs(ttl) * 97 / 100;
                story.tell(now, || format!("lease {id} for {ttl:?} is asked of m{}", member.id));
                self.held[client] = Some(Lease { id, ttl, asked_at: now, lives_until: None, let_go_at });
                self.grants.insert(member.propose(Request::LeaseGrant(request)), client);
            }
        }
    }

    fn held_mut(&mut self, id: i64) -> Option<&mut Option<Lease>> {
        self.held.iter_mut().find(|held| held.is_some_and(|lease| lease.id == id))
    }

    /// A member answers a proposal, perhaps that of a grant.
    pub(crate) fn answered(&mut self, proposal: &Proposal) {
        let Some(client) = self.grants.remove(&proposal.id) else { return };
        let Ok(Outcome::LeaseGrant { id, .. }) = &proposal.result else { return };
        if let Some(lease) = self.held[client].as_mut().filter(|lease| lease.id == *id) {
            lease.lives_until = Some(lease.asked_at + lease.ttl);
        }
    }

    /// A member answers a renewal of lease `id`; 0 says that it is gone.
    pub(crate) fn renewed(&mut self, (id, ttl): (i64, i64), now: Duration, story: &mut Story) {
        story.tell(now, || format!("lease {id} is said to have {ttl} s"));
        if ttl == 0 {
            assert!(!self.live.contains_key(&id), "lease {id} is said to be gone, and lives");
            if let Some(held) = self.held_mut(id) {
                *held = None;
            }
            return;
        }
        self.renewed += 1;
        if let Some(Some(lease)) = self.held_mut(id) {
            lease.lives_until = Some(now + lease.ttl);
        }
    }

    /// The log grants or revokes a lease.
    pub(crate) fn committed(&mut self, request: &Request, now: Duration, story: &mut Story) {
        match request {
            Request::LeaseGrant(grant) => drop(self.live.insert(grant.id, ())),
            Request::LeaseRevoke(revoke) => {
                story.tell(now, || format!("lease {} is revoked", revoke.id));
                self.live.remove(&revoke.id);
                self.revoked += 1;
                if let Some(held) = self.held_mut(revoke.id) {
                    let until = held.and_then(|lease| lease.lives_until).unwrap_or_default();
                    assert!(now >= until, "lease {} is revoked at {now:?}, and lives until {until:?}", revoke.id);
                    *held = None;
                }
            }
            _ => {}
        }
    }

    /// All clients have let go; how many leases still live.
    pub(crate) fn let_go(&mut self) {
        self.held.iter_mut().for_each(|held| *held = None);
    }

    pub(crate) fn live(&self) -> usize {
        self.live.len()
    }
}
