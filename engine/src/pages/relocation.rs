//! Moves the wanted records out of the segments that must be emptied, inside a checkpoint.
//!
//! It goes extent by extent, in revision order. It reads each extent whole, and keeps the records that the sealed key
//! tree still reaches. It writes them again as extents of the usual size; neighbours among the victims are joined. It
//! is a plain state machine over reads and the writes of a [`Writer`].
//!
//! Invariants:
//! - A *run* is a series of extents with no other extent between them. `moved` and `added` change by whole runs: every
//!   extent in `moved` has all its wanted records in `added`, and no other extent overlaps with those.
//! - The records that are kept of an extent are those that the tree reaches; never more than `Extent::live_records`. If
//!   that is all of them, none is looked up; otherwise each is.
//! - Memory holds one extent, the records of two more, and [`NODES_MAX`] tree pages. Pages that it reads go neither
//!   into the readers' cache nor into the live tree, because the moved data is cold.
//! - An extent stays where it is, whole, if something in it cannot be read, or a page of the tree by which it must be
//!   judged. The run before it ends there.
//! - When space runs out, the present run is given up and counted as dead, and so is the rest. A full disk must not
//!   keep a checkpoint from ending.
//!
//! It does not choose the victims (`reclaim` does), and does not change the directory (`checkpoint` does).

use std::{
    collections::{BTreeMap, VecDeque},
    path::Path,
    sync::Arc,
};

use super::{
    reader::{Loaded, PageReader},
    shard::write_extent,
    writer::{READ_SHARD, Stream, Writer, number_of},
};
use crate::{
    Error, Fault, Record, Revision, Unreadable,
    disk::{Completion, Disk, Owner},
    extent::{self, BlockBuilder, BlockCache, Extent, Whole},
    tree::{Node, Slot},
};

/// Segment files that it keeps open.
const FILES_MAX: usize = 8;
/// Reads under way at once.
const READS_MAX: usize = 16;
/// Tree pages that are held for lookups.
const NODES_MAX: usize = 512;

/// Finds out whether versions are still in a tree.
#[derive(Debug)]
struct Lookup {
    root: Arc<Slot>,
    /// Pages that were not in memory, read only for this.
    nodes: BTreeMap<crate::Place, Arc<Slot>>,
}

impl Lookup {
    fn has(&mut self, key: &[u8], revision: Revision) -> Result<bool, Fault> {
        let mut slot = Arc::clone(&self.root);
        loop {
            match &*self.node(&slot)? {
                Node::Leaf(leaf) => {
                    let position = leaf.lower_bound(key, revision);
                    let is_there = position < leaf.len() && leaf.is_of(position, key);
                    return Ok(is_there && leaf.meta(position).revision == revision);
                }
                Node::Inner(inner) => {
                    let position = inner.child_of(key, revision);
                    slot = Arc::clone(&inner.children()[position].slot);
                }
            }
        }
    }

    fn node(&mut self, slot: &Arc<Slot>) -> Result<Arc<Node>, Fault> {
        let Some(place) = slot.place().filter(|_| slot.resident().is_none()) else { return slot.node() };
        if self.nodes.len() >= NODES_MAX && !self.nodes.contains_key(&place) {
            self.nodes.clear();
        }
        self.nodes.entry(place).or_insert_with(|| Slot::on_disk(place, slot.residency())).node()
    }
}

/// Records of neighbouring extents that will go into new ones.
#[derive(Debug, Default)]
struct Run {
    /// The position after the last extent that was taken in.
    end: usize,
    moved: Vec<Extent>,
    added: Vec<Extent>,
    records: Vec<Record>,
    bytes: usize,
}

impl Run {
    fn push(&mut self, record: Record) {
        self.bytes += extent::record_bytes(&record) + BlockBuilder::SLOT_LEN;
        self.records.push(record);
    }

    /// Writes the first of the present records, as many as suit one extent.
    fn write(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<(), Error> {
        let (mut count, mut bytes) = (0, 0);
        let bytes_max = writer.extent_bytes(Stream::Moved);
        for record in &self.records {
            let more = extent::record_bytes(record) + BlockBuilder::SLOT_LEN;
            if count > 0 && bytes + more > bytes_max {
                break;
            }
            (count, bytes) = (count + 1, bytes + more);
        }
        self.added.push(write_extent(writer, Stream::Moved, &mut self.records[..count], disk)?);
        self.records.drain(..count);
        self.bytes -= bytes;
        Ok(())
    }
}

/// An extent that is being read, and which of its records are wanted.
#[derive(Debug)]
struct Reading {
    position: usize,
    entry: Extent,
    whole: Arc<Whole>,
    /// For each record, in revision order, whether it is wanted.
    is_wanted: Vec<bool>,
    /// Positions of records that were not yet looked up, in key order: neighbours in the tree share its pages.
    undecided: Vec<usize>,
}

/// The result of moving.
#[derive(Debug, Default)]
pub(crate) struct Relocated {
    /// Extents whose live records are all in `added`.
    pub(crate) moved: Vec<Extent>,
    pub(crate) added: Vec<Extent>,
    /// Extents that were written and are not wanted any more.
    pub(crate) given_up: Vec<Extent>,
    /// Whether there was room for everything.
    pub(crate) is_complete: bool,
    /// Extents that stay where they are, because something cannot be read.
    pub(crate) passed: usize,
    /// What cannot be read, each page when it was met first.
    pub(crate) unread: Vec<Error>,
}

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Relocation {
    reader: PageReader,
    cache: Arc<BlockCache>,
    lookup: Lookup,
    victims: VecDeque<(usize, Extent)>,
    reading: Option<Reading>,
    run: Run,
    done: Relocated,
    has_no_space: bool,
    /// A page that the present extent needs cannot be read.
    has_failed: bool,
}

/// What must happen after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Moving {
    Working,
    Waiting,
    Done,
}

impl Relocation {
    /// Moves the records of `victims` that the tree at `root` still reaches. Each victim comes with its position among
    /// all extents. Notes in `unreadable` what it cannot read.
    pub(crate) fn new(dir: &Path, root: Arc<Slot>, victims: Vec<(usize, Extent)>, unreadable: Arc<Unreadable>) -> Self {
        assert!(victims.is_sorted_by(|a, b| a.0 < b.0 && a.1.last < b.1.first), "victims are in order");
        let first_number = number_of(READ_SHARD);
        Self {
            reader: PageReader::for_owner(Owner::Checkpoint, first_number, dir, (FILES_MAX, READS_MAX), unreadable),
            cache: BlockCache::new(0),
            lookup: Lookup { root, nodes: BTreeMap::new() },
            victims: victims.into(),
            reading: None,
            run: Run::default(),
            done: Relocated::default(),
            has_no_space: false,
            has_failed: false,
        }
    }

    /// Goes on until a page must be read, or one extent is done.
    pub(crate) fn step(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<Moving, Error> {
        if !self.reader.is_idle() {
            self.submit(disk);
            return Ok(Moving::Waiting);
        }
        if std::mem::take(&mut self.has_failed) {
            self.pass_by();
            return Ok(Moving::Working);
        }
        if self.has_no_space || (self.reading.is_none() && self.victims.is_empty()) {
            self.end_run(writer, disk)?;
            self.reader.close(disk);
            return Ok(Moving::Done);
        }
        match self.advance(writer, disk) {
            Ok(()) => {}
            Err(Stop::Faults(faults)) => {
                assert!(!faults.is_empty(), "what stops has to be read");
                faults.into_iter().for_each(|fault| self.reader.read(fault, 0));
                self.submit(disk);
                // If no file could be opened, nothing is on its way.
                return Ok(if self.reader.is_idle() { Moving::Working } else { Moving::Waiting });
            }
            Err(Stop::Error(error)) => return Err(error),
        }
        Ok(Moving::Working)
    }

    /// Leaves the present extent where it is.
    fn pass_by(&mut self) {
        if self.reading.take().is_none() {
            self.victims.pop_front();
        }
        self.cache = BlockCache::new(0);
        self.done.passed += 1;
    }

    fn submit(&mut self, disk: &mut dyn Disk) {
        let failed = self.reader.step(disk);
        self.take_in(failed);
    }

    /// Takes the end of one of its reads.
    pub(crate) fn on_completion(&mut self, completion: Completion) {
        let loaded = self.reader.on_completion(completion);
        self.take_in(loaded);
    }

    fn take_in(&mut self, loaded: Vec<Loaded>) {
        for Loaded { result, is_news, .. } in loaded {
            self.has_failed |= result.is_err();
            self.done.unread.extend(result.err().filter(|_| is_news));
        }
    }

    /// The result, once it is done.
    pub(crate) fn finish(self) -> Relocated {
        assert!(self.run.moved.is_empty() && self.run.records.is_empty(), "the last run was ended");
        let is_complete = !self.has_no_space;
        assert!(!is_complete || (self.victims.is_empty() && self.reading.is_none()));
        Relocated { is_complete, ..self.done }
    }

    fn advance(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<(), Stop> {
        if self.reading.is_none() {
            let (position, entry) = *self.victims.front().expect("the caller looked");
            let whole = self.cache.whole(&entry).map_err(|fault| vec![fault])?;
            self.victims.pop_front();
            if position != self.run.end {
                self.end_run(writer, disk)?;
            }
            // The cache is needed only here.
            self.cache = BlockCache::new(0);
            self.reading = Some(Reading::new(position, entry, whole));
        }
        let reading = self.reading.as_mut().expect("set above");
        reading.decide(&mut self.lookup)?;
        let reading = self.reading.take().expect("set above");
        let Reading { position, entry, whole, is_wanted, .. } = reading;
        for (at, _) in is_wanted.iter().enumerate().filter(|(_, is_wanted)| **is_wanted) {
            self.run.push(whole.record(at));
        }
        self.run.moved.push(entry);
        self.run.end = position + 1;
        // The records of one extent are kept back, so that a run does not end with a tiny extent.
        while self.run.bytes > 2 * writer.extent_bytes(Stream::Moved) {
            self.write(writer, disk)?;
        }
        Ok(())
    }

    fn end_run(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<(), Error> {
        while !self.run.records.is_empty() {
            self.write(writer, disk)?;
        }
        let Run { mut moved, mut added, .. } = std::mem::take(&mut self.run);
        self.done.moved.append(&mut moved);
        self.done.added.append(&mut added);
        Ok(())
    }

    /// Writes an extent of the run, or gives the run up.
    fn write(&mut self, writer: &mut Writer, disk: &mut dyn Disk) -> Result<(), Error> {
        match self.run.write(writer, disk) {
            Err(Error::NoSpace { .. }) => {
                self.has_no_space = true;
                self.done.given_up.append(&mut self.run.added);
                self.run = Run::default();
                Ok(())
            }
            result => result,
        }
    }
}

impl Reading {
    fn new(position: usize, entry: Extent, whole: Arc<Whole>) -> Self {
        let all = entry.live_records == entry.records;
        let undecided = if all { Vec::new() } else { whole.by_key() };
        Self { position, entry, is_wanted: vec![all; whole.len()], whole, undecided }
    }

    /// Finds out which records of the extent are wanted.
    fn decide(&mut self, lookup: &mut Lookup) -> Result<(), Vec<Fault>> {
        let mut faults = Vec::new();
        let Self { whole, is_wanted, entry, .. } = self;
        self.undecided.retain(|position| {
            if faults.len() >= READS_MAX {
                return true;
            }
            let (key, revision) = whole.version(*position);
            match lookup.has(key, revision) {
                Ok(wanted) => {
                    is_wanted[*position] = wanted;
                    false
                }
                Err(fault) => {
                    faults.push(fault);
                    true
                }
            }
        });
        if !faults.is_empty() {
            return Err(faults);
        }
        let wanted = u32::try_from(is_wanted.iter().filter(|wanted| **wanted).count()).expect("a count of records");
        // The directory counts what the tree reaches, or more: what died while its chunk was lost was not counted.
        assert!(wanted <= entry.live_records, "no record comes back");
        entry.live_records = wanted;
        Ok(())
    }
}

/// The reason why it cannot go on.
enum Stop {
    Faults(Vec<Fault>),
    Error(Error),
}

impl From<Vec<Fault>> for Stop {
    fn from(faults: Vec<Fault>) -> Self {
        Self::Faults(faults)
    }
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}
