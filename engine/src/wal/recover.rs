//! Opens a log: it finds what is valid, where that ends, and whether the end is a torn tail or damage.
//!
//! The segments of the log are the run of consecutive sequences that ends in the newest valid header. Reading begins at
//! the newest of them that was begun when nothing after the newest header's mark was live. It follows the chain from
//! there.
//!
//! - A segment with a successor must be valid exactly up to the end that the successor's header states.
//! - The last segment ends at its first frame that does not chain. After that, every byte is searched for group heads
//!   of this log. A head that states more to be durable than was found valid proves damage. A head that is not where it
//!   was written proves a misdirected write. Both refuse the start. Other heads belong to groups that nobody
//!   acknowledged, and are cut off.
//! - If only the process died, what was read may still be in a volatile cache. So it is synced before it counts.
//!
//! It repairs nothing, on purpose: damaged bytes stay as they are, so that a person can look at them.

use std::{
    collections::{BTreeMap, VecDeque},
    path::{Path, PathBuf},
};

use bytes::Bytes;

use super::{
    active::Active,
    aside::is_aside,
    entry::{Entry, HardState},
    options::{Known, Options},
    positions::{Position, Positions},
    record::{BODY, GROUP_FRAME, Group, Header, HeaderSector, INDEX_MAX, Record, VERSION},
    segment::{Segment, Spares, name, sequence_of},
    window::{Window, is_read_error},
};
use crate::{
    Error,
    disk::{BLOCK, Buffer, Disk, FileOp, Op, OpenKind, Owner},
};

/// Bytes that are read at once during recovery. It is also the memory that one recovered payload may keep alive.
const WINDOW_BYTES: usize = 1 << 20;
const _: () = assert!(WINDOW_BYTES > BLOCK && GROUP_FRAME < BLOCK);

/// A segment file, and the content of its first sector.
pub(super) struct Candidate {
    pub(super) segment: Segment,
    pub(super) header: HeaderSector,
}

/// All segment files of a directory.
pub(super) struct Found {
    pub(super) files: BTreeMap<u32, Candidate>,
}

impl Found {
    pub(super) fn read(disk: &mut dyn Disk, dir: &Path) -> Result<Self, Error> {
        let mut files = BTreeMap::new();
        for sequence in disk.list(dir)?.iter().filter_map(|name| sequence_of(name)) {
            let path = dir.join(name(sequence));
            let file = disk.open(&path, OpenKind::Write)?;
            let len = disk.len(file)?;
            let len = u32::try_from(len - len % BLOCK as u64).unwrap_or(u32::MAX - (u32::MAX % BODY));
            let segment = Segment { sequence, file, len, end: BODY };
            let mut block = Buffer::new();
            let read = if len >= BODY { disk.read_blocking(file, 0, BLOCK, &mut block) } else { Ok(()) };
            let header = match read {
                read if is_read_error(&read) => HeaderSector::Unreadable,
                Err(error) => return Err(error),
                Ok(()) if block.is_empty() => HeaderSector::Blank,
                Ok(()) => Header::decode(&block),
            };
            if let HeaderSector::Foreign(found) = header {
                return Err(Error::Format { path, found, supported: VERSION });
            }
            files.insert(sequence, Candidate { segment, header });
        }
        Ok(Self { files })
    }

    /// The header of segment `sequence`, with its CRC, if that file is a segment of this sequence.
    fn header(&self, sequence: u32) -> Option<(Header, u32)> {
        match self.files.get(&sequence)?.header {
            HeaderSector::Valid(header, crc) if header.sequence == sequence => Some((header, crc)),
            _ => None,
        }
    }

    /// The newest segment with a header of its own.
    pub(super) fn last(&self) -> Option<u32> {
        self.files.keys().rev().copied().find(|sequence| self.header(*sequence).is_some())
    }

    /// Refuses if a file shows that the log went on after `last`. A reused file holds an older header than the newest.
    fn assert_newest(&self, dir: &Path, last: u32, id: u64) -> Result<(), Error> {
        for (sequence, candidate) in &self.files {
            if let HeaderSector::Valid(header, _) = &candidate.header
                && header.id == id
                && header.sequence > last
            {
                return Err(Error::corrupt(
                    &dir.join(name(*sequence)),
                    0,
                    "a newer segment stands here than was found",
                ));
            }
        }
        Ok(())
    }

    /// Refuses if segment `sequence`, which has no header of its own, was used nevertheless. Its header was then lost.
    fn assert_unused(&self, disk: &mut dyn Disk, dir: &Path, sequence: u32, id: Option<u64>) -> Result<(), Error> {
        let Some(Candidate { segment, header }) = self.files.get(&sequence) else { return Ok(()) };
        let path = dir.join(name(sequence));
        if *header == HeaderSector::Damaged {
            return Err(Error::corrupt(&path, 0, "segment header"));
        }
        let window = u32::try_from(WINDOW_BYTES).expect("1 MiB fits");
        let (mut at, mut buf) = (BODY, Buffer::new());
        while at < segment.len {
            let len = window.min(segment.len - at);
            read_around(disk, segment, at, usize::try_from(len).expect("1 MiB fits"), &mut buf)?;
            let of_this = |(start, group): &(i64, Group)| {
                group.sequence == sequence
                    && id.is_none_or(|id| group.id == id)
                    && start + i64::from(at) == i64::from(group.offset)
            };
            let mut is_begun = false;
            for (_, group) in Group::search(&buf).filter(of_this) {
                if group.durable > BODY || *header == HeaderSector::Unreadable {
                    return Err(Error::corrupt(&path, 0, "the segment is in use and has no header"));
                }
                is_begun = true;
            }
            // Groups that were never acknowledged do no harm. One that was may lie behind a long one.
            if !is_begun && at == BODY {
                return Ok(());
            }
            // A head may lie across the end of what was read.
            at += if len < window { len } else { len - BODY };
        }
        Ok(())
    }
}

/// The valid part of a log.
pub(super) struct Log {
    pub(super) id: u64,
    pub(super) replay: Replay,
    pub(super) segments: VecDeque<Segment>,
    pub(super) active: Active,
    pub(super) torn: Option<(PathBuf, u64)>,
}

impl Log {
    /// Creates a log. Its first segment is filled and its name durable; nothing of the log counts before its first
    /// group does.
    pub(super) fn create(
        disk: &mut dyn Disk,
        dir: &Path,
        found: Found,
        options: &Options,
        spares: &mut Spares,
    ) -> Result<Self, Error> {
        for sequence in found.files.keys() {
            found.assert_unused(disk, dir, *sequence, None)?;
        }
        for (sequence, candidate) in found.files {
            disk.close(candidate.segment.file);
            disk.remove(&dir.join(name(sequence)))?;
        }
        let len = options.segment_bytes;
        let file = disk.open(&dir.join(name(1)), OpenKind::Create { len: u64::from(len) })?;
        let mut filled = 0;
        while filled < len {
            let chunk = (len - filled).min(1 << 20);
            let buf = Buffer::zeroed(usize::try_from(chunk).expect("a chunk fits in memory"));
            run(disk, spares, Op::Write { file, offset: u64::from(filled), buf })?;
            filled += chunk;
        }
        run(disk, spares, Op::Sync { file })?;
        disk.sync_dir(dir)?;
        let segment = Segment { sequence: 1, file, len, end: BODY };
        let header = Header {
            id: options.fresh_id,
            sequence: 1,
            life: 0,
            previous_end: 0,
            previous_chain: 0,
            first_index: 1,
            mark: (0, 0),
            hard_state: if is_aside(disk, dir)? {
                HardState { is_cut: true, concerned: u64::MAX, ..HardState::default() }
            } else {
                HardState::default()
            },
        };
        Ok(Self {
            id: header.id,
            replay: Replay::starting_with(&header),
            segments: VecDeque::from([segment]),
            active: Active::beginning(segment, &header),
            torn: None,
        })
    }

    /// The log whose newest segment is `last`.
    pub(super) fn read(
        disk: &mut dyn Disk,
        dir: &Path,
        mut found: Found,
        (last, known): (u32, Known),
        spares: &mut Spares,
    ) -> Result<Self, Error> {
        let Scan { id, replay, segments, tail, chain } = Scan::of(disk, dir, &found, (last, known))?;
        let segment = *segments.back().expect("`last` is one of them");
        let first = segments[0].sequence;
        run(disk, spares, Op::Sync { file: segment.file })?;
        disk.sync_dir(dir)?;
        let active = tail.resume(disk, segment, chain)?;
        found.files.retain(|sequence, _| !(first..=last).contains(sequence));
        for (sequence, candidate) in found.files {
            disk.close(candidate.segment.file);
            spares.found(disk, dir.join(name(sequence)), candidate.segment.len)?;
        }
        let torn = tail.torn(dir, last);
        Ok(Self { id, replay, segments, active, torn })
    }
}

/// The content of a log's segments, found without changing any.
pub(super) struct Scan {
    pub(super) id: u64,
    pub(super) replay: Replay,
    pub(super) segments: VecDeque<Segment>,
    pub(super) tail: Tail,
    /// CRC of the last valid frame.
    pub(super) chain: u32,
}

impl Scan {
    pub(super) fn of(
        disk: &mut dyn Disk,
        dir: &Path,
        found: &Found,
        (last, known): (u32, Known),
    ) -> Result<Self, Error> {
        let (newest, _) = found.header(last).expect("`last` has a header");
        found.assert_newest(dir, last, newest.id)?;
        // The newest segment may have lost its header. It need not follow the last one that has one: what is between
        // them may have been reused.
        for sequence in found.files.range(last.saturating_add(1)..).map(|(sequence, _)| *sequence) {
            found.assert_unused(disk, dir, sequence, Some(newest.id))?;
        }
        let (first, early) = (found.start(dir, &newest, known.trimmable)?, found.start(dir, &newest, 0)?);
        let mut scan = Self::from(disk, found, (first, last), known.applied)?;
        if !scan.replay.has_beginning() && early < first {
            // The mark that would have released the skipped part never became durable.
            scan = Self::from(disk, found, (early, last), known.applied)?;
        }
        let first = scan.segments[0].sequence;
        scan.replay.check_complete(&dir.join(name(first)), &dir.join(name(last)), scan.tail.end)?;
        scan.replay.hard_state.is_cut |= scan.tail.is_torn;
        Ok(scan)
    }

    /// Follows the segments from `first` to `last`.
    fn from(disk: &mut dyn Disk, found: &Found, (first, last): (u32, u32), applied: u64) -> Result<Self, Error> {
        let (newest, _) = found.header(last).expect("`last` has a header");
        let (header, chain) = found.header(first).expect("the run has headers");
        let mut replay = Replay::starting_with(&header);
        replay.life = newest.life;
        replay.passed = applied;
        let mut segments = VecDeque::new();
        let mut reader = Reader { id: newest.id, chain, window: Window::default() };
        for sequence in first..last {
            let segment = found.files[&sequence].segment;
            let (next, next_chain) = found.header(sequence + 1).expect("the run has headers");
            reader.read_complete(disk, &segment, &next, &mut replay)?;
            reader.chain = next_chain;
            segments.push_back(Segment { end: next.previous_end, ..segment });
        }
        let segment = found.files[&last].segment;
        let tail = reader.read_last(disk, &segment, &mut replay)?;
        segments.push_back(segment);
        Ok(Self { id: newest.id, replay, segments, tail, chain: reader.chain })
    }
}

impl Found {
    /// The segment with which reading must begin. It is the newest in the run up to `newest` that was begun when
    /// nothing after the mark was live, or after `trimmable` if that is later. If there is none, it is the oldest of
    /// the run.
    fn start(&self, dir: &Path, newest: &Header, trimmable: u64) -> Result<u32, Error> {
        let mark = newest.mark.0.max(trimmable);
        let mut first = newest.sequence;
        loop {
            let (header, _) = self.header(first).expect("the loop stops before a gap");
            if header.id != newest.id {
                return Err(Error::corrupt(&dir.join(name(first)), 0, "the segment belongs to another log"));
            }
            if header.first_index <= mark + 1 {
                return Ok(first);
            }
            let before = first - 1;
            if self
                .files
                .get(&before)
                .is_some_and(|file| matches!(file.header, HeaderSector::Damaged | HeaderSector::Unreadable))
            {
                return Err(Error::corrupt(&dir.join(name(before)), 0, "segment header"));
            }
            if self.header(before).is_none() {
                return Ok(first);
            }
            first = before;
        }
    }
}

/// Submits `op` and waits for its end. It is for start-up, when nothing else is in flight.
fn run(disk: &mut dyn Disk, spares: &mut Spares, op: Op) -> Result<(), Error> {
    let (file, is_sync) = (op.file(), matches!(op, Op::Sync { .. }));
    disk.submit(op, Owner::Wal.token(spares.operation()));
    let mut ended = Vec::new();
    disk.wait()?;
    disk.completions(&mut ended);
    assert_eq!(ended.len(), 1, "nothing else is in flight");
    let failed = if is_sync { FileOp::Sync } else { FileOp::Write };
    for completion in ended {
        completion.result.map_err(|source| Error::io(disk.path(file), failed, source))?;
    }
    Ok(())
}

/// The log's state after the records that were read so far.
pub(super) struct Replay {
    pub(super) entries: Vec<Entry>,
    pub(super) positions: Positions,
    pub(super) mark: (u64, u64),
    pub(super) hard_state: HardState,
    pub(super) life: u32,
    /// Payloads up to this index are dropped as soon as they are checked.
    pub(super) passed: u64,
}

impl Replay {
    fn starting_with(header: &Header) -> Self {
        Self {
            entries: Vec::new(),
            positions: Positions::starting_at(header.first_index),
            mark: header.mark,
            hard_state: header.hard_state,
            life: header.life,
            passed: 0,
        }
    }

    /// Takes the next record. A record that this program has written never fails here.
    fn apply(&mut self, record: Record, position: Position) -> Result<(), &'static str> {
        match record {
            Record::Entry(mut entry) => {
                if entry.index > self.positions.next().min(INDEX_MAX) || entry.index <= self.mark.0 {
                    return Err("an entry does not follow the log");
                }
                let kept = usize::try_from(entry.index.saturating_sub(self.positions.first()));
                self.entries.truncate(kept.map_err(|_overflow| "an entry does not follow the log")?);
                let before = self.entries.last().map_or(self.mark.1, |last| last.term);
                if entry.term < before {
                    return Err("a term decreases");
                }
                self.positions.put(entry.index, position);
                if entry.index <= self.passed {
                    entry.data = Bytes::new();
                }
                self.entries.push(entry);
            }
            Record::HardState(state) => self.hard_state = state,
            Record::Mark { index, term, is_restart } => {
                if index < self.mark.0 || index > INDEX_MAX || (!is_restart && index >= self.positions.next()) {
                    return Err("a mark does not follow the log");
                }
                self.mark = (index, term);
                if is_restart {
                    self.entries.clear();
                    self.positions.restart(index + 1);
                } else {
                    self.positions.trim(index);
                    let kept = self.positions.next() - self.positions.first();
                    let dropped = self.entries.len() as u64 - kept;
                    self.entries.drain(..usize::try_from(dropped).expect("at most the length"));
                }
            }
            Record::Life(life) => self.life = self.life.max(life),
            Record::Group(_) => {}
        }
        Ok(())
    }

    /// Whether every entry after the mark was read.
    fn has_beginning(&self) -> bool {
        self.positions.first() == self.mark.0 + 1
    }

    /// Refuses a log without its beginning, or without entries that it says are committed.
    fn check_complete(&mut self, first: &Path, last: &Path, end: u32) -> Result<(), Error> {
        if !self.has_beginning() {
            return Err(Error::corrupt(first, 0, "segments before this one are missing"));
        }
        assert_eq!(self.positions.next(), self.mark.0 + 1 + self.entries.len() as u64);
        if self.hard_state.commit >= self.positions.next() {
            return Err(Error::corrupt(last, end.into(), "committed entries are missing"));
        }
        // Entries up to a mark were applied. So they were committed, even if the commit itself was never written.
        self.hard_state.commit = self.hard_state.commit.max(self.mark.0);
        Ok(())
    }
}

/// Follows the chain through the segments.
struct Reader {
    id: u64,
    /// CRC of the last valid frame, or of the header.
    chain: u32,
    window: Window,
}

/// Reads `len` bytes at `from` behind the end of the log. Blocks that the disk cannot read are taken for blank: if
/// there was anything that counts, groups behind them tell.
fn read_around(disk: &mut dyn Disk, segment: &Segment, from: u32, len: usize, buf: &mut Buffer) -> Result<(), Error> {
    let whole = disk.read_blocking(segment.file, from.into(), len, buf);
    if !is_read_error(&whole) {
        return whole;
    }
    let (mut around, mut block) = (Buffer::zeroed(len), Buffer::new());
    for at in (0..len).step_by(BLOCK) {
        let read = disk.read_blocking(segment.file, u64::from(from) + at as u64, BLOCK, &mut block);
        if !is_read_error(&read) {
            read?;
            around[at..at + block.len()].copy_from_slice(&block);
        }
    }
    *buf = around;
    Ok(())
}

/// The end of the last segment.
pub(super) struct Tail {
    pub(super) end: u32,
    pub(super) is_torn: bool,
}

impl Reader {
    /// Reads a segment that has a successor. `next` is the successor's header.
    fn read_complete(
        &mut self,
        disk: &mut dyn Disk,
        segment: &Segment,
        next: &Header,
        replay: &mut Replay,
    ) -> Result<(), Error> {
        let (end, _) = self.follow(disk, segment, Some((next.previous_end, next.previous_chain)), replay)?;
        if (end, self.chain) == (next.previous_end, next.previous_chain) {
            return Ok(());
        }
        Err(Error::corrupt(disk.path(segment.file), end.into(), "a frame before the end of the segment"))
    }

    /// Reads the newest segment, and decides whether the bytes after its valid part were ever acknowledged.
    fn read_last(&mut self, disk: &mut dyn Disk, segment: &Segment, replay: &mut Replay) -> Result<Tail, Error> {
        let (end, group_end) = self.follow(disk, segment, None, replay)?;
        let mut tail = Tail { end, is_torn: end < group_end };
        let mut buf = Buffer::new();
        let mut from = end - end % BODY;
        while from < segment.len {
            let len = (segment.len - from).min(u32::try_from(WINDOW_BYTES).expect("1 MiB fits"));
            read_around(disk, segment, from, usize::try_from(len).expect("1 MiB fits"), &mut buf)?;
            for (start, group) in Group::search(&buf) {
                let start = i64::from(from) + start;
                if start < i64::from(end) || group.id != self.id || group.sequence != segment.sequence {
                    continue;
                }
                if start != i64::from(group.offset) {
                    let at = u64::try_from(start).expect("behind the end of the valid part");
                    return Err(Error::corrupt(disk.path(segment.file), at, "a group stands where it was not written"));
                }
                if group.durable > end {
                    let what = "a frame before the durable end of the log";
                    return Err(Error::corrupt(disk.path(segment.file), end.into(), what));
                }
                tail.is_torn |= group.life == replay.life;
            }
            // The next window overlaps by a block, so that no head is missed at the border.
            from += if from + len < segment.len { len - BODY } else { len };
        }
        Ok(tail)
    }

    /// Applies the valid frames of a segment from its beginning, up to `until` (offset and chain) if they lead there.
    /// Returns where they end, and where the last group should have ended.
    fn follow(
        &mut self,
        disk: &mut dyn Disk,
        segment: &Segment,
        until: Option<(u32, u32)>,
        replay: &mut Replay,
    ) -> Result<(u32, u32), Error> {
        let mut position = Position { sequence: segment.sequence, offset: BODY, chain: self.chain };
        let mut group_end = BODY;
        while until != Some((position.offset, position.chain)) {
            let next = self.window.next_frame(disk, segment, (self.id, position), WINDOW_BYTES)?;
            let Some((at, frame)) = next else { break };
            if let Record::Group(group) = &frame.record {
                group_end = at.offset.saturating_add(group.len);
            }
            let failed = |what| Error::corrupt(disk.path(segment.file), at.offset.into(), what);
            replay.apply(frame.record, at).map_err(failed)?;
            position = Position { offset: at.offset + frame.len, chain: frame.crc, ..at };
        }
        self.chain = position.chain;
        Ok((position.offset, group_end))
    }
}

impl Tail {
    pub(super) fn torn(&self, dir: &Path, last: u32) -> Option<(PathBuf, u64)> {
        self.is_torn.then(|| (dir.join(name(last)), u64::from(self.end)))
    }

    /// The segment in which writing goes on, after the valid part.
    fn resume(&self, disk: &mut dyn Disk, segment: Segment, chain: u32) -> Result<Active, Error> {
        let tail_len = usize::try_from(self.end % BODY).expect("less than a block");
        let mut tail = Vec::with_capacity(BLOCK);
        if tail_len > 0 {
            let mut block = Buffer::new();
            disk.read_blocking(segment.file, u64::from(self.end - self.end % BODY), BLOCK, &mut block)?;
            tail.extend_from_slice(&block[..tail_len]);
        }
        Ok(Active { segment, end: self.end, durable_end: self.end, chain, tail, header: None })
    }
}
