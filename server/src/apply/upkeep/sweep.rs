//! Runs on: apply core.
//!
//! The sweep drops, step by step, what a compaction has made invisible. This file also knows who waits for its end.
//!
//! Invariant: a version that is visible at or above the lowest floor of any connection core is never dropped.
//!
//! Who waits for a compaction waits for what no reader holds. A backup may hold the rest for an hour. The rest is
//! dropped when the floors rise, and nobody waits for that.

use std::{sync::atomic::Ordering, time::Duration};

use engine::{Fault, Store};

use super::waiters::Waiters;
use crate::{clock, log, metrics::counters::CommitCounters, shared::Sizes, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug)]
pub struct Sweep {
    is_going: bool,
    /// The sweep has done what the floors allow. It goes on when they rise.
    is_held: bool,
    /// When the compaction that is being swept was applied; `None` if an earlier run applied it.
    compacted_at: Option<Duration>,
    /// Versions that were dropped since the last end.
    dropped: u64,
    waiting: Waiters<i64>,
}

impl Sweep {
    /// A sweep of what an earlier run may have left.
    pub fn left() -> Self {
        Self { is_going: true, is_held: false, compacted_at: None, dropped: 0, waiting: Waiters::default() }
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
        self.waiting.take(|revision| *revision <= swept)
    }

    /// Drops what can be dropped below `floor`, and looks at about `budget` entries. Returns how many versions were
    /// dropped, and whether no more can be.
    ///
    /// **Errors** a page that is not resident; the same call goes on.
    pub fn step(&mut self, store: &mut Store, floor: i64, budget: usize) -> Result<(u64, bool), Fault> {
        store.mvcc_mut().hold_sweep(Some(floor));
        let progress = store.sweep(budget)?;
        self.dropped += progress.dropped;
        Ok((progress.dropped, progress.is_done))
    }

    /// Notes that the sweep has done everything that `floor` allows of the compaction at `compacted`.
    pub fn ended(&mut self, compacted: i64, floor: i64, now: Duration, counters: &CommitCounters, sizes: &Sizes) {
        self.is_going = false;
        self.is_held = floor < compacted;
        if self.is_held {
            return;
        }
        // What an earlier run left may be nothing.
        let dropped = std::mem::take(&mut self.dropped);
        let Some(began) = self.compacted_at.take().or((dropped > 0).then_some(now)) else { return };
        counters.swept(began, now);
        tell(compacted, dropped, now.saturating_sub(began), sizes);
    }
}

/// Logs the end of a compaction. etcd also logs a hash, which it takes as it reads every record; the sweep reads none.
fn tell(revision: i64, dropped: u64, took: Duration, sizes: &Sizes) {
    let (size, in_use) = (sizes.allocated.load(Ordering::Acquire), sizes.in_use.load(Ordering::Acquire));
    tracing::info!(
        "compact-revision" = revision,
        took = clock::shown(took),
        "number-of-keys-compacted" = dropped,
        "current-db-size-bytes" = size,
        "current-db-size" = log::bytes(size),
        "current-db-size-in-use-bytes" = in_use,
        "current-db-size-in-use" = log::bytes(in_use),
        "finished scheduled compaction"
    );
}
