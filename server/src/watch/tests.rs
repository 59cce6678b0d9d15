//! Runs on: tests.
//!
//! The hub against a plain model: a store that keeps every version, and watchers that are compared with all of them.
//!
//! This file owns the model and nothing else. Reads fault at random and succeed when they are repeated. Streams are
//! drained a chunk at a time, now and then. Batches arrive late or never. In the end, each watcher must have got
//! exactly what it asked for.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use engine::{Record, Revision};
use prost::Message;
use proto::{
    etcdserverpb::{
        WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse,
        watch_request::RequestUnion,
    },
    mvccpb,
    wire_range::WireRange,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    batch::{Batch, Event},
    encode::Responder,
    history::{History, Records},
    hub::{Bounds, Hub, Piece},
    stream::StreamId,
};
use crate::header::Ids;

/// Names the version that must be read before a call can go on.
struct Fault(Revision);

/// A store that forgets what is compacted. Beside it, everything that ever happened.
struct Store {
    records: BTreeMap<Revision, Record>,
    /// Every change, with the version that was live before its main revision.
    all: Vec<(Record, Option<Record>)>,
    revision: i64,
    compact_revision: i64,
    faults: bool,
    resident: RefCell<BTreeSet<Revision>>,
}

impl Store {
    fn new(faults: bool) -> Self {
        let (records, all, resident) = (BTreeMap::new(), vec![], RefCell::default());
        Self { records, all, revision: 1, compact_revision: -1, faults, resident }
    }

    fn live(&self, key: &[u8], at: i64) -> Option<&Record> {
        let newest = self.all.iter().rev().map(|(record, _)| record);
        newest.into_iter().find(|record| record.key == key && record.revision.main <= at).filter(|r| !r.is_tombstone)
    }

    /// Makes one txn of puts and deletes by key. Returns its events.
    fn write(&mut self, changes: &[(Bytes, Option<Bytes>)]) -> Vec<Event> {
        let main = self.revision + 1;
        let mut events = vec![];
        for (key, value) in changes {
            let newest = self.live(key, main).cloned();
            if value.is_none() && newest.is_none() {
                continue;
            }
            let revision = Revision::new(main, i64::try_from(events.len()).unwrap());
            let record = Record {
                key: key.clone(),
                value: value.clone().unwrap_or_default(),
                create_revision: match (value, &newest) {
                    (None, _) => 0,
                    (Some(_), Some(newest)) => newest.create_revision,
                    (Some(_), None) => main,
                },
                revision,
                version: value.as_ref().map_or(0, |_| 1 + newest.as_ref().map_or(0, |newest| newest.version)),
                lease: 0,
                is_tombstone: value.is_none(),
            };
            let before = self.live(key, main - 1).cloned();
            self.records.insert(revision, record.clone());
            self.all.push((record.clone(), before));
            events.push(Event::new(record, newest.map(|newest| newest.revision)));
        }
        if !events.is_empty() {
            self.revision = main;
        }
        events
    }

    fn compact(&mut self, at: i64) {
        self.compact_revision = at;
        let newest: BTreeMap<Bytes, Revision> = (self.records.values())
            .filter(|record| record.revision.main <= at)
            .map(|record| (record.key.clone(), record.revision))
            .collect();
        self.records.retain(|revision, record| {
            let is_kept = newest.get(&record.key) == Some(revision) && (!record.is_tombstone || revision.main == at);
            revision.main > at || is_kept
        });
    }

    fn touch(&self, revision: Revision) -> Result<(), Fault> {
        if self.faults && !self.resident.borrow().contains(&revision) { Err(Fault(revision)) } else { Ok(()) }
    }
}

impl History for Store {
    type Fault = Fault;
    type Records<'a> = Walk<'a>;

    fn revision(&self) -> i64 {
        self.revision
    }

    fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    fn get(&self, key: &[u8], at: i64) -> Result<Option<Record>, Fault> {
        assert!(at >= self.compact_revision, "never asked for what is compacted");
        let found = self.live(key, at).cloned();
        if let Some(record) = &found {
            self.touch(record.revision)?;
        }
        Ok(found)
    }

    fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Fault> {
        self.touch(revision)?;
        Ok(self.records.get(&revision).filter(|record| record.key == key).cloned())
    }

    fn records_from(&self, from: Revision) -> Walk<'_> {
        assert!(from.main >= self.compact_revision, "never asked for what is compacted");
        Walk(self, from)
    }
}

struct Walk<'a>(&'a Store, Revision);

impl Records for Walk<'_> {
    type Fault = Fault;

    fn next(&mut self) -> Result<Option<Record>, Fault> {
        let Some((&revision, record)) = self.0.records.range(self.1..).next() else {
            return Ok(None);
        };
        self.0.touch(revision)?;
        self.1 = Revision::new(revision.main, revision.sub + 1);
        Ok(Some(record.clone()))
    }
}

/// What a client knows about one of its watchers.
struct Expectation {
    range: WireRange,
    /// The first revision that it asked for.
    from: i64,
    request: WatchCreateRequest,
    /// The events that it has got, and the highest main revision among them.
    got: Vec<mvccpb::Event>,
    is_canceled: bool,
    is_in_fragment: bool,
}

/// A client's end of a stream.
struct Client {
    id: StreamId,
    input: BytesMut,
    watchers: BTreeMap<i64, Expectation>,
    /// Watchers that have ended.
    past: Vec<Expectation>,
    /// Creates that wait for their reply, each with the store's revision when it was requested.
    creating: VecDeque<(WatchCreateRequest, i64)>,
    canceling: VecDeque<i64>,
    progress_seen: usize,
}

fn key_value(record: &Record) -> mvccpb::KeyValue {
    mvccpb::KeyValue {
        key: record.key.clone(),
        create_revision: record.create_revision,
        mod_revision: record.revision.main,
        version: record.version,
        value: record.value.clone(),
        lease: record.lease,
    }
}

impl Expectation {
    /// The events up to the revision `to` that the watcher must get by the model.
    fn expected(&self, store: &Store, to: i64) -> Vec<mvccpb::Event> {
        let is_wanted = |record: &Record| {
            self.range.contains(&record.key)
                && (self.from..=to).contains(&record.revision.main)
                && !self.request.filters.contains(&i32::from(record.is_tombstone))
        };
        let event = |(record, before): &(Record, Option<Record>)| mvccpb::Event {
            r#type: i32::from(record.is_tombstone),
            kv: Some(key_value(record)),
            prev_kv: before
                .as_ref()
                .filter(|_| self.request.prev_kv && record.create_revision != record.revision.main)
                .map(key_value),
        };
        store.all.iter().filter(|(record, _)| is_wanted(record)).map(event).collect()
    }

    fn main(event: &mvccpb::Event) -> i64 {
        event.kv.as_ref().unwrap().mod_revision
    }

    /// Checks that the watcher has got everything up to `to`, and nothing else.
    fn check(&self, store: &Store, to: i64) {
        let expected = self.expected(store, to);
        let mut got = self.got.iter().peekable();
        for wanted in &expected {
            let is_same = |event: &&mvccpb::Event| event.kv == wanted.kv && event.r#type == wanted.r#type;
            let Some(event) = got.next_if(is_same) else {
                // A compaction at a revision keeps only the last change of each key.
                let main = Self::main(wanted);
                let last = store.all.iter().rev().map(|(record, _)| record);
                let last =
                    last.into_iter().find(|r| r.revision.main == main && r.key == wanted.kv.as_ref().unwrap().key);
                let is_last = last.map(key_value) == wanted.kv;
                assert!(main <= store.compact_revision && !is_last, "{wanted:?} missing before {:?}", got.peek());
                continue;
            };
            let is_forgotten = Self::main(event) - 1 < store.compact_revision && event.prev_kv.is_none();
            assert!(event.prev_kv == wanted.prev_kv || is_forgotten, "{event:?} {wanted:?}");
        }
        assert_eq!(got.next(), None, "{:?} from {}", self.range, self.from);
    }
}

impl Client {
    fn new(id: StreamId) -> Self {
        Self {
            id,
            input: BytesMut::new(),
            watchers: BTreeMap::new(),
            past: vec![],
            creating: VecDeque::new(),
            canceling: VecDeque::new(),
            progress_seen: 0,
        }
    }

    /// Reads whole messages from what has arrived.
    fn receive(&mut self, chunk: &[u8], store: &Store) {
        self.input.extend_from_slice(chunk);
        while self.input.len() >= 5 {
            assert_eq!(self.input[0], 0, "uncompressed");
            let len = u32::from_be_bytes(self.input[1..5].try_into().unwrap()) as usize;
            if self.input.len() < 5 + len {
                break;
            }
            self.input.advance(5);
            let response = WatchResponse::decode(self.input.split_to(len).freeze()).unwrap();
            self.on_response(&response, store);
        }
    }

    fn on_response(&mut self, response: &WatchResponse, store: &Store) {
        let revision = response.header.as_ref().unwrap().revision;
        let id = response.watch_id;
        if response.created {
            let (request, at) = self.creating.pop_front().unwrap();
            assert_eq!(revision, at);
            if response.canceled {
                assert_eq!(id, -1);
                assert!(!response.cancel_reason.is_empty());
                return;
            }
            let range = WireRange::new(request.key.clone(), request.range_end.clone());
            let from = if request.start_revision == 0 { at + 1 } else { request.start_revision };
            let (got, is_canceled, is_in_fragment) = (vec![], false, false);
            let watcher = Expectation { range, from, request, got, is_canceled, is_in_fragment };
            assert!(self.watchers.insert(id, watcher).is_none(), "ids are not used twice");
        } else if response.canceled && response.compact_revision > 0 {
            assert_eq!((revision, response.cancel_reason.as_str()), (0, ""));
            let watcher = self.watchers.get_mut(&id).unwrap();
            assert!(!watcher.is_canceled && response.events.is_empty());
            assert!(response.compact_revision > watcher.from);
            watcher.is_canceled = true;
        } else if response.canceled {
            assert_eq!(self.canceling.pop_front(), Some(id));
            let watcher = self.watchers.remove(&id).unwrap();
            self.past.push(watcher);
        } else if response.events.is_empty() {
            self.on_progress(id, revision, store);
        } else {
            self.watchers.get_mut(&id).unwrap().on_events(response, revision);
        }
    }

    fn on_progress(&mut self, id: i64, revision: i64, store: &Store) {
        self.progress_seen += 1;
        let is_early = |watcher: &Expectation| revision < watcher.from && watcher.request.start_revision > 0;
        if id >= 0 {
            assert!(self.watchers[&id].request.progress_notify && !is_early(&self.watchers[&id]));
            self.watchers[&id].check(store, revision);
            return;
        }
        assert!(!self.watchers.is_empty() && !self.watchers.values().any(is_early));
        self.watchers.values().for_each(|watcher| watcher.check(store, revision));
    }
}

impl Expectation {
    fn on_events(&mut self, response: &WatchResponse, revision: i64) {
        assert!(!self.is_canceled, "nothing after the end");
        assert!(revision >= Self::main(response.events.last().unwrap()));
        let last = self.got.last().map_or(0, Self::main);
        let first = Self::main(&response.events[0]);
        assert!(first > last || self.is_in_fragment && first == last, "a revision comes whole");
        assert!(!response.fragment || self.request.fragment);
        self.is_in_fragment = response.fragment;
        self.got.extend(response.events.iter().cloned());
    }
}

/// All parts of a run.
struct Run {
    rng: SmallRng,
    store: Store,
    hub: Hub,
    clients: Vec<Client>,
    /// Batches on their way to the hub.
    mailbox: VecDeque<Arc<Batch>>,
    now: Duration,
    /// Streams that could not complete a response, because of a compaction.
    broken: usize,
    /// Events that they have got.
    events_before: usize,
}

const INTERVAL: Duration = Duration::from_secs(10);

impl Run {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let bounds = Bounds {
            stream_buffer_bytes_max: [100, 2_000, 1 << 20][rng.random_range(0..3)],
            fragment_bytes_max: [60, 200, 100_000][rng.random_range(0..3)],
            watchers_max: 1_000,
        };
        let responder = Responder { ids: Ids::new(7, 8), raft_term: 9 };
        let store = Store::new(rng.random());
        let mut hub = Hub::new(bounds, responder, 1);
        hub.pairs_max = [2, 10, 1_000][rng.random_range(0..3)];
        hub.part_bytes = [0, 100, 300, 1 << 20][rng.random_range(0..4)];
        let clients = (0..3).map(|_| Client::new(hub.open_stream(Duration::ZERO, INTERVAL))).collect();
        Self { rng, store, hub, clients, mailbox: VecDeque::new(), now: Duration::ZERO, broken: 0, events_before: 0 }
    }

    fn key(&mut self) -> Bytes {
        let len = self.rng.random_range(1..3);
        (0..len).map(|_| b'a' + self.rng.random_range(0..3)).collect::<Vec<u8>>().into()
    }

    fn write(&mut self) {
        let first_main = self.store.revision + 1;
        let mut events = vec![];
        for _ in 0..self.rng.random_range(1..4) {
            let changes: Vec<_> = (0..self.rng.random_range(1..5))
                .map(|_| {
                    let value = Bytes::from(vec![b'v'; [0, 3, 40][self.rng.random_range(0..3)]]);
                    (self.key(), (self.rng.random_range(0..3) > 0).then_some(value))
                })
                .collect();
            events.extend(self.store.write(&changes));
        }
        let last_main = self.store.revision;
        // Now and then the core misses a batch, or gets one whose events are too many to be listed.
        let batch = match self.rng.random_range(0..30) {
            0 => return,
            1..4 if !events.is_empty() => {
                let keys = || events.iter().map(|event| event.record().key.clone());
                let hull = keys().min().zip(keys().max()).filter(|_| self.rng.random());
                Batch::unlisted(first_main, last_main, hull)
            }
            _ => Batch::new(first_main, last_main, events),
        };
        self.mailbox.push_back(Arc::new(batch));
    }

    fn request(&mut self, at: usize) {
        if self.hub.is_open(self.clients[at].id) {
            return;
        }
        let client = &mut self.clients[at];
        let ids: Vec<_> = client.watchers.keys().copied().collect();
        let union = match self.rng.random_range(0..6) {
            0 if !ids.is_empty() => {
                let watch_id = ids[self.rng.random_range(0..ids.len())];
                if client.canceling.contains(&watch_id) {
                    return;
                }
                client.canceling.push_back(watch_id);
                RequestUnion::CancelRequest(WatchCancelRequest { watch_id })
            }
            1 => RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 1_000 }),
            2 | 3 => RequestUnion::ProgressRequest(WatchProgressRequest {}),
            _ => {
                let ends = [Bytes::new(), Bytes::from_static(b"\0"), self.key()];
                let revision = self.store.revision;
                let request = WatchCreateRequest {
                    key: self.key(),
                    range_end: ends[self.rng.random_range(0..3)].clone(),
                    start_revision: [0, 0, -1, self.rng.random_range(1..revision + 3)][self.rng.random_range(0..4)],
                    progress_notify: self.rng.random(),
                    filters: [vec![], vec![], vec![0], vec![1], vec![0, 1, 5]][self.rng.random_range(0..5)].clone(),
                    prev_kv: self.rng.random(),
                    watch_id: [0, 0, 0, 5, 6][self.rng.random_range(0..5)],
                    fragment: self.rng.random(),
                };
                self.clients[at].creating.push_back((request.clone(), revision));
                RequestUnion::CreateRequest(request)
            }
        };
        self.hub.on_request(self.clients[at].id, WatchRequest { request_union: Some(union) }, None, &self.store);
    }

    fn catch_up(&mut self) {
        let budget = [1, 200, 5_000][self.rng.random_range(0..3)];
        if let Err(Fault(revision)) = self.hub.catch_up(&self.store, budget) {
            assert!(self.store.resident.borrow_mut().insert(revision), "what was read is not asked for again");
        }
    }

    fn deliver(&mut self) {
        if let Some(batch) = self.mailbox.pop_front() {
            self.hub.on_batch(&batch, &self.store);
        }
    }

    /// Lets the core get batches from here on.
    fn listen(&mut self) {
        let revision = self.store.revision;
        self.hub.on_batch(&Arc::new(Batch::new(revision + 1, revision, vec![])), &self.store);
    }

    fn drain(&mut self, at: usize) {
        if let Some(Piece { bytes: chunk, .. }) = self.hub.take_output(self.clients[at].id) {
            self.clients[at].receive(&chunk, &self.store);
        }
    }

    /// Closes a broken stream, and opens another one.
    fn replace_broken(&mut self, at: usize) {
        let client = &mut self.clients[at];
        if !self.hub.is_broken(client.id) {
            return;
        }
        self.broken += 1;
        self.events_before += client.watchers.values().map(|watcher| watcher.got.len()).sum::<usize>();
        self.hub.close_stream(client.id);
        // What it has got so far is right, and nothing of the response that broke counts.
        for watcher in client.watchers.values().chain(&client.past).filter(|watcher| !watcher.is_in_fragment) {
            watcher.check(&self.store, watcher.got.last().map_or(0, Expectation::main));
        }
        *client = Client::new(self.hub.open_stream(self.now, INTERVAL));
    }

    fn step(&mut self) {
        let at = self.rng.random_range(0..self.clients.len());
        self.replace_broken(at);
        match self.rng.random_range(0..20) {
            0..6 => self.write(),
            6..11 => self.deliver(),
            11..13 => self.request(at),
            13..15 => self.catch_up(),
            15..18 => self.drain(at),
            18 => {
                let (from, to) = (self.store.compact_revision.max(0), self.store.revision);
                if from < to && self.rng.random_range(0..4) == 0 {
                    let revision = self.rng.random_range(from + 1..=to);
                    self.store.compact(revision);
                }
            }
            _ => {
                self.now += INTERVAL / 3;
                assert!(self.hub.next_wake() > Some(Duration::ZERO));
                self.hub.on_tick(self.now);
                if self.rng.random_range(0..10) == 0 {
                    self.listen();
                }
            }
        }
    }

    /// Lets everything come to rest. Returns how often progress was sent.
    fn finish(&mut self) -> usize {
        while !self.mailbox.is_empty() {
            self.deliver();
        }
        self.listen();
        for round in 0.. {
            assert!(round < 100_000, "comes to rest");
            let mut is_at_rest = !self.hub.wants_catch_up();
            self.catch_up();
            while let Some(stream) = self.hub.next_ready() {
                let at = self.clients.iter().position(|client| client.id == stream).unwrap();
                while self.hub.stream(stream.0).outbox.len() > 0 {
                    self.drain(at);
                }
                self.replace_broken(at);
                is_at_rest = false;
            }
            if is_at_rest {
                break;
            }
        }
        self.verify()
    }

    fn verify(&self) -> usize {
        let mut watchers = 0;
        for client in &self.clients {
            assert!(client.input.is_empty() && client.creating.is_empty() && client.canceling.is_empty());
            for watcher in client.watchers.values().filter(|watcher| !watcher.is_canceled) {
                watcher.check(&self.store, i64::MAX);
                watchers += 1;
            }
            let ended = client.watchers.values().filter(|watcher| watcher.is_canceled).chain(&client.past);
            for watcher in ended {
                let last = watcher.got.last().map_or(0, Expectation::main);
                watcher.check(&self.store, last);
            }
        }
        let totals = self.hub.totals();
        assert_eq!((totals.watchers, totals.watchers_unsynced), (watchers, 0));
        assert_eq!(totals.events_pending, 0, "every stream was drained");
        self.clients.iter().map(|client| client.progress_seen).sum()
    }
}

#[test]
fn each_watcher_gets_exactly_what_the_model_says() {
    let (mut progress, mut compacted, mut events, mut broken) = (0, 0, 0, 0);
    for seed in 0..250 {
        println!("seed {seed}");
        let mut run = Run::new(seed);
        for _ in 0..1_500 {
            run.step();
        }
        progress += run.finish();
        (events, broken) = (events + run.events_before, broken + run.broken);
        for client in &run.clients {
            compacted += client.watchers.values().filter(|watcher| watcher.is_canceled).count();
            events += client.watchers.values().map(|watcher| watcher.got.len()).sum::<usize>();
        }
    }
    let counts = format!("{progress} {compacted} {events} {broken}");
    assert!(progress > 1_000 && compacted > 500 && events > 10_000 && broken > 5, "{counts}");
}

/// A hub with one stream whose responses are read at once.
struct Small {
    store: Store,
    hub: Hub,
    stream: StreamId,
}

impl Small {
    fn new(bounds: Bounds) -> Self {
        let mut hub = Hub::new(bounds, Responder { ids: Ids::new(1, 2), raft_term: 3 }, 1);
        let stream = hub.open_stream(Duration::ZERO, INTERVAL);
        Self { store: Store::new(false), hub, stream }
    }

    fn put(&mut self, keys: &[&'static str], value_bytes: usize) {
        let value = Bytes::from(vec![b'v'; value_bytes]);
        let changes: Vec<_> = keys.iter().map(|key| (Bytes::from(*key), Some(value.clone()))).collect();
        let events = self.store.write(&changes);
        let batch = Batch::new(self.store.revision, self.store.revision, events);
        self.hub.on_batch(&Arc::new(batch), &self.store);
    }

    fn listen(&mut self) {
        let revision = self.store.revision;
        self.hub.on_batch(&Arc::new(Batch::new(revision + 1, revision, vec![])), &self.store);
    }

    fn waiting(&self) -> usize {
        self.hub.stream(self.stream.0).outbox.len()
    }

    fn ask(&mut self, union: RequestUnion) {
        self.hub.on_request(self.stream, WatchRequest { request_union: Some(union) }, None, &self.store);
    }

    fn create(&mut self, request: WatchCreateRequest) {
        self.ask(RequestUnion::CreateRequest(request));
    }

    fn responses(&mut self) -> Vec<WatchResponse> {
        let mut bytes = BytesMut::new();
        while let Some(Piece { bytes: chunk, .. }) = self.hub.take_output(self.stream) {
            bytes.extend_from_slice(&chunk);
        }
        let mut responses = vec![];
        while !bytes.is_empty() {
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            bytes.advance(5);
            responses.push(WatchResponse::decode(bytes.split_to(len).freeze()).unwrap());
        }
        responses
    }
}

const ROOMY: Bounds = Bounds { stream_buffer_bytes_max: 1 << 20, fragment_bytes_max: 1 << 20, watchers_max: 4 };

fn on(key: &'static str) -> WatchCreateRequest {
    WatchCreateRequest { key: Bytes::from(key), ..Default::default() }
}

fn revisions(response: &WatchResponse) -> Vec<i64> {
    response.events.iter().map(Expectation::main).collect()
}

#[test]
fn creates_are_answered_as_etcd_does() {
    let mut small = Small::new(ROOMY);
    small.put(&["a"], 1);
    small.create(WatchCreateRequest { watch_id: 1, ..on("a") });
    small.create(on("a"));
    small.create(WatchCreateRequest { key: Bytes::new(), range_end: Bytes::from_static(b"\0"), ..on("a") });
    small.create(WatchCreateRequest { watch_id: 1, ..on("a") });
    small.create(WatchCreateRequest { range_end: Bytes::from_static(b"a"), ..on("a") });
    small.create(WatchCreateRequest { start_revision: -1, ..on("a") });
    small.create(on("a"));
    small.create(on("a"));
    let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(on("a"))) };
    small.hub.on_request(small.stream, request, Some("denied"), &small.store);
    let answers: Vec<_> = small.responses().into_iter().map(|r| (r.watch_id, r.created, r.cancel_reason)).collect();
    let refused = |reason: &str| (-1, true, reason.to_owned());
    let expected = [
        (1, true, String::new()),
        (0, true, String::new()),
        (2, true, String::new()),
        refused("mvcc: duplicate watch ID provided on the WatchStream"),
        refused("mvcc: watcher range is empty"),
        refused("etcdserver: mvcc: required revision has been compacted"),
        (3, true, String::new()),
        refused("etcdserver: too many requests"),
        refused("denied"),
    ];
    assert_eq!(answers, expected);
    small.put(&["b"], 1);
    assert_eq!(small.responses().iter().map(|r| r.watch_id).collect::<Vec<_>>(), [2], "an empty key is the first key");
}

#[test]
fn compacted_watcher_keeps_its_id_until_it_is_cancelled() {
    let mut small = Small::new(ROOMY);
    small.put(&["a"], 1);
    small.put(&["a"], 1);
    small.put(&["a"], 1);
    small.store.compact(3);
    small.create(WatchCreateRequest { start_revision: 2, ..on("a") });
    assert!(small.responses()[0].created);
    assert_eq!(small.hub.catch_up(&small.store, 100).ok(), Some(false));
    let [canceled] = &small.responses()[..] else { panic!("one response") };
    assert_eq!((canceled.canceled, canceled.compact_revision, canceled.watch_id), (true, 3, 0));
    assert_eq!((canceled.header.as_ref().unwrap().revision, canceled.cancel_reason.as_str()), (0, ""));
    small.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
    assert!(small.responses().is_empty(), "it is never synced");
    for _ in 0..2 {
        small.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 }));
    }
    let [canceled] = &small.responses()[..] else { panic!("one response, the second cancel is of an unknown id") };
    assert_eq!((canceled.canceled, canceled.header.as_ref().unwrap().revision), (true, 4));
    small.hub.close_stream(small.stream);
}

#[test]
fn a_revision_of_any_length_goes_out_in_bounded_memory() {
    const EVENTS: usize = 2000;
    let bounds = Bounds { stream_buffer_bytes_max: 2000, fragment_bytes_max: 1000, watchers_max: 4 };
    for fragment in [false, true] {
        let mut small = Small::new(bounds);
        small.hub.part_bytes = 1000;
        small.create(WatchCreateRequest { range_end: "\0".into(), fragment, prev_kv: true, ..on("k") });
        let other = small.hub.open_stream(Duration::ZERO, INTERVAL);
        let elsewhere = WatchRequest { request_union: Some(RequestUnion::CreateRequest(on("a"))) };
        small.hub.on_request(other, elsewhere, None, &small.store);
        assert_eq!(small.responses().len(), 1);
        let changes: Vec<_> = (0..EVENTS).map(|at| (Bytes::from(format!("k{at:05}")), Some(Bytes::new()))).collect();
        let events = small.store.write(&changes);
        let hull = events.first().zip(events.last());
        let hull = hull.map(|(first, last)| (first.record().key.clone(), last.record().key.clone()));
        let main = small.store.revision;
        small.hub.on_batch(&Arc::new(Batch::unlisted(main, main, hull)), &small.store);
        assert_eq!(small.hub.totals().watchers_unsynced, 1, "the other is not concerned");
        let (mut bytes, mut responses, mut longest) = (BytesMut::new(), vec![], 0);
        while small.hub.wants_catch_up() {
            small.hub.catch_up(&small.store, 1000).ok().unwrap();
            longest = longest.max(small.waiting());
            assert!(small.hub.scratch.pairs.capacity() < 1 << 15);
            while let Some(Piece { bytes: chunk, .. }) = small.hub.take_output(small.stream) {
                bytes.extend_from_slice(&chunk);
            }
        }
        assert!(longest < 4000, "{longest} bytes waited");
        assert!(!small.hub.is_open(small.stream));
        while !bytes.is_empty() {
            let len = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
            bytes.advance(5);
            responses.push(WatchResponse::decode(bytes.split_to(len).freeze()).unwrap());
        }
        assert_eq!(responses.len() > 1, fragment);
        let last = responses.pop().unwrap();
        assert!(responses.iter().all(|response| response.fragment) && !last.fragment);
        let events = responses.iter().chain([&last]).flat_map(|response| &response.events);
        let got: Vec<Bytes> = events.map(|event| event.kv.clone().unwrap().key).collect();
        assert!(got.iter().eq(changes.iter().map(|(key, _)| key)));
        small.put(&["k"], 1);
        assert_eq!(small.responses().len(), 1, "it is synced again");
    }
}

#[test]
fn synced_watcher_gets_one_response_for_each_revision() {
    let mut small = Small::new(ROOMY);
    small.create(WatchCreateRequest { range_end: Bytes::from_static(b"\0"), ..on("a") });
    let first_main = small.store.revision + 1;
    let mut events = vec![];
    for keys in [&["a", "b"][..], &["c"]] {
        let changes: Vec<_> = keys.iter().map(|key| (Bytes::from(*key), Some(Bytes::new()))).collect();
        events.extend(small.store.write(&changes));
    }
    small.hub.on_batch(&Arc::new(Batch::new(first_main, small.store.revision, events)), &small.store);
    let responses = small.responses();
    let got: Vec<_> = responses.iter().map(|r| (r.header.as_ref().unwrap().revision, revisions(r))).collect();
    assert_eq!(got, [(1, vec![]), (2, vec![2, 2]), (3, vec![3])]);
}

#[test]
fn fragments_are_below_the_bound_and_all_but_the_last_are_marked() {
    for (wants_fragments, from) in [(true, 0), (true, 2), (false, 0), (false, 2)] {
        let mut small = Small::new(Bounds { fragment_bytes_max: 400, ..ROOMY });
        let request = WatchCreateRequest { fragment: wants_fragments, start_revision: from, ..on("a") };
        let request = WatchCreateRequest { range_end: Bytes::from_static(b"\0"), ..request };
        if from == 0 {
            small.create(request.clone());
        }
        small.put(&["a", "b", "c", "d", "e", "f", "g", "h"], 100);
        if from > 0 {
            small.create(request);
            assert_eq!(small.hub.catch_up(&small.store, 100).ok(), Some(false));
        }
        let responses = small.responses().split_off(1);
        assert_eq!(responses.iter().map(|r| r.events.len()).sum::<usize>(), 8);
        assert_eq!(responses.len(), if wants_fragments { 3 } else { 1 });
        let (last, others) = responses.split_last().unwrap();
        assert!(!last.fragment);
        assert!(others.iter().all(|r| r.fragment && r.encoded_len() < 400 && r.encoded_len() > 200));
    }
}

#[test]
fn stalled_watcher_waits_for_its_stream_and_loses_nothing() {
    let mut small = Small::new(Bounds { stream_buffer_bytes_max: 1_000, ..ROOMY });
    small.create(on("a"));
    for _ in 0..100 {
        small.put(&["a"], 100);
        assert!(small.hub.catch_up(&small.store, 100).is_ok());
        assert!(small.hub.catch_up(&small.store, 100).is_ok_and(|is_more| !is_more), "a full stream keeps nobody busy");
        assert!(small.waiting() < 1_200, "bounded by the buffer and one response");
    }
    assert!(small.hub.is_full(small.stream.0));
    assert_eq!(small.hub.totals().watchers_unsynced, 1);
    let mut got: Vec<i64> = vec![];
    for _ in 0..1_000 {
        got.extend(small.responses().iter().flat_map(revisions));
        if small.hub.wants_catch_up() {
            assert!(small.hub.catch_up(&small.store, 100).is_ok());
        }
    }
    assert_eq!(got, (2..=101).collect::<Vec<_>>());
    assert_eq!(small.hub.totals().watchers_unsynced, 0);
}

#[test]
fn progress_is_told_only_when_all_before_it_was() {
    let mut small = Small::new(ROOMY);
    let progress = || RequestUnion::ProgressRequest(WatchProgressRequest {});
    small.ask(progress());
    assert!(small.responses().is_empty(), "a stream without watchers");
    small.create(on("a"));
    small.ask(progress());
    let told = |r: &WatchResponse| (r.watch_id, r.header.as_ref().unwrap().revision, r.events.len());
    assert_eq!(told(&small.responses()[1]), (-1, 1, 0));
    // The store is ahead of the batches, so the answer waits for them.
    let events = small.store.write(&[(Bytes::from("a"), Some(Bytes::new()))]);
    (0..3).for_each(|_| small.ask(progress()));
    assert!(small.responses().is_empty());
    small.hub.on_batch(&Arc::new(Batch::new(2, 2, events)), &small.store);
    let each_has_its_answer = [(0, 2, 1), (-1, 2, 0), (-1, 2, 0), (-1, 2, 0)];
    assert_eq!(small.responses().iter().map(told).collect::<Vec<_>>(), each_has_its_answer);
    small.create(WatchCreateRequest { start_revision: 4, ..on("z") });
    small.ask(progress());
    assert_eq!(small.responses().len(), 1, "a watcher that starts later keeps the stream silent");
    small.put(&["b"], 1);
    small.put(&["b"], 1);
    small.ask(progress());
    assert_eq!(small.responses().iter().map(told).collect::<Vec<_>>(), [(-1, 4, 0)]);
}

#[test]
fn automatic_progress_is_left_out_after_an_event() {
    let mut small = Small::new(ROOMY);
    small.create(WatchCreateRequest { progress_notify: true, ..on("a") });
    small.create(on("a"));
    small.responses();
    let mut told = vec![];
    for round in 1..=4u32 {
        if round == 2 {
            small.put(&["a"], 1);
            small.responses();
        }
        assert_eq!(small.hub.next_wake(), Some(INTERVAL * round));
        small.hub.on_tick(INTERVAL * round);
        told.extend(small.responses().iter().map(|r| (round, r.watch_id, r.header.as_ref().unwrap().revision)));
    }
    assert_eq!(told, [(1, 0, 1), (3, 0, 2), (4, 0, 2)]);
}

#[test]
fn missed_batches_are_read_from_the_past() {
    let mut small = Small::new(ROOMY);
    small.create(on("a"));
    small.store.write(&[(Bytes::from("a"), Some(Bytes::new()))]);
    small.put(&["a"], 1);
    assert!(small.hub.wants_catch_up());
    assert_eq!(small.hub.catch_up(&small.store, 1_000).ok(), Some(false));
    small.store.write(&[(Bytes::from("a"), Some(Bytes::new()))]);
    small.listen();
    assert_eq!(small.hub.catch_up(&small.store, 1_000).ok(), Some(false));
    let got: Vec<_> = small.responses().iter().flat_map(revisions).collect();
    assert_eq!(got, [2, 3, 4]);
}
