//! Blocks and indexes that were read from disk, bounded by their bytes.
//!
//! Invariants:
//! - What is cached under a `Place` never changes: places are not reused, so nothing is ever invalidated.
//! - A block just resolved is found by the operation that asked for it, even if it is bigger than the whole cache or the cache
//!   does not admit it: `latest` keeps the last few, bounded by number and by bytes (one block always fits). Without it
//!   a reader of such a block would fault for ever.
//!
//! `latest` is behind a lock, taken only after a miss: next to a disk read it costs nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use quick_cache::Weighter;

use super::block::{Block, Index};
use crate::page::{Fault, Kind, corrupt};
use crate::{Error, Place};

/// Last resolved blocks kept besides the cache proper.
const LATEST_MAX: usize = 64;

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

/// Record blocks and extent indexes read from disk, bounded by their bytes; shared by all readers.
#[derive(Debug)]
pub struct BlockCache {
    cache: quick_cache::sync::Cache<Place, Cached, ByBytes>,
    latest: Mutex<VecDeque<(Place, Cached)>>,
    latest_bytes_max: usize,
}

impl BlockCache {
    /// A cache of at most about `bytes_max`. **Bounds** a ninth of it may be held besides for the blocks resolved last.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        // Blocks are about this big; it only sizes the table.
        const BLOCK_BYTES_USUAL: usize = 16 << 10;
        Arc::new(Self {
            cache: quick_cache::sync::Cache::with_weighter(bytes_max / BLOCK_BYTES_USUAL, bytes_max as u64, ByBytes),
            latest: Mutex::new(VecDeque::new()),
            latest_bytes_max: bytes_max / 8,
        })
    }

    fn get(&self, place: Place) -> Option<Cached> {
        self.cache.get(&place).or_else(|| {
            let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
            latest.iter().find(|(at, _)| *at == place).map(|(_, cached)| cached.clone())
        })
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

    /// Decodes a payload whose checksum is good and keeps it.
    pub(crate) fn install(&self, kind: Kind, place: Place, payload: &[u8]) -> Result<(), Error> {
        let cached = match kind {
            Kind::Block => Block::decode(payload).map(|block| Cached::Block(Arc::new(block))),
            Kind::ExtentIndex => Index::decode(payload).map(|index| Cached::Index(Arc::new(index))),
            _ => unreachable!("only blocks and extent indexes are cached"),
        };
        let cached = cached.ok_or_else(|| corrupt(place, "malformed records"))?;
        self.cache.insert(place, cached.clone());
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.push_front((place, cached));
        let mut bytes = 0;
        let kept = latest.iter().take(LATEST_MAX).take_while(|(_, cached)| {
            let is_within = bytes <= self.latest_bytes_max;
            bytes += cached.bytes();
            is_within
        });
        let kept = kept.count();
        latest.truncate(kept);
        assert!(kept >= 1, "what was resolved last is kept");
        Ok(())
    }
}
