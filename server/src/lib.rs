//! Runs on: every core.
//!
//! etcd's meaning over `consensus` and `engine`: the wire, the meaning of requests, apply, leases, watches, start and stop.
//!
//! A library so that tests reach what the binary runs; `main` adds the allocator and the process's arguments.

pub mod apply;
pub mod backup;
pub mod boot;
pub mod commit;
pub mod compactor;
pub mod config;
pub mod core;
pub mod cores;
pub mod defragment;
pub mod endpoints;
pub mod error;
pub mod etcd_files;
pub mod floor;
pub mod insight;
pub mod inspect;
pub mod kv;
pub mod lease;
pub mod lease_rpc;
pub mod log;
pub mod maintenance;
pub mod metrics;
pub mod quota;
pub mod rpc;
pub mod top;
pub mod tune;
pub mod waiters;
pub mod watch;
pub mod watch_rpc;
pub mod wire;

/// The release of Orlop.
pub const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The etcd release whose behaviour this is.
pub const ETCD_VERSION: &str = "3.7.1";
/// What is decided as the cluster's version.
pub const CLUSTER_VERSION: &str = "3.7.0";
/// What is reported as the storage's version.
pub const STORAGE_VERSION: &str = "3.7.0";
