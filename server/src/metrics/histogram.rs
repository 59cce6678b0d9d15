//! Runs on: every core.
//!
//! Numbers that one core writes and all may read: counts, and histograms of values in buckets.
//!
//! Invariants: every [`Count`] has one writer. A histogram's buckets are disjoint here, and are cumulated when they are
//! shown, so that the shown numbers always add up.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// A number that one core writes and all may read.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    /// Adds `more`. There is only one writer, so no atomic addition is needed, which would cost several times as much.
    pub fn add(&self, more: u64) {
        self.0.store(self.get().wrapping_add(more), Ordering::Relaxed);
    }

    /// Replaces the number.
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The present number.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often values fell into buckets. The bounds of the buckets double, as in all histograms of etcd.
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    /// Upper bound of the first bucket, inclusive.
    first: u64,
    buckets: [Count; N],
    beyond: Count,
    sum: Count,
}

impl<const N: usize> Histogram<N> {
    /// An empty histogram whose bounds begin with `first`.
    pub fn new(first: u64) -> Self {
        assert!(first > 0 && N > 0 && first.leading_zeros() as usize >= N, "the last bound fits");
        Self { first, buckets: array::from_fn(|_| Count::default()), beyond: Count::default(), sum: Count::default() }
    }

    /// Counts one value.
    pub fn observe(&self, value: u64) {
        // The first bucket whose bound, first * 2^position, is not below the value.
        let steps = value.div_ceil(self.first).saturating_sub(1);
        let position = (u64::BITS - steps.leading_zeros()) as usize;
        self.buckets.get(position).unwrap_or(&self.beyond).add(1);
        self.sum.add(value);
    }

    /// Counts one duration. The histogram's unit is the nanosecond.
    pub fn observe_time(&self, time: Duration) {
        self.observe(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// A histogram at one moment, or the sum of the histograms of several cores.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// For each bucket its upper bound, and how many values were at or below it.
    pub buckets: Vec<(u64, u64)>,
    /// Number of values.
    pub count: u64,
    /// Sum of the values.
    pub sum: u64,
}

impl Snapshot {
    /// The sum of `histograms`, which have the same buckets.
    pub fn of<'a, const N: usize>(histograms: impl Iterator<Item = &'a Histogram<N>>) -> Self {
        let (mut counts, mut beyond, mut sum, mut first) = ([0; N], 0, 0_u64, 1);
        for histogram in histograms {
            first = histogram.first;
            for (count, bucket) in counts.iter_mut().zip(&histogram.buckets) {
                *count += bucket.get();
            }
            beyond += histogram.beyond.get();
            sum = sum.wrapping_add(histogram.sum.get());
        }
        let mut count = 0;
        let cumulate = |(position, own)| {
            count += own;
            (first << position, count)
        };
        let buckets = counts.into_iter().enumerate().map(cumulate).collect();
        Self { buckets, count: count + beyond, sum }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_falls_into_the_first_bucket_that_holds_it() {
        let histogram = Histogram::<4>::new(10);
        for value in [0, 1, 10, 11, 20, 21, 40, 80, 81, u64::MAX / 2] {
            histogram.observe(value);
        }
        let shown = Snapshot::of([&histogram].into_iter());
        assert_eq!(shown.buckets, [(10, 3), (20, 5), (40, 7), (80, 8)]);
        assert_eq!(shown.count, 10);
        assert_eq!(shown.sum, 264 + u64::MAX / 2);
        assert_eq!(Snapshot::of([&histogram, &histogram].into_iter()).buckets[3], (80, 16));
    }
}
