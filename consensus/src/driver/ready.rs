//! What raft-rs has ready: to the log, to the caller, to the peers.
//!
//! Invariants: messages that promise something leave when what they promise is durable (see the head of `driver`).

use engine::{planted::is_planted, wal};
use raft::{ProgressState, SoftState, eraftpb};

use super::{Driver, Unpersisted, installing::NEVER};
use crate::{
    concerned::Noted,
    entry::{Committed, Entry, entry_cost_bytes},
    error::Error,
    message::Message,
};

impl Driver {
    /// Until nothing moves: raft-rs's readies go to the WAL and the queues, and what is durable is reported back.
    pub(super) fn pump(&mut self) -> Result<(), Error> {
        loop {
            self.note_concerned()?;
            while self.wants_ready() {
                self.take_ready()?;
            }
            // Who leads is known now: a change would have the same reads asked for again.
            let has_begun = self.ask_for_reads();
            let has_moved = self.report_durable() || has_begun;
            if !self.take_held()? && !has_moved {
                break;
            }
        }
        self.mend();
        Ok(())
    }

    /// Takes what has waited until its member is noted (`concerned`). Returns whether there was anything.
    fn take_held(&mut self) -> Result<bool, Error> {
        let Noted { held, unheard } = self.concerned.durable(self.wal.durable());
        let has_any = !held.is_empty() || !unheard.is_empty();
        for message in held {
            match self.receive(message) {
                // It came in another situation. In this one no honest member sends it.
                Ok(()) | Err(Error::Malformed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let is_leader = self.is_leader();
        for member_id in unheard.into_iter().filter(|_| is_leader) {
            // A leader that does not know how far a follower is sends nothing more until that answers.
            let Some(progress) = self.raw.raft.mut_prs().get_mut(member_id) else { continue };
            if progress.state == ProgressState::Probe {
                progress.resume();
                self.raw.raft.send_append(member_id);
            }
        }
        Ok(has_any)
    }

    /// Whether raft-rs has something for us. Committed entries alone do not count while the caller has enough of them.
    fn wants_ready(&self) -> bool {
        if self.installing.is_some() {
            return false;
        }
        let raft = &self.raw.raft;
        !raft.raft_log.unstable_entries().is_empty()
            || !raft.msgs.is_empty()
            || !raft.read_states.is_empty()
            || (raft.term, raft.vote) != (self.hard_state.term, self.hard_state.vote)
            || raft.soft_state() != self.soft_state
            || (self.committed_bytes < self.options.committed_bytes_max
                && raft.raft_log.has_next_entries_since(self.delivered))
    }

    fn take_ready(&mut self) -> Result<(), Error> {
        let mut ready = self.raw.ready();
        if let Some(soft_state) = ready.ss() {
            self.soft_state = SoftState { leader_id: soft_state.leader_id, raft_state: soft_state.raft_state };
            self.reads.restart();
            self.raw.mut_store().fetching().forget();
            self.raw.mut_store().states().forget();
            // A leader's log is durable when it is elected, and its first entry is in this ready at the earliest.
            self.term_start = self.is_leader().then(|| self.raw.raft.raft_log.persisted + 1);
        }
        let before = self.hard_state;
        if let Some(hard_state) = ready.hs() {
            self.note_hard_state(wal::HardState {
                term: hard_state.term,
                vote: hard_state.vote,
                commit: hard_state.commit,
                is_cut: self.cut.is_some(),
                concerned: self.hard_state.concerned,
            });
        }
        if !ready.snapshot().is_empty() {
            return self.take_state(ready, before.commit);
        }
        let must_sync = ready.must_sync();
        for entry in ready.take_entries() {
            let Entry { index, term, kind, data } = Entry::from_raft(entry);
            self.raw.mut_store().append(index, term, kind, data.clone());
            self.entries.push(wal::Entry { index, term, kind: kind as u8, data });
        }
        if must_sync {
            self.ticket += 1;
            self.unhanded_bytes = 0;
            self.concerned.handed(self.ticket, self.wal.durable());
            let appended = self.wal.append(&self.entries, self.hard_state_due.take(), self.ticket);
            self.entries.clear();
            appended.map_err(|error| self.stop_with(error))?;
        }
        assert!(self.entries.is_empty(), "entries always want a sync");
        if (self.hard_state.term, self.hard_state.vote) != (before.term, before.vote) {
            assert!(must_sync, "a vote is written at once");
            self.vote_ticket = self.ticket;
        }
        let mut messages = Vec::new();
        let free = if self.wal.durable() >= self.vote_ticket { &mut self.messages } else { &mut messages };
        free.extend(ready.take_messages().into_iter().filter_map(Message::from_raft));
        let promises = ready.take_persisted_messages().into_iter().filter_map(Message::from_raft);
        if is_planted("a promise before it is durable") {
            self.messages.extend(promises);
        } else {
            messages.extend(promises);
        }
        self.unpersisted.push_back(Unpersisted { number: ready.number(), ticket: self.ticket, messages });
        for read in ready.take_read_states() {
            self.reads.confirm_round(&read.request_ctx, read.index);
        }
        self.answer_peers();
        self.queue_committed(ready.take_committed_entries());
        self.raw.advance_append_async(ready);
        Ok(())
    }

    fn note_hard_state(&mut self, new: wal::HardState) {
        let old = self.hard_state;
        assert!(new.term >= old.term, "term {} after {}", new.term, old.term);
        assert!(new.commit >= old.commit, "commit {} after {}", new.commit, old.commit);
        assert!(new.term > old.term || old.vote == 0 || new.vote == old.vote, "a vote is cast once per term");
        self.hard_state = new;
        self.hard_state_due = Some(new);
    }

    /// Has the log write the hard state, though nothing else may be due.
    pub(super) fn write_hard_state(&mut self) -> Result<(), Error> {
        self.ticket += 1;
        self.hard_state_due = None;
        self.concerned.handed(self.ticket, self.wal.durable());
        self.wal.append_hard_state(self.hard_state, self.ticket).map_err(|error| self.stop_with(error))
    }

    fn queue_committed(&mut self, entries: Vec<eraftpb::Entry>) {
        for entry in entries {
            let Entry { index, term, kind, data } = Entry::from_raft(entry);
            assert_eq!(index, self.delivered + 1, "committed entries are contiguous");
            self.delivered = index;
            self.committed_bytes += entry_cost_bytes(&data);
            self.committed.push_back(Committed { index, term, kind, data });
        }
    }

    /// Tells raft-rs which readies are durable; true if there were any.
    fn report_durable(&mut self) -> bool {
        let durable = self.wal.durable();
        assert!(durable <= self.ticket, "the log reports ticket {durable}, only {} were given", self.ticket);
        let mut number = None;
        let is_early = is_planted("a commit before it is durable");
        while self
            .unpersisted
            .front()
            .is_some_and(|ready| ready.ticket <= durable || (is_early && ready.ticket != NEVER))
        {
            let Some(ready) = self.unpersisted.pop_front() else { break };
            self.messages.extend(ready.messages);
            number = Some(ready.number);
        }
        if let Some(number) = number {
            self.raw.on_persist_ready(number);
            self.end_install(number);
        }
        number.is_some()
    }
}
