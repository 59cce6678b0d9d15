//! Linearizable reads: which index must be applied before a read may be answered.
//!
//! Owns the reads that wait for a confirmation. One round confirms all that wait (a batch per turn of the core), so the
//! cost is per round, not per read. Each round gets an own token (term, counter) that is never used twice: raft-rs
//! matches acknowledgements by this token, and a reused one could confirm a read by an old acknowledgement
//! (etcd-io/raft issue 397).
//!
//! Invariants: a read is in `waiting` or in one of `rounds`, never both; `waiting` plus the reads in `rounds` never
//! exceed `reads_max`. With a single voter no round is needed once an entry of the own term is committed: before that,
//! a restarted member does not know yet which of its durable entries it acknowledged.

use std::collections::VecDeque;

use engine::planted::is_planted;

use crate::error::Error;

/// A read that may be answered once the state machine has applied `index`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConfirmedRead {
    /// What the caller named the read.
    pub context: u64,
    /// Everything acknowledged before the read was asked for lies at or below this index.
    pub index: u64,
}

#[derive(Debug)]
struct Round {
    token: [u8; 16],
    contexts: Vec<u64>,
}

/// Reads between request and confirmation.
#[derive(Debug)]
pub(crate) struct ReadIndex {
    waiting: Vec<u64>,
    rounds: VecDeque<Round>,
    reads: usize,
    reads_max: usize,
    counter: u64,
    /// Ticks since the last round started.
    round_ticks: usize,
    confirmed: Vec<ConfirmedRead>,
}

impl ReadIndex {
    pub(crate) fn new(reads_max: usize) -> ReadIndex {
        ReadIndex {
            waiting: Vec::new(),
            rounds: VecDeque::new(),
            reads: 0,
            reads_max,
            counter: 0,
            round_ticks: 0,
            confirmed: Vec::new(),
        }
    }

    /// A read that needs no round.
    pub(crate) fn confirm_at_once(&mut self, context: u64, index: u64) {
        self.confirmed.push(ConfirmedRead { context, index });
    }

    pub(crate) fn wait(&mut self, context: u64) -> Result<(), Error> {
        if self.reads >= self.reads_max {
            return Err(Error::TooManyRequests { waiting_entries: self.reads as u64, waiting_bytes: 0 });
        }
        self.reads += 1;
        self.waiting.push(context);
        Ok(())
    }

    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Starts one round for all that wait; the token goes to raft-rs.
    pub(crate) fn start_round(&mut self, term: u64) -> [u8; 16] {
        assert!(self.has_waiting());
        self.counter += u64::from(!is_planted("a token used again"));
        self.round_ticks = 0;
        let mut token = [0; 16];
        token[..8].copy_from_slice(&term.to_be_bytes());
        token[8..].copy_from_slice(&self.counter.to_be_bytes());
        self.rounds.push_back(Round { token, contexts: std::mem::take(&mut self.waiting) });
        token
    }

    /// A round was confirmed at `index`. Rounds before it are confirmed with it: they were asked for earlier.
    pub(crate) fn confirm_round(&mut self, token: &[u8], index: u64) {
        let Some(position) = self.rounds.iter().position(|round| round.token == token) else {
            return;
        };
        for round in self.rounds.drain(..=position) {
            self.reads -= round.contexts.len();
            self.confirmed.extend(round.contexts.iter().map(|&context| ConfirmedRead { context, index }));
        }
    }

    /// All that wait are confirmed: a single voter that has committed in its term.
    pub(crate) fn confirm_all(&mut self, index: u64) {
        let rounds = self.rounds.drain(..).flat_map(|round| round.contexts);
        let confirmed = rounds.chain(self.waiting.drain(..)).map(|context| ConfirmedRead { context, index });
        self.confirmed.extend(confirmed);
        self.reads = 0;
    }

    /// One tick has passed: rounds that are unanswered for `retry_ticks` are asked again.
    pub(crate) fn tick(&mut self, retry_ticks: usize) {
        self.round_ticks += 1;
        if self.round_ticks >= retry_ticks {
            self.restart_rounds();
        }
    }

    /// The leader changed, or did not answer in time: the rounds' reads are asked for again, with a new token.
    pub(crate) fn restart_rounds(&mut self) {
        for round in self.rounds.drain(..) {
            self.waiting.extend(round.contexts);
        }
        assert_eq!(self.reads, self.waiting.len());
    }

    pub(crate) fn take_confirmed(&mut self) -> Vec<ConfirmedRead> {
        std::mem::take(&mut self.confirmed)
    }

    /// Forgets everything: the driver has stopped.
    pub(crate) fn clear(&mut self) {
        self.waiting.clear();
        self.rounds.clear();
        self.confirmed.clear();
        self.reads = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_confirms_what_waited_before_it_and_nothing_after() {
        let mut reads = ReadIndex::new(10);
        reads.wait(1).unwrap();
        reads.wait(2).unwrap();
        let first = reads.start_round(7);
        reads.wait(3).unwrap();
        let second = reads.start_round(7);
        reads.wait(4).unwrap();
        assert_ne!(first, second);
        reads.confirm_round(&second, 20);
        let confirmed: Vec<u64> = reads.take_confirmed().iter().map(|read| read.context).collect();
        assert_eq!(confirmed, [1, 2, 3]);
        reads.confirm_round(&first, 10);
        assert!(reads.take_confirmed().is_empty());
        assert!(reads.has_waiting());
    }

    #[test]
    fn a_restarted_round_has_a_new_token_and_loses_no_read() {
        let mut reads = ReadIndex::new(10);
        reads.wait(1).unwrap();
        let old = reads.start_round(7);
        reads.restart_rounds();
        let new = reads.start_round(7);
        reads.confirm_round(&old, 5);
        assert!(reads.take_confirmed().is_empty());
        reads.confirm_round(&new, 6);
        assert_eq!(reads.take_confirmed(), [ConfirmedRead { context: 1, index: 6 }]);
    }

    #[test]
    fn waiting_reads_are_bounded_until_confirmed() {
        let mut reads = ReadIndex::new(2);
        reads.wait(1).unwrap();
        let token = reads.start_round(1);
        reads.wait(2).unwrap();
        assert!(reads.wait(3).is_err());
        reads.confirm_round(&token, 1);
        reads.wait(3).unwrap();
        reads.confirm_all(2);
        assert_eq!(reads.take_confirmed().len(), 3);
    }
}
