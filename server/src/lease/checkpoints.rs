//! Runs on: apply core.
//!
//! When a leader takes down how much time a lease has left, and which leases must not be renewed before that is taken
//! back.
//!
//! A renewal is not replicated. If the log says that a lease has 40 s left, the next leader gives it 40 s, even if it
//! was renewed since. So a renewal is answered only after an entry that takes the time back, where one may be needed.
//! etcd does the same, except for what is still on its way through the log at the moment of the renewal.
//!
//! Invariants:
//! - `due` and `next` hold the same: when the time of a lease is taken down next. Both are empty if this member does
//!   not lead, or takes nothing down.
//! - `recorded` holds each lease of which an entry of the log, or one on its way there, says that it has less time left
//!   than the lessor believes. With it, when taking this back was last asked for, if nothing was recorded since.
//! - Entries of a term are applied in the order in which its leader asked for them. So once an entry is applied that
//!   takes the time of a lease back, and none was asked for after it that takes it down, nothing is recorded.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Checkpoints {
    due: BTreeSet<(Duration, i64)>,
    next: BTreeMap<i64, Duration>,
    recorded: BTreeMap<i64, Option<Duration>>,
}

impl Checkpoints {
    /// The time of the lease is taken down at `at`.
    pub(super) fn plan(&mut self, id: i64, at: Duration) {
        if let Some(before) = self.next.insert(id, at) {
            self.due.remove(&(before, id));
        }
        self.due.insert((at, id));
    }

    /// Takes out a lease whose time is taken down by `now`.
    pub(super) fn take_due(&mut self, now: Duration) -> Option<i64> {
        let (at, id) = self.due.first().copied().filter(|(at, _)| *at <= now)?;
        self.due.remove(&(at, id));
        self.next.remove(&id);
        Some(id)
    }

    /// Taking down the time of this lease is asked for, or was applied.
    pub(super) fn note_recorded(&mut self, id: i64) {
        self.recorded.insert(id, None);
    }

    /// Taking down the time of this lease was applied. It was asked for by this leader, or by one before it.
    pub(super) fn note_applied(&mut self, id: i64) {
        self.recorded.entry(id).or_insert(None);
    }

    /// An entry was applied that takes the time of this lease back.
    pub(super) fn note_taken_back(&mut self, id: i64) {
        if self.recorded.get(&id).is_some_and(Option::is_some) {
            self.recorded.remove(&id);
        }
    }

    /// Whether less time may be recorded of this lease.
    pub(super) fn is_recorded(&self, id: i64) -> bool {
        self.recorded.contains_key(&id)
    }

    /// Whether taking back the time of this lease is to be asked for now: if it was not, or is not applied after
    /// `retry_after`.
    pub(super) fn takes_back(&mut self, id: i64, now: Duration, retry_after: Duration) -> bool {
        let Some(asked) = self.recorded.get_mut(&id) else { return false };
        let is_due = asked.is_none_or(|asked| now >= asked + retry_after);
        if is_due {
            *asked = Some(now);
        }
        is_due
    }

    /// The lease is gone.
    pub(super) fn forget(&mut self, id: i64) {
        if let Some(at) = self.next.remove(&id) {
            self.due.remove(&(at, id));
        }
        self.recorded.remove(&id);
        assert_eq!(self.due.len(), self.next.len(), "both hold the same");
    }
}
