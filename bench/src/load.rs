//! One thread of load: its connections, its clock, and when each request leaves.
//!
//! - Closed loop (rate 0): each client has one request in flight, and its latency begins when it is sent.
//! - Open loop: requests leave when the `Schedule` says, or as soon after as the connection allows; their latency
//!   begins at the intended time. Request `i` belongs to connection `i mod conns`, so that no queue is kept. A
//!   connection has at most `OUTSTANDING_MAX` requests in flight; later ones wait with their intended time.
//! - Phases: connect all, prepare (grant leases, create watchers), wait for the common start, run, drain. Only the run
//!   is measured.
//! - A request ends well, with an error of the server, or with one of ours (connection lost, no reply within
//!   `timeout_ns`, not sent before the end). A lost connection is replaced with back-off, and given up after
//!   `DOWN_NS_MAX`.
//!
//! The loop is epoll and one timer: a runtime's tasks and wakers would cost more than a request does here.

use std::{
    collections::VecDeque,
    os::fd::OwnedFd,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{SyncSender, TrySendError},
    },
};

use rustix::{
    buffer::spare_capacity,
    event::epoll,
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags},
};

use crate::{
    client::{Connection, Endpoint},
    clock,
    error::Error,
    hpack::Path,
    http2::Opening,
    lane::{Call, Fanout, Intake, Lane, LeaseSlot, Listing, Pending, Preparation, Step},
    report::Tally,
    schedule::{Schedule, TICK_NS_MAX},
    workload::{self, Kind, Requests, Workload},
};

/// Requests in flight on one connection in an open loop.
const OUTSTANDING_MAX: usize = 1000;
/// Longest wait for all connections, beside the time that each takes.
const CONNECT_NS_MAX: u64 = 5_000_000_000;
/// What the handshakes of one connection take on both sides of a small host.
const CONNECT_EACH_NS: u64 = 5_000_000;
const PREPARE_NS_MAX: u64 = 30_000_000_000;
const DOWN_NS_MAX: u64 = 30_000_000_000;
const SECOND_NS: u64 = 1_000_000_000;
const SCRATCH_BYTES: usize = 256 << 10;
const EVENTS_MAX: usize = 1024;
const TIMER_TOKEN: u64 = u64::MAX;
/// In place of the common start time: another thread could not get ready.
pub(crate) const START_NEVER: u64 = u64::MAX;

/// What is to be done, the same for all threads.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) endpoints: Vec<Endpoint>,
    pub(crate) conns: usize,
    pub(crate) clients: usize,
    pub(crate) threads: usize,
    /// `u64::MAX` when only the duration bounds the run.
    pub(crate) total: u64,
    pub(crate) duration_ns: Option<u64>,
    /// Requests a second; 0 for a closed loop.
    pub(crate) rate: u64,
    pub(crate) timeout_ns: u64,
    /// Requests after which a connection is replaced.
    pub(crate) calls_per_conn: u32,
    pub(crate) workload: Workload,
}

/// What a thread tells the one that reports.
pub(crate) enum Report {
    Ready,
    Second(Tally),
    Finished { tally: Tally, end_ns: u64 },
    Failed(Error),
}

/// Where requests come from.
enum Source {
    Idle,
    Closed { taken: u64, count: u64, end_ns: u64 },
    Open { schedule: Schedule, due: u64, released: u64 },
}

/// A request's turn.
struct Due {
    sequence: u64,
    intended_ns: u64,
    client: u32,
}

/// A connection through all its sockets, and its share of the load.
struct Channel {
    connection: Connection<Call>,
    lane: Lane,
}

struct Loader<'a> {
    plan: &'a Plan,
    thread: usize,
    epoll: OwnedFd,
    timer: OwnedFd,
    channels: Vec<Channel>,
    source: Source,
    requests: Requests,
    tally: Tally,
    preparation: Preparation,
    fanout: Fanout,
    last_end_ns: u64,
    chore_at_ns: u64,
    second_at_ns: u64,
    scratch: Vec<u8>,
    events: Vec<epoll::Event>,
}

/// Runs thread `thread` of the plan to its end and reports how it went.
pub(crate) fn run(plan: &Plan, thread: usize, start_ns: &AtomicU64, reports: &SyncSender<Report>) {
    let outcome = run_phases(plan, thread, start_ns, reports);
    let report = match outcome {
        Ok(Some((tally, end_ns))) => Report::Finished { tally, end_ns },
        Ok(None) => return,
        Err(error) => Report::Failed(error),
    };
    reports.send(report).expect("the reporting thread waits for every thread");
}

fn run_phases(
    plan: &Plan,
    thread: usize,
    start_ns: &AtomicU64,
    reports: &SyncSender<Report>,
) -> Result<Option<(Tally, u64)>, Error> {
    let mut loader = Loader::new(plan, thread)?;
    loader.connect_all()?;
    loader.prepare()?;
    reports.send(Report::Ready).expect("the reporting thread waits for every thread");
    let start_ns = loop {
        match start_ns.load(Ordering::Acquire) {
            0 => loader.turn()?,
            START_NEVER => return Ok(None),
            start_ns => break start_ns,
        }
    };
    loader.start(start_ns)?;
    while !loader.is_finished() {
        loader.turn()?;
        loader.report_second(reports);
    }
    loader.settle();
    Ok(Some((loader.tally, loader.last_end_ns)))
}

impl<'a> Loader<'a> {
    fn new(plan: &'a Plan, thread: usize) -> Result<Loader<'a>, Error> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(Error::system("epoll_create"))?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer =
            rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).map_err(Error::system("timerfd_create"))?;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER_TOKEN), epoll::EventFlags::IN)
            .map_err(Error::system("epoll_ctl"))?;
        let now_ns = clock::now_ns();
        let mut channels = Vec::new();
        for position in (thread..plan.conns).step_by(plan.threads) {
            let token = u64::try_from(channels.len()).expect("a count of connections fits");
            let endpoint = plan.endpoints[position % plan.endpoints.len()].clone();
            let clients = plan.clients / plan.conns + usize::from(position < plan.clients % plan.conns);
            let clients = u32::try_from(clients).expect("checked with the flags");
            let position = u64::try_from(position).expect("a count of connections fits");
            let connection = Connection::new(endpoint, plan.calls_per_conn, token, now_ns);
            channels.push(Channel { connection, lane: Lane::new(position, clients) });
        }
        let loader = Loader {
            plan,
            thread,
            epoll,
            timer,
            channels,
            source: Source::Idle,
            requests: Requests::new(&plan.workload, u64::try_from(thread).expect("a count of threads fits")),
            tally: Tally::new(plan.workload.classes().len()),
            preparation: Preparation::default(),
            fanout: Fanout::default(),
            last_end_ns: now_ns,
            chore_at_ns: now_ns,
            second_at_ns: u64::MAX,
            scratch: vec![0; SCRATCH_BYTES],
            events: Vec::with_capacity(EVENTS_MAX),
        };
        loader.arm_timer(now_ns + TICK_NS_MAX, TICK_NS_MAX)?;
        Ok(loader)
    }

    fn arm_timer(&self, first_ns: u64, interval_ns: u64) -> Result<(), Error> {
        let times = Itimerspec { it_interval: clock::timespec(interval_ns), it_value: clock::timespec(first_ns) };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &times)
            .map_err(Error::system("timerfd_settime"))?;
        Ok(())
    }

    /// Waits until every connection's session is ready. Attempts are repeated, for the server may just be starting.
    fn connect_all(&mut self) -> Result<(), Error> {
        let deadline_ns = clock::now_ns() + CONNECT_NS_MAX + CONNECT_EACH_NS * as_u64(self.channels.len());
        for position in 0..self.channels.len() {
            self.reconnect(position, clock::now_ns());
        }
        loop {
            let waiting = self.channels.iter().find(|channel| channel.connection.down_since_ns.is_some());
            let Some(waiting) = waiting else { break };
            if clock::now_ns() > deadline_ns {
                let failure = waiting.connection.failure();
                let reason = failure.map_or_else(
                    || format!("{}: no HTTP/2 settings came", waiting.connection.endpoint().authority),
                    str::to_owned,
                );
                return Err(Error::Setup { what: "connecting", reason });
            }
            self.turn()?;
        }
        // Attempts that failed before the run are not its errors.
        self.tally.clear();
        Ok(())
    }

    /// Grants the leases or creates the watchers the load needs.
    fn prepare(&mut self) -> Result<(), Error> {
        let deadline_ns = clock::now_ns() + PREPARE_NS_MAX;
        match self.plan.workload.kind {
            Kind::Lease { ttl_s, .. } => self.grant_leases(ttl_s),
            Kind::Watch { streams, watchers_per_stream, keys, wants_prev_kv } => {
                self.create_watchers(streams, watchers_per_stream, keys, wants_prev_kv);
            }
            Kind::Put | Kind::Txn { .. } | Kind::Range(_) | Kind::Mixed { .. } | Kind::List { .. } => {}
        }
        for position in 0..self.channels.len() {
            self.flush(position, clock::now_ns());
        }
        while self.preparation.missing > 0 {
            if let Some(reason) = self.preparation.failure.take() {
                return Err(Error::Setup { what: "preparing leases or watchers", reason });
            }
            if clock::now_ns() > deadline_ns {
                let reason = format!("{} not answered in time", self.preparation.missing);
                return Err(Error::Setup { what: "preparing leases or watchers", reason });
            }
            self.turn()?;
        }
        Ok(())
    }

    fn grant_leases(&mut self, ttl_s: i64) {
        let message = workload::grant_message(ttl_s);
        let opening = Opening { path: Path::LeaseGrant, is_unary: true, keeps_messages: true };
        let now_ns = clock::now_ns();
        for channel in &mut self.channels {
            let Some(session) = channel.connection.session() else { continue };
            let clients = u32::try_from(channel.lane.idle.len()).expect("made from a u32");
            channel.lane.leases = vec![LeaseSlot::default(); channel.lane.idle.len()];
            for client in 0..clients {
                session.open(
                    opening,
                    &message,
                    Call { intended_ns: now_ns, sent_ns: now_ns, client, step: Step::Grant },
                );
            }
            self.preparation.missing += u64::from(clients);
        }
    }

    fn create_watchers(&mut self, streams: usize, watchers_per_stream: usize, keys: u64, wants_prev_kv: bool) {
        let opening = Opening { path: Path::Watch, is_unary: false, keeps_messages: true };
        let now_ns = clock::now_ns();
        assert_eq!(self.plan.threads, 1, "events are counted by the thread that puts");
        let channels_count = self.channels.len();
        let mut number = 0;
        for stream in 0..streams {
            let Some(session) = self.channels[stream % channels_count].connection.session() else { continue };
            let mut id = None;
            for _ in 0..watchers_per_stream {
                let message = workload::watch_message(self.plan.workload.keys, number % keys, wants_prev_kv);
                number += 1;
                if let Some(id) = id {
                    let is_open = session.send(id, &message, false);
                    assert!(is_open, "nothing was received since it was opened");
                } else {
                    let call = Call { intended_ns: now_ns, sent_ns: now_ns, client: 0, step: Step::Watch };
                    id = Some(session.open(opening, &message, call));
                }
            }
        }
        self.preparation.missing = number;
    }

    fn start(&mut self, start_ns: u64) -> Result<(), Error> {
        let plan = self.plan;
        let end_ns = plan.duration_ns.map_or(u64::MAX, |duration_ns| start_ns.saturating_add(duration_ns));
        self.fanout.start_ns = start_ns;
        self.last_end_ns = start_ns;
        self.second_at_ns = start_ns + SECOND_NS;
        if plan.rate > 0 {
            let schedule = Schedule::new(start_ns, plan.rate, plan.total, plan.duration_ns);
            self.source = Source::Open { schedule, due: 0, released: 0 };
            return self.arm_timer(start_ns, schedule.tick_ns());
        }
        self.arm_timer(start_ns, TICK_NS_MAX)?;
        while clock::now_ns() < start_ns {
            self.turn()?;
        }
        let (thread, threads) = (as_u64(self.thread), as_u64(plan.threads));
        let count = if plan.total == u64::MAX { u64::MAX } else { plan.total.saturating_sub(thread).div_ceil(threads) };
        self.source = Source::Closed { taken: 0, count, end_ns };
        for position in 0..self.channels.len() {
            self.fill(position, clock::now_ns());
        }
        Ok(())
    }

    /// Waits for events and handles them.
    fn turn(&mut self) -> Result<(), Error> {
        let mut events = std::mem::take(&mut self.events);
        events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::system("epoll_wait")(errno)),
        }
        for event in &events {
            let (token, flags) = (event.data.u64(), event.flags);
            if token == TIMER_TOKEN {
                self.take_tick()?;
                continue;
            }
            let position = usize::try_from(token).expect("tokens are positions");
            self.on_event(position, flags, clock::now_ns());
        }
        self.events = events;
        let now_ns = clock::now_ns();
        self.release(now_ns);
        if now_ns >= self.chore_at_ns {
            self.chore_at_ns = now_ns + TICK_NS_MAX;
            self.do_chores(now_ns);
        }
        Ok(())
    }

    /// Reads the timer: only a read makes the kernel arm a periodic timer again.
    fn take_tick(&self) -> Result<(), Error> {
        let mut expirations = [0; 8];
        match rustix::io::read(&self.timer, &mut expirations[..]) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::system("timer read")(errno)),
        }
    }

    fn on_event(&mut self, position: usize, flags: epoll::EventFlags, now_ns: u64) {
        let (connection, mut intake, scratch) = self.parts(position, now_ns);
        if let Err(error) = connection.on_ready(flags, scratch, &mut intake) {
            self.fail(position, &error, now_ns);
            return;
        }
        self.fill(position, now_ns);
        let channel = &mut self.channels[position];
        let is_left = channel.connection.session().is_some_and(|session| session.is_spent() && session.calls() == 0);
        if is_left {
            channel.connection.retire(now_ns);
            self.reconnect(position, now_ns);
        }
    }

    /// A connection, who takes what arrives on it, and the buffer it is read into.
    fn parts(&mut self, position: usize, now_ns: u64) -> (&mut Connection<Call>, Intake<'_>, &mut [u8]) {
        let channel = &mut self.channels[position];
        let intake = Intake {
            lane: &mut channel.lane,
            tally: &mut self.tally,
            preparation: &mut self.preparation,
            fanout: &mut self.fanout,
            last_end_ns: &mut self.last_end_ns,
            now_ns,
            is_closed_loop: self.plan.rate == 0,
        };
        (&mut channel.connection, intake, &mut self.scratch)
    }

    fn fail(&mut self, position: usize, error: &Error, now_ns: u64) {
        let reason = error.to_string();
        let (connection, mut intake, _) = self.parts(position, now_ns);
        connection.fail(&reason, now_ns, &mut intake);
        self.tally.error(&format!("connection: {reason}"), 1);
        for slot in &mut self.channels[position].lane.leases {
            slot.stream = None;
        }
    }

    fn reconnect(&mut self, position: usize, now_ns: u64) {
        if let Err(error) = self.channels[position].connection.connect(&self.epoll) {
            self.fail(position, &error, now_ns);
        }
    }

    fn flush(&mut self, position: usize, now_ns: u64) {
        if let Err(error) = self.channels[position].connection.flush(&self.epoll) {
            self.fail(position, &error, now_ns);
        }
    }

    /// Lets the connections send whose requests have become due since the last time.
    fn release(&mut self, now_ns: u64) {
        let Source::Open { schedule, due, released } = &mut self.source else { return };
        *due = schedule.due(now_ns);
        let (conns, threads) = (as_u64(self.plan.conns), as_u64(self.plan.threads));
        // More than one each: every connection has its turn, once.
        let (first, last) = ((*released).max(due.saturating_sub(conns)), *due);
        *released = last;
        for i in first..last {
            let position = i % conns;
            if position % threads == as_u64(self.thread) {
                let position = usize::try_from(position / threads).expect("a count of connections fits");
                self.fill(position, now_ns);
            }
        }
    }

    /// Sends what is due on a connection and what its session owes, in one write.
    fn fill(&mut self, position: usize, now_ns: u64) {
        loop {
            let channel = &mut self.channels[position];
            if !channel.connection.session().is_some_and(|session| session.can_open()) {
                break;
            }
            if let Some(listing) = channel.lane.resumable.pop() {
                self.send_page(position, Box::new(listing), now_ns);
                continue;
            }
            if channel.lane.in_flight >= OUTSTANDING_MAX && self.plan.rate > 0 {
                break;
            }
            let Some(due) = self.source.take(&mut channel.lane, self.plan, self.thread, now_ns) else { break };
            if self.plan.rate > 0 {
                self.tally.lag.record(now_ns.saturating_sub(due.intended_ns));
            }
            self.send(position, &due, now_ns);
        }
        self.flush(position, now_ns);
    }

    fn send(&mut self, position: usize, due: &Due, now_ns: u64) {
        match &self.plan.workload.kind {
            Kind::List { prefix, .. } => {
                let from = if prefix.is_empty() { vec![0] } else { prefix.clone() };
                let listing = Box::new(Listing::new(from, due.intended_ns, due.client));
                self.send_page(position, listing, now_ns);
            }
            Kind::Lease { is_once, .. } => self.send_keep_alive(position, due, now_ns, *is_once),
            Kind::Watch { streams, watchers_per_stream, keys, .. } => {
                let watchers = as_u64(streams * watchers_per_stream);
                let (each, rest, keys) = (watchers / keys, watchers % keys, *keys);
                self.send_single(
                    position,
                    due,
                    now_ns,
                    |key| if key < keys { each + u64::from(key < rest) } else { 0 },
                );
            }
            Kind::Put | Kind::Txn { .. } | Kind::Range(_) | Kind::Mixed { .. } => {
                self.send_single(position, due, now_ns, |_| 0);
            }
        }
    }

    fn send_single(&mut self, position: usize, due: &Due, now_ns: u64, watchers: impl Fn(u64) -> u64) {
        let request = self.requests.next(due.sequence, due.intended_ns);
        let step = Step::Single { class: request.class, watchers: watchers(request.key) };
        let call = Call { intended_ns: due.intended_ns, sent_ns: now_ns, client: due.client, step };
        let opening = Opening { path: request.path, is_unary: true, keeps_messages: false };
        let channel = &mut self.channels[position];
        let session = channel.connection.session().expect("asked before the request was taken");
        session.open(opening, request.message, call);
        channel.lane.in_flight += 1;
    }

    fn send_page(&mut self, position: usize, listing: Box<Listing>, now_ns: u64) {
        let Kind::List { prefix, page_keys, is_serializable } = &self.plan.workload.kind else {
            unreachable!("only a list turns pages");
        };
        let message = workload::page_message(prefix, &listing.from, listing.revision, *page_keys, *is_serializable);
        let opening = Opening { path: Path::Range, is_unary: true, keeps_messages: true };
        let (intended_ns, client) = (listing.intended_ns, listing.client);
        let call = Call { intended_ns, sent_ns: now_ns, client, step: Step::Page(listing) };
        let channel = &mut self.channels[position];
        let session = channel.connection.session().expect("asked before the request was taken");
        session.open(opening, &message, call);
        channel.lane.in_flight += 1;
    }

    fn send_keep_alive(&mut self, position: usize, due: &Due, now_ns: u64, is_once: bool) {
        let channel = &mut self.channels[position];
        let lane = &mut channel.lane;
        let session = channel.connection.session().expect("asked before the request was taken");
        let client = if self.plan.rate == 0 {
            due.client
        } else {
            // In an open loop the leases of a connection take turns.
            lane.lease_next = (lane.lease_next + 1) % lane.leases.len();
            u32::try_from(lane.lease_next).expect("made from a u32")
        };
        let slot = &mut lane.leases[usize::try_from(client).expect("a client count fits")];
        let message = workload::keep_alive_message(slot.lease);
        lane.in_flight += 1;
        let call = |step| Call { intended_ns: due.intended_ns, sent_ns: now_ns, client, step };
        let opening = Opening { path: Path::LeaseKeepAlive, is_unary: is_once, keeps_messages: true };
        if is_once {
            session.open(opening, &message, call(Step::KeepAliveOnce { ttl_s: 0 }));
            return;
        }
        let pending = Pending { intended_ns: due.intended_ns, sent_ns: now_ns, client };
        if let Some(id) = slot.stream
            && let Some(Call { step: Step::KeepAlives { pending: queue }, .. }) = session.call_mut(id)
        {
            queue.push_back(pending);
            let is_open = session.send(id, &message, false);
            assert!(is_open, "the call was just found");
            return;
        }
        let step = Step::KeepAlives { pending: VecDeque::from([pending]) };
        slot.stream = Some(session.open(opening, &message, call(step)));
    }

    /// Replaces lost connections and, once a second, gives up on what takes too long.
    fn do_chores(&mut self, now_ns: u64) {
        for position in 0..self.channels.len() {
            let channel = &mut self.channels[position];
            if channel.lane.is_given_up {
                continue;
            }
            let down_ns = channel.connection.down_since_ns.map_or(0, |since_ns| now_ns.saturating_sub(since_ns));
            if down_ns > DOWN_NS_MAX {
                channel.lane.is_given_up = true;
                self.fail(position, &Error::Setup { what: "given up", reason: "down for too long".to_owned() }, now_ns);
            } else if channel.connection.is_down() && channel.connection.retry_at_ns <= now_ns {
                self.reconnect(position, now_ns);
            }
        }
    }

    /// Once a second: expires calls, sets the timer right again and hands over what was seen.
    fn report_second(&mut self, reports: &SyncSender<Report>) {
        let now_ns = clock::now_ns();
        if now_ns < self.second_at_ns {
            return;
        }
        self.second_at_ns += SECOND_NS;
        self.expire(now_ns);
        if let Source::Open { schedule, due, .. } = &self.source {
            // Ticks are rounded to nanoseconds; without this they would drift away from the intended times.
            let (first_ns, tick_ns) = (schedule.intended_ns(*due), schedule.tick_ns());
            if let Err(error) = self.arm_timer(first_ns, tick_ns) {
                self.tally.error(&error.to_string(), 1);
            }
        }
        let fresh = Tally::new(self.tally.latencies.len());
        let second = std::mem::replace(&mut self.tally, fresh);
        match reports.try_send(Report::Second(second)) {
            Ok(()) => {}
            // The terminal is slow: the tally grows until it is taken.
            Err(TrySendError::Full(Report::Second(second)) | TrySendError::Disconnected(Report::Second(second))) => {
                self.tally.merge(&second);
            }
            Err(_) => unreachable!("what comes back is what was sent"),
        }
    }

    fn expire(&mut self, now_ns: u64) {
        let timeout_ns = self.plan.timeout_ns;
        let is_old = |sent_ns: u64| now_ns.saturating_sub(sent_ns) > timeout_ns;
        for position in 0..self.channels.len() {
            let (connection, mut intake, _) = self.parts(position, now_ns);
            let Some(session) = connection.session() else { continue };
            let is_late = |call: &Call| match &call.step {
                Step::Single { .. } | Step::Page(_) | Step::KeepAliveOnce { .. } | Step::Grant => is_old(call.sent_ns),
                Step::KeepAlives { pending } => pending.front().is_some_and(|first| is_old(first.sent_ns)),
                Step::Watch => false,
            };
            session.expire(is_late, &mut intake);
            self.fill(position, now_ns);
        }
    }

    /// Whether nothing more will be sent or is waited for.
    fn is_finished(&self) -> bool {
        let now_ns = clock::now_ns();
        let run_end_ns = self.plan.duration_ns.map(|duration_ns| self.fanout.start_ns.saturating_add(duration_ns));
        if run_end_ns.is_some_and(|end_ns| now_ns > end_ns.saturating_add(self.plan.timeout_ns)) {
            return true;
        }
        let is_usable = |channel: &Channel| !channel.lane.is_given_up;
        if !self.channels.iter().any(is_usable) {
            return true;
        }
        let is_idle = |channel: &Channel| {
            let lane = &channel.lane;
            let is_served = lane.in_flight == 0 && lane.resumable.is_empty();
            lane.is_given_up || is_served && self.source.unsent(lane, self.plan, now_ns) == 0
        };
        if !self.channels.iter().all(is_idle) {
            return false;
        }
        let is_waiting_for_events = self.fanout.delivered < self.fanout.expected;
        !is_waiting_for_events || now_ns.saturating_sub(self.last_end_ns) > self.plan.timeout_ns
    }

    /// Accounts for what never came or never left.
    fn settle(&mut self) {
        let now_ns = clock::now_ns();
        let mut unsent = 0;
        for position in 0..self.channels.len() {
            let (connection, mut intake, _) = self.parts(position, now_ns);
            if let Some(session) = connection.session() {
                let is_request = |call: &Call| !matches!(call.step, Step::Watch | Step::Grant);
                session.expire(
                    |call| match &call.step {
                        Step::KeepAlives { pending } => !pending.is_empty(),
                        _ => is_request(call),
                    },
                    &mut intake,
                );
            }
            unsent += as_u64(self.channels[position].lane.resumable.len());
            if matches!(self.source, Source::Open { .. }) {
                unsent += self.source.unsent(&self.channels[position].lane, self.plan, now_ns);
            }
        }
        if let Source::Closed { taken, count, .. } = self.source
            && self.plan.duration_ns.is_none()
        {
            unsent += count - taken;
        }
        self.tally.error("not sent before the end of the run", unsent);
        let missing = self.fanout.expected.saturating_sub(self.fanout.delivered);
        self.tally.error("event of an acknowledged put did not come", missing);
    }
}

impl Source {
    /// The next request for a lane, if one is due.
    fn take(&mut self, lane: &mut Lane, plan: &Plan, thread: usize, now_ns: u64) -> Option<Due> {
        match self {
            Source::Idle => None,
            Source::Closed { taken, count, end_ns } => {
                if *taken == *count || now_ns >= *end_ns {
                    return None;
                }
                let client = lane.idle.pop()?;
                let sequence = as_u64(thread) + *taken * as_u64(plan.threads);
                *taken += 1;
                Some(Due { sequence, intended_ns: now_ns, client })
            }
            Source::Open { schedule, due, .. } => {
                let sequence = lane.position + lane.taken * as_u64(plan.conns);
                if sequence >= *due {
                    return None;
                }
                lane.taken += 1;
                Some(Due { sequence, intended_ns: schedule.intended_ns(sequence), client: 0 })
            }
        }
    }

    /// How many requests a lane has still to send; of a closed loop, whether there are any.
    fn unsent(&self, lane: &Lane, plan: &Plan, now_ns: u64) -> u64 {
        match self {
            Source::Idle => 0,
            Source::Closed { taken, count, end_ns } => u64::from(taken < count && now_ns < *end_ns),
            Source::Open { schedule, .. } => {
                let sequence = lane.position + lane.taken * as_u64(plan.conns);
                schedule.count().saturating_sub(sequence).div_ceil(as_u64(plan.conns))
            }
        }
    }
}

fn as_u64(count: usize) -> u64 {
    u64::try_from(count).expect("usize is at most 64 bits")
}
