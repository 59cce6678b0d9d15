//! A record is damaged on the medium. Requests that need it are refused, all others are served, and the log says where.

use std::{
    fs::{self, OpenOptions},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use etcd_client::GetOptions;
use tempfile::TempDir;

use crate::{member::Member, refusal};

const DATA_LOSS: i32 = 15;
const KEYS: usize = 600;
const DAMAGED: usize = 300;

fn value(number: usize) -> String {
    format!("value {number:06} {}", "x".repeat(20_000))
}

/// Where the record of a key lies: the segment file and the offset in it.
fn place_of(data: &Path, number: usize) -> (PathBuf, u64) {
    let marker = format!("value {number:06} ");
    for file in fs::read_dir(data.join("pages")).expect("the page store").map(|entry| entry.expect("a file").path()) {
        let bytes = fs::read(&file).expect("a segment");
        if let Some(at) = bytes.windows(marker.len()).position(|window| window == marker.as_bytes()) {
            return (file, at as u64);
        }
    }
    panic!("the record of key {number} is checkpointed");
}

#[tokio::test]
async fn a_damaged_record_is_refused_named_once_and_nothing_else_suffers() {
    let dir = TempDir::new().expect("a directory for the test");
    let arguments = ["--wal-segment-bytes", "8MiB", "--store-checkpoint-wal-bytes", "8MiB"];
    let mut member = Member::start_with(dir.path(), &arguments).await;
    let mut client = member.connect().await;
    for number in 0..KEYS {
        client.put(format!("key/{number:06}"), value(number), None).await.unwrap();
    }
    member.kill();
    let (file, offset) = place_of(&dir.path().join("data"), DAMAGED);
    OpenOptions::new().write(true).open(&file).unwrap().write_all_at(b"V", offset).unwrap();

    let member = Member::start_with(dir.path(), &arguments).await;
    let mut client = member.connect().await;
    let damaged = format!("key/{DAMAGED:06}");
    for _ in 0..3 {
        let refused = refusal(client.get(damaged.clone(), None).await);
        assert_eq!(refused, (DATA_LOSS, "etcdserver: corrupt cluster".to_owned()));
    }
    let some = client.get("key/000250", Some(GetOptions::new().with_from_key().with_limit(100))).await;
    assert_eq!(refusal(some).0, DATA_LOSS, "never less than what is there");
    let counted = client.get("", Some(GetOptions::new().with_all_keys().with_count_only())).await.unwrap();
    assert_eq!(usize::try_from(counted.count()).expect("a count"), KEYS);
    for number in (0..KEYS).filter(|number| number.abs_diff(DAMAGED) > 20) {
        let found = client.get(format!("key/{number:06}"), None).await.unwrap();
        assert_eq!(found.kvs()[0].value(), value(number).as_bytes());
    }
    client.put("more", "is taken", None).await.unwrap();
    client.put(damaged.clone(), "anew", None).await.unwrap();
    assert_eq!(client.get(damaged, None).await.unwrap().kvs()[0].value(), b"anew");
    let log = member.log();
    let told: Vec<&str> = log.lines().filter(|line| line.contains("a page cannot be read")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains(file.to_str().expect("a path")) && told[0].contains("is damaged at offset"), "{told:?}");
}
