//! The segment files: their names, the one that is prepared ahead, and the trimmed ones that wait for reuse.
//!
//! A segment is used only once its space is written (with zeros, or with an older segment's bytes) and its name is
//! durable. So a durable write into it is one write and nothing else. `Spares` prepares the next segment while the
//! active one fills. It renames a trimmed segment. Without one, it creates a file and fills it with zeros in chunks,
//! one chunk in flight at a time. The bytes of the log set the pace, so that it is ready when half of the active
//! segment is used.
//!
//! Invariants:
//! - `next` has the name of the sequence after the active one, and of no other.
//! - An entry that is larger than a segment gets a larger segment (`want`). All of that is filled before it is used,
//!   and it is not used again.
//! - Every file in `pool` has `segment_bytes` and holds nothing that recovery could still need.
//! - No write of a filling is in flight once `next` is ready.
//! - While the log serves, files are opened, renamed and removed by operations in flight only: a disk that hangs holds
//!   up no one who asks how the log is.
//! - A full disk is not a failure here, because no record is in a segment that is not ready. If there is no space to
//!   create, fill or sync a file, the whole file is given up (`is_refused`). A new one is tried when `retry` asks for
//!   it, or when a segment was trimmed. A failed sync is never repeated; its file is gone.
//!
//! The old content of a reused file is never mistaken for new: none of its frames chains to the file's new header.

use std::path::{Path, PathBuf};

use super::record::BODY;
use crate::{
    Error,
    disk::{Buffer, Disk, FileId, FileOp, Op, OpenKind, Owner},
};

/// Bytes of one zero-filling write. They are few enough that a commit behind it waits little.
const FILL_BYTES: u32 = 256 << 10;

/// Bytes that are filled for each byte of log that is written.
const FILL_PER_BYTE: usize = 2;

/// The name of the segment `sequence`.
pub(super) fn name(sequence: u32) -> String {
    format!("{sequence:08x}.wal")
}

/// The sequence in a segment's name.
pub(super) fn sequence_of(name: &str) -> Option<u32> {
    let digits = name.strip_suffix(".wal")?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok()).flatten()
}

/// An open segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    pub(super) sequence: u32,
    pub(super) file: FileId,
    pub(super) len: u32,
    /// The end of its last frame, once a successor is begun.
    pub(super) end: u32,
}

#[derive(Debug)]
enum Next {
    None,
    /// A file gets its name and is opened: `spare`, or a new one.
    Opening {
        file: FileId,
        number: u64,
        spare: Option<(PathBuf, bool)>,
    },
    Filling {
        file: FileId,
        filled: u32,
        in_flight: Option<u64>,
        zeros: Buffer,
    },
    /// `of_file` is the sync of the file until it has ended. `is_lost` is set once it has failed for lack of space.
    Syncing {
        file: FileId,
        in_flight: Vec<u64>,
        of_file: Option<u64>,
        is_lost: bool,
    },
    Ready {
        file: FileId,
    },
    /// The file is removed, since there was no space for it.
    GivingUp {
        file: FileId,
        number: u64,
    },
}

/// Segments that are not part of the log, or not yet.
#[derive(Debug)]
pub(super) struct Spares {
    dir: PathBuf,
    dir_file: FileId,
    segment_bytes: u32,
    pool_max: usize,
    /// Files that wait for reuse, and whether their space and length are known to be durable.
    pool: Vec<(PathBuf, bool)>,
    next: Next,
    /// Bytes that the next segment must have, and the bytes that its file has.
    wanted_bytes: u32,
    file_bytes: u32,
    /// Files that are being removed, by the number of the operation.
    removing: Vec<(u64, FileId)>,
    sequence: u32,
    /// Bytes of filling that the log's own writes allow.
    credit: usize,
    /// A full disk has refused the next segment, and there is none yet.
    is_refused: bool,
    /// There may be space again. The next step asks for it.
    is_retry_due: bool,
    /// Numbers the operations. The log's groups use the same numbers.
    operations: u64,
}

impl Spares {
    /// Spares in `dir` for a log with `sequence` as its next segment.
    pub(super) fn new(disk: &mut dyn Disk, dir: &Path, segment_bytes: u32, pool_max: usize) -> Result<Self, Error> {
        Ok(Self {
            dir: dir.to_path_buf(),
            dir_file: disk.open(dir, OpenKind::Directory)?,
            segment_bytes,
            pool_max,
            pool: Vec::new(),
            next: Next::None,
            wanted_bytes: segment_bytes,
            file_bytes: 0,
            removing: Vec::new(),
            sequence: 1,
            credit: 0,
            is_refused: false,
            is_retry_due: false,
            operations: 0,
        })
    }

    /// From now on, `sequence` is the next segment to prepare.
    pub(super) fn expect(&mut self, sequence: u32) {
        assert!(matches!(self.next, Next::None), "the segment made ready has one name");
        self.sequence = sequence;
    }

    pub(super) fn path(&self, sequence: u32) -> PathBuf {
        self.dir.join(name(sequence))
    }

    /// The next number for an operation of this log.
    pub(super) const fn operation(&mut self) -> u64 {
        self.operations += 1;
        self.operations
    }

    /// Takes a file of `len` bytes, found when the log was opened, that it does not need. It must not be open. A killed
    /// process may have been filling it. Blocks.
    pub(super) fn found(&mut self, disk: &mut dyn Disk, path: PathBuf, len: u32) -> Result<(), Error> {
        if self.has_room(len) {
            self.pool.push((path, false));
            return Ok(());
        }
        disk.remove(&path)
    }

    /// Takes `segment`, which the log no longer needs. Nothing is in flight on it.
    pub(super) fn recycle(&mut self, disk: &mut dyn Disk, segment: Segment) {
        if self.has_room(segment.len) {
            disk.close(segment.file);
            self.pool.push((self.path(segment.sequence), true));
            self.is_retry_due = true;
            return;
        }
        let number = self.operation();
        disk.submit(Op::Remove { file: segment.file }, Owner::Wal.token(number));
        self.removing.push((number, segment.file));
    }

    const fn has_room(&self, len: u32) -> bool {
        len == self.segment_bytes && self.pool.len() < self.pool_max
    }

    /// Allows filling for `bytes` of log that were written.
    pub(super) const fn earn(&mut self, bytes: usize) {
        self.credit = self.credit.saturating_add(bytes.saturating_mul(FILL_PER_BYTE));
    }

    /// The next segment must have at least `bytes`.
    pub(super) fn want(&mut self, bytes: u32) {
        self.wanted_bytes = self.wanted_bytes.max(bytes.next_multiple_of(BODY));
    }

    /// Takes the next segment if it is ready, and goes on to the one after it.
    pub(super) fn take(&mut self) -> Option<Segment> {
        let Next::Ready { file } = self.next else { return None };
        if self.file_bytes < self.wanted_bytes {
            return None;
        }
        let segment = Segment { sequence: self.sequence, file, len: self.file_bytes, end: BODY };
        self.next = Next::None;
        self.wanted_bytes = self.segment_bytes;
        self.sequence = self.sequence.checked_add(1).expect("2^32 segments outlast the hardware");
        self.credit = 0;
        Some(segment)
    }

    /// Whether a full disk has refused the next segment, which is still not ready.
    pub(super) const fn is_refused(&self) -> bool {
        self.is_refused
    }

    /// Whether the next segment is ready, so that nothing that is appended has to fit in the active one.
    pub(super) const fn is_ready(&self) -> bool {
        matches!(self.next, Next::Ready { .. })
    }

    /// Notes that there may be space again. The next step asks for it.
    pub(super) const fn retry(&mut self) {
        self.is_retry_due = true;
    }

    /// Goes on with preparing the next segment. `is_idle`: the log has nothing to write. `is_needed`: the log waits for
    /// this segment, so the filled part must be enough.
    pub(super) fn step(&mut self, disk: &mut dyn Disk, is_idle: bool, is_needed: bool) {
        if matches!(self.next, Next::None) && (self.is_retry_due || !self.is_refused) {
            self.is_retry_due = false;
            self.begin(disk);
        }
        if let Next::Ready { file } = self.next
            && self.file_bytes < self.wanted_bytes
        {
            self.next = Next::Filling { file, filled: self.file_bytes, in_flight: None, zeros: Buffer::new() };
        }
        if let Next::Filling { file, filled, in_flight: None, zeros } = &mut self.next {
            let (file, filled, mut zeros) = (*file, *filled, std::mem::take(zeros));
            let chunk = FILL_BYTES.min(self.wanted_bytes - filled);
            let cost = usize::try_from(chunk).expect("a chunk fits in memory");
            // The space of a new file is its own from its creation on, though it is filled later; not that behind it.
            let is_enough = is_needed && self.wanted_bytes == self.file_bytes;
            if chunk == 0 || is_enough {
                self.file_bytes = self.wanted_bytes;
                self.sync(disk, file, true);
            } else if is_idle || is_needed || self.credit >= cost {
                self.credit = self.credit.saturating_sub(cost);
                let number = self.operation();
                zeros.resize(cost);
                disk.submit(Op::Write { file, offset: u64::from(filled), buf: zeros }, Owner::Wal.token(number));
                let (filled, in_flight) = (filled + chunk, Some(number));
                self.next = Next::Filling { file, filled, in_flight, zeros: Buffer::new() };
            } else {
                self.next = Next::Filling { file, filled, in_flight: None, zeros };
            }
        }
    }

    /// Chooses a file for the next segment, and has it named and opened.
    fn begin(&mut self, disk: &mut dyn Disk) {
        let path = self.path(self.sequence);
        let named = self.pool.iter().position(|(spare, _)| *spare == path);
        let spare = named.or_else(|| self.pool.len().checked_sub(1)).map(|position| self.pool.swap_remove(position));
        let kind = match spare {
            Some(_) => OpenKind::Write,
            None => OpenKind::Create { len: u64::from(self.segment_bytes) },
        };
        self.file_bytes = self.segment_bytes;
        let from = spare.as_ref().map(|(from, _)| from.clone()).filter(|from| *from != path);
        let (file, number) = (disk.reserve(&path), self.operation());
        disk.submit(Op::Open { file, kind, from }, Owner::Wal.token(number));
        self.next = Next::Opening { file, number, spare };
    }

    /// Syncs the directory, and the file itself if it `needs_sync`.
    fn sync(&mut self, disk: &mut dyn Disk, file: FileId, needs_sync: bool) {
        let mut in_flight = Vec::new();
        let mut of_file = None;
        for target in [needs_sync.then_some(file), Some(self.dir_file)].into_iter().flatten() {
            let number = self.operation();
            disk.submit(Op::Sync { file: target }, Owner::Wal.token(number));
            in_flight.push(number);
            if target == file {
                of_file = Some(number);
            }
        }
        self.next = Next::Syncing { file, in_flight, of_file, is_lost: false };
    }

    /// What operation `number` does to which file, if it is an operation of the spares.
    pub(super) fn op_of(&self, number: u64) -> Option<(FileId, FileOp)> {
        if let Some((_, file)) = self.removing.iter().find(|(removing, _)| *removing == number) {
            return Some((*file, FileOp::Remove));
        }
        match &self.next {
            Next::Opening { file, number: own, spare } if *own == number => {
                Some((*file, if spare.is_some() { FileOp::Open } else { FileOp::Create }))
            }
            Next::Filling { file, in_flight, .. } if *in_flight == Some(number) => Some((*file, FileOp::Write)),
            Next::Syncing { file, in_flight, .. } if in_flight.contains(&number) => Some((*file, FileOp::Sync)),
            Next::GivingUp { file, number: own } if *own == number => Some((*file, FileOp::Remove)),
            _ => None,
        }
    }

    /// Takes the end of operation `number`, one of the spares', which has succeeded. It gives `buf` back.
    pub(super) fn on_done(&mut self, number: u64, buf: Buffer, disk: &mut dyn Disk) {
        if let Some(position) = self.removing.iter().position(|(removing, _)| *removing == number) {
            let (_, file) = self.removing.swap_remove(position);
            disk.close(file);
            self.is_retry_due = true;
            return;
        }
        match &mut self.next {
            Next::Opening { file, spare, .. } => match (*file, spare.take()) {
                (file, Some((_, is_durable))) => self.sync(disk, file, !is_durable),
                (file, None) => {
                    self.next = Next::Filling { file, filled: 0, in_flight: None, zeros: Buffer::new() };
                }
            },
            Next::Filling { in_flight, zeros, .. } => (*in_flight, *zeros) = (None, buf),
            Next::Syncing { in_flight, .. } => {
                in_flight.retain(|other| *other != number);
                self.end_sync(disk);
            }
            Next::GivingUp { file, .. } => {
                disk.close(*file);
                (self.next, self.is_refused) = (Next::None, true);
            }
            Next::None | Next::Ready { .. } => unreachable!("`op_of` knew the operation"),
        }
    }

    /// Takes the end of operation `number`, one of the spares', which found no space. Its file is given up.
    ///
    /// **Errors** `error`, if it is now unknown which names there are, or which are durable.
    pub(super) fn on_no_space(&mut self, number: u64, error: Error, disk: &mut dyn Disk) -> Result<(), Error> {
        match &mut self.next {
            Next::Opening { file, number: own, spare } if *own == number => {
                disk.close(*file);
                self.pool.extend(spare.take());
                (self.next, self.is_refused) = (Next::None, true);
            }
            Next::Filling { file, in_flight: Some(own), .. } if *own == number => {
                let file = *file;
                self.give_up(file, disk);
            }
            Next::Syncing { in_flight, of_file, is_lost, .. } if *of_file == Some(number) => {
                in_flight.retain(|other| *other != number);
                *is_lost = true;
                self.end_sync(disk);
            }
            _ => return Err(error),
        }
        Ok(())
    }

    fn end_sync(&mut self, disk: &mut dyn Disk) {
        let Next::Syncing { file, in_flight, is_lost, .. } = &self.next else { return };
        let (file, is_lost) = (*file, *is_lost);
        if !in_flight.is_empty() {
            return;
        }
        if is_lost {
            return self.give_up(file, disk);
        }
        self.next = Next::Ready { file };
        self.is_refused = false;
    }

    /// Gives up the file for the next segment. None of its operations may be in flight.
    fn give_up(&mut self, file: FileId, disk: &mut dyn Disk) {
        let number = self.operation();
        disk.submit(Op::Remove { file }, Owner::Wal.token(number));
        self.next = Next::GivingUp { file, number };
    }
}
