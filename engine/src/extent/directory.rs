//! The extent directory: which extent holds a revision, and how much of each extent is still wanted.
//!
//! Invariants:
//! - Extents hold records of disjoint revision ranges; `chunks` and the `entries` in them ascend. A new extent
//!   lies above all others, or takes the place of extents whose live records it holds (`Edit::replace`).
//! - `Entry::live_records` is the number of its records that are in the key tree of the same state.
//! - `Entry::live_bytes` is at least 1 while `live_records` is: an extent's space is given up only with its last record.
//! - A `Directory` is immutable. `Edit` makes the next one and shares every chunk it did not touch, so a checkpoint writes
//!   only the chunks that changed; a chunk is written once (`place`).
//! - An extent lies in one segment, that of its index.
//!
//! It finds records, it does not decide when an extent's space is reused (`space`) and does not write itself (`shard`).

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::BlockCache;
use super::block::{Stored, revision};
use super::cursor::ExtentCursor;
use super::fingers::Fingers;
use super::index::Index;
use super::whole::Whole;
use crate::tree::Victims;
use crate::{Fault, Place, Record, Revision};

/// Extents a chunk holds at most.
const CHUNK_ENTRIES_MAX: usize = 128;

/// One extent as the directory knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Revision of its first record.
    pub(crate) first: Revision,
    /// Revision of its last record.
    pub(crate) last: Revision,
    /// Where its index lies.
    pub(crate) index: Place,
    /// Records in it.
    pub(crate) records: u32,
    /// Records no sweep has dropped.
    pub(crate) live_records: u32,
    /// Length of its blocks and its index.
    pub(crate) bytes: u32,
    /// What of `bytes` is wanted still; the envelopes count until the last record is dropped.
    pub(crate) live_bytes: u32,
}

const ENTRY_LEN: usize = 16 + 16 + Place::ENCODED_LEN + 4 * 4;

impl Entry {
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

    fn decode(bytes: &[u8; ENTRY_LEN]) -> Option<Self> {
        let (revisions, rest) = bytes.split_at(32);
        let (index, words) = rest.split_first_chunk::<{ Place::ENCODED_LEN }>()?;
        let word = |at: usize| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
        let entry = Self {
            first: revision(revisions),
            last: revision(&revisions[16..]),
            index: Place::from_bytes(*index)?,
            records: word(0),
            live_records: word(4),
            bytes: word(8),
            live_bytes: word(12),
        };
        let is_sound = entry.first.main > 0
            && entry.first <= entry.last
            && entry.last.sub < i64::MAX
            && (1..=entry.records).contains(&entry.live_records)
            && (1..=entry.bytes).contains(&entry.live_bytes)
            && entry.index.len < entry.bytes
            && entry.bytes <= entry.index.end();
        is_sound.then_some(entry)
    }
}

/// A run of the directory, the unit it is written in.
#[derive(Debug)]
pub(crate) struct Chunk {
    entries: Vec<Entry>,
    place: OnceLock<Place>,
}

impl Chunk {
    fn new(entries: Vec<Entry>) -> Arc<Self> {
        assert!((1..=CHUNK_ENTRIES_MAX).contains(&entries.len()));
        assert!(entries.is_sorted_by(|a, b| a.last < b.first), "extents do not overlap");
        Arc::new(Self { entries, place: OnceLock::new() })
    }

    /// Where it lies on disk, once it was written.
    pub(crate) fn place(&self) -> Option<Place> {
        self.place.get().copied()
    }

    pub(crate) fn set_place(&self, place: Place) {
        assert!(self.place.set(place).is_ok(), "a chunk is written once");
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        self.entries.iter().for_each(|entry| entry.encode(out));
    }

    /// The chunk that lies at `place`; `None` if the payload is not one.
    pub(crate) fn decode(place: Place, payload: &[u8]) -> Option<Arc<Self>> {
        let (entries, rest) = payload.as_chunks::<ENTRY_LEN>();
        let entries: Vec<Entry> = entries.iter().map(Entry::decode).collect::<Option<_>>()?;
        let is_sound = rest.is_empty()
            && (1..=CHUNK_ENTRIES_MAX).contains(&entries.len())
            && entries.is_sorted_by(|a, b| a.last < b.first);
        is_sound.then(|| Arc::new(Self { entries, place: OnceLock::from(place) }))
    }

    fn first(&self) -> Revision {
        self.entries[0].first
    }

    fn last(&self) -> Revision {
        self.entries[self.entries.len() - 1].last
    }
}

/// Blocks of an extent that a long scan reads together with the one it needs.
const BLOCKS_AHEAD: usize = 2;
/// Those that are larger hold a record or two, and are read on their own. **Units** bytes.
const BLOCK_AHEAD_LEN_MAX: u32 = 24 << 10;

fn block_place(entry: &Entry, index: &Index, position: usize) -> Place {
    index.place(entry.index, position).expect("the index was checked")
}

/// Every extent of the store, by revision; immutable, replaced by each checkpoint.
#[derive(Debug)]
pub struct Directory {
    pub(super) cache: Arc<BlockCache>,
    chunks: Vec<Arc<Chunk>>,
}

impl Directory {
    /// A directory without extents, whose successors read through `cache`.
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

    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.chunks.iter().flat_map(|chunk| &chunk.entries)
    }

    /// Lowest revision an extent covers.
    pub fn first(&self) -> Option<Revision> {
        self.chunks.first().map(|chunk| chunk.first())
    }

    /// Highest revision an extent covers: every record up to it that is still stored is here, everything above is in
    /// `Recent`.
    pub fn last(&self) -> Option<Revision> {
        self.chunks.last().map(|chunk| chunk.last())
    }

    /// The version of `key` at `revision`, if it is in an extent.
    pub fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Fault> {
        let Some(entry) = self.holder(revision) else { return Ok(None) };
        let index = self.cache.index(entry)?;
        let block = self.cache.block(block_place(entry, &index, index.position(key, revision)))?;
        Ok(block.find(key, revision).map(|position| block.record(position)))
    }

    /// Where the version of `key` at `revision` lies, if it is in an extent; for walks over keys. A fault names the blocks behind it too
    /// ([`Fault::with_ahead`]).
    pub(crate) fn stored<'a>(
        &self,
        key: &[u8],
        revision: Revision,
        fingers: &'a mut Fingers,
    ) -> Result<Option<Stored<'a>>, Fault> {
        let Some(entry) = self.holder(revision) else { return Ok(None) };
        if fingers.seek(entry.index, key, revision) {
            return Ok(fingers.at(entry.index));
        }
        let index = self.cache.index(entry)?;
        let at = index.position(key, revision);
        let ahead = (at + 1..index.len().min(at + 1 + BLOCKS_AHEAD)).map(|at| block_place(entry, &index, at));
        let ahead: Vec<Place> = ahead.take_while(|place| place.len <= BLOCK_AHEAD_LEN_MAX).collect();
        let block = match self.cache.block(block_place(entry, &index, at)) {
            Ok(block) => block,
            Err(fault) if fingers.has_room_ahead() => return Err(fault.followed_by(ahead)),
            Err(fault) => return Err(fault),
        };
        let Some(position) = block.find(key, revision) else { return Ok(None) };
        // What was read ahead is taken though there is no room for more by now: it would be read again.
        let ahead = self.cache.read_lately(&ahead);
        Ok(Some(fingers.put(entry.index, (block, position), ahead)))
    }

    /// The extent that holds `revision` if any does.
    fn holder(&self, revision: Revision) -> Option<&Entry> {
        self.at_or_above(revision).filter(|entry| entry.first <= revision)
    }

    /// Record blocks read so far; it may go round.
    pub(crate) fn block_reads(&self) -> u32 {
        self.cache.block_reads()
    }

    /// All of the extent of `entry`, which is one of these.
    pub(crate) fn whole(&self, entry: &Entry) -> Result<Arc<Whole>, Fault> {
        self.cache.whole(entry)
    }

    /// The stored records from `revision` on, in revision order.
    pub fn records_from(self: &Arc<Self>, revision: Revision) -> ExtentCursor {
        ExtentCursor::new(Arc::clone(self), revision)
    }

    /// The extent that holds `revision`, or else the first one above it.
    pub(crate) fn at_or_above(&self, revision: Revision) -> Option<&Entry> {
        let chunk = self.chunks.get(self.chunks.partition_point(|chunk| chunk.last() < revision))?;
        let entry = &chunk.entries[chunk.entries.partition_point(|entry| entry.last < revision)];
        assert!(entry.last >= revision, "found by its last revision");
        Some(entry)
    }
}

/// Records that a sweep dropped since the last checkpoint, counted per extent: its size is bounded by the extents, by
/// the records that are in none yet, and by those of the extents that the checkpoint under way moves.
#[derive(Debug, Default)]
pub(crate) struct Dead {
    /// By the first revision of the extent, which only moving changes: records and bytes.
    extents: BTreeMap<Revision, (u32, u64)>,
    /// Records whose extent is not known yet: above every extent, or in one that is being moved.
    loose: Vec<(Revision, u32)>,
    /// Segments whose extents the checkpoint under way moves: what dies in them is counted in the next directory.
    moving: Victims,
    /// Sum of it all. **Units** bytes.
    bytes: u64,
}

impl Dead {
    /// An account for the time of a checkpoint that moves the extents out of segments of `moving`.
    pub(crate) fn during(moving: Victims) -> Self {
        Self { moving, ..Self::default() }
    }

    /// Encoded lengths of all records counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The checkpoint ended; what dies from now on is counted in its directory.
    pub(crate) fn moved(&mut self) {
        self.moving = Victims::default();
    }

    /// Counts the record of `bytes` at `revision`, which is in no live leaf any more.
    pub(crate) fn add(&mut self, directory: &Directory, revision: Revision, bytes: u32) {
        self.bytes += u64::from(bytes);
        self.place(directory, revision, bytes);
    }

    fn place(&mut self, directory: &Directory, revision: Revision, bytes: u32) {
        match directory.at_or_above(revision) {
            Some(entry) if self.moving.contains(entry.index.segment) => self.loose.push((revision, bytes)),
            Some(entry) => {
                assert!(entry.first <= revision, "a live record is in an extent or above all");
                let (records, sum) = self.extents.entry(entry.first).or_default();
                *records += 1;
                *sum += u64::from(bytes);
            }
            None => self.loose.push((revision, bytes)),
        }
    }

    /// What a checkpoint over `directory` takes along: the deaths in its extents, and in order the records it need not write.
    pub(crate) fn take(&mut self, directory: &Directory) -> (BTreeMap<Revision, (u32, u64)>, Vec<Revision>) {
        assert!(self.moving.is_empty(), "taken between checkpoints");
        for (revision, bytes) in std::mem::take(&mut self.loose) {
            self.place(directory, revision, bytes);
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
    /// Bytes of extents that died: segment and how many.
    pub(crate) dead_bytes: Vec<(u32, u64)>,
}

impl Edit {
    /// Begins with `directory` less what died in its extents, as [`Dead::take`] gives it.
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
            let mut entries = chunk.entries.clone();
            for (first, (records, bytes)) in of_chunk {
                let at =
                    entries.binary_search_by_key(first, |entry| entry.first).expect("counted for an extent that is");
                edit.dead_bytes.push(bury(&mut entries[at], *records, *bytes));
            }
            entries.retain(|entry| entry.live_records > 0);
            edit.dead_chunks.extend(chunk.place());
            edit.push_chunk(entries);
        }
        edit
    }

    /// The extents in segments of `victims`, in order, each with its position among all.
    pub(crate) fn in_segments(&self, victims: &Victims) -> Vec<(usize, Entry)> {
        let entries = self.kept.iter().flat_map(|chunk| &chunk.entries).copied().enumerate();
        entries.filter(|(_, entry)| victims.contains(entry.index.segment)).collect()
    }

    /// Has the chunks written anew that lie in segments of `victims`.
    pub(crate) fn renew(&mut self, victims: &Victims) {
        for chunk in &mut self.kept {
            let place = chunk.place().filter(|place| victims.contains(place.segment));
            if let Some(place) = place {
                self.dead_chunks.push(place);
                *chunk = Chunk::new(chunk.entries.clone());
            }
        }
    }

    /// Puts `added` in the place of `moved`, which hold the same live records; both are in order.
    pub(crate) fn replace(&mut self, moved: &[Entry], added: Vec<Entry>) {
        let live = |entries: &[Entry]| entries.iter().map(|entry| u64::from(entry.live_records)).sum::<u64>();
        assert_eq!(live(moved), live(&added), "moving loses no record and brings none back");
        let mut added = added.into_iter().peekable();
        let before = std::mem::take(&mut self.kept);
        for (number, chunk) in before.iter().enumerate() {
            let end = before.get(number + 1).map_or(Revision::MAX, |next| next.first());
            let position = moved.partition_point(|entry| entry.first < chunk.first());
            let is_touched = moved.get(position).is_some_and(|entry| entry.first <= chunk.last());
            let mut entries = chunk.entries.clone();
            entries.retain(|entry| moved.binary_search_by_key(&entry.first, |moved| moved.first).is_err());
            let kept = entries.len();
            entries.extend(std::iter::from_fn(|| added.next_if(|entry| entry.first < end)));
            if !is_touched && entries.len() == kept {
                self.kept.push(Arc::clone(chunk));
                continue;
            }
            entries.sort_unstable_by_key(|entry| entry.first);
            self.dead_chunks.extend(chunk.place());
            entries.chunks(CHUNK_ENTRIES_MAX).for_each(|entries| self.push_chunk(entries.to_vec()));
        }
        assert!(added.next().is_none(), "what is added lies in a chunk of what was moved");
    }

    /// Adds a changed run, joined with the one before where both fit in one chunk.
    fn push_chunk(&mut self, mut entries: Vec<Entry>) {
        if entries.is_empty() {
            return;
        }
        if let Some(before) = self.kept.pop_if(|before| before.entries.len() + entries.len() <= CHUNK_ENTRIES_MAX / 2) {
            self.dead_chunks.extend(before.place());
            entries.splice(0..0, before.entries.iter().copied());
        }
        self.kept.push(Chunk::new(entries));
    }

    /// The directory with `added` extents, in revision order, behind all others.
    pub(crate) fn finish(mut self, added: Vec<Entry>) -> (Arc<Directory>, Vec<Place>) {
        let mut added = added.into_iter();
        if added.len() > 0
            && let Some(last) = self.kept.pop_if(|last| last.entries.len() < CHUNK_ENTRIES_MAX)
        {
            self.dead_chunks.extend(last.place());
            let room = CHUNK_ENTRIES_MAX - last.entries.len();
            let entries = last.entries.iter().copied().chain(added.by_ref().take(room)).collect();
            self.kept.push(Chunk::new(entries));
        }
        while added.len() > 0 {
            self.kept.push(Chunk::new(added.by_ref().take(CHUNK_ENTRIES_MAX).collect()));
        }
        let directory = Directory::from_chunks(self.cache, self.kept).expect("new extents lie above all others");
        (directory, self.dead_chunks)
    }
}

/// Takes `records` of together `bytes` off an extent; its segment and the bytes it loses.
fn bury(entry: &mut Entry, records: u32, bytes: u64) -> (u32, u64) {
    assert!(records <= entry.live_records, "a record dies once");
    entry.live_records -= records;
    let lost = if entry.live_records == 0 {
        entry.live_bytes
    } else {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(entry.live_bytes - 1)
    };
    entry.live_bytes -= lost;
    (entry.index.segment, u64::from(lost))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(number: i64) -> Entry {
        Entry {
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
        assert_eq!(decoded.entries, directory.chunks[0].entries);
        assert_eq!(decoded.place(), Some(place));
        for at in 0..payload.len() {
            for byte in [0, 1, 0x80, 0xff] {
                let mut mutated = payload.clone();
                mutated[at] = byte;
                drop(Chunk::decode(place, &mutated));
            }
            assert_eq!(Chunk::decode(place, &payload[..at]).is_some(), at > 0 && at % ENTRY_LEN == 0);
        }
    }

    #[test]
    fn an_extent_is_dropped_with_its_last_record_and_untouched_chunks_are_shared() {
        let before = directory(300);
        assert_eq!(before.chunks.len(), 3);
        before.chunks.iter().zip(1..).for_each(|(chunk, segment)| {
            chunk.set_place(Place { segment, offset: 0, len: 4096 });
        });
        let mut dead = Dead::default();
        (0..10).for_each(|sub| dead.add(&before, Revision::new(1500 + sub, 0), 50));
        dead.add(&before, Revision::new(9999, 1), 7);
        assert_eq!(dead.bytes(), 507);
        let (extents, above) = dead.take(&before);
        assert_eq!(above, [Revision::new(9999, 1)]);
        let edit = Edit::new(&before, &extents);
        assert_eq!(edit.dead_bytes.iter().map(|(_, bytes)| bytes).sum::<u64>(), 1200);
        let (after, dead_chunks) = edit.finish(Vec::new());
        assert_eq!(after.entries().count(), 299);
        assert_eq!(dead_chunks, [Place { segment: 2, offset: 0, len: 4096 }]);
        assert!(Arc::ptr_eq(&before.chunks[0], &after.chunks[0]));
        assert!(after.chunks[1].place().is_none());

        let edit = Edit::new(&after, &BTreeMap::from([(Revision::new(1490, 0), (1, u64::MAX))]));
        assert_eq!(edit.dead_bytes, [(10, 1199)]);
        let (after, _) = edit.finish(vec![extent(400)]);
        assert_eq!(after.last(), Some(Revision::new(4009, 3)));
        assert_eq!(after.entries().count(), 300);
    }

    #[test]
    fn every_revision_finds_its_extent_or_the_next() {
        let directory = directory(300);
        for number in 1..=300 {
            for main in number * 10..number * 10 + 10 {
                assert_eq!(directory.at_or_above(Revision::new(main, 0)), Some(&extent(number)));
            }
            let gap = directory.at_or_above(Revision::new(number * 10 + 9, 4));
            assert_eq!(gap.copied(), (number < 300).then(|| extent(number + 1)));
        }
    }
}
