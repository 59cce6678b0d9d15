//! Runs on: connection core.
//!
//! What is said of a unary call at its end: its duration is counted by kind and by phase, what it was about is noted,
//! and it is told of if it was slow.
//!
//! Invariant: decides no result. Lines are in etcd's words, and bounded by `insight::slow`.
//! **Source** etcd v3.7.1 `etcdserver/txn/util.go`, `etcdserver/api/v3rpc/interceptor.go`.

use std::time::Duration;

use bytes::Bytes;

use super::{call::Call, desk::Desk};
use crate::{
    error::Error,
    insight::{
        slow::Slow,
        text,
        trace::{PHASES, Phases, Trace},
    },
    log,
    method::Method,
};

/// Counts an ended unary call, notes what it was about, and tells of it if it was slow.
/// `result` is the length of its message, or why it failed.
pub(super) fn ended(desk: &Desk, call: &Call, body: &Bytes, trace: &Trace, result: Result<usize, &Error>) {
    let now = desk.clock.now();
    let took = now.saturating_sub(call.caller.began);
    let settings = &desk.board.settings;
    let is_proposed = trace.stamps.is_some();
    desk.counters.latencies.ended(call.method, is_proposed, result.is_ok(), took);
    if settings.is_extensive {
        desk.counters.latencies.handling[call.method as usize].observe(took);
    }
    let phases = trace.phases(call.caller.began, now);
    for (sum, phase) in desk.counters.phases.iter().zip(phases) {
        sum.add(u64::try_from(phase.as_nanos()).unwrap_or(u64::MAX));
    }
    desk.heat.borrow_mut().note(now, call.method, body);
    if took > settings.unary.min(settings.apply) {
        tell(desk, call, body, trace, result, took, now);
    }
}

#[cold]
fn tell(
    desk: &Desk,
    call: &Call,
    body: &Bytes,
    trace: &Trace,
    result: Result<usize, &Error>,
    took: Duration,
    now: Duration,
) {
    let settings = &desk.board.settings;
    let prefix = match (call.method, trace.stamps) {
        (Method::Range, _) => Some("read-only range "),
        (Method::Txn, None) => Some("read-only txn "),
        _ => None,
    };
    if let Some(prefix) = prefix
        && took > settings.apply
    {
        desk.counters.slow_reads.add(1);
        if let Some(withheld) = desk.teller.admit_read(now) {
            let response = result.map_or(String::new(), |len| format!("size:{len}"));
            tracing::warn!(
                took = ?took,
                "expected-duration" = ?settings.apply,
                prefix,
                request = text::request(call.method, body),
                response,
                error = result.err().map(tracing::field::display),
                loading = ?trace.loading,
                withheld,
                "apply request took too long"
            );
        }
    }
    if took <= settings.unary {
        return;
    }
    let phases = trace.phases(call.caller.began, now);
    let longest = (0..PHASES.len()).max_by_key(|phase| phases[*phase]).unwrap_or(0);
    desk.counters.slow[longest].add(1);
    let Some(withheld) = desk.teller.admit_request(now) else { return };
    let at_unix_us = desk.clock.unix_us();
    let request = text::request(call.method, body);
    log_stats(call, body.len(), result, took, &phases, at_unix_us, &request, withheld);
    let (method, loading) = (call.method, trace.loading);
    desk.board.slow[desk.id].push(Slow { at_unix_us, method, phases, loading, request });
}

fn log_stats(
    call: &Call,
    body_len: usize,
    result: Result<usize, &Error>,
    took: Duration,
    phases: &Phases,
    ended_unix_us: u64,
    request: &str,
    withheld: u64,
) {
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let remote = call.caller.remote.map_or_else(|| "No remote client info.".to_owned(), |remote| remote.to_string());
    let [queue, wal, apply, send, read] = phases;
    tracing::warn!(
        "start time" = log::timestamp(ended_unix_us.saturating_sub(took_us)),
        "time spent" = ?took,
        remote,
        "response type" = format!("/{}/{}", call.method.service(), call.method.name()),
        "request size" = body_len,
        "response size" = result.unwrap_or(0),
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
