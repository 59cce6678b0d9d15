//! Runs on: connection core.
//!
//! What happens at the end of a unary call: its duration is counted by kind and by phase, its keys are noted, and it is
//! logged if it was slow.
//!
//! Invariant: this file decides no result. Its log lines are in etcd's words, and `insight::slow` bounds them.
//! **Source** etcd v3.7.1 `etcdserver/txn/util.go`, `etcdserver/api/v3rpc/interceptor.go`.

use std::time::Duration;

use bytes::Bytes;

use super::{call::Call, desk::Desk};
use crate::{
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
    /// The length of its answer, or why it failed.
    pub(super) result: Result<usize, &'a Error>,
}

/// Counts an ended unary call, notes its keys, and logs it if it was slow.
pub(super) fn ended(desk: &Desk, ended: Ended<'_>) {
    let Ended { call, body, trace, result } = ended;
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
    let Some(withheld) = desk.teller.pass_request(now) else { return };
    let (method, loading) = (call.method, trace.loading);
    let (at_unix_us, request) = (desk.clock.unix_us(), text::request(method, body));
    let slow = Slow { at_unix_us, method, phases, loading, request };
    log_stats(ended, took, &slow, withheld);
    desk.board.slow[desk.id].push(slow);
}

fn log_stats(ended: Ended<'_>, took: Duration, slow: &Slow, withheld: u64) {
    let Ended { call, body, result, .. } = ended;
    let took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
    let remote = call.caller.remote.map_or_else(|| "No remote client info.".to_owned(), |remote| remote.to_string());
    let [queue, wal, apply, send, read] = &slow.phases;
    tracing::warn!(
        "start time" = log::timestamp(slow.at_unix_us.saturating_sub(took_us)),
        "time spent" = ?took,
        remote,
        "response type" = format!("/{}/{}", call.method.service(), call.method.name()),
        "request size" = body.len(),
        "response size" = result.unwrap_or(0),
        "request content" = slow.request,
        queue = ?queue,
        wal = ?wal,
        apply = ?apply,
        send = ?send,
        read = ?read,
        withheld,
        "request stats"
    );
}
