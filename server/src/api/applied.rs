//! Runs on: connection core.
//!
//! What must wait until everything is applied that was committed when it came. A leader is asked such things by other
//! members, which ask again if it lags.

use std::{future::Future, pin::pin, sync::atomic::Ordering, time::Duration};

use super::{desk::Desk, due::passed};
use crate::error::Error;

/// How long that is waited for. **Source** etcd v3.7.1 `server/etcdserver/server.go`, `server/lease/leasehttp/http.go`
/// `applyTimeout`.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Pause between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Waits until everything is applied that is committed now.
///
/// **Errors** that takes too long.
pub async fn await_applied(desk: &Desk) -> Result<(), Error> {
    let (began, committed) = (desk.clock.now(), committed(desk));
    while lags(desk, committed) {
        if desk.since(began) >= WAIT_MAX {
            return Err(Error::TimeoutWaitApplied);
        }
        passed(desk, desk.clock.now() + LOOK_AGAIN).await;
    }
    Ok(())
}

/// Waits for an `answer` of apply, which comes when everything is applied that is committed now, or later.
///
/// **Errors** applying takes too long; those of the answer.
pub async fn applied_in_time<T>(desk: &Desk, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    let (began, committed) = (desk.clock.now(), committed(desk));
    let mut answer = pin!(answer);
    tokio::select! {
        biased;
        answered = &mut answer => return answered,
        () = passed(desk, began + WAIT_MAX) => {}
    }
    if lags(desk, committed) { Err(Error::TimeoutWaitApplied) } else { answer.await }
}

fn committed(desk: &Desk) -> u64 {
    desk.shared.raft.commit.load(Ordering::Acquire)
}

fn lags(desk: &Desk, committed: u64) -> bool {
    desk.shared.raft.applied.load(Ordering::Acquire) < committed
}
