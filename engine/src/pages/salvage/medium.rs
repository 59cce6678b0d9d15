//! Reads of extents that go on behind damage, and the search for extents of which nothing tells.
//!
//! Invariants:
//! - What is given back passed its checksum, and was checked as a reader checks it. So a piece of another file is never
//!   taken.
//! - The records of a piece are in revision order. Two pieces have no revision in common.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{bounds::Span, loss::sound};
use crate::{
    Error, Place, Record, Revision,
    disk::{BLOCK, Buffer, Disk, OpenKind},
    extent::{Directory, Extent, Index, decoded_block},
    page::{self, HEADER_LEN, Kind, PAGES_DIR},
    pages::{reader::read_table, space::segment_files},
    tree::Separator,
};

/// Some records of the store.
#[derive(Clone, Debug)]
pub(super) enum Piece {
    /// An extent that the directory names.
    Extent(Extent),
    /// A part of the directory that is lost: the revisions that it may hold, and what was found of them.
    Hole { first: Revision, last: Revision, found: Arc<BTreeMap<Revision, Record>> },
}

impl Piece {
    /// Whether the key tree names each of its records.
    pub(super) fn is_all_live(&self) -> bool {
        matches!(self, Self::Extent(extent) if extent.live_records == extent.records)
    }

    /// How many of its records the key tree names, if that is known.
    pub(super) fn live_records(&self) -> Option<usize> {
        match self {
            Self::Extent(extent) => Some(extent.live_records as usize),
            Self::Hole { .. } => None,
        }
    }

    /// The first and the last revision that it may hold.
    pub(super) fn revisions(&self) -> (Revision, Revision) {
        match self {
            Self::Extent(extent) => (extent.first, extent.last),
            Self::Hole { first, last, .. } => (*first, *last),
        }
    }
}

/// What could be read of a piece.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) records: Vec<Record>,
    /// Where records of it may be missing.
    pub(super) lost: Vec<Span>,
}

/// The files of a store.
pub(super) struct Medium {
    dir: PathBuf,
}

impl Medium {
    pub(super) fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf() }
    }

    /// The pieces of the store, in revision order.
    pub(super) fn pieces(&self, disk: &mut dyn Disk, directory: &Directory) -> Result<Vec<Piece>, Error> {
        let holes: Vec<(Revision, Revision)> = (directory.chunks().iter())
            .filter(|chunk| chunk.is_lost())
            .map(|chunk| (chunk.first(), chunk.last()))
            .collect();
        let mut found: Vec<BTreeMap<Revision, Record>> = vec![BTreeMap::new(); holes.len()];
        if !holes.is_empty() {
            self.search(disk, &holes, &mut found)?;
        }
        let mut found = found.into_iter();
        let mut pieces = Vec::new();
        for chunk in directory.chunks() {
            if chunk.is_lost() {
                let found = Arc::new(found.next().expect("one for each hole"));
                pieces.push(Piece::Hole { first: chunk.first(), last: chunk.last(), found });
            }
            pieces.extend(chunk.extents().iter().map(|extent| Piece::Extent(*extent)));
        }
        Ok(pieces)
    }

    /// Reads a piece, as far as it can be read.
    ///
    /// **Errors** those of the medium that are no damage.
    pub(super) fn read(&self, disk: &mut dyn Disk, piece: &Piece) -> Result<Read, Error> {
        match piece {
            Piece::Hole { found, .. } => {
                Ok(Read { records: found.values().cloned().collect(), lost: vec![Span::default()] })
            }
            Piece::Extent(extent) => self.read_extent(disk, extent),
        }
    }

    fn read_extent(&self, disk: &mut dyn Disk, extent: &Extent) -> Result<Read, Error> {
        let index = sound(read_table(disk, &self.dir, Kind::ExtentIndex, extent.index))?;
        let index = index.and_then(|payload| Index::decode(&payload));
        let index = index.filter(|index| index.blocks_len() == extent.bytes - extent.index.len);
        let mut read = match index {
            Some(index) => self.read_blocks(disk, extent, &index)?,
            None => self.read_unindexed(disk, extent)?,
        };
        read.records.sort_unstable_by_key(|record| record.revision);
        Ok(read)
    }

    fn read_blocks(&self, disk: &mut dyn Disk, extent: &Extent, index: &Index) -> Result<Read, Error> {
        let mut read = Read::default();
        for position in 0..index.len() {
            let place = index.place(extent.index, position).expect("the index was checked");
            let payload = sound(read_table(disk, &self.dir, Kind::Block, place))?;
            match payload.and_then(|payload| decoded_block(&payload)) {
                Some(mut records) => read.records.append(&mut records),
                None => {
                    let fence = |position: usize| {
                        let (key, revision) = index.fence(position);
                        Separator { key: key.to_vec(), revision }
                    };
                    let low = (position > 0).then(|| fence(position));
                    let high = (position + 1 < index.len()).then(|| fence(position + 1));
                    read.lost.push(Span { low, high });
                }
            }
        }
        Ok(read)
    }

    /// Reads an extent without its index: its blocks lie back to back, each with its length.
    fn read_unindexed(&self, disk: &mut dyn Disk, extent: &Extent) -> Result<Read, Error> {
        let offset = extent.index.end() - extent.bytes;
        let whole = Place { segment: extent.index.segment, offset, len: extent.bytes - extent.index.len };
        let bytes = self.bytes_of(disk, whole)?;
        let records: Vec<Record> = blocks_in(&bytes, whole).flatten().collect();
        // If some are missing, it is not known which.
        let lost = if records.len() < extent.records as usize { vec![Span::default()] } else { Vec::new() };
        Ok(Read { records, lost })
    }

    /// The bytes of `place`, with zeros for what cannot be read. The result begins at the place's first byte.
    fn bytes_of(&self, disk: &mut dyn Disk, place: Place) -> Result<Vec<u8>, Error> {
        let Some(file) = sound(disk.open(&self.dir.join(place.path()), OpenKind::Read))? else {
            return Ok(vec![0; place.len as usize]);
        };
        let (from, to) = (place.offset as usize / BLOCK * BLOCK, (place.end() as usize).next_multiple_of(BLOCK));
        let mut bytes = Vec::with_capacity(to - from);
        let mut buf = Buffer::new();
        let whole = sound(disk.read_blocking(file, from as u64, to - from, &mut buf))?;
        if whole.is_some() {
            bytes.extend_from_slice(&buf);
        } else {
            for at in (from..to).step_by(BLOCK) {
                let is_read = sound(disk.read_blocking(file, at as u64, BLOCK, &mut buf))?.is_some();
                bytes.resize(at - from, 0);
                bytes.extend_from_slice(if is_read { &buf } else { &[] });
            }
        }
        disk.close(file);
        bytes.resize(to - from, 0);
        bytes.drain(..place.offset as usize - from);
        bytes.truncate(place.len as usize);
        Ok(bytes)
    }

    /// Searches all segments for records with revisions in `holes`.
    fn search(
        &self,
        disk: &mut dyn Disk,
        holes: &[(Revision, Revision)],
        found: &mut [BTreeMap<Revision, Record>],
    ) -> Result<(), Error> {
        for segment in segment_files(disk, &self.dir.join(PAGES_DIR))? {
            let path = self.dir.join(page::segment_path(segment));
            let Some(file) = sound(disk.open(&path, OpenKind::Read))? else { continue };
            let len = disk.len(file)?;
            disk.close(file);
            let len = u32::try_from(len).unwrap_or(u32::MAX);
            let bytes = self.bytes_of(disk, Place { segment, offset: 0, len })?;
            for records in blocks_in(&bytes, Place { segment, offset: 0, len }) {
                for record in records {
                    let at = holes.partition_point(|(_, last)| *last < record.revision);
                    if holes.get(at).is_some_and(|(first, _)| *first <= record.revision) {
                        found[at].insert(record.revision, record);
                    }
                }
            }
        }
        Ok(())
    }
}

/// The record blocks in `bytes`, which lie at `whole`. Behind damage, the search goes on byte by byte.
fn blocks_in(bytes: &[u8], whole: Place) -> impl Iterator<Item = Vec<Record>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at + HEADER_LEN <= bytes.len() {
            let here = at;
            let header = &bytes[here..here + HEADER_LEN];
            let len = u32::from_le_bytes([header[4], header[5], header[6], header[7]]) as usize;
            let is_likely = header[9..] == [0; 3] && (1..=6).contains(&header[8]) && len >= HEADER_LEN;
            let end = here.saturating_add(len);
            at += 1;
            if !is_likely || end > bytes.len() {
                continue;
            }
            let offset = whole.offset + u32::try_from(here).expect("inside a segment");
            let place = Place { segment: whole.segment, offset, len: u32::try_from(len).expect("a word") };
            if header[8] != Kind::Block as u8 {
                // A page of another kind is passed at once.
                if page::is_intact(place, &bytes[here..end]) {
                    at = end;
                }
                continue;
            }
            let Ok(payload) = page::open(Kind::Block, place, &bytes[here..end]) else { continue };
            if let Some(records) = decoded_block(payload) {
                at = end;
                return Some(records);
            }
        }
        None
    })
}
