//! Runs on: connection core, apply core.
//!
//! A core's page reads as the runtime sees them. It takes in the reads that have ended, and closes files that nobody
//! reads any more.

use std::time::Duration;

use tokio::time::MissedTickBehavior;

use super::{thread::stop_member, wake::Wake};
use crate::loader::Loader;

/// How often segment files are closed that nobody has read meanwhile.
const CLOSE_UNUSED_EVERY: Duration = Duration::from_secs(5);

/// Takes in finished reads, for ever. A core whose reads would never end stops the member.
pub async fn collect(loader: Loader) {
    let wake = Wake::new(loader.wake_fd()).unwrap_or_else(|error| stop_member(&error));
    loop {
        if let Err(error) = wake.ready().await {
            stop_member(&error);
        }
        if let Err(error) = loader.collect() {
            stop_member(&error);
        }
    }
}

/// Closes unused files now and then, for ever.
pub async fn close_unused(loader: Loader) {
    let mut ticks = tokio::time::interval(CLOSE_UNUSED_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        loader.close_unused();
    }
}
