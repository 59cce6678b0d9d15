//! Runs on: connection core.
//!
//! The answer to /metrics: Prometheus' text format, one function for each part of the member.
//!
//! Invariants: a family is written once, with all its samples after its TYPE. Types are etcd's, even where a counter is
//! called a gauge. This file only writes text; the numbers were counted elsewhere.

use std::{
    fmt::{Display, Write as _},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use bytes::Bytes;
use engine::{KeyRange, RangeEnd};

use super::{
    counters::{CALL_TYPES, CHECKS, CLIENT_VERSIONS, CODE_NAMES, Check, Counters, MEMORY, OfMethod},
    histogram::{Count, Histogram, Snapshot},
    latency::{Handling, REQUEST_TYPES, SUCCESS},
    process::Process,
    registry::Registry,
};
use crate::{
    config::Stage,
    insight::{Board, hot, text, trace::PHASES},
    method::Method,
    shared::{Shared, alarm_name},
};

/// Divides a histogram's nanoseconds to give seconds.
const SECONDS: f64 = 1e9;
/// Divides a histogram's nanoseconds to give milliseconds.
const MILLISECONDS: f64 = 1e6;

/// Things that a single member never does. Dashboards ask for some of them by name; the answer is 0.
const NEVER: [(&str, &str, &str); 5] = [
    ("etcd_server_heartbeat_send_failures_total", "counter", "Leader heartbeats sent too late."),
    ("etcd_server_slow_read_indexes_total", "counter", "Reads whose confirmation took too long; alone none is needed."),
    ("etcd_server_learner_promote_successes", "counter", "Learners promoted while this member was leader."),
    ("etcd_server_is_learner", "gauge", "Whether or not this member is a learner. 1 if is, 0 otherwise."),
    ("etcd_server_snapshot_apply_in_progress_total", "gauge", "1 if the server applies an incoming snapshot."),
];

/// The sources of a scrape.
pub struct Scrape<'a> {
    /// Published state.
    pub shared: &'a Shared,
    /// The counters.
    pub registry: &'a Registry,
    /// The published results of insight.
    pub board: &'a Board,
    /// Time since the process began.
    pub now: Duration,
    /// Wall time. **Units** microseconds since 1970.
    pub unix_us: u64,
}

/// The answer to /metrics.
pub fn render(of: &Scrape<'_>) -> String {
    let mut text = Text(String::with_capacity(128 * 1024));
    render_identity(of, &mut text);
    render_raft(of, &mut text);
    render_store(of, &mut text);
    render_operations(of, &mut text);
    render_compaction(of, &mut text);
    render_watch(of, &mut text);
    render_leases(of, &mut text);
    render_disk(of, &mut text);
    render_health(of, &mut text);
    render_requests(of, &mut text);
    render_grpc(of, &mut text);
    render_latencies(of, &mut text);
    render_phases(of, &mut text);
    render_usage(of, &mut text);
    render_heat(of, &mut text);
    render_process(&Process::look(), &mut text);
    text.0
}

struct Text(String);

impl Text {
    fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.0.write_fmt(line).expect("a String takes every write");
        self.0.push('\n');
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    /// Writes a sample. `labels` come with their braces, or are empty.
    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        self.line(format_args!("{name}{labels} {value}"));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    /// Writes a family of one sample, which is 1 and carries its information in the label.
    fn label(&mut self, name: &str, help: &str, label: &str, value: &str) {
        self.family(name, "gauge", help);
        self.sample(name, &format!("{{{label}=\"{}\"}}", escaped(value)), 1);
    }

    /// Writes the histogram `shown`. Its numbers are `scale` times those in the family's unit.
    fn histogram(&mut self, name: &str, help: &str, shown: &Snapshot, scale: f64) {
        self.family(name, "histogram", help);
        self.series(name, "", shown, scale);
    }

    /// Writes one series of a histogram. `labels` come without braces, or are empty.
    fn series(&mut self, name: &str, labels: &str, shown: &Snapshot, scale: f64) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in &shown.buckets {
            let bound = number(*bound as f64 / scale);
            self.line(format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"));
        }
        self.line(format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", shown.count));
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        self.sample(&format!("{name}_sum"), &braced, number(shown.sum as f64 / scale));
        self.sample(&format!("{name}_count"), &braced, shown.count);
    }
}

/// A number in Go's shortest form, `%g`. Queries name buckets by this text.
fn number(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the form has an exponent");
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value}"),
    }
}

/// A label's value, escaped as the format requires.
fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}

fn load(value: &AtomicU64) -> u64 {
    value.load(Ordering::Acquire)
}

fn sum(of: &Scrape<'_>, pick: impl Fn(&Counters) -> &Count) -> u64 {
    of.registry.connections.iter().fold(0, |sum, counters| sum.wrapping_add(pick(counters).get()))
}

fn render_identity(of: &Scrape<'_>, text: &mut Text) {
    let shared = of.shared;
    let id = format!("{:x}", shared.identity.member_id);
    text.label(
        "etcd_server_id",
        "Server or member ID in hexadecimal format. 1 for 'server_id' label with current ID.",
        "server_id",
        &id,
    );
    text.label(
        "etcd_server_version",
        "Which version is running. 1 for 'server_version' label with current version.",
        "server_version",
        crate::ETCD_VERSION,
    );
    let release = format!("none: Orlop {}", crate::RELEASE);
    text.label(
        "etcd_server_go_version",
        "Which Go version server is running with; it is not written in Go.",
        "server_go_version",
        &release,
    );
    let cluster = shared.cluster.load();
    if let Some(version) = &cluster.version {
        let short = version.rsplit_once('.').map_or(version.as_str(), |(short, _)| short);
        text.label(
            "etcd_cluster_version",
            "Which version is running. 1 for 'cluster_version' label with current cluster version",
            "cluster_version",
            short,
        );
    }
    let name = "etcd_server_feature_enabled";
    text.family(name, "gauge", "Whether or not a feature is enabled. 1 is enabled, 0 is not.");
    for (feature, stage, is_enabled) in &of.registry.features {
        let stage = match stage {
            Stage::Alpha => "ALPHA",
            Stage::Beta => "BETA",
        };
        text.sample(name, &format!("{{name=\"{feature}\",stage=\"{stage}\"}}"), u8::from(*is_enabled));
    }
    if !cluster.members.is_empty() {
        let name = "etcd_network_known_peers";
        text.family(name, "gauge", "The current number of known peers.");
        for member in &cluster.members {
            text.sample(name, &format!("{{Local=\"{id}\",Remote=\"{:x}\"}}", member.id), 1);
        }
    }
    let alarms = &cluster.alarms;
    if !alarms.is_empty() {
        let name = "etcd_debugging_server_alarms";
        let help = "Alarms for every member in cluster. 1 for 'server_id' label with current ID. 2 for 'alarm_type' \
                    label with type of this alarm";
        text.family(name, "gauge", help);
        for (member, alarm) in alarms.keys() {
            let kind = alarm_name(*alarm);
            text.sample(name, &format!("{{alarm_type=\"{kind}\",server_id=\"{member:x}\"}}"), 1);
        }
    }
}

fn render_raft(of: &Scrape<'_>, text: &mut Text) {
    let shared = of.shared;
    let leader = load(&shared.raft.leader);
    text.gauge(
        "etcd_server_has_leader",
        "Whether or not a leader exists. 1 is existence, 0 is not.",
        u8::from(leader != 0),
    );
    let is_leader = u8::from(leader == shared.identity.member_id);
    text.gauge("etcd_server_is_leader", "Whether or not this member is a leader. 1 if is, 0 otherwise.", is_leader);
    let changes = of.registry.commit.leader_changes.get();
    text.counter("etcd_server_leader_changes_seen_total", "The number of leader changes seen.", changes);
    // The applied index is read first, so that it is never ahead of the committed one.
    let applied = load(&shared.raft.applied);
    let committed = load(&shared.raft.commit).max(applied);
    text.gauge(
        "etcd_server_proposals_committed_total",
        "The total number of consensus proposals committed.",
        committed,
    );
    text.gauge("etcd_server_proposals_applied_total", "The total number of consensus proposals applied.", applied);
    let pending = shared.raft.pending.load(Ordering::Acquire);
    text.gauge("etcd_server_proposals_pending", "The current number of pending proposals to commit.", pending);
    let failed = sum(of, |counters| &counters.proposals_failed);
    text.counter("etcd_server_proposals_failed_total", "The total number of failed proposals seen.", failed);
    let failed = sum(of, |counters| &counters.reads_failed);
    text.counter("etcd_server_read_indexes_failed_total", "The total number of failed read indexes seen.", failed);
    let slow = of.registry.commit.slow_applies.get() + sum(of, |counters| &counters.slow_reads);
    let help = "The total number of slow apply requests, reads among them.";
    text.counter("etcd_server_slow_apply_total", help, slow);
    for (name, kind, help) in NEVER {
        text.family(name, kind, help);
        text.sample(name, "", 0);
    }
}

fn render_store(of: &Scrape<'_>, text: &mut Text) {
    let shared = of.shared;
    let view = of.shared.view.load();
    let quota = shared.limits.quota.shown();
    text.gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", quota);
    let allocated = load(&shared.sizes.allocated);
    text.gauge("etcd_mvcc_db_total_size_in_bytes", "Size of the store in bytes, as allocated.", allocated);
    let in_use = load(&shared.sizes.in_use);
    text.gauge("etcd_mvcc_db_total_size_in_use_in_bytes", "Size of the store in bytes, as reachable.", in_use);
    text.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", view.revision());
    text.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        view.compact_revision(),
    );
    let all = KeyRange { start: Bytes::new(), end: RangeEnd::Open };
    // Directly after a start the root may not be in memory. Nobody has read a key then.
    if let Ok((keys, _)) = view.sums(&all, u64::MAX) {
        text.gauge("etcd_debugging_mvcc_keys_total", "Total number of keys.", keys);
    }
    let help = "The latency distribution of storage hash operation.";
    text.histogram("etcd_mvcc_hash_duration_seconds", help, &histogram(of, |counters| &counters.hash), SECONDS);
    let help = "The latency distribution of storage hash by revision operation.";
    text.histogram("etcd_mvcc_hash_rev_duration_seconds", help, &histogram(of, |counters| &counters.hash_kv), SECONDS);
}

fn histogram<const N: usize>(of: &Scrape<'_>, pick: impl Fn(&Counters) -> &Histogram<N>) -> Snapshot {
    Snapshot::of(of.registry.connections.iter().map(|counters| pick(counters)))
}

fn render_operations(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    text.counter("etcd_mvcc_put_total", "Total number of puts seen by this member.", commit.puts.get());
    text.counter("etcd_mvcc_delete_total", "Total number of deletes seen by this member.", commit.deletes.get());
    let ranges = commit.ranges.get() + sum(of, |counters| &counters.ranges);
    text.counter("etcd_mvcc_range_total", "Total number of ranges seen by this member.", ranges);
    let txns = commit.txns.get() + sum(of, |counters| &counters.txns);
    text.counter("etcd_mvcc_txn_total", "Total number of txns seen by this member.", txns);
    let bytes = commit.put_bytes.get();
    text.gauge(
        "etcd_debugging_mvcc_total_put_size_in_bytes",
        "The total size of put kv pairs seen by this member.",
        bytes,
    );
}

fn render_compaction(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    let dropped = commit.versions_dropped.get();
    text.counter("etcd_debugging_mvcc_db_compaction_keys_total", "Total number of db keys compacted.", dropped);
    let last = match commit.swept_at_us.get() {
        0 => 0,
        at_us => {
            let now_us = u64::try_from(of.now.as_micros()).unwrap_or(u64::MAX);
            of.unix_us.saturating_sub(now_us.saturating_sub(at_us)) / 1_000_000
        }
    };
    text.gauge(
        "etcd_debugging_mvcc_db_compaction_last",
        "The unix time of the last db compaction. Resets to 0 on start.",
        last,
    );
    let shown = Snapshot::of([&commit.sweep].into_iter());
    let help = "Bucketed histogram of db compaction total duration.";
    text.histogram("etcd_debugging_mvcc_db_compaction_total_duration_milliseconds", help, &shown, MILLISECONDS);
}

fn render_watch(of: &Scrape<'_>, text: &mut Text) {
    let streams = sum(of, |counters| &counters.watch_streams);
    text.gauge("etcd_debugging_mvcc_watch_stream_total", "Total number of watch streams.", streams);
    let watchers = sum(of, |counters| &counters.watchers);
    text.gauge("etcd_debugging_mvcc_watcher_total", "Total number of watchers.", watchers);
    let slow = sum(of, |counters| &counters.watchers_unsynced);
    text.gauge("etcd_debugging_mvcc_slow_watcher_total", "Total number of unsynced slow watchers.", slow);
    let events = sum(of, |counters| &counters.events);
    text.counter("etcd_debugging_mvcc_events_total", "Total number of events sent by this member.", events);
    let pending = sum(of, |counters| &counters.events_pending);
    text.gauge("etcd_debugging_mvcc_pending_events_total", "Total number of pending events to be sent.", pending);
}

fn render_leases(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    text.counter(
        "etcd_debugging_lease_granted_total",
        "The total number of granted leases.",
        commit.leases_granted.get(),
    );
    let renewed = commit.leases_renewed.get();
    text.counter("etcd_debugging_lease_renewed_total", "The number of renewed leases seen by the leader.", renewed);
    text.counter(
        "etcd_debugging_lease_revoked_total",
        "The total number of revoked leases.",
        commit.leases_revoked.get(),
    );
    let expired = commit.leases_expired.get();
    text.counter("etcd_debugging_server_lease_expired_total", "The total number of expired leases.", expired);
    let shown = Snapshot::of([&commit.lease_ttl].into_iter());
    text.histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", &shown, 1.0);
}

fn render_disk(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    text.gauge("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL.", commit.wal_bytes.get());
    let shown = Snapshot::of([&commit.wal_write].into_iter());
    let help = "The latency distributions of durable writes of the WAL: write and fsync are one here.";
    text.histogram("etcd_disk_wal_fsync_duration_seconds", help, &shown, SECONDS);
    let shown = Snapshot::of([&commit.checkpoint_commit].into_iter());
    let help = "The latency distributions of a checkpoint's last syncs and superblock. No request waits for them.";
    text.histogram("etcd_disk_backend_commit_duration_seconds", help, &shown, SECONDS);
    let shown = Snapshot::of([&commit.checkpoint].into_iter());
    let help = "The durations of whole checkpoints. No request waits for one.";
    text.histogram("orlop_checkpoint_duration_seconds", help, &shown, SECONDS);
    let shown = Snapshot::of([&commit.defragment].into_iter());
    let help = "The latency distribution of backend defragmentation. No request waits for one.";
    text.histogram("etcd_disk_backend_defrag_duration_seconds", help, &shown, SECONDS);
    let inflight = commit.defragment_inflight.get();
    text.gauge("etcd_disk_defrag_inflight", "Whether or not defrag is active. 1 means active, 0 means not.", inflight);
    let help = "Total number of segment files emptied to give their space back.";
    text.counter("orlop_store_segments_emptied_total", help, commit.segments_emptied.get());
    let help = "Total number of live bytes moved to give space back.";
    text.counter("orlop_store_moved_bytes_total", help, commit.moved_bytes.get());
    let name = "orlop_store_memory_bytes";
    text.family(
        name,
        "gauge",
        "Memory for records and nodes not yet in a checkpoint, for other nodes, and for what was read of records.",
    );
    for (kind, bytes) in MEMORY.iter().zip(&commit.memory) {
        text.sample(name, &format!("{{kind=\"{kind}\"}}"), bytes.get());
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

fn labels(method: Method) -> String {
    let (flow, service, name) = (method.flow().label(), method.service(), method.name());
    format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{flow}\"")
}

fn render_grpc(of: &Scrape<'_>, text: &mut Text) {
    type Pick = fn(&OfMethod) -> &Count;
    let families: [(&str, &str, Pick); 3] = [
        ("grpc_server_started_total", "Total number of RPCs started on the server.", |of| &of.started),
        ("grpc_server_msg_received_total", "Total number of RPC messages received on the server.", |of| &of.received),
        ("grpc_server_msg_sent_total", "Total number of gRPC messages sent by the server.", |of| &of.sent),
    ];
    for (name, help, pick) in families {
        text.family(name, "counter", help);
        for method in Method::ALL {
            let value = sum(of, |counters| pick(&counters.methods[*method as usize]));
            text.sample(name, &format!("{{{}}}", labels(*method)), value);
        }
    }
    let name = "grpc_server_handled_total";
    text.family(name, "counter", "Total number of RPCs completed on the server, regardless of success or failure.");
    for method in Method::ALL {
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
        let shown = histogram(of, |counters| &counters.latencies.by_type[at][success]);
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
    let help = "The latency distributions of applying entries, waits for pages included.";
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

fn render_phases(of: &Scrape<'_>, text: &mut Text) {
    let name = "orlop_request_phase_seconds_total";
    text.family(name, "counter", "Time that unary requests spent in each phase; read is all of one that only reads.");
    for (position, phase) in PHASES.iter().enumerate() {
        let nanoseconds = sum(of, |counters| &counters.phases[position]);
        text.sample(name, &format!("{{phase=\"{phase}\"}}"), number(nanoseconds as f64 / SECONDS));
    }
    let name = "orlop_slow_requests_total";
    text.family(
        name,
        "counter",
        "Requests longer than --warning-unary-request-duration, by the phase that took longest.",
    );
    for (position, phase) in PHASES.iter().enumerate() {
        text.sample(name, &format!("{{phase=\"{phase}\"}}"), sum(of, |counters| &counters.slow[position]));
    }
}

/// Prefixes that get a series of their own, at most.
const HOT_SHOWN: usize = 10;

fn render_usage(of: &Scrape<'_>, text: &mut Text) {
    type Pick = fn(&engine::Usage) -> u64;
    let families: [(&str, &str, Pick); 3] = [
        ("orlop_prefix_keys", "Live keys by the first parts of their path.", |usage| usage.keys),
        ("orlop_prefix_live_bytes", "Bytes of their newest versions.", |usage| usage.live_bytes),
        ("orlop_prefix_versions", "Versions stored for them, old ones and tombstones included.", |usage| {
            usage.versions
        }),
    ];
    let rows = of.board.usage.load();
    for (name, help, pick) in families.iter().filter(|_| !rows.is_empty()) {
        text.family(name, "gauge", help);
        for row in rows.iter() {
            let (prefix, rest) = (escaped(&text::escaped(&row.prefix)), if row.is_rest { "*" } else { "" });
            text.sample(name, &format!("{{prefix=\"{prefix}{rest}\"}}"), pick(&row.usage));
        }
    }
}

/// Shows keys by rank. Their names would make new series for ever.
fn render_heat(of: &Scrape<'_>, text: &mut Text) {
    let (keys, prefixes) = hot::hottest(&of.board.heat_now(), of.now, HOT_SHOWN);
    if keys.is_empty() && prefixes.is_empty() {
        return;
    }
    let name = "orlop_hot_key_requests_per_second";
    text.family(name, "gauge", "Requests of the most requested keys, by rank; orlop top names them.");
    for (rank, hot) in keys.iter().enumerate() {
        text.sample(name, &format!("{{rank=\"{}\"}}", rank + 1), number(hot.rate));
    }
    let name = "orlop_hot_prefix_requests_per_second";
    text.family(name, "gauge", "Requests of the most requested prefixes.");
    for hot in &prefixes {
        text.sample(name, &format!("{{prefix=\"{}\"}}", escaped(&text::escaped(&hot.item))), number(hot.rate));
    }
}

fn render_process(process: &Process, text: &mut Text) {
    if let Some(cpu_s) = process.cpu_s {
        text.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", number(cpu_s));
    }
    if let Some(start_s) = process.start_s {
        let help = "Start time of the process since unix epoch in seconds.";
        text.gauge("process_start_time_seconds", help, number(start_s));
    }
    if let Some(bytes) = process.resident_bytes {
        text.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    if let Some(bytes) = process.virtual_bytes {
        text.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", bytes);
    }
    let bytes_max = process.virtual_bytes_max;
    text.gauge("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.", bytes_max);
    if let Some((received, sent)) = process.network_bytes {
        let help = "Number of bytes received by the process over the network.";
        text.counter("process_network_receive_bytes_total", help, received);
        let help = "Number of bytes sent by the process over the network.";
        text.counter("process_network_transmit_bytes_total", help, sent);
    }
    if let Some(files) = process.files {
        text.gauge("process_open_fds", "Number of open file descriptors.", files);
        text.gauge("os_fd_used", "The number of used file descriptors.", files);
    }
    text.gauge("process_max_fds", "Maximum number of open file descriptors.", process.files_max);
    text.gauge("os_fd_limit", "The file descriptor limit.", process.files_max);
}
