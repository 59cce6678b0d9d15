//! What can go wrong between a proposal and its durable place in the log.
//!
//! Variants differ by what the caller does: answer the client, wait for a leader, or stop the member. No raft-rs type
//! is in here.

use std::path::PathBuf;

/// Everything this crate reports; texts for clients are the server's.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Apply lags too far behind commit, or too many bytes wait: the client tries again later.
    #[error("too many requests: {waiting_entries} entries and {waiting_bytes} bytes wait to be applied")]
    TooManyRequests {
        /// Committed entries that are not applied yet.
        waiting_entries: u64,
        /// Bytes of all entries that are not applied yet.
        waiting_bytes: u64,
    },
    /// More than the log can hold in one entry, whatever the server allows.
    #[error("an entry of {bytes} bytes exceeds the log's bound of {bytes_max}")]
    TooLarge {
        /// Size of the proposal.
        bytes: usize,
        /// Largest size that fits.
        bytes_max: usize,
    },
    /// The log's disk is full, and what is left of its last segment is kept for what frees space and for raft's own
    /// records: the client tries again when there is space.
    #[error("the log's disk is full: {room_bytes} bytes are left in its last segment")]
    NoSpace {
        /// What is left.
        room_bytes: u64,
    },
    /// The log's next segment is not ready, and what is left of the last one must not be used before it is: the
    /// proposal is made again when the disk has ended what it does.
    #[error("the log's next segment is not ready")]
    LogWaits,
    /// No leader is known, or leadership is being handed over.
    #[error("no leader")]
    NoLeader,
    /// An earlier write failed; nothing is trusted until the member is started again.
    #[error("stopped after an error: {reason}")]
    Stopped {
        /// The first error, as text: the error itself went to the caller who saw it first.
        reason: String,
    },
    /// The log could not be read or written. The driver is stopped.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The log ends before what the state machine has applied: files of different times or members are mixed.
    #[error("{dir}: the log ends at index {last_index}, the state has index {applied}: files do not belong together")]
    LogBehindState {
        /// The log's directory.
        dir: PathBuf,
        /// Last index of the log.
        last_index: u64,
        /// What the state machine has applied.
        applied: u64,
    },
    /// The log starts after what the state machine needs next.
    #[error("{dir}: the log starts after index {mark}, the state has only index {applied}")]
    LogAheadOfState {
        /// The log's directory.
        dir: PathBuf,
        /// The log starts after this index.
        mark: u64,
        /// What the state machine has applied.
        applied: u64,
    },
    /// Log and state disagree about the term of the applied entry.
    #[error(
        "{dir}: entry {index} has term {log_term} in the log, {state_term} in the state: files do not belong together"
    )]
    TermMismatch {
        /// The log's directory.
        dir: PathBuf,
        /// The applied index.
        index: u64,
        /// Its term in the log.
        log_term: u64,
        /// Its term in the state machine.
        state_term: u64,
    },
    /// Recovered entries are not one contiguous run with terms that never decrease.
    #[error("{dir}: the log breaks at index {index}: {what}")]
    LogBroken {
        /// The log's directory.
        dir: PathBuf,
        /// The first index that does not fit.
        index: u64,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Bytes that are not what they should be: a configuration change, a member's JSON, a peer's message.
    #[error("malformed {what}")]
    Malformed {
        /// What was decoded.
        what: &'static str,
    },
    /// The configuration change cannot be made, e.g. it would leave no voter.
    #[error("configuration change refused: {reason}")]
    ConfChangeRefused {
        /// Why.
        reason: String,
    },
    /// No new cluster can be made of this member alone.
    #[error("--force-new-cluster: no cluster can be made of this member: {what}")]
    NotForced {
        /// Why.
        what: &'static str,
    },
    /// Options that contradict each other, or an identity that cannot be.
    #[error("invalid options: {what}")]
    InvalidOptions {
        /// What is wrong.
        what: String,
    },
}

/// One proposal of several that was refused.
#[derive(Debug)]
pub struct Refused {
    /// Its place among those that were proposed together, counted from 0.
    pub position: usize,
    /// Why.
    pub error: Error,
}
