//! Runs on: connection core.
//!
//! A Range answer that is larger than one piece. Its length must be known first. The sums in the tree give it where
//! they are valid; otherwise a walk over the keys does. The answer is then written as fast as the client takes it.
//!
//! Invariants:
//! - `len` is announced before the first key, and exactly that many bytes are written. This holds because a revision
//!   always shows the same, and the floor of the scan keeps it readable.
//! - No more than about two pieces are in memory, whatever the answer's size and the client's pace.
//! - An answer that cannot be finished ends with an error status, in the middle of its message. No client takes it for
//!   a whole answer.

use bytes::{BufMut, Bytes, BytesMut};
use engine::{Found, Outline, Record};

use super::{
    super::{
        call::{Answers, Reply},
        desk::Desk,
    },
    scan::{Piece, PieceBounds, Scan},
};
use crate::{
    error::{Error, Status},
    header::Header,
    protobuf::{
        MESSAGE_BYTES_MAX, PREFIX_BYTES, field_len, nested_len, put_bytes, put_field, put_key_value, put_prefix,
        put_varint,
    },
};

/// Bytes of records that are read and written at a time. Half of it costs a twentieth more CPU; twice as much saves
/// nothing. **Units** bytes.
pub const PIECE_BYTES: usize = 512 << 10;

/// Keys of one piece at most. It bounds one turn of the core if records are small.
pub const PIECE_KEYS: usize = 2048;

// Fields of RangeResponse and KeyValue, as tags.
const TAG_KVS: u8 = 2 << 3 | 2;
const TAG_MORE: u8 = 3 << 3;
const TAG_COUNT: u8 = 4 << 3;
const TAG_KEY: u8 = 1 << 3 | 2;
const TAG_CREATE_REVISION: u8 = 2 << 3;
const TAG_MOD_REVISION: u8 = 3 << 3;
const TAG_VERSION: u8 = 4 << 3;

/// The fields of the response besides its keys.
#[derive(Debug)]
pub struct Frame {
    /// The response's header.
    pub header: Header,
    /// Whether the range has more keys than the limit allows.
    pub more: bool,
    /// Keys in the range.
    pub count: i64,
}

impl Frame {
    fn head_len(&self) -> usize {
        self.header.as_slice().len()
    }

    fn tail_len(&self) -> usize {
        field_len(self.count) + if self.more { 2 } else { 0 }
    }

    fn encode_head(&self, out: &mut impl BufMut) {
        out.put_slice(self.header.as_slice());
    }

    fn encode_tail(&self, out: &mut impl BufMut) {
        if self.more {
            out.put_slice(&[TAG_MORE, 1]);
        }
        put_field(out, TAG_COUNT, self.count);
    }
}

fn key_only_len(outline: &Outline) -> usize {
    nested_len(outline.key_bytes)
        + field_len(outline.create_revision)
        + field_len(outline.revision.main)
        + field_len(outline.version)
}

/// Length of the field that shows a version in the response. **Units** bytes.
pub fn shown_len(outline: &Outline, keys_only: bool) -> usize {
    nested_len(if keys_only { key_only_len(outline) } else { outline.bytes as usize })
}

/// The answer to a read of one key, with the prefix of its message.
pub fn framed_point(header: Header, record: Option<&Record>) -> Bytes {
    let frame = Frame { header, more: false, count: i64::from(record.is_some()) };
    let record_len = record.map(Record::key_value_len);
    let len = frame.head_len() + record_len.map_or(0, nested_len) + frame.tail_len();
    let mut out = Vec::with_capacity(PREFIX_BYTES + len);
    put_prefix(&mut out, len);
    frame.encode_head(&mut out);
    if let (Some(record), Some(len)) = (record, record_len) {
        out.put_u8(TAG_KVS);
        put_varint(&mut out, len as u64);
        put_key_value(&mut out, record);
    }
    frame.encode_tail(&mut out);
    assert_eq!(out.len(), PREFIX_BYTES + len, "what was counted is what was written");
    out.into()
}

/// Writes a version without its value. It has no lease either, as on etcd's index-only path.
fn put_key_only(out: &mut BytesMut, key: &[u8], outline: &Outline) {
    out.put_u8(TAG_KVS);
    put_varint(out, key_only_len(outline) as u64);
    put_bytes(out, TAG_KEY, key);
    put_field(out, TAG_CREATE_REVISION, outline.create_revision);
    put_field(out, TAG_MOD_REVISION, outline.revision.main);
    put_field(out, TAG_VERSION, outline.version);
}

/// Writes the field of a version into `out`, which has exactly its length.
fn write_record(mut out: &mut [u8], outline: &Outline, found: Found<'_>) {
    out.put_u8(TAG_KVS);
    put_varint(&mut out, u64::from(outline.bytes));
    match found {
        Found::Recent(record) => put_key_value(&mut out, &record),
        Found::Stored(stored) => out.put_slice(stored.key_value()),
    }
    assert!(out.is_empty(), "a record is as long as its version says");
}

/// See the head of this file.
#[derive(Debug)]
pub struct Large {
    scan: Scan,
    piece: Piece,
    frame: Frame,
    keys_only: bool,
    /// Keys that are not yet written.
    left: usize,
    /// Length of the whole message. **Units** bytes.
    len: usize,
}

impl Large {
    /// An answer of `shown` keys whose fields take `fields_len` bytes. `piece` holds the first of them; `scan` stands
    /// after `piece`.
    ///
    /// **Errors** the answer is longer than gRPC allows.
    pub fn new(
        scan: Scan,
        piece: Piece,
        frame: Frame,
        (shown, fields_len): (usize, usize),
        keys_only: bool,
    ) -> Result<Self, Error> {
        let len = frame.head_len() + fields_len + frame.tail_len();
        if len > MESSAGE_BYTES_MAX {
            return Err(Error::AnswerTooLarge { len, max: MESSAGE_BYTES_MAX });
        }
        Ok(Self { scan, piece, frame, keys_only, left: shown, len })
    }

    /// Keys in the range.
    pub fn count(&self) -> i64 {
        self.frame.count
    }

    /// Keys that are not yet written.
    pub fn left(&self) -> usize {
        self.left
    }

    /// The response's header.
    pub fn header(&self) -> &Header {
        &self.frame.header
    }

    /// Length of the message. **Units** bytes.
    pub fn message_len(&self) -> usize {
        self.len
    }

    /// Length of the message with its prefix. **Units** bytes.
    pub fn framed_len(&self) -> usize {
        PREFIX_BYTES + self.len
    }

    /// Makes the whole answer at once, for an answer that fits in one piece.
    ///
    /// **Errors** as [`Scan::records`].
    pub async fn whole(mut self, desk: &Desk) -> Result<Bytes, Error> {
        let mut out = BytesMut::with_capacity(self.framed_len());
        self.begin(&mut out);
        self.write_batch(desk, &mut out).await?;
        self.end(&mut out);
        assert_eq!(out.len(), self.framed_len(), "what was counted is what was written");
        Ok(out.freeze())
    }

    /// Writes the answer as fast as the client takes it.
    ///
    /// **Errors** those of [`Scan::piece`], which the client is told too; a client that left.
    pub(in crate::api) async fn send(mut self, desk: &Desk, reply: impl Reply) -> Result<(), Error> {
        let mut answers = reply.begin();
        let result = self.send_pieces(desk, &mut answers).await;
        let status = result.as_ref().err().cloned().map(Status::from);
        answers.finish(status.as_ref());
        result
    }

    async fn send_pieces(&mut self, desk: &Desk, answers: &mut impl Answers) -> Result<(), Error> {
        let mut out = BytesMut::with_capacity(PIECE_BYTES + PIECE_BYTES / 8);
        let mut written = 0;
        self.begin(&mut out);
        loop {
            self.write_batch(desk, &mut out).await?;
            if self.left == 0 {
                self.end(&mut out);
            }
            written += out.len();
            answers.send(out.split().freeze()).await?;
            if self.left == 0 {
                break;
            }
            self.scan
                .piece(desk, PieceBounds { keys: self.left.min(PIECE_KEYS), bytes: PIECE_BYTES }, &mut self.piece)
                .await?;
        }
        assert_eq!(written, self.framed_len(), "what was counted is what was written");
        Ok(())
    }

    fn begin(&self, out: &mut BytesMut) {
        put_prefix(out, self.len);
        self.frame.encode_head(out);
    }

    fn end(&self, out: &mut BytesMut) {
        self.frame.encode_tail(out);
    }

    async fn write_batch(&mut self, desk: &Desk, out: &mut BytesMut) -> Result<(), Error> {
        let piece = &self.piece;
        assert!(piece.len() <= self.left && (self.left == 0 || !piece.is_empty()), "a revision shows the same");
        self.left -= piece.len();
        if self.keys_only {
            piece.iter().for_each(|(key, outline)| put_key_only(out, key, outline));
            return Ok(());
        }
        let mut end = out.len();
        let ends: Vec<usize> = piece
            .iter()
            .map(|(_, outline)| {
                end += shown_len(outline, false);
                end
            })
            .collect();
        out.resize(end, 0);
        // The records come in another order than the answer shows them. Each is copied to its place at once, so that
        // nothing holds its block.
        let write = |position: usize, found: Found<'_>| {
            let (_, outline) = piece.at(position);
            let start = ends[position] - shown_len(outline, false);
            write_record(&mut out[start..ends[position]], outline, found);
        };
        self.scan.find(desk, piece, write).await
    }
}
