//! A member that was cut off takes a state in place of log entries: nothing of it is lost, seen twice or seen too
//! early, whatever happens meanwhile.

use std::time::Duration;

use bytes::Bytes;
use proto::{etcdserverpb as pb, internal::Request};
use server::error::Error;

use super::{NEVER, World, calm, events_of, is_progress, millis, put};

impl World {
    /// The member is cut off while the others write more than their logs keep.
    fn fall_behind(&mut self, at: usize) {
        let leader = self.led();
        assert!(leader != at, "who leads is not cut off");
        self.cut_off(at);
        self.outrun(leader);
    }

    /// The member is joined again, and a state for it has begun its way.
    fn join_and_be_sent_a_state(&mut self, at: usize) {
        let begun = self.sent.begun;
        self.join(at);
        self.until("a state is sent", |world| world.sent.begun > begun);
    }

    /// The same, and the state has just arrived.
    fn join_and_get_a_state(&mut self, at: usize) {
        let arrived = self.sent.arrived;
        self.join_and_be_sent_a_state(at);
        self.until("the state arrives", |world| world.sent.arrived > arrived);
    }

    fn put_of_lease(&mut self, at: usize, key: &str, lease: i64) -> Result<(), Error> {
        let request = pb::PutRequest { lease, ..put(key, "leased") };
        let id = self.propose(at, Request::Put(request));
        self.answer(id).map(drop)
    }
}

/// #14571, as far as it is about no users: a member that took a snapshot kept what it had in memory of users and roles,
/// refused entries that the others applied, and had other keys from then on. Here leases stand for users.
#[test]
fn a_member_that_took_a_state_judges_entries_as_the_others_do() {
    let mut world = calm(14571, 3);
    let (leader, at) = (world.led(), world.follower());
    world.done(leader, Request::LeaseGrant(pb::LeaseGrantRequest { id: 6, ttl: 2 }));
    world.agree();
    world.cut_off(at);
    world.done(leader, Request::LeaseGrant(pb::LeaseGrantRequest { id: 7, ttl: 25 }));
    // The other lease expires meanwhile.
    world.outrun(leader);
    world.pass(millis(1500));
    world.join_and_get_a_state(at);
    for asked in [leader, at] {
        assert_eq!(world.put_of_lease(asked, "leased", 7), Ok(()), "the lease was granted");
        assert_eq!(world.put_of_lease(asked, "late", 6), Err(Error::LeaseNotFound), "the lease has expired");
    }
    world.agree();
    world.heal();
    assert_eq!(
        world.truth.model.range(&super::everything(), world.truth.revision()).count,
        60,
        "the leased key is gone"
    );
}

/// #15271. A watcher of etcd that had been told everything kept the revision with which it had begun. When its member
/// took a snapshot after a partition, the watcher was sent back there, and was told everything again.
#[test]
fn a_watch_does_not_go_back_in_time_when_its_member_takes_a_state() {
    for seed in 0..3 {
        let mut world = calm(15271 + seed, 3);
        let (leader, at) = (world.led(), world.follower());
        let mut stream = world.open_stream(at, NEVER);
        world.agree();
        let first = world.truth.revision() + 1;
        world.watch(&stream, 1, 0);
        world.watch(&stream, 2, first);
        let last = (0..30).map(|number| world.put(leader, "watched", number.to_string())).max().expect("some");
        world.agree();
        let before = world.take_all(&mut stream);
        world.fall_behind(at);
        world.join_and_get_a_state(at);
        let newest = world.put(leader, "watched", "after");
        world.agree();
        let after = world.take_all(&mut stream);
        for id in [1, 2] {
            assert_eq!(events_of(&before, id), world.changes(first, last), "watcher {id}, before");
            assert_eq!(events_of(&after, id), world.changes(last + 1, newest), "watcher {id} goes on where it was");
        }
        world.heal();
    }
}

/// #20221, the second of the two: a watcher of the future. When its member took a snapshot, etcd sent it back to the
/// snapshot's revision, and it was told of changes before the revision that it had asked for.
#[test]
fn a_watch_of_the_future_is_told_nothing_older_when_its_member_takes_a_state() {
    let mut world = calm(20221, 3);
    let (leader, at) = (world.led(), world.follower());
    world.put(leader, "first", "1");
    world.agree();
    let now = world.truth.revision();
    let mut stream = world.open_stream(at, millis(500));
    // One begins in the middle of what the state brings, the other behind it.
    world.watch(&stream, 1, now + 50);
    world.watch(&stream, 2, now + 300);
    world.fall_behind(at);
    world.join_and_get_a_state(at);
    world.agree();
    let mut responses = world.take_all(&mut stream);
    world.pass(Duration::from_secs(2));
    world.ask_progress(&stream);
    responses.extend(world.take_all(&mut stream));
    let revision = world.truth.revision();
    assert!(revision >= now + 50 && revision < now + 300);
    assert_eq!(events_of(&responses, 1), world.changes(now + 50, revision));
    assert_eq!(events_of(&responses, 2), [], "nothing of what it waits for has happened");
    let is_of_future = |response: &&pb::WatchResponse| is_progress(response) && response.watch_id != 1;
    assert_eq!(responses.iter().find(is_of_future), None, "there is no progress before its first revision");
    let value = Bytes::from_static(b"second");
    for id in world.burst(leader, 80, &value) {
        world.answer(id).expect("it is not refused");
    }
    world.agree();
    let later = world.take_all(&mut stream);
    let newest = world.truth.revision();
    assert_eq!(events_of(&later, 1), world.changes(revision + 1, newest));
    assert_eq!(events_of(&later, 2), world.changes(now + 300, newest));
    world.heal();
}

/// #20271. etcd defragmented while it took a snapshot: one of the two had the other's file in its hands. It panicked
/// ("page expected to be 5"), or what was written from then on was in a file without a name, and lost with a restart.
#[test]
fn a_member_that_gives_back_space_while_it_takes_a_state_loses_nothing() {
    for round in 0..6_u64 {
        let mut world = calm(20271 + round, 3);
        let (leader, at) = (world.led(), world.follower());
        let value = Bytes::from(vec![b'g'; 1500]);
        for id in world.burst(leader, 60, &value) {
            world.answer(id).expect("it is not refused");
        }
        for number in 0..40 {
            world.delete(leader, &format!("burst/{number:03}"));
        }
        let revision = world.truth.revision();
        world.compact(leader, revision);
        world.agree();
        world.fall_behind(at);
        let arrived = world.sent.arrived;
        world.join_and_be_sent_a_state(at);
        world.pass(millis(4 * round));
        world.member(at).defragment();
        world.step(at);
        world.until("the state arrives", |world| world.sent.arrived > arrived);
        world.member(at).defragment();
        world.step(at);
        world.agree();
        for number in 0..5 {
            world.put(leader, &format!("burst/{number:03}"), "behind the state");
        }
        world.agree();
        world.crash(at);
        world.agree();
        world.heal();
    }
}

/// #20426. A leader of etcd that was busy sent a snapshot of one index with data of another. Its receiver applied what
/// came between them again, or never.
#[test]
fn a_state_that_is_sent_under_load_is_that_of_its_index() {
    let small = Bytes::from_static(b"load");
    for round in 0..8_u32 {
        let mut world = calm(20426 + u64::from(round), 3);
        let (leader, at) = (world.led(), world.follower());
        world.fall_behind(at);
        let arrived = world.sent.arrived;
        world.burst(leader, 5, &small);
        world.join(at);
        world.until("the state arrives", |world| {
            world.burst(leader, 1, &small);
            world.sent.arrived > arrived
        });
        // Entries behind the state are applied to it, or not yet.
        world.pass(Duration::from_micros(400) * round);
        world.crash(at);
        world.agree();
        world.heal();
    }
}

/// #22340. etcd renamed the file of a snapshot and did not sync its folder. After a power loss the log had the
/// snapshot, and the file was gone: the member did not start any more.
#[test]
fn a_member_starts_when_power_is_lost_just_after_a_state_has_arrived() {
    for round in 0..16_u32 {
        let mut world = calm(22340 + u64::from(round), 3);
        let at = world.follower();
        world.fall_behind(at);
        world.join_and_get_a_state(at);
        world.pass(Duration::from_micros(300) * round);
        world.crash(at);
        world.agree();
        world.heal();
    }
}

/// #18055. A second snapshot came while the first was not applied. etcd removed the file of the first as one that
/// nobody needs, and panicked when it was to be applied.
#[test]
fn a_second_state_does_not_take_the_place_of_one_that_is_about_to_be_installed() {
    let value = Bytes::from(vec![b'q'; 1500]);
    let mut overlapped = 0;
    for seed in 0..12 {
        let mut world = calm(18055 + seed, 5);
        let leader = world.led();
        let at = (leader + 1) % 5;
        // What it does when it has been quiet for a while: a checkpoint, which takes long.
        for id in world.burst(leader, 10, &value) {
            world.answer(id).expect("it is not refused");
        }
        world.agree();
        world.seats[at].store_slow_until = world.now + Duration::from_secs(60);
        world.fall_behind(at);
        world.join_and_be_sent_a_state(at);
        // Its leader stands still in the middle of it, and the next one sends a state of its own.
        world.pass(millis(2));
        let (begun, arrived) = (world.sent.begun, world.sent.arrived);
        world.stand_still(leader, Duration::from_secs(4));
        world.until("another state is sent", |world| world.sent.begun > begun);
        // That one is to be installed, and waits until a checkpoint has ended.
        world.until("it arrives", |world| world.sent.arrived > arrived);
        // Now comes the rest of the first one.
        world.until("the first arrives", |world| world.sent.arrived > arrived + 1);
        overlapped += u64::from(world.member(at).applied() + 100 < world.truth.applied());
        world.agree();
        world.heal();
    }
    assert!(overlapped > 2, "none is installed yet when the other arrives: {overlapped}");
}

/// Found on the way to the one above: a state is installed, the log's disk is slow to start again behind it, and the
/// next checkpoint is done before it has.
#[test]
fn a_checkpoint_behind_an_installed_state_does_not_wait_for_the_log() {
    for seed in 0..12 {
        let mut world = calm(18056 + seed, 3);
        let at = world.follower();
        world.fall_behind(at);
        world.join_and_be_sent_a_state(at);
        world.pass(millis(2));
        world.hang(at, Duration::from_secs(12));
        let arrived = world.sent.arrived;
        world.until("the state arrives", |world| world.sent.arrived > arrived);
        world.pass(Duration::from_secs(1));
        world.member(at).defragment();
        world.step(at);
        world.agree();
        world.heal();
    }
}
