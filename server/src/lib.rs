//! Runs on: every core.
//!
//! etcd's meaning over `consensus` and `engine`: the wire, the meaning of requests, apply, leases, watches, start and
//! stop.
//!
//! A library so that tests reach what the binary runs; `main` adds the allocator and the process's arguments.
//!
//! Rooms from the top down; a room imports only rooms below it (the README draws them):
//! - `commands/`: the server and the commands beside it, on one command line
//! - `boot/`: from a configuration to a serving member, and to a clean end
//! - `cores/`: threads and their loops
//! - `wire/`: from sockets to calls at the door, and back
//! - `api/`: the door, and what answers calls
//! - `etcd_files/`: etcd's files in and out
//! - `raft/`: the raft machine: proposals in, committed entries out
//! - `apply/`: the apply machine: the one place where state changes
//! - `kv/`, `watch/`, `lease/`, `quota`: meaning, without core, channel or wait
//! - `metrics/`: what is counted, and how it is shown
//! - `insight/`, `log`: what operators want to know; log lines as etcd writes them
//! - `config/`: flags, variables and knobs as one checked configuration
//!
//! The ground, which all rooms know:
//! - `shared`: what all cores share: who the member is, its bounds, the published state
//! - `error`: what can go wrong, and what a client sees of it
//! - `clock`: time and chance
//! - `mailbox`, `slots`: messages between cores, and where their answers are waited for
//! - `loader`: brings pages into memory for one core
//! - `floor`: the revisions that long reads hold
//! - `method`: the table of gRPC methods
//! - `protobuf`: messages as bytes, and the pieces of the hottest answers

pub mod api;
pub mod apply;
pub mod boot;
pub mod clock;
pub mod commands;
pub mod config;
pub mod cores;
pub mod error;
pub mod etcd_files;
pub mod floor;
pub mod insight;
pub mod kv;
pub mod lease;
pub mod loader;
pub mod log;
pub mod mailbox;
pub mod method;
pub mod metrics;
pub mod protobuf;
pub mod quota;
pub mod raft;
pub mod shared;
pub mod slots;
pub mod watch;
pub mod wire;

/// The release of Orlop.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The etcd release whose behaviour this is.
pub const ETCD_VERSION: &str = "3.7.1";
/// What is decided as the cluster's version.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// What is reported as the storage's version.
pub const STORAGE_VERSION: &str = "3.7.0";
