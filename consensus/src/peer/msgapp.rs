//! The stream of appends ("msgappv2"). An append that goes on where the last one ended is sent without what both sides
//! know.
//!
//! Invariants: `at` is, on both sides, where the last append of the stream ended; term and index 0 on a new stream.
//! What waits for its end takes no more than `bytes_max`, and its entries are counted with what they cost.

use bytes::{Buf, BytesMut};

use super::{
    frames::{Frame, take_delimited},
    pieces::Pieces,
    raftpb::{ENTRIES_MAX, decode_entry, decode_message, encode_entry, encode_message, entry_len, message_len},
};
use crate::{
    entry::{Entry, EntryId, entry_cost_bytes},
    error::Error,
    message::{Message, MessageKind},
};

const HEARTBEAT: u8 = 0;
/// An append that goes on: number of entries, each behind its length, commit.
const ENTRIES: u8 = 1;
/// Any message, behind its length.
const MESSAGE: u8 = 2;

/// Where an append ends.
fn end_of(message: &Message) -> EntryId {
    let index = message.entries.last().map_or(message.index, |last| last.index);
    EntryId { index, term: message.term }
}

/// Encodes the appends of one stream.
#[derive(Debug, Default)]
pub struct Encoder {
    at: EntryId,
}

impl Encoder {
    /// Appends an append message to `out`.
    pub fn encode(&mut self, message: &Message, out: &mut Pieces) {
        assert!(message.kind == MessageKind::Append, "the stream is for appends");
        let goes_on = self.at.index == message.index && [message.log_term, message.term] == [self.at.term; 2];
        if goes_on {
            out.put_u8(ENTRIES);
            out.put_u64(message.entries.len() as u64);
            for entry in &message.entries {
                out.put_u64(entry_len(entry) as u64);
                encode_entry(entry, out);
            }
            out.put_u64(message.commit);
        } else {
            out.put_u8(MESSAGE);
            out.put_u64(message_len(message) as u64);
            encode_message(message, out);
        }
        self.at = end_of(message);
    }

    /// Appends a heartbeat to `out`.
    pub fn encode_heartbeat(out: &mut Pieces) {
        out.put_u8(HEARTBEAT);
    }
}

/// An append that goes on, as far as it has arrived.
#[derive(Debug)]
struct Partial {
    left: usize,
    entries: Vec<Entry>,
    bytes: u64,
}

/// Takes the stream apart by which the member `from` sends appends to `to`.
#[derive(Debug)]
pub struct Decoder {
    from: u64,
    to: u64,
    at: EntryId,
    buffer: BytesMut,
    bytes_max: usize,
    partial: Option<Partial>,
}

impl Decoder {
    /// The beginning of a stream whose messages may have `bytes_max`. **Units**: bytes.
    pub fn new((from, to): (u64, u64), bytes_max: usize) -> Self {
        Self { from, to, at: EntryId::default(), buffer: BytesMut::new(), bytes_max, partial: None }
    }

    /// Takes in what has arrived. [`Decoder::next`] then gives the frames that it completes.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, if all of it is there. The sender and the receiver of a whole message are still to be compared
    /// with those of the connection.
    ///
    /// **Errors**: `Malformed`; the stream is over.
    #[expect(clippy::should_implement_trait, reason = "it goes on when more has arrived")]
    pub fn next(&mut self) -> Result<Option<Frame>, Error> {
        if self.partial.is_none() {
            match self.buffer.first() {
                None => return Ok(None),
                Some(&HEARTBEAT) => {
                    self.buffer.advance(1);
                    return Ok(Some(Frame::Heartbeat));
                }
                Some(&ENTRIES) => {
                    let Some(mut count) = self.buffer.get(1..9) else { return Ok(None) };
                    let count = usize::try_from(count.get_u64()).ok().filter(|count| *count <= ENTRIES_MAX);
                    let left = count.ok_or(Error::Malformed { what: "append stream: too many entries" })?;
                    self.buffer.advance(9);
                    self.partial = Some(Partial { left, entries: Vec::new(), bytes: 0 });
                }
                Some(&MESSAGE) => return self.next_message(),
                Some(_) => return Err(Error::Malformed { what: "append stream: the type of a frame" }),
            }
        }
        self.next_entries()
    }

    fn next_message(&mut self) -> Result<Option<Frame>, Error> {
        let Some(message) = take_delimited(&mut self.buffer, 1, self.bytes_max)? else { return Ok(None) };
        match decode_message(message)? {
            Some(message) if message.kind == MessageKind::Append => {
                self.at = end_of(&message);
                Ok(Some(Frame::Message(message)))
            }
            _ => Err(Error::Malformed { what: "append stream: another message" }),
        }
    }

    fn next_entries(&mut self) -> Result<Option<Frame>, Error> {
        let partial = self.partial.as_mut().expect("one is under way");
        while partial.left > 0 {
            let Some(entry) = take_delimited(&mut self.buffer, 0, self.bytes_max)? else { return Ok(None) };
            let entry = decode_entry(entry)?;
            partial.bytes += entry_cost_bytes(&entry.data);
            if partial.bytes > self.bytes_max as u64 {
                return Err(Error::Malformed { what: "append stream: a message is too long" });
            }
            partial.left -= 1;
            partial.entries.push(entry);
        }
        let Some(mut commit) = self.buffer.get(..8) else { return Ok(None) };
        let commit = commit.get_u64();
        self.buffer.advance(8);
        let Partial { entries, .. } = self.partial.take().expect("it was there");
        let EntryId { index, term } = self.at;
        let (kind, from, to, log_term) = (MessageKind::Append, self.from, self.to, term);
        let message = Message { kind, from, to, term, log_term, index, entries, commit, ..Message::default() };
        // Not by the last entry: as etcd counts.
        self.at.index = index
            .checked_add(message.entries.len() as u64)
            .ok_or(Error::Malformed { what: "append stream: an index" })?;
        Ok(Some(Frame::Message(message)))
    }
}
