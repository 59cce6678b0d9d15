//! One simulated member: a driver over a simulated disk, and a state machine that keeps what it was given.
//!
//! The state machine is the checker: it refuses an entry that is not the next one. Its states at every index are kept,
//! so that a restart may begin at any of them, as after a checkpoint.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod three;

use std::{collections::BTreeMap, path::Path};

use bytes::Bytes;
use consensus::{
    Committed, ConfChange, ConfState, Driver, EntryId, EntryKind, Error, Identity, Member, Message, Options, Start,
};
use engine::disk::{
    Disk,
    sim::{Order, SimDisk, SimStorage},
};

pub const DIR: &str = "/data/wal";
pub const CLUSTER: u64 = 99;

pub fn options() -> Options {
    Options {
        election_ticks: 10,
        heartbeat_ticks: 1,
        pre_vote: true,
        message_bytes_max: 1 << 20,
        messages_in_flight_max: 512,
        proposals_bytes_max: 64 << 20,
        backlog_entries_max: 5000,
        committed_bytes_max: 1 << 20,
        tail_bytes_max: 1 << 20,
        catch_up_entries: 5000,
        catch_up_log_bytes: 128 << 20,
        reads_max: 100,
        read_retry_ticks: 5,
        space_retry_ticks: 3,
        state_kept_ticks: 30,
        seed: 1,
        wal: engine::wal::Options {
            segment_bytes: 64 << 10,
            group_bytes_max: 16 << 10,
            fresh_id: 7,
            ..Default::default()
        },
    }
}

/// What the state machine is at one index.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub applied: EntryId,
    pub conf_state: ConfState,
}

/// The state machine: all that was committed, in order.
#[derive(Clone, Debug, Default)]
pub struct Machine {
    pub log: BTreeMap<u64, Committed>,
    pub states: Vec<State>,
    /// The state came from another member, and no checkpoint was made since.
    pub is_installed: bool,
}

impl Machine {
    pub fn new() -> Machine {
        Machine { log: BTreeMap::new(), states: vec![State::default()], is_installed: false }
    }

    pub fn last(&self) -> &State {
        self.states.last().unwrap()
    }

    /// The state as a checkpoint at `index` holds it; what came later is forgotten.
    pub fn rewind(&mut self, index: u64) {
        self.states.truncate(usize::try_from(index).unwrap() + 1);
        self.log.retain(|at, _| *at <= index);
    }

    /// The payloads of all requests, in order.
    pub fn requests(&self) -> Vec<Bytes> {
        let requests = self.log.values().filter(|entry| entry.kind == EntryKind::Normal && !entry.data.is_empty());
        requests.map(|entry| entry.data.clone()).collect()
    }
}

pub struct World {
    pub id: u64,
    pub storage: SimStorage,
    pub disk: SimDisk,
    pub driver: Driver,
    pub machine: Machine,
    pub outbox: Vec<Message>,
}

pub fn member(id: u64) -> Member {
    Member { id, peer_urls: vec![format!("http://10.0.0.{id}:2380")], name: format!("m{id}"), ..Member::default() }
}

pub fn start_of(machine: &Machine, members: u64) -> Start {
    let State { applied, conf_state } = machine.last().clone();
    let bootstrap = (1..=members).map(|id| ConfChange::bootstrap(&member(id))).collect();
    Start { applied, is_installed: machine.is_installed, conf_state, bootstrap, ..Start::default() }
}

impl World {
    /// A single voter on an empty disk.
    pub fn alone(seed: u64) -> World {
        World::open(1, 1, SimStorage::new(seed), Machine::new(), options()).unwrap()
    }

    pub fn open(
        id: u64,
        members: u64,
        storage: SimStorage,
        machine: Machine,
        options: Options,
    ) -> Result<World, Error> {
        let mut disk = storage.disk();
        let identity = Identity { member_id: id, cluster_id: CLUSTER };
        let start = start_of(&machine, members);
        let driver = Driver::open(&mut disk, Path::new(DIR), identity, options, start)?;
        Ok(World { id, storage, disk, driver, machine, outbox: Vec::new() })
    }

    /// Hands completions over once, applies what committed. True if anything moved.
    pub fn turn(&mut self) -> Result<bool, Error> {
        self.driver.step(&mut self.disk)?;
        self.disk.kick()?;
        let mut completions = Vec::new();
        self.disk.completions(&mut completions);
        let mut moved = !completions.is_empty();
        for completion in completions {
            self.driver.on_completion(completion, &mut self.disk)?;
        }
        moved |= self.apply()?;
        self.outbox.extend(self.driver.take_messages());
        Ok(moved)
    }

    pub fn apply(&mut self) -> Result<bool, Error> {
        let entries = self.driver.take_committed(4096);
        let moved = !entries.is_empty();
        for entry in entries {
            let mut state = self.machine.last().clone();
            assert_eq!(entry.index, state.applied.index + 1, "exactly once, in order");
            assert!(entry.term >= state.applied.term);
            state.applied = EntryId { index: entry.index, term: entry.term };
            if entry.kind == EntryKind::ConfChange {
                let change = ConfChange::decode(&entry.data).unwrap();
                state.conf_state = self.driver.apply_conf_change(&change)?;
            }
            self.driver.applied(entry.index);
            self.machine.log.insert(entry.index, entry);
            self.machine.states.push(state);
        }
        Ok(moved)
    }

    /// Until nothing moves any more.
    pub fn settle(&mut self) -> Result<(), Error> {
        for _ in 0..100_000 {
            let moved = self.turn()?;
            if !moved && self.storage.in_flight().is_empty() {
                return Ok(());
            }
        }
        panic!("the driver never comes to rest");
    }

    pub fn propose(&mut self, data: &str) -> Result<(), Error> {
        self.driver.propose(Bytes::copy_from_slice(data.as_bytes()))
    }

    /// The member again, after power loss, on `storage`, its state as a checkpoint at `index` holds it.
    pub fn reopen(self, storage: SimStorage, index: u64, options: Options) -> Result<World, Error> {
        let mut machine = self.machine;
        machine.rewind(index);
        drop(self.driver);
        World::open(self.id, 1, storage, machine, options)
    }
}

pub fn seeded(seed: u64) -> SimStorage {
    let storage = SimStorage::new(seed);
    storage.set_order(Order::Seeded);
    storage
}
