//! The append cursors of one storage shard, and the writes behind them.
//!
//! Invariants:
//! - A byte of a segment file is written at most once in the life of the file. In particular, a block that was synced
//!   is never written again, so no later torn write can damage what a superblock reaches. This is why a write that is
//!   cut short is padded to [`BLOCK`]. It is also why every start begins a new segment: what a crashed checkpoint left
//!   after the cursor is unknown.
//! - Data that dies at different times is in different segments: each [`Stream`] has a segment of its own. Tree pages
//!   die with the next change of one of their keys, records with their compaction. Records that were moved once last
//!   longest. So most segments of tree pages die by themselves, and little live data is moved to free the others.
//! - Segments begin small after a start and double up to `segment_bytes`. So many restarts do not leave many large,
//!   almost empty files. A segment also does not exceed a part of the live data, so that the free space in open
//!   segments stays a small part of it. The space of a segment is reserved when it is created; that is where a full
//!   disk shows.
//! - `queue`, `in_flight` and the buffers of the tails hold every byte that was appended and not written. A shard stops
//!   producing while the queue is full. So about twice `writes_in_flight_max` writes bound its memory.
//! - `unsynced` holds every segment with bytes that no completed sync covers.
//! - Running out of space changes nothing: the piece stays queued, and is written when there is room again.
//!
//! It keeps no account of live bytes (`space` does). It only reports what it added.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::{
    Error, Place,
    disk::{BLOCK, Buffer, Completion, Disk, FileId, FileOp, Op, OpenKind, Owner},
    page::{self, Kind},
};

/// File length of the first segment after a start. **Units** bytes.
const SEGMENT_BYTES_FIRST: u32 = 1 << 20;
/// A segment is at most this part of the live data, but not smaller than the first one. The free space of three streams
/// is then about a twentieth of the data.
const SEGMENTS_MIN: u64 = 64;
/// An open segment is left if it is this many times larger than a new one would be.
const TOO_LARGE: u32 = 4;
/// Extents in a segment, at least.
const EXTENTS_PER_SEGMENT: usize = 2;
/// The rest of a segment is filled with a smaller extent, unless that would be smaller than this part of a usual one.
const EXTENT_PARTS: usize = 8;

/// The facts that all shards of one store share.
#[derive(Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
    pub(crate) segment_bytes: u32,
    pub(crate) write_bytes: usize,
    pub(crate) writes_in_flight_max: usize,
    pub(crate) block_bytes: usize,
    pub(crate) next_segment: AtomicU32,
}

impl Layout {
    pub(crate) fn segment_path(&self, segment: u32) -> PathBuf {
        self.dir.join(page::segment_path(segment))
    }
}

/// The bytes of one write, and their place.
#[derive(Debug)]
struct Piece {
    segment: u32,
    offset: u32,
    buf: Buffer,
}

#[derive(Clone, Copy, Debug)]
enum Flight {
    Write { segment: u32, offset: u32, len: usize },
    Sync { segment: u32 },
}

/// The kinds of data that have a segment each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Tree pages and tables.
    Pages = 0,
    /// Records as they come.
    Records = 1,
    /// Records that were moved out of a sparse segment.
    Moved = 2,
}

const STREAMS: usize = 3;

/// The position at which a stream goes on.
#[derive(Debug)]
struct Tail {
    open: Option<Open>,
    /// Bytes before the cursor that are not queued yet.
    buffer: Buffer,
    file_bytes_next: u32,
}

/// The segment that is being appended to.
#[derive(Clone, Copy, Debug)]
struct Open {
    segment: u32,
    file_bytes: u32,
    cursor: u32,
}

/// What a writer has added since the last call.
#[derive(Debug, Default)]
pub(crate) struct Added {
    /// Segments that were created, with the lengths of their files.
    pub(crate) segments: Vec<(u32, u32)>,
    /// Bytes of pages by segment.
    pub(crate) bytes: BTreeMap<u32, u64>,
}

/// The append cursors of a shard, and the writes behind them.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) layout: Arc<Layout>,
    shard: usize,
    tails: [Tail; STREAMS],
    file_bytes_max: u32,
    scratch: Vec<u8>,
    queue: VecDeque<Piece>,
    in_flight: BTreeMap<u64, Flight>,
    number: u64,
    free: Vec<Buffer>,
    files: BTreeMap<u32, FileId>,
    unsynced: BTreeSet<u32>,
    added: Added,
}

/// Bits of a token's number that count a shard's operations. The shard's number is above them.
const NUMBER_BITS: u32 = 40;

/// The number in the tokens of a checkpoint's reads. No shard has this number.
pub(crate) const READ_SHARD: u64 = 0xfffe;

/// The first number of `shard`'s operations.
pub(crate) fn number_of(shard: u64) -> u64 {
    shard << NUMBER_BITS
}

/// The shard of the operation with this `token`.
pub(crate) fn shard_of(token: u64) -> u64 {
    (token & ((1 << 56) - 1)) >> NUMBER_BITS
}

impl Writer {
    pub(crate) fn new(layout: Arc<Layout>, shard: usize) -> Self {
        let file_bytes_next = SEGMENT_BYTES_FIRST.min(layout.segment_bytes);
        Self {
            layout,
            shard,
            tails: std::array::from_fn(|_| Tail { open: None, buffer: Buffer::new(), file_bytes_next }),
            file_bytes_max: file_bytes_next,
            scratch: Vec::new(),
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            number: 0,
            free: Vec::new(),
            files: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            added: Added::default(),
        }
    }

    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    /// The segments to which it will append next.
    pub(crate) fn open_segments(&self) -> impl Iterator<Item = u32> {
        self.tails.iter().filter_map(|tail| tail.open.map(|open| open.segment))
    }

    /// Sets the size of later segments for a store of `live_bytes`. Leaves open segments that have become far too large
    /// for it.
    pub(crate) fn size_for(&mut self, live_bytes: u64) {
        assert!(self.is_synced(), "between checkpoints nothing is on its way");
        let block = u32::try_from(BLOCK).expect("a block is small");
        let share = u32::try_from(live_bytes / SEGMENTS_MIN).unwrap_or(u32::MAX) / block * block;
        let max = self.layout.segment_bytes;
        self.file_bytes_max = share.clamp(SEGMENT_BYTES_FIRST.min(max), max);
        let too_large = self.file_bytes_max.saturating_mul(TOO_LARGE);
        for tail in &mut self.tails {
            tail.open = tail.open.filter(|open| open.file_bytes <= too_large);
        }
    }

    /// Bytes of records (each with its slot) that the next extent of `stream` should hold. Large extents keep
    /// neighbouring keys together, but little of a segment should stay free.
    pub(crate) fn extent_bytes(&self, stream: Stream) -> usize {
        let share = self.file_bytes_max as usize / EXTENTS_PER_SEGMENT;
        let usual = share.clamp(self.layout.block_bytes.min(self.layout.write_bytes), self.layout.write_bytes);
        let left = self.tails[stream as usize].open.map_or(0, |open| (open.file_bytes - open.cursor) as usize);
        // This leaves out roughly the room for envelopes and fences.
        let room = left.saturating_sub(left / 32);
        if (usual / EXTENT_PARTS..usual).contains(&room) { room } else { usual }
    }

    /// Appends to other segments from now on, so that the present ones can be emptied.
    pub(crate) fn leave_segments(&mut self) {
        assert!(self.is_synced(), "between checkpoints nothing is on its way");
        let first = SEGMENT_BYTES_FIRST.min(self.layout.segment_bytes);
        for tail in &mut self.tails {
            tail.open = None;
            tail.file_bytes_next = first;
        }
    }

    /// What was added since the last call.
    pub(crate) fn take_added(&mut self) -> Added {
        std::mem::take(&mut self.added)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= self.layout.writes_in_flight_max
    }

    /// Whether every appended byte is durable. The caller makes the names of new segments durable.
    pub(crate) fn is_synced(&self) -> bool {
        self.is_flushed() && self.queue.is_empty() && self.in_flight.is_empty() && self.unsynced.is_empty()
    }

    fn is_flushed(&self) -> bool {
        self.tails.iter().all(|tail| tail.buffer.is_empty())
    }

    /// Makes sure that `bytes` more fit in one segment of `stream`. It begins another segment if it must.
    ///
    /// **Errors** `NoSpace`, which leaves everything as it was.
    pub(crate) fn reserve(&mut self, stream: Stream, bytes: usize, disk: &mut dyn Disk) -> Result<(), Error> {
        let bytes = u32::try_from(bytes).expect("an extent or page is smaller than 4 GiB");
        let tail = &self.tails[stream as usize];
        if let Some(open) = tail.open
            && open.file_bytes - open.cursor >= bytes
        {
            if !self.files.contains_key(&open.segment) {
                let file = disk.open(&self.layout.segment_path(open.segment), OpenKind::Write)?;
                self.files.insert(open.segment, file);
            }
            return Ok(());
        }
        let block = u32::try_from(BLOCK).expect("a block is small");
        let usual = tail.file_bytes_next.min(self.file_bytes_max);
        let file_bytes = usual.max(bytes.checked_next_multiple_of(block).expect("below 4 GiB"));
        // The number is used up even if the file cannot be created.
        let segment = self.layout.next_segment.fetch_add(1, Ordering::Relaxed);
        assert!(segment > 0 && segment < u32::MAX, "segment numbers do not run out");
        let file = self.create(segment, file_bytes, disk)?;
        self.flush_stream(stream);
        self.files.insert(segment, file);
        self.added.segments.push((segment, file_bytes));
        let tail = &mut self.tails[stream as usize];
        tail.open = Some(Open { segment, file_bytes, cursor: 0 });
        tail.file_bytes_next = tail.file_bytes_next.saturating_mul(2).min(self.layout.segment_bytes);
        Ok(())
    }

    /// Creates a segment file, or leaves nothing of it behind. An attempt that ran out of space may have taken the
    /// space that there was.
    fn create(&self, segment: u32, file_bytes: u32, disk: &mut dyn Disk) -> Result<FileId, Error> {
        let path = self.layout.segment_path(segment);
        let error = match disk.open(&path, OpenKind::Create { len: u64::from(file_bytes) }) {
            Ok(file) => return Ok(file),
            Err(error) => error,
        };
        if matches!(error, Error::NoSpace { .. }) {
            let names = disk.list(&self.layout.dir.join(page::PAGES_DIR))?;
            if names.iter().any(|name| path.ends_with(name)) {
                disk.remove(&path)?;
            }
        }
        Err(error)
    }

    /// Appends a page to `stream`. Room for it must have been reserved.
    pub(crate) fn append(&mut self, stream: Stream, kind: Kind, payload: &[u8]) -> Place {
        let write_bytes = self.layout.write_bytes;
        let open = self.tails[stream as usize].open.as_mut().expect("room was reserved");
        self.scratch.clear();
        let place = page::seal(kind, open.segment, open.cursor, payload, &mut self.scratch);
        assert!(place.end() <= open.file_bytes, "room was reserved");
        let mut cursor = open.cursor;
        open.cursor = place.end();
        self.unsynced.insert(place.segment);
        *self.added.bytes.entry(place.segment).or_default() += u64::from(place.len);
        let sealed = std::mem::take(&mut self.scratch);
        let mut rest = sealed.as_slice();
        while !rest.is_empty() {
            let buffer = &mut self.tails[stream as usize].buffer;
            if buffer.is_empty() {
                assert!((cursor as usize).is_multiple_of(BLOCK), "a write begins at a block");
                buffer.reserve(write_bytes);
            }
            let (now, later) = rest.split_at(rest.len().min(write_bytes - buffer.len()));
            buffer.extend_from_slice(now);
            cursor += u32::try_from(now.len()).expect("part of a page");
            rest = later;
            if buffer.len() == write_bytes {
                self.queue_buffer(stream, place.segment, cursor);
            }
        }
        self.scratch = sealed;
        place
    }

    /// Queues the buffer of `stream`, which ends at `end` of `segment`.
    fn queue_buffer(&mut self, stream: Stream, segment: u32, end: u32) {
        let fresh = self.free.pop().unwrap_or_default();
        let buf = std::mem::replace(&mut self.tails[stream as usize].buffer, fresh);
        let offset = end - u32::try_from(buf.len()).expect("a write is smaller than its segment");
        assert!((offset as usize).is_multiple_of(BLOCK) && buf.len().is_multiple_of(BLOCK), "writes are whole blocks");
        self.queue.push_back(Piece { segment, offset, buf });
    }

    /// Queues the gathered bytes, padded to blocks. Later bytes begin new blocks.
    pub(crate) fn flush(&mut self) {
        [Stream::Pages, Stream::Records, Stream::Moved].into_iter().for_each(|stream| self.flush_stream(stream));
        assert!(self.is_flushed());
    }

    fn flush_stream(&mut self, stream: Stream) {
        let tail = &mut self.tails[stream as usize];
        if tail.buffer.is_empty() {
            return;
        }
        tail.buffer.pad();
        let open = tail.open.as_mut().expect("gathered bytes belong to a segment");
        // A file's length is whole blocks, so the padded end is inside it.
        open.cursor = open.cursor.checked_next_multiple_of(u32::try_from(BLOCK).expect("small")).expect("in the file");
        let (segment, end) = (open.segment, open.cursor);
        self.queue_buffer(stream, segment, end);
    }

    /// Submits queued writes as far as the bound allows.
    pub(crate) fn submit(&mut self, disk: &mut dyn Disk) {
        while self.in_flight.len() < self.layout.writes_in_flight_max {
            let Some(Piece { segment, offset, buf }) = self.queue.pop_front() else { return };
            let (file, len) = (self.files[&segment], buf.len());
            let token = self.flight(Flight::Write { segment, offset, len });
            disk.submit(Op::Write { file, offset: u64::from(offset), buf }, token);
        }
    }

    /// Submits the syncs once every write has completed.
    pub(crate) fn submit_syncs(&mut self, disk: &mut dyn Disk) {
        assert!(self.is_flushed(), "flushed before it is synced");
        if !self.queue.is_empty() || !self.in_flight.is_empty() {
            return;
        }
        for segment in self.unsynced.clone() {
            let file = self.files[&segment];
            let token = self.flight(Flight::Sync { segment });
            disk.submit(Op::Sync { file }, token);
        }
    }

    fn flight(&mut self, flight: Flight) -> u64 {
        let number = number_of(self.shard as u64) | self.number;
        self.number = (self.number + 1) % (1 << NUMBER_BITS);
        assert!(self.in_flight.insert(number, flight).is_none(), "operations are counted");
        Owner::Checkpoint.token(number)
    }

    /// Takes the end of one of its operations.
    ///
    /// **Errors** `NoSpace` leaves the write queued; after any other error the job has failed.
    pub(crate) fn on_completion(&mut self, completion: Completion) -> Result<(), Error> {
        let Completion { token, result, mut buf } = completion;
        let number = token & ((1 << 56) - 1);
        match self.in_flight.remove(&number).expect("completes once") {
            Flight::Write { segment, offset, len } => match result {
                Ok(written) => {
                    assert_eq!(written, len, "a write completes whole or fails");
                    if self.free.len() <= self.layout.writes_in_flight_max {
                        buf.clear();
                        self.free.push(buf);
                    }
                    Ok(())
                }
                Err(source) => {
                    let error = Error::io(&self.layout.segment_path(segment), FileOp::Write, source);
                    if matches!(error, Error::NoSpace { .. }) {
                        assert_eq!(buf.len(), len, "a failed write gives its bytes back");
                        self.queue.push_front(Piece { segment, offset, buf });
                    }
                    Err(error)
                }
            },
            Flight::Sync { segment } => match result {
                Ok(_) => {
                    self.unsynced.remove(&segment);
                    Ok(())
                }
                Err(source) => Err(sync_failed(self.layout.segment_path(segment), source)),
            },
        }
    }

    /// Closes its files. It must have nothing in flight.
    pub(crate) fn close(&mut self, disk: &mut dyn Disk) {
        assert!(self.is_synced(), "only what is durable is let go of");
        for file in std::mem::take(&mut self.files).into_values() {
            disk.close(file);
        }
        self.free.clear();
        self.tails.iter_mut().for_each(|tail| tail.buffer = Buffer::new());
    }
}

/// A failed sync is final, whatever the reason: it is unknown which of the writes before it survive.
pub(crate) fn sync_failed(path: PathBuf, source: io::Error) -> Error {
    Error::Io { path, op: FileOp::Sync, source }
}
