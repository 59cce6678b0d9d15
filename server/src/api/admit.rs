//! Runs on: connection core.
//!
//! The one place that every call passes, and every message of it: limits, counters, the leader that a call may ask for,
//! slow requests; and, with users, its permission ([`permit`]).
//!
//! Invariants: a call that [`begin`] has counted as started is counted as handled exactly once: by `begin` itself if it
//! refuses it, by [`left`] or `told` for unary calls, by [`Outbound::end`] for streams. No handler sees a message that
//! was not admitted.

use bytes::Bytes;
use prost::Message;

use super::{
    call::{Answers, Call, Head, Left, Requests},
    desk::Desk,
    request::{Asked, Asks, Request, decode},
};
use crate::{
    error::{Code, Error, Status},
    method::Method,
};

/// Lets a call in: what every call must satisfy, whatever it asks.
///
/// **Errors** metadata that is not text; a method that this release does not serve; no leader where the client asks for
/// one. The call is over then, and counted.
pub(super) fn begin(desk: &Desk, call: &Call, head: &Head<'_>) -> Result<(), Status> {
    desk.counters.started(call.method);
    check(desk, call.method, head).map_err(|error| {
        let status = Status::from(error);
        desk.counters.handled(call.method, status.code);
        status
    })
}

fn check(desk: &Desk, method: Method, head: &Head<'_>) -> Result<(), Error> {
    if head.client_api_version.is_some_and(|version| std::str::from_utf8(version).is_err()) {
        return Err(Error::InvalidClientApiVersion);
    }
    desk.counters.requested(method, head.client_api_version);
    if !method.is_served() {
        return Err(Error::NotImplemented(method.name()));
    }
    if head.wants_leader && !desk.shared.has_leader() {
        return Err(Error::NoLeader);
    }
    Ok(())
}

/// Whether a caller may do what its message asks for: the hook for authorisation, which every message passes once it is
/// decoded. There are no users yet, so everybody may do everything.
///
/// **Errors** permission denied, once there are users.
#[expect(clippy::unnecessary_wraps, reason = "users are refused here")]
pub(super) fn permit(_desk: &Desk, _call: &Call, _asked: Asked<'_>) -> Result<(), Error> {
    Ok(())
}

/// Takes in the one message of a unary call, as it came: decoded, and permitted.
///
/// **Errors** bytes that are not such a message; permission.
pub(super) fn request(desk: &Desk, call: &Call, body: Bytes) -> Result<Request, Error> {
    let request = Request::decode(desk, call.method, body)?;
    permit(desk, call, request.asked())?;
    Ok(request)
}

/// The client of a unary call left before it was answered.
pub(super) fn left(desk: &Desk, method: Method) {
    desk.counters.handled(method, Code::Canceled);
}

/// The messages of a stream's client, admitted one by one.
pub(super) struct Inbound<'a, R> {
    desk: &'a Desk,
    call: &'a Call,
    requests: R,
}

impl<'a, R: Requests> Inbound<'a, R> {
    /// Those that `requests` brings for `call`.
    pub(super) fn new(desk: &'a Desk, call: &'a Call, requests: R) -> Self {
        Self { desk, call, requests }
    }

    /// The next message, which is permitted; `None` when the client sends no more.
    ///
    /// **Errors** a message that is not such a one, or is too long; permission; a client that left.
    pub(super) async fn next<M: Message + Default + Asks>(&mut self) -> Result<Option<M>, Error> {
        let Some(request) = self.take::<M>().await? else { return Ok(None) };
        permit(self.desk, self.call, request.asked())?;
        Ok(Some(request))
    }

    /// The next message of a client who is told by its handler what is not permitted, as in Watch.
    ///
    /// **Errors** as [`Inbound::next`], but for permission.
    pub(super) async fn take<M: Message + Default>(&mut self) -> Result<Option<M>, Error> {
        let Some(body) = self.requests.next().await? else { return Ok(None) };
        self.desk.counters.received(self.call.method, body.len());
        decode(body).map(Some)
    }

    /// The one message of a call that streams its answers alone.
    ///
    /// **Errors** as [`Inbound::next`]; no message.
    pub(super) async fn only<M: Message + Default + Asks>(&mut self) -> Result<M, Error> {
        self.next().await?.ok_or_else(|| Error::Undecodable("unexpected EOF".into()))
    }
}

/// The answers of a stream, counted.
pub(super) struct Outbound<'a, A> {
    desk: &'a Desk,
    method: Method,
    answers: A,
}

impl<'a, A: Answers> Outbound<'a, A> {
    /// Those that go to `answers`.
    pub(super) fn new(desk: &'a Desk, method: Method, answers: A) -> Self {
        Self { desk, method, answers }
    }

    /// Sends one framed message, or several in one piece, which count as one.
    ///
    /// **Errors** the client has left.
    pub(super) async fn send(&mut self, message: Bytes) -> Result<(), Left> {
        self.desk.counters.sent(self.method, message.len());
        self.answers.send(message).await
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
