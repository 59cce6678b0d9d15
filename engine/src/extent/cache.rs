//! The blocks, indexes and extents that were read from disk, bounded by their bytes.
//!
//! Invariants:
//! - The content of a `Place` never changes: places are not reused, so nothing is ever invalidated.
//! - The operation that asked for a page finds it after it was resolved, even if the page is bigger than the whole
//!   cache, or the cache does not admit it: `latest` keeps the last few. A lookup needs an index *and* a block at once,
//!   so the two kinds never push each other out. Otherwise a reader would fault for ever.
//! - `latest` is bounded: indexes and extents by number, blocks by number and, after the first few, by bytes.
//! - A block enters the cache proper when it is read for the second time. For a reader of single records, every earlier
//!   read counts that is remembered (`Latest::seen`). For a scan, only reads since it began and the last few thousand
//!   count. So a scan leaves no trace, however long it is and however often it is repeated. The exception is a scan
//!   that works in more blocks at once than it holds itself ([`super::Fingers`]).
//! - Readers in revision order (backups, hashes, watchers that are behind) read extents whole. A few of these are kept
//!   while they are used.
//!
//! `latest` is behind a lock, which is taken only after a miss. Next to a disk read it costs nothing.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use quick_cache::Weighter;

use super::{block::Block, chunk::Extent, index::Index, whole::Whole};
use crate::{
    Error, Fault, Place,
    fault::Resolve,
    page::{self, Kind, corrupt},
};

/// The latest indexes that are kept beside the cache proper. Each is a few thousandths of its extent.
const LATEST_INDEXES_MAX: usize = 256;
/// The latest blocks that are kept.
const LATEST_BLOCKS_MAX: usize = 64;
/// The latest blocks that are kept however large they are. They are more than the cores that resolve at the same
/// moment.
const LATEST_BLOCKS_MIN: usize = 8;
/// The latest extents that are kept.
const WHOLES_MAX: usize = 8;
/// A block that a scan reads twice within this many reads of blocks is kept: the scan is short and is repeated.
const LATELY: u32 = 4096;
#[derive(Clone, Debug)]
enum Cached {
    Block(Arc<Block>),
    Index(Arc<Index>),
}

impl Cached {
    fn bytes(&self) -> usize {
        // The cost of a cached item beside its own bytes: the cache's slot and two reference counts.
        const OVERHEAD: usize = 96;
        OVERHEAD
            + match self {
                Self::Block(block) => block.bytes(),
                Self::Index(index) => index.bytes(),
            }
    }
}

#[derive(Clone, Debug)]
struct ByBytes;

impl Weighter<Place, Cached> for ByBytes {
    fn weight(&self, _: &Place, cached: &Cached) -> u64 {
        cached.bytes() as u64
    }
}

/// The pages that were resolved last, newest first.
#[derive(Debug)]
struct Latest {
    indexes: VecDeque<(Place, Arc<Index>)>,
    blocks: VecDeque<(Place, Arc<Block>)>,
    wholes: VecDeque<(Place, Arc<Whole>)>,
    /// At least this many of `wholes`, from the front, were used since the last `forget_wholes`.
    wholes_used: usize,
    /// Tags of the places that were read, and when. The hash of a place gives the position. A later place with the same
    /// position replaces the earlier one.
    seen: Vec<(u32, u32)>,
    /// Blocks read so far: the clock of `seen`. It may wrap around.
    block_reads: u32,
}

impl Latest {
    fn new(seen_len: usize) -> Self {
        assert!(seen_len.is_power_of_two());
        let (indexes, blocks, wholes) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
        Self { indexes, blocks, wholes, wholes_used: 0, seen: vec![(0, 0); seen_len], block_reads: 0 }
    }

    /// How many reads ago a block was read, if that is remembered. It also remembers this read.
    fn seen_ago(&mut self, place: Place) -> Option<u32> {
        let now = self.block_reads;
        self.block_reads = now.wrapping_add(1);
        // Fibonacci hashing of the fields that distinguish places: the high bits are well mixed.
        let id = u64::from(place.segment) << 32 | u64::from(place.offset);
        let hash = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let [.., a, b, c, d] = (hash >> 20).to_be_bytes();
        let tag = u32::from_be_bytes([a, b, c, d]) | 1;
        let position = usize::try_from(hash >> 32).expect("32 bits") & (self.seen.len() - 1);
        let (before, at) = std::mem::replace(&mut self.seen[position], (tag, now));
        (before == tag).then(|| now.wrapping_sub(at))
    }

    fn block(&self, place: Place) -> Option<Arc<Block>> {
        self.blocks.iter().find(|(at, _)| *at == place).map(|(_, block)| Arc::clone(block))
    }

    fn index(&self, place: Place) -> Option<Arc<Index>> {
        self.indexes.iter().find(|(at, _)| *at == place).map(|(_, index)| Arc::clone(index))
    }

    /// An extent by the place of its index. It then counts as used.
    fn whole(&mut self, place: Place) -> Option<Arc<Whole>> {
        let position = self.wholes.iter().position(|(at, _)| *at == place)?;
        let found = self.wholes.remove(position).expect("found above");
        let whole = Arc::clone(&found.1);
        self.push_whole(found);
        Some(whole)
    }

    fn push_whole(&mut self, whole: (Place, Arc<Whole>)) {
        self.wholes.push_front(whole);
        self.wholes.truncate(WHOLES_MAX);
        self.wholes_used = self.wholes_used.saturating_add(1);
    }

    fn push_block(&mut self, place: Place, block: Arc<Block>, bytes_max: usize) {
        self.blocks.push_front((place, block));
        let mut bytes = 0;
        let mut kept = 0;
        for (_, block) in self.blocks.iter().take(LATEST_BLOCKS_MAX) {
            bytes += block.bytes();
            if kept >= LATEST_BLOCKS_MIN && bytes > bytes_max {
                break;
            }
            kept += 1;
        }
        self.blocks.truncate(kept);
    }
}

/// The parts of extents that were read, bounded by their bytes. All readers share it.
#[derive(Debug)]
pub struct BlockCache {
    cache: quick_cache::sync::Cache<Place, Cached, ByBytes>,
    latest: Mutex<Latest>,
    latest_bytes_max: usize,
}

impl BlockCache {
    /// A cache of at most about `bytes_max`. **Bounds** beside that it may hold an eighth of it or a few blocks, and a
    /// few extents.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        // Blocks have about this size. It is only used to size the tables.
        const BLOCK_BYTES_USUAL: usize = 16 << 10;
        let blocks = bytes_max / BLOCK_BYTES_USUAL;
        let seen_len = (2 * blocks).next_power_of_two().max(64);
        Arc::new(Self {
            cache: quick_cache::sync::Cache::with_weighter(blocks, bytes_max as u64, ByBytes),
            latest: Mutex::new(Latest::new(seen_len)),
            latest_bytes_max: bytes_max / 8,
        })
    }

    /// Bytes that it holds, without the pages that were read last (`latest`). **Units** bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.cache.weight()
    }

    /// Changes how much it may hold.
    pub(crate) fn set_bytes_max(&self, bytes_max: u64) {
        // Small changes are not worth a walk over its parts. Each change also rounds its bookkeeping down a little.
        if self.cache.capacity().abs_diff(bytes_max) > bytes_max / 16 {
            self.cache.set_capacity(bytes_max);
        }
    }

    /// Drops the extents that nobody has used since the last call. A reader in the middle of one reads it again.
    pub(crate) fn forget_wholes(&self) {
        let mut latest = self.latest();
        let used = std::mem::take(&mut latest.wholes_used).min(latest.wholes.len());
        latest.wholes.truncate(used);
        if used == 0 {
            latest.wholes = VecDeque::new();
        }
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Blocks read so far. The number may wrap around.
    pub(crate) fn block_reads(&self) -> u32 {
        self.latest().block_reads
    }

    /// The block at `place`, if it is in memory.
    pub(super) fn held_block(&self, place: Place) -> Option<Arc<Block>> {
        match self.cache.get(&place) {
            Some(Cached::Block(block)) => Some(block),
            Some(Cached::Index(_)) => unreachable!("the kind of a page is part of its checksum"),
            None => self.latest().block(place),
        }
    }

    /// The block at `place`, or the fault for it.
    pub(super) fn block(self: &Arc<Self>, place: Place) -> Result<Arc<Block>, Fault> {
        self.held_block(place).ok_or_else(|| self.block_fault(place, Vec::new()))
    }

    /// The fault for the missing block at `place`. The blocks at `ahead` lie after it.
    #[cold]
    pub(super) fn block_fault(self: &Arc<Self>, place: Place, ahead: Vec<Place>) -> Fault {
        Fault::new(place, Arc::new(BlockRead { cache: Arc::clone(self), seen_since: None, ahead }))
    }

    /// The blocks at `places`, up to the first that is not among the latest.
    pub(super) fn read_lately(&self, places: &[Place]) -> VecDeque<Arc<Block>> {
        if places.is_empty() {
            return VecDeque::new();
        }
        let latest = self.latest();
        places.iter().map_while(|place| latest.block(*place)).collect()
    }

    pub(super) fn index(self: &Arc<Self>, extent: &Extent) -> Result<Arc<Index>, Fault> {
        match self.cache.get(&extent.index) {
            Some(Cached::Index(index)) => Ok(index),
            Some(Cached::Block(_)) => unreachable!("the kind of a page is part of its checksum"),
            None => self.latest().index(extent.index).ok_or_else(|| {
                Fault::new(extent.index, Arc::new(IndexRead { cache: Arc::clone(self), extent: *extent }))
            }),
        }
    }

    pub(crate) fn whole(self: &Arc<Self>, extent: &Extent) -> Result<Arc<Whole>, Fault> {
        let whole = self.latest().whole(extent.index);
        let missing = || Arc::new(WholeRead { cache: Arc::clone(self), extent: *extent });
        whole.ok_or_else(|| Fault::new(Whole::place(extent), missing()))
    }

    /// Decodes a block with a good checksum, and keeps it among the latest. It also enters the cache proper if it was
    /// read before. For a scan, that read must be recent, or not older than `seen_since`.
    fn install_block(&self, place: Place, payload: &[u8], seen_since: Option<u32>) -> Result<(), Error> {
        let block = Arc::new(Block::decode(payload).ok_or_else(|| corrupt(place, "malformed records"))?);
        let is_admitted = {
            let mut latest = self.latest();
            latest.push_block(place, Arc::clone(&block), self.latest_bytes_max);
            let began = seen_since.map(|since| latest.block_reads.wrapping_sub(since));
            let ago = latest.seen_ago(place);
            ago.is_some_and(|ago| began.is_none_or(|began| ago <= began.max(LATELY)))
        };
        if is_admitted {
            self.cache.insert(place, Cached::Block(block));
        }
        Ok(())
    }

    /// Decodes an index with a good checksum, and keeps it.
    fn install_index(&self, extent: &Extent, payload: &[u8]) -> Result<(), Error> {
        let index = Index::decode(payload).filter(|index| index.blocks_len() == extent.bytes - extent.index.len);
        let index = Arc::new(index.ok_or_else(|| corrupt(extent.index, "malformed extent index"))?);
        let mut latest = self.latest();
        latest.indexes.push_front((extent.index, Arc::clone(&index)));
        latest.indexes.truncate(LATEST_INDEXES_MAX);
        drop(latest);
        self.cache.insert(extent.index, Cached::Index(index));
        Ok(())
    }

    /// Checks an extent and keeps it for a while.
    fn install_whole(&self, extent: &Extent, bytes: &[u8]) -> Result<(), Error> {
        let whole = Arc::new(Whole::decode(extent, bytes)?);
        self.latest().push_whole((extent.index, whole));
        Ok(())
    }
}

/// A missing block.
struct BlockRead {
    cache: Arc<BlockCache>,
    /// When the scan that wants it began; `None` for a reader of single records.
    seen_since: Option<u32>,
    /// The next blocks that a long scan will need.
    ahead: Vec<Place>,
}

impl Resolve for BlockRead {
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error> {
        self.cache.install_block(place, page::open(Kind::Block, place, envelope)?, self.seen_since)
    }

    fn scanning(&self, began: u32) -> Option<Arc<dyn Resolve>> {
        let (cache, ahead) = (Arc::clone(&self.cache), self.ahead.clone());
        Some(Arc::new(Self { cache, seen_since: Some(began), ahead }))
    }

    fn apart(&self) -> Option<(Arc<dyn Resolve>, &[Place])> {
        if self.ahead.is_empty() {
            return None;
        }
        let (cache, seen_since, ahead) = (Arc::clone(&self.cache), self.seen_since, Vec::new());
        Some((Arc::new(Self { cache, seen_since, ahead }), &self.ahead))
    }
}

/// The missing index of an extent.
struct IndexRead {
    cache: Arc<BlockCache>,
    extent: Extent,
}

impl Resolve for IndexRead {
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error> {
        self.cache.install_index(&self.extent, page::open(Kind::ExtentIndex, place, envelope)?)
    }
}

/// A whole extent that is missing.
struct WholeRead {
    cache: Arc<BlockCache>,
    extent: Extent,
}

impl Resolve for WholeRead {
    fn resolve(&self, _place: Place, envelope: &[u8]) -> Result<(), Error> {
        self.cache.install_whole(&self.extent, envelope)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::{super::BlockBuilder, *};
    use crate::{Record, Revision};

    fn payload() -> Vec<u8> {
        let (key, value) = (Bytes::from_static(b"key"), Bytes::from_static(b"value"));
        let revision = Revision::new(2, 0);
        let mut builder = BlockBuilder::default();
        builder.push(&Record { key, value, create_revision: 2, revision, version: 1, lease: 0, is_tombstone: false });
        let mut payload = Vec::new();
        builder.finish(&mut payload);
        payload
    }

    #[test]
    fn a_scan_leaves_no_trace_but_what_it_or_another_lately_read_twice() {
        let (cache, payload) = (BlockCache::new(1 << 28), payload());
        let place = |number: u32| Place { segment: 1, offset: 64 * number, len: 64 };
        let read = |numbers: std::ops::Range<u32>, since| {
            numbers.for_each(|number| cache.install_block(place(number), &payload, since).unwrap());
        };
        for _ in 0..2 {
            // It never comes back to a block, and its last read of the block was too long ago.
            read(0..LATELY + 10, Some(cache.block_reads()));
            assert_eq!(cache.bytes(), 0);
        }
        let began = cache.block_reads();
        read(0..LATELY + 10, Some(began));
        read(0..1, Some(began));
        let one = cache.bytes();
        assert!(one > 0, "the same scan came back");
        read(LATELY..LATELY + 1, Some(cache.block_reads()));
        assert_eq!(cache.bytes(), 2 * one, "another scan came by lately");
        read(1..2, None);
        assert_eq!(cache.bytes(), 3 * one, "whoever wants a record alone comes back to its block at any time");
    }

    #[test]
    fn what_was_read_last_is_found_though_the_cache_does_not_admit_it() {
        let (cache, payload) = (BlockCache::new(0), payload());
        let place = Place { segment: 1, offset: 0, len: 64 };
        assert!(cache.block(place).is_err());
        cache.install_block(place, &payload, None).unwrap();
        assert!(cache.block(place).is_ok());
        assert_eq!(cache.bytes(), 0);
    }
}
