//! Runs on: connection core, apply core.
//!
//! Durations by label: requests by method and by etcd's type, entries by etcd's name of their operation.
//!
//! Invariants: as in `counters`, each number has one writer. All label values are fixed here, so that no client decides
//! how many series there are. No clock is read: the owners of durations measure them.

use std::{array, time::Duration};

use proto::internal::Kind;

use super::histogram::{Count, Histogram, Snapshot};
use crate::method::Method;

/// Nanoseconds of a millisecond.
const MS: u64 = 1_000_000;

/// Upper bounds of `grpc_server_handling_seconds`. **Units** nanoseconds. **Source** client_golang, `DefBuckets`.
const HANDLING_BOUNDS: [u64; 11] =
    [5 * MS, 10 * MS, 25 * MS, 50 * MS, 100 * MS, 250 * MS, 500 * MS, 1000 * MS, 2500 * MS, 5000 * MS, 10_000 * MS];

/// Durations of one method's calls.
#[derive(Debug, Default)]
pub struct Handling {
    buckets: [Count; HANDLING_BOUNDS.len()],
    beyond: Count,
    sum: Count,
}

impl Handling {
    /// Counts one call.
    pub fn observe(&self, took: Duration) {
        let took_ns = nanoseconds(took);
        let position = HANDLING_BOUNDS.iter().position(|bound| took_ns <= *bound);
        position.map_or(&self.beyond, |position| &self.buckets[position]).add(1);
        self.sum.add(took_ns);
    }

    /// The sum over several cores.
    pub fn sum<'a>(cores: impl Iterator<Item = &'a Self>) -> Snapshot {
        let (mut counts, mut beyond, mut sum) = ([0; HANDLING_BOUNDS.len()], 0, 0_u64);
        for core in cores {
            for (count, bucket) in counts.iter_mut().zip(&core.buckets) {
                *count += bucket.get();
            }
            beyond += core.beyond.get();
            sum = sum.wrapping_add(core.sum.get());
        }
        let mut count = 0;
        let cumulated = HANDLING_BOUNDS.into_iter().zip(counts).map(|(bound, own)| {
            count += own;
            (bound, count)
        });
        Snapshot { buckets: cumulated.collect(), count: count + beyond, sum }
    }
}

/// etcd's types of requests whose durations are shown. **Source** etcd v3.7.1 `etcdserver/v3_server.go getRequestType`.
pub const REQUEST_TYPES: [&str; 11] = [
    "Range",
    "ReadonlyTxn",
    "Put",
    "DeleteRange",
    "Txn",
    "Compaction",
    "LeaseGrant",
    "LeaseRevoke",
    "Alarm",
    "ClusterMemberAttrSet",
    "ClusterVersionSet",
];

/// Values of the label `success`, by position.
pub const SUCCESS: [&str; 2] = ["false", "true"];

/// The position among [`REQUEST_TYPES`]. A txn that was not proposed has only read.
fn request_type(method: Method, is_proposed: bool) -> Option<usize> {
    Some(match method {
        Method::Range => 0,
        Method::Txn if !is_proposed => 1,
        Method::Put => 2,
        Method::DeleteRange => 3,
        Method::Txn => 4,
        Method::Compact => 5,
        Method::LeaseGrant => 6,
        Method::LeaseRevoke => 7,
        Method::Alarm => 8,
        _ => return None,
    })
}

/// The position among [`REQUEST_TYPES`] of an entry that the member proposes itself.
fn own_type(kind: Kind) -> Option<usize> {
    let name = match kind {
        Kind::Compaction => "Compaction",
        Kind::LeaseRevoke => "LeaseRevoke",
        Kind::Alarm => "Alarm",
        Kind::ClusterMemberAttrSet => "ClusterMemberAttrSet",
        Kind::ClusterVersionSet => "ClusterVersionSet",
        _ => return None,
    };
    REQUEST_TYPES.iter().position(|known| *known == name)
}

/// Durations of the entries that the member proposes itself, by type, from their proposal to their end. The apply core
/// has them.
#[derive(Debug)]
pub struct OwnRequests(pub [Histogram<14>; REQUEST_TYPES.len()]);

impl Default for OwnRequests {
    fn default() -> Self {
        Self(array::from_fn(|_| Histogram::new(MS)))
    }
}

impl OwnRequests {
    /// Counts an entry that was applied.
    pub fn ended(&self, kind: Kind, took: Duration) {
        if let Some(position) = own_type(kind) {
            self.0[position].observe_time(took);
        }
    }
}

/// The durations of the unary requests of one connection core.
#[derive(Debug)]
pub struct Requests {
    /// By type, as [`REQUEST_TYPES`] lists them, and success.
    pub by_type: [[Histogram<14>; 2]; REQUEST_TYPES.len()],
    /// Durations of ranges, by success.
    pub ranges: [Histogram<20>; 2],
    /// Durations by method. They are counted only if the operator asks for it.
    pub handling: Vec<Handling>,
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            by_type: array::from_fn(|_| array::from_fn(|_| Histogram::new(MS))),
            ranges: array::from_fn(|_| Histogram::new(MS / 10)),
            handling: Method::ALL.iter().map(|_| Handling::default()).collect(),
        }
    }
}

impl Requests {
    /// Counts a unary request that has ended.
    pub fn ended(&self, method: Method, is_proposed: bool, is_success: bool, took: Duration) {
        if let Some(position) = request_type(method, is_proposed) {
            self.by_type[position][usize::from(is_success)].observe_time(took);
        }
        if method == Method::Range {
            self.ranges[usize::from(is_success)].observe_time(took);
        }
    }
}

/// Durations of applying entries, by the operation's name and success.
#[derive(Debug)]
pub struct Applies(Vec<[Histogram<20>; 2]>);

impl Default for Applies {
    fn default() -> Self {
        Self(Kind::ALL.iter().map(|_| array::from_fn(|_| Histogram::new(MS / 10))).collect())
    }
}

impl Applies {
    /// Counts an entry that was applied.
    pub fn observe(&self, kind: Kind, is_success: bool, took: Duration) {
        let Some(position) = Kind::ALL.iter().position(|known| *known == kind) else { return };
        self.0[position][usize::from(is_success)].observe_time(took);
    }

    /// The durations that have been counted, with etcd's name of the operation and the success. Combinations that never
    /// happened are left out.
    pub fn shown(&self) -> impl Iterator<Item = (Kind, &'static str, Snapshot)> {
        let by_kind = Kind::ALL.iter().zip(&self.0);
        let all = by_kind.flat_map(|(kind, both)| both.iter().zip(SUCCESS).map(|(of, success)| (*kind, success, of)));
        all.map(|(kind, success, of)| (kind, success, Snapshot::of([of].into_iter()))).filter(|row| row.2.count > 0)
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_falls_into_the_first_bucket_that_holds_it() {
        let handling = Handling::default();
        for ms in [0, 5, 6, 10_000, 10_001] {
            handling.observe(Duration::from_millis(ms));
        }
        let shown = Handling::sum([&handling, &handling].into_iter());
        assert_eq!(shown.buckets[..2], [(5 * MS, 4), (10 * MS, 6)]);
        assert_eq!(shown.buckets[10], (10_000 * MS, 8));
        assert_eq!((shown.count, shown.sum), (10, 2 * 20_012 * MS));
    }

    #[test]
    fn requests_are_told_apart_as_etcd_does() {
        let requests = Requests::default();
        requests.ended(Method::Txn, false, true, Duration::from_millis(3));
        requests.ended(Method::Txn, true, false, Duration::from_millis(3));
        requests.ended(Method::Range, false, true, Duration::from_micros(150));
        requests.ended(Method::MemberList, false, true, Duration::from_millis(3));
        let counts = |of: &Histogram<14>| Snapshot::of([of].into_iter()).count;
        let seen: Vec<(usize, [u64; 2])> =
            requests.by_type.iter().map(|both| [counts(&both[0]), counts(&both[1])]).enumerate().collect();
        let seen: Vec<_> = seen.into_iter().filter(|(_, both)| *both != [0, 0]).collect();
        assert_eq!(seen, [(0, [0, 1]), (1, [0, 1]), (4, [1, 0])]);
        let ranges = Snapshot::of([&requests.ranges[1]].into_iter());
        assert_eq!(ranges.buckets[..2], [(100_000, 0), (200_000, 1)]);
    }

    #[test]
    fn operations_have_etcds_names() {
        let applies = Applies::default();
        applies.observe(Kind::DeleteRange, true, Duration::from_millis(1));
        applies.observe(Kind::LeaseGrant, false, Duration::from_millis(1));
        let shown: Vec<_> =
            applies.shown().map(|(kind, success, of)| (format!("{kind:?}"), success, of.count)).collect();
        assert_eq!(shown, [("DeleteRange".to_owned(), "true", 1), ("LeaseGrant".to_owned(), "false", 1)]);
    }
}
