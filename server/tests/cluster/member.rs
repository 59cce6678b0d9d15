//! One whole member on simulated disks: raft, the log, apply, the store. What is above decoded requests is not here.
//!
//! A member makes turns when something happens to it: a tick, a message, the end of an operation of the log's disk. It
//! makes a few at a time; the world lets it go on later. The log's operations end when the world says so, and so do
//! checkpoints. Reads of the store end at once, as those of a thread that serves nobody.
//!
//! Raft, apply and a connection core meet by messages alone, but for floors (which `loom` looks at) and single values.
//! So, where they have threads of their own, any order is one in which their messages arrive.
//!
//! Linearizable reads go through the desk of a connection core, and from there to raft, to apply and back, as a
//! client's do.

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    pin::Pin,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll, Waker},
    time::Duration,
};

use bytes::Bytes;
use consensus::{Committed, ConfChange, ConfChangeKind, ConfState, Driver, EntryId, Identity, Message, RequestIds};
use engine::{
    Checkpoint, Fault, PageReader, ReadView, Store,
    disk::{
        Disk, FileSystem,
        sim::{Order, Random, SimDisk, SimStorage},
    },
    planted::is_planted,
    store, wal,
};
use proto::{
    etcdserverpb as pb,
    internal::{self, Request},
};
use server::{
    api::{
        desk::{Consistency, Desk, Parts},
        others::Nobody,
        watchers::Watchers,
    },
    apply::{
        arrived::Arrived,
        entry::Applier,
        long::Steps,
        machine::{Apply, Options, Turn},
        message::{Answer, AnswersByCore, Entry, Handed, Report, ToApply},
        proposal::Proposal,
        start::{self, Start},
    },
    clock::Clock,
    config::{AutoCompaction, GATES},
    error::Error,
    floor::Floors,
    insight::{Board, slow::Settings, trace::Stamps},
    kv::range::Job,
    lease::{Lessor, Params},
    loader::Loader,
    mailbox::Post,
    metrics::{counters::CommitCounters, registry::Registry},
    peer::{
        exchange,
        links::{self, Links},
        port::hello,
        state::{
            receive::Receiver,
            send::{self, Position, Sender},
        },
    },
    quota::{self, Purpose},
    raft::{machine::Raft, message::ToRaft},
    shared::{Cluster, Limits, Quota, Shared},
    slots::{ReplyTo, SlotId, Slots},
    watch::{
        encode::Responder,
        hub::{Bounds, Hub},
    },
};

use super::{clients::Answer as Answered, story, watching};

pub(crate) const HEARTBEAT: Duration = Duration::from_millis(100);
const BATCH_BYTES_MAX: u64 = 1 << 20;
/// Bounds and times of connections.
const LINKS: links::Options = links::Options {
    waiting_bytes_max: 1 << 20,
    silence_max: Duration::from_secs(5),
    stall_max: Duration::from_secs(5),
};
/// The cores that answers go to: what this file asks for by itself, and the desk.
const OWN: usize = 0;
const DESK: usize = 1;
pub(crate) const DATA: &str = "data";
pub(crate) const LOG: &str = "wal";

/// The disks of one machine: its log's, and its store's.
#[derive(Clone)]
pub(crate) struct Disks {
    pub(crate) log: SimStorage,
    pub(crate) data: SimStorage,
}

impl Disks {
    pub(crate) fn new(seed: u64) -> Self {
        Self { log: SimStorage::new(seed), data: SimStorage::new(!seed) }
    }

    /// What power loss may leave of them.
    pub(crate) fn crash(&self) -> Self {
        Self { log: self.log.crash(), data: self.data.crash() }
    }

    /// Whether one of them has come to the step at which it was to stop.
    pub(crate) fn are_stopped(&self) -> bool {
        self.log.is_stopped() || self.data.is_stopped()
    }

    /// What the end of the process may leave of them.
    pub(crate) fn kill(&self) -> Self {
        Self { log: self.log.kill(), data: self.data.kill() }
    }
}

/// A read that waits at the desk for its view.
type Read = Pin<Box<dyn Future<Output = Result<Arc<ReadView>, Error>>>>;

/// A whole member.
pub(crate) struct Member {
    pub(crate) id: u64,
    pub(crate) disks: Disks,
    pub(crate) shared: Arc<Shared>,
    pub(crate) clock: Clock,
    raft: Raft,
    apply: Apply,
    between: Between,
    log_disk: SimDisk,
    /// That of checkpoints.
    store_disk: SimDisk,
    slots: Slots<()>,
    renewing: Vec<(SlotId, i64)>,
    desk: Rc<Desk>,
    to_raft: Rc<Post<ToRaft>>,
    reads: Vec<(u64, Read)>,
    transferring: Vec<(SlotId, u64)>,
    checkpoint: Option<Checkpoint>,
    pub(crate) hub: Hub,
    floors: Rc<Floors>,
    /// States that are on offer or on their way, each with its number.
    states: BTreeMap<StateFor, (u64, Sender)>,
    /// States that were offered.
    offers: u64,
    /// Its connections with the others.
    pub(crate) links: Links,
    /// The members that they know.
    known: Arc<Cluster>,
    /// What it hears is told.
    pub(crate) is_told: bool,
}

/// Whom a state is for, and whether to make up for damage.
pub(crate) type StateFor = (u64, bool);

/// What raft and apply have sent to each other. In half of the members they have threads of their own: their messages
/// wait, and each goes on without the other.
struct Between {
    are_apart: bool,
    random: Random,
    handed: VecDeque<Handed>,
    reports: VecDeque<Report>,
}

impl Between {
    /// Whether the next message arrives now.
    fn arrives(&mut self) -> bool {
        !self.are_apart || self.random.chance(1, 3)
    }
}

/// What differs from member to member, and from run to run, and must make no difference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) members: u64,
    /// From which number of keys on an entry is made in steps, and how large they are.
    pub(crate) steps: Steps,
    /// What it takes for a heartbeat interval.
    pub(crate) tick: Duration,
}

/// What a member's turns have brought.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) messages: Vec<Message>,
    /// What others have said, if that is told.
    pub(crate) heard: Vec<String>,
    pub(crate) proposals: Vec<Proposal>,
    /// Reads that were asked for, each with the view that answers it; `None` for those that were refused.
    pub(crate) reads: Vec<(u64, Option<Arc<ReadView>>)>,
    /// Leases that were renewed, with the seconds that they have; 0 for those that are gone.
    pub(crate) renewals: Vec<(i64, i64)>,
    /// Answers to transfers: who was to lead, and what became of it.
    pub(crate) transfers: Vec<(u64, Result<(), server::error::Error>)>,
    /// Committed entries on their way to apply.
    pub(crate) committed: Vec<Committed>,
    /// A checkpoint has begun.
    pub(crate) has_checkpoint: bool,
    /// There is more to do at once.
    pub(crate) more: bool,
}

pub(crate) fn member_of(id: u64) -> consensus::Member {
    let (name, peer_urls) = (format!("m{id}"), vec![format!("http://10.0.0.{id}:2380")]);
    consensus::Member { id, peer_urls, name, ..consensus::Member::default() }
}

fn limits() -> Limits {
    Limits {
        request_bytes_max: 1 << 20,
        receive_bytes_max: 1 << 20,
        txn_ops_max: 128,
        log_wait_max: Duration::from_secs(2),
        gathered_bytes_max: 1 << 20,
        scan_entries_per_turn: 128,
        held_revisions_max: 1,
        held_revision_age_max: Duration::ZERO,
        request_timeout: Duration::from_secs(7),
        election_timeout: Duration::from_secs(1),
        learners_max: 1,
        is_reconfig_strict: true,
        connections_max: 8,
        quota: Quota::new(1 << 31, 90),
        withdraws_for_defragment: true,
        dial_from: None,
        snapshot_write_back_bytes: 0,
        token_time_to_live: Duration::from_secs(300),
        takes_hashes: false,
    }
}

/// The desk of a connection core, and what it posts to raft.
fn desk(shared: &Arc<Shared>, clock: &Clock, disks: &Disks) -> (Rc<Desk>, Rc<Post<ToRaft>>) {
    let registry = Arc::new(Registry::new(GATES.to_vec(), 2));
    let settings = Settings { unary: Duration::MAX, apply: Duration::MAX, is_extensive: false, is_debug: false };
    let bounds = Bounds { stream_buffer_bytes_max: 1 << 20, fragment_bytes_max: 1 << 20, watchers_max: 8 };
    let counters = Arc::clone(&registry.connections[DESK]);
    let revision = shared.view.load().revision();
    let silence = Duration::from_secs(600);
    let watchers = Watchers::new(bounds, Responder::default(), revision, counters, silence, 1 << 20);
    let reader = PageReader::new(Path::new(DATA), 4, 4, Arc::clone(shared.view.unreadable()));
    let (to_raft, to_apply) = (Post::new(4096), Post::new(4096));
    let parts = Parts {
        id: DESK,
        shared: Arc::clone(shared),
        registry,
        board: Arc::new(Board::new(settings, 2)),
        clock: clock.clone(),
        watchers,
        to_raft: Rc::clone(&to_raft),
        to_apply,
        loader: Loader::new(Box::new(disks.data.disk()), reader),
        others: Box::new(Nobody),
    };
    (Desk::new(parts), to_raft)
}

fn driver(disks: &Disks, store: &Store, start: &Start, members: u64, seed: u64) -> Result<(Driver, SimDisk), String> {
    let (index, term) = store.applied();
    let is_first = start.identity.member_id <= members;
    let raft = consensus::Start {
        applied: EntryId { index, term },
        is_installed: store.is_installed(),
        trimmable: store.trimmable().0,
        conf_state: start.tables.conf_state.clone(),
        // One that was added later knows nobody.
        bootstrap: if is_first {
            (1..=members).map(|id| ConfChange::bootstrap(&member_of(id))).collect()
        } else {
            Vec::new()
        },
        is_alone: false,
        has_run: false,
    };
    let wal = wal::Options { segment_bytes: 64 << 10, fresh_id: seed, ..wal::Options::default() };
    // Half of the members keep so little log that who was away for some time needs a state.
    let kept = if seed.is_multiple_of(2) { 1 << 40 } else { 64 << 10 };
    let entries = if seed.is_multiple_of(2) { 5000 } else { 100 };
    let knobs = tuning::Consensus {
        catchup_log_bytes: kept,
        snapshot_catchup_entries: entries,
        ..tuning::Consensus::default()
    };
    let options = consensus::Options::from_knobs(&knobs, true, seed, wal);
    disks.log.set_order(Order::Seeded);
    let mut disk = disks.log.disk();
    let driver = Driver::open(&mut disk, Path::new(LOG), start.identity, options, raft);
    disks.log.set_order(Order::Manual);
    Ok((driver.map_err(|error| error.to_string())?, disk))
}

impl Member {
    /// Starts the member `id` of a cluster that began with `members`, on what its disks hold.
    ///
    /// **Errors** the reason why it does not start.
    pub(crate) fn start(id: u64, setting: Setting, disks: Disks, clock: Clock) -> Result<Self, String> {
        let Setting { members, steps, tick } = setting;
        let seed = clock.seed();
        let mut disk = disks.data.disk();
        let store_options = store::Options { cache_bytes: 1 << 20, fresh_id: seed, ..store::Options::default() };
        let mut store = Store::open(&mut disk, Path::new(DATA), store_options).map_err(|error| error.to_string())?;
        let ids: Vec<u64> = (1..=members).collect();
        let fresh = Identity { cluster_id: consensus::cluster_id(&ids), member_id: id };
        let start = start::read(&mut store, &mut disk, fresh).map_err(|error| error.to_string())?;
        let (driver, log_disk) = driver(&disks, &store, &start, members, seed)?;
        // As etcd does it, by the clock, ids are given twice where that begins in 1970 each time.
        let is_clock = is_planted("a waiter found by its id alone");
        let drawn = if is_clock { 0 } else { clock.seed() };
        let first_id = RequestIds::new(id, drawn).next_id();
        let files = FileSystem::of(Path::new(".")).map_err(|error| error.to_string())?;
        let shared = Arc::new(Shared::new(start.identity, limits(), store.mvcc().published(), 2, first_id, files));
        let (retry_after, checkpoint_every) = (Duration::from_secs(7), Some(Duration::from_secs(1)));
        let lessor = Lessor::new(Params { ttl_min_s: 2, retry_after, checkpoint_every });
        let mut applier = Applier::new(lessor, start.tables, start.unread);
        applier.steps = steps;
        let counters = Arc::<CommitCounters>::default();
        let options = Options {
            checkpoint_wal_bytes: 64 << 10,
            recent_bytes_max: 1 << 30,
            sweep_entries_per_step: 100,
            reclaim_pages_per_step: 100,
            warning_apply: Duration::from_secs(100),
            auto_compaction: AutoCompaction::Off,
            election_timeout: Duration::from_secs(1),
            name: format!("m{id}"),
            client_urls: vec![format!("http://10.0.0.{id}:2379")],
            replayed_to: driver.status().last_index,
            clock: clock.clone(),
        };
        let apply = Apply::new(Arc::clone(&shared), Arc::clone(&counters), options, store, applier);
        let floors = Floors::new(Arc::clone(&shared.floors[0]), 8, Duration::from_secs(600));
        let (desk, to_raft) = desk(&shared, &clock, &disks);
        let raft = Raft::new(Arc::clone(&shared), counters, driver, BATCH_BYTES_MAX, limits().log_wait_max, tick);
        let store_disk = disks.data.disk();
        let disks_steps = disks.log.steps() << 32 | disks.data.steps();
        let hub = watching::hub(shared.view.revision());
        Ok(Self {
            id,
            hub,
            links: Links::new(hello(&shared), LINKS),
            disks,
            shared,
            clock,
            raft,
            apply,
            between: Between {
                are_apart: seed & 4 == 0,
                random: Random::new(seed ^ disks_steps),
                handed: VecDeque::new(),
                reports: VecDeque::new(),
            },
            log_disk,
            store_disk,
            slots: Slots::new(1 << 16),
            renewing: Vec::new(),
            desk,
            to_raft,
            reads: Vec::new(),
            transferring: Vec::new(),
            checkpoint: None,
            floors,
            states: BTreeMap::new(),
            offers: 0,
            known: Arc::default(),
            is_told: false,
        })
    }

    pub(crate) fn tick(&mut self) {
        let now = self.clock.now();
        self.raft.tick(now);
        self.apply.tick(now);
        // A connection core asks the others first, all of which are of this release.
        if self.is_leader() && self.shared.cluster.load().version.is_none() {
            let version = server::CLUSTER_VERSION.to_owned();
            self.apply.receive(ToApply::ClusterVersion(version), now).expect("apply runs");
        }
        self.links.pass(now);
        self.hub.set_raft_term(self.term());
        self.hub.on_tick(now);
        self.desk.expire();
    }

    /// When it must go on at the latest, by its own clock.
    pub(crate) fn due(&self) -> Duration {
        self.raft.due()
    }

    /// Proposes `request`. Returns its id.
    pub(crate) fn propose(&mut self, request: Request) -> u64 {
        let id = self.shared.next_request_id();
        let purpose = Purpose::of_cost(quota::cost(&request));
        let entry = internal::encode(&quota::header(id, purpose), request.kind(), &raw(&request)).entry;
        let proposal = self.proposal(id, purpose, entry, Some(request));
        self.raft.receive(ToRaft::Propose(proposal), self.clock.now());
        id
    }

    fn proposal(&self, id: u64, purpose: Purpose, entry: Bytes, request: Option<Request>) -> Box<Proposal> {
        let slot: SlotId = self.slots.open(Duration::ZERO).expect("there is room").id();
        let (stamps, result) = (Stamps::default(), Err(server::error::Error::Timeout));
        let reply = ReplyTo { core: OWN, slot };
        Box::new(Proposal { reply, id, purpose, entry, request, stamps, share: None, result })
    }

    /// Proposes a change of the members. Returns it as the log will have it.
    pub(crate) fn change(&mut self, kind: ConfChangeKind, named: &consensus::Member) -> Bytes {
        let id = self.shared.next_request_id();
        let context = if kind == ConfChangeKind::RemoveNode { Vec::new() } else { named.to_json() };
        let change = ConfChange { id, kind, member_id: named.id, context: context.into() };
        let proposal = self.proposal(id, Purpose::Other, change.encode(), None);
        let entry = proposal.entry.clone();
        self.raft.receive(ToRaft::ChangeMembers(proposal), self.clock.now());
        entry
    }

    /// Asks this member to hand leadership to `target`.
    pub(crate) fn transfer(&mut self, target: u64) {
        let slot = self.slots.open(Duration::ZERO).expect("there is room").id();
        self.transferring.push((slot, target));
        let reply = ReplyTo { core: OWN, slot };
        self.raft.receive(ToRaft::TransferLeader { reply, target }, self.clock.now());
    }

    /// What raft knows as applied, and the configuration that it has there.
    pub(crate) fn configuration(&self) -> (u64, &ConfState) {
        self.raft.configuration()
    }

    /// Whether this member knows `id` as a former member.
    pub(crate) fn has_removed(&self, id: u64) -> bool {
        if id == self.id {
            return self.shared.is_removed.load(Ordering::Acquire);
        }
        self.shared.cluster.load().removed.contains(&id)
    }

    /// The leader that this member knows; 0 for none.
    pub(crate) fn leader(&self) -> u64 {
        self.shared.raft.leader.load(Ordering::Acquire)
    }

    /// Asks for a linearizable read.
    pub(crate) fn ask_read(&mut self, context: u64) {
        let desk = Rc::clone(&self.desk);
        let read = async move { desk.view(Consistency::Linearizable).await };
        self.reads.push((context, Box::pin(read)));
    }

    /// Lets the reads go on that can.
    fn poll_reads(&mut self, outcome: &mut Outcome) {
        let mut cx = Context::from_waker(Waker::noop());
        self.reads.retain_mut(|(context, read)| match read.as_mut().poll(&mut cx) {
            Poll::Pending => true,
            Poll::Ready(view) => {
                outcome.reads.push((*context, view.ok()));
                false
            }
        });
    }

    /// Whether clients may be served.
    pub(crate) fn is_ready(&self) -> bool {
        self.apply.is_ready()
    }

    /// Asks for the renewal of a lease.
    pub(crate) fn renew(&mut self, lease: i64) {
        let slot = self.slots.open(Duration::ZERO).expect("there is room").id();
        self.renewing.push((slot, lease));
        let reply = ReplyTo { core: OWN, slot };
        self.apply.receive(ToApply::Renew { reply, lease }, self.clock.now()).expect("apply runs");
    }

    /// Asks for the space that can be given back.
    pub(crate) fn defragment(&mut self) {
        let reply = ReplyTo { core: OWN, slot: self.slots.open(Duration::ZERO).expect("there is room").id() };
        self.apply.receive(ToApply::Defragment { reply }, self.clock.now()).expect("apply runs");
    }

    /// Takes answers, listed by core, to where they belong.
    fn answer(&mut self, answers: AnswersByCore, outcome: &mut Outcome) {
        let mut answers = answers.into_iter();
        let own = answers.next().unwrap_or_default();
        self.desk.deliver(answers.next().unwrap_or_default());
        own.into_iter().for_each(|answer| self.answer_own(answer, outcome));
    }

    fn answer_own(&mut self, (slot, answer): (SlotId, Answer), outcome: &mut Outcome) {
        match answer {
            Answer::Applied(proposal) => outcome.proposals.push(*proposal),
            Answer::Transferred(result) => {
                let at = self.transferring.iter().position(|(known, _)| *known == slot).expect("it was asked for");
                outcome.transfers.push((self.transferring.swap_remove(at).1, result));
            }
            Answer::Renewed(ttl) => {
                let at = self.renewing.iter().position(|(known, _)| *known == slot).expect("it was asked for");
                outcome.renewals.push((self.renewing.swap_remove(at).1, ttl));
            }
            _ => {}
        }
    }

    pub(crate) fn applied(&self) -> u64 {
        self.shared.view.with(engine::ReadView::applied_index)
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.shared.raft.leader.load(Ordering::Acquire) == self.id
    }

    pub(crate) fn term(&self) -> u64 {
        self.shared.raft.term.load(Ordering::Acquire)
    }

    /// Whether it has committed entries that it has not applied.
    pub(crate) fn is_applying(&self) -> bool {
        self.shared.raft.commit.load(Ordering::Acquire) > self.applied()
    }

    /// Whether its log was cut at its end, and it has not caught up.
    pub(crate) fn is_cut(&self) -> bool {
        self.raft.is_cut()
    }

    /// Whether it applies nothing, because it cannot read its disk.
    pub(crate) fn stands_still(&self) -> bool {
        self.shared.standstill.load().is_some()
    }

    /// Whether it knows of damage.
    pub(crate) fn is_damaged(&self) -> bool {
        self.stands_still() || self.shared.view.unreadable().has_lost()
    }

    /// Its role, and how far it is.
    pub(crate) fn shown(&self) -> String {
        let role = if self.is_leader() { "leads" } else { "follows" };
        let commit = self.shared.raft.commit.load(Ordering::Acquire);
        let revision = self.shared.view.load().revision();
        format!("{role} term {}, commit {commit}, applied {}, revision {revision}", self.term(), self.applied())
    }

    /// What makes it ready or not.
    pub(crate) fn shown_whole(&self) -> String {
        let cluster = self.shared.cluster.load();
        let own = cluster.members.iter().find(|member| member.id == self.id);
        format!("m{} ({}), version {:?}, {own:?}", self.id, self.shown(), cluster.version)
    }

    /// Makes some turns, as long as there is something to do at once.
    ///
    /// **Errors** why the member stops.
    pub(crate) fn run(&mut self) -> Result<Outcome, String> {
        const TURNS_MAX: usize = 8;
        let mut outcome = Outcome::default();
        for _ in 0..TURNS_MAX {
            outcome.more = self.turn(&mut outcome)?;
            outcome.more |= self.catch_up();
            if !outcome.more {
                break;
            }
        }
        Ok(outcome)
    }

    /// Takes what has come from the others.
    fn exchange(&mut self, now: Duration, outcome: &mut Outcome) -> Result<(), String> {
        exchange::look_at_members(&mut self.links, &self.shared, &mut self.known, now);
        let is_told = self.is_told;
        let note = |message: &Message| {
            if is_told {
                outcome.heard.extend(story::shown(message));
            }
        };
        let delivered = exchange::deliver(&mut self.links, (&mut self.raft, &self.shared), now, note);
        let delivered = delivered.map_err(|error| error.to_string())?;
        assert!(delivered.refused.is_empty(), "honest members are refused: {:?}", delivered.refused);
        assert!(delivered.states.is_empty(), "the world brings states");
        Ok(())
    }

    fn turn(&mut self, outcome: &mut Outcome) -> Result<bool, String> {
        let fatal = |error: server::apply::fatal::Fatal| error.to_string();
        let now = self.clock.now();
        self.raft.pass(now);
        self.exchange(now, outcome)?;
        self.poll_reads(outcome);
        let mut posted = Vec::new();
        self.to_raft.take(&mut posted);
        posted.into_iter().for_each(|message| self.raft.receive(message, now));
        self.raft.turn(&mut self.log_disk, now).map_err(fatal)?;
        let mut more = false;
        if let Some(handed) = self.raft.take_handed(now) {
            more |= !handed.entries.is_empty();
            note(&handed, outcome);
            self.between.handed.push_back(handed);
        }
        while !self.between.handed.is_empty() && self.between.arrives() {
            let handed = self.between.handed.pop_front().expect("just seen");
            self.apply.hand(handed, now);
        }
        if self.between.arrives() {
            let turn = self.apply.turn(now).map_err(fatal)?;
            self.between.reports.extend(self.apply.take_report());
            more |= turn.more | self.take(turn, outcome)?;
        } else {
            more = true;
        }
        while !self.between.reports.is_empty() && self.between.arrives() {
            let report = self.between.reports.pop_front().expect("just seen");
            self.raft.report(report, now).map_err(fatal)?;
            self.raft.settle(&mut self.log_disk, now).map_err(fatal)?;
            more = true;
        }
        more |= self.raft.has_more() || !self.between.handed.is_empty() || !self.between.reports.is_empty();
        let answers = self.raft.take_answers();
        self.answer(answers, outcome);
        self.poll_reads(outcome);
        self.offer_states();
        outcome.messages.extend(self.raft.take_messages());
        Ok(more)
    }

    /// Takes what a turn of apply has brought. Returns whether there is more to do.
    fn take(&mut self, turn: Turn, outcome: &mut Outcome) -> Result<bool, String> {
        let Turn { answers, batch, faults, checkpoint, .. } = turn;
        self.answer(answers, outcome);
        if let Some(batch) = batch {
            self.hub.on_batch(&batch, &*self.shared.view.load());
        }
        if let Some(checkpoint) = checkpoint {
            assert!(self.checkpoint.replace(checkpoint).is_none(), "one at a time");
            outcome.has_checkpoint = true;
        }
        let is_faulted = !faults.is_empty();
        if is_faulted {
            self.resolve(faults)?;
        }
        Ok(is_faulted)
    }

    /// Writes the checkpoint that has begun. Returns false if it waits for space: then it goes on with the next call.
    ///
    /// **Errors** why the member stops.
    pub(crate) fn checkpoint(&mut self) -> Result<bool, String> {
        let mut checkpoint = self.checkpoint.take().expect("one has begun");
        let done = checkpoint.run(&mut self.store_disk);
        let is_full = matches!(done, Err(engine::Error::NoSpace { .. }));
        let message = if is_full {
            self.checkpoint = Some(checkpoint);
            ToApply::CheckpointWaits
        } else {
            ToApply::Checkpointed(done.map(Box::new))
        };
        self.apply.receive(message, self.clock.now()).map_err(|error| error.to_string())?;
        Ok(!is_full)
    }

    /// Reads pages, as far as they can be read.
    fn resolve(&mut self, faults: Vec<Fault>) -> Result<(), String> {
        self.read_pages(faults)?;
        self.apply.receive(ToApply::Loaded(Ok(())), self.clock.now()).map_err(|error| error.to_string())
    }

    /// Reads a page for somebody who needs it. Returns whether it could be read; if not, that is noted.
    pub(crate) fn load(&self, fault: Fault) -> bool {
        self.read_pages(vec![fault]) == Ok(true)
    }

    /// Reads pages. Returns whether all of them could be read.
    fn read_pages(&self, faults: Vec<Fault>) -> Result<bool, String> {
        let mut disk = self.disks.data.disk();
        let mut reader = PageReader::new(Path::new(DATA), 4, 4, Arc::clone(self.shared.view.unreadable()));
        faults.into_iter().for_each(|fault| reader.read(fault, 0));
        let (mut completions, mut are_read) = (Vec::new(), true);
        while !reader.is_idle() {
            let failed = reader.step(&mut disk);
            are_read &= failed.iter().all(|loaded| loaded.result.is_ok());
            disk.wait().map_err(|error| error.to_string())?;
            disk.completions(&mut completions);
            for completion in completions.drain(..) {
                are_read &= reader.on_completion(completion).iter().all(|loaded| loaded.result.is_ok());
            }
        }
        Ok(are_read)
    }

    /// Offers states to those that need one.
    fn offer_states(&mut self) {
        for to in self.raft.take_wanted_states() {
            if let Some((sender, conf_state)) = self.sender() {
                self.raft.offer_state(to, sender.at(), conf_state);
                self.offer((to, false), sender);
            } else {
                self.raft.hand_over();
            }
        }
    }

    /// Holds its state ready for `to`, which is damaged. Returns whether it can.
    pub(crate) fn offer_repair(&mut self, to: u64) -> bool {
        let Some((sender, _)) = self.sender() else { return false };
        self.offer((to, true), sender);
        true
    }

    fn offer(&mut self, to: StateFor, sender: Sender) {
        self.offers += 1;
        self.states.insert(to, (self.offers, sender));
    }

    /// The number of the state that is on offer.
    pub(crate) fn offered(&self, to: StateFor) -> u64 {
        self.states.get(&to).map_or(0, |(number, _)| *number)
    }

    /// What sends the state that is published now.
    fn sender(&self) -> Option<(Sender, ConfState)> {
        let view = self.shared.view.load();
        if view.is_unfinished() {
            return None;
        }
        let mut disk = self.disks.data.disk();
        let conf_state = engine::load_for(&mut disk, Path::new(DATA), || send::conf_state(&view)).ok()??;
        let newest = || self.shared.view.load();
        let floor = self.floors.hold(view.compact_revision(), self.clock.now(), newest).ok()?;
        Some((Sender::new(view, floor, self.shared.identity.cluster_id), conf_state))
    }

    /// The next frame of the state of this number, which is on its way.
    ///
    /// **Errors** it cannot be read any more; another one has its place.
    pub(crate) fn next_frame(&mut self, to: StateFor, number: u64) -> Result<Option<Bytes>, String> {
        let newest = self.shared.view.load();
        let mut disk = self.disks.data.disk();
        let offered = self.states.get_mut(&to).filter(|(offered, _)| *offered == number);
        let (_, sender) = offered.ok_or("there is no such state")?;
        loop {
            match sender.step(&newest) {
                Ok(send::Step::Frame(frame)) => return Ok(Some(frame)),
                Ok(send::Step::Nothing) => {}
                Ok(send::Step::Done) => return Ok(None),
                Err(send::Stop::Fault(fault)) => {
                    if let Err(error) = engine::load(&mut disk, Path::new(DATA), fault) {
                        self.raft.hand_over();
                        return Err(error.to_string());
                    }
                }
                Err(send::Stop::Lost(error)) => return Err(error.to_string()),
            }
        }
    }

    /// The state of this number goes on behind what has arrived.
    pub(crate) fn resume_state(&mut self, to: StateFor, number: u64, position: Option<Position>) {
        if let Some((_, sender)) = self.states.get_mut(&to).filter(|(offered, _)| *offered == number) {
            sender.resume(position);
        }
    }

    /// The transfer of the state of this number has ended.
    pub(crate) fn state_sent(&mut self, to: StateFor, number: u64, is_whole: bool) {
        if self.states.get(&to).is_none_or(|(offered, _)| *offered == number) {
            self.states.remove(&to);
            if !to.1 {
                self.raft.report_state(to.0, is_whole);
            }
        }
    }

    /// What takes the state of another member.
    pub(crate) fn receiver(&mut self) -> Receiver {
        let store = self.apply.incoming(256 << 10);
        Receiver::new(Box::new(self.disks.data.disk()), store, self.shared.identity, 16 << 20)
    }

    /// A state has arrived, because of a message of raft or to make up for damage.
    ///
    /// **Errors** why the member stops.
    pub(crate) fn arrived(&mut self, message: Option<Message>, arrived: Box<Arrived>) -> Result<(), String> {
        if let Some(message) = message {
            return self.raft.receive_state(message, arrived).map_err(|error| error.to_string());
        }
        self.raft.receive_asked(arrived).map_err(|error| error.to_string())
    }

    /// Whether it asks the others for their state.
    pub(crate) fn asks_for_state(&self) -> bool {
        self.stands_still() || self.raft.wants_state()
    }

    /// How far a state must be at least to help it.
    pub(crate) fn least_needed(&self) -> u64 {
        self.applied() + u64::from(!self.stands_still())
    }

    /// A state did not arrive.
    pub(crate) fn discard(&mut self, store: Store) {
        self.apply.discard(store);
    }

    /// The answer to a read, of what `view` has; `None` if the disk cannot be read.
    pub(crate) fn read(&self, view: &ReadView, request: &pb::RangeRequest) -> Option<Answered> {
        answer(view, request, |fault| self.load(fault))
    }

    /// The same for who is no client. It notes no damage.
    pub(crate) fn look(&self, view: &ReadView, request: &pb::RangeRequest) -> Option<Answered> {
        let mut disk = self.disks.data.disk();
        answer(view, request, |fault| engine::load(&mut disk, Path::new(DATA), fault).is_ok())
    }

    /// A checksum of all keys and their history; `None` if the disk cannot be read.
    pub(crate) fn hash(&self) -> Option<(u32, i64)> {
        let view = self.shared.view.load();
        let mut hash = view.hash_kv(view.revision());
        let mut disk = self.disks.data.disk();
        loop {
            let step = engine::load_for(&mut disk, Path::new(DATA), || hash.step(&view, usize::MAX));
            if let Some(done) = step.ok()? {
                return Some(done);
            }
        }
    }
}

fn answer(view: &ReadView, request: &pb::RangeRequest, mut load: impl FnMut(Fault) -> bool) -> Option<Answered> {
    const KEYS_PER_STEP: usize = 64;
    let mut job = match Job::new(view, request.clone(), usize::MAX) {
        Ok(job) => job,
        Err(error) => return Some(Err(error)),
    };
    loop {
        match job.step(view, KEYS_PER_STEP) {
            Ok(Some(answer)) => return Some(answer.map(|response| (job.header_revision, response))),
            Ok(None) => {}
            Err(fault) => load(fault).then_some(())?,
        }
    }
}

fn note(handed: &Handed, outcome: &mut Outcome) {
    let entries = handed.entries.iter();
    let committed = |entry: &Entry| {
        let Entry { index, term, kind, ref data, .. } = *entry;
        Committed { index, term, kind, data: data.clone() }
    };
    outcome.committed.extend(entries.map(committed));
}

fn raw(request: &Request) -> Vec<u8> {
    use prost::Message as _;
    match request {
        Request::Put(put) => put.encode_to_vec(),
        Request::DeleteRange(delete) => delete.encode_to_vec(),
        Request::Txn(txn) => txn.encode_to_vec(),
        Request::Compaction(compaction) => compaction.encode_to_vec(),
        Request::LeaseGrant(grant) => grant.encode_to_vec(),
        Request::LeaseRevoke(revoke) => revoke.encode_to_vec(),
        other => panic!("{other:?} is not asked for here"),
    }
}
