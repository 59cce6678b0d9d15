//! A member whose files are damaged: it serves around the damage, says so, and `orlop verify --repair` gives back what
//! can be made again and names the rest.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::Command,
};

use bytes::Bytes;
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{
        compare::{CompareResult, CompareTarget},
        request_op::Request as Op,
        response_op::Response,
    },
};
use server::wire::client::{Client, Error};

use crate::{
    insight::block_on,
    member::Member,
    ports::{get, until},
};

const KEYS: usize = 6000;
const KEYS_PER_TXN: usize = 100;

fn key(number: usize) -> Bytes {
    format!("/registry/pods/{:04x}/{number:05}", number * 7919 % 65_521).into()
}

fn value(number: usize, round: usize) -> Bytes {
    format!("{round}:{}", "v".repeat(100 + number % 200)).into()
}

fn put(number: usize, round: usize) -> pb::PutRequest {
    pb::PutRequest { key: key(number), value: value(number, round), ..Default::default() }
}

async fn connect(member: &Member) -> Client {
    Client::connect(&member.address.to_string()).await.unwrap()
}

/// Puts all keys, many in one txn, and makes a checkpoint of them.
async fn fill(member: &Member) {
    let mut client = connect(member).await;
    for first in (0..KEYS).step_by(KEYS_PER_TXN) {
        let op = |number| pb::RequestOp { request: Some(Op::RequestPut(put(number, 0))) };
        let request = pb::TxnRequest { success: (first..first + KEYS_PER_TXN).map(op).collect(), ..Default::default() };
        let answer: pb::TxnResponse = client.call("/etcdserverpb.KV/Txn", &request).await.unwrap();
        assert!(answer.responses.iter().all(|op| matches!(op.response, Some(Response::ResponsePut(_)))));
    }
    defragment(&mut client).await;
}

async fn defragment(client: &mut Client) {
    let request = pb::DefragmentRequest::default();
    let _: pb::DefragmentResponse = client.call("/etcdserverpb.Maintenance/Defragment", &request).await.unwrap();
}

/// Where pages of `kind` lie in the segments of a store, those of the tables apart; see `engine/FORMAT.md`.
fn pages(dir: &Path, kind: u8) -> Vec<(PathBuf, usize)> {
    pages_of(dir, kind, true)
}

/// Where pages of `kind` lie that have keys of clients, or those that have none.
fn pages_of(dir: &Path, kind: u8, of_keys: bool) -> Vec<(PathBuf, usize)> {
    let word = |bytes: &[u8], at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let mut found = Vec::new();
    let mut files: Vec<_> = fs::read_dir(dir.join("pages")).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    for path in files {
        let bytes = fs::read(&path).unwrap();
        let mut at = 0;
        while at + 12 <= bytes.len() {
            let len = word(&bytes, at + 4);
            if len < 12 || at + len > bytes.len() || !(1..=6).contains(&bytes[at + 8]) {
                at = (at + 1).next_multiple_of(4096);
                continue;
            }
            // The pages of the tables have no key.
            let has_key = bytes[at..at + len].windows(9).any(|name| name == b"/registry");
            if bytes[at + 8] == kind && has_key == of_keys {
                found.push((path.clone(), at));
            }
            at += len;
        }
    }
    found
}

/// Flips a bit in every `nth` page of `kind`.
fn damage(dir: &Path, kind: u8, nth: usize) -> usize {
    let pages = pages(dir, kind);
    for (path, at) in pages.iter().skip(nth / 2).step_by(nth) {
        let mut bytes = fs::read(path).unwrap();
        bytes[at + 20] ^= 4;
        fs::write(path, bytes).unwrap();
    }
    pages.len().div_ceil(nth)
}

/// Each key with its value, or without one if it is lost for its client.
async fn all(client: &mut Client) -> BTreeMap<usize, Option<Bytes>> {
    let mut found = BTreeMap::new();
    for number in (0..KEYS).step_by(7) {
        let request = pb::RangeRequest { key: key(number), ..Default::default() };
        match client.call::<pb::RangeResponse>("/etcdserverpb.KV/Range", &request).await {
            Ok(answer) => drop(found.insert(number, answer.kvs.first().map(|found| found.value.clone()))),
            Err(Error::Refused(why)) => assert_eq!(why, "code 15: etcdserver: corrupt cluster"),
            Err(error) => panic!("{error}"),
        }
    }
    found
}

fn verify(dir: &Path, flags: &[&str]) -> (bool, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_orlop")).arg("verify").args(flags).arg(dir).output().unwrap();
    assert!(output.stderr.is_empty(), "{}", output.stderr.escape_ascii());
    (output.status.success(), String::from_utf8(output.stdout).unwrap())
}

/// Requests that need a damaged page are refused, and nothing of them is in the log: apply would stand still before it.
async fn refuse_what_needs_damage(client: &mut Client, is_in_tree: bool) {
    let (first, last) = (Bytes::from_static(b"/registry/pods/"), Bytes::from_static(b"/registry/pods0"));
    let put = || vec![pb::RequestOp { request: Some(Op::RequestPut(put(0, 0))) }];
    let compare = |key: Bytes, target: CompareTarget, range_end: Bytes| pb::Compare {
        result: CompareResult::NotEqual as i32,
        target: target as i32,
        key,
        range_end,
        target_union: None,
    };
    // More records than are looked at in one go.
    let values = (0..128).map(|number| compare(key(number * KEYS / 128), CompareTarget::Value, Bytes::new()));
    let mut txns = vec![(values.collect(), true)];
    txns.push((vec![compare(first.clone(), CompareTarget::Value, last.clone())], true));
    txns.push((vec![compare(first.clone(), CompareTarget::Version, last.clone())], is_in_tree));
    for (compare, is_refused) in txns {
        let request = pb::TxnRequest { compare, success: put(), failure: put() };
        let answer = client.call::<pb::TxnResponse>("/etcdserverpb.KV/Txn", &request).await;
        match answer {
            Err(Error::Refused(why)) => assert!(is_refused && why == "code 15: etcdserver: corrupt cluster", "{why}"),
            answer => assert!(answer.is_ok() && !is_refused, "{answer:?}"),
        }
    }
    let delete = pb::DeleteRangeRequest { key: first, range_end: last, prev_kv: true };
    let answer = client.call::<pb::DeleteRangeResponse>("/etcdserverpb.KV/DeleteRange", &delete).await;
    assert!(matches!(answer, Err(Error::Refused(why)) if why == "code 15: etcdserver: corrupt cluster"));
}

#[test]
fn a_damaged_member_serves_on_and_is_repaired() {
    // Pages of the trees, and record blocks.
    for (kind, nth) in [(1, 9), (2, 9)] {
        let mut member = Member::start(&[]);
        block_on(fill(&member));
        let mut damages = 0;
        member.restart(|dir| damages = damage(dir, kind, nth));
        assert!(damages >= 2, "{damages} pages of kind {kind} are damaged");
        let mut written: BTreeMap<usize, usize> = BTreeMap::new();
        let mut refused = 0;
        block_on(async {
            let mut client = connect(&member).await;
            assert!(all(&mut client).await.len() > KEYS / 14, "what is whole is served");
            refuse_what_needs_damage(&mut client, kind == 1).await;
            for number in (0..KEYS).step_by(3) {
                match client.call::<pb::PutResponse>("/etcdserverpb.KV/Put", &put(number, 1)).await {
                    Ok(_) => drop(written.insert(number, 1)),
                    Err(Error::Refused(why)) => {
                        assert_eq!(why, "code 15: etcdserver: corrupt cluster");
                        refused += 1;
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            defragment(&mut client).await;
        });
        assert_eq!(refused > 0, kind == 1, "a put needs pages of the tree and no record");
        assert!(member.is_alive() && get(member.address, "/readyz").starts_with("HTTP/1.1 200"));
        let verbose = get(member.address, "/readyz?verbose");
        assert!(verbose.contains("[!]unreadable_pages: ") && verbose.contains("pages cannot be read"), "{verbose}");
        assert!(get(member.address, "/health").contains(r#""reason":"UNREADABLE PAGES""#));
        assert!(!get(member.address, "/metrics").contains("orlop_unreadable_pages 0\n"));

        let mut told = String::new();
        member.restart(|dir| {
            let (is_whole, text) = verify(dir, &[]);
            assert!(!is_whole && text.contains("damage  ") && text.contains("damaged places"), "{text}");
            (_, told) = verify(dir, &["--repair"]);
            assert!(told.contains("repaired    ") && dir.join("damaged/superblock").exists(), "{told}");
            let (is_whole, text) = verify(dir, &[]);
            assert!(is_whole && text.contains("all as they were written"), "{text}");
            let (is_whole, text) = verify(dir, &["--repair"]);
            assert!(is_whole && text.contains("there is nothing to repair"), "{text}");
        });
        block_on(async {
            let found = all(&mut connect(&member).await).await;
            assert_eq!(found.len(), KEYS.div_ceil(7), "nothing is refused any more");
            let mut lost = 0;
            for (number, found) in found {
                let expected = value(number, written.get(&number).copied().unwrap_or(0));
                let is_named = told.contains(&format!("key \"{}\"", key(number).escape_ascii()));
                assert!(found.as_ref() == Some(&expected) || (found.is_none() && is_named), "{number}: {found:?}");
                lost += usize::from(found.is_none());
            }
            assert_eq!(lost > 0, kind == 2, "pages of the tree are made again, values are not");
        });
    }
}

#[test]
fn a_member_outlives_the_page_of_its_tables() {
    let mut member = Member::start(&[]);
    let put = |number| put(number, 0);
    let serve = async |member: &Member, applies: bool| {
        let mut client = connect(member).await;
        for number in 0..50 {
            let request = pb::RangeRequest { key: key(number), serializable: true, ..Default::default() };
            let answer: pb::RangeResponse = client.call("/etcdserverpb.KV/Range", &request).await.unwrap();
            assert_eq!(answer.kvs[0].value, value(number, 0));
        }
        let answer = client.call::<pb::PutResponse>("/etcdserverpb.KV/Put", &put(50)).await;
        let refused = "code 15: etcdserver: corrupt cluster";
        assert!(if applies { answer.is_ok() } else { matches!(answer, Err(Error::Refused(why)) if why == refused) });
    };
    block_on(async {
        let mut client = connect(&member).await;
        for number in 0..50 {
            let _: pb::PutResponse = client.call("/etcdserverpb.KV/Put", &put(number)).await.unwrap();
        }
        // The states before are given up with it.
        defragment(&mut client).await;
        defragment(&mut client).await;
    });
    member.restart(|dir| {
        let tables = pages_of(dir, 1, false);
        assert!(!tables.is_empty());
        for (path, at) in tables {
            let mut bytes = fs::read(&path).unwrap();
            bytes[at + 20] ^= 4;
            fs::write(path, bytes).unwrap();
        }
    });
    block_on(serve(&member, false));
    assert!(get(member.address, "/readyz?verbose").contains("a table cannot be read"));
    member.restart(|dir| {
        let (_, told) = verify(dir, &["--repair"]);
        assert!(told.contains("repaired    "), "{told}");
        assert!(verify(dir, &[]).0);
    });
    block_on(serve(&member, true));
    let is_named = || get(member.peer_address, "/members").contains("clientURLs\":[\"http");
    until("its name", is_named);
}

#[test]
fn damage_is_found_before_a_request_meets_it() {
    let mut member = Member::start(&["--store-scrub-interval-ms=1s"]);
    block_on(fill(&member));
    let mut dir = PathBuf::new();
    member.restart(|of_member| dir = of_member.to_path_buf());
    let counted = |name: &str| -> usize {
        let metrics = get(member.address, "/metrics");
        let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.expect("the counter is there").parse().unwrap()
    };
    until("a round of the scrub", || counted("orlop_scrub_completed_timestamp_seconds") > 0);
    assert_eq!((counted("orlop_scrub_damage_total"), counted("orlop_unreadable_pages")), (0, 0));
    assert!(counted("orlop_scrub_bytes_total") > 100 * KEYS, "all values were read");
    assert!(fs::read_to_string(dir.join("scrub")).unwrap().starts_with("orlop scrub 1\n"));

    let (path, at) = pages(&dir, 2).pop().unwrap();
    let file = fs::OpenOptions::new().write(true).read(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64 + 20).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at as u64 + 20).unwrap();
    until("the damage", || counted("orlop_scrub_damage_total") == 1);
    assert_eq!(counted("orlop_unreadable_pages"), 1);
    // What was a fault of the way to the medium is no damage any more once it reads well.
    file.write_all_at(&byte, at as u64 + 20).unwrap();
    until("the page", || counted("orlop_unreadable_pages") == 0);
}
