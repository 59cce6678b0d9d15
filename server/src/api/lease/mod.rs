//! Runs on: connection core.
//!
//! The Lease service. Grants and revocations go through the log. Renewals, and how much time is left, are answered by
//! the leader, whichever member is asked. Which leases there are, each member knows.
//!
//! - `primary`: what this member's own lessor says; `remote`: what the leader says
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/lease.go`, `server/etcdserver/v3_server.go`.

use std::{future::poll_fn, sync::atomic::Ordering, task::Poll};

use bytes::Bytes;
use prost::Message;
use proto::{etcdserverpb as pb, internal::Kind};

use self::primary::{Left, check_known};
use super::{
    abreast::Abreast,
    admit::{Inbound, Outbound},
    call::{Answers, Requests},
    desk::{Desk, Draft},
    leader::{Leader, Way},
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
    lease::Renewal,
    protobuf::{framed, framed_answer},
    quota::{Purpose, lease_cost},
};

pub mod primary;
pub mod remote;

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

/// Answers LeaseTimeToLive, after the leader. An unknown lease has -1 seconds left.
///
/// **Errors** those of asking apply; the keys are too many to be gathered; there is no leader, or no answer in time.
pub(super) async fn time_to_live(desk: &Desk, request: pb::LeaseTimeToLiveRequest) -> Result<Bytes, Error> {
    let (way, id) = (Way::new(desk), request.id);
    let gathered = &desk.shared.gathered;
    let (left, share) = loop {
        match way.leader().await? {
            Leader::Own => match primary::left(desk, request).await {
                Ok(Some(Left { ttl, granted_ttl, keys, share })) => {
                    break (pb::LeaseTimeToLiveResponse { header: None, id, ttl, granted_ttl, keys }, share);
                }
                Ok(None) => break (unknown(id), gathered.share()),
                Err(Error::NotPrimary) => {}
                Err(error) => return Err(error),
            },
            Leader::Other(urls) => {
                if let Some(left) = remote::left(&way, &urls, request, gathered.max()).await {
                    let mut share = gathered.share();
                    share.grow_to(left.as_ref().map_or(0, Message::encoded_len))?;
                    break (left.unwrap_or_else(|| unknown(id)), share);
                }
            }
        }
        way.again().await?;
    };
    let header = Some(desk.newest_header());
    framed_answer(&pb::LeaseTimeToLiveResponse { header, ..left }).map(|answer| share.hold(answer))
}

fn unknown(id: i64) -> pb::LeaseTimeToLiveResponse {
    pb::LeaseTimeToLiveResponse { id, ttl: -1, ..Default::default() }
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
/// **Errors** a message that does not decode; the errors of asking; a client that left.
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

/// Renews a lease, at the leader. Returns its time to live in seconds, or 0 if there is no such lease.
///
/// **Errors** those of asking apply; there is no leader, or no answer in time.
async fn renew(desk: &Desk, lease: i64) -> Result<i64, Error> {
    let way = Way::new(desk);
    loop {
        match way.leader().await? {
            Leader::Own => match primary::renew(desk, lease).await {
                Err(Error::NotPrimary) => {}
                renewed => return renewed,
            },
            Leader::Other(urls) => {
                if let Some(ttl) = remote::renew(&way, &urls, lease).await {
                    return Ok(ttl);
                }
            }
        }
        way.again().await?;
    }
}

/// Renews `leases` and answers in their order.
async fn renew_all<A: Answers>(
    desk: &Desk,
    header: &Header,
    leases: Vec<i64>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let leads = desk.shared.raft.leader.load(Ordering::Acquire) == desk.shared.identity.member_id;
    let renewals = match leads {
        true => primary::renew_all(desk, leases.clone()).await?,
        // It is not known here what becomes of any of them.
        false => vec![Renewal::Waits; leases.len()],
    };
    let mut piece = Piece { header, messages: Vec::new(), count: 0 };
    let mut all = leases.into_iter().zip(renewals);
    while let Some((id, renewal)) = all.next() {
        if let Some(ttl) = known(renewal) {
            piece.put(id, ttl);
            continue;
        }
        // Those before it do not wait for it.
        piece.send(outbound).await?;
        let rest = std::iter::once((id, renewal)).chain(all);
        return renew_rest(desk, rest, piece, outbound).await;
    }
    piece.send(outbound).await
}

/// The time to live that a renewal is answered with, if that is known.
fn known(renewal: Renewal) -> Option<i64> {
    match renewal {
        Renewal::Renewed(ttl) => Some(ttl),
        Renewal::Unknown => Some(0),
        Renewal::Waits | Renewal::IsRecorded => None,
    }
}

/// Renewals that are asked for side by side: each of a leader elsewhere takes a connection.
const ABREAST_MAX: usize = 16;

/// Goes on with the renewals behind one that waits: answers leave in order, as soon as there are some.
async fn renew_rest<A: Answers>(
    desk: &Desk,
    leases: impl Iterator<Item = (i64, Renewal)>,
    mut piece: Piece<'_>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let mut abreast = Abreast::new(leases, ABREAST_MAX, async |(id, renewal)| match known(renewal) {
        Some(ttl) => Ok((id, ttl)),
        None => renew(desk, id).await.map(|ttl| (id, ttl)),
    });
    loop {
        let next = poll_fn(|cx| match abreast.poll_next(cx) {
            Poll::Pending if piece.count > 0 => Poll::Ready(None),
            next => next.map(Some),
        });
        match next.await {
            Some(Some(renewed)) => {
                let (id, ttl) = renewed?;
                piece.put(id, ttl);
            }
            Some(None) => return piece.send(outbound).await,
            None => piece.send(outbound).await?,
        }
    }
}

/// Answers that leave together.
struct Piece<'a> {
    header: &'a Header,
    messages: Vec<u8>,
    count: usize,
}

impl Piece<'_> {
    fn put(&mut self, id: i64, ttl: i64) {
        let renewed = pb::LeaseKeepAliveResponse { header: None, id, ttl };
        put_framed_under(&mut self.messages, self.header, &renewed);
        self.count += 1;
    }

    /// Sends what there is.
    async fn send<A: Answers>(&mut self, outbound: &mut Outbound<'_, A>) -> Result<(), Error> {
        if self.count == 0 {
            return Ok(());
        }
        let (messages, count) = (std::mem::take(&mut self.messages), std::mem::take(&mut self.count));
        Ok(outbound.send_all(messages.into(), count).await?)
    }
}
