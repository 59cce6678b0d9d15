//! What clients ask for: as Kubernetes does, as etcd's own tests do, and as nobody does.
//!
//! Values are written once: each has the number of its request in it.

use bytes::Bytes;
use engine::disk::sim::Random;
use proto::{
    etcdserverpb::{
        self as pb,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op,
    },
    internal::Request,
};

const KEYS: u64 = 40;
/// Keys of a history that is searched: few, so that many operations meet.
const REGISTERS: u64 = 4;

/// What a client asks for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Asks {
    Write(Request),
    Read(pb::RangeRequest),
}

/// What a client knows when it asks.
pub(crate) struct Known<'a> {
    /// What it wrote or read last of a key: its revision and value; 0 for an absent key.
    pub(crate) key: &'a dyn Fn(&Bytes) -> (i64, Option<Bytes>),
    /// A lease that may be alive; 0 for none.
    pub(crate) lease: i64,
    /// The newest revision that anybody was told of.
    pub(crate) revision: i64,
    /// Keys of which many are written and deleted together.
    pub(crate) bulk_keys: u64,
    /// A number that no other request has.
    pub(crate) number: u64,
}

pub(crate) fn key(random: &mut Random) -> Bytes {
    format!("/registry/{:04}", random.below(KEYS)).into()
}

fn value(random: &mut Random, number: u64) -> Bytes {
    let len = usize::try_from(if random.chance(1, 30) { random.below(9000) } else { random.below(200) });
    format!("{number}-{}", "x".repeat(len.expect("small"))).into()
}

fn put(key: Bytes, value: Bytes) -> pb::PutRequest {
    pb::PutRequest { key, value, ..pb::PutRequest::default() }
}

fn get(key: Bytes) -> pb::RangeRequest {
    pb::RangeRequest { key, ..pb::RangeRequest::default() }
}

fn op(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn compare(key: Bytes, result: CompareResult, wanted: TargetUnion) -> pb::Compare {
    let target = match wanted {
        TargetUnion::Version(_) => CompareTarget::Version,
        TargetUnion::CreateRevision(_) => CompareTarget::Create,
        TargetUnion::ModRevision(_) => CompareTarget::Mod,
        TargetUnion::Value(_) => CompareTarget::Value,
        TargetUnion::Lease(_) => CompareTarget::Lease,
    };
    let (result, target) = (result as i32, target as i32);
    pb::Compare { result, target, key, range_end: Bytes::new(), target_union: Some(wanted) }
}

/// A request of any kind.
pub(crate) fn drawn(random: &mut Random, known: &Known<'_>) -> Asks {
    let request = match random.below(100) {
        0..=29 => Request::Put(pb::PutRequest {
            lease: if random.chance(1, 8) { known.lease } else { 0 },
            prev_kv: random.chance(1, 4),
            ..put(key(random), value(random, known.number))
        }),
        30..=44 => Request::Txn(put_if_unchanged(random, known)),
        45..=52 => Request::Txn(txn_of_several(random, known, true)),
        53..=57 => Request::DeleteRange(pb::DeleteRangeRequest { key: key(random), ..Default::default() }),
        58..=59 => Request::DeleteRange(delete_some(random, "/registry/", KEYS)),
        60 => Request::Txn(put_many(random, known)),
        61 => Request::DeleteRange(delete_some(random, "/bulk/", known.bulk_keys)),
        62..=63 => {
            let revision = known.revision - random.below(100).cast_signed();
            Request::Compaction(pb::CompactionRequest { revision: revision.max(1), physical: false })
        }
        _ => return Asks::Read(read(random, known)),
    };
    Asks::Write(request)
}

/// A request about one key, for histories that are searched.
pub(crate) fn drawn_of_registers(random: &mut Random, known: &Known<'_>) -> Asks {
    let key: Bytes = format!("/register/{}", random.below(REGISTERS)).into();
    let value: Bytes = known.number.to_string().into();
    Asks::Write(match random.below(10) {
        0..=3 => return Asks::Read(get(key)),
        4..=6 => Request::Put(put(key, value)),
        7 => Request::DeleteRange(pb::DeleteRangeRequest { key, ..Default::default() }),
        _ => {
            let unchanged = TargetUnion::ModRevision((known.key)(&key).0);
            let success = vec![op(request_op::Request::RequestPut(put(key.clone(), value)))];
            let compare = vec![compare(key, CompareResult::Equal, unchanged)];
            Request::Txn(pb::TxnRequest { compare, success, failure: Vec::new() })
        }
    })
}

/// As Kubernetes writes.
fn put_if_unchanged(random: &mut Random, known: &Known<'_>) -> pb::TxnRequest {
    let key = key(random);
    let unchanged = TargetUnion::ModRevision((known.key)(&key).0);
    let write = match random.below(4) {
        0 => request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest { key: key.clone(), ..Default::default() }),
        _ => request_op::Request::RequestPut(put(key.clone(), value(random, known.number))),
    };
    let failure = vec![op(request_op::Request::RequestRange(get(key.clone())))];
    let failure = if random.chance(1, 2) { failure } else { Vec::new() };
    let compare = vec![compare(key, CompareResult::Equal, unchanged)];
    pb::TxnRequest { compare, success: vec![op(write)], failure }
}

/// Several compares, and several operations on keys that differ.
fn txn_of_several(random: &mut Random, known: &Known<'_>, may_nest: bool) -> pb::TxnRequest {
    use CompareResult::{Equal, Greater, Less, NotEqual};
    let compares = (0..random.below(3)).map(|_| {
        let key = key(random);
        let result = [Equal, NotEqual, Greater, Less][usize::try_from(random.below(4)).expect("small")];
        let (revision, value) = (known.key)(&key);
        let wanted = match random.below(5) {
            0 => TargetUnion::Version(random.below(3).cast_signed()),
            1 => TargetUnion::CreateRevision(revision),
            2 => TargetUnion::ModRevision(revision),
            3 => TargetUnion::Value(value.unwrap_or_default()),
            _ => TargetUnion::Lease(known.lease),
        };
        let mut compare = compare(key, result, wanted);
        if random.chance(1, 5) {
            compare.range_end = Bytes::from_static(b"/registry0");
        }
        compare
    });
    let compare = compares.collect();
    // No key is written twice: each operation has keys of its own.
    let first = random.below(KEYS);
    let mut number = 0;
    let mut ops = |random: &mut Random| -> Vec<pb::RequestOp> {
        let count = random.below(4);
        let ops = (0..count).map(|_| {
            number += 1;
            let key: Bytes = format!("/registry/{:04}", (first + number) % KEYS).into();
            op(match random.below(4) {
                0 => request_op::Request::RequestRange(read_now(random, key)),
                1 => request_op::Request::RequestDeleteRange(pb::DeleteRangeRequest {
                    key,
                    prev_kv: random.chance(1, 2),
                    ..Default::default()
                }),
                _ => request_op::Request::RequestPut(pb::PutRequest {
                    prev_kv: random.chance(1, 3),
                    ..put(key, value(random, known.number))
                }),
            })
        });
        ops.collect()
    };
    let (mut success, failure) = (ops(random), ops(random));
    if may_nest && random.chance(1, 4) {
        let nested =
            pb::TxnRequest { failure: ops(random), ..pb::TxnRequest { success: ops(random), ..Default::default() } };
        success.push(op(request_op::Request::RequestTxn(nested)));
    }
    pb::TxnRequest { compare, success, failure }
}

/// Very many keys at once.
fn put_many(random: &mut Random, known: &Known<'_>) -> pb::TxnRequest {
    let half = known.bulk_keys / 2;
    let (from, count) = (random.below(half), 20 + random.below(half - 20));
    let put = |number: u64| {
        let (key, value) = (format!("/bulk/{number:04}").into(), format!("{}-{number}", known.number).into());
        let lease = if number.is_multiple_of(7) { known.lease } else { 0 };
        op(request_op::Request::RequestPut(pb::PutRequest { lease, ..put(key, value) }))
    };
    pb::TxnRequest { success: (from..from + count).map(put).collect(), ..pb::TxnRequest::default() }
}

/// A range of the keys below `prefix`, which may hold so many.
fn delete_some(random: &mut Random, prefix: &str, keys: u64) -> pb::DeleteRangeRequest {
    let mut ends = [random.below(keys + 1), random.below(keys + 1)];
    ends.sort_unstable();
    if random.chance(1, 3) {
        ends = [0, keys];
    }
    let [key, range_end] = ends.map(|end| format!("{prefix}{end:04}").into());
    pb::DeleteRangeRequest { key, range_end, prev_kv: random.chance(1, 4) }
}

/// A read of one key, or of a range that begins there.
fn read_now(random: &mut Random, key: Bytes) -> pb::RangeRequest {
    let mut request = get(key);
    if random.chance(1, 3) {
        request.range_end = Bytes::from_static(if random.chance(1, 8) { b"\0" } else { b"/registry0" });
        request.limit = [0, 0, 5][usize::try_from(random.below(3)).expect("small")];
        request.count_only = random.chance(1, 6);
        request.keys_only = random.chance(1, 6);
    }
    request
}

fn read(random: &mut Random, known: &Known<'_>) -> pb::RangeRequest {
    let key = key(random);
    let mut request = read_now(random, key);
    request.serializable = random.chance(1, 5);
    if random.chance(1, 6) {
        request.serializable = random.chance(1, 2);
        request.key = Bytes::from_static(b"/bulk/");
        request.range_end = Bytes::from_static(b"/bulk0");
    }
    if random.chance(1, 6) {
        // Perhaps one that does not exist yet, or no longer.
        request.revision = (known.revision + 2 - random.below(150).cast_signed()).max(0);
    }
    request
}
