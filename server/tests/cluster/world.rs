//! The world of a cluster: one clock, one queue of what happens when, and the faults.
//!
//! Everything that happens is an event at a time; the next event is the earliest, and of two at the same time the one
//! that was planned first. Chance comes from the seed alone. So a seed replays: `trace` is a checksum of all events.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
    time::Duration,
};

use engine::disk::sim::Random;
use server::clock::Clock;

use super::{
    checks::Truth,
    clients::{Clients, Tally},
    leases::{EXPIRY_MAX, Leases},
    member::{Disks, HEARTBEAT, Member, Outcome},
    network::{Link, Sent},
};

const CLIENTS: usize = 6;
const LEASE_CLIENTS: usize = 4;
/// After the last fault, all members agree and serve within this time.
const RECOVERY: Duration = Duration::from_secs(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Tick {
        member: usize,
        life: u64,
    },
    /// An operation of the log's disk ends.
    Ended {
        member: usize,
        life: u64,
        operation: u64,
    },
    Arrives {
        link: usize,
    },
    Client {
        client: usize,
    },
    LeaseClient {
        client: usize,
    },
    Fault,
    Restart {
        member: usize,
    },
    Resume {
        member: usize,
    },
    Unblock {
        link: usize,
    },
    PowerLossOfAll,
    Compare,
}

/// The faults of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    PowerLoss,
    PowerLossOfAll,
    Kill,
    Pause,
    /// A leader stands still, and for a moment hears nothing of what happened meanwhile.
    PauseLeader,
    Isolate,
    BlockOneWay,
    Reset,
    SlowDisk,
    HungDisk,
    /// A disk hangs, and before it goes on all lose power.
    LossWhileHung,
}

/// What may happen in a run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) faults: Vec<Fault>,
}

impl Plan {
    pub(crate) fn all() -> Self {
        use Fault::*;
        Self {
            faults: vec![
                PowerLoss,
                PowerLossOfAll,
                Kill,
                Pause,
                PauseLeader,
                Isolate,
                BlockOneWay,
                Reset,
                SlowDisk,
                HungDisk,
                LossWhileHung,
            ],
        }
    }
}

/// A machine, and the member on it if it runs.
struct Seat {
    member: Option<Member>,
    disks: Disks,
    clock: Clock,
    life: u64,
    /// Operations of the log's disk whose end is planned.
    planned: BTreeSet<u64>,
    /// It does nothing before this time.
    paused_until: Duration,
    /// Its log's disk ends nothing before this time.
    hung_until: Duration,
    slow_until: Duration,
    tick: Duration,
}

/// See the head of this file.
pub(crate) struct World {
    random: Random,
    now: Duration,
    queue: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    planned: u64,
    seats: Vec<Seat>,
    links: Vec<Link>,
    clients: Clients,
    leases: Leases,
    truth: Truth,
    plan: Plan,
    is_calm: bool,
    faults: u64,
    trace: u64,
}

impl World {
    pub(crate) fn new(seed: u64, members: usize, plan: Plan) -> Self {
        let mut random = Random::new(seed);
        let seat = |random: &mut Random| Seat {
            member: None,
            disks: Disks::new(random.bits()),
            clock: Clock::manual(random.bits()),
            life: 0,
            planned: BTreeSet::new(),
            paused_until: Duration::ZERO,
            hung_until: Duration::ZERO,
            slow_until: Duration::ZERO,
            tick: HEARTBEAT * u32::try_from(95 + random.below(11)).unwrap() / 100,
        };
        let seats = (0..members).map(|_| seat(&mut random)).collect();
        let pairs = (0..members).flat_map(|from| (0..members).map(move |to| (from, to)));
        let links = pairs.filter(|(from, to)| from != to);
        let links = links.flat_map(|(from, to)| [true, false].map(|appends| Link::new(from, to, appends)));
        let mut world = Self {
            random,
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            planned: 0,
            seats,
            links: links.collect(),
            clients: Clients::new(CLIENTS),
            leases: Leases::new(LEASE_CLIENTS),
            truth: Truth::new(),
            plan,
            is_calm: false,
            faults: 0,
            trace: 0,
        };
        for member in 0..members {
            let late = world.random.below(1_000_000);
            world.plan(Duration::from_micros(late), Event::Restart { member });
        }
        for client in 0..CLIENTS {
            world.plan(Duration::from_secs(1), Event::Client { client });
        }
        for client in 0..LEASE_CLIENTS {
            world.plan(Duration::from_secs(2), Event::LeaseClient { client });
        }
        world.plan(Duration::from_secs(5), Event::Fault);
        world.plan(Duration::from_secs(1), Event::Compare);
        world
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    /// What clients did; renewals and revocations of leases; faults; terms.
    pub(crate) fn tally(&self) -> (Tally, (u64, u64), u64, usize) {
        let Leases { renewed, revoked, .. } = self.leases;
        (self.clients.tally.clone(), (renewed, revoked), self.faults, self.truth.terms())
    }

    fn plan(&mut self, after: Duration, event: Event) {
        self.plan_at(self.now + after, event);
    }

    fn plan_at(&mut self, at: Duration, event: Event) {
        self.planned += 1;
        self.queue.push(Reverse((at.max(self.now), self.planned, event)));
    }

    fn micros(&mut self, from: u64, to: u64) -> Duration {
        Duration::from_micros(from + self.random.below(to - from))
    }

    fn millis(&mut self, from: u64, to: u64) -> Duration {
        self.micros(from * 1000, to * 1000)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.random.below(bound as u64)).unwrap()
    }

    /// Lets `time` pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(Reverse((at, _, _))) = self.queue.peek()
            && *at <= until
        {
            let Some(Reverse((at, _, event))) = self.queue.pop() else { break };
            let passed = at - self.now;
            self.now = at;
            self.seats.iter().for_each(|seat| seat.clock.advance(passed));
            self.mark(at, event);
            self.happen(event);
        }
    }

    /// Adds an event to the trace.
    fn mark(&mut self, at: Duration, event: Event) {
        let applied: u64 = self.seats.iter().map(|seat| seat.member.as_ref().map_or(0, Member::applied)).sum();
        let text = format!("{} {event:?} {applied}", at.as_nanos());
        for byte in text.bytes() {
            self.trace = (self.trace ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { member, life } => self.tick(member, life),
            Event::Ended { member, life, operation } => self.ended(member, life, operation),
            Event::Arrives { link } => self.arrives(link),
            Event::Client { client } => self.client(client),
            Event::LeaseClient { client } => self.lease_client(client),
            Event::Fault => self.fault(),
            Event::Restart { member } => self.restart(member),
            Event::Resume { member } => self.step(member),
            Event::Unblock { link } => {
                self.links[link].block(false);
                if self.random.chance(1, 2) {
                    self.links[link].reset(self.now);
                }
                self.plan_arrival(link);
            }
            Event::PowerLossOfAll => (0..self.seats.len()).for_each(|at| self.lose(at, true)),
            Event::Compare => self.compare(),
        }
    }

    /// Whether the member runs in this life; what it is to do waits while it is paused.
    fn is_awake(&mut self, member: usize, event: Event) -> bool {
        let seat = &self.seats[member];
        if seat.member.is_none() {
            return false;
        }
        if seat.paused_until > self.now {
            self.plan_at(seat.paused_until, event);
            return false;
        }
        true
    }

    fn tick(&mut self, member: usize, life: u64) {
        if self.seats[member].life != life || !self.is_awake(member, Event::Tick { member, life }) {
            return;
        }
        self.plan(self.seats[member].tick, Event::Tick { member, life });
        self.seats[member].member.as_mut().unwrap().tick();
        self.step(member);
    }

    fn ended(&mut self, member: usize, life: u64, operation: u64) {
        if self.seats[member].life != life {
            return;
        }
        let seat = &self.seats[member];
        if seat.hung_until > self.now {
            return self.plan_at(seat.hung_until, Event::Ended { member, life, operation });
        }
        if !self.is_awake(member, Event::Ended { member, life, operation }) {
            return;
        }
        self.seats[member].planned.remove(&operation);
        self.seats[member].disks.log.complete(operation);
        self.step(member);
    }

    fn arrives(&mut self, link: usize) {
        let to = self.links[link].to;
        if self.seats[to].member.is_some() && self.seats[to].paused_until > self.now {
            return self.plan_at(self.seats[to].paused_until, Event::Arrives { link });
        }
        let messages = self.links[link].arrived(self.now);
        self.plan_arrival(link);
        if let Some(member) = &mut self.seats[to].member
            && !messages.is_empty()
        {
            messages.into_iter().for_each(|message| member.receive(message));
            self.step(to);
        }
    }

    fn plan_arrival(&mut self, link: usize) {
        if let Some(at) = self.links[link].next_arrival() {
            self.plan_at(at, Event::Arrives { link });
        }
    }

    fn client(&mut self, client: usize) {
        self.clients.give_up(client, self.now);
        let pause = self.millis(1, 40);
        self.plan(pause, Event::Client { client });
        if self.clients.waiting[client].is_some() {
            return;
        }
        let at = self.below(self.seats.len());
        let seat = &mut self.seats[at];
        if seat.paused_until > self.now {
            return;
        }
        if let Some(member) = &mut seat.member {
            self.clients.ask(client, (at, member), self.now, &mut self.random);
            self.step(at);
        }
    }

    fn lease_client(&mut self, client: usize) {
        let pause = self.millis(100, 1500);
        self.plan(pause, Event::LeaseClient { client });
        // Mostly who leads, as its client finds it.
        let leads = |seat: &Seat| seat.member.as_ref().is_some_and(Member::is_leader);
        let leaders: Vec<usize> = (0..self.seats.len()).filter(|at| leads(&self.seats[*at])).collect();
        let at = match leaders.len() {
            0 => self.below(self.seats.len()),
            count => leaders[self.below(count)],
        };
        if self.seats[at].paused_until > self.now {
            return;
        }
        if let Some(member) = &mut self.seats[at].member {
            self.leases.ask(client, member, self.now, &mut self.random);
            self.step(at);
        }
    }

    /// Lets a member go on, and carries what comes of it.
    fn step(&mut self, at: usize) {
        let Some(member) = &mut self.seats[at].member else { return };
        let outcome = member.run().unwrap_or_else(|error| panic!("member {} stops: {error}", at + 1));
        if member.is_leader() {
            self.truth.leads(member.term(), member.id);
        }
        let Outcome { messages, proposals, reads, renewals, committed } = outcome;
        for (index, term, data) in &committed {
            for request in self.truth.committed(*index, *term, data) {
                self.leases.committed(&request, self.now);
            }
        }
        for proposal in &proposals {
            self.clients.answered(proposal, &self.truth);
            self.leases.answered(proposal, self.now);
        }
        renewals.iter().for_each(|(lease, ttl)| self.leases.renewed(*lease, *ttl, self.now));
        reads.iter().for_each(|read| self.clients.confirmed(read.context, read.index));
        self.clients.answer_reads((at, self.seats[at].member.as_ref().unwrap()), &self.truth);
        for message in &messages {
            let to = usize::try_from(message.to).unwrap() - 1;
            let is_it = |link: &Link| (link.from, link.to) == (at, to) && link.carries(message.kind);
            let link = self.links.iter().position(is_it).expect("all members are linked");
            if let Sent::Arrives(time) = self.links[link].send(message, self.now, &mut self.random) {
                self.plan_at(time, Event::Arrives { link });
            }
        }
        self.plan_ends(at);
    }

    /// Plans the ends of the log's operations.
    fn plan_ends(&mut self, at: usize) {
        for flight in self.seats[at].disks.log.in_flight() {
            if !self.seats[at].planned.insert(flight.number) {
                continue;
            }
            let mut late = self.micros(50, 3000);
            if self.seats[at].slow_until > self.now {
                late *= 50;
            }
            let (member, life) = (at, self.seats[at].life);
            self.plan(late, Event::Ended { member, life, operation: flight.number });
        }
    }

    fn restart(&mut self, at: usize) {
        let members = self.seats.len() as u64;
        let seat = &mut self.seats[at];
        if seat.member.is_some() {
            return;
        }
        seat.life += 1;
        seat.planned.clear();
        let started = Member::start(at as u64 + 1, members, seat.disks.clone(), seat.clock.clone());
        seat.member = Some(started.unwrap_or_else(|error| panic!("member {} does not start: {error}", at + 1)));
        let (life, first) = (seat.life, seat.tick);
        self.plan(first, Event::Tick { member: at, life });
        self.step(at);
    }

    /// The member's process is gone; its disks are `disks`. It comes back later.
    fn stop(&mut self, at: usize, disks: Disks) {
        let seat = &mut self.seats[at];
        (seat.member, seat.disks) = (None, disks);
        seat.life += 1;
        (seat.paused_until, seat.hung_until) = (Duration::ZERO, Duration::ZERO);
        self.clients.lost(at);
        for link in 0..self.links.len() {
            if self.links[link].from == at || self.links[link].to == at {
                self.links[link].reset(self.now);
            }
        }
        let away = self.millis(10, 3000);
        self.plan(away, Event::Restart { member: at });
    }

    fn block(&mut self, from: usize, to: usize, time: Duration) {
        for link in 0..self.links.len() {
            if (self.links[link].from, self.links[link].to) == (from, to) {
                self.links[link].block(true);
                self.plan(time, Event::Unblock { link });
            }
        }
    }

    fn isolate(&mut self, at: usize, time: Duration) {
        for other in (0..self.seats.len()).filter(|other| *other != at) {
            self.block(at, other, time);
            self.block(other, at, time);
        }
    }

    fn fault(&mut self) {
        let pause = self.millis(200, 5000);
        self.plan(pause, Event::Fault);
        if self.is_calm {
            return;
        }
        let kind = self.below(self.plan.faults.len());
        let (kind, at) = (self.plan.faults[kind], self.below(self.seats.len()));
        let time = self.millis(50, 5000);
        self.faults += 1;
        match kind {
            Fault::PowerLoss | Fault::Kill => self.lose(at, kind == Fault::PowerLoss),
            Fault::PowerLossOfAll if self.random.chance(1, 3) => self.plan(Duration::ZERO, Event::PowerLossOfAll),
            Fault::PowerLossOfAll => {}
            Fault::Pause => {
                self.seats[at].paused_until = self.now + time;
                self.plan(time, Event::Resume { member: at });
            }
            Fault::PauseLeader => {
                let leads = |seat: &Seat| seat.member.as_ref().is_some_and(Member::is_leader);
                let Some(at) = self.seats.iter().position(leads) else { return };
                self.seats[at].paused_until = self.now + time;
                self.plan(time, Event::Resume { member: at });
                let deaf = self.millis(0, 900);
                self.isolate(at, time + deaf);
            }
            Fault::Isolate => self.isolate(at, time),
            Fault::BlockOneWay => {
                let other = (at + 1 + self.below(self.seats.len() - 1)) % self.seats.len();
                self.block(at, other, time);
            }
            Fault::Reset => {
                for link in self.links.iter_mut().filter(|link| link.from == at || link.to == at) {
                    link.reset(self.now);
                }
            }
            Fault::SlowDisk => self.seats[at].slow_until = self.now + time,
            Fault::HungDisk => self.seats[at].hung_until = self.now + time,
            Fault::LossWhileHung => {
                self.seats[at].hung_until = self.now + time;
                self.plan(time / 2, Event::PowerLossOfAll);
            }
        }
    }

    /// The machine loses power, or its process is killed.
    fn lose(&mut self, at: usize, is_power: bool) {
        if self.seats[at].member.is_some() {
            let disks = &self.seats[at].disks;
            let left = if is_power { disks.crash() } else { disks.kill() };
            self.stop(at, left);
        }
    }

    /// Members that have applied the same hold the same.
    fn compare(&mut self) {
        self.plan(Duration::from_secs(3), Event::Compare);
        let mut known: Vec<(u64, (u32, i64))> = Vec::new();
        for member in self.seats.iter().filter_map(|seat| seat.member.as_ref()) {
            let (applied, hash) = (member.applied(), member.hash());
            match known.iter().find(|(other, _)| *other == applied) {
                Some((_, other)) => assert_eq!(*other, hash, "member {} at entry {applied}", member.id),
                None => known.push((applied, hash)),
            }
        }
    }

    /// No more faults: all members come to agree, and serve.
    pub(crate) fn heal(&mut self) {
        self.is_calm = true;
        for link in 0..self.links.len() {
            self.links[link].block(false);
            self.plan_arrival(link);
        }
        for at in 0..self.seats.len() {
            let seat = &mut self.seats[at];
            (seat.paused_until, seat.hung_until, seat.slow_until) = Default::default();
            self.plan(Duration::ZERO, Event::Resume { member: at });
        }
        self.run(RECOVERY);
        let written = self.clients.tally.written;
        self.run(Duration::from_secs(2));
        assert!(self.clients.tally.written > written, "the cluster serves again");
        // Clients fall silent, leases expire, and all is applied everywhere.
        self.clients.waiting.iter_mut().for_each(|waiting| *waiting = None);
        self.leases.let_go();
        self.queue.retain(|Reverse((_, _, event))| !matches!(event, Event::Client { .. } | Event::LeaseClient { .. }));
        self.run(EXPIRY_MAX);
        assert_eq!(self.leases.live(), 0, "leases that nobody renews are revoked");
        let members = || self.seats.iter().map(|seat| seat.member.as_ref().expect("all members run again"));
        let applied: Vec<u64> = members().map(Member::applied).collect();
        assert!(applied.iter().all(|applied| *applied == self.truth.applied()), "{applied:?}");
        self.compare();
    }
}
