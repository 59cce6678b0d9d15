//! Power loss at every single write of a workload with checkpoints: in every legal image the store opens, the log behind
//! it is enough, and what it shows is what the log says. The log itself stands beside the disk as a list of operations
//! (`replay`); that a real log keeps what it acknowledged is `wal_crash.rs`'s to show.

mod replay;

use engine::Error;
use engine::disk::sim::{Order, Random, SimStorage};
use engine::store::Options;
use replay::{Member, Operation, Shown, model_shown, operations, options};

/// Images looked at for each step at most.
const IMAGES_MAX: usize = 24;

/// How a run ended: what was applied, and what the log had let go of.
struct Stopped {
    applied: usize,
    trimmed: u64,
}

/// Applies `log` with sweeps and checkpoints in between, some of them beside traffic, until the end or the storage stops.
fn run(storage: &SimStorage, options: Options, log: &[Operation], seed: u64) -> (Stopped, Result<(), Error>) {
    let mut random = Random::new(seed);
    let mut member = match Member::open(storage, options, &[], 0) {
        Ok(member) => member,
        Err(error) => return (Stopped { applied: 0, trimmed: 0 }, Err(error)),
    };
    let mut job = None;
    let mut result = Ok(());
    while result.is_ok() && (member.applied < log.len() || job.is_some()) {
        result = match (&mut job, random.below(8)) {
            (_, 0) => member.sweep(20),
            (None, 1) => {
                job = Some(member.store.checkpoint_begin());
                Ok(())
            }
            (Some(running), 2..6) => member.step(running).map(|is_done| {
                if is_done {
                    job = None;
                }
            }),
            _ if member.applied < log.len() => member.apply(log),
            _ => Ok(()),
        };
    }
    (Stopped { applied: member.applied, trimmed: member.trimmed }, result)
}

/// Opens `image`, replays, compares, writes on, and does so once more.
fn recovers(image: &SimStorage, options: Options, log: &[Operation], trimmed: u64, expected: &Shown) {
    let mut member = Member::open(image, options, log, trimmed).unwrap();
    member.check(expected);
    member.sweep(1000).unwrap();
    member.checkpoint().unwrap();
    member.store.verify(&mut member.disk).unwrap();
    member.check(expected);
    let trimmed = member.trimmed;
    drop(member);
    let mut member = Member::open(&image.crash(), options, log, trimmed).unwrap();
    member.check(expected);
    member.store.verify(&mut member.disk).unwrap();
}

fn survives_power_loss_at_every_step(seed: u64, entries: usize, options: Options) {
    let log = operations(seed, entries, 24);
    let whole = SimStorage::new(seed);
    whole.set_order(Order::Seeded);
    let (stopped, result) = run(&whole, options, &log, seed);
    result.unwrap();
    assert_eq!(stopped.applied, log.len());
    assert!(stopped.trimmed > 0, "the workload has checkpoints");
    for steps in 0..=whole.steps() {
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        storage.stop_after(steps);
        let (stopped, result) = run(&storage, options, &log, seed);
        assert_eq!(result.is_err(), steps < whole.steps(), "seed {seed} stops after step {steps}");
        let log = &log[..stopped.applied];
        let expected = model_shown(log);
        for (number, image) in storage.crash_images(IMAGES_MAX).iter().enumerate() {
            println!("seed {seed}, stopped after step {steps} of {}, image {number}", whole.steps());
            recovers(image, options, log, stopped.trimmed, &expected);
        }
    }
}

#[test]
fn state_survives_power_loss_at_every_write_in_every_image() {
    survives_power_loss_at_every_step(1, 250, options(1));
}

#[test]
fn state_of_three_shards_survives_power_loss_at_every_write() {
    survives_power_loss_at_every_step(2, 150, options(3));
}

#[test]
fn long_runs_with_many_power_losses_lose_nothing() {
    for seed in 0..20 {
        let options = options(1 + usize::try_from(seed % 3).unwrap());
        let log = operations(seed, 700, 300);
        let mut storage = SimStorage::new(seed);
        let mut random = Random::new(seed);
        let (mut applied, mut trimmed) = (0, 0);
        while applied < log.len() {
            println!("seed {seed}, applied {applied}");
            storage.set_order(Order::Seeded);
            let mut member = Member::open(&storage, options, &log[..applied], trimmed).unwrap();
            storage.stop_after(storage.steps() + 1 + random.below(60));
            let mut job = None;
            let mut result = Ok(());
            while result.is_ok() && member.applied < log.len() {
                result = match (&mut job, random.below(12)) {
                    (_, 0) => member.sweep(50),
                    (None, 1) => {
                        job = Some(member.store.checkpoint_begin());
                        Ok(())
                    }
                    (Some(running), 2..8) => member.step(running).map(|is_done| {
                        if is_done {
                            job = None;
                        }
                    }),
                    _ => member.apply(&log),
                };
            }
            (applied, trimmed) = (member.applied, member.trimmed);
            drop(member);
            storage = if random.chance(1, 4) { storage.kill() } else { storage.crash() };
        }
        recovers(&storage, options, &log, trimmed, &model_shown(&log));
    }
}
