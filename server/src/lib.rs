//! Runs on: every core.
//!
//! etcd's meaning over `consensus` and `engine`: the wire, the meaning of requests, apply, leases, watches, start and
//! stop.
//!
//! It is a library, so that tests reach the code of the binary. `main` adds the allocator and the process's arguments.
//!
//! Rooms from the top down; a room imports only rooms below it (the README draws them):
//! - `commands/`: the server and the commands beside it, on one command line
//! - `boot/`: from a configuration to a serving member, and to a clean end
//! - `cores/`: threads and their loops
//! - `peer/`: states from one member to another
//! - `wire/`: from sockets to calls at the door, and back
//! - `api/`: the door, and the handlers that answer calls
//! - `etcd_files/`: reads and writes etcd's files
//! - `raft/`: the raft machine: proposals in, committed entries out
//! - `apply/`: the apply machine, the one place where state changes
//! - `kv/`, `watch/`, `lease/`, `quota`: the meaning of requests, without core, channel or wait
//! - `metrics/`: counters, and the answer to /metrics
//! - `insight/`, `log`: facts for operators; log lines as etcd writes them
//! - `config/`: flags, variables and knobs as one checked configuration
//!
//! The ground. All rooms may import it:
//! - `shared`: the state that all cores share: identity, bounds, published state
//! - `error`: errors, and what a client sees of them
//! - `clock`: time and randomness
//! - `mailbox`, `slots`: messages between cores, and the slots in which requests wait for answers
//! - `loader`: loads pages into memory for one core
//! - `floor`: the revisions that long reads hold
//! - `gathered`: the memory of answers that are gathered before they are sent
//! - `hashes`: those of compactions, for members to compare
//! - `auth/`: users, their roles, and what these permit
//! - `header`: response headers as bytes
//! - `method`: the table of gRPC methods
//! - `protobuf`: messages as bytes, and the pieces of the hottest answers

pub mod api;
pub mod apply;
pub mod auth;
pub mod boot;
pub mod clock;
pub mod commands;
pub mod config;
pub mod cores;
pub mod error;
pub mod etcd_files;
pub mod floor;
pub mod gathered;
pub mod hashes;
pub mod header;
pub mod insight;
pub mod kv;
pub mod lease;
pub mod loader;
pub mod log;
pub mod mailbox;
pub mod method;
pub mod metrics;
pub mod peer;
pub mod protobuf;
pub mod quota;
pub mod raft;
pub mod shared;
pub mod slots;
pub mod watch;
pub mod wire;

/// The release of Orlop.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The etcd release whose behaviour this server has.
pub const ETCD_VERSION: &str = "3.7.1";
/// The version that the cluster decides on.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// The version of etcd's schema that this release has, where the cluster does not have it lower.
pub const STORAGE_VERSION: &str = "3.7.0";
