//! Runs on: connection core.
//!
//! What comes through the door: a call with its head, the messages of its client, and the way back to it.
//!
//! The traits are the door itself. Whoever brings calls has an implementation of them: gRPC over HTTP/2 (`wire`),
//! tests; later the JSON gateway and services that call others in the process. Handlers are generic over them, so a
//! call costs no indirection.

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
    /// The turn of its connection that brought the call.
    pub began: Duration,
}

/// A call that was let in.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// What is called.
    pub method: Method,
    /// Who calls.
    pub caller: Caller,
}

/// What a client says of a call besides its messages.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// The version of etcd's API that the client says it speaks.
    pub client_api_version: Option<&'a [u8]>,
    /// The client wants to be refused where there is no leader.
    pub wants_leader: bool,
}

/// The client has left: nobody is there to be told anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left;

impl From<Left> for Error {
    fn from(_: Left) -> Self {
        Self::Canceled
    }
}

/// The messages of a call's client.
pub trait Requests {
    /// The next message; `None` when the client has said that it sends no more. Pending when it has not come whole.
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
    ///
    /// **Errors** the client has left.
    fn begin(self) -> Result<Self::Answers, Left>;

    /// Ready when the client has left.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()>;
}

/// Answers to one call, one after the other.
pub trait Answers {
    /// Sends framed messages as the client takes them; returns when all was handed on. What waits is bounded by the
    /// client's windows.
    ///
    /// **Errors** the client has left.
    fn send(&mut self, messages: Bytes) -> impl Future<Output = Result<(), Left>>;

    /// Resolves when the client has left.
    fn left(&mut self) -> impl Future<Output = ()>;

    /// Ends the call: well, or with an error.
    fn finish(self, status: Option<&Status>);
}
