//! What a driver holds back while its log is cut, and when it has made up for that (`crate::cut`).
//!
//! The cut is forgotten on disk with whatever is written next.

use std::collections::BTreeSet;

use bytes::Bytes;
use engine::{planted::is_planted, wal};

use super::Driver;
use crate::{
    check::check_state,
    concerned::slot,
    cut::{ALL, Cut, Place},
    entry::{Entry, EntryKind},
    error::Error,
    members::ConfState,
    message::{Message, MessageKind, Snapshot},
    read_index,
    start::{Identity, Options},
};

impl Driver {
    /// Whether the log was cut at its end, and that is not made up for.
    pub fn is_cut(&self) -> bool {
        self.cut.is_some()
    }

    /// What a member starts with.
    pub(super) fn cut_of(hard_state: wal::HardState, identity: Identity, options: &Options) -> Option<Cut> {
        let is_cut = hard_state.is_cut && hard_state.concerned != 0 && !is_planted("a cut log that votes");
        let token = read_index::first_token(identity.member_id, options.life());
        is_cut.then(|| Cut::new(hard_state.concerned, Bytes::copy_from_slice(&token), options.election_ticks))
    }

    /// A leader counts on entries that this member does not have, though it has acknowledged them: it goes on from an
    /// older copy of its directory, or from an empty one, or its disk has lost what it said to be durable. Nothing
    /// tells whom else it has promised something.
    pub(super) fn doubt(&mut self) -> Result<(), Error> {
        if self.cut.is_some() || self.installing.is_some() {
            return Ok(());
        }
        // Rounds are numbered upwards from the beginning of this life.
        self.doubts += 1;
        let token = read_index::first_token(self.identity.member_id, self.options.life().wrapping_sub(self.doubts));
        self.cut = Some(Cut::new(ALL, Bytes::copy_from_slice(&token), self.options.election_ticks));
        self.concerned.doubt_all();
        self.fed_at = None;
        (self.hard_state.is_cut, self.hard_state.concerned) = (true, ALL);
        self.write_hard_state()
    }

    /// These members were removed from the cluster. A member whose log is cut is told before it has to vote.
    pub fn know_former(&mut self, ids: &BTreeSet<u64>) {
        self.former = ids.iter().fold(self.former, |mask, id| mask | slot(*id));
    }

    /// Writes down whom the next promises concern, if it is not written yet.
    pub(super) fn note_concerned(&mut self) -> Result<(), Error> {
        if self.installing.is_some() {
            return Ok(());
        }
        let Some(mask) = self.concerned.take_due(self.ticket + 1) else { return Ok(()) };
        self.hard_state.concerned = mask;
        self.write_hard_state()
    }

    /// Notes less, once that is possible. What is cut stays noted: it says who is to be asked.
    pub(super) fn tick_concerned(&mut self) {
        if self.cut.is_none()
            && self.installing.is_none()
            && let Some(mask) = self.concerned.tick()
        {
            self.hard_state.concerned = mask;
            self.hard_state_due = Some(self.hard_state);
        }
    }

    fn place(&self) -> Place {
        let log = &self.raw.raft.raft_log;
        (log.last_term(), log.last_index())
    }

    /// The members that must be asked before this one votes. None while it cannot know them.
    fn whom_to_ask(&self) -> Option<Vec<u64>> {
        let mask = self.cut.as_ref().map_or(0, Cut::concerned);
        let ConfState { voters, learners } = &self.conf_state;
        let members = || voters.iter().chain(learners).copied();
        let known = members().fold(self.former | slot(self.identity.member_id), |mask, id| mask | slot(id));
        let is_blind = mask == ALL || mask & !known != 0 || self.applied < self.replayed_to;
        let is_asked = |id: &u64| *id != self.identity.member_id && mask & slot(*id) != 0;
        (!is_blind).then(|| members().filter(is_asked).collect())
    }

    /// Whether a message of another member waits, or is passed over, because the log was cut. If not, it is as it was.
    pub(super) fn holds_back(&mut self, message: &Message) -> bool {
        if self.cut.is_none() {
            return false;
        }
        let members = self.whom_to_ask();
        let Some(cut) = &mut self.cut else { return false };
        let (term, place) = (message.term, (message.log_term, message.index));
        match message.kind {
            MessageKind::Append | MessageKind::Heartbeat | MessageKind::Snapshot => self.is_silent_to(message),
            MessageKind::ReadIndexResponse => {
                message.entries.iter().any(|token| cut.confirm(&token.data, term, message.index))
            }
            // It would vote for itself.
            MessageKind::TimeoutNow => true,
            MessageKind::PreVote => {
                let is_hopeless = cut.is_hopeless(place);
                if self.could_be_led(message) {
                    self.ask_about(term, place, message.from);
                }
                is_hopeless
            }
            MessageKind::Vote if term < self.raw.raft.term || cut.lets_vote(term, place) => false,
            MessageKind::Vote => {
                if cut.has_asked(term) {
                    cut.hold(message.clone());
                } else if self.could_be_led(message) {
                    // Others have voted in its term, and would say no.
                    self.ask_about(term + 1, place, message.from);
                }
                true
            }
            MessageKind::PreVoteResponse if !message.reject => {
                if let Some(members) = members {
                    cut.granted(message.from, term, &members);
                }
                self.go_on_voting();
                // To raft-rs it is an answer to a campaign of its own, or nothing. It promises nothing.
                false
            }
            MessageKind::PreVoteResponse => {
                cut.refused(message.from, term);
                false
            }
            _ => false,
        }
    }

    /// Whether a candidate's request would be answered at all.
    fn could_be_led(&self, request: &Message) -> bool {
        let raft = &self.raw.raft;
        let is_led = raft.leader_id != raft::INVALID_ID && raft.election_elapsed < raft.election_timeout();
        !is_led && request.term > raft.term && (request.log_term, request.index) >= self.place()
    }

    /// Whether a leader gets no answer. Then it is asked for a read.
    fn is_silent_to(&mut self, message: &Message) -> bool {
        let Message { from, term, .. } = *message;
        let Some(cut) = &self.cut else { return false };
        if term < self.raw.raft.term {
            // It is told that its term is over, and that is no promise.
            return false;
        }
        let is_followed = cut.confirmed_at(term).is_some() && !cut.is_young();
        if is_followed || cut.is_elected_since(term) {
            return false;
        }
        self.ask_leader(from);
        true
    }

    /// Asks who seems to lead for a read, which it can confirm only with a majority that does not need this member. The
    /// same message says how much of what was committed this member is sure to have: the leader may count on more.
    fn ask_leader(&mut self, leader: u64) {
        let Some(token) = self.cut.as_mut().and_then(Cut::take_token) else { return };
        let token = Entry { index: 0, term: 0, kind: EntryKind::Normal, data: token };
        self.messages.push(Message {
            kind: MessageKind::ReadIndex,
            to: leader,
            from: self.identity.member_id,
            reject: true,
            reject_hint: self.raw.raft.raft_log.committed,
            entries: vec![token],
            ..Message::default()
        });
    }

    fn ask_about(&mut self, term: u64, place: Place, from: u64) {
        let Some(members) = self.whom_to_ask() else { return };
        let Some(cut) = &mut self.cut else { return };
        let (asked, (log_term, index)) = cut.ask(term, place, from, &members);
        let own = self.identity.member_id;
        let question =
            |to| Message { kind: MessageKind::PreVote, to, from: own, term, log_term, index, ..Message::default() };
        self.messages.extend(asked.into_iter().map(question));
        self.go_on_voting();
    }

    /// Answers the candidate that has waited, if it may be answered, or campaigns.
    fn go_on_voting(&mut self) {
        if self.cut.as_ref().is_some_and(|cut| cut.is_due) && self.may_stand() {
            self.cut.as_mut().expect("just seen").is_due = false;
            let raft = &mut self.raw.raft;
            let timeout = self.elections.timeout_parts(&self.options, self.identity.member_id, raft.term);
            raft.election_elapsed = raft.election_elapsed.max(timeout);
        }
        if let Some(vote) = self.cut.as_mut().and_then(Cut::take_held) {
            // What it comes to nothing by is what a late one does.
            drop(self.raw.step(vote.into_raft()));
        }
    }

    /// Whether all have said that this member could lead in its next term. If they have said so of a later one, it goes
    /// to that.
    fn may_stand(&mut self) -> bool {
        let place = self.place();
        let Some(from) = self.cut.as_ref().and_then(|cut| cut.may_lead_from(place)) else { return false };
        let raft = &mut self.raw.raft;
        if from > raft.term + 1 {
            raft.become_follower(from - 1, raft::INVALID_ID);
        }
        true
    }

    /// Whether this member may campaign. If not, it asks the others whether it could.
    pub(super) fn may_campaign(&mut self) -> bool {
        if self.cut.is_none() || self.is_sole_voter() || self.may_stand() {
            return true;
        }
        let (term, place, own) = (self.raw.raft.term + 1, self.place(), self.identity.member_id);
        let Some(cut) = &mut self.cut else { return true };
        cut.is_due = true;
        let term = cut.own_term(term, place);
        self.ask_about(term, place, own);
        false
    }

    /// Whether the state of any other member would help: the log was cut, and nobody has led for long.
    pub fn wants_state(&self) -> bool {
        self.cut.as_ref().is_some_and(Cut::wants_state)
    }

    /// Another member has given its state to this one, which asked for it. If it helps, it takes the place of this
    /// member's, as one that a leader sends ([`Driver::take_install`]); whether it does is what this returns.
    ///
    /// **Errors**: `Malformed`: no honest member sends it.
    pub fn adopt(&mut self, state: &Snapshot) -> Result<bool, Error> {
        check_state(state, u64::MAX, &self.raw.raft)?;
        let raft = &mut self.raw.raft;
        let is_led = raft.leader_id != raft::INVALID_ID;
        if self.stopped.is_some() || self.cut.is_none() || is_led || state.at.index <= raft.raft_log.committed {
            return Ok(false);
        }
        if raft.snap().is_some() || self.installing.is_some() {
            return Ok(false);
        }
        let term = raft.term.max(state.at.term);
        raft.become_follower(term, raft::INVALID_ID);
        let is_adopted = raft.restore(state.to_raft());
        if let Some(cut) = self.cut.as_mut().filter(|_| is_adopted) {
            cut.forget_answers();
        }
        Ok(is_adopted)
    }

    /// Takes in that raft-rs has taken an append.
    pub(super) fn note_fed(&mut self, append: (u64, u64, u64)) {
        let (term, index, count) = append;
        let log = &self.raw.raft.raft_log;
        let last = index + count;
        let is_taken = self.raw.raft.term == term && log.term(last).is_ok_and(|of_last| of_last == term);
        if self.cut.is_some() && is_taken {
            self.fed_at = Some((term, last));
        }
    }

    /// Whether this member has, durably, all that it may have acknowledged before the cut.
    fn has_caught_up(&self, cut: &Cut) -> bool {
        let raft = &self.raw.raft;
        let (term, log) = (raft.term, &raft.raft_log);
        if cut.is_elected_since(term) {
            // Before an entry of that term lies everything that was committed in earlier ones.
            return self.fed_at.is_some_and(|(of, last)| of == term && log.persisted >= last);
        }
        // An entry that both have is of the leader's own term, and behind all that both have.
        let holds = |index| {
            let is_it = log.persisted >= index && log.term(index) == Ok(term);
            is_it || self.commit() >= index || is_planted("a cut that is made up for too early")
        };
        !cut.is_young() && cut.confirmed_at(term).is_some_and(holds)
    }

    /// Forgets the cut, if this member has caught up, or leads.
    pub(super) fn mend(&mut self) {
        let is_over = |cut: &Cut| self.is_leader() || self.has_caught_up(cut);
        if self.cut.as_ref().is_some_and(is_over) {
            self.cut = None;
            self.hard_state.is_cut = false;
            self.hard_state.concerned = self.concerned.forget_former_lives();
            self.hard_state_due = Some(self.hard_state);
        }
    }

    /// A follower whose log was cut asks for a read, and says that it is sure only of what is committed up to an index.
    /// Nothing of what it has acknowledged beyond counts from here on: its read begins afterwards, so the index that it
    /// is told covers all that was committed because of that. And it is sent everything again; raft-rs would take its
    /// refusals to be old.
    pub(super) fn believe_less(&mut self, message: &Message) {
        if !message.reject || is_planted("a leader that counts on what was lost") {
            return;
        }
        let Some(progress) = self.raw.raft.mut_prs().get_mut(message.from) else { return };
        if message.reject_hint < progress.matched {
            if progress.state != raft::ProgressState::Snapshot {
                progress.become_probe();
                progress.next_idx = message.reject_hint + 1;
            }
            progress.matched = 0;
        }
    }
}
