//! Runs on: connection core.
//!
//! Every call passes here, and every message of it: its head, what a learner serves, the leader that it may require,
//! its decoding, its permission ([`permit`], where users will be checked) and its counts.
//!
//! Three limits stand where the thing is that they bound: the quota (`quota`, asked before a proposal), the
//! size of an entry (`desk`), the operations of a transaction (`txn`). A slow request is found at its end (`told`).
//!
//! Invariants:
//! - [`begin`] counts a call as started. Each such call is counted as handled exactly once: by `begin` itself if it
//!   refuses the call, at the end of its answer for unary calls, by [`Outbound::end`] for streams.
//! - No handler sees a message that was not admitted. Watch asks [`permit`] itself: a watcher that is refused does not
//!   end its stream.

use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use prost::Message;

use super::{
    call::{Answers, Call, Head, Left, Requests},
    desk::Desk,
    request::{Asked, Asks, Request, decode_in_stream},
};
use crate::{
    error::{Code, Error, Status},
    method::Method,
};

/// Lets a call in. It checks what every call must satisfy, whatever it asks.
///
/// **Errors** a method that a learner does not serve; metadata that is not text; a method that this release does not
/// serve; no leader, if the client requires one. On an error the call is over, and counted.
pub(super) fn begin(desk: &Desk, call: &Call, head: &Head<'_>) -> Result<(), Status> {
    desk.counters.started(call.method);
    check(desk, call.method, head).map_err(|error| {
        let status = Status::from(error);
        desk.counters.handled(call.method, status.code);
        status
    })
}

fn check(desk: &Desk, method: Method, head: &Head<'_>) -> Result<(), Error> {
    if desk.shared.is_learner() && !serves_as_learner(method) {
        return Err(Error::NotForLearner);
    }
    if head.client_api_version.is_some_and(|version| std::str::from_utf8(version).is_err()) {
        return Err(Error::InvalidClientApiVersion);
    }
    desk.counters.requested(method, head.client_api_version);
    if !method.is_served() {
        return Err(Error::NotImplemented(method.name()));
    }
    if head.wants_leader && desk.shared.is_leaderless(desk.clock.now()) {
        return Err(Error::NoLeader);
    }
    Ok(())
}

/// Whether a learner serves a method at all. It lags without a bound, and nobody counts on it. **Source** etcd v3.7.1
/// `server/etcdserver/api/v3rpc/{util,interceptor}.go`; etcd has no Insight.
fn serves_as_learner(method: Method) -> bool {
    matches!(method, Method::Range | Method::Status | Method::Snapshot | Method::Usage | Method::Top)
}

/// Whether a caller may do what its message asks for: the hook for authorisation, which every message passes once it is
/// decoded. There are no users yet, so everybody may do everything.
///
/// **Errors** permission denied, once there are users.
#[expect(clippy::unnecessary_wraps, reason = "users are refused here")]
pub(super) fn permit(_desk: &Desk, _call: &Call, _asked: Asked<'_>) -> Result<(), Error> {
    Ok(())
}

/// Admits the one message of a unary call: decodes it and checks the permission.
///
/// **Errors** bytes that are not a message of this method; a linearizable read of a learner; permission.
pub(super) fn request(desk: &Desk, call: &Call, body: Bytes) -> Result<Request, Error> {
    let request = Request::decode(desk, call.method, body)?;
    if let Request::Range(range) = &request
        && !range.serializable
        && desk.shared.is_learner()
    {
        return Err(Error::NotForLearner);
    }
    permit(desk, call, request.asked())?;
    Ok(request)
}

/// The messages of a stream's client, admitted one by one.
pub(super) struct Inbound<'a, R> {
    desk: &'a Desk,
    call: &'a Call,
    requests: R,
}

impl<'a, R: Requests> Inbound<'a, R> {
    /// The messages of `call`, which `requests` brings.
    pub(super) fn new(desk: &'a Desk, call: &'a Call, requests: R) -> Self {
        Self { desk, call, requests }
    }

    /// The next message, after its permission was checked; `None` when the client sends no more.
    ///
    /// **Errors** a message that is not such a one, or is too long; permission; a client that left.
    pub(super) async fn next<M: Message + Default + Asks>(&mut self) -> Result<Option<M>, Error> {
        let Some(request) = self.take::<M>().await? else { return Ok(None) };
        permit(self.desk, self.call, request.asked())?;
        Ok(Some(request))
    }

    /// The next message, before its permission is checked. It is for handlers that tell the client themselves what is
    /// not permitted, as in Watch.
    ///
    /// **Errors** as [`Inbound::next`], without permission.
    pub(super) async fn take<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        let Some(body) = self.requests.next().await? else { return Ok(None) };
        self.desk.counters.received(self.call.method, body.len());
        decode_in_stream(body).map(Some)
    }

    /// The next message, as [`Inbound::next`], if it has come already; `None` also when no more can come.
    ///
    /// **Errors** as [`Inbound::next`].
    pub(super) fn next_at_hand<M: Message + Default + Asks>(&mut self) -> Result<Option<M>, Error> {
        let Some(request) = self.take_at_hand::<M>()? else { return Ok(None) };
        permit(self.desk, self.call, request.asked())?;
        Ok(Some(request))
    }

    /// The next message, as [`Inbound::take`], if it has come already; `None` also when no more can come.
    ///
    /// **Errors** as [`Inbound::take`].
    pub(super) fn take_at_hand<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        // Who waits for a message asks again, with a waker.
        let Poll::Ready(body) = self.requests.poll_next(&mut Context::from_waker(Waker::noop())) else {
            return Ok(None);
        };
        let Some(body) = body? else { return Ok(None) };
        self.desk.counters.received(self.call.method, body.len());
        decode_in_stream(body).map(Some)
    }

    /// The one message of a call whose answers alone are a stream. As in etcd, the call begins when its client has said
    /// that there are no more.
    ///
    /// **Errors** as [`Inbound::next`]; no message; a second message.
    pub(super) async fn only<M: Message + Default + Asks>(&mut self) -> Result<M, Error> {
        let only = self.next().await?.ok_or(Error::NoRequest)?;
        match self.requests.next().await? {
            None => Ok(only),
            Some(second) => Err(decode_in_stream::<M>(second).err().unwrap_or(Error::SeveralRequests)),
        }
    }
}

/// The answers of a stream, counted.
pub(super) struct Outbound<'a, A> {
    desk: &'a Desk,
    method: Method,
    answers: A,
}

impl<'a, A: Answers> Outbound<'a, A> {
    /// The answers that go to `answers`.
    pub(super) fn new(desk: &'a Desk, method: Method, answers: A) -> Self {
        Self { desk, method, answers }
    }

    /// Sends framed messages in one piece. The piece counts as one message.
    ///
    /// **Errors** the client has left.
    pub(super) fn send(&mut self, message: Bytes) -> impl Future<Output = Result<(), Left>> {
        self.send_all(message, 1)
    }

    /// As [`Outbound::send`], for a piece that counts as `count` messages.
    ///
    /// **Errors** the client has left.
    pub(super) fn send_all(&mut self, messages: Bytes, count: usize) -> impl Future<Output = Result<(), Left>> {
        self.desk.counters.sent(self.method, count, messages.len());
        self.answers.send(messages)
    }

    /// Resolves when the client has left.
    pub(super) async fn left(&mut self) {
        self.answers.left().await;
    }

    /// Ends the call.
    pub(super) fn end(self, result: Result<(), Error>) {
        let status = result.err().map(Status::from);
        self.desk.counters.handled(self.method, status.as_ref().map_or(Code::Ok, |status| status.code));
        self.answers.finish(status.as_ref());
    }
}
