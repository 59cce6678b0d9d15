//! Runs on: connection core.
//!
//! gRPC over an h2 stream: length-prefixed messages, statuses, metadata. It knows no service. It brings calls to the
//! door (`api::call`) and takes their answers away.
//!
//! Bounds: a message is refused by its announced length before its body is read. A stream holds at most one message,
//! and beyond it the flow-control window.

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Response, header::CONTENT_TYPE, request::Parts};

use crate::{
    api::call::{Answers, Head, Left, Reply, Requests},
    error::{Code, Error, Status},
    protobuf::PREFIX_BYTES,
};

static CLIENT_API_VERSION: HeaderName = HeaderName::from_static("client-api-version");
static HAS_LEADER: HeaderName = HeaderName::from_static("hasleader");
static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// The head of a call, read from the metadata of its request.
pub fn head(parts: &Parts) -> Head<'_> {
    let value = |name: &HeaderName| parts.headers.get(name).map(HeaderValue::as_bytes);
    Head { client_api_version: value(&CLIENT_API_VERSION), wants_leader: value(&HAS_LEADER) == Some(b"true") }
}

/// Splits a stream's body into messages.
pub struct Messages {
    body: RecvStream,
    buffer: BytesMut,
    whole: Option<Bytes>,
    len_max: usize,
}

impl Messages {
    /// Reads messages of at most `len_max` bytes from `body`.
    pub fn new(body: RecvStream, len_max: usize) -> Self {
        Self { body, buffer: BytesMut::new(), whole: None, len_max }
    }

    fn buffered(&self) -> usize {
        self.buffer.len() + self.whole.as_ref().map_or(0, Bytes::len)
    }

    /// The common case is one DATA frame with one whole message. It is kept as it came, without a copy.
    fn take_in(&mut self, data: Bytes) {
        if self.buffered() == 0 {
            self.whole = Some(data);
            return;
        }
        if let Some(whole) = self.whole.take() {
            self.buffer.extend_from_slice(&whole);
        }
        self.buffer.extend_from_slice(&data);
    }

    fn split(&mut self) -> Result<Option<Bytes>, Error> {
        let head = self.whole.as_deref().unwrap_or(&self.buffer);
        if head.len() < PREFIX_BYTES {
            return Ok(None);
        }
        if head[0] != 0 {
            return Err(Error::Compressed("gzip".into()));
        }
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > self.len_max {
            return Err(Error::MessageTooLarge { len, max: self.len_max });
        }
        if head.len() < PREFIX_BYTES + len {
            return Ok(None);
        }
        if let Some(whole) = &mut self.whole {
            whole.advance(PREFIX_BYTES);
            let message = whole.split_to(len);
            if whole.is_empty() {
                self.whole = None;
            }
            return Ok(Some(message));
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(self.buffer.split_to(len).freeze()))
    }
}

impl Requests for Messages {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        loop {
            if let Some(message) = self.split()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    let released = self.body.flow_control().release_capacity(data.len());
                    released.map_err(|error| Error::Undecodable(error.to_string()))?;
                    self.take_in(data);
                }
                Some(Err(_)) => return Poll::Ready(Err(Error::Canceled)),
                None if self.buffered() == 0 => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Error::Undecodable("unexpected EOF".into()))),
            }
        }
    }
}

fn response_head() -> Response<()> {
    let mut response = Response::new(());
    // An empty map would reserve six places at its first header.
    *response.headers_mut() = HeaderMap::with_capacity(1);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response
}

/// Percent-encodes a status text for the `grpc-message` trailer, as the gRPC protocol asks.
fn encode_message(text: &str) -> HeaderValue {
    let mut out = Vec::with_capacity(text.len());
    for &byte in text.as_bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    HeaderValue::from_bytes(&out).expect("only printable ASCII is left")
}

fn put_status(headers: &mut HeaderMap, status: &Status) {
    headers.insert(&GRPC_STATUS, HeaderValue::from(u16::from(status.code as u8)));
    if !status.message.is_empty() {
        headers.insert(&GRPC_MESSAGE, encode_message(&status.message));
    }
}

fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert(&GRPC_STATUS, HeaderValue::from_static("0"));
    trailers
}

/// A client that left before its answer is not an error: nobody waits for the answer.
fn drop_gone(sent: Result<(), h2::Error>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "client went away before its answer");
    }
}

/// Counts a call of a connection as under way, from its beginning to its end.
pub struct UnderWay(Rc<Cell<usize>>);

impl UnderWay {
    /// Counts one more of `calls`.
    pub fn begin(calls: &Rc<Cell<usize>>) -> Self {
        calls.set(calls.get() + 1);
        Self(Rc::clone(calls))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// The way back to a call's client.
pub struct GrpcReply {
    reply: SendResponse<Bytes>,
    under_way: UnderWay,
}

impl GrpcReply {
    /// The way back to the client over `reply`. The call is under way until it is answered.
    pub fn new(reply: SendResponse<Bytes>, under_way: UnderWay) -> Self {
        Self { reply, under_way }
    }

    fn respond(mut self, message: Bytes) -> Result<(), h2::Error> {
        let mut stream = self.reply.send_response(response_head(), false)?;
        stream.send_data(message, false)?;
        stream.send_trailers(ok_trailers())
    }
}

impl Reply for GrpcReply {
    type Answers = Sender;

    fn answer(self, message: Bytes) {
        drop_gone(self.respond(message));
    }

    /// An answer that is only a status is "trailers-only" in gRPC.
    fn refuse(mut self, status: &Status) {
        debug_assert_ne!(status.code, Code::Ok, "a refusal says why");
        let mut response = response_head();
        put_status(response.headers_mut(), status);
        drop_gone(self.reply.send_response(response, true).map(drop));
    }

    fn begin(mut self) -> Result<Sender, Left> {
        match self.reply.send_response(response_head(), false) {
            Ok(stream) => Ok(Sender { stream, _under_way: self.under_way }),
            Err(error) => Err(left(&error)),
        }
    }

    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Either result means that nobody listens any more.
        self.reply.poll_reset(cx).map(drop)
    }
}

fn left(error: &h2::Error) -> Left {
    tracing::debug!(%error, "client went away before its answer");
    Left
}

/// The sending half of a streaming call.
pub struct Sender {
    stream: SendStream<Bytes>,
    _under_way: UnderWay,
}

impl Sender {
    async fn send_all(&mut self, mut messages: Bytes) -> Result<(), h2::Error> {
        while !messages.is_empty() {
            self.stream.reserve_capacity(messages.len());
            let granted = match poll_fn(|cx| self.stream.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
            let len = granted.min(messages.len());
            self.stream.send_data(messages.split_to(len), false)?;
        }
        Ok(())
    }
}

impl Answers for Sender {
    async fn send(&mut self, messages: Bytes) -> Result<(), Left> {
        self.send_all(messages).await.map_err(|error| left(&error))
    }

    async fn left(&mut self) {
        // Either result means that nobody listens any more.
        drop(poll_fn(|cx| self.stream.poll_reset(cx)).await);
    }

    fn finish(mut self, status: Option<&Status>) {
        let trailers = match status {
            None => ok_trailers(),
            Some(status) => {
                let mut trailers = HeaderMap::with_capacity(2);
                put_status(&mut trailers, status);
                trailers
            }
        };
        drop_gone(self.stream.send_trailers(trailers));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_text_is_percent_encoded() {
        assert_eq!(encode_message("a b%ü").as_bytes(), b"a b%25%C3%BC");
    }
}
