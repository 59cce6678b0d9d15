//! Bytes into durable bytes, and revisions: the WAL, the copy-on-write B+tree with etcd's MVCC, and the page store.
//!
//! Knows no Raft, gRPC or lease. Only `disk` touches a file.

mod checkpoint;
pub mod cursor;
pub mod disk;
mod error;
pub mod extent;
#[doc(hidden)]
pub mod hostile;
pub mod inspect;
pub mod mvcc;
pub mod node;
pub mod page;
mod reader;
pub mod recent;
mod reclaim;
mod record;
mod relocation;
mod revision;
mod shard;
mod space;
pub mod store;
mod superblock;
mod tree;
pub mod wal;
mod writer;

pub use checkpoint::{Checkpoint, CheckpointDone, Progress};
pub use cursor::{Count, Cursor, KeyRange, Met, MetaCursor, Outline, RangeEnd, RevisionCursor, Usage, Version};
pub use error::Error;
pub use mvcc::{
    Change, Changes, Eviction, Found, HashKv, Mvcc, Published, PutPlain, ReadView, Roots, Sealed, SweepProgress, Write,
};
pub use page::{Fault, Place};
pub use reader::{Loaded, PageReader, load, load_for};
pub use reclaim::Reclaimed;
pub use record::Record;
pub use revision::Revision;
pub use shard::{ShardJob, ShardProgress};
pub use store::Store;
pub use tree::Profile;
