//! Runs on: connection core.
//!
//! Scan: the keys of a range at a held revision, piece by piece. Large answers, RangeStream and other long walks read
//! through it.
//!
//! Invariants:
//! - Every piece is read on the newest view. So a scan pins no memory between two pieces, however slowly its client
//!   reads. The floor keeps its revision readable meanwhile.
//! - A piece ends when it has `keys` keys, or at least `bytes` bytes of records, or the range ends. A piece is empty
//!   only at the end.
//! - The records of a piece are looked for together, and all missing blocks are read at once. Extents are in key order.
//!   So a scan reads from as many blocks at a time as there are extents with keys of its range, and it needs each block
//!   once.
//!
//! It knows no message and no flow control.

use engine::{Cursor, Fault, Found, KeyRange, Met, Outline, ReadView, Record};
use proto::etcdserverpb as pb;

use super::super::desk::{Consistency, Desk};
use crate::{
    error::Error,
    floor::Floor,
    kv::range::{Filter, LEAVES_AHEAD_MAX, read_at},
};

/// Blocks that are read at once for one piece. A few more are possible.
const LOADS_MAX: usize = 32;
/// A scan that has met this many keys reads leaves ahead, since it will probably reach them.
const LONG_KEYS: u64 = 4096;
/// Keys of a leaf, roughly.
const KEYS_PER_LEAF: usize = 64;

/// How much one piece holds.
#[derive(Clone, Copy, Debug)]
pub struct PieceBounds {
    /// Number of keys, at least 1.
    pub keys: usize,
    /// Encoded length of their records. **Units** bytes.
    pub bytes: usize,
}

/// The versions that are shown, in key order.
#[derive(Debug, Default)]
pub struct Piece {
    /// The keys, one directly after the other.
    keys: Vec<u8>,
    /// Where each key ends, and its version.
    versions: Vec<(usize, Outline)>,
    /// Nothing comes after this piece.
    pub is_last: bool,
}

impl Piece {
    /// Number of versions.
    pub fn len(&self) -> usize {
        self.versions.len()
    }

    /// Whether the piece has no version.
    pub fn is_empty(&self) -> bool {
        self.versions.is_empty()
    }

    /// The key and the version at `position`.
    pub fn at(&self, position: usize) -> (&[u8], &Outline) {
        let (end, outline) = &self.versions[position];
        (&self.keys[end - outline.key_bytes..*end], outline)
    }

    /// All keys with their versions.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &Outline)> {
        (0..self.len()).map(|position| self.at(position))
    }

    fn clear(&mut self) {
        self.keys.clear();
        self.versions.clear();
        self.is_last = false;
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct Scan {
    floor: Floor,
    cursor: Cursor,
    filter: Filter,
    /// Blocks that all readers together had read when this scan began. What this scan has read itself is newer.
    began: u32,
    /// Keys met, shown or not; the number of all keys, where that is known.
    pub seen: u64,
}

impl Scan {
    /// A scan of `range`, which is counted as a range, as `request` asks for it, the revision it reads, and the store's
    /// revision now.
    ///
    /// **Errors** no leader; as [`read_at`]; too many revisions are held.
    pub async fn new(desk: &Desk, request: &pb::RangeRequest, range: &KeyRange) -> Result<(Self, i64, i64), Error> {
        let consistency = Consistency::of(request.serializable);
        let mut view = desk.view(consistency).await?;
        desk.counters.ranges.add(1);
        loop {
            let at = read_at(&view, request.revision)?;
            let floor = match desk.hold(at) {
                // Compacted that very moment: the newest revision is another one then.
                Err(Error::Compacted) if request.revision <= 0 => {
                    view = desk.view(consistency).await?;
                    continue;
                }
                floor => floor?,
            };
            let (cursor, filter) = (view.cursor(range, at), Filter::of(request));
            let began = view.block_reads();
            let scan = Self { floor, cursor, filter, began, seen: 0 };
            return Ok((scan, at, view.revision()));
        }
    }

    /// The floor that keeps its revision readable.
    pub fn floor(&self) -> &Floor {
        &self.floor
    }

    /// Replaces `piece` by the next piece.
    ///
    /// **Errors** damaged data; the revision was held for too long and is compacted.
    pub async fn piece(&mut self, desk: &Desk, bounds: PieceBounds, piece: &mut Piece) -> Result<(), Error> {
        piece.clear();
        let mut bytes = 0;
        let Self { floor, cursor, filter, seen, .. } = self;
        let leaves_ahead = LEAVES_AHEAD_MAX.min(1 + bounds.keys / KEYS_PER_LEAF);
        let step = |view: &ReadView, mut budget: usize| -> Result<Option<()>, Vec<Fault>> {
            view.lead(cursor);
            while piece.len() < bounds.keys && bytes < bounds.bytes {
                let met = cursor.next_within(&mut budget);
                match met.map_err(|fault| cursor.wanted(fault, leaves_ahead))? {
                    Met::Paused => return Ok(None),
                    Met::End => {
                        piece.is_last = true;
                        break;
                    }
                    Met::Live(outline) => {
                        *seen += 1;
                        if filter.passes(outline.revision.main, outline.create_revision) {
                            bytes += outline.bytes as usize;
                            cursor.push_key(&mut piece.keys);
                            piece.versions.push((piece.keys.len(), outline));
                        }
                    }
                }
            }
            Ok(Some(()))
        };
        desk.step_along(floor, step).await
    }

    /// Calls `each` with every version shown from here to the end of the range, until `each` returns false. The scan
    /// itself does not move. Returns the number of keys met, shown or not.
    ///
    /// **Errors** as [`Scan::piece`].
    pub async fn measure(&mut self, desk: &Desk, mut each: impl FnMut(&Outline) -> bool) -> Result<u64, Error> {
        let Self { floor, cursor: parked, filter, .. } = self;
        let mut cursor = parked.clone();
        let mut met = 0;
        let step = |view: &ReadView, mut budget: usize| -> Result<Option<()>, Vec<Fault>> {
            view.lead(&mut cursor);
            // The parked cursor must follow too: it would keep in memory what is read meanwhile and evicted from newer
            // trees.
            view.lead(parked);
            loop {
                let outline = cursor.next_within(&mut budget);
                match outline.map_err(|fault| cursor.wanted(fault, LEAVES_AHEAD_MAX))? {
                    Met::Paused => return Ok(None),
                    Met::End => return Ok(Some(())),
                    Met::Live(outline) => {
                        met += 1;
                        let is_shown = filter.passes(outline.revision.main, outline.create_revision);
                        if is_shown && !each(&outline) {
                            return Ok(Some(()));
                        }
                    }
                }
            }
        };
        desk.step_along(floor, step).await?;
        Ok(met)
    }

    /// The records of a piece of this scan, in the order of the piece.
    ///
    /// **Errors** as [`Scan::piece`].
    pub async fn records(&self, desk: &Desk, piece: &Piece) -> Result<Vec<Record>, Error> {
        let mut records: Vec<Option<Record>> = vec![None; piece.len()];
        self.find(desk, piece, |position, found| records[position] = Some(found.to_record())).await?;
        Ok(records.into_iter().map(|record| record.expect("each was read")).collect())
    }

    /// Calls `each` once for every position in a piece of this scan, with its record. Records that are in memory come
    /// first.
    ///
    /// **Errors** as [`Scan::piece`].
    pub async fn find(&self, desk: &Desk, piece: &Piece, mut each: impl FnMut(usize, Found<'_>)) -> Result<(), Error> {
        let view = desk.published();
        self.floor.check(&view)?;
        let mut left: Vec<usize> = (0..piece.len()).collect();
        while !left.is_empty() {
            let (missed, faults) = self.find_resident(desk, &view, piece, &left, &mut each);
            desk.load_all(faults).await?;
            left = missed;
        }
        Ok(())
    }

    /// [`Scan::find`] for the `wanted` positions whose records are in memory. Returns the other positions, and the
    /// faults to load for the first of them.
    fn find_resident(
        &self,
        desk: &Desk,
        view: &ReadView,
        piece: &Piece,
        wanted: &[usize],
        each: &mut impl FnMut(usize, Found<'_>),
    ) -> (Vec<usize>, Vec<Fault>) {
        let mut fingers = desk.fingers.borrow_mut();
        let is_long = self.seen >= LONG_KEYS;
        let (mut missed, mut faults) = (Vec::new(), Vec::<Fault>::new());
        let mut wanted = wanted.iter().copied();
        for position in wanted.by_ref() {
            let (key, outline) = piece.at(position);
            match view.locate(key, outline.revision, &mut fingers) {
                Ok(found) => each(position, found.expect("a live version has its record")),
                Err(fault) => {
                    missed.push(position);
                    if !faults.iter().any(|other| other.place() == fault.place()) {
                        let with_ahead = fault.scanning(self.began).with_ahead();
                        faults.extend(with_ahead.take(if is_long { usize::MAX } else { 1 }));
                    }
                }
            }
            if faults.len() >= LOADS_MAX {
                break;
            }
        }
        missed.extend(wanted);
        (missed, faults)
    }
}
