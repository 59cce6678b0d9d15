//! Latencies with three exact digits from 1 ns to 1 h, and what is said about them.
//!
//! Histograms of several threads and seconds are merged, never averaged: `merge` loses nothing, so a percentile of the
//! whole run is the percentile of all its requests.

use hdrhistogram::Histogram;
use serde::Serialize;

const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A distribution of durations in nanoseconds.
pub(crate) struct Latencies {
    counts: Histogram<u64>,
}

/// What the report says of one distribution; all but `count` in milliseconds.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub(crate) struct Quantiles {
    pub(crate) count: u64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
}

impl Latencies {
    pub(crate) fn new() -> Latencies {
        let counts = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3).expect("constant bounds are valid");
        Latencies { counts }
    }

    /// Counts one duration; one above an hour counts as an hour.
    pub(crate) fn record(&mut self, ns: u64) {
        self.counts.saturating_record(ns);
    }

    pub(crate) fn merge(&mut self, other: &Latencies) {
        self.counts.add(&other.counts).expect("all have the same bounds");
    }

    pub(crate) fn clear(&mut self) {
        self.counts.reset();
    }

    pub(crate) fn count(&self) -> u64 {
        self.counts.len()
    }

    /// The duration that `share` of all did not exceed, in milliseconds; 0 if there are none.
    pub(crate) fn quantile_ms(&self, share: f64) -> f64 {
        milliseconds(self.counts.value_at_quantile(share))
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        Quantiles {
            count: self.count(),
            mean_ms: if self.count() == 0 { 0.0 } else { self.counts.mean() / 1e6 },
            p50_ms: self.quantile_ms(0.5),
            p90_ms: self.quantile_ms(0.9),
            p99_ms: self.quantile_ms(0.99),
            p999_ms: self.quantile_ms(0.999),
            max_ms: if self.count() == 0 { 0.0 } else { milliseconds(self.counts.max()) },
        }
    }
}

/// Nanoseconds as milliseconds.
fn milliseconds(ns: u64) -> f64 {
    // Below an hour, so exact in a double.
    std::time::Duration::from_nanos(ns).as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn merged_parts_equal_the_whole() {
        let mut random = SmallRng::seed_from_u64(7);
        let (mut whole, mut merged) = (Latencies::new(), Latencies::new());
        let mut parts = [Latencies::new(), Latencies::new(), Latencies::new()];
        for i in 0..30_000 {
            let ns = 1 << random.random_range(0..40) | random.random_range(0..1_000);
            whole.record(ns);
            parts[i % 3].record(ns);
        }
        for part in &parts {
            merged.merge(part);
        }
        assert_eq!(merged.count(), 30_000);
        assert_eq!(merged.quantiles(), whole.quantiles());
        merged.clear();
        assert_eq!(merged.quantiles().max_ms, 0.0);
    }

    #[test]
    fn quantiles_are_within_a_thousandth() {
        let mut latencies = Latencies::new();
        for us in 1..=10_000 {
            latencies.record(us * 1_000);
        }
        let found = latencies.quantiles();
        for (value, wanted) in [(found.p50_ms, 5.0), (found.p99_ms, 9.9), (found.p999_ms, 9.99), (found.max_ms, 10.0)] {
            assert!((value - wanted).abs() <= wanted / 1_000.0, "{value} for {wanted}");
        }
        latencies.record(u64::MAX);
        assert!(latencies.quantiles().max_ms >= 3.6e6);
    }
}
