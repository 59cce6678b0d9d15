//! Whole clusters on one thread, from one seed: members on simulated disks, joined by simulated TCP, with clients and
//! faults, judged by checkers that know nothing of how the members work.
//!
//! - `member`: one whole member. `network`: the bytes between them.
//! - `clients`, `leases`: what is asked, and what is told.
//! - `world`: the clock, what happens when, the faults. `checks`: what must hold whatever happens.
//!
//! `ORLOP_CLUSTER_SEEDS` and `ORLOP_CLUSTER_SEED` set how many seeds are run and which is the first.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod checks;
mod clients;
mod leases;
mod member;
mod network;
mod world;

use std::{env, time::Duration};

use engine::planted::plant;

use world::{Plan, World};

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn clusters_serve_fail_and_recover() {
    let (seeds, first) = (number("ORLOP_CLUSTER_SEEDS", 20), number("ORLOP_CLUSTER_SEED", 1));
    for seed in first..first + seeds {
        let members = if seed % 4 == 0 { 5 } else { 3 };
        let mut world = World::new(seed, members, Plan::all());
        world.run(Duration::from_secs(120));
        world.heal();
        println!("seed {seed}, {members} members: {:?}", world.tally());
    }
}

#[test]
fn a_seed_replays() {
    let run = || {
        let mut world = World::new(7, 3, Plan::all());
        world.run(Duration::from_secs(60));
        world.heal();
        (world.trace(), world.tally())
    };
    assert_eq!(run(), run());
}

/// Defects, and the seeds within which each is found.
const PLANTED: [(&str, u64); 6] = [
    ("a promise before it is durable", 20),
    ("a commit before it is durable", 20),
    ("a read without a round", 20),
    ("a token used again", 40),
    ("a renewal by a leader that is not sure", 40),
    ("expiry without leadership", 20),
];

#[test]
fn planted_defects_are_found() {
    for (defect, seeds) in PLANTED {
        plant(Some(defect));
        let found = (1..=seeds).find(|seed| {
            let run = || {
                let mut world = World::new(*seed, 3, Plan::all());
                world.run(Duration::from_secs(120));
                world.heal();
            };
            std::panic::catch_unwind(run).is_err()
        });
        plant(None);
        println!("{defect}: found with seed {found:?}");
        assert!(found.is_some(), "{defect}: not found within {seeds} seeds");
    }
}
