//! Runs on: connection core.
//!
//! The log, checkpoints, backups, and memory of the store.

use std::sync::atomic::Ordering;

use super::{
    scrape::{SECONDS, Scrape, histogram, one},
    text::Text,
};
use crate::metrics::counters::MEMORY;

pub(super) fn render(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    text.gauge("etcd_disk_wal_write_bytes_total", "Total number of bytes written in WAL.", commit.wal_bytes.get());
    let shown = one(&commit.wal_write);
    let help =
        "The latency distributions of fsync called by WAL. Here: of its durable writes: write and fsync are one.";
    text.histogram("etcd_disk_wal_fsync_duration_seconds", help, &shown, SECONDS);
    let help =
        "The latency distributions of write called by WAL. Here: of its durable writes: write and fsync are one.";
    text.histogram("etcd_disk_wal_write_duration_seconds", help, &shown, SECONDS);
    render_checkpoints(of, text);
    let help = "The latency distribution of backend defragmentation. Here: no request waits for one.";
    text.histogram("etcd_disk_backend_defrag_duration_seconds", help, &one(&commit.defragment), SECONDS);
    let inflight = commit.defragment_inflight.get();
    let help = "Whether or not defrag is active on the member. 1 means active, 0 means not.";
    text.gauge("etcd_disk_defrag_inflight", help, inflight);
    let help = "The latency distribution of backend snapshots. Here: of sending a backup, whole.";
    let shown = histogram(of, |counters| &counters.backups);
    text.histogram("etcd_disk_backend_snapshot_duration_seconds", help, &shown, SECONDS);
    let help = "The number of pages and record blocks that could not be read. Requests that need them fail.";
    text.gauge("orlop_unreadable_pages", help, of.shared.view.unreadable().count());
    for (name, help, is_so) in [
        ("orlop_disk_full", "Whether the log or a checkpoint waits for space. 1 means yes.", &of.shared.is_disk_full),
        ("orlop_log_stalled", "Whether a write to the log does not end. 1 means yes.", &of.shared.is_log_stalled),
    ] {
        text.gauge(name, help, u8::from(is_so.load(Ordering::Relaxed)));
    }
    let help = "Whether no entry is applied, because of a page that cannot be read. 1 means yes.";
    text.gauge("orlop_apply_stopped", help, u8::from(of.shared.standstill.load().is_some()));
    let scrub = &of.registry.scrub;
    let help = "Total number of bytes that were read again in the background, to find damage.";
    text.counter("orlop_scrub_bytes_total", help, scrub.bytes.get());
    let help = "Total number of places that were found damaged by that.";
    text.counter("orlop_scrub_damage_total", help, scrub.damage.get());
    let help = "When everything on disk had been read again, in seconds after 1970; 0 for not yet.";
    text.gauge("orlop_scrub_completed_timestamp_seconds", help, scrub.ended.get());
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

fn render_checkpoints(of: &Scrape<'_>, text: &mut Text) {
    let commit = &of.registry.commit;
    let written = one(&commit.checkpoint_commit);
    let help = "The latency distributions of commit called by backend. \
                Here: of a checkpoint's last syncs and its superblock. No request waits for them.";
    text.histogram("etcd_disk_backend_commit_duration_seconds", help, &written, SECONDS);
    let name = "etcd_debugging_disk_backend_commit_rebalance_duration_seconds";
    let help = "The latency distributions of commit.rebalance called by bboltdb backend. \
                Here: of freezing what a checkpoint will write.";
    text.histogram(name, help, &one(&commit.checkpoint_freeze), SECONDS);
    let name = "etcd_debugging_disk_backend_commit_spill_duration_seconds";
    let help = "The latency distributions of commit.spill called by bboltdb backend. \
                Here: of a checkpoint up to its last syncs.";
    text.histogram(name, help, &one(&commit.checkpoint_spill), SECONDS);
    let name = "etcd_debugging_disk_backend_commit_write_duration_seconds";
    let help = "The latency distributions of commit.write called by bboltdb backend. \
                Here: of a checkpoint's last syncs and its superblock.";
    text.histogram(name, help, &written, SECONDS);
    let help = "The durations of whole checkpoints. No request waits for one.";
    text.histogram("orlop_checkpoint_duration_seconds", help, &one(&commit.checkpoint), SECONDS);
}
