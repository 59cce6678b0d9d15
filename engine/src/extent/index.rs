//! The index of an extent: where its blocks lie, and the keys between them.
//!
//! Invariants:
//! - Blocks lie one directly after the other, and the index directly after them. So lengths alone say where each is.
//! - Fences ascend strictly in the order of tree entries ([`order`]). The records of earlier blocks come before a
//!   block's fence, and its own records do not. The first fence comes before everything. For another fence, if the keys
//!   on both sides differ, it is the shortest key between them.
//! - Everything is checked when an index is decoded; decoding never panics, whatever the bytes are.

use bytes::Bytes;

use super::block::{order, put_slots, slot, slot_count};
use crate::{Place, Record, Revision, prefix::common_prefix_len, varint};

/// Gathers the payload of an index.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    starts: Vec<u32>,
    entries: Vec<u8>,
}

impl IndexBuilder {
    /// Adds a block that begins with the record `first`. The block before it ends with `before`. Its envelope is `len`
    /// long.
    pub(crate) fn push(&mut self, before: Option<&Record>, first: &Record, len: u32) {
        assert_eq!(before.is_none(), self.starts.is_empty(), "the first block has none before it");
        let (key, revision) = before.map_or((&[][..], Revision::MAX), |before| fence(before, first));
        self.push_entry(len, key, revision);
    }

    fn push_entry(&mut self, len: u32, key: &[u8], revision: Revision) {
        let start = u32::try_from(self.entries.len()).expect("an index is smaller than 4 GiB");
        self.starts.push(start);
        self.entries.extend_from_slice(&len.to_le_bytes());
        let Revision { main, sub } = if revision == Revision::MAX { Revision { main: 0, sub: 0 } } else { revision };
        varint::write(&mut self.entries, main.cast_unsigned());
        varint::write(&mut self.entries, sub.cast_unsigned());
        self.entries.extend_from_slice(key);
    }

    /// Length of the payload. **Units** bytes.
    pub(crate) fn len(&self) -> usize {
        4 + 4 * self.starts.len() + self.entries.len()
    }

    /// Appends the payload to `out`.
    pub(crate) fn finish(self, out: &mut Vec<u8>) {
        put_slots(self.starts.into_iter(), out);
        out.extend_from_slice(&self.entries);
    }
}

/// The fence: it is after `before`, and not after `first`.
fn fence<'a>(before: &Record, first: &'a Record) -> (&'a [u8], Revision) {
    if before.key == first.key {
        return (&first.key, first.revision);
    }
    let shared = common_prefix_len(&before.key, &first.key);
    (&first.key[..=shared], Revision::MAX)
}

/// Where the blocks of one extent lie.
#[derive(Debug)]
pub(crate) struct Index {
    payload: Bytes,
    /// The end of each block, counted from the beginning of the extent.
    ends: Box<[u32]>,
}

/// Length of a block's envelope, and its fence.
fn entry(mut stored: &[u8]) -> Option<(u32, &[u8], Revision)> {
    let bytes = &mut stored;
    let (len, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    let main = i64::try_from(varint::take(bytes)?).ok()?;
    let sub = i64::try_from(varint::take(bytes)?).ok()?;
    let revision = if main == 0 { Revision::MAX } else { Revision { main, sub } };
    (main > 0 || sub == 0).then_some((u32::from_le_bytes(*len), bytes, revision))
}

impl Index {
    /// Checks all of `payload`; `None` if anything in it is not as an [`IndexBuilder`] writes it.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let count = slot_count(payload)?;
        let mut ends = Vec::with_capacity(count);
        let mut end = 0_u32;
        let mut last: Option<(&[u8], Revision)> = None;
        for position in 0..count {
            let (len, key, revision) = entry(slot(payload, count, position))?;
            let is_sound = match last {
                None => key.is_empty() && revision == Revision::MAX,
                Some(last) => order(last, (key, revision)).is_lt(),
            };
            if !is_sound || len == 0 {
                return None;
            }
            end = end.checked_add(len)?;
            ends.push(end);
            last = Some((key, revision));
        }
        Some(Self { payload: Bytes::copy_from_slice(payload), ends: ends.into() })
    }

    /// Number of blocks.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Length of all blocks. **Units** bytes.
    pub(crate) fn blocks_len(&self) -> u32 {
        *self.ends.last().expect("there is a block")
    }

    /// The beginning and end of a block, counted from the beginning of the extent.
    pub(crate) fn span(&self, position: usize) -> std::ops::Range<u32> {
        let start = position.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[position]
    }

    /// The place of a block, if the index lies at `index`; `None` if that is impossible.
    pub(crate) fn place(&self, index: Place, position: usize) -> Option<Place> {
        let start = index.offset.checked_sub(self.blocks_len())?;
        let span = self.span(position);
        Some(Place { segment: index.segment, offset: start + span.start, len: span.end - span.start })
    }

    /// Memory that it takes. **Units** bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.payload.len() + size_of_val(&*self.ends)
    }

    /// Position of the block that holds the version of `key` at `revision`, if any block does.
    pub(crate) fn position(&self, key: &[u8], revision: Revision) -> usize {
        let (mut low, mut high) = (1, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            let (_, fence, at) = self.entry(middle);
            if order((fence, at), (key, revision)).is_le() {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low - 1
    }

    /// The fence of a block.
    pub(crate) fn fence(&self, position: usize) -> (&[u8], Revision) {
        let (_, key, revision) = self.entry(position);
        (key, revision)
    }

    fn entry(&self, position: usize) -> (u32, &[u8], Revision) {
        entry(slot(&self.payload, self.ends.len(), position)).expect("decode checked every entry")
    }
}

/// The index that an [`IndexBuilder`] makes of the entries in `payload`; `None` if `payload` is not an index.
pub(crate) fn rewritten_index(payload: &[u8]) -> Option<Vec<u8>> {
    let index = Index::decode(payload)?;
    let mut builder = IndexBuilder::default();
    for position in 0..index.len() {
        let (len, key, revision) = index.entry(position);
        assert_eq!(index.position(key, revision), position, "a fence begins its block");
        builder.push_entry(len, key, revision);
    }
    let mut out = Vec::new();
    builder.finish(&mut out);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &'static str, main: i64) -> Record {
        let revision = Revision::new(main, 0);
        let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::new());
        Record { key, value, create_revision: 1, revision, version: 1, lease: 0, is_tombstone: false }
    }

    /// The last record of a block and the first of the next.
    fn index() -> Vec<u8> {
        let mut builder = IndexBuilder::default();
        builder.push(None, &record("b", 7), 100);
        builder.push(Some(&record("black", 7)), &record("blue", 3), 200);
        builder.push(Some(&record("blue", 3)), &record("blue", 2), 300);
        builder.push(Some(&record("blue", 2)), &record("blueish", 9), 400);
        let mut out = Vec::new();
        let len = builder.len();
        builder.finish(&mut out);
        assert_eq!(out.len(), len, "the size told before is the size written");
        out
    }

    #[test]
    fn every_version_finds_its_block() {
        let index = Index::decode(&index()).unwrap();
        let at = |key: &str, main: i64| index.position(key.as_bytes(), Revision::new(main, 0));
        assert_eq!([at("", 1), at("a", 1), at("b", 7), at("bl", 1), at("black", 7)], [0; 5]);
        assert_eq!([at("blu", 1), at("blue", 9), at("blue", 3)], [1; 3]);
        assert_eq!([at("blue", 2), at("blue", 1)], [2; 2]);
        assert_eq!([at("bluei", 1), at("blueish", 9), at("c", 1)], [3; 3]);
        let place = |position: usize, offset| index.place(Place { segment: 5, offset, len: 80 }, position);
        assert_eq!(place(1, 1500), Some(Place { segment: 5, offset: 600, len: 200 }));
        assert_eq!(place(3, 1000), Some(Place { segment: 5, offset: 600, len: 400 }));
        assert_eq!(place(0, 999), None);
    }

    #[test]
    fn mutated_indexes_never_panic_and_what_is_taken_has_one_form() {
        let payload = index();
        assert_eq!(rewritten_index(&payload), Some(payload.clone()));
        for at in 0..payload.len() {
            for byte in [0, 1, 0x7f, 0x80, 0xff] {
                let mut mutated = payload.clone();
                mutated[at] = byte;
                assert!(rewritten_index(&mutated).is_none_or(|written| written == mutated), "byte {at}");
            }
        }
    }
}
