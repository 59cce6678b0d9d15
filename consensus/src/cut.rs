//! What a member may promise whose log was cut at its end.
//!
//! What was cut was most likely never durable. But a durable group that was damaged looks the same, and so may the
//! member have acknowledged entries, and cast votes, of which it knows nothing any more. If it voted as others do,
//! somebody could lead who lacks what was committed with its help. So, until it has caught up with a leader:
//!
//! - It votes, for itself too, only once all members that may be concerned (`concerned`) have said that their log is
//!   not ahead of the candidate's, and that they are not in the candidate's term yet. Whoever counted on this member
//!   has answered then: the leader to which it acknowledged an entry has that entry, or has not committed it (it
//!   commits what it holds durably; etcd's does not wait for its own disk), and the candidate that it voted for is in
//!   that term. Whom it counted on itself has answered, too. The question is a pre-vote with the candidate's place in
//!   the log, so members of every kind answer it.
//! - It answers a leader, and takes what that sends, only if that one's term came after such answers, or if the leader
//!   has confirmed a read for it. A majority without this member follows such a leader: nobody was elected, by a vote
//!   that this member has lost, in a later term. Nor will anybody be: it answers such a leader after two election
//!   timeouts at the earliest. By then a candidate has given up that might have won by such a vote.
//! - It has caught up when it holds an entry of that leader's own term, and everything up to the index of that read:
//!   whatever the leader had committed with its help. For the leader counts on nothing that this member has lost from
//!   before the read on: the question for the read says how much this member is sure to have (`Driver::believe_less`).
//!   etcd's leaders do not listen to that; behind one of them it waits for the next term.
//!
//! Who was away for long is not concerned, so nobody waits for that one.
//!
//! Who the other members are it may not know any more: those that it knows may be gone for good, and others may have
//! come, which it cannot ask. It votes for nobody while a member is concerned that it neither knows nor knows to be
//! removed, and asks nobody before it has applied what its log says to be committed. When nobody has led for three
//! election timeouts, it asks any other member for its state: all of that is committed, the members too.
//!
//! A member whose log was put aside (`ALL`) cannot know whom its promises concern. It votes for nobody, for itself
//! neither. If the others are too few to elect without it, they wait for a person, as etcd's do.
//!
//! A member may find out later that it has lost what it acknowledged, because it goes on from an older copy of its
//! directory, or its disk has lied: a leader commits by a heartbeat what this member does not have. From then on it
//! stands as one whose log was put aside. etcd's members end there.
//!
//! It does give pre-votes. They promise nothing, and without them those that were all cut by one power loss would wait
//! for each other. But it gives none to a candidate of which it knows that another member is ahead: who campaigns in
//! vain holds up the one that could lead.
//!
//! Invariants:
//! - `floor` was answered for by all members concerned, after the cut. From its term on, candidates whose log is not
//!   behind its place hold everything that this member may have acknowledged.
//! - An answer to the question of a term counts for the last place that was asked about in that term, which is the
//!   furthest: who is not ahead of a place is not ahead of a further one. So who was ahead, and has lost that since or
//!   is gone, would be waited for in this term for ever: after a while another term is asked about (`own_term`).
//! - `confirmed` was said by a leader after the cut, which has had no answer of this member to count since.
//! - A heartbeat commits nothing. Its commit is of what the leader believes that this member has, and may name entries
//!   here that are not the leader's.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use crate::{
    message::{Message, MessageKind},
    start::PARTS_PER_TICK,
};

/// How far a log goes: term and index of its last entry. The larger one is ahead.
pub(crate) type Place = (u64, u64);

/// The promises of a log that was put aside may concern anybody.
pub(crate) const ALL: u64 = u64::MAX;

/// What is asked of the other members.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    term: u64,
    place: Place,
    /// Who has said yes.
    granted: BTreeSet<u64>,
    /// Parts of a tick for which nobody has named this place as his.
    idle_parts: usize,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Whom the promises may concern that were lost (`concerned`).
    concerned: u64,
    /// The name of the read that leaders are asked for, and parts of a tick until that is done again.
    token: Bytes,
    token_parts: u32,
    /// The last term whose leader has confirmed that read, and its index.
    confirmed: Option<(u64, u64)>,
    question: Question,
    /// From this term on, candidates may be voted for whose log goes at least so far.
    floor: Option<(u64, Place)>,
    /// A candidate's request that waits for answers.
    held: Option<Message>,
    /// Members that have said no, and the place that they are ahead of.
    ahead: BTreeMap<u64, Place>,
    /// This member would campaign, if it may.
    pub(crate) is_due: bool,
    /// Parts of a tick until this member may count as one that has caught up with a leader that it did not elect.
    young_parts: usize,
    /// Parts of a tick for which there has been no leader, and with how many of them a state is wanted.
    unled_parts: usize,
    unled_parts_max: usize,
    /// A place for which nobody has stood up for so long is one that nobody has any more.
    idle_parts_max: usize,
}

impl Cut {
    /// For a member with this election timeout, which has just started, and has these members noted. Nobody has had a
    /// read with the name `token` before.
    pub(crate) fn new(concerned: u64, token: Bytes, election_ticks: usize) -> Cut {
        let question = Question { term: 0, place: (0, 0), granted: BTreeSet::new(), idle_parts: 0 };
        let timeout_parts = election_ticks * PARTS_PER_TICK as usize;
        Cut {
            concerned,
            token,
            token_parts: 0,
            confirmed: None,
            question,
            floor: None,
            held: None,
            ahead: BTreeMap::new(),
            is_due: false,
            young_parts: 2 * timeout_parts,
            unled_parts: 0,
            unled_parts_max: 3 * timeout_parts,
            idle_parts_max: 3 * timeout_parts,
        }
    }

    /// The members with these bits are asked.
    pub(crate) const fn concerned(&self) -> u64 {
        self.concerned
    }

    pub(crate) fn pass_part(&mut self, is_led: bool) {
        self.token_parts = self.token_parts.saturating_sub(1);
        self.young_parts = self.young_parts.saturating_sub(1);
        self.unled_parts = if is_led { 0 } else { (self.unled_parts + 1).min(self.unled_parts_max) };
        self.question.idle_parts = (self.question.idle_parts + 1).min(self.idle_parts_max);
    }

    /// Whether the state of another member would help.
    pub(crate) fn wants_state(&self) -> bool {
        self.unled_parts >= self.unled_parts_max
    }

    /// Whether who leads this term was elected after all concerned had answered.
    pub(crate) fn is_elected_since(&self, term: u64) -> bool {
        self.floor.is_some_and(|(from, _)| term >= from)
    }

    /// The index up to which this member must hold what who leads this term has, if a read was confirmed there.
    pub(crate) fn confirmed_at(&self, term: u64) -> Option<u64> {
        self.confirmed.filter(|(of, _)| *of == term).map(|(_, index)| index)
    }

    /// Whether a candidate may be about that counts on a vote which this member has lost.
    pub(crate) const fn is_young(&self) -> bool {
        self.young_parts > 0
    }

    /// The name of the read to ask a leader for, if it is time.
    pub(crate) fn take_token(&mut self) -> Option<Bytes> {
        let is_time = std::mem::take(&mut self.token_parts) == 0;
        self.token_parts = PARTS_PER_TICK;
        is_time.then(|| self.token.clone())
    }

    /// Who leads `term` confirms a read at `index`. Returns whether it is the one that was asked for.
    pub(crate) fn confirm(&mut self, token: &Bytes, term: u64, index: u64) -> bool {
        let is_it = *token == self.token;
        if is_it && self.confirmed.is_none_or(|(before, _)| before < term) {
            self.confirmed = Some((term, index));
        }
        is_it
    }

    /// Whether a candidate for this term may be voted for.
    pub(crate) fn lets_vote(&self, term: u64, place: Place) -> bool {
        self.floor.is_some_and(|(from, least)| term >= from && place >= least)
    }

    /// The first term in which this member may lead with its log at `place`, if all have answered.
    pub(crate) fn may_lead_from(&self, place: Place) -> Option<u64> {
        self.floor.filter(|(_, least)| place >= *least).map(|(from, _)| from)
    }

    /// The term to ask about for this member's own campaign at `place`: at least `term`, the next one in which it could
    /// stand. It is a later one if a candidate was asked about that there is no more.
    pub(crate) fn own_term(&self, term: u64, place: Place) -> u64 {
        let Question { term: asked, place: furthest, idle_parts, .. } = self.question;
        if term > asked || (place < furthest && idle_parts < self.idle_parts_max) {
            return term;
        }
        asked.saturating_add(u64::from(place < furthest))
    }

    /// Asks whether a candidate at `place` could lead in `term`. `from` asks that as well. Returns whom to ask, of
    /// `members`, and about which place: those that have not said yes.
    pub(crate) fn ask(&mut self, term: u64, place: Place, from: u64, members: &[u64]) -> (Vec<u64>, Place) {
        if term > self.question.term {
            self.question = Question { term, place, granted: BTreeSet::new(), idle_parts: 0 };
        }
        if term == self.question.term {
            if place >= self.question.place {
                (self.question.place, self.question.idle_parts) = (place, 0);
            }
            self.question.granted.insert(from);
            self.settle(members);
            let left = members.iter().filter(|id| !self.question.granted.contains(id));
            return (left.copied().collect(), self.question.place);
        }
        (Vec::new(), place)
    }

    /// Whether it was asked who could lead in this term.
    pub(crate) fn has_asked(&self, term: u64) -> bool {
        self.question.term == term
    }

    /// Takes the yes of one of `members`, all of which must say it.
    pub(crate) fn granted(&mut self, from: u64, term: u64, members: &[u64]) {
        if term == self.question.term {
            self.question.granted.insert(from);
            if self.ahead.get(&from).is_some_and(|place| *place <= self.question.place) {
                self.ahead.remove(&from);
            }
            self.settle(members);
        }
    }

    /// Takes the no of a member that stands in `term`. One that stands in an earlier term than it was asked about is
    /// ahead.
    pub(crate) fn refused(&mut self, from: u64, term: u64) {
        if term < self.question.term {
            self.ahead.insert(from, self.question.place);
        }
    }

    /// Whether a candidate at `place` could not lead, as far as is known: another one is ahead of it.
    pub(crate) fn is_hopeless(&self, place: Place) -> bool {
        self.ahead.values().any(|other| *other >= place) || self.floor.is_some_and(|(_, least)| place < least)
    }

    /// The members may be others now.
    pub(crate) fn forget_answers(&mut self) {
        self.ahead.clear();
        self.question = Question { granted: BTreeSet::new(), ..self.question.clone() };
        self.unled_parts = 0;
    }

    fn settle(&mut self, members: &[u64]) {
        if members.iter().all(|id| self.question.granted.contains(id)) {
            self.floor = Some((self.question.term, self.question.place));
        }
    }

    /// Keeps a candidate's request until its question is answered. A later one takes its place.
    pub(crate) fn hold(&mut self, request: Message) {
        assert_eq!(request.kind, MessageKind::Vote, "only votes wait");
        self.held = Some(request);
    }

    /// The request that waited, once it may be answered.
    pub(crate) fn take_held(&mut self) -> Option<Message> {
        let floor = self.floor;
        self.held.take_if(|vote| {
            floor.is_some_and(|(term, place)| vote.term >= term && (vote.log_term, vote.index) >= place)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut() -> Cut {
        Cut::new(7, Bytes::from_static(b"read"), 10)
    }

    /// The voters, of which this member is 1.
    const VOTERS: [u64; 3] = [1, 2, 3];

    #[test]
    fn a_vote_waits_until_all_others_have_said_that_the_candidate_could_lead() {
        let mut cut = cut();
        assert!(!cut.lets_vote(5, (4, 9)));
        let others = &VOTERS[1..];
        assert_eq!(cut.ask(5, (4, 9), 2, others), (vec![3], (4, 9)), "the candidate says yes to itself");
        cut.hold(Message { kind: MessageKind::Vote, term: 5, log_term: 4, index: 9, ..Message::default() });
        cut.granted(3, 4, others);
        assert!(cut.take_held().is_none() && !cut.lets_vote(5, (4, 9)));
        cut.granted(3, 5, others);
        assert!(cut.take_held().is_some() && cut.take_held().is_none());
        assert!(cut.lets_vote(6, (4, 10)) && cut.lets_vote(5, (5, 1)));
        assert!(!cut.lets_vote(4, (4, 9)), "it may have voted in that term");
        assert!(!cut.lets_vote(6, (4, 8)), "it may have acknowledged the entry behind");
    }

    #[test]
    fn answers_count_for_the_furthest_place_of_their_term() {
        let (mut cut, others) = (cut(), &VOTERS[1..]);
        assert_eq!(cut.ask(5, (4, 9), 1, others), (vec![2, 3], (4, 9)), "its own campaign");
        cut.granted(2, 5, others);
        assert_eq!(cut.ask(5, (4, 12), 3, others), (vec![], (4, 12)), "2 is not ahead of that either");
        assert!(!cut.lets_vote(5, (4, 9)) && cut.lets_vote(5, (4, 12)));
        // Whoever says yes now may have been asked about 12.
        assert_eq!(cut.ask(5, (4, 9), 1, others).1, (4, 12));
        assert!(!cut.lets_vote(5, (4, 9)));
        assert_eq!(cut.ask(4, (4, 9), 1, others), (vec![], (4, 9)), "nobody is asked about what is past");
        assert_eq!(cut.ask(6, (4, 9), 1, others), (vec![2, 3], (4, 9)));
        assert!(cut.lets_vote(5, (4, 12)), "what was answered for stays so");
    }

    #[test]
    fn who_was_ahead_and_is_no_more_is_not_waited_for() {
        let (mut cut, others) = (cut(), &VOTERS[1..]);
        let pass = |cut: &mut Cut, parts| (0..parts).for_each(|_| cut.pass_part(false));
        let timeout = 10 * PARTS_PER_TICK as usize;
        assert_eq!(cut.own_term(5, (4, 9)), 5);
        cut.ask(6, (4, 12), 2, others);
        pass(&mut cut, 3 * timeout - 1);
        assert_eq!((cut.own_term(5, (4, 9)), cut.own_term(7, (4, 9))), (5, 7), "2 may stand there still");
        cut.ask(6, (4, 12), 2, others);
        pass(&mut cut, 3 * timeout - 1);
        assert_eq!((cut.own_term(5, (4, 9)), cut.own_term(5, (4, 12))), (5, 6), "it does");
        cut.ask(6, (4, 9), 1, others);
        pass(&mut cut, 1);
        assert_eq!((cut.own_term(5, (4, 9)), cut.own_term(7, (4, 9))), (7, 7));
        assert_eq!(cut.ask(7, (4, 9), 1, others), (vec![2, 3], (4, 9)));
        assert_eq!(cut.own_term(5, (4, 9)), 7, "it is asked about again");
        cut.granted(2, 7, others);
        assert_eq!(cut.may_lead_from((4, 9)), None);
        cut.granted(3, 7, others);
        assert_eq!((cut.may_lead_from((4, 8)), cut.may_lead_from((4, 9))), (None, Some(7)));
    }

    #[test]
    fn a_candidate_that_another_is_ahead_of_is_not_encouraged() {
        let (mut cut, others) = (cut(), &VOTERS[1..]);
        cut.ask(5, (4, 9), 2, others);
        cut.refused(3, 5);
        assert!(!cut.is_hopeless((4, 9)), "it is in that term, and says nothing of its log");
        cut.refused(3, 4);
        assert!(cut.is_hopeless((4, 9)) && cut.is_hopeless((4, 8)) && !cut.is_hopeless((4, 10)));
        cut.ask(6, (4, 9), 2, others);
        cut.granted(3, 6, others);
        assert!(!cut.is_hopeless((4, 9)), "it was ahead by what it has thrown away");
        assert!(cut.is_hopeless((4, 8)), "the candidate is");
    }

    #[test]
    fn a_leader_is_answered_that_a_majority_follows_or_that_was_elected_later() {
        let (mut cut, others) = (cut(), &VOTERS[1..]);
        assert_eq!((cut.confirmed_at(7), cut.is_elected_since(7)), (None, false));
        let token = cut.take_token().expect("it was not asked before");
        assert_eq!(cut.take_token(), None);
        assert!(!cut.confirm(&Bytes::from_static(b"other"), 7, 20) && cut.confirmed_at(7).is_none());
        assert!(cut.confirm(&token, 7, 20) && cut.confirm(&token, 7, 30) && cut.confirm(&token, 6, 10));
        assert_eq!((cut.confirmed_at(6), cut.confirmed_at(7), cut.confirmed_at(8)), (None, Some(20), None));
        (0..PARTS_PER_TICK).for_each(|_| cut.pass_part(true));
        assert_eq!(cut.take_token(), Some(token), "another one may lead");
        assert!(cut.is_young(), "a candidate may count on a vote that was lost");
        (0..20 * PARTS_PER_TICK).for_each(|_| cut.pass_part(true));
        assert!(!cut.is_young());
        cut.ask(9, (4, 9), 2, others);
        cut.granted(3, 9, others);
        assert!(!cut.is_elected_since(8) && cut.is_elected_since(9) && cut.is_elected_since(10));
    }

    #[test]
    fn a_state_is_wanted_when_nobody_has_led_for_three_election_timeouts() {
        let mut cut = cut();
        for _ in 0..30 * PARTS_PER_TICK {
            assert!(!cut.wants_state());
            cut.pass_part(false);
        }
        assert!(cut.wants_state());
        cut.pass_part(true);
        assert!(!cut.wants_state(), "somebody leads");
    }
}
