//! Turns bytes into durable bytes, and keeps revisions: the WAL, the copy-on-write B+tree with etcd's MVCC, the page
//! store.
//!
//! It knows no Raft, gRPC or lease. Only `disk` touches a file.
//!
//! Folders and files, from the ground up. A file imports only what stands above it here:
//! - `error`: the errors between bytes and durable bytes.
//! - `varint`, `prefix`: numbers as protobuf writes them; the common first bytes of keys.
//! - `key_value`: the fields of an `mvccpb.KeyValue`.
//! - `revision`, `record`: the store-wide MVCC number; one version of one key.
//! - `disk/`: the one seam to files.
//! - `wal/`: the write-ahead log, which is the Raft log.
//! - `page`: the places of bytes in the page store, and the envelope around them.
//! - `fault`: says that a page is not in memory. `unreadable`: the pages that could not be read.
//! - `victims`: the segments that are being emptied.
//! - `extent/`: records on disk. `tree/`: the B+trees over them.
//! - `mvcc/`: etcd's MVCC: the writer, views, cursors, the hash.
//! - `pages/`: the page store: checkpoints, space, recovery.
//! - `hostile`, `planted`, `test_support`: for fuzz targets, and for tests.

pub mod disk;
mod error;
mod extent;
mod fault;
#[doc(hidden)]
pub mod hostile;
mod key_value;
mod mvcc;
mod page;
mod pages;
#[doc(hidden)]
pub mod planted;
mod prefix;
mod record;
mod revision;
pub mod test_support;
mod tree;
mod unreadable;
mod varint;
mod victims;
pub mod wal;

pub use error::Error;
pub use extent::Fingers;
pub use fault::Fault;
pub use mvcc::{
    Change, Changes, Count, Cursor, Ended, Eviction, Found, HashKv, KeyRange, Met, MetaCursor, Mvcc, Outline,
    Published, PutPlain, RangeEnd, ReadView, RevisionCursor, Roots, Sealed, SweepProgress, Usage, Version, Write,
};
pub use page::Place;
pub use pages::{
    Checkpoint, CheckpointDone, Loaded, PageReader, Progress, Reclaimed, ShardJob, ShardProgress, Store, VITAL_MAX,
    Vital, inspect, load, load_for, load_noted, salvage, scrub, store,
};
pub use record::Record;
pub use revision::Revision;
pub use tree::Profile;
pub use unreadable::Unreadable;
