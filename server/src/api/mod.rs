//! Runs on: connection core.
//!
//! etcd's API: the one door that every call comes through, and the handlers behind it.
//!
//! - `call`: the door: what brings calls, and the way back for answers
//! - `request`: the requests of unary calls, decoded
//! - `admit`: what every call and message passes: limits, counters, permission
//! - `due`, `deadlines`: the time that a client gives its call; the calls of a core that have a deadline
//! - `leaderless`: the streams of a core that end when there is no leader
//! - `timeout`: why a proposal timed out
//! - `body`: the answer to a unary call
//! - `told`: what is counted and logged at the end of a unary call; `measured`: the counts and sizes in these lines
//! - `desk`: what a core needs to answer requests
//! - `propose`: the way of a request into the log
//! - `applied`: waits for apply; `abreast`: several waits at once
//! - `others`: the way to other members; `leader`: the way to the one that leads
//! - `watchers`: the watchers of a core
//! - `database`: the newest state as a file of etcd's; `worries`: what a person should look at
//! - `quota`: refuses requests that do not fit, and raises the alarm
//! - `range/`, `put`, `txn`, `compact`: the KV service
//! - `watch`, `lease/`, `cluster/`, `maintenance`, `downgrade`, `snapshot`, `health`, `insight`: the other services
//!
//! Messages come through the door as protobuf, and answers leave it in gRPC's frames: no source of calls has less, and
//! a frequent answer is built once. A call's user will stand in [`Call`].
//!
//! Invariants:
//! - A handler gets decoded requests and ways to answer. It knows no HTTP, no socket, and not how a call came.
//! - Nothing here changes keys, leases, alarms or members. A handler proposes the change, and apply makes it.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use proto::internal;

use self::{
    admit::{Inbound, Outbound},
    body::Body,
    call::{Call, Caller, Head, Reply, Requests},
    deadlines::NEVER,
    desk::{Desk, Draft},
    due::Due,
    request::{Rare, Request},
    told::Ended,
};
use crate::{
    error::{Code, Error, Status},
    insight::trace::{Trace, traced},
    method::{Flow, Method},
    protobuf::framed,
    quota::cost,
};

mod abreast;
mod admit;
pub mod applied;
mod body;
pub mod call;
pub mod cluster;
mod compact;
pub mod database;
pub mod deadlines;
pub mod desk;
pub mod downgrade;
mod due;
mod health;
pub mod insight;
pub mod leader;
pub mod leaderless;
pub mod lease;
pub mod maintenance;
mod measured;
pub mod others;
mod propose;
mod put;
mod quota;
pub mod range;
mod request;
mod snapshot;
#[cfg(test)]
mod tests;
mod timeout;
mod told;
mod txn;
pub mod watch;
pub mod watchers;
pub mod worries;

/// Lets a call of `method` in.
///
/// **Errors** the call is refused. It is over then.
pub fn open(desk: &Desk, method: Method, head: &Head<'_>, caller: Caller) -> Result<Call, Status> {
    let deadline = head.timeout.map_or(NEVER, |timeout| caller.began.saturating_add(timeout));
    let call = Call { method, caller, deadline, wants_leader: head.wants_leader };
    admit::begin(desk, &call, head)?;
    Ok(call)
}

/// The work that is left for a call that was let in.
pub enum Later<Q, P> {
    /// Nothing: the call was served.
    Nothing,
    /// A unary call, decoded: [`answer`] it.
    Answer(Decoded, P),
    /// A stream, or a unary call whose message has not come yet: [`serve`] it.
    Serve(Q, P),
}

/// The message of a unary call, and the request decoded from it.
#[derive(Debug)]
pub struct Decoded {
    request: Waiting,
    body: Bytes,
}

/// A request that waits to be answered. It is small, as it lies in the future that answers it.
#[derive(Debug)]
enum Waiting {
    Draft(Draft),
    Other(Box<Request>),
}

/// Serves a call that was let in, as far as that goes without waiting. The frequent calls are mostly whole when they
/// come: then they are decoded here, and a read of what is in memory is over.
pub fn begin<Q: Requests, P: Reply>(desk: &Desk, call: &Call, mut requests: Q, reply: P) -> Later<Q, P> {
    if call.method.flow() != Flow::Unary {
        return Later::Serve(requests, reply);
    }
    let Poll::Ready(body) = requests.poll_next(&mut Context::from_waker(Waker::noop())) else {
        return Later::Serve(requests, reply);
    };
    match begin_unary(desk, call, body) {
        Begun::Ended(body, result) => {
            end_unary(desk, call, &body, &Trace::default(), result.map(Body::Whole), reply);
            Later::Nothing
        }
        Begun::Waits(decoded) => Later::Answer(decoded, reply),
    }
}

/// Serves a stream, or a unary call whose message has not come yet.
pub async fn serve<Q: Requests, P: Reply>(desk: Rc<Desk>, call: Call, mut requests: Q, reply: P) {
    if call.method.flow() == Flow::Unary {
        let body = due::within(&desk, &call, requests.next()).await;
        return match begin_unary(&desk, &call, body) {
            Begun::Ended(body, result) => {
                end_unary(&desk, &call, &body, &Trace::default(), result.map(Body::Whole), reply);
            }
            Begun::Waits(decoded) => Box::pin(answer(Rc::clone(&desk), call, decoded, reply)).await,
        };
    }
    Box::pin(stream(&desk, &call, requests, reply)).await;
    if desk.board.settings.is_extensive {
        desk.counters.latencies.handling[call.method as usize].observe(desk.since(call.caller.began));
    }
}

/// How far a unary call came without waiting.
enum Begun {
    /// It has ended: its message and its answer.
    Ended(Bytes, Result<Bytes, Error>),
    /// It is decoded and permitted.
    Waits(Decoded),
}

/// Decodes the message of a unary call. Answers it if it need not wait.
fn begin_unary(desk: &Desk, call: &Call, body: Result<Option<Bytes>, Error>) -> Begun {
    let body = match body {
        Ok(Some(body)) => body,
        Ok(None) => return Begun::Ended(Bytes::new(), Err(Error::NoMessage)),
        Err(Error::CutShortInStream) => return Begun::Ended(Bytes::new(), Err(Error::CutShort)),
        Err(error) => return Begun::Ended(Bytes::new(), Err(error)),
    };
    desk.counters.received(call.method, body.len());
    let request = match admit::request(desk, call, body.clone()) {
        Ok(request) => request,
        Err(error) => return Begun::Ended(body, Err(error)),
    };
    if let Request::Range(request) = &request
        && let Some(result) = range::at_once(desk, request)
    {
        return Begun::Ended(body, result);
    }
    let request = match request {
        Request::Draft(draft) => Waiting::Draft(draft),
        other => Waiting::Other(Box::new(other)),
    };
    Begun::Waits(Decoded { request, body })
}

/// Answers a unary call, unless its client leaves before. This is the future that is allocated for each put.
#[expect(clippy::manual_async_fn, reason = "an async function would hold each argument twice")]
pub fn answer<P: Reply>(
    desk: Rc<Desk>,
    call: Call,
    Decoded { request, body }: Decoded,
    mut reply: P,
) -> impl Future<Output = ()> {
    async move {
        let mut work = pin!(traced(&desk.current, answer_request(&desk, request)));
        let mut due = Due::of(&desk, &call);
        let ending = poll_fn(|cx| match work.as_mut().poll(cx) {
            Poll::Ready(ended) => Poll::Ready(Ending::Done(ended)),
            Poll::Pending if reply.poll_left(cx).is_ready() => Poll::Ready(Ending::Left),
            Poll::Pending => due.poll(cx).map(|()| Ending::Over),
        });
        match ending.await {
            Ending::Done((Ok(whole @ Body::Large(_)), trace)) => {
                told::ended(&desk, Ended { call: &call, body: &body, trace: &trace, result: Ok(&whole) });
                let Body::Large(large) = whole else { unreachable!("it is large") };
                desk.counters.sent(call.method, 1, large.framed_len());
                let sent = Box::pin(due::within(&desk, &call, large.send(&desk, reply))).await;
                let code = sent.map_or_else(|error| error.code(), |()| Code::Ok);
                desk.counters.handled(call.method, code);
            }
            Ending::Done((result, trace)) => end_unary(&desk, &call, &body, &trace, result, reply),
            Ending::Left => {
                let error = if due::was_over(&desk, &call) { due::over(call.method) } else { Error::Canceled };
                let trace = &due::waited(&desk, &call, work.notes());
                told::ended(&desk, Ended { call: &call, body: &body, trace, result: Err(&error) });
                desk.counters.handled(call.method, error.code());
            }
            Ending::Over => {
                let trace = due::waited(&desk, &call, work.notes());
                end_unary(&desk, &call, &body, &trace, Err(due::over(call.method)), reply);
            }
        }
    }
}

/// How the work for a unary call ends.
enum Ending<T> {
    /// It is done.
    Done(T),
    /// The client has left.
    Left,
    /// The call's time is over.
    Over,
}

/// Counts a unary call as ended, logs it if that is due, and answers it.
fn end_unary(
    desk: &Desk,
    call: &Call,
    body: &Bytes,
    trace: &Trace,
    mut result: Result<Body, Error>,
    reply: impl Reply,
) {
    if let Err(Error::Timeout) = result
        && due::over(call.method) == Error::Timeout
    {
        result = Err(timeout::told_apart(desk, call.caller.began));
    }
    told::ended(desk, Ended { call, body, trace, result: result.as_ref() });
    match result {
        Ok(Body::Whole(message)) => {
            desk.counters.handled(call.method, Code::Ok);
            desk.counters.sent(call.method, 1, message.len());
            reply.answer(message);
        }
        Ok(Body::Large(_)) => unreachable!("it is sent piece by piece"),
        Err(error) => {
            let status = Status::from(error);
            desk.counters.handled(call.method, status.code);
            reply.refuse(&status);
        }
    }
}

/// Answers a request, if there is room for what it adds. A put is answered in place; the others in a box of their own,
/// so that the future of a put is small.
async fn answer_request(desk: &Desk, request: Waiting) -> Result<Body, Error> {
    match request {
        Waiting::Draft(draft) => {
            quota::check_room(desk, cost(draft.request())).await?;
            if matches!(draft.request(), internal::Request::Put(_)) {
                return put::put(desk, draft).await.map(Body::Whole);
            }
            Box::pin(proposed(desk, draft)).await.map(Body::Whole)
        }
        Waiting::Other(request) => Box::pin(answer_other(desk, *request)).await,
    }
}

async fn answer_other(desk: &Desk, request: Request) -> Result<Body, Error> {
    match request {
        Request::Draft(draft) => proposed(desk, draft).await.map(Body::Whole),
        Request::Range(request) => range::serve(desk, &request).await,
        Request::Rare(rare) => rarely(desk, *rare).await.map(Body::Whole),
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
        Rare::MemberList(request) => cluster::list(desk, request).await,
        Rare::MemberAdd(request) => cluster::add(desk, request).await,
        Rare::MemberRemove(request) => cluster::remove(desk, request).await,
        Rare::MemberUpdate(request) => cluster::update(desk, request).await,
        Rare::MemberPromote(request) => cluster::promote_learner(desk, request).await,
        Rare::MoveLeader(request) => maintenance::move_leader(desk, request).await,
        Rare::Downgrade(request) => downgrade::serve(desk, request).await,
        Rare::Status => Ok(framed(&maintenance::status(desk))),
        Rare::Defragment => maintenance::defragment(desk).await,
        Rare::Hash => maintenance::hash(desk).await,
        Rare::HashKv(request) => maintenance::hash_kv(desk, request).await,
        Rare::Usage(request) => insight::usage(desk, request).await,
        Rare::Top(request) => insight::top(desk, request).await,
        Rare::HealthCheck(request) => health::check(desk, request),
        Rare::HealthList => Ok(framed(&health::list(desk))),
    }
}

async fn stream<Q: Requests, P: Reply>(desk: &Rc<Desk>, call: &Call, requests: Q, reply: P) {
    let mut inbound = Inbound::new(desk, call, requests);
    let mut outbound = Outbound::new(desk, call.method, reply.begin());
    let work = async {
        match call.method {
            Method::Watch => watch::serve(desk, call, &mut inbound, &mut outbound).await,
            Method::LeaseKeepAlive => lease::keep_alive(desk, &mut inbound, &mut outbound).await,
            Method::RangeStream => range::stream::serve(desk, &mut inbound, &mut outbound).await,
            Method::Snapshot => snapshot::serve(desk, &mut inbound, &mut outbound).await,
            Method::HealthWatch => health::watch(desk, &mut inbound, &mut outbound).await,
            _ => unreachable!("a method that is not served was refused before"),
        }
    };
    let result = due::within(desk, call, work).await;
    if result.as_ref().is_err_and(|error| error.code() == Code::Internal) {
        desk.counters.stream_failed(call.method);
    }
    outbound.end(result);
}
