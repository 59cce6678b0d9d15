//! Runs on: apply core.
//!
//! Measures the space that the store takes in memory and on disk, for the other cores. Also owns this member's NOSPACE
//! alarm.
//!
//! A full disk is felt in this order. First, the next log segment or a checkpoint finds no space, and is waited for.
//! Requests that grow the store are refused when a quarter of the log's last segment is left. At a sixteenth,
//! everything else is refused, except what raft itself writes. Every request is refused when the records or nodes that
//! no checkpoint has written reach their bounds. Reads are never refused. None of this is an alarm: it concerns this
//! member's disk, and ends when there is space. Raft refuses; apply tells it how the lack of space is felt here
//! ([`Space`]).

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use engine::Store;
use proto::etcdserverpb::AlarmRequest;

use crate::{
    apply::message::Space,
    metrics::counters::CommitCounters,
    quota::{self, Keeper, WayBack},
    shared::{Alarms, Shared},
};

/// How `store` feels the lack of space, while its checkpoint waits for space or not.
pub fn felt(store: &Store, recent_bytes_max: u64, is_checkpoint_waiting: bool) -> Space {
    Space {
        // Only checkpoints free the memory of records. If they are too slow, clients wait.
        is_full_of_recent: store.mvcc().recent_bytes() > recent_bytes_max,
        is_checkpoint_waiting,
        // The same is true of changed nodes. A checkpoint that runs keeps up with them; one that waits does not.
        is_dirty_over: is_checkpoint_waiting && store.mvcc().dirty_bytes() > store.node_bytes_max(),
    }
}

/// The space that the store takes.
pub struct Taken {
    shared: Arc<Shared>,
    counters: Arc<CommitCounters>,
    /// Dead bytes of files, when they were last summed up. **Units** bytes.
    dead_bytes: u64,
    /// This member's NOSPACE alarm.
    pub keeper: Keeper,
    way_back: WayBack,
}

impl Taken {
    /// Nothing was summed up yet.
    pub fn new(shared: Arc<Shared>, counters: Arc<CommitCounters>) -> Self {
        let keeper = Keeper::new(shared.limits.quota, shared.identity.member_id);
        Self { shared, counters, dead_bytes: 0, keeper, way_back: WayBack::default() }
    }

    /// Sums up segments and memory.
    pub fn sum_up(&mut self, store: &Store) {
        let sizes = store.sizes();
        let mvcc = store.mvcc();
        let (nodes, dirty) = (mvcc.node_bytes(), mvcc.dirty_bytes());
        let memory = [mvcc.recent_bytes(), dirty, nodes.saturating_sub(dirty), store.block_bytes()];
        self.counters.memory.iter().zip(memory).for_each(|(count, bytes)| count.set(bytes));
        self.keeper.settle(sizes.in_use, mvcc.recent_bytes());
        self.dead_bytes = sizes.allocated - sizes.in_use;
        self.publish(mvcc.recent_bytes());
        for (size, hurdle) in self.way_back.passed(self.keeper.used(mvcc.recent_bytes())) {
            tracing::warn!("data-size-bytes" = sizes.in_use, "size-bytes" = size, "{hurdle}");
        }
    }

    /// Publishes the space that the store takes, including everything that was applied. Segments are summed up now and
    /// then; what waits for a checkpoint is known at once.
    pub fn publish(&self, recent: u64) {
        let in_use = self.keeper.used(recent);
        self.shared.sizes.allocated.store(in_use + self.dead_bytes, Ordering::Release);
        self.shared.sizes.in_use.store(in_use, Ordering::Release);
    }

    /// The request that raises this member's NOSPACE alarm or disarms it, when that is due.
    pub fn alarm_due(&mut self, recent: u64, alarms: &Alarms, now: Duration) -> Option<AlarmRequest> {
        let action = self.keeper.due(recent, alarms)?;
        if !self.keeper.ask(now) {
            return None;
        }
        let (used, quota) = (self.keeper.used(recent), self.shared.limits.quota.shown());
        let action_name = action.as_str_name();
        tracing::warn!(used, "quota-size-bytes" = quota, action = action_name, "the quota's NOSPACE alarm changes");
        Some(quota::own_alarm(self.shared.identity.member_id, action))
    }
}
