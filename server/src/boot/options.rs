//! Runs on: main thread, core 0.
//!
//! Turns the knobs into settings for each part of the member.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use engine::{disk::Preference, store, wal};

use super::{ports, process};
use crate::{
    apply::machine,
    clock::Clock,
    config::{self, Config, LogLevel, Stage, Url},
    cores::{Placement, corruption},
    insight::slow::Settings,
    lease,
    peer::links,
    shared::{Limits, Quota},
    watch::hub::Bounds,
    wire::http2,
};

/// etcd's allowance for gRPC above the largest request.
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;
/// Files that the member keeps for itself; etcd keeps 150. With more cores, its peer port has more.
const OWN_FILES: usize = 300;
const _: () = assert!(ports::OTHERS_MAX < OWN_FILES);
/// Watchers of one core.
const WATCHERS_MAX: usize = 1 << 20;
/// Up to this many CPUs, raft and apply share the loop of the first serving core ...
const CPUS_SHARED_MAX: usize = 2;
/// ... and up to this many, they have one thread for both.
const CPUS_ONE_THREAD_MAX: usize = 4;

/// The cores of the member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cores {
    /// Number of cores that serve connections.
    pub serving: usize,
    /// Where raft and apply run.
    pub placement: Placement,
}

impl Cores {
    /// The cores that the knobs ask for, on this host.
    pub fn of(config: &Config) -> Self {
        Self::on(process::cpus(), config.knobs.server.cores, config.knobs.server.raft_apply)
    }

    /// The cores on `cpus` CPUs. `serving` is the number of serving cores; 0 means as many as there is room for. One
    /// CPU is left for the kernel's work on sockets and disk.
    fn on(cpus: usize, serving: usize, raft_apply: tuning::RaftApply) -> Self {
        let placement = match raft_apply {
            tuning::RaftApply::Shared => Placement::Shared,
            tuning::RaftApply::OneThread => Placement::OneThread,
            tuning::RaftApply::TwoThreads => Placement::TwoThreads,
            tuning::RaftApply::Auto if cpus.max(serving) <= CPUS_SHARED_MAX => Placement::Shared,
            tuning::RaftApply::Auto if cpus.max(serving) <= CPUS_ONE_THREAD_MAX => Placement::OneThread,
            tuning::RaftApply::Auto => Placement::TwoThreads,
        };
        let room = cpus.saturating_sub(1 + placement.threads()).max(1);
        Self { serving: if serving == 0 { room } else { serving }, placement }
    }

    /// Threads that read pages for as long as the member runs.
    fn readers(self) -> usize {
        self.serving + self.placement.threads().min(1)
    }
}

/// What the operator asks for as I/O path.
pub fn io_preference(config: &Config) -> Preference {
    match config.knobs.io.path {
        tuning::IoPathChoice::Auto => Preference::Auto,
        tuning::IoPathChoice::Uring => Preference::Uring,
        tuning::IoPathChoice::Portable => Preference::Portable,
    }
}

/// The directory of the log.
pub fn wal_dir(config: &Config) -> PathBuf {
    config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("wal"))
}

/// Memory for nodes and blocks. **Units** bytes.
pub fn cache_bytes(config: &Config) -> usize {
    tuning::cache_bytes(config.knobs.store.cache_bytes, &config.host)
}

/// Settings of the store.
pub fn store(config: &Config, clock: &Clock) -> store::Options {
    let knobs = &config.knobs;
    store::Options {
        segment_bytes: u32::try_from(knobs.store.segment_bytes).expect("bounded by 1 GiB"),
        write_bytes: knobs.store.write_bytes,
        writes_in_flight_max: knobs.store.writes_in_flight_max,
        record_block_bytes: knobs.store.record_block_bytes,
        cache_bytes: cache_bytes(config),
        reclaim_bytes_per_second: knobs.store.reclaim_bytes_per_second,
        reclaim_bytes_max: knobs.store.reclaim_bytes_max,
        shards: knobs.store.shards,
        fresh_id: clock.seed(),
    }
}

/// Settings of raft and the log.
pub fn consensus(config: &Config, clock: &Clock) -> consensus::Options {
    let knobs = &config.knobs;
    consensus::Options::from_knobs(&knobs.consensus, config.pre_vote, clock.seed(), wal(&knobs.wal, clock))
}

/// Bounds and times of the connections with other members.
pub fn links(config: &Config) -> links::Options {
    links::Options {
        waiting_bytes_max: config.knobs.consensus.peer_queue_bytes_max,
        silence_max: config.raft_read_timeout,
        stall_max: config.raft_write_timeout,
    }
}

/// How long a connection to another member may take to be established.
///
/// **Source**: etcd v3.7.1 `server/config/config.go`, `peerDialTimeout`.
pub fn dial_wait(config: &Config) -> Duration {
    Duration::from_secs(1) + Duration::from_millis(config.knobs.consensus.election_ms)
}

/// Settings of the log.
pub fn wal(knobs: &tuning::Wal, clock: &Clock) -> wal::Options {
    wal::Options {
        segment_bytes: u32::try_from(knobs.segment_bytes).unwrap_or(!4095),
        group_bytes_max: knobs.group_bytes_max,
        writes_in_flight_max: knobs.writes_in_flight_max,
        fresh_id: clock.seed(),
        ..wal::Options::default()
    }
}

/// Settings of leases.
pub fn lease(config: &Config) -> lease::Params {
    let knobs = &config.knobs.consensus;
    let election_ticks = u32::try_from(knobs.election_ms / knobs.heartbeat_ms).unwrap_or(u32::MAX);
    let ttl_min_s = lease::ttl_min_s(heartbeat(config), election_ticks);
    let checkpoint_every = config.gates["LeaseCheckpoint"].then_some(lease::CHECKPOINT_EVERY);
    lease::Params { ttl_min_s, retry_after: config.request_timeout(), checkpoint_every }
}

/// The longest that a write to the log may take.
pub fn log_wait_max(config: &Config) -> Duration {
    let knobs = &config.knobs;
    let two_elections_ms = 2 * knobs.consensus.election_ms;
    Duration::from_millis(match knobs.consensus.log_stall_ms {
        0 => two_elections_ms,
        wait_ms => wait_ms,
    })
}

/// Time between two ticks.
pub fn heartbeat(config: &Config) -> Duration {
    Duration::from_millis(config.knobs.consensus.heartbeat_ms)
}

/// The quota on the data of the store.
pub fn quota(config: &Config) -> Quota {
    let server = &config.knobs.server;
    Quota::new(server.quota_backend_bytes, server.quota_disarm_percent)
}

/// Bounds on requests.
pub fn limits(config: &Config, cores: Cores) -> Limits {
    let server = &config.knobs.server;
    Limits {
        request_bytes_max: server.max_request_bytes,
        receive_bytes_max: server.max_request_bytes + GRPC_OVERHEAD_BYTES,
        txn_ops_max: server.max_txn_ops,
        scan_entries_per_turn: server.scan_entries_per_turn,
        gathered_bytes_max: server.gathered_bytes_max,
        log_wait_max: log_wait_max(config),
        held_revisions_max: server.held_revisions_max,
        held_revision_age_max: Duration::from_millis(server.held_revision_age_max_ms),
        request_timeout: config.request_timeout(),
        election_timeout: Duration::from_millis(config.knobs.consensus.election_ms),
        learners_max: config.learners_max,
        is_reconfig_strict: config.is_reconfig_strict,
        quota: quota(config),
        connections_max: connections_max(config, cores),
        withdraws_for_defragment: config.gates["StopGRPCServiceOnDefrag"],
        dial_from: dial_from(config),
        snapshot_write_back_bytes: server.snapshot_write_back_bytes,
        token_time_to_live: config.auth_token_ttl,
        takes_hashes: config.gates["CompactHashCheck"],
    }
}

/// Segment files that one core keeps open. All cores together keep at most a quarter of the files that the process may
/// open.
pub fn open_segments_max(config: &Config, cores: Cores) -> usize {
    let share = process::files_max() / 4 / cores.readers();
    config.knobs.store.open_segments_max.min(share).max(8)
}

/// Connections that the knob and the limit on open files allow. etcd keeps some files for itself; we also keep the
/// segments.
fn connections_max(config: &Config, cores: Cores) -> usize {
    let peers = ports::peers_max(cores.serving).saturating_sub(ports::peers_max(1));
    let own = OWN_FILES + peers + cores.readers() * open_segments_max(config, cores);
    config.knobs.server.connections_max.min(process::files_max().saturating_sub(own))
}

/// Which requests are logged and counted.
pub fn insight(config: &Config) -> Settings {
    Settings {
        unary: Duration::from_millis(config.knobs.server.warning_unary_ms),
        apply: Duration::from_millis(config.knobs.server.warning_apply_ms),
        is_extensive: config.extensive_metrics,
        is_debug: config.log_level == LogLevel::Debug,
    }
}

/// How often members are compared.
pub fn corruption(config: &Config) -> corruption::Every {
    corruption::Every { whole: config.corrupt_check, compactions: config.compact_hash_check }
}

/// The address from which other members are dialled, with the gate SetMemberLocalAddr: the first one that this member
/// advertises, where others could reach it.
pub fn dial_from(config: &Config) -> Option<IpAddr> {
    let parse = |url: &Url| url.host.parse::<IpAddr>().ok();
    let is_suitable = |address: &IpAddr| !address.is_loopback() && !address.is_unspecified();
    let mut addresses = config.advertise_peer_urls.iter().filter_map(parse).filter(is_suitable);
    config.gates["SetMemberLocalAddr"].then(|| addresses.next()).flatten()
}

/// Feature gates with their stage and value.
pub fn features(config: &Config) -> Vec<(&'static str, Stage, bool)> {
    config::GATES.iter().map(|(name, stage, _)| (*name, *stage, config.gates[name])).collect()
}

/// Bounds on the watchers of a core.
pub fn watchers(config: &Config) -> Bounds {
    Bounds {
        stream_buffer_bytes_max: config.knobs.server.stream_buffer_bytes_max,
        fragment_bytes_max: config.knobs.server.max_request_bytes + GRPC_OVERHEAD_BYTES,
        watchers_max: WATCHERS_MAX,
    }
}

/// Settings of connections.
pub fn wire(config: &Config) -> http2::Options {
    let server = &config.knobs.server;
    http2::Options {
        streams_max: server.max_concurrent_streams,
        stream_window_bytes: server.stream_window_bytes,
        connection_window_bytes: server.connection_window_bytes,
        buffer_bytes_max: server.connection_buffer_bytes_max,
        ping_min: Duration::from_millis(server.keepalive_min_ms),
        ping_after: Duration::from_millis(server.keepalive_interval_ms),
        ping_timeout: Duration::from_millis(server.keepalive_timeout_ms),
    }
}

/// Bytes of entries that are handed to apply at once.
pub fn batch_bytes_max(config: &Config) -> u64 {
    config.knobs.consensus.apply_batch_bytes_max as u64
}

/// Settings of apply, over a log that ended at `replayed_to` at the start.
pub fn apply(config: &Config, clock: &Clock, replayed_to: u64) -> machine::Options {
    let knobs = &config.knobs;
    machine::Options {
        checkpoint_wal_bytes: knobs.store.checkpoint_wal_bytes,
        recent_bytes_max: knobs.store.recent_bytes_max as u64,
        sweep_entries_per_step: knobs.store.sweep_entries_per_step,
        reclaim_pages_per_step: knobs.store.reclaim_pages_per_step,
        warning_apply: Duration::from_millis(knobs.server.warning_apply_ms),
        auto_compaction: config.auto_compaction,
        election_timeout: Duration::from_millis(knobs.consensus.election_ms),
        name: config.name.clone(),
        client_urls: config.advertise_client_urls.iter().map(ToString::to_string).collect(),
        replayed_to,
        clock: clock.clone(),
    }
}

#[cfg(test)]
mod tests {
    use tuning::RaftApply::{Auto, OneThread, Shared, TwoThreads};

    use super::*;

    #[test]
    fn threads_follow_the_cpus_and_the_knobs_win() {
        let on = |cpus, serving, raft_apply| {
            let Cores { serving, placement } = Cores::on(cpus, serving, raft_apply);
            (serving, placement)
        };
        assert_eq!(on(1, 0, Auto), (1, Placement::Shared));
        assert_eq!(on(2, 0, Auto), (1, Placement::Shared));
        assert_eq!(on(4, 0, Auto), (2, Placement::OneThread));
        assert_eq!(on(16, 0, Auto), (13, Placement::TwoThreads));
        assert_eq!(on(2, 4, Auto), (4, Placement::OneThread), "several cores are meant for several CPUs");
        assert_eq!(on(16, 0, Shared), (15, Placement::Shared));
        assert_eq!(on(2, 0, TwoThreads), (1, Placement::TwoThreads));
        assert_eq!(on(2, 3, OneThread), (3, Placement::OneThread));
    }
}
