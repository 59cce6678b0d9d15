//! Linearizable reads: which index must be applied before a read may be answered.
//!
//! Owns the reads that wait for a confirmation: this member's own, and at a leader those that peers have asked for. A
//! round confirms all that wait when it begins, so the cost is per round, not per read.
//!
//! raft-rs matches the answers of heartbeats to rounds by a token alone. A token that is used twice could confirm a
//! read by an answer to an older round, and so by members that have a newer leader since. So each round has a token of
//! its own: at a leader its term, which no other member leads, and a counter; at a follower its member id, and a number
//! that begins elsewhere in each life. A leader never gives raft-rs what a peer has sent: its own token stands for it,
//! and the peer gets its bytes back with the answer.
//!
//! Invariants:
//! - Own reads are numbered by their caller, ascending, and are confirmed in that order: `confirmed` <= `started` <=
//!   `asked`. Each round covers all own reads up to its `last`, which ascends from round to round.
//! - A peer's read is in `peers`, or in one of `rounds`, or forgotten: then its member asks again. At most `peers_max`
//!   are held.
//! - At most [`ROUNDS_MAX`] rounds are begun before one ends, but for those that are asked again after a time. At most
//!   [`TRIES_MAX`] are remembered.
//!
//! **Source**: etcd-io/raft pull request 397; etcd v3.7.1 `server/etcdserver/read/read.go`.

use std::collections::VecDeque;

use bytes::Bytes;
use engine::planted::is_planted;

/// Rounds under way at a time. What comes meanwhile shares the next one.
const ROUNDS_MAX: usize = 2;
/// Rounds whose answers still count, those that were asked again included.
const TRIES_MAX: usize = 16;

/// Reads that may be answered once the state machine has applied `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmedRead {
    /// The caller's number of the last of them. All its reads with a lower number are among them.
    pub context: u64,
    /// Everything acknowledged before the reads were asked for lies at or below this index.
    pub index: u64,
}

/// A read that a peer has asked this member for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PeerRead {
    pub(crate) from: u64,
    /// The peer's name for it.
    pub(crate) context: Bytes,
}

#[derive(Debug)]
struct Round {
    token: [u8; 16],
    last: u64,
    peers: Vec<PeerRead>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct ReadIndex {
    member_id: u64,
    /// Where the tokens of this life begin.
    life: u64,
    asked: u64,
    started: u64,
    confirmed: u64,
    peers: Vec<PeerRead>,
    /// Peers' reads, in `peers` and in `rounds`.
    held: usize,
    peers_max: usize,
    rounds: VecDeque<Round>,
    counter: u64,
    /// Ticks since the last round began.
    round_ticks: usize,
    /// What was confirmed, and not taken yet.
    own: Vec<ConfirmedRead>,
    answers: Vec<(PeerRead, u64)>,
}

/// A token of a member's life that no round of it has: the first round has the next one.
pub(crate) fn first_token(member_id: u64, life: u64) -> [u8; 16] {
    token_of(member_id, life)
}

fn token_of(whose: u64, number: u64) -> [u8; 16] {
    let mut token = [0; 16];
    token[..8].copy_from_slice(&whose.to_be_bytes());
    token[8..].copy_from_slice(&number.to_be_bytes());
    token
}

impl ReadIndex {
    /// Nothing waits. No other life of the member `member_id` has had the number `life`.
    pub(crate) fn new(member_id: u64, life: u64, peers_max: usize) -> ReadIndex {
        ReadIndex {
            member_id,
            life,
            asked: 0,
            started: 0,
            confirmed: 0,
            peers: Vec::new(),
            held: 0,
            peers_max,
            rounds: VecDeque::new(),
            counter: 0,
            round_ticks: 0,
            own: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// The own read `context` waits from now on.
    pub(crate) fn ask(&mut self, context: u64) {
        assert!(context > self.asked, "read {context} after {}", self.asked);
        self.asked = context;
    }

    /// A peer's read waits from now on, unless too many do.
    pub(crate) fn ask_for(&mut self, read: PeerRead) {
        if self.held < self.peers_max {
            self.held += 1;
            self.peers.push(read);
        }
    }

    /// Whether a round should begin. One that is unanswered for `retry_ticks` is asked again.
    pub(crate) fn wants_round(&self, retry_ticks: usize) -> bool {
        let has_new = self.asked > self.started || !self.peers.is_empty();
        let is_late = self.asked > self.confirmed && self.round_ticks >= retry_ticks;
        is_late || (has_new && self.rounds.len() < ROUNDS_MAX)
    }

    /// Begins a round for all that wait, at who leads `term`, or at a follower. The token goes to raft-rs.
    pub(crate) fn start_round(&mut self, leads: Option<u64>) -> [u8; 16] {
        self.counter += u64::from(!is_planted("a token used again"));
        self.round_ticks = 0;
        let token = match leads {
            Some(term) => token_of(term, self.counter),
            None => token_of(self.member_id, self.life.wrapping_add(self.counter)),
        };
        self.started = self.asked;
        self.rounds.push_back(Round { token, last: self.asked, peers: std::mem::take(&mut self.peers) });
        if self.rounds.len() > TRIES_MAX
            && let Some(forgotten) = self.rounds.pop_front()
        {
            self.held -= forgotten.peers.len();
        }
        assert!(self.confirmed <= self.started && self.rounds.len() <= TRIES_MAX);
        token
    }

    /// A round was confirmed at `index`. Rounds before it are confirmed with it: they were asked for earlier.
    pub(crate) fn confirm_round(&mut self, token: &[u8], index: u64) {
        let Some(position) = self.rounds.iter().position(|round| round.token == token) else { return };
        let index = index - u64::from(is_planted("a read one entry early"));
        for _ in 0..=position {
            let Some(round) = self.rounds.pop_front() else { break };
            self.confirm(round.last, round.peers, index);
        }
    }

    fn confirm(&mut self, last: u64, peers: Vec<PeerRead>, index: u64) {
        if last > self.confirmed {
            self.confirmed = last;
            self.own.push(ConfirmedRead { context: last, index });
        }
        self.held -= peers.len();
        self.answers.extend(peers.into_iter().map(|read| (read, index)));
        assert!(self.confirmed <= self.asked);
    }

    /// All that wait are confirmed: a single voter that has committed in its term.
    pub(crate) fn confirm_all(&mut self, index: u64) {
        while let Some(round) = self.rounds.pop_front() {
            self.confirm(round.last, round.peers, index);
        }
        let peers = std::mem::take(&mut self.peers);
        self.started = self.asked;
        self.confirm(self.asked, peers, index);
    }

    /// One tick has passed.
    pub(crate) fn tick(&mut self) {
        self.round_ticks = self.round_ticks.saturating_add(1);
    }

    /// Who leads has changed: own reads are asked for again. Peers ask again themselves, whoever leads now.
    pub(crate) fn restart(&mut self) {
        self.started = self.confirmed;
        self.rounds.clear();
        self.peers.clear();
        self.held = 0;
    }

    /// The own reads that were confirmed since the last call.
    pub(crate) fn take_confirmed(&mut self) -> Vec<ConfirmedRead> {
        std::mem::take(&mut self.own)
    }

    /// The peers' reads that were confirmed since the last call, each with its index.
    pub(crate) fn take_answers(&mut self) -> Vec<(PeerRead, u64)> {
        std::mem::take(&mut self.answers)
    }

    /// Forgets everything: the driver has stopped.
    pub(crate) fn clear(&mut self) {
        self.restart();
        self.own.clear();
        self.answers.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: usize = 5;

    fn reads() -> ReadIndex {
        ReadIndex::new(1, 1000, 3)
    }

    fn peer(from: u64, context: &'static [u8]) -> PeerRead {
        PeerRead { from, context: Bytes::from_static(context) }
    }

    #[test]
    fn a_round_confirms_what_waited_before_it_and_nothing_after() {
        let mut reads = reads();
        reads.ask(1);
        reads.ask(2);
        let first = reads.start_round(Some(7));
        reads.ask(3);
        let second = reads.start_round(Some(7));
        reads.ask(4);
        assert_ne!(first, second);
        reads.confirm_round(&second, 20);
        assert_eq!(reads.take_confirmed().last(), Some(&ConfirmedRead { context: 3, index: 20 }));
        reads.confirm_round(&first, 10);
        assert!(reads.take_confirmed().is_empty());
        assert!(reads.wants_round(RETRY), "4 waits");
    }

    #[test]
    fn rounds_under_way_are_bounded_and_what_comes_meanwhile_shares_the_next() {
        let mut reads = reads();
        let mut tokens = Vec::new();
        for context in 1..=10 {
            reads.ask(context);
            if reads.wants_round(RETRY) {
                tokens.push(reads.start_round(Some(1)));
            }
        }
        assert_eq!(tokens.len(), ROUNDS_MAX);
        reads.confirm_round(&tokens[0], 5);
        assert_eq!(reads.take_confirmed(), [ConfirmedRead { context: 1, index: 5 }]);
        assert!(reads.wants_round(RETRY));
        let token = reads.start_round(Some(1));
        reads.confirm_round(&token, 6);
        assert_eq!(reads.take_confirmed().last(), Some(&ConfirmedRead { context: 10, index: 6 }));
        assert!(!reads.wants_round(RETRY));
    }

    #[test]
    fn a_late_round_is_asked_again_and_the_answer_to_any_try_counts() {
        for answered in 0..3 {
            let mut reads = reads();
            reads.ask(1);
            let mut tries = vec![reads.start_round(None)];
            for _ in 0..2 {
                assert!(!reads.wants_round(RETRY));
                (0..RETRY).for_each(|_| reads.tick());
                assert!(reads.wants_round(RETRY));
                tries.push(reads.start_round(None));
            }
            reads.confirm_round(&tries[answered], 9);
            assert_eq!(reads.take_confirmed(), [ConfirmedRead { context: 1, index: 9 }], "try {answered}");
            tries.iter().for_each(|token| reads.confirm_round(token, 10));
            assert!(reads.take_confirmed().is_empty(), "it is confirmed once");
            (0..RETRY).for_each(|_| reads.tick());
            assert!(!reads.wants_round(RETRY), "nothing waits");
        }
    }

    #[test]
    fn a_new_leader_is_asked_for_all_that_wait_and_never_with_an_old_token() {
        let mut reads = reads();
        reads.ask(1);
        let old = reads.start_round(None);
        reads.restart();
        assert!(reads.wants_round(RETRY));
        let new = reads.start_round(None);
        reads.confirm_round(&old, 5);
        assert!(reads.take_confirmed().is_empty());
        reads.confirm_round(&new, 6);
        assert_eq!(reads.take_confirmed(), [ConfirmedRead { context: 1, index: 6 }]);
        let mut next_life = ReadIndex::new(1, 77_000, 3);
        next_life.ask(1);
        assert!(![old, new].contains(&next_life.start_round(None)), "nor has another life the same tokens");
    }

    #[test]
    fn peers_get_their_own_bytes_back_and_are_bounded() {
        let mut reads = reads();
        for read in [peer(2, b"same"), peer(3, b"same"), peer(2, b"same"), peer(2, b"one too many")] {
            reads.ask_for(read);
        }
        assert!(reads.wants_round(RETRY), "though this member reads nothing");
        let token = reads.start_round(Some(4));
        reads.confirm_round(b"same", 3);
        assert!(reads.take_answers().is_empty(), "a peer's bytes name no round");
        reads.confirm_round(&token, 8);
        assert_eq!(reads.take_answers(), [(peer(2, b"same"), 8), (peer(3, b"same"), 8), (peer(2, b"same"), 8)]);
        reads.ask_for(peer(2, b"there is room again"));
        reads.restart();
        assert!(!reads.wants_round(RETRY), "who leads no more answers no peer");
        (0..3).for_each(|_| reads.ask_for(peer(2, b"x")));
        reads.ask(1);
        reads.confirm_all(9);
        assert_eq!((reads.take_answers().len(), reads.take_confirmed().len()), (3, 1));
    }

    #[test]
    fn rounds_that_are_never_answered_leave_nothing_behind() {
        let mut reads = reads();
        reads.ask(1);
        for _ in 0..10 * TRIES_MAX {
            reads.ask_for(peer(2, b"x"));
            (0..RETRY).for_each(|_| reads.tick());
            assert!(reads.wants_round(RETRY));
            reads.start_round(Some(1));
            assert!(reads.rounds.len() <= TRIES_MAX && reads.held <= 3);
        }
        let held: usize = reads.rounds.iter().map(|round| round.peers.len()).sum();
        assert_eq!(held + reads.peers.len(), reads.held);
    }
}
