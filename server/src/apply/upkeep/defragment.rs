//! Runs on: apply core.
//!
//! Defragment: runs of giving space back on request, and the requests that wait for their ends.
//!
//! Invariants:
//! - There is one run at a time. Runs are counted from 1, and the first `ended` runs have ended. A request gets a run
//!   that begins after the request, so that it gives back what was compacted before. Requests that come before that run
//!   begins share it.
//! - A run begins when the sweep has done what it can, because a run gives back what a compaction dropped.
//!
//! A run holds up nobody: the store moves live pages beside the traffic.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/maintenance.go` (log lines),
//! `server/storage/backend/metrics.go`.

use std::time::Duration;

use engine::Store;

use super::waiters::Waiters;
use crate::{metrics::counters::CommitCounters, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Defragment {
    ended: u64,
    /// The last run that was asked for.
    asked: u64,
    /// When the run under way began.
    began: Option<Duration>,
    waiting: Waiters<u64>,
}

impl Defragment {
    /// Asks for a run and returns its number.
    pub fn ask(&mut self) -> u64 {
        let next = self.ended + 1 + u64::from(self.began.is_some());
        self.asked = self.asked.max(next);
        next
    }

    /// Makes `reply` wait for the end of `run`. Its slot lives no longer than `lifetime`.
    pub fn wait(&mut self, reply: ReplyTo, run: u64, now: Duration, lifetime: Duration) {
        assert!(run <= self.asked, "a run is asked for before it is waited for");
        self.waiting.push(reply, run, now, lifetime);
    }

    /// Begins and ends runs. Returns the replies that waited for runs that have ended.
    pub fn step(
        &mut self,
        store: &mut Store,
        is_sweeping: bool,
        counters: &CommitCounters,
        now: Duration,
    ) -> Vec<ReplyTo> {
        if let Some(began) = self.began.filter(|_| !store.is_defragmenting()) {
            self.began = None;
            self.ended += 1;
            counters.defragmented(began, now);
            let sizes = store.sizes();
            let took = now.saturating_sub(began);
            tracing::info!(?took, bytes = sizes.allocated, "bytes-in-use" = sizes.in_use, "finished defragment");
        }
        if self.began.is_none() && self.asked > self.ended && !is_sweeping {
            tracing::info!(bytes = store.sizes().allocated, "starting defragment");
            store.defragment();
            self.began = Some(now);
            counters.defragment_inflight.set(1);
        }
        self.waiting.take(|run| *run <= self.ended)
    }
}
