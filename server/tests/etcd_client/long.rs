//! A delete of very many keys: it is one revision and, to each watcher, its events in order. A member that is killed in
//! the middle of it goes on with it. Reads of very many keys in a txn, and their bound.

use std::time::Duration;

use etcd_client::{
    Client, Compare, CompareOp, DeleteOptions, EventType, GetOptions, KeyValue, LeaseGrantOptions,
    LeaseTimeToLiveOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchOptions, WatchStream,
};
use tempfile::TempDir;

use crate::{
    member::{Member, fresh},
    next, revision,
};

const KEYS: usize = 20_000;
const KEYS_PER_TXN: usize = 128;
const LEASE: i64 = 7;

fn key(number: usize) -> String {
    format!("k{number:06}")
}

/// Puts the keys, each second one with a lease, and one key besides. Returns the revision.
async fn fill(client: &mut Client) -> i64 {
    client.lease_grant(6000, Some(LeaseGrantOptions::new().with_id(LEASE))).await.unwrap();
    for first in (0..KEYS).step_by(KEYS_PER_TXN) {
        let numbers = first..KEYS.min(first + KEYS_PER_TXN);
        let with_lease = |number| (number % 2 == 0).then(|| PutOptions::new().with_lease(LEASE));
        let puts: Vec<_> = numbers.map(|number| TxnOp::put(key(number), "v", with_lease(number))).collect();
        client.txn(Txn::new().and_then(puts)).await.unwrap();
    }
    revision(client.put("other", "v", None).await.unwrap().header())
}

/// The keys of the events at `main`, which must all be deletes of keys that had a value.
async fn deleted(stream: &mut WatchStream, main: i64) -> Vec<Vec<u8>> {
    let message = next(stream).await;
    let events = message.events().iter().map(|event| {
        let kv = event.kv().unwrap();
        assert_eq!((event.event_type(), kv.mod_revision()), (EventType::Delete, main));
        assert_eq!(event.prev_kv().unwrap().value(), b"v");
        kv.key().to_vec()
    });
    events.collect()
}

async fn count(client: &mut Client) -> i64 {
    client.get("", Some(GetOptions::new().with_all_keys().with_count_only())).await.unwrap().count()
}

#[tokio::test]
async fn a_delete_of_many_keys_is_one_revision_and_one_message() {
    let (_dir, _member, mut client) = fresh().await;
    let before = fill(&mut client).await;
    let options = || WatchOptions::new().with_prefix().with_prev_key();
    let mut streams = Vec::new();
    for prefix in ["k", "k00", "other"] {
        let mut stream = client.watch(prefix, Some(options())).await.unwrap();
        assert!(next(&mut stream).await.created());
        streams.push(stream);
    }
    let answer = client.delete("k", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    assert_eq!((answer.deleted(), revision(answer.header())), (KEYS as i64, before + 1));
    client.put("other", "w", None).await.unwrap();
    let all = deleted(&mut streams[0], before + 1).await;
    assert!(all.iter().eq(&(0..KEYS).map(|number| key(number).into_bytes()).collect::<Vec<_>>()));
    let some = deleted(&mut streams[1], before + 1).await;
    assert!(some.iter().eq(all.iter().filter(|key| key.starts_with(b"k00"))));
    assert_eq!(revision(next(&mut streams[2]).await.header()), before + 2);
    assert_eq!(count(&mut client).await, 1);
    // A watcher of the past gets the same, and what came before is there.
    let mut past = client.watch("k", Some(options().with_start_revision(before + 1))).await.unwrap();
    assert!(next(&mut past).await.created());
    assert!(deleted(&mut past, before + 1).await == all);
    let options = GetOptions::new().with_prefix().with_count_only().with_revision(before);
    assert_eq!(client.get("k", Some(options)).await.unwrap().count(), KEYS as i64);
}

#[tokio::test]
async fn a_revocation_and_a_txn_of_many_keys_are_one_revision() {
    let (_dir, _member, mut client) = fresh().await;
    let before = fill(&mut client).await;
    client.lease_revoke(LEASE).await.unwrap();
    assert_eq!(count(&mut client).await, 1 + KEYS as i64 / 2);
    let delete = |from: usize, to: usize| TxnOp::delete(key(from), Some(DeleteOptions::new().with_range(key(to))));
    let ops = [delete(0, 5000), TxnOp::put("between", "v", None), TxnOp::get("between", None), delete(5000, KEYS)];
    let answer = client.txn(Txn::new().and_then(ops)).await.unwrap();
    assert_eq!((answer.op_responses().len(), revision(answer.header())), (4, before + 2));
    assert_eq!(count(&mut client).await, 2);
}

#[tokio::test]
async fn a_member_that_is_killed_in_the_middle_of_a_delete_goes_on_with_it() {
    let dir = TempDir::new().unwrap();
    let mut member = Member::start(dir.path()).await;
    let mut client = member.connect().await;
    let before = fill(&mut client).await;
    for wait_ms in [0, 1, 2, 4, 8, 16] {
        let mut deleting = member.connect().await;
        let delete = async move { deleting.delete("k", Some(DeleteOptions::new().with_prefix())).await };
        let delete = tokio::spawn(delete);
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        member.kill();
        let was_told = delete.await.unwrap().is_ok();
        member = Member::start(dir.path()).await;
        client = member.connect().await;
        // All of it, or nothing.
        let left = count(&mut client).await;
        assert!(left == 1 || (left == 1 + KEYS as i64 && !was_told), "{left} keys");
        if left == 1 {
            break;
        }
    }
    client.delete("k", Some(DeleteOptions::new().with_prefix())).await.unwrap();
    let answer = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    assert_eq!((answer.count(), answer.kvs()[0].key()), (1, &b"other"[..]));
    assert_eq!(revision(answer.header()), before + 1);
}

#[tokio::test]
async fn a_txn_reads_many_keys_and_one_that_would_show_too_much_is_made_without_an_answer() {
    let dir = TempDir::new().unwrap();
    let member = Member::start_with(dir.path(), &["--server-gathered-bytes-max=3MiB"]).await;
    let mut client = member.connect().await;
    let before = fill(&mut client).await;
    let get = |options: GetOptions| TxnOp::get("k", Some(options.with_prefix()));
    let ops = |options: GetOptions| {
        let compare = Compare::version("k", CompareOp::Equal, 1).with_prefix();
        Txn::new().when([compare]).and_then([TxnOp::put("other", "w", None), get(options)])
    };
    let answer = client.txn(ops(GetOptions::new())).await.unwrap();
    assert!(answer.succeeded());
    let responses = answer.op_responses();
    let [TxnOpResponse::Put(_), TxnOpResponse::Get(found)] = &responses[..] else { panic!("{responses:?}") };
    assert!(found.kvs().iter().map(KeyValue::key).eq((0..KEYS).map(key).map(String::into_bytes)));
    assert_eq!((found.count(), revision(answer.header())), (KEYS as i64, before + 1));
    // What only reads, and what is sorted, has the same bound.
    let twice = || Txn::new().and_then([get(GetOptions::new()), get(GetOptions::new())]);
    let sorted = || GetOptions::new().with_sort(SortTarget::Mod, SortOrder::Descend);
    assert_eq!(client.get("k", Some(sorted().with_prefix())).await.unwrap().kvs().len(), KEYS);
    let is_too_large = |error: etcd_client::Error| match error {
        etcd_client::Error::GRpcStatus(status) => {
            assert!(status.message().starts_with("trying to send message larger than max"), "{status}");
            status.code() as i32 == 8
        }
        other => panic!("{other}"),
    };
    let once = client.txn(Txn::new().and_then([get(GetOptions::new())])).await.unwrap().op_responses();
    let [TxnOpResponse::Get(found)] = &once[..] else { panic!("{once:?}") };
    assert_eq!(found.kvs().len(), KEYS);
    assert!(is_too_large(client.txn(twice()).await.unwrap_err()));
    let puts: Vec<_> = (0..KEYS_PER_TXN).map(|number| TxnOp::put(key(number), vec![7; 10_000], None)).collect();
    client.txn(Txn::new().and_then(puts)).await.unwrap();
    assert!(is_too_large(client.get("k", Some(sorted().with_prefix())).await.unwrap_err()));
    let in_order = client.get("k", Some(GetOptions::new().with_prefix())).await.unwrap();
    assert_eq!(in_order.kvs().len(), KEYS);
    let txn = Txn::new().and_then([TxnOp::put("other", "x", None), get(GetOptions::new())]);
    assert!(is_too_large(client.txn(txn).await.unwrap_err()));
    let other = client.get("other", None).await.unwrap();
    assert_eq!((other.kvs()[0].value(), revision(other.header())), (&b"x"[..], before + 3));
    let keys = || Some(LeaseTimeToLiveOptions::new().with_keys());
    assert_eq!(client.lease_time_to_live(LEASE, keys()).await.unwrap().keys().len(), KEYS / 2 - KEYS_PER_TXN / 2);
    let delete = DeleteOptions::new().with_prefix().with_prev_key();
    assert!(is_too_large(client.delete("k", Some(delete)).await.unwrap_err()));
    assert_eq!(count(&mut client).await, 1);
}

/// `ORLOP_LEASE_KEYS=1000000 server/tests/etcd_client/run ORLOP --nocapture keys_of_a_lease` gives the figures.
#[tokio::test]
async fn the_keys_of_a_lease_go_while_others_are_served() {
    let keys = std::env::var("ORLOP_LEASE_KEYS").map_or(KEYS, |keys| keys.parse().expect("a number"));
    let (_dir, member, mut client) = fresh().await;
    client.lease_grant(6000, Some(LeaseGrantOptions::new().with_id(LEASE))).await.unwrap();
    let mut fills = tokio::task::JoinSet::new();
    for part in 0..8 {
        let mut client = member.connect().await;
        fills.spawn(async move {
            for first in (part * KEYS_PER_TXN..keys).step_by(8 * KEYS_PER_TXN) {
                let numbers = first..keys.min(first + KEYS_PER_TXN);
                let put = |number| TxnOp::put(format!("{number:024}"), "v", Some(PutOptions::new().with_lease(LEASE)));
                client.txn(Txn::new().and_then(numbers.map(put).collect::<Vec<_>>())).await.unwrap();
            }
        });
    }
    while let Some(filled) = fills.join_next().await {
        filled.unwrap();
    }
    let is_over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (mut prober, stop) = (member.connect().await, std::sync::Arc::clone(&is_over));
    let probing = tokio::spawn(async move {
        let mut longest = Duration::ZERO;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let began = std::time::Instant::now();
            drop(prober.put("probe", "v", None).await);
            longest = longest.max(began.elapsed());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        longest
    });
    tokio::time::sleep(Duration::from_millis(200)).await;
    let (before, began) = (member.peak_memory_kib(), std::time::Instant::now());
    client.lease_revoke(LEASE).await.unwrap();
    let took = began.elapsed();
    is_over.store(true, std::sync::atomic::Ordering::Relaxed);
    let longest = probing.await.unwrap();
    let after = member.peak_memory_kib();
    eprintln!("revoked in {took:?}; a put waited {longest:?} at most; peak memory {before} KiB before, {after} after");
    assert_eq!(count(&mut client).await, 1);
}
