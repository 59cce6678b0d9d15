//! Blocks and indexes that were read from disk, bounded by their bytes.
//!
//! Invariants:
//! - What is cached under a `Place` never changes: places are not reused, so nothing is ever invalidated.
//! - What was just resolved is found by the operation that asked for it, even if it is bigger than the whole cache or the cache
//!   does not admit it: `latest` keeps the last few. A lookup needs an index *and* a block at once, so the two kinds
//!   never push each other out. Without this a reader would fault for ever.
//! - `latest` is bounded: indexes by number, blocks by number and, beyond the first few, by bytes.
//! - A block enters the cache proper when it is read for the second time in a while (`Latest::seen`): a scan whose keys lie as they were
//!   written, however long, leaves no trace. One whose keys do not wants each block again and again, and has it kept at once.
//!   Readers in revision order (backups, hashes, watchers behind) need each block once, and have none admitted.
//!
//! `latest` is behind a lock, taken only after a miss: next to a disk read it costs nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quick_cache::Weighter;

use super::block::{Block, Index};
use crate::page::{Fault, Keep, Kind, corrupt};
use crate::{Error, Place};

/// Indexes resolved last that are kept besides the cache proper; each is a thousandth of its extent.
const LATEST_INDEXES_MAX: usize = 256;
/// Blocks resolved last that are kept.
const LATEST_BLOCKS_MAX: usize = 64;
/// So many of them are kept however big they are: more than there are cores that resolve at the same moment.
const LATEST_BLOCKS_MIN: usize = 8;

#[derive(Clone, Debug)]
enum Cached {
    Block(Arc<Block>),
    Index(Arc<Index>),
}

impl Cached {
    fn bytes(&self) -> usize {
        // What a cached item costs besides its own bytes: the cache's slot and two reference counts.
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

/// What was resolved last, newest first.
#[derive(Debug)]
struct Latest {
    indexes: VecDeque<(Place, Arc<Index>)>,
    blocks: VecDeque<(Place, Arc<Block>)>,
    /// Tags of places that were read, each at the position its hash gives; a later one of the same position takes it over.
    seen: Vec<u32>,
}

impl Latest {
    fn new(seen_len: usize) -> Self {
        assert!(seen_len.is_power_of_two());
        Self { indexes: VecDeque::new(), blocks: VecDeque::new(), seen: vec![0; seen_len] }
    }

    /// Whether a block was read before, as far as is remembered; it is from now on.
    fn was_seen(&mut self, place: Place) -> bool {
        // Fibonacci hashing of what tells places apart: the high bits are well mixed.
        let id = u64::from(place.segment) << 32 | u64::from(place.offset);
        let hash = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let [.., a, b, c, d] = (hash >> 20).to_be_bytes();
        let tag = u32::from_be_bytes([a, b, c, d]) | 1;
        let position = usize::try_from(hash >> 32).expect("32 bits") & (self.seen.len() - 1);
        std::mem::replace(&mut self.seen[position], tag) == tag
    }

    fn get(&self, place: Place) -> Option<Cached> {
        let index = || self.indexes.iter().find(|(at, _)| *at == place);
        let block = self.blocks.iter().find(|(at, _)| *at == place);
        let block = block.map(|(_, block)| Cached::Block(Arc::clone(block)));
        block.or_else(|| index().map(|(_, index)| Cached::Index(Arc::clone(index))))
    }

    fn push(&mut self, place: Place, cached: Cached, bytes_max: usize) {
        match cached {
            Cached::Index(index) => {
                self.indexes.push_front((place, index));
                self.indexes.truncate(LATEST_INDEXES_MAX);
            }
            Cached::Block(block) => {
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
    }
}

/// Record blocks and extent indexes read from disk, bounded by their bytes; shared by all readers.
#[derive(Debug)]
pub struct BlockCache {
    cache: quick_cache::sync::Cache<Place, Cached, ByBytes>,
    latest: Mutex<Latest>,
    latest_bytes_max: usize,
}

impl BlockCache {
    /// A cache of at most about `bytes_max`. **Bounds** an eighth of it, or a few blocks, may be held besides.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        // Blocks are about this big; it only sizes the tables.
        const BLOCK_BYTES_USUAL: usize = 16 << 10;
        let blocks = bytes_max / BLOCK_BYTES_USUAL;
        let seen_len = (2 * blocks).next_power_of_two().max(64);
        Arc::new(Self {
            cache: quick_cache::sync::Cache::with_weighter(blocks, bytes_max as u64, ByBytes),
            latest: Mutex::new(Latest::new(seen_len)),
            latest_bytes_max: bytes_max / 8,
        })
    }

    /// Changes how much it may hold.
    pub(crate) fn set_bytes_max(&self, bytes_max: u64) {
        // Small changes are not worth a walk over its parts, and each rounds its bookkeeping down a little.
        if self.cache.capacity().abs_diff(bytes_max) > bytes_max / 16 {
            self.cache.set_capacity(bytes_max);
        }
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn get(&self, place: Place) -> Option<Cached> {
        self.cache.get(&place).or_else(|| self.latest().get(place))
    }

    pub(super) fn block(self: &Arc<Self>, place: Place) -> Result<Arc<Block>, Fault> {
        match self.get(place) {
            Some(Cached::Block(block)) => Ok(block),
            Some(Cached::Index(_)) => unreachable!("the kind of a page is part of its checksum"),
            None => Err(Fault::block(Kind::Block, place, Arc::clone(self))),
        }
    }

    pub(super) fn index(self: &Arc<Self>, place: Place) -> Result<Arc<Index>, Fault> {
        match self.get(place) {
            Some(Cached::Index(index)) => Ok(index),
            Some(Cached::Block(_)) => unreachable!("the kind of a page is part of its checksum"),
            None => Err(Fault::block(Kind::ExtentIndex, place, Arc::clone(self))),
        }
    }

    /// Decodes a payload whose checksum is good and keeps it: an index always, a block as `keep` says, but always among the latest.
    pub(crate) fn install(&self, kind: Kind, place: Place, payload: &[u8], keep: Keep) -> Result<(), Error> {
        let cached = match kind {
            Kind::Block => Block::decode(payload).map(|block| Cached::Block(Arc::new(block))),
            Kind::ExtentIndex => Index::decode(payload).map(|index| Cached::Index(Arc::new(index))),
            _ => unreachable!("only blocks and extent indexes are cached"),
        };
        let cached = cached.ok_or_else(|| corrupt(place, "malformed records"))?;
        let is_shared = matches!(&cached, Cached::Block(block) if block.len() > 1);
        let is_admitted = {
            let mut latest = self.latest();
            latest.push(place, cached.clone(), self.latest_bytes_max);
            let is_kept = match keep {
                Keep::IfSeen => latest.was_seen(place),
                // A large record fills its block: there is nothing else in it to come back for.
                Keep::IfMore => is_shared || latest.was_seen(place),
                Keep::Never => false,
            };
            kind == Kind::ExtentIndex || is_kept
        };
        if is_admitted {
            self.cache.insert(place, cached);
        }
        Ok(())
    }
}
