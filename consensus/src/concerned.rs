//! Whom this member's last promises may concern: with whom it has exchanged votes, entries or their acknowledgements of
//! which the log does not yet state that they are durable.
//!
//! If the log loses its end, these members alone need to be asked what was promised (`cut`): nobody else has counted on
//! this member, nor has this member counted on anybody else. Without this, who is away for long would be waited for.
//!
//! Invariants:
//! - A member is noted durably, in a group of its own before any promise, before a message of it is taken that makes or
//!   answers one. Until then votes and appends wait. A state, and what finds no room, is dropped: it comes again. So is
//!   an acknowledgement, which must not be taken behind what a later life of its member says; the leader asks for it
//!   again. Without that, a new leader and its followers would lose a heartbeat.
//! - It stays noted until the log states that everything is durable that was handed to it by the time of the last
//!   promise, and it has been silent for some election timeouts.
//! - Answers of members that are no voters are not noted: nobody counts them.
//! - Members share [`SLOTS`] bits by their ids. A bit more than needed costs an answer to wait for. But a member that
//!   is known may hide one that is not, if they share a bit.

use std::collections::VecDeque;

use engine::planted::is_planted;

use crate::{
    entry::entry_cost_bytes,
    message::{Message, MessageKind},
};

/// Bits of the mask.
const SLOTS: usize = 64;
const _: () = assert!(SLOTS == u64::BITS as usize);
/// Election timeouts of silence after which a member need not be noted any more.
const SILENT_TIMEOUTS: usize = 10;
/// Messages that wait until their members are noted. One more is dropped.
const HELD_MAX: usize = 16;
/// What they may cost together. **Units** bytes.
const HELD_BYTES_MAX: u64 = 4 << 20;

/// The bit of a member.
pub(crate) const fn slot(member_id: u64) -> u64 {
    1 << (member_id % SLOTS as u64)
}

/// The mask that names these members, for a log that does not say whom its promises concern.
pub fn concerned_mask(member_ids: impl IntoIterator<Item = u64>) -> u64 {
    member_ids.into_iter().fold(0, |mask, id| mask | slot(id))
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Concerned {
    /// What the hard state says, durable or on its way.
    mask: u64,
    /// What it says durably.
    durable: u64,
    /// Members that are to be noted.
    wanted: u64,
    /// The tickets with which parts of `mask` are durable.
    pending: VecDeque<(u64, u64)>,
    /// For each bit: the ticket by which the last promise is handed to the log, and ticks since the last message.
    exchanged: [u64; SLOTS],
    silent_ticks: [usize; SLOTS],
    silent_ticks_max: usize,
    /// Tickets, each with what was durable when it was handed to the log: its group states that.
    stating: VecDeque<(u64, u64)>,
    /// The log states that everything up to this ticket is durable.
    stated: u64,
    held: Vec<Message>,
    held_bytes: u64,
    /// Members of which an acknowledgement was dropped.
    unheard: Vec<u64>,
}

/// What may go on when members are noted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted {
    /// Messages that have waited.
    pub(crate) held: Vec<Message>,
    /// Members of which an acknowledgement was dropped.
    pub(crate) unheard: Vec<u64>,
}

impl Concerned {
    /// For a member whose log has `mask` at its start.
    pub(crate) fn new(mask: u64, election_ticks: usize) -> Concerned {
        Concerned {
            mask,
            durable: mask,
            wanted: 0,
            pending: VecDeque::new(),
            exchanged: [0; SLOTS],
            silent_ticks: [0; SLOTS],
            silent_ticks_max: SILENT_TIMEOUTS * election_ticks,
            stating: VecDeque::new(),
            stated: 0,
            held: Vec::new(),
            held_bytes: 0,
            unheard: Vec::new(),
        }
    }

    /// Whether `message`, of a voter or not, can be taken now. If it cannot, it is kept or dropped. `ticket` is the
    /// last one that was handed to the log.
    pub(crate) fn admits(&mut self, message: &Message, is_voter: bool, ticket: u64) -> bool {
        if is_planted("a promise to somebody who is not noted") {
            return true;
        }
        // Whoever asks for a vote or leads may be a voter that this member does not know yet. But it counts the answers
        // of none but voters.
        let asks = matches!(
            message.kind,
            MessageKind::Vote | MessageKind::Append | MessageKind::Snapshot | MessageKind::Heartbeat
        );
        if !is_voter && !asks {
            return true;
        }
        let at = usize::try_from(message.from % SLOTS as u64).expect("below 64");
        self.silent_ticks[at] = 0;
        self.wanted |= slot(message.from);
        let is_vote = matches!(message.kind, MessageKind::Vote | MessageKind::VoteResponse);
        let is_entry =
            matches!(message.kind, MessageKind::Append | MessageKind::AppendResponse | MessageKind::Snapshot);
        if !is_vote && !is_entry {
            return true;
        }
        if self.durable & slot(message.from) == 0 {
            self.hold(message);
            return false;
        }
        self.exchanged[at] = ticket + 1;
        true
    }

    fn hold(&mut self, message: &Message) {
        let entries: u64 = message.entries.iter().map(|entry| entry_cost_bytes(&entry.data)).sum();
        let bytes = entries + message.context.len() as u64;
        let has_room = self.held.len() < HELD_MAX && self.held_bytes + bytes <= HELD_BYTES_MAX;
        match message.kind {
            MessageKind::AppendResponse if !self.unheard.contains(&message.from) => self.unheard.push(message.from),
            MessageKind::AppendResponse | MessageKind::Snapshot => {}
            _ if has_room => {
                self.held.push(message.clone());
                self.held_bytes += bytes;
            }
            _ => {}
        }
    }

    /// The mask that must be written now, durably, if there is one.
    pub(crate) fn take_due(&mut self, ticket: u64) -> Option<u64> {
        let added = std::mem::take(&mut self.wanted) & !self.mask;
        if added == 0 {
            return None;
        }
        self.mask |= added;
        self.pending.push_back((ticket, self.mask));
        Some(self.mask)
    }

    /// Something was handed to the log with `ticket`, when everything up to `durable` was durable.
    pub(crate) fn handed(&mut self, ticket: u64, durable: u64) {
        if self.stating.back().is_none_or(|(_, before)| *before < durable) {
            self.stating.push_back((ticket, durable));
        }
    }

    /// Everything up to `durable` is durable. Returns what has waited for it.
    pub(crate) fn durable(&mut self, durable: u64) -> Noted {
        while let Some((_, stated)) = self.stating.pop_front_if(|(ticket, _)| *ticket <= durable) {
            self.stated = self.stated.max(stated);
        }
        let mut has_more = false;
        while let Some((_, mask)) = self.pending.pop_front_if(|(ticket, _)| *ticket <= durable) {
            self.durable |= mask & self.mask;
            has_more = true;
        }
        if !has_more {
            return Noted::default();
        }
        self.held_bytes = 0;
        Noted { held: std::mem::take(&mut self.held), unheard: std::mem::take(&mut self.unheard) }
    }

    /// Promises may concern anybody, which the caller writes down before it makes another one.
    pub(crate) fn doubt_all(&mut self) {
        (self.mask, self.durable) = (u64::MAX, u64::MAX);
    }

    /// What was promised before this life began is made up for. Returns the mask, which need not be written at once.
    pub(crate) fn forget_former_lives(&mut self) -> u64 {
        let is_new = |at: &usize| self.exchanged[*at] > 0;
        let kept = (0..SLOTS).filter(is_new).fold(0, |mask, at| mask | 1 << at);
        (self.mask, self.durable) = (self.mask & kept, self.durable & kept);
        self.mask
    }

    /// A tick has passed. Returns the mask if it says less now; it need not be written at once.
    pub(crate) fn tick(&mut self) -> Option<u64> {
        let mut kept = self.mask;
        for at in 0..SLOTS {
            self.silent_ticks[at] = self.silent_ticks[at].saturating_add(1);
            if self.silent_ticks[at] > self.silent_ticks_max && self.exchanged[at] <= self.stated {
                kept &= !(1 << at);
            }
        }
        if kept == self.mask || !self.pending.is_empty() {
            return None;
        }
        (self.mask, self.durable) = (kept, self.durable & kept);
        Some(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entry::{Entry, EntryKind};

    fn message(kind: MessageKind, from: u64) -> Message {
        Message { kind, from, ..Message::default() }
    }

    #[test]
    fn votes_and_appends_wait_until_their_member_is_noted() {
        let mut concerned = Concerned::new(0, 10);
        assert!(concerned.admits(&message(MessageKind::Heartbeat, 7), true, 0), "it promises nothing");
        assert!(!concerned.admits(&message(MessageKind::Vote, 7), true, 0));
        assert!(!concerned.admits(&message(MessageKind::Append, 7), true, 0));
        assert!(!concerned.admits(&message(MessageKind::Snapshot, 7), true, 0), "it is too large to wait");
        for _ in 0..2 {
            assert!(!concerned.admits(&message(MessageKind::AppendResponse, 7), true, 0));
        }
        assert_eq!((concerned.take_due(1), concerned.take_due(2)), (Some(slot(7)), None));
        assert_eq!(concerned.durable(0), Noted::default());
        let held = vec![message(MessageKind::Vote, 7), message(MessageKind::Append, 7)];
        assert_eq!(concerned.durable(1), Noted { held, unheard: vec![7] });
        assert!(concerned.admits(&message(MessageKind::Append, 7), true, 1));
        assert!(!concerned.admits(&message(MessageKind::Append, 8), true, 1));
        assert!(concerned.admits(&message(MessageKind::Append, 7 + 64), true, 1), "they share a bit");
        for from in 0..100 {
            concerned.admits(&message(MessageKind::Vote, 9 + from % 2), true, 1);
        }
        concerned.take_due(2);
        assert_eq!(concerned.durable(2).held.len(), HELD_MAX);
        let half = vec![0; usize::try_from(HELD_BYTES_MAX / 2).unwrap()];
        let entries = vec![Entry { index: 1, term: 1, kind: EntryKind::Normal, data: half.clone().into() }];
        for append in [
            Message { context: half.into(), ..message(MessageKind::Append, 11) },
            Message { entries: entries.clone(), ..message(MessageKind::Append, 11) },
            message(MessageKind::Append, 11),
        ] {
            assert!(!concerned.admits(&append, true, 2));
        }
        concerned.take_due(3);
        assert_eq!(concerned.durable(3).held.len(), 2, "the second finds no room");
    }

    #[test]
    fn what_is_made_up_for_concerns_nobody_any_more() {
        let mut concerned = Concerned::new(u64::MAX, 10);
        assert!(concerned.admits(&message(MessageKind::Vote, 3), true, 5));
        assert_eq!(concerned.forget_former_lives(), slot(3));
        assert!(!concerned.admits(&message(MessageKind::Append, 4), true, 5), "it is to be noted again");
    }

    #[test]
    fn who_was_silent_for_long_is_noted_until_the_log_states_what_was_promised() {
        let mut concerned = Concerned::new(slot(3) | slot(4), 2);
        assert!(concerned.admits(&message(MessageKind::Vote, 3), true, 5), "the vote is handed with ticket 6");
        concerned.handed(6, 5);
        concerned.durable(6);
        let ticks = |concerned: &mut Concerned| (0..30).filter_map(|_| concerned.tick()).last();
        assert_eq!(ticks(&mut concerned), Some(slot(3)), "4 was silent from the beginning");
        // The group of ticket 7 was begun before 6 was durable.
        concerned.handed(7, 5);
        concerned.durable(7);
        assert_eq!(ticks(&mut concerned), None);
        concerned.handed(8, 7);
        assert_eq!(ticks(&mut concerned), None);
        concerned.durable(8);
        assert_eq!(ticks(&mut concerned), Some(0));
        assert!(!concerned.admits(&message(MessageKind::Append, 3), true, 8), "it is to be noted again");
    }
}
