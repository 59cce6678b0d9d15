//! Runs on: apply core.
//!
//! Renewals of leases, and other questions to the lessor.
//!
//! Invariants:
//! - No question about a lease is answered before everything is applied that was committed and durable here when it was
//!   asked. A leader's commit goes before everybody's: of a lease that another member has said to be granted or gone,
//!   it says the same.
//! - A renewal is answered by a leader alone that is sure to lead, for no longer than `sure_until`: no other leader has
//!   let the lease end. Who asks a member that does not lead, or waits when it stops leading, is told so at once: it
//!   asks the leader.
//! - What waits is bounded by the reply slots of all cores: their timeout is half of the lifetime of a question here.

use std::{sync::atomic::Ordering, time::Duration};

use engine::planted::is_planted;

use super::{
    machine::Apply,
    message::{Answer, ToApply},
};
use crate::{lease::Renewal, slots::ReplyTo};

/// The part of an election timeout for which a leader is sure that it leads, from the moment on at which it began to
/// ask a majority that then said so. Who has answered elects nobody else for the whole of it, by its own clock.
const SURE_PART: u32 = 2;

impl Apply {
    /// Takes a question to the lessor.
    pub(super) fn ask_lessor(&mut self, question: ToApply, now: Duration) {
        let committed = self.shared.raft.commit.load(Ordering::Acquire);
        // What a sole voter has acknowledged it has applied itself. A list of leases is that of this member, as etcd's.
        let is_own = matches!(question, ToApply::Leases { .. });
        if is_own || self.is_alone() || committed <= self.applied.index {
            return self.answer_of_lessor(question, now);
        }
        let (lifetime, behind) = (self.lifetime(), &mut self.unanswered.behind);
        assert!(behind.back().is_none_or(|(last, ..)| *last <= committed), "the commit index never decreases");
        // Who asked that long ago has asked again, or is gone.
        while behind.pop_front_if(|(_, at, _)| now.saturating_sub(*at) > lifetime).is_some() {}
        behind.push_back((committed, now, question));
    }

    /// Answers the questions that waited for what is applied now.
    pub(super) fn settle_behind(&mut self, now: Duration) {
        let applied = self.applied.index;
        while let Some((_, _, question)) = self.unanswered.behind.pop_front_if(|(index, ..)| *index <= applied) {
            self.answer_of_lessor(question, now);
        }
    }

    fn answer_of_lessor(&mut self, question: ToApply, now: Duration) {
        match question {
            ToApply::Renew { reply, lease } => self.renew_for(reply, lease, now),
            ToApply::RenewAll { reply, leases } => {
                let renewals = leases.into_iter().map(|lease| self.renew(lease, now)).collect();
                self.answer(reply, Answer::RenewedAll(renewals));
            }
            ToApply::TimeToLive { reply, .. } if !self.applier.lessor.leads() => {
                self.answer(reply, Answer::NotPrimary);
            }
            ToApply::TimeToLive { reply, lease } => {
                let answer = Answer::TimeToLive(self.applier.lessor.time_to_live(lease, now));
                self.answer(reply, answer);
            }
            ToApply::Leases { reply } => {
                let leases = self.applier.lessor.list();
                self.answer(reply, Answer::Leases(leases));
            }
            _ => unreachable!("this asks nothing of the lessor"),
        }
    }

    fn renew_for(&mut self, reply: ReplyTo, lease: i64, now: Duration) {
        let lifetime = self.lifetime();
        if !self.standing.leads && !self.applier.lessor.leads() {
            return self.answer(reply, Answer::NotPrimary);
        }
        if !self.is_sure_to_lead(now) {
            self.report.asks_lead = true;
            return self.unanswered.unsure.push(reply, lease, now, lifetime);
        }
        match self.renew(lease, now) {
            Renewal::Renewed(ttl) => self.answer(reply, Answer::Renewed(ttl)),
            Renewal::Unknown => self.answer(reply, Answer::Renewed(0)),
            Renewal::Waits => self.unanswered.expired.push(reply, lease, now, lifetime),
            Renewal::IsRecorded => {
                self.take_back(lease, now);
                self.unanswered.taken_back.push(reply, lease, now, lifetime);
            }
        }
    }

    fn renew(&mut self, lease: i64, now: Duration) -> Renewal {
        if !self.is_sure_to_lead(now) {
            self.report.asks_lead = true;
            return Renewal::Waits;
        }
        let renewal = self.applier.lessor.renew(lease, now);
        self.counters.leases_renewed.add(u64::from(matches!(renewal, Renewal::Renewed(_))));
        renewal
    }

    /// How long a question may wait.
    fn lifetime(&self) -> Duration {
        2 * self.shared.limits.request_timeout
    }

    fn is_alone(&self) -> bool {
        self.standing.read_floor.is_some()
    }

    /// Whether what this member says of leases holds: its lessor runs, and no other member can have become the leader
    /// without its knowledge.
    fn is_sure_to_lead(&self, now: Duration) -> bool {
        let is_sure = now < self.unanswered.sure_until || is_planted("a renewal by a leader that is not sure");
        self.applier.lessor.leads() && (self.is_alone() || is_sure)
    }

    /// A majority has confirmed that this member leads, in a round that was begun at `at`.
    pub(super) fn lead_confirmed(&mut self, at: Duration, now: Duration) {
        self.unanswered.sure_until = at + self.options.election_timeout / SURE_PART;
        self.settle_unsure(now);
    }

    /// This member leads no more, or in another term. Who waits asks again.
    pub(super) fn demote(&mut self) {
        self.applier.lessor.demote();
        for reply in self.unanswered.demote() {
            self.answer(reply, Answer::NotPrimary);
        }
    }

    /// Renews what waited until it is sure who leads.
    pub(super) fn settle_unsure(&mut self, now: Duration) {
        for (lease, reply) in self.unanswered.unsure.drain() {
            self.renew_for(reply, lease, now);
        }
    }

    /// Renews what waited until no less time was recorded.
    pub(super) fn settle_taken_back(&mut self, now: Duration) {
        for (lease, reply) in self.unanswered.taken_back.drain() {
            self.renew_for(reply, lease, now);
        }
    }

    /// Tells those who waited to renew a lease that it is gone.
    pub(super) fn end_renewals(&mut self) {
        let lessor = &self.applier.lessor;
        for reply in self.unanswered.expired.take(|lease| !lessor.contains(*lease)) {
            self.answer(reply, Answer::Renewed(0));
        }
    }
}
