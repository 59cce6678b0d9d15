//! Power is lost: what was acknowledged stays, what was applied is applied once, and a member always starts again.

use std::time::Duration;

use bytes::Bytes;
use proto::{
    etcdserverpb::{
        self as pb,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op,
    },
    internal::Request,
};
use server::{
    apply::{long::Steps, outcome::Outcome},
    clock::Clock,
};

use super::{World, calm, millis, op, put};
use crate::member::{Disks, HEARTBEAT, Member, Setting};

/// A txn that puts `value` if `key` has not changed since `mod_revision`.
fn put_if(key: &str, mod_revision: i64, value: String) -> Request {
    let compare = pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Mod as i32,
        key: key.to_owned().into(),
        range_end: Bytes::new(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
    };
    let success = vec![op(request_op::Request::RequestPut(put(key, value)))];
    Request::Txn(pb::TxnRequest { compare: vec![compare], success, failure: Vec::new() })
}

impl World {
    /// Puts `value` if `key` has not changed since `mod_revision`. Returns the revision, which must be a new one.
    fn put_if(&mut self, at: usize, key: &str, mod_revision: i64, value: String) -> i64 {
        match self.done(at, put_if(key, mod_revision, value)) {
            Outcome::Txn(response) if response.succeeded => response.header.expect("a header").revision,
            other => panic!("{other:?} for a txn whose guard holds"),
        }
    }
}

/// #13766. etcd 3.5 stored the applied index apart from the data that it belongs to. A member that crashed under load
/// applied entries again, or never, and its revision was no longer that of the others.
#[test]
fn a_crash_under_high_load_applies_each_entry_once() {
    let mut world = calm(13766, 3);
    let value = Bytes::from(vec![b'l'; 2000]);
    for round in 0..24 {
        let writer = world.led();
        world.burst(writer, 60, &value);
        world.crash_in_checkpoint((writer + round) % 3, round as u64);
        world.agree();
    }
    world.heal();
}

/// #14370. A cluster of one member needs nobody's vote: etcd applied and acknowledged an entry while its log was still
/// being synced. A crash at that moment lost an acknowledged write.
#[test]
fn a_single_member_acknowledges_nothing_before_its_log_is_durable() {
    let mut world = calm(14370, 1);
    for round in 0..20_u64 {
        let before = world.member(0).shared.view.load().revision();
        world.hang(0, Duration::from_secs(60));
        let early = world.propose(0, Request::Put(put("early", round.to_string())));
        world.pass(millis(1500));
        assert_eq!(world.told(early), None, "nobody knows yet whether it will last");
        assert_eq!(world.member(0).shared.view.load().revision(), before, "and nobody can read it");
        world.crash(0);
        let revision = world.put(0, "late", round.to_string());
        world.crash(0);
        let (now, value) = world.read(0, round + 1, "late");
        assert!(now >= revision, "revision {now} after {revision} was acknowledged");
        assert_eq!(value, Some(round.to_string().into()), "what was acknowledged is there");
    }
    world.heal();
}

/// #14685. A defragmentation committed etcd's data without the applied index. A crash during it had entries applied
/// again after the start, and the member's revision was higher than that of the others.
#[test]
fn a_crash_while_space_is_given_back_applies_each_entry_once() {
    let mut world = calm(14685, 3);
    let value = Bytes::from(vec![b'd'; 1500]);
    let mut last = 0;
    for round in 0..16 {
        let writer = world.led();
        let at = (writer + round) % 3;
        for id in world.burst(writer, 60, &value) {
            world.answer(id).expect("it is not refused");
        }
        last = world.put_if(writer, "counted", last, round.to_string());
        world.compact(writer, last);
        world.agree();
        world.member(at).defragment();
        world.step(at);
        world.burst(writer, 60, &value);
        world.crash_in_checkpoint(at, round as u64);
        world.agree();
    }
    let counted = world.truth.model.at(b"counted", last).expect("it was put").version;
    assert_eq!(counted, 16, "each txn was applied once");
    world.heal();
}

/// #17780. The last revision was a deletion, and a compaction removed it. etcd crashed before it had noted that the
/// compaction was done, found no key with that revision at its start, and gave a lower revision to its store.
#[test]
fn a_crash_while_a_last_deletion_is_compacted_does_not_lower_the_revision() {
    let mut world = calm(17780, 1);
    let value = Bytes::from(vec![b'c'; 12_000]);
    for round in 0..24_u64 {
        for key in ["2", "3", "4", "5", "6", "7", "8"] {
            world.put(0, key, value.clone());
        }
        world.delete(0, "4");
        world.delete(0, "5");
        let last = world.delete(0, "6");
        world.compact(0, last);
        if round % 2 == 0 {
            // The sweep has removed what nobody may read any more.
            world.pass(millis(300));
        }
        world.member(0).defragment();
        world.step(0);
        world.crash_in_checkpoint(0, round);
        let view = world.member(0).shared.view.load();
        assert_eq!((view.revision(), view.compact_revision()), (last, last), "nothing goes back");
        assert_eq!(world.read(0, round + 1, "4"), (last, None), "what was deleted stays so");
        assert_eq!(world.put(0, "9", "next"), last + 1, "revisions go on");
    }
    world.agree();
    world.heal();
}

/// #14140, never explained in etcd. Machines lost what they had not synced, and seconds after one client had read a
/// value, a linearizable read at another member returned the one before it.
#[test]
fn no_read_goes_back_when_all_machines_lose_what_was_not_synced() {
    let mut world = calm(14140, 5);
    let small = Bytes::from_static(b"more");
    let mut number = 0;
    for round in 0..8 {
        let writer = world.led();
        world.put(writer, "register", round.to_string());
        number += 1;
        let (floor, seen) = world.read((writer + 1 + round) % 5, number, "register");
        assert_eq!(seen, Some(round.to_string().into()));
        world.burst(writer, 10, &small);
        world.pass(Duration::from_micros(200 * round as u64));
        world.crash_all(round as u64);
        world.led();
        for at in 0..5 {
            number += 1;
            let (revision, value) = world.read(at, number, "register");
            assert!(revision >= floor && value == seen, "m{} reads {value:?} at {revision}", at + 1);
        }
    }
    world.heal();
}

/// #14143, never explained in etcd. All members were killed while their disks had not synced everything. After the
/// start, a txn that had succeeded and had been read was gone, as if two halves of the cluster had gone on apart.
#[test]
fn a_txn_that_was_read_survives_the_end_of_all_in_the_middle_of_an_election() {
    let mut world = calm(14143, 5);
    let mut last = 0;
    for round in 0..8_u64 {
        let leader = world.led();
        last = world.put_if(leader, "appended", last, round.to_string());
        let (_, seen) = world.read((leader + 1) % 5, round + 1, "appended");
        assert_eq!(seen, Some(round.to_string().into()));
        // Votes are given by disks that hang, and the new leader may be one of those.
        world.hang((leader + 1) % 5, Duration::from_secs(9));
        world.hang((leader + 2) % 5, Duration::from_secs(9));
        world.lose(leader, false, Duration::from_secs(3));
        world.pass(millis(1000 + 150 * round));
        world.crash_all(round);
    }
    let leader = world.led();
    let value = world.read(leader, 100, "appended").1;
    assert_eq!(value, Some("7".into()), "what was read is there");
    world.heal();
}

/// #14098. etcd did not start on a log that had lost writes which were not synced: what was left of a record looked
/// like a very long one, "max entry size limit exceeded".
#[test]
fn a_log_that_lost_what_was_not_synced_can_be_opened() {
    let mut world = calm(14098, 1);
    let setting = Setting { members: 1, steps: Steps::default(), tick: HEARTBEAT };
    let mut images = 0;
    for round in 0..12 {
        let kept = world.put(0, "kept", round.to_string());
        let value = Bytes::from(vec![b'w'; 700 * round]);
        // Some of it ends a segment of the log, and begins the next one.
        world.burst(0, 12, &value);
        world.pass(Duration::from_micros(250 * round as u64));
        let left = world.member(0).disks.log.crash_images(16);
        images += left.len();
        for (number, log) in left.into_iter().enumerate() {
            let disks = Disks { log, data: world.member(0).disks.data.crash() };
            let started = Member::start(1, setting, disks, Clock::manual(number as u64));
            assert!(started.is_ok(), "round {round}, image {number}: {:?}", started.err());
        }
        world.crash(0);
        let (revision, value) = world.read(0, round as u64 + 1, "kept");
        assert!(revision >= kept && value == Some(round.to_string().into()), "{value:?} at {revision}");
    }
    assert!(images > 100, "power loss leaves this or that of what is under way: {images}");
    world.heal();
}
