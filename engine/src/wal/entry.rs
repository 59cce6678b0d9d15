//! What the log keeps for Raft: entries, and the hard state.
//!
//! Knows no file and no form on disk.

use bytes::Bytes;

/// One position of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index, from 1.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
    /// What `data` is; opaque here.
    pub kind: u8,
    /// Payload.
    pub data: Bytes,
}

/// What Raft must remember beside its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest term seen.
    pub term: u64,
    /// Member voted for in `term`; 0 for none.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}
