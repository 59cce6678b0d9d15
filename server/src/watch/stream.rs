//! Runs on: connection core.
//!
//! One watch stream: its watchers by id, the watchers that wait, and the bytes that wait to be sent.
//!
//! Invariants:
//! - `outbox.bytes` is the total length of `sealed` and `tail`. A message may lie in several chunks. The chunks are in
//!   order.
//! - `unsynced` counts the watchers that are not synced. `running` counts those that take part in catching up. `parked`
//!   holds those that wait, oldest ticket first.
//! - `progress_from_max` is at least every watcher's `progress_from`.
//!
//! The hub decides whether events may still be put into the outbox. Replies to requests may always be. The reader of
//! requests stops while the stream is congested.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::{BufMut, Bytes};

use super::{
    encode::{FRAME_LEN, Response},
    interval::WatcherSlot,
};

/// Number of a watch stream of one hub. It is used again after the stream is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// A stream's state.
pub(super) struct Stream {
    pub(super) watchers: BTreeMap<i64, WatcherSlot>,
    /// The first id to try if the client does not choose one.
    pub(super) next_id: i64,
    /// Watchers that asked for automatic progress.
    pub(super) notified: BTreeSet<WatcherSlot>,
    pub(super) unsynced: usize,
    pub(super) running: usize,
    pub(super) parked: BTreeMap<u64, WatcherSlot>,
    pub(super) progress_from_max: i64,
    /// The revision of the store when progress was requested last, if the hub has not reached it yet, and the number of
    /// requests that wait for it.
    pub(super) progress_due: Option<(i64, u32)>,
    pub(super) progress_interval: Duration,
    /// When automatic progress is sent next.
    pub(super) progress_at: Duration,
    pub(super) outbox: Outbox,
    /// The watcher whose response is in the outbox in part, or was taken from there. Nothing else may come between.
    pub(super) open: Option<Open>,
    /// A response that has begun cannot be completed. The stream must end.
    pub(super) is_broken: bool,
    /// Whether automatic progress was put into `outbox` since the last piece without events was taken.
    pub(super) has_progress: bool,
    /// Whether the stream is in the hub's list of streams with output.
    pub(super) is_listed: bool,
}

impl Stream {
    pub(super) fn new(now: Duration, progress_interval: Duration) -> Self {
        Self {
            watchers: BTreeMap::new(),
            next_id: 0,
            notified: BTreeSet::new(),
            unsynced: 0,
            running: 0,
            parked: BTreeMap::new(),
            progress_from_max: 0,
            progress_due: None,
            progress_interval,
            progress_at: now.saturating_add(progress_interval),
            outbox: Outbox::default(),
            open: None,
            is_broken: false,
            has_progress: false,
            is_listed: false,
        }
    }

    /// Whether it takes no events, or only those that complete its open response. `bytes_max` is the bound of the
    /// outbox.
    pub(super) fn is_full(&self, bytes_max: usize) -> bool {
        self.outbox.len() > bytes_max || self.open.is_some() || self.is_broken
    }

    /// As [`Stream::is_full`], for the parts of the response for `slot`.
    pub(super) fn is_full_for(&self, slot: WatcherSlot, bytes_max: usize) -> bool {
        let is_other = self.open.is_some_and(|open| open.slot != slot);
        self.outbox.len() > bytes_max || is_other || self.is_broken
    }

    /// An id for a new watcher that left the choice to the server.
    pub(super) fn free_id(&mut self) -> i64 {
        while self.watchers.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        let id = self.next_id;
        self.next_id += 1;
        id
    }
}

/// A response that goes out in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    /// Its watcher.
    pub(super) slot: WatcherSlot,
    /// Whether it is one message. Otherwise each part makes messages of its own.
    pub(super) is_one: bool,
}

/// From this length on, event bytes are passed on by reference instead of being copied. **Units** bytes.
const SHARED_BYTES_MIN: usize = 16 * 1024;

/// A chunk is closed when it has reached this length. **Units** bytes.
const CHUNK_BYTES: usize = 64 * 1024;

/// Framed messages that wait to be sent.
#[derive(Default)]
pub(super) struct Outbox {
    /// Closed chunks, each with the number of events that end in it.
    sealed: VecDeque<(Bytes, u64)>,
    /// A `Vec` takes small fields at a third of what a `BytesMut` takes.
    tail: Vec<u8>,
    tail_events: u64,
    bytes: usize,
    /// Number of events in all chunks and in the tail.
    events: u64,
    /// Length of the last chunk: a hint for the next one.
    chunk_bytes_hint: usize,
}

impl Outbox {
    /// Bytes that wait. **Units** bytes.
    pub(super) fn len(&self) -> usize {
        self.bytes
    }

    /// Number of events that wait.
    pub(super) fn events(&self) -> u64 {
        self.events
    }

    /// Appends one framed message: `response` with `events`. The lengths of the events sum up to `events_len`.
    pub(super) fn put<'e>(
        &mut self,
        response: &Response<'_>,
        events_len: usize,
        events: impl IntoIterator<Item = &'e Bytes>,
    ) {
        let expected = self.bytes + FRAME_LEN + response.len() + events_len;
        self.begin(response, events_len);
        self.go_on(events);
        assert_eq!(self.bytes, expected, "a message is as long as its frame says");
    }

    /// Appends the beginning of a framed message: `response` without its events, whose lengths will sum up to
    /// `events_len`.
    pub(super) fn begin(&mut self, response: &Response<'_>, events_len: usize) {
        let message_len = response.len() + events_len;
        if self.tail.capacity() == 0 {
            self.tail.reserve(self.chunk_bytes_hint.max((FRAME_LEN + message_len).min(CHUNK_BYTES)));
        }
        let before = self.tail.len();
        self.tail.put_u8(0);
        self.tail.put_u32(u32::try_from(message_len).expect("longer responses are fragmented"));
        response.put(&mut self.tail);
        self.bytes += self.tail.len() - before;
    }

    /// Appends events to the message that was begun last.
    pub(super) fn go_on<'e>(&mut self, events: impl IntoIterator<Item = &'e Bytes>) {
        for event in events {
            self.bytes += event.len();
            self.events += 1;
            if event.len() < SHARED_BYTES_MIN {
                self.tail.put_slice(event);
                self.tail_events += 1;
            } else {
                self.seal();
                self.sealed.push_back((event.clone(), 1));
            }
        }
        if self.tail.len() >= CHUNK_BYTES {
            self.seal();
        }
    }

    /// The next bytes to send, and how many events end in them.
    pub(super) fn take(&mut self) -> Option<(Bytes, u64)> {
        if self.sealed.is_empty() {
            self.seal();
        }
        let (chunk, events) = self.sealed.pop_front()?;
        self.bytes -= chunk.len();
        self.events -= events;
        Some((chunk, events))
    }

    fn seal(&mut self) {
        if !self.tail.is_empty() {
            self.chunk_bytes_hint = self.tail.len().min(CHUNK_BYTES);
            let events = std::mem::take(&mut self.tail_events);
            self.sealed.push_back((std::mem::take(&mut self.tail).into(), events));
        }
    }
}
