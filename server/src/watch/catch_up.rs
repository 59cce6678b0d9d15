//! Runs on: connection core.
//!
//! Catching up: one bounded step reads the past for the unsynced watchers of a hub.
//!
//! A step reads versions from one position on, for all running watchers at once. Each watcher takes the versions in its
//! range that are at or above its own position. The step ends between two main revisions: when it has read its budget,
//! when it has gathered enough, when a page is not resident, or at the hub's revision. Then each watcher gets one
//! response, and its position is where the step ended.
//!
//! The start of a step goes round: it is the lowest position after what the last step has read. If there is none, it is
//! the lowest position of all. So a watcher that is far behind does not delay one that is nearly there. Watchers that
//! meet go on together.
//!
//! Invariants:
//! - A step without a fault moves the position of at least one watcher, or takes one out of the running ones.
//! - The whole main revisions that a step has gathered before a fault are sent. So a fault costs no progress.

use engine::Revision;

use super::{
    batch::Event,
    deliver::{event_of, slot_of},
    history::{History, Records},
    hub::{Hub, Side},
};

/// Bytes that each version costs of the budget, beside its key and value. **Units** bytes.
const RECORD_BYTES: usize = 64;

/// How far a step has come.
struct Read<F> {
    /// The events that were found, in revision order. `Scratch::pairs` names them by position.
    events: Vec<Event>,
    /// The first main revision that was not read whole.
    end: i64,
    fault: Option<F>,
}

impl Hub {
    /// Makes one step for the unsynced watchers. Returns `true` if more is to be done.
    ///
    /// **Bounds** reads `budget_bytes` and at most one main revision more. Other work is proportional to the number of
    /// running watchers. **Errors** a page or block that must be read before the next call. Events found before it have
    /// been sent.
    pub fn catch_up<H: History>(&mut self, view: &H, budget_bytes: usize) -> Result<bool, H::Fault> {
        assert!(view.revision() >= self.revision, "views are not older than the batches taken in");
        let start = self.next_start(view.compact_revision());
        let mut fault = None;
        if let Some(start) = start {
            let read = self.read(view, start, budget_bytes);
            self.send_gathered(&read.events, view.revision());
            self.settle(start, read.end);
            // After a fault, the next step starts at the same position.
            self.read_to = if read.end > start { read.end } else { start - 1 };
            fault = read.fault;
        }
        let mut touched = std::mem::take(&mut self.scratch.touched);
        for stream in touched.drain(..) {
            self.unpark(stream);
        }
        self.scratch.touched = touched;
        fault.map_or(Ok(!self.running.is_empty()), Err)
    }

    /// Cancels the running watchers that need compacted revisions. Returns the position from which to read for the
    /// others.
    fn next_start(&mut self, compact_revision: i64) -> Option<i64> {
        let mut lowest: Option<i64> = None;
        let mut lowest_behind: Option<i64> = None;
        // It goes backwards: when a watcher is taken out, the last one takes its place.
        for at in (0..self.running.len()).rev() {
            let slot = self.running[at];
            let next = self.watchers[slot as usize].next;
            if next < compact_revision {
                self.cancel_compacted(slot, compact_revision);
                continue;
            }
            lowest = Some(lowest.map_or(next, |lowest| lowest.min(next)));
            if next > self.read_to {
                lowest_behind = Some(lowest_behind.map_or(next, |lowest| lowest.min(next)));
            }
        }
        let start = lowest_behind.or(lowest);
        if start > lowest {
            // This step does not read what these watchers need next.
            for &slot in &self.running {
                let watcher = &mut self.watchers[slot as usize];
                if Some(watcher.next) < start {
                    watcher.cut = watcher.next;
                }
            }
        }
        start
    }

    /// Reads from `start`, and gathers which events go to which watchers.
    fn read<H: History>(&mut self, view: &H, start: i64, budget_bytes: usize) -> Read<H::Fault> {
        assert!(self.scratch.pairs.is_empty(), "a step leaves no pairs behind");
        let mut records = view.records_from(Revision::new(start, 0));
        let mut events: Vec<Event> = Vec::new();
        // The main revision that is being read, and the position of its first event.
        let mut main = start;
        let mut first = 0;
        let mut bytes = 0;
        loop {
            let record = match records.next() {
                Ok(record) => record.filter(|record| record.revision.main <= self.revision),
                Err(fault) => {
                    events.truncate(first);
                    return Read { events, end: main, fault: Some(fault) };
                }
            };
            let is_complete = record.as_ref().is_none_or(|record| record.revision.main > main);
            if is_complete && first < events.len() {
                let gathered = self.scratch.pairs.len();
                if let Err(fault) = self.gather_past(&events, first, view) {
                    self.scratch.pairs.truncate(gathered);
                    events.truncate(first);
                    return Read { events, end: main, fault: Some(fault) };
                }
                first = events.len();
            }
            let Some(record) = record else {
                return Read { events, end: self.revision + 1, fault: None };
            };
            if is_complete {
                if bytes >= budget_bytes || self.scratch.pairs.len() >= self.pairs_max / 2 {
                    return Read { events, end: record.revision.main, fault: None };
                }
                main = record.revision.main;
            }
            bytes += RECORD_BYTES + record.key.len() + record.value.len();
            if self.unsynced.concerns(&record.key) {
                events.push(Event::past(record));
            }
        }
    }

    /// Gathers the events from `first` on, which are one main revision. Makes sure that `prev_kv` is known for watchers
    /// that want it.
    fn gather_past<H: History>(&mut self, events: &[Event], first: usize, view: &H) -> Result<(), H::Fault> {
        let gathered = self.scratch.pairs.len();
        self.gather(Side::Unsynced, &events[first..], first);
        for &pair in &self.scratch.pairs[gathered..] {
            if self.watchers[slot_of(pair) as usize].wants_prev_kv {
                events[event_of(pair)].encoded_with_prev(view)?;
            }
        }
        Ok(())
    }

    /// Sends the gathered events. A watcher whose stream is full stays where it was.
    fn send_gathered(&mut self, events: &[Event], revision: i64) {
        let header = self.responder.header(revision);
        let mut pairs = std::mem::take(&mut self.scratch.pairs);
        pairs.sort_unstable();
        for run in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
            let slot = slot_of(run[0]);
            if self.is_full(self.watchers[slot as usize].stream) {
                let watcher = &mut self.watchers[slot as usize];
                watcher.cut = events[event_of(run[0])].main();
                watcher.is_stalled = true;
            } else {
                self.send(slot, run, events, &header);
            }
        }
        pairs.clear();
        self.scratch.pairs = pairs;
        self.trim_scratch();
    }

    /// Moves the running watchers to the positions to which a step over `start..end` has brought them.
    fn settle(&mut self, start: i64, end: i64) {
        for at in (0..self.running.len()).rev() {
            let slot = self.running[at];
            let watcher = &mut self.watchers[slot as usize];
            let stream = watcher.stream;
            let is_stalled = std::mem::take(&mut watcher.is_stalled);
            let cut = std::mem::replace(&mut watcher.cut, i64::MAX);
            // A watcher that needs versions below `start` was cut off at its position.
            assert!(
                cut >= watcher.next && (watcher.next >= start || cut == watcher.next),
                "a position is where reading ended"
            );
            if watcher.next < end {
                watcher.next = end.min(cut);
            }
            let is_caught_up = watcher.next > self.revision;
            if is_stalled || is_caught_up {
                self.stop_running(slot);
                self.scratch.touched.push(stream);
                if is_caught_up {
                    self.sync(slot);
                } else {
                    self.park(slot);
                }
            }
        }
    }
}
