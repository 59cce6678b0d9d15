//! Runs on: connection core, commit core.
//!
//! Slow requests: which they are, what is remembered of them, and the lines in etcd's words that tell of them.
//!
//! Invariants: all slow requests are counted; of those of one core at most [`LINES_PER_S`] a second are told of and
//! remembered, so that a storm of slow requests is not a storm of lines, and the last [`SLOW_MAX`] are kept. No key or value
//! is shown as it came: keys are escaped, of values only the size is told, texts are cut at [`text::TEXT_BYTES_MAX`].
//! **Source** etcd v3.7.1 `etcdserver/txn/util.go`, `etcdserver/api/v3rpc/interceptor.go`.

use std::{cell::Cell, collections::VecDeque, net::SocketAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;

use super::{
    text,
    trace::{PHASES, Phases, Trace},
};
use crate::{core::Core, clock::Clock, error::Error, kv::range::Reply, log, wire::method::Method};

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

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// The client's address.
    pub remote: Option<SocketAddr>,
    /// The turn of its connection that brought it.
    pub began: Duration,
}

/// A unary call, for what is said of it once it has ended.
pub struct Call {
    /// What was called.
    pub method: Method,
    /// Where it came from.
    pub origin: Origin,
    /// Its message.
    pub body: Bytes,
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
    fn push(&self, slow: Slow) {
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

fn admit(throttle: &Cell<Throttle>, now: Duration) -> Option<u64> {
    let mut next = throttle.get();
    let admitted = next.admit(now);
    throttle.set(next);
    admitted
}

/// Counts an ended unary call, notes what it was about, and tells of it if it was slow.
pub fn ended(core: &Core, call: &Call, trace: &Trace, result: &Result<Reply, Error>) {
    let now = core.clock.now();
    let took = now.saturating_sub(call.origin.began);
    let settings = &core.shared.insight;
    let is_proposed = trace.stamps.is_some();
    core.counters.latencies.ended(call.method, is_proposed, result.is_ok(), took);
    if settings.is_extensive {
        core.counters.latencies.handling[call.method as usize].observe(took);
    }
    let phases = trace.phases(call.origin.began, now);
    for (sum, phase) in core.counters.phases.iter().zip(phases) {
        sum.add(u64::try_from(phase.as_nanos()).unwrap_or(u64::MAX));
    }
    core.heat.borrow_mut().note(now, call.method, &call.body);
    if took > settings.unary.min(settings.apply) {
        tell(core, call, trace, result, took, now);
    }
}

#[cold]
fn tell(core: &Core, call: &Call, trace: &Trace, result: &Result<Reply, Error>, took: Duration, now: Duration) {
    let settings = &core.shared.insight;
    let prefix = match (call.method, trace.stamps) {
        (Method::Range, _) => Some("read-only range "),
        (Method::Txn, None) => Some("read-only txn "),
        _ => None,
    };
    if let Some(prefix) = prefix
        && took > settings.apply
    {
        core.counters.slow_reads.add(1);
        if let Some(withheld) = admit(&core.teller.reads, now) {
            let response = result.as_ref().map_or(String::new(), |answer| format!("size:{}", answer.message_len()));
            tracing::warn!(
                took = ?took,
                "expected-duration" = ?settings.apply,
                prefix,
                request = text::request(call.method, &call.body),
                response,
                error = result.as_ref().err().map(tracing::field::display),
                loading = ?trace.loading,
                withheld,
                "apply request took too long"
            );
        }
    }
    if took <= settings.unary {
        return;
    }
    let phases = trace.phases(call.origin.began, now);
    let longest = (0..PHASES.len()).max_by_key(|phase| phases[*phase]).unwrap_or(0);
    core.counters.slow[longest].add(1);
    let Some(withheld) = admit(&core.teller.requests, now) else { return };
    let at_unix_us = Clock::unix_us();
    let request = text::request(call.method, &call.body);
    log_stats(call, result, took, &phases, at_unix_us, &request, withheld);
    let (method, loading) = (call.method, trace.loading);
    core.shared.slow[core.id].push(Slow { at_unix_us, method, phases, loading, request });
}

fn log_stats(
    call: &Call,
    result: &Result<Reply, Error>,
    took: Duration,
    phases: &Phases,
    ended_unix_us: u64,
    request: &str,
    withheld: u64,
) {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let remote = call.origin.remote.map_or_else(|| "No remote client info.".to_owned(), |remote| remote.to_string());
    let [queue, wal, apply, send, read] = phases;
    tracing::warn!(
        "start time" = log::timestamp(ended_unix_us.saturating_sub(took_us)),
        "time spent" = ?took,
        remote,
        "response type" = format!("/{}/{}", call.method.service(), call.method.name()),
        "request size" = call.body.len(),
        "response size" = result.as_ref().map_or(0, Reply::message_len),
        "request content" = request,
        queue = ?queue,
        wal = ?wal,
        apply = ?apply,
        send = ?send,
        read = ?read,
        withheld,
        "request stats"
    );
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
