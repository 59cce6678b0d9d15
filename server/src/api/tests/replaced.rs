//! Runs on: tests.
//!
//! The state of another member comes in the place of this one's while something is read: a floor holds nothing in it.
//! The store and its files are real, the disk is simulated.

use std::{cell::RefCell, rc::Rc, task::Context};

use bytes::Bytes;
use engine::{
    Checkpoint, CheckpointDone, Mvcc, Progress, ReadView, Revision, Store,
    disk::{Disk, sim::SimStorage},
};
use prost::Message;
use proto::etcdserverpb as pb;
use tokio::{
    sync::Semaphore,
    task::{LocalSet, spawn_local, yield_now},
};

use super::{Client, Member, Told, settle, split, store_of};
use crate::{
    api::{
        Later, answer, begin,
        call::{Answers, Head, Left, Reply},
        others::Nobody,
        serve,
    },
    error::{Code, Error, Status},
    method::Method,
    protobuf::PREFIX_BYTES,
};

const KEYS: usize = 5000;
/// Where the other state was compacted, if it was.
const COMPACTED: i64 = 8000;

/// More than any read here takes.
const TURNS_MAX: usize = 10_000;

/// A client that takes as many messages as `takes` allows.
#[derive(Clone)]
struct Slow {
    told: Rc<RefCell<Told>>,
    takes: Rc<Semaphore>,
}

impl Reply for Slow {
    type Answers = Self;

    fn answer(self, message: Bytes) {
        self.told.borrow_mut().messages.push(message);
        self.finish(None);
    }

    fn refuse(self, status: &Status) {
        self.finish(Some(status));
    }

    fn begin(self) -> Self {
        self
    }

    fn poll_left(&mut self, _: &mut Context<'_>) -> std::task::Poll<()> {
        std::task::Poll::Pending
    }
}

impl Answers for Slow {
    async fn send(&mut self, messages: Bytes) -> Result<(), Left> {
        self.takes.acquire().await.expect("it is never closed").forget();
        self.told.borrow_mut().messages.push(messages);
        Ok(())
    }

    async fn left(&mut self) {
        std::future::pending().await
    }

    fn finish(self, status: Option<&Status>) {
        let mut told = self.told.borrow_mut();
        told.end = status.cloned();
        told.is_over = true;
    }
}

struct Replaced {
    member: Member,
    store: Store,
    storage: SimStorage,
}

impl Replaced {
    /// A member that holds [`KEYS`] keys.
    fn new() -> Self {
        let storage = SimStorage::new(1);
        let mut store = store_of(&storage);
        fill(store.mvcc_mut(), "of this member");
        drop(store.mvcc_mut().publish(10, 1));
        let member = Member::over(&storage, &store, Box::new(Nobody));
        Self { member, store, storage }
    }

    fn run(&self, job: &mut Checkpoint) -> CheckpointDone {
        let mut disk = self.storage.disk();
        loop {
            match job.step(&mut disk).unwrap() {
                Progress::Done(done) => return *done,
                Progress::Working => disk.kick().unwrap(),
                Progress::Waiting => disk.wait().unwrap(),
            }
            let mut completions = Vec::new();
            disk.completions(&mut completions);
            completions.into_iter().for_each(|completion| job.on_completion(completion).unwrap());
        }
    }

    /// Puts the state of another member in the place of this one's: what `origin` shows.
    fn install(&mut self, origin: &ReadView) {
        let mut incoming = self.store.incoming(1 << 20);
        let mut records = origin.records_from(Revision::MIN);
        while let Some(record) = records.next().unwrap() {
            if origin.is_kept(&record, origin.compact_revision()).unwrap() {
                drop(incoming.mvcc_mut().load(record).unwrap());
            }
        }
        incoming.mvcc_mut().load_end(origin.revision(), origin.compact_revision());
        drop(incoming.mvcc_mut().publish(origin.applied_index(), origin.applied_term()));
        let done = self.run(&mut incoming.checkpoint_begin());
        incoming.checkpoint_end(done);
        let mut job = self.store.install_begin(incoming);
        let done = self.run(&mut job);
        self.store.checkpoint_end(done);
        drop(self.store.mvcc_mut().publish(origin.applied_index(), origin.applied_term()));
    }

    /// Asks `request` of `method`; the client takes `takes` messages for now.
    fn read(&self, method: Method, request: &impl Message, takes: usize) -> Slow {
        let client = Client::sending([request.encode_to_vec()]);
        let slow = Slow { told: Rc::default(), takes: Rc::new(Semaphore::new(takes)) };
        let call = self.member.open(method, &Head::default()).unwrap();
        let desk = Rc::clone(&self.member.desk);
        match begin(&desk, &call, client, slow.clone()) {
            Later::Nothing => {}
            Later::Answer(decoded, reply) => drop(spawn_local(answer(desk, call, decoded, reply))),
            Later::Serve(requests, reply) => drop(spawn_local(serve(desk, call, requests, reply))),
        }
        slow
    }

    /// Runs the other tasks, and their reads, until something is so.
    async fn until(&self, is_so: impl Fn() -> bool) {
        for _ in 0..TURNS_MAX {
            if is_so() {
                return;
            }
            self.member.desk.loader().collect().unwrap();
            yield_now().await;
        }
        panic!("{TURNS_MAX} turns were not enough");
    }

    /// Waits until `slow` has taken so many messages. Its server waits for it then.
    async fn taken(&self, slow: &Slow, messages: usize) {
        self.until(|| slow.told.borrow().messages.len() >= messages).await;
        settle().await;
        assert!(slow.told.borrow().messages.len() == messages && !slow.told.borrow().is_over);
    }

    /// Lets `slow` take everything, and waits for the end.
    async fn ends(&self, slow: &Slow) -> Option<Status> {
        slow.takes.add_permits(1 << 20);
        self.until(|| slow.told.borrow().is_over).await;
        slow.told.borrow().end.clone()
    }
}

/// Each key once, so that the first is of revision 2.
fn fill(mvcc: &mut Mvcc, value: &str) {
    for key in 0..KEYS {
        let mut write = mvcc.begin();
        write.put(format!("{key:06}").into(), format!("{value}{:0>100}", key).into(), 0).unwrap();
        drop(write.finish());
    }
}

/// A state further on. If it is compacted, all keys but every hundredth are deleted, and nothing is left of them.
fn further_on(is_compacted: bool) -> Mvcc {
    let mut mvcc = Mvcc::in_memory();
    fill(&mut mvcc, "of this member");
    for key in (0..KEYS).filter(|key| key % 100 != 0) {
        let mut write = mvcc.begin();
        write.delete(format!("{key:06}").as_bytes()).unwrap();
        drop(write.finish());
    }
    if is_compacted {
        mvcc.compact(COMPACTED);
    }
    drop(mvcc.publish(20, 1));
    mvcc
}

fn keys_of(told: &Told) -> Vec<Vec<u8>> {
    let response = |message| pb::RangeStreamResponse::decode(message).unwrap().range_response.unwrap();
    let pieces = told.messages.iter().flat_map(|piece| split(piece));
    pieces.flat_map(|message| response(message).kvs).map(|kv| kv.key.into()).collect()
}

async fn with(test: impl AsyncFnOnce(Replaced)) {
    LocalSet::new().run_until(test(Replaced::new())).await;
}

fn everything() -> pb::RangeRequest {
    pb::RangeRequest { key: vec![0].into(), range_end: vec![0].into(), serializable: true, ..Default::default() }
}

/// That a read ended because its revision was compacted.
fn assert_compacted(end: Option<&Status>) {
    let end = end.expect("its revision is gone");
    assert_eq!(end.code, Code::OutOfRange, "{end:?}");
    assert_eq!(end.message, Error::Compacted.to_string());
}

#[tokio::test]
async fn a_stream_leaves_out_nothing_that_another_state_has_compacted() {
    with(async |mut replaced: Replaced| {
        let slow = replaced.read(Method::RangeStream, &everything(), 3);
        replaced.taken(&slow, 3).await;
        replaced.install(&further_on(true).view());
        assert_compacted(replaced.ends(&slow).await.as_ref());
        let shown = keys_of(&slow.told.borrow());
        assert!((3..KEYS).contains(&shown.len()));
        assert!(shown.iter().enumerate().all(|(at, key)| *key == format!("{at:06}").into_bytes()), "none is skipped");
    })
    .await;
}

#[tokio::test]
async fn a_stream_goes_on_in_another_state_that_still_has_its_revision() {
    with(async |mut replaced: Replaced| {
        let slow = replaced.read(Method::RangeStream, &everything(), 3);
        replaced.taken(&slow, 3).await;
        replaced.install(&further_on(false).view());
        assert_eq!(replaced.ends(&slow).await, None);
        assert_eq!(keys_of(&slow.told.borrow()).len(), KEYS);
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_is_half_sent_ends_with_the_error() {
    with(async |mut replaced: Replaced| {
        let slow = replaced.read(Method::Range, &everything(), 1);
        replaced.taken(&slow, 1).await;
        replaced.install(&further_on(true).view());
        assert_compacted(replaced.ends(&slow).await.as_ref());
        let told = slow.told.borrow();
        let announced = u32::from_be_bytes(told.messages[0][1..PREFIX_BYTES].try_into().unwrap()) as usize;
        assert!(told.messages.iter().map(Bytes::len).sum::<usize>() < PREFIX_BYTES + announced);
    })
    .await;
}

#[tokio::test]
async fn a_hash_is_of_one_state() {
    with(async |mut replaced: Replaced| {
        let newest = replaced.read(Method::HashKv, &pb::HashKvRequest { revision: 0 }, 0);
        yield_now().await;
        assert!(!newest.told.borrow().is_over, "it takes several turns");
        let origin = further_on(true).view();
        replaced.install(&origin);
        assert_eq!(replaced.ends(&newest).await, None);
        let told: pb::HashKvResponse = newest.told.borrow().message(0);
        let (hash, compacted) = origin.hash_kv(origin.revision()).step(&origin, usize::MAX).unwrap().unwrap();
        assert_eq!((told.hash, told.compact_revision), (hash, compacted));
        assert_eq!((told.hash_revision, compacted), (origin.revision(), COMPACTED));
        let old = replaced.read(Method::HashKv, &pb::HashKvRequest { revision: 100 }, 0);
        assert_compacted(replaced.ends(&old).await.as_ref());
    })
    .await;
}

#[tokio::test]
async fn a_backup_breaks_off() {
    with(async |mut replaced: Replaced| {
        let slow = replaced.read(Method::Snapshot, &pb::SnapshotRequest {}, 3);
        replaced.taken(&slow, 3).await;
        replaced.install(&further_on(true).view());
        assert_compacted(replaced.ends(&slow).await.as_ref());
        let remaining = slow.told.borrow().messages.len();
        let last: pb::SnapshotResponse = slow.told.borrow().message(remaining - 1);
        assert!(last.remaining_bytes > 0, "it is not taken for a whole one");
    })
    .await;
}
