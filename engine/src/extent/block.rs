//! The bytes of a record, and of a block of records.
//!
//! Invariants:
//! - A record is `main, sub` (varints), `flags`, then an `mvccpb.KeyValue` with its fields in the order 1, 2, 3, 4, 6,
//!   5. The value comes last, so that everything before it is a prefix. Zero fields are omitted. A tombstone has only
//!   the key, a gap has nothing.
//! - The records of a block are strictly in the order of tree entries ([`order`]).
//! - Everything is checked when a block is decoded, down to the last field of the last record. So reading a record from
//!   a decoded block cannot fail. Decoding never panics, whatever the bytes are.
//!
//! It knows no files and no checksums (`page`), and not which extents there are (`directory`).

use std::cmp::Ordering;

use bytes::Bytes;

use crate::{
    Record, Revision,
    key_value::{
        TAG_CREATE_REVISION, TAG_KEY, TAG_LEASE, TAG_MOD_REVISION, TAG_VALUE, TAG_VERSION, put_number, put_slice,
    },
    varint,
};

/// Flag of a record that ends its key's generation.
const FLAG_TOMBSTONE: u8 = 1;

/// The order of records in an extent: by key, and for one key the newest first.
#[inline]
pub(super) fn order(a: (&[u8], Revision), b: (&[u8], Revision)) -> Ordering {
    a.0.cmp(b.0).then_with(|| b.1.cmp(&a.1))
}

/// Appends the stored form of `record`.
fn encode_record(record: &Record, out: &mut Vec<u8>) {
    let before = out.len();
    assert!(record.revision.main > 0 && record.revision.sub >= 0, "a stored record has a revision");
    varint::write(out, record.revision.main.cast_unsigned());
    varint::write(out, record.revision.sub.cast_unsigned());
    out.push(if record.is_tombstone { FLAG_TOMBSTONE } else { 0 });
    put_slice(TAG_KEY, &record.key, out);
    if record.is_tombstone || record.is_gap() {
        assert!(record.value.is_empty() && record.version == 0, "a tombstone holds its key only, a gap nothing");
    } else {
        put_number(TAG_CREATE_REVISION, record.create_revision, out);
        put_number(TAG_MOD_REVISION, record.revision.main, out);
        put_number(TAG_VERSION, record.version, out);
        put_number(TAG_LEASE, record.lease, out);
        put_slice(TAG_VALUE, &record.value, out);
    }
    assert_eq!(out.len() - before, record_bytes(record), "the size told before is the size written");
}

/// Length of the stored form of `record`. **Units** bytes.
pub(crate) fn record_bytes(record: &Record) -> usize {
    let Revision { main, sub } = record.revision;
    let before = varint::len(main.cast_unsigned()) + varint::len(sub.cast_unsigned()) + 1;
    before + record.stored_len() as usize
}

fn take_revision(bytes: &mut &[u8]) -> Option<Revision> {
    let main = i64::try_from(varint::take(bytes)?).ok()?;
    let sub = i64::try_from(varint::take(bytes)?).ok()?;
    (main > 0 && sub < i64::MAX).then_some(Revision { main, sub })
}

/// Reads a field. An absent field is zero; a present one is never zero.
fn take_field(tag: u8, bytes: &mut &[u8]) -> Option<i64> {
    if bytes.first() != Some(&tag) {
        return Some(0);
    }
    *bytes = &bytes[1..];
    varint::take(bytes).filter(|value| *value != 0).map(u64::cast_signed)
}

fn take_bytes_field<'a>(tag: u8, bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    if bytes.first() != Some(&tag) {
        return Some(&[]);
    }
    *bytes = &bytes[1..];
    let len = usize::try_from(varint::take(bytes)?).ok().filter(|len| *len != 0)?;
    let (value, rest) = bytes.split_at_checked(len)?;
    *bytes = rest;
    Some(value)
}

/// A record whose slices point into the block they were read from.
pub(super) struct RecordRef<'a> {
    pub(super) revision: Revision,
    key: &'a [u8],
    value: &'a [u8],
    create_revision: i64,
    version: i64,
    lease: i64,
    is_tombstone: bool,
}

impl<'a> RecordRef<'a> {
    /// Reads one record that fills `bytes` exactly.
    pub(super) fn decode(mut bytes: &'a [u8]) -> Option<Self> {
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
            let is_sound = (1..=revision.main).contains(&record.create_revision) && record.version > 0;
            if mod_revision != revision.main || !is_sound {
                return None;
            }
        }
        bytes.is_empty().then_some(record)
    }
}

/// The position of a record among others: its key and revision, read from the front of its stored form.
pub(super) fn position_of(mut stored: &[u8]) -> (&[u8], Revision) {
    let bytes = &mut stored;
    let revision = take_revision(bytes).expect("decode checked every record");
    *bytes = &bytes[1..];
    (take_bytes_field(TAG_KEY, bytes).expect("decode checked every record"), revision)
}

/// Gathers records into the payload of one block.
#[derive(Debug, Default)]
pub(crate) struct BlockBuilder {
    starts: Vec<u32>,
    records: Vec<u8>,
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
        let last = self.starts.last().map(|start| position_of(&self.records[*start as usize..]));
        let is_behind = last.is_none_or(|last| order(last, (&record.key, record.revision)).is_lt());
        assert!(is_behind, "records arrive in the order of tree entries");
        self.starts.push(u32::try_from(self.records.len()).expect("a block is smaller than 4 GiB"));
        encode_record(record, &mut self.records);
    }

    /// Appends the payload to `out` and starts over.
    pub(crate) fn finish(&mut self, out: &mut Vec<u8>) {
        assert!(!self.is_empty(), "a block holds at least one record");
        put_slots(self.starts.drain(..), out);
        out.append(&mut self.records);
    }
}

/// Appends the number of items, and where each begins in the payload. `starts` counts from the end of these slots.
pub(super) fn put_slots(starts: impl ExactSizeIterator<Item = u32>, out: &mut Vec<u8>) {
    let base = u32::try_from(4 + 4 * starts.len()).expect("a payload is smaller than 4 GiB");
    out.extend_from_slice(&u32::try_from(starts.len()).expect("counted in 32 bits").to_le_bytes());
    starts.for_each(|start| out.extend_from_slice(&(base + start).to_le_bytes()));
}

/// The number of items in `payload`. `None` unless there is at least one, the first begins directly after the slots,
/// and each ends where the next begins.
pub(super) fn slot_count(payload: &[u8]) -> Option<usize> {
    let count = usize::try_from(word(payload, 0)?).ok()?;
    let base = count.checked_mul(4)?.checked_add(4)?;
    if count == 0 || base > payload.len() {
        return None;
    }
    let starts = payload[4..base].as_chunks::<4>().0;
    let mut starts = starts.iter().map(|start| u32::from_le_bytes(*start) as usize);
    let is_sound = starts.next() == Some(base) && {
        let mut before = base;
        starts.all(|start| std::mem::replace(&mut before, start) <= start && start <= payload.len())
    };
    is_sound.then_some(count)
}

/// The item at `position` of a payload of `count` items that [`slot_count`] has checked.
pub(super) fn slot(payload: &[u8], count: usize, position: usize) -> &[u8] {
    assert!(position < count, "an item that is there");
    let start = |position: usize| word(payload, 4 + 4 * position).expect("within the slots") as usize;
    let end = if position + 1 < count { start(position + 1) } else { payload.len() };
    &payload[start(position)..end]
}

/// A decoded block. Every record in it is known to be sound.
#[derive(Debug)]
pub(super) struct Block {
    payload: Bytes,
    count: usize,
}

impl Block {
    /// Checks all of `payload`; `None` if anything in it is not as a [`BlockBuilder`] writes it.
    pub(super) fn decode(payload: &[u8]) -> Option<Self> {
        let count = Self::check(payload)?;
        Some(Self { payload: Bytes::copy_from_slice(payload), count })
    }

    /// The number of records in `payload`; `None` if anything in it is not as a [`BlockBuilder`] writes it.
    pub(super) fn check(payload: &[u8]) -> Option<usize> {
        let count = slot_count(payload)?;
        let mut last: Option<(&[u8], Revision)> = None;
        for position in 0..count {
            let record = RecordRef::decode(slot(payload, count, position))?;
            let this = (record.key, record.revision);
            if last.is_some_and(|last| order(last, this).is_ge()) {
                return None;
            }
            last = Some(this);
        }
        Some(count)
    }

    /// Memory that it takes. **Units** bytes.
    pub(super) fn bytes(&self) -> usize {
        self.payload.len()
    }

    pub(super) fn len(&self) -> usize {
        self.count
    }

    fn stored(&self, position: usize) -> &[u8] {
        slot(&self.payload, self.count, position)
    }

    /// Position of the record of `revision`, if it comes soon after `position`. The records between them are mostly
    /// versions that are no longer wanted. No two records have the same revision, so the key need not be read.
    pub(super) fn behind(&self, position: usize, revision: Revision) -> Option<usize> {
        let wanted = self.count.min(position + 1 + NEIGHBOURS);
        (position + 1..wanted).find(|position| {
            let start = word(&self.payload, 4 + 4 * position).expect("within the slots") as usize;
            take_revision(&mut &self.payload[start..]).expect("decode checked every record") == revision
        })
    }

    /// Position of the version of `key` at `revision`, if it is here.
    pub(super) fn find(&self, key: &[u8], revision: Revision) -> Option<usize> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low.midpoint(high);
            match order(position_of(self.stored(middle)), (key, revision)) {
                Ordering::Less => low = middle + 1,
                Ordering::Equal => return Some(middle),
                Ordering::Greater => high = middle,
            }
        }
        None
    }

    /// The record at `position`.
    pub(super) fn record(&self, position: usize) -> Record {
        record_in(&self.payload, self.stored(position))
    }

    /// The `mvccpb.KeyValue` of the record at `position`, with its fields in the stored order.
    fn key_value(&self, position: usize) -> &[u8] {
        let record = self.stored(position);
        // It begins after two varints and the flags.
        let mut varint_ends = record.iter().enumerate().filter(|(_, byte)| **byte < 0x80).map(|(at, _)| at);
        let sub_end = varint_ends.nth(1).expect("decode checked every record");
        &record[sub_end + 2..]
    }
}

/// The record with the stored form `stored`, a slice of `holder` that was checked.
pub(super) fn record_in(holder: &Bytes, stored: &[u8]) -> Record {
    let record = RecordRef::decode(stored).expect("every record was checked");
    let (key, value) = detached(holder, record.key, record.value);
    Record {
        key,
        value,
        create_revision: record.create_revision,
        revision: record.revision,
        version: record.version,
        lease: record.lease,
        is_tombstone: record.is_tombstone,
    }
}

/// Copies a record's key and value out of their holder. An answer may hold a million records long after the cache has
/// dropped their blocks, and a slice of a small record would keep its whole block in memory. A record that fills most
/// of its holder shares it.
fn detached(holder: &Bytes, key: &[u8], value: &[u8]) -> (Bytes, Bytes) {
    if (key.len() + value.len()) * 2 >= holder.len() {
        return (holder.slice_ref(key), holder.slice_ref(value));
    }
    let mut both = Bytes::from([key, value].concat());
    let key = both.split_to(key.len());
    (key, both)
}

/// Records that are looked at one by one.
const NEIGHBOURS: usize = 4;

/// A record in the block that holds it, for readers that only pass it on.
#[derive(Clone, Copy, Debug)]
pub struct Stored<'a> {
    block: &'a Block,
    position: usize,
}

impl<'a> Stored<'a> {
    /// The record at `position` of `block`.
    pub(super) fn new(block: &'a Block, position: usize) -> Self {
        Self { block, position }
    }

    /// The record, free of its block.
    pub fn record(&self) -> Record {
        self.block.record(self.position)
    }

    /// The record as an encoded `mvccpb.KeyValue` in its stored form: the lease, if there is one, comes before the
    /// value. A tombstone has only its key.
    pub fn key_value(&self) -> &'a [u8] {
        self.block.key_value(self.position)
    }
}

/// The records of the block in `payload`; `None` if it is not one.
pub(crate) fn decoded_block(payload: &[u8]) -> Option<Vec<Record>> {
    let block = Block::decode(payload)?;
    Some((0..block.len()).map(|position| block.record(position)).collect())
}

/// The block that a [`BlockBuilder`] makes of the records in `payload`; `None` if `payload` is not a block.
pub(crate) fn rewritten_block(payload: &[u8]) -> Option<Vec<u8>> {
    let block = Block::decode(payload)?;
    let mut builder = BlockBuilder::default();
    (0..block.len()).for_each(|position| builder.push(&block.record(position)));
    let mut out = Vec::new();
    builder.finish(&mut out);
    Some(out)
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
            gap,
            tombstone,
            put(1 << 40, 0, Bytes::from_static(b"v"), i64::MAX),
            put(2, 1, Bytes::from(vec![7; 300]), i64::MIN),
            put(2, 0, Bytes::new(), 0),
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
            assert_eq!(block.find(&record.key, record.revision), Some(position));
        }
        assert_eq!(block.find(b"\x00key\xff", Revision::MAX), None);
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
}
