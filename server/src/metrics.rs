//! Runs on: connection core.
//!
//! Counters of a core, and their rendering in Prometheus' text format under etcd's names.
//!
//! Invariants: a counter is written by its own core alone and only grows; a scrape reads all cores' and sums.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering},
};

use crate::{core::Core, error::Code, wire::method::Method};

const CODES: usize = 17;
const CODE_NAMES: [&str; CODES] = [
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

#[derive(Debug, Default)]
struct OfMethod {
    started: AtomicU64,
    handled: [AtomicU64; CODES],
    received: AtomicU64,
    sent: AtomicU64,
}

/// The counters of one core.
#[derive(Debug)]
pub struct Counters {
    methods: Vec<OfMethod>,
    received_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    /// Answers of /health: healthy.
    pub health_ok: AtomicU64,
    /// Answers of /health: not healthy.
    pub health_failed: AtomicU64,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            methods: Method::ALL.iter().map(|_| OfMethod::default()).collect(),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            health_ok: AtomicU64::new(0),
            health_failed: AtomicU64::new(0),
        }
    }
}

impl Counters {
    /// A call began.
    pub fn started(&self, method: Method) {
        self.methods[method as usize].started.fetch_add(1, Ordering::Relaxed);
    }

    /// A call ended.
    pub fn handled(&self, method: Method, code: Code) {
        self.methods[method as usize].handled[code as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// A message of `bytes` came.
    pub fn received(&self, method: Method, bytes: usize) {
        self.methods[method as usize].received.fetch_add(1, Ordering::Relaxed);
        self.received_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// A message of `bytes` was sent.
    pub fn sent(&self, method: Method, bytes: usize) {
        self.methods[method as usize].sent.fetch_add(1, Ordering::Relaxed);
        self.sent_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

fn sum(core: &Core, pick: impl Fn(&Counters) -> &AtomicU64) -> u64 {
    core.shared.counters.iter().map(|counters| pick(counters).load(Ordering::Relaxed)).sum()
}

struct Text(String);

impl Text {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("a String takes every write");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl std::fmt::Display) {
        writeln!(self.0, "{name}{labels} {value}").expect("a String takes every write");
    }

    fn one(&mut self, name: &str, kind: &str, help: &str, value: impl std::fmt::Display) {
        self.family(name, kind, help);
        self.sample(name, "", value);
    }
}

/// The answer to /metrics.
pub fn render(core: &Core) -> String {
    let mut text = Text(String::with_capacity(64 * 1024));
    render_server(core, &mut text);
    render_grpc(core, &mut text);
    text.0
}

fn render_server(core: &Core, text: &mut Text) {
    let shared = &core.shared;
    let load = |value: &AtomicU64| value.load(Ordering::Acquire);
    let leader = load(&shared.raft.leader);
    let view = core.view();
    text.one("etcd_server_has_leader", "gauge", "Whether or not a leader exists.", u8::from(leader != 0));
    let is_leader = u8::from(leader == shared.identity.member_id);
    text.one("etcd_server_is_leader", "gauge", "Whether or not this member is a leader.", is_leader);
    text.family("etcd_server_version", "gauge", "Which version is running.");
    text.sample("etcd_server_version", &format!("{{server_version=\"{}\"}}", crate::ETCD_VERSION), 1);
    if let Some(version) = core.cluster_version() {
        let short = version.rsplit_once('.').map_or(version.as_str(), |(short, _)| short);
        text.family("etcd_cluster_version", "gauge", "Which version is running.");
        text.sample("etcd_cluster_version", &format!("{{cluster_version=\"{short}\"}}"), 1);
    }
    let committed = load(&shared.raft.commit);
    text.one("etcd_server_proposals_committed_total", "gauge", "Consensus proposals committed.", committed);
    let applied = load(&shared.raft.applied);
    text.one("etcd_server_proposals_applied_total", "gauge", "Consensus proposals applied.", applied);
    let pending = shared.raft.pending.load(Ordering::Acquire);
    text.one("etcd_server_proposals_pending", "gauge", "Pending proposals to commit.", pending);
    let quota = shared.limits.quota_bytes;
    text.one("etcd_server_quota_backend_bytes", "gauge", "Current backend storage quota size in bytes.", quota);
    let allocated = load(&shared.sizes.allocated);
    text.one("etcd_mvcc_db_total_size_in_bytes", "gauge", "Size of the underlying store, allocated.", allocated);
    let in_use = load(&shared.sizes.in_use);
    text.one("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge", "Size of the underlying store, in use.", in_use);
    let revision = view.revision();
    text.one("etcd_debugging_mvcc_current_revision", "gauge", "The current revision of the store.", revision);
    let compacted = view.compact_revision();
    text.one("etcd_debugging_mvcc_compact_revision", "gauge", "The last compaction revision.", compacted);
    let healthy = sum(core, |counters| &counters.health_ok);
    text.one("etcd_server_health_success", "counter", "Successful health checks.", healthy);
    let failed = sum(core, |counters| &counters.health_failed);
    text.one("etcd_server_health_failures", "counter", "Failed health checks.", failed);
    let sent = sum(core, |counters| &counters.sent_bytes);
    text.one("etcd_network_client_grpc_sent_bytes_total", "counter", "Bytes sent to grpc clients.", sent);
    let received = sum(core, |counters| &counters.received_bytes);
    text.one("etcd_network_client_grpc_received_bytes_total", "counter", "Bytes received from grpc clients.", received);
}

fn labels(method: Method) -> String {
    let (flow, service, name) = (method.flow().label(), method.service(), method.name());
    format!("grpc_method=\"{name}\",grpc_service=\"{service}\",grpc_type=\"{flow}\"")
}

fn render_grpc(core: &Core, text: &mut Text) {
    type Pick = fn(&OfMethod) -> &AtomicU64;
    let families: [(&str, &str, Pick); 3] = [
        ("grpc_server_started_total", "RPCs started on the server.", |of| &of.started),
        ("grpc_server_msg_received_total", "RPC stream messages received on the server.", |of| &of.received),
        ("grpc_server_msg_sent_total", "RPC stream messages sent by the server.", |of| &of.sent),
    ];
    for (name, help, pick) in families {
        text.family(name, "counter", help);
        for method in Method::ALL {
            let value = sum(core, |counters| pick(&counters.methods[*method as usize]));
            text.sample(name, &format!("{{{}}}", labels(*method)), value);
        }
    }
    let name = "grpc_server_handled_total";
    text.family(name, "counter", "RPCs completed on the server, regardless of success or failure.");
    for method in Method::ALL {
        for (code, code_name) in CODE_NAMES.iter().enumerate() {
            let value = sum(core, |counters| &counters.methods[*method as usize].handled[code]);
            text.sample(name, &format!("{{grpc_code=\"{code_name}\",{}}}", labels(*method)), value);
        }
    }
}
