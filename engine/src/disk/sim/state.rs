//! The content of a simulated storage, and how operations take effect on it.
//!
//! Invariants:
//! - Each change that takes effect counts one step (`State::may_step`). No change takes effect after the last allowed
//!   step.
//! - The changes of `names_volatile`, applied in order to `names_durable`, give `names`.
//! - An operation is in `pending` until it ends. Then its completion is in `done` until its disk collects it.
//!
//! It knows no test and no handle; `storage` and `disk` do.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    image::{File, Written},
    random::Random,
};
use crate::{
    disk::{BLOCK, Buffer, Completion, FileId, FileOp, Op, OpenKind, SECTOR, Token},
    error::Error,
};

/// The order in which operations complete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// All of them, oldest first, at each call of `completions`.
    #[default]
    Submission,
    /// Some of them, drawn from the seed, at each call of `completions`. `wait` completes at least one.
    Seeded,
    /// Only those that the test completes with `SimStorage::complete`.
    Manual,
}

/// The likelihood of each fault, per mille of the operations that it can hit. All are 0 by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A write fails with EIO; an arbitrary part of it may be on the medium.
    pub write_error: u64,
    /// A sync fails with EIO; nothing becomes durable. A later sync may make durable what was written before, or not.
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

/// What a full disk refuses. Nothing of a refused operation is on the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// New files. This is a file system that reserves the space of a file when it is created.
    Creations,
    /// New files, new names and every write. This is a file system that takes new space for each write, such as one
    /// with copy-on-write.
    Writes,
}

/// A fault that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Injected {
    /// Which one.
    pub fault: FaultKind,
    /// File it hit.
    pub path: PathBuf,
    /// Offset of the operation it hit.
    pub offset: u64,
    /// Length of the operation it hit.
    pub len: u64,
}

/// The faults that can be injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
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
    /// The number with which a test completes it.
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

pub(super) struct State {
    pub(super) random: Random,
    pub(super) files: BTreeMap<u64, File>,
    pub(super) names: BTreeMap<PathBuf, u64>,
    pub(super) names_durable: BTreeMap<PathBuf, u64>,
    pub(super) names_volatile: Vec<(u64, NameChange)>,
    pub(super) dirs: BTreeSet<PathBuf>,
    pub(super) locked: BTreeSet<PathBuf>,
    pub(super) pending: Vec<Pending>,
    /// Writes of a process that was killed, with their files. They land at any time, unless their file is opened for
    /// writing before: that waits for them.
    pub(super) late: Vec<(u64, Written)>,
    /// Nobody waits for them. This is a planted defect.
    pub(super) is_unlocked: bool,
    pub(super) done: BTreeMap<u64, VecDeque<Done>>,
    pub(super) disks: u64,
    /// Number of the next file or operation. It is also the clock of what is volatile.
    pub(super) sequence: u64,
    pub(super) steps: u64,
    pub(super) steps_max: Option<u64>,
    pub(super) is_stopped: bool,
    pub(super) order: Order,
    pub(super) faults: Faults,
    pub(super) injected: Vec<Injected>,
    pub(super) capacity_bytes: Option<u64>,
    /// What is refused for lack of space, and from which step on.
    pub(super) full: Option<(u64, Full)>,
}

#[derive(Clone)]
pub(super) enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

impl NameChange {
    /// The directory whose sync makes the change durable. A file that moves to another directory does so in one step,
    /// which the new directory's sync covers.
    pub(super) fn dir(&self) -> Option<&Path> {
        match self {
            Self::Create(path, _) | Self::Rename(_, path) | Self::Remove(path) => path.parent(),
        }
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
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

#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The path is only reserved, or the file's name was removed.
    Unopened,
    File(u64),
    Dir,
}

/// An operation that has ended, and what it has opened.
pub(super) struct Done {
    pub(super) completion: Completion,
    pub(super) opened: Option<(FileId, Target)>,
}

pub(super) struct Pending {
    pub(super) number: u64,
    pub(super) disk: u64,
    pub(super) token: Token,
    pub(super) path: PathBuf,
    pub(super) target: Target,
    pub(super) op: Op,
}

impl Pending {
    pub(super) fn view(&self) -> InFlight {
        let (op, offset, len) = match &self.op {
            Op::WriteDurable { offset, buf, .. } | Op::Write { offset, buf, .. } => {
                (FileOp::Write, *offset, buf.len() as u64)
            }
            Op::Sync { .. } => (FileOp::Sync, 0, 0),
            Op::Read { offset, len, .. } => (FileOp::Read, *offset, *len as u64),
            Op::Open { kind: OpenKind::Create { len }, .. } => (FileOp::Create, 0, *len),
            Op::Open { from: Some(_), .. } => (FileOp::Rename, 0, 0),
            Op::Open { .. } => (FileOp::Open, 0, 0),
            Op::Remove { .. } => (FileOp::Remove, 0, 0),
        };
        InFlight { number: self.number, path: self.path.clone(), op, offset, len }
    }

    pub(super) fn changes_names(&self) -> bool {
        matches!(self.op, Op::Open { .. } | Op::Remove { .. })
    }

    pub(super) fn written(&self) -> Option<(u64, Written)> {
        match (&self.target, &self.op) {
            (Target::File(file), Op::WriteDurable { offset, buf, .. } | Op::Write { offset, buf, .. }) => {
                Some((*file, Written::new(*offset, buf)))
            }
            _ => None,
        }
    }
}

impl State {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: Random::new(seed),
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_volatile: Vec::new(),
            dirs: BTreeSet::new(),
            locked: BTreeSet::new(),
            pending: Vec::new(),
            late: Vec::new(),
            is_unlocked: false,
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
        }
    }

    /// An empty machine with this one's directories and counters, running again.
    pub(super) fn reopened(&self, random: Random) -> Self {
        Self {
            random,
            files: BTreeMap::new(),
            names: BTreeMap::new(),
            names_durable: BTreeMap::new(),
            names_volatile: Vec::new(),
            dirs: self.dirs.clone(),
            locked: BTreeSet::new(),
            pending: Vec::new(),
            late: Vec::new(),
            is_unlocked: self.is_unlocked,
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

    pub(super) fn in_flight_by_file(&self) -> BTreeMap<u64, Vec<Written>> {
        let mut by_file: BTreeMap<u64, Vec<Written>> = BTreeMap::new();
        for (file, written) in self.pending.iter().filter_map(Pending::written).chain(self.late.iter().cloned()) {
            by_file.entry(file).or_default().push(written);
        }
        by_file
    }

    pub(super) fn forget_unnamed(&mut self) {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        self.files.retain(|number, _| named.contains(number));
    }

    pub(super) fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }

    /// Counts one change. Returns false if it must not happen any more.
    fn may_step(&mut self) -> bool {
        if self.is_stopped || self.steps_max.is_some_and(|max| self.steps >= max) {
            self.is_stopped = true;
            return false;
        }
        self.steps += 1;
        true
    }

    /// Whether the disk is now too full for `refused`, or for more.
    pub(super) fn is_full(&self, refused: Full) -> bool {
        self.full.is_some_and(|(from, full)| self.steps >= from && (full == refused || full == Full::Writes))
    }

    pub(super) fn step(&mut self) -> Result<(), Error> {
        if self.may_step() { Ok(()) } else { Err(Error::Stopped) }
    }

    fn draws(&mut self, per_mille: u64) -> bool {
        per_mille > 0 && self.random.chance(per_mille, 1000)
    }

    pub(super) fn finish(&mut self, pending: Pending, result: io::Result<usize>) {
        self.finish_opened(pending, result.map(|count| (count, None)));
    }

    fn finish_opened(&mut self, pending: Pending, result: io::Result<(usize, Option<(FileId, Target)>)>) {
        let (result, opened) = match result {
            Ok((count, opened)) => (Ok(count), opened),
            Err(error) => (Err(error), None),
        };
        let completion = Completion { token: pending.token, result, buf: pending.op.into_buffer() };
        self.done.entry(pending.disk).or_default().push_back(Done { completion, opened });
    }

    /// Lets the pending change of names at `position` take effect and complete, unless the storage stops before it.
    fn execute_names(&mut self, position: usize) {
        let pending = &self.pending[position];
        let (path, op) = (pending.path.clone(), &pending.op);
        let result = match op {
            Op::Open { file, kind, from } => {
                let (file, kind, from) = (*file, *kind, from.clone());
                let renamed = from.map_or(Ok(()), |from| self.rename(&from, &path));
                renamed.and_then(|()| self.open(&path, kind)).map(|target| (0, Some((file, target))))
            }
            _ => self.remove(&path).map(|()| (0, None)),
        };
        if matches!(result, Err(Error::Stopped)) {
            return;
        }
        let pending = self.pending.remove(position);
        self.finish_opened(pending, result.map_err(Error::into_io));
    }

    /// Opens `path` as `kind` says.
    pub(super) fn open(&mut self, path: &Path, kind: OpenKind) -> Result<Target, Error> {
        let failed = |op, kind: io::ErrorKind| Err(Error::io(path, op, kind.into()));
        if self.is_stopped {
            return Err(Error::Stopped);
        }
        match kind {
            OpenKind::Directory if self.dirs.contains(path) => Ok(Target::Dir),
            OpenKind::Read | OpenKind::Write if self.names.contains_key(path) => {
                let number = self.names[path];
                if kind == OpenKind::Write {
                    self.wait_for_late(number);
                }
                Ok(Target::File(number))
            }
            OpenKind::Create { len } => {
                assert!(len.is_multiple_of(BLOCK as u64));
                if self.names.contains_key(path) {
                    return failed(FileOp::Create, io::ErrorKind::AlreadyExists);
                }
                if path.parent().is_none_or(|dir| !self.dirs.contains(dir)) {
                    return failed(FileOp::Create, io::ErrorKind::NotFound);
                }
                let used: u64 = self.files.values().map(|file| file.len).sum();
                let has_room = self.capacity_bytes.is_none_or(|capacity| used + len <= capacity);
                if !has_room || self.is_full(Full::Creations) {
                    return failed(FileOp::Create, io::ErrorKind::StorageFull);
                }
                self.step()?;
                let number = self.next();
                self.files.insert(number, File::created(len));
                self.names.insert(path.to_path_buf(), number);
                self.names_volatile.push((number, NameChange::Create(path.to_path_buf(), number)));
                Ok(Target::File(number))
            }
            _ => failed(FileOp::Open, io::ErrorKind::NotFound),
        }
    }

    /// Removes the name `path`.
    pub(super) fn remove(&mut self, path: &Path) -> Result<(), Error> {
        self.change_names(path, FileOp::Remove, NameChange::Remove(path.to_path_buf()))
    }

    /// Renames the file `from`.
    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        self.change_names(from, FileOp::Rename, NameChange::Rename(from.to_path_buf(), to.to_path_buf()))
    }

    fn change_names(&mut self, path: &Path, op: FileOp, change: NameChange) -> Result<(), Error> {
        if !self.names.contains_key(path) {
            return Err(Error::io(path, op, io::ErrorKind::NotFound.into()));
        }
        // A removal must not need space, or there would be no way out.
        if op == FileOp::Rename && self.is_full(Full::Writes) {
            return Err(Error::io(path, op, io::ErrorKind::StorageFull.into()));
        }
        self.step()?;
        let at = self.next();
        change.apply(&mut self.names);
        self.names_volatile.push((at, change));
        Ok(())
    }

    /// Lets a write of a killed process land, or sink.
    fn land(&mut self, position: usize) {
        let (number, written) = self.late.swap_remove(position);
        let sequence = self.next();
        if self.random.chance(1, 2)
            && let Some(file) = self.files.get_mut(&number)
        {
            file.write(&written, sequence);
        }
    }

    /// Waits for the writes to file `number` that a killed process has left in flight: it still holds the file's lock.
    pub(super) fn wait_for_late(&mut self, number: u64) {
        while !self.is_unlocked
            && let Some(position) = self.late.iter().position(|(file, _)| *file == number)
        {
            self.land(position);
        }
    }

    /// Lets the operation at `position` take effect and complete, unless the storage stops before it.
    pub(super) fn execute(&mut self, position: usize) {
        if !self.late.is_empty() && self.random.chance(1, 3) {
            let late = usize::try_from(self.random.below(self.late.len() as u64)).expect("below the length of a Vec");
            self.land(late);
        }
        if self.pending[position].changes_names() {
            return self.execute_names(position);
        }
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
            (Target::Unopened, op) | (Target::File(_), op @ (Op::Open { .. } | Op::Remove { .. })) => {
                unreachable!("{op:?} names an open file, or changes names")
            }
        };
        self.finish(pending, result);
    }

    fn inject(&mut self, fault: FaultKind, path: &Path, offset: u64, len: u64) {
        self.injected.push(Injected { fault, path: path.to_path_buf(), offset, len });
    }

    pub(super) fn read(
        &mut self,
        path: &Path,
        file: u64,
        offset: u64,
        len: usize,
        buf: &mut Buffer,
    ) -> io::Result<usize> {
        if self.files[&file].is_unreadable(offset, len) || self.draws(self.faults.read_error) {
            self.inject(FaultKind::ReadError, path, offset, len as u64);
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buf.clear();
        buf.extend_from_slice(&self.files[&file].read(offset, len));
        Ok(buf.len())
    }

    fn sync_file(&mut self, path: &Path, number: u64, submitted: u64) -> io::Result<usize> {
        if self.draws(self.faults.sync_error) {
            self.inject(FaultKind::SyncError, path, 0, 0);
            if let Some(file) = self.files.get_mut(&number) {
                file.fail_sync(&mut self.random);
            }
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        if let Some(file) = self.files.get_mut(&number) {
            file.sync(submitted);
        }
        Ok(0)
    }

    pub(super) fn sync_names(&mut self, dir: &Path, submitted: u64) {
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
            self.inject(FaultKind::WriteError, path, offset, len);
            result = Err(io::Error::from_raw_os_error(libc::EIO));
            let kept = usize::try_from(self.random.below(written.sectors.len() as u64 + 1)).unwrap_or(0);
            written.sectors.truncate(kept);
        } else if self.draws(faults.lost) {
            self.inject(FaultKind::Lost, path, offset, len);
            return Ok(());
        } else if self.draws(faults.misdirected) {
            self.inject(FaultKind::Misdirected, path, offset, len);
            let room = blocks.saturating_sub(len / BLOCK as u64) + 1;
            written.first = self.random.below(room) * (BLOCK / SECTOR) as u64;
        } else if self.draws(faults.corrupt) {
            self.inject(FaultKind::Corrupt, path, offset, len);
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

    /// Completes the operations that are due by `order`. With `at_least_one`, it completes one if any is in flight.
    pub(super) fn run(&mut self, at_least_one: bool) {
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
