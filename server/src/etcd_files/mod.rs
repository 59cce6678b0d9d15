//! Runs on: connection core (writing), main thread (reading, offline), a thread of its own (what a leader sends).
//!
//! etcd's files: the snapshot file that the Snapshot call and leaders send. Also everything that is read from such a
//! file, or from the files of a stopped etcd, before a member of this server starts on it.
//!
//! | file | what it owns |
//! |---|---|
//! | `bolt/` | bbolt's file format: pages, a reader, a writer |
//! | `build` | builds a data directory from the content of another store |
//! | `content` | turns a member's state and records into the content of a bbolt file |
//! | `error` | why a file cannot be read, or nothing can be made from it |
//! | `file` | reads the parts of a snapshot file, or of the database of a stopped etcd, as values |
//! | `received` | the database that an etcd leader sends to a member, as a state beside the live one |
//! | `restore` | `snapshot restore` without its command line |
//! | `schema` | etcd's buckets, and the forms of their keys and values |
//! | `source` | files that are read at any offset |
//! | `state` | a member's state beside its records |
//! | `status` | the report of `snapshot status` about a file |
//! | `stopped` | database and log of a stopped etcd, checked against each other |
//! | `v2` | the membership as etcd's snapshots have it beside the database |
//! | `v2_request` | what etcd 3.5 says in its log as a request of the v2 API |
//! | `wal` | the log of a stopped etcd |
//!
//! Invariants: everything is checked as it is read, and nothing of etcd's is changed. etcd and its tools accept every
//! file that is written here as one of their own.
//!
//! Not here: sockets (`api` sends the file), command lines (`commands`), and the moment at which a data directory
//! changes hands (`boot::import`).

pub mod bolt;
pub mod build;
pub mod content;
pub mod error;
pub mod file;
pub mod received;
pub mod restore;
pub mod schema;
pub mod source;
pub mod state;
pub mod status;
pub mod stopped;
pub mod v2;
pub mod v2_request;
pub mod wal;
