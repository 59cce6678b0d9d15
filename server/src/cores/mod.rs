//! Runs on: every core.
//!
//! Where threads, clocks and randomness come from, and the thin loops that move inputs and outputs between the state
//! machines and the runtime. Everything else is handed time and messages.
//!
//! Threads: core 0 runs the commit core and serves connections; further cores serve connections; one thread runs
//! checkpoints. Each core has a runtime of its own and shares nothing but what `core::Shared` names.
//!
//! Invariants: answers and events of one turn reach a core in one message, in the order of turns; a mailbox that is full
//! keeps answers back (they are bounded by the reply slots) and lets events go, which watchers then read from the past.

#![expect(unsafe_code, reason = "ends the process by the signal it was sent, as etcd does")]

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
    rc::Rc,
    sync::{Arc, atomic::Ordering, mpsc::RecvTimeoutError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use engine::{Checkpoint, disk::Disk};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::TcpListener,
    sync::{mpsc, watch},
    task::{LocalSet, spawn_local},
    time::MissedTickBehavior,
};

use crate::{
    commit::{Commit, Fatal, ToCommit, Turn},
    core::{Answer, Core},
    cores::slots::SlotId,
    insight::usage,
    metrics::timed::{CheckpointCommits, LogWrites, Timed},
    watch::batch::Batch,
    wire,
};

pub mod loader;
pub mod slots;
pub mod start;
pub mod warm;

/// Monotonic time since the process began, the same for every core.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    #[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        self.0.elapsed()
    }

    /// **Units** microseconds since 1970.
    #[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub fn unix_us() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// A random number in 0..1, for spreading timers.
    pub fn jitter(&self) -> f64 {
        rand::random()
    }
}

/// Messages to a connection core.
enum ToCore {
    /// What a turn of the commit core has for it.
    Turn { answers: Vec<(SlotId, Answer)>, batch: Option<Arc<Batch>> },
    /// A connection to serve.
    Accept(std::net::TcpStream),
}

/// **Units** bytes of a core's stack; the kernel gives memory only for what is touched.
///
/// Requests are walked recursively, and the deepest that is decoded, `proto::txn::LEVELS_MAX` messages, must fit wherever it
/// is: checked, decided, applied, answered and dropped. A test walks one on such a stack.
pub const STACK_BYTES: usize = 64 << 20;

/// Between two tries of a checkpoint that found no space.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(1);
/// How often slots expire and automatic progress is looked at.
const HOUSEKEEPING: Duration = Duration::from_millis(100);
/// How often a core publishes what is asked of it most.
const HEAT_EVERY: Duration = Duration::from_secs(1);
/// How often /metrics' usage by prefix is taken anew.
const USAGE_EVERY: Duration = Duration::from_secs(15);
/// Segment files that nobody read meanwhile are closed once in so many of these.
const CLOSE_UNUSED_EVERY: u64 = 50;
/// Messages taken from a mailbox before the loop looks elsewhere.
const INBOX_MAX: usize = 4096;

/// What every connection core's loops need.
#[derive(Clone)]
struct Serving {
    wire: wire::Options,
    stop: watch::Receiver<bool>,
}

/// An eventfd of a disk, watched by the runtime.
struct Wake(Option<AsyncFd<OwnedFd>>);

impl Wake {
    fn new(fd: Option<RawFd>) -> io::Result<Self> {
        let Some(fd) = fd else { return Ok(Self(None)) };
        // SAFETY: the disk that gave the descriptor keeps it open during this call; we keep a duplicate of our own.
        let owned = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` names one open descriptor from here to its drop, and the `AsyncFd` keeps it unchanged.
        let watched = unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) };
        Ok(Self(Some(watched.map_err(io::Error::from)?)))
    }

    /// Resolves when operations have ended.
    async fn ready(&self) -> io::Result<()> {
        let Some(fd) = &self.0 else { return std::future::pending().await };
        let mut guard = fd.readable().await?;
        let mut count = [0; 8];
        match rustix::io::read(fd.get_ref(), &mut count) {
            // Nothing to read means that somebody cleared it already: completions are looked for all the same.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        guard.clear_ready();
        Ok(())
    }
}

/// The loops of a connection core that run besides its connections.
fn spawn_core_loops(core: &Rc<Core>) {
    spawn_local(crate::watch_rpc::catch_up(Rc::clone(core)));
    spawn_local(housekeeping(Rc::clone(core)));
    spawn_local(collect_reads(Rc::clone(core)));
}

async fn housekeeping(core: Rc<Core>) {
    let mut ticks = tokio::time::interval(HOUSEKEEPING);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut publish_at = Duration::ZERO;
    for count in 1_u64.. {
        ticks.tick().await;
        core.expire();
        if count.is_multiple_of(CLOSE_UNUSED_EVERY) {
            core.loader().close_unused();
            core.fingers.borrow_mut().forget_unused();
        }
        let now = core.clock.now();
        core.watch.on_tick(now, core.shared.raft.term.load(Ordering::Acquire));
        if now >= publish_at {
            publish_at = now + HEAT_EVERY;
            if let Some(heat) = core.heat.borrow_mut().publish(now) {
                core.shared.heat[core.id].store(heat);
            }
        }
    }
}

/// Keeps /metrics' usage by prefix up to date: a scrape waits for no page.
async fn usage_loop(core: Rc<Core>) {
    let mut ticks = tokio::time::interval(USAGE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // A page that cannot be read was reported; the last figures stay.
        if let Ok(rows) = usage::children(&core, &core.view(), Bytes::new()).await {
            core.shared.usage.store(Arc::new(rows));
        }
    }
}

async fn collect_reads(core: Rc<Core>) {
    let wake = match Wake::new(core.loader().wake_fd()) {
        Ok(wake) => wake,
        Err(error) => return tracing::error!(%error, "page reads cannot be waited for"),
    };
    while wake.ready().await.is_ok() {
        if let Err(error) = core.loader().collect() {
            start::stop_member(&error.into());
        }
    }
}

fn take_turn(core: &Core, answers: Vec<(SlotId, Answer)>, batch: Option<&Arc<Batch>>) {
    core.deliver(answers);
    if let Some(batch) = batch {
        core.watch.on_batch(batch, &core.view());
    }
}

/// Runs a connection core other than the first until the process ends.
async fn connection_core(core: Rc<Core>, mut inbox: mpsc::Receiver<ToCore>, serving: Serving) {
    spawn_core_loops(&core);
    while let Some(message) = inbox.recv().await {
        match message {
            ToCore::Turn { answers, batch } => take_turn(&core, answers, batch.as_ref()),
            ToCore::Accept(socket) => accept(&core, socket, &serving),
        }
    }
}

fn accept(core: &Rc<Core>, socket: std::net::TcpStream, serving: &Serving) {
    match tokio::net::TcpStream::from_std(socket) {
        Ok(socket) => {
            let (options, stop) = (serving.wire.clone(), serving.stop.clone());
            spawn_local(wire::serve(Rc::clone(core), socket, options, stop));
        }
        Err(error) => tracing::warn!(%error, "an accepted connection cannot be served"),
    }
}

/// What the commit core sends to the others, kept back while their mailboxes are full.
struct Outbox {
    senders: Vec<mpsc::Sender<ToCore>>,
    kept: Vec<Vec<(SlotId, Answer)>>,
}

impl Outbox {
    fn new(senders: Vec<mpsc::Sender<ToCore>>) -> Self {
        let kept = senders.iter().map(|_| Vec::new()).collect();
        Self { senders, kept }
    }

    fn send(&mut self, position: usize, mut answers: Vec<(SlotId, Answer)>, batch: Option<&Arc<Batch>>) {
        let kept = &mut self.kept[position];
        kept.append(&mut answers);
        if kept.is_empty() && batch.is_none() {
            return;
        }
        let message = ToCore::Turn { answers: std::mem::take(kept), batch: batch.cloned() };
        if let Err(mpsc::error::TrySendError::Full(ToCore::Turn { answers, .. })) =
            self.senders[position].try_send(message)
        {
            *kept = answers;
        }
    }

    fn has_kept(&self) -> bool {
        self.kept.iter().any(|kept| !kept.is_empty())
    }
}

/// What the loop of the commit core works with.
struct CommitLoop {
    commit: Rc<RefCell<Commit>>,
    disk: Timed<LogWrites>,
    inbox: mpsc::Receiver<ToCommit>,
    to_self: mpsc::Sender<ToCommit>,
    core: Rc<Core>,
    outbox: Outbox,
    checkpoints: std::sync::mpsc::Sender<Checkpoint>,
    ready: watch::Sender<bool>,
    heartbeat: Duration,
}

impl CommitLoop {
    /// Runs until the mailbox closes.
    ///
    /// **Errors** the member must stop.
    async fn run(mut self) -> Result<(), Fatal> {
        let wake = Wake::new(self.disk.wake_fd()).map_err(Fatal::Wake)?;
        let mut ticks = tokio::time::interval(self.heartbeat);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut messages = Vec::with_capacity(INBOX_MAX);
        loop {
            let now = self.core.clock.now();
            let turn = self.commit.borrow_mut().turn(self.disk.at(now), now)?;
            let more = turn.more || self.outbox.has_kept();
            self.hand_out(turn);
            if more {
                tokio::task::yield_now().await;
            }
            let now = tokio::select! {
                biased;
                taken = self.inbox.recv_many(&mut messages, INBOX_MAX) => {
                    if taken == 0 {
                        return Ok(());
                    }
                    self.core.clock.now()
                }
                woken = wake.ready() => {
                    woken.map_err(Fatal::Wake)?;
                    self.core.clock.now()
                }
                _ = ticks.tick() => {
                    let now = self.core.clock.now();
                    self.commit.borrow_mut().tick(now);
                    now
                }
                () = std::future::ready(()), if more => self.core.clock.now(),
            };
            for message in messages.drain(..) {
                self.commit.borrow_mut().receive(message, now)?;
            }
        }
    }

    fn hand_out(&mut self, turn: Turn) {
        let mut answers = turn.answers.into_iter();
        if let Some(own) = answers.next() {
            take_turn(&self.core, own, turn.batch.as_ref());
        }
        for (position, answers) in answers.enumerate() {
            self.outbox.send(position, answers, turn.batch.as_ref());
        }
        if !turn.faults.is_empty() {
            let (loader, to_self) = (self.core.loader().clone(), self.to_self.clone());
            spawn_local(async move {
                let loaded = loader.load_all(turn.faults).await;
                // The loop that would hear of it may have ended.
                drop(to_self.send(ToCommit::Loaded(loaded)).await);
            });
        }
        if let Some(checkpoint) = turn.checkpoint
            && self.checkpoints.send(checkpoint).is_err()
        {
            tracing::error!("the checkpoint thread is gone");
        }
        if !*self.ready.borrow() && self.commit.borrow().is_ready() {
            self.ready.send_replace(true);
        }
    }
}

/// Runs checkpoints, one at a time, until the process ends.
fn checkpoint_thread(
    mut disk: Timed<CheckpointCommits>,
    jobs: &std::sync::mpsc::Receiver<Checkpoint>,
    done: &mpsc::Sender<ToCommit>,
) {
    while let Ok(mut checkpoint) = jobs.recv() {
        let mut is_waiting = false;
        let result = loop {
            match checkpoint.run(&mut disk) {
                Err(error @ engine::Error::NoSpace { .. }) => {
                    if !std::mem::replace(&mut is_waiting, true) {
                        tracing::error!(%error, "a checkpoint waits for space");
                        if done.blocking_send(ToCommit::CheckpointWaits).is_err() {
                            return;
                        }
                    }
                    // Nothing else is sent while a checkpoint is under way: this is a pause, or the end.
                    if let Err(RecvTimeoutError::Disconnected) = jobs.recv_timeout(NO_SPACE_PAUSE) {
                        return;
                    }
                }
                result => break result,
            }
        };
        if done.blocking_send(ToCommit::Checkpointed(result.map(Box::new))).is_err() {
            return;
        }
    }
}

/// Accepts connections and gives each to the core with the fewest.
async fn accept_loop(listener: TcpListener, core: Rc<Core>, outbox: Vec<mpsc::Sender<ToCore>>, serving: Serving) {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let loads = core.shared.connections.iter().map(|load| load.load(Ordering::Relaxed));
        let total: usize = loads.clone().sum();
        if total >= core.shared.limits.connections_max {
            tracing::warn!(connections = total, "no more connections are accepted");
            continue;
        }
        let least = loads.enumerate().min_by_key(|(_, load)| *load).map_or(0, |(position, _)| position);
        if least == 0 {
            let (options, stop) = (serving.wire.clone(), serving.stop.clone());
            spawn_local(wire::serve(Rc::clone(&core), socket, options, stop));
            continue;
        }
        match socket.into_std() {
            Ok(socket) => {
                if outbox[least - 1].try_send(ToCore::Accept(socket)).is_err() {
                    tracing::warn!(core = least, "a core is too busy to take a connection");
                }
            }
            Err(error) => tracing::warn!(%error, "an accepted connection cannot be moved"),
        }
    }
}

/// Accepts connections of the metrics port, which core 0 serves.
async fn metrics_loop(listener: TcpListener, core: Rc<Core>) {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => drop(spawn_local(wire::serve_endpoints(Rc::clone(&core), socket))),
            Err(error) => {
                tracing::warn!(%error, "a connection of the metrics port could not be accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

/// Binds an address. Go binds with SO_REUSEADDR always, so that a restart does not wait for old connections to be
/// forgotten; so do we, whatever the flag says.
///
/// **Errors** the socket's.
fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let domain = socket2::Domain::for_address(address);
    let socket = socket2::Socket::new(domain, socket2::Type::STREAM, Some(socket2::Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// Runs `future` and everything it spawns on this thread.
fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, future))
}

/// Runs what blocks on a thread beside the cores', while its core serves others; `None` where the process ends meanwhile. How many wait at
/// once is the caller's to bound.
pub async fn beside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// Binds the calling thread to one CPU.
fn pin(position: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    set.set(position % cpus);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(%error, position, "a core's thread cannot be pinned");
    }
}

/// Ends the process by `signal`, as etcd does after a clean stop.
fn end_by(signal: i32) -> ! {
    // SAFETY: restoring the default action and sending the signal to ourselves touch no memory of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: as above.
    unsafe { libc::raise(signal) };
    std::process::exit(128 + signal)
}
