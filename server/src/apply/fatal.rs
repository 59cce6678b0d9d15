//! Runs on: raft core, apply core.
//!
//! The reasons why a member stops: it can no longer trust its log or its state.

use proto::internal::Kind;

/// See the head of this file.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The log or raft failed.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// The store failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The disk's completions cannot be waited for.
    #[error("waiting for the disk: {0}")]
    Wake(std::io::Error),
    /// A state of another member goes back behind this member's, or its term does.
    #[error("the state at entry {index} that another member sent contradicts this member's: one is not the cluster's")]
    Contradiction {
        /// The last entry in it.
        index: u64,
    },
    /// A committed entry cannot be understood.
    #[error("entry {index} cannot be applied: {source}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        source: proto::error::Error,
    },
    /// A committed configuration change cannot be understood.
    #[error("the configuration change at {index} cannot be applied: {source}")]
    ConfChange {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        source: consensus::Error,
    },
    /// A committed entry asks for something that this release does not do. To pass it over would be to hold another
    /// state than the other members.
    #[error("entry {index} asks for {kind:?}, which this release does not apply")]
    Unapplied {
        /// Its index.
        index: u64,
        /// What it asks for.
        kind: Kind,
    },
}
