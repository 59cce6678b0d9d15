//! The known correctness bugs of etcd, one scenario for each: the steps that led to it there, and what must come of
//! them here.
//!
//! A scenario has a world without clients of its own. It asks members itself, one request after the other, and decides
//! what happens to them. All other checks of the world hold, too: one entry at each index, answers as the model has
//! them. In the end the cluster heals, and all members hold the same.
//!
//! - `crashes`: power is lost. `installs`: a member takes a state in place of log entries.
//! - `long`: one request of very many keys. `cuts`: logs that lose their end, or more.
//! - `watches`: what watchers are told. `requests`: what requests are answered.
//! - `repairs`: pages are damaged.
//!
//! Of each test, the first line says which issue or pull request of etcd it is; what etcd did follows.
//! **Source** etcd main of 2026-08-20, `tests/robustness/README.md`, and the issues.

mod crashes;
mod cuts;
mod installs;
mod long;
mod repairs;
mod requests;
mod watches;

use std::time::Duration;

use bytes::Bytes;
use proto::{
    etcdserverpb::{self as pb, request_op, watch_request::RequestUnion},
    internal::Request,
};
use server::{apply::outcome::Outcome, clock::Clock, error::Error, watch::stream::StreamId};

use super::{
    faults::Fault,
    heard::Heard,
    member::Member,
    network::Direction,
    plan::Plan,
    watchers::next_message,
    world::{Event, World},
};

/// Between two looks at what a scenario waits for.
const MOMENT: Duration = Duration::from_micros(100);
/// What a scenario waits for comes within this time.
const LONG: Duration = Duration::from_secs(30);
/// A stream with this pause tells of progress only when it is asked.
const NEVER: Duration = Duration::from_secs(600);
/// Entries of a burst of long values, which are enough for a checkpoint.
const BURST_ENTRIES: usize = 60;
/// After so many bursts, a log that keeps little does not reach back to what was before them.
const OUTRUN_BURSTS: usize = 4;

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn put(key: &str, value: impl Into<Bytes>) -> pb::PutRequest {
    pb::PutRequest { key: key.to_owned().into(), value: value.into(), ..pb::PutRequest::default() }
}

fn op(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

fn everything() -> pb::RangeRequest {
    pb::RangeRequest { key: "\0".into(), range_end: "\0".into(), ..pb::RangeRequest::default() }
}

/// A cluster of so many members that run, one of which leads.
fn calm(seed: u64, members: usize) -> World {
    let plan = Plan {
        members,
        clients: 0,
        lease_clients: 0,
        watch_clients: 0,
        operators: 0,
        blows: Vec::new(),
        ..Plan::drawn(seed, Duration::ZERO, Fault::ALL)
    };
    let mut world = World::new(plan);
    world.heard = Some(Heard::default());
    (0..members).for_each(|at| world.keep_little_log(at));
    world.until("all members are ready", |world| (0..members).all(|at| world.is_ready(at)));
    world
}

/// What a scenario does.
impl World {
    /// The member will keep little log from its next start on, so that who was away needs a state.
    fn keep_little_log(&mut self, at: usize) {
        // Half of the members do, and a member's seed says which.
        let own = self.seed << 16 | self.seats[at].life << 8 | at as u64;
        let mut seeds = (0..1 << 16).map(|number| number << 48 | own);
        let clock = Clock::manual(seeds.find(|seed| Clock::manual(*seed).seed() % 2 == 1).expect("every other one"));
        clock.advance(self.now);
        self.seats[at].clock = clock;
    }

    /// How many members there are: one on each of the first machines.
    fn members(&self) -> usize {
        self.seats.iter().filter(|seat| seat.id.is_some()).count()
    }

    fn member(&mut self, at: usize) -> &mut Member {
        self.seats[at].member.as_mut().expect("it runs")
    }

    fn is_ready(&self, at: usize) -> bool {
        self.seats[at].member.as_ref().is_some_and(Member::is_ready)
    }

    /// Lets exactly `time` pass, though nothing may happen at its end.
    fn pass(&mut self, time: Duration) {
        let nothing = Event::Due { member: 0, life: u64::MAX };
        self.plan(time, nothing);
        self.run(time);
    }

    /// Lets time pass until something is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Self) -> bool) {
        let end = self.now + LONG;
        while !is_so(self) {
            assert!(self.now < end, "it is not so that {what}");
            self.pass(MOMENT);
        }
    }

    /// The member that leads, once there is one.
    fn led(&mut self) -> usize {
        self.until("somebody leads", |world| world.leader().is_some());
        self.leader().expect("just seen")
    }

    /// A member that does not lead.
    fn follower(&mut self) -> usize {
        (self.led() + 1) % self.members()
    }

    /// Proposes a request at a member. Returns its id.
    fn propose(&mut self, at: usize, request: Request) -> u64 {
        let id = self.member(at).propose(request);
        self.step(at);
        id
    }

    /// What became of a proposal, if its client knows.
    fn told(&mut self, id: u64) -> Option<Result<Outcome, Error>> {
        self.heard.as_mut().expect("a scenario hears").take_proposal(id)
    }

    /// Waits until a client is told of its proposal.
    fn answer(&mut self, id: u64) -> Result<Outcome, Error> {
        let mut told = None;
        self.until("a proposal is answered", |world| {
            told = world.told(id);
            told.is_some()
        });
        told.expect("just seen")
    }

    fn done(&mut self, at: usize, request: Request) -> Outcome {
        let id = self.propose(at, request);
        self.answer(id).expect("it is not refused")
    }

    /// Returns the revision of the put.
    fn put(&mut self, at: usize, key: &str, value: impl Into<Bytes>) -> i64 {
        match self.done(at, Request::Put(put(key, value))) {
            Outcome::Put { revision, .. } => revision,
            other => panic!("{other:?} for a put"),
        }
    }

    /// Returns the revision of the deletion.
    fn delete(&mut self, at: usize, key: &str) -> i64 {
        let request = pb::DeleteRangeRequest { key: key.to_owned().into(), ..pb::DeleteRangeRequest::default() };
        match self.done(at, Request::DeleteRange(request)) {
            Outcome::DeleteRange(response) => response.header.expect("a header").revision,
            other => panic!("{other:?} for a deletion"),
        }
    }

    fn compact(&mut self, at: usize, revision: i64) {
        self.done(at, Request::Compaction(pb::CompactionRequest { revision, physical: false }));
    }

    /// Puts many keys at once. Returns the ids of the proposals.
    fn burst(&mut self, at: usize, count: usize, value: &Bytes) -> Vec<u64> {
        let requests = (0..count).map(|number| Request::Put(put(&format!("burst/{number:03}"), value.clone())));
        let ids: Vec<u64> = requests.map(|request| self.member(at).propose(request)).collect();
        self.step(at);
        ids
    }

    /// Puts so much that logs that keep little do not reach back to what is there now.
    fn outrun(&mut self, at: usize) {
        let value = Bytes::from(vec![b'o'; 1500]);
        // A log is trimmed to what the last checkpoint but one has, and keeps 100 entries more.
        for _ in 0..OUTRUN_BURSTS {
            for id in self.burst(at, BURST_ENTRIES, &value) {
                self.answer(id).expect("it is not refused");
            }
            self.pass(millis(700));
        }
    }

    /// Asks for a linearizable read. Returns its number, which must ascend.
    fn ask_read(&mut self, at: usize, number: u64) {
        self.member(at).ask_read(number);
        self.step(at);
    }

    /// The answer to a read that was asked for: its revision, and the value of `key`. `Err` if it is refused.
    fn read_answer(&mut self, at: usize, number: u64, key: &str) -> Result<(i64, Option<Bytes>), ()> {
        let mut view = None;
        self.until("a read is answered", |world| {
            view = world.heard.as_mut().expect("a scenario hears").take_read(number);
            view.is_some()
        });
        let view = view.expect("just seen").ok_or(())?;
        let request = pb::RangeRequest { key: key.to_owned().into(), ..pb::RangeRequest::default() };
        let (revision, response) = self.member(at).read(&view, &request).expect("the disk reads").expect("no error");
        Ok((revision, response.kvs.first().map(|kv| kv.value.clone())))
    }

    /// Reads `key` linearizably: the revision, and the value. `number` is that of the read.
    fn read(&mut self, at: usize, number: u64, key: &str) -> (i64, Option<Bytes>) {
        self.ask_read(at, number);
        self.read_answer(at, number, key).expect("it is not refused")
    }

    fn directions_of(&self, at: usize) -> Vec<Direction> {
        let others = (0..self.seats.len()).filter(|other| *other != at);
        let pairs = others.flat_map(|other| [(at, other), (other, at)]);
        pairs.flat_map(|(from, to)| [(from, to, true), (from, to, false)]).collect()
    }

    /// Nothing passes between the member and the others, until it is joined.
    fn cut_off(&mut self, at: usize) {
        for direction in self.directions_of(at) {
            self.network.block(direction, true);
        }
    }

    /// What `from` sends to `to` waits, or, as it has waited, arrives: appends, or else all other messages.
    fn hold(&mut self, (from, to): (usize, usize), is_held: bool, appends: bool) {
        match is_held {
            true => self.network.block((from, to, appends), true),
            false => self.plan(Duration::ZERO, Event::Unblock { direction: (from, to, appends), is_reset: false }),
        }
        self.pass(Duration::ZERO);
    }

    /// The member has new connections. What was on its way is lost.
    fn join(&mut self, at: usize) {
        for direction in self.directions_of(at) {
            self.plan(Duration::ZERO, Event::Unblock { direction, is_reset: true });
        }
        self.pass(Duration::ZERO);
    }

    /// The member does nothing for `time`.
    fn stand_still(&mut self, at: usize, time: Duration) {
        self.seats[at].paused_until = self.now + time;
        self.plan(time, Event::Resume { member: at });
    }

    /// The member loses power, and is waited for until it serves again.
    fn crash(&mut self, at: usize) {
        self.lose(at, true, millis(50));
        self.until("it serves again", |world| world.is_ready(at));
    }

    /// All members lose power. They are waited for until all serve again.
    fn crash_all(&mut self, seed: u64) {
        self.lose_all(seed);
        self.until("all serve again", |world| (0..world.members()).all(|at| world.is_ready(at)));
    }

    /// Power is lost once so many more changes of a checkpoint are made. Returns when the member serves again.
    fn crash_in_checkpoint(&mut self, at: usize, changes: u64) {
        let life = self.seats[at].life;
        self.seats[at].loss_in_checkpoint = Some((changes, millis(50)));
        self.until("a checkpoint begins", |world| world.seats[at].life > life);
        self.until("it serves again", |world| world.is_ready(at));
    }

    /// All members come to hold the same: what the model has.
    fn agree(&mut self) {
        let members = 0..self.members();
        self.until("all is applied everywhere", |world| {
            let applied = world.truth.applied();
            let mut seats = world.seats.iter().filter(|seat| seat.id.is_some());
            seats.all(|seat| seat.member.as_ref().is_some_and(|member| member.applied() == applied))
        });
        let revision = self.truth.revision();
        let wanted = self.truth.model.range(&everything(), revision);
        let hash = self.member(0).hash();
        for at in members {
            let member = self.member(at);
            assert_eq!(member.hash(), hash, "the history of m{}", at + 1);
            let view = member.shared.view.load();
            let found = member.read(&view, &everything()).expect("the disk reads").expect("no error");
            assert_eq!(found, (revision, wanted.clone()), "all keys of m{}", at + 1);
        }
    }
}

/// A watch stream of a scenario. What it has for its client stays where it is until the scenario takes it.
struct Stream {
    at: usize,
    id: StreamId,
    bytes: Vec<u8>,
}

/// What a scenario watches.
impl World {
    fn open_stream(&mut self, at: usize, progress: Duration) -> Stream {
        Stream { at, id: self.member(at).open_watch(progress), bytes: Vec::new() }
    }

    /// Asks for something on the stream. Its member has not made a step behind it yet.
    fn ask(&mut self, stream: &Stream, request: RequestUnion) {
        self.member(stream.at).ask_watch(stream.id, request);
    }

    /// Asks for a watcher of all keys from `start_revision` on.
    fn watch(&mut self, stream: &Stream, watch_id: i64, start_revision: i64) {
        self.ask(stream, watcher(watch_id, start_revision));
        self.step(stream.at);
    }

    fn ask_progress(&mut self, stream: &Stream) {
        self.ask(stream, progress());
        self.step(stream.at);
    }

    /// Takes at most so many pieces of what the stream has now. Its member has not made a step behind it yet.
    fn take(&mut self, stream: &mut Stream, pieces: usize) -> Vec<pb::WatchResponse> {
        for _ in 0..pieces {
            let Some(piece) = self.member(stream.at).take_watch(stream.id) else { break };
            stream.bytes.extend_from_slice(&piece);
        }
        std::iter::from_fn(|| next_message(&mut stream.bytes)).collect()
    }

    /// Takes all that comes, until nothing has come for a while.
    fn take_all(&mut self, stream: &mut Stream) -> Vec<pb::WatchResponse> {
        let mut responses = Vec::new();
        let mut quiet = 0;
        while quiet < 20 {
            let more = self.take(stream, usize::MAX);
            quiet = if more.is_empty() { quiet + 1 } else { 0 };
            responses.extend(more);
            self.step(stream.at);
            self.pass(millis(1));
        }
        responses
    }

    /// The changes of the revisions `from..=to`, as a watcher of all keys must be told them.
    fn changes(&self, from: i64, to: i64) -> Vec<(i64, Bytes)> {
        let changes = |revision| self.truth.changes(revision).iter().map(move |change| (revision, change.key.clone()));
        (from..=to).flat_map(changes).collect()
    }
}

/// A request for a watcher of all keys.
fn watcher(watch_id: i64, start_revision: i64) -> RequestUnion {
    RequestUnion::CreateRequest(pb::WatchCreateRequest {
        key: "\0".into(),
        range_end: "\0".into(),
        start_revision,
        watch_id,
        progress_notify: true,
        ..pb::WatchCreateRequest::default()
    })
}

/// A request for progress.
fn progress() -> RequestUnion {
    RequestUnion::ProgressRequest(pb::WatchProgressRequest {})
}

/// The events that the watcher `watch_id` is told, as [`World::changes`] has them.
fn events_of(responses: &[pb::WatchResponse], watch_id: i64) -> Vec<(i64, Bytes)> {
    let its = responses.iter().filter(|response| response.watch_id == watch_id);
    let kvs = its.flat_map(|response| &response.events).map(|event| event.kv.as_ref().expect("an event has a key"));
    kvs.map(|kv| (kv.mod_revision, kv.key.clone())).collect()
}

/// The revision of a response's header.
fn revision_of(response: &pb::WatchResponse) -> i64 {
    response.header.as_ref().expect("a header").revision
}

/// Whether it tells how far the stream, or one watcher, is.
fn is_progress(response: &pb::WatchResponse) -> bool {
    response.events.is_empty() && !response.created && !response.canceled
}
