//! Runs on: connection core.
//!
//! The Lease service: grants and revocations go through the log, renewals and looks ask the lessor on the commit core.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/lease.go`, `server/etcdserver/v3_server.go`.

use std::{rc::Rc, sync::atomic::Ordering};

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use prost::Message;
use proto::{etcdserverpb as pb, internal::Kind};

use crate::{
    commit::ToCommit,
    core::{Answer, Core},
    error::{Code, Error, Status},
    lease,
    quota::{self, Purpose},
    rpc,
    wire::{
        grpc::{Messages, frame, framed},
        method::Method,
    },
};

/// Answers LeaseGrant; an id of 0 is chosen here, so that the entry is the same on every member.
///
/// **Errors** those of the entry, and of proposing.
pub async fn grant(core: &Core, mut request: pb::LeaseGrantRequest) -> Result<Bytes, Error> {
    quota::admit(core, quota::lease_cost()).await?;
    while request.id == 0 {
        // A request id without its sign is etcd's scheme for lease ids, too.
        let id = core.shared.request_ids.fetch_add(1, Ordering::Relaxed);
        request.id = (id & (u64::MAX >> 1)).cast_signed();
    }
    core.propose(Kind::LeaseGrant, &request.encode_to_vec(), Purpose::Grow).await?.framed()
}

/// Answers LeaseTimeToLive: an unknown lease has -1 left.
///
/// **Errors** those of asking the commit core.
pub async fn time_to_live(core: &Core, request: pb::LeaseTimeToLiveRequest) -> Result<Bytes, Error> {
    let id = request.id;
    let answer = core.ask(|reply| ToCommit::TimeToLive { reply, lease: id }).await?;
    let Answer::TimeToLive(found) = answer else { unreachable!("the question has one kind of answer") };
    let view = core.view();
    let header = Some(core.header(view.revision()));
    let Some((ttl, granted_ttl)) = found else {
        return Ok(framed(&pb::LeaseTimeToLiveResponse { header, id, ttl: -1, ..Default::default() }));
    };
    let mut keys = Vec::new();
    if request.keys {
        let prefix = lease::attachment_prefix(id);
        let mut cursor = view.meta_cursor(&prefix);
        core.step_through(&view, |_, budget| {
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
/// **Errors** those of asking the commit core.
pub async fn leases(core: &Core) -> Result<Bytes, Error> {
    let answer = core.ask(|reply| ToCommit::Leases { reply }).await?;
    let Answer::Leases(ids) = answer else { unreachable!("the question has one kind of answer") };
    let leases = ids.into_iter().map(|id| pb::LeaseStatus { id }).collect();
    let header = Some(core.header(core.view().revision()));
    Ok(framed(&pb::LeaseLeasesResponse { header, leases }))
}

/// Serves one LeaseKeepAlive stream: each request gets one response; an unknown lease gets a time of 0.
pub async fn keep_alive(core: Rc<Core>, mut messages: Messages, reply: SendResponse<Bytes>) {
    let Some(mut sender) = rpc::start(reply) else { return };
    let result = loop {
        let body = match messages.next().await {
            Ok(Some(body)) => body,
            Ok(None) => break Ok(()),
            Err(error) => break Err(error),
        };
        match renew(&core, body).await {
            Ok(message) => {
                if let Err(gone) = sender.send(message).await {
                    return rpc::drop_gone(Err(gone));
                }
            }
            Err(error) => break Err(error),
        }
    };
    let status = result.err().map(Status::from);
    core.counters.handled(Method::LeaseKeepAlive, status.as_ref().map_or(Code::Ok, |status| status.code));
    rpc::drop_gone(sender.finish(status.as_ref()));
}

async fn renew(core: &Core, body: Bytes) -> Result<Bytes, Error> {
    core.counters.received(Method::LeaseKeepAlive, body.len());
    let request: pb::LeaseKeepAliveRequest = rpc::decode(body)?;
    let header = Some(core.header(core.view().revision()));
    let ttl = core.renew(request.id).await?;
    let mut message = BytesMut::new();
    frame(&pb::LeaseKeepAliveResponse { header, id: request.id, ttl }, &mut message);
    core.counters.sent(Method::LeaseKeepAlive, message.len());
    Ok(message.freeze())
}
