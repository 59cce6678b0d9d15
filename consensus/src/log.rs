//! The log as raft-rs sees it: its newest part in memory, the rest read back when a peer needs it.
//!
//! It owns the entries that were handed to the WAL, durable or not, from `in_memory` on, the terms of all entries of
//! the WAL, and what was fetched from there (`fetch`).
//!
//! Invariants:
//! - Position i of `entries` holds index `in_memory + i`. An entry above `applied` is always in memory.
//! - `terms` covers all from the WAL's mark to the last entry.
//! - `unapplied_bytes` is the cost of exactly the entries above `applied`; `bytes` of all in memory. `applied` never
//!   decreases.
//!
//! It does not write: the driver hands the same entries to the WAL, and tells raft-rs when they are durable.

use std::collections::VecDeque;

use bytes::Bytes;
use engine::wal::Terms;
use raft::{GetEntriesContext, RaftState, Storage, StorageError, eraftpb};

use crate::{
    entry::{EntryKind, entry_cost_bytes, raft_entry},
    fetch::Fetching,
    states::States,
};

#[derive(Debug)]
struct Kept {
    kind: EntryKind,
    data: Bytes,
}

/// The log as raft-rs sees it. See the head of this file.
#[derive(Debug)]
pub(crate) struct Log {
    initial_state: RaftState,
    terms: Terms,
    /// Index of the first entry in memory.
    in_memory: u64,
    entries: VecDeque<Kept>,
    bytes: u64,
    bytes_max: u64,
    applied: u64,
    unapplied_bytes: u64,
    fetching: Fetching,
    states: States,
}

impl Log {
    /// An empty log that starts after `mark` = (index, term).
    ///
    /// None if a state at `applied` cannot be continued by it.
    pub(crate) fn new(mark: (u64, u64), applied: u64, bytes_max: u64) -> Option<Log> {
        (mark.0 <= applied).then(|| Log {
            initial_state: RaftState::default(),
            terms: Terms::starting_after(mark),
            in_memory: mark.0 + 1,
            entries: VecDeque::new(),
            bytes: 0,
            bytes_max,
            applied,
            unapplied_bytes: 0,
            fetching: Fetching::default(),
            states: States::default(),
        })
    }

    /// What raft-rs starts from.
    pub(crate) fn set_initial_state(&mut self, hard_state: eraftpb::HardState, conf_state: eraftpb::ConfState) {
        self.initial_state = RaftState::new(hard_state, conf_state);
    }

    pub(crate) fn last(&self) -> u64 {
        self.terms.last_index()
    }

    pub(crate) fn unapplied_bytes(&self) -> u64 {
        self.unapplied_bytes
    }

    /// What peers need and is not in memory.
    pub(crate) fn fetching(&mut self) -> &mut Fetching {
        &mut self.fetching
    }

    /// Goes past a recovered entry that is applied already: it is only in the WAL.
    pub(crate) fn pass(&mut self, index: u64, term: u64) {
        assert!(index == self.last() + 1 && index <= self.applied && self.entries.is_empty());
        self.terms.put(index, term);
        self.in_memory = index + 1;
    }

    /// Appends one recovered entry.
    pub(crate) fn restore(&mut self, index: u64, term: u64, kind: EntryKind, data: Bytes) {
        assert_eq!(index, self.last() + 1);
        self.terms.put(index, term);
        let cost = entry_cost_bytes(&data);
        self.bytes += cost;
        if index > self.applied {
            self.unapplied_bytes += cost;
        }
        self.entries.push_back(Kept { kind, data });
        self.evict();
    }

    /// Appends one entry; one at or below the last index replaces that and all after it.
    pub(crate) fn append(&mut self, index: u64, term: u64, kind: EntryKind, data: Bytes) {
        assert!(index > self.applied, "entry {index} would replace an applied one (applied {})", self.applied);
        assert!(index <= self.last() + 1, "entry {index} leaves a gap after {}", self.last());
        for _ in index..=self.last() {
            let replaced = self.entries.pop_back().expect("what is not applied is in memory");
            let cost = entry_cost_bytes(&replaced.data);
            self.bytes -= cost;
            self.unapplied_bytes -= cost;
        }
        self.terms.put(index, term);
        let cost = entry_cost_bytes(&data);
        self.bytes += cost;
        self.unapplied_bytes += cost;
        self.entries.push_back(Kept { kind, data });
        assert_eq!(self.in_memory + self.entries.len() as u64, index + 1);
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

    /// A state is installed that goes on after the entry `index` of `term`, to which this log does not lead.
    pub(crate) fn restart_after(&mut self, index: u64, term: u64) {
        assert!(index > self.applied && self.term_of(index) != Some(term), "the log leads to the state");
        self.terms = Terms::starting_after((index, term));
        self.entries.clear();
        (self.in_memory, self.applied) = (index + 1, index);
        (self.bytes, self.unapplied_bytes) = (0, 0);
        self.fetching.forget();
        self.states = States::default();
    }

    /// The states for followers whose next entries are gone.
    pub(crate) fn states(&mut self) -> &mut States {
        &mut self.states
    }

    /// The WAL has forgotten the entries up to `index`, which is applied.
    pub(crate) fn trimmed_to(&mut self, index: u64, term: u64) {
        assert!(index <= self.applied, "only what is applied is trimmed");
        self.terms.trim(index, term);
        while self.in_memory <= index && !self.entries.is_empty() {
            self.evict_first();
        }
        self.in_memory = self.in_memory.max(index + 1);
    }

    /// Term of the entry at `index`, or of the place just before the first.
    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        self.terms.get(index)
    }

    /// Takes out of memory what applied entries exceed `bytes_max`, oldest first.
    fn evict(&mut self) {
        while self.bytes > self.bytes_max && self.in_memory <= self.applied && !self.entries.is_empty() {
            self.evict_first();
        }
        // A long replay leaves room for many entries behind; geometric, so that its cost is spread.
        if self.entries.capacity() > 4096 && self.entries.capacity() / 8 > self.entries.len() {
            self.entries.shrink_to(self.entries.len() * 2);
        }
        assert!(self.in_memory <= self.applied + 1);
    }

    fn evict_first(&mut self) {
        let evicted = self.entries.pop_front().expect("the caller has looked");
        self.bytes -= entry_cost_bytes(&evicted.data);
        self.in_memory += 1;
    }

    /// The cost of the entries above `index` that are in memory. **Units** bytes.
    pub(crate) fn bytes_after(&self, index: u64) -> u64 {
        let beyond = self.last() - index.min(self.last());
        self.entries.iter().rev().zip(0..beyond).map(|(kept, _)| entry_cost_bytes(&kept.data)).sum()
    }

    /// Whether all entries above `index` are in memory.
    pub(crate) fn has_all_after(&self, index: u64) -> bool {
        index + 1 >= self.in_memory
    }

    /// Requests above `applied`, with their indexes, in order.
    pub(crate) fn unapplied(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        let entries = (self.in_memory..).zip(&self.entries);
        let waiting = entries.skip_while(|(index, _)| *index <= self.applied);
        waiting.filter(|(_, kept)| kept.kind == EntryKind::Normal).map(|(index, kept)| (index, &kept.data))
    }

    fn kept(&self, index: u64) -> Option<&Kept> {
        let position = index.checked_sub(self.in_memory)?;
        usize::try_from(position).ok().and_then(|position| self.entries.get(position))
    }

    /// Entries in memory from `low` on.
    fn resident(&self, low: u64, high: u64) -> impl Iterator<Item = raft::Result<eraftpb::Entry>> {
        (low..high).map(|index| {
            let kept = self.kept(index).ok_or(raft::Error::Store(StorageError::Unavailable))?;
            let term = self.terms.get(index).expect("an entry in memory has a term");
            Ok(raft_entry(index, term, kept.kind, kept.data.clone()))
        })
    }
}

/// The first of `entries` up to about `bytes_max`, and at least one.
fn bounded(
    entries: impl Iterator<Item = raft::Result<eraftpb::Entry>>,
    bytes_max: u64,
) -> raft::Result<Vec<eraftpb::Entry>> {
    let mut taken_bytes = 0_u64;
    let mut taken = Vec::new();
    for entry in entries {
        let entry = entry?;
        taken_bytes = taken_bytes.saturating_add(entry_cost_bytes(&entry.data) + entry.context.len() as u64);
        if taken_bytes > bytes_max && !taken.is_empty() {
            break;
        }
        taken.push(entry);
    }
    Ok(taken)
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
        context: GetEntriesContext,
    ) -> raft::Result<Vec<eraftpb::Entry>> {
        assert!(
            low <= high && high <= self.last() + 1,
            "entries [{low}, {high}) of a log that ends at {}",
            self.last()
        );
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        if low >= self.in_memory {
            return bounded(self.resident(low, high), bytes_max);
        }
        // raft-rs needs at once only what is not applied.
        if low <= self.terms.mark().0 || self.fetching.is_lost(low) || !context.can_async() {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        match self.fetching.entries_from(low, high) {
            Some(entries) => bounded(entries.map(Ok), bytes_max),
            None => {
                self.fetching.want(low, context);
                Err(raft::Error::Store(StorageError::LogTemporarilyUnavailable))
            }
        }
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.terms.mark().0 {
            return Err(raft::Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(raft::Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.terms.mark().0 + 1)
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last())
    }

    /// Whoever owns the state is asked for one, and raft-rs asks again at the follower's next answer.
    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<eraftpb::Snapshot> {
        let leads_on = self.terms.mark().0.max(request_index);
        let state = self.states.take(to, leads_on);
        state.map(|state| state.to_raft()).ok_or(raft::Error::Store(StorageError::SnapshotTemporarilyUnavailable))
    }
}
