//! Runs on: core 0, whose end the main thread awaits.
//!
//! From a configuration to a serving member, and from SIGTERM to a clean end.
//!
//! Order: lock and open the store, open the log, apply what the log has beyond the store, bind, then serve once the member
//! has published itself. Nothing is answered before that. Bootstrap settings count only for a directory without data:
//! who a member is lies in its store.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    process::ExitCode,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use consensus::{ConfChange, ConfState, Driver, EntryId, Member};
use engine::{
    Fault, PageReader, Store,
    disk::{Disk, FileSystem, IoPath, Preference},
    store, wal,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, oneshot, watch},
};

use super::{
    CommitLoop, Outbox, STACK_BYTES, Serving, ToCore, accept_loop, bind, block_on, checkpoint_thread, connection_core,
    end_by,
    loader::Loader,
    metrics_loop, pin, spawn_core_loops, usage_loop,
    warm::{self, Warmer},
};
use crate::{
    apply::{self, Applier, table},
    boot::import::{self, Import},
    commit::{self, Commit, ToCommit},
    compactor::Compactor,
    config::{self, Config},
    core::{Core, Identity, Limits, Raft, Shared, Sizes},
    cores::Clock,
    etcd_files,
    insight::slow::{Ring, Settings},
    lease::{self, Lessor},
    metrics::timed::{CheckpointCommits, LogWrites, Timed},
    quota::{self, Quota},
    watch::hub::{Bounds, Responder},
    watch_rpc::WatchCore,
    wire,
};

/// Why the member does not start, or stops.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Storage.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The log, or raft.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// It ran, and cannot go on.
    #[error(transparent)]
    Fatal(#[from] commit::Fatal),
    /// A socket or thread.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The data directory belongs to another program.
    #[error(
        "{path} holds data of etcd, which is left untouched; start once with --import to take it over: the member goes on \
         with its keys, leases and id, and etcd's own files are kept in member.imported"
    )]
    EtcdData {
        /// The directory.
        path: String,
    },
    /// etcd's data is not taken over.
    #[error("the data of etcd is not imported: {0}")]
    Import(#[from] etcd_files::error::Error),
    /// Settings that a new member cannot start with.
    #[error(transparent)]
    Bootstrap(#[from] config::Error),
    /// Small tables that do not decode.
    #[error("the store's table of {what} is damaged")]
    Table {
        /// Which.
        what: &'static str,
    },
}

fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}

/// Blocks until `read` needs nothing more from disk.
fn resident<T>(
    store: &mut Store,
    disk: &mut dyn Disk,
    read: impl Fn(&engine::ReadView) -> Result<T, Fault>,
) -> Result<T, Error> {
    loop {
        let view = store.mvcc().view();
        match read(&view) {
            Ok(value) => return Ok(value),
            Err(fault) => engine::load(disk, store.dir(), fault)?,
        }
    }
}

struct Opened {
    store: Store,
    disk: Box<dyn Disk>,
    io: IoPath,
    identity: Identity,
    driver: Driver,
    applier: Applier,
}

fn bootstrap_member(config: &Config) -> Member {
    let peer_urls: Vec<String> = config.advertise_peer_urls.iter().map(ToString::to_string).collect();
    let id = consensus::member_id(&peer_urls, &config.initial_cluster_token, None);
    Member { id, peer_urls, name: config.name.clone(), ..Member::default() }
}

/// What the operator says of the I/O path.
pub(crate) fn io_preference(config: &Config) -> Preference {
    match config.knobs.io.path {
        tuning::IoPathChoice::Auto => Preference::Auto,
        tuning::IoPathChoice::Uring => Preference::Uring,
        tuning::IoPathChoice::Portable => Preference::Portable,
    }
}

fn open_disk(config: &Config) -> Result<(Box<dyn Disk>, IoPath), engine::Error> {
    engine::disk::open_disk(io_preference(config), &config.data_dir)
}

/// A store as the knobs have it.
pub(crate) fn store_options(knobs: &tuning::Knobs) -> store::Options {
    store::Options {
        segment_bytes: u32::try_from(knobs.store.segment_bytes).expect("bounded by 1 GiB"),
        write_bytes: knobs.store.write_bytes,
        writes_in_flight_max: knobs.store.writes_in_flight_max,
        record_block_bytes: knobs.store.record_block_bytes,
        cache_bytes: tuning::cache_bytes(knobs.store.cache_bytes, &config::host(&|path| std::fs::read_to_string(path))),
        reclaim_bytes_per_second: knobs.store.reclaim_bytes_per_second,
        reclaim_bytes_max: knobs.store.reclaim_bytes_max,
        shards: knobs.store.shards,
        fresh_id: rand::random(),
    }
}

/// The log, and raft, as the knobs have them.
pub(crate) fn consensus_options(knobs: &tuning::Knobs) -> consensus::Options {
    consensus::Options::from_knobs(&knobs.consensus, true, rand::random(), wal_options(&knobs.wal))
}

fn wal_options(knobs: &tuning::Wal) -> wal::Options {
    wal::Options {
        segment_bytes: u32::try_from(knobs.segment_bytes).unwrap_or(!4095),
        group_bytes_max: knobs.group_bytes_max,
        writes_in_flight_max: knobs.writes_in_flight_max,
        fresh_id: rand::random(),
        ..wal::Options::default()
    }
}

/// Writes down who the member is before anything else is.
fn first_checkpoint(store: &mut Store, disk: &mut dyn Disk, identity: &Identity) -> Result<(), Error> {
    let mut write = store.mvcc_mut().begin();
    write
        .meta_put(table::IDENTITY, &table::encode_identity(&log_identity(identity)))
        .unwrap_or_else(|fault| panic!("{fault:?}: a fresh store is resident"));
    drop(write.finish());
    drop(store.mvcc_mut().publish(0, 0));
    let done = store.checkpoint_begin().run(disk)?;
    store.checkpoint_end(done);
    Ok(())
}

fn log_identity(identity: &Identity) -> consensus::Identity {
    consensus::Identity { member_id: identity.member_id, cluster_id: identity.cluster_id }
}

fn identity_of(store: &mut Store, disk: &mut dyn Disk, member: &Member) -> Result<Identity, Error> {
    match resident(store, disk, |view| view.meta_get(table::IDENTITY))? {
        Some(bytes) => {
            let ids: [u8; 16] = bytes.as_ref().try_into().map_err(|_short| Error::Table { what: "identity" })?;
            let id = |at: usize| ids[at..].first_chunk().map_or(0, |id| u64::from_be_bytes(*id));
            Ok(Identity { cluster_id: id(0), member_id: id(8) })
        }
        None => {
            let identity = Identity { cluster_id: consensus::cluster_id(&[member.id]), member_id: member.id };
            first_checkpoint(store, disk, &identity)?;
            Ok(identity)
        }
    }
}

/// Imports etcd's data, if the operator wants that.
fn take_over(config: &Config) -> Result<(), Error> {
    let dir = config.data_dir.as_path();
    if !config.import {
        return Err(Error::EtcdData { path: dir.display().to_string() });
    }
    if config.wal_dir.is_some() {
        return Err(etcd_files::error::Error::LogElsewhere.into());
    }
    let (store, wal) = (store_options(&config.knobs), wal_options(&config.knobs.wal));
    let open = |dir: &Path| Ok(engine::disk::open_disk(io_preference(config), dir)?.0);
    Ok(Import { dir, store, wal }.run(&open)?)
}

fn open(config: &Config) -> Result<Opened, Error> {
    let dir = config.data_dir.as_path();
    let knobs = &config.knobs;
    if import::is_etcd(dir)? {
        take_over(config)?;
    }
    let (mut disk, io) = open_disk(config)?;
    import::complete(disk.as_mut(), dir)?;
    let mut store = Store::open(disk.as_mut(), dir, store_options(knobs))?;
    if store.applied() == (0, 0) && store.generation() <= 1 {
        config.verify_bootstrap()?;
    }
    let member = bootstrap_member(config);
    let identity = identity_of(&mut store, disk.as_mut(), &member)?;
    let conf_state = match resident(&mut store, disk.as_mut(), |view| view.meta_get(table::CONF_STATE))? {
        Some(bytes) => table::decode_conf_state(&bytes).ok_or(Error::Table { what: "configuration" })?,
        None => ConfState::default(),
    };
    let cluster = resident(&mut store, disk.as_mut(), apply::restore_cluster)?;
    let view = store.mvcc().view();
    let grants = lease::restore_grants(&view, |fault| engine::load(disk.as_mut(), dir, fault))?;
    let grants = grants.ok_or(Error::Table { what: "leases" })?;
    let election_ticks = knobs.consensus.election_ms / knobs.consensus.heartbeat_ms;
    let heartbeat = Duration::from_millis(knobs.consensus.heartbeat_ms);
    let ttl_min_s = lease::ttl_min_s(heartbeat, u32::try_from(election_ticks).unwrap_or(u32::MAX));
    let mut lessor = Lessor::new(lease::Params { ttl_min_s, retry_after: config.request_timeout() });
    lessor.restore(grants);
    let start = consensus::Start {
        applied: EntryId { index: view.applied_index(), term: view.applied_term() },
        trimmable: store.trimmable().0,
        conf_state,
        bootstrap: vec![ConfChange::bootstrap(&member)],
    };
    let ids = log_identity(&identity);
    let driver = Driver::open(disk.as_mut(), &wal_dir(config), ids, consensus_options(knobs), start)?;
    let applier = Applier { lessor, cluster };
    Ok(Opened { store, disk, io, identity, driver, applier })
}

fn wal_dir(config: &Config) -> PathBuf {
    config.wal_dir.clone().unwrap_or_else(|| config.data_dir.join("wal"))
}

fn shared(config: &Config, opened: &Opened, cores: usize) -> Result<Arc<Shared>, Error> {
    let knobs = &config.knobs;
    let first_id = consensus::RequestIds::new(opened.identity.member_id, Clock::unix_us() / 1000).next_id();
    Ok(Arc::new(Shared {
        identity: opened.identity.clone(),
        limits: Limits {
            request_bytes_max: knobs.server.max_request_bytes,
            receive_bytes_max: knobs.server.max_request_bytes + GRPC_OVERHEAD_BYTES,
            txn_ops_max: knobs.server.max_txn_ops,
            scan_entries_per_turn: knobs.server.scan_entries_per_turn,
            held_revisions_max: knobs.server.held_revisions_max,
            held_revision_age_max: Duration::from_millis(knobs.server.held_revision_age_max_ms),
            request_timeout: config.request_timeout(),
            quota: quota(config),
            connections_max: connections_max(config),
            snapshot_write_back_bytes: knobs.server.snapshot_write_back_bytes,
        },
        view: opened.store.mvcc().published(),
        cluster: ArcSwap::default(),
        raft: Raft::default(),
        sizes: Sizes::default(),
        floors: (0..cores).map(|_| Arc::new(AtomicI64::new(i64::MAX))).collect(),
        swept_revision: AtomicI64::new(-1),
        request_ids: AtomicU64::new(first_id),
        connections: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
        is_stopping: AtomicBool::new(false),
        is_disk_full: AtomicBool::new(false),
        log_file_system: FileSystem::of(&wal_dir(config))?,
        counters: (0..cores).map(|_| Arc::default()).collect(),
        commit_counters: Arc::default(),
        insight: Settings {
            unary: Duration::from_millis(knobs.server.warning_unary_ms),
            apply: Duration::from_millis(knobs.server.warning_apply_ms),
            is_extensive: config.extensive_metrics,
        },
        slow: (0..cores).map(|_| Ring::default()).collect(),
        heat: (0..cores).map(|_| ArcSwap::default()).collect(),
        usage: ArcSwap::default(),
        features: config::GATES.iter().map(|(name, stage, _)| (*name, *stage, config.gates[name])).collect(),
    }))
}

fn quota(config: &Config) -> Quota {
    let server = &config.knobs.server;
    Quota::new(server.quota_backend_bytes, server.quota_disarm_percent)
}

/// Raises the limit on open files as far as this process may, as Go's runtime does for etcd.
fn raise_files_max() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// The limit on open files.
fn files_max() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// Segment files that one core keeps open: all cores together at most a quarter of the files there may be.
fn open_segments_max(config: &Config) -> usize {
    let share = files_max() / 4 / core_count(config);
    config.knobs.store.open_segments_max.min(share).max(8)
}

/// Connections that the knob and the limit on open files allow: etcd keeps 150 files for itself, we the segments too.
fn connections_max(config: &Config) -> usize {
    let own = 150 + core_count(config) * open_segments_max(config);
    config.knobs.server.connections_max.min(files_max().saturating_sub(own))
}

/// etcd's allowance for gRPC above the largest request.
const GRPC_OVERHEAD_BYTES: usize = 512 * 1024;

/// Threads that serve: all CPUs but one, which is left to the kernel's side of sockets and disk; never none.
fn core_count(config: &Config) -> usize {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    match config.knobs.server.cores {
        0 => cpus.saturating_sub(1).max(1),
        cores => cores,
    }
}

fn make_core(
    id: usize,
    config: &Config,
    shared: &Arc<Shared>,
    clock: Clock,
    to_commit: &mpsc::Sender<ToCommit>,
) -> Result<Rc<Core>, Error> {
    let knobs = &config.knobs;
    let (disk, _) = open_disk(config)?;
    let reads_max = knobs.io.operations_in_flight_max as usize;
    let loader = Loader::new(disk, PageReader::new(&config.data_dir, open_segments_max(config), reads_max));
    let bounds = Bounds {
        stream_buffer_bytes_max: knobs.server.stream_buffer_bytes_max,
        fragment_bytes_max: knobs.server.max_request_bytes + GRPC_OVERHEAD_BYTES,
        watchers_max: WATCHERS_MAX,
    };
    let identity = &shared.identity;
    let responder = Responder { cluster_id: identity.cluster_id, member_id: identity.member_id, raft_term: 0 };
    let watch = WatchCore::new(
        bounds,
        responder,
        shared.view.load().revision(),
        Arc::clone(&shared.counters[id]),
        Duration::from_millis(knobs.server.watch_progress_interval_ms),
        knobs.server.catch_up_bytes_per_turn,
    );
    Ok(Core::new(id, Arc::clone(shared), clock, watch, to_commit.clone(), loader))
}

/// Watchers of one core.
const WATCHERS_MAX: usize = 1 << 20;

/// Starts the cores after the first, each on a thread of its own.
fn spawn_cores(
    count: usize,
    config: &Arc<Config>,
    shared: &Arc<Shared>,
    clock: Clock,
    to_commit: &mpsc::Sender<ToCommit>,
    serving: &Serving,
) -> Vec<mpsc::Sender<ToCore>> {
    let mut senders = Vec::new();
    for id in 1..count {
        let (sender, inbox) = mpsc::channel(config.knobs.server.mailbox_messages_max);
        senders.push(sender);
        let (config, shared) = (Arc::clone(config), Arc::clone(shared));
        let (to_commit, serving) = (to_commit.clone(), serving.clone());
        let core = move || {
            if config.knobs.server.pin_cores {
                pin(id);
            }
            let served = block_on(async {
                match make_core(id, &config, &shared, clock, &to_commit) {
                    Ok(core) => connection_core(core, inbox, serving).await,
                    Err(error) => stop_member(&error),
                }
            });
            if let Err(source) = served {
                stop_member(&Error::System { what: "a core's runtime".into(), source });
            }
        };
        if let Err(source) = std::thread::Builder::new().stack_size(STACK_BYTES).spawn(core) {
            stop_member(&Error::System { what: "a core's thread".into(), source });
        }
    }
    senders
}

/// A member that cannot be sure of itself stops.
pub fn stop_member(error: &Error) -> ! {
    tracing::error!(%error, "the member stops");
    std::process::exit(1)
}

/// Runs the member until it is told to stop.
pub fn run(config: Config) -> ExitCode {
    raise_files_max();
    if !config.knobs.server.huge_pages
        && let Err(error) = rustix::thread::disable_transparent_huge_pages(true)
    {
        tracing::warn!(%error, "huge pages stay as the host has them");
    }
    let clock = Clock::start();
    let core = std::thread::Builder::new().name("core-0".into()).stack_size(STACK_BYTES);
    let served = core.spawn(move || block_on(serve(Arc::new(config), clock)));
    let ended = match served.map(std::thread::JoinHandle::join) {
        Ok(Ok(ended)) => ended,
        // It has said why.
        Ok(Err(_)) => return ExitCode::FAILURE,
        Err(source) => stop_member(&Error::System { what: "a core's thread".into(), source }),
    };
    match ended {
        Ok(Ok(signal)) => {
            if std::process::id() == 1 {
                return ExitCode::SUCCESS;
            }
            end_by(signal)
        }
        Ok(Err(error)) => stop_member(&error),
        Err(source) => stop_member(&Error::System { what: "the runtime".into(), source }),
    }
}

#[expect(clippy::disallowed_methods, reason = "this is where threads come from")]
fn spawn_checkpoints(
    config: &Config,
    shared: &Shared,
    clock: Clock,
    to_commit: &mpsc::Sender<ToCommit>,
) -> Result<std::sync::mpsc::Sender<engine::Checkpoint>, Error> {
    let (jobs, inbox) = std::sync::mpsc::channel();
    let (disk, _) = open_disk(config)?;
    let disk = Timed::new(disk, CheckpointCommits::new(Arc::clone(&shared.commit_counters), clock));
    let done = to_commit.clone();
    std::thread::spawn(move || checkpoint_thread(disk, &inbox, &done));
    Ok(jobs)
}

/// Has threads bring in what `driver`'s log will need of the store, while core 0 applies it. A host that has no room for them goes without.
/// What tells that the first of it is there.
fn spawn_warmers(config: &Config, shared: &Shared, driver: &Driver) -> Vec<oneshot::Receiver<()>> {
    let mut firsts = Vec::new();
    let entries: Vec<_> = driver.unapplied().map(|(index, entry)| (index, entry.clone())).collect();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let count = cpus.saturating_sub(1).clamp(1, WARMERS_MAX).min(entries.len() / WARM_ENTRIES_MIN);
    let nodes_bytes = store_options(&config.knobs).cache_bytes;
    let ahead_max = (nodes_bytes / WARM_CACHE_SHARE).clamp(WARM_ENTRIES_MIN, WARM_ENTRIES_MAX) as u64;
    for position in 0..count {
        let disk = match open_disk(config) {
            Ok((disk, _)) => disk,
            Err(error) => {
                tracing::debug!(%error, "pages are not brought in ahead");
                break;
            }
        };
        let files_max = (open_segments_max(config) / (4 * count)).max(8);
        let reader = PageReader::new(&config.data_dir, files_max, warm::READS_MAX);
        let share = entries.iter().skip(position).step_by(count).cloned().collect();
        let (first, is_first) = oneshot::channel();
        let warmer = Warmer::new(shared.view.clone(), disk, reader, share, ahead_max, first);
        let run = move || {
            if let Err(error) = warmer.run() {
                tracing::debug!(%error, "pages are not brought in ahead");
            }
        };
        if let Err(error) = std::thread::Builder::new().name("warm".into()).spawn(run) {
            tracing::debug!(%error, "pages are not brought in ahead");
            break;
        }
        firsts.push(is_first);
    }
    firsts
}

/// Threads that bring in pages behind a start.
const WARMERS_MAX: usize = 4;
/// Entries for which a thread is worth it.
const WARM_ENTRIES_MIN: usize = 64;
/// Entries that are looked at ahead of apply.
const WARM_ENTRIES_MAX: usize = 32_768;
/// Bytes of cache for each of them: most need one page, which takes some 6 KiB, of an eighth of the cache.
const WARM_CACHE_SHARE: usize = 8 * (8 << 10);

async fn serve(config: Arc<Config>, clock: Clock) -> Result<i32, Error> {
    let knobs = &config.knobs;
    let cores = core_count(&config);
    if knobs.server.pin_cores {
        pin(0);
    }
    let opened = open(&config)?;
    log_start(&config, &opened, cores);
    let shared = shared(&config, &opened, cores)?;
    let (to_commit, inbox) = mpsc::channel(knobs.server.mailbox_messages_max.max(cores));
    let (stop, stopping) = watch::channel(false);
    let (ready, mut is_ready) = watch::channel(false);
    let serving = Serving { wire: wire_options(&config), stop: stopping };
    let senders = spawn_cores(cores, &config, &shared, clock, &to_commit, &serving);
    let warmed = spawn_warmers(&config, &shared, &opened.driver);
    let checkpoints = spawn_checkpoints(&config, &shared, clock, &to_commit)?;
    let core = make_core(0, &config, &shared, clock, &to_commit)?;
    spawn_core_loops(&core);
    let listeners = listen(&config, &config.listen_client_urls)?;
    for listener in listen(&config, &config.listen_metrics_urls)? {
        tokio::task::spawn_local(metrics_loop(listener, Rc::clone(&core)));
    }
    let Opened { store, disk, driver, applier, .. } = opened;
    let compactor = Compactor::new(config.auto_compaction, clock.now());
    let options = commit_options(&config, clock);
    let commit = Commit::new(Arc::clone(&shared), options, driver, store, applier, compactor);
    let commit = Rc::new(RefCell::new(commit));
    core.meet(Rc::clone(&commit));
    let commit_loop = CommitLoop {
        commit,
        disk: Timed::new(disk, LogWrites::new(Arc::clone(&shared.commit_counters))),
        inbox,
        to_self: to_commit.clone(),
        core: Rc::clone(&core),
        outbox: Outbox::new(senders.clone()),
        checkpoints,
        ready,
        heartbeat: Duration::from_millis(knobs.consensus.heartbeat_ms),
    };
    let mut running = tokio::task::spawn_local(async move {
        // It would read the same pages, one after the other. A thread that ended without telling is no reason to wait.
        for first in warmed {
            drop(first.await);
        }
        commit_loop.run().await
    });
    let mut terminate = signal(SignalKind::terminate()).map_err(system("SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(system("SIGINT"))?;
    tokio::select! {
        ended = &mut running => return Err(ended_early(ended)),
        _ = is_ready.wait_for(|ready| *ready) => {}
        _ = terminate.recv() => return Ok(libc::SIGTERM),
        _ = interrupt.recv() => return Ok(libc::SIGINT),
    }
    tokio::task::spawn_local(usage_loop(Rc::clone(&core)));
    tracing::info!("ready to serve client requests");
    for listener in listeners {
        if let Ok(address) = listener.local_addr() {
            tracing::info!(%address, "serving client traffic insecurely; this is strongly discouraged!");
        }
        tokio::task::spawn_local(accept_loop(listener, Rc::clone(&core), senders.clone(), serving.clone()));
    }
    let signal = tokio::select! {
        ended = &mut running => return Err(ended_early(ended)),
        _ = terminate.recv() => libc::SIGTERM,
        _ = interrupt.recv() => libc::SIGINT,
    };
    tracing::info!(signal, "received signal; shutting down...");
    drain(&core, &stop, Duration::from_millis(knobs.server.drain_ms)).await;
    Ok(signal)
}

/// Binds the addresses of `urls`.
fn listen(config: &Config, urls: &[config::Url]) -> Result<Vec<TcpListener>, Error> {
    let mut listeners = Vec::new();
    for url in urls {
        let address = url.bind_address().map_err(config::Error::from)?;
        let bound = bind(address, config.socket_reuse_port);
        listeners.push(bound.map_err(system(format!("listen on {address}")))?);
    }
    Ok(listeners)
}

fn ended_early(ended: Result<Result<(), commit::Fatal>, tokio::task::JoinError>) -> Error {
    match ended {
        Ok(Err(fatal)) => fatal.into(),
        Ok(Ok(())) => Error::Engine(engine::Error::Stopped),
        Err(error) => Error::System { what: "the commit core".into(), source: std::io::Error::other(error) },
    }
}

/// Lets requests under way finish: connections are told to go away, and waited for within a bound.
async fn drain(core: &Core, stop: &watch::Sender<bool>, bound: Duration) {
    core.shared.is_stopping.store(true, std::sync::atomic::Ordering::Release);
    stop.send_replace(true);
    let until = core.clock.now() + bound;
    let open = || {
        let connections = core.shared.connections.iter();
        connections.map(|count| count.load(std::sync::atomic::Ordering::Relaxed)).sum::<usize>()
    };
    while open() > 0 && core.clock.now() < until {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn wire_options(config: &Config) -> wire::Options {
    let server = &config.knobs.server;
    wire::Options {
        streams_max: server.max_concurrent_streams,
        stream_window_bytes: server.stream_window_bytes,
        connection_window_bytes: server.connection_window_bytes,
        buffer_bytes_max: server.connection_buffer_bytes_max,
        ping_min: Duration::from_millis(server.keepalive_min_ms),
        ping_after: Duration::from_millis(server.keepalive_interval_ms),
        ping_timeout: Duration::from_millis(server.keepalive_timeout_ms),
    }
}

fn commit_options(config: &Config, clock: Clock) -> commit::Options {
    let knobs = &config.knobs;
    commit::Options {
        checkpoint_wal_bytes: knobs.store.checkpoint_wal_bytes,
        apply_batch_bytes_max: knobs.consensus.apply_batch_bytes_max as u64,
        recent_bytes_max: knobs.store.recent_bytes_max as u64,
        sweep_entries_per_step: knobs.store.sweep_entries_per_step,
        warning_apply: Duration::from_millis(knobs.server.warning_apply_ms),
        clock,
        reclaim_pages_per_step: knobs.store.reclaim_pages_per_step,
        election_timeout: Duration::from_millis(knobs.consensus.election_ms),
        name: config.name.clone(),
        client_urls: config.advertise_client_urls.iter().map(ToString::to_string).collect(),
    }
}

fn log_start(config: &Config, opened: &Opened, cores: usize) {
    let view = opened.store.mvcc().view();
    tracing::info!(release = crate::RELEASE, etcd = crate::ETCD_VERSION, "starting Orlop");
    tracing::info!(path = %config.data_dir.display(), revision = view.revision(), index = view.applied_index(), "data directory");
    tracing::info!(path = %opened.io, "I/O path");
    let bytes = quota(config).shown();
    if bytes > quota::SENSIBLE_BYTES_MAX {
        let maximum = quota::SENSIBLE_BYTES_MAX;
        tracing::warn!(
            "quota-size-bytes" = bytes,
            "quota-maximum-size-bytes" = maximum,
            "quota exceeds the maximum value"
        );
    }
    let shown = if bytes < 0 { "disabled backend quota" } else { "enabled backend quota" };
    tracing::info!("quota-size-bytes" = bytes, "{shown}");
    if let Some((file, offset)) = opened.driver.truncated_tail() {
        tracing::warn!(file = %file.display(), offset, "the log's torn tail was cut off");
    }
    let urls = config::join(&config.advertise_client_urls);
    let (member, cluster) = (opened.identity.member_id, opened.identity.cluster_id);
    let catch_up = config.knobs.consensus.snapshot_catchup_entries;
    tracing::info!(
        name = %config.name,
        "member-id" = %format!("{member:x}"),
        "cluster-id" = %format!("{cluster:x}"),
        "client-urls" = %urls,
        cores,
        "snapshot-catchup-entries" = catch_up,
        "starting an etcd server"
    );
}
