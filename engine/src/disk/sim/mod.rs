//! A simulated medium: every legal state that power loss may leave, and every fault, from one seed.
//!
//! `SimStorage` is the machine's disk; each simulated core gets its own `SimDisk` of it. What is written lives in two
//! images (`image`), names likewise: a create, rename or remove is durable only once its directory was synced, and
//! until then power loss keeps any prefix of what was done to that directory, in order (journalling file systems).
//!
//! Invariants:
//! - A *step* is one change that takes effect: a write, a sync, a create, rename or remove. `stop_after` lets exactly
//!   so many happen; what comes then stays in flight for ever and every later call answers `Error::Stopped`.
//! - The same seed, the same calls: the same run.
//! - `crash_images` never invents: each sector of an image holds its durable content or that of a write that was
//!   volatile or in flight.
//!
//! Deliberately has no time: an operation completes when `completions` or `wait` is called (`Order`), or, with
//! `Order::Manual`, when the test says so. Time, if a simulation wants it, is between those calls.

mod crash;
mod image;
mod random;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use random::Random;

use self::crash::Crash;
use self::image::{File, Written};
use super::{BLOCK, Buffer, Completion, DirLock, Disk, FileId, FileOp, Op, OpenKind, SECTOR, Token, assert_aligned};
use crate::Error;

/// In which order operations complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All of them, oldest first, at each call of `completions`.
    #[default]
    Submission,
    /// At each call of `completions` some of them, drawn from the seed; `wait` completes at least one.
    Seeded,
    /// Only what the test completes by `SimStorage::complete`.
    Manual,
}

/// How likely each fault is, per mille of the operations it can hit. All 0 by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A write fails with EIO; an arbitrary part of it may be on the medium.
    pub write_error: u64,
    /// A sync fails with EIO; nothing becomes durable.
    pub sync_error: u64,
    /// A read fails with EIO.
    pub read_error: u64,
    /// A write reports success and never happens.
    pub lost: u64,
    /// A write reports success and lands at another block of its file.
    pub misdirected: u64,
    /// A write reports success and one of its sectors is wrong on the medium.
    pub corrupt: u64,
}

/// What a full disk refuses. Nothing of what is refused is on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// New files: a file system that reserves the space of a file when it is created.
    Creations,
    /// New files, and every write: one that takes new space for each write, such as one that copies on write.
    Writes,
}

/// A fault that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Which one.
    pub fault: Fault,
    /// File it hit.
    pub path: PathBuf,
    /// Offset of the operation it hit.
    pub offset: u64,
    /// Length of the operation it hit.
    pub len: u64,
}

/// The faults that can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// See `Faults::write_error`.
    WriteError,
    /// See `Faults::sync_error`.
    SyncError,
    /// See `Faults::read_error`.
    ReadError,
    /// See `Faults::lost`.
    Lost,
    /// See `Faults::misdirected`.
    Misdirected,
    /// See `Faults::corrupt`.
    Corrupt,
}

/// An operation in flight, as a test sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// Number to complete it by.
    pub number: u64,
    /// Its file.
    pub path: PathBuf,
    /// What it does.
    pub op: FileOp,
    /// First byte; 0 for a sync.
    pub offset: u64,
    /// Bytes; 0 for a sync.
    pub len: u64,
}

/// The simulated disk of one machine. Clones are handles on the same disk.
#[derive(Clone)]
pub struct SimStorage {
    state: Arc<Mutex<State>>,
}

struct State {
    random: Random,
    files: BTreeMap<u64, File>,
    names: BTreeMap<PathBuf, u64>,
    names_durable: BTreeMap<PathBuf, u64>,
    names_volatile: Vec<(u64, NameChange)>,
    dirs: BTreeSet<PathBuf>,
    locked: BTreeSet<PathBuf>,
    pending: Vec<Pending>,
    done: BTreeMap<u64, VecDeque<Completion>>,
    disks: u64,
    /// Number of the next file or operation, and the clock of what is volatile.
    sequence: u64,
    steps: u64,
    steps_max: Option<u64>,
    is_stopped: bool,
    order: Order,
    faults: Faults,
    injected: Vec<Injected>,
    capacity_bytes: Option<u64>,
    /// What is refused for space, and from which step on.
    full: Option<(u64, Full)>,
}

#[derive(Clone)]
enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _) | Self::Rename(path, _) | Self::Remove(path) => path.parent(),
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            Self::Create(path, file) => {
                names.insert(path.clone(), *file);
            }
            Self::Rename(from, to) => {
                if let Some(file) = names.remove(from) {
                    names.insert(to.clone(), file);
                }
            }
            Self::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

#[derive(Clone)]
enum Target {
    File(u64),
    Dir,
}

struct Pending {
    number: u64,
    disk: u64,
    token: Token,
    path: PathBuf,
    target: Target,
    op: Op,
}

impl Pending {
    fn view(&self) -> InFlight {
        let (op, offset, len) = match &self.op {
            Op::WriteDurable { offset, buf, .. } | Op::Write { offset, buf, .. } => {
                (FileOp::Write, *offset, buf.len() as u64)
            }
            Op::Sync { .. } => (FileOp::Sync, 0, 0),
            Op::Read { offset, len, .. } => (FileOp::Read, *offset, *len as u64),
        };
        InFlight { number: self.number, path: self.path.clone(), op, offset, len }
    }

    fn written(&self) -> Option<(u64, Written)> {
        match (&self.target, &self.op) {
            (Target::File(file), Op::WriteDurable { offset, buf, .. } | Op::Write { offset, buf, .. }) => {
                Some((*file, Written::new(*offset, buf)))
            }
            _ => None,
        }
    }
}

impl SimStorage {
    /// An empty disk.
    pub fn new(seed: u64) -> Self {
        Self::with(State {
            random: Random::new(seed),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_volatile: Vec::new(),
            dirs: BTreeSet::new(),
            locked: BTreeSet::new(),
            pending: Vec::new(),
            done: BTreeMap::new(),
            disks: 0,
            sequence: 0,
            steps: 0,
            steps_max: None,
            is_stopped: false,
            order: Order::default(),
            faults: Faults::default(),
            injected: Vec::new(),
            capacity_bytes: None,
            full: None,
        })
    }

    fn with(state: State) -> Self {
        Self { state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A view of this disk for one more core.
    pub fn disk(&self) -> SimDisk {
        let mut state = self.state();
        state.disks += 1;
        SimDisk { storage: self.clone(), number: state.disks, handles: Vec::new() }
    }

    /// Changes that took effect so far.
    pub fn steps(&self) -> u64 {
        self.state().steps
    }

    /// Lets `steps` changes (counted from the beginning) happen and none after.
    pub fn stop_after(&self, steps: u64) {
        self.state().steps_max = Some(steps);
    }

    /// Whether the bound of `stop_after` was met by one change too many.
    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    /// Sets the order of completions.
    pub fn set_order(&self, order: Order) {
        self.state().order = order;
    }

    /// Sets the likelihood of faults from now on.
    pub fn set_faults(&self, faults: Faults) {
        self.state().faults = faults;
    }

    /// The faults that happened, oldest first.
    pub fn injected(&self) -> Vec<Injected> {
        self.state().injected.clone()
    }

    /// Bounds the sum of all file sizes; a file that would exceed it cannot be created.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Lets the disk be full from step `steps` (counted from the beginning) on, until this is called again.
    pub fn set_full(&self, full: Option<(u64, Full)>) {
        self.state().full = full;
    }

    /// What is in flight, oldest first.
    pub fn in_flight(&self) -> Vec<InFlight> {
        self.state().pending.iter().map(Pending::view).collect()
    }

    /// Completes one operation in flight. Nothing happens when the storage has stopped.
    pub fn complete(&self, number: u64) {
        let mut state = self.state();
        let position = state.pending.iter().position(|pending| pending.number == number);
        state.execute(position.expect("only what is in flight can complete"));
    }

    /// Fails one operation in flight, which leaves no trace on the medium.
    pub fn fail(&self, number: u64, kind: io::ErrorKind) {
        let mut state = self.state();
        let position = state.pending.iter().position(|pending| pending.number == number);
        let pending = state.pending.remove(position.expect("only what is in flight can fail"));
        state.finish(pending, Err(kind.into()));
    }

    /// The files, in order of their paths.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// What a file reads as now.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        let file = state.files.get(state.names.get(path)?)?;
        Some(file.read(0, usize::try_from(file.len).ok()?))
    }

    /// Damages the medium: the sector of `path` that holds `offset` is changed by `change`, durably.
    pub fn damage(&self, path: &Path, offset: u64, change: impl FnOnce(&mut [u8; SECTOR])) {
        let mut state = self.state();
        let number = *state.names.get(path).expect("only a file that exists can be damaged");
        let file = state.files.get_mut(&number).expect("every name has a file");
        let at = offset / SECTOR as u64;
        let mut sector = file.live.sector(at);
        change(&mut sector);
        file.damage(at, sector);
    }

    /// Damages the medium: `path` holds `content` and nothing else, durably; without content there is no such file.
    pub fn replace(&self, path: &Path, content: Option<&[u8]>) {
        let mut state = self.state();
        if let Some(number) = state.names.remove(path) {
            state.names_durable.remove(path);
            state.files.remove(&number);
        }
        if let Some(content) = content {
            let number = state.next();
            state.files.insert(number, File::holding(content));
            state.names.insert(path.to_path_buf(), number);
            state.names_durable.insert(path.to_path_buf(), number);
        }
    }

    /// The disk after the process was killed and the machine went on: what had completed is there, still volatile; each
    /// write in flight happened or did not. Locks are gone. `self` must not be used any more.
    pub fn kill(&self) -> Self {
        let mut state = self.state();
        let mut random = state.random.clone();
        random.bits();
        let in_flight = state.in_flight_by_file();
        let sequence = state.sequence;
        let files = state
            .files
            .iter()
            .map(|(number, file)| {
                let written = in_flight.get(number).map_or(&[][..], |written| written);
                (*number, file.after_kill(written, sequence, &mut random))
            })
            .collect();
        state.is_stopped = true;
        let mut fresh = state.reopened(random);
        fresh.files = files;
        fresh.names = state.names.clone();
        fresh.names_durable = state.names_durable.clone();
        fresh.names_volatile = state.names_volatile.clone();
        Self::with(fresh)
    }

    /// What power loss may leave now: every legal image when there are at most `count_max`, else that many of them:
    /// nothing and everything that was not durable, each write in flight alone and missing alone, then samples.
    pub fn crash_images(&self, count_max: usize) -> Vec<Self> {
        let mut state = self.state();
        let crash = Crash::new(&state);
        let mut images = Vec::new();
        if crash.count() <= count_max as u64 {
            for ordinal in 0..crash.count() {
                let mut rest = ordinal;
                images.push(Self::with(crash.image(&state, |_, size| {
                    let pick = rest % size as u64;
                    rest /= size as u64;
                    usize::try_from(pick).expect("below `size`")
                })));
            }
            return images;
        }
        images.push(Self::with(crash.image(&state, |_, _| 0)));
        images.push(Self::with(crash.image(&state, |_, size| size - 1)));
        let mut random = Random::new(state.random.bits());
        for whole in [true, false] {
            for lone in 0..crash.writes() {
                if images.len() < count_max {
                    images.push(Self::with(crash.sample(&state, &mut random, Some((lone, whole)))));
                }
            }
        }
        while images.len() < count_max {
            images.push(Self::with(crash.sample(&state, &mut random, None)));
        }
        images
    }

    /// One image that power loss may leave now, drawn from the seed.
    pub fn crash(&self) -> Self {
        let mut state = self.state();
        let mut random = Random::new(state.random.bits());
        Self::with(Crash::new(&state).sample(&state, &mut random, None))
    }
}

impl State {
    /// An empty machine with this one's directories and counters, running again.
    fn reopened(&self, random: Random) -> Self {
        Self {
            random,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_volatile: Vec::new(),
            dirs: self.dirs.clone(),
            locked: BTreeSet::new(),
            pending: Vec::new(),
            done: BTreeMap::new(),
            disks: 0,
            sequence: self.sequence,
            steps: 0,
            steps_max: None,
            is_stopped: false,
            order: self.order,
            faults: Faults::default(),
            injected: Vec::new(),
            capacity_bytes: self.capacity_bytes,
            full: None,
        }
    }

    fn in_flight_by_file(&self) -> BTreeMap<u64, Vec<Written>> {
        let mut by_file: BTreeMap<u64, Vec<Written>> = BTreeMap::new();
        for (file, written) in self.pending.iter().filter_map(Pending::written) {
            by_file.entry(file).or_default().push(written);
        }
        by_file
    }

    fn forget_unnamed(&mut self) {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|number, _| named.contains(number));
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Counts one change; false when it must not happen any more.
    fn may_step(&mut self) -> bool {
        if self.is_stopped || self.steps_max.is_some_and(|max| self.steps >= max) {
            self.is_stopped = true;
            return false;
        }
        self.steps += 1;
        true
    }

    /// Whether the disk is too full now for what `refused` says, or for more.
    fn is_full(&self, refused: Full) -> bool {
        self.full.is_some_and(|(from, full)| self.steps >= from && (full == refused || full == Full::Writes))
    }

    fn step(&mut self) -> Result<(), Error> {
        if self.may_step() { Ok(()) } else { Err(Error::Stopped) }
    }

    fn draws(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random.chance(per_mille, 1000)
    }

    fn finish(&mut self, pending: Pending, result: io::Result<usize>) {
        let buf = match pending.op {
            Op::WriteDurable { buf, .. } | Op::Write { buf, .. } | Op::Read { buf, .. } => buf,
            Op::Sync { .. } => Buffer::new(),
        };
        self.done.entry(pending.disk).or_default().push_back(Completion { token: pending.token, result, buf });
    }

    /// Lets the operation at `position` take effect and complete, unless the storage stops there.
    fn execute(&mut self, position: usize) {
        let is_write = matches!(self.pending[position].op, Op::Write { .. } | Op::WriteDurable { .. });
        if is_write && self.is_full(Full::Writes) && !self.is_stopped {
            let pending = self.pending.remove(position);
            return self.finish(pending, Err(io::ErrorKind::StorageFull.into()));
        }
        if !matches!(self.pending[position].op, Op::Read { .. }) && !self.may_step() {
            return;
        }
        let mut pending = self.pending.remove(position);
        let result = match (&pending.target, &mut pending.op) {
            (Target::File(file), Op::Read { offset, len, buf, .. }) => {
                let (file, offset, len) = (*file, *offset, *len);
                self.read(&pending.path, file, offset, len, buf)
            }
            (Target::File(file), Op::Sync { .. }) => self.sync_file(&pending.path, *file, pending.number),
            (Target::File(file), Op::WriteDurable { offset, buf, .. }) => {
                let written = Written::new(*offset, buf);
                self.write(&pending.path, *file, written, true).map(|()| buf.len())
            }
            (Target::File(file), Op::Write { offset, buf, .. }) => {
                let written = Written::new(*offset, buf);
                self.write(&pending.path, *file, written, false).map(|()| buf.len())
            }
            (Target::Dir, _) => {
                self.sync_names(&pending.path, pending.number);
                Ok(0)
            }
        };
        self.finish(pending, result);
    }

    fn inject(&mut self, fault: Fault, path: &Path, offset: u64, len: u64) {
        self.injected.push(Injected { fault, path: path.to_path_buf(), offset, len });
    }

    fn read(&mut self, path: &Path, file: u64, offset: u64, len: usize, buf: &mut Buffer) -> io::Result<usize> {
        if self.draws(self.faults.read_error) {
            self.inject(Fault::ReadError, path, offset, len as u64);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buf.clear();
        buf.extend_from_slice(&self.files[&file].read(offset, len));
        Ok(buf.len())
    }

    fn sync_file(&mut self, path: &Path, number: u64, submitted: u64) -> io::Result<usize> {
        if self.draws(self.faults.sync_error) {
            self.inject(Fault::SyncError, path, 0, 0);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(file) = self.files.get_mut(&number) {
            file.sync(submitted);
        }
        Ok(0)
    }

    fn sync_names(&mut self, dir: &Path, submitted: u64) {
        let durable = &mut self.names_durable;
        self.names_volatile.retain(|(at, change)| {
            let is_covered = *at <= submitted && change.dir() == Some(dir);
            if is_covered {
                change.apply(durable);
            }
            !is_covered
        });
    }

    fn write(&mut self, path: &Path, file: u64, mut written: Written, is_durable: bool) -> io::Result<()> {
        let offset = written.first * SECTOR as u64;
        let len = written.sectors.len() as u64 * SECTOR as u64;
        let faults = self.faults;
        let sequence = self.next();
        let blocks = self.files[&file].len / BLOCK as u64;
        let mut result = Ok(());
        if self.draws(faults.write_error) {
            self.inject(Fault::WriteError, path, offset, len);
            result = Err(io::Error::from_raw_os_error(libc::EIO));
            let kept = usize::try_from(self.random.below(written.sectors.len() as u64 + 1)).unwrap_or(0);
            written.sectors.truncate(kept);
        } else if self.draws(faults.lost) {
            self.inject(Fault::Lost, path, offset, len);
            return Ok(());
        } else if self.draws(faults.misdirected) {
            self.inject(Fault::Misdirected, path, offset, len);
            let room = blocks.saturating_sub(len / BLOCK as u64) + 1;
            written.first = self.random.below(room) * (BLOCK / SECTOR) as u64;
        } else if self.draws(faults.corrupt) {
            self.inject(Fault::Corrupt, path, offset, len);
            let hit = usize::try_from(self.random.below(written.sectors.len() as u64)).unwrap_or(0);
            let at = usize::try_from(self.random.below(SECTOR as u64)).unwrap_or(0);
            let mut sector = *written.sectors[hit];
            sector[at] ^= 1 << self.random.below(8);
            written.sectors[hit] = Arc::new(sector);
        }
        let file = self.files.get_mut(&file).expect("an open file stays");
        match (is_durable, &result) {
            (true, Ok(())) => file.write_durable(&written),
            _ => file.write(&written, sequence),
        }
        result
    }

    /// Completes what `order` says is due; with `at_least_one`, one if any is in flight.
    fn run(&mut self, at_least_one: bool) {
        let due = match self.order {
            Order::Submission => self.pending.len() as u64,
            Order::Seeded => self.random.below(self.pending.len() as u64 + 1).max(u64::from(at_least_one)),
            Order::Manual => 0,
        };
        for _ in 0..due {
            if self.is_stopped || self.pending.is_empty() {
                return;
            }
            let position = match self.order {
                Order::Seeded => self.random.below(self.pending.len() as u64),
                Order::Submission | Order::Manual => 0,
            };
            self.execute(usize::try_from(position).expect("below the length of a Vec"));
        }
    }
}

/// One core's view of a `SimStorage`.
pub struct SimDisk {
    storage: SimStorage,
    number: u64,
    handles: Vec<Option<(PathBuf, Target)>>,
}

impl SimDisk {
    fn handle(&self, file: FileId) -> &(PathBuf, Target) {
        let handle = usize::try_from(file.0).ok().and_then(|at| self.handles.get(at));
        handle.and_then(Option::as_ref).expect("the file is open in this instance")
    }

    fn fails(path: &Path, op: FileOp, kind: io::ErrorKind) -> Error {
        Error::io(path, op, kind.into())
    }
}

/// Releases a simulated lock.
struct Held {
    storage: SimStorage,
    dir: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.storage.state().locked.remove(&self.dir);
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error> {
        let mut state = self.storage.state();
        if !state.dirs.contains(dir) {
            state.step()?;
            state.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        }
        Ok(())
    }

    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        let mut state = self.storage.state();
        if state.is_stopped {
            return Err(Error::Stopped);
        }
        let target = match kind {
            OpenKind::Directory if state.dirs.contains(path) => Target::Dir,
            OpenKind::Read | OpenKind::Write if state.names.contains_key(path) => Target::File(state.names[path]),
            OpenKind::Create { len } => {
                assert!(len.is_multiple_of(BLOCK as u64));
                if state.names.contains_key(path) {
                    return Err(Self::fails(path, FileOp::Create, io::ErrorKind::AlreadyExists));
                }
                if path.parent().is_none_or(|dir| !state.dirs.contains(dir)) {
                    return Err(Self::fails(path, FileOp::Create, io::ErrorKind::NotFound));
                }
                let used: u64 = state.files.values().map(|file| file.len).sum();
                let has_room = state.capacity_bytes.is_none_or(|capacity| used + len <= capacity);
                if !has_room || state.is_full(Full::Creations) {
                    return Err(Self::fails(path, FileOp::Create, io::ErrorKind::StorageFull));
                }
                state.step()?;
                let number = state.next();
                state.files.insert(number, File::created(len));
                state.names.insert(path.to_path_buf(), number);
                state.names_volatile.push((number, NameChange::Create(path.to_path_buf(), number)));
                Target::File(number)
            }
            _ => return Err(Self::fails(path, FileOp::Open, io::ErrorKind::NotFound)),
        };
        drop(state);
        let handle = Some((path.to_path_buf(), target));
        let position = self.handles.iter().position(Option::is_none).unwrap_or(self.handles.len());
        if position == self.handles.len() {
            self.handles.push(handle);
        } else {
            self.handles[position] = handle;
        }
        Ok(FileId(u32::try_from(position).expect("far fewer than 2^32 files are open")))
    }

    fn close(&mut self, file: FileId) {
        self.handle(file);
        self.handles[usize::try_from(file.0).expect("checked by `handle`")] = None;
    }

    fn path(&self, file: FileId) -> &Path {
        &self.handle(file).0
    }

    fn len(&mut self, file: FileId) -> Result<u64, Error> {
        match self.handle(file).1 {
            Target::File(number) => Ok(self.storage.state().files[&number].len),
            Target::Dir => Ok(0),
        }
    }

    fn list(&mut self, dir: &Path) -> Result<Vec<String>, Error> {
        let state = self.storage.state();
        if !state.dirs.contains(dir) {
            return Err(Self::fails(dir, FileOp::List, io::ErrorKind::NotFound));
        }
        let of_dir = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(of_dir.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn remove(&mut self, path: &Path) -> Result<(), Error> {
        let mut state = self.storage.state();
        if !state.names.contains_key(path) {
            return Err(Self::fails(path, FileOp::Remove, io::ErrorKind::NotFound));
        }
        state.step()?;
        let at = state.next();
        let change = NameChange::Remove(path.to_path_buf());
        change.apply(&mut state.names);
        state.names_volatile.push((at, change));
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        assert_eq!(from.parent(), to.parent(), "names change inside one directory");
        let mut state = self.storage.state();
        if !state.names.contains_key(from) {
            return Err(Self::fails(from, FileOp::Rename, io::ErrorKind::NotFound));
        }
        state.step()?;
        let at = state.next();
        let change = NameChange::Rename(from.to_path_buf(), to.to_path_buf());
        change.apply(&mut state.names);
        state.names_volatile.push((at, change));
        Ok(())
    }

    fn sync_dir(&mut self, dir: &Path) -> Result<(), Error> {
        let mut state = self.storage.state();
        state.step()?;
        let at = state.next();
        state.sync_names(dir, at);
        Ok(())
    }

    fn lock(&mut self, dir: &Path) -> Result<DirLock, Error> {
        if !self.storage.state().locked.insert(dir.to_path_buf()) {
            return Err(Error::Locked { path: dir.to_path_buf() });
        }
        Ok(DirLock::holding(Held { storage: self.storage.clone(), dir: dir.to_path_buf() }))
    }

    fn read_blocking(&mut self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error> {
        assert_aligned(offset, len);
        let (path, target) = self.handle(file);
        let Target::File(number) = *target else { panic!("a directory is not read") };
        let mut state = self.storage.state();
        if state.is_stopped {
            return Err(Error::Stopped);
        }
        state.read(path, number, offset, len, buf).map_err(|source| Error::io(path, FileOp::Read, source))?;
        Ok(())
    }

    fn submit(&mut self, op: Op, token: Token) {
        op.assert_valid();
        let (path, target) = self.handle(op.file()).clone();
        let mut state = self.storage.state();
        let number = state.next();
        state.pending.push(Pending { number, disk: self.number, token, path, target, op });
    }

    fn kick(&mut self) -> Result<(), Error> {
        if self.storage.is_stopped() { Err(Error::Stopped) } else { Ok(()) }
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let mut state = self.storage.state();
        state.run(false);
        if let Some(done) = state.done.get_mut(&self.number) {
            out.extend(done.drain(..));
        }
    }

    fn wait(&mut self) -> Result<(), Error> {
        let mut state = self.storage.state();
        while state.done.get(&self.number).is_none_or(VecDeque::is_empty) {
            let is_anything_in_flight = state.pending.iter().any(|pending| pending.disk == self.number);
            assert!(is_anything_in_flight || state.is_stopped, "nothing to wait for");
            if state.is_stopped || state.order == Order::Manual {
                return Err(Error::Stopped);
            }
            state.run(true);
        }
        Ok(())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}
