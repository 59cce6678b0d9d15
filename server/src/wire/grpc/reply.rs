//! Runs on: connection core.
//!
//! The way back to a call's client: one answer, or a stream of them, and a status.
//!
//! A stream's head goes with its first message. An end before that is "trailers-only" in gRPC, as is a refusal.

use std::{
    cell::Cell,
    future::poll_fn,
    rc::Rc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header::CONTENT_TYPE};
use tokio::task::{spawn_local, yield_now};

use super::gzip::{self, Packer, STEP_BYTES};
use crate::{
    api::call::{Answers, Left, Reply},
    error::{Code, Status},
};

static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
static GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
static GRPC_ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The content type of answers: that of their request.
#[derive(Debug)]
pub enum ContentType {
    /// Without a subtype.
    Plain,
    /// With `+proto`.
    Proto,
    /// With another subtype.
    Other(Box<HeaderValue>),
}

impl ContentType {
    /// The content type with this subtype. The messages are protobuf in any case, as etcd's are.
    pub fn of(subtype: &[u8]) -> Self {
        match subtype {
            b"" => Self::Plain,
            b"proto" => Self::Proto,
            // A part of a header's value is a header's value, but for spaces at its ends, which h2 passes too.
            other => match HeaderValue::from_bytes(&[b"application/grpc+", other].concat()) {
                Ok(value) => Self::Other(Box::new(value)),
                Err(_) => Self::Plain,
            },
        }
    }

    fn value(&self) -> HeaderValue {
        match self {
            Self::Plain => HeaderValue::from_static("application/grpc"),
            Self::Proto => HeaderValue::from_static("application/grpc+proto"),
            Self::Other(value) => (**value).clone(),
        }
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

/// How answers are written.
struct Format {
    content_type: ContentType,
    is_packed: bool,
}

impl Format {
    #[inline]
    fn bare_head(&self) -> Response<()> {
        let mut response = Response::new(());
        // An empty map would reserve six places at its first header.
        *response.headers_mut() = HeaderMap::with_capacity(1);
        response.headers_mut().insert(CONTENT_TYPE, self.content_type.value());
        response
    }

    /// The head of an answer that has messages.
    #[inline]
    fn head(&self) -> Response<()> {
        let mut response = self.bare_head();
        if self.is_packed {
            response.headers_mut().insert(&GRPC_ENCODING, HeaderValue::from_static("gzip"));
        }
        response
    }

    /// The head of an answer that is only a status.
    fn trailers_only(&self, status: Option<&Status>) -> Response<()> {
        let mut response = self.bare_head();
        put_status(response.headers_mut(), status);
        response
    }
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

/// Puts a status in; without one, that of success.
fn put_status(headers: &mut HeaderMap, status: Option<&Status>) {
    let Some(status) = status else {
        headers.insert(&GRPC_STATUS, HeaderValue::from_static("0"));
        return;
    };
    headers.insert(&GRPC_STATUS, HeaderValue::from(u16::from(status.code as u8)));
    if !status.message.is_empty() {
        headers.insert(&GRPC_MESSAGE, encode_message(&status.message));
    }
}

fn trailers(status: Option<&Status>) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(if status.is_none() { 1 } else { 2 });
    put_status(&mut trailers, status);
    trailers
}

/// A client that left before its answer is not an error: nobody waits for the answer.
fn drop_gone(sent: Result<(), h2::Error>) {
    if let Err(error) = sent {
        tracing::debug!(%error, "client went away before its answer");
    }
}

/// The way back to a call's client.
pub struct GrpcReply {
    reply: SendResponse<Bytes>,
    format: Format,
    under_way: UnderWay,
}

impl GrpcReply {
    /// The way back to the client over `reply`. The call is under way until it is answered.
    pub fn new(reply: SendResponse<Bytes>, under_way: UnderWay, content_type: ContentType) -> Self {
        Self { reply, format: Format { content_type, is_packed: false }, under_way }
    }

    /// Compresses what is answered.
    pub fn compress(&mut self) {
        self.format.is_packed = true;
    }

    /// Refuses a stream that is no call, with an HTTP status of its own.
    pub fn refuse_with(mut self, code: StatusCode, status: &Status) {
        let mut response = self.format.trailers_only(Some(status));
        *response.status_mut() = code;
        drop_gone(self.reply.send_response(response, true).map(drop));
    }

    fn respond(mut self, message: Bytes) -> Result<(), h2::Error> {
        let mut stream = self.reply.send_response(self.format.head(), false)?;
        stream.send_data(message, false)?;
        stream.send_trailers(trailers(None))
    }
}

impl Reply for GrpcReply {
    type Answers = Sender;

    fn answer(self, message: Bytes) {
        if !self.format.is_packed {
            return drop_gone(self.respond(message));
        }
        if message.len() <= STEP_BYTES {
            return drop_gone(self.respond(gzip::pack(message)));
        }
        spawn_local(async move {
            let mut answers = self.begin();
            if answers.send(message).await.is_ok() {
                answers.finish(None);
            }
        });
    }

    fn refuse(self, status: &Status) {
        debug_assert_ne!(status.code, Code::Ok, "a refusal says why");
        self.refuse_with(StatusCode::OK, status);
    }

    fn begin(self) -> Sender {
        let Self { reply, format, under_way } = self;
        let packer = format.is_packed.then(Box::default);
        Sender { reply, stream: None, packer, format, _under_way: under_way }
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
    reply: SendResponse<Bytes>,
    /// There once the head was sent.
    stream: Option<SendStream<Bytes>>,
    packer: Option<Box<Packer>>,
    format: Format,
    _under_way: UnderWay,
}

impl Sender {
    async fn send_all(&mut self, mut messages: Bytes) -> Result<(), h2::Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => self.stream.insert(self.reply.send_response(self.format.head(), false)?),
        };
        while !messages.is_empty() {
            stream.reserve_capacity(messages.len());
            let granted = match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
            let len = granted.min(messages.len());
            stream.send_data(messages.split_to(len), false)?;
        }
        Ok(())
    }

    async fn send_packed(&mut self, mut packer: Box<Packer>, mut messages: Bytes) -> Result<(), h2::Error> {
        let mut pause_at = messages.len().saturating_sub(STEP_BYTES);
        while !messages.is_empty() {
            if let Some(packed) = packer.step(&mut messages) {
                self.send_all(packed).await?;
            }
            if messages.len() < pause_at {
                pause_at = messages.len().saturating_sub(STEP_BYTES);
                yield_now().await;
            }
        }
        self.packer = Some(packer);
        Ok(())
    }
}

impl Answers for Sender {
    async fn send(&mut self, messages: Bytes) -> Result<(), Left> {
        let sent = match self.packer.take() {
            None => self.send_all(messages).await,
            // Boxed because it is rare.
            Some(packer) => Box::pin(self.send_packed(packer, messages)).await,
        };
        sent.map_err(|error| left(&error))
    }

    async fn left(&mut self) {
        // Either result means that nobody listens any more.
        drop(match &mut self.stream {
            None => poll_fn(|cx| self.reply.poll_reset(cx)).await,
            Some(stream) => poll_fn(|cx| stream.poll_reset(cx)).await,
        });
    }

    fn finish(mut self, status: Option<&Status>) {
        drop_gone(match &mut self.stream {
            None => self.reply.send_response(self.format.trailers_only(status), true).map(drop),
            Some(stream) => stream.send_trailers(trailers(status)),
        });
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
