//! Runs on: connection core.
//!
//! etcd's families of parts that do not exist here. They are at zero on a fresh member of etcd, too. Dashboards
//! and alerts ask for some of them by name.

use super::{scrape::SECONDS, text::Text};
use crate::metrics::histogram::Snapshot;

const MS: u64 = 1_000_000;

/// Name, type and help.
const NUMBERS: [(&str, &str, &str); 8] = [
    ("etcd_debugging_store_expires_total", "counter", "Total number of expired keys. Here: there is no v2 store."),
    (
        "etcd_debugging_store_watch_requests_total",
        "counter",
        "Total number of incoming watch requests (new or reestablished). Here: there is no v2 store.",
    ),
    ("etcd_debugging_store_watchers", "gauge", "Count of currently active watchers. Here: there is no v2 store."),
    ("etcd_grpc_proxy_cache_hits_total", "gauge", "Total number of cache hits. Here: this is no proxy."),
    ("etcd_grpc_proxy_cache_keys_total", "gauge", "Total number of keys/ranges cached. Here: this is no proxy."),
    ("etcd_grpc_proxy_cache_misses_total", "gauge", "Total number of cache misses. Here: this is no proxy."),
    (
        "etcd_grpc_proxy_events_coalescing_total",
        "counter",
        "Total number of events coalescing. Here: this is no proxy.",
    ),
    (
        "etcd_grpc_proxy_watchers_coalescing_total",
        "gauge",
        "Total number of current watchers coalescing. Here: this is no proxy.",
    ),
];

/// Name, first bound, number of bounds, and help. Here a checkpoint is what a snapshot of the v2 store was for.
const HISTOGRAMS: [(&str, u64, u32, &str); 5] = [
    (
        "etcd_debugging_snap_save_marshalling_duration_seconds",
        MS,
        14,
        "The marshalling cost distributions of save called by snapshot. Here: no file of raft's snapshot is written.",
    ),
    (
        "etcd_debugging_snap_save_total_duration_seconds",
        MS,
        14,
        "The total latency distributions of save called by snapshot. Here: no file of raft's snapshot is written.",
    ),
    (
        "etcd_snap_db_fsync_duration_seconds",
        MS,
        14,
        "The latency distributions of fsyncing .snap.db file. Here: there is no such file.",
    ),
    (
        "etcd_snap_db_save_total_duration_seconds",
        100 * MS,
        10,
        "The total latency distributions of v3 snapshot save. Here: there is no such file.",
    ),
    (
        "etcd_snap_fsync_duration_seconds",
        MS,
        14,
        "The latency distributions of fsync called by snap. Here: no file of raft's snapshot is written.",
    ),
];

pub(super) fn render(text: &mut Text) {
    for (name, kind, help) in NUMBERS {
        text.family(name, kind, help);
        text.sample(name, "", 0);
    }
    for (name, first, bounds, help) in HISTOGRAMS {
        let buckets = (0..bounds).map(|position| (first << position, 0)).collect();
        text.histogram(name, help, &Snapshot { buckets, count: 0, sum: 0 }, SECONDS);
    }
}
