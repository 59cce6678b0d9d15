//! Finds out what is lost of a damaged store that no process uses, and reads back what is not.
//!
//! The records hold all fields of the key tree. So a page of that tree that cannot be read is made again from the
//! records of its keys. What cannot be made again is named, and left out of what is read back.
//!
//! Files, from the ground up:
//! - `bounds`: ranges in the order of tree entries. `loss`: what cannot be read, or is gone with it.
//! - `medium`: reads of pages and extents that go on behind damage; the search for extents of which nothing tells.
//! - `trees`: walks over the trees, around pages that cannot be read.
//! - `judge`: which keys and versions are lost.
//!
//! Invariants:
//! - It changes nothing.
//! - It reads back no version that it knows, or must suspect, to be replaced or deleted by one that is lost. If one
//!   version of a key is lost that was its newest, the key is left out. If an older one is lost, the history is not
//!   whole: then the compact revision that it tells is the revision of the store.
//! - Records come back in revision order, each once.
//! - Memory grows with what is lost, not with the store.

mod bounds;
mod judge;
mod loss;
mod medium;
mod trees;

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;

use self::{
    bounds::Span,
    judge::Judgement,
    medium::{Medium, Piece},
    trees::Trees,
};
use super::{
    Superblock,
    inspect::{states, tables},
};
use crate::{
    Error, Record, Revision,
    disk::{DirLock, Disk},
};

pub use loss::Loss;

/// A damaged store, looked through.
pub struct Salvage {
    medium: Medium,
    trees: Trees,
    pieces: Vec<Piece>,
    judgement: Judgement,
    state: Superblock,
}

impl Salvage {
    /// Looks through the store in `dir`, whose lock the caller keeps, and tells every loss. If something of the newest
    /// state is lost, and less of the state before it, it takes that one: the log holds what came after. Blocks for a
    /// time that grows with the data.
    ///
    /// **Errors** `Corrupt` if there is no state to begin with; those of the medium that are no damage.
    pub fn open(disk: &mut dyn Disk, dir: &Path, _lock: &DirLock, tell: &mut dyn FnMut(&Loss)) -> Result<Self, Error> {
        let (newest, previous) = states(disk, dir)?;
        let mut weight = 0;
        let mut chosen = Self::look(disk, dir, newest, &mut |loss| weight += loss.weight());
        if let Some(previous) = previous.filter(|_| weight > 0 || chosen.is_err()) {
            let mut weight_before = 0;
            let before = Self::look(disk, dir, previous, &mut |loss| weight_before += loss.weight());
            if before.is_ok() && (weight_before < weight || chosen.is_err()) {
                (chosen, weight) = (before, weight_before);
            }
        }
        let chosen = chosen?;
        if weight == 0 { Ok(chosen) } else { Self::look(disk, dir, chosen.state, tell) }
    }

    /// Looks through the store as of `state`.
    fn look(disk: &mut dyn Disk, dir: &Path, state: Superblock, tell: &mut dyn FnMut(&Loss)) -> Result<Self, Error> {
        let directory = tables(disk, dir, &state)?;
        let medium = Medium::new(dir);
        let mut trees = Trees::new(dir, &state);
        let (lost_pages, lost_rows) = trees.lost_pages(disk)?;
        for Span { low, high } in lost_rows {
            let from = low.map_or_else(Bytes::new, |low| low.key.into());
            tell(&Loss::Rows { from, to: high.map(|high| high.key.into()) });
        }
        let pieces = medium.pieces(disk, &directory)?;
        let mut judge = judge::Judge::new(state.compact_revision, lost_pages, tell);
        for piece in &pieces {
            let read = medium.read(disk, piece)?;
            judge.take_in(piece, &read, |record| trees.has(disk, &record.key, record.revision))?;
        }
        judge.judge_pages();
        if judge.has_lost_records() {
            trees.versions(disk, &mut |key, meta| judge.version(key, meta))?;
        }
        Ok(Self { medium, trees, pieces, judgement: judge.end(), state })
    }

    /// The revision of the store.
    pub fn revision(&self) -> i64 {
        self.state.revision
    }

    /// Changes of the revision after [`Salvage::revision`] that a request under way has made. Their records are among
    /// the others.
    pub fn unfinished(&self) -> i64 {
        self.state.unfinished.cast_signed()
    }

    /// The revision up to which the history must count as compacted; -1 for none.
    pub fn compact_revision(&self) -> i64 {
        if self.judgement.has_lost_versions() { self.state.revision } else { self.state.compact_revision }
    }

    /// Index and term of the last applied entry.
    pub fn applied(&self) -> (u64, u64) {
        (self.state.applied_index, self.state.applied_term)
    }

    /// What was vital in that state.
    pub fn vital(&self) -> &[u8] {
        self.state.vital.as_slice()
    }

    /// Identity of the store.
    pub fn store_id(&self) -> u64 {
        self.state.store_id
    }

    /// Calls `each` with every entry of the meta tree that can be read, in order.
    ///
    /// **Errors** those of the medium that are no damage.
    pub fn rows(&mut self, disk: &mut dyn Disk, each: &mut dyn FnMut(Bytes, Bytes)) -> Result<(), Error> {
        self.trees.rows(disk, each)
    }

    /// Calls `each` with every record that is left, in revision order.
    ///
    /// **Errors** those of `each`; those of the medium that are no damage.
    pub fn records<E: From<Error>>(
        &mut self,
        disk: &mut dyn Disk,
        each: &mut dyn FnMut(Record) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut made: BTreeMap<Revision, Record> = std::mem::take(&mut self.judgement.tombstones);
        for piece in &self.pieces {
            for record in self.medium.read(disk, piece)?.records {
                while let Some(first) = made.first_entry().filter(|first| *first.key() < record.revision) {
                    each(first.remove())?;
                }
                let is_wanted = match self.judgement.wants(&record) {
                    Some(is_wanted) => is_wanted,
                    None => piece.is_all_live() || self.trees.has(disk, &record.key, record.revision)?,
                };
                if is_wanted {
                    each(record)?;
                }
            }
        }
        made.into_values().try_for_each(each)
    }
}
