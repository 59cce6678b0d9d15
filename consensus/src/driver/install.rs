//! A state instead of entries: for a follower whose next entries are gone, and for this member when it is one.
//!
//! Sending: raft-rs asks for a state of each follower that needs one (`take_wanted_states`); the owner of the state
//! machine offers one (`offer_state`), which leaves as a `Snapshot` message, and reports the end of its transfer.
//!
//! Receiving: the caller has the whole state before it hands in the message. Then, in this order: the hard state with
//! the message's term is durable; the caller installs the state (`take_install`, `installed`); the log restarts behind
//! it, durably; the leader is told.
//!
//! Invariants:
//! - From the ready that brings a state until the log has restarted, `installing` is set. Meanwhile no other ready is
//!   taken and no append or state is received: there is no log to which they could be written.
//! - What was committed before and not applied is in the state, and is not handed out any more.
//! - While a state is on its way to a follower, and for a while after, the log is not trimmed: what the follower needs
//!   next must be there. A full disk overrides this.

use std::collections::BTreeSet;

use engine::wal;
use raft::{Ready, SnapshotStatus};

use super::{
    Driver, Unpersisted,
    installing::{Installing, NEVER},
};
use crate::{
    entry::EntryId,
    error::Error,
    message::{Message, Snapshot},
};

impl Driver {
    /// The followers that need a state because the log before them is gone, each once.
    pub fn take_wanted_states(&mut self) -> BTreeSet<u64> {
        let wanted = self.raw.mut_store().states().take_wanted();
        if self.is_leader() { wanted } else { BTreeSet::new() }
    }

    /// `state` can be sent to the follower `to`. It leaves as a message when raft next sends to it.
    pub fn offer_state(&mut self, to: u64, state: Snapshot) {
        if self.stopped.is_none() && self.is_leader() {
            // Its owner may have applied more than this side has heard of.
            assert!(state.at.index <= self.commit(), "only what was committed can be applied and sent");
            self.raw.mut_store().states().offer(to, state);
            self.raw.raft.send_append(to);
        }
    }

    /// The transfer of a state to `member_id` has ended: whether all of it arrived.
    pub fn report_state(&mut self, member_id: u64, is_whole: bool) {
        if self.stopped.is_none() {
            let status = if is_whole { SnapshotStatus::Finish } else { SnapshotStatus::Failure };
            self.raw.report_snapshot(member_id, status);
        }
    }

    /// The state that must be installed now, once: the caller has it, installs it durably, and then calls
    /// [`Driver::installed`].
    pub fn take_install(&mut self) -> Option<Snapshot> {
        let durable = self.wal.durable();
        let installing = self.installing.as_mut()?;
        if installing.is_handed || durable < installing.hard_state_ticket {
            return None;
        }
        installing.is_handed = true;
        Some(installing.state.clone())
    }

    /// Whether a state that was received is to take the place of this member's, or is just doing that. No other one is
    /// taken meanwhile.
    pub fn takes_state(&self) -> bool {
        self.installing.is_some() || self.raw.raft.snap().is_some()
    }

    /// Whether a state is being installed: what was handed out before and is not applied will not be.
    pub fn is_installing(&self) -> bool {
        self.installing.is_some()
    }

    /// The state that [`Driver::take_install`] gave is installed, durably. The caller then calls `step`.
    ///
    /// **Errors**: `Engine`, then `Stopped`.
    pub fn installed(&mut self) -> Result<(), Error> {
        self.check_running()?;
        let installing = self.installing.as_ref().expect("a state is being installed");
        assert!(installing.is_handed, "it was asked for");
        let (EntryId { index, term }, number) = (installing.state.at, installing.number);
        self.committed.clear();
        self.committed_bytes = 0;
        self.ticket += 1;
        self.concerned.handed(self.ticket, self.wal.durable());
        let restarted = self.wal.restart_after(index, term);
        let hard_state = self.hard_state_due.take();
        let appended = restarted.and_then(|()| self.wal.append(&[], hard_state, self.ticket));
        appended.map_err(|error| self.stop_with(error))?;
        let waits = self.unpersisted.iter_mut().find(|ready| ready.number == number);
        waits.expect("it waits for this").ticket = self.ticket;
        Ok(())
    }

    /// Takes the ready that brings a state.
    ///
    /// **Errors**: `Engine`, then `Stopped`.
    pub(super) fn take_state(&mut self, mut ready: Ready, commit_before: u64) -> Result<(), Error> {
        let state = Snapshot::from_raft(ready.snapshot());
        let EntryId { index, term } = state.at;
        assert!(ready.entries().is_empty() && ready.committed_entries().is_empty(), "a state comes alone");
        assert!(index > self.delivered && !self.is_leader(), "a state is ahead of what was committed");
        self.ticket += 1;
        self.unhanded_bytes = 0;
        self.concerned.handed(self.ticket, self.wal.durable());
        // The commit that comes with the state names an entry that the log has only when it has restarted.
        let early = wal::HardState { commit: commit_before, ..self.hard_state };
        self.wal.append(&[], Some(early), self.ticket).map_err(|error| self.stop_with(error))?;
        self.vote_ticket = self.ticket;
        self.hard_state_due = Some(self.hard_state);
        self.raw.mut_store().restart_after(index, term);
        let mut messages: Vec<Message> = ready.take_messages().into_iter().filter_map(Message::from_raft).collect();
        messages.extend(ready.take_persisted_messages().into_iter().filter_map(Message::from_raft));
        let number = ready.number();
        self.unpersisted.push_back(Unpersisted { number, ticket: NEVER, messages });
        let hard_state_ticket = self.ticket;
        self.installing = Some(Installing { state, hard_state_ticket, is_handed: false, number });
        self.raw.advance_append_async(ready);
        Ok(())
    }

    /// The ready `number` is durable. If it brought a state, the log has restarted behind it.
    pub(super) fn end_install(&mut self, number: u64) {
        let Some(Installing { state, .. }) = self.installing.take_if(|installing| installing.number <= number) else {
            return;
        };
        let index = state.at.index;
        assert_eq!(self.raw.raft.raft_log.persisted, index, "nothing is behind it yet");
        (self.applied, self.taken, self.delivered) = (index, index, index);
        self.conf_state = state.conf_state;
        self.stand_apart();
        self.raw.advance_apply_to(index);
    }

    /// Whether the log is kept for a follower that takes a state, or has just taken one.
    pub(super) fn is_kept_for_states(&self) -> bool {
        self.kept_ticks > 0
    }

    /// Counts how long the log is kept after a state was sent.
    pub(super) fn tick_states(&mut self) {
        let is_on_its_way = |progress: &raft::Progress| progress.state == raft::ProgressState::Snapshot;
        let is_sending = self.is_leader() && self.raw.raft.prs().iter().any(|(_, progress)| is_on_its_way(progress));
        self.kept_ticks = if is_sending { self.options.state_kept_ticks } else { self.kept_ticks.saturating_sub(1) };
    }

    /// Trims what was kept for a follower, once nothing is kept any more.
    pub(super) fn trim_late(&mut self) -> Result<(), Error> {
        match self.trim_due.take_if(|_| self.kept_ticks == 0) {
            Some(applied) => self.trim(applied),
            None => Ok(()),
        }
    }
}
