//! Runs on: every core.
//!
//! etcd's meaning over `consensus` and `engine`: the wire, the meaning of requests, apply, leases, watches, start and
//! stop.
//!
//! A library so that tests reach what the binary runs; `main` adds the allocator and the process's arguments.

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
