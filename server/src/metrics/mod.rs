//! Runs on: connection core.
//!
//! What /metrics says, under etcd's names and types, so that etcd's alerts and dashboards work as they are.
//!
//! - `histogram`: numbers that one core writes and all may read
//! - `counters`: what is counted
//! - `latency`: how long things took
//! - `registry`: all that is counted, for whoever is asked for it
//! - `render`: writes it down
//! - `process`: what the kernel knows of the process
//! - `timed`: times the disk's writes
//!
//! Invariants:
//! - A number is written by one core alone, with plain loads and stores; a scrape reads all cores' and sums. So
//!   counting costs a nanosecond and takes no lock, and a scrape may see one number without the next.
//! - A family is there if what it tells can be told. One of a thing that a single member does not do (a late heartbeat)
//!   is there and 0; one of a part that is built otherwise here (spilling pages) is not there at all.
//!
//! A duration is measured between times that its owner was handed anyway, as far as that goes: a unary request costs
//! one look at the clock at its end, an applied entry one (26 ns each on a VM, 2026-11).

pub mod counters;
pub mod histogram;
pub mod latency;
pub mod process;
pub mod registry;
mod render;
#[cfg(test)]
mod tests;
pub mod timed;

pub use render::{Scrape, render};
