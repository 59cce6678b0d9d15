//! Runs on: connection core.
//!
//! Turns events into responses: finds the watchers of each event, and makes the bytes for each watcher.
//!
//! Invariants:
//! - A synced watcher gets one response per main revision, whose header names that revision.
//! - A watcher gets all events of one main revision at once, or it is cut off before them. The exception are parts of
//!   a long revision, see `watcher`.
//! - `Scratch::pairs` is empty between steps.
//!
//! The caller moves watchers that are cut off, once nothing walks over an index any more.

use bytes::Bytes;
use engine::Revision;

use super::{
    batch::Event,
    encode::Response,
    history::History,
    hub::{Bounds, Hub, Side},
    interval::WatcherSlot,
    stream::{Open, Outbox},
    watcher::Watcher,
};
use crate::{header::Header, protobuf::MESSAGE_BYTES_MAX};

impl Hub {
    /// Gives the events of one main revision to the synced watchers of their keys.
    pub(super) fn deliver(&mut self, events: &[Event], view: &impl History) {
        let main = events[0].main();
        let header = self.responder.header(main);
        if let [event] = events {
            self.deliver_one(event, &header, view);
            return;
        }
        assert!(self.scratch.pairs.is_empty(), "a step leaves no pairs behind");
        self.gather(Side::Synced, events, 0, Revision::new(main, 0));
        let mut pairs = std::mem::take(&mut self.scratch.pairs);
        pairs.sort_unstable();
        for run in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
            let slot = slot_of(run[0]);
            let watcher = &self.watchers[slot as usize];
            let is_resolved = !watcher.wants_prev_kv
                || run.iter().all(|&pair| events[event_of(pair)].encoded_with_prev(view).is_ok());
            if self.is_full(watcher.stream) || !is_resolved {
                self.stall(slot, main);
            } else {
                self.send(slot, run, events, &header);
            }
        }
        pairs.clear();
        self.scratch.pairs = pairs;
        self.trim_scratch();
    }

    /// The usual case of [`Hub::deliver`]. Each watcher costs a few fields and a copy, and nothing is allocated.
    fn deliver_one(&mut self, event: &Event, header: &Header, view: &impl History) {
        let mut groups = std::mem::take(&mut self.scratch.groups);
        self.synced.find(&event.record().key, &mut groups);
        for &group in &groups {
            for &slot in self.synced.members(group) {
                let watcher = &mut self.watchers[slot as usize];
                if !watcher.wants(event.record()) {
                    continue;
                }
                let stream = &mut self.streams[watcher.stream as usize];
                let encoded = if stream.is_full(self.bounds.stream_buffer_bytes_max) {
                    None
                } else if watcher.wants_prev_kv {
                    // If a page must be read first, catching up reads it.
                    event.encoded_with_prev(view).ok()
                } else {
                    Some(event.encoded())
                };
                match encoded {
                    Some(encoded) => {
                        stream.outbox.put(&Response::new(header, watcher.id), encoded.len(), [encoded]);
                        watcher.is_idle = false;
                        self.totals.events_sent += 1;
                        self.totals.events_pending += 1;
                        if !stream.is_listed {
                            stream.is_listed = true;
                            self.ready.push_back(watcher.stream);
                        }
                    }
                    None => {
                        watcher.cut = Revision::new(event.main(), 0);
                        self.scratch.stalled.push(slot);
                    }
                }
            }
        }
        groups.clear();
        self.scratch.groups = groups;
    }

    /// Adds to `scratch.pairs` which of `events` go to which watchers. The events are all of one main revision;
    /// `offset` is the position of the first one. A watcher is cut off at `before` if this step has no more room for
    /// it.
    pub(super) fn gather(&mut self, side: Side, events: &[Event], offset: usize, before: Revision) {
        let room = self.pairs_max.saturating_sub(self.scratch.pairs.len()) / events.len();
        // A single watcher is always served. Otherwise a revision with very many events would never be sent.
        let mut admissible = if self.scratch.pairs.is_empty() { room.max(1) } else { room };
        self.mark += 1;
        let index = if side == Side::Synced { &self.synced } else { &self.unsynced };
        let mut groups = std::mem::take(&mut self.scratch.groups);
        for (event, position) in events.iter().zip(offset as u64..) {
            index.find(&event.record().key, &mut groups);
            for &slot in groups.iter().flat_map(|&group| index.members(group)) {
                let watcher = &mut self.watchers[slot as usize];
                if !watcher.wants(event.record()) {
                    continue;
                }
                if watcher.mark != self.mark {
                    if admissible == 0 {
                        watcher.cut = before.max(watcher.next);
                        if side == Side::Synced {
                            self.scratch.stalled.push(slot);
                        }
                        continue;
                    }
                    admissible -= 1;
                    watcher.mark = self.mark;
                }
                self.scratch.pairs.push(u64::from(slot) << 32 | position);
            }
            groups.clear();
        }
        self.scratch.groups = groups;
    }

    /// Puts the response for one watcher into its stream's outbox. `run` names the events. A long response is split
    /// into fragments, if the watcher allows that.
    pub(super) fn send(&mut self, slot: WatcherSlot, run: &[u64], events: &[Event], header: &Header) {
        let watcher = &mut self.watchers[slot as usize];
        let outbox = &mut self.streams[watcher.stream as usize].outbox;
        let encoded = encoded_for(watcher, events);
        let whole = Response::new(header, watcher.id);
        let bytes_max = fragment_bytes_max(watcher, &self.bounds);
        let events_len: usize = run.iter().map(|pair| encoded(pair).len()).sum();
        if whole.len() + events_len < bytes_max || run.len() < 2 {
            outbox.put(&whole, events_len, run.iter().map(&encoded));
        } else {
            put_fragments(outbox, (whole, true), bytes_max, run, encoded);
        }
        self.has_sent(slot, run.len());
    }

    /// Sends a part of the response at one main revision, whose length was measured. `run` names the events of the
    /// part. The stream is not full for the watcher.
    pub(super) fn send_part(&mut self, slot: WatcherSlot, run: &[u64], events: &[Event], header: &Header) {
        let watcher = &mut self.watchers[slot as usize];
        let stream = &mut self.streams[watcher.stream as usize];
        let encoded = encoded_for(watcher, events);
        let whole = Response::new(header, watcher.id);
        let bytes_max = fragment_bytes_max(watcher, &self.bounds);
        let open = *stream.open.get_or_insert_with(|| {
            let len = whole.len().saturating_add(usize::try_from(watcher.left).unwrap_or(usize::MAX));
            let is_one = len < bytes_max;
            if is_one {
                stream.outbox.begin(&whole, len - whole.len());
            }
            Open { slot, is_one }
        });
        assert!(open.slot == slot, "one response after the other");
        let len: usize = run.iter().map(|pair| encoded(pair).len()).sum();
        let Some(left) = watcher.left.checked_sub(len as u64) else {
            // What was measured was compacted meanwhile.
            stream.is_broken = true;
            let stream = watcher.stream;
            self.list(stream);
            return;
        };
        watcher.left = left;
        if open.is_one {
            stream.outbox.go_on(run.iter().map(&encoded));
        } else {
            put_fragments(&mut stream.outbox, (whole, left == 0), bytes_max, run, encoded);
        }
        if left == 0 {
            watcher.next = Revision::new(watcher.next.main + 1, 0);
            stream.open = None;
            self.scratch.touched.push(watcher.stream);
        }
        self.has_sent(slot, run.len());
    }

    fn has_sent(&mut self, slot: WatcherSlot, events: usize) {
        let watcher = &mut self.watchers[slot as usize];
        watcher.is_idle = false;
        self.totals.events_sent += events as u64;
        self.totals.events_pending += events as u64;
        let stream = watcher.stream;
        self.list(stream);
    }

    /// Frees the memory that an unusually large step has taken.
    pub(super) fn trim_scratch(&mut self) {
        const PAIRS_KEPT: usize = 1 << 14;
        debug_assert!(self.scratch.pairs.is_empty());
        self.scratch.pairs.shrink_to(PAIRS_KEPT);
    }

    fn stall(&mut self, slot: WatcherSlot, main: i64) {
        self.watchers[slot as usize].cut = Revision::new(main, 0);
        self.scratch.stalled.push(slot);
    }
}

/// Gives the encoded form of the event of a pair as `watcher` wants it. Previous values are known by now.
pub(super) fn encoded_for<'e>(watcher: &Watcher, events: &'e [Event]) -> impl Fn(&u64) -> &'e Bytes + use<'e> {
    let wants_prev_kv = watcher.wants_prev_kv;
    move |pair| {
        let event = &events[event_of(*pair)];
        if wants_prev_kv { event.resolved_with_prev().expect("resolved before") } else { event.encoded() }
    }
}

/// The length at which a watcher's response is split.
fn fragment_bytes_max(watcher: &Watcher, bounds: &Bounds) -> usize {
    if watcher.wants_fragments { bounds.fragment_bytes_max.min(MESSAGE_BYTES_MAX) } else { MESSAGE_BYTES_MAX }
}

/// Puts the events of `run` into the outbox, as fragments of `whole` below `bytes_max`. If they are the end of the
/// response (`is_end`), the last one is no fragment.
fn put_fragments<'e>(
    outbox: &mut Outbox,
    (whole, is_end): (Response<'_>, bool),
    bytes_max: usize,
    run: &[u64],
    encoded: impl Fn(&u64) -> &'e Bytes,
) {
    let piece = Response { is_fragment: true, ..whole };
    let mut rest = run;
    while !rest.is_empty() {
        let mut len = piece.len() + encoded(&rest[0]).len();
        let mut count = 1;
        while count < rest.len() && len + encoded(&rest[count]).len() < bytes_max {
            len += encoded(&rest[count]).len();
            count += 1;
        }
        let (now, later) = rest.split_at(count);
        let response = if later.is_empty() && is_end { whole } else { piece };
        outbox.put(&response, len - piece.len(), now.iter().map(&encoded));
        rest = later;
    }
}

/// The watcher of a pair.
pub(super) fn slot_of(pair: u64) -> WatcherSlot {
    u32::try_from(pair >> 32).expect("the high half")
}

/// The position of a pair's event.
pub(super) fn event_of(pair: u64) -> usize {
    usize::try_from(pair & u64::from(u32::MAX)).expect("the low half")
}
