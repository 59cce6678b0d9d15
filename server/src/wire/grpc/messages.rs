//! Runs on: connection core.
//!
//! The body of a stream, split into messages.

use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::RecvStream;

use super::gzip;
use crate::{api::call::Requests, error::Error, protobuf::PREFIX_BYTES};

/// How a client says that it compresses its messages. Each message says whether it is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Identity,
    /// With gzip.
    Gzip,
}

/// Splits a stream's body into messages.
pub struct Messages {
    body: RecvStream,
    buffer: BytesMut,
    whole: Option<Bytes>,
    len_max: usize,
    encoding: Encoding,
}

impl Messages {
    /// Reads messages of at most `len_max` bytes from `body`.
    pub fn new(body: RecvStream, len_max: usize, encoding: Encoding) -> Self {
        Self { body, buffer: BytesMut::new(), whole: None, len_max, encoding }
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
        let flag = head[0];
        let len = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if len > self.len_max {
            return Err(Error::MessageTooLarge { len, max: self.len_max });
        }
        if head.len() < PREFIX_BYTES + len {
            return Ok(None);
        }
        let message = if let Some(whole) = &mut self.whole {
            whole.advance(PREFIX_BYTES);
            let message = whole.split_to(len);
            if whole.is_empty() {
                self.whole = None;
            }
            message
        } else {
            self.buffer.advance(PREFIX_BYTES);
            self.buffer.split_to(len).freeze()
        };
        if flag == 0 { Ok(Some(message)) } else { self.unpack(flag, &message).map(Some) }
    }

    #[cold]
    fn unpack(&self, flag: u8, message: &Bytes) -> Result<Bytes, Error> {
        match (flag, self.encoding) {
            (1, Encoding::Gzip) => gzip::unpack(message, self.len_max),
            (1, Encoding::Identity) => Err(Error::CompressedUnnamed),
            _ => Err(Error::PayloadFormat(flag)),
        }
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
                    // It fails only if the stream is gone.
                    let released = self.body.flow_control().release_capacity(data.len());
                    released.map_err(|_gone| Error::Canceled)?;
                    self.take_in(data);
                }
                Some(Err(_)) => return Poll::Ready(Err(Error::Canceled)),
                // As grpc-go, which takes a prefix that is cut short for the end.
                None if self.buffered() < PREFIX_BYTES => return Poll::Ready(Ok(None)),
                None => return Poll::Ready(Err(Error::CutShortInStream)),
            }
        }
    }
}
