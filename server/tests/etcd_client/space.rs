//! What happens when space ends: the quota and its alarm, alarms raised by hand, and a disk that is really full.
//!
//! The full disk is a small tmpfs, mounted for the test; where mounting is not allowed that test says so and passes.

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use etcd_client::{
    AlarmAction, AlarmOptions, AlarmType, Client, Compare, CompareOp, DeleteOptions, Error, GetOptions, PutResponse,
    Txn, TxnOp,
};
use tempfile::TempDir;

use crate::{
    INVALID_ARGUMENT, NOT_FOUND,
    member::{Member, WAIT_MAX, fresh},
    refusal,
};

const RESOURCE_EXHAUSTED: i32 = 8;
const DATA_LOSS: i32 = 15;
const EXCEEDED: &str = "etcdserver: mvcc: database space exceeded";
const CORRUPT: &str = "etcdserver: corrupt cluster";
const VALUE_BYTES: usize = 60_000;
/// The pause between two tries of a write that has to work again.
const TRY_EVERY: Duration = Duration::from_millis(50);

fn exceeded() -> (i32, String) {
    (RESOURCE_EXHAUSTED, EXCEEDED.to_owned())
}

fn key(number: usize) -> String {
    format!("key/{number:06}")
}

fn value(number: usize) -> Vec<u8> {
    let mut value = vec![b'v'; VALUE_BYTES];
    value[..6].copy_from_slice(format!("{number:06}").as_bytes());
    value
}

async fn put(client: &mut Client, number: usize) -> Result<PutResponse, Error> {
    client.put(key(number), value(number), None).await
}

/// Puts one key after the other until one is refused for space. Returns the number of that key.
async fn fill(client: &mut Client, first: usize) -> usize {
    for number in first.. {
        assert!(number < 10_000, "space ends at some time");
        if let Err(error) = put(client, number).await {
            assert_eq!(refusal::<()>(Err(error)), exceeded());
            return number;
        }
    }
    unreachable!("the loop has no end of its own")
}

async fn alarm(client: &mut Client, action: AlarmAction, kind: AlarmType, member: u64) -> Vec<(u64, AlarmType)> {
    let mut options = AlarmOptions::new();
    options.with_member(member);
    let answer = client.alarm(action, kind, Some(options)).await.expect("an alarm request is answered");
    answer.alarms().iter().map(|alarm| (alarm.member_id(), alarm.alarm())).collect()
}

async fn alarms(client: &mut Client) -> Vec<(u64, AlarmType)> {
    alarm(client, AlarmAction::Get, AlarmType::None, 0).await
}

async fn member_id(client: &mut Client) -> u64 {
    client.status().await.expect("status").header().expect("a header").member_id()
}

/// Tries a put until it works, which must happen in time.
async fn await_space(client: &mut Client, number: usize) {
    let trying = async {
        let mut tries = tokio::time::interval(TRY_EVERY);
        while let Err(error) = put(client, number).await {
            assert_eq!(refusal::<()>(Err(error)), exceeded());
            tries.tick().await;
        }
    };
    tokio::time::timeout(WAIT_MAX, trying).await.expect("writes go on by themselves");
}

async fn check_all(client: &mut Client, count: usize) {
    for number in 0..count {
        let found = client.get(key(number), None).await.expect("reads go on");
        assert!(found.kvs()[0].value() == value(number), "{} is what was acknowledged", key(number));
    }
}

#[tokio::test]
async fn an_alarm_by_hand_refuses_what_etcd_refuses_and_survives_sigkill() {
    let (dir, mut member, mut client) = fresh().await;
    client.put("a", "1", None).await.unwrap();
    let lease = client.lease_grant(1000, None).await.unwrap().id();
    let own = member_id(&mut client).await;
    let raised = vec![(own, AlarmType::Nospace)];
    assert_eq!(alarm(&mut client, AlarmAction::Activate, AlarmType::Nospace, own).await, raised);
    member.kill();

    let member = Member::start(dir.path()).await;
    let mut client = member.connect().await;
    assert_eq!(alarms(&mut client).await, raised);
    assert_eq!(client.status().await.unwrap().errors().len(), 1);
    assert_eq!(refusal(client.put("a", "2", None).await), exceeded());
    assert_eq!(refusal(client.put("", "2", None).await).0, INVALID_ARGUMENT, "it is looked at first");
    assert_eq!(refusal(client.lease_grant(1000, None).await), exceeded());
    let put = Txn::new().when([Compare::version("a", CompareOp::Equal, 7)]).and_then([TxnOp::put("a", "2", None)]);
    assert_eq!(refusal(client.txn(put.clone()).await), exceeded(), "even where the branch is not taken");
    client.txn(Txn::new().and_then([TxnOp::get("a", None)])).await.unwrap();
    client.txn(Txn::new().and_then([TxnOp::delete("none", None)])).await.unwrap();
    client.lease_revoke(lease).await.unwrap();
    client.compact(2, None).await.unwrap();
    assert_eq!(client.get("a", None).await.unwrap().kvs()[0].value(), b"1");

    let corrupt = (DATA_LOSS, CORRUPT.to_owned());
    assert_eq!(alarm(&mut client, AlarmAction::Activate, AlarmType::Corrupt, 0).await, [(0, AlarmType::Corrupt)]);
    assert_eq!(refusal(client.put("a", "2", None).await), corrupt);
    assert_eq!(refusal(client.delete("a", None).await), corrupt);
    assert_eq!(refusal(client.lease_revoke(lease).await), corrupt);
    assert_eq!(client.get("a", None).await.unwrap().kvs().len(), 1, "what is served here is served");
    alarm(&mut client, AlarmAction::Deactivate, AlarmType::Corrupt, 0).await;
    assert_eq!(refusal(client.lease_revoke(lease).await).0, NOT_FOUND);
    assert_eq!(alarm(&mut client, AlarmAction::Deactivate, AlarmType::Nospace, own).await, raised);
    assert_eq!(alarm(&mut client, AlarmAction::Deactivate, AlarmType::Nospace, own).await, []);
    client.put("a", "2", None).await.unwrap();
}

#[tokio::test]
async fn the_quota_raises_an_alarm_that_goes_when_the_data_has_gone() {
    let dir = TempDir::new().expect("a directory for the test");
    let quota = ["--quota-backend-bytes", "8388608"];
    let mut member = Member::start_with(dir.path(), &quota).await;
    let mut client = member.connect().await;
    let count = fill(&mut client, 0).await;
    assert!((100..140).contains(&count), "8 MiB hold {count} values of 60 kB");
    let own = member_id(&mut client).await;
    assert_eq!(alarms(&mut client).await, [(own, AlarmType::Nospace)]);
    assert_eq!(client.status().await.unwrap().db_size_quota(), 8 << 20);
    assert_eq!(refusal(client.put("", value(0), None).await).0, RESOURCE_EXHAUSTED, "the quota is looked at first");
    check_all(&mut client, count).await;
    member.kill();

    let mut member = Member::start_with(dir.path(), &quota).await;
    let mut client = member.connect().await;
    assert_eq!(alarms(&mut client).await, [(own, AlarmType::Nospace)]);
    assert_eq!(refusal(put(&mut client, count).await), exceeded());
    let deleted = client.delete(key(count / 2), Some(DeleteOptions::new().with_from_key())).await.unwrap();
    client.compact(deleted.header().expect("a header").revision(), None).await.unwrap();
    await_space(&mut client, count / 2).await;
    assert_eq!(alarms(&mut client).await, []);
    check_all(&mut client, count / 2 + 1).await;
    fill(&mut client, count / 2 + 1).await;
    assert_eq!(alarms(&mut client).await, [(own, AlarmType::Nospace)]);
    member.kill();

    // A larger quota is a way out, too.
    let member = Member::start_with(dir.path(), &["--quota-backend-bytes", "100000000"]).await;
    let mut client = member.connect().await;
    await_space(&mut client, count).await;
    assert_eq!(alarms(&mut client).await, []);
}

#[tokio::test]
async fn an_alarm_that_a_hand_raised_again_stays_and_so_does_every_one_if_told_to() {
    for (options, is_raised_again) in [(&[][..], true), (&["--server-quota-disarm-percent", "0"][..], false)] {
        let dir = TempDir::new().expect("a directory for the test");
        let arguments = [&["--quota-backend-bytes", "4194304"], options].concat();
        let mut member = Member::start_with(dir.path(), &arguments).await;
        let mut client = member.connect().await;
        let count = fill(&mut client, 0).await;
        let own = member_id(&mut client).await;
        if is_raised_again {
            alarm(&mut client, AlarmAction::Activate, AlarmType::Nospace, own).await;
        }
        let deleted = client.delete("", Some(DeleteOptions::new().with_all_keys())).await.unwrap();
        client.compact(deleted.header().expect("a header").revision(), None).await.unwrap();
        let emptied = async {
            let mut looks = tokio::time::interval(TRY_EVERY);
            while client.status().await.unwrap().raft_used_db_size() > 1 << 20 {
                looks.tick().await;
            }
        };
        tokio::time::timeout(WAIT_MAX, emptied).await.expect("the data goes");
        member.kill();

        let member = Member::start_with(dir.path(), &arguments).await;
        let mut client = member.connect().await;
        assert_eq!(refusal(put(&mut client, count).await), exceeded());
        assert_eq!(alarms(&mut client).await, [(own, AlarmType::Nospace)]);
        alarm(&mut client, AlarmAction::Deactivate, AlarmType::Nospace, own).await;
        put(&mut client, count).await.unwrap();
    }
}

/// A file system of its own at a path, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    /// `None` where mounting is not allowed; the reason is printed.
    fn new(path: &Path, size: &str) -> Option<Self> {
        std::fs::create_dir(path).expect("a directory to mount at");
        let mount = run(&["mount", "-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], path);
        if let Err(why) = &mount {
            eprintln!("skipped: a file system cannot be mounted here: {why}");
        }
        mount.ok().map(|()| Self(path.to_owned()))
    }

    fn resize(&self, size: &str) {
        run(&["mount", "-o", &format!("remount,size={size}")], &self.0).expect("it is resized");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(why) = run(&["umount", "--lazy"], &self.0) {
            eprintln!("umount: {why}");
        }
    }
}

fn run(command: &[&str], path: &Path) -> Result<(), String> {
    let output = Command::new(command[0]).args(&command[1..]).arg(path).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()) }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_serves_reads_and_loses_nothing() {
    let dir = TempDir::new().expect("a directory for the test");
    let Some(disk) = Mounted::new(&dir.path().join("data"), "64m") else { return };
    let small = ["--wal-segment-bytes", "8MiB", "--store-checkpoint-wal-bytes", "8MiB"];
    let mut member = Member::start_with(dir.path(), &small).await;
    let mut client = member.connect().await;
    let count = fill(&mut client, 0).await;
    assert!(count > 300, "the space there is was used: {count}");
    let status = client.status().await.unwrap();
    assert!(status.errors().iter().any(|error| error == "no space left on device"), "{:?}", status.errors());
    assert_eq!(alarms(&mut client).await, [], "a full disk is no quota");
    check_all(&mut client, count).await;
    assert_eq!(refusal(put(&mut client, count).await), exceeded());
    client.delete("none", None).await.expect("what frees space goes on");
    member.kill();

    let mut member = Member::start_with(dir.path(), &small).await;
    let mut client = member.connect().await;
    let count = fill(&mut client, count).await;
    check_all(&mut client, count).await;
    disk.resize("256m");
    await_space(&mut client, count).await;
    let more = count + 200;
    for number in count + 1..more {
        put(&mut client, number).await.expect("there is space");
    }
    member.kill();

    let member = Member::start_with(dir.path(), &small).await;
    let mut client = member.connect().await;
    check_all(&mut client, more).await;
    let all = client.get("", Some(GetOptions::new().with_all_keys().with_count_only())).await.unwrap();
    assert_eq!(usize::try_from(all.count()).expect("a count"), more);
    assert_eq!(client.status().await.unwrap().errors().len(), 0);
    drop(member);
    drop(disk);
}
