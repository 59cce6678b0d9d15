//! Runs on: tests.
//!
//! Reads a whole answer of /metrics as Prometheus reads it. The answer comes from a core over an empty store.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::atomic::Ordering,
    time::Duration,
};

use engine::{Store, disk::sim::SimStorage, store};
use proto::internal::Kind;

use super::{Scrape, registry::Registry, render};
use crate::{
    config::GATES,
    error::{Code, Error},
    insight::{Board, slow::Settings},
    method::Method,
    shared::{Cluster, RaisedBy, Shared},
};

/// A member of two cores at its start, with one alarm.
struct Member {
    shared: Shared,
    registry: Registry,
    board: Board,
}

impl Member {
    fn new() -> Self {
        let store = Store::open(&mut SimStorage::new(1).disk(), Path::new("data"), store::Options::default()).unwrap();
        let shared = Shared::for_tests(store.mvcc().published(), 2);
        let (version, alarms) = (Some("3.7.0".into()), [((0xab, 1), RaisedBy::Hand)].into());
        shared.cluster.store(Cluster { version, alarms, ..Cluster::default() }.into());
        let registry = Registry::new(GATES.to_vec(), 2);
        let (unary, apply) = (Duration::from_millis(300), Duration::from_millis(100));
        let board = Board::new(Settings { unary, apply, is_extensive: true, is_debug: false }, 2);
        Self { shared, registry, board }
    }

    fn render(&self) -> String {
        let Self { shared, registry, board } = self;
        render(&Scrape { shared, registry, board, now: Duration::from_secs(1), unix_us: 1_000_000 })
    }
}

/// A sample: its name, its labels as written, its value.
type Sample = (String, String, f64);

/// Families by name: their type and samples.
///
/// Checks the format: HELP, TYPE, then samples; no family and no series twice; labels quoted.
fn parse(text: &str) -> BTreeMap<String, (String, Vec<Sample>)> {
    let mut families: BTreeMap<String, (String, Vec<Sample>)> = BTreeMap::new();
    let mut series = BTreeSet::new();
    let mut current = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            current = help.split_once(' ').unwrap().0.to_owned();
            assert!(!families.contains_key(&current), "twice: {line}");
        } else if let Some(of_type) = line.strip_prefix("# TYPE ") {
            let (name, kind) = of_type.split_once(' ').unwrap();
            assert_eq!(name, current);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(families.insert(name.to_owned(), (kind.to_owned(), Vec::new())).is_none(), "twice: {line}");
        } else {
            let (id, value) = line.rsplit_once(' ').unwrap();
            assert!(series.insert(id.to_owned()), "twice: {line}");
            let (name, labels) =
                id.split_once('{').map_or((id, ""), |(name, rest)| (name, rest.strip_suffix('}').unwrap()));
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{line}");
            assert!(labels.is_empty() || labels.split("\",").all(|label| label.contains("=\"")), "{line}");
            let (kind, samples) = families.get_mut(&current).unwrap();
            let rest = name.strip_prefix(&current).unwrap();
            assert_eq!(kind == "histogram", !rest.is_empty(), "{line}");
            samples.push((rest.to_owned(), labels.to_owned(), value.parse().unwrap()));
        }
    }
    families
}

fn assert_histogram(name: &str, samples: &[Sample]) {
    // The buckets by their other labels. `le` is the last label.
    let mut buckets: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    let other = |rest: &str| -> BTreeMap<&str, f64> {
        samples.iter().filter(|sample| sample.0 == rest).map(|(_, labels, value)| (labels.as_str(), *value)).collect()
    };
    for (_, labels, value) in samples.iter().filter(|(rest, ..)| rest == "_bucket") {
        let (rest, bound) = labels.rsplit_once("le=\"").unwrap();
        let bound = bound.strip_suffix('"').unwrap().parse().unwrap();
        buckets.entry(rest.trim_end_matches(',').to_owned()).or_default().push((bound, *value));
    }
    let (counts, sums) = (other("_count"), other("_sum"));
    assert_eq!((buckets.len(), buckets.len()), (counts.len(), sums.len()), "{name}");
    for (labels, buckets) in &buckets {
        assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name}: {buckets:?}");
        assert_eq!(*buckets.last().unwrap(), (f64::INFINITY, counts[labels.as_str()]), "{name}{{{labels}}}");
        assert!(sums.contains_key(labels.as_str()), "{name}{{{labels}}}");
    }
}

#[test]
fn what_is_rendered_is_well_formed_and_adds_up() {
    let member = Member::new();
    let commit = &member.registry.commit;
    let [one_core, other] = &member.registry.connections[..] else { unreachable!("it has two cores") };
    for ms in [0, 1, 3, 9, 100, 20_000] {
        commit.wal_write.observe_time(Duration::from_millis(ms));
    }
    commit.lease_ttl.observe(i64::MAX.cast_unsigned());
    one_core.requested(Method::Put, Some(b"3.7"));
    other.requested(Method::Put, Some(b"3.7"));
    one_core.handled(Method::Put, Code::Ok);
    one_core.proposals_failed.add(1);
    one_core.checked("readyz", "linearizable_read", true, Duration::from_secs(1));
    other.checked("readyz", "linearizable_read", false, Duration::from_secs(2));
    one_core.latencies.ended(Method::Txn, true, false, Duration::from_millis(3));
    other.latencies.ended(Method::Range, false, true, Duration::from_micros(300));
    one_core.latencies.handling[Method::Put as usize].observe(Duration::from_millis(30));
    commit.applies.observe(Kind::Put, true, Duration::from_micros(900));
    let families = parse(&member.render());
    for (name, (kind, samples)) in &families {
        if kind == "histogram" {
            assert_histogram(name, samples);
        }
    }
    let samples = |name: &str| &families[name].1;
    let one = |name: &str, labels: &str| samples(name).iter().find(|(_, found, _)| found == labels).unwrap().2;
    assert_eq!(one("etcd_disk_wal_fsync_duration_seconds", "le=\"0.001\""), 2.0);
    assert_eq!(one("etcd_disk_wal_fsync_duration_seconds", "le=\"8.192\""), 5.0);
    assert_eq!(one("etcd_disk_wal_fsync_duration_seconds", "le=\"+Inf\""), 6.0);
    assert_eq!(one("etcd_debugging_lease_ttl_total", "le=\"8.388608e+06\""), 0.0);
    assert_eq!(one("etcd_server_client_requests_total", "client_api_version=\"3.7\",type=\"unary\""), 2.0);
    let took = |name: &str, labels: &str| {
        let found = samples(name).iter().find(|(rest, found, _)| rest == "_sum" && found == labels);
        found.unwrap_or_else(|| panic!("{name}{{{labels}}}")).2
    };
    assert_eq!(took("etcd_server_request_duration_seconds", "success=\"false\",type=\"Txn\""), 0.003);
    assert_eq!(took("etcd_server_range_duration_seconds", "success=\"true\""), 0.0003);
    assert_eq!(took("etcd_server_apply_duration_seconds", "op=\"Put\",success=\"true\",version=\"v3\""), 0.0009);
    let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"";
    assert_eq!(took("grpc_server_handling_seconds", put), 0.03);
    assert_eq!(one("etcd_server_proposals_failed_total", ""), 1.0);
    assert_eq!(one("etcd_debugging_mvcc_keys_total", ""), 0.0);
    assert_eq!(one("etcd_server_id", "server_id=\"ab\""), 1.0);
    assert_eq!(one("etcd_debugging_server_alarms", "alarm_type=\"NOSPACE\",server_id=\"ab\""), 1.0);
    assert_eq!(one("etcd_cluster_version", "cluster_version=\"3.7\""), 1.0);
    assert_eq!(
        one("etcd_server_healthcheck", "name=\"linearizable_read\",type=\"readyz\""),
        0.0,
        "the last one failed"
    );
}

/// The families of a stock member, taken from etcd 3.7.1 by `server/tests/differential -http .. -write-families`.
const STOCK: &str = include_str!("stock_families.txt");
/// Those of them that have nothing like it here, with the reason.
const LEFT_OUT: &str = include_str!("left_out.txt");

/// A family of [`STOCK`].
#[derive(Default)]
struct Family<'a> {
    name: &'a str,
    kind: &'a str,
    help: &'a str,
    labels: Vec<&'a str>,
    bounds: Vec<&'a str>,
}

fn stock() -> Vec<Family<'static>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in STOCK.lines() {
        let Some((what, rest)) = line.strip_prefix("  ").and_then(|line| line.split_once(' ')) else {
            let (name, kind) = line.split_once(' ').unwrap();
            families.push(Family { name, kind, ..Family::default() });
            continue;
        };
        let family = families.last_mut().unwrap();
        match what {
            "help" => family.help = rest,
            "labels" => family.labels = rest.split(' ').collect(),
            "buckets" => family.bounds = rest.split(' ').collect(),
            _ => panic!("{line}"),
        }
    }
    families
}

/// A member on which everything has happened that makes a family appear.
fn busy() -> Member {
    let member = Member::new();
    let counters = &member.registry.connections[0];
    counters.requested(Method::Put, None);
    counters.checked("livez", "serializable_read", true, Duration::ZERO);
    counters.latencies.ended(Method::Range, false, true, Duration::ZERO);
    member.registry.commit.applies.observe(Kind::Put, true, Duration::ZERO);
    let cluster = Cluster::clone(&member.shared.cluster.load());
    let (peer_urls, name, client_urls) = (Vec::new(), String::new(), Vec::new());
    let (is_learner, is_promote) = (false, false);
    let members = vec![consensus::Member { id: 0xab, peer_urls, is_learner, name, client_urls, is_promote }];
    member.shared.cluster.store(Cluster { members, ..cluster }.into());
    member
}

#[test]
fn every_family_of_a_stock_member_is_there_in_its_form() {
    let member = busy();
    let text = member.render();
    let families = parse(&text);
    let left_out: BTreeSet<&str> = LEFT_OUT.lines().map(|line| line.split_once(": ").unwrap().0).collect();
    for family in stock() {
        let name = family.name;
        let Some((kind, samples)) = families.get(name) else {
            assert!(left_out.contains(name), "{name} is missing");
            continue;
        };
        assert!(!left_out.contains(name), "{name} is there");
        assert_eq!(kind, family.kind, "{name}");
        let help = text.lines().find_map(|line| line.strip_prefix(&format!("# HELP {name} "))).unwrap();
        let words = family.help.trim_end_matches('.');
        let is_etcds = help == family.help || help.starts_with(&format!("{words}. Here: "));
        assert!(is_etcds, "{name}: {help}\netcd: {}", family.help);
        let mut bounds = Vec::new();
        for (_, labels, _) in samples {
            let mut names = Vec::new();
            for label in labels.split("\",").filter(|label| !label.is_empty()) {
                match label.split_once("=\"").unwrap() {
                    ("le", bound) => bounds.extend(Some(bound.trim_end_matches('"')).filter(|b| !bounds.contains(b))),
                    (name, _) => names.push(name),
                }
            }
            names.sort_unstable();
            assert_eq!(names, family.labels, "{name}{{{labels}}}");
        }
        assert_eq!(bounds, family.bounds, "{name}");
    }
}

#[test]
fn every_other_family_is_named_as_our_own_or_appears_in_etcd_too() {
    let known: BTreeSet<&str> = stock().iter().map(|family| family.name).collect();
    for name in parse(&busy().render()).keys() {
        // What is shown only with `--metrics extensive`.
        let is_extensive = name == "grpc_server_handling_seconds";
        assert!(name.starts_with("orlop_") || known.contains(name.as_str()) || is_extensive, "{name}");
    }
}

/// The names, with their types, that etcd's own alerts, dashboard and tools ask for. Names about peers are left out.
const ASKED_FOR: [(&str, &str); 19] = [
    ("etcd_server_has_leader", "gauge"),
    ("etcd_server_leader_changes_seen_total", "counter"),
    ("etcd_server_proposals_failed_total", "counter"),
    ("etcd_server_proposals_applied_total", "gauge"),
    ("etcd_server_proposals_committed_total", "gauge"),
    ("etcd_server_proposals_pending", "gauge"),
    ("etcd_server_quota_backend_bytes", "gauge"),
    ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
    ("etcd_disk_wal_write_bytes_total", "gauge"),
    ("etcd_disk_backend_commit_duration_seconds", "histogram"),
    ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
    ("etcd_network_client_grpc_received_bytes_total", "counter"),
    ("etcd_network_client_grpc_sent_bytes_total", "counter"),
    ("etcd_debugging_mvcc_total_put_size_in_bytes", "gauge"),
    ("grpc_server_handled_total", "counter"),
    ("grpc_server_started_total", "counter"),
    ("grpc_server_handling_seconds", "histogram"),
    ("process_resident_memory_bytes", "gauge"),
];

#[test]
fn each_other_member_has_etcds_series_and_one_alone_has_none() {
    let member = Member::new();
    assert!(!member.render().contains("etcd_network_peer"));
    member.registry.peers.set_members([0xcd].into_iter());
    let of = member.registry.peers.of(0xcd);
    of.is_active.set(1);
    of.sent_bytes.set(5);
    of.sent_states.bytes.set(7);
    of.round_trips.observe_time(Duration::from_micros(150));
    of.received_states.begun();
    let counters = &member.registry.connections[0];
    counters.promoted(Ok(()));
    counters.promoted(Err(&Error::MemberNotLearner));
    counters.stream_failed(Method::Watch);
    let families = parse(&member.render());
    for (name, kind, labels, value) in [
        ("etcd_network_active_peers", "gauge", r#"Local="ab",Remote="cd""#, 1.0),
        ("etcd_network_disconnected_peers_total", "counter", r#"Local="ab",Remote="cd""#, 0.0),
        ("etcd_network_peer_sent_bytes_total", "counter", r#"To="cd""#, 12.0),
        ("etcd_network_peer_received_bytes_total", "counter", r#"From="cd""#, 0.0),
        ("etcd_network_peer_sent_failures_total", "counter", r#"To="cd""#, 0.0),
        ("etcd_network_peer_received_failures_total", "counter", r#"From="cd""#, 0.0),
        ("etcd_network_snapshot_send_success", "counter", r#"To="cd""#, 0.0),
        ("etcd_network_snapshot_send_inflights_total", "gauge", r#"To="cd""#, 0.0),
        ("etcd_network_snapshot_receive_inflights_total", "gauge", r#"From="cd""#, 1.0),
        ("etcd_network_server_stream_failures_total", "counter", r#"API="watch",Type="receive""#, 1.0),
        ("etcd_server_learner_promote_successes", "counter", "", 1.0),
        (
            "etcd_server_learner_promote_failures",
            "counter",
            r#"Reason="membership: can only promote a learner member""#,
            1.0,
        ),
    ] {
        let (found, samples) = &families[name];
        assert_eq!(found, kind, "{name}");
        assert_eq!(samples[..], [(String::new(), labels.to_owned(), value)], "{name}");
    }
    for (name, label, bounds) in [
        ("etcd_network_peer_round_trip_time_seconds", "To", 16),
        ("etcd_network_snapshot_send_total_duration_seconds", "To", 10),
        ("etcd_network_snapshot_receive_total_duration_seconds", "From", 10),
    ] {
        let samples = &families[name].1;
        assert_histogram(name, samples);
        assert_eq!(samples.len(), bounds + 3, "{name}");
        assert!(samples.iter().all(|(_, labels, _)| labels.starts_with(&format!("{label}=\"cd\""))), "{name}");
    }
}

#[test]
fn what_the_disk_does_to_the_member_is_a_gauge() {
    let member = Member::new();
    let gauges = || {
        let families = parse(&member.render());
        ["orlop_log_stalled", "orlop_disk_full"].map(|name| families[name].1[0].2)
    };
    assert_eq!(gauges(), [0.0, 0.0]);
    member.shared.is_log_stalled.store(true, Ordering::Release);
    assert_eq!(gauges(), [1.0, 0.0]);
    member.shared.is_disk_full.store(true, Ordering::Release);
    assert_eq!(gauges(), [1.0, 1.0]);
}

#[test]
fn what_alerts_and_dashboards_ask_for_is_there_from_the_start() {
    let families = parse(&Member::new().render());
    for (name, kind) in ASKED_FOR {
        let (found, samples) = families.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(found, kind, "{name}");
        assert!(!samples.is_empty(), "{name}");
    }
}
