//! Runs on: connection core.
//!
//! What happens at the end of a unary call: its duration is counted by kind and by phase, its keys are noted, and it is
//! logged if it was slow. At the log level debug, every call is logged.
//!
//! Invariant: this file decides no result. Its log lines are in etcd's words, and `insight::slow` bounds them.
//! **Source** etcd v3.7.1 `etcdserver/txn/util.go`, `etcdserver/api/v3rpc/interceptor.go`.

use std::time::Duration;

use bytes::Bytes;

use super::{
    body::Body,
    call::Call,
    desk::Desk,
    measured::{self, Stats},
};
use crate::{
    clock,
    error::Error,
    insight::{
        slow::Slow,
        text,
        trace::{PHASES, Trace},
    },
    log,
    method::Method,
};

/// A unary call that has ended.
#[derive(Clone, Copy)]
pub(super) struct Ended<'a> {
    /// The call.
    pub(super) call: &'a Call,
    /// Its message.
    pub(super) body: &'a Bytes,
    /// The notes that were taken while the call was under way.
    pub(super) trace: &'a Trace,
    /// Its answer, or why it failed.
    pub(super) result: Result<&'a Body, &'a Error>,
}

/// Writes the line `request stats`. A level is part of the place where a line is written, so this is a macro.
macro_rules! log_stats {
    ($level:ident, $ended:expr, $took:expr, $slow:expr, $withheld:expr) => {{
        let (Ended { call, body, result, .. }, slow) = ($ended, $slow);
        let took_us = u64::try_from($took.as_micros()).unwrap_or(u64::MAX);
        let remote = call.caller.remote.map(|remote| remote.to_string());
        let Stats { request_count, request_size, response_count, response_size } =
            measured::stats(call.method, body, result.ok());
        let is_told = measured::tells_content(call.method, result.ok());
        let [queue, wal, apply, send, read] = &slow.phases;
        tracing::$level!(
            "start time" = log::timestamp(slow.at_unix_us.saturating_sub(took_us)),
            "time spent" = clock::shown($took),
            remote = remote.as_deref().unwrap_or("No remote client info."),
            "response type" = format!("/{}/{}", call.method.service(), call.method.name()),
            "request count" = request_count,
            "request size" = request_size,
            "response count" = response_count,
            "response size" = response_size,
            "request content" = if is_told { &slow.request } else { "" },
            queue = ?queue,
            wal = ?wal,
            apply = ?apply,
            send = ?send,
            read = ?read,
            withheld = $withheld,
            "request stats"
        );
    }};
}

/// Counts an ended unary call, notes its keys, and logs it if it was slow.
pub(super) fn ended(desk: &Desk, ended: Ended<'_>) {
    let Ended { call, body, trace, result } = ended;
    let now = desk.clock.now();
    let took = now.saturating_sub(call.caller.began);
    let settings = &desk.board.settings;
    let is_proposed = trace.stamps.is_some();
    // Like etcd, this counts an entry that was applied as a success, whatever its result.
    desk.counters.latencies.ended(call.method, is_proposed, is_proposed || result.is_ok(), took);
    if settings.is_extensive {
        desk.counters.latencies.handling[call.method as usize].observe(took);
    }
    let phases = trace.phases(call.caller.began, now);
    for (sum, phase) in desk.counters.phases.iter().zip(phases) {
        sum.add(u64::try_from(phase.as_nanos()).unwrap_or(u64::MAX));
    }
    desk.heat.borrow_mut().note(now, call.method, body);
    if took > settings.unary.min(settings.apply) || settings.is_debug {
        tell(desk, ended, took, now);
    }
}

#[cold]
fn tell(desk: &Desk, ended: Ended<'_>, took: Duration, now: Duration) {
    let Ended { call, body, trace, result } = ended;
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
        if let Some(withheld) = desk.teller.pass_read(now) {
            tracing::warn!(
                took = clock::shown(took),
                "expected-duration" = clock::shown(settings.apply),
                prefix,
                request = text::request(call.method, body),
                response = result.map_or(String::new(), |answer| measured::read_response(call.method, answer)),
                error = result.err().map(tracing::field::display),
                loading = ?trace.loading,
                withheld,
                "apply request took too long"
            );
        }
    }
    let is_slow = took > settings.unary;
    if !is_slow && !settings.is_debug {
        return;
    }
    let phases = trace.phases(call.caller.began, now);
    let mut passed = None;
    if is_slow {
        let longest = (0..PHASES.len()).max_by_key(|phase| phases[*phase]).unwrap_or(0);
        desk.counters.slow[longest].add(1);
        passed = desk.teller.pass_request(now);
        if passed.is_none() && !settings.is_debug {
            return;
        }
    }
    let (method, loading) = (call.method, trace.loading);
    let (at_unix_us, request) = (desk.clock.unix_us(), text::request(method, body));
    let slow = Slow { at_unix_us, method, phases, loading, request };
    // Like etcd, a member that logs all calls says nothing more of the slow ones.
    if settings.is_debug {
        log_stats!(debug, ended, took, &slow, 0_u64);
    } else {
        log_stats!(warn, ended, took, &slow, passed.unwrap_or(0));
    }
    if passed.is_some() {
        desk.board.slow[desk.id].push(slow);
    }
}
