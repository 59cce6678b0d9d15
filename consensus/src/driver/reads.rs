//! A driver's linearizable reads: asked for, begun in rounds, confirmed, and answered to peers.
//!
//! Invariants: a round begins where raft-rs can confirm it alone (see `read_index`). Without other voters there are no
//! rounds: what is committed is all there is.

use engine::planted::is_planted;

use super::Driver;
use crate::{
    entry::{Entry, EntryKind},
    error::Error,
    message::{Message, MessageKind},
    read_index::{ConfirmedRead, PeerRead},
};

impl Driver {
    /// A leader is asked for a read by a peer: it answers with the next round that it begins.
    pub(super) fn read_for_peer(&mut self, mut message: Message) {
        let is_member = |id: u64| self.conf_state.voters.contains(&id) || self.conf_state.learners.contains(&id);
        // What this member has asked another leader for comes back to it, or a member that was removed asks.
        if message.from == self.identity.member_id || !is_member(message.from) {
            return;
        }
        self.believe_less(&message);
        if let Some(Entry { data: context, .. }) = message.entries.pop() {
            self.reads.ask_for(PeerRead { from: message.from, context });
        }
    }

    /// Asks from which index on a linearizable read may be answered; `take_reads` gives the answer, after `step`.
    /// `context` is the caller's number for the read, or for all reads that wait: it ascends from 1. On a single voter
    /// the answer is there at once. A read is asked for again and again until it is confirmed, and waits
    /// while there is no leader: giving up is the caller's.
    ///
    /// **Errors**: `Stopped`.
    pub fn read_index(&mut self, context: u64) -> Result<(), Error> {
        self.check_running()?;
        self.reads.ask(context);
        if self.read_floor().is_some() {
            self.reads.confirm_all(self.commit());
        }
        Ok(())
    }

    /// Reads confirmed since the last call, each with all that were asked for before it.
    pub fn take_reads(&mut self) -> Vec<ConfirmedRead> {
        self.reads.take_confirmed()
    }

    /// Begins a round for the reads that wait, where one can be confirmed, and answers peers. Returns whether a round
    /// has begun.
    pub(super) fn ask_for_reads(&mut self) -> bool {
        let mut has_begun = false;
        if self.read_floor().is_some() || (is_planted("a read without a round") && self.is_leader()) {
            self.reads.confirm_all(self.commit());
        } else if self.raw.raft.leader_id != raft::INVALID_ID && self.reads.wants_round(self.options.read_retry_ticks) {
            let term = self.is_leader().then_some(self.raw.raft.term);
            // raft-rs drops a read that comes before the leader's first commit: it waits here instead.
            if term.is_none() || self.raw.raft.commit_to_current_term() {
                let token = self.reads.start_round(term);
                self.raw.read_index(token.to_vec());
                has_begun = true;
            }
        }
        self.answer_peers();
        has_begun
    }

    /// Answers the peers' reads that are confirmed.
    pub(super) fn answer_peers(&mut self) {
        for (PeerRead { from, context }, index) in self.reads.take_answers() {
            let token = Entry { index: 0, term: 0, kind: EntryKind::Normal, data: context };
            self.messages.push(Message {
                kind: MessageKind::ReadIndexResponse,
                to: from,
                from: self.identity.member_id,
                term: self.raw.raft.term,
                index,
                entries: vec![token],
                ..Message::default()
            });
        }
    }
}
