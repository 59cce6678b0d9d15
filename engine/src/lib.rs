//! Bytes into durable bytes, and revisions: the WAL, the copy-on-write B+tree with etcd's MVCC, and the page store.
//!
//! Knows no Raft, gRPC or lease. Only `disk` touches a file.

pub mod cursor;
pub mod disk;
mod error;
pub mod extent;
pub mod mvcc;
pub mod node;
pub mod page;
pub mod recent;
mod record;
mod revision;
pub mod wal;

pub use cursor::{Count, Cursor, KeyRange, MetaCursor, RangeEnd, RevisionCursor, Version};
pub use error::Error;
pub use mvcc::{Change, Changes, HashKv, Mvcc, Published, ReadView, Roots, Sealed, SweepProgress, Write};
pub use page::{Fault, Place};
pub use record::Record;
pub use revision::Revision;
