//! Runs on: connection core (writing a snapshot file), main thread (all reading, offline).
//!
//! etcd's files: the snapshot file that the Snapshot call sends, and everything that is read of one, or of the files of
//! a stopped etcd, before a member of this server starts on it.
//!
//! | file | what it owns |
//! |---|---|
//! | `bolt/` | bbolt's file format: pages, a reader, a writer |
//! | `build` | a data directory, built from what another store holds |
//! | `content` | a member's state and records as the content of a bbolt file |
//! | `error` | why a file is not read, or nothing is made of it |
//! | `file` | a snapshot file, or the database of a stopped etcd: its parts as values |
//! | `restore` | `snapshot restore` without its command line |
//! | `schema` | etcd's buckets, and the forms of their keys and values |
//! | `source` | files that are read at any offset |
//! | `state` | what a member knows beside its records |
//! | `status` | what `snapshot status` says of a file |
//! | `stopped` | database and log of a stopped etcd, checked against each other |
//! | `wal` | the log of a stopped etcd |
//!
//! Invariants: what is read is checked as it is read, and nothing of etcd's is changed. etcd and its tools take every
//! file that is written here as one of their own.
//!
//! Not here: sockets (`api` sends the file), command lines (`commands`), and the moment at which a data directory
//! changes hands (`boot::import`).

pub mod bolt;
pub mod build;
pub mod content;
pub mod error;
pub mod file;
pub mod restore;
pub mod schema;
pub mod source;
pub mod state;
pub mod status;
pub mod stopped;
pub mod wal;
