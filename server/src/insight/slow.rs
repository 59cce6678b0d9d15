//! Runs on: connection core, apply core.
//!
//! Slow requests: which they are, which of them are remembered, and the log lines about them in etcd's words.
//!
//! Invariants: all slow requests are counted. Each core logs and remembers at most [`LINES_PER_S`] of them in a second,
//! so that a storm of slow requests is not a storm of lines. Each core keeps its last [`SLOW_MAX`]. No key or value is
//! shown raw: keys are escaped, values are shown only by their size, and texts are cut at [`text::TEXT_BYTES_MAX`].
//! **Source** etcd v3.7.1 `etcdserver/txn/util.go`, `etcdserver/api/v3rpc/interceptor.go`.

use std::{cell::Cell, collections::VecDeque, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::{text, trace::Phases};
use crate::{clock, error::Error, method::Method};

/// Lines of one core and kind in one second at most.
pub const LINES_PER_S: u32 = 10;
/// Slow requests that one core remembers.
pub const SLOW_MAX: usize = 64;

/// From which durations on something is slow, and what else is measured.
#[derive(Clone, Debug)]
pub struct Settings {
    /// A request that takes longer is logged.
    pub unary: Duration,
    /// An apply or a read that takes longer is logged.
    pub apply: Duration,
    /// Whether the durations of calls are counted by method.
    pub is_extensive: bool,
    /// Whether the log's level is debug. Then every call is logged.
    pub is_debug: bool,
}

/// A slow request that is remembered.
#[derive(Clone, Debug)]
pub struct Slow {
    /// When it ended. **Units** microseconds since 1970.
    pub at_unix_us: u64,
    /// The method that was called.
    pub method: Method,
    /// Its time in each phase.
    pub phases: Phases,
    /// Time it waited for pages.
    pub loading: Duration,
    /// The request as logged.
    pub request: String,
}

/// The slow requests that one core remembers. The core replaces the whole list; all cores read it.
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

    /// The slow requests, newest first.
    pub fn list(&self) -> Arc<VecDeque<Arc<Slow>>> {
        self.0.load_full()
    }
}

/// Lets a few lines through in a second, and counts the others.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    second: u64,
    lines: u32,
    withheld: u64,
}

impl Throttle {
    /// Returns `None` if a line may not be written. Otherwise returns how many lines were suppressed since the last
    /// one.
    pub fn pass(&mut self, now: Duration) -> Option<u64> {
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

/// The parts with which a connection core logs its slow requests.
#[derive(Debug, Default)]
pub struct Teller {
    requests: Cell<Throttle>,
    reads: Cell<Throttle>,
}

impl Teller {
    /// As [`Throttle::pass`], for a line about a request.
    pub fn pass_request(&self, now: Duration) -> Option<u64> {
        pass(&self.requests, now)
    }

    /// As [`Throttle::pass`], for a line about a read.
    pub fn pass_read(&self, now: Duration) -> Option<u64> {
        pass(&self.reads, now)
    }
}

fn pass(throttle: &Cell<Throttle>, now: Duration) -> Option<u64> {
    let mut next = throttle.get();
    let passed = next.pass(now);
    throttle.set(next);
    passed
}

/// Logs that applying an entry took too long, with its response as text. The caller has counted it and asked its
/// throttle.
#[cold]
pub fn tell_apply(took: Duration, expected: Duration, entry: &Bytes, result: Result<String, &Error>, withheld: u64) {
    let (response, error) = result.map_or_else(|error| (String::new(), Some(error)), |response| (response, None));
    tracing::warn!(
        took = clock::shown(took),
        "expected-duration" = clock::shown(expected),
        prefix = "",
        request = text::entry(entry),
        response,
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
        let mut passed = |ms: u64| throttle.pass(Duration::from_millis(ms));
        let first: Vec<_> = (0..1000).map(&mut passed).collect();
        assert_eq!(first.iter().flatten().count(), LINES_PER_S as usize);
        assert_eq!(passed(1000), Some(990));
        assert_eq!(passed(1001), Some(0));
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
