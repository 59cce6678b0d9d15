//! The extent directory knows which extent holds a revision, and how much of each extent is still wanted.
//!
//! Invariants:
//! - Extents hold records of disjoint revision ranges. `chunks` and the extents in them ascend. A new extent lies above
//!   all others, or replaces extents whose live records it holds (`Edit::replace`).
//! - A `Directory` is immutable. `Edit` makes the next one, and shares every chunk that it did not touch. So a
//!   checkpoint writes only the chunks that changed. A chunk is written once (`place`).
//!
//! What a lost chunk (`chunk`) may hold is asked for in vain: its fault ends in an error. All else goes on around it.
//!
//! It finds records. It does not decide when an extent's space is reused (`space`), and does not write itself
//! (`shard`).

use std::{collections::BTreeMap, sync::Arc};

use super::{
    block::Stored,
    cache::BlockCache,
    chunk::{CHUNK_EXTENTS_MAX, Chunk, Extent},
    fingers::Fingers,
    index::Index,
    whole::Whole,
};
use crate::{
    Error, Fault, Place, Record, Revision,
    fault::Resolve,
    page::{self, Kind, corrupt},
    victims::Victims,
};

/// Blocks of an extent that a long scan reads together with the one that it needs.
const BLOCKS_AHEAD: usize = 2;
/// Larger blocks hold only a record or two, and are read on their own. **Units** bytes.
const BLOCK_AHEAD_LEN_MAX: u32 = 24 << 10;

fn block_place(extent: &Extent, index: &Index, position: usize) -> Place {
    index.place(extent.index, position).expect("the index was checked")
}

/// Every extent of the store, by revision. It is immutable; each checkpoint replaces it.
#[derive(Debug)]
pub struct Directory {
    pub(super) cache: Arc<BlockCache>,
    chunks: Vec<Arc<Chunk>>,
}

impl Directory {
    /// A directory without extents. Its successors read through `cache`.
    pub fn empty(cache: Arc<BlockCache>) -> Arc<Self> {
        Arc::new(Self { cache, chunks: Vec::new() })
    }

    /// The directory of `chunks`; `None` if they overlap.
    pub(crate) fn from_chunks(cache: Arc<BlockCache>, chunks: Vec<Arc<Chunk>>) -> Option<Arc<Self>> {
        let is_sound = chunks.is_sorted_by(|a, b| a.last() < b.first());
        is_sound.then(|| Arc::new(Self { cache, chunks }))
    }

    pub(crate) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    pub(crate) fn extents(&self) -> impl Iterator<Item = &Extent> {
        self.chunks.iter().flat_map(|chunk| &chunk.extents)
    }

    /// The lowest revision that an extent covers.
    pub fn first(&self) -> Option<Revision> {
        self.chunks.first().map(|chunk| chunk.first())
    }

    /// The highest revision that an extent covers. Every stored record up to it is here; every record above it is in
    /// `Recent`.
    pub fn last(&self) -> Option<Revision> {
        self.chunks.last().map(|chunk| chunk.last())
    }

    /// The number of chunks that could not be read at the start.
    pub(crate) fn lost_chunks(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.is_lost()).count()
    }

    /// The version of `key` at `revision`, if it is in an extent.
    pub fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Fault> {
        let Some(extent) = self.holder(revision)? else { return Ok(None) };
        let index = self.cache.index(extent)?;
        let block = self.cache.block(block_place(extent, &index, index.position(key, revision)))?;
        Ok(block.find(key, revision).map(|position| block.record(position)))
    }

    /// The stored version of `key` at `revision`, if it is in an extent. It is for walks over keys. A fault also names
    /// the next blocks ([`Fault::with_ahead`]).
    pub(crate) fn stored<'a>(
        &self,
        key: &[u8],
        revision: Revision,
        fingers: &'a mut Fingers,
    ) -> Result<Option<Stored<'a>>, Fault> {
        let Some(extent) = self.holder(revision)? else { return Ok(None) };
        if fingers.seek(extent.index, key, revision) {
            return Ok(fingers.at(extent.index));
        }
        let index = self.cache.index(extent)?;
        let at = index.position(key, revision);
        let ahead = (at + 1..index.len().min(at + 1 + BLOCKS_AHEAD)).map(|at| block_place(extent, &index, at));
        let ahead: Vec<Place> = ahead.take_while(|place| place.len <= BLOCK_AHEAD_LEN_MAX).collect();
        let place = block_place(extent, &index, at);
        let Some(block) = self.cache.held_block(place) else {
            return Err(self.cache.block_fault(place, if fingers.has_room_ahead() { ahead } else { Vec::new() }));
        };
        let Some(position) = block.find(key, revision) else { return Ok(None) };
        // Blocks that were read ahead are taken even if there is no room for more by now. Otherwise they would be read
        // again.
        let ahead = self.cache.read_lately(&ahead);
        Ok(Some(fingers.put(extent.index, (block, position), ahead)))
    }

    /// The extent that may hold `revision`. If any extent holds it, it is this one.
    fn holder(&self, revision: Revision) -> Result<Option<&Extent>, Fault> {
        Ok(self.at_or_above(revision)?.filter(|extent| extent.first <= revision))
    }

    /// Record blocks read so far. The number may wrap around.
    pub(crate) fn block_reads(&self) -> u32 {
        self.cache.block_reads()
    }

    /// All of `extent`, which must be in this directory.
    pub(crate) fn whole(&self, extent: &Extent) -> Result<Arc<Whole>, Fault> {
        self.cache.whole(extent)
    }

    /// The extent that holds `revision`. If there is none, the first one above it.
    ///
    /// **Errors** the chunk that could say so is lost. Reading it fails.
    pub(crate) fn at_or_above(&self, revision: Revision) -> Result<Option<&Extent>, Fault> {
        let position = self.chunks.partition_point(|chunk| chunk.last() < revision);
        let Some(chunk) = self.chunks.get(position) else { return Ok(None) };
        if let Some(place) = chunk.place().filter(|_| chunk.is_lost()) {
            return Err(Fault::new(place, Arc::new(Lost)));
        }
        let extent = &chunk.extents[chunk.extents.partition_point(|extent| extent.last < revision)];
        assert!(extent.last >= revision, "found by its last revision");
        Ok(Some(extent))
    }
}

/// Takes in a lost chunk: not at all. Even if it can be read by now, its account of live records may be out of date.
struct Lost;

impl Resolve for Lost {
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error> {
        page::open(Kind::DirectoryChunk, place, envelope)?;
        Err(corrupt(place, "a directory chunk that could not be read at the start"))
    }
}

/// Records that a sweep has dropped since the last checkpoint, counted per extent. Three numbers bound its size: the
/// extents, the records that are in no extent yet, and the records of the extents that the running checkpoint moves.
#[derive(Debug, Default)]
pub(crate) struct DeadRecords {
    /// Records and bytes, by the first revision of the extent. Only moving an extent changes that revision.
    extents: BTreeMap<Revision, (u32, u64)>,
    /// Records whose extent is not known yet. They are above every extent, or in one that is being moved.
    loose: Vec<(Revision, u32)>,
    /// Segments whose extents the running checkpoint moves. Records that die in them are counted in the next directory.
    moving: Victims,
    /// Sum of all counted bytes. **Units** bytes.
    bytes: u64,
}

impl DeadRecords {
    /// An account for the time of a checkpoint that moves the extents out of the segments of `moving`.
    pub(crate) fn during(moving: Victims) -> Self {
        Self { moving, ..Self::default() }
    }

    /// Encoded lengths of all records counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The checkpoint has ended. Records that die from now on are counted in its directory.
    pub(crate) fn moved(&mut self) {
        self.moving = Victims::default();
    }

    /// Counts the record of `bytes` at `revision`, which is no longer in a live leaf.
    pub(crate) fn add(&mut self, directory: &Directory, revision: Revision, bytes: u32) {
        self.bytes += u64::from(bytes);
        self.assign(directory, revision, bytes);
    }

    fn assign(&mut self, directory: &Directory, revision: Revision, bytes: u32) {
        match directory.at_or_above(revision) {
            Ok(Some(extent)) if self.moving.contains(extent.index.segment) => self.loose.push((revision, bytes)),
            Ok(Some(extent)) => {
                assert!(extent.first <= revision, "a live record is in an extent or above all");
                let (records, sum) = self.extents.entry(extent.first).or_default();
                *records += 1;
                *sum += u64::from(bytes);
            }
            Ok(None) => self.loose.push((revision, bytes)),
            // Its extent is not known. Once it is, it counts more live records than there are.
            Err(_lost) => {}
        }
    }

    /// Takes what a checkpoint over `directory` needs: the dead records of its extents, and in order the revisions of
    /// the records that it need not write.
    pub(crate) fn take(&mut self, directory: &Directory) -> (BTreeMap<Revision, (u32, u64)>, Vec<Revision>) {
        assert!(self.moving.is_empty(), "taken between checkpoints");
        for (revision, bytes) in std::mem::take(&mut self.loose) {
            self.assign(directory, revision, bytes);
        }
        let mut above: Vec<Revision> =
            std::mem::take(&mut self.loose).into_iter().map(|(revision, _)| revision).collect();
        above.sort_unstable();
        (std::mem::take(&mut self.extents), above)
    }
}

/// Makes the next directory from the present one.
#[derive(Debug)]
pub(crate) struct Edit {
    cache: Arc<BlockCache>,
    kept: Vec<Arc<Chunk>>,
    /// Places of chunks that the next directory does not have.
    dead_chunks: Vec<Place>,
    /// Bytes of extents that died, by segment.
    pub(crate) dead_bytes: Vec<(u32, u64)>,
}

impl Edit {
    /// Begins with `directory`, without the dead records of its extents that [`DeadRecords::take`] gave.
    pub(crate) fn new(directory: &Directory, dead: &BTreeMap<Revision, (u32, u64)>) -> Self {
        let mut edit = Self {
            cache: Arc::clone(&directory.cache),
            kept: Vec::with_capacity(directory.chunks.len() + 1),
            dead_chunks: Vec::new(),
            dead_bytes: Vec::new(),
        };
        for chunk in &directory.chunks {
            let mut of_chunk = dead.range(chunk.first()..=chunk.last()).peekable();
            if of_chunk.peek().is_none() {
                edit.kept.push(Arc::clone(chunk));
                continue;
            }
            let mut extents = chunk.extents.clone();
            for (first, (records, bytes)) in of_chunk {
                let at =
                    extents.binary_search_by_key(first, |extent| extent.first).expect("counted for an extent that is");
                edit.dead_bytes.push(bury(&mut extents[at], *records, *bytes));
            }
            extents.retain(|extent| extent.live_records > 0);
            edit.dead_chunks.extend(chunk.place());
            edit.push_chunk(extents);
        }
        edit
    }

    /// The extents in segments of `victims`, in order, each with its position among all.
    pub(crate) fn in_segments(&self, victims: &Victims) -> Vec<(usize, Extent)> {
        let mut found = Vec::new();
        let mut position = 0;
        for chunk in &self.kept {
            let extents = (position..).zip(chunk.extents.iter().copied());
            found.extend(extents.filter(|(_, extent)| victims.contains(extent.index.segment)));
            // What lies on the two sides of a lost chunk is not neighbours.
            position += chunk.extents.len().max(1);
        }
        found
    }

    /// Makes the chunks that lie in segments of `victims` be written anew.
    pub(crate) fn renew(&mut self, victims: &Victims) {
        for chunk in &mut self.kept {
            let place = chunk.place().filter(|place| victims.contains(place.segment) && !chunk.is_lost());
            if let Some(place) = place {
                self.dead_chunks.push(place);
                *chunk = Chunk::new(chunk.extents.clone());
            }
        }
    }

    /// Replaces `moved` by `added`. Both hold the same live records, and both are in order.
    pub(crate) fn replace(&mut self, moved: &[Extent], added: Vec<Extent>) {
        let live = |extents: &[Extent]| extents.iter().map(|extent| u64::from(extent.live_records)).sum::<u64>();
        assert_eq!(live(moved), live(&added), "moving loses no record and brings none back");
        let mut added = added.into_iter().peekable();
        let before = std::mem::take(&mut self.kept);
        for (number, chunk) in before.iter().enumerate() {
            let end = before.get(number + 1).map_or(Revision::MAX, |next| next.first());
            let position = moved.partition_point(|extent| extent.first < chunk.first());
            let is_touched = moved.get(position).is_some_and(|extent| extent.first <= chunk.last());
            let mut extents = chunk.extents.clone();
            extents.retain(|extent| moved.binary_search_by_key(&extent.first, |moved| moved.first).is_err());
            let kept = extents.len();
            extents.extend(std::iter::from_fn(|| added.next_if(|extent| extent.first < end)));
            if !is_touched && extents.len() == kept {
                self.kept.push(Arc::clone(chunk));
                continue;
            }
            extents.sort_unstable_by_key(|extent| extent.first);
            self.dead_chunks.extend(chunk.place());
            extents.chunks(CHUNK_EXTENTS_MAX).for_each(|extents| self.push_chunk(extents.to_vec()));
        }
        assert!(added.next().is_none(), "what is added lies in a chunk of what was moved");
    }

    /// Adds a changed run. It is joined with the run before if both fit in one chunk.
    fn push_chunk(&mut self, mut extents: Vec<Extent>) {
        if extents.is_empty() {
            return;
        }
        if let Some(before) = self.kept.pop_if(|before| before.takes(extents.len(), CHUNK_EXTENTS_MAX / 2)) {
            self.dead_chunks.extend(before.place());
            extents.splice(0..0, before.extents.iter().copied());
        }
        self.kept.push(Chunk::new(extents));
    }

    /// The directory with `added` extents after all others, in revision order.
    pub(crate) fn finish(mut self, added: Vec<Extent>) -> (Arc<Directory>, Vec<Place>) {
        let mut added = added.into_iter();
        if added.len() > 0
            && let Some(last) = self.kept.pop_if(|last| last.takes(1, CHUNK_EXTENTS_MAX))
        {
            self.dead_chunks.extend(last.place());
            let room = CHUNK_EXTENTS_MAX - last.extents.len();
            let extents = last.extents.iter().copied().chain(added.by_ref().take(room)).collect();
            self.kept.push(Chunk::new(extents));
        }
        while added.len() > 0 {
            self.kept.push(Chunk::new(added.by_ref().take(CHUNK_EXTENTS_MAX).collect()));
        }
        let directory = Directory::from_chunks(self.cache, self.kept).expect("new extents lie above all others");
        (directory, self.dead_chunks)
    }
}

/// Removes `records` from the account of an extent; together they are `bytes` long. Returns its segment and the bytes
/// that it loses.
fn bury(extent: &mut Extent, records: u32, bytes: u64) -> (u32, u64) {
    assert!(records <= extent.live_records, "a record dies once");
    extent.live_records -= records;
    let lost = if extent.live_records == 0 {
        extent.live_bytes
    } else {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(extent.live_bytes - 1)
    };
    extent.live_bytes -= lost;
    (extent.index.segment, u64::from(lost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::extent::chunk::EXTENT_LEN;

    fn extent(number: i64) -> Extent {
        Extent {
            first: Revision::new(number * 10, 0),
            last: Revision::new(number * 10 + 9, 3),
            index: Place { segment: 1 + u32::try_from(number).unwrap() / 16, offset: 4096, len: 100 },
            records: 10,
            live_records: 10,
            bytes: 1200,
            live_bytes: 1200,
        }
    }

    fn directory(extents: i64) -> Arc<Directory> {
        let edit = Edit::new(&Directory::empty(BlockCache::new(0)), &BTreeMap::new());
        edit.finish((1..=extents).map(extent).collect()).0
    }

    #[test]
    fn chunks_survive_their_encoding_and_mutated_ones_never_panic() {
        let directory = directory(3);
        let mut payload = Vec::new();
        directory.chunks[0].encode(&mut payload);
        let place = Place { segment: 9, offset: 0, len: 200 };
        let decoded = Chunk::decode(place, &payload).unwrap();
        assert_eq!(decoded.extents, directory.chunks[0].extents);
        assert_eq!(decoded.place(), Some(place));
        for at in 0..payload.len() {
            for byte in [0, 1, 0x80, 0xff] {
                let mut mutated = payload.clone();
                mutated[at] = byte;
                drop(Chunk::decode(place, &mutated));
            }
            assert_eq!(Chunk::decode(place, &payload[..at]).is_some(), at > 0 && at % EXTENT_LEN == 0);
        }
    }

    #[test]
    fn an_extent_is_dropped_with_its_last_record_and_untouched_chunks_are_shared() {
        let before = directory(300);
        assert_eq!(before.chunks.len(), 3);
        before.chunks.iter().zip(1..).for_each(|(chunk, segment)| {
            chunk.set_place(Place { segment, offset: 0, len: 4096 });
        });
        let mut dead = DeadRecords::default();
        (0..10).for_each(|sub| dead.add(&before, Revision::new(1500 + sub, 0), 50));
        dead.add(&before, Revision::new(9999, 1), 7);
        assert_eq!(dead.bytes(), 507);
        let (extents, above) = dead.take(&before);
        assert_eq!(above, [Revision::new(9999, 1)]);
        let edit = Edit::new(&before, &extents);
        assert_eq!(edit.dead_bytes.iter().map(|(_, bytes)| bytes).sum::<u64>(), 1200);
        let (after, dead_chunks) = edit.finish(Vec::new());
        assert_eq!(after.extents().count(), 299);
        assert_eq!(dead_chunks, [Place { segment: 2, offset: 0, len: 4096 }]);
        assert!(Arc::ptr_eq(&before.chunks[0], &after.chunks[0]));
        assert!(after.chunks[1].place().is_none());

        let edit = Edit::new(&after, &BTreeMap::from([(Revision::new(1490, 0), (1, u64::MAX))]));
        assert_eq!(edit.dead_bytes, [(10, 1199)]);
        let (after, _) = edit.finish(vec![extent(400)]);
        assert_eq!(after.last(), Some(Revision::new(4009, 3)));
        assert_eq!(after.extents().count(), 300);
    }

    #[test]
    fn every_revision_finds_its_extent_or_the_next() {
        let directory = directory(300);
        for number in 1..=300 {
            for main in number * 10..number * 10 + 10 {
                assert_eq!(directory.at_or_above(Revision::new(main, 0)).unwrap(), Some(&extent(number)));
            }
            let gap = directory.at_or_above(Revision::new(number * 10 + 9, 4)).unwrap();
            assert_eq!(gap.copied(), (number < 300).then(|| extent(number + 1)));
        }
    }
}
