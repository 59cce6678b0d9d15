//! Records on disk: extents of records, their blocks and indexes, and the directory that finds an extent by a revision.
//!
//! A checkpoint cuts the records it writes, in revision order, into extents of about 1 MiB. In an extent records are in the order of
//! tree entries, packed into blocks of about 16 KiB with an index behind them, all in one segment: so a walk over keys reads each block
//! once, whatever order they were written in, and a walk over revisions reads each extent once. Leaves of the key tree name a record by
//! key and revision, never by a place, so neither a checkpoint nor reclaim rewrites leaves because records moved.
//!
//! - `block`: the bytes of records and blocks. `index`: where an extent's blocks lie, between which keys. `cache`: what was
//!   read from disk. `directory`: which extent holds a revision, and what of it is live. `cursor`: records in revision order.
//!   `whole`: all records of one extent. `fingers`: where walks over keys are in each extent.

mod block;
mod cache;
mod cursor;
mod directory;
mod fingers;
mod index;
mod whole;

pub(crate) use block::{BlockBuilder, rewritten_block};
pub use block::{Stored, record_bytes};
pub use cache::BlockCache;
pub use cursor::ExtentCursor;
pub use directory::Directory;
pub(crate) use directory::{Chunk, Dead, Edit, Entry};
pub use fingers::Fingers;
pub(crate) use index::{IndexBuilder, rewritten_index};
pub(crate) use whole::Whole;
