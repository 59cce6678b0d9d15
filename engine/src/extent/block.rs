//! The bytes of a record, of a block of records, and of the index of an extent's blocks.
//!
//! Invariants:
//! - A record is `main, sub` (varints), `flags`, then an `mvccpb.KeyValue` with its fields in the order 1, 2, 3, 4, 6, 5: the
//!   value last, so that all but the value is a prefix. Zero fields are omitted; a tombstone has the key only, a gap nothing.
//! - Records of a block, and blocks of an index, are in strictly ascending revision order.
//! - Everything is checked when a block is decoded, down to the last field of the last record: reading a record from a
//!   decoded block cannot fail. Decoding never panics, whatever the bytes are.
//!
//! It knows neither files nor checksums (`page`), nor which extents there are (`directory`).

use std::sync::Arc;

use bytes::Bytes;

use crate::{Record, Revision};

/// Flag of a record that ends its key's generation.
const FLAG_TOMBSTONE: u8 = 1;

const TAG_KEY: u8 = 1 << 3 | 2;
const TAG_CREATE_REVISION: u8 = 2 << 3;
const TAG_MOD_REVISION: u8 = 3 << 3;
const TAG_VERSION: u8 = 4 << 3;
const TAG_LEASE: u8 = 6 << 3;
const TAG_VALUE: u8 = 5 << 3 | 2;

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn varint_bytes(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Reads a varint from the front of `bytes`; `None` if it is cut short, longer than 64 bits, or not in its shortest form.
fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let low = u64::from(byte & 0x7f);
        if shift == 63 && low > 1 {
            return None;
        }
        value |= low << shift;
        if byte & 0x80 == 0 {
            return (byte != 0 || shift == 0).then_some(value);
        }
    }
    None
}

fn put_field(tag: u8, value: i64, out: &mut Vec<u8>) {
    if value != 0 {
        out.push(tag);
        put_varint(value.cast_unsigned(), out);
    }
}

fn put_bytes_field(tag: u8, value: &[u8], out: &mut Vec<u8>) {
    if !value.is_empty() {
        out.push(tag);
        put_varint(value.len() as u64, out);
        out.extend_from_slice(value);
    }
}

/// Appends the stored form of `record`.
fn encode_record(record: &Record, out: &mut Vec<u8>) {
    let before = out.len();
    assert!(record.revision.main > 0 && record.revision.sub >= 0, "a stored record has a revision");
    put_varint(record.revision.main.cast_unsigned(), out);
    put_varint(record.revision.sub.cast_unsigned(), out);
    out.push(if record.is_tombstone { FLAG_TOMBSTONE } else { 0 });
    put_bytes_field(TAG_KEY, &record.key, out);
    if record.is_tombstone || record.is_gap() {
        assert!(record.value.is_empty() && record.version == 0, "a tombstone holds its key only, a gap nothing");
    } else {
        put_field(TAG_CREATE_REVISION, record.create_revision, out);
        put_field(TAG_MOD_REVISION, record.revision.main, out);
        put_field(TAG_VERSION, record.version, out);
        put_field(TAG_LEASE, record.lease, out);
        put_bytes_field(TAG_VALUE, &record.value, out);
    }
    assert_eq!(out.len() - before, record_bytes(record), "the size told before is the size written");
}

/// Length of the stored form of `record`. **Units** bytes.
pub fn record_bytes(record: &Record) -> usize {
    let field = |value: i64| if value == 0 { 0 } else { 1 + varint_bytes(value.cast_unsigned()) };
    let bytes_field = |value: &[u8]| {
        if value.is_empty() { 0 } else { 1 + varint_bytes(value.len() as u64) + value.len() }
    };
    let place =
        varint_bytes(record.revision.main.cast_unsigned()) + varint_bytes(record.revision.sub.cast_unsigned()) + 1;
    let key = bytes_field(&record.key);
    if record.is_tombstone || record.is_gap() {
        return place + key;
    }
    let numbers =
        field(record.create_revision) + field(record.revision.main) + field(record.version) + field(record.lease);
    place + key + numbers + bytes_field(&record.value)
}

fn take_revision(bytes: &mut &[u8]) -> Option<Revision> {
    let main = i64::try_from(take_varint(bytes)?).ok()?;
    let sub = i64::try_from(take_varint(bytes)?).ok()?;
    (main > 0 && sub < i64::MAX).then_some(Revision { main, sub })
}

/// Reads a field; one that is not there is zero, and one that is there is not.
fn take_field(tag: u8, bytes: &mut &[u8]) -> Option<i64> {
    if bytes.first() != Some(&tag) {
        return Some(0);
    }
    *bytes = &bytes[1..];
    take_varint(bytes).filter(|value| *value != 0).map(u64::cast_signed)
}

fn take_bytes_field<'a>(tag: u8, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    if bytes.first() != Some(&tag) {
        return Some(&[]);
    }
    *bytes = &bytes[1..];
    let len = usize::try_from(take_varint(bytes)?).ok().filter(|len| *len != 0)?;
    let (value, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(value)
}

/// A record whose slices point into the block they were read from.
struct RecordRef<'a> {
    revision: Revision,
    key: &'a [u8],
    value: &'a [u8],
    create_revision: i64,
    version: i64,
    lease: i64,
    is_tombstone: bool,
}

impl<'a> RecordRef<'a> {
    /// Reads one record that fills `bytes` exactly.
    fn decode(mut bytes: &'a [u8]) -> Option<Self> {
        let bytes = &mut bytes;
        let revision = take_revision(bytes)?;
        let (&flags, rest) = bytes.split_first()?;
        *bytes = rest;
        let is_tombstone = flags == FLAG_TOMBSTONE;
        let key = take_bytes_field(TAG_KEY, bytes)?;
        if flags & !FLAG_TOMBSTONE != 0 || is_tombstone && key.is_empty() {
            return None;
        }
        let mut record = Self { revision, key, value: &[], create_revision: 0, version: 0, lease: 0, is_tombstone };
        if !is_tombstone && !key.is_empty() {
            record.create_revision = take_field(TAG_CREATE_REVISION, bytes)?;
            let mod_revision = take_field(TAG_MOD_REVISION, bytes)?;
            record.version = take_field(TAG_VERSION, bytes)?;
            record.lease = take_field(TAG_LEASE, bytes)?;
            record.value = take_bytes_field(TAG_VALUE, bytes)?;
            if mod_revision != revision.main {
                return None;
            }
        }
        bytes.is_empty().then_some(record)
    }
}

/// Gathers records into the payload of one block.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    starts: Vec<u32>,
    records: Vec<u8>,
    last: Revision,
}

impl BlockBuilder {
    /// Payload bytes of a block without records.
    pub(crate) const HEADER_LEN: usize = 4;
    /// Payload bytes a record takes besides its own.
    pub(crate) const SLOT_LEN: usize = 4;

    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(crate) fn push(&mut self, record: &Record) {
        assert!(record.revision > self.last, "records arrive in revision order");
        self.starts.push(u32::try_from(self.records.len()).expect("a block is smaller than 4 GiB"));
        encode_record(record, &mut self.records);
        self.last = record.revision;
    }

    /// Appends the payload to `out` and starts over.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        assert!(!self.is_empty(), "a block holds at least one record");
        let count = self.starts.len();
        let base = u32::try_from(4 + 4 * count).expect("a block is smaller than 4 GiB");
        out.extend_from_slice(&u32::try_from(count).expect("counted in 32 bits").to_le_bytes());
        for start in self.starts.drain(..) {
            out.extend_from_slice(&(base + start).to_le_bytes());
        }
        out.append(&mut self.records);
        self.last = Revision::MIN;
    }
}

/// A decoded block: every record in it is known to be sound.
#[derive(Debug)]
pub(super) struct Block {
    payload: Bytes,
    records: Box<[(Revision, u32)]>,
}

impl Block {
    /// Checks all of `payload`; `None` if anything in it is not what a [`BlockBuilder`] writes.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let count = usize::try_from(word(payload, 0)?).ok()?;
        let base = count.checked_mul(4)?.checked_add(4)?;
        if count == 0 || base > payload.len() {
            return None;
        }
        let mut records = Vec::with_capacity(count);
        let mut expected = base;
        let mut last = Revision::MIN;
        for position in 0..count {
            let start = word(payload, 4 + 4 * position)?;
            let end = if position + 1 < count { word(payload, 8 + 4 * position)? as usize } else { payload.len() };
            if start as usize != expected {
                return None;
            }
            let record = RecordRef::decode(payload.get(start as usize..end)?)?;
            if record.revision <= last {
                return None;
            }
            last = record.revision;
            records.push((record.revision, start));
            expected = end;
        }
        Some(Self { payload: Bytes::copy_from_slice(payload), records: records.into() })
    }

    /// What it weighs in memory. **Units** bytes.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len() + self.records.len() * size_of::<(Revision, u32)>()
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// Position of the first record at or above `revision`; `len()` if there is none.
    pub(super) fn position(&self, revision: Revision) -> usize {
        self.records.partition_point(|(at, _)| *at < revision)
    }

    /// The record at `position`.
    pub(super) fn record(&self, position: usize) -> Record {
        let (revision, start) = self.records[position];
        let end = self.records.get(position + 1).map_or(self.payload.len(), |(_, start)| *start as usize);
        let record = RecordRef::decode(&self.payload[start as usize..end]).expect("decode checked every record");
        assert_eq!(record.revision, revision, "the slot array was read from the records");
        let (key, value) = self.detached(record.key, record.value);
        Record {
            key,
            value,
            create_revision: record.create_revision,
            revision,
            version: record.version,
            lease: record.lease,
            is_tombstone: record.is_tombstone,
        }
    }

    /// The `mvccpb.KeyValue` of the record at `position`, its fields in the order they are stored in.
    fn key_value(&self, position: usize) -> &[u8] {
        let start = self.records[position].1 as usize;
        let end = self.records.get(position + 1).map_or(self.payload.len(), |(_, start)| *start as usize);
        let record = &self.payload[start..end];
        // Behind two varints and the flags.
        let mut varint_ends = record.iter().enumerate().filter(|(_, byte)| **byte < 0x80).map(|(at, _)| at);
        let sub_end = varint_ends.nth(1).expect("decode checked every record");
        &record[sub_end + 2..]
    }

    /// A record's key and value, free of the block: an answer may hold a million records long after the cache let their
    /// blocks go, and a slice of a small record would hold its whole block. A record that fills its block shares it.
    fn detached(&self, key: &[u8], value: &[u8]) -> (Bytes, Bytes) {
        if (key.len() + value.len()) * 2 >= self.payload.len() {
            return (self.payload.slice_ref(key), self.payload.slice_ref(value));
        }
        let mut both = Bytes::from([key, value].concat());
        let key = both.split_to(key.len());
        (key, both)
    }
}

/// A record in the block that holds it, for who only passes it on.
#[derive(Clone, Debug)]
pub struct Stored {
    block: Arc<Block>,
    position: usize,
}

impl Stored {
    pub(super) fn find(block: Arc<Block>, revision: Revision) -> Option<Self> {
        let position = block.position(revision);
        let (found, _) = *block.records.get(position)?;
        (found == revision).then_some(Self { block, position })
    }

    /// The record, free of its block.
    pub fn record(&self) -> Record {
        self.block.record(self.position)
    }

    /// The record as an encoded `mvccpb.KeyValue`, of [`record_bytes`]' length less what stands before it; the lease, if any, comes before
    /// the value. Without a value, and with the key alone, for a tombstone.
    pub fn key_value(&self) -> &[u8] {
        self.block.key_value(self.position)
    }
}

/// What a [`BlockBuilder`] makes of the records of the block in `payload`; `None` if it is not one.
pub(crate) fn rewritten_block(payload: &[u8]) -> Option<Vec<u8>> {
    let block = Block::decode(payload)?;
    let mut builder = BlockBuilder::default();
    (0..block.len()).for_each(|position| builder.push(&block.record(position)));
    let mut out = Vec::new();
    builder.finish(&mut out);
    Some(out)
}

/// A block of an extent as the extent's index knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) first: Revision,
    pub(crate) offset: u32,
    pub(crate) len: u32,
}

/// Where the blocks of one extent lie, all in the segment of the index itself.
#[derive(Debug)]
pub(crate) struct Index {
    pub(crate) blocks: Box<[IndexEntry]>,
}

impl Index {
    /// Length of a block's entry.
    pub(crate) const ENTRY_LEN: usize = 24;

    pub(crate) fn encode(blocks: &[IndexEntry], out: &mut Vec<u8>) {
        assert!(blocks.is_sorted_by(|a, b| a.first < b.first), "blocks are in revision order");
        for block in blocks {
            out.extend_from_slice(&block.first.main.to_le_bytes());
            out.extend_from_slice(&block.first.sub.to_le_bytes());
            out.extend_from_slice(&block.offset.to_le_bytes());
            out.extend_from_slice(&block.len.to_le_bytes());
        }
    }

    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (entries, rest) = payload.as_chunks::<{ Self::ENTRY_LEN }>();
        let blocks: Box<[IndexEntry]> = entries
            .iter()
            .map(|entry| IndexEntry {
                first: revision(entry),
                offset: u32::from_le_bytes([entry[16], entry[17], entry[18], entry[19]]),
                len: u32::from_le_bytes([entry[20], entry[21], entry[22], entry[23]]),
            })
            .collect();
        let is_sound = rest.is_empty()
            && !blocks.is_empty()
            && blocks[0].first > Revision::MIN
            && blocks.is_sorted_by(|a, b| a.first < b.first)
            && blocks.iter().all(|block| block.offset.checked_add(block.len).is_some());
        is_sound.then_some(Self { blocks })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.blocks.len() * size_of::<IndexEntry>()
    }

    /// Position of the block that holds `revision` if any does.
    pub(crate) fn position(&self, revision: Revision) -> usize {
        self.blocks.partition_point(|block| block.first <= revision).saturating_sub(1)
    }
}

/// The revision in the first 16 bytes of `bytes`.
pub(super) fn revision(bytes: &[u8]) -> Revision {
    let half = |at: usize| i64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
    Revision { main: half(0), sub: half(8) }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn records() -> Vec<Record> {
        let key = Bytes::from_static(b"\x00key\xff");
        let put = |main, sub, value: Bytes, lease| Record {
            key: key.clone(),
            value,
            create_revision: 2,
            revision: Revision { main, sub },
            version: main - 1,
            lease,
            is_tombstone: false,
        };
        let tombstone = Record {
            key: key.clone(),
            value: Bytes::new(),
            create_revision: 0,
            revision: Revision { main: i64::MAX, sub: 70_000 },
            version: 0,
            lease: 0,
            is_tombstone: true,
        };
        let gap = Record {
            key: Bytes::new(),
            revision: Revision { main: 1 << 41, sub: 0 },
            is_tombstone: false,
            ..tombstone.clone()
        };
        vec![
            put(2, 0, Bytes::new(), 0),
            put(2, 1, Bytes::from(vec![7; 300]), i64::MIN),
            put(1 << 40, 0, Bytes::from_static(b"v"), i64::MAX),
            gap,
            tombstone,
        ]
    }

    #[test]
    fn records_come_back_from_a_block_as_they_went_in() {
        let mut builder = BlockBuilder::default();
        records().iter().for_each(|record| builder.push(record));
        let mut payload = Vec::new();
        builder.finish(&mut payload);
        let told: usize = records().iter().map(|record| record_bytes(record) + BlockBuilder::SLOT_LEN).sum();
        assert_eq!(payload.len(), BlockBuilder::HEADER_LEN + told);
        let block = Block::decode(&payload).unwrap();
        for (position, record) in records().iter().enumerate() {
            assert_eq!(&block.record(position), record);
            assert_eq!(block.position(record.revision), position);
        }
        assert_eq!(block.position(Revision::MAX), block.len());
    }

    #[test]
    fn mutated_blocks_never_panic_and_cut_ones_are_refused() {
        let mut builder = BlockBuilder::default();
        records().iter().for_each(|record| builder.push(record));
        let mut payload = Vec::new();
        builder.finish(&mut payload);
        for len in 0..payload.len() {
            assert!(Block::decode(&payload[..len]).is_none(), "cut at {len}");
        }
        for at in 0..payload.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut mutated = payload.clone();
                mutated[at] = byte;
                if let Some(block) = Block::decode(&mutated) {
                    (0..block.len()).for_each(|position| drop(block.record(position)));
                }
            }
        }
    }

    #[test]
    fn varints_have_one_form() {
        for value in [0, 1, 127, 128, 16_383, 16_384, u64::from(u32::MAX), u64::MAX] {
            let mut bytes = Vec::new();
            put_varint(value, &mut bytes);
            assert_eq!(bytes.len(), varint_bytes(value));
            assert_eq!(take_varint(&mut bytes.as_slice()), Some(value));
        }
        for refused in [&[0x80, 0][..], &[0xff; 10], &[0x80], &[]] {
            assert_eq!(take_varint(&mut &*refused), None);
        }
    }
}
