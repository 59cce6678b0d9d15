//! What a driver does by itself as time passes: heartbeats and campaigns, and what it looks after once in a tick.
//!
//! Invariants: time is what `pass` is told, in parts of a tick. A member campaigns when the timeout of `elections` is
//! over, never while its disk owes something, and never by raft-rs's own chance.

use raft::StateRole;

use super::Driver;
use crate::{elections::Hung, start::PARTS_PER_TICK};

impl Driver {
    /// A whole tick has passed: a heartbeat interval.
    pub fn tick(&mut self) {
        self.pass(PARTS_PER_TICK);
    }

    /// Some parts of a tick have passed, of which it has [`PARTS_PER_TICK`].
    pub fn pass(&mut self, parts: u32) {
        for _ in 0..parts {
            if self.stopped.is_some() {
                return;
            }
            self.parts += 1;
            if self.parts == PARTS_PER_TICK {
                self.parts = 0;
                self.pass_tick();
            }
            self.pass_part();
        }
    }

    /// This member stood still for some ticks. If it was a candidate then, it gives up: who has voted for it may have
    /// lost that since (`crate::cut`).
    pub fn stood_still(&mut self) {
        let raft = &mut self.raw.raft;
        if self.stopped.is_none() && raft.state == StateRole::Candidate {
            let term = raft.term;
            raft.become_follower(term, raft::INVALID_ID);
        }
    }

    /// Parts of a tick after which the driver would do something by itself: send heartbeats, or campaign. At least 1;
    /// `u32::MAX` if it would not.
    pub fn due_parts(&self) -> u32 {
        let raft = &self.raw.raft;
        let left = if raft.state == StateRole::Leader {
            let has_others = self.conf_state.voters.len() + self.conf_state.learners.len() > 1;
            has_others.then(|| raft.heartbeat_timeout().saturating_sub(raft.heartbeat_elapsed()))
        } else {
            let timeout = self.elections.timeout_parts(&self.options, self.identity.member_id, raft.term);
            let may_campaign = raft.promotable() && !self.is_sole_voter() && self.owes_nothing();
            may_campaign.then(|| timeout.saturating_sub(raft.election_elapsed))
        };
        let left = left.and_then(|left| u32::try_from(left).ok()).unwrap_or(u32::MAX);
        let again = match raft.state {
            StateRole::PreCandidate => self.elections.due_again_parts(),
            StateRole::Candidate => self.elections.split_parts(self.haste_parts()),
            _ => u32::MAX,
        };
        left.min(again).max(1)
    }

    /// Others are connected, soon after the start: a leader would have been heard of within two ticks. If there is
    /// none, this member need not wait for a whole election timeout.
    ///
    /// **Source** etcd v3.7.1 `server/etcdserver/server.go adjustTicks`.
    pub fn hasten_first_election(&mut self) {
        let raft = &mut self.raw.raft;
        let is_led = raft.leader_id != raft::INVALID_ID;
        if self.stopped.is_none() && raft.state == StateRole::Follower && !is_led {
            let ticks = self.options.election_ticks.saturating_sub(2);
            raft.election_elapsed += ticks * PARTS_PER_TICK as usize;
        }
    }

    /// The process of the member `member_id` is gone: its connections have closed, and its port refuses new ones. If
    /// this member follows it, it forgets it, and campaigns soon.
    pub fn gone(&mut self, member_id: u64) {
        let raft = &mut self.raw.raft;
        let follows = raft.state == StateRole::Follower && raft.leader_id == member_id;
        if self.stopped.is_some() || !follows {
            return;
        }
        raft.leader_id = raft::INVALID_ID;
        self.elections.hurry();
        let timeout = self.elections.timeout_parts(&self.options, self.identity.member_id, raft.term);
        let haste = self.haste_parts();
        let raft = &mut self.raw.raft;
        raft.election_elapsed = raft.election_elapsed.max(timeout.saturating_sub(haste));
    }

    fn haste_parts(&self) -> usize {
        self.elections.haste_parts(&self.options, self.identity.member_id, self.raw.raft.term)
    }

    /// Whether the disk has done all that it was asked to do.
    fn owes_nothing(&self) -> bool {
        self.wal.durable() == self.ticket && self.is_log_durable()
    }

    fn pass_tick(&mut self) {
        self.space_ticks += 1;
        if self.space_ticks >= self.options.space_retry_ticks {
            self.space_ticks = 0;
            self.wal.retry_space();
        }
        self.tick_quiet();
        self.tick_states();
        self.tick_concerned();
        self.reads.tick();
        self.settled.pass_tick(&self.raw.raft);
        self.look_at_disk();
        if self.raw.raft.state == StateRole::Follower && self.is_sole_voter() {
            self.campaign_alone();
        }
    }

    fn pass_part(&mut self) {
        let is_led = self.raw.raft.leader_id != raft::INVALID_ID;
        if let Some(cut) = &mut self.cut {
            cut.pass_part(is_led);
        }
        if is_led {
            self.elections.settle();
        }
        let is_follower = self.raw.raft.state == StateRole::Follower;
        if is_follower && self.is_sole_voter() {
            // The only voter does not wait for a timeout; and raft-rs would stop the process if it won before its log
            // is durable.
            return;
        }
        // raft-rs draws the timeout from a generator of its own when its term or role changes. Only its tick looks at
        // it.
        let timeout = self.elections.timeout_parts(&self.options, self.identity.member_id, self.raw.raft.term);
        let haste = self.haste_parts();
        let raft = &mut self.raw.raft;
        raft.set_randomized_election_timeout(timeout);
        if raft.state == StateRole::Candidate && self.elections.is_split(haste) {
            raft.election_elapsed = raft.election_elapsed.max(timeout);
        }
        let campaigns = raft.state != StateRole::Leader && raft.promotable() && raft.election_elapsed + 1 >= timeout;
        if campaigns {
            // While the disk owes something, nothing that this member asks for would leave.
            if !self.owes_nothing() {
                return;
            }
            if !self.may_campaign() {
                // It asks again after a heartbeat interval.
                let raft = &mut self.raw.raft;
                raft.election_elapsed = raft.election_elapsed.saturating_sub(PARTS_PER_TICK as usize);
                raft.leader_id = raft::INVALID_ID;
                return;
            }
            self.elections.begin();
        }
        self.raw.tick();
        if self.raw.raft.state == StateRole::PreCandidate && !campaigns && self.elections.is_due_again() {
            // Refusals are silent in raft-rs. Answers to the earlier question count still.
            if let Err(source) = self.raw.campaign() {
                self.stop(&source.to_string());
            }
        }
    }

    /// A leader whose disk hangs hands leadership to the voter that has most of the log, of those that are there; and
    /// steps down if that does not take it.
    fn look_at_disk(&mut self) {
        if !self.is_leader() || self.conf_state.voters.len() < 2 {
            return self.elections.forget_disk();
        }
        match self.elections.look_at_disk(self.log_waits_at(), self.options.election_ticks) {
            Hung::No => {}
            Hung::HandOver => {
                if let Some(member_id) = self.transferee() {
                    self.raw.transfer_leader(member_id);
                }
            }
            Hung::StepDown => {
                let term = self.raw.raft.term;
                self.raw.raft.become_follower(term, raft::INVALID_ID);
                self.elections.forget_disk();
            }
        }
    }

    /// Has the log state how far it is committed and durable, once nothing was handed to it for an election timeout. If
    /// the other members are lost then, this one knows what was acknowledged with its help (`crate::forced`).
    fn tick_quiet(&mut self) {
        let is_quiet = self.ticket == std::mem::replace(&mut self.quiet_ticket, self.ticket);
        self.quiet_ticks = if is_quiet { self.quiet_ticks.saturating_add(1) } else { 0 };
        if self.quiet_ticks < self.options.election_ticks {
            return;
        }
        let knows_more = self.hard_state_due.is_some();
        if knows_more && self.installing.is_none() && self.conf_state.has_other_voters(self.identity.member_id) {
            // An error stops the driver, which the next call tells.
            drop(self.write_hard_state());
        } else {
            self.wal.state_end();
        }
    }
}
