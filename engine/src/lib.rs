//! Bytes into durable bytes, and revisions: the WAL, the copy-on-write B+tree with etcd's MVCC, and the page store.
//!
//! Knows no Raft, gRPC or lease. Only `disk` touches a file.

pub mod disk;
mod error;
pub mod extent;
pub mod page;
mod record;
mod revision;
pub mod wal;

pub use error::Error;
pub use page::{Fault, Place};
pub use record::Record;
pub use revision::Revision;
