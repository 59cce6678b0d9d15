//! Reads all records of one extent, some blocks ahead.
//!
//! Invariants: `records` are those of the blocks before `block`, so that a call after faults goes on where it was; at most
//! [`BLOCKS_AHEAD`] blocks are asked for at once, which `BlockCache` keeps when
//! they are read.

use std::sync::Arc;

use super::BlockCache;
use super::directory::{Entry, block_place};
use crate::{Fault, Record};

/// Blocks asked for at once.
const BLOCKS_AHEAD: usize = 8;

/// The records of one extent, as far as they have been read.
#[derive(Debug)]
pub(crate) struct Whole {
    entry: Entry,
    cache: Arc<BlockCache>,
    block: usize,
    records: Vec<Record>,
}

impl Whole {
    pub(crate) fn new(entry: Entry, cache: Arc<BlockCache>) -> Self {
        Self { entry, cache, block: 0, records: Vec::new() }
    }

    pub(crate) fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Reads on; all records, once they are there, or what has to be read first.
    pub(crate) fn read(&mut self) -> Result<&[Record], Vec<Fault>> {
        let index = self.cache.index(self.entry.index).map_err(|fault| vec![fault])?;
        while let Some(at) = index.blocks.get(self.block) {
            let Ok(block) = self.cache.block(block_place(&self.entry, *at)) else {
                let ahead = index.blocks[self.block..].iter().take(BLOCKS_AHEAD);
                let faults = ahead.filter_map(|at| self.cache.block(block_place(&self.entry, *at)).err());
                return Err(faults.collect());
            };
            self.records.extend((0..block.len()).map(|position| block.record(position)));
            self.block += 1;
        }
        assert_eq!(self.records.len(), self.entry.records as usize, "an extent holds what the directory says");
        Ok(&self.records)
    }

    /// Takes the records out.
    pub(crate) fn into_records(self) -> Vec<Record> {
        self.records
    }
}
