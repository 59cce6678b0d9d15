//! Judges which keys and versions of a damaged store are lost, and which versions a lost page of the key tree held.
//!
//! A version is lost if the key tree names it, and its record cannot be read. A lost page of the key tree held those of
//! the readable records of its keys that no compaction has dropped. Two doubts are left, and in both the key counts as
//! lost, because its last readable version may have been replaced or deleted:
//! - A newer record of the key may be among those that cannot be read.
//! - More keys are live than the page's parent has counted, or nothing has counted them. So there may be one whose
//!   tombstone was swept, while an older record of it is not yet removed. It is none of those that were written since
//!   the last compaction, and of none of those extents that have as many live records as the tree then names. For the
//!   same reason it can be in doubt what a key was at the last compaction, that was written again since.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{
    bounds::Span,
    loss::Loss,
    medium::{Piece, Read},
    trees::LostPage,
};
use crate::{Error, Record, Revision, tree::EntryMeta};

/// A readable record that a lost page may have named.
#[derive(Debug)]
struct Candidate {
    key: Bytes,
    revision: Revision,
    is_tombstone: bool,
    /// The page that may have named it.
    page: usize,
    /// The piece that holds it.
    piece: usize,
    /// No compaction has dropped it.
    is_kept: bool,
}

/// The records of a piece that lost pages may have named.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    /// How many they named; `None` if that is not known.
    named: Option<usize>,
    /// How many of them no compaction has dropped, and how many one has.
    kept: usize,
    dropped: usize,
}

/// A piece of which something cannot be read.
#[derive(Debug)]
struct Damaged {
    first: Revision,
    last: Revision,
    /// Where records of it may be missing.
    spans: Vec<Span>,
    found: BTreeSet<Revision>,
}

/// See the head of this file.
pub(super) struct Judge<'a> {
    compact_revision: i64,
    candidates: Vec<Candidate>,
    /// By number of the piece.
    shares: Vec<Share>,
    /// In revision order.
    damaged: Vec<Damaged>,
    judgement: Judgement,
    tell: &'a mut dyn FnMut(&Loss),
}

/// What is left out, and what is put in.
#[derive(Debug, Default)]
pub(super) struct Judgement {
    /// In the order of their entries.
    pages: Vec<LostPage>,
    dropped: BTreeSet<Bytes>,
    /// The versions that the lost pages held.
    rebuilt: BTreeSet<Revision>,
    /// Keys whose versions go on behind a lost page, and are superseded there: the oldest one in the page.
    cut: BTreeMap<Bytes, Revision>,
    /// Tombstones whose records cannot be read. The key tree has all that a tombstone holds.
    pub(super) tombstones: BTreeMap<Revision, Record>,
    has_lost_versions: bool,
}

impl<'a> Judge<'a> {
    pub(super) fn new(compact_revision: i64, pages: Vec<LostPage>, tell: &'a mut dyn FnMut(&Loss)) -> Self {
        let judgement = Judgement { pages, ..Judgement::default() };
        Self { compact_revision, candidates: Vec::new(), shares: Vec::new(), damaged: Vec::new(), judgement, tell }
    }

    /// Takes in a piece. Pieces come in revision order. `is_named` says whether the tree names a version that no lost
    /// page can hold.
    pub(super) fn take_in(
        &mut self,
        piece: &Piece,
        read: &Read,
        mut is_named: impl FnMut(&Record) -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let number = self.shares.len();
        let mut elsewhere = Vec::new();
        let before = self.candidates.len();
        for record in &read.records {
            let Some(page) = self.judgement.page_of(&record.key, record.revision) else {
                elsewhere.push(record);
                continue;
            };
            let (key, revision, is_tombstone) = (record.key.clone(), record.revision, record.is_tombstone);
            self.candidates.push(Candidate { key, revision, is_tombstone, page, piece: number, is_kept: false });
        }
        let has_candidates = self.candidates.len() > before;
        let mut named = piece.live_records().filter(|_| has_candidates && read.lost.is_empty());
        if let Some(named) = &mut named {
            for record in elsewhere {
                *named = named.saturating_sub(usize::from(is_named(record)?));
            }
        }
        self.shares.push(Share { named, ..Share::default() });
        if !read.lost.is_empty() {
            let (first, last) = piece.revisions();
            let found = read.records.iter().map(|record| record.revision).collect();
            self.damaged.push(Damaged { first, last, spans: read.lost.clone(), found });
        }
        Ok(())
    }

    /// Whether there are records that cannot be read.
    pub(super) fn has_lost_records(&self) -> bool {
        !self.damaged.is_empty()
    }

    /// Judges a version that the key tree names.
    pub(super) fn version(&mut self, key: Bytes, meta: &EntryMeta) {
        let at = self.damaged.partition_point(|piece| piece.last < meta.revision);
        let is_lost = self
            .damaged
            .get(at)
            .is_some_and(|piece| piece.first <= meta.revision && !piece.found.contains(&meta.revision));
        if !is_lost {
            return;
        }
        let revision = meta.revision;
        if meta.is_tombstone() {
            let (value, is_tombstone) = (Bytes::new(), true);
            let record = Record { key, value, create_revision: 0, revision, version: 0, lease: 0, is_tombstone };
            self.judgement.tombstones.insert(revision, record);
        } else if meta.is_newest() {
            self.drop_key(key, revision);
        } else {
            self.lose_history(key, revision);
        }
    }

    fn lose_history(&mut self, key: Bytes, revision: Revision) {
        self.judgement.has_lost_versions = true;
        (self.tell)(&Loss::History { key, revision });
    }

    fn drop_key(&mut self, key: Bytes, revision: Revision) {
        self.judgement.has_lost_versions = true;
        if self.judgement.dropped.insert(key.clone()) {
            (self.tell)(&Loss::Key { key, revision });
        }
    }

    /// Judges the lost pages, when all pieces were taken in.
    pub(super) fn judge_pages(&mut self) {
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_unstable_by(|a, b| a.key.cmp(&b.key).then_with(|| b.revision.cmp(&a.revision)));
        for versions in candidates.chunk_by_mut(|a, b| a.key == b.key) {
            let oldest = versions[versions.len() - 1].revision;
            if self.compact(versions) && self.judgement.pages[versions[versions.len() - 1].page].cuts(&versions[0].key)
            {
                self.judgement.cut.insert(versions[0].key.clone(), oldest);
            }
        }
        for Candidate { piece, is_kept, .. } in &candidates {
            let share = &mut self.shares[*piece];
            *(if *is_kept { &mut share.kept } else { &mut share.dropped }) += 1;
        }
        let pages = self.judgement.pages.clone();
        let doubts: Vec<_> = pages.iter().map(|page| self.doubts(page)).collect();
        let mut live: Vec<Vec<&Candidate>> = pages.iter().map(|_| Vec::new()).collect();
        for versions in candidates.chunk_by(|a, b| a.key == b.key) {
            let (newest, oldest) = (&versions[0], &versions[versions.len() - 1]);
            let has_newer = pages[newest.page].newer(&newest.key).is_some();
            let mut doubts = doubts[newest.page..=oldest.page].iter().flatten();
            let is_doubtful = doubts.any(|(last, span)| span.can_hold(&newest.key) && *last > newest.revision);
            if is_doubtful && !has_newer {
                self.drop_key(newest.key.clone(), newest.revision);
                continue;
            }
            for (number, version) in versions.iter().enumerate().filter(|(_, version)| version.is_kept) {
                self.judgement.rebuilt.insert(version.revision);
                let is_past = version.revision.main <= self.compact_revision && (number > 0 || has_newer);
                if is_past && !self.is_sure(version) {
                    self.judgement.rebuilt.remove(&version.revision);
                    self.lose_history(version.key.clone(), version.revision);
                }
            }
            if !has_newer && !newest.is_tombstone {
                live[newest.page].push(newest);
            }
        }
        for ((page, doubts), live) in pages.iter().zip(&doubts).zip(live) {
            // If records are missing, or nothing counts them, each key that may have been deleted is one too many.
            let counted = page.sums.filter(|_| doubts.is_empty()).map(|sums| sums.live);
            self.judge_live(&live, counted);
        }
    }

    /// Judges the keys that seem to be live in a lost page. Its parent has `counted` as many, if that is known.
    fn judge_live(&mut self, live: &[&Candidate], counted: Option<u64>) {
        let is_old = |newest: &&&Candidate| newest.revision.main <= self.compact_revision;
        let (dead, unsure): (Vec<&Candidate>, Vec<&Candidate>) = (live.iter().filter(is_old))
            .filter(|newest| !self.is_sure(newest))
            .partition(|newest| self.is_dead(newest));
        dead.iter().for_each(|newest| self.forget(newest));
        let too_many = counted.map(|counted| ((live.len() - dead.len()) as u64).saturating_sub(counted));
        for newest in unsure.iter().filter(|_| too_many != Some(0)) {
            if too_many == Some(unsure.len() as u64) {
                self.forget(newest);
            } else {
                self.drop_key(newest.key.clone(), newest.revision);
            }
        }
    }

    /// Leaves out a version of a key that was deleted.
    fn forget(&mut self, newest: &Candidate) {
        self.judgement.rebuilt.remove(&newest.revision);
    }

    /// Whether none of the records of the piece of a version was named.
    fn is_dead(&self, version: &Candidate) -> bool {
        self.shares[version.piece].named == Some(0)
    }

    /// Finds out which of the versions of one key, the newest first, no compaction has dropped. Returns whether one has
    /// dropped every older version.
    fn compact(&self, versions: &mut [Candidate]) -> bool {
        let newer = self.judgement.pages[versions[0].page].newer(&versions[0].key);
        let mut is_superseded = newer.is_some_and(|newer| newer.main <= self.compact_revision);
        for version in versions {
            let main = version.revision.main;
            let is_gone = version.is_tombstone && main < self.compact_revision;
            version.is_kept = !is_superseded && !is_gone;
            is_superseded |= main <= self.compact_revision;
        }
        is_superseded
    }

    /// Whether all records of the piece of a version that compaction keeps were named.
    fn is_sure(&self, version: &Candidate) -> bool {
        let Share { named, kept, dropped } = self.shares[version.piece];
        // What the sweep has not come to may have been named, though compaction has dropped it.
        let is_swept = |page: &LostPage| page.sums.is_some_and(|sums| sums.droppable_at > self.compact_revision);
        named == Some(kept) && (dropped == 0 || self.judgement.pages.iter().all(is_swept))
            || named == Some(kept + dropped)
    }

    /// Where newer records of keys of `page` may be missing, and the last revision that they may have.
    fn doubts(&mut self, page: &LostPage) -> Vec<(Revision, Span)> {
        (self.tell)(&page.loss());
        let mut doubts = Vec::new();
        for Damaged { first, last, spans, .. } in &self.damaged {
            for both in spans.iter().filter_map(|span| span.and(&page.span)) {
                let from = both.low.as_ref().map_or_else(Bytes::new, |low| low.key.clone().into());
                let to = both.high.as_ref().map(|high| high.key.clone().into());
                (self.tell)(&Loss::Keys { from, to, revisions: (*first, *last) });
                doubts.push((*last, both));
            }
        }
        self.judgement.has_lost_versions |= !doubts.is_empty();
        doubts
    }

    pub(super) fn end(self) -> Judgement {
        self.judgement
    }
}

impl Judgement {
    /// Whether versions are lost that the store would still show.
    pub(super) fn has_lost_versions(&self) -> bool {
        self.has_lost_versions
    }

    /// The lost page that held, or would have held, the version of `key` at `revision`.
    fn page_of(&self, key: &[u8], revision: Revision) -> Option<usize> {
        let is_passed = |page: &LostPage| {
            let upper = Span { low: None, high: page.span.high.clone() };
            !upper.holds(key, revision)
        };
        let at = self.pages.partition_point(is_passed);
        self.pages.get(at).filter(|page| page.span.holds(key, revision)).map(|_| at)
    }

    /// Whether a record is to be read back; `None` if the key tree says so.
    pub(super) fn wants(&self, record: &Record) -> Option<bool> {
        let is_cut = self.cut.get(&record.key).is_some_and(|oldest| record.revision < *oldest);
        if is_cut || self.dropped.contains(&record.key) {
            return Some(false);
        }
        self.page_of(&record.key, record.revision).map(|_| self.rebuilt.contains(&record.revision))
    }
}
