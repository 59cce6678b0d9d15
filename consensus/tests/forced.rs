//! A log that is made that of a sole voter, of one member of a cluster whose others are gone.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

mod world;

use std::path::Path;

use consensus::{ConfChange, ConfChangeKind, ConfState, EntryId, Error, Forced, Member, Start, force_new_cluster};
use engine::disk::sim::SimStorage;

use crate::world::{DIR, Machine, World, member, options, start_of, three::Three};

const OWN: u64 = 2;

/// What is left of member 2 of three, stopped with one entry that it does not know to be committed.
fn left() -> (SimStorage, Machine) {
    let mut three = Three::led();
    for number in 0..3 {
        three.worlds[0].propose(&format!("committed {number}")).unwrap();
        three.deliver_all();
        three.worlds[0].driver.tick();
        three.deliver_all();
    }
    three.worlds[0].propose("uncommitted").unwrap();
    three.settle();
    three.deliver(|message| message.to == OWN);
    let world = three.worlds.remove(1);
    let status = world.driver.status();
    assert_eq!((status.commit, status.applied + 1), (status.applied, status.last_index));
    drop(world.driver);
    (world.storage.kill(), world.machine)
}

fn force(storage: &SimStorage, start: &Start) -> Result<Option<Forced>, Error> {
    force_new_cluster(&mut storage.disk(), Path::new(DIR), OWN, &options(), start)
}

fn open(storage: SimStorage, machine: Machine) -> World {
    World::open(OWN, 3, storage, machine, options()).unwrap()
}

/// Checks that the member serves alone, with what was committed and nothing else.
fn check_alone(mut world: World, before: &Machine) {
    world.settle().unwrap();
    assert_eq!(world.machine.last().conf_state, ConfState { voters: vec![OWN], learners: Vec::new() });
    assert!(world.driver.status().is_leader && !world.driver.is_cut());
    world.propose("alone").unwrap();
    world.settle().unwrap();
    let mut expected = before.requests();
    expected.push("alone".into());
    let requests: Vec<_> = world.machine.requests().into_iter().filter(|data| !data.is_empty()).collect();
    expected.retain(|data| !data.is_empty());
    assert_eq!(requests, expected);
}

#[test]
fn a_member_goes_on_alone_with_all_that_is_known_to_be_committed() {
    let (left, machine) = left();
    let last = machine.last().applied.index;
    // The state may have been stored at any time: nothing before the first checkpoint, all at the end.
    for index in 0..=last {
        let storage = left.kill();
        let mut machine_then = machine.clone();
        machine_then.rewind(index);
        let forced = force(&storage, &start_of(&machine_then, 3)).unwrap().unwrap();
        let expected = Forced { commit_before: last, commit: last + 2, entries_cut: 1, removed: vec![1, 3] };
        assert_eq!(forced, expected, "{index}");
        let storage = storage.kill();
        let mut world = open(storage, machine_then);
        let changes: Vec<_> = {
            world.settle().unwrap();
            world.machine.log.range(last + 1..=last + 2).map(|(_, entry)| entry.clone()).collect()
        };
        for (entry, id) in changes.iter().zip([1, 3]) {
            let change = ConfChange::decode(&entry.data).unwrap();
            assert_eq!((change.id, change.kind, change.member_id), (0, ConfChangeKind::RemoveNode, id));
            assert_eq!(entry.term, machine.last().applied.term);
        }
        check_alone(world, &machine);
    }
}

#[test]
fn a_crash_at_any_step_leaves_the_log_from_before_or_the_new_one() {
    let (left, machine) = left();
    let start = start_of(&machine, 3);
    let (mut was_old, mut was_new) = (0, 0);
    for step in 0.. {
        let storage = left.kill();
        storage.stop_after(step);
        let is_done = force(&storage, &start).is_ok();
        for image in storage.crash_images(6) {
            let again = image.kill();
            let world = open(image.kill(), machine.clone());
            let status = world.driver.status();
            if status.commit == machine.last().applied.index {
                was_old += 1;
                assert!(!is_done, "what is done is durable");
                assert_eq!(status.last_index, status.commit + 1, "nothing is cut before everything changes");
                assert_eq!(world.driver.conf_state().voters, [1, 2, 3]);
            } else {
                was_new += 1;
                check_alone(world, &machine);
            }
            // Whatever it left, the next try completes it.
            force(&again, &start).unwrap();
            check_alone(open(again.kill(), machine.clone()), &machine);
        }
        if is_done {
            break;
        }
    }
    assert!(was_old > 5 && was_new > 0, "{was_old} {was_new}");
}

#[test]
fn a_crash_while_the_new_log_takes_its_place_is_completed_by_the_next_start() {
    let (left, machine) = left();
    force(&left, &start_of(&machine, 3)).unwrap().unwrap();
    let start = || start_of(&machine, 3);
    for step in 0.. {
        let storage = left.kill();
        storage.stop_after(step);
        let mut disk = storage.disk();
        let identity = consensus::Identity { member_id: OWN, cluster_id: world::CLUSTER };
        let opened = consensus::Driver::open(&mut disk, Path::new(DIR), identity, options(), start());
        let is_done = opened.is_ok();
        drop(opened);
        for image in storage.crash_images(6) {
            check_alone(open(image, machine.clone()), &machine);
        }
        if is_done {
            return assert!(step > 8, "{step}");
        }
    }
}

#[test]
fn a_sole_voter_loses_nothing_however_often_it_is_forced() {
    let (left, machine) = left();
    force(&left, &start_of(&machine, 3)).unwrap().unwrap();
    let mut world = open(left.kill(), machine.clone());
    world.settle().unwrap();
    world.propose("acknowledged").unwrap();
    world.settle().unwrap();
    let last = world.driver.status().last_index;
    let storage = world.storage.kill();
    // What it has written since is durable, though neither its hard state nor its stored state says that it is
    // committed.
    assert_eq!(force(&storage, &start_of(&machine, 3)).unwrap(), None);
    let mut world = open(storage.kill(), machine);
    world.settle().unwrap();
    assert!(world.machine.log[&last].data == "acknowledged" && world.driver.status().is_leader);
}

#[test]
fn a_member_that_was_quiet_for_a_while_knows_all_that_was_committed() {
    let mut three = Three::led();
    three.worlds[0].propose("acknowledged").unwrap();
    three.deliver_all();
    for _ in 0..2 * options().election_ticks {
        three.worlds.iter_mut().for_each(|world| world.driver.tick());
        three.deliver_all();
    }
    let world = three.worlds.remove(1);
    let last = world.driver.status().last_index;
    drop(world.driver);
    // Nothing was stored but the log, and what is not durable is lost.
    let forced = force(&world.storage.crash(), &start_of(&Machine::new(), 3)).unwrap().unwrap();
    assert_eq!((forced.commit_before, forced.entries_cut), (last, 0));
}

#[test]
fn learners_and_removed_members_are_refused_and_keep_their_log() {
    let add = |id: u64, kind| ConfChange { kind, ..ConfChange::bootstrap(&member(id)) };
    let removal = ConfChange {
        kind: ConfChangeKind::RemoveNode,
        context: bytes::Bytes::new(),
        ..add(OWN, ConfChangeKind::AddNode)
    };
    let cases = [
        (vec![add(1, ConfChangeKind::AddNode), add(OWN, ConfChangeKind::AddLearnerNode)], "it is a learner"),
        (vec![add(1, ConfChangeKind::AddNode), add(OWN, ConfChangeKind::AddNode), removal], "it was removed"),
    ];
    for (changes, why) in cases {
        let storage = SimStorage::new(1);
        let entries: Vec<_> = changes.iter().zip(1..).map(|(change, index)| entry(index, change)).collect();
        let hard_state = engine::wal::HardState { term: 1, commit: entries.len() as u64, ..Default::default() };
        let (mut disk, dir) = (storage.disk(), Path::new(DIR));
        consensus::adopt_log(&mut disk, dir, options().wal, EntryId::default(), &entries, hard_state).unwrap();
        drop(disk);
        let storage = storage.kill();
        let error = force(&storage, &Start::default()).unwrap_err();
        assert!(matches!(error, Error::NotForced { what } if what.starts_with(why)), "{error}");
    }
}

fn entry(index: u64, change: &ConfChange) -> engine::wal::Entry {
    engine::wal::Entry { index, term: 1, kind: consensus::EntryKind::ConfChange as u8, data: change.encode() }
}

#[test]
fn a_member_that_its_log_does_not_know_is_added_and_learners_are_removed() {
    let storage = SimStorage::new(1);
    let kinds = [(1, ConfChangeKind::AddNode), (9, ConfChangeKind::AddLearnerNode)];
    let changes = kinds.map(|(id, kind)| ConfChange { kind, ..ConfChange::bootstrap(&member(id)) });
    let entries: Vec<_> = changes.iter().zip(1..).map(|(change, index)| entry(index, change)).collect();
    let hard_state = engine::wal::HardState { term: 1, commit: 2, ..Default::default() };
    consensus::adopt_log(&mut storage.disk(), Path::new(DIR), options().wal, EntryId::default(), &entries, hard_state)
        .unwrap();
    let storage = storage.kill();
    let forced = force(&storage, &Start::default()).unwrap().unwrap();
    assert_eq!((forced.commit, forced.removed), (5, vec![1, 9]));
    let mut world = World::open(OWN, 0, storage.kill(), Machine::new(), options()).unwrap();
    world.settle().unwrap();
    assert_eq!(world.machine.last().conf_state.voters, [OWN]);
    let added = ConfChange::decode(&world.machine.log[&3].data).unwrap().named().unwrap().unwrap();
    assert_eq!(added, Member { id: OWN, peer_urls: vec!["http://localhost:2380".to_owned()], ..Member::default() });
    assert!(world.driver.status().is_leader);
}
