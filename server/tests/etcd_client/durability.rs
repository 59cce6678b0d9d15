//! What a client was told stays true when the process dies at any moment.
//!
//! Each writer sends its next write only when the last is acknowledged. Write `n` of writer `w` is a function of the
//! seed, `w` and `n`. So a correct history holds each writer's writes in order and without a gap: all that were
//! acknowledged, and at most one more that was under way. The whole history is read back, not just the newest values.
//!
//! SIGKILL leaves what the kernel was given; what a power loss may take is tested on `engine`'s simulated disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
};

use etcd_client::{Client, EventType, GetOptions, PutOptions, Txn, TxnOp, WatchOptions};
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    member::{Member, fresh},
    next, revision,
};

const SEED: u64 = 0x0712_1a7e;
const ROUNDS: usize = 3;
const WRITERS: usize = 16;
/// Acknowledged writes of a round, before the kill.
const ACKNOWLEDGED: Range<usize> = 300..1500;
/// Keys that a writer overwrites in turn.
const KEYS: u64 = 7;
const VALUE_BYTES: Range<usize> = 0..1500;

type Puts = BTreeSet<(Vec<u8>, Vec<u8>)>;

#[derive(Debug)]
struct Acknowledged {
    writer: usize,
    number: u64,
    revision: i64,
}

/// The puts of a writer's write: one, or two in one transaction.
fn write(writer: usize, number: u64) -> Puts {
    let mut rng = StdRng::seed_from_u64(SEED ^ ((writer as u64) << 48) ^ number);
    let mut value = format!("{number}:").into_bytes();
    let at = value.len();
    value.resize(at + rng.random_range(VALUE_BYTES), 0);
    rng.fill_bytes(&mut value[at..]);
    let mut puts = Puts::from([(format!("{writer}/{}", number % KEYS).into_bytes(), value.clone())]);
    if rng.random_ratio(1, 4) {
        puts.insert((format!("{writer}/paired").into_bytes(), value));
    }
    puts
}

/// The writer that made these puts, and the number of its write.
fn author(puts: &Puts) -> (usize, u64) {
    let (key, value) = puts.first().expect("a revision has an event");
    let number = |bytes: &[u8], end: u8| {
        let digits = bytes.split(|byte| *byte == end).next().expect("split gives one piece at least");
        str::from_utf8(digits).expect("digits").parse::<u64>().expect("a number")
    };
    (usize::try_from(number(key, b'/')).expect("a writer"), number(value, b':'))
}

/// Writes until the member is gone, and reports what was acknowledged.
async fn write_until_gone(mut client: Client, writer: usize, first: u64, report: mpsc::Sender<Acknowledged>) {
    for number in first.. {
        let puts: Vec<_> = write(writer, number).into_iter().collect();
        let answer = if let [(key, value)] = &puts[..] {
            client.put(key.clone(), value.clone(), None).await.map(|answer| revision(answer.header()))
        } else {
            let puts: Vec<_> = puts.into_iter().map(|(key, value)| TxnOp::put(key, value, None)).collect();
            client.txn(Txn::new().and_then(puts)).await.map(|answer| revision(answer.header()))
        };
        let Ok(revision) = answer else { return };
        report.send(Acknowledged { writer, number, revision }).await.expect("the test outlives its writers");
    }
}

/// Kills the member under the load of all writers once `kill_at` writes are acknowledged. Returns all that were.
async fn kill_under_load(member: &mut Member, firsts: &[u64], kill_at: usize) -> Vec<Acknowledged> {
    let (report, mut reports) = mpsc::channel(WRITERS);
    let mut writers = JoinSet::new();
    for (writer, first) in firsts.iter().enumerate() {
        writers.spawn(write_until_gone(member.connect().await, writer, *first, report.clone()));
    }
    drop(report);
    let mut acknowledged = Vec::new();
    while let Some(each) = reports.recv().await {
        acknowledged.push(each);
        if acknowledged.len() == kill_at {
            member.kill();
        }
    }
    assert!(acknowledged.len() >= kill_at, "the writers gave up before the kill");
    while let Some(ended) = writers.join_next().await {
        ended.expect("a writer does not panic");
    }
    acknowledged
}

/// All puts that ever happened, by revision.
async fn history(client: &mut Client) -> BTreeMap<i64, Puts> {
    let newest = revision(client.get("0", None).await.unwrap().header());
    let options = WatchOptions::new().with_all_keys().with_start_revision(2);
    let mut stream = client.watch("", Some(options)).await.unwrap();
    assert!(next(&mut stream).await.created());
    let mut history = BTreeMap::<i64, Puts>::new();
    while history.last_key_value().is_none_or(|(last, _)| *last < newest) {
        for event in next(&mut stream).await.events() {
            let kv = event.kv().expect("an event has its key");
            assert_eq!(event.event_type(), EventType::Put);
            let is_new = history.entry(kv.mod_revision()).or_default().insert((kv.key().to_vec(), kv.value().to_vec()));
            assert!(is_new, "an event came twice");
        }
    }
    assert!(history.keys().copied().eq(2..=newest), "each revision was someone's write");
    history
}

/// Checks the history against what is possible, and returns the number of each writer's next write.
fn check_history(history: &BTreeMap<i64, Puts>, firsts: &[u64], acknowledged: &[Acknowledged]) -> Vec<u64> {
    let mut nexts = vec![0; WRITERS];
    for puts in history.values() {
        let (writer, number) = author(puts);
        assert_eq!(number, nexts[writer], "writer {writer}'s writes lie in order and without a gap");
        assert!(*puts == write(writer, number), "write {number} of writer {writer} is whole and as it was sent");
        nexts[writer] += 1;
    }
    for Acknowledged { writer, number, revision } in acknowledged {
        let found = history.get(revision).map(author);
        assert_eq!(found, Some((*writer, *number)), "an acknowledged write stands at the revision that was answered");
    }
    for (writer, next) in nexts.iter().enumerate() {
        let known = firsts[writer] + acknowledged.iter().filter(|each| each.writer == writer).count() as u64;
        assert!((known..=known + 1).contains(next), "writer {writer}: {known} known writes, found {next}");
    }
    nexts
}

/// Checks that the newest state is what the history leads to.
async fn check_state(client: &mut Client, history: &BTreeMap<i64, Puts>) {
    let newest: BTreeMap<_, _> = history.values().flatten().cloned().collect();
    let all = client.get("", Some(GetOptions::new().with_all_keys())).await.unwrap();
    let found: BTreeMap<_, _> = all.kvs().iter().map(|kv| (kv.key().to_vec(), kv.value().to_vec())).collect();
    assert!(found == newest, "the newest state is what the history leads to");
}

#[tokio::test]
async fn acknowledged_writes_survive_sigkill_under_load() {
    let dir = TempDir::new().expect("a directory for the test");
    let mut member = Member::start(dir.path()).await;
    let mut rng = StdRng::seed_from_u64(SEED);
    let mut firsts = vec![0; WRITERS];
    for round in 0..ROUNDS {
        let kill_at = rng.random_range(ACKNOWLEDGED);
        eprintln!("seed {SEED:#x}, round {round}: killed after {kill_at} writes");
        let acknowledged = kill_under_load(&mut member, &firsts, kill_at).await;
        member = Member::start(dir.path()).await;
        let mut client = member.connect().await;
        let history = history(&mut client).await;
        firsts = check_history(&history, &firsts, &acknowledged);
        check_state(&mut client, &history).await;
    }
}

#[tokio::test]
async fn identity_lease_and_compaction_survive_sigkill() {
    const LEASE: i64 = 77;
    let (dir, mut member, mut client) = fresh().await;
    client.lease_grant(1000, Some(etcd_client::LeaseGrantOptions::new().with_id(LEASE))).await.unwrap();
    for value in ["oldest", "old", "new"] {
        client.put("leased", value, Some(PutOptions::new().with_lease(LEASE))).await.unwrap();
    }
    let compacted = client.compact(3, None).await.unwrap();
    let before = compacted.header().expect("a header");
    let hash = client.hash_kv(4).await.unwrap();
    member.kill();

    let member = Member::start(dir.path()).await;
    let mut client = member.connect().await;
    let found = client.get("leased", None).await.unwrap();
    let after = found.header().expect("a header");
    assert_eq!((after.member_id(), after.cluster_id()), (before.member_id(), before.cluster_id()));
    assert_eq!(after.revision(), 4);
    assert_eq!((found.kvs()[0].value(), found.kvs()[0].lease()), (&b"new"[..], LEASE));
    let with_keys = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
    let lease = client.lease_time_to_live(LEASE, Some(with_keys)).await.unwrap();
    assert_eq!((lease.granted_ttl(), lease.keys()), (1000, &[b"leased".to_vec()][..]));
    let old = client.get("leased", Some(GetOptions::new().with_revision(2))).await;
    assert_eq!(crate::refusal(old).0, crate::OUT_OF_RANGE);
    let again = client.hash_kv(4).await.unwrap();
    assert_eq!((again.hash(), again.compact_version()), (hash.hash(), 3));
}
