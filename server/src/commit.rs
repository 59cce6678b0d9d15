//! Runs on: commit core.
//!
//! The raft core and the apply core in one loop's turn: proposals in, one durable order, state, answers and events out.
//!
//! A turn: take what waits in the mailbox, hand finished writes to the log, let raft move, apply what is committed in log
//! order, publish one view for all of it, and only then hand out answers and events. So a reply never leaves before its
//! entry is durable and visible.
//!
//! Invariants:
//! - `queue` holds committed entries in log order; its front is the next to apply; `applied_index` never decreases.
//! - `waiters` has an entry for each proposal whose client still may wait; it is bounded by the reply slots of all cores.
//! - At most one checkpoint and one lot of faults are under way.
//! - A full disk is not the end: proposals that do not fit are refused before they reach the log (`refusal_for_space`), what
//!   is committed is applied, and a checkpoint that waits for space goes on by itself.
//!
//! A plain state machine: time comes in with each call, the disk is the only thing it drives. It does not know threads,
//! sockets or the runtime; `cores` moves its inputs and outputs.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus::{Committed, ConfChange, Driver, EntryId as Place, EntryKind};
use engine::{
    Checkpoint, CheckpointDone, Fault, Mvcc, Store,
    disk::{Completion, Disk, Owner},
};
use prost::Message;
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind, Request, RequestHeader},
    membershippb,
};

use crate::{
    apply::{self, Applier, Pinned, prefetch, table},
    compactor::Compactor,
    core::{Answer, ReplyTo, Shared},
    cores::{Clock, slots::SlotId},
    defragment::Defragment,
    error::Error,
    floor,
    insight::{
        slow::{self, Throttle},
        trace::Stamps,
    },
    quota::{self, Keeper, Purpose},
    waiters::Waiters,
    watch::batch::{Batch, Event},
};

mod checkpoint;
mod space;
#[cfg(test)]
mod tests;

/// Messages to the commit core.
pub enum ToCommit {
    /// Propose an entry and answer with its result.
    Propose {
        /// Who waits; `None` for an entry of the server's own.
        reply: Option<ReplyTo>,
        /// Its request id.
        id: u64,
        /// The marshalled `InternalRaftRequest`.
        entry: Bytes,
        /// What it is for.
        purpose: Purpose,
    },
    /// Renew a lease.
    Renew {
        /// Who waits.
        reply: ReplyTo,
        /// Lease id.
        lease: i64,
    },
    /// How long a lease lasts.
    TimeToLive {
        /// Who waits.
        reply: ReplyTo,
        /// Lease id.
        lease: i64,
    },
    /// All leases.
    Leases {
        /// Who waits.
        reply: ReplyTo,
    },
    /// Answer once the sweep has passed `revision`.
    AwaitSweep {
        /// Who waits.
        reply: ReplyTo,
        /// Compacted revision.
        revision: i64,
    },
    /// The checkpoint under way waits for space on its disk.
    CheckpointWaits,
    /// Give back what space there is to give; the number of the run that does it is the answer.
    Defragment {
        /// Who waits.
        reply: ReplyTo,
    },
    /// Answer once that run has ended.
    AwaitDefragment {
        /// Who waits.
        reply: ReplyTo,
        /// Its number.
        run: u64,
    },
    /// A checkpoint ended.
    Checkpointed(Result<Box<CheckpointDone>, engine::Error>),
    /// A fault of apply was resolved.
    Loaded(Result<(), engine::Error>),
}

/// What a turn hands to the cores.
#[derive(Default)]
pub struct Turn {
    /// Answers, by core.
    pub answers: Vec<Vec<(SlotId, Answer)>>,
    /// Events of this turn's publish.
    pub batch: Option<Arc<Batch>>,
    /// Pages that apply or the sweep needs before it goes on.
    pub faults: Vec<Fault>,
    /// A checkpoint to run.
    pub checkpoint: Option<Checkpoint>,
    /// Whether there is work that need not wait for an input.
    pub more: bool,
}

/// Why the member stops.
#[derive(Debug, thiserror::Error)]
pub enum Fatal {
    /// The log or raft failed.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// The store failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The disk's completions cannot be waited for.
    #[error("waiting for the disk: {0}")]
    Wake(std::io::Error),
    /// An entry that cannot be understood was committed.
    #[error("entry {index} cannot be applied: {source}")]
    Entry {
        /// Its index.
        index: u64,
        /// What is wrong with it.
        source: proto::error::Error,
    },
}

/// Settings of the commit core.
#[derive(Clone, Debug)]
pub struct Options {
    /// **Units** bytes of log after which a checkpoint begins.
    pub checkpoint_wal_bytes: u64,
    /// **Units** bytes of entries applied before one publish.
    pub apply_batch_bytes_max: u64,
    /// **Units** bytes of records that no checkpoint has written; above it proposals are refused.
    pub recent_bytes_max: u64,
    /// Versions a sweep step looks at.
    pub sweep_entries_per_step: usize,
    /// An entry that takes longer to apply is told of.
    pub warning_apply: Duration,
    /// Times each entry; nothing but what is counted and logged depends on it.
    pub clock: Clock,
    /// Places of tree pages a step of reclaim looks at.
    pub reclaim_pages_per_step: usize,
    /// A new leader gives every lease this much more.
    pub election_timeout: Duration,
    /// Own name, published to the members table.
    pub name: String,
    /// Own client URLs, likewise.
    pub client_urls: Vec<String>,
}

/// See the head of this file.
pub struct Commit {
    shared: Arc<Shared>,
    options: Options,
    driver: Driver,
    store: Store,
    applier: Applier,
    compactor: Compactor,
    queue: VecDeque<Committed>,
    front: Option<(RequestHeader, Request)>,
    pinned: Pinned,
    waiters: HashMap<u64, ReplyTo>,
    /// When each proposal came, in order; what has been answered meanwhile is only here.
    proposed: VecDeque<(Duration, u64)>,
    answers: Vec<Vec<(SlotId, Answer)>>,
    events: Vec<Event>,
    /// First main revision that no batch has covered.
    next_main: i64,
    completions: Vec<Completion>,
    applied: Place,
    is_faulted: bool,
    /// Log behind the last checkpoint's begin: kept for the older superblock copy, and no reason for the next one.
    kept_log_bytes: u64,
    is_sweeping: bool,
    /// The sweep has done what the floors let it do; it goes on when they rise.
    is_sweep_held: bool,
    is_leading: bool,
    published_attributes: bool,
    sweep_waiters: Waiters<i64>,
    /// First request id of this run; the member's ids have its high bits.
    first_id: u64,
    /// Last index of the log at the start: what is applied again is not counted again.
    replayed_to: u64,
    /// When `front` came to the front.
    front_since: Duration,
    /// When what is in `queue` was handed to apply.
    committed_at: Duration,
    /// When the entry applied last had been applied.
    applied_at: Duration,
    slow_applies: Throttle,
    /// When the compaction that is being swept was applied; `None` for what was left by an earlier run.
    compacted_at: Option<Duration>,
    checkpoint_began: Duration,
    /// This member's NOSPACE alarm.
    keeper: Keeper,
    /// Of files, as summed up last. **Units** bytes.
    dead_bytes: u64,
    /// The checkpoint under way waits for space.
    is_checkpoint_waiting: bool,
    checkpoint_ended: Duration,
    is_reclaiming: bool,
    defragment: Defragment,
}

impl Commit {
    /// A commit core over recovered state.
    pub fn new(
        shared: Arc<Shared>,
        options: Options,
        driver: Driver,
        store: Store,
        applier: Applier,
        compactor: Compactor,
    ) -> Self {
        let view = store.mvcc().view();
        let applied = Place { index: view.applied_index(), term: view.applied_term() };
        let answers = vec![Vec::new(); shared.connections.len()];
        let first_id = shared.request_ids.load(Ordering::Relaxed);
        let replayed_to = driver.status().last_index;
        let keeper = Keeper::new(shared.limits.quota, shared.identity.member_id);
        let mut commit = Self {
            shared,
            options,
            driver,
            store,
            applier,
            compactor,
            queue: VecDeque::new(),
            front: None,
            pinned: Pinned::default(),
            waiters: HashMap::new(),
            proposed: VecDeque::new(),
            answers,
            events: Vec::new(),
            next_main: view.revision() + 1,
            completions: Vec::new(),
            applied,
            is_faulted: false,
            kept_log_bytes: 0,
            is_sweeping: true,
            is_sweep_held: false,
            is_leading: false,
            published_attributes: false,
            sweep_waiters: Waiters::default(),
            first_id,
            replayed_to,
            front_since: Duration::ZERO,
            committed_at: Duration::ZERO,
            applied_at: Duration::ZERO,
            slow_applies: Throttle::default(),
            compacted_at: None,
            checkpoint_began: Duration::ZERO,
            keeper,
            dead_bytes: 0,
            is_checkpoint_waiting: false,
            checkpoint_ended: Duration::ZERO,
            is_reclaiming: false,
            defragment: Defragment::default(),
        };
        commit.publish_cluster();
        commit.publish_status();
        commit.publish_sizes();
        commit
    }

    /// Takes one message.
    ///
    /// **Errors** the member must stop.
    pub fn receive(&mut self, message: ToCommit, now: Duration) -> Result<(), Fatal> {
        match message {
            ToCommit::Propose { reply, id, entry, purpose } => self.propose(reply, id, entry, purpose, now),
            ToCommit::Renew { reply, lease } => {
                let ttl = self.renew(lease, now);
                self.answer(reply, Answer::Renewed(ttl));
            }
            ToCommit::TimeToLive { reply, lease } => {
                let answer = Answer::TimeToLive(self.applier.lessor.time_to_live(lease, now));
                self.answer(reply, answer);
            }
            ToCommit::Leases { reply } => {
                let leases = self.applier.lessor.list();
                self.answer(reply, Answer::Leases(leases));
            }
            ToCommit::AwaitSweep { reply, revision } => {
                let lifetime = 2 * self.shared.limits.request_timeout;
                self.sweep_waiters.push(reply, revision, now, lifetime);
            }
            ToCommit::CheckpointWaits => self.is_checkpoint_waiting = true,
            ToCommit::Defragment { reply } => {
                let run = self.defragment.ask();
                self.answer(reply, Answer::Defragmenting(run));
            }
            ToCommit::AwaitDefragment { reply, run } => {
                let lifetime = 2 * self.shared.limits.request_timeout;
                self.defragment.wait(reply, run, now, lifetime);
            }
            ToCommit::Checkpointed(done) => self.checkpointed(done, now)?,
            ToCommit::Loaded(loaded) => {
                loaded?;
                self.is_faulted = false;
            }
        }
        Ok(())
    }

    /// Renews a lease; 0 for an unknown one. **Units** seconds.
    pub fn renew(&mut self, lease: i64, now: Duration) -> i64 {
        let ttl = self.applier.lessor.renew(lease, now);
        self.shared.commit_counters.leases_renewed.add(u64::from(ttl.is_some()));
        ttl.unwrap_or(0)
    }

    fn propose(&mut self, reply: Option<ReplyTo>, id: u64, entry: Bytes, purpose: Purpose, now: Duration) {
        if let Some(reply) = reply
            && let Some(error) = self.refusal_for_space(purpose, now)
        {
            return self.answer(reply, Answer::Applied(Err(error), None));
        }
        match self.driver.propose(entry) {
            Ok(()) => {
                if let Some(reply) = reply {
                    let taken = self.waiters.insert(id, reply);
                    assert!(taken.is_none(), "request ids are unique");
                    self.proposed.push_back((now, id));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a proposal was refused");
                if let Some(reply) = reply {
                    self.answer(reply, Answer::Applied(Err(space::refusal(&error, self.is_disk_full())), None));
                }
            }
        }
    }

    /// Proposes a request of the server's own.
    fn propose_own(&mut self, kind: Kind, message: &impl Message) {
        self.propose_as(Purpose::Other, kind, message);
    }

    fn propose_as(&mut self, purpose: Purpose, kind: Kind, message: &impl Message) {
        let id = self.shared.request_ids.fetch_add(1, Ordering::Relaxed);
        let encoded = internal::encode(&quota::header(id, purpose), kind, &message.encode_to_vec());
        self.propose(None, id, encoded.entry, purpose, Duration::ZERO);
    }

    fn answer(&mut self, reply: ReplyTo, answer: Answer) {
        self.answers[reply.core].push((reply.slot, answer));
    }

    /// A heartbeat interval has passed.
    pub fn tick(&mut self, now: Duration) {
        self.driver.tick();
        self.forget_lost(now);
        self.publish_sizes();
        self.store.balance();
        self.is_sweeping |= self.is_sweep_held;
        self.keep_alarm(now);
        if !self.is_leading {
            return;
        }
        let view = self.store.mvcc().view();
        if let Some(revision) = self.compactor.due(now, view.revision(), view.compact_revision()) {
            tracing::info!(revision, "starting auto compaction");
            self.propose_own(Kind::Compaction, &pb::CompactionRequest { revision, physical: false });
        }
        self.publish_attributes();
    }

    /// Leases run where the leader is: they begin anew when this member becomes it, and stand still when it is no more.
    fn follow_leadership(&mut self, now: Duration) {
        let leads = self.driver.status().is_leader;
        if leads == self.is_leading {
            return;
        }
        self.is_leading = leads;
        if leads {
            self.applier.lessor.promote(now, self.options.election_timeout);
        } else {
            self.applier.lessor.demote();
        }
    }

    /// Proposes the end of leases whose time is over.
    fn expire_leases(&mut self, now: Duration) {
        if self.applier.lessor.next_wake().is_none_or(|due| due > now) {
            return;
        }
        let mut expired = Vec::new();
        self.applier.lessor.expired(now, &mut expired);
        for id in expired {
            self.propose_own(Kind::LeaseRevoke, &pb::LeaseRevokeRequest { id });
        }
    }

    /// Lets a new member's name, URLs and version be known, as etcd does, until the table has them.
    fn publish_attributes(&mut self) {
        // What is applied again may still change the table: only behind it is it known what there is to say.
        if self.published_attributes || !self.is_caught_up() {
            return;
        }
        let member_id = self.shared.identity.member_id;
        let Some(own) = self.applier.cluster.members.iter().find(|member| member.id == member_id) else { return };
        self.published_attributes = true;
        if own.name != self.options.name || own.client_urls != self.options.client_urls {
            let attributes = membershippb::Attributes {
                name: self.options.name.clone(),
                client_urls: self.options.client_urls.clone(),
            };
            let request = membershippb::ClusterMemberAttrSetRequest { member_id, member_attributes: Some(attributes) };
            self.propose_own(Kind::ClusterMemberAttrSet, &request);
        }
        if self.applier.cluster.version.as_deref() != Some(crate::CLUSTER_VERSION) {
            let request = membershippb::ClusterVersionSetRequest { ver: crate::CLUSTER_VERSION.to_owned() };
            self.propose_own(Kind::ClusterVersionSet, &request);
        }
    }

    /// Whether the member leads and has applied all that was acknowledged before it started.
    fn is_caught_up(&self) -> bool {
        self.driver.status().read_floor.is_some_and(|floor| self.applied.index >= floor)
    }

    /// Whether the member has applied all that was acknowledged before it started, and has published itself, so that
    /// clients may be served.
    pub fn is_ready(&self) -> bool {
        let member_id = self.shared.identity.member_id;
        let own = self.applier.cluster.members.iter().find(|member| member.id == member_id);
        self.is_caught_up()
            && self.applier.cluster.version.is_some()
            && own.is_some_and(|own| own.name == self.options.name && own.client_urls == self.options.client_urls)
    }

    /// One turn; see the head of this file.
    ///
    /// **Errors** the member must stop.
    pub fn turn(&mut self, disk: &mut dyn Disk, now: Duration) -> Result<Turn, Fatal> {
        self.collect(disk)?;
        self.follow_leadership(now);
        self.expire_leases(now);
        self.driver.step(disk)?;
        disk.kick()?;
        self.take_committed(now);
        let applied_before = self.applied.index;
        let mut faults = if self.is_faulted { Vec::new() } else { self.apply_queue(now)? };
        // Before eviction, which takes what was brought and not searched.
        if !self.is_faulted && faults.is_empty() {
            faults = self.reclaim(now);
        }
        // Not while an entry waits for a page, unless another one was applied: what was brought for it stays until it is applied, or is
        // asked for once more.
        let has_progressed = faults.is_empty() || self.applied.index > applied_before;
        let is_short = !self.is_faulted && has_progressed && self.store.wants_eviction();
        let has_evicted =
            is_short && self.store.evict(EVICT_NODES_PER_TURN << self.store.shortage().min(EVICT_DOUBLINGS_MAX));
        if has_evicted || self.applied.index > self.store.mvcc().view().applied_index() {
            self.publish()?;
            self.driver.step(disk)?;
            disk.kick()?;
            self.take_committed(now);
        }
        if faults.is_empty() && !self.is_apply_held() {
            faults.extend(self.sweep(now)?);
        }
        self.is_faulted |= !faults.is_empty();
        let checkpoint = self.begin_checkpoint(now);
        self.publish_status();
        // Before the answers go: who is refused for space finds in the status why.
        self.publish_disk_full();
        let empty = vec![Vec::new(); self.answers.len()];
        let answers = std::mem::replace(&mut self.answers, empty);
        let batch = self.take_batch();
        let can_change = (self.is_sweeping || !self.queue.is_empty()) && !self.is_apply_held();
        let has_work = can_change || self.is_reclaiming || self.store.wants_eviction();
        let more = !self.is_faulted && has_work;
        Ok(Turn { answers, batch, faults, checkpoint, more })
    }

    fn collect(&mut self, disk: &mut dyn Disk) -> Result<(), Fatal> {
        let mut completions = std::mem::take(&mut self.completions);
        disk.completions(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(Owner::of(completion.token), Owner::Wal, "the commit core's disk serves the log alone");
            self.driver.on_completion(completion, disk)?;
        }
        self.completions = completions;
        Ok(())
    }

    fn take_committed(&mut self, now: Duration) {
        if self.queue.is_empty() {
            self.committed_at = now;
            self.queue.extend(self.driver.take_committed(self.options.apply_batch_bytes_max));
        }
    }

    /// Applies what is committed, in log order, until the queue is empty, a page is missing or a checkpoint has to end first.
    fn apply_queue(&mut self, now: Duration) -> Result<Vec<Fault>, Fatal> {
        if !self.queue.is_empty() {
            self.applied_at = self.options.clock.now();
        }
        while let Some(entry) = self.queue.front()
            && !self.is_apply_held()
        {
            assert!(entry.index > self.applied.index, "each entry is applied once, in order");
            if entry.kind != EntryKind::Normal {
                let change = ConfChange::decode(&entry.data)?;
                if let Err(fault) = Applier::touch_conf_change(self.store.mvcc(), &change) {
                    return Ok(vec![fault]);
                }
                self.apply_conf_change(&change)?;
            } else if !entry.data.is_empty() {
                if self.front.is_none() {
                    let index = entry.index;
                    let decoded = internal::decode(entry.data.clone());
                    let front = decoded.map_err(|source| Fatal::Entry { index, source })?;
                    self.pinned = Pinned::new(self.waiters.contains_key(&front.0.id));
                    self.front = Some(front);
                    self.front_since = self.applied_at;
                }
                let (header, request) = self.front.as_ref().expect("decoded above");
                if let Err(fault) = self.applier.touch(self.store.mvcc(), request, &mut self.pinned) {
                    return Ok(prefetch::faults(self.store.mvcc().live(), fault, request, self.queue.iter().skip(1)));
                }
                let id = header.id;
                self.execute(id, now);
            }
            let entry = self.queue.pop_front().expect("the front was there");
            self.applied = Place { index: entry.index, term: entry.term };
        }
        Ok(Vec::new())
    }

    fn execute(&mut self, id: u64, now: Duration) {
        let (header, request) = self.front.take().expect("decoded before");
        let pinned = std::mem::take(&mut self.pinned);
        let kind = request.kind();
        let is_compaction = kind == Kind::Compaction;
        let is_cluster = matches!(kind, Kind::ClusterMemberAttrSet | Kind::ClusterVersionSet | Kind::Alarm);
        let is_new = self.queue.front().is_some_and(|entry| entry.index > self.replayed_to);
        let recent = self.store.mvcc().recent_bytes();
        self.keeper.observe(&request, recent, &self.applier.cluster.alarms, is_new);
        let mvcc = self.store.mvcc_mut();
        let events_before = self.events.len();
        let mut result = self.applier.apply(mvcc, &header, request, &pinned, now, &mut self.events);
        if is_compaction && result.is_ok() {
            self.is_sweeping = true;
            self.compacted_at.get_or_insert(now);
        }
        if is_cluster {
            self.publish_cluster();
        }
        self.note_time(kind, result.as_ref().err());
        let reply = self.waiters.remove(&id);
        let counters = &self.shared.commit_counters;
        if is_new {
            let is_own = reply.is_none() && id >> ID_COUNT_BITS == self.first_id >> ID_COUNT_BITS;
            counters.applied(&result, &self.events[events_before..], is_own);
        }
        let Some(reply) = reply else { return };
        // Entries are applied in the order in which they were proposed: its own time is at the front, unless one was lost.
        let proposed = self.proposed.pop_front_if(|(_, front)| *front == id).map(|(proposed, _)| proposed);
        let (committed, applied) = (self.committed_at, self.applied_at);
        let stamps = proposed.map(|proposed| Stamps { proposed, committed, applied });
        if let Ok(outcome) = &mut result {
            let identity = &self.shared.identity;
            let raft_term = self.driver.status().term;
            apply::complete(outcome, |header| {
                header.cluster_id = identity.cluster_id;
                header.member_id = identity.member_id;
                header.raft_term = raft_term;
            });
        }
        self.answer(reply, Answer::Applied(result, stamps));
    }

    /// Counts how long the entry at the front took, with its wait for pages, and tells of it if that was long. What a start
    /// applies again is not counted.
    fn note_time(&mut self, kind: Kind, error: Option<&Error>) {
        self.applied_at = self.options.clock.now();
        let entry = self.queue.front().expect("it is being applied");
        if entry.index <= self.replayed_to {
            return;
        }
        let took = self.applied_at.saturating_sub(self.front_since);
        let counters = &self.shared.commit_counters;
        counters.applies.observe(kind, error.is_none_or(|error| *error == Error::Compacted), took);
        if took > self.options.warning_apply {
            counters.slow_applies.add(1);
            if let Some(withheld) = self.slow_applies.admit(self.applied_at) {
                slow::tell_apply(took, self.options.warning_apply, &entry.data, error, withheld);
            }
        }
    }

    fn apply_conf_change(&mut self, change: &ConfChange) -> Result<(), Fatal> {
        if self.applier.apply_conf_change(self.store.mvcc_mut(), change) {
            let state = self.driver.apply_conf_change(change)?;
            let mut write = self.store.mvcc_mut().begin();
            let stored = write.meta_put(table::CONF_STATE, &table::encode_conf_state(&state));
            stored.unwrap_or_else(|fault| panic!("{fault:?} was not touched"));
            drop(write.finish());
        }
        self.publish_cluster();
        Ok(())
    }

    fn publish(&mut self) -> Result<(), Fatal> {
        let Place { index, term } = self.applied;
        drop(self.store.mvcc_mut().publish(index, term));
        self.driver.applied(index);
        self.publish_used();
        Ok(())
    }

    fn take_batch(&mut self) -> Option<Arc<Batch>> {
        if self.events.is_empty() {
            return None;
        }
        assert!(self.applied.index == self.store.mvcc().view().applied_index(), "events follow their publish");
        let last_main = self.store.mvcc().view().revision();
        let first_main = std::mem::replace(&mut self.next_main, last_main + 1);
        Some(Arc::new(Batch::new(first_main, last_main, std::mem::take(&mut self.events))))
    }

    fn sweep(&mut self, now: Duration) -> Result<Option<Fault>, Fatal> {
        if self.is_sweeping && !self.is_faulted {
            let floor = floor::lowest_of(&self.shared.floors);
            self.store.mvcc_mut().hold_sweep(Some(floor));
            let progress = match self.store.sweep(self.options.sweep_entries_per_step) {
                Ok(progress) => progress,
                Err(fault) => return Ok(Some(fault)),
            };
            self.shared.commit_counters.versions_dropped.add(progress.dropped);
            self.keeper.swept(progress.dropped);
            if progress.is_done {
                // What was dropped stays in the view of readers until the next one, and an idle store may wait long for it.
                self.publish()?;
                self.swept_to(floor, now);
            }
        }
        self.answer_swept();
        Ok(None)
    }

    /// The sweep has done all that `floor` allows.
    fn swept_to(&mut self, floor: i64, now: Duration) {
        let compacted = self.store.mvcc().live().compact_revision();
        let swept = compacted.min(floor);
        self.is_sweeping = false;
        self.is_sweep_held = swept < compacted;
        self.shared.swept_revision.store(swept, Ordering::Release);
        if self.is_sweep_held {
            return;
        }
        if let Some(began) = self.compacted_at.take() {
            self.shared.commit_counters.swept(began, now);
        }
        tracing::info!(revision = swept, "finished scheduled compaction");
    }

    fn answer_swept(&mut self) {
        let swept = self.shared.swept_revision.load(Ordering::Acquire);
        for reply in self.sweep_waiters.take(&swept) {
            self.answer(reply, Answer::Swept);
        }
    }

    fn publish_cluster(&mut self) {
        self.shared.cluster.store(Arc::new(self.applier.cluster.clone()));
    }

    fn publish_status(&mut self) {
        let status = self.driver.status();
        let raft = &self.shared.raft;
        assert!(status.term >= raft.term.load(Ordering::Relaxed), "the term never decreases");
        raft.term.store(status.term, Ordering::Release);
        let is_new = status.leader_id != 0 && status.leader_id != raft.leader.load(Ordering::Relaxed);
        self.shared.commit_counters.leader_changes.add(u64::from(is_new));
        raft.leader.store(status.leader_id, Ordering::Release);
        raft.commit.store(status.commit, Ordering::Release);
        raft.applied.store(self.applied.index, Ordering::Release);
        raft.pending.store(self.waiters.len(), Ordering::Release);
    }

    fn publish_sizes(&mut self) {
        let sizes = self.store.sizes();
        let mvcc = self.store.mvcc();
        let (nodes, dirty) = (mvcc.node_bytes(), mvcc.dirty_bytes());
        let memory = [mvcc.recent_bytes(), dirty, nodes.saturating_sub(dirty), self.store.block_bytes()];
        self.shared.commit_counters.memory.iter().zip(memory).for_each(|(count, bytes)| count.set(bytes));
        self.keeper.settle(sizes.in_use, self.store.mvcc().recent_bytes());
        self.dead_bytes = sizes.allocated - sizes.in_use;
        self.publish_used();
    }

    /// Tells what the store takes with all that was applied: segments are summed up now and then, what waits for a checkpoint is known at once.
    fn publish_used(&self) {
        let in_use = self.keeper.used(self.store.mvcc().recent_bytes());
        self.shared.sizes.allocated.store(in_use + self.dead_bytes, Ordering::Release);
        self.shared.sizes.in_use.store(in_use, Ordering::Release);
    }

    /// Forgets proposals that were never applied and whose clients were timed out long ago.
    fn forget_lost(&mut self, now: Duration) {
        while let Some((proposed, id)) = self.proposed.front().copied() {
            if now.saturating_sub(proposed) < 2 * self.shared.limits.request_timeout {
                break;
            }
            self.proposed.pop_front();
            self.waiters.remove(&id);
        }
    }

    /// The keys, for what runs on this core.
    pub fn mvcc(&self) -> &Mvcc {
        self.store.mvcc()
    }
}

/// Nodes that one turn looks at for eviction: some 50 us.
const EVICT_NODES_PER_TURN: usize = 256;
/// It looks at twice as many for each quarter that nodes take more than they may: under load all of them are used all the time.
const EVICT_DOUBLINGS_MAX: u64 = 4;

/// A request id without these bits names its member. **Source** etcd v3.7.1 `pkg/idutil/id.go`.
const ID_COUNT_BITS: u32 = 48;
