//! Runs on: apply core.
//!
//! Decides when a checkpoint begins.
//!
//! Invariant: the changes that are made while a checkpoint writes are bounded. At the bound ([`is_dirty_due`]), apply
//! and the sweep wait for its end. If the checkpoint itself waits for space, proposals are refused instead.

use std::time::Duration;

use engine::Store;

/// Memory of dirty nodes for each byte of log. Above this ratio, a checkpoint waits for more log. A node takes about
/// twice the memory of its page.
const DIRTY_PER_LOG_MAX: u64 = 2;

/// After this time without an applied entry, a checkpoint is due with less log than usual.
const QUIET: Duration = Duration::from_secs(2);

/// Longest wait with scattered changes, once they are as many as a full log may have at most. Each of them makes a
/// restart read a page.
const SCATTERED: Duration = Duration::from_secs(30);

/// Pause between two checkpoints that are made for space alone. So under load, each writes many changes of a page at
/// once.
const RECLAIM_PAUSE: Duration = Duration::from_secs(2);

/// Whether the changes since the last checkpoint began take as much as memory may hold beside what that checkpoint
/// writes.
pub fn is_dirty_due(store: &Store) -> bool {
    store.mvcc().dirty_bytes() >= store.dirty_bytes_due()
}

/// The checkpoints of this run, one at a time.
#[derive(Debug)]
pub struct Checkpoints {
    /// Bytes of log after which a checkpoint begins. **Units** bytes.
    log_bytes: u64,
    /// Bytes of records that no checkpoint has written, at most. **Units** bytes.
    recent_bytes_max: u64,
    /// Log that was written when the last checkpoint began. Only log after it counts for the next one. **Units** bytes.
    written: u64,
    began: Duration,
    ended: Duration,
    /// The checkpoint under way waits for space.
    is_waiting: bool,
}

/// The facts beside the store that decide whether a checkpoint begins.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// The time.
    pub now: Duration,
    /// Log written so far. **Units** bytes.
    pub written: u64,
    /// When the last applied entry was done.
    pub applied_at: Duration,
    /// Whether a sweep is under way.
    pub is_sweeping: bool,
    /// Whether space is short, and only a checkpoint gives back what was dropped.
    pub is_tight: bool,
}

impl Checkpoints {
    /// No checkpoint was made yet.
    pub fn new(log_bytes: u64, recent_bytes_max: u64) -> Self {
        let (began, ended) = (Duration::ZERO, Duration::ZERO);
        Self { log_bytes, recent_bytes_max, written: 0, began, ended, is_waiting: false }
    }

    /// Whether a checkpoint should begin now.
    pub fn is_due(&self, store: &Store, at: &Moment) -> bool {
        if store.is_checkpointing() {
            return false;
        }
        let has_applied = store.mvcc().view().applied_index() > store.applied().0 || store.mvcc().is_unfinished();
        let frees = !at.is_sweeping && at.is_tight;
        self.is_due_for_log(store, at) && has_applied
            || is_dirty_due(store)
            || frees
            || self.is_due_for_space(store, at)
    }

    /// Whether the records that no checkpoint has written take as much as memory may hold.
    pub fn is_full(&self, store: &Store) -> bool {
        store.mvcc().recent_bytes() >= self.recent_bytes_max
    }

    /// Whether one is due for the log, or for the records in memory.
    fn is_due_for_log(&self, store: &Store, at: &Moment) -> bool {
        let mvcc = store.mvcc();
        let gathered = at.written.saturating_sub(self.written);
        // Each page is written once for all changes since the last checkpoint. So it is worth waiting for more of the
        // scattered changes.
        let is_worth_it = mvcc.dirty_bytes() <= gathered.saturating_mul(DIRTY_PER_LOG_MAX);
        let is_long = gathered >= self.log_bytes && is_worth_it;
        // Half of what memory may hold; the other half is for changes while this checkpoint is written. Without this
        // rule, records could grow faster than the log (a delete of many keys does that). All proposals would then be
        // refused, and no checkpoint would ever end that.
        let is_full = mvcc.recent_bytes() >= self.recent_bytes_max / 2;
        // It disturbs nobody, and a restart then has less to replay.
        let is_quiet = at.now.saturating_sub(at.applied_at) >= QUIET && gathered >= self.log_bytes / 8;
        let is_scattered = at.now.saturating_sub(self.began) >= SCATTERED
            && mvcc.dirty_bytes() >= self.log_bytes.saturating_mul(DIRTY_PER_LOG_MAX)
            && gathered > 0;
        is_long || is_full || is_quiet || is_scattered
    }

    /// Whether one is due for space alone.
    fn is_due_for_space(&self, store: &Store, at: &Moment) -> bool {
        let has_paused = at.now.saturating_sub(self.ended) >= RECLAIM_PAUSE;
        // It is better to wait for the end of a sweep, which is about to drop more.
        (has_paused || store.is_defragmenting()) && !at.is_sweeping && store.wants_checkpoint()
    }

    /// Notes that a checkpoint begins.
    pub fn begun(&mut self, written: u64, now: Duration) {
        (self.written, self.began) = (written, now);
    }

    /// Notes that the checkpoint waits for space.
    pub fn waits(&mut self) {
        self.is_waiting = true;
    }

    /// Whether the checkpoint under way waits for space.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting
    }

    /// Notes that the checkpoint has ended. Returns how long it took.
    pub fn ended(&mut self, now: Duration) -> Duration {
        self.is_waiting = false;
        self.ended = now;
        now.saturating_sub(self.began)
    }

    /// The log that was written when the last one began, for tests.
    #[cfg(test)]
    pub fn written(&self) -> u64 {
        self.written
    }
}
