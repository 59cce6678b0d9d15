//! A member whose pages are damaged has them made up for by another one's state, whoever finds the damage. etcd has
//! nothing of the kind.

use std::cmp::Reverse;

use bytes::Bytes;
use proto::{
    etcdserverpb::{
        self as pb,
        compare::{CompareTarget, TargetUnion},
    },
    internal::Request,
};
use server::error::Error;

use super::{super::world::Event, NEVER, World, calm, events_of, everything, millis, put};

/// Keys that lie in many pages.
const KEYS: usize = 300;

impl World {
    /// The member has all in its pages, and nothing in memory. Then all its pages are damaged.
    fn damage_cold(&mut self, at: usize) {
        let leader = self.led();
        for number in 0..KEYS {
            self.put(leader, &format!("kept/{number:03}"), vec![b'k'; 400]);
        }
        self.outrun(leader);
        self.agree();
        self.lose(at, false, millis(50));
        self.until("it serves again", |world| world.is_ready(at));
        self.agree_on_applied();
        self.damage_all(at);
    }

    fn agree_on_applied(&mut self) {
        self.until("all is applied everywhere", |world| {
            let applied = world.truth.applied();
            world.seats.iter().all(|seat| seat.member.as_ref().is_none_or(|member| member.applied() == applied))
        });
    }

    /// Whether a client of the member can read all keys there.
    fn reads_all(&mut self, at: usize) -> bool {
        let member = self.member(at);
        let view = member.shared.view.load();
        member.read(&view, &everything()).is_some()
    }

    /// Lets no member ask for a state, until this is called again.
    fn let_ask_for_repairs(&mut self, may_ask: bool) {
        self.queue.retain(|Reverse((_, _, event))| !matches!(event, Event::AskForRepairs));
        if may_ask {
            self.plan(millis(1), Event::AskForRepairs);
        }
    }
}

#[test]
fn damage_that_a_read_finds_is_made_up_for_though_no_entry_needs_it() {
    let mut world = calm(1, 3);
    let at = world.follower();
    world.damage_cold(at);
    assert!(!world.reads_all(at) && world.repairs == 0);
    world.until("it stands still for a state", |world| world.member(at).stands_still());
    world.until("it reads all again", |world| world.reads_all(at));
    assert!(world.repairs > 0 && !world.member(at).stands_still());
    world.agree();
    world.heal();
}

#[test]
fn damage_that_a_watcher_finds_is_made_up_for_and_it_is_told_everything() {
    let mut world = calm(2, 3);
    let at = world.follower();
    world.damage_cold(at);
    let mut stream = world.open_stream(at, NEVER);
    world.watch(&stream, 1, 2);
    let last = world.truth.revision();
    let mut responses = Vec::new();
    world.until("the watcher is told everything", |world| {
        responses.extend(world.take_all(&mut stream));
        events_of(&responses, 1).len() == world.changes(2, last).len()
    });
    assert!(world.repairs > 0);
    assert_eq!(events_of(&responses, 1), world.changes(2, last));
    world.agree();
    world.heal();
}

#[test]
fn a_leader_with_damage_hands_leadership_over_and_is_made_whole() {
    let mut world = calm(3, 3);
    let at = world.led();
    world.damage_cold(at);
    // It was started again, and somebody else leads since.
    let leader = world.led();
    if leader != at {
        let id = world.member(at).id;
        world.member(leader).transfer(id);
        world.until("it leads again", |world| world.leader() == Some(at));
    }
    assert!(!world.reads_all(at));
    world.until("another one leads", |world| world.leader().is_some_and(|leader| leader != at));
    world.until("it reads all again", |world| world.reads_all(at));
    world.agree();
    world.heal();
}

#[test]
fn a_member_that_stands_still_takes_a_state_however_far_ahead_it_is() {
    let mut world = calm(4, 3);
    let (leader, at) = (world.led(), world.follower());
    world.damage_cold(at);
    world.let_ask_for_repairs(false);
    let applied = world.member(at).applied();
    let compare = pb::Compare {
        target: CompareTarget::Value as i32,
        key: "kept/000".into(),
        target_union: Some(TargetUnion::Value(Bytes::new())),
        ..pb::Compare::default()
    };
    world.done(leader, Request::Txn(pb::TxnRequest { compare: vec![compare], ..pb::TxnRequest::default() }));
    // More than apply and raft hold of it together.
    let value = Bytes::from(vec![b'v'; 100_000]);
    for number in 0..60 {
        world.put(leader, &format!("large/{number:03}"), value.clone());
    }
    assert!(world.member(at).stands_still());
    assert_eq!(world.member(at).applied(), applied);
    world.let_ask_for_repairs(true);
    world.agree();
    assert!(!world.member(at).stands_still());
    world.heal();
}

#[test]
fn requests_of_a_member_that_waits_for_a_state_can_go_elsewhere() {
    let mut world = calm(5, 3);
    let (leader, at) = (world.led(), world.follower());
    world.damage_cold(at);
    world.let_ask_for_repairs(false);
    assert!(!world.reads_all(at));
    world.until("it stands still for a state", |world| world.member(at).stands_still());
    let id = world.propose(at, Request::Put(put("refused", "")));
    assert_eq!(world.answer(id).map(drop), Err(Error::Stopped));
    world.ask_read(at, 1);
    assert_eq!(world.read_answer(at, 1, "kept/000"), Err(()), "others may have acknowledged more");
    world.put(leader, "elsewhere", "");
    // Nobody gives it a state: it serves on around the damage, and tries again later.
    world.until("it goes on", |world| !world.member(at).stands_still());
    world.agree_on_applied();
    world.let_ask_for_repairs(true);
    world.until("it reads all", |world| world.reads_all(at));
    world.agree();
    world.heal();
}
