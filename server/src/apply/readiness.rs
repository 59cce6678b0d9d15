//! Runs on: apply core.
//!
//! What this member may answer: which reads see enough, whether it may serve at all, and whether it has fallen behind
//! for good.
//!
//! Invariant: no read is answered before its index is published. While nothing is applied, it is refused instead.

use std::{sync::atomic::Ordering, time::Duration};

use engine::planted::is_planted;

use super::{
    machine::Apply,
    message::{Answer, ReadsAt},
};
use crate::error::Error;

impl Apply {
    /// Takes the reads that raft has confirmed, and what it has learned of the time before the start.
    pub(super) fn take_reads(&mut self, reads: Vec<ReadsAt>, caught_up_at: Option<u64>, now: Duration) {
        // Slots of reads that have waited for so long timed out long ago.
        let lifetime = 2 * self.shared.limits.request_timeout;
        while self.reads.pop_front_if(|(at, _)| now.saturating_sub(*at) >= lifetime).is_some() {}
        self.reads.extend(reads.into_iter().map(|reads| (now, reads)));
        self.caught_up_at = self.caught_up_at.or(caught_up_at);
    }

    /// Answers the reads whose index is published. While nothing is applied, the others cannot be answered.
    pub(super) fn answer_reads(&mut self) {
        let published = self.report.applied.index;
        let stands_still = self.standstill.is_on();
        let is_early = is_planted("a read before its index is applied");
        let error = Error::of_standstill(self.has_other_voters());
        let is_over = |(_, reads): &mut (Duration, ReadsAt)| reads.index <= published || stands_still || is_early;
        while let Some((_, ReadsAt { index, replies })) = self.reads.pop_front_if(is_over) {
            for reply in replies {
                let is_readable = index <= published || is_early;
                self.answer(reply, if is_readable { Answer::Readable } else { Answer::Unreadable(error.clone()) });
            }
        }
    }

    /// Whether clients may be served. The member must have applied everything that was acknowledged before it started,
    /// and must have published itself. If it stands still, it serves what it has.
    pub fn is_ready(&self) -> bool {
        if self.standstill.is_on() {
            return true;
        }
        let member_id = self.shared.identity.member_id;
        let own = self.applier.cluster.members.iter().find(|member| member.id == member_id);
        self.is_caught_up()
            && self.applier.cluster.version.is_some()
            && own.is_some_and(|own| own.name == self.options.name && own.client_urls == self.options.client_urls)
    }

    /// Whether the member has applied everything that was acknowledged before it started: a round has told it since, or
    /// its own commit if it is the only voter.
    pub(super) fn is_caught_up(&self) -> bool {
        let is_planted = is_planted("ready before it has caught up");
        self.caught_up_at.is_some_and(|index| self.applied.index >= index) || is_planted
    }

    /// Publishes whether the state lacks something that was acknowledged, and will lack it: while apply stands still. A
    /// single voter acknowledges nothing meanwhile; other voters do.
    pub(super) fn publish_behind(&self) {
        let has_all = self.standing.read_floor.is_some() && self.is_caught_up();
        let is_behind = self.standstill.is_on() && (self.standstill.is_for_good() || !has_all);
        self.shared.is_behind.store(is_behind, Ordering::Release);
    }
}
