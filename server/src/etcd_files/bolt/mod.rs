//! Runs on: connection core (writing), main thread (reading, offline).
//!
//! The files of bbolt, in which etcd keeps its data: their pages, a reader, and a writer that streams a file from front
//! to back in bounded memory.
//!
//! A file is a B+tree of nested buckets in pages of one size. Pages 0 and 1 are two copies of the meta page. Of the
//! valid copies, the one with the higher transaction id counts. All numbers are little-endian, as on all machines that
//! etcd supports.
//!
//! Invariants: the reader reads back what the writer has written. Whatever a file holds, the reader neither panics nor
//! reads for ever.
//!
//! | file | what it owns |
//! |---|---|
//! | `page` | the forms of pages and their elements |
//! | `reader` | a file that is read, bucket by bucket |
//! | `writer` | a file that is streamed from front to back |
//!
//! This folder knows nothing of etcd's buckets: `schema` does.
//! **Source** bbolt v1.5.0 `internal/common/{page,meta,bucket}.go`, `tx_check.go`.

pub mod page;
pub mod reader;
pub mod writer;

#[cfg(test)]
mod tests;
