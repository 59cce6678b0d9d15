//! What was seen: tallies of the threads, merged once a second, and what is printed of them.
//!
//! - A `Tally` is owned by one thread until it is sent here; the run's tally is the sum of all ever sent.
//! - Every request that was due is either in a latency class or in `errors_by_kind`; nothing is dropped.
//! - `errors_by_kind` has at most `ERROR_KINDS_MAX` kinds, so that a server whose messages all differ cannot fill our
//!   memory.

use std::{collections::BTreeMap, io::Write};

use serde::Serialize;

use crate::{
    error::Error,
    histogram::{Latencies, Quantiles},
    http2::End,
};

const ERROR_KINDS_MAX: usize = 64;
const ERROR_KIND_BYTES_MAX: usize = 300;

/// What one thread has seen since it last reported.
pub(crate) struct Tally {
    /// By class of the workload.
    pub(crate) latencies: Vec<Latencies>,
    /// Open loop: how much later than intended requests were written, which is part of their latency.
    pub(crate) lag: Latencies,
    /// Keys listed, events received.
    pub(crate) items: u64,
    /// Requests that ended, well or not.
    pub(crate) ended: u64,
    pub(crate) errors_by_kind: BTreeMap<String, u64>,
}

impl Tally {
    pub(crate) fn new(classes: usize) -> Tally {
        Tally {
            latencies: (0..classes).map(|_| Latencies::new()).collect(),
            lag: Latencies::new(),
            items: 0,
            ended: 0,
            errors_by_kind: BTreeMap::new(),
        }
    }

    /// Counts `count` errors of one kind.
    pub(crate) fn error(&mut self, kind: &str, count: u64) {
        if count == 0 {
            return;
        }
        if let Some(known) = self.errors_by_kind.get_mut(kind) {
            *known += count;
            return;
        }
        let kind = if self.errors_by_kind.len() < ERROR_KINDS_MAX { kind } else { "(other kinds)" };
        *self.errors_by_kind.entry(kind.to_owned()).or_insert(0) += count;
    }

    pub(crate) fn errors(&self) -> u64 {
        self.errors_by_kind.values().sum()
    }

    pub(crate) fn merge(&mut self, other: &Tally) {
        assert_eq!(self.latencies.len(), other.latencies.len());
        for (mine, theirs) in self.latencies.iter_mut().zip(&other.latencies) {
            mine.merge(theirs);
        }
        self.lag.merge(&other.lag);
        self.items += other.items;
        self.ended += other.ended;
        for (kind, count) in &other.errors_by_kind {
            self.error(kind, *count);
        }
    }

    pub(crate) fn clear(&mut self) {
        self.latencies.iter_mut().for_each(Latencies::clear);
        self.lag.clear();
        (self.items, self.ended) = (0, 0);
        self.errors_by_kind.clear();
    }
}

/// An end other than `Ok` as a kind of error: gRPC's code and message, or what happened to the call.
pub(crate) fn error_kind(end: &End) -> String {
    match end {
        End::Ok => "the server ended the stream".to_owned(),
        End::Status { code, message } => format!("{}: {}", code_name(*code), plain_text(message)),
        End::NotGrpc { http_status } => format!("Internal: no gRPC reply (HTTP status {http_status})"),
        End::Reset { code } => format!("Unavailable: stream reset by the server, code {code}"),
        End::Lost { reason } => format!("Unavailable: {reason}"),
        End::TimedOut => "DeadlineExceeded: no reply in time (generator's --timeout)".to_owned(),
    }
}

fn code_name(code: u32) -> String {
    const NAMES: [&str; 17] = [
        "OK",
        "Canceled",
        "Unknown",
        "InvalidArgument",
        "DeadlineExceeded",
        "NotFound",
        "AlreadyExists",
        "PermissionDenied",
        "ResourceExhausted",
        "FailedPrecondition",
        "Aborted",
        "OutOfRange",
        "Unimplemented",
        "Internal",
        "Unavailable",
        "DataLoss",
        "Unauthenticated",
    ];
    let known = usize::try_from(code).ok().and_then(|position| NAMES.get(position));
    known.map_or_else(|| format!("Code({code})"), |name| (*name).to_owned())
}

/// A grpc-message as text: percent signs decoded, what is not printable escaped.
fn plain_text(message: &[u8]) -> String {
    let mut bytes = Vec::with_capacity(message.len());
    let mut rest = message;
    while let Some((&first, after)) = rest.split_first() {
        let hex = if first == b'%' { after.get(..2).and_then(|two| std::str::from_utf8(two).ok()) } else { None };
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes.truncate(ERROR_KIND_BYTES_MAX);
    bytes.escape_ascii().to_string()
}

/// The line printed each second, of that second alone.
pub(crate) fn progress_line(elapsed_s: u64, seconds: f64, second: &Tally, errors_so_far: u64) -> String {
    let requests = &second.latencies[0];
    let mut line = format!(
        "{elapsed_s:>5} s  {:>9.0}/s  p50 {:>8.3} ms  p99 {:>8.3} ms",
        per_second(second.ended, seconds),
        requests.quantile_ms(0.5),
        requests.quantile_ms(0.99),
    );
    if second.items > 0 {
        line.push_str(&format!("  items {:.0}/s", per_second(second.items, seconds)));
    }
    line.push_str(&format!("  errors {errors_so_far}"));
    line
}

/// What the run was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) command: &'static str,
    pub(crate) endpoints: Vec<String>,
    pub(crate) conns: usize,
    pub(crate) clients: usize,
    pub(crate) threads: usize,
    /// Requests a second asked for; 0 means a closed loop.
    pub(crate) rate: u64,
    pub(crate) loop_kind: &'static str,
}

/// The latencies of one class.
#[derive(Clone, Debug, Serialize)]
struct ClassSummary {
    name: &'static str,
    #[serde(flatten)]
    latency: Quantiles,
}

/// The report of a whole run.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Summary {
    #[serde(flatten)]
    setting: Setting,
    elapsed_s: f64,
    requests: u64,
    requests_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    item_name: Option<&'static str>,
    items: u64,
    items_per_s: f64,
    latency: Vec<ClassSummary>,
    /// Only in an open loop.
    #[serde(skip_serializing_if = "Option::is_none")]
    send_lag: Option<Quantiles>,
    errors: u64,
    errors_by_kind: BTreeMap<String, u64>,
    generator_cpu_us_per_request: f64,
}

impl Summary {
    pub(crate) fn new(
        setting: Setting,
        classes: &[&'static str],
        item_name: Option<&'static str>,
        tally: &Tally,
        elapsed_s: f64,
        cpu_us: f64,
    ) -> Summary {
        let latency = classes.iter().zip(&tally.latencies);
        Summary {
            elapsed_s,
            requests: tally.ended,
            requests_per_s: per_second(tally.ended, elapsed_s),
            item_name,
            items: tally.items,
            items_per_s: per_second(tally.items, elapsed_s),
            latency: latency.map(|(name, found)| ClassSummary { name, latency: found.quantiles() }).collect(),
            send_lag: (setting.rate > 0).then(|| tally.lag.quantiles()),
            errors: tally.errors(),
            errors_by_kind: tally.errors_by_kind.clone(),
            generator_cpu_us_per_request: if tally.ended == 0 { 0.0 } else { cpu_us / as_double(tally.ended) },
            setting,
        }
    }

    /// Whether anything went wrong.
    pub(crate) fn has_errors(&self) -> bool {
        self.errors > 0
    }

    pub(crate) fn write_json(&self, out: &mut impl Write) -> Result<(), Error> {
        serde_json::to_writer(&mut *out, self).map_err(std::io::Error::from)?;
        writeln!(out)?;
        Ok(())
    }

    pub(crate) fn write_text(&self, out: &mut impl Write) -> Result<(), Error> {
        let setting = &self.setting;
        writeln!(
            out,
            "{}: {} connections, {} clients, {} loop{}",
            setting.command,
            setting.conns,
            setting.clients,
            setting.loop_kind,
            if setting.rate > 0 { format!(", {} requests/s asked", setting.rate) } else { String::new() },
        )?;
        writeln!(out, "  requests     {} in {:.3} s", self.requests, self.elapsed_s)?;
        writeln!(out, "  throughput   {:.1} requests/s", self.requests_per_s)?;
        if let Some(name) = self.item_name {
            writeln!(out, "  {name:<12} {} ({:.1}/s)", self.items, self.items_per_s)?;
        }
        writeln!(
            out,
            "  latency ms   {:>10} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "count", "mean", "p50", "p90", "p99", "p99.9", "max"
        )?;
        for class in &self.latency {
            write_quantiles(out, class.name, &class.latency)?;
        }
        if let Some(lag) = &self.send_lag {
            write_quantiles(out, "send lag", lag)?;
        }
        writeln!(out, "  generator    {:.2} us CPU/request", self.generator_cpu_us_per_request)?;
        writeln!(out, "  errors       {}", self.errors)?;
        for (kind, count) in &self.errors_by_kind {
            writeln!(out, "    {count:>9}  {kind}")?;
        }
        Ok(())
    }
}

fn write_quantiles(out: &mut impl Write, name: &str, found: &Quantiles) -> Result<(), Error> {
    writeln!(
        out,
        "    {name:<11}{:>10} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>9.3}",
        found.count, found.mean_ms, found.p50_ms, found.p90_ms, found.p99_ms, found.p999_ms, found.max_ms
    )?;
    Ok(())
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { as_double(count) / seconds } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts of a run stay far below 2^53")]
fn as_double(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_every_request_and_error() {
        let (mut run, mut second) = (Tally::new(2), Tally::new(2));
        for ns in [1_000, 2_000, 3_000] {
            second.latencies[1].record(ns);
            second.ended += 1;
        }
        second.error("Unavailable: x", 2);
        run.merge(&second);
        run.merge(&second);
        second.clear();
        run.merge(&second);
        assert_eq!((run.latencies[1].count(), run.ended, run.errors()), (6, 6, 4));
        assert_eq!(run.latencies[0].count(), 0);
    }

    #[test]
    fn error_kinds_are_bounded_but_all_counted() {
        let mut tally = Tally::new(1);
        for i in 0..1_000 {
            tally.error(&format!("lease {i} not found"), 1);
        }
        assert_eq!(tally.errors(), 1_000);
        assert!(tally.errors_by_kind.len() <= ERROR_KINDS_MAX + 1);
    }

    #[test]
    fn grpc_errors_read_as_code_and_message() {
        let end = End::Status { code: 8, message: b"etcdserver: too many%20requests %e2%82%ac 5%".to_vec() };
        assert_eq!(error_kind(&end), "ResourceExhausted: etcdserver: too many requests \\xe2\\x82\\xac 5%");
        assert_eq!(code_name(99), "Code(99)");
    }
}
