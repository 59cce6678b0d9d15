//! Runs on: tests.
//!
//! A commit core over a simulated disk, turn by turn: what waits for a checkpoint, and goes on at its end.

use std::path::Path;

use consensus::Member as Voter;
use engine::{disk::sim::SimStorage, store};

use super::*;
use crate::{
    config::AutoCompaction,
    core::Sizes,
    lease::{Lessor, Params},
};

/// Small enough for a test, large enough that one entry is little of it.
const CACHE_BYTES: usize = 1 << 20;
/// More turns than anything here takes.
const TURNS_MAX: usize = 2000;

struct Member {
    commit: Commit,
    storage: SimStorage,
    disk: engine::disk::sim::SimDisk,
    shared: Arc<Shared>,
    /// The checkpoint that nobody runs yet.
    checkpoint: Option<Checkpoint>,
    now: Duration,
    proposed: u64,
}

fn dir() -> &'static Path {
    Path::new("data")
}

fn driver(disk: &mut dyn Disk) -> Driver {
    let voter = Voter { id: 0xab, peer_urls: vec!["http://localhost:2380".into()], ..Voter::default() };
    let start = consensus::Start { bootstrap: vec![ConfChange::bootstrap(&voter)], ..consensus::Start::default() };
    let wal = engine::wal::Options { segment_bytes: 4 << 20, ..engine::wal::Options::default() };
    let options = consensus::Options::from_knobs(&tuning::Consensus::default(), true, 1, wal);
    let ids = consensus::Identity { member_id: 0xab, cluster_id: 1 };
    Driver::open(disk, &dir().join("wal"), ids, options, start).unwrap()
}

fn options(checkpoint_wal_bytes: u64) -> Options {
    Options {
        checkpoint_wal_bytes,
        apply_batch_bytes_max: 1 << 20,
        recent_bytes_max: 1 << 30,
        sweep_entries_per_step: 100,
        warning_apply: Duration::from_secs(1),
        clock: Clock::start(),
        reclaim_pages_per_step: 100,
        election_timeout: Duration::from_secs(1),
        name: "m".into(),
        client_urls: Vec::new(),
    }
}

impl Member {
    fn new(checkpoint_wal_bytes: u64) -> Self {
        let storage = SimStorage::new(1);
        let mut disk = storage.disk();
        let store_options = store::Options { cache_bytes: CACHE_BYTES, ..store::Options::default() };
        let store = Store::open(&mut disk, dir(), store_options).unwrap();
        let driver = driver(&mut disk);
        let shared = Arc::new(Shared::for_tests(store.mvcc().published(), 1));
        let lessor = Lessor::new(Params { ttl_min_s: 2, retry_after: Duration::from_secs(7) });
        let applier = Applier { lessor, cluster: crate::core::Cluster::default() };
        let compactor = Compactor::new(AutoCompaction::Off, Duration::ZERO);
        let commit = Commit::new(Arc::clone(&shared), options(checkpoint_wal_bytes), driver, store, applier, compactor);
        Self { commit, storage, disk, shared, checkpoint: None, now: Duration::ZERO, proposed: 0 }
    }

    fn propose(&mut self, kind: Kind, message: &impl Message) {
        self.proposed += 1;
        let id = self.shared.request_ids.fetch_add(1, Ordering::Relaxed);
        let entry = internal::encode(&quota::header(id, Purpose::Grow), kind, &message.encode_to_vec()).entry;
        let propose = ToCommit::Propose { reply: None, id, entry, purpose: Purpose::Grow };
        self.commit.receive(propose, self.now).unwrap();
    }

    fn put(&mut self, number: u64) {
        // Scattered, and long, so that few share a leaf.
        let key = format!("{:016x}{:0>200}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15), number);
        self.propose(Kind::Put, &pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() });
    }

    /// One turn, with what it has to read; whether there is more to do at once.
    fn turn(&mut self) -> bool {
        self.now += Duration::from_micros(100);
        let turn = self.commit.turn(&mut self.disk, self.now).unwrap();
        if turn.checkpoint.is_some() {
            assert!(self.checkpoint.is_none(), "one at a time");
            self.checkpoint = turn.checkpoint;
        }
        if turn.faults.is_empty() {
            return turn.more;
        }
        for fault in turn.faults {
            engine::load(&mut self.storage.disk(), dir(), fault).unwrap();
        }
        self.commit.receive(ToCommit::Loaded(Ok(())), self.now).unwrap();
        true
    }

    fn applied(&self) -> u64 {
        self.shared.raft.applied.load(Ordering::Acquire)
    }

    /// Turns until nothing moves any more.
    fn settle(&mut self) {
        let mut still = 0;
        for _ in 0..TURNS_MAX {
            let before = (self.applied(), self.commit.driver.status().commit);
            let more = self.turn();
            let has_moved = more || before != (self.applied(), self.commit.driver.status().commit);
            still = if has_moved { 0 } else { still + 1 };
            if still > 3 {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    fn is_all_applied(&self) -> bool {
        self.applied() == self.commit.driver.status().commit
    }

    fn dirty_bytes(&self) -> u64 {
        self.commit.store.mvcc().dirty_bytes()
    }

    /// Puts new keys until a checkpoint is due, which nobody runs, and then until apply waits for it.
    fn fill_until_held(&mut self) {
        while !self.commit.is_apply_held() {
            assert!(self.is_all_applied(), "nothing waits yet");
            assert!(self.proposed < 100_000, "memory has a bound");
            (0..10).for_each(|_| self.put(self.proposed));
            self.settle();
        }
        assert!(self.checkpoint.is_some());
    }

    /// Runs the checkpoint that waits, to its end.
    fn run_checkpoint(&mut self) {
        let mut checkpoint = self.checkpoint.take().expect("one is due");
        let done = checkpoint.run(&mut self.storage.disk()).map(Box::new);
        self.commit.receive(ToCommit::Checkpointed(done), self.now).unwrap();
    }

    fn run_checkpoints(&mut self) {
        self.settle();
        while self.checkpoint.is_some() {
            self.run_checkpoint();
            self.settle();
        }
    }
}

#[test]
fn apply_waits_for_a_checkpoint_when_memory_for_changed_nodes_is_used_up() {
    let mut member = Member::new(1 << 30);
    member.settle();
    member.fill_until_held();
    let due = member.commit.store.dirty_bytes_due();
    let held = member.dirty_bytes();
    assert!(held >= due);
    let applied = member.applied();
    for _ in 0..200 {
        member.put(member.proposed);
        assert!(!member.turn(), "the loop does not spin while it waits");
    }
    assert_eq!((member.applied(), member.dirty_bytes()), (applied, held), "nothing is changed meanwhile");
    assert!(!member.is_all_applied(), "what is committed waits");
    member.run_checkpoints();
    assert!(member.is_all_applied() && member.applied() > applied);
    assert!(member.commit.store.mvcc().node_bytes() <= member.commit.store.node_bytes_max() + due);
}

#[test]
fn the_sweep_waits_for_a_checkpoint_too() {
    let mut member = Member::new(1 << 30);
    member.settle();
    for _ in 0..3 {
        // Older versions for the sweep to drop, in pages that were written.
        for number in 0..500 {
            member.put(number);
        }
        member.run_checkpoints();
    }
    let revision = member.commit.store.mvcc().view().revision();
    member.fill_until_held();
    // Committed and applied before the bound was reached in a real member; here it is told directly.
    member.commit.is_sweeping = true;
    member.commit.store.mvcc_mut().compact(revision);
    let held = member.dirty_bytes();
    for _ in 0..100 {
        assert!(!member.turn());
    }
    assert_eq!(member.dirty_bytes(), held, "it changes nothing meanwhile");
    assert!(member.shared.swept_revision.load(Ordering::Acquire) < revision);
    member.run_checkpoints();
    assert_eq!(member.shared.swept_revision.load(Ordering::Acquire), revision);
    assert!(member.is_all_applied());
}

#[test]
fn scattered_changes_are_waited_with_for_a_while_but_not_for_ever() {
    // A key of 216 bytes and its value take 0.3 KiB of the log, and what is changed of the tree about as much again and again.
    let mut member = Member::new(48 << 10);
    member.settle();
    for number in 0..400 {
        member.put(number);
    }
    member.run_checkpoints();
    for number in (0..400).step_by(20) {
        member.put(number);
    }
    member.settle();
    let gathered = member.commit.driver.log_bytes() - member.commit.kept_log_bytes;
    assert!(gathered < 48 << 10 && member.dirty_bytes() > 2 * (48 << 10), "few changes of many pages");
    assert!(member.checkpoint.is_none(), "more may come to the same pages");
    member.now += Duration::from_secs(31);
    member.put(0);
    member.settle();
    assert!(member.checkpoint.is_some());
}

#[test]
fn what_is_applied_counts_at_once_and_what_a_checkpoint_wrote_goes_on_counting() {
    let mut member = Member::new(1 << 30);
    member.settle();
    let sizes = |member: &Member| {
        let Sizes { in_use, allocated } = &member.shared.sizes;
        (in_use.load(Ordering::Acquire), allocated.load(Ordering::Acquire))
    };
    let (before, _) = sizes(&member);
    for number in 0..1000 {
        member.put(number);
    }
    let mut seen = before;
    while member.commit.store.mvcc().view().revision() < 1001 {
        member.turn();
        let (in_use, allocated) = sizes(&member);
        assert!(in_use >= seen && allocated >= in_use, "no tick is needed to know of what was put");
        seen = in_use;
    }
    let recent = member.commit.store.mvcc().recent_bytes();
    assert!(recent > 200_000 && seen >= before + recent, "{seen} bytes, {before} before");
    member.checkpoint = Some(member.commit.store.checkpoint_begin());
    member.run_checkpoint();
    assert_eq!(member.commit.store.mvcc().recent_bytes(), 0);
    let told = member.commit.store.sizes();
    assert_eq!(sizes(&member), (told.in_use, told.allocated));
    assert!(told.in_use > recent / 2, "records in files count");
}
