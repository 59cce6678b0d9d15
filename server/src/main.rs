//! Runs on: the main thread.
//!
//! Orlop: etcd's API over a store of its own.

use std::process::ExitCode;

mod apply;
mod commit;
mod compactor;
mod config;
mod core;
mod cores;
mod endpoints;
mod error;
mod kv;
mod lease;
mod lease_rpc;
mod log;
mod maintenance;
mod metrics;
mod rpc;
mod tune;
mod watch;
mod watch_rpc;
mod wire;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The release of Orlop.
const RELEASE: &str = env!("CARGO_PKG_VERSION");
/// The etcd release whose behaviour this is.
const ETCD_VERSION: &str = "3.7.1";
/// What is decided as the cluster's version.
const CLUSTER_VERSION: &str = "3.7.0";
/// What is reported as the storage's version.
const STORAGE_VERSION: &str = "3.7.0";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "tune") {
        return tune::run(&arguments[1..]);
    }
    match config::from_process(arguments) {
        Ok(config) => {
            log::start(&config.log_level);
            cores::start::run(config)
        }
        Err(exit) => exit,
    }
}
