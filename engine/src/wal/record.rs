//! The parts of a segment: its header block, and the frames after it. The byte tables are in `FORMAT.md`.
//!
//! Invariants:
//! - A frame's CRC covers its length and body, and starts from the CRC of the frame before it (`chain`). The chain of a
//!   segment starts from its header's CRC. So a frame is valid only after exactly the frames after which it was
//!   written.
//! - A group head and a segment header also have a check of their own. So a scan can trust one that it meets after a
//!   bad spot, where no chain leads.
//! - A header fits in one sector: either all of it is there or nothing.
//!
//! Decoding accepts hostile bytes: it answers `None` and never panics. It knows no files and no order of entries, on
//! purpose.

use bytes::Bytes;

use super::entry::{Entry, HardState};
use crate::disk::{BLOCK, Buffer, SECTOR};

/// Version of the format that is written and read.
pub(super) const VERSION: u32 = 2;
/// The one before, which is read, too: its hard states do not say whom they concern.
const VERSION_BEFORE: u32 = 1;

/// Largest index. Larger ones leave no room for arithmetic, and 2^63 entries outlast the hardware.
pub(super) const INDEX_MAX: u64 = u64::MAX >> 1;

const HEADER_MAGIC: [u8; 8] = *b"ORLOPWAL";
const GROUP_MAGIC: [u8; 8] = [0xd7, 0x1a, b'g', b'r', b'o', b'u', b'p', 0xe3];

/// The first byte after the header block.
pub(super) const BODY: u32 = 4096;
const _: () = assert!(BODY as usize == BLOCK);

/// Length and CRC.
pub(super) const FRAME: usize = 8;

const KIND_GROUP: u8 = 1;
const KIND_ENTRY: u8 = 2;
const KIND_HARD_STATE: u8 = 3;
const KIND_MARK: u8 = 4;
const KIND_LIFE: u8 = 5;

const GROUP_BODY: usize = 1 + 8 + 8 + 5 * 4 + 4;
const ENTRY_BODY: usize = 1 + 8 + 8 + 1;
const HARD_STATE: usize = 4 * 8;
const HARD_STATE_BEFORE: usize = 3 * 8;
const HARD_STATE_BODY: usize = 1 + HARD_STATE;
const MARK_BODY: usize = 1 + 2 * 8 + 1;
const LIFE_BODY: usize = 1 + 4;

/// Size of a group head's frame.
pub(super) const GROUP_FRAME: usize = FRAME + GROUP_BODY;
/// Size of a hard state's frame.
pub(super) const HARD_STATE_FRAME: usize = FRAME + HARD_STATE_BODY;

/// The beginning of every group. It says what was durable when the group was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Group {
    /// Identity of the log.
    pub(super) id: u64,
    /// The opening of the log in which it was written.
    pub(super) life: u32,
    /// The segment to which it was written.
    pub(super) sequence: u32,
    /// The start of its frame in that segment.
    pub(super) offset: u32,
    /// Everything in the segment before this offset was durable.
    pub(super) durable: u32,
    /// Bytes of the group with this frame, without padding.
    pub(super) len: u32,
}

/// One frame's content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record {
    Group(Group),
    Entry(Entry),
    HardState(HardState),
    Mark { index: u64, term: u64, is_restart: bool },
    Life(u32),
}

impl Record {
    /// Bytes of the frame.
    pub(super) fn frame_len(&self) -> usize {
        FRAME
            + match self {
                Self::Group(_) => GROUP_BODY,
                Self::Entry(entry) => ENTRY_BODY + entry.data.len(),
                Self::HardState(_) => HARD_STATE_BODY,
                Self::Mark { .. } => MARK_BODY,
                Self::Life(_) => LIFE_BODY,
            }
    }

    /// Appends the frame after `chain`. Returns its CRC, which is the chain for the next frame.
    pub(super) fn encode(&self, chain: u32, out: &mut Buffer) -> u32 {
        let start = out.len();
        out.extend_from_slice(&[0; FRAME]);
        match self {
            Self::Group(group) => encode_group(group, out),
            Self::Entry(entry) => {
                out.extend_from_slice(&[KIND_ENTRY]);
                put_numbers(out, &[entry.index, entry.term]);
                out.extend_from_slice(&[entry.kind]);
                out.extend_from_slice(&entry.data);
            }
            Self::HardState(state) => {
                out.extend_from_slice(&[KIND_HARD_STATE]);
                put_hard_state(out, state);
            }
            Self::Mark { index, term, is_restart } => {
                out.extend_from_slice(&[KIND_MARK]);
                put_numbers(out, &[*index, *term]);
                out.extend_from_slice(&[u8::from(*is_restart)]);
            }
            Self::Life(number) => {
                out.extend_from_slice(&[KIND_LIFE]);
                out.extend_from_slice(&number.to_le_bytes());
            }
        }
        assert_eq!(out.len() - start, self.frame_len());
        let len = u32::try_from(out.len() - start - FRAME).expect("a frame fits in a segment");
        let frame = &mut out[start..];
        frame[..4].copy_from_slice(&len.to_le_bytes());
        let crc = frame_crc(chain, &frame[..4], &frame[FRAME..]);
        frame[4..FRAME].copy_from_slice(&crc.to_le_bytes());
        crc
    }

    /// The record in `body`; `None` if `body` is not one. The payload of an entry shares `body`'s memory.
    pub(super) fn decode(body: &Bytes) -> Option<Self> {
        let (kind, mut rest) = body.split_first()?;
        let rest = &mut rest;
        let record = match *kind {
            KIND_GROUP => Self::Group(Group::decode(body)?),
            KIND_ENTRY => {
                let entry =
                    Entry { index: take_u64(rest)?, term: take_u64(rest)?, kind: take(rest)?, data: Bytes::new() };
                return Some(Self::Entry(Entry { data: body.slice(ENTRY_BODY..), ..entry }));
            }
            KIND_HARD_STATE if rest.len() == HARD_STATE_BEFORE => {
                return Some(Self::HardState(take_hard_state_before(rest)?));
            }
            KIND_HARD_STATE => Self::HardState(take_hard_state(rest)?),
            KIND_MARK => {
                let (index, term) = (take_u64(rest)?, take_u64(rest)?);
                Self::Mark { index, term, is_restart: take_bool(rest)? }
            }
            KIND_LIFE => Self::Life(take_u32(rest)?),
            _ => return None,
        };
        (body.len() + FRAME == record.frame_len()).then_some(record)
    }
}

impl Group {
    /// The group head in `body`, if its own check holds. `body` is that of a frame, or was met in a scan.
    pub(super) fn decode(body: &[u8]) -> Option<Self> {
        let body = body.get(..GROUP_BODY)?;
        let (checked, check) = body.split_at(GROUP_BODY - 4);
        let rest = &mut checked.strip_prefix(&[KIND_GROUP])?.strip_prefix(&GROUP_MAGIC)?;
        let group = Self {
            id: take_u64(rest)?,
            life: take_u32(rest)?,
            sequence: take_u32(rest)?,
            offset: take_u32(rest)?,
            durable: take_u32(rest)?,
            len: take_u32(rest)?,
        };
        (check == crc32fast::hash(checked).to_le_bytes()).then_some(group)
    }

    /// The group heads in `bytes`, each with the position at which its frame would start (which may be before `bytes`).
    pub(super) fn search(bytes: &[u8]) -> impl Iterator<Item = (i64, Self)> {
        let last = bytes.len().saturating_sub(GROUP_BODY - 1);
        let mut from = 0;
        std::iter::from_fn(move || {
            while from < last {
                let found = bytes[from + 1..].iter().position(|byte| *byte == GROUP_MAGIC[0])?;
                let at = from + found;
                from = at + 1;
                if let Some(group) = bytes.get(at..).and_then(Self::decode) {
                    let start = i64::try_from(at).ok()? - FRAME as i64;
                    return Some((start, group));
                }
            }
            None
        })
    }
}

fn encode_group(group: &Group, out: &mut Buffer) {
    let start = out.len();
    out.extend_from_slice(&[KIND_GROUP]);
    out.extend_from_slice(&GROUP_MAGIC);
    put_numbers(out, &[group.id]);
    for number in [group.life, group.sequence, group.offset, group.durable, group.len] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    let check = crc32fast::hash(&out[start..]);
    out.extend_from_slice(&check.to_le_bytes());
}

/// The CRC of a frame with these bytes after `chain`.
pub(super) fn frame_crc(chain: u32, len: &[u8], body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(chain);
    hasher.update(len);
    hasher.update(body);
    hasher.finalize()
}

/// Length and CRC of the frame that starts with `bytes`.
pub(super) fn frame_head(bytes: &[u8]) -> Option<(u32, u32)> {
    let rest = &mut &bytes[..];
    Some((take_u32(rest)?, take_u32(rest)?))
}

/// The first sector of a segment, which describes the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    /// Identity of the log.
    pub(super) id: u64,
    /// Number of the segment in the log, from 1.
    pub(super) sequence: u32,
    /// How often the log had been opened.
    pub(super) life: u32,
    /// The end of the segment before this one; 0 for the first.
    pub(super) previous_end: u32,
    /// CRC of the last frame of that segment; 0 for the first.
    pub(super) previous_chain: u32,
    /// One more than the last index of the log when this segment was begun.
    pub(super) first_index: u64,
    /// The mark of the log at that time: index, term.
    pub(super) mark: (u64, u64),
    /// The hard state of the log at that time.
    pub(super) hard_state: HardState,
}

/// Bytes of a header before its hard state, and with it.
const HEADER_HEAD: usize = 8 + 4 + 4 + 8 + 4 + 4 + 4 + 8 + 16;
const HEADER_CHECKED: usize = HEADER_HEAD + HARD_STATE;
const _: () = assert!(HEADER_CHECKED + 4 <= SECTOR);

/// The content of the first sector of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeaderSector {
    /// Nothing was ever written.
    Blank,
    /// A header and its CRC.
    Valid(Header, u32),
    /// A header of another format version.
    Foreign(u32),
    /// Something else: no power loss leaves this.
    Damaged,
    /// The disk cannot read it.
    Unreadable,
}

impl Header {
    /// Appends the header block to `out`. Returns the chain with which the segment's first frame starts.
    pub(super) fn encode(&self, out: &mut Buffer) -> u32 {
        let start = out.len();
        out.extend_from_slice(&HEADER_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.sequence.to_le_bytes());
        put_numbers(out, &[self.id]);
        for number in [self.life, self.previous_end, self.previous_chain] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_numbers(out, &[self.first_index, self.mark.0, self.mark.1]);
        put_hard_state(out, &self.hard_state);
        assert_eq!(out.len() - start, HEADER_CHECKED);
        let crc = crc32fast::hash(&out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        out.resize(start + BLOCK);
        crc
    }

    /// Decodes `block`, the first bytes of a file.
    pub(super) fn decode(block: &[u8]) -> HeaderSector {
        let Some(sector) = block.get(..SECTOR) else { return HeaderSector::Damaged };
        if sector.iter().all(|byte| *byte == 0) {
            return HeaderSector::Blank;
        }
        Self::decode_written(sector).unwrap_or(HeaderSector::Damaged)
    }

    fn decode_written(sector: &[u8]) -> Option<HeaderSector> {
        let version = take_u32(&mut sector.strip_prefix(&HEADER_MAGIC)?)?;
        let checked_len = match version {
            VERSION => HEADER_CHECKED,
            VERSION_BEFORE => HEADER_HEAD + HARD_STATE_BEFORE,
            other => return Some(HeaderSector::Foreign(other)),
        };
        let (checked, mut stored) = sector.split_at(checked_len);
        let rest = &mut &checked[HEADER_MAGIC.len() + 4..];
        let crc = take_u32(&mut stored)?;
        if crc != crc32fast::hash(checked) {
            return None;
        }
        let sequence = take_u32(rest)?;
        let (id, life) = (take_u64(rest)?, take_u32(rest)?);
        let (previous_end, previous_chain) = (take_u32(rest)?, take_u32(rest)?);
        let first_index = take_u64(rest)?;
        let mark = (take_u64(rest)?, take_u64(rest)?);
        let hard_state = if version == VERSION { take_hard_state(rest)? } else { take_hard_state_before(rest)? };
        let header = Self { id, sequence, life, previous_end, previous_chain, first_index, mark, hard_state };
        if first_index <= mark.0 || first_index > INDEX_MAX {
            return None;
        }
        Some(HeaderSector::Valid(header, crc))
    }
}

fn put_numbers(out: &mut Buffer, numbers: &[u64]) {
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// The highest bit of `commit`: no index has it.
const CUT: u64 = INDEX_MAX + 1;

fn put_hard_state(out: &mut Buffer, state: &HardState) {
    assert!(state.commit <= INDEX_MAX, "an index leaves room for a bit");
    let cut = if state.is_cut { CUT } else { 0 };
    put_numbers(out, &[state.term, state.vote, state.commit | cut, state.concerned]);
}

fn take_hard_state(from: &mut &[u8]) -> Option<HardState> {
    let state = take_hard_state_before(from)?;
    Some(HardState { concerned: take_u64(from)?, ..state })
}

/// As the version before has it.
fn take_hard_state_before(from: &mut &[u8]) -> Option<HardState> {
    let (term, vote, commit) = (take_u64(from)?, take_u64(from)?, take_u64(from)?);
    Some(HardState { term, vote, commit: commit & INDEX_MAX, is_cut: commit & CUT != 0, concerned: u64::MAX })
}

fn take(from: &mut &[u8]) -> Option<u8> {
    let (byte, rest) = from.split_first()?;
    *from = rest;
    Some(*byte)
}

fn take_bool(from: &mut &[u8]) -> Option<bool> {
    match take(from)? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    let (bytes, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u32::from_le_bytes(*bytes))
}

fn take_u64(from: &mut &[u8]) -> Option<u64> {
    let (bytes, rest) = from.split_first_chunk()?;
    *from = rest;
    Some(u64::from_le_bytes(*bytes))
}

/// Decodes `bytes` as everything that a segment may hold. The fuzz target calls it. Returns true if anything was valid.
#[doc(hidden)]
pub fn decode_hostile(bytes: &[u8]) -> bool {
    let is_header = matches!(Header::decode(bytes), HeaderSector::Valid(..));
    let record = Record::decode(&Bytes::copy_from_slice(bytes));
    if let Some(record) = &record {
        let mut out = Buffer::new();
        record.encode(0, &mut out);
        // A hard state of the version before has all bits of what it leaves out.
        let is_before = matches!(record, Record::HardState(_)) && bytes.len() == 1 + HARD_STATE_BEFORE;
        let left_out: &[u8] = if is_before { &[0xff; HARD_STATE - HARD_STATE_BEFORE] } else { &[] };
        assert_eq!(out[FRAME..], [bytes, left_out].concat(), "what decodes encodes to the same bytes");
    }
    let is_head = Group::search(bytes).next().is_some();
    is_header || record.is_some() || is_head || frame_head(bytes).is_some_and(|(len, _)| len == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::Random;

    fn header(hard_state: HardState) -> Header {
        let (id, sequence, life, previous_end, previous_chain, first_index, mark) = (1, 2, 3, 4, 5, 8, (7, 8));
        Header { id, sequence, life, previous_end, previous_chain, first_index, mark, hard_state }
    }

    fn records() -> Vec<Record> {
        let group = Group { id: 7, life: 1, sequence: 3, offset: 4096, durable: 4096, len: 99 };
        vec![
            Record::Group(group),
            Record::Entry(Entry { index: 5, term: 2, kind: 1, data: Bytes::from_static(b"payload") }),
            Record::Entry(Entry { index: 6, term: 2, kind: 0, data: Bytes::new() }),
            Record::HardState(HardState { term: 2, vote: 1, commit: 5, is_cut: false, concerned: 0 }),
            Record::HardState(HardState { term: 2, vote: 1, commit: INDEX_MAX, is_cut: true, concerned: 1 << 63 }),
            Record::Mark { index: 4, term: 1, is_restart: true },
            Record::Life(9),
        ]
    }

    #[test]
    fn what_the_version_before_wrote_is_read_and_may_concern_everybody() {
        let hard_state = HardState { term: 9, vote: 10, commit: 11, is_cut: false, concerned: u64::MAX };
        let header = header(HardState { concerned: 0, ..hard_state });
        let mut block = Buffer::new();
        header.encode(&mut block);
        block[8..12].copy_from_slice(&VERSION_BEFORE.to_le_bytes());
        let checked = HEADER_HEAD + HARD_STATE_BEFORE;
        let crc = crc32fast::hash(&block[..checked]);
        block[checked..checked + 4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Header::decode(&block), HeaderSector::Valid(Header { hard_state, ..header }, crc));
        let body = [&[KIND_HARD_STATE][..], &9_u64.to_le_bytes(), &10_u64.to_le_bytes(), &11_u64.to_le_bytes()];
        assert_eq!(Record::decode(&body.concat().into()), Some(Record::HardState(hard_state)));
    }

    #[test]
    fn record_decodes_to_what_was_encoded() {
        let mut out = Buffer::new();
        let mut chain = 17;
        for record in records() {
            let start = out.len();
            let next = record.encode(chain, &mut out);
            let (len, crc) = frame_head(&out[start..]).unwrap();
            assert_eq!(crc, next);
            let body = &out[start + FRAME..];
            assert_eq!(body.len(), len as usize);
            assert_eq!(crc, frame_crc(chain, &out[start..start + 4], body));
            assert_eq!(Record::decode(&Bytes::copy_from_slice(body)), Some(record));
            chain = next;
        }
        let (start, group) = Group::search(&out).next().unwrap();
        assert_eq!((start, Record::Group(group)), (0, records()[0].clone()));
    }

    #[test]
    fn flipped_bit_never_yields_a_valid_header_or_head() {
        let header = header(HardState { term: 9, vote: 10, commit: 11, is_cut: true, concerned: 12 });
        let mut out = Buffer::new();
        let crc = header.encode(&mut out);
        assert_eq!(Header::decode(&out), HeaderSector::Valid(header, crc));
        let mut head = Buffer::new();
        records()[0].encode(0, &mut head);
        for bit in 0..(HEADER_CHECKED + 4) * 8 {
            out[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Header::decode(&out), HeaderSector::Damaged | HeaderSector::Foreign(_)), "bit {bit}");
            out[bit / 8] ^= 1 << (bit % 8);
        }
        for bit in FRAME * 8..GROUP_FRAME * 8 {
            head[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Group::search(&head).next(), None, "bit {bit}");
            head[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn hostile_bytes_never_panic() {
        let mut random = Random::new(11);
        let mut valid = 0_usize;
        for round in 0..20_000 {
            let mut out = Buffer::new();
            let record = &records()[round % records().len()];
            record.encode(0, &mut out);
            let mut bytes = out[FRAME..].to_vec();
            for _ in 0..random.below(4) {
                let at = usize::try_from(random.below(bytes.len() as u64)).unwrap();
                bytes[at] = u8::try_from(random.below(256)).unwrap();
            }
            bytes.truncate(usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap());
            valid += usize::from(decode_hostile(&bytes));
        }
        assert!(valid > 0 && valid < 20_000);
    }
}
