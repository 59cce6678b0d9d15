//! Runs on: connection core.
//!
//! The requests of clients on a hub's streams: create, cancel, progress. Also the progress that they get without
//! asking.
//!
//! Invariants:
//! - A create is answered by exactly one response, in the order of the requests. No event of a watcher precedes it.
//! - Progress at a revision is sent only when every event at or below it was put into the outbox before: every event of
//!   the watcher, or of all watchers of the stream.
//!
//! The caller decides whether a create is refused for lack of permission.

use bytes::Bytes;
use engine::planted::is_planted;
use proto::{etcdserverpb::WatchCreateRequest, wire_range::WireRange};

use super::{
    encode::{NO_WATCH_ID, Response},
    hub::Hub,
    interval::WatcherSlot,
    watcher::Watcher,
};

/// Texts of refused creates. **Source** etcd v3.7.1 `mvcc/watcher.go`, `api/v3rpc/rpctypes/error.go`.
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const DUPLICATE_ID: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const COMPACTED: &str = "etcdserver: mvcc: required revision has been compacted";
const TOO_MANY: &str = "etcdserver: too many requests";

/// Takes in requests.
impl Hub {
    pub(super) fn create(&mut self, stream: u32, mut request: WatchCreateRequest, denied: Option<&str>, revision: i64) {
        if request.key.is_empty() {
            request.key = Bytes::from_static(b"\0");
        }
        let range = WireRange::new(request.key.clone(), request.range_end.clone());
        let is_duplicate = request.watch_id != 0 && self.stream(stream).watchers.contains_key(&request.watch_id);
        let refusal = if request.start_revision < 0 {
            Some(COMPACTED)
        } else if denied.is_some() {
            denied
        } else if range.is_empty() {
            Some(EMPTY_RANGE)
        } else if is_duplicate {
            Some(DUPLICATE_ID)
        } else if self.watchers.len() >= self.bounds.watchers_max {
            Some(TOO_MANY)
        } else {
            None
        };
        let header = self.responder.header(revision);
        if let Some(reason) = refusal {
            let response = Response {
                is_created: true,
                is_canceled: true,
                cancel_reason: reason,
                ..Response::new(&header, NO_WATCH_ID)
            };
            self.reply(stream, &response);
            return;
        }
        let state = &mut self.streams[stream as usize];
        let id = if request.watch_id == 0 { state.free_id() } else { request.watch_id };
        self.reply(stream, &Response { is_created: true, ..Response::new(&header, id) });
        self.add_watcher(Watcher::new(range, stream, id, revision, &request), revision);
    }

    fn add_watcher(&mut self, watcher: Watcher, revision: i64) {
        if self.synced.len() == 0 {
            // No watcher depends on the batches in between.
            self.revision = self.revision.max(revision);
        }
        let (stream, id) = (watcher.stream, watcher.id);
        let is_synced = watcher.next.main > self.revision;
        let wants_progress = watcher.wants_progress;
        let progress_from = watcher.progress_from;
        let slot = u32::try_from(self.watchers.insert(watcher)).expect("watchers_max fits 32 bits");
        let state = &mut self.streams[stream as usize];
        let former = state.watchers.insert(id, slot);
        assert_eq!(former, None, "an id is used once on a stream");
        if wants_progress {
            state.notified.insert(slot);
        }
        state.progress_from_max = state.progress_from_max.max(progress_from);
        state.unsynced += 1;
        self.totals.watchers += 1;
        self.totals.watchers_unsynced += 1;
        if is_synced {
            self.sync(slot);
        } else {
            self.park(slot);
            self.unpark(stream);
        }
    }

    pub(super) fn cancel(&mut self, stream: u32, id: i64, revision: i64) {
        let Some(&slot) = self.stream(stream).watchers.get(&id) else {
            return;
        };
        self.drop_watcher(slot);
        let header = self.responder.header(revision);
        self.reply(stream, &Response { is_canceled: true, ..Response::new(&header, id) });
        self.unpark(stream);
    }

    pub(super) fn request_progress(&mut self, stream: u32, revision: i64) {
        if revision <= self.revision {
            self.send_stream_progress(stream);
            return;
        }
        // The client may have read at `revision`. An answer below it would tell it nothing.
        let state = &mut self.streams[stream as usize];
        let waiting = state.progress_due.map_or(0, |(_, waiting)| waiting);
        state.progress_due = Some((revision, waiting.saturating_add(1)));
        if waiting == 0 {
            self.progress_due.push(stream);
        }
    }

    pub(super) fn reply(&mut self, stream: u32, response: &Response<'_>) {
        self.streams[stream as usize].outbox.put(response, 0, []);
        self.list(stream);
    }

    /// Notes that the stream has output.
    pub(super) fn list(&mut self, stream: u32) {
        let state = &mut self.streams[stream as usize];
        if !state.is_listed {
            state.is_listed = true;
            self.ready.push_back(stream);
        }
    }
}

/// Sends progress.
impl Hub {
    /// Sends progress of the whole stream, if it has watchers and none of them is behind.
    fn send_stream_progress(&mut self, stream: u32) {
        let state = self.stream(stream);
        let is_behind = state.unsynced > 0 && !is_planted("progress before its events");
        if state.watchers.is_empty() || is_behind || self.is_full(stream) {
            return;
        }
        let is_early = |slot: &WatcherSlot| self.watchers[*slot as usize].progress_from > self.revision;
        if state.progress_from_max > self.revision && state.watchers.values().any(is_early) {
            return;
        }
        let header = self.responder.header(self.revision);
        self.reply(stream, &Response::new(&header, NO_WATCH_ID));
    }

    pub(super) fn send_due_progress(&mut self) {
        if self.progress_due.is_empty() {
            return;
        }
        let mut due = std::mem::take(&mut self.progress_due);
        due.retain(|&stream| {
            // A closed stream is no longer due. Nor is another stream that has got its number.
            let Some(state) = self.streams.get_mut(stream as usize) else {
                return false;
            };
            if let Some((_, waiting)) = state.progress_due.take_if(|(revision, _)| *revision <= self.revision) {
                // Each request has its answer. A full stream drops the others, as it drops single ones.
                (0..waiting).for_each(|_| self.send_stream_progress(stream));
            }
            self.stream(stream).progress_due.is_some()
        });
        self.progress_due = due;
    }

    /// Sends automatic progress to a stream's watchers that asked for it and had no event since the last time.
    pub(super) fn send_progress(&mut self, stream: u32) {
        let header = self.responder.header(self.revision);
        let is_full = self.is_full(stream);
        let state = &mut self.streams[stream as usize];
        let mut is_told = false;
        for &slot in &state.notified {
            let watcher = &mut self.watchers[slot as usize];
            if watcher.is_idle && watcher.is_synced() && watcher.progress_from <= self.revision && !is_full {
                state.outbox.put(&Response::new(&header, watcher.id), 0, []);
                is_told = true;
            }
            watcher.is_idle = true;
        }
        if is_told {
            state.has_progress = true;
            self.list(stream);
        }
    }
}
