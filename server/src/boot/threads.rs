//! Runs on: core 0, and each thread at its beginning.
//!
//! The member's threads: connection cores, raft and apply if they have threads of their own, checkpoints, the scrub,
//! and for a while the threads that load pages after the start.
//!
//! Core 0 serves connections, accepts the connections of all cores, and waits for the signals. The state of a core is
//! made on the core's own thread, because it stays there.

use std::{
    rc::Rc,
    sync::{Arc, mpsc as blocking},
    thread,
    time::Duration,
};

use consensus::{Driver, RequestIds, peer::hello::Remote};
use engine::{
    Checkpoint, PageReader, Unreadable,
    disk::{Disk, FileSystem},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::spawn_local,
};

use super::{
    error::{Error, system},
    open::{IoPaths, Opened},
    options::{self, Cores},
    process,
};
use crate::{
    api::{
        desk::{Desk, Parts},
        watchers::Watchers,
    },
    apply::{
        fatal::Fatal,
        machine::Apply,
        message::{Handed, Report, ToApply},
    },
    clock::Clock,
    config::Config,
    cores::{
        Placement, STACK_BYTES,
        apply_loop::{self, ApplyCore, ToRaftThread},
        checkpoint,
        connection_loop::{self, Posts, Serving, ToMachines},
        corruption,
        outbox::{Outbox, ToCore, Way},
        peer_loop::Peers,
        probes,
        raft_loop::{self, RaftCore, ToApplyThread},
        reads,
        scrub::Scrubber,
        states::{self, OpenDisk},
        thread::{block_on, pin, stop_member},
        versions,
        warm::{self, Warmer},
    },
    insight::Board,
    loader::Loader,
    mailbox::{Inbox, turns},
    metrics::{
        registry::Registry,
        timed::{CheckpointCommits, LogWrites, Timed},
    },
    peer::{
        ask::Network,
        message::{ToPeers, ToStates},
    },
    raft::{machine::Raft, message::ToRaft},
    shared::Shared,
    watch::encode::Responder,
};

/// Threads that load pages after a start.
const WARMERS_MAX: usize = 4;
/// Entries from which on such a thread is worth it.
const WARM_ENTRIES_MIN: usize = 64;
/// Entries that are looked at ahead of apply, at most.
const WARM_ENTRIES_MAX: usize = 32_768;
/// Bytes of cache for each of these entries. Most need one page of about 6 KiB, and all of them may take an eighth of
/// the cache.
const WARM_CACHE_SHARE: usize = 8 * (8 << 10);

/// The state that all threads of the member share.
#[derive(Clone)]
pub struct Member {
    config: Arc<Config>,
    clock: Clock,
    cores: Cores,
    paths: IoPaths,
    shared: Arc<Shared>,
    registry: Arc<Registry>,
    board: Arc<Board>,
}

/// The member's threads as core 0 sees them.
pub struct Started {
    /// The desk of core 0.
    pub desk: Rc<Desk>,
    /// The ways to all cores that serve.
    pub ways: Vec<Way>,
    /// Becomes true when clients may be served.
    pub ready: watch::Receiver<bool>,
}

/// The parts from which raft and apply are made.
struct Machines {
    driver: Driver,
    log_disk: Box<dyn Disk>,
    apply: Apply,
    checkpoints: blocking::Sender<Checkpoint>,
    ready: watch::Sender<bool>,
    /// Signals that the first pages after the start are there.
    warmed: Vec<oneshot::Receiver<()>>,
    ways: ToMachines,
    to_raft: mpsc::Receiver<Vec<ToRaft>>,
    to_apply: mpsc::Receiver<Vec<ToApply>>,
    /// What the connections with other members are made with.
    peers: PeerParts,
}

/// What the connections with other members are made with.
struct PeerParts {
    inbox: mpsc::Receiver<ToPeers>,
    to_states: mpsc::Sender<ToStates>,
    /// The members that are known before the log names them.
    remotes: Vec<Remote>,
}

impl Member {
    /// The member that was opened.
    ///
    /// **Errors** the file system of the log cannot be found.
    pub fn new(config: Arc<Config>, clock: Clock, cores: Cores, opened: &Opened) -> Result<Self, Error> {
        let first_id = RequestIds::new(opened.identity.member_id, clock.seed()).next_id();
        let log_file_system = FileSystem::of(&options::wal_dir(&config))?;
        let shared = Arc::new(Shared::new(
            opened.identity,
            options::limits(&config, cores),
            opened.store.mvcc().published(),
            cores.serving,
            first_id,
            log_file_system,
        ));
        let registry = Arc::new(Registry::new(options::features(&config), cores.serving));
        let board = Arc::new(Board::new(options::insight(&config), cores.serving));
        Ok(Self { config, clock, cores, paths: opened.paths.clone(), shared, registry, board })
    }

    /// The pages of the store that could not be read.
    fn unreadable(&self) -> Arc<Unreadable> {
        Arc::clone(self.shared.view.unreadable())
    }

    /// Opens disks of the data directory.
    fn open_disk(&self) -> OpenDisk {
        let (path, dir) = (self.paths.data.clone(), self.config.data_dir.clone());
        Arc::new(move || path.disk(&dir))
    }

    /// The page reads of one more thread.
    fn loader(&self) -> Result<Loader, engine::Error> {
        let reads_max = self.config.knobs.io.operations_in_flight_max as usize;
        let files_max = options::open_segments_max(&self.config, self.cores);
        let dir = &self.config.data_dir;
        Ok(Loader::new(self.paths.data.disk(dir)?, PageReader::new(dir, files_max, reads_max, self.unreadable())))
    }

    /// The desk of connection core `id` and its posts. Must be called on that core's thread.
    fn desk(&self, id: usize) -> Result<(Rc<Desk>, Posts), engine::Error> {
        let server = &self.config.knobs.server;
        let responder = Responder { ids: self.shared.ids, raft_term: 0 };
        let watchers = Watchers::new(
            options::watchers(&self.config),
            responder,
            self.shared.view.load().revision(),
            Arc::clone(&self.registry.connections[id]),
            Duration::from_millis(server.watch_progress_interval_ms),
            server.catch_up_bytes_per_turn,
        );
        let posts = Posts::new(server.mailbox_messages_max);
        let desk = Desk::new(Parts {
            id,
            shared: Arc::clone(&self.shared),
            registry: Arc::clone(&self.registry),
            board: Arc::clone(&self.board),
            clock: self.clock.clone(),
            watchers,
            to_raft: Rc::clone(&posts.to_raft),
            to_apply: Rc::clone(&posts.to_apply),
            loader: self.loader()?,
            others: Box::new(Network::new(self.shared.limits.dial_from, self.cores.serving)),
        });
        connection_loop::spawn_beside(&desk);
        Ok((desk, posts))
    }

    /// Runs a core on a thread of its own. `position` is its place among all threads. An error of `run` stops the
    /// member.
    fn spawn<F: Future<Output = Result<(), E>>, E: std::error::Error>(
        &self,
        name: String,
        position: usize,
        run: impl FnOnce() -> F + Send + 'static,
    ) -> Result<(), Error> {
        let pins = self.config.knobs.server.pin_cores;
        let core = move || {
            if pins {
                pin(position);
            }
            match block_on(run()) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => stop_member(&error),
                Err(source) => stop_member(&Error::System { what: "a core's runtime".into(), source }),
            }
        };
        let spawned = thread::Builder::new().name(name).stack_size(STACK_BYTES).spawn(core);
        spawned.map(drop).map_err(system("a core's thread"))
    }

    /// Starts the connection cores after the first, each on a thread of its own. Returns the ways to them.
    fn spawn_connections(&self, ways: &ToMachines, serving: &Serving) -> Result<Vec<mpsc::Sender<ToCore>>, Error> {
        let mut senders = Vec::new();
        for id in 1..self.cores.serving {
            let (sender, inbox) = mpsc::channel(self.config.knobs.server.mailbox_messages_max);
            senders.push(sender);
            let (member, ways, serving) = (self.clone(), ways.clone(), serving.clone());
            self.spawn(format!("core-{id}"), id, move || async move {
                let (desk, posts) = member.desk(id)?;
                ways.carry(posts);
                connection_loop::run(desk, inbox, serving).await;
                Ok::<(), engine::Error>(())
            })?;
        }
        Ok(senders)
    }

    fn spawn_checkpoints(&self, apply: mpsc::Sender<Vec<ToApply>>) -> Result<blocking::Sender<Checkpoint>, Error> {
        let (jobs, inbox) = blocking::channel();
        let disk = self.paths.data.disk(&self.config.data_dir)?;
        let commits = CheckpointCommits::new(Arc::clone(&self.registry.commit), self.clock.clone());
        let run = move || checkpoint::run(Timed::new(disk, commits), &inbox, &apply);
        thread::Builder::new().name("checkpoint".into()).spawn(run).map_err(system("the checkpoint thread"))?;
        Ok(jobs)
    }

    /// Starts threads that load the pages which `driver`'s log needs from the store, while the log is applied. A host
    /// that has no room for them goes without. Returns the signals that the first pages are there.
    fn spawn_warmers(&self, driver: &Driver) -> Vec<oneshot::Receiver<()>> {
        let entries: Vec<_> = driver.unapplied().map(|(index, entry)| (index, entry.clone())).collect();
        let count = process::cpus().saturating_sub(1).clamp(1, WARMERS_MAX).min(entries.len() / WARM_ENTRIES_MIN);
        let ahead_max =
            (options::cache_bytes(&self.config) / WARM_CACHE_SHARE).clamp(WARM_ENTRIES_MIN, WARM_ENTRIES_MAX) as u64;
        let mut firsts = Vec::new();
        for position in 0..count {
            let share = entries.iter().skip(position).step_by(count).cloned().collect();
            let (first, is_first) = oneshot::channel();
            let files_max = (options::open_segments_max(&self.config, self.cores) / (4 * count)).max(8);
            let reader = PageReader::new(&self.config.data_dir, files_max, warm::READS_MAX, self.unreadable());
            let view = self.shared.view.clone();
            let spawned = self.paths.data.disk(&self.config.data_dir).map(|disk| {
                let warmer = Warmer::new(view, disk, reader, share, ahead_max, first);
                let run = move || {
                    if let Err(error) = warmer.run() {
                        tracing::debug!(%error, "pages are not brought in ahead");
                    }
                };
                // It decodes entries and drops them: the deepest txn needs the stack of a core.
                thread::Builder::new().name("warm".into()).stack_size(STACK_BYTES).spawn(run)
            });
            match spawned {
                Ok(Ok(_thread)) => firsts.push(is_first),
                Ok(Err(error)) => tracing::debug!(%error, "pages are not brought in ahead"),
                Err(error) => tracing::debug!(%error, "pages are not brought in ahead"),
            }
        }
        firsts
    }

    /// Starts the thread that reads everything on disk again, unless it is turned off.
    fn spawn_scrub(&self) -> Result<(), Error> {
        let interval = Duration::from_millis(self.config.knobs.store.scrub_interval_ms);
        if interval.is_zero() {
            return Ok(());
        }
        let dir = &self.config.data_dir;
        let (disk, dirs) = (self.paths.data.disk(dir)?, (dir.as_path(), options::wal_dir(&self.config)));
        let (clock, shared) = (self.clock.clone(), Arc::clone(&self.shared));
        let scrubber = Scrubber::new(disk, dirs, interval, clock, shared, Arc::clone(&self.registry.scrub));
        let run = move || scrubber.run();
        thread::Builder::new().name("scrub".into()).spawn::<_, ()>(run).map(drop).map_err(system("the scrub thread"))
    }

    /// Raft and the connections with other members. Must be called on raft's thread.
    fn raft_core(
        &self,
        driver: Driver,
        log_disk: Box<dyn Disk>,
        inbox: Inbox<ToRaft>,
        peer_parts: PeerParts,
    ) -> RaftCore {
        let (shared, counters) = (Arc::clone(&self.shared), Arc::clone(&self.registry.commit));
        let disk = Timed::new(log_disk, LogWrites::new(Arc::clone(&counters)));
        let (batch_bytes_max, log_wait_max) =
            (options::batch_bytes_max(&self.config), options::log_wait_max(&self.config));
        let heartbeat = options::heartbeat(&self.config);
        let (clock, links) = (self.clock.clone(), options::links(&self.config));
        let PeerParts { inbox: of_peers, to_states, remotes } = peer_parts;
        let times = (options::dial_wait(&self.config), self.config.initial_election_tick_advance);
        let registry = Arc::clone(&self.registry);
        let peers = Peers::start(Arc::clone(&shared), clock, links, times, (of_peers, to_states), registry);
        peers.add_remotes(remotes);
        let raft = Raft::new(shared, counters, driver, batch_bytes_max, log_wait_max, heartbeat);
        RaftCore { raft, disk, inbox, messages: Vec::new(), peers }
    }
}

/// Starts the member's threads. Raft and apply begin at once; connections come when somebody accepts them.
///
/// **Errors** a thread or a disk cannot be made.
pub fn start(
    member: &Member,
    opened: Opened,
    serving: &Serving,
    to_peers: mpsc::Receiver<ToPeers>,
    to_states: mpsc::Receiver<ToStates>,
) -> Result<Started, Error> {
    let Opened { store, log_disk, driver, applier, remotes, .. } = opened;
    let (to_raft_sender, to_raft) = turns();
    let (to_apply_sender, to_apply) = turns();
    let ways = ToMachines { to_raft: to_raft_sender, to_apply: to_apply_sender };
    let others = member.spawn_connections(&ways, serving)?;
    let warmed = member.spawn_warmers(&driver);
    let checkpoints = member.spawn_checkpoints(ways.to_apply.clone())?;
    member.spawn_scrub()?;
    let (ready, is_ready) = watch::channel(false);
    let options = options::apply(&member.config, &member.clock, driver.status().last_index);
    let (shared, counters) = (Arc::clone(&member.shared), Arc::clone(&member.registry.commit));
    let apply = Apply::new(shared, counters, options, store, applier);
    let (desk, posts) = member.desk(0)?;
    spawn_local(probes::run(Rc::clone(&desk)));
    spawn_local(versions::run(Rc::clone(&desk), member.config.downgrade_check));
    corruption::spawn(&desk, options::corruption(&member.config));
    spawn_local(states::run(Rc::clone(&desk), member.open_disk(), to_states));
    let peers = PeerParts { inbox: to_peers, to_states: serving.states.clone(), remotes };
    let machines = Machines { driver, log_disk, apply, checkpoints, ready, warmed, ways, to_raft, to_apply, peers };
    if member.cores.placement == Placement::Shared {
        let mut all = vec![Way::Here(Rc::clone(&desk))];
        all.extend(others.into_iter().map(Way::There));
        run_here(member, machines, &desk, posts, all.clone());
        return Ok(Started { desk, ways: all, ready: is_ready });
    }
    let (own, inbox) = mpsc::channel(member.config.knobs.server.mailbox_messages_max);
    machines.ways.clone().carry(posts);
    spawn_local(connection_loop::run(Rc::clone(&desk), inbox, serving.clone()));
    let mut senders = vec![own];
    senders.extend(others);
    let mut all = vec![Way::Here(Rc::clone(&desk))];
    all.extend(senders[1..].iter().cloned().map(Way::There));
    run_apart(member, machines, &senders)?;
    Ok(Started { desk, ways: all, ready: is_ready })
}

/// Runs raft and apply in the loop of core 0.
fn run_here(member: &Member, machines: Machines, desk: &Desk, posts: Posts, ways: Vec<Way>) {
    let Machines { driver, log_disk, apply, checkpoints, ready, warmed, ways: own, to_raft, to_apply, peers } =
        machines;
    let (mut raft_inbox, mut apply_inbox) = (Inbox::new(to_raft), Inbox::new(to_apply));
    raft_inbox.own(posts.to_raft);
    apply_inbox.own(posts.to_apply);
    let raft = member.raft_core(driver, log_disk, raft_inbox, peers);
    let (loader, messages, to_self) = (desk.loader().clone(), Vec::new(), own.to_apply);
    let apply = ApplyCore { apply, inbox: apply_inbox, to_self, loader, checkpoints, ready, messages };
    let (clock, heartbeat) = (member.clock.clone(), options::heartbeat(&member.config));
    let running = spawn_local(async move {
        wait_for(warmed).await;
        raft_loop::run_both(raft, apply, Outbox::new(ways), clock, heartbeat).await
    });
    spawn_local(async move {
        match running.await {
            Ok(Ok(())) => {}
            Ok(Err(fatal)) => stop_member(&fatal),
            Err(error) => stop_member(&error),
        }
    });
}

/// Runs raft and apply on one thread, or on one thread each. `cores` leads to the connection cores.
fn run_apart(member: &Member, machines: Machines, cores: &[mpsc::Sender<ToCore>]) -> Result<(), Error> {
    let Machines { driver, log_disk, apply, checkpoints, ready, warmed, ways, to_raft, to_apply, peers } = machines;
    let to_self = ways.to_apply;
    let apply_core = {
        let member = member.clone();
        move || -> Result<ApplyCore, Fatal> {
            let loader = member.loader()?;
            spawn_local(reads::collect(loader.clone()));
            spawn_local(reads::close_unused(loader.clone()));
            let (inbox, messages) = (Inbox::new(to_apply), Vec::new());
            Ok(ApplyCore { apply, inbox, to_self, loader, checkpoints, ready, messages })
        }
    };
    let raft_core = {
        let member = member.clone();
        move || member.raft_core(driver, log_disk, Inbox::new(to_raft), peers)
    };
    let outbox = {
        let cores = cores.to_vec();
        move || Outbox::new(cores.into_iter().map(Way::There).collect())
    };
    let (clock, heartbeat) = (member.clock.clone(), options::heartbeat(&member.config));
    let position = member.cores.serving;
    if member.cores.placement == Placement::OneThread {
        return member.spawn("raft-apply".into(), position, move || async move {
            wait_for(warmed).await;
            raft_loop::run_both(raft_core(), apply_core()?, outbox(), clock, heartbeat).await
        });
    }
    let (to_apply, handed) = mpsc::channel::<Handed>(apply_loop::WAITING_MAX);
    let (reports, from_apply) = mpsc::channel::<Report>(apply_loop::WAITING_MAX);
    let (raft_outbox, raft_clock) = (outbox.clone(), clock.clone());
    member.spawn("raft".into(), position, move || async move {
        let apply = ToApplyThread { handed: to_apply, reports: from_apply };
        raft_loop::run(raft_core(), apply, raft_outbox(), raft_clock, heartbeat).await
    })?;
    member.spawn("apply".into(), position + 1, move || async move {
        wait_for(warmed).await;
        apply_loop::run(apply_core()?, ToRaftThread { handed, reports }, outbox(), clock, heartbeat).await
    })
}

/// Waits until the first pages after the start are there. Apply would read the same pages, one after the other. A
/// thread that ended without a signal is not waited for.
async fn wait_for(warmed: Vec<oneshot::Receiver<()>>) {
    for first in warmed {
        drop(first.await);
    }
}
