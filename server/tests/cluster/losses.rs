//! Power is lost at every single write of a machine, in a short history of a cluster: of raft's log, of what apply
//! changes, of the store's checkpoints, and of the first start. Each time the others go on, the machine comes back with
//! some legal image of its disks, and all that is checked in a long run is checked.
//!
//! CI takes a sample by a printed seed; `ORLOP_CLUSTER_LOSSES` sets how many, 0 for all.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use engine::{disk::sim::Random, planted::plant};
use server::clock::Clock;

use super::{
    faults::Fault,
    member::Disks,
    on_all_cpus,
    plan::{Plan, number},
    shrink::caught,
    world::World,
};

const HISTORY: Duration = Duration::from_secs(5);
const MEMBERS: usize = 3;
/// Images that are tried for each write.
const IMAGES: u64 = 3;
/// Losses that CI looks at.
const SAMPLE: u64 = 40;

/// Where power is lost: the machine, whether at a write of its log or of its store, after how many steps, and which
/// image of the disks is left.
#[derive(Clone, Copy, Debug)]
struct Loss {
    at: usize,
    is_log: bool,
    steps: u64,
    image: u64,
}

fn world() -> World {
    let drawn = Plan::drawn(3, HISTORY, Fault::ALL);
    let plan =
        Plan { members: MEMBERS, operators: 0, pause_us_max: 60_000, bulk_keys: 150, blows: Vec::new(), ..drawn };
    World::new(plan)
}

/// All losses of the history.
fn losses() -> Vec<Loss> {
    let mut world = world();
    world.run(HISTORY);
    let mut losses = Vec::new();
    for at in 0..MEMBERS {
        let Disks { log, data } = &world.seats[at].disks;
        for (is_log, last) in [(true, log.steps()), (false, data.steps())] {
            let of_step = |steps| (0..IMAGES).map(move |image| Loss { at, is_log, steps, image });
            losses.extend((0..=last).flat_map(of_step));
        }
    }
    losses
}

fn lose(loss: Loss) -> u64 {
    let Loss { at, is_log, steps, image } = loss;
    let mut world = world();
    let seat = &mut world.seats[at];
    let disk = if is_log { &seat.disks.log } else { &seat.disks.data };
    disk.stop_after(steps);
    seat.image = image;
    world.live();
    world.lost
}

fn sample(losses: &[Loss], count: u64, seed: u64) -> Vec<Loss> {
    let mut random = Random::new(seed);
    (0..count).map(|_| losses[usize::try_from(random.below(losses.len() as u64)).unwrap()]).collect()
}

#[test]
fn a_cluster_survives_power_loss_at_every_write_of_a_member() {
    let mut losses = losses();
    let count = number("ORLOP_CLUSTER_LOSSES").unwrap_or(SAMPLE);
    if count > 0 {
        let seed = Clock::start().seed();
        println!("{count} of {} losses, seed {seed}", losses.len());
        losses = sample(&losses, count, seed);
    }
    let (next, lost) = (AtomicUsize::new(0), AtomicUsize::new(0));
    on_all_cpus(|| {
        let Some(loss) = losses.get(next.fetch_add(1, Ordering::Relaxed)) else { return false };
        println!("{loss:?}");
        lost.fetch_add(usize::from(lose(*loss) > 0), Ordering::Relaxed);
        true
    });
    let (lost, all) = (lost.into_inner(), losses.len());
    assert!(lost * 10 > all * 9, "power is lost in {lost} of {all} runs: the last steps may not be tried again");
}

#[test]
fn what_is_written_in_the_wrong_order_is_found_there() {
    plant(Some("an applied index behind its data"));
    let found = sample(&losses(), 10, 1).into_iter().position(|loss| caught(|| lose(loss)).is_err());
    plant(None);
    assert!(found.is_some(), "a store whose applied index is behind its data is not found");
}
