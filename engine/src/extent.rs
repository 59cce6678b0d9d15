//! Records on disk: extents of records in revision order, and the directory that finds one by its revision.

use std::sync::Arc;

use crate::page::{Fault, Kind};
use crate::{Error, Place, Record, Revision};

/// Record blocks and extent indexes read from disk, bounded by their bytes.
#[derive(Debug)]
pub struct BlockCache {}

impl BlockCache {
    /// A cache of at most about `bytes_max`.
    pub fn new(_bytes_max: usize) -> Arc<Self> {
        Arc::new(Self {})
    }

    pub(crate) fn install(&self, _kind: Kind, _place: Place, _payload: &[u8]) -> Result<(), Error> {
        Ok(())
    }
}

/// Every extent of the store, by revision; immutable, replaced by each checkpoint.
#[derive(Debug)]
pub struct Directory {
    cache: Arc<BlockCache>,
}

impl Directory {
    /// A directory without extents.
    pub fn empty(cache: Arc<BlockCache>) -> Arc<Self> {
        Arc::new(Self { cache })
    }

    /// The record at `revision`, if it is in an extent.
    pub fn record(&self, _revision: Revision) -> Result<Option<Record>, Fault> {
        Ok(None)
    }

    /// Lowest revision an extent covers.
    pub fn first(&self) -> Option<Revision> {
        None
    }

    /// Highest revision an extent covers: every record up to it that is still stored is here, everything above is in
    /// `Recent`.
    pub fn last(&self) -> Option<Revision> {
        None
    }

    /// The stored records from `revision` on, in revision order.
    pub fn records_from(self: &Arc<Self>, revision: Revision) -> ExtentCursor {
        ExtentCursor { directory: Arc::clone(self), from: revision }
    }
}

/// Walks the records of a [`Directory`] in revision order.
#[derive(Debug)]
pub struct ExtentCursor {
    directory: Arc<Directory>,
    from: Revision,
}

impl ExtentCursor {
    /// The next record; after a [`Fault`] is resolved the same call goes on where it was.
    pub fn next(&mut self) -> Result<Option<Record>, Fault> {
        let record = self.directory.record(self.from)?;
        Ok(record)
    }
}
