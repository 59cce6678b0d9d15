//! Runs on: connection core.
//!
//! Keys, revisions, compactions, watchers, leases.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use engine::{KeyRange, RangeEnd};

use super::{
    scrape::{MILLISECONDS, SECONDS, Scrape, histogram, load, one, sum},
    text::Text,
};

pub(super) fn render(of: &Scrape<'_>, text: &mut Text) {
    render_store(of, text);
    render_operations(of, text);
    render_compaction(of, text);
    render_watch(of, text);
    render_send_loop(of, text);
    render_leases(of, text);
}

fn render_store(of: &Scrape<'_>, text: &mut Text) {
    let shared = of.shared;
    let view = of.shared.view.load();
    let quota = shared.limits.quota.shown();
    text.gauge("etcd_server_quota_backend_bytes", "Current backend storage quota size in bytes.", quota);
    let allocated = load(&shared.sizes.allocated);
    text.gauge(
        "etcd_mvcc_db_total_size_in_bytes",
        "Total size of the underlying database physically allocated in bytes.",
        allocated,
    );
    let in_use = load(&shared.sizes.in_use);
    text.gauge(
        "etcd_mvcc_db_total_size_in_use_in_bytes",
        "Total size of the underlying database logically in use in bytes.",
        in_use,
    );
    text.gauge("etcd_debugging_mvcc_current_revision", "The current revision of store.", view.revision());
    text.gauge(
        "etcd_debugging_mvcc_compact_revision",
        "The revision of the last compaction in store.",
        view.compact_revision(),
    );
    let held: usize = shared.floors.iter().map(|floors| floors.held.load(Ordering::Relaxed)).sum();
    let help = "The number of currently open read transactions. Here: revisions that are held for reads of many \
                steps, and the newest view.";
    text.gauge("etcd_mvcc_db_open_read_transactions", help, held + 1);
    // It is the revision of a store of users that was never changed.
    let help = "The current revision of auth store. Here: there are no users yet.";
    text.gauge("etcd_debugging_auth_revision", help, 1);
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
    let name = "etcd_debugging_mvcc_db_compaction_total_duration_milliseconds";
    let help = "Bucketed histogram of db compaction total duration.";
    text.histogram(name, help, &one(&commit.sweep), MILLISECONDS);
    let name = "etcd_debugging_mvcc_db_compaction_pause_duration_milliseconds";
    let help = "Bucketed histogram of db compaction pause duration. Here: of each step of the sweep.";
    text.histogram(name, help, &one(&commit.sweep_step), MILLISECONDS);
    let name = "etcd_debugging_mvcc_index_compaction_pause_duration_milliseconds";
    let help = "Bucketed histogram of index compaction pause duration. Here: of applying the compaction's entry.";
    text.histogram(name, help, &one(&commit.compaction), MILLISECONDS);
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

fn render_send_loop(of: &Scrape<'_>, text: &mut Text) {
    let name = "etcd_debugging_server_watch_send_loop_watch_stream_duration_seconds";
    let help = "The total duration in seconds of running through the send loop watch stream response all events. \
                Here: how long the client let a piece with events wait; a piece that it takes at once counts as 0.";
    text.histogram(name, help, &histogram(of, |counters| &counters.watch_sends.events), SECONDS);
    let name = "etcd_debugging_server_watch_send_loop_watch_stream_duration_per_event_seconds";
    let help = "The average duration in seconds of running through the send loop watch stream response, per event. \
                Here: the same wait, divided by the events of the piece.";
    text.histogram(name, help, &histogram(of, |counters| &counters.watch_sends.per_event), SECONDS);
    let name = "etcd_debugging_server_watch_send_loop_control_stream_duration_seconds";
    let help = "The total duration in seconds of running through the send loop control stream response. \
                Here: the same wait of a piece with answers to requests alone.";
    text.histogram(name, help, &histogram(of, |counters| &counters.watch_sends.control), SECONDS);
    let name = "etcd_debugging_server_watch_send_loop_progress_duration_seconds";
    let help = "The total duration in seconds of running through the progress loop control stream response. \
                Here: the same wait of a piece without events that has automatic progress.";
    text.histogram(name, help, &histogram(of, |counters| &counters.watch_sends.progress), SECONDS);
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
    let shown = one(&commit.lease_ttl);
    text.histogram("etcd_debugging_lease_ttl_total", "Bucketed histogram of lease TTLs.", &shown, 1.0);
}
