//! Runs on: connection core (writing), main thread (reading, offline).
//!
//! The files of bbolt, in which etcd keeps its data: their pages, a writer that streams a file from front to back in bounded
//! memory, and a reader.
//!
//! A file is a B+tree of nested buckets in pages of one size. Pages 0 and 1 are two copies of the meta page; the valid one with the
//! higher transaction id counts. Everything is little-endian, as on all machines that etcd supports.
//!
//! Invariants: what the writer writes the reader reads back; the reader never panics and never loops, whatever the file holds.
//!
//! It knows nothing of etcd's buckets: `backup::schema` does.
//! **Source** bbolt v1.5.0 `internal/common/{page,meta,bucket}.go`, `tx_check.go`.

pub mod page;
pub mod reader;
pub mod writer;

#[cfg(test)]
mod tests;
