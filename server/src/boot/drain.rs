//! Runs on: core 0.
//!
//! The end of a member: requests under way may finish.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::sync::watch;

use crate::api::desk::Desk;

/// How often the open connections are counted.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Tells connections to go away, and waits for them, for `bound` at most.
pub async fn drain(desk: &Desk, stop: &watch::Sender<bool>, bound: Duration) {
    desk.shared.is_stopping.store(true, Ordering::Release);
    stop.send_replace(true);
    let until = desk.clock.now() + bound;
    while desk.shared.connections.total_and_least().0 > 0 && desk.clock.now() < until {
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
