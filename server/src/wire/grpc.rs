//! Runs on: connection core.
//!
//! gRPC over an h2 stream: length-prefixed messages, statuses, metadata. Knows no service.
//!
//! Bounds: a message is refused by its announced length before its body is read; a stream holds at most one message and
//! the flow-control window beyond it.

use std::future::poll_fn;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Response, header::CONTENT_TYPE};
use prost::Message;

use crate::error::{Code, Error, Status};

/// **Units** bytes. The prefix of a message: one byte "compressed", four bytes length, big-endian.
pub const PREFIX_BYTES: usize = 5;

/// Appends `message` with its gRPC prefix.
///
/// **Bounds** a gRPC message holds less than 4 GiB; ours are bounded far below by what builds them.
pub fn frame(message: &impl Message, out: &mut BytesMut) {
    let len = message.encoded_len();
    out.reserve(PREFIX_BYTES + len);
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a message is below 4 GiB"));
    message.encode(out).expect("the buffer was reserved");
}

/// [`frame`] into a buffer of its own.
pub fn framed(message: &impl Message) -> Bytes {
    let mut out = BytesMut::new();
    frame(message, &mut out);
    out.freeze()
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

    /// The next message; `None` at the end of the body.
    ///
    /// **Errors** a message that is too long, compressed or cut short; a connection that broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if let Some(message) = self.split()? {
                return Ok(Some(message));
            }
            match self.body.data().await {
                Some(Ok(data)) => {
                    self.body
                        .flow_control()
                        .release_capacity(data.len())
                        .map_err(|error| Error::Undecodable(error.to_string()))?;
                    self.take_in(data);
                }
                Some(Err(_)) => return Err(Error::WatchCanceled),
                None if self.buffered() == 0 => return Ok(None),
                None => return Err(Error::Undecodable("unexpected EOF".into())),
            }
        }
    }

    fn buffered(&self) -> usize {
        self.buffer.len() + self.whole.as_ref().map_or(0, Bytes::len)
    }

    /// The common case is one DATA frame with one whole message: it is kept as it came, without a copy.
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

fn response_head() -> Response<()> {
    let mut response = Response::new(());
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
    headers.insert("grpc-status", HeaderValue::from(u16::from(status.code as u8)));
    if !status.message.is_empty() {
        headers.insert("grpc-message", encode_message(&status.message));
    }
}

fn ok_trailers() -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(1);
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers
}

/// Answers a unary call with one already framed message.
///
/// **Errors** only when the connection or the stream is gone; nobody is left to be told.
pub fn respond(mut reply: SendResponse<Bytes>, message: Bytes) -> Result<(), h2::Error> {
    let mut stream = reply.send_response(response_head(), false)?;
    stream.send_data(message, false)?;
    stream.send_trailers(ok_trailers())
}

/// Answers with a status alone (gRPC's "trailers-only").
///
/// **Errors** as [`respond`].
pub fn refuse(mut reply: SendResponse<Bytes>, status: &Status) -> Result<(), h2::Error> {
    debug_assert_ne!(status.code, Code::Ok, "a refusal says why");
    let mut response = response_head();
    put_status(response.headers_mut(), status);
    reply.send_response(response, true).map(drop)
}

/// The sending half of a streaming call.
pub struct Sender(SendStream<Bytes>);

impl Sender {
    /// Sends the response head; messages follow.
    ///
    /// **Errors** as [`respond`].
    pub fn start(mut reply: SendResponse<Bytes>) -> Result<Self, h2::Error> {
        Ok(Self(reply.send_response(response_head(), false)?))
    }

    /// Sends framed messages as the client's flow control allows; returns when all of it was handed to the connection.
    ///
    /// **Errors** the stream or connection is gone.
    pub async fn send(&mut self, mut messages: Bytes) -> Result<(), h2::Error> {
        while !messages.is_empty() {
            self.0.reserve_capacity(messages.len());
            let granted = match poll_fn(|cx| self.0.poll_capacity(cx)).await {
                Some(granted) => granted?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
            let len = granted.min(messages.len());
            self.0.send_data(messages.split_to(len), false)?;
        }
        Ok(())
    }

    /// Ends the call.
    ///
    /// **Errors** as [`respond`].
    pub fn finish(mut self, status: Option<&Status>) -> Result<(), h2::Error> {
        let Some(status) = status else { return self.0.send_trailers(ok_trailers()) };
        let mut trailers = HeaderMap::with_capacity(2);
        put_status(&mut trailers, status);
        self.0.send_trailers(trailers)
    }

    /// Resolves when the client resets the stream.
    pub async fn closed(&mut self) {
        // Either answer means that nobody listens any more.
        drop(poll_fn(|cx| self.0.poll_reset(cx)).await);
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
