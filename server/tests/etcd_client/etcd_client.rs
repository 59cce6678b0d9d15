//! The API as the `etcd-client` crate sees it, against the binary that `ORLOP` names.
//!
//! Each test has a member of its own, so revisions are known numbers: an empty store is at 1. The tests ask for what
//! etcd does. The differential test compares far more answers; this one looks at what a Rust program makes of them.
//! `durability` kills the process, `long` deletes many keys at once, `damage` damages its data, `space` takes its space
//! away, `member` starts it.

mod damage;
mod durability;
mod leases;
mod long;
mod member;
mod space;
mod watches;

use etcd_client::{
    CompactionOptions, Compare, CompareOp, DeleteOptions, Error, GetOptions, KeyValue, PutOptions, ResponseHeader,
    SortOrder, SortTarget, Txn, TxnOp, TxnOpResponse, WatchResponse, WatchStream,
};

use crate::member::{Member, WAIT_MAX, fresh};

/// gRPC's codes.
const INVALID_ARGUMENT: i32 = 3;
const NOT_FOUND: i32 = 5;
const FAILED_PRECONDITION: i32 = 9;
const OUT_OF_RANGE: i32 = 11;

const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const FUTURE: &str = "etcdserver: mvcc: required revision is a future revision";

fn revision(header: Option<&ResponseHeader>) -> i64 {
    header.expect("an answer has a header").revision()
}

/// Code and message of an answer that must be an error.
fn refusal<T: std::fmt::Debug>(answer: Result<T, Error>) -> (i32, String) {
    match answer {
        Err(Error::GRpcStatus(status)) => (status.code() as i32, status.message().to_owned()),
        other => panic!("expected a gRPC error, not {other:?}"),
    }
}

/// The stream's next message, which must come.
async fn next(stream: &mut WatchStream) -> WatchResponse {
    let message = tokio::time::timeout(WAIT_MAX, stream.message()).await.expect("a message comes");
    message.expect("the stream is whole").expect("the stream stays open")
}

fn keys(kvs: &[KeyValue]) -> Vec<&[u8]> {
    kvs.iter().map(KeyValue::key).collect()
}

#[tokio::test]
async fn a_put_answers_its_revision_and_what_it_replaced() {
    let (_dir, _member, mut client) = fresh().await;
    let key = b"\x00k\xff".to_vec();
    let with_previous = || Some(PutOptions::new().with_prev_key());
    let first = client.put(key.clone(), "one", with_previous()).await.unwrap();
    assert_eq!(revision(first.header()), 2);
    assert!(first.prev_key().is_none());
    let second = client.put(key.clone(), b"\xfe\x00".to_vec(), with_previous()).await.unwrap();
    assert_eq!(revision(second.header()), 3);
    let replaced = second.prev_key().expect("there was one");
    assert_eq!((replaced.value(), replaced.version(), replaced.mod_revision()), (&b"one"[..], 1, 2));

    let found = client.get(key.clone(), None).await.unwrap();
    let kv = &found.kvs()[0];
    assert_eq!((found.count(), found.more(), revision(found.header())), (1, false, 3));
    assert_eq!((kv.key(), kv.value()), (&key[..], &b"\xfe\x00"[..]));
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version(), kv.lease()), (2, 3, 2, 0));

    let kept = client.put(key.clone(), "", Some(PutOptions::new().with_ignore_value())).await.unwrap();
    assert_eq!(revision(kept.header()), 4);
    assert_eq!(client.get(key, None).await.unwrap().kvs()[0].value(), b"\xfe\x00");
    let missing = client.get("missing", None).await.unwrap();
    assert_eq!((missing.kvs().len(), missing.count(), revision(missing.header())), (0, 0, 4));
    let unnamed = client.put("", "value", None).await;
    assert_eq!(refusal(unnamed), (INVALID_ARGUMENT, "etcdserver: key is not provided".to_owned()));
}

/// Revisions 2 to 8, in this order; the last is a second version.
const PUTS: [(&[u8], &str); 7] =
    [(b"a", "7"), (b"b/1", "6"), (b"b/2", "5"), (b"b/3", "4"), (b"c", "3"), (b"\xff\xff1", "2"), (b"b/2", "9")];

#[tokio::test]
async fn ranges_hold_what_their_options_ask_for() {
    let (_dir, _member, mut client) = fresh().await;
    for (key, value) in PUTS {
        client.put(key, value, None).await.unwrap();
    }
    let new = GetOptions::new;
    let all: &[&[u8]] = &[b"a", b"b/1", b"b/2", b"b/3", b"c", b"\xff\xff1"];
    type Row<'a> = (&'a [u8], GetOptions, &'a [&'a [u8]], i64, bool);
    let rows: [Row; 17] = [
        (b"b/", new().with_prefix(), &all[1..4], 3, false),
        (b"\xff\xff", new().with_prefix(), &all[5..], 1, false),
        (b"b/2", new().with_range("c"), &all[2..4], 2, false),
        (b"c", new().with_range("b"), &[], 0, false),
        (b"b/3", new().with_from_key(), &all[3..], 3, false),
        (b"", new().with_all_keys(), all, 6, false),
        (b"b/", new().with_prefix().with_limit(2), &all[1..3], 3, true),
        (b"b/", new().with_prefix().with_limit(3), &all[1..4], 3, false),
        (b"b/", new().with_prefix().with_count_only(), &[], 3, false),
        (b"b/", new().with_prefix().with_serializable(), &all[1..4], 3, false),
        (b"b/", new().with_prefix().with_revision(4), &all[1..3], 2, false),
        (
            b"b/",
            new().with_prefix().with_sort(SortTarget::Key, SortOrder::Descend),
            &[b"b/3", b"b/2", b"b/1"],
            3,
            false,
        ),
        (b"", new().with_all_keys().with_sort(SortTarget::Value, SortOrder::Descend).with_limit(1), &[b"b/2"], 6, true),
        (b"b/", new().with_prefix().with_sort(SortTarget::Mod, SortOrder::Ascend), &[b"b/1", b"b/3", b"b/2"], 3, false),
        (b"", new().with_all_keys().with_min_mod_revision(6), &[b"b/2", b"c", b"\xff\xff1"], 6, false),
        (b"", new().with_all_keys().with_max_mod_revision(3), &all[..2], 6, false),
        (b"", new().with_all_keys().with_min_create_revision(4).with_max_create_revision(5), &all[2..4], 6, false),
    ];
    for (position, (key, options, wanted, count, more)) in rows.into_iter().enumerate() {
        let found = client.get(key, Some(options)).await.unwrap();
        assert_eq!((keys(found.kvs()), found.count(), found.more()), (wanted.to_vec(), count, more), "row {position}");
        assert_eq!(revision(found.header()), 8, "row {position}: the store's revision, not the one that was read");
    }
    let bare = client.get("b/2", Some(new().with_keys_only())).await.unwrap();
    assert_eq!((bare.kvs()[0].value(), bare.kvs()[0].version()), (&b""[..], 2));
    let old = client.get("b/2", Some(new().with_revision(7))).await.unwrap();
    assert_eq!((old.kvs()[0].value(), old.kvs()[0].version()), (&b"5"[..], 1));
}

#[tokio::test]
async fn a_streamed_range_is_the_range_in_pieces() {
    let (_dir, _member, mut client) = fresh().await;
    let puts: Vec<_> = (0..100).map(|i| TxnOp::put(format!("k{i:03}"), vec![b'v'; i], None)).collect();
    client.txn(Txn::new().and_then(puts)).await.unwrap();
    let options = || Some(GetOptions::new().with_prefix().with_limit(90));
    let whole = client.get("k", options()).await.unwrap();
    let mut stream = client.kv_client().get_stream("k", options()).await.unwrap();
    let (mut pieces, mut streamed, mut is_last) = (0, Vec::new(), false);
    while let Some(mut piece) = stream.message().await.unwrap() {
        assert!(!is_last, "the header comes with the last piece");
        is_last = piece.header().is_some();
        if is_last {
            assert_eq!((piece.count(), piece.more()), (whole.count(), whole.more()));
            assert_eq!(revision(piece.header()), revision(whole.header()));
        }
        streamed.extend(piece.take_kvs().into_iter().map(KeyValue::into_key_value));
        pieces += 1;
    }
    assert!(is_last && pieces > 1, "{pieces} pieces");
    assert_eq!((whole.kvs().len(), whole.count(), whole.more()), (90, 100, true));
    assert!(whole.kvs().iter().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).eq(streamed));
}

#[tokio::test]
async fn a_delete_answers_what_was_there_and_counts_once() {
    let (_dir, _member, mut client) = fresh().await;
    for (key, value) in PUTS {
        client.put(key, value, None).await.unwrap();
    }
    let options = || Some(DeleteOptions::new().with_prefix().with_prev_key());
    let deleted = client.delete("b/", options()).await.unwrap();
    assert_eq!((deleted.deleted(), revision(deleted.header())), (3, 9));
    let values: Vec<_> = deleted.prev_kvs().iter().map(KeyValue::value).collect();
    assert_eq!((keys(deleted.prev_kvs()), values), (vec![&b"b/1"[..], b"b/2", b"b/3"], vec![&b"6"[..], b"9", b"4"]));
    let nothing = client.delete("b/", options()).await.unwrap();
    assert_eq!((nothing.deleted(), revision(nothing.header())), (0, 9));
    let ranged = client.delete("b", Some(DeleteOptions::new().with_range("d"))).await.unwrap();
    assert_eq!((ranged.deleted(), ranged.prev_kvs().len(), revision(ranged.header())), (1, 0, 10));

    client.put("b/2", "again", None).await.unwrap();
    let reborn = client.get("b/2", None).await.unwrap();
    let kv = &reborn.kvs()[0];
    assert_eq!((kv.create_revision(), kv.mod_revision(), kv.version()), (11, 11, 1));
    let before = client.get("b/2", Some(GetOptions::new().with_revision(8))).await.unwrap();
    assert_eq!((before.kvs()[0].value(), before.kvs()[0].create_revision()), (&b"9"[..], 4));
}

#[tokio::test]
async fn compares_hold_or_fail_as_etcd_defines_them() {
    let (_dir, _member, mut client) = fresh().await;
    for value in ["1", "2"] {
        client.put("k/a", value, None).await.unwrap();
    }
    client.put("k/b", "3", None).await.unwrap();
    use CompareOp::{Equal, Greater, Less, NotEqual};
    let rows = [
        (Compare::version("k/a", Equal, 2), true),
        (Compare::version("k/a", Greater, 2), false),
        (Compare::create_revision("k/a", Less, 3), true),
        (Compare::mod_revision("k/a", NotEqual, 3), false),
        (Compare::value("k/a", Equal, "2"), true),
        (Compare::value("k/a", Less, "10"), false),
        (Compare::lease("k/a", Equal, 0), true),
        (Compare::version("missing", Equal, 0), true),
        (Compare::create_revision("missing", Greater, 0), false),
        (Compare::value("missing", NotEqual, "x"), false),
        (Compare::value("k/", Greater, "1").with_prefix(), true),
        (Compare::value("k/", Greater, "2").with_prefix(), false),
        (Compare::mod_revision("k/b", Equal, 4).with_range("z"), true),
        (Compare::version("none/", Equal, 0).with_prefix(), true),
    ];
    for (position, (compare, holds)) in rows.into_iter().enumerate() {
        let answer = client.txn(Txn::new().when([compare])).await.unwrap();
        assert_eq!(answer.succeeded(), holds, "row {position}");
    }
}

#[tokio::test]
async fn a_nested_txn_compares_the_state_before_and_is_one_revision() {
    let (_dir, _member, mut client) = fresh().await;
    client.put("a", "1", None).await.unwrap();
    client.put("b", "2", None).await.unwrap();
    let inner = Txn::new()
        .when([Compare::value("a", CompareOp::Equal, "1"), Compare::version("c", CompareOp::Equal, 0)])
        .and_then([TxnOp::put("c", "then", None), TxnOp::get("a", None)])
        .or_else([TxnOp::put("c", "else", None)]);
    let outer = Txn::new()
        .when([Compare::value("b", CompareOp::Equal, "not")])
        .and_then([TxnOp::put("d", "then", None)])
        .or_else([
            TxnOp::put("a", "9", Some(PutOptions::new().with_prev_key())),
            TxnOp::txn(inner),
            TxnOp::delete("b", Some(DeleteOptions::new().with_prev_key())),
            TxnOp::get("", Some(GetOptions::new().with_all_keys())),
        ]);
    let answer = client.txn(outer).await.unwrap();
    assert_eq!((answer.succeeded(), revision(answer.header())), (false, 4));
    let responses = answer.op_responses();
    let [TxnOpResponse::Put(put), TxnOpResponse::Txn(inner), TxnOpResponse::Delete(delete), TxnOpResponse::Get(get)] =
        &responses[..]
    else {
        panic!("answers in the order of the operations, not {responses:?}");
    };
    assert_eq!(put.prev_key().expect("there was one").value(), b"1");
    assert!(inner.succeeded(), "the put of `a` before it does not count");
    let [TxnOpResponse::Put(_), TxnOpResponse::Get(seen)] = &inner.op_responses()[..] else {
        panic!("the inner answers are of the branch that was taken");
    };
    assert_eq!(seen.kvs()[0].value(), b"9", "a read sees the writes before it");
    assert_eq!((delete.deleted(), delete.prev_kvs()[0].value()), (1, &b"2"[..]));
    assert_eq!(keys(get.kvs()), [b"a", b"c"]);
    assert!(get.kvs().iter().all(|kv| kv.mod_revision() == 4));
}

#[tokio::test]
async fn a_refused_txn_changes_nothing() {
    let (_dir, _member, mut client) = fresh().await;
    let twice = Txn::new().and_then([TxnOp::put("a", "1", None), TxnOp::put("a", "2", None)]);
    let duplicate = "etcdserver: duplicate key given in txn request";
    assert_eq!(refusal(client.txn(twice).await), (INVALID_ARGUMENT, duplicate.to_owned()));
    let future = TxnOp::get("a", Some(GetOptions::new().with_revision(50)));
    let late = Txn::new().and_then([TxnOp::put("a", "1", None), future]);
    assert_eq!(refusal(client.txn(late).await), (OUT_OF_RANGE, FUTURE.to_owned()));
    let unleased = TxnOp::put("b", "1", Some(PutOptions::new().with_lease(99)));
    let leased = Txn::new().and_then([TxnOp::put("a", "1", None), unleased]);
    assert_eq!(refusal(client.txn(leased).await).0, NOT_FOUND);
    let all = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    assert_eq!((all.count(), revision(all.header())), (0, 1));
}

#[tokio::test]
async fn compaction_takes_the_past_below_it_and_nothing_else() {
    let (_dir, _member, mut client) = fresh().await;
    for value in ["1", "2", "3", "4"] {
        client.put("k", value, None).await.unwrap();
    }
    let at = |revision| Some(GetOptions::new().with_revision(revision));
    assert_eq!(refusal(client.compact(6, None).await), (OUT_OF_RANGE, FUTURE.to_owned()));
    let done = client.compact(4, Some(CompactionOptions::new().with_physical())).await.unwrap();
    assert_eq!(revision(done.header()), 5);
    assert_eq!(refusal(client.get("k", at(3)).await), (OUT_OF_RANGE, COMPACTED.to_owned()));
    assert_eq!(refusal(client.get("k", at(6)).await), (OUT_OF_RANGE, FUTURE.to_owned()));
    for (revision, value) in [(4, "3"), (5, "4"), (0, "4")] {
        assert_eq!(client.get("k", at(revision)).await.unwrap().kvs()[0].value(), value.as_bytes());
    }
    assert_eq!(refusal(client.compact(4, None).await), (OUT_OF_RANGE, COMPACTED.to_owned()));
    client.compact(5, None).await.unwrap();
    let kept = client.get("k", None).await.unwrap();
    assert_eq!((kept.kvs()[0].version(), kept.kvs()[0].create_revision()), (4, 2));
}

#[tokio::test]
async fn a_defragmentation_gives_back_what_was_deleted_and_loses_nothing() {
    const KEYS: usize = 60;
    let value = |key: usize| vec![u8::try_from(key).expect("few keys"); 300 << 10];
    let is_kept = |key: usize| key.is_multiple_of(4);
    let (dir, mut member, mut client) = fresh().await;
    for key in 0..KEYS {
        client.put(format!("k{key:02}"), value(key), None).await.unwrap();
    }
    client.defragment().await.unwrap();
    let before = client.status().await.unwrap();
    assert!(before.db_size() > 15 << 20, "{}", before.db_size());
    for key in (0..KEYS).filter(|key| !is_kept(*key)) {
        client.delete(format!("k{key:02}"), None).await.unwrap();
    }
    let revision = revision(client.put("last", "v", None).await.unwrap().header());
    client.compact(revision, Some(CompactionOptions::new().with_physical())).await.unwrap();
    // Another client's writes go on meanwhile.
    let mut other = member.connect().await;
    let (defragmented, ()) = tokio::join!(client.defragment(), async {
        for number in 0..200 {
            other.put("beside", format!("{number}"), None).await.unwrap();
        }
    });
    defragmented.unwrap();
    let after = client.status().await.unwrap();
    assert!(after.db_size() < before.db_size() / 2, "{} of {}", after.db_size(), before.db_size());
    for is_killed in [false, true] {
        if is_killed {
            member.kill();
            member = Member::start(dir.path()).await;
            client = member.connect().await;
        }
        for key in 0..KEYS {
            let answer = client.get(format!("k{key:02}"), None).await.unwrap();
            let found: Vec<_> = answer.kvs().iter().map(|kv| kv.value().to_vec()).collect();
            assert_eq!(found, if is_kept(key) { vec![value(key)] } else { Vec::new() });
        }
        assert_eq!(client.get("beside", None).await.unwrap().kvs()[0].value(), b"199");
    }
}

#[tokio::test]
async fn a_member_alone_is_its_leader_and_lists_itself() {
    let (_dir, member, mut client) = fresh().await;
    let before = client.status().await.unwrap();
    client.put("k", "v", None).await.unwrap();
    let status = client.status().await.unwrap();
    let header = status.header().expect("a header");
    assert_eq!((header.revision(), header.raft_term()), (2, status.raft_term()));
    assert_eq!(status.leader(), header.member_id());
    assert!(status.version().starts_with("3.7."), "{}", status.version());
    assert!(status.raft_index() > before.raft_index() && status.raft_applied_index() <= status.raft_index());
    assert!(status.db_size() > 0 && status.raft_used_db_size() <= status.db_size());
    assert!(!status.is_learner() && status.errors().is_empty());

    let listed = client.member_list().await.unwrap();
    assert_eq!(revision(listed.header()), 0, "etcd's member list has none");
    let [only] = listed.members() else { panic!("one member, not {:?}", listed.members()) };
    assert_eq!((only.id(), only.name(), only.is_learner()), (header.member_id(), "tested", false));
    assert_eq!(only.client_urls(), std::slice::from_ref(&member.client_url));
    assert_eq!(only.peer_urls(), std::slice::from_ref(&member.peer_url));
}

#[tokio::test]
async fn equal_histories_have_equal_hashes() {
    let (_one_dir, _one_member, mut one) = fresh().await;
    let (_other_dir, _other_member, mut other) = fresh().await;
    for client in [&mut one, &mut other] {
        for (key, value) in PUTS {
            client.put(key, value, None).await.unwrap();
        }
        client.delete("a", None).await.unwrap();
        client.compact(4, Some(CompactionOptions::new().with_physical())).await.unwrap();
    }
    one.put("k", "one", None).await.unwrap();
    other.put("k", "other", None).await.unwrap();
    for (revision, are_equal) in [(5, true), (9, true), (10, false), (0, false)] {
        let hashes = [one.hash_kv(revision).await.unwrap(), other.hash_kv(revision).await.unwrap()];
        assert_eq!(hashes[0].hash() == hashes[1].hash(), are_equal, "at {revision}");
        let wanted = if revision == 0 { 10 } else { revision };
        assert!(hashes.iter().all(|hash| (hash.compact_version(), hash.hash_revision()) == (4, wanted)));
    }
    assert_ne!(one.hash_kv(8).await.unwrap().hash(), one.hash_kv(9).await.unwrap().hash());
    assert_eq!(refusal(one.hash_kv(11).await), (OUT_OF_RANGE, FUTURE.to_owned()));
    assert_eq!(refusal(one.hash_kv(3).await), (OUT_OF_RANGE, COMPACTED.to_owned()));
}
