//! What watchers are told: every event that they ask for, once and in order, or that it is compacted.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use proto::{
    etcdserverpb::{self as pb, request_op},
    internal::Request,
    mvccpb::event::EventType,
};

use super::{NEVER, World, calm, events_of, is_progress, millis, op, progress, put, revision_of, watcher};

/// Watchers of all keys, as their client knows them.
#[derive(Default)]
struct Followed {
    /// Where watchers that are asked for will begin, but for those that begin at the present.
    asked: BTreeMap<i64, i64>,
    /// The revision before which each watcher was told everything.
    next: BTreeMap<i64, i64>,
    progress: usize,
    /// Watchers that ended, because what they wanted was compacted.
    ended: Vec<i64>,
}

impl Followed {
    /// A watcher that will begin at `revision`, or at the present one if that is 0.
    fn begin(&mut self, id: i64, revision: i64) {
        if revision > 0 {
            self.asked.insert(id, revision);
        }
    }

    /// Checks what comes next: events in order and each once, and progress behind what it covers.
    fn follow(&mut self, world: &World, responses: &[pb::WatchResponse]) {
        for response in responses {
            let (id, revision) = (response.watch_id, revision_of(response));
            if response.created {
                assert!(!response.canceled, "{response:?}");
                self.next.insert(id, self.asked.remove(&id).unwrap_or(revision + 1));
            } else if response.canceled {
                let next = self.next.remove(&id).expect("it has not ended before");
                assert!(next < response.compact_revision, "watcher {id} is at {next}: {response:?}");
                self.ended.push(id);
            } else if is_progress(response) {
                for (id, next) in self.next.iter().filter(|(other, _)| id == -1 || **other == id) {
                    assert_eq!(world.changes(*next, revision), [], "watcher {id} has not got this, but progress");
                }
                self.progress += 1;
            } else {
                let got = events_of(std::slice::from_ref(response), id);
                let last = got.last().expect("there are events").0;
                let next = self.next.insert(id, last + 1).expect("it was created");
                assert_eq!(got, world.changes(next, last), "watcher {id} goes on at {next}");
            }
        }
    }

    /// Checks that all watchers that are left were told everything.
    fn check_end(&self, world: &World) {
        let revision = world.truth.revision();
        for (id, next) in &self.next {
            assert_eq!(world.changes(*next, revision), [], "watcher {id} is never told this");
        }
    }
}

/// #15220. A client asked for progress, and the answer overtook events that waited in its stream: it believed to have
/// everything up to a revision, and had not.
#[test]
fn progress_that_is_asked_for_does_not_overtake_events() {
    let mut world = calm(15220, 1);
    let mut stream = world.open_stream(0, NEVER);
    let mut followed = Followed::default();
    world.watch(&stream, 1, 0);
    let value = Bytes::from(vec![b'p'; 900]);
    for round in 0..40 {
        for id in world.burst(0, round % 6, &value) {
            world.answer(id).expect("it is not refused");
        }
        world.ask_progress(&stream);
        // There is room in the stream for progress, and its watcher has not caught up yet.
        let responses = world.take(&mut stream, 1);
        followed.follow(&world, &responses);
        world.ask_progress(&stream);
    }
    let responses = world.take_all(&mut stream);
    followed.follow(&world, &responses);
    // A watcher of the past has nothing yet when progress is asked for.
    followed.begin(2, 2);
    world.ask(&stream, watcher(2, 2));
    world.ask(&stream, progress());
    let responses = world.take_all(&mut stream);
    followed.follow(&world, &responses);
    let before = followed.progress;
    world.ask_progress(&stream);
    let responses = world.take_all(&mut stream);
    followed.follow(&world, &responses);
    assert_eq!(followed.progress, before + 1, "once all is told, there is progress");
    followed.check_end(&world);
}

/// #17247, on etcd's main branch alone. Reads of what was written and of what was still in the buffer overlapped, so a
/// watcher that caught up beside writes was told events twice.
#[test]
fn a_watcher_that_catches_up_beside_writes_is_told_each_event_once() {
    let mut world = calm(17247, 1);
    let mut followed = Followed::default();
    let mut stream = world.open_stream(0, NEVER);
    for round in 0..10_u8 {
        // Half of what a checkpoint needs: at times one is being written, at times there is none.
        for number in 0..10 {
            let puts = (0..3).map(|key| put(&format!("{number}/{key}"), vec![b'a' + round; 1200]));
            let success = puts.map(|put| op(request_op::Request::RequestPut(put))).collect();
            world.done(0, Request::Txn(pb::TxnRequest { compare: Vec::new(), success, failure: Vec::new() }));
            let responses = world.take(&mut stream, 1);
            followed.follow(&world, &responses);
        }
        let id = i64::from(round) + 1;
        followed.begin(id, 2);
        world.watch(&stream, id, 2);
        world.pass(millis(10 * u64::from(round)));
    }
    let responses = world.take_all(&mut stream);
    followed.follow(&world, &responses);
    followed.check_end(&world);
    assert_eq!(followed.next.len(), 10, "all watchers are there");
    world.heal();
}

/// #17529. A stream was so full that its watchers could not even be told that what they wanted was compacted. etcd
/// moved them to the present all the same, and the events between were lost.
#[test]
fn watchers_of_a_starved_stream_get_their_events_or_are_told_of_the_compaction() {
    let mut world = calm(17529, 1);
    let mut stream = world.open_stream(0, NEVER);
    let mut followed = Followed::default();
    for id in 1..=60 {
        world.watch(&stream, id, 0);
    }
    // Nobody takes anything.
    let value = Bytes::from(vec![b's'; 1500]);
    for id in world.burst(0, 40, &value) {
        world.answer(id).expect("it is not refused");
    }
    let compacted = world.truth.revision() - 3;
    world.compact(0, compacted);
    for (id, from) in [(61, compacted - 1), (62, compacted), (63, compacted + 2), (64, 2)] {
        followed.begin(id, from);
        world.watch(&stream, id, from);
    }
    for number in 0..100 {
        world.put(0, "slow", number.to_string());
        let responses = world.take(&mut stream, 1);
        followed.follow(&world, &responses);
    }
    let responses = world.take_all(&mut stream);
    followed.follow(&world, &responses);
    followed.check_end(&world);
    assert!(followed.ended.len() > 30, "those that were behind are told so: {:?}", followed.ended);
    assert!(followed.next.contains_key(&62) && followed.next.contains_key(&63), "the others go on");
    world.heal();
}

/// #18089. A compaction at the revision of a deletion dropped the deletion, though that revision can be watched from.
#[test]
fn a_watch_from_the_compacted_revision_is_told_of_the_deletion_there() {
    let mut world = calm(18089, 1);
    for value in ["v2", "v3", "v4"] {
        world.put(0, "k", value);
    }
    let deleted = world.delete(0, "k");
    let newest = world.put(0, "k", "v6");
    world.compact(0, deleted);
    let check = |world: &mut World, when: &str| {
        let mut stream = world.open_stream(0, NEVER);
        world.watch(&stream, 1, deleted);
        let responses = world.take_all(&mut stream);
        let events = responses.iter().flat_map(|response| &response.events);
        let of_key = events.filter(|event| event.kv.as_ref().is_some_and(|kv| kv.key == "k"));
        let told = of_key.map(|event| (event.r#type, event.kv.clone().expect("a key")));
        let told: Vec<_> = told.map(|(kind, kv)| (kind, kv.mod_revision, kv.value)).collect();
        let wanted = [(EventType::Delete as i32, deleted, ""), (EventType::Put as i32, newest, "v6")];
        assert_eq!(told, wanted.map(|(kind, revision, value)| (kind, revision, value.into())), "{when}");
    };
    check(&mut world, "at once");
    world.pass(Duration::from_secs(5));
    check(&mut world, "when what nobody may read is gone");
    // What is left is written to the disk, without what is gone, and read from there.
    for _ in 0..3 {
        for id in world.burst(0, 60, &vec![b'b'; 1500].into()) {
            world.answer(id).expect("it is not refused");
        }
        world.pass(Duration::from_secs(1));
    }
    world.crash(0);
    check(&mut world, "after a restart");
    world.heal();
}

/// #19179. Keys had a creation and a deletion each. A first compaction dropped the creation, the deletion was what the
/// next one kept, and after a restart etcd took it for nothing: a watch from there did not get it.
#[test]
fn a_deletion_that_is_all_a_key_has_left_survives_a_restart() {
    let mut world = calm(19179, 1);
    let key = |number: usize| format!("pods/{number:03}");
    // More than a step of the sweep takes, and enough for a checkpoint.
    for number in 0..120 {
        world.put(0, &key(number), vec![b'k'; 700]);
    }
    let deletions: Vec<i64> = (0..120).map(|number| world.delete(0, &key(number))).collect();
    let newest = *deletions.last().expect("some");
    for (round, compacted) in deletions.iter().step_by(15).enumerate() {
        world.compact(0, *compacted);
        world.pass(millis(100 * round as u64));
        if round % 2 == 0 {
            world.pass(Duration::from_secs(3));
        }
        world.crash(0);
        let mut stream = world.open_stream(0, NEVER);
        world.watch(&stream, 1, *compacted);
        let responses = world.take_all(&mut stream);
        assert_eq!(events_of(&responses, 1), world.changes(*compacted, newest), "from {compacted} on");
        assert_eq!(world.changes(*compacted, *compacted).len(), 1, "the first of them is the deletion");
    }
    world.heal();
}

/// #20221, the first of the two: a watcher of the future was told of progress at the present. Its client went on from
/// there when it came to another member, and got events that it had not asked for.
#[test]
fn a_watch_of_the_future_is_not_told_of_progress_before_it_begins() {
    let mut world = calm(20221, 3);
    let leader = world.led();
    let now = world.put(leader, "k", "1");
    world.agree();
    for at in 0..3 {
        let mut stream = world.open_stream(at, millis(300));
        world.watch(&stream, 1, now + 10);
        for _ in 0..10 {
            world.ask_progress(&stream);
            world.pass(millis(150));
        }
        let early = world.take_all(&mut stream);
        assert!(early.len() == 1 && early[0].created, "nothing is told of what has not happened: {early:?}");
        world.member(at).close_watch(stream.id);
    }
    // Its client is at one member, and goes on at another, before its time and later.
    let mut stream = world.open_stream(0, millis(300));
    let mut followed = Followed::default();
    followed.begin(1, now + 10);
    world.watch(&stream, 1, now + 10);
    for number in 0..20 {
        world.put(leader, "k", number.to_string());
        if number % 5 == 4 {
            world.member(stream.at).close_watch(stream.id);
            stream = world.open_stream((stream.at + 1) % 3, millis(300));
            let next = followed.next[&1];
            followed.begin(1, next);
            world.watch(&stream, 1, next);
        }
        world.ask_progress(&stream);
        let responses = world.take_all(&mut stream);
        followed.follow(&world, &responses);
    }
    world.agree();
    let responses = world.take_all(&mut stream);
    followed.follow(&world, &responses);
    followed.check_end(&world);
    assert_eq!(followed.next[&1], world.truth.revision() + 1);
    world.heal();
}

/// #20655. Watchers that were made fast beside writes seemed to lose events. It seems that etcd's test had lost them
/// itself (pull request 20656), but the search found that a watcher from revision -1 had all who catch up skip events
/// (pull request 20693).
#[test]
fn watchers_that_are_made_fast_beside_writes_miss_nothing() {
    let mut world = calm(20655, 1);
    let mut stream = world.open_stream(0, NEVER);
    let mut followed = Followed::default();
    let mut refused = 0;
    for number in 0..200_i64 {
        let id = number + 1;
        let from = match number % 5 {
            0 => 0,
            1 => 2,
            2 => world.truth.revision(),
            3 => world.truth.revision() + 3,
            _ => -1,
        };
        if from >= 0 {
            followed.begin(id, from);
        }
        // Writes are under way while the watcher is made.
        world.propose(0, Request::Put(put("k", number.to_string())));
        world.watch(&stream, id, from);
        world.pass(Duration::from_micros(37 * (number % 40).unsigned_abs()));
        let pieces = if number % 3 == 0 { 2 } else { 0 };
        let responses = world.take(&mut stream, pieces);
        let (none, made): (Vec<_>, Vec<_>) = responses.into_iter().partition(|it| it.created && it.canceled);
        refused += none.len();
        followed.follow(&world, &made);
    }
    let responses = world.take_all(&mut stream);
    let (none, made): (Vec<_>, Vec<_>) = responses.into_iter().partition(|it| it.created && it.canceled);
    refused += none.len();
    followed.follow(&world, &made);
    followed.check_end(&world);
    assert_eq!((followed.next.len(), refused), (160, 40), "those from a revision below 0 are refused");
    world.heal();
}

/// #20573, never explained in etcd. A watch broke, and went on behind the last revision that it had got: the next
/// events were not those that follow.
#[test]
fn a_watch_that_broke_goes_on_at_a_member_that_is_behind() {
    let mut world = calm(20573, 3);
    for round in 0..6_u64 {
        let leader = world.led();
        let (first, late) = ((leader + 1) % 3, (leader + 2) % 3);
        world.agree();
        let mut followed = Followed::default();
        let mut stream = world.open_stream(first, NEVER);
        world.watch(&stream, 1, 0);
        let responses = world.take_all(&mut stream);
        followed.follow(&world, &responses);
        world.cut_off(late);
        for number in 0..8 {
            world.put(leader, &format!("{number}"), round.to_string());
        }
        world.until("the first member has it", |world| world.member(first).applied() == world.truth.applied());
        let responses = world.take(&mut stream, 1 + usize::from(round % 2 == 0));
        followed.follow(&world, &responses);
        // Its member is lost, and the other one has nothing of this yet.
        world.lose(first, round % 2 == 0, millis(700));
        let mut stream = world.open_stream(late, NEVER);
        let next = followed.next[&1];
        world.watch(&stream, 1, next);
        let responses = world.take_all(&mut stream);
        assert_eq!(events_of(&responses, 1), [], "it has nothing behind revision {next}");
        world.join(late);
        world.agree();
        world.put(leader, "last", round.to_string());
        world.agree();
        let responses = world.take_all(&mut stream);
        followed.follow(&world, &responses);
        followed.check_end(&world);
        assert_eq!(followed.next[&1], world.truth.revision() + 1, "it has got the last one");
        world.member(late).close_watch(stream.id);
    }
    world.heal();
}
