//! Three members, a network that loses, doubles and reorders, power loss: one order for all, and nothing acknowledged
//! is lost.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod world;

use std::collections::BTreeMap;

use bytes::Bytes;
use consensus::{Committed, ConfChange, ConfChangeKind, EntryKind, Error, Message};
use engine::disk::sim::{Order, Random};

use world::{Machine, World, options, seeded};

const MEMBERS: u64 = 3;

struct Cluster {
    random: Random,
    members: Vec<Option<World>>,
    /// What a stopped member left: its medium, its state and how many of its applied entries a checkpoint holds.
    wire: Vec<Message>,
    /// What any member has applied, by index.
    truth: BTreeMap<u64, Committed>,
    leaders: BTreeMap<u64, u64>,
    acknowledged: u64,
    proposed: u64,
}

impl Cluster {
    fn new(seed: u64) -> Cluster {
        let members = (1..=MEMBERS)
            .map(|id| {
                Some(World::open(id, MEMBERS, seeded(seed * 10 + id), Machine::new(), member_options(id)).unwrap())
            })
            .collect();
        Cluster {
            random: Random::new(seed),
            members,
            wire: Vec::new(),
            truth: BTreeMap::new(),
            leaders: BTreeMap::new(),
            acknowledged: 0,
            proposed: 0,
        }
    }

    /// One round: ticks, messages, disk, and the checks. `trouble` = chance in 100 for a message to be lost.
    fn round(&mut self, trouble: u64) {
        for position in 0..self.members.len() {
            let Some(world) = &mut self.members[position] else { continue };
            if self.random.chance(1, 4) {
                world.driver.tick();
            }
            world.turn().unwrap();
            self.wire.append(&mut world.outbox);
        }
        let mut kept = Vec::new();
        for message in std::mem::take(&mut self.wire) {
            if self.random.chance(1, 3) {
                kept.push(message);
                continue;
            }
            if self.random.below(100) < trouble {
                continue;
            }
            if self.random.below(100) < trouble {
                kept.push(message.clone());
            }
            let position = usize::try_from(message.to - 1).unwrap();
            if let Some(world) = &mut self.members[position] {
                world.driver.receive(message).unwrap();
            }
        }
        self.wire = kept;
        self.check();
    }

    fn check(&mut self) {
        for world in self.members.iter().flatten() {
            let status = world.driver.status();
            if status.is_leader {
                let leader = *self.leaders.entry(status.term).or_insert(world.id);
                assert_eq!(leader, world.id, "two leaders in term {}", status.term);
            }
            for entry in world.machine.log.values().rev() {
                match self.truth.get(&entry.index) {
                    Some(known) if known == entry => break,
                    Some(known) => panic!("member {} applied {entry:?}, another {known:?}", world.id),
                    None => {
                        self.truth.insert(entry.index, entry.clone());
                    }
                }
            }
        }
        for index in 1..=self.truth.len() as u64 {
            assert!(self.truth.contains_key(&index));
        }
    }

    fn propose_somewhere(&mut self) {
        let position = usize::try_from(self.random.below(MEMBERS)).unwrap();
        let Some(world) = &mut self.members[position] else { return };
        match world.propose(&format!("{:06}", self.proposed)) {
            Ok(()) => self.proposed += 1,
            Err(Error::NoLeader | Error::TooManyRequests { .. } | Error::LogWaits) => {}
            Err(other) => panic!("{other}"),
        }
    }

    fn crash(&mut self, position: usize) {
        let Some(world) = self.members[position].take() else { return };
        // The proposer's replies: whatever it applied may have been acknowledged.
        self.acknowledged = self.acknowledged.max(world.machine.last().applied.index);
        let (id, storage, mut machine) = (world.id, world.storage.crash(), world.machine);
        storage.set_order(Order::Seeded);
        let checkpoint = self.random.below(machine.last().applied.index + 1);
        machine.rewind(checkpoint);
        drop(world.driver);
        self.members[position] = Some(World::open(id, MEMBERS, storage, machine, member_options(id)).unwrap());
    }

    fn leader(&self) -> Option<&World> {
        self.members.iter().flatten().find(|world| world.driver.status().is_leader)
    }

    /// A quiet network until all have applied the same.
    fn heal(&mut self) {
        for _ in 0..20_000 {
            self.round(0);
            let indexes: Vec<u64> =
                self.members.iter().flatten().map(|world| world.machine.last().applied.index).collect();
            let last = self.leader().map(|world| world.driver.status().last_index);
            if indexes.iter().all(|index| Some(*index) == last) && indexes[0] >= self.acknowledged {
                return;
            }
        }
        panic!("the members never agree");
    }
}

fn member_options(id: u64) -> consensus::Options {
    consensus::Options { seed: id, ..options() }
}

#[test]
fn three_members_agree_through_loss_reorder_and_power_loss() {
    for seed in 1..=12 {
        let mut cluster = Cluster::new(seed);
        for number in 1..=1500 {
            cluster.round(5);
            if cluster.random.chance(1, 3) {
                cluster.propose_somewhere();
            }
            if number % 100 == 0 {
                // By turns the leader, if there is one, and anyone.
                let leader = cluster.leader().filter(|_| number % 200 == 0).map(|world| world.id - 1);
                let position = leader.unwrap_or_else(|| cluster.random.below(MEMBERS));
                cluster.crash(usize::try_from(position).unwrap());
            }
        }
        cluster.heal();
        let requests = cluster.truth.values().filter(|entry| entry.kind == EntryKind::Normal && !entry.data.is_empty());
        assert!(requests.count() > 50, "seed {seed}: nothing got through");
        assert!(cluster.leaders.len() > 1, "seed {seed}: no leader ever fell");
    }
}

#[test]
fn a_confirmed_read_sees_what_any_member_applied_before_it() {
    for seed in 1..=6 {
        let mut cluster = Cluster::new(seed);
        let mut asked: BTreeMap<(usize, u64), u64> = BTreeMap::new();
        let mut confirmed = 0;
        for number in 1..=1500 {
            cluster.round(3);
            cluster.propose_somewhere();
            let position = usize::try_from(cluster.random.below(MEMBERS)).unwrap();
            let applied_anywhere = cluster.truth.len() as u64;
            let world = cluster.members[position].as_mut().unwrap();
            if world.driver.read_index(number).is_ok() {
                asked.insert((position, number), applied_anywhere);
            }
            for (position, world) in cluster.members.iter_mut().enumerate() {
                for read in world.as_mut().unwrap().driver.take_reads() {
                    let floor = asked[&(position, read.context)];
                    assert!(read.index >= floor, "seed {seed}: read at {}, {floor} was applied before", read.index);
                    let count = asked.len();
                    asked.retain(|(at, number), _| *at != position || *number > read.context);
                    confirmed += count - asked.len();
                }
            }
        }
        assert!(confirmed > 1300, "seed {seed}: only {confirmed} reads were answered");
    }
}

#[test]
fn leadership_is_handed_over_on_request() {
    let mut cluster = Cluster::new(3);
    cluster.heal();
    let old = cluster.leader().unwrap().id;
    let new = old % MEMBERS + 1;
    let position = usize::try_from(old - 1).unwrap();
    cluster.members[position].as_mut().unwrap().driver.transfer_leader(new);
    for _ in 0..200 {
        cluster.round(0);
    }
    assert_eq!(cluster.leader().unwrap().id, new);
}

/// Who was removed may be gone: nobody may need its vote, or its answer, to find out that it was.
#[test]
fn that_a_member_was_removed_is_known_behind_power_loss() {
    let mut cluster = Cluster::new(5);
    cluster.heal();
    let leader = usize::try_from(cluster.leader().unwrap().id - 1).unwrap();
    let gone = (leader + 1) % cluster.members.len();
    let removal =
        ConfChange { id: 5, kind: ConfChangeKind::RemoveNode, member_id: gone as u64 + 1, context: Bytes::new() };
    let driver = &mut cluster.members[leader].as_mut().unwrap().driver;
    driver.propose_conf_change(&removal).unwrap();
    let index = driver.status().last_index;
    let applied = |world: &World| world.machine.last().applied.index;
    while !cluster.members.iter().flatten().all(|world| applied(world) == index) {
        cluster.round(0);
    }
    for _ in 0..20 {
        cluster.round(0);
    }
    cluster.members[gone] = None;
    for position in 0..cluster.members.len() {
        cluster.crash(position);
    }
    let left: Vec<u64> = cluster.members.iter().flatten().map(|world| world.driver.status().commit).collect();
    assert_eq!(left, [index; 2]);
    cluster.heal();
}

/// A cluster in which hardly anything stays in memory once it is applied.
fn forgetful(seed: u64) -> Cluster {
    let mut cluster = Cluster::new(seed);
    for (member, id) in cluster.members.iter_mut().zip(1..) {
        let options = consensus::Options {
            tail_bytes_max: 0,
            message_bytes_max: 2000,
            messages_in_flight_max: 4,
            catch_up_entries: 0,
            catch_up_log_bytes: 1 << 30,
            ..member_options(id)
        };
        *member = Some(World::open(id, MEMBERS, seeded(seed * 10 + id), Machine::new(), options).unwrap());
    }
    cluster
}

#[test]
fn a_member_that_is_far_behind_gets_from_the_log_what_memory_no_longer_holds() {
    for seed in 1..=4 {
        let mut cluster = forgetful(seed);
        cluster.heal();
        let leader = cluster.leader().unwrap().id;
        let behind = usize::try_from(leader % MEMBERS).unwrap();
        let away = cluster.members[behind].take().unwrap();
        for number in 0..3000 {
            cluster.round(0);
            let world = cluster.members[usize::try_from(leader - 1).unwrap()].as_mut().unwrap();
            match world.propose(&format!("{number:0>200}")) {
                Ok(()) | Err(Error::LogWaits) => {}
                Err(error) => panic!("{error}"),
            }
            let applied = world.machine.last().applied;
            if number % 500 == 499 {
                world.driver.trim(applied).unwrap();
            }
        }
        let last = cluster.truth.len() as u64;
        assert!(last > 2000);
        cluster.members[behind] = Some(away);
        cluster.heal();
        assert!(cluster.members[behind].as_ref().unwrap().machine.last().applied.index >= last);
        assert_eq!(cluster.leader().unwrap().id, leader, "the leader led all the time");
    }
}

#[test]
fn members_agree_through_power_loss_while_they_read_their_logs_back() {
    for seed in 1..=6 {
        let mut cluster = forgetful(seed);
        for number in 1..=1200 {
            cluster.round(5);
            if cluster.random.chance(1, 2) {
                cluster.propose_somewhere();
            }
            if number % 150 == 0 {
                let position = cluster.random.below(MEMBERS);
                cluster.crash(usize::try_from(position).unwrap());
            }
        }
        cluster.heal();
    }
}
