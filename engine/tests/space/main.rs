//! Space: files stay near what is live under any traffic, and shrink by themselves when less is live; what anybody can
//! still read stays, and nothing is asked of writers or readers for it.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

#[cfg(test)]
#[path = "../replay/mod.rs"]
mod replay;
#[cfg(test)]
mod soak;

use bytes::Bytes;
use engine::{
    disk::sim::{Order, Random, SimStorage},
    store::Options,
};

use replay::{Change, Member, Operation, model_shown, operations, options, shown};

/// Length of a segment file with `options`.
const SEGMENT_BYTES: u64 = 64 << 10;

fn key(number: u64) -> Bytes {
    Bytes::from(format!("/registry/pods/default/{number:06}"))
}

fn put(number: u64, random: &mut Random, value_bytes: usize) -> Change {
    let fill = u8::try_from(random.below(256)).unwrap();
    Change::Put(key(number), Bytes::from(vec![fill; value_bytes]))
}

/// Publishes the state as it is: records that were written leave memory.
fn publish(member: &mut Member) {
    let view = member.store.mvcc().view();
    member.store.mvcc_mut().publish(view.applied_index(), view.applied_term());
}

/// What an idle member does with `seconds` of its time: nothing but giving space back.
fn idle(member: &mut Member, seconds: u32) {
    for _ in 0..10 * seconds {
        while member.reclaim(64).unwrap() {}
        if member.store.wants_checkpoint() {
            member.checkpoint().unwrap();
            publish(member);
        }
    }
}

/// Length of the segment files on the medium.
fn files(storage: &SimStorage) -> u64 {
    let segments = storage.paths().into_iter().filter(|path| path.extension().is_some());
    segments.map(|path| storage.content(&path).unwrap().len() as u64).sum()
}

/// Applies what was appended to `log`, as a member does: with a checkpoint for each `each` entries.
fn run(member: &mut Member, log: &[Operation], each: usize) {
    while member.applied < log.len() {
        member.apply(log).unwrap();
        if member.applied.is_multiple_of(each) {
            member.checkpoint().unwrap();
            publish(member);
        }
    }
}

/// What the live keys take, keys and values.
fn live_bytes(member: &mut Member) -> u64 {
    let view = member.store.mvcc().view();
    let dir = member.store.dir().to_path_buf();
    engine::load_for(&mut member.disk, &dir, || view.sums(&engine::KeyRange::all(), u64::MAX)).unwrap().1
}

#[test]
fn files_stay_near_what_is_live_under_constant_overwrites() {
    const KEYS: u64 = 4000;
    for shards in [1, 2] {
        let storage = SimStorage::new(31);
        let mut random = Random::new(31);
        let options = Options { reclaim_bytes_max: 1 << 20, ..options(shards) };
        let mut log: Vec<Operation> = Vec::new();
        for first in (0..KEYS).step_by(8) {
            log.push(Operation::Write((first..first + 8).map(|number| put(number, &mut random, 400)).collect()));
        }
        let mut member = Member::open(&storage, options, &[], 0).unwrap();
        run(&mut member, &log, 100);
        for interval in 0..20 {
            // Half of the keys are overwritten, some much more often than others, then comes the compaction.
            for _ in 0..KEYS / 8 {
                let number = random.below(KEYS).min(random.below(KEYS));
                log.push(Operation::Write((0..4).map(|more| put((number + more) % KEYS, &mut random, 400)).collect()));
                if log.len().is_multiple_of(50) {
                    member.reclaim(64).unwrap();
                }
                run(&mut member, &log, 100);
            }
            log.push(Operation::Compact(100));
            run(&mut member, &log, 100);
            while !member.sweep(200).unwrap() {}
            idle(&mut member, 20);
            member.store.verify(&mut member.disk).unwrap();
            let (files, live) = (files(&storage), member.store.sizes().in_use);
            assert!(files <= live * 13 / 10, "interval {interval}: {files} bytes for {live}");
            let payload = live_bytes(&mut member);
            assert!(live <= payload * 13 / 10, "interval {interval}: {live} bytes for {payload}");
        }
        assert!(member.store.reclaimed().segments > 100, "{:?}", member.store.reclaimed());
        member.check(&model_shown(&log));
        let trimmed = member.trimmed;
        drop(member);
        Member::open(&storage.crash(), options, &log, trimmed).unwrap().check(&model_shown(&log));
    }
}

#[test]
fn files_shrink_by_themselves_after_a_mass_delete() {
    let storage = SimStorage::new(32);
    let mut random = Random::new(32);
    let mut log: Vec<Operation> = Vec::new();
    for first in (0..4000).step_by(8) {
        log.push(Operation::Write((first..first + 8).map(|number| put(number, &mut random, 400)).collect()));
    }
    let mut member = Member::open(&storage, options(1), &[], 0).unwrap();
    run(&mut member, &log, 100);
    let full = files(&storage);
    // One key in 20 stays, so that no segment dies of itself.
    for first in (0..4000).step_by(8) {
        let gone = (first..first + 8).filter(|number| number % 20 != 0).map(|number| Change::Delete(key(number)));
        log.push(Operation::Write(gone.collect()));
    }
    // Tombstones older than the compaction go with it.
    log.push(Operation::Write(vec![put(0, &mut random, 400)]));
    log.push(Operation::Compact(100));
    run(&mut member, &log, usize::MAX);
    while !member.sweep(200).unwrap() {}
    idle(&mut member, 60);
    let (files, live) = (files(&storage), member.store.sizes().in_use);
    assert!(files < full / 7 && files <= live + 5 * SEGMENT_BYTES, "{files} of {full}, {live} live");
    let generation = member.store.generation();
    idle(&mut member, 60);
    assert_eq!(member.store.generation(), generation, "what is idle and small is left alone");
    member.store.verify(&mut member.disk).unwrap();
    member.check(&model_shown(&log));
}

#[test]
fn a_view_from_before_keeps_its_records_while_they_move_and_lets_go_of_them_after() {
    let storage = SimStorage::new(33);
    let mut random = Random::new(33);
    let mut log: Vec<Operation> = Vec::new();
    for first in (0..2000).step_by(8) {
        log.push(Operation::Write((first..first + 8).map(|number| put(number, &mut random, 400)).collect()));
    }
    let mut member = Member::open(&storage, options(1), &[], 0).unwrap();
    run(&mut member, &log, 100);
    member.checkpoint().unwrap();
    let trimmed = member.trimmed;
    drop(member);
    // Nothing of this view is in memory.
    let mut member = Member::open(&storage, options(1), &log, trimmed).unwrap();
    let held = member.store.mvcc().view();
    let expected = model_shown(&log);
    for first in (0..2000).step_by(8) {
        let keys = (first..first + 8).filter(|number| number % 3 != 0);
        log.push(Operation::Write(keys.map(|number| put(number, &mut random, 10)).collect()));
    }
    log.push(Operation::Compact(100));
    run(&mut member, &log, 100);
    while !member.sweep(200).unwrap() {}
    idle(&mut member, 30);
    let while_held = files(&storage);
    assert!(member.store.reclaimed().segments > 5, "{:?}", member.store.reclaimed());
    assert_eq!(shown(&held, &mut member.disk).unwrap(), expected);
    drop(held);
    idle(&mut member, 30);
    let (files, live) = (files(&storage), member.store.sizes().in_use);
    assert!(
        files < while_held / 2 && files <= live * 13 / 10 + 3 * SEGMENT_BYTES,
        "{files} of {while_held}, {live} live"
    );
    member.store.verify(&mut member.disk).unwrap();
    member.check(&model_shown(&log));
}

#[test]
fn defragmenting_ends_beside_traffic_and_leaves_little_that_is_dead() {
    let storage = SimStorage::new(34);
    let mut random = Random::new(34);
    let mut log: Vec<Operation> = Vec::new();
    for first in (0..4000).step_by(8) {
        log.push(Operation::Write((first..first + 8).map(|number| put(number, &mut random, 400)).collect()));
    }
    // A rate at which nothing would ever be done.
    let options = Options { reclaim_bytes_per_second: 1, reclaim_bytes_max: 256 << 10, ..options(1) };
    let mut member = Member::open(&storage, options, &[], 0).unwrap();
    run(&mut member, &log, 100);
    for number in 0..4000 {
        if number % 3 == 0 {
            log.push(Operation::Write(vec![put(number, &mut random, 10)]));
        }
    }
    log.push(Operation::Compact(100));
    run(&mut member, &log, 500);
    while !member.sweep(200).unwrap() {}
    member.store.defragment();
    let begun = member.store.generation();
    while member.store.is_defragmenting() {
        while member.reclaim(16).unwrap() {}
        if random.chance(1, 2) {
            log.push(Operation::Write(vec![put(random.below(4000), &mut random, 400)]));
            member.apply(&log).unwrap();
        }
        if member.store.wants_checkpoint() {
            member.checkpoint().unwrap();
            publish(&mut member);
        }
        assert!(member.store.generation() < begun + 200, "it ends");
    }
    let (files, live) = (files(&storage), member.store.sizes().in_use);
    assert!(files <= live * 12 / 10 + 3 * SEGMENT_BYTES, "{files} bytes for {live}");
    member.store.verify(&mut member.disk).unwrap();
    member.check(&model_shown(&log));
}

#[test]
fn whatever_is_done_beside_it_moving_changes_no_answer_and_no_account() {
    for seed in 0..12 {
        let log = operations(seed, 1500, 400);
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        let options = Options { segment_bytes: 16 << 10, ..options(1 + usize::try_from(seed % 2).unwrap()) };
        let mut member = Member::open(&storage, options, &[], 0).unwrap();
        let mut random = Random::new(seed);
        let mut moved = 0;
        let mut job = None;
        while member.applied < log.len() || job.is_some() {
            match (&mut job, random.below(24)) {
                (_, 0..3) => drop(member.sweep(30).unwrap()),
                (_, 3..8) => drop(member.reclaim(usize::try_from(1 + random.below(20)).unwrap()).unwrap()),
                (None, 8) if random.chance(1, 10) => {
                    // All pages are cold from here on.
                    let trimmed = member.trimmed;
                    moved += member.store.reclaimed().segments;
                    let applied = &log[..member.applied];
                    drop(member);
                    member = Member::open(&storage, options, applied, trimmed).unwrap();
                }
                (None, 8) if random.chance(1, 10) => member.store.defragment(),
                (None, 9) => job = Some(member.store.checkpoint_begin()),
                (None, 10..14) if member.store.wants_checkpoint() => job = Some(member.store.checkpoint_begin()),
                (Some(running), 8..20) => {
                    let is_done = member.step(running).unwrap();
                    if is_done {
                        job = None;
                        member.store.verify(&mut member.disk).unwrap();
                    }
                }
                _ if member.applied < log.len() => member.apply(&log).unwrap(),
                _ => {}
            }
        }
        moved += member.store.reclaimed().segments;
        assert!(moved > 10, "seed {seed}: {moved} segments were emptied");
        member.check(&model_shown(&log));
    }
}
