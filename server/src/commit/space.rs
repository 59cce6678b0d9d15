//! Runs on: commit core.
//!
//! What the commit core does when space ends: which proposals it refuses before they reach the log, what it says of a full
//! disk, and its part in raising and taking back this member's NOSPACE alarm.
//!
//! Order in which a full disk is felt: the next log segment or a checkpoint finds no space and is waited for; what grows the
//! store is refused when a quarter of the log's last segment is left; everything else, but for what raft itself writes, at a
//! sixteenth; and whatever comes when records or nodes that no checkpoint has written reach their bounds. Reads are not
//! concerned. Nothing of this is an alarm: it is this member's disk, and it is over when there is space.

use std::{sync::atomic::Ordering, time::Duration};

use proto::internal::Kind;

use super::Commit;
use crate::{
    error::Error,
    quota::{self, Purpose},
};

impl Commit {
    /// Why a client's proposal is refused before the log is asked, if it is.
    pub(super) fn refusal_for_space(&mut self, purpose: Purpose, now: Duration) -> Option<Error> {
        // Records leave memory by checkpoints alone: when those do not keep up, clients wait.
        let recent = self.store.mvcc().recent_bytes();
        if recent > self.options.recent_bytes_max {
            return Some(if self.is_disk_full() { Error::NoSpace } else { Error::TooManyRequests });
        }
        // So do the nodes that were changed. A checkpoint that runs keeps up with these; one that waits does not.
        if self.is_checkpoint_waiting && self.store.mvcc().dirty_bytes() > self.store.node_bytes_max() {
            return Some(Error::NoSpace);
        }
        match purpose {
            // What is left of the log is kept for what frees space.
            Purpose::Grow if self.driver.is_log_tight() => Some(Error::NoSpace),
            // The alarm is being raised: one entry is enough, and this request is refused all the same.
            Purpose::Alarm if !self.keeper.ask(now) => Some(Error::NoSpace),
            Purpose::Alarm => {
                let (used, quota) = (self.keeper.used(recent), self.shared.limits.quota.shown());
                tracing::warn!(used, "quota-size-bytes" = quota, "message exceeded backend quota; raising alarm");
                None
            }
            Purpose::Grow | Purpose::Other => None,
        }
    }

    /// Whether the log or a checkpoint waits for space.
    pub(super) fn is_disk_full(&self) -> bool {
        self.is_checkpoint_waiting || self.driver.log_room_bytes().is_some()
    }

    /// Says so when a disk becomes full, and when there is space again.
    pub(super) fn publish_disk_full(&mut self) {
        let is_full = self.is_disk_full();
        if self.shared.is_disk_full.swap(is_full, Ordering::AcqRel) == is_full {
            return;
        }
        if is_full {
            let (is_log, is_checkpoint) = (self.driver.log_room_bytes().is_some(), self.is_checkpoint_waiting);
            tracing::error!(is_log, is_checkpoint, "the disk is full: writes are refused once the log has no room");
        } else {
            tracing::info!("there is space on the disk again");
        }
    }

    /// Raises this member's NOSPACE alarm, or takes it back, when that is due.
    pub(super) fn keep_alarm(&mut self, now: Duration) {
        let recent = self.store.mvcc().recent_bytes();
        if self.applied.index < self.replayed_to {
            return;
        }
        let Some(action) = self.keeper.due(recent, &self.applier.cluster.alarms) else { return };
        if self.keeper.ask(now) {
            let (used, quota) = (self.keeper.used(recent), self.shared.limits.quota.shown());
            let action_name = action.as_str_name();
            tracing::warn!(used, "quota-size-bytes" = quota, action = action_name, "the quota's NOSPACE alarm changes");
            let request = quota::own_alarm(self.shared.identity.member_id, action);
            self.propose_as(Purpose::Alarm, Kind::Alarm, &request);
        }
    }
}

/// What a client is told when raft refuses its proposal.
pub(super) fn refusal(error: &consensus::Error, is_disk_full: bool) -> Error {
    match error {
        // What waits, waits for space.
        consensus::Error::TooManyRequests { .. } if is_disk_full => Error::NoSpace,
        consensus::Error::NoSpace { .. } => Error::NoSpace,
        consensus::Error::TooManyRequests { .. } => Error::TooManyRequests,
        consensus::Error::NoLeader => Error::NoLeader,
        consensus::Error::TooLarge { .. } => Error::RequestTooLarge,
        _ => Error::Stopped,
    }
}
