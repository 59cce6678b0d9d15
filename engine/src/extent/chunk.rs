//! An extent as the directory knows it, and the runs of extents in which the directory is written.
//!
//! Invariants:
//! - `Extent::live_records` is the number of its records that are in the key tree of the same state.
//! - `Extent::live_bytes` is at least 1 while `live_records` is. So an extent's space is given up only with its last
//!   record.
//! - An extent lies in one segment, the segment of its index.
//! - The extents of a chunk ascend and do not overlap. A chunk is written once (`place`).
//! - A *lost* chunk stands for one that could not be read at the start. It knows its place and the revisions between
//!   its neighbours, and has no extents. It is never written again, so that what it holds can still be found.
//! - Decoding never panics, whatever the bytes are.

use std::sync::{Arc, OnceLock};

use super::block::revision;
use crate::{Place, Revision};

/// Extents in a chunk, at most.
pub(super) const CHUNK_EXTENTS_MAX: usize = 128;

/// One extent as the directory knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Revision of its first record.
    pub(crate) first: Revision,
    /// Revision of its last record.
    pub(crate) last: Revision,
    /// The place of its index.
    pub(crate) index: Place,
    /// Records in it.
    pub(crate) records: u32,
    /// Records that no sweep has dropped.
    pub(crate) live_records: u32,
    /// Length of its blocks and its index.
    pub(crate) bytes: u32,
    /// The part of `bytes` that is still wanted. The envelopes count until the last record is dropped.
    pub(crate) live_bytes: u32,
}

pub(super) const EXTENT_LEN: usize = 16 + 16 + Place::ENCODED_LEN + 4 * 4;

impl Extent {
    fn encode(&self, out: &mut Vec<u8>) {
        for revision in [self.first, self.last] {
            out.extend_from_slice(&revision.main.to_le_bytes());
            out.extend_from_slice(&revision.sub.to_le_bytes());
        }
        out.extend_from_slice(&self.index.to_bytes());
        for word in [self.records, self.live_records, self.bytes, self.live_bytes] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    fn decode(bytes: &[u8; EXTENT_LEN]) -> Option<Self> {
        let (revisions, rest) = bytes.split_at(32);
        let (index, words) = rest.split_first_chunk::<{ Place::ENCODED_LEN }>()?;
        let word = |at: usize| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
        let extent = Self {
            first: revision(revisions),
            last: revision(&revisions[16..]),
            index: Place::from_bytes(*index)?,
            records: word(0),
            live_records: word(4),
            bytes: word(8),
            live_bytes: word(12),
        };
        let is_sound = extent.first.main > 0
            && extent.first <= extent.last
            && extent.last.sub < i64::MAX
            && (1..=extent.records).contains(&extent.live_records)
            && (1..=extent.bytes).contains(&extent.live_bytes)
            && extent.index.len < extent.bytes
            && extent.bytes <= extent.index.end();
        is_sound.then_some(extent)
    }
}

/// A run of the directory. The directory is written in these units.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(super) extents: Vec<Extent>,
    place: OnceLock<Place>,
    /// The first and the last revision that it may hold, if it is lost.
    lost: Option<(Revision, Revision)>,
}

impl Chunk {
    pub(super) fn new(extents: Vec<Extent>) -> Arc<Self> {
        assert!((1..=CHUNK_EXTENTS_MAX).contains(&extents.len()));
        assert!(extents.is_sorted_by(|a, b| a.last < b.first), "extents do not overlap");
        Arc::new(Self { extents, place: OnceLock::new(), lost: None })
    }

    /// A chunk at `place` that cannot be read. Its neighbours leave it the revisions from `first` to `last`.
    pub(crate) fn lost(place: Place, first: Revision, last: Revision) -> Arc<Self> {
        assert!(first <= last, "a chunk has revisions");
        Arc::new(Self { extents: Vec::new(), place: OnceLock::from(place), lost: Some((first, last)) })
    }

    pub(crate) fn extents(&self) -> &[Extent] {
        &self.extents
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// The place on disk, once it was written.
    pub(crate) fn place(&self) -> Option<Place> {
        self.place.get().copied()
    }

    pub(crate) fn set_place(&self, place: Place) {
        assert!(self.place.set(place).is_ok(), "a chunk is written once");
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.extents.iter().for_each(|extent| extent.encode(out));
    }

    /// The chunk at `place`; `None` if the payload is not one.
    pub(crate) fn decode(place: Place, payload: &[u8]) -> Option<Arc<Self>> {
        let (extents, rest) = payload.as_chunks::<EXTENT_LEN>();
        let extents: Vec<Extent> = extents.iter().map(Extent::decode).collect::<Option<_>>()?;
        let is_sound = rest.is_empty()
            && (1..=CHUNK_EXTENTS_MAX).contains(&extents.len())
            && extents.is_sorted_by(|a, b| a.last < b.first);
        is_sound.then(|| Arc::new(Self { extents, place: OnceLock::from(place), lost: None }))
    }

    pub(crate) fn first(&self) -> Revision {
        self.lost.map_or_else(|| self.extents[0].first, |(first, _)| first)
    }

    pub(crate) fn last(&self) -> Revision {
        self.lost.map_or_else(|| self.extents[self.extents.len() - 1].last, |(_, last)| last)
    }

    /// Whether `more` extents can go into one chunk with these, if both together are at most `extents_max`.
    pub(super) fn takes(&self, more: usize, extents_max: usize) -> bool {
        !self.is_lost() && self.extents.len() + more <= extents_max
    }
}
