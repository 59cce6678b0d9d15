//! Records on disk: extents of records with their blocks and indexes, and the directory that finds an extent by a
//! revision.
//!
//! A checkpoint cuts the records that it writes, in revision order, into extents of about 1 MiB. Inside an extent,
//! records are in the order of tree entries. They are packed into blocks of about 16 KiB, with an index after them, all
//! in one segment. So a walk over keys reads each block once, in whatever order the keys were written. A reader in
//! revision order reads each extent once. Leaves of the key tree name a record by key and revision, never by a place.
//! So neither a checkpoint nor reclaim rewrites leaves because records moved.
//!
//! Files, from the ground up:
//! - `block`: the bytes of a record, and of a block of records. `index`: where the blocks of an extent lie.
//! - `chunk`: an extent as the directory knows it, and the runs in which extents are written.
//! - `whole`: all records of one extent, in revision order.
//! - `cache`: blocks, indexes and extents that were read from disk.
//! - `fingers`: the positions of walks over keys in each extent.
//! - `directory`: which extent holds a revision, and how much of it is live.
//! - `cursor`: stored records in revision order.

mod block;
mod cache;
mod chunk;
mod cursor;
mod directory;
mod fingers;
mod index;
mod whole;

pub(crate) use block::{BlockBuilder, Stored, decoded_block, record_bytes, rewritten_block};
pub use cache::BlockCache;
pub(crate) use chunk::{Chunk, Extent};
pub(crate) use cursor::ExtentCursor;
pub use directory::Directory;
pub(crate) use directory::{DeadRecords, Edit};
pub use fingers::Fingers;
pub(crate) use index::{Index, IndexBuilder, rewritten_index};
pub(crate) use whole::Whole;
