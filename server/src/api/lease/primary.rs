//! Runs on: connection core.
//!
//! What this member's own lessor says of leases, which holds while this member leads. Apply owns the lessor.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use engine::ReadView;
use proto::etcdserverpb as pb;

use crate::{
    api::desk::{Consistency, Desk},
    apply::message::{Answer, ToApply},
    error::Error,
    gathered::Share,
    lease::{self, Renewal},
};

/// Pause between two looks for the end of an entry that is under way.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// A lease that lives, or has expired and is not revoked yet.
#[derive(Debug)]
pub struct Left {
    /// **Units** whole seconds left; negative for one that has expired.
    pub ttl: i64,
    /// **Units** seconds that were granted.
    pub granted_ttl: i64,
    /// The attached keys, if they were asked for.
    pub keys: Vec<Bytes>,
    /// The memory of the keys.
    pub share: Share,
}

/// Renews a lease. Returns its time to live in seconds, or 0 if there is no such lease. One that has expired is waited
/// for until it is gone.
///
/// **Errors** `NotPrimary`: this member does not lead; those of asking apply.
pub async fn renew(desk: &Desk, lease: i64) -> Result<i64, Error> {
    check_known(desk)?;
    match desk.ask(|reply| ToApply::Renew { reply, lease }).await? {
        Answer::Renewed(ttl) => Ok(ttl),
        Answer::NotPrimary => Err(Error::NotPrimary),
        other => unreachable!("a lease is renewed or not, and gets no {other:?}"),
    }
}

/// Renews leases, as far as that goes without waiting.
///
/// **Errors** those of asking apply.
pub(super) async fn renew_all(desk: &Desk, leases: Vec<i64>) -> Result<Vec<Renewal>, Error> {
    check_known(desk)?;
    let answer = desk.ask(|reply| ToApply::RenewAll { reply, leases }).await?;
    let Answer::RenewedAll(renewals) = answer else { unreachable!("the question has one kind of answer") };
    Ok(renewals)
}

/// What is left of a lease; `None` if there is no such lease.
///
/// **Errors** `NotPrimary`: this member does not lead; those of asking apply; the keys are too many to be gathered.
pub async fn left(desk: &Desk, request: pb::LeaseTimeToLiveRequest) -> Result<Option<Left>, Error> {
    check_known(desk)?;
    let lease = request.id;
    let (ttl, granted_ttl) = match desk.ask(|reply| ToApply::TimeToLive { reply, lease }).await? {
        Answer::TimeToLive(Some(found)) => found,
        Answer::TimeToLive(None) => return Ok(None),
        Answer::NotPrimary => return Err(Error::NotPrimary),
        other => unreachable!("a lease has time left or not, and gets no {other:?}"),
    };
    let (keys, share) =
        if request.keys { keys(desk, lease).await? } else { (Vec::new(), desk.shared.gathered.share()) };
    Ok(Some(Left { ttl, granted_ttl, keys, share }))
}

/// The keys that are attached to a lease.
///
/// **Errors** they are too many to be gathered; damaged data.
async fn keys(desk: &Desk, lease: i64) -> Result<(Vec<Bytes>, Share), Error> {
    let view = whole_view(desk).await?;
    let prefix = lease::attachment_prefix(lease);
    let mut cursor = view.meta_cursor(&prefix);
    let (mut keys, mut bytes) = (Vec::new(), 0);
    let mut share = desk.shared.gathered.share();
    desk.step_through(&view, |_, budget| {
        for _ in 0..budget {
            match cursor.next()? {
                Some((key, _)) => keys.push(key.slice(prefix.len()..)),
                None => return Ok(Some(Ok(()))),
            }
            bytes += size_of::<Bytes>() + keys.last().map_or(0, Bytes::len);
            if let Err(error) = share.grow_to(bytes) {
                return Ok(Some(Err(error)));
            }
        }
        Ok(None)
    })
    .await??;
    Ok((keys, share))
}

/// The newest view, once no entry is under way in it that may have detached a part of the keys.
///
/// **Errors** that takes too long; those of a read.
async fn whole_view(desk: &Desk) -> Result<Arc<ReadView>, Error> {
    let began = desk.clock.now();
    loop {
        let view = desk.view(Consistency::Serializable).await?;
        if !view.is_unfinished() {
            return Ok(view);
        }
        if desk.since(began) > desk.shared.limits.request_timeout {
            return Err(Error::Timeout);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Checks that this member knows which leases there are.
///
/// **Errors** its state lacks something that was acknowledged.
pub(super) fn check_known(desk: &Desk) -> Result<(), Error> {
    let is_behind = desk.shared.is_behind.load(Ordering::Acquire);
    if is_behind { Err(Error::of_standstill(desk.shared.has_other_voters())) } else { Ok(()) }
}
