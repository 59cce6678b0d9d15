//! Runs on: commit core.
//!
//! When the commit core begins a checkpoint, what it does at its end, and what waits for one.
//!
//! Invariant: what is changed while a checkpoint writes is bounded: apply and the sweep wait for its end at the bound, unless the checkpoint itself waits for
//! space; then proposals are refused (`space`).

use std::time::Duration;

use consensus::EntryId as Place;
use engine::{Checkpoint, CheckpointDone, Fault};

use super::Commit;
use crate::{commit::Fatal, core::Answer};

/// Memory of dirty nodes for each byte of log above which a checkpoint waits for more log: a node takes about twice its page.
const DIRTY_PER_LOG_MAX: u64 = 2;

/// When nothing was applied for so long, a checkpoint is due with less log than else.
const QUIET: Duration = Duration::from_secs(2);

/// Scattered changes are not waited with for longer than this once they are as many as a full log may have at most: each takes a restart the
/// read of a page.
const SCATTERED: Duration = Duration::from_secs(30);

/// Between two checkpoints for the sake of space alone: so that beside traffic each writes many changes of a page at once.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);

impl Commit {
    /// Whether apply, and the sweep, had better wait for the checkpoint that is being written: what they would change now does not fit in
    /// memory.
    pub(super) fn is_apply_held(&self) -> bool {
        self.is_dirty_due() && self.store.is_checkpointing() && !self.is_checkpoint_waiting
    }

    /// Whether what was changed since the last checkpoint began is as much as memory may hold beside what that one writes.
    pub(super) fn is_dirty_due(&self) -> bool {
        self.store.mvcc().dirty_bytes() >= self.store.dirty_bytes_due()
    }

    /// A step of giving space back; what it has to read.
    pub(super) fn reclaim(&mut self, now: Duration) -> Vec<Fault> {
        for reply in self.defragment.step(&mut self.store, self.is_sweeping, &self.shared.commit_counters, now) {
            self.answer(reply, Answer::Defragmented);
        }
        // What it takes out of segments is dirty: a checkpoint comes first.
        if self.is_dirty_due() {
            self.is_reclaiming = false;
            return Vec::new();
        }
        let step = self.store.reclaim(now, self.options.reclaim_pages_per_step);
        self.is_reclaiming = matches!(step, Ok(true));
        step.err().unwrap_or_default()
    }

    /// Whether it is time for a checkpoint for the sake of space alone.
    pub(super) fn is_reclaim_due(&self, now: Duration) -> bool {
        let has_paused = now.saturating_sub(self.checkpoint_ended) >= RECLAIM_PAUSE;
        // What a sweep is about to drop is better counted with what it has dropped.
        (has_paused || self.store.is_defragmenting()) && !self.is_sweeping && self.store.wants_checkpoint()
    }

    pub(super) fn begin_checkpoint(&mut self, now: Duration) -> Option<Checkpoint> {
        if self.store.is_checkpointing() {
            return None;
        }
        let applied = self.store.mvcc().view().applied_index();
        // Half of what memory may hold: the other half is for what comes while it is written. Without this a log that grows more
        // slowly than the records (a delete of many keys) would end in refusals that no checkpoint ever lifts.
        let gathered = self.driver.log_bytes().saturating_sub(self.kept_log_bytes);
        // Each page is written once for all changes since the last checkpoint: scattered ones are worth waiting for.
        let is_worth_it = self.store.mvcc().dirty_bytes() <= gathered.saturating_mul(DIRTY_PER_LOG_MAX);
        let recent = self.store.mvcc().recent_bytes();
        let is_due =
            gathered >= self.options.checkpoint_wal_bytes && is_worth_it || recent >= self.options.recent_bytes_max / 2;
        // Nobody is disturbed by it, and a restart has less to replay.
        let is_quiet =
            now.saturating_sub(self.applied_at) >= QUIET && gathered >= self.options.checkpoint_wal_bytes / 8;
        let dirty_max = self.options.checkpoint_wal_bytes.saturating_mul(DIRTY_PER_LOG_MAX);
        let is_scattered = now.saturating_sub(self.checkpoint_began) >= SCATTERED
            && self.store.mvcc().dirty_bytes() >= dirty_max
            && gathered > 0;
        let is_due = is_due || is_quiet || is_scattered;
        let frees = !self.is_sweeping && self.keeper.wants_checkpoint(recent, &self.applier.cluster.alarms);
        let is_due = is_due && applied > self.store.applied().0 || self.is_dirty_due() || frees;
        if !is_due && !self.is_reclaim_due(now) {
            return None;
        }
        self.keeper.checkpoint_begun();
        self.kept_log_bytes = self.driver.log_bytes();
        self.checkpoint_began = now;
        Some(self.store.checkpoint_begin())
    }

    pub(super) fn checkpointed(
        &mut self,
        done: Result<Box<CheckpointDone>, engine::Error>,
        now: Duration,
    ) -> Result<(), Fatal> {
        self.store.checkpoint_end(*done?);
        self.is_checkpoint_waiting = false;
        self.checkpoint_ended = now;
        let reclaimed = self.store.reclaimed();
        self.shared.commit_counters.segments_emptied.set(reclaimed.segments);
        self.shared.commit_counters.moved_bytes.set(reclaimed.moved_bytes);
        self.shared.commit_counters.checkpoint.observe_time(now.saturating_sub(self.checkpoint_began));
        // Before what counts is told anew: the written records are in files now.
        self.publish_sizes();
        // They leave memory with the next view, and an idle store may wait long for one.
        self.publish()?;
        let (index, term) = self.store.trimmable();
        if index > 0 {
            let before = self.driver.log_bytes();
            self.driver.trim(Place { index, term })?;
            let trimmed = before.saturating_sub(self.driver.log_bytes());
            self.kept_log_bytes = self.kept_log_bytes.saturating_sub(trimmed);
        }
        Ok(())
    }
}
