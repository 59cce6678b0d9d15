//! Runs on: apply core.
//!
//! The sweep: it drops, step by step, what a compaction has made invisible; and who waits for its end.
//!
//! Invariant: nothing is dropped that is visible at or above the lowest floor of any connection core.

use std::time::Duration;

use engine::{Fault, Store};

use super::waiters::Waiters;
use crate::{metrics::counters::CommitCounters, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug)]
pub struct Sweep {
    is_going: bool,
    /// It has done what the floors let it do; it goes on when they rise.
    is_held: bool,
    /// When the compaction that is being swept was applied; `None` for what was left by an earlier run.
    compacted_at: Option<Duration>,
    waiting: Waiters<i64>,
}

impl Sweep {
    /// A sweep of what an earlier run may have left.
    pub fn left() -> Self {
        Self { is_going: true, is_held: false, compacted_at: None, waiting: Waiters::default() }
    }

    /// Whether there may be something to drop.
    pub fn is_going(&self) -> bool {
        self.is_going
    }

    /// A compaction was applied.
    pub fn compacted(&mut self, now: Duration) {
        self.is_going = true;
        self.compacted_at.get_or_insert(now);
    }

    /// Looks at the floors again, if it waits for them.
    pub fn look_again(&mut self) {
        self.is_going |= self.is_held;
    }

    /// `reply`, whose slot lives no longer than `lifetime`, waits until the sweep has passed `revision`.
    pub fn wait(&mut self, reply: ReplyTo, revision: i64, now: Duration, lifetime: Duration) {
        self.waiting.push(reply, revision, now, lifetime);
    }

    /// Takes out who waits for no more than `swept`.
    pub fn take_waiters(&mut self, swept: i64) -> Vec<ReplyTo> {
        self.waiting.take(&swept)
    }

    /// Drops what can be dropped below `floor`, looking at about `budget` entries: how many were dropped, and whether
    /// no more can be.
    ///
    /// **Errors** a page that is not resident; the same call goes on.
    pub fn step(&mut self, store: &mut Store, floor: i64, budget: usize) -> Result<(u64, bool), Fault> {
        store.mvcc_mut().hold_sweep(Some(floor));
        let progress = store.sweep(budget)?;
        Ok((progress.dropped, progress.is_done))
    }

    /// It has done all that `floor` allows of what is compacted at `compacted`; the revision up to which it is done.
    pub fn ended(&mut self, compacted: i64, floor: i64, now: Duration, counters: &CommitCounters) -> i64 {
        let swept = compacted.min(floor);
        self.is_going = false;
        self.is_held = swept < compacted;
        if self.is_held {
            return swept;
        }
        if let Some(began) = self.compacted_at.take() {
            counters.swept(began, now);
        }
        tracing::info!(revision = swept, "finished scheduled compaction");
        swept
    }
}
