//! Clients that watch, at any member: they go on elsewhere when their member is lost, from where they were.
//!
//! A client has one stream, with a few watchers. It takes what its stream has for it when it comes to it: some clients
//! are slow, so that their watchers fall behind. Now and then it asks for progress, ends a watcher and begins it again,
//! or leaves.
//!
//! What is checked of each response: its events are all changes that the watcher wants since the last one, in order and
//! each once, those of a revision together; none is of a revision that nobody has committed. Progress at a revision is
//! told only when all of that is told. A watcher that asks for what was compacted is told so, and only such a one. When
//! the cluster has healed, every watcher has been told everything.

use std::{collections::BTreeMap, ops::AddAssign, time::Duration};

use bytes::{Buf, Bytes};
use engine::disk::sim::Random;
use prost::Message as _;
use proto::{
    etcdserverpb::{self as pb, watch_create_request::FilterType, watch_request::RequestUnion},
    mvccpb::{self, event::EventType},
    wire_range::WireRange,
};
use server::watch::stream::StreamId;

use super::{
    checks::Truth,
    member::Member,
    mix,
    model::{Change, is_in},
    plan::sequence,
    story::Story,
};

/// Numbers of a run, to see that something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Told {
    pub(crate) events: u64,
    pub(crate) progress: u64,
    /// Watchers that went on at another member, or again at the same.
    pub(crate) resumed: u64,
    pub(crate) compacted: u64,
}

impl AddAssign for Told {
    fn add_assign(&mut self, other: Self) {
        let Self { events, progress, resumed, compacted } = other;
        self.events += events;
        self.progress += progress;
        self.resumed += resumed;
        self.compacted += compacted;
    }
}

/// Where a watcher is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It is none: its client has not asked for it, or knows that it has ended.
    Away,
    Asked,
    Created,
    /// It has ended, because of a compaction. It keeps its id until its client ends it, too.
    Compacted,
    /// Its client has asked for its end.
    Ending,
}

/// A watcher as its client knows it.
struct Watcher {
    range: WireRange,
    request: pb::WatchCreateRequest,
    /// It was told all changes before this revision; `None` until it knows where it begins.
    next: Option<i64>,
    state: State,
    /// The parts of a response that came so far.
    parts: Vec<mvccpb::Event>,
}

struct Client {
    random: Random,
    /// Pieces that it takes at a time, and its longest pause.
    takes: usize,
    pause_ms_max: u64,
    /// Its stream, and the member that it is at.
    at: Option<(usize, StreamId)>,
    /// It goes on where it is.
    stays: bool,
    /// It has taken all there was. Before that, nobody reads what it asks for.
    is_drained: bool,
    /// Bytes of a message that has not come whole.
    bytes: Vec<u8>,
    watchers: BTreeMap<i64, Watcher>,
}

/// See the head of this file.
pub(crate) struct Watchers {
    clients: Vec<Client>,
    pub(crate) told: Told,
}

impl Watchers {
    pub(crate) fn new(seed: u64, clients: usize) -> Self {
        let client = |number| {
            let mut random = sequence(seed, "watch client", number);
            let is_slow = random.chance(1, 3);
            let watchers = (1..=1 + random.below(3)).map(|id| (id.cast_signed(), Watcher::drawn(&mut random, id)));
            Client {
                takes: if is_slow { 1 } else { usize::MAX },
                pause_ms_max: if is_slow { 2000 } else { 200 },
                at: None,
                stays: false,
                is_drained: true,
                bytes: Vec::new(),
                watchers: watchers.collect(),
                random,
            }
        };
        Self { clients: (0..clients).map(client).collect(), told: Told::default() }
    }

    /// When the client acts again.
    pub(crate) fn pause(&mut self, client: usize) -> Duration {
        let Client { random, pause_ms_max, .. } = &mut self.clients[client];
        Duration::from_millis(1 + random.below(*pause_ms_max))
    }

    /// The member that the client needs: where its stream is, or one of those.
    pub(crate) fn wants(&mut self, client: usize, of: &[usize]) -> usize {
        let Client { random, at, .. } = &mut self.clients[client];
        at.map_or_else(|| of[usize::try_from(random.below(of.len() as u64)).expect("a few")], |(at, _)| at)
    }

    /// The client does what is next, at `member`.
    pub(crate) fn act(&mut self, client: usize, (at, member): (usize, &mut Member), truth: &Truth, story: &mut Story) {
        let state = &mut self.clients[client];
        let Some((_, stream)) = state.at else {
            return state.begin(client, (at, member), truth, &mut self.told, story);
        };
        let has_left = state.take(client, (member, stream), truth, &mut self.told, story);
        if !has_left && state.is_drained {
            state.ask((member, stream), truth);
        }
    }

    /// What the client's stream has for it is told, as far as it came.
    pub(crate) fn lost(&mut self, member: usize) {
        for client in &mut self.clients {
            if client.at.is_some_and(|(at, _)| at == member) {
                client.leave();
            }
        }
    }

    /// Checks that all watchers were told everything.
    pub(crate) fn check_end(&mut self, truth: &Truth) {
        for (number, client) in self.clients.iter().enumerate() {
            for (id, watcher) in &client.watchers {
                let Some(next) = watcher.next else { continue };
                let missing = watcher.wanted(truth, next, truth.revision());
                assert!(missing.is_empty(), "watch client {number}, watcher {id} is never told {missing:?}");
            }
        }
    }

    /// From now on all take what there is, and nobody leaves.
    pub(crate) fn hurry(&mut self) {
        for client in &mut self.clients {
            (client.takes, client.pause_ms_max, client.stays) = (usize::MAX, 200, true);
        }
    }
}

impl Client {
    fn leave(&mut self) {
        self.at = None;
        self.bytes.clear();
        for watcher in self.watchers.values_mut() {
            watcher.state = State::Away;
            watcher.parts.clear();
        }
    }

    /// Opens a stream, with all its watchers, from where they were.
    fn begin(
        &mut self,
        client: usize,
        (at, member): (usize, &mut Member),
        truth: &Truth,
        told: &mut Told,
        story: &mut Story,
    ) {
        let stream = member.open_watch(Duration::from_millis(500 + self.random.below(3000)));
        self.at = Some((at, stream));
        for (id, watcher) in &mut self.watchers {
            told.resumed += u64::from(watcher.next.is_some());
            watcher.create((&mut self.random, self.stays), truth);
            story.tell(story.now, || {
                let from = watcher.request.start_revision;
                format!("watch client {client} watches {:?} at m{} from {from} as {id}", watcher.range, member.id)
            });
            member.ask_watch(stream, RequestUnion::CreateRequest(watcher.request.clone()));
        }
    }

    /// Takes what the stream has. Returns whether the stream has ended.
    fn take(
        &mut self,
        client: usize,
        (member, stream): (&mut Member, StreamId),
        truth: &Truth,
        told: &mut Told,
        story: &mut Story,
    ) -> bool {
        self.is_drained = false;
        for _ in 0..self.takes {
            let Some(bytes) = member.take_watch(stream) else {
                self.is_drained = true;
                break;
            };
            self.bytes.extend_from_slice(&bytes);
        }
        while let Some(response) = next_message(&mut self.bytes) {
            story.tell(story.now, || format!("watch client {client} is told by m{}: {}", member.id, shown(&response)));
            for (id, watcher) in &mut self.watchers {
                if response.watch_id == *id || response.watch_id == -1 {
                    let name = format!("watch client {client}, watcher {id}");
                    watcher.on_response(&response, &name, truth, told);
                }
            }
        }
        if member.is_watch_broken(stream) {
            member.close_watch(stream);
            self.leave();
            return true;
        }
        false
    }

    /// Asks for something, now and then.
    fn ask(&mut self, (member, stream): (&mut Member, StreamId), truth: &Truth) {
        if member.is_watch_open(stream) {
            return;
        }
        let number = self.random.below(self.watchers.len() as u64).cast_signed() + 1;
        let watcher = self.watchers.get_mut(&number).expect("ids count from 1");
        match self.random.below(100) {
            0 if !self.stays => {
                member.close_watch(stream);
                self.leave();
            }
            1..=6 if watcher.state == State::Created && !self.stays => {
                watcher.state = State::Ending;
                member.ask_watch(stream, RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: number }));
            }
            7..=20 => member.ask_watch(stream, RequestUnion::ProgressRequest(pb::WatchProgressRequest {})),
            _ => {
                for (id, watcher) in &mut self.watchers {
                    let request = match watcher.state {
                        State::Away => {
                            watcher.create((&mut self.random, self.stays), truth);
                            RequestUnion::CreateRequest(watcher.request.clone())
                        }
                        State::Compacted => {
                            watcher.state = State::Ending;
                            RequestUnion::CancelRequest(pb::WatchCancelRequest { watch_id: *id })
                        }
                        State::Asked | State::Created | State::Ending => continue,
                    };
                    member.ask_watch(stream, request);
                }
            }
        }
    }
}

impl Watcher {
    fn drawn(random: &mut Random, id: u64) -> Self {
        let (key, range_end) = match random.below(6) {
            0 => ("\0".into(), "\0".into()),
            1 => (mix::key(random), Bytes::new()),
            2 => ("/bulk/".into(), "/bulk0".into()),
            3 => ("/registry/0010".into(), "/registry/0020".into()),
            _ => ("/registry/".into(), "/registry0".into()),
        };
        let filters = match random.below(6) {
            0 => vec![FilterType::Noput as i32],
            1 => vec![FilterType::Nodelete as i32],
            _ => Vec::new(),
        };
        Self {
            range: WireRange::new(key.clone(), range_end.clone()),
            request: pb::WatchCreateRequest {
                key,
                range_end,
                start_revision: 0,
                progress_notify: random.chance(1, 2),
                filters,
                prev_kv: random.chance(1, 2),
                watch_id: id.cast_signed(),
                fragment: random.chance(1, 2),
            },
            next: None,
            state: State::Away,
            parts: Vec::new(),
        }
    }

    /// Sets from where it watches: where it was, or, at times, from somewhere in the past.
    fn create(&mut self, (random, stays): (&mut Random, bool), truth: &Truth) {
        if !stays && random.chance(1, 10) {
            let revision = truth.revision().cast_unsigned();
            let past = random.below(revision + 1).cast_signed();
            self.next = (past > truth.compacted()).then_some(past);
        }
        self.request.start_revision = self.next.unwrap_or(0);
        self.state = State::Asked;
        self.parts.clear();
    }

    /// What it wants to be told of the revisions `from..=to`.
    fn wanted(&self, truth: &Truth, from: i64, to: i64) -> Vec<(i64, Change)> {
        let has = |filter: FilterType| self.request.filters.contains(&(filter as i32));
        let filtered = if has(FilterType::Noput) { Some(true) } else { has(FilterType::Nodelete).then_some(false) };
        let changes =
            (from..=to).flat_map(|revision| truth.changes(revision).iter().map(move |change| (revision, change)));
        let wanted =
            changes.filter(|(_, change)| is_in(&self.range, &change.key) && filtered != Some(change.after.is_some()));
        wanted.map(|(revision, change)| (revision, change.clone())).collect()
    }

    fn on_response(&mut self, response: &pb::WatchResponse, name: &str, truth: &Truth, told: &mut Told) {
        let revision = response.header.as_ref().expect("a header").revision;
        assert!(revision <= truth.revision(), "{name} is told of {revision}, which nobody has committed");
        if response.created {
            assert!(!response.canceled && self.state == State::Asked, "{name}: {response:?}");
            self.state = State::Created;
            self.next.get_or_insert(revision + 1);
            return;
        }
        if response.canceled {
            return self.on_cancelled(response.compact_revision, name, truth, told);
        }
        if response.events.is_empty() {
            if !self.is_running() {
                return;
            }
            assert!(self.parts.is_empty(), "{name}: progress within a response");
            let next = self.next.expect("it was created");
            let missing = self.wanted(truth, next, revision);
            assert!(missing.is_empty(), "{name} has got no {missing:?}, and is told of progress at {revision}");
            self.next = Some(next.max(revision + 1));
            told.progress += 1;
            return;
        }
        assert!(self.is_running(), "{name}: no event comes before the answer to its creation");
        assert!(!response.fragment || self.request.fragment, "{name} takes no parts");
        self.parts.extend(response.events.iter().cloned());
        if !response.fragment {
            let events = std::mem::take(&mut self.parts);
            self.on_events(&events, revision, name, truth);
            told.events += events.len() as u64;
        }
    }

    fn on_events(&mut self, events: &[mvccpb::Event], revision: i64, name: &str, truth: &Truth) {
        let revision_of = |event: &mvccpb::Event| event.kv.as_ref().expect("an event has a key").mod_revision;
        let last = events.last().map(revision_of).expect("there are events");
        assert!(last <= revision, "{name}: an event at {last} in a response at {revision}");
        let next = self.next.expect("it was created");
        let wanted = self.wanted(truth, next, last);
        let got: Vec<(i64, &Bytes)> =
            events.iter().map(|event| (revision_of(event), &event.kv.as_ref().expect("a key").key)).collect();
        let keys: Vec<(i64, &Bytes)> = wanted.iter().map(|(revision, change)| (*revision, &change.key)).collect();
        assert_eq!(got, keys, "{name}: events from {next} on");
        for (event, (_, change)) in events.iter().zip(&wanted) {
            self.check_event(event, change, name, truth);
        }
        self.next = Some(last + 1);
    }

    fn check_event(&self, event: &mvccpb::Event, change: &Change, name: &str, truth: &Truth) {
        let kv = event.kv.as_ref().expect("an event has a key");
        match &change.after {
            Some(after) => assert_eq!((event.r#type, kv), (EventType::Put as i32, after), "{name}"),
            None => {
                let shown = (event.r#type, &kv.value, kv.version);
                assert_eq!(shown, (EventType::Delete as i32, &Bytes::new(), 0), "{name}");
            }
        }
        match &event.prev_kv {
            Some(before) => {
                assert!(self.request.prev_kv, "{name} asked for no previous value");
                assert_eq!(Some(before), change.before.as_ref(), "{name}: what was before {change:?}");
            }
            None if self.request.prev_kv => {
                let is_gone = kv.mod_revision - 1 < truth.compacted();
                assert!(is_gone || change.before.is_none(), "{name}: a previous value is missing: {change:?}");
            }
            None => {}
        }
    }

    /// It is no more: its client wanted that, or what it asks for is compacted.
    fn on_cancelled(&mut self, compacted: i64, name: &str, truth: &Truth, told: &mut Told) {
        self.parts.clear();
        if compacted == 0 {
            assert!(self.state == State::Ending, "{name} is ended by nobody");
            self.state = State::Away;
            return;
        }
        assert!(self.is_running(), "{name} has ended before");
        let next = self.next.expect("it was created");
        assert!(compacted <= truth.compacted(), "{name}: nothing is compacted at {compacted}");
        assert!(next < compacted, "{name} is at {next}, and {compacted} is compacted");
        told.compacted += 1;
        self.next = Some(compacted);
        if self.state == State::Created {
            self.state = State::Compacted;
        }
    }

    fn is_running(&self) -> bool {
        matches!(self.state, State::Created | State::Ending)
    }
}

/// Takes the first whole message out of `bytes`.
pub(crate) fn next_message(bytes: &mut Vec<u8>) -> Option<pb::WatchResponse> {
    let mut head = bytes.get(..5)?;
    assert_eq!(head.get_u8(), 0, "nothing is compressed here");
    let len = usize::try_from(head.get_u32()).expect("small");
    let message = pb::WatchResponse::decode(bytes.get(5..5 + len)?).expect("a response");
    bytes.drain(..5 + len);
    Some(message)
}

fn shown(response: &pb::WatchResponse) -> String {
    let revision = response.header.as_ref().map_or(0, |header| header.revision);
    let pb::WatchResponse { watch_id, created, canceled, compact_revision, fragment, events, .. } = response;
    match (created, canceled, events.as_slice()) {
        (true, _, _) => format!("watcher {watch_id} begins at {revision}"),
        (_, true, _) => format!("watcher {watch_id} ends, compacted {compact_revision}"),
        (_, _, []) => format!("watcher {watch_id} has all up to {revision}"),
        (_, _, [first, .., last] | [first @ last]) => {
            let at = |event: &mvccpb::Event| event.kv.as_ref().map_or(0, |kv| kv.mod_revision);
            let (first, last, count) = (at(first), at(last), events.len());
            format!("watcher {watch_id}: {count} events of {first}..={last} at {revision}, a part: {fragment}")
        }
    }
}
