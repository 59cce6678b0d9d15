//! The message stream, and the head of a snapshot's body: messages behind their lengths.
//!
//! Invariants: a frame is decoded once all of it is there; until then only what has arrived is kept. A length beyond
//! the bound is refused as soon as it is known.

use bytes::{Buf, Bytes, BytesMut};

use super::{
    pieces::Pieces,
    raftpb::{decode_message, encode_message, message_len},
};
use crate::{
    error::Error,
    message::{Message, MessageKind},
};

/// Bytes of a length. All of them are big-endian.
const LENGTH_BYTES: usize = 8;

/// What a stream brings.
#[derive(Debug, PartialEq, Eq)]
pub enum Frame {
    /// The other side is there.
    Heartbeat,
    /// A message. Its sender and its receiver are still to be compared with those of the connection.
    Message(Message),
}

/// Takes a message stream apart.
#[derive(Debug)]
pub struct Frames {
    buffer: BytesMut,
    bytes_max: usize,
}

impl Frames {
    /// The beginning of a stream whose messages may have `bytes_max`. **Units**: bytes.
    pub fn new(bytes_max: usize) -> Self {
        Self { buffer: BytesMut::new(), bytes_max }
    }

    /// Takes in what has arrived. [`Frames::next`] then gives the frames that it completes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, if all of it is there. Messages of types that mean nothing between members are left out.
    ///
    /// **Errors**: `Malformed`; the stream is over.
    #[expect(clippy::should_implement_trait, reason = "it goes on when more has arrived")]
    pub fn next(&mut self) -> Result<Option<Frame>, Error> {
        while let Some(message) = take_delimited(&mut self.buffer, 0, self.bytes_max)? {
            if let Some(message) = decode_message(message)? {
                let is_heartbeat = message.kind == MessageKind::Heartbeat && (message.from, message.to) == (0, 0);
                return Ok(Some(if is_heartbeat { Frame::Heartbeat } else { Frame::Message(message) }));
            }
        }
        Ok(None)
    }

    /// What has arrived behind the frames that were taken.
    pub fn into_rest(self) -> Bytes {
        self.buffer.freeze()
    }
}

/// Takes bytes behind their length, if all of them are there, and the `skipped` bytes in front of it.
pub(super) fn take_delimited(buffer: &mut BytesMut, skipped: usize, bytes_max: usize) -> Result<Option<Bytes>, Error> {
    let begin = skipped + LENGTH_BYTES;
    let Some(mut length) = buffer.get(skipped..begin) else { return Ok(None) };
    let length = length.get_u64();
    let Some(length) = usize::try_from(length).ok().filter(|length| *length <= bytes_max) else {
        return Err(Error::Malformed { what: "raft frame: it is too long" });
    };
    if buffer.len() - begin < length {
        return Ok(None);
    }
    buffer.advance(begin);
    Ok(Some(buffer.split_to(length).freeze()))
}

/// Appends a message as the message stream and the head of a snapshot's body have it.
pub fn encode(message: &Message, out: &mut Pieces) {
    out.put_u64(message_len(message) as u64);
    encode_message(message, out);
}

/// Appends a heartbeat of a message stream.
pub fn encode_heartbeat(out: &mut Pieces) {
    encode(&Message { kind: MessageKind::Heartbeat, ..Message::default() }, out);
}
