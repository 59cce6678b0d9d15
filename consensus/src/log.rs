//! The log as raft-rs sees it: its newest part in memory, with the counts that bound what waits.
//!
//! Owns the entries that were handed to the WAL, durable or not, from `first_index` on; everything older is only in the
//! WAL.
//!
//! Invariants: `entries` is contiguous: position i holds index `first_index + i`; `before` = (first_index - 1, its
//! term); an entry above `applied` is never evicted; `unapplied_bytes` is the cost of exactly the entries above
//! `applied`; `bytes` of all; `applied` never decreases. Does not write: the driver hands the same entries to the WAL,
//! and tells raft-rs when they are durable.

use std::collections::VecDeque;

use bytes::Bytes;
use raft::{GetEntriesContext, RaftState, Storage, StorageError, eraftpb};

use crate::entry::{EntryKind, entry_cost_bytes, raft_entry};

#[derive(Debug)]
struct Kept {
    term: u64,
    kind: EntryKind,
    data: Bytes,
}

/// The newest part of the log, in memory.
#[derive(Debug)]
pub(crate) struct Log {
    initial_state: RaftState,
    before: (u64, u64),
    entries: VecDeque<Kept>,
    bytes: u64,
    bytes_max: u64,
    applied: u64,
    unapplied_bytes: u64,
}

impl Log {
    /// An empty log that starts after `mark` = (index, term).
    ///
    /// None if a state at `applied` cannot be continued by it.
    pub(crate) fn new(mark: (u64, u64), applied: u64, bytes_max: u64) -> Option<Log> {
        (mark.0 <= applied).then(|| Log {
            initial_state: RaftState::default(),
            before: mark,
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            applied,
            unapplied_bytes: 0,
        })
    }

    /// What raft-rs starts from.
    pub(crate) fn set_initial_state(&mut self, hard_state: eraftpb::HardState, conf_state: eraftpb::ConfState) {
        self.initial_state = RaftState::new(hard_state, conf_state);
    }

    pub(crate) fn first(&self) -> u64 {
        self.before.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.before.0 + self.entries.len() as u64
    }

    pub(crate) fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// Goes past a recovered entry that is applied already: it is only in the WAL.
    pub(crate) fn pass(&mut self, index: u64, term: u64) {
        assert!(index == self.last() + 1 && index <= self.applied && self.entries.is_empty());
        self.before = (index, term);
    }

    /// Appends one recovered entry.
    pub(crate) fn restore(&mut self, index: u64, term: u64, kind: EntryKind, data: Bytes) {
        assert_eq!(index, self.last() + 1);
        let cost = entry_cost_bytes(&data);
        self.bytes += cost;
        if index > self.applied {
            self.unapplied_bytes += cost;
        }
        self.entries.push_back(Kept { term, kind, data });
        self.evict();
    }

    /// Appends one entry; one at or below the last index replaces that and all after it.
    pub(crate) fn append(&mut self, index: u64, term: u64, kind: EntryKind, data: Bytes) {
        assert!(index > self.applied, "entry {index} would replace an applied one (applied {})", self.applied);
        assert!(index <= self.last() + 1, "entry {index} leaves a gap after {}", self.last());
        while self.last() >= index {
            let replaced = self.entries.pop_back().expect("last >= index > first - 1");
            let cost = entry_cost_bytes(&replaced.data);
            self.bytes -= cost;
            self.unapplied_bytes -= cost;
        }
        let cost = entry_cost_bytes(&data);
        self.bytes += cost;
        self.unapplied_bytes += cost;
        self.entries.push_back(Kept { term, kind, data });
        assert_eq!(self.last(), index);
    }

    /// Entries up to `index` are applied: they stop counting as waiting, and may leave memory.
    pub(crate) fn applied_to(&mut self, index: u64) {
        assert!(index >= self.applied, "applied {index} after {}", self.applied);
        assert!(index <= self.last(), "applied {index} beyond the log's last {}", self.last());
        for applied in self.applied + 1..=index {
            let cost = entry_cost_bytes(&self.kept(applied).expect("an unapplied entry is kept").data);
            self.unapplied_bytes -= cost;
        }
        self.applied = index;
        self.evict();
        assert!(self.applied < self.last() || self.unapplied_bytes == 0);
    }

    /// Term of the entry at `index`, or of the place just before the first; none outside memory.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.before.0 { Some(self.before.1) } else { self.kept(index).map(|kept| kept.term) }
    }

    /// Takes out of memory what applied entries exceed `bytes_max`, oldest first.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max && self.first() <= self.applied {
            let Some(evicted) = self.entries.pop_front() else { break };
            self.bytes -= entry_cost_bytes(&evicted.data);
            self.before = (self.before.0 + 1, evicted.term);
        }
        // A long replay leaves room for many entries behind; geometric, so that its cost is spread.
        if self.entries.capacity() > 4096 && self.entries.capacity() / 8 > self.entries.len() {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        assert!(self.before.0 <= self.applied);
    }

    /// Requests above `applied`, with their indexes, in order.
    pub(crate) fn unapplied(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        let entries = (self.first()..).zip(&self.entries);
        let waiting = entries.skip_while(|(index, _)| *index <= self.applied);
        waiting.filter(|(_, kept)| kept.kind == EntryKind::Normal).map(|(index, kept)| (index, &kept.data))
    }

    fn kept(&self, index: u64) -> Option<&Kept> {
        let position = index.checked_sub(self.first())?;
        usize::try_from(position).ok().and_then(|position| self.entries.get(position))
    }
}

impl Storage for Log {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(self.initial_state.clone())
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        _context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        assert!(
            low <= high && high <= self.last() + 1,
            "entries [{low}, {high}) of a log that ends at {}",
            self.last()
        );
        if low < self.first() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let mut taken_bytes = 0u64;
        let mut taken = Vec::new();
        for index in low..high {
            let kept = self.kept(index).ok_or(raft::Error::Store(StorageError::Unavailable))?;
            taken_bytes = taken_bytes.saturating_add(entry_cost_bytes(&kept.data));
            if taken_bytes > bytes_max && !taken.is_empty() {
                break;
            }
            taken.push(raft_entry(index, kept.term, kept.kind, kept.data.clone()));
        }
        Ok(taken)
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.before.0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Never: a snapshot is made by whoever owns the state, and raft-rs asks again.
    fn snapshot(&self, _request_index: u64, _to: u64) -> raft::Result<eraftpb::Snapshot> {
        Err(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
