//! Records on disk: extents of records in revision order, their blocks and indexes, and the directory that finds one by
//! its revision.
//!
//! A checkpoint packs the records it writes, in revision order, into blocks of about 16 KiB, and the blocks into
//! extents. An extent is its blocks followed by an index, all in one segment. Leaves of the key tree name a record by its
//! revision, never by a place, so neither a checkpoint nor reclaim rewrites leaves because records moved.
//!
//! - `block`: the bytes of records, blocks and indexes. `cache`: those read from disk. `directory`: which extent holds a
//!   revision, and what of it is live. `cursor`: records in revision order. `whole`: all records of one extent.

mod block;
mod cache;
mod cursor;
mod directory;
mod whole;

pub(crate) use block::{BlockBuilder, Index, IndexEntry, rewritten_block};
pub use block::{Stored, record_bytes};
pub use cache::BlockCache;
pub use cursor::ExtentCursor;
pub use directory::Directory;
pub(crate) use directory::{Chunk, Dead, Edit, Entry};
pub(crate) use whole::Whole;
