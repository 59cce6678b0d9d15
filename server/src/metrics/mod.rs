//! Runs on: connection core.
//!
//! What /metrics says, under etcd's names and types, so that etcd's alerts and dashboards work as they are.
//!
//! `counters` holds what is counted, `latency` how long things took, `render` writes it down, `process` adds what the kernel
//! knows of the process, `timed` times the disk's writes.
//!
//! Invariants:
//! - A number is written by one core alone, with plain loads and stores; a scrape reads all cores' and sums. So counting
//!   costs a nanosecond and takes no lock, and a scrape may see one number without the next.
//! - A family is there if what it tells can be told. One of a thing that a single member does not do (a late heartbeat)
//!   is there and 0; one of a part that is built otherwise here (spilling pages) is not there at all.
//!
//! A duration is measured between times that its owner was handed anyway, as far as that goes: a unary request costs one look
//! at the clock at its end, an applied entry one (26 ns each on a VM, 2026-11).

use std::sync::Arc;

use self::counters::{CommitCounters, Counters};
use crate::config::Stage;

pub mod counters;
pub mod latency;
pub mod process;
mod render;
#[cfg(test)]
mod tests;
pub mod timed;

pub use render::render;

/// All that is counted, for whoever is asked for it on any core.
#[derive(Debug)]
pub struct Registry {
    /// Counters of every connection core.
    pub connections: Vec<Arc<Counters>>,
    /// Counters of raft, apply and the checkpoints; apart from the others, as they change with every entry.
    pub commit: Arc<CommitCounters>,
    /// Feature gates with their stage and value.
    pub features: Vec<(&'static str, Stage, bool)>,
}

impl Registry {
    /// Counters for `cores` connection cores, all zero.
    pub fn new(features: Vec<(&'static str, Stage, bool)>, cores: usize) -> Self {
        Self { connections: (0..cores).map(|_| Arc::default()).collect(), commit: Arc::default(), features }
    }
}
