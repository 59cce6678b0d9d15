//! Whole clusters on one thread, from one seed: members on simulated disks, joined by simulated TCP, with clients and
//! faults, judged by checkers that know nothing of how the members work.
//!
//! - `member`: one whole member. `network`: the bytes between them.
//! - `clients`, `leases`: what is asked, and what is told.
//! - `plan`: what decides a run. `faults`: what befalls the members.
//! - `states`: whole states on their way from one member to another.
//! - `world`: the clock, what happens when. `checks`: what must hold whatever happens.
//! - `shrink`: makes a run that fails small. `story`: what happened in it.
//!
//! `ORLOP_CLUSTER_SEEDS` and `ORLOP_CLUSTER_SEED` set how many seeds are run and which is the first;
//! `ORLOP_CLUSTER_MINUTES` how long fresh ones are run. What else is set is printed with a run that fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checks;
mod clients;
mod faults;
mod leases;
mod member;
mod network;
mod plan;
mod shrink;
mod states;
mod story;
mod world;

use std::{
    num::NonZero,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use engine::planted::plant;
use server::clock::Clock;

use plan::{Plan, number};
use world::{Tally, World};

/// How long faults happen in a run.
const TIME: Duration = Duration::from_secs(120);

/// Runs `work` on each CPU, until it says that there is no more.
fn on_all_cpus(work: impl Fn() -> bool + Sync) {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| while work() {});
        }
    });
}

#[test]
fn clusters_serve_fail_and_recover() {
    let clock = Clock::start();
    let minutes = number("ORLOP_CLUSTER_MINUTES").map(|minutes| Duration::from_secs(60 * minutes));
    let seeds = number("ORLOP_CLUSTER_SEEDS").unwrap_or(20);
    let fresh = || if minutes.is_some() { clock.seed() >> 32 } else { 1 };
    let first = number("ORLOP_CLUSTER_SEED").unwrap_or_else(fresh);
    println!("seeds from {first} on");
    let (next, failed) = (AtomicU64::new(first), AtomicU64::new(0));
    let sum = Mutex::new(Tally::default());
    on_all_cpus(|| {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if minutes.map_or(seed >= first + seeds, |minutes| clock.now() > minutes) {
            return false;
        }
        match shrink::run(&Plan::drawn(seed, TIME).reduced(), false) {
            Ok(tally) => *sum.lock().unwrap() += tally,
            Err(failure) => {
                println!("seed {seed} fails: {}", failure.reason);
                println!("seed {seed}, made small: {}", shrink::shrunk(failure));
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        true
    });
    println!("{:?}", sum.lock().unwrap());
    assert_eq!(failed.into_inner(), 0, "seeds fail");
}

#[test]
fn a_seed_replays() {
    let run = || {
        let mut world = World::new(Plan::drawn(7, Duration::from_secs(60)));
        world.live();
        (world.trace(), world.tally())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_cluster_serves_while_a_disk_hangs_even_the_leaders() {
    for seed in 1..=6 {
        let calm = Plan { members: 3, pause_us_max: 40_000, blows: Vec::new(), ..Plan::drawn(seed, TIME) };
        let mut world = World::new(calm);
        world.run(Duration::from_secs(5));
        let leader = world.leader().expect("somebody leads");
        let at = if seed % 2 == 0 { leader } else { (leader + 1) % 3 };
        world.hang(at, Duration::from_secs(30));
        world.run(Duration::from_secs(4));
        let before = world.tally().asked;
        let new = world.leader().expect("somebody leads");
        assert!(new != at, "seed {seed}: the member whose disk hangs leads no more");
        world.run(Duration::from_secs(20));
        let after = world.tally().asked;
        assert!(after.written > before.written + 20 && after.read > before.read + 20, "seed {seed}: {after:?}");
        assert_eq!(world.leader(), Some(new), "seed {seed}: and who leads now leads on");
        world.heal();
    }
}

/// Defects, and the seeds within which each is found.
const PLANTED: [(&str, u64); 8] = [
    ("a promise before it is durable", 20),
    ("a commit before it is durable", 20),
    ("a read without a round", 20),
    ("a token used again", 40),
    ("a read before its index is applied", 20),
    ("ready before it has caught up", 20),
    ("a renewal by a leader that is not sure", 40),
    ("expiry without leadership", 20),
];

#[test]
fn planted_defects_are_found() {
    let (next, missed) = (AtomicU64::new(0), AtomicU64::new(0));
    on_all_cpus(|| {
        let number = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
        let Some((defect, seeds)) = PLANTED.get(number) else { return false };
        plant(Some(defect));
        let found = (1..=*seeds).find_map(|seed| shrink::run(&Plan::drawn(seed, TIME), false).err());
        plant(None);
        match found {
            Some(failure) => println!("{defect}: seed {}: {}", failure.plan.seed, failure.reason),
            None => {
                println!("{defect}: not found within {seeds} seeds");
                missed.fetch_add(1, Ordering::Relaxed);
            }
        }
        true
    });
    assert_eq!(missed.into_inner(), 0, "defects are not found");
}

/// Shows what a person is told of a run that fails.
#[test]
fn a_run_that_fails_is_made_small() {
    plant(Some("a read without a round"));
    // How few faults are enough differs from seed to seed.
    let failures = (1..=20).filter_map(|seed| shrink::run(&Plan::drawn(seed, TIME), false).err());
    let small = failures.take(3).map(|failure| {
        let (blows, reason) = (failure.plan.blows.len(), failure.reason.clone());
        let small = shrink::shrunk(failure);
        println!("{blows} faults, {reason}; made small: {small}");
        small.plan.blows.len()
    });
    let small = small.min().unwrap();
    plant(None);
    assert!(small <= 3, "a few faults are enough");
}
