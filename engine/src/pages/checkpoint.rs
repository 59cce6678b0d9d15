//! A checkpoint writes one sealed state to the page store beside running traffic, and publishes it with one superblock.
//!
//! A plain state machine. `step` does a bounded piece of work and submits I/O. Completions with a token of
//! `Owner::Checkpoint` come back through `on_completion`. It may run on any thread, and its shards on several (`split`,
//! `join`). Order of events:
//!
//! 1. Files that have been dead for long enough are removed.
//! 2. The shards write the records as extents, and the dirty subtrees, children first. They sync what they wrote.
//! 3. The first shard's writer moves the records out of the segments that must be emptied (`relocation`). It writes the
//!    rest of the trees up to both roots, the changed directory chunks, the directory root and the segment table. Its
//!    files and their directory are synced.
//! 4. The superblock is written, durably, over the older copy. Only then is the checkpoint `Done`.
//!
//! The checkpoint of a state that is still being built beside the live one (`install`) ends without event 4. The one
//! that installs such a state begins there, and writes the newer copy after the older one.
//!
//! Invariants:
//! - Before event 4, nothing that either superblock copy reaches is changed. So a crash at any moment leaves the newest
//!   copy intact.
//! - When event 4 begins, `space` counts exactly what the new superblock reaches. A segment of `victims` is then dead,
//!   unless moving ran out of space, or met something that cannot be read: that stays where it is.
//! - `NoSpace` leaves the job where it was: `step` goes on when there is room. So the job must be kept: the nodes it
//!   has written have their places already, and only this job makes them durable. In event 4 (on a file system with
//!   copy-on-write) the whole superblock is written once more. It goes to the older copy, and the newer one is
//!   untouched. After any other error it answers `Stopped`.
//!
//! It does not decide when to run, and does not touch the live state. `Store` begins and ends it on the apply core.

use std::{
    collections::BTreeSet,
    io,
    path::PathBuf,
    sync::{Arc, Mutex},
};

use super::{
    relocation::{Moving, Relocated, Relocation},
    shard::{ShardJob, ShardProgress, Source, TreeWalk},
    space::{DeadFile, Space, segment_files},
    superblock::{self, Pages, Superblock},
    writer::{Layout, READ_SHARD, Stream, Writer, number_of, shard_of, sync_failed},
};
use crate::{
    Error, Place, Revision, Unreadable,
    disk::{Completion, Disk, FileId, FileOp, Op, OpenKind, Owner},
    extent::{self, Directory, Edit},
    mvcc::Sealed,
    page::{HEADER_LEN, Kind, PAGES_DIR},
    tree::Slot,
    victims::Victims,
};

/// What must happen after a step of a [`Checkpoint`].
#[derive(Debug)]
pub enum Progress {
    /// It must be stepped again.
    Working,
    /// There is nothing to do before one of its operations ends.
    Waiting,
    /// The state is durable. This must go to [`crate::Store::checkpoint_end`].
    Done(Box<CheckpointDone>),
}

/// The result of a finished checkpoint, for the store.
#[derive(Debug)]
pub struct CheckpointDone {
    pub(crate) superblock: Superblock,
    pub(crate) directory: Arc<Directory>,
    pub(crate) space: Space,
    pub(crate) writers: Vec<Writer>,
    pub(crate) up_to: Revision,
    /// Whether there was room to move everything out of the victims.
    pub(crate) is_reclaimed: bool,
    /// What could not be read in them, each page when it was met first.
    pub(crate) unread: Vec<Error>,
    pub(crate) is_install: bool,
}

impl CheckpointDone {
    /// Whether it has installed a state in place of the one before.
    pub fn is_install(&self) -> bool {
        self.is_install
    }

    /// What could not be read while segments were emptied, each page when it was met first.
    pub fn unread(&self) -> &[Error] {
        &self.unread
    }

    /// Raft index of the last entry in the durable state.
    pub fn applied_index(&self) -> u64 {
        self.superblock.applied_index
    }
}

/// The input of a checkpoint, from the store.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) layout: Arc<Layout>,
    pub(crate) newest: Superblock,
    pub(crate) sealed: Sealed,
    pub(crate) space: Space,
    pub(crate) writers: Vec<Writer>,
    pub(crate) removable: Vec<DeadFile>,
    pub(crate) dead_places: Vec<Place>,
    pub(crate) dead_records: extent::DeadRecords,
    /// Segments that must be emptied. The sealed trees reach no page in them, but through pages that cannot be read.
    pub(crate) victims: Victims,
    /// Number of those pages.
    pub(crate) passed: usize,
    pub(crate) unreadable: Arc<Unreadable>,
    /// Files with lower numbers that `space` does not know are removed.
    pub(crate) orphans_below: Option<u32>,
    pub(crate) copies: Copies,
}

/// The copies of the superblock that the end of a checkpoint writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Copies {
    /// None: the state is built beside the live one.
    None,
    /// The older one.
    Older,
    /// Both, the older one first: the state is installed.
    Both,
}

#[derive(Debug)]
enum Stage {
    Prepare(Box<Begin>),
    Remove,
    Shards,
    Records,
    Trees(u8),
    Chunks(usize),
    Tables,
    Sync,
    Superblock,
    Written,
    Stopped,
}

/// The number in the tokens of the sync of the directory and of the superblock's write. No shard has this number.
const OWN_SHARD: u64 = 0xffff;

/// A checkpoint under way.
pub struct Checkpoint {
    stage: Stage,
    layout: Arc<Layout>,
    roots: [Arc<Slot>; 2],
    superblock: Superblock,
    up_to: Revision,
    space: Space,
    removable: Vec<DeadFile>,
    edit: Option<Edit>,
    extents: Vec<extent::Extent>,
    victims: Victims,
    relocation: Option<Relocation>,
    is_reclaimed: bool,
    /// Pages and extents that cannot be read and stand in the way of emptying the victims.
    passed: usize,
    unread: Vec<Error>,
    unreadable: Arc<Unreadable>,
    shards: Vec<ShardJob>,
    shard_count: usize,
    is_split: bool,
    writers: Vec<Writer>,
    walk: TreeWalk,
    directory: Arc<Directory>,
    tables: Option<(Place, Place)>,
    has_created: bool,
    own_file: Option<FileId>,
    is_own_submitted: bool,
    is_own_done: bool,
    orphans_below: Option<u32>,
    copies: Copies,
    is_install: bool,
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checkpoint").field("stage", &self.stage).field("superblock", &self.superblock).finish()
    }
}

impl Checkpoint {
    pub(crate) fn new(begin: Begin) -> Self {
        let roots = &begin.sealed.roots;
        let superblock = Superblock {
            generation: begin.newest.generation + 1,
            revision: roots.revision,
            compact_revision: roots.compact_revision,
            applied_index: roots.applied_index,
            applied_term: roots.applied_term,
            unfinished: roots.unfinished.cast_unsigned(),
            ..begin.newest
        };
        assert!(superblock.applied_index >= begin.newest.applied_index, "the applied index never decreases");
        assert!(superblock.revision >= begin.newest.revision, "the revision never decreases");
        Self {
            layout: Arc::clone(&begin.layout),
            roots: [Arc::clone(&roots.key_root), Arc::clone(&roots.meta_root)],
            superblock,
            up_to: begin.sealed.recent.last().unwrap_or(Revision::MIN),
            space: Space::default(),
            removable: Vec::new(),
            edit: None,
            extents: Vec::new(),
            victims: begin.victims.clone(),
            relocation: None,
            is_reclaimed: true,
            passed: begin.passed,
            unread: Vec::new(),
            unreadable: Arc::clone(&begin.unreadable),
            shards: Vec::new(),
            shard_count: begin.writers.len(),
            is_split: false,
            writers: Vec::new(),
            walk: TreeWalk::default(),
            directory: Arc::clone(&roots.directory),
            tables: None,
            has_created: false,
            own_file: None,
            is_own_submitted: false,
            is_own_done: false,
            orphans_below: begin.orphans_below,
            copies: begin.copies,
            is_install: false,
            stage: Stage::Prepare(Box::new(begin)),
        }
    }

    /// The checkpoint that installs the state `superblock`. All that it reaches is durable already.
    pub(crate) fn installing(begin: Begin, superblock: Superblock) -> Self {
        assert!(begin.copies == Copies::Both && superblock.is_installed && superblock.pages.is_some());
        let (layout, directory) = (Arc::clone(&begin.layout), Arc::clone(&begin.sealed.roots.directory));
        let mut checkpoint = Self::new(begin);
        let Stage::Prepare(begin) = std::mem::replace(&mut checkpoint.stage, Stage::Superblock) else {
            unreachable!("just begun")
        };
        let Begin { space, writers, .. } = *begin;
        Self { layout, directory, superblock, space, writers, is_install: true, ..checkpoint }
    }

    /// Does the work that takes too long for the apply core: counts what died, finds the changed chunks, and cuts the
    /// work into pieces.
    fn prepare(&mut self) {
        let Stage::Prepare(begin) = std::mem::replace(&mut self.stage, Stage::Remove) else { return };
        let Begin { newest, sealed, mut space, mut writers, removable, dead_places, mut dead_records, .. } = *begin;
        for place in dead_places {
            space.remove(place);
            self.unreadable.forget(place);
        }
        if let Some(pages) = newest.pages {
            space.remove(pages.directory);
            space.remove(pages.segments);
        }
        let (dead, skip) = dead_records.take(&self.directory);
        let mut edit = Edit::new(&self.directory, &dead);
        for (segment, bytes) in &edit.dead_bytes {
            space.remove_bytes(*segment, *bytes);
        }
        if !self.victims.is_empty() {
            edit.renew(&self.victims);
            self.passed += self.directory.lost_chunks();
            let victims = edit.in_segments(&self.victims);
            let unreadable = Arc::clone(&self.unreadable);
            self.relocation = Some(Relocation::new(&self.layout.dir, Arc::clone(&self.roots[0]), victims, unreadable));
        }
        let live_bytes = space.sizes().1 + sealed.recent.bytes();
        writers.iter_mut().for_each(|writer| writer.size_for(live_bytes));
        let subtrees = subtrees(&self.roots, self.shard_count);
        let source = Source::new(sealed.recent, self.directory.last(), skip, subtrees);
        let source = Arc::new(Mutex::new(source));
        self.shards = writers.into_iter().map(|writer| ShardJob::new(writer, Arc::clone(&source))).collect();
        self.edit = Some(edit);
        self.space = space;
        self.removable = removable;
    }

    /// Gives out the shards' jobs. Each must be run on a thread and a disk of its own; [`Checkpoint::join`] takes them
    /// back. Without this call, the checkpoint steps them itself.
    pub fn split(&mut self) -> Vec<ShardJob> {
        assert!(matches!(self.stage, Stage::Prepare(_)), "shards are given out before the first step");
        self.prepare();
        self.is_split = true;
        std::mem::take(&mut self.shards)
    }

    /// Takes back the shards' jobs. All must be `Done`.
    pub fn join(&mut self, mut shards: Vec<ShardJob>) {
        assert_eq!(shards.len(), self.shard_count, "every shard comes back");
        assert!(shards.iter().all(|shard| shard.writer.is_synced()), "a shard comes back when it is done");
        shards.sort_unstable_by_key(|shard| shard.writer.shard());
        self.shards = shards;
    }

    /// Does a bounded piece of the work and submits what is possible. The caller kicks the disk.
    ///
    /// **Errors** `NoSpace` leaves the job as it was: keep it and step it again later. After any other error the member
    /// stops.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        let result = self.advance(disk);
        self.note(&result);
        result
    }

    /// Takes the end of an operation with a token of `Owner::Checkpoint`.
    ///
    /// **Errors** as [`Checkpoint::step`].
    pub fn on_completion(&mut self, completion: Completion) -> Result<(), Error> {
        let result = self.complete(completion);
        self.note(&result);
        result
    }

    /// Steps to the end, on a disk that nobody else uses meanwhile. Blocks.
    ///
    /// **Errors** as [`Checkpoint::step`]; after `NoSpace` it can be called again.
    pub fn run(&mut self, disk: &mut dyn Disk) -> Result<CheckpointDone, Error> {
        let mut completions = Vec::new();
        loop {
            match self.step(disk)? {
                Progress::Done(done) => return Ok(*done),
                Progress::Working => disk.kick()?,
                Progress::Waiting => disk.wait()?,
            }
            disk.completions(&mut completions);
            let mut result = Ok(());
            for completion in completions.drain(..) {
                // All of them must be taken: each gives back a buffer that may have to be written again.
                result = self.on_completion(completion).and(result);
            }
            result?;
        }
    }

    fn note<T>(&mut self, result: &Result<T, Error>) {
        if let Err(error) = result
            && !matches!(error, Error::NoSpace { .. })
        {
            self.stage = Stage::Stopped;
        }
    }

    fn complete(&mut self, completion: Completion) -> Result<(), Error> {
        assert_eq!(Owner::of(completion.token), Owner::Checkpoint);
        let shard = shard_of(completion.token);
        if shard == OWN_SHARD {
            return self.complete_own(completion.result);
        }
        if shard == READ_SHARD {
            self.relocation.as_mut().expect("it has reads in flight").on_completion(completion);
            return Ok(());
        }
        let shard = usize::try_from(shard).expect("few shards");
        match self.shards.get_mut(shard) {
            Some(shard) => shard.on_completion(completion),
            None => self.writers[shard].on_completion(completion),
        }
    }

    /// Takes the end of the directory's sync, or of the superblock's write.
    fn complete_own(&mut self, result: io::Result<usize>) -> Result<(), Error> {
        let is_written = result.is_ok();
        let result = result.map(drop).map_err(|source| match self.stage {
            Stage::Superblock => Error::io(&superblock::path(&self.layout.dir), FileOp::Write, source),
            _ => sync_failed(self.pages_dir(), source),
        });
        self.is_own_done = is_written;
        self.is_own_submitted = is_written;
        result
    }

    fn pages_dir(&self) -> PathBuf {
        self.layout.dir.join(PAGES_DIR)
    }

    fn advance(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        match self.stage {
            Stage::Prepare(_) => {
                self.prepare();
                Ok(Progress::Working)
            }
            Stage::Remove => self.remove(disk),
            Stage::Shards => self.step_shards(disk),
            Stage::Records => self.step_records(disk),
            Stage::Trees(tree) => self.step_trees(tree, disk),
            Stage::Chunks(position) => self.step_chunks(position, disk),
            Stage::Tables => self.write_tables(disk),
            Stage::Sync => self.sync(disk),
            Stage::Superblock => self.write_superblock(disk),
            Stage::Written => Ok(self.finish(disk)),
            Stage::Stopped => Err(Error::Stopped),
        }
    }

    fn remove(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        match self.removable.pop() {
            Some(dead) => {
                if let Err(error) = disk.remove(&self.layout.segment_path(dead.segment)) {
                    self.space.restore_dead(dead);
                    return Err(error);
                }
            }
            None => {
                self.remove_orphans(disk)?;
                self.stage = Stage::Shards;
            }
        }
        Ok(Progress::Working)
    }

    /// Removes the files of states that were built beside the live one and given up.
    fn remove_orphans(&mut self, disk: &mut dyn Disk) -> Result<(), Error> {
        let Some(below) = self.orphans_below else { return Ok(()) };
        let files = segment_files(disk, &self.pages_dir())?;
        let dead: BTreeSet<u32> = self.space.dead_files().map(|(segment, _)| segment).collect();
        let is_known = |segment: &u32| self.space.segments().contains_key(segment) || dead.contains(segment);
        for segment in files.into_iter().filter(|segment| *segment < below && !is_known(segment)) {
            disk.remove(&self.layout.segment_path(segment))?;
        }
        self.orphans_below = None;
        Ok(())
    }

    fn step_shards(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        if self.shards.len() < self.shard_count {
            assert!(self.is_split, "the shards are here or given out");
            return Ok(Progress::Waiting);
        }
        let (mut is_done, mut is_working) = (true, false);
        for shard in &mut self.shards {
            let progress = if self.is_split { ShardProgress::Done } else { shard.step(disk)? };
            is_done &= progress == ShardProgress::Done;
            is_working |= progress == ShardProgress::Working;
        }
        if is_done {
            for mut shard in std::mem::take(&mut self.shards) {
                self.extents.append(&mut shard.extents);
                self.writers.push(shard.writer);
            }
            self.stage = Stage::Records;
            return Ok(Progress::Working);
        }
        Ok(if is_working { Progress::Working } else { Progress::Waiting })
    }

    fn step_records(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        if !self.pump(disk) {
            return Ok(Progress::Waiting);
        }
        if let Some(relocation) = &mut self.relocation {
            match relocation.step(&mut self.writers[0], disk)? {
                Moving::Working => return Ok(Progress::Working),
                Moving::Waiting => return Ok(Progress::Waiting),
                Moving::Done => {}
            }
        }
        self.account();
        let mut edit = self.edit.take().expect("the directory is made once");
        if let Some(relocation) = self.relocation.take() {
            let Relocated { moved, added, given_up, is_complete, unread, passed } = relocation.finish();
            self.passed += passed;
            self.unread = unread;
            for entry in &moved {
                self.space.remove_bytes(entry.index.segment, u64::from(entry.live_bytes));
            }
            for entry in given_up {
                self.space.remove_bytes(entry.index.segment, u64::from(entry.bytes));
            }
            edit.replace(&moved, added);
            self.is_reclaimed = is_complete;
        }
        let mut extents = std::mem::take(&mut self.extents);
        extents.sort_unstable_by_key(|extent| extent.first);
        let (directory, dead_chunks) = edit.finish(extents);
        self.directory = directory;
        dead_chunks.into_iter().for_each(|place| self.space.remove(place));
        self.stage = Stage::Trees(0);
        Ok(Progress::Working)
    }

    /// Counts what the writers have added.
    fn account(&mut self) {
        for writer in &mut self.writers {
            let added = writer.take_added();
            for (segment, file_bytes) in added.segments {
                self.space.create(segment, file_bytes);
                self.has_created = true;
            }
            for (segment, bytes) in added.bytes {
                self.space.add_bytes(segment, bytes);
            }
        }
    }

    /// Hands the disk what the first writer has queued. Returns true if the writer can take more.
    fn pump(&mut self, disk: &mut dyn Disk) -> bool {
        self.writers[0].submit(disk);
        !self.writers[0].is_full()
    }

    fn step_trees(&mut self, tree: u8, disk: &mut dyn Disk) -> Result<Progress, Error> {
        if !self.pump(disk) {
            return Ok(Progress::Waiting);
        }
        let Some(root) = self.roots.get(usize::from(tree)) else {
            self.stage = Stage::Chunks(0);
            return Ok(Progress::Working);
        };
        if self.walk.is_idle() {
            self.walk.begin(root);
        }
        if !self.walk.step(&mut self.writers[0], disk)? {
            assert!(!root.is_dirty(), "the root is written last");
            self.stage = Stage::Trees(tree + 1);
        }
        Ok(Progress::Working)
    }

    fn step_chunks(&mut self, position: usize, disk: &mut dyn Disk) -> Result<Progress, Error> {
        if !self.pump(disk) {
            return Ok(Progress::Waiting);
        }
        let chunks = self.directory.chunks();
        let Some(at) = (position..chunks.len()).find(|at| chunks[*at].place().is_none()) else {
            self.stage = Stage::Tables;
            return Ok(Progress::Working);
        };
        let mut payload = Vec::new();
        chunks[at].encode(&mut payload);
        self.writers[0].reserve(Stream::Pages, HEADER_LEN + payload.len(), disk)?;
        chunks[at].set_place(self.writers[0].append(Stream::Pages, Kind::DirectoryChunk, &payload));
        self.stage = Stage::Chunks(at + 1);
        Ok(Progress::Working)
    }

    /// Writes the directory root and the segment table. The table counts everything except these two.
    fn write_tables(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        let mut payload = Vec::new();
        for chunk in self.directory.chunks() {
            payload.extend_from_slice(&chunk.place().expect("every chunk was written").to_bytes());
        }
        // Room is reserved before the table is made. So a segment that is begun for it is in the table.
        self.account();
        let table_len = self.space.encoded_bytes(1);
        self.writers[0].reserve(Stream::Pages, 2 * HEADER_LEN + payload.len() + table_len, disk)?;
        self.account();
        let open: BTreeSet<u32> = self.writers.iter().flat_map(Writer::open_segments).collect();
        self.space.bury(self.superblock.generation, |segment| open.contains(&segment));
        let is_left = |segment| self.space.segments().contains_key(&segment);
        let is_clear = !self.victims.iter().any(is_left);
        assert!(!self.is_reclaimed || self.passed > 0 || is_clear, "nothing reaches what was emptied");
        let directory = self.writers[0].append(Stream::Pages, Kind::DirectoryRoot, &payload);
        payload.clear();
        self.space.encode(&mut payload);
        assert!(payload.len() <= table_len, "room was taken for the table");
        let segments = self.writers[0].append(Stream::Pages, Kind::SegmentTable, &payload);
        self.account();
        self.tables = Some((directory, segments));
        self.writers[0].flush();
        self.stage = Stage::Sync;
        self.is_own_done = !self.has_created;
        Ok(Progress::Working)
    }

    fn sync(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        if !self.is_own_done && self.own_file.is_none() {
            let file = disk.open(&self.pages_dir(), OpenKind::Directory)?;
            self.own_file = Some(file);
            disk.submit(Op::Sync { file }, own_token());
        }
        self.writers[0].submit(disk);
        self.writers[0].submit_syncs(disk);
        if !self.is_own_done || !self.writers[0].is_synced() {
            return Ok(Progress::Waiting);
        }
        if let Some(file) = self.own_file.take() {
            disk.close(file);
        }
        self.writers.iter_mut().for_each(|writer| writer.close(disk));
        let (directory, segments) = self.tables.expect("written before");
        let place = |root: &Arc<Slot>| root.place().expect("written before");
        let pages = Pages { key_root: place(&self.roots[0]), meta_root: place(&self.roots[1]), directory, segments };
        self.superblock.pages = Some(pages);
        self.stage = if self.copies == Copies::None { Stage::Written } else { Stage::Superblock };
        self.is_own_done = false;
        Ok(Progress::Working)
    }

    fn write_superblock(&mut self, disk: &mut dyn Disk) -> Result<Progress, Error> {
        if self.own_file.is_none() {
            assert!(self.writers.iter().all(Writer::is_synced), "all that a superblock reaches is durable before it");
            self.superblock.next_segment = self.layout.next_segment.load(std::sync::atomic::Ordering::Relaxed);
            self.own_file = Some(disk.open(&superblock::path(&self.layout.dir), OpenKind::Write)?);
            self.is_own_submitted = false;
        }
        if let Some(file) = self.own_file
            && !self.is_own_submitted
        {
            let (offset, buf) = (self.superblock.offset(), self.superblock.encode());
            disk.submit(Op::WriteDurable { file, offset, buf }, own_token());
            self.is_own_submitted = true;
        }
        if !self.is_own_done {
            return Ok(Progress::Waiting);
        }
        if self.copies == Copies::Both {
            // The same state once more, over the copy that names the state before.
            self.copies = Copies::Older;
            self.superblock.generation += 1;
            (self.is_own_submitted, self.is_own_done) = (false, false);
            return Ok(Progress::Working);
        }
        self.stage = Stage::Written;
        Ok(Progress::Working)
    }

    fn finish(&mut self, disk: &mut dyn Disk) -> Progress {
        self.stage = Stage::Stopped;
        if let Some(file) = self.own_file.take() {
            disk.close(file);
        }
        assert!(self.copies != Copies::Both, "both copies were written");
        Progress::Done(Box::new(CheckpointDone {
            superblock: self.superblock,
            directory: Arc::clone(&self.directory),
            space: std::mem::take(&mut self.space),
            writers: std::mem::take(&mut self.writers),
            up_to: self.up_to,
            is_reclaimed: self.is_reclaimed,
            unread: std::mem::take(&mut self.unread),
            is_install: self.is_install,
        }))
    }
}

fn own_token() -> u64 {
    Owner::Checkpoint.token(number_of(OWN_SHARD))
}

/// Cuts dirty trees into subtrees that `shards` shards can write in parallel. The part above the cut is left.
fn subtrees(roots: &[Arc<Slot>; 2], shards: usize) -> Vec<Arc<Slot>> {
    // A few pieces for each shard even out their sizes. A single shard takes the trees whole.
    let enough = if shards == 1 { 0 } else { 4 * shards };
    let mut cut: Vec<Arc<Slot>> = roots.iter().filter(|root| root.is_dirty()).map(Arc::clone).collect();
    for _level in 0..3 {
        if cut.len() >= enough {
            break;
        }
        let mut below = Vec::new();
        for slot in &cut {
            let node = slot.node().expect("a dirty node is resident");
            below.extend(node.children().filter(|child| child.is_dirty()).map(Arc::clone));
        }
        if below.is_empty() {
            break;
        }
        cut = below;
    }
    cut
}
