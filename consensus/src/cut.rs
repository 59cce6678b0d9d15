//! What a member may promise whose log was cut at its end.
//!
//! What was cut was most likely never durable. But a durable group that was damaged looks the same, and so may the
//! member have acknowledged entries, and cast votes, of which it knows nothing any more. If it voted as others do,
//! somebody could lead who lacks what was committed with its help. So, until it has caught up with a leader:
//!
//! - It votes, for itself too, only once all voters that may be concerned (`concerned`) have said that their log is not
//!   ahead of the candidate's, and that they are not in the candidate's term yet. Whoever counted on this member has
//!   answered then: the leader to which it acknowledged an entry has that entry, or has not committed it (it commits
//!   what it holds durably; etcd's does not wait for its own disk), and the candidate that it voted for is in that
//!   term. Whom it counted on itself has answered, too. The question is a pre-vote with the candidate's place in the
//!   log, so members of every kind answer it.
//! - It answers no leader for two election timeouts, unless that one's term came after such answers. A leader of a term
//!   before one that it has voted in hears from no majority meanwhile, and steps down.
//!
//! Who was away for long is not concerned, so nobody waits for that one.
//!
//! Who the other voters are it may not know any more: one of those that it knows may be gone for good. When nobody has
//! led for three election timeouts, it asks any other member for its state: all of that is committed, the members too.
//!
//! It does give pre-votes. They promise nothing, and without them those that were all cut by one power loss would wait
//! for each other. But it gives none to a candidate of which it knows that another voter is ahead: who campaigns in
//! vain holds up the one that could lead.
//!
//! Invariants:
//! - `floor` was answered for by all voters concerned, after the cut. From its term on, candidates whose log is not
//!   behind its place hold everything that this member may have acknowledged.
//! - An answer to the question of a term counts for the last place that was asked about in that term, which is the
//!   furthest: who is not ahead of a place is not ahead of a further one.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    message::{Message, MessageKind},
    start::PARTS_PER_TICK,
};

/// How far a log goes: term and index of its last entry. The larger one is ahead.
pub(crate) type Place = (u64, u64);

/// What is asked of the other voters.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Question {
    term: u64,
    place: Place,
    /// Who has said yes.
    granted: BTreeSet<u64>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Whom the promises may concern that were lost (`concerned`).
    concerned: u64,
    /// Parts of a tick for which leaders are not answered.
    silent_parts: usize,
    question: Question,
    /// From this term on, candidates may be voted for whose log goes at least so far.
    floor: Option<(u64, Place)>,
    /// A candidate's request that waits for answers.
    held: Option<Message>,
    /// Voters that have said no, and the place that they are ahead of.
    ahead: BTreeMap<u64, Place>,
    /// This member would campaign, if it may.
    pub(crate) is_due: bool,
    /// Parts of a tick for which there has been no leader, and with how many of them a state is wanted.
    unled_parts: usize,
    unled_parts_max: usize,
}

impl Cut {
    /// For a member with this election timeout, which has just started, and has these members noted.
    pub(crate) fn new(concerned: u64, election_ticks: usize) -> Cut {
        let question = Question { term: 0, place: (0, 0), granted: BTreeSet::new() };
        let timeout_parts = election_ticks * PARTS_PER_TICK as usize;
        Cut {
            concerned,
            silent_parts: 2 * timeout_parts,
            question,
            floor: None,
            held: None,
            ahead: BTreeMap::new(),
            is_due: false,
            unled_parts: 0,
            unled_parts_max: 3 * timeout_parts,
        }
    }

    /// Of the members with these bits, the voters are asked.
    pub(crate) const fn concerned(&self) -> u64 {
        self.concerned
    }

    pub(crate) fn pass_part(&mut self, is_led: bool) {
        self.silent_parts = self.silent_parts.saturating_sub(1);
        self.unled_parts = if is_led { 0 } else { (self.unled_parts + 1).min(self.unled_parts_max) };
    }

    /// Whether the state of another member would help.
    pub(crate) fn wants_state(&self) -> bool {
        self.unled_parts >= self.unled_parts_max
    }

    /// Whether a leader of this term gets no answer.
    pub(crate) fn is_silent_to(&self, term: u64) -> bool {
        self.silent_parts > 0 && self.floor.is_none_or(|(from, _)| term < from)
    }

    /// Whether a candidate for this term may be voted for.
    pub(crate) fn lets_vote(&self, term: u64, place: Place) -> bool {
        self.floor.is_some_and(|(from, least)| term >= from && place >= least)
    }

    /// Asks whether a candidate at `place` could lead in `term`. `from` asks that as well. Returns whom to ask, of
    /// `voters`, and about which place: those that have not said yes.
    pub(crate) fn ask(&mut self, term: u64, place: Place, from: u64, voters: &[u64]) -> (Vec<u64>, Place) {
        if term > self.question.term {
            self.question = Question { term, place, granted: BTreeSet::new() };
        }
        if term == self.question.term {
            self.question.place = self.question.place.max(place);
            self.question.granted.insert(from);
            self.settle(voters);
            let left = voters.iter().filter(|id| !self.question.granted.contains(id));
            return (left.copied().collect(), self.question.place);
        }
        (Vec::new(), place)
    }

    /// Whether it was asked who could lead in this term.
    pub(crate) fn has_asked(&self, term: u64) -> bool {
        self.question.term == term
    }

    /// Takes a voter's yes.
    pub(crate) fn granted(&mut self, from: u64, term: u64, voters: &[u64]) {
        if term == self.question.term {
            self.question.granted.insert(from);
            if self.ahead.get(&from).is_some_and(|place| *place <= self.question.place) {
                self.ahead.remove(&from);
            }
            self.settle(voters);
        }
    }

    /// Takes the no of a voter that stands in `term`. One that stands in an earlier term than it was asked about is
    /// ahead.
    pub(crate) fn refused(&mut self, from: u64, term: u64) {
        if term < self.question.term {
            self.ahead.insert(from, self.question.place);
        }
    }

    /// Whether a candidate at `place` could not lead, as far as is known: a voter is ahead of it.
    pub(crate) fn is_hopeless(&self, place: Place) -> bool {
        self.ahead.values().any(|other| *other >= place) || self.floor.is_some_and(|(_, least)| place < least)
    }

    /// The members may be others now.
    pub(crate) fn forget_answers(&mut self) {
        self.ahead.clear();
        self.question = Question { granted: BTreeSet::new(), ..self.question.clone() };
        self.unled_parts = 0;
    }

    fn settle(&mut self, voters: &[u64]) {
        if voters.iter().all(|id| self.question.granted.contains(id)) {
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

    /// The voters, of which this member is 1.
    const VOTERS: [u64; 3] = [1, 2, 3];

    #[test]
    fn a_vote_waits_until_all_others_have_said_that_the_candidate_could_lead() {
        let mut cut = Cut::new(u64::MAX, 10);
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
        let (mut cut, others) = (Cut::new(u64::MAX, 10), &VOTERS[1..]);
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
    fn a_candidate_that_another_is_ahead_of_is_not_encouraged() {
        let (mut cut, others) = (Cut::new(u64::MAX, 10), &VOTERS[1..]);
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
    fn leaders_are_not_answered_for_two_election_timeouts() {
        let (mut cut, others) = (Cut::new(u64::MAX, 10), &VOTERS[1..]);
        for _ in 0..20 * PARTS_PER_TICK {
            assert!(cut.is_silent_to(7));
            cut.pass_part(false);
        }
        assert!(!cut.is_silent_to(7) && !cut.wants_state());
        (0..10 * PARTS_PER_TICK).for_each(|_| cut.pass_part(false));
        assert!(cut.wants_state());
        cut.pass_part(true);
        assert!(!cut.wants_state(), "somebody leads");
        let mut cut = Cut::new(u64::MAX, 10);
        cut.ask(7, (4, 9), 2, others);
        cut.granted(3, 7, others);
        assert!(cut.is_silent_to(6) && !cut.is_silent_to(7), "nobody could lead by a vote of this one before");
    }
}
