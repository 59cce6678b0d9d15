//! Runs on: connection core.
//!
//! All watch streams of one connection core, as a state machine. Requests, batches of events and the time go in. Bytes
//! for each stream come out.
//!
//! A watcher is *synced* while every event of its keys is put into its stream's outbox as it happens. It is *unsynced*
//! when the outbox has no room, when a previous value is not in memory, or when the watcher asks for the past.
//! [`Hub::catch_up`] then serves it from a view, in order, until it has reached the hub's revision. It misses nothing
//! and gets nothing twice.
//!
//! Invariants:
//! - `revision` is the revision up to which batches were taken in. A synced watcher has everything at or below it, or
//!   asked for later revisions (`Watcher::next`). `revision` never decreases, and no view that is handed in is older.
//! - A synced watcher is in `synced`, a running one in `unsynced` and in `running`, a parked one in its stream's queue.
//! - A stream's outbox exceeds `stream_buffer_bytes_max` by at most one response and the replies to its client's
//!   requests.
//! - `ready` lists, once, each stream with output that was not handed out since.
//! - While a response of a stream goes out in parts (`Stream::open`), nothing else is put into its outbox.
//!
//! `request` answers requests, `deliver` turns events into responses, `catch_up` reads the past. The hub does not know
//! who may watch which keys (the caller says if a create is refused), and it makes no views.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use engine::{Revision, planted::is_planted};
use proto::{
    etcdserverpb::{WatchRequest, watch_request::RequestUnion},
    wire_range::WireRange,
};
use slab::Slab;

use super::{
    batch::Batch,
    encode::{Responder, Response},
    history::History,
    interval::{Index, Seat, WatcherSlot},
    stream::{Stream, StreamId},
    watcher::{State, Watcher},
};

/// The watchers for which events are gathered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Synced,
    Unsynced,
}

/// Pairs of watcher and event that one step gathers before it hands out responses. The events of one revision for one
/// watcher may exceed it. **Units** pairs of 8 bytes.
pub(super) const PAIRS_MAX: usize = 1 << 20;

/// A main revision whose versions are longer than this is read in parts of about this length. **Units** bytes.
const PART_BYTES: usize = 1 << 20;

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Above this, the watchers of a stream get no more events until the stream has drained. **Units** bytes.
    pub stream_buffer_bytes_max: usize,
    /// Length at which the responses of a watcher that allows fragments are split: etcd's max-request-bytes + 512 KiB.
    /// **Units** bytes.
    pub fragment_bytes_max: usize,
    /// Watchers of this core. A create beyond this number is refused.
    pub watchers_max: usize,
}

/// The present contents of the hub, and its work so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Open streams.
    pub streams: usize,
    /// Watchers without cancelled ones.
    pub watchers: usize,
    /// Watchers that are behind.
    pub watchers_unsynced: usize,
    /// Events put into outboxes so far.
    pub events_sent: u64,
    /// Events in outboxes now.
    pub events_pending: u64,
}

/// A piece of a stream's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Framed messages, or a part of one.
    pub bytes: Bytes,
    /// Number of events that end in it.
    pub events: u64,
    /// Whether automatic progress is in it, if it has no events.
    pub has_progress: bool,
}

/// Watchers of one stream that take part in catching up at a time. The others of the stream wait. **Source** etcd
/// v3.7.1 `mvcc/watchable_store.go` `maxWatchersPerSync`, which is for all streams together.
const RUNNING_PER_STREAM_MAX: usize = 512;

/// The watch streams of one core.
pub struct Hub {
    pub(super) bounds: Bounds,
    pub(super) responder: Responder,
    pub(super) revision: i64,
    pub(super) streams: Slab<Stream>,
    pub(super) watchers: Slab<Watcher>,
    pub(super) synced: Index,
    pub(super) unsynced: Index,
    pub(super) running: Vec<WatcherSlot>,
    pub(super) ready: VecDeque<u32>,
    progress_timers: BTreeSet<(Duration, u32)>,
    /// Streams with `progress_due`. The list may name closed streams.
    pub(super) progress_due: Vec<u32>,
    next_ticket: u64,
    /// Counts the calls of `gather`; see `Watcher::mark`.
    pub(super) mark: u64,
    /// [`PAIRS_MAX`]; less in tests.
    pub(super) pairs_max: usize,
    /// [`PART_BYTES`]; less in tests.
    pub(super) part_bytes: usize,
    /// What the next part may have: less than `part_bytes` where previous values are missing, because what is read
    /// behind the first missing one is read again.
    pub(super) part_goal: usize,
    /// The revision after the last one that the last step of catching up has read.
    pub(super) read_to: Revision,
    pub(super) totals: Totals,
    pub(super) scratch: Scratch,
}

/// Memory that steps use and leave empty.
#[derive(Default)]
pub(super) struct Scratch {
    pub(super) groups: Vec<u32>,
    /// The watcher is in the high half, the position of the event in the low half. Sorted pairs give each watcher's
    /// events in order.
    pub(super) pairs: Vec<u64>,
    /// Synced watchers that could not get an event.
    pub(super) stalled: Vec<WatcherSlot>,
    pub(super) touched: Vec<u32>,
}

impl Hub {
    /// A hub without streams, at the store's `revision`.
    pub fn new(bounds: Bounds, responder: Responder, revision: i64) -> Self {
        assert!(bounds.fragment_bytes_max > 0 && bounds.watchers_max < u32::MAX as usize);
        Self {
            bounds,
            responder,
            revision,
            streams: Slab::new(),
            watchers: Slab::new(),
            synced: Index::default(),
            unsynced: Index::default(),
            running: Vec::new(),
            ready: VecDeque::new(),
            progress_timers: BTreeSet::new(),
            progress_due: Vec::new(),
            next_ticket: 0,
            mark: 0,
            pairs_max: PAIRS_MAX,
            part_bytes: PART_BYTES,
            part_goal: PART_BYTES,
            read_to: Revision::MIN,
            totals: Totals::default(),
            scratch: Scratch::default(),
        }
    }

    /// Opens a stream. `progress_interval` is the configured interval with this stream's jitter added.
    pub fn open_stream(&mut self, now: Duration, progress_interval: Duration) -> StreamId {
        let stream = Stream::new(now, progress_interval);
        let progress_at = stream.progress_at;
        let id = u32::try_from(self.streams.insert(stream)).expect("streams of a core are bounded below 2^32");
        self.progress_timers.insert((progress_at, id));
        self.totals.streams += 1;
        StreamId(id)
    }

    /// Closes a stream with all its watchers. Output that was not yet sent is dropped.
    pub fn close_stream(&mut self, stream: StreamId) {
        let slots: Vec<_> = self.stream(stream.0).watchers.values().copied().collect();
        for slot in slots {
            self.drop_watcher(slot);
        }
        let closed = self.streams.remove(stream.0 as usize);
        assert!(closed.watchers.is_empty() && closed.parked.is_empty() && closed.running == 0 && closed.unsynced == 0);
        let had_timer = self.progress_timers.remove(&(closed.progress_at, stream.0));
        assert!(had_timer, "an open stream has a timer");
        self.totals.streams -= 1;
        self.totals.events_pending -= closed.outbox.events();
    }

    /// Takes in a client's request. `denied` is the reason, in etcd's words, why a create is not permitted.
    pub fn on_request(&mut self, stream: StreamId, request: WatchRequest, denied: Option<&str>, view: &impl History) {
        self.check_view(view);
        assert!(!self.is_open(stream), "no request is taken in while a response is open");
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => self.create(stream.0, request, denied, view.revision()),
            Some(RequestUnion::CancelRequest(request)) => self.cancel(stream.0, request.watch_id, view.revision()),
            Some(RequestUnion::ProgressRequest(_)) => self.request_progress(stream.0, view.revision()),
            // etcd ignores it too.
            None => {}
        }
    }

    /// Takes in the changes of a publish. Batches follow each other. If some are missing (the core was not listening,
    /// or the store was replaced), watchers read what they missed from the past. A batch without events may begin after
    /// the hub's revision. It only moves the hub forward, for a core that begins to listen.
    ///
    /// **Bounds** work is proportional to the events and to the watchers of their keys.
    pub fn on_batch(&mut self, batch: &Arc<Batch>, view: &impl History) {
        assert!(view.revision() >= batch.last_main, "a view shows what its batch tells");
        self.check_view(view);
        if batch.first_main > self.revision + 1 {
            self.skip_to(batch.first_main - 1, None);
        }
        if let Some(unlisted) = batch.unlisted.as_ref().filter(|_| batch.last_main > self.revision) {
            self.skip_to(batch.last_main, unlisted.hull.as_ref());
        }
        let known = batch.events.partition_point(|event| event.main() <= self.revision);
        if self.synced.len() > 0 {
            for events in batch.events[known..].chunk_by(|a, b| a.main() == b.main()) {
                self.deliver(events, view);
            }
        }
        self.revision = self.revision.max(batch.last_main);
        self.settle_stalled();
        self.send_due_progress();
    }

    /// Sends automatic progress to the streams for which it is due.
    pub fn on_tick(&mut self, now: Duration) {
        while let Some(&(progress_at, stream)) = self.progress_timers.first() {
            if progress_at > now {
                break;
            }
            self.progress_timers.pop_first();
            let state = &mut self.streams[stream as usize];
            // Missed ticks are not made up for.
            state.progress_at = (progress_at + state.progress_interval).max(now + Duration::from_millis(1));
            self.progress_timers.insert((state.progress_at, stream));
            self.send_progress(stream);
        }
    }

    /// When [`Hub::on_tick`] will have something to do.
    pub fn next_wake(&self) -> Option<Duration> {
        self.progress_timers.first().map(|&(progress_at, _)| progress_at)
    }

    /// A stream that has got output since this call last returned it. The output may have been taken meanwhile.
    pub fn next_ready(&mut self) -> Option<StreamId> {
        while let Some(stream) = self.ready.pop_front() {
            // The stream may be closed, and its number may be in use again.
            if let Some(state) = self.streams.get_mut(stream as usize)
                && state.is_listed
            {
                state.is_listed = false;
                return Some(StreamId(stream));
            }
        }
        None
    }

    /// The next bytes of a stream, in the order in which they must be sent. Must be called only when the stream can
    /// take them. Requests are read only from a stream that has nothing left here, so their answers do not pile up.
    /// Taking output may let watchers go on; [`Hub::wants_catch_up`] tells.
    pub fn take_output(&mut self, stream: StreamId) -> Option<Piece> {
        let state = &mut self.streams[stream.0 as usize];
        let (bytes, events) = state.outbox.take()?;
        let has_progress = events == 0 && std::mem::take(&mut state.has_progress);
        self.totals.events_pending -= events;
        self.unpark(stream.0);
        Some(Piece { bytes, events, has_progress })
    }

    /// Whether [`Hub::catch_up`] has something to do.
    pub fn wants_catch_up(&self) -> bool {
        !self.running.is_empty()
    }

    /// Sets the term for response headers from now on.
    pub fn set_raft_term(&mut self, raft_term: u64) {
        self.responder.raft_term = raft_term;
    }

    /// The present contents of the hub, and its work so far.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    fn check_view(&self, view: &impl History) {
        assert!(view.revision() >= self.revision, "views are not older than the batches taken in");
    }

    pub(super) fn stream(&self, stream: u32) -> &Stream {
        &self.streams[stream as usize]
    }

    pub(super) fn is_full(&self, stream: u32) -> bool {
        self.stream(stream).is_full(self.bounds.stream_buffer_bytes_max)
    }

    /// Whether a response is in the stream's output in part. Until it is complete, no request may be taken in.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.stream(stream.0).open.is_some()
    }

    /// Whether a response of the stream that has begun cannot be completed. The stream must be closed then.
    pub fn is_broken(&self, stream: StreamId) -> bool {
        self.stream(stream.0).is_broken
    }
}

/// Moves watchers between synced, running and parked.
impl Hub {
    /// Moves the hub forward over revisions whose events it does not get. Synced watchers read the events that they
    /// want. The events are about keys in `hull` (both its ends included), if there is one.
    fn skip_to(&mut self, revision: i64, hull: Option<&(Bytes, Bytes)>) {
        assert!(revision >= self.revision, "the hub's revision does not decrease");
        let next = self.revision + 1;
        let hull = hull.map(|(first, last)| {
            let end = [&last[..], &[0]].concat().into();
            WireRange::Bounded { start: first.clone(), end }
        });
        self.revision = revision;
        let behind: Vec<WatcherSlot> = self
            .watchers
            .iter_mut()
            .filter(|(_, watcher)| watcher.is_synced() && watcher.next.main <= revision)
            .filter(|(_, watcher)| hull.as_ref().is_none_or(|hull| watcher.range.intersects(hull)))
            .filter_map(|(slot, watcher)| {
                watcher.next = watcher.next.max(Revision::new(next, 0));
                (watcher.next.main <= revision).then(|| u32::try_from(slot).expect("watchers_max fits 32 bits"))
            })
            .collect();
        for slot in behind {
            self.unsync(slot);
        }
    }

    /// Takes the watchers that could not get an event out of the synced ones.
    fn settle_stalled(&mut self) {
        let mut stalled = std::mem::take(&mut self.scratch.stalled);
        for slot in stalled.drain(..) {
            let watcher = &mut self.watchers[slot as usize];
            assert!(watcher.next <= watcher.cut && watcher.cut.main <= self.revision, "a position does not decrease");
            let told_twice = i64::from(is_planted("an event told twice"));
            watcher.next = Revision::new(watcher.cut.main - told_twice, watcher.cut.sub);
            watcher.cut = Revision::MAX;
            self.unsync(slot);
        }
        self.scratch.stalled = stalled;
    }

    fn unsync(&mut self, slot: WatcherSlot) {
        let State::Synced(seat) = self.watchers[slot as usize].state else {
            unreachable!("it is synced");
        };
        self.leave(Side::Synced, seat);
        let stream = self.watchers[slot as usize].stream;
        self.streams[stream as usize].unsynced += 1;
        self.totals.watchers_unsynced += 1;
        self.park(slot);
        self.unpark(stream);
    }

    /// Makes a watcher synced that is in no list.
    pub(super) fn sync(&mut self, slot: WatcherSlot) {
        let watcher = &mut self.watchers[slot as usize];
        assert!(watcher.next.main > self.revision && !watcher.is_within(), "a synced watcher has all there is");
        watcher.state = State::Synced(self.synced.insert(&watcher.range, slot));
        self.streams[watcher.stream as usize].unsynced -= 1;
        self.totals.watchers_unsynced -= 1;
    }

    /// Puts a watcher that is in no list at the end of its stream's queue.
    pub(super) fn park(&mut self, slot: WatcherSlot) {
        let watcher = &mut self.watchers[slot as usize];
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        watcher.state = State::Parked { ticket };
        self.streams[watcher.stream as usize].parked.insert(ticket, slot);
    }

    /// Lets waiting watchers of a stream take part in catching up, as far as there is room.
    pub(super) fn unpark(&mut self, stream: u32) {
        let state = &mut self.streams[stream as usize];
        while state.running < RUNNING_PER_STREAM_MAX
            && !state.is_broken
            && state.outbox.len() <= self.bounds.stream_buffer_bytes_max / 2
        {
            let next = match state.open {
                // The others wait until its response is complete.
                Some(open) => match self.watchers[open.slot as usize].state {
                    State::Parked { ticket } => state.parked.remove(&ticket),
                    _ => None,
                },
                None => state.parked.pop_first().map(|(_, slot)| slot),
            };
            let Some(slot) = next else { break };
            let watcher = &mut self.watchers[slot as usize];
            assert!(watcher.next.main <= self.revision, "an unsynced watcher is behind");
            let seat = self.unsynced.insert(&watcher.range, slot);
            let position = u32::try_from(self.running.len()).expect("watchers_max fits 32 bits");
            watcher.state = State::Running { seat, position };
            self.running.push(slot);
            state.running += 1;
        }
    }

    /// Takes a watcher out of those that take part in catching up. It is then in no list.
    pub(super) fn stop_running(&mut self, slot: WatcherSlot) {
        let watcher = &self.watchers[slot as usize];
        let State::Running { seat, position } = watcher.state else {
            unreachable!("it is running");
        };
        self.streams[watcher.stream as usize].running -= 1;
        let removed = self.running.swap_remove(position as usize);
        assert_eq!(removed, slot, "a running watcher knows its place");
        if let Some(&moved) = self.running.get(position as usize)
            && let State::Running { position: place, .. } = &mut self.watchers[moved as usize].state
        {
            *place = position;
        }
        self.leave(Side::Unsynced, seat);
    }

    /// Cancels a running watcher because it needs compacted revisions. It stays known until the client cancels it.
    pub(super) fn cancel_compacted(&mut self, slot: WatcherSlot, compact_revision: i64) {
        self.stop_running(slot);
        let watcher = &mut self.watchers[slot as usize];
        watcher.state = State::Compacted;
        let (stream, id) = (watcher.stream, watcher.id);
        self.totals.watchers -= 1;
        self.totals.watchers_unsynced -= 1;
        let header = self.responder.header(0);
        self.reply(stream, &Response { is_canceled: true, compact_revision, ..Response::new(&header, id) });
        self.scratch.touched.push(stream);
    }

    /// Forgets a watcher, whatever list it is in.
    pub(super) fn drop_watcher(&mut self, slot: WatcherSlot) {
        let watcher = &self.watchers[slot as usize];
        let (stream, id, state) = (watcher.stream, watcher.id, watcher.state);
        match state {
            State::Synced(seat) => self.leave(Side::Synced, seat),
            State::Running { .. } => self.stop_running(slot),
            State::Parked { ticket } => {
                let parked = self.streams[stream as usize].parked.remove(&ticket);
                assert_eq!(parked, Some(slot), "a parked watcher stands in its stream's queue");
            }
            State::Compacted => {}
            State::New => unreachable!("a watcher is held somewhere"),
        }
        let state_of_stream = &mut self.streams[stream as usize];
        if state != State::Compacted {
            self.totals.watchers -= 1;
        }
        if !matches!(state, State::Synced(_)) {
            state_of_stream.unsynced -= 1;
            self.totals.watchers_unsynced -= usize::from(state != State::Compacted);
        }
        state_of_stream.notified.remove(&slot);
        let known = state_of_stream.watchers.remove(&id);
        assert_eq!(known, Some(slot), "a stream knows its watchers");
        self.watchers.remove(slot as usize);
    }

    fn leave(&mut self, side: Side, seat: Seat) {
        let index = if side == Side::Synced { &mut self.synced } else { &mut self.unsynced };
        if let Some(moved) = index.remove(seat) {
            match (&mut self.watchers[moved as usize].state, side) {
                (State::Synced(place), Side::Synced) => *place = seat,
                (State::Running { seat: place, .. }, Side::Unsynced) => *place = seat,
                _ => unreachable!("a seated watcher is on the side of its index"),
            }
        }
    }
}
