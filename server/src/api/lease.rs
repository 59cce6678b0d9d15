//! Runs on: connection core.
//!
//! The Lease service. Grants and revocations go through the log. Renewals and queries ask the lessor, which apply owns.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/lease.go`, `server/etcdserver/v3_server.go`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use engine::ReadView;
use prost::Message;
use proto::{etcdserverpb as pb, internal::Kind};

use super::{
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
    desk::{Consistency, Desk, Draft},
    propose::propose,
    quota::check_room,
};
use crate::{
    apply::{
        message::{Answer, ToApply},
        outcome::Outcome,
    },
    error::Error,
    header::{Header, framed_under, put_framed_under},
    lease::{self, Renewal},
    protobuf::{framed, framed_answer},
    quota::{Purpose, lease_cost},
};

/// Pause between two looks for the end of an entry that is under way.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

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
    let outcome = propose(desk, draft, Purpose::Grow).await?;
    let Outcome::LeaseGrant { revision, id, ttl } = outcome else {
        unreachable!("a lease was granted, not {outcome:?}")
    };
    Ok(framed(&pb::LeaseGrantResponse { header: Some(desk.header(revision)), id, ttl, error: String::new() }))
}

/// Answers LeaseRevoke.
///
/// **Errors** an unknown lease; the errors of proposing.
pub(super) async fn revoke(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    let outcome = propose(desk, draft, Purpose::Other).await?;
    let Outcome::LeaseRevoke { revision } = outcome else { unreachable!("a lease was revoked, not {outcome:?}") };
    Ok(framed(&pb::LeaseRevokeResponse { header: Some(desk.header(revision)) }))
}

/// Answers LeaseTimeToLive. An unknown lease has -1 seconds left.
///
/// **Errors** those of asking apply; the keys are too many to be gathered.
pub(super) async fn time_to_live(desk: &Desk, request: pb::LeaseTimeToLiveRequest) -> Result<Bytes, Error> {
    check_known(desk)?;
    let id = request.id;
    let answer = desk.ask(|reply| ToApply::TimeToLive { reply, lease: id }).await?;
    let Answer::TimeToLive(found) = answer else { unreachable!("the question has one kind of answer") };
    let view = if request.keys { whole_view(desk).await? } else { desk.view(Consistency::Serializable).await? };
    let header = Some(desk.header(view.revision()));
    let Some((ttl, granted_ttl)) = found else {
        return Ok(framed(&pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() }));
    };
    let mut keys = Vec::new();
    let mut share = desk.shared.gathered.share();
    if request.keys {
        let prefix = lease::attachment_prefix(id);
        let mut cursor = view.meta_cursor(&prefix);
        let mut bytes = 0;
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
    }
    framed_answer(&pb::LeaseTimeToLiveResponse { header, id, ttl, granted_ttl, keys }).map(|answer| share.hold(answer))
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

/// Answers LeaseLeases.
///
/// **Errors** those of asking apply.
pub(super) async fn leases(desk: &Desk) -> Result<Bytes, Error> {
    check_known(desk)?;
    let answer = desk.ask(|reply| ToApply::Leases { reply }).await?;
    let Answer::Leases(ids) = answer else { unreachable!("the question has one kind of answer") };
    let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
    let header = Some(desk.newest_header());
    Ok(framed(&pb::LeaseLeasesResponse { header, leases }))
}

/// Renewals of one stream that are asked for, and answered, together.
const TOGETHER_MAX: usize = 256;

/// Serves one LeaseKeepAlive stream. Each request gets one response. An unknown lease gets a time to live of 0. One
/// that has expired gets it when it is gone, so that it can be granted anew at once.
///
/// Requests that have come together are answered in one piece. Each piece is a DATA frame, and clients on h2 0.4.16 to
/// 0.4.18 end a connection on which a hundred small frames wait to be read (RUSTSEC-2026-0258).
///
/// **Errors** a message that does not decode; the errors of asking apply; a client that left.
pub(super) async fn keep_alive<Q: Requests, A: Answers>(
    desk: &Desk,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    while let Some(first) = inbound.next::<pb::LeaseKeepAliveRequest>().await? {
        let header = desk.header_bytes(desk.shared.view.revision());
        let (leases, taken) = together(first.id, inbound);
        if leases.is_empty() {
            let ttl = renew(desk, first.id).await?;
            let renewed = pb::LeaseKeepAliveResponse { header: None, id: first.id, ttl };
            outbound.send(framed_under(&header, &renewed)).await?;
        } else {
            renew_all(desk, &header, leases, outbound).await?;
        }
        taken?;
    }
    Ok(())
}

/// The lease `first` and those of the requests that have come behind it; none, without an allocation, if there are no
/// such requests. The error is that of the request after them.
fn together<Q: Requests>(first: i64, inbound: &mut Inbound<'_, Q>) -> (Vec<i64>, Result<(), Error>) {
    let mut leases = Vec::new();
    while leases.len() < TOGETHER_MAX {
        match inbound.next_at_hand::<pb::LeaseKeepAliveRequest>() {
            Ok(Some(request)) if leases.is_empty() => leases.extend([first, request.id]),
            Ok(Some(request)) => leases.push(request.id),
            Ok(None) => break,
            Err(error) => return (leases, Err(error)),
        }
    }
    (leases, Ok(()))
}

/// Checks that this member knows which leases there are.
///
/// **Errors** its state lacks something that was acknowledged.
fn check_known(desk: &Desk) -> Result<(), Error> {
    let is_behind = desk.shared.is_behind.load(Ordering::Acquire);
    if is_behind { Err(Error::of_standstill(desk.shared.has_other_voters())) } else { Ok(()) }
}

async fn renew(desk: &Desk, lease: i64) -> Result<i64, Error> {
    check_known(desk)?;
    let answer = desk.ask(|reply| ToApply::Renew { reply, lease }).await?;
    let Answer::Renewed(ttl) = answer else { unreachable!("the question has one kind of answer") };
    Ok(ttl)
}

/// Renews `leases` and answers in their order.
async fn renew_all<A: Answers>(
    desk: &Desk,
    header: &Header,
    leases: Vec<i64>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    check_known(desk)?;
    let asked = leases.clone();
    let answer = desk.ask(|reply| ToApply::RenewAll { reply, leases: asked }).await?;
    let Answer::RenewedAll(renewals) = answer else { unreachable!("the question has one kind of answer") };
    let (mut piece, mut count) = (Vec::new(), 0);
    for (id, renewal) in leases.into_iter().zip(renewals) {
        let ttl = match renewal {
            Renewal::Renewed(ttl) => ttl,
            Renewal::Unknown => 0,
            Renewal::Waits | Renewal::IsRecorded => {
                // Those before it do not wait for it.
                if count > 0 {
                    outbound.send_all(std::mem::take(&mut piece).into(), std::mem::take(&mut count)).await?;
                }
                renew(desk, id).await?
            }
        };
        put_framed_under(&mut piece, header, &pb::LeaseKeepAliveResponse { header: None, id, ttl });
        count += 1;
    }
    Ok(outbound.send_all(piece.into(), count).await?)
}
