//! Runs on: apply core.
//!
//! The sweep drops, step by step, what a compaction has made invisible. This file also knows who waits for its end.
//!
//! Invariant: a version that is visible at or above the lowest floor of any connection core is never dropped.

use std::time::Duration;

use engine::{Fault, Store};

use super::waiters::Waiters;
use crate::{metrics::counters::CommitCounters, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug)]
pub struct Sweep {
    is_going: bool,
    /// The sweep has done what the floors allow. It goes on when they rise.
    is_held: bool,
    /// When the compaction that is being swept was applied; `None` if an earlier run applied it.
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

    /// Notes that a compaction was applied.
    pub fn compacted(&mut self, now: Duration) {
        self.is_going = true;
        self.compacted_at.get_or_insert(now);
    }

    /// Looks at the floors again, if the sweep waits for them.
    pub fn look_again(&mut self) {
        self.is_going |= self.is_held;
    }

    /// Makes `reply` wait until the sweep has passed `revision`. Its slot lives no longer than `lifetime`.
    pub fn wait(&mut self, reply: ReplyTo, revision: i64, now: Duration, lifetime: Duration) {
        self.waiting.push(reply, revision, now, lifetime);
    }

    /// Takes out the replies that wait for a revision up to `swept`.
    pub fn take_waiters(&mut self, swept: i64) -> Vec<ReplyTo> {
        self.waiting.take(&swept)
    }

    /// Drops what can be dropped below `floor`, and looks at about `budget` entries. Returns how many versions were
    /// dropped, and whether no more can be.
    ///
    /// **Errors** a page that is not resident; the same call goes on.
    pub fn step(&mut self, store: &mut Store, floor: i64, budget: usize) -> Result<(u64, bool), Fault> {
        store.mvcc_mut().hold_sweep(Some(floor));
        let progress = store.sweep(budget)?;
        Ok((progress.dropped, progress.is_done))
    }

    /// Notes that the sweep has done everything that `floor` allows of the compaction at `compacted`. Returns the
    /// revision up to which it is done.
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
