//! A storage shard: the append cursor of one storage core, and its share of a checkpoint.
//!
//! Invariants:
//! - A byte of a segment file is written at most once in the file's life; in particular a block that was synced is never
//!   written again, so no later torn write can damage what a superblock reaches. Hence the padding to [`BLOCK`] whenever
//!   a write is cut short, and a new segment after every start: what a crashed checkpoint left behind the cursor is unknown.
//! - Segments begin small after a start and double up to `segment_bytes`, so that many restarts do not leave many
//!   large files with little in them. Their space is reserved when they are created: that is where a full disk shows.
//! - `queue` and `in_flight` hold every byte appended and not written; a shard stops producing while the queue is full, so its memory is
//!   bounded by twice `writes_in_flight_max` writes.
//! - `unsynced` holds every segment with bytes that no completed sync covers. A shard is done when all of that is empty.
//! - Running out of space changes nothing: the piece stays queued, the record or node is not counted as written, and
//!   the same `step` goes on when there is room again. Any other failure ends the job.
//!
//! Nodes are written children first. `Slot::set_place` on a slot that the live tree shares is sound because a sealed node
//! never changes again: apply, when it needs another content, makes a new slot. A node that apply replaces while it is being
//! written gets a place that is dead from the start; `Mvcc::take_dead_places` reports it to the next checkpoint.
//!
//! It does not choose what is written (`checkpoint`) and keeps no account of live bytes (`space`), it only reports both.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{BLOCK, Buffer, Completion, Disk, FileId, FileOp, Op, OpenKind, Owner};
use crate::extent::{self, BlockBuilder, Index, IndexEntry};
use crate::node::{Node, Slot};
use crate::page::{self, HEADER_LEN, Kind};
use crate::recent::Recent;
use crate::{Error, Place, Record, Revision};

/// File length of the first segment after a start. **Units** bytes.
const SEGMENT_BYTES_FIRST: u32 = 1 << 20;

/// What the shards of one store have in common.
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

/// Bytes of one write, and where they go.
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

/// The segment that is being appended to.
#[derive(Clone, Copy, Debug)]
struct Tail {
    segment: u32,
    file_bytes: u32,
    cursor: u32,
}

/// What a writer added since it was last asked.
#[derive(Debug, Default)]
pub(crate) struct Added {
    /// Segments created, with the lengths of their files.
    pub(crate) segments: Vec<(u32, u32)>,
    /// Bytes of pages by segment.
    pub(crate) bytes: BTreeMap<u32, u64>,
}

/// The append cursor of a shard, and the writes behind it.
#[derive(Debug)]
pub(crate) struct Writer {
    layout: Arc<Layout>,
    shard: usize,
    tail: Option<Tail>,
    file_bytes_next: u32,
    buffer: Buffer,
    scratch: Vec<u8>,
    queue: VecDeque<Piece>,
    in_flight: BTreeMap<u64, Flight>,
    number: u64,
    free: Vec<Buffer>,
    files: BTreeMap<u32, FileId>,
    unsynced: BTreeSet<u32>,
    added: Added,
}

/// Bits of a token's number that count a shard's operations; the shard is above them.
const NUMBER_BITS: u32 = 40;

/// The shard whose operation `token` is.
pub(crate) fn shard_of(token: u64) -> u64 {
    (token & ((1 << 56) - 1)) >> NUMBER_BITS
}

impl Writer {
    pub(crate) fn new(layout: Arc<Layout>, shard: usize) -> Self {
        let file_bytes_next = SEGMENT_BYTES_FIRST.min(layout.segment_bytes);
        Self {
            layout,
            shard,
            tail: None,
            file_bytes_next,
            buffer: Buffer::new(),
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

    /// The segment it will append to next, if there is one.
    pub(crate) fn segment(&self) -> Option<u32> {
        self.tail.map(|tail| tail.segment)
    }

    /// What was added since the last call.
    pub(crate) fn take_added(&mut self) -> Added {
        std::mem::take(&mut self.added)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.queue.len() >= self.layout.writes_in_flight_max
    }

    /// Whether every byte appended is durable. The names of new segments are the caller's affair.
    pub(crate) fn is_synced(&self) -> bool {
        self.buffer.is_empty() && self.queue.is_empty() && self.in_flight.is_empty() && self.unsynced.is_empty()
    }

    /// Makes sure that `bytes` more fit in one segment, by beginning another one if need be.
    ///
    /// **Errors** `NoSpace`, which leaves everything as it was.
    pub(crate) fn reserve(&mut self, bytes: usize, disk: &mut dyn Disk) -> Result<(), Error> {
        let bytes = u32::try_from(bytes).expect("an extent or page is smaller than 4 GiB");
        if let Some(tail) = self.tail
            && tail.file_bytes - tail.cursor >= bytes
        {
            if !self.files.contains_key(&tail.segment) {
                let file = disk.open(&self.layout.segment_path(tail.segment), OpenKind::Write)?;
                self.files.insert(tail.segment, file);
            }
            return Ok(());
        }
        let block = u32::try_from(BLOCK).expect("a block is small");
        let file_bytes = self.file_bytes_next.max(bytes.checked_next_multiple_of(block).expect("below 4 GiB"));
        // A number is spent even if the file cannot be created.
        let segment = self.layout.next_segment.fetch_add(1, Ordering::Relaxed);
        assert!(segment > 0 && segment < u32::MAX, "segment numbers do not run out");
        let file = self.create(segment, file_bytes, disk)?;
        self.flush();
        self.files.insert(segment, file);
        self.tail = Some(Tail { segment, file_bytes, cursor: 0 });
        self.added.segments.push((segment, file_bytes));
        self.file_bytes_next = self.file_bytes_next.saturating_mul(2).min(self.layout.segment_bytes);
        Ok(())
    }

    /// Creates a segment file, or leaves nothing of it behind: an attempt that ran out of space may have taken what there was.
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

    /// Appends a page; room for it was reserved.
    pub(crate) fn append(&mut self, kind: Kind, payload: &[u8]) -> Place {
        let tail = self.tail.as_mut().expect("room was reserved");
        self.scratch.clear();
        let place = page::seal(kind, tail.segment, tail.cursor, payload, &mut self.scratch);
        assert!(place.end() <= tail.file_bytes, "room was reserved");
        let mut cursor = tail.cursor;
        tail.cursor = place.end();
        self.unsynced.insert(place.segment);
        *self.added.bytes.entry(place.segment).or_default() += u64::from(place.len);
        let sealed = std::mem::take(&mut self.scratch);
        let mut rest = sealed.as_slice();
        while !rest.is_empty() {
            if self.buffer.is_empty() {
                assert!((cursor as usize).is_multiple_of(BLOCK), "a write begins at a block");
                self.buffer.reserve(self.layout.write_bytes);
            }
            let (now, later) = rest.split_at(rest.len().min(self.layout.write_bytes - self.buffer.len()));
            self.buffer.extend_from_slice(now);
            cursor += u32::try_from(now.len()).expect("part of a page");
            rest = later;
            if self.buffer.len() == self.layout.write_bytes {
                self.queue_buffer(place.segment, cursor);
            }
        }
        self.scratch = sealed;
        place
    }

    /// Queues the buffer, which ends at `end` of `segment`.
    fn queue_buffer(&mut self, segment: u32, end: u32) {
        let fresh = self.free.pop().unwrap_or_default();
        let buf = std::mem::replace(&mut self.buffer, fresh);
        let offset = end - u32::try_from(buf.len()).expect("a write is smaller than its segment");
        assert!((offset as usize).is_multiple_of(BLOCK) && buf.len().is_multiple_of(BLOCK), "writes are whole blocks");
        self.queue.push_back(Piece { segment, offset, buf });
    }

    /// Queues what is gathered, padded to a block; what is appended next begins a new one.
    pub(crate) fn flush(&mut self) {
        if self.buffer.is_empty() {
            return;
        }
        self.buffer.pad();
        let tail = self.tail.as_mut().expect("gathered bytes belong to a segment");
        // A file's length is whole blocks, so the padded end is inside it.
        tail.cursor = tail.cursor.checked_next_multiple_of(u32::try_from(BLOCK).expect("small")).expect("in the file");
        let (segment, end) = (tail.segment, tail.cursor);
        self.queue_buffer(segment, end);
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
        assert!(self.buffer.is_empty(), "flushed before it is synced");
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
        let number = (self.shard as u64) << NUMBER_BITS | self.number;
        self.number = (self.number + 1) % (1 << NUMBER_BITS);
        assert!(self.in_flight.insert(number, flight).is_none(), "operations are counted");
        Owner::Checkpoint.token(number)
    }

    /// Takes the end of one of its operations.
    ///
    /// **Errors** `NoSpace` leaves the write queued; after any other the job has failed.
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

    /// Closes its files; it has nothing in flight.
    pub(crate) fn close(&mut self, disk: &mut dyn Disk) {
        assert!(self.is_synced(), "only what is durable is let go of");
        for file in std::mem::take(&mut self.files).into_values() {
            disk.close(file);
        }
        self.free.clear();
        self.buffer = Buffer::new();
    }
}

/// A failed sync is final, whatever the reason: what of the writes before it survives is unknown.
pub(crate) fn sync_failed(path: PathBuf, source: io::Error) -> Error {
    Error::Io { path, op: FileOp::Sync, source }
}

/// Writes the dirty nodes below a slot, children first.
#[derive(Debug, Default)]
pub(crate) struct TreeWalk {
    stack: Vec<Frame>,
    payload: Vec<u8>,
}

#[derive(Debug)]
struct Frame {
    slot: Arc<Slot>,
    node: Arc<Node>,
    dirty: Vec<Arc<Slot>>,
}

impl TreeWalk {
    /// Begins a walk below `slot`; nothing to do if it has a place.
    pub(crate) fn begin(&mut self, slot: &Arc<Slot>) {
        assert!(self.stack.is_empty(), "one walk at a time");
        self.push(Arc::clone(slot));
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.stack.is_empty()
    }

    fn push(&mut self, slot: Arc<Slot>) {
        if slot.is_dirty() {
            let node = slot.node().expect("a dirty node is resident");
            let dirty = node.children().filter(|child| child.is_dirty()).map(Arc::clone).collect();
            self.stack.push(Frame { slot, node, dirty });
        }
    }

    /// Writes one node; false once the walk is at its end.
    pub(crate) fn step(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<bool, Error> {
        while let Some(child) = self.stack.last_mut().and_then(|frame| frame.dirty.pop()) {
            self.push(child);
        }
        let Some(frame) = self.stack.last() else { return Ok(false) };
        self.payload.clear();
        frame.node.encode(&mut self.payload);
        writer.reserve(HEADER_LEN + self.payload.len(), disk)?;
        frame.slot.set_place(writer.append(Kind::Node, &self.payload));
        self.stack.pop();
        Ok(true)
    }
}

/// The work of one checkpoint that shards can do in any order: each takes the next piece when it has none.
#[derive(Debug)]
pub(crate) struct Source {
    recent: Recent,
    /// First record not handed out.
    next: Option<Revision>,
    /// Records that are dropped already, in order.
    skip: Vec<Revision>,
    subtrees: Vec<Arc<Slot>>,
}

impl Source {
    pub(crate) fn new(recent: Recent, after: Option<Revision>, skip: Vec<Revision>, subtrees: Vec<Arc<Slot>>) -> Self {
        assert!(skip.is_sorted());
        let next = after.map_or(Revision::MIN, |after| Revision { main: after.main, sub: after.sub + 1 });
        Self { recent, next: Some(next), skip, subtrees }
    }

    /// The records of the next extent; empty if there are none left.
    fn take_records(&mut self, bytes_max: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let Some(from) = self.next.take() else { return records };
        let mut bytes = 0;
        for record in self.recent.iter_from(from) {
            if self.skip.binary_search(&record.revision).is_ok() {
                continue;
            }
            let more = extent::record_bytes(record);
            if bytes + more > bytes_max && !records.is_empty() {
                self.next = Some(record.revision);
                break;
            }
            bytes += more;
            records.push(record.clone());
        }
        records
    }
}

/// A shard's share of a checkpoint: extents and subtrees, until all it wrote is durable.
#[derive(Debug)]
pub struct ShardJob {
    pub(crate) writer: Writer,
    pub(crate) extents: Vec<extent::Entry>,
    source: Arc<Mutex<Source>>,
    records: Vec<Record>,
    walk: TreeWalk,
    is_exhausted: bool,
    failed: bool,
}

/// What a step of a job leaves to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardProgress {
    /// Step again.
    Working,
    /// Nothing to do before one of its operations ends.
    Waiting,
    /// Everything it wrote is durable.
    Done,
}

/// Nodes written in one step at most, so that a step stays short where it shares a thread.
const NODES_PER_STEP: usize = 64;

impl ShardJob {
    pub(crate) fn new(writer: Writer, source: Arc<Mutex<Source>>) -> Self {
        Self {
            writer,
            extents: Vec::new(),
            source,
            records: Vec::new(),
            walk: TreeWalk::default(),
            is_exhausted: false,
            failed: false,
        }
    }

    /// Does a bounded piece of the work and submits what can be; the caller kicks the disk.
    ///
    /// **Errors** `NoSpace` leaves the job as it was: it can be stepped again. After any other error the member stops.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Result<ShardProgress, Error> {
        if self.failed {
            return Err(Error::Stopped);
        }
        let result = self.advance(disk);
        self.failed = matches!(&result, Err(error) if !matches!(error, Error::NoSpace { .. }));
        result
    }

    fn advance(&mut self, disk: &mut dyn Disk) -> Result<ShardProgress, Error> {
        let mut nodes = 0;
        while !self.is_exhausted && !self.writer.is_full() && nodes < NODES_PER_STEP {
            let is_node = self.walk.step(&mut self.writer, disk)?;
            nodes += if is_node || self.write_extent(disk)? { 1 } else { self.take_work() };
        }
        self.writer.submit(disk);
        if !self.is_exhausted {
            return Ok(if self.writer.is_full() { ShardProgress::Waiting } else { ShardProgress::Working });
        }
        self.writer.flush();
        self.writer.submit(disk);
        self.writer.submit_syncs(disk);
        if !self.writer.is_synced() {
            return Ok(ShardProgress::Waiting);
        }
        self.writer.close(disk);
        Ok(ShardProgress::Done)
    }

    /// Takes the end of one of its operations.
    ///
    /// **Errors** as [`ShardJob::step`].
    pub fn on_completion(&mut self, completion: Completion) -> Result<(), Error> {
        let result = self.writer.on_completion(completion);
        self.failed |= matches!(&result, Err(error) if !matches!(error, Error::NoSpace { .. }));
        result
    }

    /// Takes the next piece of work, which costs no step.
    fn take_work(&mut self) -> usize {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        self.records = source.take_records(self.writer.layout.write_bytes);
        if self.records.is_empty() {
            match source.subtrees.pop() {
                Some(subtree) => self.walk.begin(&subtree),
                None => self.is_exhausted = true,
            }
        }
        0
    }

    /// Writes the records at hand as one extent; false if there are none.
    fn write_extent(&mut self, disk: &mut dyn Disk) -> Result<bool, Error> {
        let (Some(first), Some(last)) = (self.records.first(), self.records.last()) else { return Ok(false) };
        let (first, last) = (first.revision, last.revision);
        let layout = Arc::clone(&self.writer.layout);
        let blocks = cut_blocks(&self.records, layout.block_bytes);
        let index_len = HEADER_LEN + blocks.len() * Index::ENTRY_LEN;
        let bytes = blocks.iter().map(|block| block.bytes + HEADER_LEN).sum::<usize>() + index_len;
        self.writer.reserve(bytes, disk)?;
        let mut records = self.records.iter();
        let mut builder = BlockBuilder::default();
        let mut payload = Vec::new();
        let mut index = Vec::with_capacity(blocks.len());
        for block in blocks {
            let mut first = None;
            for record in records.by_ref().take(block.records) {
                first.get_or_insert(record.revision);
                builder.push(record);
            }
            payload.clear();
            builder.finish(&mut payload);
            assert_eq!(payload.len(), block.bytes, "the size told before is the size written");
            let place = self.writer.append(Kind::Block, &payload);
            index.push(IndexEntry { first: first.expect("not empty"), offset: place.offset, len: place.len });
        }
        payload.clear();
        Index::encode(&index, &mut payload);
        let place = self.writer.append(Kind::ExtentIndex, &payload);
        let count = u32::try_from(self.records.len()).expect("an extent holds fewer than 2^32 records");
        let bytes = u32::try_from(bytes).expect("an extent is smaller than 4 GiB");
        self.extents.push(extent::Entry {
            first,
            last,
            index: place,
            records: count,
            live_records: count,
            bytes,
            live_bytes: bytes,
        });
        self.records.clear();
        Ok(true)
    }
}

/// A block to be: how many records, and the length of its payload.
struct Cut {
    records: usize,
    bytes: usize,
}

fn cut_blocks(records: &[Record], block_bytes: usize) -> Vec<Cut> {
    let mut cuts: Vec<Cut> = Vec::new();
    for record in records {
        let bytes = extent::record_bytes(record) + BlockBuilder::SLOT_LEN;
        match cuts.last_mut() {
            Some(cut) if cut.bytes + bytes <= block_bytes => {
                cut.records += 1;
                cut.bytes += bytes;
            }
            _ => cuts.push(Cut { records: 1, bytes: BlockBuilder::HEADER_LEN + bytes }),
        }
    }
    cuts
}
