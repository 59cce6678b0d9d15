//! What requests are answered.

use std::time::Duration;

use proto::{
    etcdserverpb::{
        self as pb,
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op,
    },
    internal::Request,
};
use server::error::Error;

use super::{calm, millis, op, put};

/// #18667. A txn put one key, and read another at a compacted revision. etcd refused it at the member that was asked,
/// in the middle of it, and applied the put at the others, which leave out reads that nobody waits for.
#[test]
fn a_txn_that_reads_what_is_compacted_puts_nothing_at_any_member() {
    let mut world = calm(18667, 3);
    let leader = world.led();
    for number in 1..=20 {
        world.put(leader, &format!("k{number}"), format!("v{number}"));
    }
    let revision = world.truth.revision();
    world.compact(leader, revision);
    let compare = pb::Compare {
        result: CompareResult::Equal as i32,
        target: CompareTarget::Value as i32,
        key: "k1".into(),
        target_union: Some(TargetUnion::Value("v1".into())),
        ..pb::Compare::default()
    };
    let read = |revision| {
        op(request_op::Request::RequestRange(pb::RangeRequest { key: "k1".into(), revision, ..Default::default() }))
    };
    for at in 0..3 {
        for (past, refusal) in [(revision - 1, Error::Compacted), (revision + 1, Error::FutureRevision)] {
            let success = vec![op(request_op::Request::RequestPut(put("k2", "foo"))), read(past)];
            let txn = pb::TxnRequest { compare: vec![compare.clone()], success, failure: Vec::new() };
            let id = world.propose(at, Request::Txn(txn));
            assert_eq!(world.answer(id), Err(refusal), "at m{}", at + 1);
        }
    }
    world.agree();
    for at in 0..3 {
        assert_eq!(world.read(at, at as u64 + 1, "k2"), (revision, Some("v2".into())), "nothing was put");
    }
    world.heal();
}

/// #20418. A leader of etcd stood still while answers to a round of heartbeats were under way. Another led meanwhile,
/// and wrote. When the first went on, the old answers confirmed a new read of the same name, and it was stale.
#[test]
fn old_answers_do_not_confirm_the_new_reads_of_a_leader_that_stood_still() {
    let mut answered = 0;
    for seed in 0..8 {
        let mut world = calm(20418 + seed, 3);
        let old = world.led();
        let (first, late) = ((old + 1) % 3, (old + 2) % 3);
        world.put(old, "register", "old");
        // One answer to a round of heartbeats is enough, and the other one is late.
        world.hold((late, old), true, false);
        world.hold((late, old), true, true);
        let read = world.read(old, 1, "register").1;
        assert_eq!(read, Some("old".into()));
        world.hold((first, old), true, false);
        world.hold((first, old), true, true);
        world.stand_still(old, Duration::from_secs(4));
        world.until("another leads", |world| world.leader() != Some(old));
        let new = world.led();
        let revision = world.put(new, "register", "new");
        world.until("the old leader goes on", |world| world.seats[old].paused_until <= world.now);
        assert!(world.member(old).is_leader(), "it does not know better");
        world.ask_read(old, 2);
        // The late answer is the first thing that it hears.
        world.hold((late, old), false, false);
        world.pass(millis(20));
        for (from, appends) in [(late, true), (first, false), (first, true)] {
            world.hold((from, old), false, appends);
        }
        if let Ok((at, value)) = world.read_answer(old, 2, "register") {
            assert_eq!((at, value), (revision, Some("new".into())), "it was asked for behind the write");
            answered += 1;
        }
        world.heal();
    }
    assert!(answered > 0, "some of the reads are answered");
}

/// Not a bug of etcd, whose leader waits with the answer: what others have acknowledged, it may have still to write and
/// apply. Here nobody has it before the leader has written it.
#[test]
fn a_leader_with_a_hung_disk_says_of_leases_what_others_have_said() {
    let mut world = calm(7092, 3);
    let leader = world.led();
    let other = world.follower();
    let grant = pb::LeaseGrantRequest { id: 5, ttl: 60 };
    let requests = [(Request::LeaseGrant(grant), 60), (Request::LeaseRevoke(pb::LeaseRevokeRequest { id: 5 }), 0)];
    for (request, left) in requests {
        world.hang(leader, millis(500));
        world.done(other, request);
        assert!(world.now >= world.seats[leader].hung_until, "the others wait for the leader's disk");
        world.member(leader).renew(5);
        world.step(leader);
        let mut told = None;
        world.until("the renewal is answered", |world| {
            told = world.heard.as_mut().and_then(|heard| heard.take_renewal(5));
            told.is_some()
        });
        assert_eq!(told, Some(left));
    }
    world.heal();
}
