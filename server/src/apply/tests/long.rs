//! Runs on: tests.
//!
//! Entries that delete or read many keys, made in steps: they give what the same entry gives when it is made at once,
//! nobody sees a part of one, and a start goes on with it from any state. An answer beyond its bound changes nothing.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use engine::{Fault, KeyRange, Mvcc, ReadView, Record, Revision, disk::sim::SimStorage};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{compare, request_op},
    internal::Request,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::member::{Member, TURNS_MAX, dir, raw};
use crate::{
    apply::{
        entry::{Applier, Asked, Executed},
        long::Steps,
        outcome::Outcome,
        restore::Tables,
        touch::Pinned,
    },
    auth::check::Asker,
    error::Error,
    gathered::Gathered,
    lease::{Lessor, Params},
    shared::RaisedBy,
};

/// Every entry that may be long is made in the smallest steps.
const SMALL: Steps = Steps { at_once_max: 0, keys: 2 };

const LEASES: [i64; 2] = [9, 10];

/// Everything that a view shows of keys and tables.
#[derive(Clone, Debug, PartialEq)]
struct Shown {
    revision: i64,
    live: Vec<Record>,
    records: Vec<Record>,
    meta: Vec<(Bytes, Bytes)>,
}

/// What `view` shows. `load` brings in what is not in memory.
fn shown_with(view: &ReadView, mut load: impl FnMut(Fault)) -> Shown {
    let mut shown = Shown { revision: view.revision(), live: Vec::new(), records: Vec::new(), meta: Vec::new() };
    let mut settle = |step: &mut dyn FnMut() -> Result<bool, Fault>| loop {
        match step() {
            Ok(true) => {}
            Ok(false) => break,
            Err(fault) => load(fault),
        }
    };
    let mut cursor = view.cursor(&KeyRange::all(), view.revision());
    let mut keys = Vec::new();
    settle(&mut || Ok(cursor.next()?.map(|version| keys.push(version.key)).is_some()));
    let mut keys = keys.iter().peekable();
    settle(&mut || {
        let Some(key) = keys.peek() else { return Ok(false) };
        shown.live.extend(view.get(key, view.revision())?);
        keys.next();
        Ok(true)
    });
    let mut rows = view.records_from(Revision::new(1, 0));
    settle(&mut || Ok(rows.next()?.map(|record| shown.records.push(record)).is_some()));
    let mut rows = view.meta_cursor(b"");
    settle(&mut || Ok(rows.next()?.map(|row| shown.meta.push(row)).is_some()));
    shown
}

fn shown(view: &ReadView) -> Shown {
    shown_with(view, |fault| panic!("{fault:?}: all is in memory"))
}

fn shown_by(member: &Member) -> Shown {
    let mut disk = member.storage.disk();
    shown_with(&member.apply.store.mvcc().view(), |fault| engine::load(&mut disk, dir(), fault).unwrap())
}

fn key(random: &mut SmallRng) -> Bytes {
    format!("k{:02}", random.random_range(0..40)).into()
}

fn put(random: &mut SmallRng) -> pb::PutRequest {
    let lease = if random.random_bool(0.4) { LEASES[random.random_range(0..2)] } else { 0 };
    let value = vec![random.random(); random.random_range(0..4)].into();
    pb::PutRequest { key: key(random), value, lease, prev_kv: random.random_bool(0.3), ..Default::default() }
}

fn delete(random: &mut SmallRng) -> pb::DeleteRangeRequest {
    let range_end = match random.random_range(0..4) {
        0 => Bytes::new(),
        1 => Bytes::from_static(b"\0"),
        _ => key(random),
    };
    pb::DeleteRangeRequest { key: key(random), range_end, prev_kv: random.random_bool(0.3) }
}

fn range(random: &mut SmallRng) -> pb::RangeRequest {
    let range_end = if random.random_bool(0.5) { "\0".into() } else { key(random) };
    let mut range = pb::RangeRequest { key: key(random), range_end, ..Default::default() };
    (range.keys_only, range.count_only) = (random.random_bool(0.2), random.random_bool(0.2));
    if random.random_bool(0.3) {
        (range.sort_order, range.sort_target) = (random.random_range(0..3), random.random_range(0..5));
    }
    if random.random_bool(0.3) {
        range.limit = random.random_range(1..6);
    }
    if random.random_bool(0.1) {
        range.min_mod_revision = random.random_range(1..40);
    }
    if random.random_bool(0.1) {
        range.revision = random.random_range(1..40);
    }
    range
}

fn txn(random: &mut SmallRng, depth: u32) -> pb::TxnRequest {
    let compare = pb::Compare {
        result: random.random_range(0..4),
        target: 0,
        key: key(random),
        range_end: if random.random_bool(0.3) { key(random) } else { Bytes::new() },
        target_union: Some(compare::TargetUnion::Version(1)),
    };
    let mut ops = || {
        let mut ops = Vec::new();
        for _ in 0..random.random_range(0..4) {
            let request = match random.random_range(0..5) {
                0 | 1 => request_op::Request::RequestDeleteRange(delete(random)),
                2 => request_op::Request::RequestPut(put(random)),
                3 if depth > 0 => request_op::Request::RequestTxn(txn(random, depth - 1)),
                _ => request_op::Request::RequestRange(range(random)),
            };
            ops.push(pb::RequestOp { request: Some(request) });
        }
        ops
    };
    let (success, failure) = (ops(), ops());
    pb::TxnRequest { compare: vec![compare], success, failure }
}

/// A txn that puts a key if it is not there, and else deletes very many, that key among them.
fn unless_there(random: &mut SmallRng) -> pb::TxnRequest {
    let put = pb::PutRequest { lease: 0, prev_kv: false, ..put(random) };
    let compare = pb::Compare {
        target: compare::CompareTarget::Mod as i32,
        key: put.key.clone(),
        target_union: Some(compare::TargetUnion::ModRevision(0)),
        ..Default::default()
    };
    let op = |request| vec![pb::RequestOp { request: Some(request) }];
    let all = pb::DeleteRangeRequest { key: "k".into(), range_end: "\0".into(), prev_kv: false };
    let (success, failure) =
        (op(request_op::Request::RequestPut(put)), op(request_op::Request::RequestDeleteRange(all)));
    pb::TxnRequest { compare: vec![compare], success, failure }
}

fn request(random: &mut SmallRng) -> Request {
    match random.random_range(0..21) {
        20 => Request::Txn(unless_there(random)),
        0..8 => Request::Put(put(random)),
        8..12 => Request::DeleteRange(delete(random)),
        12..17 => Request::Txn(txn(random, 2)),
        17 | 18 => Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: LEASES[random.random_range(0..2)] }),
        _ => Request::LeaseRevoke(pb::LeaseRevokeRequest { id: LEASES[random.random_range(0..2)] }),
    }
}

struct Store {
    mvcc: Mvcc,
    applier: Applier,
    steps_made: u32,
    /// Memory for an answer. **Units** bytes.
    shown_bytes_max: usize,
}

impl Store {
    fn new(steps: Steps) -> Self {
        let params = Params { ttl_min_s: 2, retry_after: Duration::from_secs(7), checkpoint_every: None };
        let mut applier = Applier::new(Lessor::new(params), Tables::default(), None);
        applier.steps = steps;
        Self { mvcc: Mvcc::in_memory(), applier, steps_made: 0, shown_bytes_max: usize::MAX }
    }

    /// Executes `request`. Between two steps, nothing of it is seen.
    fn execute(&mut self, is_awaited: bool, request: &Request) -> Result<Outcome, Error> {
        let (mut pinned, mut events) = (Pinned::new(Gathered::new(self.shown_bytes_max)), Vec::new());
        pinned.clear(is_awaited);
        let asked = Asked { request: request.clone(), raised_by: RaisedBy::Hand, asker: Asker::default() };
        let before = shown(&self.mvcc.publish(0, 0));
        loop {
            let asked = (7, &asked);
            let executed = self.applier.execute(&mut self.mvcc, asked, &mut pinned, Duration::ZERO, &mut events);
            match executed.expect("all is in memory") {
                Executed::Done { result, written, unlisted } => {
                    let deleted = events.iter().filter(|event| event.record().is_tombstone).count();
                    assert!(unlisted.is_some() || written.deleted == deleted as u64);
                    assert!(unlisted.is_none() || events.is_empty());
                    return result.and_then(|outcome| pinned.take_lost().map_or(Ok(outcome), Err));
                }
                Executed::Paused => {
                    self.steps_made += 1;
                    let now = shown(&self.mvcc.publish(0, 0));
                    assert_eq!(Shown { meta: before.meta.clone(), ..now }, before, "{request:?}");
                }
            }
        }
    }
}

#[test]
fn what_is_made_in_steps_is_what_is_made_at_once() {
    let mut steps_made = 0;
    for seed in 0..150 {
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut small, mut whole) = (Store::new(SMALL), Store::new(Steps::default()));
        for step in 0..80 {
            let (request, is_awaited) = (request(&mut random), random.random_bool(0.8));
            let result = small.execute(is_awaited, &request);
            assert_eq!(result, whole.execute(is_awaited, &request), "seed {seed}, step {step}: {request:?}");
            let (now, expected) = (shown(&small.mvcc.publish(0, 0)), shown(&whole.mvcc.publish(0, 0)));
            assert_eq!(now, expected, "seed {seed}, step {step}: {request:?}");
        }
        small.mvcc.live().verify().unwrap();
        assert_eq!(small.applier.lessor.list(), whole.applier.lessor.list());
        assert_eq!(whole.steps_made, 0);
        steps_made += small.steps_made;
    }
    assert!(steps_made > 2000, "{steps_made}");
}

#[test]
fn reads_and_compares_of_many_keys_are_made_in_bounded_steps() {
    let mut store = Store::new(Steps { at_once_max: 10, keys: 10 });
    for number in 0..100 {
        let key = format!("k{number:02}").into();
        store.execute(true, &Request::Put(pb::PutRequest { key, ..Default::default() })).unwrap();
    }
    let (key, range_end) = (Bytes::from_static(b"k"), Bytes::from_static(b"l"));
    let range = pb::RangeRequest { key: key.clone(), range_end: range_end.clone(), ..Default::default() };
    let put = pb::PutRequest { key: "other".into(), ..Default::default() };
    let target_union = Some(compare::TargetUnion::Version(1));
    let compare = pb::Compare { key, range_end, target_union, ..Default::default() };
    let op = |request| pb::RequestOp { request: Some(request) };
    let put = op(request_op::Request::RequestPut(put));
    let reads = vec![put.clone(), op(request_op::Request::RequestRange(range))];
    for (compare, success, is_awaited, expected) in
        [(vec![], reads.clone(), true, 9..20), (vec![], reads, false, 0..1), (vec![compare], vec![put], false, 9..20)]
    {
        let before = store.steps_made;
        let request = Request::Txn(pb::TxnRequest { compare, success, ..Default::default() });
        let Ok(Outcome::Txn(answer)) = store.execute(is_awaited, &request) else { panic!("it is made") };
        assert!(answer.succeeded && expected.contains(&(store.steps_made - before)), "{}", store.steps_made - before);
    }
}

#[test]
fn an_answer_that_is_too_large_is_given_up_and_the_entry_is_made() {
    let mut given_up = [0; 2];
    for seed in 0..80 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut stores = [Steps::default(), SMALL, Steps::default()].map(Store::new);
        for store in &mut stores[1..] {
            store.shown_bytes_max = 300;
        }
        for step in 0..80 {
            let request = request(&mut random);
            let [result, bounded @ ..] = stores.each_mut().map(|store| store.execute(true, &request));
            for (given_up, bounded) in given_up.iter_mut().zip(bounded) {
                match bounded {
                    Err(Error::AnswerTooLarge { .. }) => *given_up += 1,
                    bounded => assert_eq!(bounded, result, "seed {seed}, step {step}: {request:?}"),
                }
            }
            let [expected, others @ ..] = stores.each_mut().map(|store| shown(&store.mvcc.publish(0, 0)));
            others.iter().for_each(|other| assert_eq!(*other, expected, "seed {seed}, step {step}: {request:?}"));
        }
    }
    assert!(given_up.iter().all(|given_up| *given_up > 100), "{given_up:?}");
}

/// A member on `storage` that makes the smallest steps and checkpoints.
fn member(storage: SimStorage) -> Member {
    let mut member = Member::on(storage, 1 << 30, 1 << 20);
    member.apply.applier.steps = SMALL;
    member.apply.checkpoints = crate::apply::upkeep::checkpoint::Checkpoints::new(1 << 30, 100);
    member
}

fn propose(member: &mut Member, request: &Request) {
    member.propose_raw(request.kind(), &raw(request));
}

/// What the store shows after each entry.
fn expected(requests: &[Request]) -> BTreeMap<u64, Shown> {
    let mut member = Member::on(SimStorage::new(1), 1 << 30, 1 << 20);
    member.settle();
    let mut expected = BTreeMap::new();
    for request in requests {
        propose(&mut member, request);
        member.settle();
        expected.insert(member.applied(), shown_by(&member));
    }
    expected
}

#[test]
fn a_start_goes_on_with_an_entry_wherever_it_was_stopped() {
    let (mut stopped_within, mut stops) = (0, 0);
    for seed in 0..110 {
        let mut random = SmallRng::seed_from_u64(seed);
        let requests: Vec<Request> = (0..40).map(|_| request(&mut random)).collect();
        let expected = expected(&requests);
        let mut member = member(SimStorage::new(seed));
        member.settle();
        requests.iter().for_each(|request| propose(&mut member, request));
        let last = expected.keys().next_back().copied().expect("there are entries");
        // From then on, the log has all of them.
        while member.committed() < last {
            member.turn();
        }
        for turn in 0.. {
            assert!(turn < 10 * TURNS_MAX, "seed {seed}: it does not come to rest");
            let has_moved = member.turn();
            if member.checkpoint.is_some() && random.random_bool(0.7) {
                member.run_checkpoint();
            }
            if random.random_bool(0.1) {
                stops += 1;
                stopped_within += u32::from(member.apply.store.mvcc().is_unfinished());
                let image = member.storage.crash();
                member = self::member(image);
            }
            let applied = member.applied();
            let view = member.apply.store.mvcc().view();
            if let Some(expected) = expected.get(&applied)
                && member.apply.applier.long.is_none()
                && view.applied_index() == applied
            {
                let now = shown_by(&member);
                assert_eq!(Shown { meta: Vec::new(), ..now }, Shown { meta: Vec::new(), ..expected.clone() });
            }
            if !has_moved && applied >= last {
                break;
            }
        }
        // A start publishes attributes anew; only leases matter here.
        let only_leases = |mut shown: Shown| {
            shown.meta.retain(|(key, _)| b"lau".contains(&key[0]));
            shown
        };
        assert_eq!(only_leases(shown_by(&member)), only_leases(expected[&last].clone()), "seed {seed}");
        member.apply.store.mvcc().live().verify().unwrap();
    }
    assert!(stopped_within > 50, "{stopped_within} of {stops}");
}
