//! Log entries: their plain types, what an entry costs, and the form in which raft-rs holds one.
//!
//! Owns the numbers of the kinds, and the one place where an entry turns into raft-rs's entry and back. Does not know
//! what the bytes of a request mean, and does not frame an entry for the log or for a peer.
//!
//! Invariant: raft-rs never sees the bytes of a configuration change as its `data` (see `raft_entry`).

use bytes::Bytes;
use raft::eraftpb;

/// What an entry's bytes mean. The numbers are raftpb's, and the WAL's kind byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// A request; empty for the first entry of a leader and for a refused configuration change.
    Normal = 0,
    /// A `ConfChange` in etcd's bytes.
    ConfChange = 1,
}

impl EntryKind {
    /// The kind with this number; joint configurations (2) would stop an etcd member and do not exist here.
    pub fn from_number(number: u64) -> Option<EntryKind> {
        match number {
            0 => Some(EntryKind::Normal),
            1 => Some(EntryKind::ConfChange),
            _ => None,
        }
    }
}

/// Names one entry of the log: an index alone does not, because another leader may put another entry there.
///
/// A state machine that has applied everything up to an entry is said to stand at its id; the default stands before the
/// first entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EntryId {
    /// Log position; 0 before the first entry.
    pub index: u64,
    /// Term of the leader that made the entry.
    pub term: u64,
}

/// A committed entry, durable on a quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committed {
    /// Log position.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
    /// What `data` is.
    pub kind: EntryKind,
    /// A request, empty for a leader's first entry; or an encoded `ConfChange`.
    pub data: Bytes,
}

/// One log entry on its way to or from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Log position; 0 in a forwarded proposal.
    pub index: u64,
    /// Term of the leader that made it; 0 in a forwarded proposal.
    pub term: u64,
    /// What `data` is.
    pub kind: EntryKind,
    /// Opaque bytes.
    pub data: Bytes,
}

/// Memory and log bytes an entry costs beside its data: framing in the WAL and bookkeeping here.
pub(crate) const ENTRY_OVERHEAD_BYTES: u64 = 64;

/// What one entry costs, for every bound in this crate.
pub(crate) fn entry_cost_bytes(data: &[u8]) -> u64 {
    data.len() as u64 + ENTRY_OVERHEAD_BYTES
}

impl Entry {
    /// The pair of `raft_entry`.
    pub(crate) fn from_raft(entry: eraftpb::Entry) -> Entry {
        let (index, term) = (entry.index, entry.term);
        let (kind, data) = match entry.get_entry_type() {
            eraftpb::EntryType::EntryNormal => {
                assert!(entry.context.is_empty(), "a request has no context");
                (EntryKind::Normal, entry.data)
            }
            eraftpb::EntryType::EntryConfChange => {
                assert!(entry.data.is_empty(), "a configuration change lies in the context");
                assert!(!entry.context.is_empty(), "a configuration change has bytes");
                (EntryKind::ConfChange, entry.context)
            }
            eraftpb::EntryType::EntryConfChangeV2 => {
                unreachable!("no joint change is proposed, translated or recovered")
            }
        };
        Entry { index, term, kind, data }
    }
}

/// An entry as raft-rs holds it.
///
/// The bytes of a configuration change lie in `context`, a field that etcd does not know and raft-rs does not read.
/// raft-rs's leader parses the `data` of every proposed change with its own enum, and drops the proposal when it meets
/// etcd's number 3 (AddLearnerNode). Empty data parses as a change that adds nobody, which is all it looks at.
pub(crate) fn raft_entry(index: u64, term: u64, kind: EntryKind, bytes: Bytes) -> eraftpb::Entry {
    let mut entry = eraftpb::Entry { index, term, ..eraftpb::Entry::default() };
    match kind {
        EntryKind::Normal => entry.data = bytes,
        EntryKind::ConfChange => {
            entry.set_entry_type(eraftpb::EntryType::EntryConfChange);
            entry.context = bytes;
        }
    }
    entry
}
