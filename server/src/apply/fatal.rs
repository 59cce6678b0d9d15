//! Runs on: raft core, apply core.
//!
//! Why a member stops: it cannot be sure of its log or of its state any more.

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
    /// An entry that cannot be understood was committed.
    #[error("entry {index} cannot be applied: {source}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        source: proto::error::Error,
    },
}
