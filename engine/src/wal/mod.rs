//! The write-ahead log, which is the Raft log.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::Error;
use crate::disk::{Completion, Disk};

/// One position of the Raft log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its index.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
    /// What `data` is; opaque here.
    pub kind: u8,
    /// Payload.
    pub data: Bytes,
}

/// What Raft must remember beside its entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HardState {
    /// Latest term seen.
    pub term: u64,
    /// Member voted for in `term`; 0 for none.
    pub vote: u64,
    /// Highest index known to be committed.
    pub commit: u64,
}

/// Bounds and sizes of a log.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Size of a new segment file, in bytes, a multiple of 4 KiB.
    pub segment_bytes: u32,
    /// A group is closed once it holds this many bytes.
    pub group_bytes_max: usize,
    /// Durable writes in flight at once, at least 1.
    pub writes_in_flight_max: usize,
    /// Trimmed segments kept for reuse.
    pub spare_segments_max: usize,
    /// Drawn at random by the caller; becomes the identity of a log that is created now, and tells its records from
    /// those of any other.
    pub fresh_id: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            group_bytes_max: 1 << 20,
            writes_in_flight_max: 2,
            spare_segments_max: 8,
            fresh_id: 0,
        }
    }
}

/// What a log held when it was opened.
#[derive(Debug)]
pub struct Recovered {
    /// Index and term of the entry the log starts after; (0, 0) for a log never trimmed.
    pub mark: (u64, u64),
    /// The entries behind `mark`, contiguous.
    pub entries: Vec<Entry>,
    /// Last hard state.
    pub hard_state: HardState,
    /// Where an unfinished group was cut off.
    pub truncated_tail: Option<(PathBuf, u64)>,
}

/// The log.
#[derive(Debug)]
pub struct Wal {
    durable: u64,
}

impl Wal {
    /// Opens the log in `dir`, or creates it. Blocks.
    pub fn open(_disk: &mut dyn Disk, _dir: &Path, _options: Options) -> Result<(Self, Recovered), Error> {
        Err(Error::Stopped)
    }

    /// Queues entries and a hard state; they are durable when `durable() >= ticket`. Tickets never decrease. Entries are
    /// contiguous; one whose index is in the log already replaces it and all behind it. A hard state that differs from
    /// the last only in `commit` forces no write of its own.
    pub fn append(&mut self, _entries: &[Entry], _hard_state: Option<HardState>, _ticket: u64) -> Result<(), Error> {
        Err(Error::Stopped)
    }

    /// Submits the writes that may start now; the caller kicks the disk.
    pub fn step(&mut self, _disk: &mut dyn Disk) -> Result<(), Error> {
        Err(Error::Stopped)
    }

    /// Takes the end of an operation whose token is `Owner::Wal`'s, and submits what may start after it.
    pub fn on_completion(&mut self, _completion: Completion, _disk: &mut dyn Disk) -> Result<(), Error> {
        Err(Error::Stopped)
    }

    /// Highest ticket whose records, and all before them, are durable.
    pub const fn durable(&self) -> u64 {
        self.durable
    }

    /// Bytes appended and not durable yet.
    pub const fn queued_bytes(&self) -> usize {
        0
    }

    /// Entries up to `index` (of term `term`) are no longer needed. With an index beyond the last entry, or another term
    /// than the log has there, the log restarts behind it (a snapshot was installed).
    pub fn trim(&mut self, _index: u64, _term: u64) -> Result<(), Error> {
        Err(Error::Stopped)
    }

    /// Durable entries from `from`, at most about `bytes_max` bytes but at least one where there is one. Blocks.
    pub fn read(&mut self, _disk: &mut dyn Disk, _from: u64, _bytes_max: usize) -> Result<Vec<Entry>, Error> {
        Err(Error::Stopped)
    }

    /// Bytes of log behind the mark; drives checkpoints.
    pub const fn len_bytes(&self) -> u64 {
        0
    }

    /// Index and term of the entry the log starts after.
    pub const fn mark(&self) -> (u64, u64) {
        (0, 0)
    }

    /// Index of the last entry appended; the mark's when there is none.
    pub const fn last_index(&self) -> u64 {
        0
    }

    /// Term of the entry at `index`, if that is the mark or in the log.
    pub const fn term(&self, _index: u64) -> Option<u64> {
        None
    }

    /// Largest payload an entry may have.
    pub const fn entry_bytes_max(&self) -> usize {
        0
    }
}
