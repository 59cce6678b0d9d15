//! A single member over the simulated disk: what was acknowledged survives, and is handed out once, in order.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::{io, path::Path};

use bytes::Bytes;
use consensus::{
    Committed, ConfChange, ConfChangeKind, ConfState, ConfirmedRead, Driver, EntryId, EntryKind, Error, Identity,
    Options, Start,
};
use engine::disk::{
    FileOp,
    sim::{Full, Order, Random, SimStorage},
};

use world::{DIR, Machine, World, member, options, seeded};

#[test]
fn a_single_voter_leads_without_waiting() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    let status = world.driver.status();
    assert!(status.is_leader);
    assert_eq!((status.leader_id, status.term), (1, 2));
    assert_eq!(status.read_floor, Some(2));
    // Again after a restart, before anything is applied or any time passes.
    let storage = world.storage.clone();
    let world = world.reopen(storage, 2, options()).unwrap();
    assert!(world.driver.status().is_leader);
}

#[test]
fn a_new_log_starts_with_etcds_entries() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    let first = &world.machine.log[&1];
    assert_eq!((first.term, first.kind), (1, EntryKind::ConfChange));
    assert_eq!(first.data, ConfChange::bootstrap(&member(1)).encode());
    assert_eq!(world.driver.conf_state(), &ConfState { voters: vec![1], learners: vec![] });
    assert_eq!(world.machine.log[&2].data.len(), 0, "then the leader's own first entry");
}

#[test]
fn each_lone_proposal_costs_one_write_and_a_pause_behind_it_one_more() {
    // Recycled and zero-filled segments cost steps of their own, far apart: a big segment keeps them out of this test.
    let wal = engine::wal::Options { segment_bytes: 1 << 20, ..options().wal };
    let options = Options { wal, ..options() };
    let mut world = World::open(1, 1, SimStorage::new(1), Machine::new(), options.clone()).unwrap();
    world.settle().unwrap();
    for round in 0..20 {
        let before = world.storage.steps();
        world.propose(&format!("p{round}")).unwrap();
        world.settle().unwrap();
        assert_eq!(world.storage.steps() - before, 1, "round {round}");
        for tick in 1..100 {
            world.driver.tick();
            world.settle().unwrap();
            // The log states its end, and then there is nothing more to state.
            let is_over = tick > options.election_ticks;
            assert_eq!(world.storage.steps() - before, 1 + u64::from(is_over), "round {round}, tick {tick}");
        }
    }
}

#[test]
fn proposals_gather_while_a_write_is_in_flight() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    world.storage.set_order(Order::Manual);
    let before = world.storage.steps();
    for burst in 0..50 {
        world.propose(&format!("b{burst}")).unwrap();
        assert!(!world.turn().unwrap(), "nothing is handed out before it is durable");
    }
    while let Some(write) = world.storage.in_flight().first() {
        world.storage.complete(write.number);
        world.turn().unwrap();
    }
    assert_eq!(world.machine.requests().len(), 50);
    assert!(world.storage.steps() - before <= 3, "{} writes for 50 entries", world.storage.steps() - before);
}

/// Proposes `count` requests in bursts drawn from the seed; returns how many were acknowledged when the storage
/// stopped.
fn workload(world: &mut World, random: &mut Random, count: u64) -> usize {
    let mut proposed = 0;
    let mut run = || -> Result<(), Error> {
        while proposed < count {
            for _ in 0..=random.below(4) {
                let pad = "x".repeat(usize::try_from(random.below(3000)).unwrap());
                world.propose(&format!("{proposed:06}{pad}"))?;
                proposed += 1;
            }
            world.turn()?;
            if random.chance(1, 8) {
                let applied = world.machine.last().applied;
                world.driver.trim(applied)?;
            }
        }
        world.settle()
    };
    match run() {
        Ok(()) => {}
        Err(Error::Engine(_) | Error::Stopped { .. }) => {}
        Err(other) => panic!("{other}"),
    }
    world.machine.requests().len()
}

/// Requests are numbered: what is committed must be 0, 1, 2, .. without a gap.
fn assert_numbered(requests: &[Bytes], context: &str) {
    for (number, request) in requests.iter().enumerate() {
        assert_eq!(&request[..6], format!("{number:06}").as_bytes(), "{context}");
    }
}

#[test]
fn acknowledged_entries_survive_power_loss_after_every_write() {
    const COUNT: u64 = 40;
    let run = |stop_after: Option<u64>| {
        let storage = SimStorage::new(5);
        if let Some(steps) = stop_after {
            storage.stop_after(steps);
        }
        let world = World::open(1, 1, storage.clone(), Machine::new(), options());
        let mut world = match world {
            Ok(world) => world,
            Err(_stopped_too_early) => return (storage, Machine::new(), 0),
        };
        let acked = match world.settle() {
            Ok(()) => workload(&mut world, &mut Random::new(7), COUNT),
            Err(_stopped_too_early) => 0,
        };
        (storage, world.machine, acked)
    };
    let (storage, _, acked) = run(None);
    assert!(acked as u64 >= COUNT);
    let steps = storage.steps();
    assert!(steps > 20);
    for stop in 0..steps {
        let (storage, machine, acked) = run(Some(stop));
        for (number, image) in storage.crash_images(12).into_iter().enumerate() {
            let context = format!("stopped after {stop} of {steps} steps, image {number}");
            // The state is as old as the last trim allows, here: as new as it was.
            let opened = World::open(1, 1, image, machine.clone(), options());
            let mut world = opened.unwrap_or_else(|error| panic!("{context}: {error}"));
            world.settle().unwrap();
            assert!(world.driver.status().is_leader, "{context}");
            let recovered = world.machine.requests();
            assert!(recovered.len() >= acked, "{context}: {acked} acknowledged, {} recovered", recovered.len());
            assert_numbered(&recovered, &context);
            // And it goes on.
            let next = format!("{:06}", recovered.len());
            world.propose(&next).unwrap();
            world.settle().unwrap();
            assert_numbered(&world.machine.requests(), &context);
            assert_eq!(world.machine.requests().len(), recovered.len() + 1, "{context}");
        }
    }
}

#[test]
fn entries_are_handed_out_once_in_order_across_restarts_from_any_state() {
    for seed in 0..20 {
        let mut random = Random::new(seed);
        let mut world = World::open(1, 1, seeded(seed), Machine::new(), options()).unwrap();
        world.settle().unwrap();
        let mut trimmed = 0;
        let mut truth: Vec<Committed> = Vec::new();
        for _ in 0..8 {
            for _ in 0..random.below(30) {
                world.propose(&format!("{:06}", random.below(1_000_000))).unwrap();
                if random.chance(1, 2) {
                    world.turn().unwrap();
                }
            }
            // What was handed out before the crash is the truth for ever.
            for entry in world.machine.log.values() {
                match truth.get(usize::try_from(entry.index - 1).unwrap()) {
                    Some(known) => assert_eq!(entry, known, "seed {seed}"),
                    None => truth.push(entry.clone()),
                }
            }
            let applied = world.machine.last().applied;
            if random.chance(1, 2) && applied.index > trimmed {
                trimmed += random.below(applied.index - trimmed + 1);
                let at = usize::try_from(trimmed).unwrap();
                world.driver.trim(world.machine.states[at].applied).unwrap();
            }
            let index = trimmed + random.below(applied.index - trimmed + 1);
            let storage = if random.chance(1, 2) { world.storage.crash() } else { world.storage.kill() };
            storage.set_order(Order::Seeded);
            world = world.reopen(storage, index, options()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
            world.settle().unwrap();
            for known in &truth {
                assert_eq!(&world.machine.log[&known.index], known, "seed {seed}");
            }
        }
    }
}

fn change(kind: ConfChangeKind, member_id: u64) -> ConfChange {
    ConfChange { id: 5, kind, member_id, context: Bytes::from_static(b"{}") }
}

#[test]
fn a_sole_voter_tells_its_learner_nothing_of_a_term_that_power_loss_could_undo() {
    let mut world = World::alone(8);
    world.settle().unwrap();
    world.driver.propose_conf_change(&change(ConfChangeKind::AddLearnerNode, 2)).unwrap();
    world.settle().unwrap();
    world.propose("first").unwrap();
    world.settle().unwrap();
    let (index, term) = (world.machine.last().applied.index, world.driver.status().term);
    let storage = world.storage.crash();
    storage.set_order(Order::Seeded);
    let mut world = world.reopen(storage.clone(), index, options()).unwrap();
    storage.set_order(Order::Manual);
    while world.driver.status().term == term {
        world.driver.tick();
        world.turn().unwrap();
    }
    assert!(world.driver.status().is_leader, "the sole voter leads at once");
    let mut held = 0;
    while !storage.in_flight().is_empty() {
        world.driver.tick();
        world.propose("second").unwrap();
        world.turn().unwrap();
        held += 1;
        assert!(world.outbox.is_empty(), "its vote is not durable: {:?}", world.outbox);
        if held > 5 {
            break;
        }
    }
    assert!(held > 5, "the vote is in flight");
    storage.set_order(Order::Seeded);
    for _ in 0..20 {
        world.driver.tick();
        world.turn().unwrap();
    }
    assert!(world.outbox.iter().any(|message| message.to == 2 && message.term > term));
}

#[test]
fn a_failed_write_stops_the_driver_for_good() {
    let mut world = World::alone(3);
    world.settle().unwrap();
    world.storage.set_order(Order::Manual);
    world.propose("lost").unwrap();
    world.turn().unwrap();
    let write = world.storage.in_flight()[0].clone();
    world.storage.fail(write.number, io::ErrorKind::Other);
    assert!(matches!(world.turn(), Err(Error::Engine(_))));
    world.storage.set_order(Order::Submission);
    let stopped = |result: Result<(), Error>| assert!(matches!(result, Err(Error::Stopped { .. })), "{result:?}");
    stopped(world.propose("after"));
    stopped(world.driver.step(&mut world.disk));
    stopped(world.driver.read_index(1));
    stopped(world.driver.trim(EntryId::default()));
    stopped(world.driver.propose_conf_change(&ConfChange::bootstrap(&member(2))));
    assert!(world.driver.take_committed(u64::MAX).is_empty());
    assert!(world.driver.take_reads().is_empty());
    world.driver.tick();
    assert!(world.machine.requests().is_empty());
}

#[test]
fn waiting_entries_are_bounded_and_flow_again_when_applied() {
    let bounded = consensus::Options { backlog_entries_max: 10, ..options() };
    let mut world = World::open(1, 1, SimStorage::new(1), Machine::new(), bounded).unwrap();
    world.settle().unwrap();
    // Committed, but the state machine does not take them.
    let mut accepted = 0;
    let refused = loop {
        match world.propose("x") {
            Ok(()) => accepted += 1,
            Err(error) => break error,
        }
        drive_without_apply(&mut world);
    };
    assert!(matches!(refused, Error::TooManyRequests { waiting_entries: 11, .. }), "{refused}");
    assert_eq!(accepted, 11, "as etcd: refused once more than the bound wait");
    world.settle().unwrap();
    world.propose("y").unwrap();
}

#[test]
fn waiting_bytes_are_bounded_and_flow_again_when_applied() {
    let bounded = consensus::Options { proposals_bytes_max: 10_000, message_bytes_max: 1000, ..options() };
    let mut world = World::open(1, 1, SimStorage::new(1), Machine::new(), bounded).unwrap();
    world.settle().unwrap();
    let big = "b".repeat(12_000);
    world.propose(&big).unwrap();
    assert!(matches!(world.propose("x"), Err(Error::TooManyRequests { .. })), "one big entry is let through, alone");
    drive_without_apply(&mut world);
    assert!(matches!(world.propose("x"), Err(Error::TooManyRequests { .. })), "also while it waits to be applied");
    world.settle().unwrap();
    world.propose("x").unwrap();
    let status = world.driver.status();
    assert!(status.backlog_bytes > 0);
    world.settle().unwrap();
    assert_eq!(world.driver.status().backlog_bytes, 0);
}

fn drive_without_apply(world: &mut World) {
    use engine::disk::Disk;
    for _ in 0..4 {
        world.driver.step(&mut world.disk).unwrap();
        world.disk.kick().unwrap();
        let mut completions = Vec::new();
        world.disk.completions(&mut completions);
        for completion in completions {
            world.driver.on_completion(completion, &mut world.disk).unwrap();
        }
    }
}

#[test]
fn a_long_replay_is_fetched_in_bounded_pieces() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    for number in 0..500 {
        world.propose(&format!("{number:06}{}", "x".repeat(200))).unwrap();
        world.settle().unwrap();
    }
    let storage = world.storage.clone();
    let bounded = consensus::Options { committed_bytes_max: 4000, ..options() };
    let mut world = world.reopen(storage, 0, bounded).unwrap();
    let piece = world.driver.take_committed(u64::MAX);
    let bytes: usize = piece.iter().map(|entry| entry.data.len()).sum();
    assert!(!piece.is_empty() && bytes < 3 * 4000, "{bytes} bytes queued at once");
    for entry in piece {
        if entry.kind == EntryKind::ConfChange {
            let conf_state = world.driver.apply_conf_change(&ConfChange::decode(&entry.data).unwrap()).unwrap();
            world.machine.states[0].conf_state = conf_state;
        }
        world.driver.applied(entry.index);
        let mut state = world.machine.last().clone();
        state.applied = EntryId { index: entry.index, term: entry.term };
        world.machine.states.push(state);
        world.machine.log.insert(entry.index, entry);
    }
    world.settle().unwrap();
    assert_eq!(world.machine.requests().len(), 500);
    assert_numbered(&world.machine.requests(), "after the replay");
}

#[test]
fn reads_wait_until_the_restarted_member_knows_what_it_acknowledged() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    world.propose("a").unwrap();
    world.propose("b").unwrap();
    world.settle().unwrap();
    world.driver.read_index(7).unwrap();
    assert_eq!(world.driver.take_reads(), [ConfirmedRead { context: 7, index: 4 }], "at once on a single voter");

    let storage = world.storage.clone();
    let mut world = world.reopen(storage, 4, options()).unwrap();
    let status = world.driver.status();
    assert!(status.is_leader && status.read_floor.is_none());
    world.driver.read_index(8).unwrap();
    world.driver.step(&mut world.disk).unwrap();
    assert!(world.driver.take_reads().is_empty(), "its own first entry is not durable yet");
    world.settle().unwrap();
    assert_eq!(world.driver.take_reads(), [ConfirmedRead { context: 8, index: 5 }]);
    assert_eq!(world.driver.status().read_floor, Some(5));
}

#[test]
fn configuration_changes_keep_etcds_meaning() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    world.driver.propose_conf_change(&change(ConfChangeKind::AddLearnerNode, 2)).unwrap();
    assert_eq!(world.driver.progress(2), None);
    // A second one waits until the first is applied.
    let second = world.driver.propose_conf_change(&change(ConfChangeKind::AddLearnerNode, 3));
    assert!(matches!(second, Err(Error::NoLeader)), "{second:?}");
    world.settle().unwrap();
    let progress = world.driver.progress(2).expect("this member leads");
    assert_eq!((progress.matched, progress.leader_matched), (0, 3), "it has said nothing yet");
    assert!(progress.bytes_behind > 0 && !progress.is_behind_memory && !progress.needs_state);
    assert!(progress.is_waited_for, "it has yet to answer the first append");
    let own = world.driver.progress(1).expect("it is a member");
    assert_eq!((own.matched, own.bytes_behind, own.is_waited_for), (3, 0, false));
    assert_eq!(world.driver.conf_state(), &ConfState { voters: vec![1], learners: vec![2] });
    assert_eq!(world.machine.log[&3].data, change(ConfChangeKind::AddLearnerNode, 2).encode());
    assert!(!world.machine.log.contains_key(&4));

    world.driver.propose_conf_change(&change(ConfChangeKind::UpdateNode, 2)).unwrap();
    world.settle().unwrap();
    assert_eq!(world.driver.conf_state(), &ConfState { voters: vec![1], learners: vec![2] });
    world.driver.propose_conf_change(&change(ConfChangeKind::RemoveNode, 2)).unwrap();
    world.settle().unwrap();
    assert_eq!(world.driver.conf_state(), &ConfState { voters: vec![1], learners: vec![] });
    let refused = world.driver.apply_conf_change(&change(ConfChangeKind::RemoveNode, 1));
    assert!(matches!(refused, Err(Error::ConfChangeRefused { .. })), "the last voter stays");
    world.propose("still here").unwrap();
    world.settle().unwrap();
    assert_eq!(world.machine.requests().len(), 1);
}

#[test]
fn a_log_that_does_not_belong_to_the_state_is_refused() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    for _ in 0..5 {
        world.propose("x").unwrap();
    }
    world.settle().unwrap();
    let conf_state = world.driver.conf_state().clone();
    let last = world.machine.last().applied;
    world.driver.trim(world.machine.states[4].applied).unwrap();
    world.propose("carries the trim").unwrap();
    world.settle().unwrap();
    let storage = world.storage.clone();
    drop(world);
    let open = |index, term| {
        let applied = EntryId { index, term };
        let start = Start { applied, conf_state: conf_state.clone(), ..Start::default() };
        let identity = Identity { member_id: 1, cluster_id: 1 };
        Driver::open(&mut storage.disk(), Path::new(DIR), identity, options(), start).map(|_driver| ())
    };
    assert!(matches!(open(100, 2), Err(Error::LogBehindState { applied: 100, .. })));
    assert!(matches!(open(3, 2), Err(Error::LogAheadOfState { mark: 4, applied: 3, .. })));
    assert!(matches!(open(last.index, last.term + 1), Err(Error::TermMismatch { .. })));
    open(last.index, last.term).unwrap();
}

#[test]
fn an_entry_larger_than_a_segment_is_logged_and_one_too_large_for_the_log_stops_nothing() {
    let mut world = World::alone(1);
    world.settle().unwrap();
    let huge = Bytes::from(vec![0; (1 << 30) + 1]);
    assert!(matches!(world.driver.propose(huge), Err(Error::TooLarge { .. })));
    world.propose("small").unwrap();
    world.settle().unwrap();
    let large = options().wal.segment_bytes as usize + 1000;
    world.driver.propose(Bytes::from(vec![7; large])).unwrap();
    world.settle().unwrap();
    assert_eq!(world.machine.requests().iter().map(|request| request.len()).collect::<Vec<_>>(), [5, large]);
}

#[test]
fn a_log_disk_full_at_any_step_refuses_proposals_and_goes_on_when_there_is_space() {
    const COUNT: u64 = 120;
    let mut refused = 0;
    for step in 0.. {
        let storage = seeded(step);
        let mut world = World::open(1, 1, storage.clone(), Machine::new(), options()).unwrap();
        world.settle().unwrap();
        let from = storage.steps() + step;
        storage.set_full(Some((from, Full::Creations)));
        let mut proposed = 0;
        while proposed < COUNT {
            match world.propose(&format!("{proposed:06}{}", "x".repeat(2000))) {
                Ok(()) => proposed += 1,
                Err(Error::NoSpace { room_bytes }) => {
                    assert!(storage.steps() >= from && room_bytes < 20_000, "{room_bytes} bytes are left");
                    assert!(world.driver.is_log_tight() && world.driver.log_room_bytes() == Some(room_bytes));
                    world.settle().unwrap();
                    assert_eq!(world.machine.requests().len() as u64, proposed, "what was let in is committed");
                    let image = storage.crash();
                    let again = World::open(1, 1, image, Machine::new(), options());
                    let mut again = again.unwrap_or_else(|error| panic!("full from step {step}: {error}"));
                    again.settle().unwrap();
                    assert_eq!(again.machine.requests().len() as u64, proposed);
                    refused += 1;
                    storage.set_full(None);
                    for _ in 0..options().space_retry_ticks {
                        world.driver.tick();
                    }
                    world.settle().unwrap();
                    assert_eq!(world.driver.log_room_bytes(), None);
                }
                Err(Error::LogWaits) => {}
                Err(other) => panic!("{other}"),
            }
            world.turn().unwrap();
        }
        world.settle().unwrap();
        assert_numbered(&world.machine.requests(), &format!("full from step {step}"));
        assert_eq!(world.machine.requests().len() as u64, COUNT);
        if storage.steps() <= from {
            break;
        }
    }
    assert!(refused > 5, "refused {refused} times");
}

#[test]
fn a_disk_that_is_slow_to_say_that_it_is_full_leaves_room_for_what_frees_space() {
    let mut world = World::alone(6);
    world.settle().unwrap();
    world.storage.set_order(Order::Manual);
    // The operations but those that change names end as they come.
    let turn = |world: &mut World| {
        world.turn().unwrap();
        let flights = world.storage.in_flight().into_iter();
        let (names, others): (Vec<_>, Vec<_>) =
            flights.partition(|flight| !matches!(flight.op, FileOp::Write | FileOp::Sync | FileOp::Read));
        others.iter().for_each(|flight| world.storage.complete(flight.number));
        world.turn().unwrap();
        names
    };
    let mut proposed = 0;
    for _ in 0..2000 {
        match world.propose(&format!("{proposed:06}{}", "x".repeat(700))) {
            Ok(()) => proposed += 1,
            Err(Error::LogWaits) => {}
            Err(error) => panic!("{error}"),
        }
        turn(&mut world);
    }
    assert!(proposed > 20 && matches!(world.propose("waits"), Err(Error::LogWaits)));
    assert_eq!(world.driver.queued_bytes(), 0, "what was let in is in the log");
    let names = turn(&mut world);
    assert_eq!(names.len(), 1, "the next segment is being made");
    world.storage.fail(names[0].number, io::ErrorKind::StorageFull);
    turn(&mut world);
    assert!(world.driver.log_room_bytes().is_some_and(|room| room >= 16 << 10));
    world.storage.set_full(Some((0, Full::Creations)));
    // A quarter is left: for requests that free space, for hard states and for marks.
    for number in 0..3 {
        world.propose(&format!("frees {number}")).unwrap();
        turn(&mut world);
    }
    for index in 1..20 {
        let applied = world.machine.states[index].applied;
        world.driver.trim(applied).unwrap();
        turn(&mut world);
        assert_eq!(world.driver.queued_bytes(), 0, "mark {index}");
    }
    // A start on the disk, which is still full, leads and serves.
    let index = world.machine.last().applied.index;
    let storage = world.storage.crash();
    storage.set_order(Order::Seeded);
    storage.set_full(Some((0, Full::Creations)));
    let mut world = world.reopen(storage, index, options()).unwrap();
    world.settle().unwrap();
    assert!(world.driver.status().is_leader && world.driver.status().read_floor.is_some());
}

#[test]
fn a_mark_finds_room_on_a_full_disk_and_makes_more() {
    let mut world = World::alone(3);
    world.settle().unwrap();
    world.storage.set_full(Some((0, Full::Creations)));
    let mut proposed = 0;
    for trimmed in 0..10 {
        while world.propose(&format!("{proposed:06}{}", "x".repeat(500))).is_ok() {
            proposed += 1;
            world.settle().unwrap();
            assert!(proposed < 10_000, "the disk is full by now");
        }
        assert!(matches!(world.propose("more"), Err(Error::NoSpace { .. })));
        let applied = world.machine.last().applied;
        world.driver.trim(applied).unwrap();
        world.settle().unwrap();
        assert!(world.propose(&format!("{proposed:06}")).is_ok(), "after trim {trimmed}");
        proposed += 1;
        world.settle().unwrap();
    }
    assert_numbered(&world.machine.requests(), "trimmed");
}

#[test]
fn marks_have_room_that_proposals_leave_them() {
    let mut world = World::alone(4);
    world.settle().unwrap();
    world.storage.set_full(Some((0, Full::Creations)));
    let mut proposed = 0;
    while world.propose(&format!("{proposed:06}{}", "x".repeat(300))).is_ok() {
        proposed += 1;
        world.settle().unwrap();
    }
    assert!(proposed > 110, "{proposed} proposals fit");
    // All of them lie in the only segment, so no mark makes room for the next.
    for index in 1..=110 {
        let applied = world.machine.states[index].applied;
        world.driver.trim(applied).unwrap();
        world.settle().unwrap();
        assert_eq!(world.driver.queued_bytes(), 0, "mark {index}");
    }
}
