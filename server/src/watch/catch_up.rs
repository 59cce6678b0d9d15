//! Runs on: connection core.
//!
//! Catching up: one bounded step reads the past for the unsynced watchers of a hub.
//!
//! A step reads versions from one position on, for all running watchers at once. Each watcher takes the versions in its
//! range that are at or above its own position. The step ends between two main revisions: when it has read its budget,
//! when it has gathered enough, when a page is not resident, or at the hub's revision. Then each watcher gets one
//! response, and its position is where the step ended.
//!
//! A main revision that is very long is read in parts, each in a step of its own. It is still one response to each
//! watcher, whose length stands before its first event. So it is read twice: once to measure the responses, and once to
//! send them, a part at a time. Nothing that grows with the revision is held.
//!
//! The start of a step goes round: it is the lowest position after what the last step has read. If there is none, it is
//! the lowest position of all. So a watcher that is far behind does not delay one that is nearly there. Watchers that
//! meet go on together.
//!
//! Invariants:
//! - A step without a fault moves the position of at least one watcher, or takes one out of the running ones.
//! - The whole main revisions that a step has gathered before a fault are sent. So a fault costs no progress.

use engine::{Revision, planted::is_planted};

use super::{
    batch::Event,
    deliver::{encoded_for, event_of, slot_of},
    history::{History, Records},
    hub::{Hub, Side},
    interval::WatcherSlot,
    watcher::Watcher,
};

/// The least goal for a part. **Units** bytes.
const PART_BYTES_MIN: usize = 4096;

/// Bytes that each version costs of the budget, beside its key and value. **Units** bytes.
const RECORD_BYTES: usize = 64;

/// How far a step has come.
struct Read<F> {
    /// The events that were found, in revision order. `Scratch::pairs` names them by position.
    events: Vec<Event>,
    /// The first revision that was not read. It begins a main revision, unless that one is read in parts.
    end: Revision,
    /// Whether it has read a part of a main revision.
    is_part: bool,
    fault: Option<F>,
}

/// The beginning of a main revision.
fn begin_of(main: i64) -> Revision {
    Revision::new(main, 0)
}

impl Hub {
    /// Makes one step for the unsynced watchers. Returns `true` if more is to be done.
    ///
    /// **Bounds** reads `budget_bytes` and at most one main revision more, or a part of one. Other work is proportional
    /// to the number of running watchers. **Errors** a page or block that must be read before the next call. Events
    /// found before it have been sent.
    pub fn catch_up<H: History>(&mut self, view: &H, budget_bytes: usize) -> Result<bool, H::Fault> {
        assert!(view.revision() >= self.revision, "views are not older than the batches taken in");
        let start = self.next_start(view.compact_revision());
        let mut fault = None;
        if let Some((start, is_part)) = start {
            let read = self.read(view, (start, is_part), budget_bytes);
            self.send_gathered(&read, view.revision());
            self.settle(start, &read);
            // After a fault, the next step starts at the same position.
            let before = Revision::new(start.main, start.sub - 1);
            self.read_to = if read.end > start { read.end } else { before };
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
    /// others, and whether the main revision there is read in parts.
    fn next_start(&mut self, compact_revision: i64) -> Option<(Revision, bool)> {
        let mut lowest: Option<Revision> = None;
        let mut lowest_behind: Option<Revision> = None;
        // It goes backwards: when a watcher is taken out, the last one takes its place.
        for at in (0..self.running.len()).rev() {
            let slot = self.running[at];
            let next = self.watchers[slot as usize].next;
            if next.main < compact_revision && !is_planted("a watcher that passes what is compacted") {
                self.end_compacted(slot, compact_revision);
                continue;
            }
            lowest = Some(lowest.map_or(next, |lowest| lowest.min(next)));
            if next > self.read_to {
                lowest_behind = Some(lowest_behind.map_or(next, |lowest| lowest.min(next)));
            }
        }
        let start = lowest_behind.or(lowest)?;
        let is_in_it = |watcher: &Watcher| watcher.is_within() && watcher.next.main == start.main;
        let is_part = self.running.iter().any(|slot| is_in_it(&self.watchers[*slot as usize]));
        for &slot in &self.running {
            let watcher = &mut self.watchers[slot as usize];
            // This step does not read what these watchers need next.
            if watcher.next < start || (watcher.is_within() && watcher.next.main != start.main) {
                watcher.cut = watcher.next;
            }
        }
        Some((start, is_part))
    }

    /// A page that the running watchers need cannot be read: their responses that have begun cannot be completed.
    pub fn fail_open(&mut self) {
        for at in 0..self.running.len() {
            let slot = self.running[at];
            let stream = self.watchers[slot as usize].stream;
            let state = &mut self.streams[stream as usize];
            if state.open.is_some_and(|open| open.slot == slot) {
                state.is_broken = true;
                self.list(stream);
            }
        }
    }

    /// Ends a running watcher that needs compacted revisions.
    fn end_compacted(&mut self, slot: WatcherSlot, compact_revision: i64) {
        let watcher = &self.watchers[slot as usize];
        let stream = &mut self.streams[watcher.stream as usize];
        match stream.open {
            None => return self.cancel_compacted(slot, compact_revision),
            Some(open) if open.slot == slot => {
                stream.is_broken = true;
                let stream = watcher.stream;
                self.list(stream);
            }
            // It is told when the response of another watcher is complete.
            Some(_) => {}
        }
        self.stop_running(slot);
        self.park(slot);
    }

    /// Reads from `start`, and gathers which events go to which watchers.
    fn read<H: History>(
        &mut self,
        view: &H,
        (start, is_part): (Revision, bool),
        budget_bytes: usize,
    ) -> Read<H::Fault> {
        assert!(self.scratch.pairs.is_empty(), "a step leaves no pairs behind");
        let mut records = view.records_from(start);
        let mut events: Vec<Event> = Vec::new();
        // The main revision that is being read, the position of its first event, and what was read before it.
        let (mut main, mut first, mut before) = (start.main, 0, 0);
        let (mut bytes, mut reached) = (0, start);
        loop {
            let record = match records.next() {
                Ok(record) => record.filter(|record| record.revision.main <= self.revision),
                // Whatever of the part was read is one, too.
                Err(fault) if is_part => return self.gathered_part(events, reached, Some(fault), view),
                Err(fault) => {
                    events.truncate(first);
                    return Read { events, end: begin_of(main), is_part, fault: Some(fault) };
                }
            };
            let is_complete = record.as_ref().is_none_or(|record| record.revision.main > main);
            if is_complete && is_part {
                return self.gathered_part(events, begin_of(main + 1), None, view);
            }
            if is_complete && first < events.len() {
                let gathered = self.scratch.pairs.len();
                if let Err(fault) = self.gather_past(&events, first, view) {
                    self.scratch.pairs.truncate(gathered);
                    events.truncate(first);
                    return Read { events, end: begin_of(main), is_part, fault: Some(fault) };
                }
                first = events.len();
            }
            let Some(record) = record else {
                return Read { events, end: begin_of(self.revision + 1), is_part, fault: None };
            };
            if is_complete {
                if bytes >= budget_bytes || self.scratch.pairs.len() >= self.pairs_max / 2 {
                    return Read { events, end: begin_of(record.revision.main), is_part, fault: None };
                }
                (main, before) = (record.revision.main, bytes);
            } else if bytes - before > if is_part { self.part_goal.min(self.part_bytes) } else { self.part_bytes } {
                if main > start.main {
                    // A step of its own reads it.
                    events.truncate(first);
                    return Read { events, end: begin_of(main), is_part, fault: None };
                }
                return self.gathered_part(events, record.revision, None, view);
            }
            bytes += RECORD_BYTES + record.key.len() + record.value.len();
            reached = after(record.revision);
            if self.unsynced.concerns(&record.key) {
                events.push(Event::past(record));
            }
        }
    }

    /// Gathers a part of a main revision, which ends before `end`. If a previous value is not in memory, the part ends
    /// before that event.
    fn gathered_part<H: History>(
        &mut self,
        mut events: Vec<Event>,
        mut end: Revision,
        mut fault: Option<H::Fault>,
        view: &H,
    ) -> Read<H::Fault> {
        self.part_goal = self.part_goal.saturating_mul(2).min(self.part_bytes);
        while !events.is_empty() {
            let Err((at, needed)) = self.gather_part(&events, view) else { break };
            self.scratch.pairs.clear();
            let Some(needed) = needed else {
                end = events[at].record().revision;
                events.truncate(at);
                fault = None;
                continue;
            };
            let is_at_hand = |event: &Event| RECORD_BYTES + event.record().key.len();
            self.part_goal = events[..at].iter().map(is_at_hand).sum::<usize>().max(PART_BYTES_MIN);
            end = events[at].record().revision;
            events.truncate(at);
            fault = Some(needed);
        }
        Read { events, end, is_part: true, fault }
    }

    /// Gathers `events`, a part of one main revision. A fault comes with the position of its event. Without a fault, a
    /// position says where the part must end, because previous values make it too long.
    fn gather_part<H: History>(&mut self, events: &[Event], view: &H) -> Result<(), (usize, Option<H::Fault>)> {
        self.gather(Side::Unsynced, events, 0, events[0].record().revision);
        let (mut bytes, mut counted) = (0, None);
        for &pair in &self.scratch.pairs {
            let at = event_of(pair);
            if self.watchers[slot_of(pair) as usize].wants_prev_kv && counted != Some(at) {
                if bytes > self.part_bytes {
                    return Err((at, None));
                }
                let encoded = events[at].encoded_with_prev(view).map_err(|fault| (at, Some(fault)))?;
                bytes += encoded.len();
                counted = Some(at);
            }
        }
        Ok(())
    }

    /// Gathers the events from `first` on, which are one main revision. Makes sure that `prev_kv` is known for watchers
    /// that want it.
    fn gather_past<H: History>(&mut self, events: &[Event], first: usize, view: &H) -> Result<(), H::Fault> {
        let gathered = self.scratch.pairs.len();
        self.gather(Side::Unsynced, &events[first..], first, begin_of(events[first].main()));
        for &pair in &self.scratch.pairs[gathered..] {
            if self.watchers[slot_of(pair) as usize].wants_prev_kv {
                events[event_of(pair)].encoded_with_prev(view)?;
            }
        }
        Ok(())
    }

    /// Sends the gathered events, or measures them. A watcher whose stream is full stays where it was.
    fn send_gathered<F>(&mut self, read: &Read<F>, revision: i64) {
        let events = &read.events;
        let header = self.responder.header(revision);
        let mut pairs = std::mem::take(&mut self.scratch.pairs);
        pairs.sort_unstable();
        for run in pairs.chunk_by(|a, b| a >> 32 == b >> 32) {
            let slot = slot_of(run[0]);
            let watcher = &mut self.watchers[slot as usize];
            if read.is_part && watcher.left == 0 {
                let encoded = encoded_for(watcher, events);
                watcher.measured += run.iter().map(|pair| encoded(pair).len() as u64).sum::<u64>();
                continue;
            }
            let stream = &self.streams[watcher.stream as usize];
            if stream.is_full_for(slot, self.bounds.stream_buffer_bytes_max) {
                let first = events[event_of(run[0])].record().revision;
                watcher.cut = if read.is_part { first } else { begin_of(first.main) };
                watcher.is_stalled = true;
            } else if read.is_part {
                self.send_part(slot, run, events, &header);
            } else {
                self.send(slot, run, events, &header);
            }
        }
        pairs.clear();
        self.scratch.pairs = pairs;
        self.trim_scratch();
    }

    /// Moves the running watchers to the positions to which a step from `start` has brought them.
    fn settle<F>(&mut self, start: Revision, read: &Read<F>) {
        for at in (0..self.running.len()).rev() {
            let slot = self.running[at];
            let watcher = &mut self.watchers[slot as usize];
            let stream = watcher.stream;
            let is_stalled = std::mem::take(&mut watcher.is_stalled);
            let cut = std::mem::replace(&mut watcher.cut, Revision::MAX);
            // A watcher that needs versions below `start` was cut off at its position.
            assert!(
                cut >= watcher.next && (watcher.next >= start || cut == watcher.next),
                "a position is where reading ended"
            );
            let before = watcher.next;
            if watcher.next < read.end {
                let is_lost = is_planted("an event lost behind a full stream");
                watcher.next = if is_lost { read.end } else { read.end.min(cut) };
            }
            if read.is_part && before.main == start.main && watcher.next.main > before.main {
                if watcher.left > 0 {
                    // What was measured was compacted meanwhile.
                    self.streams[stream as usize].is_broken = true;
                    self.list(stream);
                    self.stop_running(slot);
                    self.park(slot);
                    continue;
                }
                if watcher.measured > 0 {
                    watcher.left = std::mem::take(&mut watcher.measured);
                    watcher.next = begin_of(before.main);
                }
            }
            let watcher = &self.watchers[slot as usize];
            let is_caught_up = watcher.next.main > self.revision;
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

/// The revision after `revision`, in the same main revision.
fn after(revision: Revision) -> Revision {
    Revision::new(revision.main, revision.sub + 1)
}
