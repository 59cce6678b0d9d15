//! The parts of Raft's state that the log keeps: entries, and the hard state.
//!
//! It knows no file and no form on disk.

use bytes::Bytes;

/// One position of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index, from 1.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// The kind of `data`; opaque here.
    pub kind: u8,
    /// Payload.
    pub data: Bytes,
}

/// The state that Raft must remember beside its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest term seen.
    pub term: u64,
    /// The member that got the vote in `term`; 0 for none.
    pub vote: u64,
    /// Highest index that is known to be committed.
    pub commit: u64,
    /// The log was cut at its end, and what was lost there has not been made up for. It may have been promised: a group
    /// that was torn looks like one that was durable and then damaged.
    pub is_cut: bool,
    /// Whom the last promises concern: a number of the owner's, opaque here. All bits are set in what was written
    /// before there was this number.
    pub concerned: u64,
}
