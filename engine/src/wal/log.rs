//! The write-ahead log, which is the Raft log. Entries and hard states are appended in groups, with one durable write
//! for each group.
//!
//! It runs where its owner runs (the raft core), and is sans-io. `append` queues, `step` submits writes,
//! `on_completion` takes their ends, and `durable` says how far everything is on the medium. Groups form naturally:
//! while the allowed number of writes is in flight, appended records gather. A group is bounded by bytes, never by
//! count or time.
//!
//! Invariants:
//! - `durable` covers a contiguous prefix: groups retire in the order in which they were written, in whatever order
//!   they complete.
//! - A group starts directly after the last one, in the last one's final block, only when nothing is in flight. It then
//!   rewrites that block (its former bytes come unchanged from `tail`). So no two writes in flight touch one block, and
//!   sectors that held durable bytes are overwritten with the same bytes. While a write is in flight, a group starts at
//!   the next block boundary. The reader recognises the gap: zeros up to the boundary, and there a group head that
//!   continues the chain.
//! - The head of a group states `durable_end`: what was durable when the head was written. If a later head states that
//!   a bad frame was durable, the frame is damage. A bad frame after everything that was stated belongs to a group that
//!   was never acknowledged; or to the last that were, and then nothing tells. So a log that has had nothing to write
//!   for a while writes a head alone (`state_end`), in a block of its own.
//! - After such a head, and after an opening, the next group begins a new block. So what was durable before a pause
//!   shares no block with anything that is written later: a device that loses a block whole cannot take it along.
//! - A segment is begun only when nothing is in flight. So a segment with a valid header proves that the one before it
//!   is complete.
//! - `open` syncs what it has read, and ends by writing a *life* record after the last valid frame. The record is
//!   unique to this opening, and comes before anything else is written. Everything appended later chains through it.
//!   Bytes left after the cut chain to what was in its place before. So they can never become valid again, even if the
//!   same entries are appended once more.
//! - A segment is recycled only when the mark that made it useless is durable, and everything that replaced its entries
//!   is durable too: each mark carries the first segment that was needed when it was written.
//! - It is not a failure if a full disk refuses a segment. Records that need it wait in the queue, and nothing of them
//!   was submitted. `room_bytes` tells the caller how little is left before that. `retry_space` asks the disk again.
//! - After a failed write or sync of a segment of the log, `is_failed` is set and nothing is done any more, whatever
//!   the reason. Part of a group that found no space may be on the medium.
//!
//! The log does not know Raft: a term is a number that does not decrease. It keeps positions, not payloads.

use std::{
    collections::VecDeque,
    fmt,
    path::{Path, PathBuf},
};

use super::{
    active::Active,
    entry::{Entry, HardState},
    fetch::{Fetched, Fetches},
    instead,
    options::{ENTRY_BYTES_MAX, GROUP_BYTES_MAX, GROUP_OVERHEAD_BYTES, Known, Options, SEGMENT_BYTES_MIN},
    positions::{Position, Positions, Terms},
    record::{BODY, GROUP_FRAME, Group, HARD_STATE_FRAME, Header, Record},
    recover::{Found, Log},
    segment::{Segment, Spares},
};
use crate::{
    Error,
    disk::{BLOCK, Buffer, Completion, DirLock, Disk, FileOp, Op, Owner},
};

/// The contents of a log when it was opened.
pub struct Recovered {
    /// Index and term of the entry after which the log starts; (0, 0) for a log that was never trimmed.
    pub mark: (u64, u64),
    /// The entries after `mark`, contiguous. Payloads share the memory into which the segments were read, in pieces of
    /// about 1 MiB.
    pub entries: Vec<Entry>,
    /// Last hard state. Its commit is at least the mark's index, and at most the last index.
    pub hard_state: HardState,
    /// Where an unfinished group was cut off. It was never acknowledged, unless it was damaged later: the hard state
    /// says so (`is_cut`).
    pub truncated_tail: Option<(PathBuf, u64)>,
    /// How often this log was opened, this time included.
    pub life: u32,
}

impl fmt::Debug for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recovered")
            .field("mark", &self.mark)
            .field("entries", &self.entries.len())
            .field("hard_state", &self.hard_state)
            .field("truncated_tail", &self.truncated_tail)
            .field("life", &self.life)
            .finish()
    }
}

/// A record that waits for its group, and the new value of `durable` once it and everything before it are durable.
#[derive(Debug)]
struct Queued {
    record: Record,
    ticket: u64,
}

/// A group that is being written, or waits for an older one.
#[derive(Debug)]
struct InFlight {
    number: u64,
    is_done: bool,
    len: usize,
    end: u32,
    bytes: usize,
    ticket: u64,
    /// The first segment that is needed once this group, which has a mark, is durable.
    floor: Option<u32>,
}

/// The log. See the head of this file.
#[derive(Debug)]
pub struct Wal {
    _lock: DirLock,
    options: Options,
    id: u64,
    life: u32,
    /// The terms of everything appended.
    terms: Terms,
    hard_state: HardState,
    /// The positions of everything put into groups.
    positions: Positions,
    written_mark: (u64, u64),
    written_hard_state: HardState,
    queue: VecDeque<Queued>,
    queue_bytes: usize,
    in_flight: VecDeque<InFlight>,
    ticket: u64,
    durable: u64,
    segments: VecDeque<Segment>,
    active: Active,
    spares: Spares,
    fetches: Fetches,
    /// Segments before this one are useless, as a durable mark says.
    floor: u32,
    buffers: Vec<Buffer>,
    /// Whether the last head states everything durable before it, and nothing came after it.
    is_end_stated: bool,
    /// A head must be written that states it.
    is_end_due: bool,
    /// Only what `open` waits for is begun, so that nothing is in flight when it returns.
    is_opening: bool,
    is_failed: bool,
}

impl Wal {
    /// Opens the log in `dir`, or creates it, and starts a new life of it. Blocks. Nothing of `Owner::Wal` may be in
    /// flight.
    ///
    /// **Errors** `Corrupt` if bytes that were durable are damaged; `Locked`, `Format`, `NoSpace`, `Io`.
    pub fn open(disk: &mut dyn Disk, dir: &Path, options: Options, known: Known) -> Result<(Self, Recovered), Error> {
        assert!(options.segment_bytes >= SEGMENT_BYTES_MIN && options.segment_bytes.is_multiple_of(BODY));
        assert!(options.writes_in_flight_max > 0 && options.group_bytes_max <= GROUP_BYTES_MAX);
        disk.create_dir_all(dir)?;
        let lock = disk.lock(dir)?;
        instead::complete(disk, dir)?;
        let mut spares = Spares::new(disk, dir, options.segment_bytes, options.spare_segments_max)?;
        let found = Found::read(disk, dir)?;
        let log = match found.last() {
            Some(last) => Log::read(disk, dir, found, (last, known), &mut spares)?,
            None => Log::create(disk, dir, found, &options, &mut spares)?,
        };
        let Log { id, replay, segments, active, torn } = log;
        spares.expect(active.segment.sequence + 1);
        let life = replay.life.checked_add(1).expect("2^32 openings outlast the hardware");
        let (mark, hard_state) = (replay.mark, replay.hard_state);
        let mut terms = Terms::starting_after(mark);
        for entry in &replay.entries {
            terms.put(entry.index, entry.term);
        }
        let mut wal = Self {
            _lock: lock,
            options,
            id,
            life,
            terms,
            hard_state,
            positions: replay.positions,
            written_mark: mark,
            written_hard_state: hard_state,
            queue: VecDeque::new(),
            queue_bytes: 0,
            in_flight: VecDeque::new(),
            ticket: 0,
            durable: 0,
            segments,
            active,
            spares,
            fetches: Fetches::default(),
            floor: 0,
            buffers: Vec::new(),
            is_end_stated: false,
            is_end_due: false,
            is_opening: true,
            is_failed: false,
        };
        if torn.is_some() {
            // This comes before the life record, behind which nothing tells that the end was cut.
            wal.enqueue(Record::HardState(hard_state), 0);
        }
        wal.begin_life(disk)?;
        Ok((wal, Recovered { mark, entries: replay.entries, hard_state, truncated_tail: torn, life }))
    }

    /// Writes the life record and waits until it is durable.
    fn begin_life(&mut self, disk: &mut dyn Disk) -> Result<(), Error> {
        self.enqueue(Record::Life(self.life), 0);
        self.step(disk)?;
        let mut ended = Vec::new();
        while !self.queue.is_empty() || !self.in_flight.is_empty() {
            disk.wait()?;
            disk.completions(&mut ended);
            for completion in ended.drain(..) {
                self.on_completion(completion, disk)?;
            }
        }
        // The head of this group states all that was found.
        (self.is_opening, self.is_end_stated) = (false, true);
        Ok(())
    }

    /// Queues entries and a hard state. They are durable when `durable() >= ticket`. Tickets never decrease. Entries
    /// are contiguous. An entry whose index is in the log already replaces the old one and everything after it. A hard
    /// state that differs from the last only in `commit`, or is not cut any more, or concerns less, forces no write: it
    /// goes with the next group, and its ticket waits for nothing.
    ///
    /// **Errors** `EntryTooLarge` (nothing was queued), `Stopped`.
    pub fn append(&mut self, entries: &[Entry], hard_state: Option<HardState>, ticket: u64) -> Result<(), Error> {
        let promise = |state: &HardState| (state.term, state.vote);
        let must_write =
            |state: &HardState| promise(state) != promise(&self.hard_state) || says_more(state, &self.hard_state);
        let is_forced = hard_state.as_ref().is_some_and(must_write);
        self.push(entries, hard_state, is_forced, ticket)
    }

    /// Queues a hard state that is written whatever it says. It is durable when `durable() >= ticket`.
    ///
    /// **Errors** `Stopped`.
    pub fn append_hard_state(&mut self, hard_state: HardState, ticket: u64) -> Result<(), Error> {
        self.push(&[], Some(hard_state), true, ticket)
    }

    fn push(
        &mut self,
        entries: &[Entry],
        hard_state: Option<HardState>,
        is_forced: bool,
        ticket: u64,
    ) -> Result<(), Error> {
        if self.is_failed {
            return Err(Error::Stopped);
        }
        assert!(ticket >= self.ticket, "tickets never decrease");
        if let Some(entry) = entries.iter().find(|entry| entry.data.len() > ENTRY_BYTES_MAX) {
            return Err(Error::EntryTooLarge { bytes: entry.data.len(), bytes_max: ENTRY_BYTES_MAX });
        }
        let before = self.ticket;
        for entry in entries {
            self.terms.put(entry.index, entry.term);
            self.enqueue(Record::Entry(entry.clone()), before);
        }
        if let Some(state) = hard_state {
            assert!(state.term >= self.hard_state.term, "terms never decrease");
            assert!(state.commit >= self.hard_state.commit, "what is committed stays committed");
            assert!(state.commit <= self.last_index(), "only entries of the log are committed");
            self.hard_state = state;
            if is_forced {
                self.enqueue(Record::HardState(state), before);
            }
        }
        self.ticket = ticket;
        match (self.queue.back_mut(), self.in_flight.back_mut()) {
            (Some(last), _) => last.ticket = ticket,
            (None, Some(last)) => last.ticket = ticket,
            (None, None) => self.durable = ticket,
        }
        Ok(())
    }

    fn enqueue(&mut self, record: Record, ticket: u64) {
        self.queue_bytes += record.frame_len();
        self.queue.push_back(Queued { record, ticket });
        // The head of its group will state the end.
        self.is_end_due = false;
    }

    /// Records durably how far everything is durable, if no head says so yet and nothing else is to be written. The
    /// owner calls it after a pause; the next `step` writes. Nothing waits for that.
    pub fn state_end(&mut self) {
        let is_quiet = self.queue.is_empty() && self.in_flight.is_empty();
        // On a disk that is full even a write into a segment may find no space.
        self.is_end_due = is_quiet && !self.is_end_stated && !self.is_failed && !self.spares.is_refused();
    }

    /// Submits the writes that may start now. The caller kicks the disk.
    ///
    /// **Errors** the log has then stopped. A disk too full for the next segment is not an error: see `room_bytes`.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Result<(), Error> {
        if self.is_failed {
            return Err(Error::Stopped);
        }
        let result = self.try_step(disk);
        self.is_failed = result.is_err();
        result
    }

    fn try_step(&mut self, disk: &mut dyn Disk) -> Result<(), Error> {
        let mut is_segment_needed = false;
        while (!self.queue.is_empty() || self.is_end_due) && self.in_flight.len() < self.options.writes_in_flight_max {
            if self.start_group(disk) {
                continue;
            }
            if !self.in_flight.is_empty() {
                break;
            }
            self.spares.want(self.queue.front().map_or(0, |queued| segment_bytes_for(queued.record.frame_len())));
            let Some(segment) = self.spares.take() else {
                // An end alone waits until the next segment is ready by itself.
                is_segment_needed = !std::mem::take(&mut self.is_end_due);
                break;
            };
            self.begin_segment(segment);
        }
        if self.is_opening && !is_segment_needed {
            return Ok(());
        }
        let is_idle = self.queue.is_empty() && self.in_flight.is_empty();
        self.spares.step(disk, is_idle, is_segment_needed);
        if self.is_opening && self.spares.is_refused() {
            let path = self.spares.path(self.active.segment.sequence + 1);
            return Err(Error::NoSpace { path, op: FileOp::Create });
        }
        Ok(())
    }

    /// Bytes of records that surely fit into the log while the disk is too full for its next segment; `None` at other
    /// times. Anything beyond that waits in memory until there is space. The caller of `append` bounds it.
    pub fn room_bytes(&self) -> Option<u64> {
        self.spares.is_refused().then(|| self.active_room_bytes())
    }

    /// As [`Wal::room_bytes`], while it is not known whether there will be a next segment: it is being prepared, and
    /// the disk may yet be too full for it. `None` once it is ready, and when it was refused.
    pub fn room_before_next_bytes(&self) -> Option<u64> {
        let is_known = self.spares.is_ready() || self.spares.is_refused();
        (!is_known).then(|| self.active_room_bytes())
    }

    fn active_room_bytes(&self) -> u64 {
        let start = self.active.end.next_multiple_of(BODY);
        let room = usize::try_from(self.active.segment.len.saturating_sub(start)).expect("a segment fits in memory");
        let waiting = self.queue_bytes + self.queue.len() * GROUP_OVERHEAD_BYTES;
        room.saturating_sub(waiting) as u64
    }

    /// Asks for space again after a full disk has refused the next segment. The next `step` does it.
    pub const fn retry_space(&mut self) {
        self.spares.retry();
    }

    /// Goes on in a new segment. Its header goes with its first group.
    fn begin_segment(&mut self, segment: Segment) {
        assert!(self.in_flight.is_empty() && self.active.durable_end == self.active.end);
        assert_eq!(segment.sequence, self.active.segment.sequence + 1);
        let header = Header {
            id: self.id,
            sequence: segment.sequence,
            life: self.life,
            previous_end: self.active.end,
            previous_chain: self.active.chain,
            first_index: self.positions.next(),
            mark: self.written_mark,
            hard_state: self.written_hard_state,
        };
        self.segments.back_mut().expect("the active segment is there").end = self.active.end;
        self.active = Active::beginning(segment, &header);
        self.segments.push_back(segment);
    }

    /// How many records from the front of the queue make the next group from `start` on, and its bytes, head included.
    /// `None` if not even the first one fits. A group without records only states the end.
    fn next_group(&self, start: u32) -> Option<(usize, usize)> {
        let room = usize::try_from(self.active.segment.len.checked_sub(start)?).expect("a segment fits in memory");
        let (mut records, mut bytes) = (0, GROUP_FRAME);
        for queued in &self.queue {
            let len = queued.record.frame_len();
            if bytes + len > room || (records > 0 && bytes >= self.options.group_bytes_max) {
                break;
            }
            records += 1;
            bytes += len;
        }
        (records > 0 || (self.is_end_due && bytes <= room)).then_some((records, bytes))
    }

    /// Puts records from the queue into a group and submits it. Returns false if the active segment has no room.
    fn start_group(&mut self, disk: &mut dyn Disk) -> bool {
        let begins_block = !self.in_flight.is_empty() || self.is_end_due || self.is_end_stated;
        let start = if begins_block { self.active.end.next_multiple_of(BODY) } else { self.active.end };
        let Some((records, mut bytes)) = self.next_group(start) else { return false };
        let room = usize::try_from(self.active.segment.len - start).expect("a segment fits in memory");
        // A commit may only be written after all entries that it can name. So it goes into a group that drains the
        // queue.
        let commit = (records == self.queue.len() && self.hard_state != self.written_hard_state)
            .then_some(self.hard_state)
            .filter(|_| bytes + HARD_STATE_FRAME <= room);
        bytes += commit.map_or(0, |_| HARD_STATE_FRAME);

        let mut buf = self.buffers.pop().unwrap_or_default();
        buf.clear();
        buf.reserve(bytes + 2 * BLOCK);
        let offset = self.active.begin_write(start, &mut buf);
        let head = Group {
            id: self.id,
            life: self.life,
            sequence: self.active.segment.sequence,
            offset: start,
            durable: self.active.durable_end,
            len: u32::try_from(bytes).expect("a group fits in a segment"),
        };
        let mut group = InFlight {
            number: self.spares.operation(),
            is_done: false,
            len: 0,
            end: start + head.len,
            bytes: 0,
            ticket: self.durable,
            floor: None,
        };
        (self.is_end_stated, self.is_end_due) = (self.is_end_due, false);
        self.active.chain = Record::Group(head).encode(self.active.chain, &mut buf);
        for _ in 0..records {
            let queued = self.queue.pop_front().expect("counted above");
            group.bytes += queued.record.frame_len();
            group.ticket = queued.ticket;
            self.write_record(&queued.record, offset, &mut buf, &mut group);
        }
        if let Some(state) = commit {
            self.write_record(&Record::HardState(state), offset, &mut buf, &mut group);
        }
        assert_eq!(offset as usize + buf.len(), group.end as usize);
        self.queue_bytes -= group.bytes;
        self.active.end_write(group.end, &mut buf);
        group.len = buf.len();
        self.spares.earn(buf.len());
        let op = Op::WriteDurable { file: self.active.segment.file, offset: u64::from(offset), buf };
        disk.submit(op, Owner::Wal.token(group.number));
        self.in_flight.push_back(group);
        true
    }

    /// Appends one record to a group's bytes, and keeps what must be known about it.
    fn write_record(&mut self, record: &Record, offset: u32, buf: &mut Buffer, group: &mut InFlight) {
        let at = offset + u32::try_from(buf.len()).expect("a group fits in a segment");
        let position = Position { sequence: self.active.segment.sequence, offset: at, chain: self.active.chain };
        self.active.chain = record.encode(self.active.chain, buf);
        match record {
            Record::Entry(entry) => {
                self.positions.put(entry.index, position);
            }
            Record::HardState(state) => self.written_hard_state = *state,
            Record::Mark { index, term, is_restart } => {
                self.written_mark = (*index, *term);
                if *is_restart {
                    self.positions.restart(index + 1);
                } else {
                    self.positions.trim(*index);
                }
                let first = self.positions.front().map(|position| position.sequence);
                group.floor = Some(first.unwrap_or(self.active.segment.sequence));
            }
            Record::Life(_) | Record::Group(_) => {}
        }
    }

    /// Takes the end of an operation with a token of `Owner::Wal`, and submits what may start after it. The caller
    /// kicks the disk.
    ///
    /// **Errors** the error of the operation. The log has then stopped.
    pub fn on_completion(&mut self, completion: Completion, disk: &mut dyn Disk) -> Result<(), Error> {
        if self.is_failed {
            return Err(Error::Stopped);
        }
        let result = self.complete(completion, disk).and_then(|()| self.try_step(disk));
        self.is_failed = result.is_err();
        result
    }

    fn complete(&mut self, completion: Completion, disk: &mut dyn Disk) -> Result<(), Error> {
        assert_eq!(Owner::of(completion.token), Owner::Wal);
        let number = completion.token;
        if let Some((file, op)) = self.spares.op_of(number) {
            return match completion.result.map_err(|source| Error::io(disk.path(file), op, source)) {
                Ok(_) => {
                    self.spares.on_done(number, completion.buf, disk);
                    Ok(())
                }
                Err(error @ Error::NoSpace { .. }) => self.spares.on_no_space(number, error, disk),
                Err(error) => Err(error),
            };
        }
        if let Some(file) = self.fetches.file_of(number) {
            let read = completion.result.map(|_| completion.buf);
            self.fetches.on_done(number, read, &self.positions, disk.path(file));
            self.recycle(disk);
            return Ok(());
        }
        let group = self.in_flight.iter_mut().find(|group| group.number == number);
        let group = group.expect("every operation of the log is known");
        let file = self.active.segment.file;
        let written = completion.result.map_err(|source| Error::io(disk.path(file), FileOp::Write, source))?;
        assert!(!group.is_done && written == group.len, "a write completes once, and whole");
        group.is_done = true;
        if completion.buf.capacity() <= 2 * self.options.group_bytes_max + 2 * BLOCK {
            self.buffers.push(completion.buf);
        }
        let mut floor = None;
        while self.in_flight.front().is_some_and(|group| group.is_done) {
            let group = self.in_flight.pop_front().expect("just seen");
            assert!(group.end > self.active.durable_end && group.ticket >= self.durable);
            self.active.durable_end = group.end;
            self.durable = group.ticket;
            floor = group.floor.or(floor);
        }
        if let Some(floor) = floor {
            assert!(floor <= self.active.segment.sequence, "the active segment is needed");
            self.floor = self.floor.max(floor);
            self.recycle(disk);
        }
        Ok(())
    }

    /// Gives up the segments before `floor`, but for those that a fetch reads.
    fn recycle(&mut self, disk: &mut dyn Disk) {
        let is_useless = |segment: &Segment| segment.sequence < self.floor && !self.fetches.reads(segment.sequence);
        while self.segments.front().is_some_and(is_useless) {
            let segment = self.segments.pop_front().expect("just seen");
            self.spares.recycle(disk, segment);
        }
    }

    /// The highest ticket whose records, and all records before them, are durable.
    pub const fn durable(&self) -> u64 {
        self.durable
    }

    /// Whether records wait for the disk to end what it was asked to do. On a full disk they wait for space instead.
    pub fn is_waiting(&self) -> bool {
        !self.in_flight.is_empty() || (!self.queue.is_empty() && !self.spares.is_refused())
    }

    /// Bytes appended and not durable yet.
    pub fn queued_bytes(&self) -> usize {
        self.queue_bytes + self.in_flight.iter().map(|group| group.bytes).sum::<usize>()
    }

    /// Entries up to `index` (of term `term`), which is in the log, are no longer needed. They are forgotten at once;
    /// their segments are recycled when the mark is durable. A mark that is not ahead of the present one does nothing.
    pub fn trim(&mut self, index: u64, term: u64) -> Result<(), Error> {
        if self.is_failed {
            return Err(Error::Stopped);
        }
        if index <= self.mark().0 {
            return Ok(());
        }
        assert!(self.terms.holds(index, term), "entry {index} of term {term} is in the log that is trimmed to it");
        self.terms.trim(index, term);
        self.enqueue(Record::Mark { index, term, is_restart: false }, self.ticket);
        Ok(())
    }

    /// Forgets every entry, and goes on after `index` (of term `term`), which is ahead of the mark and not in the log:
    /// a state was installed that this log does not lead to. Segments are recycled when the mark is durable.
    pub fn restart_after(&mut self, index: u64, term: u64) -> Result<(), Error> {
        if self.is_failed {
            return Err(Error::Stopped);
        }
        assert!(index > self.mark().0, "a log restarts ahead of its mark");
        assert!(!self.terms.holds(index, term), "a log that holds the entry is trimmed to it");
        self.terms = Terms::starting_after((index, term));
        self.enqueue(Record::Mark { index, term, is_restart: true }, self.ticket);
        Ok(())
    }

    /// Begins to read durable entries from `from` on, which must be after the mark: at most `bytes_max` bytes of log,
    /// but at least one entry, and nothing beyond a segment's end. [`Wal::take_fetched`] has them once the operation
    /// has ended. The caller kicks the disk. Returns false if `from` is not durable.
    pub fn fetch(&mut self, disk: &mut dyn Disk, from: u64, bytes_max: usize) -> bool {
        assert!(from > self.mark().0, "entry {from} was trimmed");
        let durable = (self.active.segment.sequence, self.active.durable_end);
        let position = self.positions.get(from).filter(|at| (at.sequence, at.offset) < durable);
        let Some(position) = position.filter(|_| !self.is_failed) else { return false };
        let segment = self.segments.iter().find(|segment| segment.sequence == position.sequence);
        let segment = segment.expect("a segment with entries is kept");
        let limit = if segment.sequence == durable.0 { durable.1 } else { segment.end };
        let (number, file) = (self.spares.operation(), segment.file);
        let op = self.fetches.begin(&self.positions, (number, file), (from, bytes_max, limit));
        disk.submit(op, Owner::Wal.token(number));
        true
    }

    /// What fetches have brought since the last call.
    pub fn take_fetched(&mut self) -> Vec<Fetched> {
        self.fetches.take()
    }

    /// Bytes of log after the mark. They drive checkpoints.
    pub fn len_bytes(&self) -> u64 {
        let Some(first) = self.positions.get(self.mark().0 + 1) else { return self.queue_bytes as u64 };
        let mut bytes = self.queue_bytes as u64;
        for segment in self.segments.iter().filter(|segment| segment.sequence >= first.sequence) {
            let start = if segment.sequence == first.sequence { first.offset } else { BODY };
            let end = if segment.sequence == self.active.segment.sequence { self.active.end } else { segment.end };
            assert!(start <= end, "the first entry lies before the end");
            bytes += u64::from(end - start);
        }
        bytes
    }

    /// The last index that has at least `bytes` of log behind it, to the segment; the mark's if there is none.
    pub fn index_before(&self, bytes: u64) -> u64 {
        let mut behind = 0;
        for segment in self.segments.iter().rev() {
            let is_active = segment.sequence == self.active.segment.sequence;
            behind += u64::from(if is_active { self.active.end } else { segment.end });
            if behind >= bytes {
                return self.positions.first_in(segment.sequence).saturating_sub(1).max(self.mark().0);
            }
        }
        self.mark().0
    }

    /// Index and term of the entry after which the log starts.
    pub fn mark(&self) -> (u64, u64) {
        self.terms.mark()
    }

    /// Index of the last appended entry; the mark's index if there is none.
    pub const fn last_index(&self) -> u64 {
        self.terms.last_index()
    }

    /// Term of the entry at `index`, if it is the mark or in the log.
    pub fn term(&self, index: u64) -> Option<u64> {
        self.terms.get(index)
    }
}

/// Whether one state is cut, or concerns somebody, where the other does not.
const fn says_more(one: &HardState, other: &HardState) -> bool {
    (one.is_cut && !other.is_cut) || one.concerned & !other.concerned != 0
}

/// Bytes of a segment that has room for a frame of `frame_len` bytes in a group of its own.
fn segment_bytes_for(frame_len: usize) -> u32 {
    BODY + u32::try_from(GROUP_FRAME + frame_len).expect("payloads are bounded")
}
