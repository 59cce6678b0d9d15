//! Runs on: connection core.
//!
//! Refuses a request that does not fit below the quota, before it is proposed, and raises the alarm. As in etcd, this
//! comes before any other check of the request.
//! **Source** etcd v3.7.1 `etcdserver/api/v3rpc/quota.go`.

use std::sync::atomic::Ordering;

use prost::Message;
use proto::{etcdserverpb::alarm_request::AlarmAction, internal::Kind};

use super::{desk::Desk, propose::propose};
use crate::{
    error::Error,
    quota::{self, Purpose},
    shared::Alarm,
};

/// Admits a request of `cost` if it fits.
///
/// **Errors** the quota is exceeded.
pub(super) async fn check_room(desk: &Desk, cost: u64) -> Result<(), Error> {
    let used = desk.shared.sizes.in_use.load(Ordering::Acquire);
    if desk.shared.limits.quota.has_room(used, cost) {
        return Ok(());
    }
    // Boxed because it is rare, and a put is not.
    Box::pin(raise(desk)).await;
    Err(Error::NoSpace)
}

async fn raise(desk: &Desk) {
    let member = desk.shared.identity.member_id;
    if desk.shared.cluster.load().alarms.contains_key(&(member, Alarm::Nospace as i32)) {
        return;
    }
    let request = quota::own_alarm(member, AlarmAction::Activate).encode_to_vec();
    let raised = match desk.draft_for(Purpose::Alarm, Kind::Alarm, &request) {
        Ok(draft) => propose(desk, draft, Purpose::Alarm).await.map(drop),
        Err(error) => Err(error),
    };
    if let Err(error) = raised
        && error != Error::NoSpace
    {
        tracing::warn!(%error, "the NOSPACE alarm could not be raised");
    }
}
