//! Runs on: connection core, a receiver's thread.
//!
//! The bytes of a state on its way.
//!
//! | bytes | meaning |
//! |---|---|
//! | 0..4 | length of the body, little-endian |
//! | 4..8 | CRC-32C of all that follows |
//! | 8..12 | length of the body when it is unpacked; the same if it is not packed |
//! | 12 | kind |
//! | 13.. | body; packed by zstd if that makes it shorter |
//!
//! Invariant: a frame is taken as a whole or not at all. Its lengths are checked before its body is waited for.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;

/// Bytes before the body.
const HEAD_BYTES: usize = 13;
/// A frame is closed when it has so many bytes. **Units** bytes.
pub const FRAME_BYTES: usize = 256 << 10;
const ZSTD_LEVEL: i32 = 1;

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A [`Head`], first in each stream.
    Head = 1,
    /// Rows of the meta tree, as pairs.
    Rows = 2,
    /// Records, as pairs of etcd's key bucket, in revision order.
    Records = 3,
    /// An [`End`].
    End = 4,
}

/// What a state is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Head {
    /// The form of the stream: 1.
    #[prost(uint32, tag = "1")]
    pub form: u32,
    /// The cluster.
    #[prost(fixed64, tag = "2")]
    pub cluster_id: u64,
    /// The last entry in the state.
    #[prost(uint64, tag = "3")]
    pub index: u64,
    /// Its term.
    #[prost(uint64, tag = "4")]
    pub term: u64,
    /// Main revision of the state.
    #[prost(int64, tag = "5")]
    pub revision: i64,
    /// Compacted main revision; -1 for none.
    #[prost(int64, tag = "6")]
    pub compact_revision: i64,
    /// Whether rows were sent before, in a stream that broke.
    #[prost(bool, tag = "7")]
    pub has_rows: bool,
    /// The first record of this stream is this one or a later one.
    #[prost(int64, tag = "8")]
    pub from_main: i64,
    /// Its sub revision.
    #[prost(int64, tag = "9")]
    pub from_sub: i64,
}

/// The end of a state.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct End {
    /// HashKV at the state's revision.
    #[prost(fixed32, tag = "1")]
    pub hash: u32,
    /// Rows that were sent.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
    /// Records that were sent. HashKV leaves out some that reads of the past need.
    #[prost(uint64, tag = "3")]
    pub records: u64,
}

/// Why bytes are not a stream of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a state from another member: {what}")]
pub struct Malformed {
    /// What is wrong.
    pub what: &'static str,
}

/// Fails with `what`.
pub fn malformed<T>(what: &'static str) -> Result<T, Malformed> {
    Err(Malformed { what })
}

/// The frame of `kind` with `body`.
pub fn encode(kind: Kind, body: &[u8]) -> Bytes {
    let packed = zstd::bulk::compress(body, ZSTD_LEVEL).ok().filter(|packed| packed.len() < body.len());
    let sent = packed.as_deref().unwrap_or(body);
    let length = |bytes: &[u8]| u32::try_from(bytes.len()).expect("a frame is small, or has one record");
    let mut out = BytesMut::with_capacity(HEAD_BYTES + sent.len());
    out.put_u32_le(length(sent));
    out.put_u32_le(0);
    out.put_u32_le(length(body));
    out.put_u8(kind as u8);
    out.put_slice(sent);
    let crc = crc32c::crc32c(&out[8..]);
    out[4..8].copy_from_slice(&crc.to_le_bytes());
    out.freeze()
}

/// Puts frames together from the pieces in which they come.
#[derive(Debug)]
pub struct Frames {
    waiting: BytesMut,
    body_bytes_max: usize,
}

impl Frames {
    /// A body, unpacked, has at most `body_bytes_max` bytes.
    pub fn new(body_bytes_max: usize) -> Self {
        Self { waiting: BytesMut::new(), body_bytes_max }
    }

    /// Takes a piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.waiting.extend_from_slice(piece);
    }

    /// The next whole frame.
    ///
    /// **Errors** a length beyond the bound; a checksum that is wrong; a kind that is unknown.
    pub fn take(&mut self) -> Result<Option<(Kind, Bytes)>, Malformed> {
        let Some(mut head) = self.waiting.get(..HEAD_BYTES) else { return Ok(None) };
        let (sent, crc, len) = (to_usize(head.get_u32_le()), head.get_u32_le(), to_usize(head.get_u32_le()));
        if len > self.body_bytes_max || sent > len {
            return malformed("a frame is too long");
        }
        let kind = match head.get_u8() {
            1 => Kind::Head,
            2 => Kind::Rows,
            3 => Kind::Records,
            4 => Kind::End,
            _ => return malformed("a frame of an unknown kind"),
        };
        if self.waiting.len() < HEAD_BYTES + sent {
            return Ok(None);
        }
        let frame = self.waiting.split_to(HEAD_BYTES + sent).freeze();
        if crc32c::crc32c(&frame[8..]) != crc {
            return malformed("a frame's checksum is wrong");
        }
        let body = frame.slice(HEAD_BYTES..);
        if sent == len {
            return Ok(Some((kind, body)));
        }
        match zstd::bulk::decompress(&body, len) {
            Ok(body) if body.len() == len => Ok(Some((kind, body.into()))),
            _ => malformed("a frame cannot be unpacked"),
        }
    }

    /// The stream broke: what is not a whole frame does not count.
    pub fn forget(&mut self) {
        self.waiting.clear();
    }
}

fn to_usize(length: u32) -> usize {
    usize::try_from(length).expect("at least 32 bits")
}

/// Appends a pair to the body of a frame.
pub fn put_pair(key: &[u8], value: &[u8], body: &mut Vec<u8>) {
    for part in [key, value] {
        body.put_u32_le(u32::try_from(part.len()).expect("a row or record is smaller than 4 GiB"));
        body.put_slice(part);
    }
}

/// Takes the next pair from the body of a frame; `None` at its end.
///
/// **Errors** a length that does not fit.
pub fn take_pair(body: &mut Bytes) -> Result<Option<(Bytes, Bytes)>, Malformed> {
    if body.is_empty() {
        return Ok(None);
    }
    let mut part = || {
        let len = body.try_get_u32_le().ok().map(to_usize).filter(|len| *len <= body.len());
        len.map(|len| body.split_to(len)).ok_or(Malformed { what: "a pair's length is wrong" })
    };
    Ok(Some((part()?, part()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_put_together_from_pieces_of_any_size() {
        let (long, short) = (vec![7; 100_000], b"short".to_vec());
        let bytes = [encode(Kind::Records, &long), encode(Kind::Rows, &short), encode(Kind::End, b"")].concat();
        assert!(bytes.len() < 1000, "what repeats itself is packed");
        for size in [1, 7, 64, bytes.len()] {
            let mut frames = Frames::new(100_000);
            let mut taken = Vec::new();
            for piece in bytes.chunks(size) {
                frames.push(piece);
                while let Some((kind, body)) = frames.take().unwrap() {
                    taken.push((kind, body.to_vec()));
                }
            }
            assert_eq!(taken, [(Kind::Records, long.clone()), (Kind::Rows, short.clone()), (Kind::End, Vec::new())]);
        }
    }

    #[test]
    fn no_damaged_or_too_long_frame_is_taken() {
        let frame = encode(Kind::Rows, &[1, 2, 3, 4, 5].repeat(40));
        for bit in 0..frame.len() * 8 {
            let mut damaged = frame.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let mut frames = Frames::new(200);
            frames.push(&damaged);
            // A longer length waits for more, in vain.
            assert!(!matches!(frames.take(), Ok(Some(_))), "bit {bit}");
        }
        let mut frames = Frames::new(199);
        frames.push(&frame[..HEAD_BYTES]);
        assert!(frames.take().is_err(), "the bound is checked before the body is there");
    }

    #[test]
    fn pairs_are_read_back_and_bad_lengths_refused() {
        let mut body = Vec::new();
        put_pair(b"key", b"", &mut body);
        put_pair(b"", b"value", &mut body);
        let mut rest = Bytes::from(body.clone());
        assert_eq!(take_pair(&mut rest).unwrap(), Some(("key".into(), "".into())));
        assert_eq!(take_pair(&mut rest).unwrap(), Some(("".into(), "value".into())));
        assert_eq!(take_pair(&mut rest).unwrap(), None);
        for cut in 1..body.len() {
            let mut rest = Bytes::copy_from_slice(&body[..cut]);
            let mut taken = take_pair(&mut rest);
            while matches!(taken, Ok(Some(_))) {
                taken = take_pair(&mut rest);
            }
            assert!(taken.is_err() || cut == 11, "cut at {cut}");
        }
    }
}
