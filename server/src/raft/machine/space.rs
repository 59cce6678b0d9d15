//! Runs on: raft core.
//!
//! Raft over a disk that is full, or that hangs: what is refused, what is published, and who leads then.

use std::{sync::atomic::Ordering, time::Duration};

use super::Raft;
use crate::{error::Error, quota::Purpose};

/// Time between two tries to hand leadership over because of a full disk.
const FULL_AGAIN: Duration = Duration::from_secs(10);

impl Raft {
    /// Hands leadership over if a disk is full.
    pub(super) fn leave_if_full(&mut self, now: Duration) {
        if !self.is_disk_full() {
            self.left_full_at = None;
        } else if self.driver.status().is_leader && self.left_full_at.is_none_or(|at| now >= at + FULL_AGAIN) {
            self.left_full_at = Some(now);
            self.hand_over();
        }
    }

    /// Decides whether a client's proposal is refused for space, before the log is asked. Returns the reason.
    pub(super) fn refusal_for_space(&mut self, purpose: Purpose, now: Duration) -> Option<Error> {
        if self.space.is_full_of_recent {
            return Some(if self.is_disk_full() { Error::NoSpace } else { Error::TooManyRequests });
        }
        if self.space.is_dirty_over {
            return Some(Error::NoSpace);
        }
        match purpose {
            // The rest of the log is kept for requests that free space.
            Purpose::Grow if self.driver.is_log_tight() => Some(Error::NoSpace),
            // The alarm is being raised. One entry is enough, and this request is refused in any case.
            Purpose::Alarm if !self.asking.ask(now) => Some(Error::NoSpace),
            Purpose::Alarm => {
                let used = self.shared.sizes.in_use.load(Ordering::Acquire);
                let quota = self.shared.limits.quota.shown();
                tracing::warn!(used, "quota-size-bytes" = quota, "message exceeded backend quota; raising alarm");
                None
            }
            Purpose::Grow | Purpose::Other => None,
        }
    }

    /// Looks whether the log's disk does anything, and publishes it if that has changed.
    pub(super) fn watch_log(&mut self, now: Duration) {
        let waits_at = self.driver.log_waits_at();
        let waits_at = waits_at.or_else(|| self.proposals.waits_for_segment().then(|| self.driver.log_durable()));
        self.log_wait = waits_at.map(|durable| match self.log_wait {
            Some((since, at)) if at == durable => (since, at),
            _ => (now, durable),
        });
        let is_stalled = self.log_wait.is_some_and(|(since, _)| now.saturating_sub(since) >= self.log_wait_max);
        if is_stalled == self.is_log_stalled() {
            return;
        }
        self.shared.is_log_stalled.store(is_stalled, Ordering::Release);
        if is_stalled {
            let bound = self.log_wait_max;
            tracing::error!(?bound, "a write to the log does not end: the disk hangs, and writes are refused");
        } else {
            tracing::info!("the write to the log has ended");
        }
    }

    pub(super) fn is_log_stalled(&self) -> bool {
        self.shared.is_log_stalled.load(Ordering::Relaxed)
    }

    /// Whether the log or a checkpoint waits for space.
    pub(super) fn is_disk_full(&self) -> bool {
        self.space.is_checkpoint_waiting || self.driver.log_room_bytes().is_some()
    }

    /// Publishes that a disk has become full, or has space again.
    pub(super) fn publish_disk_full(&self) {
        let is_full = self.is_disk_full();
        if self.shared.is_disk_full.load(Ordering::Relaxed) == is_full {
            return;
        }
        self.shared.is_disk_full.store(is_full, Ordering::Release);
        if is_full {
            let (is_log, is_checkpoint) = (self.driver.log_room_bytes().is_some(), self.space.is_checkpoint_waiting);
            tracing::error!(is_log, is_checkpoint, "the disk is full: writes are refused once the log has no room");
        } else {
            tracing::info!("there is space on the disk again");
        }
    }
}
