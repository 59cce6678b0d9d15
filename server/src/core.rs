//! Runs on: connection core.
//!
//! What a core has at hand to answer a request: the published state, its way to the commit core, its reply slots.
//!
//! Invariants:
//! - `Shared` is written by one owner a field (the commit core publishes `view`, `cluster` and `raft`), read by all.
//! - What a view shows was durable before it was published, and a reply leaves after the view that holds its write was
//!   published. So on a single voter any view loaded after a request arrived answers it linearizably.
//! - A core never waits for another while it holds a borrow.
//!
//! Knows no HTTP/2: `wire` and `rpc` bring decoded requests and take answers away.

use std::{
    cell::{Cell, OnceCell, RefCell},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use consensus::Member;
use engine::{Fault, Fingers, Published, ReadView, disk::FileSystem};
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind},
};
use tokio::sync::mpsc;

use crate::{
    commit::{Commit, ToCommit},
    config::Stage,
    cores::{
        Clock,
        loader::Loader,
        slots::{SlotId, Slots},
    },
    error::Error,
    floor::{Floor, Floors},
    insight::{
        hot::Heat,
        slow::{Ring, Settings, Teller},
        trace::{Stamps, Trace},
        usage,
    },
    metrics::counters::{CommitCounters, Counters},
    quota::{self, Alarms, Purpose, Quota},
    watch_rpc::WatchCore,
    wire::grpc::framed,
};

pub use pb::AlarmType as Alarm;

/// Who this member is.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Cluster id, in every response header.
    pub cluster_id: u64,
    /// Member id, likewise.
    pub member_id: u64,
}

/// Bounds a request is held against.
#[derive(Clone, Debug)]
pub struct Limits {
    /// **Units** bytes of a marshalled entry.
    pub request_bytes_max: usize,
    /// **Units** bytes of a gRPC message.
    pub receive_bytes_max: usize,
    /// Operations in one level of a txn.
    pub txn_ops_max: usize,
    /// Entries a scan visits before its core turns to others.
    pub scan_entries_per_turn: usize,
    /// Revisions that one core may hold.
    pub held_revisions_max: usize,
    /// How long each may be held.
    pub held_revision_age_max: Duration,
    /// How long a proposal may take: 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// Connections of all cores together.
    pub connections_max: usize,
    /// Quota on the data of the store.
    pub quota: Quota,
    /// Bytes of a backup between two write-backs of the log's file system; 0 for none.
    pub snapshot_write_back_bytes: u64,
}

/// The small replicated tables beside the keys.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Members by id.
    pub members: Vec<Member>,
    /// Active alarms.
    pub alarms: Alarms,
    /// Decided cluster version, such as `3.7.0`.
    pub version: Option<String>,
}

/// Where raft stands, for headers and status.
#[derive(Debug, Default)]
pub struct Raft {
    /// Current term.
    pub term: AtomicU64,
    /// Leader id, 0 if none.
    pub leader: AtomicU64,
    /// Committed index.
    pub commit: AtomicU64,
    /// Applied index.
    pub applied: AtomicU64,
    /// Entries proposed and not yet answered.
    pub pending: AtomicUsize,
}

/// Sizes of the store. **Units** bytes.
#[derive(Debug, Default)]
pub struct Sizes {
    /// Allocated, and what is not checkpointed yet; never 0.
    pub allocated: AtomicU64,
    /// Reachable, as of the last turn: what counts against the quota.
    pub in_use: AtomicU64,
}

/// What all cores of this process share: immutable, atomic, or replaced whole.
pub struct Shared {
    /// Who we are.
    pub identity: Identity,
    /// Bounds.
    pub limits: Limits,
    /// The newest view.
    pub view: Published,
    /// Members, alarms, version.
    pub cluster: ArcSwap<Cluster>,
    /// Raft's place.
    pub raft: Raft,
    /// Store sizes.
    pub sizes: Sizes,
    /// Lowest revision held by each core; see [`crate::floor`].
    pub floors: Vec<Arc<AtomicI64>>,
    /// Revision up to which the sweep is done.
    pub swept_revision: AtomicI64,
    /// Source of request ids: etcd's scheme, one counter for the process.
    pub request_ids: AtomicU64,
    /// Live leases, and connections by core.
    pub connections: Vec<AtomicUsize>,
    /// Set once: the process ends.
    pub is_stopping: AtomicBool,
    /// The log, or a checkpoint, waits for space on its disk.
    pub is_disk_full: AtomicBool,
    /// Where the log lies.
    pub log_file_system: FileSystem,
    /// Counters of every core.
    pub counters: Vec<Arc<Counters>>,
    /// Counters of the commit core; apart from what is here, as they change with every entry.
    pub commit_counters: Arc<CommitCounters>,
    /// What is told of requests.
    pub insight: Settings,
    /// Slow requests, by core.
    pub slow: Vec<Ring>,
    /// What is asked for most, by core.
    pub heat: Vec<ArcSwap<Heat>>,
    /// What the children of the empty prefix took up a moment ago.
    pub usage: ArcSwap<Vec<usage::Row>>,
    /// Feature gates with their stage and value.
    pub features: Vec<(&'static str, Stage, bool)>,
}

impl Shared {
    /// What member 0xab of cluster 1 shares between `cores` cores; its log lies nowhere.
    #[cfg(test)]
    pub(crate) fn for_tests(view: Published, cores: usize) -> Self {
        let limits = Limits {
            held_revisions_max: 1,
            held_revision_age_max: Duration::ZERO,
            request_bytes_max: 1 << 20,
            receive_bytes_max: 1 << 20,
            txn_ops_max: 128,
            scan_entries_per_turn: 128,
            request_timeout: Duration::from_secs(7),
            connections_max: 8,
            quota: Quota::new(1 << 31, 90),
            snapshot_write_back_bytes: 0,
        };
        let (unary, apply) = (Duration::from_millis(300), Duration::from_millis(100));
        Self {
            identity: Identity { cluster_id: 1, member_id: 0xab },
            limits,
            view,
            cluster: ArcSwap::default(),
            raft: Raft::default(),
            sizes: Sizes::default(),
            floors: (0..cores).map(|_| Arc::new(AtomicI64::new(i64::MAX))).collect(),
            swept_revision: AtomicI64::new(-1),
            request_ids: AtomicU64::new(1),
            connections: (0..cores).map(|_| AtomicUsize::new(0)).collect(),
            is_stopping: AtomicBool::new(false),
            is_disk_full: AtomicBool::new(false),
            log_file_system: FileSystem::of(std::path::Path::new(".")).expect("there is a working directory"),
            counters: (0..cores).map(|_| Arc::default()).collect(),
            commit_counters: Arc::default(),
            insight: Settings { unary, apply, is_extensive: true },
            slow: (0..cores).map(|_| Ring::default()).collect(),
            heat: (0..cores).map(|_| ArcSwap::default()).collect(),
            usage: ArcSwap::default(),
            features: crate::config::GATES.iter().map(|(name, stage, value)| (*name, *stage, *value)).collect(),
        }
    }

    /// What is asked for most, by core, as published last.
    pub fn heat_now(&self) -> Vec<Arc<Heat>> {
        self.heat.iter().map(ArcSwap::load_full).collect()
    }
}

/// Where an answer has to go.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    /// Position of the core.
    pub core: usize,
    /// Slot on it.
    pub slot: SlotId,
}

/// The result of an applied entry, as the client will see it.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Answer to a Put.
    Put(pb::PutResponse),
    /// Answer to a DeleteRange.
    DeleteRange(pb::DeleteRangeResponse),
    /// Answer to a Txn.
    Txn(pb::TxnResponse),
    /// Answer to a Compact.
    Compaction(pb::CompactionResponse),
    /// Answer to a LeaseGrant.
    LeaseGrant(pb::LeaseGrantResponse),
    /// Answer to a LeaseRevoke.
    LeaseRevoke(pb::LeaseRevokeResponse),
    /// Answer to an Alarm.
    Alarm(pb::AlarmResponse),
    /// An entry that no client sent.
    Internal,
}

impl Outcome {
    /// The gRPC message for the client.
    ///
    /// **Errors** none today; shaped like its callers.
    pub fn framed(&self) -> Result<Bytes, Error> {
        Ok(match self {
            Self::Put(response) => framed(response),
            Self::DeleteRange(response) => framed(response),
            Self::Txn(response) => framed(response),
            Self::Compaction(response) => framed(response),
            Self::LeaseGrant(response) => framed(response),
            Self::LeaseRevoke(response) => framed(response),
            Self::Alarm(response) => framed(response),
            Self::Internal => unreachable!("nobody waits for an entry of the server's own"),
        })
    }
}

/// What comes back into a reply slot.
#[derive(Clone, Debug)]
pub enum Answer {
    /// An entry was applied, at these times, or never will be.
    Applied(Result<Outcome, Error>, Option<Stamps>),
    /// A lease was renewed; 0 for an unknown one. **Units** seconds.
    Renewed(i64),
    /// What is left of a lease, and what it was granted; `None` for an unknown one. **Units** seconds.
    TimeToLive(Option<(i64, i64)>),
    /// Lease ids by remaining time.
    Leases(Vec<i64>),
    /// The sweep has passed the revision asked for.
    Swept,
    /// The number of the run that gives space back.
    Defragmenting(u64),
    /// That run has ended.
    Defragmented,
    /// The commit core did not answer in time.
    TimedOut,
}

/// A connection core.
pub struct Core {
    /// Position among the cores.
    pub id: usize,
    /// What is shared with the others.
    pub shared: Arc<Shared>,
    /// Its counters.
    pub counters: Arc<Counters>,
    /// Time.
    pub clock: Clock,
    /// Its watchers.
    pub watch: WatchCore,
    floors: Rc<Floors>,
    /// Notes of the request that is being polled.
    pub current: Cell<Trace>,
    /// Tells of slow requests.
    pub teller: Teller,
    /// What is asked of it most.
    pub heat: RefCell<Heat>,
    /// Where scans are in each extent.
    pub fingers: RefCell<Fingers>,
    commit: mpsc::Sender<ToCommit>,
    /// The commit core itself, where it runs on this thread.
    neighbour: OnceCell<Rc<RefCell<Commit>>>,
    slots: Slots<Answer>,
    loader: Loader,
}

impl Core {
    /// A core whose requests to the commit core go through `commit`, and whose faults through `loader`.
    pub fn new(
        id: usize,
        shared: Arc<Shared>,
        clock: Clock,
        watch: WatchCore,
        commit: mpsc::Sender<ToCommit>,
        loader: Loader,
    ) -> Rc<Self> {
        let counters = Arc::clone(&shared.counters[id]);
        let slots = Slots::new(SLOTS_MAX);
        let neighbour = OnceCell::new();
        let limits = &shared.limits;
        let floors =
            Floors::new(Arc::clone(&shared.floors[id]), limits.held_revisions_max, limits.held_revision_age_max);
        let (current, teller) = (Cell::default(), Teller::default());
        let (heat, fingers) = (RefCell::default(), RefCell::default());
        Rc::new(Self {
            id,
            shared,
            counters,
            clock,
            watch,
            floors,
            current,
            teller,
            heat,
            fingers,
            commit,
            neighbour,
            slots,
            loader,
        })
    }

    /// The newest view.
    pub fn view(&self) -> Arc<ReadView> {
        self.shared.view.load()
    }

    /// Keeps revision `at` readable while the floor lives, whatever is compacted; each step asks [`Floor::check`].
    ///
    /// **Errors** too many revisions are held; it is compacted already.
    pub fn hold(&self, at: i64) -> Result<Floor, Error> {
        self.floors.hold(at, self.clock.now(), || self.view())
    }

    /// Whether a leader is known.
    pub fn has_leader(&self) -> bool {
        self.shared.raft.leader.load(Ordering::Acquire) != 0
    }

    /// Active alarms: member id and type, by its number.
    pub fn alarms(&self) -> Vec<(u64, i32)> {
        self.shared.cluster.load().alarms.keys().copied().collect()
    }

    /// Decided cluster version.
    pub fn cluster_version(&self) -> Option<String> {
        self.shared.cluster.load().version.clone()
    }

    /// Counts an answer of /health.
    pub fn count_health(&self, is_healthy: bool) {
        let counter = if is_healthy { &self.counters.health_ok } else { &self.counters.health_failed };
        counter.add(1);
    }

    /// A response header at `revision`.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.shared.identity.cluster_id,
            member_id: self.shared.identity.member_id,
            revision,
            raft_term: self.shared.raft.term.load(Ordering::Acquire),
        }
    }

    /// Makes sure that a view loaded from now on answers linearizably.
    ///
    /// On a single voter that leads this holds by the order of publish and reply (see the head of this file), so it
    /// costs nothing; with more members this is where the round to the raft core goes.
    ///
    /// **Errors** no leader.
    pub fn read_index(&self) -> Result<(), Error> {
        if self.has_leader() {
            return Ok(());
        }
        self.counters.reads_failed.add(1);
        Err(Error::NoLeader)
    }

    /// Sends a client's request through the log and waits for its result. `raw` is embedded as it came.
    ///
    /// **Errors** the entry's own; too large; too many requests; no answer in time.
    pub async fn propose(&self, kind: Kind, raw: &[u8], purpose: Purpose) -> Result<Outcome, Error> {
        let id = self.shared.request_ids.fetch_add(1, Ordering::Relaxed);
        let header = quota::header(id, purpose);
        let len = internal::encoded_len(&header, kind, raw.len());
        if len > self.shared.limits.request_bytes_max {
            return Err(Error::RequestTooLarge);
        }
        let mut entry = Vec::with_capacity(len);
        internal::encode(&header, kind, raw, &mut entry);
        let propose = |reply| ToCommit::Propose { reply: Some(reply), id, entry: entry.into(), purpose };
        let answer = self.ask(propose).await;
        let result = answer.and_then(|answer| match answer {
            Answer::Applied(result, stamps) => {
                self.current.set(Trace { stamps, ..self.current.get() });
                result
            }
            other => unreachable!("a proposal is answered by its result, not {other:?}"),
        });
        self.counters.proposed(&result);
        result
    }

    /// Sends a message to the commit core and waits for its answer.
    ///
    /// **Errors** the mailbox or the slots are full; the member stops; no answer within the request timeout.
    pub async fn ask(&self, message: impl FnOnce(ReplyTo) -> ToCommit) -> Result<Answer, Error> {
        let deadline = self.clock.now() + self.shared.limits.request_timeout;
        let waiting = self.slots.open(deadline).ok_or(Error::TooManyRequests)?;
        let reply = ReplyTo { core: self.id, slot: waiting.id() };
        self.commit.try_send(message(reply)).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Error::TooManyRequests,
            mpsc::error::TrySendError::Closed(_) => Error::Stopped,
        })?;
        match waiting.await {
            Answer::TimedOut => Err(Error::Timeout),
            answer => Ok(answer),
        }
    }

    /// Says that the commit core runs on this core's thread.
    pub fn meet(&self, commit: Rc<RefCell<Commit>>) {
        assert!(self.neighbour.set(commit).is_ok(), "a core has one commit core");
    }

    /// Renews a lease; 0 for an unknown one. Where the commit core is on this thread it is asked without a message.
    /// **Units** seconds.
    ///
    /// **Errors** as [`Core::ask`].
    pub async fn renew(&self, lease: i64) -> Result<i64, Error> {
        if let Some(commit) = self.neighbour.get() {
            return Ok(commit.borrow_mut().renew(lease, self.clock.now()));
        }
        match self.ask(|reply| ToCommit::Renew { reply, lease }).await? {
            Answer::Renewed(ttl) => Ok(ttl),
            other => unreachable!("a renewal is answered by its time, not {other:?}"),
        }
    }

    /// Waits until the sweep has passed `revision`.
    ///
    /// **Errors** as [`Core::ask`].
    pub async fn swept(&self, revision: i64) -> Result<(), Error> {
        while self.shared.swept_revision.load(Ordering::Acquire) < revision {
            match self.ask(|reply| ToCommit::AwaitSweep { reply, revision }).await {
                Ok(_) | Err(Error::Timeout) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Has space given back, and waits until that is done.
    ///
    /// **Errors** as [`Core::ask`].
    pub async fn defragment(&self) -> Result<(), Error> {
        let run = match self.ask(|reply| ToCommit::Defragment { reply }).await? {
            Answer::Defragmenting(run) => run,
            other => unreachable!("the request is answered by its run, not {other:?}"),
        };
        // However long it takes: only the client gives up.
        loop {
            match self.ask(|reply| ToCommit::AwaitDefragment { reply, run }).await {
                Ok(_) => return Ok(()),
                Err(Error::Timeout) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Hands answers to the requests that wait for them.
    pub fn deliver(&self, answers: impl IntoIterator<Item = (SlotId, Answer)>) {
        for (slot, answer) in answers {
            self.slots.answer(slot, answer);
        }
    }

    /// Times out what waited too long, and lets go of revisions held too long.
    pub fn expire(&self) {
        let now = self.clock.now();
        self.slots.expire(now, || Answer::TimedOut);
        self.floors.expire(now);
    }

    /// Runs a job in bounded steps on `view`: other requests run between them, faults are loaded and the step retried.
    ///
    /// **Errors** damaged data.
    pub async fn step_through<T>(
        &self,
        view: &ReadView,
        mut step: impl FnMut(&ReadView, usize) -> Result<Option<T>, Fault>,
    ) -> Result<T, Error> {
        loop {
            match step(view, self.shared.limits.scan_entries_per_turn) {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => tokio::task::yield_now().await,
                Err(fault) => self.load(fault).await?,
            }
        }
    }

    /// Runs a job in bounded steps, each on the newest view, at a held revision: what is longer than a turn pins no memory.
    ///
    /// **Errors** damaged data; the revision was held for too long and is compacted.
    pub async fn step_along<T, F: IntoIterator<Item = Fault>>(
        &self,
        floor: &Floor,
        mut step: impl FnMut(&ReadView, usize) -> Result<Option<T>, F>,
    ) -> Result<T, Error> {
        loop {
            let view = self.view();
            floor.check(&view)?;
            // What was read is there on the view that missed it: the step gets on. Then a newer one, for this one holds what was evicted since.
            let mut has_read = false;
            loop {
                match step(&view, self.shared.limits.scan_entries_per_turn) {
                    Ok(Some(done)) => return Ok(done),
                    Ok(None) => break,
                    Err(faults) => self.load_all(faults).await?,
                }
                if std::mem::replace(&mut has_read, true) {
                    break;
                }
            }
            drop(view);
            tokio::task::yield_now().await;
        }
    }

    /// This core's page reads.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Brings what `fault` names into memory.
    ///
    /// **Errors** damaged data; it has been told of, and the member goes on serving what is sound.
    pub async fn load(&self, fault: Fault) -> Result<(), Error> {
        self.load_all([fault]).await
    }

    /// Brings what each of `faults` names into memory, all at once.
    ///
    /// **Errors** as [`Core::load`].
    pub async fn load_all(&self, faults: impl IntoIterator<Item = Fault>) -> Result<(), Error> {
        let began = self.clock.now();
        let loaded = self.loader.load_all(faults).await;
        let trace = self.current.get();
        let loading = trace.loading + self.clock.now().saturating_sub(began);
        self.current.set(Trace { loading, ..trace });
        // What is wrong was said by the loader; the member may only be stopping.
        loaded.map_err(|error| if matches!(error, engine::Error::Stopped) { Error::Stopped } else { Error::Corrupt })
    }
}

/// Requests of one core that may wait for the commit core.
const SLOTS_MAX: usize = 1 << 20;
