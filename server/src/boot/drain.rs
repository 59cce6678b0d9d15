//! Runs on: core 0.
//!
//! The end of a member: another one leads first, and requests under way may finish. A member that was removed from its
//! cluster ends by itself.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/server.go TransferLeadershipAsLeader`, `stopWithDelay`.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::sync::watch;

use crate::{api::desk::Desk, error::Error, shared::Shared};

/// How often the open connections are counted.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How often it is looked whether the member was removed.
const REMOVED_EVERY: Duration = Duration::from_millis(100);
/// From the moment when a member knows that it was removed to its end: others hear meanwhile what they must.
const LEAVE_AFTER: Duration = Duration::from_secs(1);

/// Resolves when the member was removed from its cluster, and others have had time to hear from it.
pub async fn removed(shared: &Shared) {
    while !shared.is_removed.load(Ordering::Acquire) {
        tokio::time::sleep(REMOVED_EVERY).await;
    }
    tracing::warn!(error = "the member has been permanently removed from the cluster", "server error");
    tokio::time::sleep(LEAVE_AFTER).await;
}

/// After a leader has handed over, others send it proposals until they have heard of the new one: it passes them on.
const PASSES_ON_FOR: Duration = Duration::from_millis(100);

/// Hands leadership to another voter, if this member leads others. Raft chooses to which one.
pub async fn hand_over(desk: &Desk) {
    let shared = &desk.shared;
    let own = shared.identity.member_id;
    if shared.raft.leader.load(Ordering::Acquire) != own || !shared.has_other_voters() {
        return;
    }
    let from = format!("{own:x}");
    match desk.leave_lead().await {
        Ok(()) => {
            let to = format!("{:x}", shared.raft.leader.load(Ordering::Acquire));
            tracing::info!("local-member-id" = from, "new-leader-member-id" = to, "leadership transfer finished");
            tokio::time::sleep(PASSES_ON_FOR).await;
        }
        Err(Error::Unhealthy) => {
            tracing::warn!("local-member-id" = from, "leadership transfer failed: no connected voter is left to lead");
        }
        Err(error) => tracing::warn!("local-member-id" = from, %error, "leadership transfer failed"),
    }
}

/// Tells connections to go away, and waits for them, for `bound` at most.
pub async fn drain(desk: &Desk, stop: &watch::Sender<bool>, bound: Duration) {
    desk.shared.is_stopping.store(true, Ordering::Release);
    stop.send_replace(true);
    let until = desk.clock.now() + bound;
    while desk.shared.connections.total_and_least().0 > 0 && desk.clock.now() < until {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
