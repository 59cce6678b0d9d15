//! Runs on: connection core.
//!
//! The content of /metrics, under etcd's names and types, so that etcd's alerts and dashboards work unchanged.
//!
//! - `histogram`: numbers that one core writes and all may read
//! - `counters`: the counters
//! - `latency`: durations by label
//! - `peers`: numbers about each other member
//! - `registry`: all counters of the process
//! - `render/`: writes the answer to /metrics
//! - `process`: what the kernel knows of the process
//! - `timed`: times the disk's writes
//!
//! Invariants:
//! - Each number is written by one core alone, with plain loads and stores. A scrape reads and sums the numbers of all
//!   cores. So counting costs a nanosecond and takes no lock. A scrape may see one number without the next.
//! - Every family of a stock member is present, in etcd's form. If the part is built differently here, the
//!   family has what is nearest, and its help text says what that is. A family without anything like it here is at 0 if
//!   it is at 0 on a fresh member of etcd, too (the v2 store); otherwise it is absent, and `left_out.txt` says why.
//!
//! A duration is measured between times that its owner was handed anyway, as far as possible. A unary request costs one
//! look at the clock at its end, and an applied entry costs one (26 ns each on a VM, 2026-11).

pub mod counters;
pub mod histogram;
pub mod latency;
pub mod peers;
pub mod process;
pub mod registry;
mod render;
#[cfg(test)]
mod tests;
pub mod timed;

pub use render::{render, scrape::Scrape};
