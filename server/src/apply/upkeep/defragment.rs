//! Runs on: apply core.
//!
//! Defragment: runs of giving space back that somebody asked for, and who waits for their ends.
//!
//! Invariants:
//! - One run at a time, counted from 1; `ended` have ended. Whoever asks gets a run that begins after the asking, so
//!   that what was compacted before is given back; many who ask meanwhile share one.
//! - A run begins when the sweep has done what it can: what a compaction dropped is what is to be given back.
//!
//! Nobody is held up by a run: the store moves what lives beside traffic.
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
    /// The last run that somebody asked for.
    asked: u64,
    /// When the run under way began.
    began: Option<Duration>,
    waiting: Waiters<u64>,
}

impl Defragment {
    /// Asks for a run; its number.
    pub fn ask(&mut self) -> u64 {
        let next = self.ended + 1 + u64::from(self.began.is_some());
        self.asked = self.asked.max(next);
        next
    }

    /// `reply`, whose slot lives no longer than `lifetime`, waits for the end of `run`.
    pub fn wait(&mut self, reply: ReplyTo, run: u64, now: Duration, lifetime: Duration) {
        assert!(run <= self.asked, "a run is asked for before it is waited for");
        self.waiting.push(reply, run, now, lifetime);
    }

    /// Begins and ends runs; those whose run has ended.
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
        self.waiting.take(&self.ended)
    }
}
