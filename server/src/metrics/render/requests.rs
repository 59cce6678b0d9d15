//! Runs on: connection core.
//!
//! Calls, their durations, health checks, scrapes.

use super::{
    scrape::{SECONDS, Scrape, histogram, sum},
    text::Text,
};
use crate::{
    method::Method,
    metrics::{
        counters::{CALL_TYPES, CHECKS, CLIENT_VERSIONS, CODE_NAMES, Check, FAILING_STREAMS, OfMethod},
        histogram::{Count, Snapshot},
        latency::{Handling, REQUEST_TYPES, SUCCESS},
    },
};

pub(super) fn render(of: &Scrape<'_>, text: &mut Text) {
    render_health(of, text);
    render_requests(of, text);
    render_grpc(of, text);
    render_latencies(of, text);
    render_scrapes(of, text);
}

/// This scrape is under way and not yet counted, as in etcd.
fn render_scrapes(of: &Scrape<'_>, text: &mut Text) {
    text.gauge("promhttp_metric_handler_requests_in_flight", "Current number of scrapes being served.", 1);
    let name = "promhttp_metric_handler_requests_total";
    text.family(name, "counter", "Total number of scrapes by HTTP status code.");
    // No scrape fails here.
    for (code, count) in [(200, sum(of, |counters| &counters.scrapes)), (500, 0), (503, 0)] {
        text.sample(name, &format!("{{code=\"{code}\"}}"), count);
    }
}

fn render_health(of: &Scrape<'_>, text: &mut Text) {
    let healthy = sum(of, |counters| &counters.health_ok);
    text.counter("etcd_server_health_success", "The total number of successful health checks", healthy);
    let failed = sum(of, |counters| &counters.health_failed);
    text.counter("etcd_server_health_failures", "The total number of failed health checks", failed);
    let pick =
        |position: usize, count: fn(&Check) -> &Count| sum(of, move |counters| count(&counters.checks[position]));
    let results: Vec<_> = (0..CHECKS.len())
        .map(|position| {
            let last = of.registry.connections.iter().map(|counters| counters.checks[position].last.get()).max();
            let (endpoint, name) = CHECKS[position];
            let passed = pick(position, |check| &check.passed);
            let failed = pick(position, |check| &check.failed);
            (endpoint, name, passed, failed, last.unwrap_or(0) & 1)
        })
        .filter(|(_, _, passed, failed, _)| passed + failed > 0)
        .collect();
    if results.is_empty() {
        return;
    }
    let family = "etcd_server_healthcheck";
    text.family(family, "gauge", "The result of each kind of healthcheck.");
    for (endpoint, name, _, _, last) in &results {
        text.sample(family, &format!("{{name=\"{name}\",type=\"{endpoint}\"}}"), last);
    }
    let family = "etcd_server_healthchecks_total";
    text.family(family, "counter", "The total number of each kind of healthcheck.");
    for (endpoint, name, passed, failed, _) in &results {
        for (status, count) in [("success", passed), ("error", failed)] {
            if *count > 0 {
                let labels = format!("{{name=\"{name}\",status=\"{status}\",type=\"{endpoint}\"}}");
                text.sample(family, &labels, count);
            }
        }
    }
}

fn render_requests(of: &Scrape<'_>, text: &mut Text) {
    let sent = sum(of, |counters| &counters.sent_bytes);
    text.counter("etcd_network_client_grpc_sent_bytes_total", "The total number of bytes sent to grpc clients.", sent);
    let received = sum(of, |counters| &counters.received_bytes);
    let help = "The total number of bytes received from grpc clients.";
    text.counter("etcd_network_client_grpc_received_bytes_total", help, received);
    let failures = |position: usize| sum(of, |counters| &counters.stream_failures[position]);
    let failed: Vec<_> = (0..FAILING_STREAMS.len()).filter(|position| failures(*position) > 0).collect();
    if !failed.is_empty() {
        let name = "etcd_network_server_stream_failures_total";
        text.family(name, "counter", "The total number of stream failures from the local server.");
        for position in failed {
            let api = FAILING_STREAMS[position].1;
            text.sample(name, &format!("{{API=\"{api}\",Type=\"receive\"}}"), failures(position));
        }
    }
    let name = "etcd_server_client_requests_total";
    text.family(name, "counter", "The total number of client requests per client version.");
    for (call_type, calls) in CALL_TYPES.iter().enumerate() {
        for (version, version_name) in CLIENT_VERSIONS.iter().enumerate() {
            let count = sum(of, |counters| &counters.requests[call_type][version]);
            if count > 0 {
                text.sample(name, &format!("{{client_api_version=\"{version_name}\",type=\"{calls}\"}}"), count);
            }
        }
    }
}

/// Whether a method has samples before it is called. etcd registers the services of locks and elections too late for
/// that.
fn is_shown(of: &Scrape<'_>, method: Method) -> bool {
    !method.service().starts_with("v3") || sum(of, |counters| &counters.methods[method as usize].started) > 0
}

fn labels(method: Method) -> String {
    let (flow, service, name) = (method.flow().label(), method.service(), method.name());
    format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{flow}\"")
}

fn render_grpc(of: &Scrape<'_>, text: &mut Text) {
    type Pick = fn(&OfMethod) -> &Count;
    let families: [(&str, &str, Pick); 3] = [
        ("grpc_server_started_total", "Total number of RPCs started on the server.", |of| &of.started),
        ("grpc_server_msg_received_total", "Total number of RPC stream messages received on the server.", |of| {
            &of.received
        }),
        ("grpc_server_msg_sent_total", "Total number of gRPC stream messages sent by the server.", |of| &of.sent),
    ];
    for (name, help, pick) in families {
        text.family(name, "counter", help);
        for method in Method::ALL.iter().filter(|method| is_shown(of, **method)) {
            let value = sum(of, |counters| pick(&counters.methods[*method as usize]));
            text.sample(name, &format!("{{{}}}", labels(*method)), value);
        }
    }
    let name = "grpc_server_handled_total";
    text.family(name, "counter", "Total number of RPCs completed on the server, regardless of success or failure.");
    for method in Method::ALL.iter().filter(|method| is_shown(of, **method)) {
        let labels = labels(*method);
        for (code, code_name) in CODE_NAMES.iter().enumerate() {
            let value = sum(of, |counters| &counters.methods[*method as usize].handled[code]);
            text.line(format_args!("{name}{{grpc_code=\"{code_name}\",{labels}}} {value}"));
        }
    }
}

/// Writes a histogram family by labels. What has not happened yet has no series, as in etcd's label vectors.
fn vector(text: &mut Text, name: &str, help: &str, series: impl Iterator<Item = (String, Snapshot)>) {
    let mut series = series.filter(|(_, shown)| shown.count > 0).peekable();
    if series.peek().is_some() {
        text.family(name, "histogram", help);
        series.for_each(|(labels, shown)| text.series(name, &labels, &shown, SECONDS));
    }
}

fn render_latencies(of: &Scrape<'_>, text: &mut Text) {
    let by_success = |position: usize| format!("success=\"{}\"", SUCCESS[position]);
    let types = REQUEST_TYPES.iter().enumerate().flat_map(|(at, name)| (0..SUCCESS.len()).map(move |s| (at, name, s)));
    let series = types.map(|(at, name, success)| {
        let clients = of.registry.connections.iter().map(|counters| &counters.latencies.by_type[at][success]);
        let own = (success == 1).then_some(&of.registry.commit.own_requests.0[at]);
        let shown = Snapshot::of(clients.chain(own));
        (format!("{},type=\"{name}\"", by_success(success)), shown)
    });
    let help = "Response latency distribution in seconds for each type.";
    vector(text, "etcd_server_request_duration_seconds", help, series);
    let ranges = (0..SUCCESS.len())
        .map(|success| (by_success(success), histogram(of, |counters| &counters.latencies.ranges[success])));
    vector(text, "etcd_server_range_duration_seconds", "The latency distributions of txn.Range", ranges);
    let applies = of.registry.commit.applies.shown();
    let series =
        applies.map(|(kind, success, shown)| (format!("op=\"{kind:?}\",success=\"{success}\",version=\"v3\""), shown));
    let help =
        "The latency distributions of v2 apply called by backend. Here: of all entries, waits for pages included.";
    vector(text, "etcd_server_apply_duration_seconds", help, series);
    if of.board.settings.is_extensive {
        let name = "grpc_server_handling_seconds";
        let help =
            "Histogram of response latency (seconds) of gRPC that had been application-level handled by the server.";
        text.family(name, "histogram", help);
        for method in Method::ALL {
            let cores = of.registry.connections.iter();
            let shown = Handling::sum(cores.map(|counters| &counters.latencies.handling[*method as usize]));
            text.series(name, &labels(*method), &shown, SECONDS);
        }
    }
}
