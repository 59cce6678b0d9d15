//! Whole clusters on one thread, from one seed: members on simulated disks, joined by simulated TCP, with clients and
//! faults, judged by checkers that know nothing of how the members work.
//!
//! - `member`: one whole member. `watching`: its watch streams. `network`: the bytes between members.
//! - `clients`, `leases`, `watchers`: what is asked, and what is told. `mix`: what clients ask for.
//! - `plan`: what decides a run. `faults`: what befalls the members.
//! - `membership`: members that come and go. `damage`: pages that are damaged, and repaired. `copies`: older disks.
//! - `losses`: power is lost at every single write.
//! - `states`: whole states on their way from one member to another.
//! - `seat`: one machine. `world`: the clock, what happens when. `healing`: the end of a run.
//! - `checks`: what must hold whatever happens. `model`: what requests mean.
//!   `search`: an order that explains a history.
//! - `scenarios`: etcd's known bugs, step by step. `heard`: what members answer there.
//! - `shrink`: makes a run that fails small. `story`: what happened in it.
//!
//! `ORLOP_CLUSTER_SEEDS` and `ORLOP_CLUSTER_SEED` set how many seeds are run and which is the first;
//! `ORLOP_CLUSTER_MINUTES` how long fresh ones are run; `ORLOP_CLUSTER_PLANTED` is a part of the name of a defect, to
//! plant no other. What else is set is printed with a run that fails.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checks;
mod clients;
mod copies;
mod damage;
mod faults;
mod healing;
mod heard;
mod leases;
mod losses;
mod member;
mod membership;
mod mix;
mod model;
mod network;
mod plan;
mod scenarios;
mod search;
mod seat;
mod shrink;
mod states;
mod story;
mod watchers;
mod watching;
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

use faults::Fault;
use plan::{Plan, number};
use world::{Tally, World};

/// Seeds that have found bugs. What they do changes with the plans; they cost little.
const FOUND: [u64; 13] = [
    32,
    41,
    75,
    119,
    3037,
    5079,
    7092,
    597_412_010,
    597_412_037,
    1_496_451_591,
    1_784_468_529,
    2_345_667_123,
    2_727_630_855,
];

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
    let asked = number("ORLOP_CLUSTER_SEED");
    let first = asked.unwrap_or_else(fresh);
    println!("seeds from {first} on");
    let (next, failed) = (AtomicU64::new(0), AtomicU64::new(0));
    let sum = Mutex::new(Tally::default());
    let found = if asked.is_none() { &FOUND[..] } else { &[] };
    on_all_cpus(|| {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let again = usize::try_from(number).ok().and_then(|number| found.get(number));
        let count = number.saturating_sub(found.len() as u64);
        if again.is_none() && minutes.map_or(count >= seeds, |minutes| clock.now() > minutes) {
            return false;
        }
        let seed = again.copied().unwrap_or(first + count);
        match shrink::run(&Plan::drawn(seed, TIME, Fault::ALL).reduced(), false) {
            Ok(tally) => *sum.lock().unwrap() += tally,
            Err(failure) => {
                println!("seed {seed} fails: {}", failure.reason);
                println!("seed {seed}, made small: {}", shrink::shrunk(failure, 300));
                failed.fetch_add(1, Ordering::Relaxed);
            }
        }
        true
    });
    let sum = sum.into_inner().unwrap();
    println!("{sum:?}");
    println!("{sum}");
    assert_eq!(failed.into_inner(), 0, "seeds fail");
}

#[test]
fn a_seed_replays() {
    let run = || {
        let mut world = World::new(Plan::drawn(7, Duration::from_secs(60), Fault::ALL));
        world.live();
        (world.trace(), world.tally())
    };
    assert_eq!(run(), run());
}

#[test]
fn a_cluster_serves_while_a_disk_hangs_even_the_leaders() {
    for seed in 1..=6 {
        // Nobody asks for another leader, either.
        let quiet = Plan { operators: 0, blows: Vec::new(), ..Plan::drawn(seed, TIME, Fault::ALL) };
        let calm = Plan { members: 3, pause_us_max: 40_000, ..quiet };
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

/// Faults after which what was promised must be there.
const LOSSES: &[Fault] =
    &[Fault::PowerLoss, Fault::PowerLossOfAll, Fault::HungDisk, Fault::LossWhileHung, Fault::Isolate];
/// Faults after which somebody wrongly believes that it leads.
const SPLITS: &[Fault] = &[Fault::Pause, Fault::PauseLeader, Fault::Isolate, Fault::BlockOneWay];

/// Faults in which what one member has lost is missed.
const TAILS: &[Fault] = &[Fault::LostTail];

/// Faults in which what a member has forgotten is missed.
const COPIES: &[Fault] = &[Fault::OldCopy, Fault::OldCopy, Fault::Isolate, Fault::LongPowerLoss, Fault::PauseLeader];

/// Faults while an entry of very many keys is applied; the run has more of them then.
const LONG: &[Fault] = &[Fault::LossInApply, Fault::LossInCheckpoint, Fault::PowerLoss];

/// A run that looks for a defect: a busy one.
fn hunt(seed: u64, faults: &[Fault]) -> Plan {
    let plan = Plan::drawn(seed, TIME, faults);
    let bulk_keys = if faults == LONG { 5000 } else { plan.bulk_keys };
    Plan { pause_us_max: 40_000, bulk_keys, ..plan }
}

/// Defects, the seeds within which each is found, and the faults with which it is looked for.
const PLANTED: [(&str, u64, &[Fault]); 27] = [
    ("a promise before it is durable", 20, LOSSES),
    ("a commit before it is durable", 20, LOSSES),
    ("a read without a round", 20, SPLITS),
    ("a token used again", 40, SPLITS),
    ("a read before its index is applied", 20, SPLITS),
    ("ready before it has caught up", 20, Fault::ALL),
    ("a renewal by a leader that is not sure", 40, SPLITS),
    ("expiry without leadership", 20, SPLITS),
    ("a read one entry early", 20, SPLITS),
    ("a waiter found by its id alone", 40, LOSSES),
    ("an applied index behind its data", 20, Fault::ALL),
    ("a long entry seen in parts", 20, LONG),
    ("a lease that leaves keys behind", 20, Fault::ALL),
    ("a read of what is compacted", 20, Fault::ALL),
    ("a sweep that goes too far", 20, Fault::ALL),
    ("an event lost behind a full stream", 20, Fault::ALL),
    ("an event told twice", 20, Fault::ALL),
    ("a configuration change that raft learns late", 20, Fault::ALL),
    ("a removed id that returns", 20, Fault::ALL),
    ("a renewal beside a recorded rest", 20, Fault::ALL),
    ("progress before its events", 20, Fault::ALL),
    ("a watcher that passes what is compacted", 20, Fault::ALL),
    ("a cut log that votes", 20, TAILS),
    ("a promise to somebody who is not noted", 20, TAILS),
    ("an event lost at an install", 20, Fault::ALL),
    ("an older copy that is trusted", 20, COPIES),
    ("a state that is one entry off", 20, Fault::ALL),
];

#[test]
fn planted_defects_are_found() {
    let (next, missed) = (AtomicU64::new(0), AtomicU64::new(0));
    on_all_cpus(|| {
        let number = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap();
        let Some((defect, seeds, faults)) = PLANTED.get(number) else { return false };
        if std::env::var("ORLOP_CLUSTER_PLANTED").is_ok_and(|only| !defect.contains(&only)) {
            return true;
        }
        plant(Some(defect));
        let found = (1..=*seeds).find_map(|seed| shrink::run(&hunt(seed, faults), false).err());
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
    let drawn = |seed| Plan::drawn(seed, TIME / 2, SPLITS);
    let failure = (1..=20).find_map(|seed| shrink::run(&drawn(seed), false).err()).unwrap();
    let (blows, reason) = (failure.plan.blows.len(), failure.reason.clone());
    let small = shrink::shrunk(failure, 200);
    println!("{blows} faults, {reason}; made small: {small}");
    plant(None);
    assert!(small.plan.blows.len() <= 3, "a few faults are enough");
}
