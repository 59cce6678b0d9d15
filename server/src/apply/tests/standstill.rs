//! Runs on: tests.
//!
//! Pages that cannot be read, below entries that are in the log already: apply stands still before such an entry, and
//! goes on when the page can be read. What only an answer needs stops nothing.

use std::{path::PathBuf, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use engine::{Fault, KeyRange, Place, ReadView, Store, disk::sim::SimStorage, store};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::compare::CompareTarget,
    internal::{Kind, Request},
};

use super::member::{Member, dir, proposal};
use crate::{
    apply::{
        message::{Answer, Handed, ReadsAt},
        needs,
    },
    error::Error,
    raft::message::ToRaft,
    slots::{ReplyTo, Slots},
};

const KEYS: usize = 2000;

fn key(number: usize) -> Bytes {
    format!("key-{number:0>60}").into()
}

fn put(number: usize, value: &str) -> pb::PutRequest {
    pb::PutRequest { key: key(number), value: Bytes::copy_from_slice(value.as_bytes()), ..Default::default() }
}

/// A member whose keys are in a checkpoint, and not in memory. Every tenth key has lease 7.
fn cold() -> Member {
    let mut member = Member::new(1 << 30);
    member.settle();
    member.propose(Kind::LeaseGrant, &pb::LeaseGrantRequest { id: 7, ttl: 60 });
    member.propose(Kind::LeaseGrant, &pb::LeaseGrantRequest { id: 8, ttl: 60 });
    for number in 0..KEYS {
        let lease = if number % 10 == 0 { 7 } else { 0 };
        member.propose(Kind::Put, &pb::PutRequest { lease, ..put(number, "before") });
    }
    member.settle();
    checkpoint(&mut member);
    restarted(&member)
}

fn checkpoint(member: &mut Member) {
    member.run_checkpoints();
    member.checkpoint = Some(member.apply.store.checkpoint_begin());
    member.run_checkpoints();
}

fn restarted(member: &Member) -> Member {
    let mut member = Member::on(member.storage.kill(), 1 << 30, 1 << 20);
    member.settle();
    member
}

/// The last page that `look` needs of the member's store.
fn last_page(member: &Member, look: impl Fn(&ReadView) -> Result<(), Fault>) -> Place {
    let mut disk = member.storage.kill().disk();
    let store = Store::open(&mut disk, dir(), store::Options::default()).unwrap();
    let view = store.mvcc().view();
    let mut last = None;
    while let Err(fault) = look(&view) {
        last = Some(fault.place());
        engine::load(&mut disk, dir(), fault).unwrap();
    }
    last.expect("nothing is in memory")
}

fn leaf_of(member: &Member, number: usize) -> Place {
    last_page(member, |view| view.touch(&key(number)))
}

fn block_of(member: &Member, number: usize) -> Place {
    last_page(member, |view| view.get(&key(number), view.revision()).map(drop))
}

fn flip(storage: &SimStorage, place: Place) {
    let (path, offset): (PathBuf, u64) = (dir().join(place.path()), place.offset.into());
    storage.damage(&path, offset, |sector| sector[usize::try_from(offset % 512).unwrap()] ^= 1);
}

/// Reads a key as a client does; `None` if it cannot be read.
fn value(member: &mut Member, number: usize) -> Option<Bytes> {
    let view = member.shared.view.load();
    let mut disk = member.storage.disk();
    let found = engine::load_for(&mut disk, dir(), || view.get(&key(number), view.revision()));
    found.ok().map(|record| record.expect("it is there").value)
}

fn is_stopped(member: &Member) -> bool {
    member.shared.standstill.load().is_some()
}

/// What becomes of a client's request.
fn asked(member: &mut Member, id: u64, request: pb::PutRequest) -> Option<Result<(), Error>> {
    let slots = Slots::new(8);
    member.raft.receive(ToRaft::Propose(proposal(id, Request::Put(request), &slots)), member.now);
    for _ in 0..20 {
        let (turn, _) = member.turn_both();
        if !turn.faults.is_empty() {
            member.resolve(turn.faults);
        }
        let answers = member.raft.take_answers().into_iter().chain(turn.answers).flatten();
        for (_, answer) in answers {
            if let Answer::Applied(proposal) = answer {
                return Some(proposal.result.map(drop));
            }
        }
    }
    None
}

fn pass(member: &mut Member, time: Duration) {
    member.now += time;
    member.raft.tick(member.now);
    member.apply.tick(member.now);
    member.settle();
}

/// Whether a read that must see `index` is answered, and how.
fn reads(member: &mut Member, index: u64) -> Vec<bool> {
    let slots = Slots::<()>::new(1);
    let slot = slots.open(Duration::ZERO).unwrap().id();
    let reads = vec![ReadsAt { index, replies: vec![ReplyTo { core: 0, slot }] }];
    let (standing, log_bytes) = (member.apply.standing, member.apply.log_bytes);
    member.apply.hand(Handed { standing, log_bytes, reads, ..Handed::default() }, member.now);
    let answers = member.apply.turn(member.now).unwrap().answers;
    let is_readable = |answer| match answer {
        Answer::Readable => true,
        Answer::Unreadable(Error::Corrupt) => false,
        other => panic!("{other:?}"),
    };
    answers.into_iter().flatten().map(|(_, answer)| is_readable(answer)).collect()
}

#[test]
fn an_entry_that_needs_a_damaged_page_is_neither_skipped_nor_failed() {
    let member = cold();
    let leaf = leaf_of(&member, 777);
    flip(&member.storage, leaf);
    let mut member = restarted(&member);
    assert_eq!(value(&mut member, 3).unwrap(), "before");
    member.propose(Kind::Put, &put(3, "first"));
    member.settle();
    let applied = member.applied();
    member.propose(Kind::Put, &put(777, "second"));
    member.propose(Kind::Put, &put(4, "third"));
    member.settle();
    assert_eq!(member.applied(), applied, "what is behind it waits too");
    let reason = member.shared.standstill.load_full().unwrap();
    assert!(reason.contains(&format!("{} at offset {}", leaf.path().display(), leaf.offset)), "{reason}");
    assert!(!member.shared.is_behind.load(Ordering::Acquire), "nobody was told that it was done");
    assert_eq!(reads(&mut member, applied), [true]);
    assert_eq!(reads(&mut member, applied + 1), [false], "a read is not kept waiting for what is not applied");
    assert_eq!(value(&mut member, 3).unwrap(), "first");
    assert_eq!(value(&mut member, 777), None);
    assert_eq!(member.shared.view.unreadable().count(), 1);
    assert_eq!(asked(&mut member, 2, put(9, "refused")), Some(Err(Error::Corrupt)));
    pass(&mut member, Duration::from_secs(11));
    assert!(is_stopped(&member) && member.applied() == applied);

    let mut member = restarted(&member);
    assert!(is_stopped(&member) && member.apply.is_ready(), "it starts again into that state, and serves");
    assert!(member.shared.is_behind.load(Ordering::Acquire), "others may have been told");
    assert_eq!(value(&mut member, 3).unwrap(), "first");
    flip(&member.storage, leaf);
    pass(&mut member, Duration::from_secs(11));
    assert!(!is_stopped(&member) && member.is_all_applied());
    assert!(!member.shared.is_behind.load(Ordering::Acquire));
    for (number, expected) in [(777, "second"), (4, "third"), (3, "first")] {
        assert_eq!(value(&mut member, number).unwrap(), expected);
    }
    assert_eq!(member.shared.view.unreadable().count(), 0);
    assert_eq!(asked(&mut member, 4, put(9, "taken")), Some(Ok(())));
}

#[test]
fn entries_go_around_a_damaged_page_that_they_do_not_need() {
    let member = cold();
    let leaf = leaf_of(&member, 777);
    flip(&member.storage, leaf);
    let mut member = restarted(&member);
    for number in (0..KEYS).filter(|number| number.abs_diff(777) > 600) {
        member.propose(Kind::Put, &put(number, "after"));
    }
    let revision = member.shared.view.load().revision() + 1000;
    member.propose(Kind::Compaction, &pb::CompactionRequest { revision, physical: false });
    member.settle();
    assert!(!is_stopped(&member) && member.is_all_applied());
    checkpoint(&mut member);
    pass(&mut member, Duration::from_secs(60));
    checkpoint(&mut member);
    assert!(member.is_all_applied() && !is_stopped(&member));
    assert_eq!(value(&mut member, 1900).unwrap(), "after");
    assert_eq!(value(&mut member, 777), None);
}

#[test]
fn an_answer_that_cannot_be_made_stops_nothing() {
    let member = cold();
    let block = block_of(&member, 500);
    flip(&member.storage, block);
    let mut member = restarted(&member);
    let request = pb::PutRequest { prev_kv: true, ..put(500, "after") };
    assert_eq!(asked(&mut member, 2, request), Some(Err(Error::Corrupt)));
    assert!(!is_stopped(&member));
    assert_eq!(value(&mut member, 500).unwrap(), "after", "as on any other member");
    assert_eq!(asked(&mut member, 4, put(500, "again")), Some(Ok(())));
    // Here the state itself depends on the record.
    let request = pb::PutRequest { ignore_value: true, value: Bytes::new(), ..put(501, "") };
    assert_eq!(asked(&mut member, 6, request), None);
    assert!(is_stopped(&member));
}

#[test]
fn what_a_compare_of_many_keys_needs_is_looked_for_before_it_is_proposed() {
    let member = cold();
    let leaf = leaf_of(&member, 777);
    flip(&member.storage, leaf);
    let compare = pb::Compare { key: key(0), range_end: key(KEYS), ..Default::default() };
    let request = Request::Txn(pb::TxnRequest { compare: vec![compare], ..Default::default() });
    let [needed] = &needs::ranges(&request)[..] else { panic!("one range is compared") };
    let mut disk = member.storage.kill().disk();
    let store = Store::open(&mut disk, dir(), store::Options::default()).unwrap();
    let view = store.mvcc().view();
    let mut walk = needs::Walk::new(&view, needed, None);
    let mut damaged = Vec::new();
    while damaged.is_empty() {
        let faults = walk.step(64).map_or_else(|faults| faults, |is_over| panic!("{is_over}: a leaf is damaged"));
        let places = faults.into_iter().map(|fault| (fault.place(), engine::load(&mut disk, dir(), fault)));
        damaged.extend(places.filter(|(_, loaded)| loaded.is_err()).map(|(place, _)| place));
    }
    assert_eq!(damaged, [leaf]);
}

#[test]
fn a_lease_whose_keys_cannot_be_read_lives_on_and_the_others_end() {
    let member = cold();
    let leaf = leaf_of(&member, 500);
    flip(&member.storage, leaf);
    let mut member = restarted(&member);
    pass(&mut member, Duration::from_secs(70));
    pass(&mut member, Duration::from_secs(1));
    assert!(!is_stopped(&member) && member.is_all_applied());
    let view = member.shared.view.load();
    let has = |lease: i64| {
        let mut disk = member.storage.disk();
        engine::load_for(&mut disk, dir(), || view.meta_get(&crate::lease::grant_key(lease))).unwrap().is_some()
    };
    assert!(has(7) && !has(8));
}

#[test]
fn a_lease_that_is_not_there_needs_no_page_of_others() {
    let member = cold();
    let rows = |view: &ReadView| view.meta_count(&crate::lease::attachment_prefix(6)).map(drop);
    flip(&member.storage, last_page(&member, rows));
    let mut member = restarted(&member);
    member.propose(Kind::LeaseRevoke, &pb::LeaseRevokeRequest { id: 6 });
    member.settle();
    assert!(!is_stopped(&member) && member.is_all_applied());
}

#[test]
fn the_records_that_a_request_needs_are_found_together() {
    let member = cold();
    let mut disk = member.storage.kill().disk();
    let store = Store::open(&mut disk, dir(), store::Options::default()).unwrap();
    let view = store.mvcc().view();
    let compare = |number| pb::Compare { target: CompareTarget::Value as i32, key: key(number), ..Default::default() };
    let compare = (0..KEYS).step_by(20).map(compare).collect();
    let request = Request::Txn(pb::TxnRequest { compare, ..Default::default() });
    let (mut looks, mut pages) = (0, 0);
    loop {
        let missing = needs::missing(&view, true, &request, 64);
        if missing.is_empty() {
            break;
        }
        looks += 1;
        pages += missing.len();
        missing.into_iter().for_each(|fault| engine::load(&mut disk, dir(), fault).unwrap());
    }
    assert!(looks < 8 && pages > 2 * looks, "{pages} pages in {looks} looks");
    assert!((0..KEYS).step_by(20).all(|number| view.get(&key(number), view.revision()).is_ok()));
}

#[test]
fn a_delete_whose_end_lies_in_a_dead_leaf_needs_nothing_of_that_leaf() {
    let mut member = cold();
    let delete = |from: usize, to: usize| pb::DeleteRangeRequest { key: key(from), range_end: key(to), prev_kv: false };
    member.propose(Kind::DeleteRange, &delete(1000, KEYS));
    member.settle();
    checkpoint(&mut member);
    let member = restarted(&member);
    let leaf = leaf_of(&member, 1500);
    flip(&member.storage, leaf);
    let mut member = restarted(&member);
    member.propose(Kind::DeleteRange, &delete(950, 1500));
    member.settle();
    assert!(!is_stopped(&member) && member.is_all_applied());
    assert_eq!(value(&mut member, 949).unwrap(), "before");
    let live = member.shared.view.load().sums(&KeyRange::all(), u64::MAX).unwrap().0;
    assert_eq!(live, 950);
}
