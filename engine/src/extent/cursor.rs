//! Walks the records of a directory in revision order.
//!
//! Invariants: `next` is the lowest revision not given out yet, so that a call after a fault goes on exactly where it
//! was; `block` is what was read last, held so that each block is looked up once.

use std::sync::Arc;

use super::block::Block;
use super::directory::{Directory, block_place};
use crate::{Fault, Record, Revision};

/// Walks the records of a [`Directory`] in revision order.
#[derive(Debug)]
pub struct ExtentCursor {
    directory: Arc<Directory>,
    next: Revision,
    block: Option<(Arc<Block>, usize)>,
    is_done: bool,
}

impl ExtentCursor {
    pub(super) fn new(directory: Arc<Directory>, from: Revision) -> Self {
        Self { directory, next: from, block: None, is_done: false }
    }

    /// The next record; after a [`Fault`] is resolved the same call goes on where it was.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot say what has to be read first")]
    pub fn next(&mut self) -> Result<Option<Record>, Fault> {
        while !self.is_done {
            if let Some((block, position)) = &mut self.block
                && *position < block.len()
            {
                let record = block.record(*position);
                *position += 1;
                assert!(record.revision >= self.next, "records come in revision order");
                self.next = Revision { main: record.revision.main, sub: record.revision.sub + 1 };
                return Ok(Some(record));
            }
            self.block = None;
            self.seek()?;
        }
        Ok(None)
    }

    /// What is missing of the next `most` blocks, for whoever reads on: they are then read at once.
    pub(crate) fn ahead(&self, most: usize) -> Vec<Fault> {
        let Some(entry) = self.directory.at_or_above(self.next) else { return Vec::new() };
        let cache = &self.directory.cache;
        let Ok(index) = cache.index(entry.index) else { return Vec::new() };
        let blocks = index.blocks[index.position(self.next)..].iter().take(most);
        blocks.filter_map(|block| cache.block(block_place(entry, *block)).err()).map(Fault::passing).collect()
    }

    /// Finds the block of the first record at or above `next`.
    fn seek(&mut self) -> Result<(), Fault> {
        let Some(entry) = self.directory.at_or_above(self.next) else {
            self.is_done = true;
            return Ok(());
        };
        let cache = &self.directory.cache;
        let index = cache.index(entry.index)?;
        let at = index.position(self.next);
        let block = cache.block(block_place(entry, index.blocks[at])).map_err(Fault::passing)?;
        let position = block.position(self.next);
        if position < block.len() {
            self.block = Some((block, position));
            return Ok(());
        }
        // What follows begins with the next block of the extent, or else behind the extent.
        self.next = match index.blocks.get(at + 1) {
            Some(following) => following.first,
            None => Revision { main: entry.last.main, sub: entry.last.sub + 1 },
        };
        Ok(())
    }
}
