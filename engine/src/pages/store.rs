//! The page store as the apply core owns it. It opens and recovers, begins and ends checkpoints, and knows the sizes.
//!
//! Invariants:
//! - `newest` and `previous` are the states in the two superblock copies. `newest` is durable. `newest` names
//!   `directory`, and the next published view reads through it.
//! - `parts` (the space account and the shards' writers) is out exactly while a checkpoint is under way. There is one
//!   checkpoint at a time.
//! - The log may be trimmed up to the applied index of `previous`, never further. So if `newest` turns out damaged, the
//!   state before it and the log after that state are still complete (`trimmable`).
//! - `retired` holds, weakly, each directory that was superseded since the start. A view that is held keeps its own
//!   directory alive. Meanwhile no file is removed that the view may read.
//! - If a table of the newest state cannot be read, the state before it is opened, as if the newest superblock copy
//!   were damaged. If both have the same chunk of the directory that cannot be read, that chunk is lost (`extent`).
//! - Opening reads the superblock and the tables. Its cost does not depend on the size of the data. Trees are read as
//!   they are used.
//!
//! It replays nothing: entries after `applied_index` go through the ordinary apply path of the layers above.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::{
    checkpoint::{Begin, Checkpoint, CheckpointDone, Copies},
    reader::{load_for, read_table},
    reclaim::{Reclaim, Reclaimed},
    space::{Space, segment_files},
    superblock::{self, FILE_BYTES, Superblock, Vital},
    writer::{Layout, Writer},
};
use crate::{
    Error, Fault, Place, Revision, Unreadable,
    disk::{BLOCK, DirLock, Disk, FileOp, OpenKind},
    extent::{self, BlockCache, Chunk, Directory, ExtentCursor},
    mvcc::{Mvcc, Roots, SweepProgress},
    page::{self, Kind, PAGES_DIR},
    tree::{self, Slot},
    victims::Victims,
};

/// Sizes and bounds of a store.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Length of a segment file. Files are smaller at first after a start. **Units** bytes, a multiple of 4 KiB.
    pub segment_bytes: u32,
    /// Length of a checkpoint's writes, and the approximate length of an extent. **Units** bytes, a multiple of 4 KiB.
    pub write_bytes: usize,
    /// Writes in flight for each shard, at least 1.
    pub writes_in_flight_max: usize,
    /// Payload of a record block; a larger record has a block of its own. **Units** bytes.
    pub record_block_bytes: usize,
    /// Memory for tree nodes, and for record blocks read from disk. **Units** bytes.
    pub cache_bytes: usize,
    /// Storage shards, at least 1.
    pub shards: usize,
    /// Live bytes that are moved per second to give space back, at most and on average.
    pub reclaim_bytes_per_second: u64,
    /// Live bytes that one checkpoint moves at most, besides one segment. **Units** bytes.
    pub reclaim_bytes_max: u64,
    /// A number that the caller draws at random. It becomes the identity of a store that is created now.
    pub fresh_id: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 16 << 20,
            write_bytes: 1 << 20,
            writes_in_flight_max: 4,
            record_block_bytes: 16 << 10,
            cache_bytes: 256 << 20,
            shards: 1,
            reclaim_bytes_per_second: 32 << 20,
            reclaim_bytes_max: 64 << 20,
            fresh_id: 0,
        }
    }
}

/// Space is worth giving back from this part of a segment on.
const FLOOR_PER_SEGMENT: u64 = 16;

/// The space that the store takes on disk. **Units** bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// All of it, including what no checkpoint has written yet. Never 0.
    pub allocated: u64,
    /// The reachable part; never more than `allocated`.
    pub in_use: u64,
}

/// The parts of the store that a checkpoint borrows.
#[derive(Debug)]
struct Parts {
    space: Space,
    writers: Vec<Writer>,
}

/// The page store and the MVCC state over it.
#[derive(Debug)]
pub struct Store {
    mvcc: Mvcc,
    dir: PathBuf,
    layout: Arc<Layout>,
    newest: Superblock,
    previous: Option<Superblock>,
    vital: Vital,
    directory: Arc<Directory>,
    retired: Vec<(u64, Weak<Directory>)>,
    dead_records: extent::DeadRecords,
    parts: Option<Parts>,
    reclaim: Reclaim,
    /// Length of the files and its live part, at the end of the last checkpoint.
    file_sizes: (u64, u64),
    cache: Arc<BlockCache>,
    cache_bytes: u64,
    /// Memory of the nodes when none of them could be evicted; 0 if some can. All nodes were then dirty, or held by
    /// views. Another search is useless until the memory has changed notably.
    evict_idle_at: u64,
    shards: usize,
    /// Files with lower numbers that the account does not know belong to a state that was given up.
    orphans_below: Option<u32>,
    unread: Vec<Error>,
    /// The state that takes the place of this one, while the superblock's copies are written.
    installing: Option<Box<Self>>,
    role: Role,
    /// Held by this store and by each state that is built beside it.
    beside: Arc<()>,
}

/// What a [`Store`] stands for.
#[derive(Debug)]
enum Role {
    /// The state that the superblock names.
    Live { _lock: DirLock },
    /// A state that is built beside it, and that no superblock names.
    Incoming,
}

impl Store {
    /// Opens the store in `dir`, or creates it. Blocks.
    ///
    /// **Errors** `Locked`; `Corrupt` with the file, if both superblock copies are damaged, or the directory root or
    /// the segment table of each.
    pub fn open(disk: &mut dyn Disk, dir: &Path, options: Options) -> Result<Self, Error> {
        assert!(options.segment_bytes as usize >= BLOCK && (options.segment_bytes as usize).is_multiple_of(BLOCK));
        assert!(options.write_bytes >= BLOCK && options.write_bytes.is_multiple_of(BLOCK));
        assert!(options.shards > 0 && options.shards < 0xfffe && options.writes_in_flight_max > 0);
        let pages_dir = dir.join(PAGES_DIR);
        disk.create_dir_all(&pages_dir)?;
        let lock = disk.lock(dir)?;
        let files = segment_files(disk, &pages_dir)?;
        let (mut newest, mut previous) = if superblock::exists(disk, dir)? {
            let opened = superblock::read(disk, dir)?;
            (opened.newest, opened.previous)
        } else if files.is_empty() {
            (superblock::create(disk, dir, options.fresh_id)?, None)
        } else {
            return Err(Error::corrupt(&superblock::path(dir), 0, "the superblock is gone, segments are there"));
        };
        let cache = BlockCache::new(options.cache_bytes - node_bytes_max(options.cache_bytes));
        let Recovered { state, space, directory, unread } =
            recover(disk, dir, (&newest, previous.as_ref()), &files, &cache)?;
        if state.generation < newest.generation {
            (newest, previous) = (state, None);
        }
        if newest.is_installed && !previous.is_some_and(|previous| previous.is_installed) {
            // The installation did not come to its end. The log must not go on from this state as long as the other
            // copy may lead to the one before.
            previous = Some(newest);
            newest.generation += 1;
            superblock::write(disk, dir, &newest)?;
        }
        let next_segment = files.last().map_or(1, |last| last + 1).max(newest.next_segment);
        let layout = Arc::new(Layout {
            dir: dir.to_path_buf(),
            segment_bytes: options.segment_bytes,
            write_bytes: options.write_bytes,
            writes_in_flight_max: options.writes_in_flight_max,
            block_bytes: options.record_block_bytes,
            next_segment: AtomicU32::new(next_segment),
        });
        let writers = (0..options.shards).map(|shard| Writer::new(Arc::clone(&layout), shard)).collect();
        Ok(Self {
            mvcc: Mvcc::new(roots(&newest, &directory)),
            dir: dir.to_path_buf(),
            layout,
            vital: newest.vital,
            newest,
            previous,
            directory,
            retired: Vec::new(),
            dead_records: extent::DeadRecords::default(),
            file_sizes: space.sizes(),
            cache,
            cache_bytes: options.cache_bytes as u64,
            evict_idle_at: 0,
            shards: options.shards,
            orphans_below: None,
            parts: Some(Parts { space, writers }),
            reclaim: Reclaim::new(
                options.reclaim_bytes_per_second,
                options.reclaim_bytes_max,
                u64::from(options.segment_bytes) / FLOOR_PER_SEGMENT,
            ),
            unread,
            installing: None,
            role: Role::Live { _lock: lock },
            beside: Arc::default(),
        })
    }

    /// Gives up a state that was built beside this one. The next checkpoint removes its files; if another state is
    /// being built then, a later one.
    pub fn discard(&mut self, incoming: Self) {
        assert!(matches!(incoming.role, Role::Incoming));
        drop(incoming);
        self.orphans_below = Some(self.layout.next_segment.load(Ordering::Relaxed));
    }

    /// An empty state beside this one, in the same directory. It is built by [`Mvcc::load`] and ordinary checkpoints,
    /// which no superblock names, and takes the place of this one by [`Store::install_begin`]. Until then nothing of it
    /// counts: its files are dead for whoever opens the directory. `cache_bytes` bounds its memory.
    pub fn incoming(&self, cache_bytes: usize) -> Self {
        assert!(matches!(self.role, Role::Live { .. }), "a state comes in beside the live one");
        let cache = BlockCache::new(cache_bytes - node_bytes_max(cache_bytes));
        let directory = Directory::empty(Arc::clone(&cache));
        let newest = Superblock::fresh(self.newest.store_id);
        let writers = (0..self.shards).map(|shard| Writer::new(Arc::clone(&self.layout), shard)).collect();
        Self {
            mvcc: Mvcc::new(roots(&newest, &directory)),
            dir: self.dir.clone(),
            layout: Arc::clone(&self.layout),
            vital: Vital::EMPTY,
            newest,
            previous: None,
            directory,
            retired: Vec::new(),
            dead_records: extent::DeadRecords::default(),
            file_sizes: (0, 0),
            cache,
            cache_bytes: cache_bytes as u64,
            evict_idle_at: 0,
            shards: self.shards,
            orphans_below: None,
            parts: Some(Parts { space: Space::default(), writers }),
            reclaim: self.reclaim.afresh(),
            unread: Vec::new(),
            installing: None,
            role: Role::Incoming,
            beside: Arc::clone(&self.beside),
        }
    }

    /// Begins to put `incoming` in the place of this store's state. Reads of views that are held go on. It ends as a
    /// checkpoint does, in [`Store::checkpoint_end`]; then both copies of the superblock name the new state, and the
    /// next published view shows it.
    ///
    /// **Panics** if a checkpoint is under way, here or there; if `incoming` has something that its last checkpoint has
    /// not written; if it is behind this state.
    pub fn install_begin(&mut self, mut incoming: Self) -> Checkpoint {
        assert!(matches!(incoming.role, Role::Incoming) && matches!(self.role, Role::Live { .. }));
        let Parts { space: before, .. } = self.parts.take().expect("one checkpoint at a time");
        let Parts { mut space, writers } = incoming.parts.take().expect("its last checkpoint has ended");
        let generation = self.newest.generation + 1;
        space.supersede(before, generation);
        let superblock = Superblock {
            generation,
            is_installed: true,
            next_segment: self.newest.next_segment,
            vital: incoming.vital,
            ..incoming.newest
        };
        let sealed = incoming.mvcc.seal_for_checkpoint();
        assert!(sealed.recent.last().is_none() && sealed.roots.unfinished == 0, "all of it was written");
        assert_eq!(sealed.roots.applied_index, superblock.applied_index, "all of it was written");
        assert!(superblock.applied_index >= self.newest.applied_index, "the applied index never decreases");
        assert!(superblock.revision >= self.newest.revision, "the revision never decreases");
        let begin = Begin {
            layout: Arc::clone(&self.layout),
            newest: incoming.newest,
            sealed,
            space,
            writers,
            removable: Vec::new(),
            dead_places: Vec::new(),
            dead_records: extent::DeadRecords::default(),
            victims: Victims::default(),
            passed: 0,
            unreadable: Arc::clone(self.mvcc.unreadable()),
            orphans_below: None,
            copies: Copies::Both,
        };
        self.installing = Some(Box::new(incoming));
        Checkpoint::installing(begin, superblock)
    }

    /// Whether the newest durable state was installed, and no checkpoint was made since. The log is to be restarted at
    /// its applied entry, if it does not hold that.
    pub fn is_installed(&self) -> bool {
        self.newest.is_installed
    }

    /// What could not be read when the store was opened, and what it does without.
    pub fn unread(&self) -> &[Error] {
        &self.unread
    }

    /// The MVCC state.
    pub fn mvcc(&self) -> &Mvcc {
        &self.mvcc
    }

    /// The MVCC state, for its one writer. Call [`Store::sweep`] to sweep; it keeps the account of space bounded.
    pub fn mvcc_mut(&mut self) -> &mut Mvcc {
        &mut self.mvcc
    }

    /// Data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Identity drawn when the store was created.
    pub fn store_id(&self) -> u64 {
        self.newest.store_id
    }

    /// What was given as vital, as the newest durable state has it, or as it was given since.
    pub fn vital(&self) -> &[u8] {
        self.vital.as_slice()
    }

    /// Sets what is vital. The next checkpoint makes it durable, with the state of that time.
    pub fn set_vital(&mut self, vital: Vital) {
        self.vital = vital;
    }

    /// Counts the checkpoints in the life of the store, from 1.
    pub fn generation(&self) -> u64 {
        self.newest.generation
    }

    /// Index and term of the last entry in the newest durable state. The log is replayed after it.
    pub fn applied(&self) -> (u64, u64) {
        (self.newest.applied_index, self.newest.applied_term)
    }

    /// Index and term of the last entry up to which the log may be trimmed; (0, 0) while only one superblock copy is
    /// good.
    pub fn trimmable(&self) -> (u64, u64) {
        self.previous.map_or((0, 0), |previous| (previous.applied_index, previous.applied_term))
    }

    /// Makes one bounded step of the compaction sweep.
    pub fn sweep(&mut self, budget: usize) -> Result<SweepProgress, Fault> {
        let progress = self.mvcc.sweep(budget);
        self.bury_records();
        progress
    }

    /// Whether the trees' nodes take more memory than they may, and some of it can be given back.
    pub fn wants_eviction(&self) -> bool {
        let bytes = self.mvcc.node_bytes();
        bytes > self.node_bytes_max() && bytes > self.evict_idle_at + self.evict_idle_at / 32
    }

    /// By how many quarters of their allowed memory the nodes exceed it.
    pub fn shortage(&self) -> u64 {
        let max = self.node_bytes_max().max(1);
        self.mvcc.node_bytes().saturating_sub(max) * 4 / max
    }

    /// Memory that nodes may take. Dirty ones can take more until their checkpoint. **Units** bytes.
    pub fn node_bytes_max(&self) -> u64 {
        node_bytes_max(usize::try_from(self.cache_bytes).expect("it was a usize")) as u64
    }

    /// Memory of dirty nodes at which a checkpoint is due. As much again may be changed while it writes them. **Units**
    /// bytes.
    pub fn dirty_bytes_due(&self) -> u64 {
        self.node_bytes_max() / 2
    }

    /// Makes one bounded step of eviction, and looks at about `budget` nodes. Returns whether it took any out of the
    /// trees; then publish. Record blocks may take the memory that nodes leave.
    pub fn evict(&mut self, budget: usize) -> bool {
        let bytes = self.mvcc.node_bytes();
        let eviction = self.mvcc.evict(budget);
        if eviction.idle_rounds >= IDLE_ROUNDS {
            self.evict_idle_at = bytes;
        }
        eviction.evicted > 0
    }

    /// Memory for record blocks and indexes that were read from disk. **Units** bytes.
    pub fn block_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    /// Gives record blocks the part of the common memory that nodes leave. Releases extents that nobody has used since
    /// the last call. It should be called now and then.
    pub fn balance(&mut self) {
        self.cache.forget_wholes();
        let nodes = self.mvcc.node_bytes();
        if nodes < self.evict_idle_at - self.evict_idle_at / 32 {
            // The view that held them is gone.
            self.evict_idle_at = 0;
        }
        let nodes = nodes.min(self.node_bytes_max());
        self.cache.set_bytes_max(self.cache_bytes - nodes);
    }

    fn bury_records(&mut self) {
        for (revision, bytes) in self.mvcc.take_dead_records() {
            self.dead_records.add(&self.directory, revision, bytes);
        }
    }

    /// Makes one bounded step of giving space back, over about `pages` places of tree pages. Returns whether there is
    /// more to do at once. The checkpoints move the data, see [`Store::wants_checkpoint`]. `now` may come from any
    /// clock that does not go back.
    pub fn reclaim(&mut self, now: Duration, pages: usize) -> Result<bool, Vec<Fault>> {
        if self.reclaim.is_looking(now)
            && let Some(Parts { space, writers }) = &self.parts
        {
            let aging_bytes = space.aging_bytes(self.oldest_view());
            let open: Vec<u32> = writers.iter().flat_map(Writer::open_segments).collect();
            self.reclaim.look(space, &open, aging_bytes);
        }
        self.reclaim.step(&mut self.mvcc, pages)
    }

    /// Starts to give back what can be given back now, without a bound in time. It is under way while
    /// [`Store::is_defragmenting`].
    pub fn defragment(&mut self) {
        self.reclaim.defragment();
    }

    /// The space that was given back since the store was opened.
    pub fn reclaimed(&self) -> Reclaimed {
        self.reclaim.reclaimed()
    }

    /// The segments that could not be emptied, because something in them or on the way to it cannot be read.
    pub fn left_segments(&self) -> &BTreeSet<u32> {
        self.reclaim.left()
    }

    /// The pages that could not be read. All readers of the store note theirs there.
    pub fn unreadable(&self) -> &Arc<Unreadable> {
        self.mvcc.unreadable()
    }

    /// Whether a defragmentation is under way.
    pub fn is_defragmenting(&self) -> bool {
        self.reclaim.is_defragmenting()
    }

    /// Whether a checkpoint would give back space, even if nothing was written since the last one. False while a
    /// checkpoint is under way.
    pub fn wants_checkpoint(&self) -> bool {
        if self.is_checkpointing() {
            return false;
        }
        if self.orphans_below.is_some() && !self.is_building() {
            return true;
        }
        let is_idle = self.mvcc.live().applied_index() == self.newest.applied_index;
        self.reclaim.wants_checkpoint(self.file_sizes.1, self.aging_bytes(), self.dead_records.bytes(), is_idle)
    }

    /// Dead files that wait only for checkpoints. **Units** bytes.
    fn aging_bytes(&self) -> u64 {
        let oldest_view = self.oldest_view();
        self.parts.as_ref().map_or(0, |parts| parts.space.aging_bytes(oldest_view))
    }

    /// The lowest generation that superseded a view which is still held.
    fn oldest_view(&self) -> Option<u64> {
        let held = self.retired.iter().filter(|(_, directory)| directory.strong_count() > 0);
        held.map(|(generation, _)| *generation).min()
    }

    /// Whether a state is being built beside this one, or waits to take its place. Its files are not told from those of
    /// a state that was given up.
    fn is_building(&self) -> bool {
        Arc::strong_count(&self.beside) > 1
    }

    /// Whether a checkpoint is under way.
    pub fn is_checkpointing(&self) -> bool {
        self.parts.is_none()
    }

    /// Begins to write the last published state. The checkpoint may run on any thread while apply goes on. There is one
    /// at a time, and it must be run to its end (see [`Checkpoint`]).
    pub fn checkpoint_begin(&mut self) -> Checkpoint {
        let Parts { mut space, writers } = self.parts.take().expect("one checkpoint at a time");
        self.bury_records();
        let dead_places = self.mvcc.take_dead_places();
        let sealed = self.mvcc.seal_for_checkpoint();
        assert!(Arc::ptr_eq(&sealed.roots.directory, &self.directory), "the live state reads the newest directory");
        self.retired.retain(|(_, directory)| directory.strong_count() > 0);
        let oldest_view = self.oldest_view();
        let removable = space.take_removable(self.newest.generation + 1, oldest_view);
        let (victims, passed) = self.reclaim.checkpoint_begins();
        let dead_records = std::mem::replace(&mut self.dead_records, extent::DeadRecords::during(victims.clone()));
        Checkpoint::new(Begin {
            layout: Arc::clone(&self.layout),
            newest: Superblock { vital: self.vital, is_installed: false, ..self.newest },
            sealed,
            space,
            writers,
            removable,
            dead_places,
            dead_records,
            victims,
            passed,
            unreadable: Arc::clone(self.mvcc.unreadable()),
            orphans_below: if self.is_building() { None } else { self.orphans_below.take() },
            copies: if matches!(self.role, Role::Incoming) { Copies::None } else { Copies::Older },
        })
    }

    /// Ends a checkpoint. Its state is the newest durable one. The next published view reads its records through the
    /// new directory. These records leave memory when the last older view is gone, so an idle store should publish once
    /// more.
    pub fn checkpoint_end(&mut self, done: CheckpointDone) {
        assert!(self.is_checkpointing(), "a checkpoint ends once");
        if done.is_install {
            return self.install_end(done);
        }
        assert_eq!(done.superblock.generation, self.newest.generation + 1, "no generation is skipped");
        assert!(done.superblock.applied_index >= self.newest.applied_index, "the applied index never decreases");
        self.previous = Some(self.newest);
        self.newest = done.superblock;
        let old = std::mem::replace(&mut self.directory, Arc::clone(&done.directory));
        self.retired.push((self.newest.generation, Arc::downgrade(&old)));
        drop(old);
        self.mvcc.checkpoint_done(done.directory, done.up_to);
        self.file_sizes = done.space.sizes();
        self.dead_records.moved();
        let (space, mut writers) = (done.space, done.writers);
        self.mvcc.unreadable().keep(|segment| space.segments().contains_key(&segment));
        let next_segment = self.layout.next_segment.load(Ordering::Relaxed);
        if self.reclaim.checkpoint_ended(done.is_reclaimed, &space, next_segment) {
            writers.iter_mut().for_each(Writer::leave_segments);
        }
        self.parts = Some(Parts { space, writers });
        self.evict_idle_at = 0;
    }

    /// Both copies of the superblock name the incoming state: it is the live one now.
    fn install_end(&mut self, done: CheckpointDone) {
        let incoming = *self.installing.take().expect("an installation has begun");
        let CheckpointDone { superblock, directory, space, writers, up_to, .. } = done;
        assert_eq!(superblock.generation, self.newest.generation + 2, "both copies were written");
        let first = Superblock { generation: superblock.generation - 1, ..superblock };
        let old = std::mem::replace(&mut self.directory, Arc::clone(&directory));
        self.retired.push((first.generation, Arc::downgrade(&old)));
        (self.previous, self.newest, self.vital) = (Some(first), superblock, superblock.vital);
        self.mvcc.take_over(incoming.mvcc);
        self.mvcc.checkpoint_done(directory, up_to);
        self.mvcc.unreadable().keep(|segment| space.segments().contains_key(&segment));
        self.cache = incoming.cache;
        self.reclaim = self.reclaim.afresh();
        self.dead_records = extent::DeadRecords::default();
        self.file_sizes = space.sizes();
        self.parts = Some(Parts { space, writers });
        self.evict_idle_at = 0;
        self.unread.clear();
        self.balance();
    }

    /// The space that the store takes on disk, and its reachable part. Records that wait for a checkpoint count in
    /// both.
    pub fn sizes(&self) -> Sizes {
        let waiting = FILE_BYTES + self.mvcc.recent_bytes();
        let (files, live) = self.parts.as_ref().map_or(self.file_sizes, |parts| parts.space.sizes());
        let sizes = Sizes { allocated: files + waiting, in_use: live + waiting };
        assert!(sizes.in_use <= sizes.allocated && sizes.allocated > 0);
        sizes
    }

    /// Reads everything that the newest durable state reaches, and compares it with the account of live bytes. Blocks
    /// for a time that grows with the data. It is for tests and offline checks, and must not be called during a
    /// checkpoint.
    ///
    /// **Errors** `Corrupt` for anything that is not as it was written.
    pub fn verify(&self, disk: &mut dyn Disk) -> Result<(), Error> {
        let space = &self.parts.as_ref().expect("no checkpoint is under way").space;
        let mut reached: BTreeMap<u32, u64> = BTreeMap::new();
        let mut reach = |place: Place| *reached.entry(place.segment).or_default() += u64::from(place.len);
        if let Some(pages) = &self.newest.pages {
            [pages.directory, pages.segments].into_iter().for_each(&mut reach);
            for root in [pages.key_root, pages.meta_root] {
                let mut stack = vec![Slot::on_disk(root, &Arc::default())];
                while let Some(slot) = stack.pop() {
                    reach(slot.place().expect("read from disk"));
                    let node = load_for(disk, &self.dir, || slot.node())?;
                    stack.extend(node.children().map(Arc::clone));
                }
            }
        }
        self.directory.chunks().iter().filter_map(|chunk| chunk.place()).for_each(&mut reach);
        let reach_tree = self.newest.pages.map(|pages| Slot::on_disk(pages.key_root, &Arc::default()));
        let mut cursor = ExtentCursor::new(Arc::clone(&self.directory), Revision::MIN);
        let mut records = 0;
        let mut wanted: BTreeMap<Revision, u32> = BTreeMap::new();
        while let Some(record) = load_for(disk, &self.dir, || cursor.next())? {
            records += 1;
            let root = reach_tree.as_ref().expect("records come with a tree");
            let found = load_for(disk, &self.dir, || tree::find(root, &record.key, record.revision))?;
            let extent = load_for(disk, &self.dir, || self.directory.at_or_above(record.revision))?;
            let extent = extent.expect("the record came from it");
            let is_wanted = found.is_some_and(|found| found.revision == record.revision);
            *wanted.entry(extent.first).or_default() += u32::from(is_wanted);
        }
        let mut records_told = 0;
        for extent in self.directory.extents() {
            *reached.entry(extent.index.segment).or_default() += u64::from(extent.live_bytes);
            records_told += u64::from(extent.records);
            assert_eq!(wanted.get(&extent.first), Some(&extent.live_records), "records of {extent:?} in the tree");
        }
        assert_eq!(records, records_told, "extents hold the records the directory tells of");
        for (segment, entry) in space.segments() {
            let found = reached.remove(segment).unwrap_or(0);
            assert_eq!(u64::from(entry.live_bytes), found, "live bytes of segment {segment}");
        }
        assert!(reached.is_empty(), "what is reached lies in segments of the table");
        Ok(())
    }
}

/// The clock rests after this many rounds that evicted nothing. The first of them may only have cleared marks.
const IDLE_ROUNDS: u32 = 2;

/// Nodes may take three quarters of the memory for nodes and blocks, because a node leads to dozens of records.
fn node_bytes_max(cache_bytes: usize) -> usize {
    cache_bytes / 4 * 3
}

fn roots(newest: &Superblock, directory: &Arc<Directory>) -> Roots {
    let residency = Arc::default();
    match &newest.pages {
        None => Roots::fresh(Arc::clone(directory)),
        Some(pages) => Roots {
            key_root: Slot::on_disk(pages.key_root, &residency),
            meta_root: Slot::on_disk(pages.meta_root, &residency),
            revision: newest.revision,
            compact_revision: newest.compact_revision,
            applied_index: newest.applied_index,
            applied_term: newest.applied_term,
            unfinished: newest.unfinished.cast_signed(),
            state: 0,
            directory: Arc::clone(directory),
        },
    }
}

/// A state that can be opened, with its tables.
pub(crate) struct Recovered {
    pub(crate) state: Superblock,
    pub(crate) space: Space,
    pub(crate) directory: Arc<Directory>,
    /// What cannot be read, and is done without.
    pub(crate) unread: Vec<Error>,
}

/// Finds the newest state whose tables can all be read. If there is none, the newest one that lacks only chunks of the
/// directory.
///
/// **Errors** that of the newest state.
pub(crate) fn recover(
    disk: &mut dyn Disk,
    dir: &Path,
    (newest, previous): (&Superblock, Option<&Superblock>),
    files: &[u32],
    cache: &Arc<BlockCache>,
) -> Result<Recovered, Error> {
    let mut first = None;
    for may_lose in [false, true] {
        for state in std::iter::once(newest).chain(previous) {
            let mut unread: Vec<Error> = first.iter().map(Error::again).collect();
            let lost = may_lose.then_some(&mut unread);
            match recover_tables(disk, dir, state, files, cache, lost) {
                Ok((space, directory)) => return Ok(Recovered { state: *state, space, directory, unread }),
                Err(error @ (Error::Corrupt { .. } | Error::Io { op: FileOp::Read | FileOp::Open, .. })) => {
                    first.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
    }
    Err(first.expect("the newest state was tried"))
}

/// Loads the tables that `state` names. Files that it does not name are dead: a crash or an earlier state left them.
/// With `lost`, chunks of the directory that cannot be read are done without, and named there.
fn recover_tables(
    disk: &mut dyn Disk,
    dir: &Path,
    state: &Superblock,
    files: &[u32],
    cache: &Arc<BlockCache>,
    lost: Option<&mut Vec<Error>>,
) -> Result<(Space, Arc<Directory>), Error> {
    let (mut space, directory) = match &state.pages {
        None => (Space::default(), Directory::empty(Arc::clone(cache))),
        Some(pages) => {
            let table = read_table(disk, dir, Kind::SegmentTable, pages.segments)?;
            let mut space = Space::decode(&table).ok_or_else(|| malformed(dir, pages.segments))?;
            let chunks = read_chunks(disk, dir, state, pages.directory, lost)?;
            let directory = Directory::from_chunks(Arc::clone(cache), chunks);
            let directory = directory.ok_or_else(|| malformed(dir, pages.directory))?;
            if !space.is_sound(&[pages.directory, pages.segments]) {
                return Err(malformed(dir, pages.segments));
            }
            space.add(pages.directory);
            space.add(pages.segments);
            (space, directory)
        }
    };
    for segment in space.segments().keys() {
        if files.binary_search(segment).is_err() {
            return Err(Error::corrupt(&dir.join(page::segment_path(*segment)), 0, "the segment file is gone"));
        }
    }
    for segment in files {
        if !space.segments().contains_key(segment) {
            let file = disk.open(&dir.join(page::segment_path(*segment)), OpenKind::Read)?;
            let bytes = disk.len(file)?;
            disk.close(file);
            space.adopt_dead(*segment, bytes, state.generation);
        }
    }
    Ok((space, directory))
}

fn malformed(dir: &Path, place: Place) -> Error {
    Error::corrupt(&dir.join(place.path()), place.offset.into(), "malformed table")
}

/// The chunks of the directory whose root lies at `root`.
fn read_chunks(
    disk: &mut dyn Disk,
    dir: &Path,
    state: &Superblock,
    root: Place,
    mut lost: Option<&mut Vec<Error>>,
) -> Result<Vec<Arc<Chunk>>, Error> {
    let payload = read_table(disk, dir, Kind::DirectoryRoot, root)?;
    let (places, rest) = payload.as_chunks::<{ Place::ENCODED_LEN }>();
    if !rest.is_empty() {
        return Err(malformed(dir, root));
    }
    let mut chunks: Vec<Result<Arc<Chunk>, Place>> = Vec::with_capacity(places.len());
    for bytes in places {
        let place = Place::from_bytes(*bytes).ok_or_else(|| malformed(dir, root))?;
        let payload = read_table(disk, dir, Kind::DirectoryChunk, place);
        let chunk = payload.and_then(|payload| Chunk::decode(place, &payload).ok_or_else(|| malformed(dir, place)));
        match (chunk, &mut lost) {
            (Ok(chunk), _) => chunks.push(Ok(chunk)),
            (Err(error), Some(lost)) => {
                lost.push(error);
                chunks.push(Err(place));
            }
            (Err(error), None) => return Err(error),
        }
    }
    let last = state.revision + i64::from(state.unfinished > 0);
    Ok(with_bounds(chunks, Revision::new(last, i64::MAX - 1)))
}

/// Gives each lost chunk the revisions between its neighbours. None is above `last`.
fn with_bounds(chunks: Vec<Result<Arc<Chunk>, Place>>, last: Revision) -> Vec<Arc<Chunk>> {
    let mut bounded = Vec::with_capacity(chunks.len());
    let mut chunks = chunks.into_iter().peekable();
    let mut from = Revision::new(1, 0);
    while let Some(chunk) = chunks.next() {
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(place) => {
                // Of several side by side, the last one gets all of them: what each of them holds is not known.
                let to = match chunks.peek() {
                    Some(Ok(next)) => before(next.first()),
                    Some(Err(_)) => from,
                    None => last,
                };
                Chunk::lost(place, from, to.max(from))
            }
        };
        from = Revision::new(chunk.last().main, chunk.last().sub + 1);
        bounded.push(chunk);
    }
    bounded
}

/// The last revision before `revision` that a record can have.
fn before(revision: Revision) -> Revision {
    match revision.sub {
        0 => Revision::new(revision.main - 1, i64::MAX - 1),
        sub => Revision::new(revision.main, sub - 1),
    }
}
