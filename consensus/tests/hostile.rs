//! Messages that no honest member sends never end a member: they are refused, or do nothing that raft forbids.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::env;

use bytes::Bytes;
use consensus::{ConfChange, ConfState, Entry, EntryId, EntryKind, Error, Message, MessageKind, Snapshot};
use engine::disk::sim::Random;

use world::{Machine, State, World, member, options, seeded};

const KINDS: u64 = 19;

/// A number near those that matter.
fn number(random: &mut Random, near: &[u64]) -> u64 {
    let base = match random.below(60) {
        0 => u64::MAX,
        1 => 1 << 62,
        2..=5 => 0,
        _ => near[usize::try_from(random.below(near.len() as u64)).unwrap()],
    };
    match random.below(4) {
        0 => base.wrapping_add(random.below(3)),
        1 => base.wrapping_sub(random.below(3)),
        _ => base,
    }
}

fn entries(random: &mut Random, after: u64, term: u64, near: &[u64]) -> Vec<Entry> {
    let is_contiguous = random.chance(9, 10);
    let entry = |offset: u64, random: &mut Random| {
        let index = if is_contiguous { after.wrapping_add(offset) } else { number(random, near) };
        let term = if random.chance(9, 10) { term } else { number(random, near) };
        let (kind, data) = match random.below(5) {
            0 => (EntryKind::ConfChange, Bytes::new()),
            1 => (EntryKind::ConfChange, ConfChange::bootstrap(&member(random.below(4))).encode()),
            2 => (EntryKind::ConfChange, Bytes::from_static(b"\xff\xff")),
            _ => (EntryKind::Normal, Bytes::from(vec![7; usize::try_from(random.below(40)).unwrap()])),
        };
        Entry { index, term, kind, data }
    };
    (1..=random.below(4)).map(|offset| entry(offset, random)).collect()
}

fn message(random: &mut Random, world: &World, members: u64) -> Message {
    let status = world.driver.status();
    let near = [status.term, status.commit, status.last_index, status.applied, 1];
    let kind = loop {
        if let Some(kind) = MessageKind::from_number(random.below(KINDS + 1)) {
            break kind;
        }
    };
    let (index, log_term) = (number(random, &near), number(random, &near));
    let term = if random.chance(4, 5) { status.term } else { number(random, &near) };
    let of_entries = if kind == MessageKind::Propose && random.chance(1, 2) { (0, 0) } else { (index, term) };
    let has_entries = matches!(kind, MessageKind::Propose | MessageKind::Append) || random.chance(1, 10);
    let is_read = matches!(kind, MessageKind::ReadIndex | MessageKind::ReadIndexResponse);
    let token = Entry { index: 0, term: 0, kind: EntryKind::Normal, data: Bytes::from(vec![1; 8]) };
    let mut entries = entries(random, of_entries.0, of_entries.1, &near);
    if !has_entries {
        entries.clear();
        entries.extend(is_read.then_some(token));
    }
    let voters = (1..=3).filter(|_| random.chance(1, 2)).collect();
    let state = Snapshot {
        at: EntryId { index: number(random, &near), term: number(random, &near) },
        conf_state: ConfState { voters, learners: vec![] },
        data: Bytes::new(),
    };
    Message {
        kind,
        to: if random.chance(9, 10) { world.id } else { random.below(5) },
        from: random.below(members + 2),
        term: if matches!(kind, MessageKind::Propose | MessageKind::ReadIndex) { 0 } else { term },
        log_term,
        index,
        entries,
        commit: number(random, &near),
        reject: random.chance(1, 3),
        reject_hint: number(random, &near),
        context: Bytes::from(vec![1; usize::try_from(random.below(3) * 8).unwrap()]),
        snapshot: (kind == MessageKind::Snapshot && random.chance(1, 2)).then(|| Box::new(state)),
    }
}

/// Sends random messages to a member of `members`. Returns how many it took.
fn attacked(seed: u64, members: u64, messages: u64) -> u64 {
    let mut random = Random::new(seed);
    let mut world = World::open(1, members, seeded(seed), Machine::new(), options()).unwrap();
    world.settle().unwrap();
    let mut taken = 0;
    for number in 1..=messages {
        match random.below(10) {
            0 => world.driver.tick(),
            1 => match world.propose("own") {
                Ok(()) | Err(Error::NoLeader | Error::TooManyRequests { .. } | Error::LogWaits) => {}
                Err(error) => panic!("{error}"),
            },
            2 => drop(world.driver.read_index(number)),
            _ => {
                let message = message(&mut random, &world, members);
                match world.driver.receive(message) {
                    Ok(()) => taken += 1,
                    Err(Error::Malformed { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
        }
        if random.chance(1, 4) {
            // Some come together.
            continue;
        }
        match world.turn() {
            Ok(_) | Err(Error::ConfChangeRefused { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        world.outbox.clear();
        if let Some(Snapshot { at, conf_state, .. }) = world.driver.take_install() {
            world.machine.states = vec![State { applied: at, conf_state }];
            world.driver.installed().unwrap();
        }
        if world.driver.status().term > 1 << 40 {
            // A term that only a liar can reach: what follows it is the same for all.
            break;
        }
    }
    taken
}

#[test]
fn no_message_of_a_peer_ends_a_member() {
    let seeds = env::var("ORLOP_HOSTILE_SEEDS").map_or(300, |text| text.parse().unwrap());
    let mut taken = 0;
    for seed in 1..=seeds {
        for members in [1, 2, 3] {
            println!("seed {seed}, {members} members");
            taken += attacked(seed, members, 300);
        }
    }
    assert!(taken > seeds * 100, "{taken} messages were taken");
}
