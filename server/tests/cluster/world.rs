//! The world of a cluster: one clock, one queue of what happens when, and the faults.
//!
//! Everything that happens is an event at a time; the next event is the earliest, and of two at the same time the one
//! that was planned first. Chance comes from the seed alone. So a seed replays: `trace` is a checksum of all events.

use std::{cmp::Reverse, collections::BinaryHeap, fmt, ops::AddAssign, time::Duration};

use consensus::{Committed, Message, MessageKind};
use engine::disk::sim::Random;
use proto::etcdserverpb as pb;

use super::{
    checks::Truth,
    clients::{self, Clients},
    damage::Tails,
    heard::Heard,
    leases::Leases,
    member::{Disks, HEARTBEAT, Member, Outcome, Setting},
    membership::{LOOK_EVERY, MACHINES, Membership},
    network::{Direction, Network},
    plan::Plan,
    seat::{DRIFT_MAX, MILLION, SLOW_BELOW, Seat},
    states::{self, Transfer},
    story::Story,
    watchers::{Told, Watchers},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Tick {
        member: usize,
        life: u64,
    },
    /// A member goes on by itself between two ticks.
    Due {
        member: usize,
        life: u64,
    },
    /// An operation of the log's disk ends.
    Ended {
        member: usize,
        life: u64,
        operation: u64,
    },
    /// Bytes arrive at an end of a connection.
    Arrives {
        connection: u64,
        way: usize,
    },
    /// A member tries to connect to another one.
    Dial {
        at: usize,
        life: u64,
        attempt: u64,
        to: u64,
        until: Duration,
    },
    Client {
        client: usize,
    },
    LeaseClient {
        client: usize,
    },
    WatchClient {
        client: usize,
    },
    /// The checkpoint that a member has begun is written.
    Checkpoint {
        member: usize,
        life: u64,
    },
    Operator {
        operator: usize,
    },
    /// The next fault of the plan.
    Fault,
    Restart {
        member: usize,
    },
    /// The members that were added are started.
    StartAdded,
    AskForRepairs,
    /// A member that was removed ends.
    Leave {
        member: usize,
        life: u64,
    },
    /// A member that stood still, or had more to do, goes on.
    Resume {
        member: usize,
    },
    /// The disks of a machine are whole again.
    Mend {
        member: usize,
    },
    Unblock {
        direction: Direction,
        is_reset: bool,
    },
    PowerLossOfAll {
        seed: u64,
    },
    /// A log's disk has lied, and what it lied about is behind it.
    Lied {
        at: usize,
    },
    /// An older copy of the disks of a machine is put back.
    PutBack {
        at: usize,
    },
    /// The end of a log is lost, and whoever leads is away.
    LostTail {
        at: usize,
        away: Duration,
        leader_away: Duration,
    },
    Compare,
    /// A piece of a state moves on.
    State {
        transfer: usize,
    },
}

/// Numbers of a run, to see that something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) runs: u64,
    pub(crate) simulated: Duration,
    pub(crate) faults: u64,
    pub(crate) terms: usize,
    pub(crate) asked: clients::Tally,
    pub(crate) told: Told,
    pub(crate) renewed: u64,
    pub(crate) revoked: u64,
    /// Members that stopped by themselves, because of a disk.
    pub(crate) stopped: u64,
    pub(crate) states: states::Sent,
    /// Changes of the members that were made and refused, and of the leader.
    pub(crate) changes: (u64, u64, u64),
    /// States that were asked for because of damage.
    pub(crate) repairs: u64,
    pub(crate) tails: Tails,
    /// Older copies of disks that were put back.
    pub(crate) copies: u64,
}

impl fmt::Display for Tally {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (hours, asked, faults) = (self.simulated.as_secs_f64() / 3600.0, self.asked.asked, self.faults);
        write!(to, "{hours:.1} cluster hours, {asked} requests, {faults} faults, in {} runs", self.runs)
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { runs, simulated, faults, terms, asked, told, renewed, revoked, stopped, .. } = other;
        let Self { states, changes, repairs, tails, copies, .. } = other;
        self.runs += runs;
        self.simulated += simulated;
        self.faults += faults;
        self.terms += terms;
        self.asked += asked;
        self.told += told;
        self.renewed += renewed;
        self.revoked += revoked;
        self.stopped += stopped;
        self.states.begun += states.begun;
        self.states.broken += states.broken;
        self.states.arrived += states.arrived;
        self.repairs += repairs;
        self.tails.lost += tails.lost;
        self.tails.cut += tails.cut;
        self.copies += copies;
        self.changes.0 += changes.0;
        self.changes.1 += changes.1;
        self.changes.2 += changes.2;
    }
}

/// See the head of this file.
pub(crate) struct World {
    pub(crate) now: Duration,
    pub(crate) queue: BinaryHeap<Reverse<(Duration, u64, Event)>>,
    planned: u64,
    pub(crate) seats: Vec<Seat>,
    pub(crate) network: Network,
    pub(crate) clients: Clients,
    pub(crate) leases: Leases,
    pub(crate) watchers: Watchers,
    pub(crate) truth: Truth,
    pub(crate) membership: Membership,
    /// States that were asked for because of damage.
    pub(crate) repairs: u64,
    pub(crate) tails: Tails,
    /// Older copies of disks that were put back, and until when nothing else happens because of the last one.
    pub(crate) copies: u64,
    pub(crate) quiet_until: Duration,
    /// Losses of power at a certain write.
    pub(crate) lost: u64,
    pub(crate) plan: Plan,
    struck: usize,
    pub(crate) faults: u64,
    stopped: u64,
    trace: u64,
    pub(crate) seed: u64,
    pub(crate) transfers: Vec<Transfer>,
    pub(crate) sent: states::Sent,
    pub(crate) story: Story,
    /// What members answer, if a scenario asks.
    pub(crate) heard: Option<Heard>,
}

impl World {
    pub(crate) fn new(plan: Plan) -> Self {
        let seed = plan.seed;
        let mut world = Self {
            now: Duration::ZERO,
            queue: BinaryHeap::new(),
            planned: 0,
            seats: (0..MACHINES).map(|number| Seat::new(seed, number)).collect(),
            network: Network::new(seed),
            clients: Clients::new(&plan),
            leases: Leases::new(seed, plan.lease_clients),
            watchers: Watchers::new(seed, plan.watch_clients),
            truth: Truth::new(),
            membership: Membership::new(seed, plan.members, plan.operators),
            plan,
            repairs: 0,
            tails: Tails::default(),
            copies: 0,
            quiet_until: Duration::ZERO,
            lost: 0,
            struck: 0,
            faults: 0,
            stopped: 0,
            trace: 0,
            seed,
            transfers: Vec::new(),
            sent: states::Sent::default(),
            story: Story::default(),
            heard: None,
        };
        for member in 0..world.plan.members {
            world.seats[member].id = Some(member as u64 + 1);
            let late = world.seats[member].random.below(1_000_000);
            world.plan(Duration::from_micros(late), Event::Restart { member });
        }
        for client in 0..world.plan.clients {
            world.plan(Duration::from_secs(1), Event::Client { client });
        }
        for client in 0..world.plan.lease_clients {
            world.plan(Duration::from_secs(2), Event::LeaseClient { client });
        }
        for client in 0..world.plan.watch_clients {
            world.plan(Duration::from_secs(2), Event::WatchClient { client });
        }
        for operator in 0..world.plan.operators {
            world.plan(Duration::from_secs(4), Event::Operator { operator });
        }
        for blow in world.plan.blows.clone() {
            world.plan_at(blow.at, Event::Fault);
        }
        world.plan(Duration::from_secs(1), Event::Compare);
        world.plan(LOOK_EVERY, Event::StartAdded);
        world.plan(Duration::from_secs(1), Event::AskForRepairs);
        world
    }

    /// Lets the plan happen, and then the cluster heal.
    pub(crate) fn live(&mut self) {
        self.run(self.plan.time);
        self.heal();
    }

    pub(crate) fn trace(&self) -> u64 {
        self.trace
    }

    pub(crate) fn tally(&self) -> Tally {
        let Leases { renewed, revoked, .. } = self.leases;
        Tally {
            runs: 1,
            simulated: self.now,
            faults: self.faults,
            terms: self.truth.terms(),
            asked: self.clients.tally,
            told: self.watchers.told,
            renewed,
            revoked,
            stopped: self.stopped,
            states: self.sent,
            repairs: self.repairs,
            tails: self.tails,
            copies: self.copies,
            changes: (self.membership.made, self.membership.refused, self.membership.transferred),
        }
    }

    /// A member as a person sees it.
    pub(crate) fn shown(&self, at: usize) -> String {
        match (&self.seats[at].member, self.seats[at].id) {
            (Some(member), _) => format!("m{} ({})", member.id, member.shown()),
            (None, Some(id)) => format!("m{id} (away)"),
            (None, None) => format!("machine {at} (free)"),
        }
    }

    /// Tells of a fault.
    pub(crate) fn tell(&mut self, text: impl FnOnce(&Self) -> String) {
        if self.story.is_told {
            let text = text(self);
            self.story.fault(self.now, &text);
        }
    }

    pub(crate) fn plan(&mut self, after: Duration, event: Event) {
        self.plan_at(self.now + after, event);
    }

    pub(crate) fn plan_at(&mut self, at: Duration, event: Event) {
        self.planned += 1;
        self.queue.push(Reverse((at.max(self.now), self.planned, event)));
    }

    /// Lets `time` pass.
    pub(crate) fn run(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(Reverse((at, _, _))) = self.queue.peek()
            && *at <= until
        {
            let Some(Reverse((at, number, event))) = self.queue.pop() else { break };
            (self.now, self.story.now) = (at, at);
            self.seats.iter().for_each(|seat| seat.pass(at));
            self.mark(at, number);
            self.happen(event);
        }
    }

    /// Adds an event to the trace. What it is follows from its number and what was before.
    fn mark(&mut self, at: Duration, number: u64) {
        let applied: u64 = self.seats.iter().map(|seat| seat.member.as_ref().map_or(0, Member::applied)).sum();
        for part in [u64::try_from(at.as_nanos()).expect("less than 584 years"), number, applied] {
            self.trace = Random::new(self.trace ^ part).bits();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Tick { member, life } => self.tick(member, life),
            Event::Due { member, life } => self.due(member, life),
            Event::Ended { member, life, operation } => self.ended(member, life, operation),
            Event::Arrives { connection, way } => self.arrives(connection, way),
            Event::Dial { at, life, attempt, to, until } => self.dial((at, life), attempt, to, until),
            Event::Client { client } => self.client(client),
            Event::LeaseClient { client } => self.lease_client(client),
            Event::WatchClient { client } => self.watch_client(client),
            Event::Checkpoint { member, life } => self.checkpoint(member, life),
            Event::Fault => {
                let blow = self.plan.blows[self.struck];
                self.struck += 1;
                self.strike(blow);
            }
            Event::Restart { member } => self.restart(member),
            Event::Operator { operator } => self.operate(operator),
            Event::StartAdded => self.start_added(),
            Event::AskForRepairs => self.ask_for_repairs(),
            Event::Lied { at } => self.lied(at),
            Event::PutBack { at } => self.put_back(at),
            Event::LostTail { at, away, leader_away } => {
                let at = self.lose_tail(at, away);
                self.lose_leader_beside(at, leader_away);
            }
            Event::Leave { member, life } => self.leave(member, life),
            Event::Resume { member } if self.seats[member].paused_until > self.now => {}
            Event::Resume { member } => self.step(member),
            Event::Unblock { .. } if self.is_quiet() => self.plan_at(self.quiet_until, event),
            Event::Unblock { direction, is_reset } => self.unblock(direction, is_reset),
            Event::PowerLossOfAll { seed } => self.lose_all(seed),
            Event::Mend { member } => self.mend(member),
            Event::Compare => self.compare(),
            Event::State { transfer } => self.move_state(transfer),
        }
    }

    /// Whether the member runs in this life; what it is to do waits while it is paused.
    pub(crate) fn is_awake(&mut self, member: usize, event: Event) -> bool {
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
        self.find_out(member);
    }

    fn due(&mut self, member: usize, life: u64) {
        if self.seats[member].life == life && self.is_awake(member, Event::Due { member, life }) {
            self.step(member);
        }
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

    fn client(&mut self, client: usize) {
        self.clients.give_up(client, self.now);
        let occupied = self.occupied();
        let (pause, at) = self.clients.next(client, self.plan.pause_us_max, occupied.len());
        let at = occupied[at];
        self.plan(pause, Event::Client { client });
        if self.clients.waiting[client].is_some() {
            return;
        }
        let seat = &mut self.seats[at];
        if seat.paused_until > self.now {
            return;
        }
        if let Some(member) = &mut seat.member {
            let lease = self.leases.some(client);
            self.clients.ask(client, (at, member), lease, &self.truth, &mut self.story);
            self.step(at);
        }
    }

    fn lease_client(&mut self, client: usize) {
        let pause = self.leases.pause(client);
        self.plan(pause, Event::LeaseClient { client });
        // Mostly who leads, as its client finds it.
        let leads = |seat: &Seat| seat.member.as_ref().is_some_and(Member::is_leader);
        let leaders: Vec<usize> = (0..self.seats.len()).filter(|at| leads(&self.seats[*at])).collect();
        let at = match leaders.len() {
            0 => {
                let occupied = self.occupied();
                occupied[self.leases.below(client, occupied.len())]
            }
            count => leaders[self.leases.below(client, count)],
        };
        if self.seats[at].paused_until > self.now {
            return;
        }
        if let Some(member) = &mut self.seats[at].member {
            self.leases.ask(client, member, &mut self.story);
            self.step(at);
        }
    }

    fn watch_client(&mut self, client: usize) {
        let pause = self.watchers.pause(client);
        self.plan(pause, Event::WatchClient { client });
        // A watcher would wait on a damaged member for what it cannot read.
        let mut sound = self.occupied();
        sound.retain(|at| self.seats[*at].damage.is_empty());
        let at = self.watchers.wants(client, &sound);
        let seat = &mut self.seats[at];
        if seat.paused_until > self.now {
            return;
        }
        if let Some(member) = &mut seat.member {
            self.watchers.act(client, (at, member), &self.truth, &mut self.story);
            self.step(at);
        }
    }

    fn checkpoint(&mut self, member: usize, life: u64) {
        let event = Event::Checkpoint { member, life };
        if self.seats[member].life != life || !self.is_awake(member, event) {
            return;
        }
        let seat = &mut self.seats[member];
        let loss = seat.loss_in_checkpoint.take_if(|_| seat.kept_until <= self.now);
        if let Some((steps, _)) = loss {
            seat.disks.data.stop_after(seat.disks.data.steps() + steps);
        }
        let done = seat.member.as_mut().expect("it is awake").checkpoint();
        if let Some((_, away)) = loss {
            self.tell(|world| format!("power is lost in a checkpoint of {}", world.shown(member)));
            return self.lose(member, true, away);
        }
        match done {
            _ if seat.disks.are_stopped() => return self.lose_stopped(member),
            Ok(true) => {}
            Ok(false) => self.plan(Duration::from_secs(1), event),
            Err(error) => return self.stops(member, &error),
        }
        self.step(member);
    }

    /// A disk has stopped, because power is lost.
    fn lose_stopped(&mut self, at: usize) {
        self.lost += 1;
        let away = Duration::from_millis(100 + self.seats[at].random.below(3000));
        self.tell(|world| format!("power is lost at a write of {}", world.shown(at)));
        self.lose(at, true, away);
    }

    /// A member stops by itself. It does so only when an operation of its disks has failed. It is started again.
    pub(crate) fn stops(&mut self, at: usize, error: &str) {
        assert!(self.seats[at].is_faulty(), "{} stops: {error}", self.shown(at));
        self.tell(|world| format!("{} stops: {error}", world.shown(at)));
        self.stopped += 1;
        let away = Duration::from_millis(100 + self.seats[at].random.below(3000));
        self.lose(at, false, away);
    }

    /// Lets a member go on, and carries what comes of it.
    pub(crate) fn step(&mut self, at: usize) {
        let Seat { member: Some(member), disks, is_cut, .. } = &mut self.seats[at] else { return };
        member.is_told = self.story.is_told;
        let outcome = match member.run() {
            _ if disks.are_stopped() => return self.lose_stopped(at),
            Ok(outcome) => outcome,
            Err(error) => return self.stops(at, &error),
        };
        let (term, leads) = (member.term(), member.is_leader());
        *is_cut = member.is_cut();
        if leads {
            self.truth.leads(term, member.id);
        }
        if self.seats[at].told != (term, leads) {
            self.seats[at].told = (term, leads);
            let text = self.shown(at);
            self.story.tell(self.now, || format!("{text} is told a new term or role"));
        }
        let Outcome { messages, heard, proposals, reads, renewals, transfers, committed, has_checkpoint, more } =
            outcome;
        heard.into_iter().for_each(|text| self.story.tell(self.now, || text));
        for Committed { index, term, kind, data } in &committed {
            self.membership.committed(*index, *kind, data);
            for request in self.truth.committed(*index, *term, data) {
                self.leases.committed(&request, self.now, &mut self.story);
            }
        }
        for proposal in &proposals {
            if self.membership.answered(proposal) {
                continue;
            }
            self.clients.answered((at, proposal), &mut self.truth, self.now, &mut self.story);
            self.leases.answered(proposal);
        }
        self.transferred(at, transfers);
        renewals.iter().for_each(|renewal| self.leases.renewed(*renewal, self.now, &mut self.story));
        let member = self.seats[at].member.as_ref().unwrap();
        for (context, view) in &reads {
            self.clients.answer_read((*context, view.as_deref()), member, &self.truth, &mut self.story);
        }
        if let Some(heard) = &mut self.heard {
            heard.keep(proposals, reads);
            heard.keep_renewals(&renewals);
        }
        self.check_ready(at);
        self.send(at, messages);
        self.plan_next(at, has_checkpoint, more);
    }

    /// Sends the messages of the member at `at`.
    fn send(&mut self, at: usize, messages: Vec<Message>) {
        let mut others = Vec::new();
        for message in messages {
            self.membership.check_sent(&message);
            // A member that is gone is not sent anything.
            let Some(to) = self.seat_of(message.to) else { continue };
            if message.kind == MessageKind::Snapshot {
                self.send_state(at, to, Some(message));
                continue;
            }
            others.push(message);
        }
        let now = self.seats[at].clock.now();
        if let Some(member) = &mut self.seats[at].member {
            member.links.send(others, now);
        }
        self.act(at);
    }

    /// Plans when the member at `at` goes on.
    fn plan_next(&mut self, at: usize, has_checkpoint: bool, more: bool) {
        self.plan_ends(at);
        if has_checkpoint {
            let mut late = Duration::from_micros(500 + self.seats[at].random.below(200_000));
            if self.seats[at].store_slow_until > self.now {
                late *= 50;
            }
            self.plan(late, Event::Checkpoint { member: at, life: self.seats[at].life });
        }
        let seat = &mut self.seats[at];
        let is_applying = more && seat.member.as_ref().is_some_and(Member::is_applying);
        if let Some(away) = seat.loss_in_apply.take_if(|_| is_applying) {
            self.tell(|world| format!("power is lost while {} applies", world.shown(at)));
            return self.lose(at, true, away);
        }
        self.plan_due(at);
        if more {
            let most = if self.seats[at].steps.at_once_max < SLOW_BELOW { 30_000 } else { 400 };
            let late = Duration::from_micros(20 + self.seats[at].random.below(most));
            self.plan(late, Event::Resume { member: at });
        }
    }

    /// Plans when the member goes on by itself, if that is before its next tick.
    fn plan_due(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        let Some(member) = &seat.member else { return };
        // By a clock that is slow, it takes longer.
        let left = member.due().saturating_sub(seat.clock.now());
        let left = left + left * u32::try_from(2 * DRIFT_MAX).unwrap() / MILLION;
        let due_at = self.now + left;
        if left > HEARTBEAT || (seat.due_at > self.now && seat.due_at <= due_at) {
            return;
        }
        seat.due_at = due_at;
        let life = seat.life;
        self.plan_at(due_at, Event::Due { member: at, life });
    }

    /// A member that says that it is ready has all that anybody was told of before its start; but one that cannot read
    /// its disk serves what it has.
    fn check_ready(&mut self, at: usize) {
        let seat = &mut self.seats[at];
        let Some(member) = seat.member.as_ref().filter(|member| member.is_ready() && !member.stands_still()) else {
            return;
        };
        let (floor, revision) = (seat.told_before, member.shared.view.load().revision());
        assert!(revision >= floor, "member {} is ready at {revision}, {floor} was known before its start", member.id);
    }

    /// Plans the ends of the log's operations.
    fn plan_ends(&mut self, at: usize) {
        for flight in self.seats[at].disks.log.in_flight() {
            if !self.seats[at].planned.insert(flight.number) {
                continue;
            }
            let mut late = Duration::from_micros(50 + self.seats[at].random.below(2950));
            if self.seats[at].slow_until > self.now {
                late *= 50;
            }
            let (member, life) = (at, self.seats[at].life);
            self.plan(late, Event::Ended { member, life, operation: flight.number });
        }
    }

    pub(crate) fn restart(&mut self, at: usize) {
        let members = self.plan.members as u64;
        let seat = &mut self.seats[at];
        let Some(id) = seat.id.filter(|_| seat.member.is_none()) else { return };
        let setting = Setting { members, steps: seat.steps, tick: seat.tick };
        seat.life += 1;
        (seat.is_leaving, seat.is_off) = (false, false);
        seat.planned.clear();
        seat.told_before = self.clients.told();
        if std::mem::take(&mut seat.has_lost_time) {
            seat.clock.set_wall(0);
        }
        match Member::start(id, setting, seat.disks.clone(), seat.clock.clone()) {
            Ok(member) => {
                self.tails.cut += u64::from(member.is_cut());
                self.tails.is_losing &= self.tails.lost_at != Some(at);
                (seat.member, seat.has_run) = (Some(member), true);
            }
            Err(_) if seat.disks.are_stopped() => {
                (seat.disks, self.lost) = (seat.crashed(), self.lost + 1);
                return self.plan(Duration::from_secs(1), Event::Restart { member: at });
            }
            Err(error) => {
                // A full disk keeps nobody from starting, but who needs a new log on it.
                let needs_log = !seat.has_run || self.tails.lost_at == Some(at);
                let is_full = needs_log && error.contains("no space left");
                assert!(is_full || seat.is_faulty(), "member {id} does not start: {error}");
                seat.may_stop = false;
                seat.disks = seat.disks.kill();
                self.undo_damage(at);
                return self.plan(Duration::from_secs(1), Event::Restart { member: at });
            }
        }
        let (life, first) = (seat.life, seat.tick);
        self.know_others(at);
        let text = self.shown(at);
        self.story.tell(self.now, || format!("{text} starts"));
        self.plan(first, Event::Tick { member: at, life });
        self.step(at);
    }

    /// The machine loses power, or its process is killed. It comes back after `away`.
    pub(crate) fn lose(&mut self, at: usize, is_power: bool, away: Duration) {
        let now = self.now;
        let seat = &mut self.seats[at];
        if seat.kept_until > now || seat.member.take().is_none() {
            return;
        }
        seat.disks = if is_power { seat.crashed() } else { seat.disks.kill() };
        seat.has_lost_time |= is_power && seat.has_no_battery;
        seat.life += 1;
        (seat.paused_until, seat.hung_until, seat.due_at) = Default::default();
        seat.may_stop = false;
        self.seats[at].is_off = is_power;
        self.clients.lost(at);
        self.watchers.lost(at);
        if !is_power {
            self.end_links_of(at);
        }
        self.plan_at(now + away, Event::Restart { member: at });
    }

    /// The machine at `at` has no member any more.
    pub(crate) fn free(&mut self, at: usize) {
        self.tails.is_losing &= self.tails.lost_at != Some(at);
        let seat = &mut self.seats[at];
        (seat.id, seat.member, seat.has_run) = (None, None, false);
        seat.disks = Disks::new(seat.random.bits());
        seat.life += 1;
        (seat.paused_until, seat.hung_until, seat.due_at) = Default::default();
        (seat.may_stop, seat.loss_in_checkpoint, seat.loss_in_apply) = Default::default();
        seat.kept_until = Duration::ZERO;
        seat.is_cut = false;
        seat.damage.clear();
        seat.copy = None;
        self.clients.lost(at);
        self.watchers.lost(at);
        self.end_links_of(at);
    }

    /// Members that have applied the same hold the same.
    pub(crate) fn compare(&mut self) {
        self.plan(Duration::from_secs(3), Event::Compare);
        let everything = pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..Default::default() };
        let mut known: Vec<(u64, (u32, i64))> = Vec::new();
        for member in self.seats.iter().filter_map(|seat| seat.member.as_ref()) {
            let (applied, Some(hash)) = (member.applied(), member.hash()) else { continue };
            match known.iter().find(|(other, _)| *other == applied) {
                Some((_, other)) => assert_eq!(*other, hash, "member {} at entry {applied}", member.id),
                None => known.push((applied, hash)),
            }
            if let Some(Ok((revision, found))) = member.look(&member.shared.view.load(), &everything) {
                let wanted = self.truth.model.range(&everything, revision);
                assert_eq!(found, wanted, "all keys of member {} at {revision}", member.id);
            }
        }
        self.check_members();
    }

    /// Whether nothing passes from one member to another.
    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.network.is_blocked(from, to)
    }

    /// The position of the member that leads the highest term.
    pub(crate) fn leader(&self) -> Option<usize> {
        let members = self.seats.iter().enumerate().filter_map(|(at, seat)| Some((at, seat.member.as_ref()?)));
        let leaders = members.filter(|(_, member)| member.is_leader());
        leaders.max_by_key(|(_, member)| member.term()).map(|(at, _)| at)
    }
}
