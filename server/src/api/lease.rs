//! Runs on: connection core.
//!
//! The Lease service. Grants and revocations go through the log. Renewals and queries ask the lessor, which apply owns.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/lease.go`, `server/etcdserver/v3_server.go`.

use bytes::Bytes;
use prost::Message;
use proto::{etcdserverpb as pb, internal::Kind};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
    desk::{Consistency, Desk, Draft},
    quota::check_room,
};
use crate::{
    apply::{
        message::{Answer, ToApply},
        outcome::Outcome,
    },
    error::Error,
    lease,
    protobuf::framed,
    quota::{Purpose, lease_cost},
};

/// Answers LeaseGrant. If the id is 0, an id is chosen here, so that the entry is the same on every member.
///
/// **Errors** the errors of the entry and of proposing.
pub(super) async fn grant(desk: &Desk, mut request: pb::LeaseGrantRequest) -> Result<Bytes, Error> {
    check_room(desk, lease_cost()).await?;
    while request.id == 0 {
        // As in etcd, a lease id is a request id without its sign bit.
        request.id = (desk.shared.next_request_id() & (u64::MAX >> 1)).cast_signed();
    }
    let draft = desk.draft(Kind::LeaseGrant, &request.encode_to_vec())?;
    let outcome = desk.propose(draft, Purpose::Grow).await?;
    let Outcome::LeaseGrant { revision, id, ttl } = outcome else {
        unreachable!("a lease was granted, not {outcome:?}")
    };
    Ok(framed(&pb::LeaseGrantResponse { header: Some(desk.header(revision)), id, ttl, error: String::new() }))
}

/// Answers LeaseRevoke.
///
/// **Errors** an unknown lease; the errors of proposing.
pub(super) async fn revoke(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let outcome = desk.propose(draft, Purpose::Other).await?;
    let Outcome::LeaseRevoke { revision } = outcome else { unreachable!("a lease was revoked, not {outcome:?}") };
    Ok(framed(&pb::LeaseRevokeResponse { header: Some(desk.header(revision)) }))
}

/// Answers LeaseTimeToLive. An unknown lease has -1 seconds left.
///
/// **Errors** those of asking apply.
pub(super) async fn time_to_live(desk: &Desk, request: pb::LeaseTimeToLiveRequest) -> Result<Bytes, Error> {
    let id = request.id;
    let answer = desk.ask(|reply| ToApply::TimeToLive { reply, lease: id }).await?;
    let Answer::TimeToLive(found) = answer else { unreachable!("the question has one kind of answer") };
    let view = desk.view(Consistency::Serializable).await?;
    let header = Some(desk.header(view.revision()));
    let Some((ttl, granted_ttl)) = found else {
        return Ok(framed(&pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() }));
    };
    let mut keys = Vec::new();
    if request.keys {
        let prefix = lease::attachment_prefix(id);
        let mut cursor = view.meta_cursor(&prefix);
        desk.step_through(&view, |_, budget| {
            for _ in 0..budget {
                match cursor.next()? {
                    Some((key, _)) => keys.push(key.slice(prefix.len()..)),
                    None => return Ok(Some(())),
                }
            }
            Ok(None)
        })
        .await?;
    }
    Ok(framed(&pb::LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys }))
}

/// Answers LeaseLeases.
///
/// **Errors** those of asking apply.
pub(super) async fn leases(desk: &Desk) -> Result<Bytes, Error> {
    let answer = desk.ask(|reply| ToApply::Leases { reply }).await?;
    let Answer::Leases(ids) = answer else { unreachable!("the question has one kind of answer") };
    let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
    let header = Some(desk.newest_header());
    Ok(framed(&pb::LeaseLeasesResponse { header, leases }))
}

/// Serves one LeaseKeepAlive stream. Each request gets one response. An unknown lease gets a time to live of 0.
///
/// **Errors** a message that does not decode; the errors of asking apply; a client that left.
pub(super) async fn keep_alive<Q: Requests, A: Answers>(
    desk: &Desk,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    while let Some(request) = inbound.next::<pb::LeaseKeepAliveRequest>().await? {
        let header = Some(desk.newest_header());
        let answer = desk.ask(|reply| ToApply::Renew { reply, lease: request.id }).await?;
        let Answer::Renewed(ttl) = answer else { unreachable!("the question has one kind of answer") };
        outbound.send(framed(&pb::LeaseKeepAliveResponse { header, id: request.id, ttl })).await?;
    }
    Ok(())
}
