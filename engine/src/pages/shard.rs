//! A storage shard's share of a checkpoint: extents and subtrees, written through the shard's [`Writer`].
//!
//! Invariants:
//! - A shard is done when every byte that it appended is durable.
//! - Running out of space changes nothing. The record or node is not counted as written, and the same `step` goes on
//!   when there is room again. Any other failure ends the job.
//!
//! Nodes are written children first. `Slot::set_place` on a slot that the live tree shares is sound, because a sealed
//! node never changes again: if apply needs other content, it makes a new slot. Apply may replace a node while it is
//! being written. Its place is then dead from the start, and `Mvcc::take_dead_places` reports it to the next
//! checkpoint.
//!
//! It does not choose what is written (`checkpoint` does).

use std::sync::{Arc, Mutex, PoisonError};

use super::writer::{Stream, Writer};
use crate::{
    Error, Record, Revision,
    disk::{Completion, Disk},
    extent::{self, BlockBuilder, IndexBuilder},
    mvcc::Recent,
    page::{HEADER_LEN, Kind},
    tree::{Node, Slot},
};

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
    /// Begins a walk below `slot`. There is nothing to do if it has a place.
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

    /// Writes one node. Returns false once the walk has ended.
    pub(crate) fn step(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<bool, Error> {
        while let Some(child) = self.stack.last_mut().and_then(|frame| frame.dirty.pop()) {
            self.push(child);
        }
        let Some(frame) = self.stack.last() else { return Ok(false) };
        self.payload.clear();
        frame.node.encode(&mut self.payload);
        writer.reserve(Stream::Pages, HEADER_LEN + self.payload.len(), disk)?;
        frame.slot.set_place(writer.append(Stream::Pages, Kind::Node, &self.payload));
        self.stack.pop();
        Ok(true)
    }
}

/// The work of one checkpoint that shards can do in any order. A shard without work takes the next piece.
#[derive(Debug)]
pub(crate) struct Source {
    recent: Recent,
    /// The first record that was not handed out.
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

    /// The records of the next extent; empty if none are left.
    fn take_records(&mut self, bytes_max: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let Some(from) = self.next.take() else { return records };
        let mut bytes = 0;
        for record in self.recent.iter_from(from) {
            if self.skip.binary_search(&record.revision).is_ok() {
                continue;
            }
            let more = extent::record_bytes(&record) + BlockBuilder::SLOT_LEN;
            if bytes + more > bytes_max && !records.is_empty() {
                self.next = Some(record.revision);
                break;
            }
            bytes += more;
            records.push(record.into_owned());
        }
        records
    }
}

/// A shard's share of a checkpoint: extents and subtrees, until all it wrote is durable.
#[derive(Debug)]
pub struct ShardJob {
    pub(crate) writer: Writer,
    pub(crate) extents: Vec<extent::Extent>,
    source: Arc<Mutex<Source>>,
    records: Vec<Record>,
    walk: TreeWalk,
    is_exhausted: bool,
    failed: bool,
}

/// What must happen after a step of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardProgress {
    /// It must be stepped again.
    Working,
    /// There is nothing to do before one of its operations ends.
    Waiting,
    /// Everything it wrote is durable.
    Done,
}

/// Nodes that one step writes at most, so that a step stays short when it shares a thread.
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

    /// Does a bounded piece of the work and submits what is possible. The caller kicks the disk.
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

    /// Takes the next piece of work. This does not count as a step.
    fn take_work(&mut self) -> usize {
        let mut source = self.source.lock().unwrap_or_else(PoisonError::into_inner);
        self.records = source.take_records(self.writer.extent_bytes(Stream::Records));
        if self.records.is_empty() {
            match source.subtrees.pop() {
                Some(subtree) => self.walk.begin(&subtree),
                None => self.is_exhausted = true,
            }
        }
        0
    }

    /// Writes the present records as one extent. Returns false if there are none.
    fn write_extent(&mut self, disk: &mut dyn Disk) -> Result<bool, Error> {
        if self.records.is_empty() {
            return Ok(false);
        }
        let extent = write_extent(&mut self.writer, Stream::Records, &mut self.records, disk)?;
        self.extents.push(extent);
        self.records.clear();
        Ok(true)
    }
}

/// Writes `records`, which may come in any order, as one extent. Sorts them into the order of the extent.
///
/// **Errors** `NoSpace`, after which it can be called again.
pub(crate) fn write_extent(
    writer: &mut Writer,
    stream: Stream,
    records: &mut [Record],
    disk: &mut dyn Disk,
) -> Result<extent::Extent, Error> {
    records.sort_unstable_by(|a, b| a.key.cmp(&b.key).then_with(|| b.revision.cmp(&a.revision)));
    let blocks = cut_blocks(records, writer.layout.block_bytes);
    let index = index_of(records, &blocks);
    let blocks_len = blocks.iter().map(|block| block.bytes + HEADER_LEN).sum::<usize>();
    let bytes = blocks_len + HEADER_LEN + index.len();
    writer.reserve(stream, bytes, disk)?;
    let mut rest = records.iter();
    let mut builder = BlockBuilder::default();
    let mut payload = Vec::new();
    for block in blocks {
        rest.by_ref().take(block.records).for_each(|record| builder.push(record));
        payload.clear();
        builder.finish(&mut payload);
        assert_eq!(payload.len(), block.bytes, "the size told before is the size written");
        writer.append(stream, Kind::Block, &payload);
    }
    payload.clear();
    index.finish(&mut payload);
    let place = writer.append(stream, Kind::ExtentIndex, &payload);
    let count = u32::try_from(records.len()).expect("an extent holds fewer than 2^32 records");
    let bytes = u32::try_from(bytes).expect("an extent is smaller than 4 GiB");
    let revisions = || records.iter().map(|record| record.revision);
    Ok(extent::Extent {
        first: revisions().min().expect("an extent holds a record"),
        last: revisions().max().expect("an extent holds a record"),
        index: place,
        records: count,
        live_records: count,
        bytes,
        live_bytes: bytes,
    })
}

fn index_of(records: &[Record], blocks: &[Cut]) -> IndexBuilder {
    let mut index = IndexBuilder::default();
    let mut first = 0_usize;
    for block in blocks {
        let before = first.checked_sub(1).map(|last| &records[last]);
        let len = u32::try_from(HEADER_LEN + block.bytes).expect("a block is smaller than 4 GiB");
        index.push(before, &records[first], len);
        first += block.records;
    }
    index
}

/// A block that will be written: its number of records, and the length of its payload.
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
