//! Runs on: raft core.
//!
//! Leadership that this member hands to another one: to a certain one because a client wants it, or to any that takes
//! it, because this one ends or cannot go on.
//!
//! Invariants, for a leader that ends:
//! - Each voter is tried at most once (`tried`), the best one first, and only while it is connected. It is tried for as
//!   long as raft keeps a transfer: an election timeout. One whose connection is lost is not waited for.
//! - All of it ends within the request timeout (`until`). If nobody is left, it ends at once, and this member leads on:
//!   proposals, which waited meanwhile, are taken again.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/server.go` `MoveLeader`, `TryLeadershipTransferOnShutdown` (of one voter).

use std::time::Duration;

use consensus::{Member, Status};

use super::Raft;
use crate::{apply::message::Answer, error::Error, raft::transfer::Leaving, slots::ReplyTo};

impl Raft {
    /// Begins to hand leadership over to `target`.
    ///
    /// **Errors** this member does not lead; `target` is no voter; too many wait for such a thing.
    pub(super) fn transfer_leader(&mut self, reply: ReplyTo, target: u64, now: Duration) -> Result<(), Error> {
        if !self.driver.status().is_leader {
            return Err(Error::NotLeader);
        }
        let is_voter = |member: &Member| member.id == target && !member.is_learner;
        if !self.shared.cluster.load().members.iter().any(is_voter) {
            return Err(Error::BadLeaderTransferee);
        }
        self.transfers.push(reply, target, now + self.shared.limits.request_timeout)?;
        self.driver.transfer_leader(target);
        Ok(())
    }

    /// Answers those who have waited for another leader.
    pub(super) fn end_transfers(&mut self, now: Duration) {
        let leader = self.driver.status().leader_id;
        for (reply, result) in self.transfers.take_ended(leader, now) {
            self.answers[reply.core].push((reply.slot, Answer::Transferred(result)));
        }
    }

    /// This member cannot read what it needs, or another one needs of it. If it leads, it hands leadership to a voter
    /// that may be able to.
    pub fn hand_over(&mut self) {
        if let Some(member_id) = self.driver.transferee() {
            self.driver.transfer_leader(member_id);
        }
    }

    /// This member ends: another one is to lead.
    pub(super) fn leave_lead(&mut self, reply: ReplyTo, now: Duration) {
        let until = now + self.shared.limits.request_timeout;
        self.leaving = Some(Leaving { reply, tried: Vec::new(), leaderless_since: None, until });
    }

    /// Looks how far the end of this leader has come, and tries the next voter if it is time.
    pub(super) fn go_on_leaving(&mut self, now: Duration) {
        let Some(mut leaving) = self.leaving.take() else { return };
        let reply = leaving.reply;
        match self.left(&mut leaving, now) {
            Some(result) => self.answers[reply.core].push((reply.slot, Answer::Transferred(result))),
            None => self.leaving = Some(leaving),
        }
    }

    /// How the end of this leader has gone; `None` if somebody is still waited for.
    fn left(&mut self, leaving: &mut Leaving, now: Duration) -> Option<Result<(), Error>> {
        let Status { is_leader, leader_id, .. } = self.driver.status();
        if !is_leader && leader_id != 0 {
            return Some(Ok(()));
        }
        if now >= leaving.until {
            self.driver.end_transfer();
            return Some(Err(Error::LeaderTransferTimeout));
        }
        if !is_leader {
            let since = *leaving.leaderless_since.get_or_insert(now);
            let is_over = now >= since + self.shared.limits.election_timeout;
            return is_over.then_some(Err(Error::LeaderTransferTimeout));
        }
        leaving.leaderless_since = None;
        let connected = self.shared.links.load();
        let is_asked = leaving.tried.last().is_some_and(|asked| connected.contains_key(asked));
        if is_asked && self.driver.is_handing_over() {
            return None;
        }
        let is_next = |id: &u64| connected.contains_key(id) && !leaving.tried.contains(id);
        let Some(next) = self.driver.transferees().into_iter().find(is_next) else {
            self.driver.end_transfer();
            return Some(Err(Error::Unhealthy));
        };
        let (from, to) = (format!("{:x}", self.shared.identity.member_id), format!("{next:x}"));
        tracing::info!("local-member-id" = from, "transferee-member-id" = to, "leadership transfer starting");
        leaving.tried.push(next);
        self.driver.transfer_leader(next);
        None
    }
}
