//! Inspects a page store that no process uses. It shows its superblocks and segments, and checks that every page and
//! record is as it was written.
//!
//! It changes nothing. Damage is reported and skipped, so that one run finds all of it. Memory is bounded: nodes and
//! blocks are released as soon as they were checked.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use super::{
    reader::load_for,
    space::Space,
    space::segment_files,
    store::{Recovered, recover},
    superblock::{self, Superblock},
};
use crate::{
    Error, Place,
    disk::{DirLock, Disk, FileOp},
    extent::{BlockCache, Directory, Extent, ExtentCursor},
    page::PAGES_DIR,
    tree::Slot,
};

/// One copy of the superblock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State {
    /// Identity of the store.
    pub store_id: u64,
    /// Counts the checkpoints.
    pub generation: u64,
    /// Current revision.
    pub revision: i64,
    /// Compact revision, -1 for none.
    pub compact_revision: i64,
    /// Index and term of the last applied entry.
    pub applied: (u64, u64),
}

impl State {
    fn of(superblock: &Superblock) -> Self {
        Self {
            store_id: superblock.store_id,
            generation: superblock.generation,
            revision: superblock.revision,
            compact_revision: superblock.compact_revision,
            applied: (superblock.applied_index, superblock.applied_term),
        }
    }
}

/// A segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its number.
    pub number: u32,
    /// Length of the file.
    pub file_bytes: u32,
    /// Bytes that the newest state reaches; 0 for a file that it does not use.
    pub live_bytes: u32,
}

/// The contents of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// The copies of the superblock, by position; `None` for a damaged one.
    pub copies: [Option<State>; 2],
    /// Position of the newest copy.
    pub newest: usize,
    /// Segments by number.
    pub segments: Vec<Segment>,
    /// Extents of records.
    pub extents: u64,
    /// Number of records in them, and the number of those that no sweep has dropped.
    pub records: (u64, u64),
}

/// The number of things that a check has read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Pages of the trees.
    pub nodes: u64,
    /// Extents.
    pub extents: u64,
    /// Records.
    pub records: u64,
}

struct Opened {
    copies: [Option<Superblock>; 2],
    newest: usize,
    state: Superblock,
    space: Space,
    directory: Arc<Directory>,
    unread: Vec<Error>,
}

/// Opens the newest state that can be opened.
fn open(disk: &mut dyn Disk, dir: &Path) -> Result<Opened, Error> {
    let copies = copies(disk, dir)?;
    let newest = newest(&copies);
    let (state, previous) = states(disk, dir)?;
    let files = segment_files(disk, &dir.join(PAGES_DIR))?;
    let cache = BlockCache::new(CACHE_BYTES);
    let recovered = recover(disk, dir, (&state, previous.as_ref()), &files, &cache)?;
    let Recovered { state, space, directory, unread } = recovered;
    Ok(Opened { copies, newest, state, space, directory, unread })
}

fn copies(disk: &mut dyn Disk, dir: &Path) -> Result<[Option<Superblock>; 2], Error> {
    if !superblock::exists(disk, dir)? {
        return Err(Error::corrupt(&superblock::path(dir), 0, "there is no superblock: no store lies here"));
    }
    superblock::peek(disk, dir)
}

fn newest(copies: &[Option<Superblock>; 2]) -> usize {
    let generation = |copy: &Option<Superblock>| copy.map_or(0, |state| state.generation);
    usize::from(generation(&copies[1]) > generation(&copies[0]))
}

/// The newest state, and the one before it if its copy of the superblock is valid.
///
/// **Errors** `Corrupt` if neither copy is valid; `Format`.
pub(super) fn states(disk: &mut dyn Disk, dir: &Path) -> Result<(Superblock, Option<Superblock>), Error> {
    let copies = copies(disk, dir)?;
    let newest = newest(&copies);
    let damaged = || Error::corrupt(&superblock::path(dir), 0, "neither copy of the superblock is valid");
    let state = copies[newest].ok_or_else(damaged)?;
    Ok((state, copies[1 - newest].filter(|previous| previous.generation + 1 == state.generation)))
}

/// The directory of `state`, with what cannot be read of it as lost chunks.
///
/// **Errors** `Corrupt` for its root or its segment table.
pub(super) fn tables(disk: &mut dyn Disk, dir: &Path, state: &Superblock) -> Result<Arc<Directory>, Error> {
    let files = segment_files(disk, &dir.join(PAGES_DIR))?;
    let cache = BlockCache::new(CACHE_BYTES);
    recover(disk, dir, (state, None), &files, &cache).map(|recovered| recovered.directory)
}

/// Bytes of blocks that are kept while they are read. **Units** bytes.
const CACHE_BYTES: usize = 8 << 20;

/// Reports on the store in `dir`. Blocks.
///
/// **Errors** `Locked`; `Corrupt` if both superblocks or a table of the newest state are damaged.
pub fn report(disk: &mut dyn Disk, dir: &Path) -> Result<Report, Error> {
    let _lock = disk.lock(dir)?;
    let Opened { copies, newest, space, directory, .. } = open(disk, dir)?;
    let live = space.segments().iter().map(|(number, entry)| Segment {
        number: *number,
        file_bytes: entry.file_bytes,
        live_bytes: entry.live_bytes,
    });
    let dead = space.dead_files().map(|(number, bytes)| Segment {
        number,
        file_bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
        live_bytes: 0,
    });
    let mut segments: Vec<Segment> = live.chain(dead).collect();
    segments.sort_unstable_by_key(|segment| segment.number);
    let sum = |count: fn(&Extent) -> u32| directory.extents().map(|extent| u64::from(count(extent))).sum();
    Ok(Report {
        copies: copies.map(|copy| copy.as_ref().map(State::of)),
        newest,
        segments,
        extents: directory.extents().count() as u64,
        records: (sum(|entry| entry.records), sum(|entry| entry.live_records)),
    })
}

/// Reads every page and record that the newest state in `dir` reaches; the caller keeps the lock on it. Calls `damage`
/// for each that is not as it was written, and for segments with a wrong account of live bytes. Blocks for a time that
/// grows with the data.
///
/// **Errors** as [`report`], but for `Locked`, and those of the medium.
pub fn verify(
    disk: &mut dyn Disk,
    dir: &Path,
    _lock: &DirLock,
    damage: &mut dyn FnMut(&Error),
) -> Result<Checked, Error> {
    let Opened { state, space, directory, unread, .. } = open(disk, dir)?;
    unread.iter().for_each(&mut *damage);
    let is_whole = unread.is_empty();
    let mut check = Check { disk, dir, damage, reached: BTreeMap::new(), done: Checked::default(), is_whole };
    if let Some(pages) = &state.pages {
        [pages.directory, pages.segments].into_iter().for_each(|place| check.reach(place));
        check.tree(pages.key_root)?;
        check.tree(pages.meta_root)?;
    }
    directory.chunks().iter().filter_map(|chunk| chunk.place()).for_each(|place| check.reach(place));
    check.extents(&directory)?;
    check.account(&space);
    Ok(check.done)
}

struct Check<'a> {
    disk: &'a mut dyn Disk,
    dir: &'a Path,
    damage: &'a mut dyn FnMut(&Error),
    /// Live bytes that were found, by segment.
    reached: BTreeMap<u32, u64>,
    done: Checked,
    /// Whether everything could be read.
    is_whole: bool,
}

impl Check<'_> {
    fn reach(&mut self, place: Place) {
        *self.reached.entry(place.segment).or_default() += u64::from(place.len);
    }

    /// The result of a read; `None` if it is damaged.
    fn sound<T>(&mut self, read: Result<T, Error>) -> Result<Option<T>, Error> {
        match read {
            Ok(value) => Ok(Some(value)),
            Err(error @ (Error::Corrupt { .. } | Error::Io { op: FileOp::Read, .. })) => {
                self.is_whole = false;
                (self.damage)(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn tree(&mut self, root: Place) -> Result<(), Error> {
        // These are slots of their own, so that a node is released with the last of its children.
        let residency = Arc::default();
        let mut stack = vec![Slot::on_disk(root, &residency)];
        while let Some(slot) = stack.pop() {
            self.reach(slot.place().expect("read from disk"));
            let node = load_for(self.disk, self.dir, || slot.node());
            if let Some(node) = self.sound(node)? {
                self.done.nodes += 1;
                stack.extend(node.children().map(Arc::clone));
            }
        }
        Ok(())
    }

    fn extents(&mut self, directory: &Arc<Directory>) -> Result<(), Error> {
        for extent in directory.extents() {
            *self.reached.entry(extent.index.segment).or_default() += u64::from(extent.live_bytes);
            self.done.extents += 1;
            let mut cursor = ExtentCursor::new(Arc::clone(directory), extent.first);
            let mut records = 0;
            while records < u64::from(extent.records) {
                let record = load_for(self.disk, self.dir, || cursor.next());
                let Some(record) = self.sound(record)? else { break };
                if record.is_none_or(|record| record.revision > extent.last) {
                    let what = "an extent holds fewer records than the directory says";
                    let short = Error::corrupt(&self.dir.join(extent.index.path()), extent.index.offset.into(), what);
                    self.sound::<()>(Err(short))?;
                    break;
                }
                records += 1;
            }
            self.done.records += records;
        }
        Ok(())
    }

    /// Compares what was reached with the segment table. Reports nothing if damage hides what is reached.
    fn account(&mut self, space: &Space) {
        if !self.is_whole {
            return;
        }
        for (segment, entry) in space.segments() {
            let found = self.reached.remove(segment).unwrap_or(0);
            if found != u64::from(entry.live_bytes) {
                let path = self.dir.join(crate::page::segment_path(*segment));
                (self.damage)(&Error::corrupt(&path, 0, "the table of segments counts other live bytes"));
            }
        }
    }
}
