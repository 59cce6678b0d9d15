//! Runs on: connection core, commit core.
//!
//! Slow requests: which they are, what is remembered of them, and the lines in etcd's words that tell of them.
//!
//! Invariants: all slow requests are counted; of those of one core at most [`LINES_PER_S`] a second are told of and
//! remembered, so that a storm of slow requests is not a storm of lines, and the last [`SLOW_MAX`] are kept. No key or
//! value is shown as it came: keys are escaped, of values only the size is told, texts are cut at
//! [`text::TEXT_BYTES_MAX`].
//! **Source** etcd v3.7.1 `etcdserver/txn/util.go`, `etcdserver/api/v3rpc/interceptor.go`.

use std::{cell::Cell, collections::VecDeque, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::{text, trace::Phases};
use crate::{error::Error, method::Method};

/// Lines of one core and kind in a second.
pub const LINES_PER_S: u32 = 10;
/// Slow requests that one core remembers.
pub const SLOW_MAX: usize = 64;

/// From when on something is slow, and what is measured besides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A request that takes longer is told of.
    pub unary: Duration,
    /// An apply, or a read, that takes longer is told of.
    pub apply: Duration,
    /// Whether the durations of calls are counted by method.
    pub is_extensive: bool,
}

/// A slow request that is remembered.
#[derive(Clone, Debug)]
pub struct Slow {
    /// When it ended. **Units** microseconds since 1970.
    pub at_unix_us: u64,
    /// What was called.
    pub method: Method,
    /// Where its time went.
    pub phases: Phases,
    /// Time it waited for pages.
    pub loading: Duration,
    /// What was asked, as logged.
    pub request: String,
}

/// The slow requests that one core remembers: replaced whole by it, read by all.
#[derive(Debug, Default)]
pub struct Ring(ArcSwap<VecDeque<Arc<Slow>>>);

impl Ring {
    /// Remembers one more, and forgets the oldest if there are too many.
    pub fn push(&self, slow: Slow) {
        let mut next = VecDeque::clone(&self.0.load());
        next.truncate(SLOW_MAX - 1);
        next.push_front(Arc::new(slow));
        self.0.store(Arc::new(next));
    }

    /// Newest first.
    pub fn list(&self) -> Arc<VecDeque<Arc<Slow>>> {
        self.0.load_full()
    }
}

/// Lets some lines a second through and counts the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    second: u64,
    lines: u32,
    withheld: u64,
}

impl Throttle {
    /// Whether a line may be written: with how many were not since the last one.
    pub fn admit(&mut self, now: Duration) -> Option<u64> {
        if now.as_secs() != self.second {
            (self.second, self.lines) = (now.as_secs(), 0);
        }
        if self.lines == LINES_PER_S {
            self.withheld += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.withheld))
    }
}

/// What a connection core needs to tell of its slow requests.
#[derive(Debug, Default)]
pub struct Teller {
    requests: Cell<Throttle>,
    reads: Cell<Throttle>,
}

impl Teller {
    /// Whether a line about a request may be written: with how many were not since the last one.
    pub fn admit_request(&self, now: Duration) -> Option<u64> {
        admit(&self.requests, now)
    }

    /// Whether a line about a read may be written: with how many were not since the last one.
    pub fn admit_read(&self, now: Duration) -> Option<u64> {
        admit(&self.reads, now)
    }
}

fn admit(throttle: &Cell<Throttle>, now: Duration) -> Option<u64> {
    let mut next = throttle.get();
    let admitted = next.admit(now);
    throttle.set(next);
    admitted
}

/// Says that applying an entry took too long; its caller has counted it, and asked its throttle.
#[cold]
pub fn tell_apply(took: Duration, expected: Duration, entry: &Bytes, error: Option<&Error>, withheld: u64) {
    tracing::warn!(
        took = ?took,
        "expected-duration" = ?expected,
        prefix = "",
        request = text::entry(entry),
        response = "",
        error = error.map(tracing::field::display),
        withheld,
        "apply request took too long"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storm_is_a_bounded_number_of_lines_that_tell_of_the_others() {
        let mut throttle = Throttle::default();
        let mut admitted = |ms: u64| throttle.admit(Duration::from_millis(ms));
        let first: Vec<_> = (0..1000).map(&mut admitted).collect();
        assert_eq!(first.iter().flatten().count(), LINES_PER_S as usize);
        assert_eq!(admitted(1000), Some(990));
        assert_eq!(admitted(1001), Some(0));
    }

    #[test]
    fn the_newest_slow_requests_are_kept() {
        let ring = Ring::default();
        for at_unix_us in 0..200 {
            let (phases, loading, request) = (Phases::default(), Duration::ZERO, String::new());
            ring.push(Slow { at_unix_us, method: Method::Put, phases, loading, request });
        }
        let kept: Vec<_> = ring.list().iter().map(|slow| slow.at_unix_us).collect();
        assert_eq!(kept, (200 - SLOW_MAX as u64..200).rev().collect::<Vec<_>>());
    }
}
