//! Runs on: connection core.
//!
//! The sources of an answer to /metrics, and the sums over all cores.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::{
    insight::Board,
    metrics::{
        counters::Counters,
        histogram::{Count, Histogram, Snapshot},
        registry::Registry,
    },
    shared::Shared,
};

/// Divides a histogram's nanoseconds to give seconds.
pub(super) const SECONDS: f64 = 1e9;
/// Divides a histogram's nanoseconds to give milliseconds.
pub(super) const MILLISECONDS: f64 = 1e6;

/// The sources of a scrape.
pub struct Scrape<'a> {
    /// Published state.
    pub shared: &'a Shared,
    /// The counters.
    pub registry: &'a Registry,
    /// The published results of insight.
    pub board: &'a Board,
    /// Time since the process began.
    pub now: Duration,
    /// Wall time. **Units** microseconds since 1970.
    pub unix_us: u64,
}

/// The present value.
pub(super) fn load(value: &AtomicU64) -> u64 {
    value.load(Ordering::Acquire)
}

/// The sum of a number over all connection cores.
pub(super) fn sum(of: &Scrape<'_>, pick: impl Fn(&Counters) -> &Count) -> u64 {
    of.registry.connections.iter().fold(0, |sum, counters| sum.wrapping_add(pick(counters).get()))
}

/// The sum of a histogram over all connection cores.
pub(super) fn histogram<const N: usize>(of: &Scrape<'_>, pick: impl Fn(&Counters) -> &Histogram<N>) -> Snapshot {
    Snapshot::of(of.registry.connections.iter().map(|counters| pick(counters)))
}

/// The histogram of a core that has it alone.
pub(super) fn one<const N: usize>(histogram: &Histogram<N>) -> Snapshot {
    Snapshot::of([histogram].into_iter())
}
