//! Runs on: connection core.
//!
//! etcd's API: the one door that every call comes through, and the rooms behind it where calls are answered.
//!
//! - `call`: the door: what brings calls and takes answers away
//! - `request`: the requests of unary calls, decoded
//! - `admit`: what every call and message passes: limits, counters, permission
//! - `body`: what a unary call is answered with
//! - `told`: what is said of a unary call at its end
//! - `desk`: what a core has at hand to answer
//! - `watchers`: the watchers of a core
//! - `quota`: refuses what does not fit, and raises the alarm
//! - `range/`, `put`, `txn`, `compact`: the KV service
//! - `watch`, `lease`, `cluster`, `maintenance`, `snapshot`, `health`, `insight`: the other services
//!
//! Invariants:
//! - A handler gets decoded requests and ways to answer. It knows no HTTP, no socket, and not how a call came.
//! - Nothing here changes keys, leases, alarms or members: that is proposed, and apply does it.

use std::{future::poll_fn, pin::pin, rc::Rc, task::Poll};

use bytes::Bytes;
use proto::internal;

use self::{
    admit::{Inbound, Outbound},
    body::Body,
    call::{Call, Caller, Head, Reply, Requests},
    desk::{Desk, Draft},
    request::{Rare, Request},
};
use crate::{
    error::{Code, Error, Status},
    insight::trace::{Trace, traced},
    method::{Flow, Method},
    protobuf::framed,
};

mod admit;
mod body;
pub mod call;
mod cluster;
mod compact;
pub mod desk;
mod health;
pub mod insight;
mod lease;
mod maintenance;
mod put;
mod quota;
pub mod range;
mod request;
mod snapshot;
#[cfg(test)]
mod tests;
mod told;
mod txn;
pub mod watch;
pub mod watchers;

/// Lets a call of `method` in.
///
/// **Errors** it is refused, and over.
pub fn open(desk: &Desk, method: Method, head: &Head<'_>, caller: Caller) -> Result<Call, Status> {
    let call = Call { method, caller };
    admit::begin(desk, &call, head)?;
    Ok(call)
}

/// Serves a call that was let in, to its end.
pub async fn serve<Q: Requests, P: Reply>(desk: Rc<Desk>, call: Call, requests: Q, reply: P) {
    if call.method.flow() == Flow::Unary {
        return unary(&desk, &call, requests, reply).await;
    }
    // Boxed: a task is as large as the largest future in it, and is moved when it is made. Unary calls are most of all.
    Box::pin(stream(&desk, &call, requests, reply)).await;
    if desk.board.settings.is_extensive {
        desk.counters.latencies.handling[call.method as usize].observe(desk.since(call.caller.began));
    }
}

async fn unary<Q: Requests, P: Reply>(desk: &Rc<Desk>, call: &Call, mut requests: Q, mut reply: P) {
    let body = match requests.next().await {
        Ok(Some(body)) => body,
        Ok(None) => return refuse(desk, call, Error::Undecodable("unexpected EOF".into()), reply),
        Err(error) => return refuse(desk, call, error, reply),
    };
    drop(requests);
    desk.counters.received(call.method, body.len());
    let mut work = pin!(traced(&desk.current, answer(desk, call, body.clone())));
    let ended = poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending => reply.poll_left(cx).map(|()| None),
    });
    let Some((result, trace)) = ended.await else { return admit::left(desk, call.method) };
    told::ended(desk, call, &body, &trace, result.as_ref().map(Body::message_len));
    match result {
        Ok(Body::Whole(message)) => {
            desk.counters.handled(call.method, Code::Ok);
            desk.counters.sent(call.method, message.len());
            reply.answer(message);
        }
        Ok(Body::Large(large)) => {
            desk.counters.sent(call.method, large.framed_len());
            let sent = Box::pin(large.send(desk, reply)).await;
            desk.counters.handled(call.method, sent.map_or_else(|error| Status::from(error).code, |()| Code::Ok));
        }
        Err(error) => fail(desk, call, error, reply),
    }
}

/// Ends a unary call whose message could not be read.
#[cold]
fn refuse(desk: &Desk, call: &Call, error: Error, reply: impl Reply) {
    told::ended(desk, call, &Bytes::new(), &Trace::default(), Err(&error));
    fail(desk, call, error, reply);
}

fn fail(desk: &Desk, call: &Call, error: Error, reply: impl Reply) {
    let status = Status::from(error);
    desk.counters.handled(call.method, status.code);
    reply.refuse(&status);
}

/// Decodes and answers the message of a unary call. The frequent ones are answered in place; the others in a box of
/// their own, so that the future of a frequent call is small.
async fn answer(desk: &Desk, call: &Call, body: Bytes) -> Result<Body, Error> {
    match admit::request(desk, call, body)? {
        Request::Draft(draft) if matches!(draft.request(), internal::Request::Put(_)) => {
            put::put(desk, draft).await.map(Body::Whole)
        }
        Request::Draft(draft) => Box::pin(proposed(desk, draft)).await.map(Body::Whole),
        Request::Range(request) => range::serve(desk, request).await,
        Request::Rare(rare) => Box::pin(rarely(desk, *rare)).await.map(Body::Whole),
    }
}

async fn proposed(desk: &Desk, draft: Draft) -> Result<Bytes, Error> {
    match draft.request() {
        internal::Request::Txn(_) => txn::serve(desk, draft).await,
        internal::Request::DeleteRange(_) => put::delete_range(desk, draft).await,
        internal::Request::Compaction(_) => compact::serve(desk, draft).await,
        internal::Request::LeaseRevoke(_) => lease::revoke(desk, draft).await,
        internal::Request::Alarm(_) => maintenance::alarm(desk, draft).await,
        other => unreachable!("a client's request is not {:?}", other.kind()),
    }
}

async fn rarely(desk: &Desk, request: Rare) -> Result<Bytes, Error> {
    match request {
        Rare::LeaseGrant(request) => lease::grant(desk, request).await,
        Rare::LeaseTimeToLive(request) => lease::time_to_live(desk, request).await,
        Rare::LeaseLeases => lease::leases(desk).await,
        Rare::MemberList => Ok(framed(&cluster::member_list(desk))),
        Rare::Status => Ok(framed(&maintenance::status(desk))),
        Rare::Defragment => maintenance::defragment(desk).await,
        Rare::Hash => maintenance::hash(desk).await,
        Rare::HashKv(request) => maintenance::hash_kv(desk, request).await,
        Rare::Usage(request) => insight::usage(desk, request).await,
        Rare::Top(request) => insight::top(desk, request).await,
        Rare::HealthCheck(request) => health::check(request),
        Rare::HealthList => Ok(framed(&health::list())),
    }
}

async fn stream<Q: Requests, P: Reply>(desk: &Rc<Desk>, call: &Call, requests: Q, reply: P) {
    let Ok(answers) = reply.begin() else { return admit::left(desk, call.method) };
    let mut inbound = Inbound::new(desk, call, requests);
    let mut outbound = Outbound::new(desk, call.method, answers);
    let result = match call.method {
        Method::Watch => watch::serve(desk, call, &mut inbound, &mut outbound).await,
        Method::LeaseKeepAlive => lease::keep_alive(desk, &mut inbound, &mut outbound).await,
        Method::RangeStream => range::stream::serve(desk, &mut inbound, &mut outbound).await,
        Method::Snapshot => snapshot::serve(desk, &mut inbound, &mut outbound).await,
        Method::HealthWatch => health::watch(&mut inbound, &mut outbound).await,
        _ => unreachable!("a method that is not served was refused before"),
    };
    outbound.end(result);
}
