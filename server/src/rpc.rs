//! Runs on: connection core.
//!
//! One stream in, one answer out: the one place every gRPC request passes, for its limits, its accounting and (with the
//! users' issue) its authorisation.
//!
//! Knows the shapes of calls (unary, server stream, bidi) and who handles which method; handlers get decoded requests
//! and know nothing of HTTP/2.

use std::rc::Rc;

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use prost::Message;
use proto::{etcdserverpb as pb, health, internal::Kind, txn};

use crate::{
    backup,
    core::Core,
    error::{Code, Error, Status},
    insight::{
        service,
        slow::{self, Call, Origin},
        trace::{Trace, traced},
    },
    kv::{self, range::Reply},
    lease_rpc, maintenance,
    quota::{self, Purpose},
    watch_rpc,
    wire::{
        grpc::{self, Messages, Sender, framed},
        method::{self, Flow, Method},
    },
};

/// Serves one stream from its head to its last byte.
pub async fn serve(core: Rc<Core>, origin: Origin, request: Request<RecvStream>, reply: SendResponse<Bytes>) {
    let Some(method) = Method::at(request.uri().path()) else {
        let text = method::unknown(request.uri().path());
        return drop_gone(grpc::refuse(reply, &Error::UnknownMethod(text).into()));
    };
    core.counters.started(method);
    if let Err(error) = admit(&core, method, &request) {
        let status = Status::from(error);
        core.counters.handled(method, status.code);
        return drop_gone(grpc::refuse(reply, &status));
    }
    let messages = Messages::new(request.into_body(), core.shared.limits.receive_bytes_max);
    if method.flow() == Flow::Unary {
        return serve_unary(core, method, origin, messages, reply).await;
    }
    // Boxed: a task is as large as the largest future in it, and is moved when it is made. The unary ones are most of all.
    Box::pin(serve_stream(Rc::clone(&core), method, messages, reply)).await;
    if core.shared.insight.is_extensive {
        core.counters.latencies.handling[method as usize].observe(core.clock.now().saturating_sub(origin.began));
    }
}

/// Answers that find their client gone are dropped: nobody is left to be told.
pub fn drop_gone(sent: Result<(), h2::Error>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "client went away before its answer");
    }
}

/// What every call must satisfy, whatever it asks.
fn admit(core: &Core, method: Method, request: &Request<RecvStream>) -> Result<(), Error> {
    let headers = request.headers();
    let version = headers.get("client-api-version").map(|version| version.as_bytes());
    if version.is_some_and(|version| std::str::from_utf8(version).is_err()) {
        return Err(Error::InvalidClientApiVersion);
    }
    core.counters.requested(method, version);
    if !method.is_served() {
        return Err(Error::NotImplemented(method.name()));
    }
    let wants_leader = headers.get("hasleader").is_some_and(|value| value.as_bytes() == b"true");
    if wants_leader && !core.has_leader() {
        return Err(Error::NoLeader);
    }
    Ok(())
}

async fn serve_stream(core: Rc<Core>, method: Method, messages: Messages, reply: SendResponse<Bytes>) {
    match method {
        Method::Watch => watch_rpc::serve(core, messages, reply).await,
        Method::LeaseKeepAlive => lease_rpc::keep_alive(core, messages, reply).await,
        Method::RangeStream => kv::stream::serve(core, messages, reply).await,
        Method::Snapshot => backup::stream::serve(core, messages, reply).await,
        Method::HealthWatch => maintenance::health_watch(core, messages, reply).await,
        _ => unreachable!("a method that is not served was refused before"),
    }
}

async fn serve_unary(
    core: Rc<Core>,
    method: Method,
    origin: Origin,
    mut messages: Messages,
    mut reply: SendResponse<Bytes>,
) {
    let body = match messages.next().await {
        Ok(Some(body)) => Ok(body),
        Ok(None) => Err(Error::Undecodable("unexpected EOF".into())),
        Err(error) => Err(error),
    };
    let (result, trace, body) = match body {
        Ok(body) => {
            core.counters.received(method, body.len());
            tokio::select! {
                biased;
                (result, trace) = traced(&core.current, unary(&core, method, body.clone())) => (result, trace, body),
                _ = std::future::poll_fn(|cx| reply.poll_reset(cx)) => {
                    core.counters.handled(method, Code::Canceled);
                    return;
                }
            }
        }
        Err(error) => (Err(error), Trace::default(), Bytes::new()),
    };
    slow::ended(&core, &Call { method, origin, body }, &trace, &result);
    match result {
        Ok(Reply::Whole(message)) => {
            core.counters.handled(method, Code::Ok);
            core.counters.sent(method, message.len());
            drop_gone(grpc::respond(reply, message));
        }
        Ok(Reply::Large(large)) => {
            core.counters.sent(method, large.framed_len());
            let sent = Box::pin(large.send(&core, reply)).await;
            core.counters.handled(method, sent.map_or_else(|error| Status::from(error).code, |()| Code::Ok));
        }
        Err(error) => {
            let status = Status::from(error);
            core.counters.handled(method, status.code);
            drop_gone(grpc::refuse(reply, &status));
        }
    }
}

/// Decodes a request.
///
/// **Errors** bytes that are not this message.
pub fn decode<M: Message + Default>(body: Bytes) -> Result<M, Error> {
    M::decode(body).map_err(|error| Error::Undecodable(error.to_string()))
}

/// Decodes a txn, however deep within etcd's bound.
///
/// **Errors** as [`decode`]; one that is nested too deep.
pub fn decode_txn(body: Bytes) -> Result<pb::TxnRequest, Error> {
    txn::decode(body).map_err(|error| match error {
        proto::error::Error::Malformed(error) => Error::Undecodable(error.to_string()),
        error => Error::Undecodable(error.to_string()),
    })
}

async fn unary(core: &Core, method: Method, body: Bytes) -> Result<Reply, Error> {
    match method {
        Method::Range => kv::range::serve(core, decode(body)?).await,
        _ => whole(core, method, body).await.map(Reply::Whole),
    }
}

async fn whole(core: &Core, method: Method, body: Bytes) -> Result<Bytes, Error> {
    match method {
        Method::Put => {
            let request: pb::PutRequest = decode(body.clone())?;
            quota::admit(core, quota::put_cost(&request)).await?;
            kv::check::put(&request)?;
            core.propose(Kind::Put, &body, Purpose::Grow).await?.framed()
        }
        Method::Txn => Box::pin(kv::txn::serve(core, body)).await,
        Method::DeleteRange => {
            kv::check::delete(&decode(body.clone())?)?;
            core.propose(Kind::DeleteRange, &body, Purpose::Other).await?.framed()
        }
        Method::Compact => {
            let request: pb::CompactionRequest = decode(body.clone())?;
            let answer = core.propose(Kind::Compaction, &body, Purpose::Other).await?;
            if request.physical {
                core.swept(request.revision).await?;
            }
            answer.framed()
        }
        Method::LeaseGrant => Box::pin(lease_rpc::grant(core, decode(body)?)).await,
        Method::LeaseRevoke => {
            decode::<pb::LeaseRevokeRequest>(body.clone())?;
            core.propose(Kind::LeaseRevoke, &body, Purpose::Other).await?.framed()
        }
        Method::LeaseTimeToLive => Box::pin(lease_rpc::time_to_live(core, decode(body)?)).await,
        Method::LeaseLeases => lease_rpc::leases(core).await,
        Method::MemberList => Ok(framed(&maintenance::member_list(core))),
        Method::Alarm => {
            decode::<pb::AlarmRequest>(body.clone())?;
            core.propose(Kind::Alarm, &body, Purpose::Other).await?.framed()
        }
        Method::Status => Ok(framed(&maintenance::status(core))),
        Method::Defragment => {
            decode::<pb::DefragmentRequest>(body)?;
            core.defragment().await?;
            Ok(framed(&pb::DefragmentResponse { header: None }))
        }
        Method::Hash => Box::pin(maintenance::hash(core)).await,
        Method::HashKv => Box::pin(maintenance::hash_kv(core, decode(body)?)).await,
        Method::Usage => Box::pin(service::usage(core, decode(body)?)).await,
        Method::Top => Box::pin(service::top(core, decode(body)?)).await,
        Method::HealthCheck => maintenance::health_check(decode::<health::HealthCheckRequest>(body)?),
        Method::HealthList => {
            decode::<health::HealthListRequest>(body)?;
            Ok(framed(&maintenance::health_list()))
        }
        _ => Err(Error::NotImplemented(method.name())),
    }
}

/// Starts a streaming answer; `None` when the client is gone already.
pub fn start(reply: SendResponse<Bytes>) -> Option<Sender> {
    match Sender::start(reply) {
        Ok(sender) => Some(sender),
        Err(error) => {
            tracing::debug!(%error, "client went away before its answer");
            None
        }
    }
}
