//! Runs on: tests.
//!
//! Raft and apply over a simulated disk, turn by turn, for tests.

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use consensus::{ConfChange, ConfState, Driver, EntryId, Identity};
use engine::{
    Checkpoint, Fault, PageReader, Store,
    disk::{
        Disk,
        sim::{SimDisk, SimStorage},
    },
    store,
};
use prost::Message;
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind, Request},
};

use crate::{
    apply::{
        entry::Applier,
        machine::{Apply, Options, Turn},
        message::ToApply,
        proposal::Proposal,
        start::{self, Start},
    },
    clock::Clock,
    config::AutoCompaction,
    error::Error,
    insight::trace::Stamps,
    lease::{Lessor, Params},
    metrics::counters::CommitCounters,
    quota::{self, Purpose},
    raft::{machine::Raft, message::ToRaft},
    shared::Shared,
    slots::{ReplyTo, Slots},
};

/// Small enough for a test, and large enough that one entry is a small part of it.
pub(super) const CACHE_BYTES: usize = 1 << 20;
pub(super) const LOG_WAIT_MAX: Duration = Duration::from_secs(2);
/// More turns than any test here takes.
pub(super) const TURNS_MAX: usize = 2000;

pub(super) struct Member {
    pub(super) raft: Raft,
    pub(super) apply: Apply,
    pub(super) storage: SimStorage,
    pub(super) disk: SimDisk,
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<CommitCounters>,
    /// The checkpoint that was begun and that nobody runs yet.
    pub(super) checkpoint: Option<Checkpoint>,
    pub(super) now: Duration,
    pub(super) proposed: u64,
    /// Last index of the log when it was opened.
    pub(super) opened_at: u64,
}

pub(super) fn dir() -> &'static Path {
    Path::new("data")
}

fn voter() -> consensus::Member {
    consensus::Member { id: 0xab, peer_urls: vec!["http://localhost:2380".into()], ..Default::default() }
}

/// Raft over the log that lies beside the store.
fn driver(
    disk: &mut dyn Disk,
    store: &Store,
    identity: Identity,
    conf_state: ConfState,
) -> Result<Driver, consensus::Error> {
    let (index, term) = store.applied();
    let start = consensus::Start {
        applied: EntryId { index, term },
        is_installed: store.is_installed(),
        trimmable: store.trimmable().0,
        conf_state,
        bootstrap: vec![ConfChange::bootstrap(&voter())],
        is_alone: true,
        has_run: false,
    };
    let wal = engine::wal::Options { segment_bytes: 4 << 20, ..engine::wal::Options::default() };
    let options = consensus::Options::from_knobs(&tuning::Consensus::default(), true, 1, wal);
    Driver::open(disk, &dir().join("wal"), identity, options, start)
}

pub(super) fn options(checkpoint_wal_bytes: u64) -> Options {
    Options {
        checkpoint_wal_bytes,
        recent_bytes_max: 1 << 30,
        sweep_entries_per_step: 100,
        reclaim_pages_per_step: 100,
        warning_apply: Duration::from_secs(1),
        auto_compaction: AutoCompaction::Off,
        election_timeout: Duration::from_secs(1),
        name: "m".into(),
        client_urls: Vec::new(),
        replayed_to: 0,
        clock: Clock::manual(1),
    }
}

impl Member {
    pub(super) fn new(checkpoint_wal_bytes: u64) -> Self {
        Self::with_batches(checkpoint_wal_bytes, 1 << 20)
    }

    pub(super) fn with_batches(checkpoint_wal_bytes: u64, batch_bytes_max: u64) -> Self {
        Self::on(SimStorage::new(1), checkpoint_wal_bytes, batch_bytes_max)
    }

    /// A member over the files in `storage`.
    pub(super) fn on(storage: SimStorage, checkpoint_wal_bytes: u64, batch_bytes_max: u64) -> Self {
        Self::try_on(storage, checkpoint_wal_bytes, batch_bytes_max).unwrap()
    }

    /// As [`Member::on`], if what `storage` holds lets it start.
    pub(super) fn try_on(
        storage: SimStorage,
        checkpoint_wal_bytes: u64,
        batch_bytes_max: u64,
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut disk = storage.disk();
        let store_options = store::Options { cache_bytes: CACHE_BYTES, ..store::Options::default() };
        let mut store = Store::open(&mut disk, dir(), store_options)?;
        let Start { identity, tables, unread } =
            start::read(&mut store, &mut disk, Identity { cluster_id: 1, member_id: voter().id })?;
        let driver = driver(&mut disk, &store, identity, tables.conf_state.clone())?;
        let opened_at = driver.status().last_index;
        let shared = Arc::new(Shared::for_tests(store.mvcc().published(), 1));
        let lessor = Lessor::new(Params { ttl_min_s: 2, retry_after: Duration::from_secs(7), checkpoint_every: None });
        let applier = Applier::new(lessor, tables, unread);
        let counters = Arc::<CommitCounters>::default();
        let options = options(checkpoint_wal_bytes);
        let apply = Apply::new(Arc::clone(&shared), Arc::clone(&counters), options, store, applier);
        let heartbeat = Duration::from_millis(100);
        let raft =
            Raft::new(Arc::clone(&shared), Arc::clone(&counters), driver, batch_bytes_max, LOG_WAIT_MAX, heartbeat);
        let (checkpoint, now, proposed) = (None, Duration::ZERO, 0);
        Ok(Self { raft, apply, storage, disk, shared, counters, checkpoint, now, proposed, opened_at })
    }

    pub(super) fn propose(&mut self, kind: Kind, message: &impl Message) {
        self.propose_raw(kind, &message.encode_to_vec());
    }

    pub(super) fn propose_raw(&mut self, kind: Kind, message: &[u8]) {
        self.proposed += 1;
        let header = quota::header(self.shared.next_request_id(), Purpose::Grow);
        let entry = internal::encode(&header, kind, message).entry;
        self.raft.receive(ToRaft::ProposeOwn { entry, purpose: Purpose::Grow }, self.now);
    }

    pub(super) fn put(&mut self, number: u64) {
        // Keys are scattered and long, so that few share a leaf.
        let key = format!("{:016x}{:0>200}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number);
        self.propose(Kind::Put, &pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() });
    }

    /// Reads pages, as far as they can be read.
    pub(super) fn resolve(&mut self, faults: Vec<Fault>) {
        let mut disk = self.storage.disk();
        let mut reader = PageReader::new(dir(), 4, 4, Arc::clone(self.shared.view.unreadable()));
        faults.into_iter().for_each(|fault| reader.read(fault, 0));
        let mut completions = Vec::new();
        while !reader.is_idle() {
            drop(reader.step(&mut disk));
            disk.kick().unwrap();
            disk.wait().unwrap();
            disk.completions(&mut completions);
            completions.drain(..).for_each(|completion| drop(reader.on_completion(completion)));
        }
        self.apply.receive(ToApply::Loaded(Ok(())), self.now).unwrap();
    }

    /// Makes one turn of both machines, as `cores` does in one loop.
    pub(super) fn turn_both(&mut self) -> (Turn, bool) {
        self.now += Duration::from_micros(100);
        self.raft.pass(self.now);
        self.raft.turn(&mut self.disk, self.now).unwrap();
        if let Some(handed) = self.raft.take_handed(self.now) {
            self.apply.hand(handed, self.now);
        }
        let turn = self.apply.turn(self.now).unwrap();
        if let Some(report) = self.apply.take_report() {
            self.raft.report(report, self.now).unwrap();
            self.raft.settle(&mut self.disk, self.now).unwrap();
        }
        let more = turn.more || self.raft.has_more();
        (turn, more)
    }

    /// Makes one turn and the reads that it needs. Returns whether there is more to do at once.
    pub(super) fn turn(&mut self) -> bool {
        let (turn, more) = self.turn_both();
        if turn.checkpoint.is_some() {
            assert!(self.checkpoint.is_none(), "one at a time");
            self.checkpoint = turn.checkpoint;
        }
        if turn.faults.is_empty() {
            return more;
        }
        self.resolve(turn.faults);
        true
    }

    pub(super) fn applied(&self) -> u64 {
        self.shared.raft.applied.load(Ordering::Acquire)
    }

    pub(super) fn committed(&self) -> u64 {
        self.shared.raft.commit.load(Ordering::Acquire)
    }

    /// Makes turns until nothing moves any more.
    pub(super) fn settle(&mut self) {
        let mut still = 0;
        for _ in 0..TURNS_MAX {
            let before = (self.applied(), self.committed());
            let more = self.turn();
            let has_moved = more || before != (self.applied(), self.committed());
            still = if has_moved { 0 } else { still + 1 };
            if still > 3 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    pub(super) fn is_all_applied(&self) -> bool {
        self.applied() == self.committed()
    }

    pub(super) fn dirty_bytes(&self) -> u64 {
        self.apply.store.mvcc().dirty_bytes()
    }

    /// Puts new keys until a checkpoint is due, and then until apply waits for it. Nobody runs the checkpoint.
    pub(super) fn fill_until_held(&mut self) {
        while !self.apply.is_held() {
            assert!(self.is_all_applied(), "nothing waits yet");
            assert!(self.proposed < 100_000, "memory has a bound");
            (0..10).for_each(|_| self.put(self.proposed));
            self.settle();
        }
        assert!(self.checkpoint.is_some());
    }

    /// Runs the waiting checkpoint to its end.
    pub(super) fn run_checkpoint(&mut self) {
        let mut checkpoint = self.checkpoint.take().expect("one is due");
        let done = checkpoint.run(&mut self.storage.disk()).map(Box::new);
        self.apply.receive(ToApply::Checkpointed(done), self.now).unwrap();
    }

    pub(super) fn run_checkpoints(&mut self) {
        self.settle();
        while self.checkpoint.is_some() {
            self.run_checkpoint();
            self.settle();
        }
    }
}

pub(super) fn raw(request: &Request) -> Vec<u8> {
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

/// A proposal of `request`. About every second one comes without the decoded request, as if another core had lost it.
pub(super) fn proposal(id: u64, request: Request, slots: &Slots<()>) -> Box<Proposal> {
    let header = quota::header(id, Purpose::Grow);
    let entry = internal::encode(&header, request.kind(), &raw(&request)).entry;
    let slot = slots.open(Duration::ZERO).expect("there is room").id();
    Box::new(Proposal {
        reply: ReplyTo { core: 0, slot },
        id,
        purpose: Purpose::Grow,
        entry,
        request: id.is_multiple_of(2).then_some(request),
        stamps: Stamps::default(),
        share: None,
        result: Err(Error::Timeout),
    })
}
