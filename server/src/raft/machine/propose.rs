//! Runs on: raft core.
//!
//! What is proposed, and what is refused instead: by clients here, by other members that forward, by the server itself.

use std::time::Duration;

use consensus::{ConfState, Entry, EntryKind, Message, Refused};
use engine::planted::is_planted;
use proto::internal;

use super::Raft;
use crate::{
    apply::{message::Answer, own::Own, proposal::Proposal},
    error::Error,
    quota::Purpose,
    raft::proposals::Waiting,
};

impl Raft {
    /// Takes a client's proposal, or refuses it.
    pub(super) fn take_proposal(&mut self, kind: EntryKind, mut proposal: Box<Proposal>, now: Duration) {
        proposal.stamps.proposed = now;
        if self.is_log_stalled() {
            return self.refuse(proposal, Error::Timeout);
        }
        if self.stands_still {
            let own = self.shared.identity.member_id;
            return self.refuse(proposal, Error::of_standstill(self.driver.conf_state().has_other_voters(own)));
        }
        if let Some(error) = self.refusal_for_space(proposal.purpose, now) {
            return self.refuse(proposal, error);
        }
        if !self.has_room() {
            return self.refuse(proposal, Error::TooManyRequests);
        }
        let until = now + self.shared.limits.request_timeout;
        let (entry, proposal) = (proposal.entry.clone(), Some(proposal));
        self.proposals.push(Waiting { kind, entry, proposal, until, of_leader_in: None });
    }

    fn has_room(&self) -> bool {
        let (entries_max, bytes_max) = self.driver.proposals_max();
        (self.proposals.len() as u64) < entries_max && self.proposals.bytes() < bytes_max
    }

    /// Each other member bounds what its clients have under way. All of it has room here: nobody would tell them of a
    /// proposal that found none.
    fn has_room_for_others(&self) -> bool {
        let (entries_max, bytes_max) = self.driver.proposals_max();
        let ConfState { voters, learners } = self.driver.conf_state();
        let members = (voters.len() + learners.len()) as u64;
        (self.proposals.len() as u64) < entries_max.saturating_mul(members)
            && self.proposals.bytes() < bytes_max.saturating_mul(members)
    }

    /// Takes what another member has forwarded. It gathers with what clients propose here. If there is no leader for
    /// it, it waits for one: a proposal that is dropped costs its client the whole timeout.
    ///
    /// **Errors** as [`Raft::receive_peer`].
    pub(super) fn take_forwarded(&mut self, mut message: Message, now: Duration) -> Result<(), consensus::Error> {
        self.driver.check(&mut message)?;
        // What is proposed here enters the log of all members, which could not go on behind what none understands.
        let is_request =
            |entry: &Entry| entry.kind != EntryKind::Normal || internal::decode(entry.data.clone()).is_ok();
        if !message.entries.iter().all(is_request) {
            return Err(consensus::Error::Malformed { what: "proposal: not a request" });
        }
        let until = now + self.shared.limits.request_timeout;
        for Entry { kind, data, .. } in message.entries {
            if !self.has_room_for_others() {
                tracing::debug!("a forwarded proposal finds no room");
                break;
            }
            self.proposals.push(Waiting { kind, entry: data, proposal: None, until, of_leader_in: None });
        }
        Ok(())
    }

    pub(super) fn propose_own(&mut self, own: Own, now: Duration) {
        let Own { entry, purpose, of_leader_in } = own;
        if purpose != Purpose::Alarm || self.asking.ask(now) {
            let kind = EntryKind::Normal;
            self.proposals.push(Waiting { kind, entry, proposal: None, until: now, of_leader_in });
        }
    }

    pub(super) fn refuse(&mut self, mut proposal: Box<Proposal>, error: Error) {
        proposal.result = Err(error);
        self.answers[proposal.reply.core].push((proposal.reply.slot, Answer::Applied(proposal)));
    }

    /// Whether what was proposed before is not committed yet, as far as that is known here.
    fn is_under_way(&self) -> bool {
        let status = self.driver.status();
        if status.is_leader { status.commit < status.last_index } else { self.waiters.is_last_waiting() }
    }

    /// Whether what has gathered can be proposed now.
    pub(super) fn has_gathered(&self) -> bool {
        self.proposals.gather_until().is_some() && !self.is_under_way()
    }

    /// Proposes to raft what waits, unless it is to gather.
    pub(super) fn propose_gathered(&mut self, now: Duration) {
        let ConfState { voters, learners } = self.driver.conf_state();
        let is_alone = voters.len() + learners.len() <= 1;
        if is_alone || !self.proposals.gather(self.is_under_way(), now) {
            self.propose_waiting(now);
        }
    }

    /// Proposes to raft all that waits.
    pub(super) fn propose_waiting(&mut self, now: Duration) {
        if self.proposals.is_empty() {
            return;
        }
        let mut waiting = self.proposals.take(now);
        // What a leader decided is not proposed by who leads no more, nor in another term, nor through another.
        let status = self.driver.status();
        let leads_in = Some(status).filter(|status| status.is_leader).map(|status| status.term);
        if self.forwarding_to != status.leader_id {
            (self.forwarding_to, self.forwarding_bytes) = (status.leader_id, 0);
        }
        let is_anyones = is_planted("expiry without leadership");
        waiting.retain(|waiting| is_anyones || waiting.of_leader_in.is_none() || waiting.of_leader_in == leads_in);
        let behind = self.take_what_has_no_room(&mut waiting);
        let mut kept = Vec::new();
        let entries = waiting.iter().map(|waiting| (waiting.kind, waiting.entry.clone()));
        let refused = self.driver.propose_entries(entries);
        let mut refused = refused.into_iter().peekable();
        for (position, mut next) in waiting.drain(..).enumerate() {
            let refusal_here = refused.next_if(|refused| refused.position == position);
            let waits = match &refusal_here {
                Some(Refused { error: consensus::Error::LogWaits, .. }) => {
                    self.proposals.wait_for_segment();
                    true
                }
                // There will be a leader. What the server asks for itself, it asks for again.
                Some(Refused { error: consensus::Error::NoLeader, .. }) => now < next.until,
                // Nobody would tell its client.
                Some(Refused { error: consensus::Error::TooManyRequests { .. }, .. }) if next.proposal.is_none() => {
                    now < next.until
                }
                _ => false,
            };
            if waits {
                kept.push(next);
                continue;
            }
            if let Some(Refused { error, .. }) = &refusal_here {
                tracing::debug!(%error, "a proposal was refused");
            } else if leads_in.is_none() {
                self.forwarding_bytes += next.entry.len();
                self.forward_room = self.forward_room.saturating_sub(next.entry.len());
            }
            match (refusal_here, next.proposal.take()) {
                (None, Some(proposal)) => self.waiters.insert(proposal, now),
                (Some(Refused { error: consensus::Error::NoLeader, .. }), Some(proposal)) => {
                    // It has waited for one as long as it may.
                    self.refuse(proposal, Error::Timeout);
                }
                (Some(Refused { error, .. }), Some(proposal)) => {
                    self.refuse(proposal, refusal(&error, self.is_disk_full()));
                }
                (_, None) => {}
            }
        }
        self.proposals.give_back(waiting);
        kept.into_iter().for_each(|waiting| self.proposals.push(waiting));
        for mut waiting in behind {
            match waiting.proposal.take_if(|_| now >= waiting.until) {
                Some(proposal) => self.refuse(proposal, Error::Timeout),
                None if now < waiting.until => self.proposals.push(waiting),
                None => {}
            }
        }
    }

    /// Takes out of `waiting` what must wait until there is room for it on the way to the leader; nothing, if this
    /// member leads.
    fn take_what_has_no_room(&self, waiting: &mut Vec<Waiting>) -> Vec<Waiting> {
        if self.driver.status().is_leader {
            return Vec::new();
        }
        let mut room = self.forward_room;
        let fitting = waiting.iter().take_while(|next| {
            // One that is larger goes as well: the queue takes a message as long as it is not full.
            let fits = room > 0;
            room = room.saturating_sub(next.entry.len());
            fits
        });
        let fitting = fitting.count();
        waiting.split_off(fitting)
    }

    /// So many bytes of proposals can be forwarded to the leader now, if this member does not lead.
    pub fn set_forward_room(&mut self, bytes: usize) {
        self.forward_room = bytes.saturating_sub(self.forwarding_bytes);
    }
}

/// The error that a client gets when raft refuses its proposal.
fn refusal(error: &consensus::Error, is_disk_full: bool) -> Error {
    match error {
        // Requests that wait are waiting for space.
        consensus::Error::TooManyRequests { .. } if is_disk_full => Error::NoSpace,
        consensus::Error::NoSpace { .. } => Error::NoSpace,
        consensus::Error::TooManyRequests { .. } => Error::TooManyRequests,
        consensus::Error::TooLarge { .. } => Error::RequestTooLarge,
        _ => Error::Stopped,
    }
}
