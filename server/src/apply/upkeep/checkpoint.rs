//! Runs on: apply core.
//!
//! When a checkpoint begins.
//!
//! Invariant: what is changed while a checkpoint writes is bounded: apply and the sweep wait for its end at the bound
//! ([`is_dirty_due`]), unless the checkpoint itself waits for space; then proposals are refused.

use std::time::Duration;

use engine::Store;

/// Memory of dirty nodes for each byte of log above which a checkpoint waits for more log: a node takes about twice its
/// page.
const DIRTY_PER_LOG_MAX: u64 = 2;

/// When nothing was applied for so long, a checkpoint is due with less log than else.
const QUIET: Duration = Duration::from_secs(2);

/// Scattered changes are not waited with for longer than this once they are as many as a full log may have at most:
/// each takes a restart the read of a page.
const SCATTERED: Duration = Duration::from_secs(30);

/// Between two checkpoints for the sake of space alone: so that beside traffic each writes many changes of a page at
/// once.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);

/// Whether what was changed since the last checkpoint began is as much as memory may hold beside what that one writes.
pub fn is_dirty_due(store: &Store) -> bool {
    store.mvcc().dirty_bytes() >= store.dirty_bytes_due()
}

/// The checkpoints of this run, one at a time.
#[derive(Debug)]
pub struct Checkpoints {
    /// **Units** bytes of log after which one begins.
    log_bytes: u64,
    /// **Units** bytes of records that no checkpoint has written, at most.
    recent_bytes_max: u64,
    /// Log written when the last one began. What is behind it is no reason for the next one. **Units** bytes.
    written: u64,
    began: Duration,
    ended: Duration,
    /// The one under way waits for space.
    is_waiting: bool,
}

/// What is to be known beside the store to decide on a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time.
    pub now: Duration,
    /// Log written so far. **Units** bytes.
    pub written: u64,
    /// When the entry applied last had been applied.
    pub applied_at: Duration,
    /// Whether a sweep is under way.
    pub is_sweeping: bool,
    /// Whether one is due because only it gives back what was dropped, and space is short.
    pub is_tight: bool,
}

impl Checkpoints {
    /// None was made yet.
    pub fn new(log_bytes: u64, recent_bytes_max: u64) -> Self {
        let (began, ended) = (Duration::ZERO, Duration::ZERO);
        Self { log_bytes, recent_bytes_max, written: 0, began, ended, is_waiting: false }
    }

    /// Whether one had better begin now.
    pub fn is_due(&self, store: &Store, at: &Moment) -> bool {
        if store.is_checkpointing() {
            return false;
        }
        let has_applied = store.mvcc().view().applied_index() > store.applied().0;
        let frees = !at.is_sweeping && at.is_tight;
        self.is_due_for_log(store, at) && has_applied
            || is_dirty_due(store)
            || frees
            || self.is_due_for_space(store, at)
    }

    /// Whether it is time for the sake of the log or of the records in memory.
    fn is_due_for_log(&self, store: &Store, at: &Moment) -> bool {
        let mvcc = store.mvcc();
        let gathered = at.written.saturating_sub(self.written);
        // Each page is written once for all changes since the last checkpoint: scattered ones are worth waiting for.
        let is_worth_it = mvcc.dirty_bytes() <= gathered.saturating_mul(DIRTY_PER_LOG_MAX);
        let is_long = gathered >= self.log_bytes && is_worth_it;
        // Half of what memory may hold: the other half is for what comes while it is written. Without this a log that
        // grows more slowly than the records (a delete of many keys) would end in refusals that no checkpoint ever
        // lifts.
        let is_full = mvcc.recent_bytes() >= self.recent_bytes_max / 2;
        // Nobody is disturbed by it, and a restart has less to replay.
        let is_quiet = at.now.saturating_sub(at.applied_at) >= QUIET && gathered >= self.log_bytes / 8;
        let is_scattered = at.now.saturating_sub(self.began) >= SCATTERED
            && mvcc.dirty_bytes() >= self.log_bytes.saturating_mul(DIRTY_PER_LOG_MAX)
            && gathered > 0;
        is_long || is_full || is_quiet || is_scattered
    }

    /// Whether it is time for the sake of space alone.
    fn is_due_for_space(&self, store: &Store, at: &Moment) -> bool {
        let has_paused = at.now.saturating_sub(self.ended) >= RECLAIM_PAUSE;
        // What a sweep is about to drop is better counted with what it has dropped.
        (has_paused || store.is_defragmenting()) && !at.is_sweeping && store.wants_checkpoint()
    }

    /// One begins.
    pub fn begun(&mut self, written: u64, now: Duration) {
        (self.written, self.began) = (written, now);
    }

    /// It waits for space.
    pub fn waits(&mut self) {
        self.is_waiting = true;
    }

    /// Whether it waits for space.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// It has ended; how long it took.
    pub fn ended(&mut self, now: Duration) -> Duration {
        self.is_waiting = false;
        self.ended = now;
        now.saturating_sub(self.began)
    }

    /// When the last one began: for tests.
    #[cfg(test)]
    pub fn written(&self) -> u64 {
        self.written
    }
}
