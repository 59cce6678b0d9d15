//! Runs on: connection core.
//!
//! A call as it comes through the door: its head, the messages of its client, and the way back to the client.
//!
//! The traits are the door itself. Each source of calls implements them: gRPC over HTTP/2 (`wire`) and tests; later the
//! JSON gateway, and services that call other services in the process. Handlers are generic over the traits, so a call
//! costs no indirection.

use std::{
    future::{Future, poll_fn},
    net::SocketAddr,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;

use crate::{
    error::{Error, Status},
    method::Method,
};

/// Where a call came from.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// The client's address.
    pub remote: Option<SocketAddr>,
    /// When the turn of its connection began that brought the call.
    pub began: Duration,
}

/// A call that was let in.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// The method that is called.
    pub method: Method,
    /// The caller.
    pub caller: Caller,
    /// When the time that the client gave is over.
    pub deadline: Duration,
    /// The client wants the call to fail when there is no leader.
    pub wants_leader: bool,
}

/// What a client says about a call besides its messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// The version of etcd's API that the client says it speaks.
    pub client_api_version: Option<&'a [u8]>,
    /// The client wants a refusal if there is no leader.
    pub wants_leader: bool,
    /// How long the client waits.
    pub timeout: Option<Duration>,
}

/// The client has left: nobody waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left;

impl From<Left> for Error {
    fn from(_: Left) -> Self {
        Self::Canceled
    }
}

/// The messages of a call's client.
pub trait Requests {
    /// The next message; `None` when the client has said that it sends no more, and again each time thereafter. Pending
    /// until the whole message has come.
    ///
    /// **Errors** a message that is too long, compressed or cut short; a client that left.
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>>;

    /// Waits for the next message. Dropping the future loses nothing.
    ///
    /// **Errors** as [`Requests::poll_next`].
    fn next(&mut self) -> impl Future<Output = Result<Option<Bytes>, Error>> {
        poll_fn(|cx| self.poll_next(cx))
    }
}

/// The way back to a call's client.
pub trait Reply: Sized {
    /// Many answers to one call.
    type Answers: Answers;

    /// Answers with one message, which is framed (see [`crate::protobuf::framed`]).
    fn answer(self, message: Bytes);

    /// Answers that the call has failed.
    fn refuse(self, status: &Status);

    /// Begins to answer with any number of messages.
    fn begin(self) -> Self::Answers;

    /// Ready when the client has left.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Answers to one call, one after the other.
pub trait Answers {
    /// Sends framed messages as fast as the client takes them. Returns when everything was handed on. The client's
    /// windows bound what waits.
    ///
    /// **Errors** the client has left.
    fn send(&mut self, messages: Bytes) -> impl Future<Output = Result<(), Left>>;

    /// Resolves when the client has left.
    fn left(&mut self) -> impl Future<Output = ()>;

    /// Ends the call, with success or with an error.
    fn finish(self, status: Option<&Status>);
}
