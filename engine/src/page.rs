//! The places of bytes in the page store, and the envelope around every page and block.
//!
//! Invariants:
//! - The number of a segment (`Place::segment`) is used once in the life of a store: a recycled file gets a new number.
//!   So a `Place` names the same bytes for ever, and a cached page never has to be invalidated.
//! - The CRC of an envelope covers its kind, its length, its payload **and the place for which it was written**. So a
//!   page does not pass if it lies where another belongs (misdirected write), or if it is left from before the file was
//!   recycled (lost write).
//! - `open` never panics, whatever the bytes are. It returns exactly what `seal` was given.
//!
//! It reads and writes no files, and does not know what a payload means; `tree` and `extent` do.

use std::path::PathBuf;

use crate::Error;

/// A place in the page store: `len` bytes at `offset` of segment file `segment`, including their envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Place {
    /// Number of the segment file, from 1. It is never used twice.
    pub segment: u32,
    /// First byte of the envelope in the file. **Units** bytes.
    pub offset: u32,
    /// Length of the envelope with its payload. **Units** bytes.
    pub len: u32,
}

impl Place {
    /// Length of its encoded form in tables, superblock and tree pages.
    pub const ENCODED_LEN: usize = 12;

    /// Three little-endian words: segment, offset, length.
    pub fn to_bytes(self) -> [u8; Self::ENCODED_LEN] {
        let mut bytes = [0; Self::ENCODED_LEN];
        bytes[0..4].copy_from_slice(&self.segment.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.offset.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes
    }

    /// The inverse of [`Place::to_bytes`]; `None` if the bytes cannot be a place: its segment is 0, it is shorter than
    /// an envelope, or its end does not fit in 32 bits.
    pub fn from_bytes(bytes: [u8; Self::ENCODED_LEN]) -> Option<Self> {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let place = Self { segment: word(0), offset: word(4), len: word(8) };
        let is_sound =
            place.segment != 0 && place.len as usize >= HEADER_LEN && place.offset.checked_add(place.len).is_some();
        is_sound.then_some(place)
    }

    /// Offset of the first byte after it.
    pub fn end(self) -> u32 {
        self.offset.checked_add(self.len).expect("a place ends inside its segment")
    }

    /// Path of its segment file below the data directory.
    pub fn path(self) -> PathBuf {
        segment_path(self.segment)
    }
}

/// Path of a segment file below the data directory.
pub fn segment_path(segment: u32) -> PathBuf {
    PathBuf::from(format!("{PAGES_DIR}/{segment:08}.seg"))
}

/// Directory of the segment files below the data directory.
pub(crate) const PAGES_DIR: &str = "pages";

/// The kind of a payload. It is part of the checksum, so that a page is never taken for one of another kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A node of the key tree or the meta tree.
    Node = 1,
    /// Records of an extent.
    Block = 2,
    /// The index of an extent: where its blocks lie.
    ExtentIndex = 3,
    /// A run of the extent directory.
    DirectoryChunk = 4,
    /// The directory root: where the directory chunks lie.
    DirectoryRoot = 5,
    /// The segments with their live bytes.
    SegmentTable = 6,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Node => "tree page",
            Self::Block => "record block",
            Self::ExtentIndex => "extent index",
            Self::DirectoryChunk => "directory chunk",
            Self::DirectoryRoot => "directory root",
            Self::SegmentTable => "segment table",
        }
    }
}

// Offsets in the envelope. Each is the previous one plus its size.
const CRC_AT: usize = 0;
const LEN_AT: usize = CRC_AT + 4;
const KIND_AT: usize = LEN_AT + 4;
const ZERO_AT: usize = KIND_AT + 1;
/// Length of the envelope in front of every payload. **Units** bytes.
pub const HEADER_LEN: usize = ZERO_AT + 3;

/// Appends to `out` the envelope of `kind` with `payload`. Returns its place, at `offset` of `segment`.
///
/// **Bounds** payload and offset together must stay below 4 GiB; the writer of segments asserts it.
pub fn seal(kind: Kind, segment: u32, offset: u32, payload: &[u8], out: &mut Vec<u8>) -> Place {
    let len = u32::try_from(HEADER_LEN + payload.len()).expect("a page is smaller than 4 GiB");
    let place = Place { segment, offset, len };
    assert!(segment != 0, "segment numbers start at 1");
    assert!(offset.checked_add(len).is_some(), "a page ends inside its segment");
    out.extend_from_slice(&checksum(kind, place, payload).to_le_bytes());
    out.extend_from_slice(&len.to_le_bytes());
    out.extend_from_slice(&[kind as u8, 0, 0, 0]);
    out.extend_from_slice(payload);
    place
}

/// The payload of the envelope read from `place`.
///
/// **Errors** `Corrupt` unless every byte is what `seal` wrote for this kind and this place.
pub(crate) fn open(kind: Kind, place: Place, envelope: &[u8]) -> Result<&[u8], Error> {
    let damaged = || corrupt(place, kind.name());
    if envelope.len() != place.len as usize || envelope.len() < HEADER_LEN {
        return Err(damaged());
    }
    let (header, payload) = envelope.split_at(HEADER_LEN);
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let is_intact = word(LEN_AT) == place.len
        && header[KIND_AT] == kind as u8
        && header[ZERO_AT..] == [0, 0, 0]
        && word(CRC_AT) == checksum(kind, place, payload);
    if is_intact { Ok(payload) } else { Err(damaged()) }
}

/// Whether `envelope` is a page of any kind that was written for `place`.
pub(crate) fn is_intact(place: Place, envelope: &[u8]) -> bool {
    use Kind as K;
    let kinds = [K::Node, K::Block, K::ExtentIndex, K::DirectoryChunk, K::DirectoryRoot, K::SegmentTable];
    kinds.into_iter().any(|kind| open(kind, place, envelope).is_ok())
}

/// The error for a page whose bytes are not as they were written.
pub(crate) fn corrupt(place: Place, what: &'static str) -> Error {
    Error::Corrupt { path: place.path(), offset: u64::from(place.offset), what }
}

fn checksum(kind: Kind, place: Place, payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&place.to_bytes());
    hasher.update(&[kind as u8]);
    hasher.update(payload);
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_flipped_bit_and_any_other_place_is_refused() {
        let payload = b"some payload of a page";
        let mut bytes = Vec::new();
        let place = seal(Kind::Block, 7, 4096, payload, &mut bytes);
        assert_eq!(open(Kind::Block, place, &bytes).unwrap(), payload);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(open(Kind::Block, place, &damaged).is_err(), "bit {bit}");
        }
        for other in [
            Place { segment: 8, ..place },
            Place { offset: 8192, ..place },
            Place { len: place.len - 1, ..place },
            Place { len: place.len + 1, ..place },
        ] {
            assert!(open(Kind::Block, other, &bytes).is_err());
        }
        assert!(open(Kind::Node, place, &bytes).is_err());
        assert!(open(Kind::Block, place, &bytes[..HEADER_LEN - 1]).is_err());
        assert!(open(Kind::Block, place, &[]).is_err());
    }

    #[test]
    fn place_survives_its_encoding_and_unsound_ones_are_refused() {
        let place = Place { segment: 1, offset: 4096, len: 17 };
        assert_eq!(Place::from_bytes(place.to_bytes()), Some(place));
        assert_eq!(Place::from_bytes(Place { segment: 0, ..place }.to_bytes()), None);
        assert_eq!(Place::from_bytes(Place { len: 11, ..place }.to_bytes()), None);
        assert_eq!(Place::from_bytes(Place { offset: u32::MAX, ..place }.to_bytes()), None);
    }
}
