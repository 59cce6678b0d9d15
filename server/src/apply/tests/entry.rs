//! Runs on: tests.
//!
//! Apply over a store in memory. A refused entry changes nothing at all.

use std::time::Duration;

use bytes::Bytes;
use engine::{KeyRange, Mvcc};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{alarm_request::AlarmAction, compare, request_op},
    internal::Request,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    apply::{
        count::{self, Written},
        entry::{Applier, Asked, Executed, touch},
        outcome::Outcome,
        restore::{Damaged, Tables, restore},
        touch::Pinned,
    },
    auth::check::Asker,
    error::Error,
    gathered::Gathered,
    lease::{Lessor, Params},
    quota,
    shared::{Alarms, RaisedBy},
    watch::batch::Event,
};

const KEYS: [&[u8]; 5] = [b"a", b"b", b"c", b"d", b"e"];

struct Store {
    mvcc: Mvcc,
    applier: Applier,
}

impl Store {
    fn new() -> Self {
        let mvcc = Mvcc::in_memory();
        let params = Params { ttl_min_s: 2, retry_after: Duration::from_secs(7), checkpoint_every: None };
        Self { mvcc, applier: Applier::new(Lessor::new(params), Tables::default(), None) }
    }

    fn apply(&mut self, request: Request) -> Result<usize, Error> {
        self.apply_for(true, request)
    }

    fn apply_for(&mut self, is_awaited: bool, request: Request) -> Result<usize, Error> {
        let (result, events) = self.execute(is_awaited, request, RaisedBy::Hand);
        result.map(|_| events.len())
    }

    fn execute(
        &mut self,
        is_awaited: bool,
        request: Request,
        raised_by: RaisedBy,
    ) -> (Result<Outcome, Error>, Vec<Event>) {
        let (mut pinned, mut events) = (Pinned::new(Gathered::new(usize::MAX)), Vec::new());
        pinned.clear(is_awaited);
        let asked = Asked { request, raised_by, asker: Asker::default() };
        loop {
            let executed = self.applier.execute(&mut self.mvcc, (1, &asked), &mut pinned, Duration::ZERO, &mut events);
            match executed.expect("all is in memory") {
                Executed::Done { result, .. } => return (result, events),
                Executed::Paused => {}
            }
        }
    }

    /// Executes an entry as every entry was before plain puts had their own path: first the touch, then the change.
    fn execute_with_a_look(&mut self, request: Request) -> (Result<Outcome, Error>, Vec<Event>) {
        let (mut pinned, mut events) = (Pinned::new(Gathered::new(usize::MAX)), Vec::new());
        pinned.clear(true);
        let asked = Asked { request, raised_by: RaisedBy::Hand, asker: Asker::default() };
        touch(self.mvcc.live(), &asked.request, &mut pinned).expect("all is in memory");
        (self.applier.apply(&mut self.mvcc, &asked, &pinned, Duration::ZERO, &mut events), events)
    }

    fn alarms_stored(&mut self) -> Alarms {
        let view = self.mvcc.publish(0, 0);
        restore(&view, |fault| -> Result<(), Damaged> { panic!("{fault:?}: all is in memory") }).unwrap().cluster.alarms
    }

    fn hash(&mut self) -> Option<(u32, i64)> {
        let view = self.mvcc.publish(0, 0);
        view.hash_kv(view.revision()).step(&view, usize::MAX).expect("all is in memory")
    }

    fn live_keys(&self) -> u64 {
        self.mvcc.live().count(&KeyRange::all(), self.mvcc.live().revision()).expect("all is in memory")
    }
}

fn put(key: &[u8], keeps: bool) -> request_op::Request {
    let key = Bytes::copy_from_slice(key);
    request_op::Request::RequestPut(pb::PutRequest {
        key,
        ignore_value: keeps,
        ignore_lease: keeps,
        ..Default::default()
    })
}

fn delete(key: &[u8], range_end: &[u8]) -> request_op::Request {
    let (key, range_end) = (Bytes::copy_from_slice(key), Bytes::copy_from_slice(range_end));
    request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest { key, range_end, prev_kv: true })
}

fn txn(success: Vec<request_op::Request>) -> pb::TxnRequest {
    let success = success.into_iter().map(|request| pb::RequestOp { request: Some(request) }).collect();
    pb::TxnRequest { success, ..Default::default() }
}

#[test]
fn put_that_keeps_what_the_txn_deleted_is_refused_before_anything_changes() {
    let mut store = Store::new();
    for key in KEYS {
        store.apply(Request::Txn(txn(vec![put(key, false)]))).unwrap();
    }
    let refused = Err(Error::KeyNotFound);
    let nested = request_op::Request::RequestTxn(txn(vec![delete(b"b", b"\0")]));
    assert_eq!(store.apply(Request::Txn(txn(vec![delete(b"b", b"\0"), put(b"c", true)]))), refused);
    assert_eq!(store.apply(Request::Txn(txn(vec![nested.clone(), put(b"b", true)]))), refused);
    assert_eq!((store.mvcc.live().revision(), store.live_keys()), (6, 5));
    assert_eq!(store.apply(Request::Txn(txn(vec![nested.clone(), put(b"a", true)]))), Ok(5));
    assert_eq!(store.live_keys(), 1);
    assert_eq!(store.apply(Request::Txn(txn(vec![put(b"a", true), nested, put(b"b", false)]))), Ok(2));
}

/// A put inside `txns` nested txns, as a client would send them.
fn nested(txns: usize) -> Bytes {
    let mut raw = prost::Message::encode_to_vec(&txn(vec![put(b"a", false)]));
    for _ in 1..txns {
        let mut op = Vec::new();
        prost::encoding::bytes::encode(4, &raw, &mut op);
        raw.clear();
        prost::encoding::bytes::encode(2, &op, &mut raw);
    }
    raw.into()
}

#[test]
fn the_deepest_txn_is_walked_on_the_stack_of_a_core() {
    let walk = || {
        let raw = nested(proto::txn::LEVELS_MAX / 2 - 1);
        let request = proto::txn::decode(raw.clone()).unwrap();
        crate::kv::check::txn(&request, 1_000_000).unwrap();
        let (outcome, events) = Store::new().execute(true, Request::Txn(request), RaisedBy::Hand);
        assert_eq!(events.len(), 1);
        let Ok(Outcome::Txn(response)) = &outcome else { panic!("it is done") };
        assert!(prost::Message::encode_to_vec(response.as_ref()).len() > 10_000);
        let counters = crate::metrics::counters::CommitCounters::default();
        count::applied(&counters, &outcome, Written::of(&events), false);
        let text = crate::insight::text::request(crate::method::Method::Txn, &raw);
        assert!(text.contains("request_txn"));
    };
    let core = std::thread::Builder::new().stack_size(crate::cores::STACK_BYTES).spawn(walk).unwrap();
    core.join().unwrap();
}

fn random_ops(random: &mut SmallRng, depth: usize) -> Vec<request_op::Request> {
    let mut ops = Vec::new();
    for _ in 0..random.random_range(0..4) {
        let (one, other) = (KEYS[random.random_range(0..5)], KEYS[random.random_range(0..5)]);
        ops.push(match random.random_range(0..10) {
            0..4 => put(one, random.random_bool(0.5)),
            4 => delete(one, b""),
            5 => delete(one, other),
            6 => delete(one, b"\0"),
            7 | 8 => request_op::Request::RequestRange(pb::RangeRequest {
                key: Bytes::copy_from_slice(one),
                range_end: Bytes::from_static(b"\0"),
                limit: random.random_range(0..3),
                revision: random.random_range(0..9),
                ..Default::default()
            }),
            _ if depth > 0 => request_op::Request::RequestTxn(txn(random_ops(random, depth - 1))),
            _ => continue,
        });
    }
    ops
}

#[test]
fn no_txn_panics_and_a_refused_one_changes_nothing_and_nobody_need_wait() {
    let mut refused = 0;
    for seed in 0..300 {
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut store, mut replayed) = (Store::new(), Store::new());
        for _ in 0..40 {
            let request = txn(random_ops(&mut random, 2));
            if crate::kv::check::txn(&request, 128).is_err() {
                continue;
            }
            let before = (store.mvcc.live().revision(), store.live_keys());
            let result = store.apply(Request::Txn(request.clone()));
            assert_eq!(replayed.apply_for(false, Request::Txn(request)), result, "seed {seed}");
            let after = (store.mvcc.live().revision(), store.live_keys());
            match result {
                Ok(0) | Err(_) => assert_eq!(before, after, "seed {seed}"),
                Ok(_) => assert_eq!(before.0 + 1, after.0, "seed {seed}"),
            }
            refused += u32::from(result.is_err());
        }
        store.mvcc.live().verify().unwrap();
        assert_eq!(store.hash(), replayed.hash(), "seed {seed}");
    }
    assert!(refused > 100, "the checks are reached");
}

fn alarm(action: AlarmAction, member_id: u64, alarm: i32) -> Request {
    Request::Alarm(pb::AlarmRequest { action: action as i32, member_id, alarm })
}

impl Store {
    /// The alarms in the answer to an alarm request.
    fn alarms(&mut self, request: Request, raised_by: RaisedBy) -> Vec<(u64, i32)> {
        match self.execute(true, request, raised_by).0 {
            Ok(Outcome::Alarm { alarms, .. }) => alarms,
            other => panic!("an alarm request has an alarm response, not {other:?}"),
        }
    }
}

#[test]
fn alarms_are_raised_listed_and_taken_back_as_in_etcd_and_lie_in_the_meta_tree() {
    use AlarmAction::{Activate, Deactivate, Get};
    let mut store = Store::new();
    type Case = (AlarmAction, u64, i32, &'static [(u64, i32)]);
    let cases: [Case; 12] = [
        (Get, 0, 0, &[]),
        (Activate, 7, 1, &[(7, 1)]),
        (Activate, 7, 1, &[(7, 1)]),
        (Activate, 7, 0, &[]),
        (Activate, 0, 2, &[(0, 2)]),
        (Activate, 3, 9, &[(3, 9)]),
        (Get, 5, 0, &[(0, 2), (3, 9), (7, 1)]),
        (Get, 5, 9, &[(3, 9)]),
        (Deactivate, 6, 1, &[]),
        (Deactivate, 7, 0, &[]),
        (Deactivate, 7, 1, &[(7, 1)]),
        (Deactivate, 7, 1, &[]),
    ];
    for (number, (action, member, kind, shown)) in cases.into_iter().enumerate() {
        assert_eq!(store.alarms(alarm(action, member, kind), RaisedBy::Hand), shown, "case {number}");
    }
    let restored = store.alarms_stored();
    assert_eq!(restored, store.applier.cluster.alarms);
    assert_eq!(restored.len(), 2);
    assert_eq!(store.mvcc.live().revision(), 1, "an alarm is no revision");
}

#[test]
fn the_origin_of_an_alarm_is_kept_until_a_hand_raises_it() {
    let mut store = Store::new();
    let raise = alarm(AlarmAction::Activate, 7, 1);
    let of = |store: &mut Store| store.alarms_stored()[&(7, 1)];
    store.alarms(raise.clone(), RaisedBy::Quota);
    assert_eq!(of(&mut store), RaisedBy::Quota);
    store.alarms(raise.clone(), RaisedBy::Hand);
    assert_eq!(of(&mut store), RaisedBy::Hand);
    store.alarms(raise, RaisedBy::Quota);
    assert_eq!(of(&mut store), RaisedBy::Hand);
}

#[test]
fn alarms_are_bounded_and_what_they_refuse_changes_nothing() {
    let mut store = Store::new();
    for member in 0..quota::ALARMS_MAX as u64 {
        store.apply(alarm(AlarmAction::Activate, member, 1)).unwrap();
    }
    assert_eq!(store.apply(alarm(AlarmAction::Activate, u64::MAX, 1)), Err(Error::TooManyRequests));
    store.apply(alarm(AlarmAction::Activate, 5, 1)).unwrap();
    assert_eq!(store.apply(Request::Txn(txn(vec![put(b"a", false)]))), Err(Error::NoSpace));
    assert_eq!(store.apply(Request::Txn(txn(vec![delete(b"a", b"")]))), Ok(0));
    assert_eq!(store.mvcc.live().revision(), 1);
}

/// A random put, or the txn with which Kubernetes puts, or a request that looks like one of them.
fn random_put(random: &mut SmallRng, revision: i64) -> Request {
    let key = Bytes::from_static(KEYS[random.random_range(0..5)]);
    let put = pb::PutRequest {
        key: key.clone(),
        value: vec![random.random(); 3].into(),
        lease: if random.random_bool(0.2) { 9 } else { 0 },
        prev_kv: random.random_bool(0.1),
        ignore_value: false,
        ignore_lease: random.random_bool(0.05),
    };
    if random.random_bool(0.2) {
        return Request::DeleteRange(pb::DeleteRangeRequest { key, ..Default::default() });
    }
    if random.random_bool(0.5) {
        return Request::Put(put);
    }
    let target_union = match random.random_range(0..4) {
        0 => None,
        1 => Some(compare::TargetUnion::Version(1)),
        _ => Some(compare::TargetUnion::ModRevision(random.random_range(0..=revision))),
    };
    let range_end = if random.random_bool(0.1) { Bytes::from_static(b"z") } else { Bytes::new() };
    let (result, target) = (random.random_range(0..4), if random.random_bool(0.8) { 2 } else { 0 });
    let compare = pb::Compare { result, target, key: key.clone(), range_end, target_union };
    let range = pb::RangeRequest { key, ..Default::default() };
    let failure = vec![pb::RequestOp { request: Some(request_op::Request::RequestRange(range)) }];
    let mut request = pb::TxnRequest { compare: vec![compare], failure, ..Default::default() };
    for _ in 0..random.random_range(1..=2) {
        let put = pb::PutRequest { key: KEYS[request.success.len()].into(), ..put.clone() };
        let put = if request.success.is_empty() {
            pb::PutRequest { key: request.compare[0].key.clone(), ..put }
        } else {
            put
        };
        request.success.push(pb::RequestOp { request: Some(request_op::Request::RequestPut(put)) });
    }
    Request::Txn(request)
}

#[test]
fn what_is_put_without_a_look_before_is_what_a_look_before_would_give() {
    let mut done = 0;
    for seed in 0..200 {
        let mut random = SmallRng::seed_from_u64(seed);
        let (mut plain, mut looked) = (Store::new(), Store::new());
        for store in [&mut plain, &mut looked] {
            store.apply(Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id: 9 })).unwrap();
        }
        for step in 0..60 {
            let request = random_put(&mut random, plain.mvcc.live().revision());
            let (result, events) = plain.execute(true, request.clone(), RaisedBy::Hand);
            let (expected, expected_events) = looked.execute_with_a_look(request.clone());
            assert_eq!(result, expected, "seed {seed}, step {step}: {request:?}");
            assert_eq!(format!("{events:?}"), format!("{expected_events:?}"), "seed {seed}, step {step}");
            done += u32::from(result.is_ok());
        }
        plain.mvcc.live().verify().unwrap();
        assert_eq!(plain.hash(), looked.hash(), "seed {seed}");
        assert!(plain.apply(Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 9 })).is_ok());
        assert!(looked.apply(Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 9 })).is_ok());
        assert_eq!(plain.hash(), looked.hash(), "seed {seed}: attachments are the same");
    }
    assert!(done > 5000);
}
