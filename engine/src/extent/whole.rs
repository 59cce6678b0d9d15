//! One extent, read as a whole, with its records in revision order. It is for readers in revision order, and for moving
//! an extent.
//!
//! Invariants: everything was checked when it was decoded: index, envelopes and records. `records` has as many records
//! as the directory counts, in strictly ascending revision order, from the extent's first to its last.

use bytes::Bytes;

use super::{
    block::{Block, RecordRef, position_of, record_in, slot},
    chunk::Extent,
    index::Index,
};
use crate::{
    Error, Place, Record, Revision,
    page::{self, Kind, corrupt},
};

/// All of one extent.
#[derive(Debug)]
pub(crate) struct Whole {
    bytes: Bytes,
    /// The revision of each record, and its beginning and end in `bytes`.
    records: Box<[(Revision, u32, u32)]>,
}

impl Whole {
    /// The place of the extent, index included.
    pub(super) fn place(extent: &Extent) -> Place {
        let offset = extent.index.end().checked_sub(extent.bytes).expect("the extent was checked");
        Place { segment: extent.index.segment, offset, len: extent.bytes }
    }

    /// Checks all bytes of the extent.
    ///
    /// **Errors** `Corrupt`.
    pub(super) fn decode(extent: &Extent, bytes: &[u8]) -> Result<Self, Error> {
        let malformed = || corrupt(extent.index, "malformed extent");
        let whole = Self::place(extent);
        if bytes.len() != whole.len as usize {
            return Err(malformed());
        }
        let blocks_len = extent.bytes - extent.index.len;
        let index = page::open(Kind::ExtentIndex, extent.index, &bytes[blocks_len as usize..])?;
        let index = Index::decode(index).filter(|index| index.blocks_len() == blocks_len).ok_or_else(malformed)?;
        let mut records = Vec::with_capacity(extent.records.min(extent.bytes) as usize);
        for position in 0..index.len() {
            let span = index.span(position);
            let place = index.place(extent.index, position).expect("the extent lies inside its segment");
            let payload = page::open(Kind::Block, place, &bytes[span.start as usize..span.end as usize])?;
            let count = Block::check(payload).ok_or_else(|| corrupt(place, "malformed records"))?;
            for position in 0..count {
                let stored = slot(payload, count, position);
                let revision = RecordRef::decode(stored).expect("checked just now").revision;
                // Payload and record end at the same byte of `bytes`.
                let start = stored.as_ptr().addr() - bytes.as_ptr().addr();
                let start = u32::try_from(start).expect("an extent is smaller than 4 GiB");
                let len = u32::try_from(stored.len()).expect("an extent is smaller than 4 GiB");
                records.push((revision, start, start + len));
            }
        }
        records.sort_unstable_by_key(|(revision, ..)| *revision);
        let is_sound = records.len() == extent.records as usize
            && records.is_sorted_by(|a, b| a.0 < b.0)
            && records.first().is_some_and(|first| first.0 == extent.first)
            && records.last().is_some_and(|last| last.0 == extent.last);
        if !is_sound {
            return Err(malformed());
        }
        Ok(Self { bytes: Bytes::copy_from_slice(bytes), records: records.into() })
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    /// Position of the first record at or above `revision`; `len()` if there is none.
    pub(super) fn position(&self, revision: Revision) -> usize {
        self.records.partition_point(|(at, ..)| *at < revision)
    }

    /// Key and revision of the record at `position`.
    pub(crate) fn version(&self, position: usize) -> (&[u8], Revision) {
        let (_, start, end) = self.records[position];
        position_of(&self.bytes[start as usize..end as usize])
    }

    /// All positions in the stored order of the records: by key.
    pub(crate) fn by_key(&self) -> Vec<usize> {
        let mut positions: Vec<usize> = (0..self.len()).collect();
        positions.sort_unstable_by_key(|position| self.records[*position].1);
        positions
    }

    /// The record at `position`. Positions are in revision order.
    pub(crate) fn record(&self, position: usize) -> Record {
        let (revision, start, end) = self.records[position];
        let record = record_in(&self.bytes, &self.bytes[start as usize..end as usize]);
        assert_eq!(record.revision, revision, "read from the record");
        record
    }
}
