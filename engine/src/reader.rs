//! Reads what a [`Fault`] names: one per core, over the core's own `Disk`.
//!
//! A plain state machine: `read` queues a fault with the caller's ticket, `step` submits, `on_completion` resolves the page and gives
//! back the tickets that waited for it. Readers of the same page share one read.
//!
//! Invariants:
//! - `files` holds at most `files_max` open segments besides those with reads in flight; the one used longest ago is closed.
//! - At most `reads_in_flight_max` reads are in flight; more wait in `queue`, which the callers bound: each has one fault at a time.
//! - `waiting` has an entry for exactly the places queued or in flight.
//! - A removed file takes space while it is open: no longer than until the second `close_unused` after its last read.
//!
//! It retries nothing, and a page that cannot be read concerns only those who wait for it (`Loaded::result`): whether the member
//! can do without is for its caller to say.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};

use crate::disk::{BLOCK, Buffer, Completion, Disk, FileId, FileOp, Op, OpenKind, Owner};
use crate::page::{self, Kind};
use crate::{Error, Fault, Place};

/// Buffers larger than this are not kept. **Units** bytes.
const BUFFER_BYTES_KEPT_MAX: usize = 256 << 10;

#[derive(Debug)]
struct Open {
    file: FileId,
    in_flight: usize,
    used: u64,
}

#[derive(Debug)]
struct Waiting {
    fault: Fault,
    tickets: Vec<u64>,
}

/// The end of a page's read.
#[derive(Debug)]
pub struct Loaded {
    /// Those who waited for it.
    pub tickets: Vec<u64>,
    /// Whether it is in memory now. **Errors** `Corrupt` for a page that is not what was written, `Io`.
    pub result: Result<(), Error>,
}

/// The page reads of one core.
#[derive(Debug)]
pub struct PageReader {
    dir: PathBuf,
    files_max: usize,
    reads_in_flight_max: usize,
    files: BTreeMap<u32, Open>,
    queue: VecDeque<Place>,
    in_flight: BTreeMap<u64, Place>,
    waiting: BTreeMap<Place, Waiting>,
    free: Vec<Buffer>,
    number: u64,
    owner: Owner,
    first_number: u64,
    /// `number` when unused files were closed last.
    used_since: u64,
}

/// Bits of a token's number that count reads.
const NUMBER_BITS: u32 = 40;

impl PageReader {
    /// A reader of the store in `dir`. **Bounds** open files and reads in flight, each at least 1.
    pub fn new(dir: &Path, files_max: usize, reads_in_flight_max: usize) -> Self {
        Self::for_owner(Owner::Pages, 0, dir, files_max, reads_in_flight_max)
    }

    /// A reader whose reads are operations of `owner`, numbered from `first_number`.
    pub(crate) fn for_owner(
        owner: Owner,
        first_number: u64,
        dir: &Path,
        files_max: usize,
        reads_in_flight_max: usize,
    ) -> Self {
        assert!(files_max > 0 && reads_in_flight_max > 0);
        assert!(first_number.trailing_zeros() >= NUMBER_BITS, "numbers are counted below it");
        Self {
            dir: dir.to_path_buf(),
            files_max,
            reads_in_flight_max,
            files: BTreeMap::new(),
            queue: VecDeque::new(),
            in_flight: BTreeMap::new(),
            waiting: BTreeMap::new(),
            free: Vec::new(),
            number: 0,
            owner,
            first_number,
            used_since: 0,
        }
    }

    /// Queues the page of `fault`; `ticket` comes back once it is in memory.
    pub fn read(&mut self, fault: Fault, ticket: u64) {
        let place = fault.place();
        if let Some(waiting) = self.waiting.get_mut(&place) {
            // The slot of another fault on this place may be another one: a page is resolved for the first, the second tries
            // again and faults again, if it still has to.
            waiting.tickets.push(ticket);
            return;
        }
        self.waiting.insert(place, Waiting { fault, tickets: vec![ticket] });
        self.queue.push_back(place);
    }

    /// Whether reads are queued or in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Submits what the bounds allow; the caller kicks the disk. Reads whose file cannot be opened end at once.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Vec<Loaded> {
        let mut failed = Vec::new();
        while self.in_flight.len() < self.reads_in_flight_max {
            let Some(place) = self.queue.pop_front() else { break };
            let file = match self.open(place.segment, disk) {
                Ok(file) => file,
                Err(error) => {
                    let Waiting { tickets, .. } = self.waiting.remove(&place).expect("waits while queued");
                    failed.push(Loaded { tickets, result: Err(error) });
                    continue;
                }
            };
            let (offset, len) = aligned(place);
            let number = self.number;
            self.number = (self.number + 1) % (1 << NUMBER_BITS);
            self.in_flight.insert(number, place);
            let buf = self.free.pop().unwrap_or_default();
            disk.submit(Op::Read { file, offset, len, buf }, self.owner.token(self.first_number | number));
        }
        failed
    }

    fn open(&mut self, segment: u32, disk: &mut dyn Disk) -> Result<FileId, Error> {
        if !self.files.contains_key(&segment) {
            let file = open_segment(disk, &self.dir.join(page::segment_path(segment)))?;
            self.close_idle(disk);
            self.files.insert(segment, Open { file, in_flight: 0, used: 0 });
        }
        let open = self.files.get_mut(&segment).expect("opened above");
        open.in_flight += 1;
        open.used = self.number;
        Ok(open.file)
    }

    fn close_idle(&mut self, disk: &mut dyn Disk) {
        if self.files.len() < self.files_max {
            return;
        }
        let idle = self.files.iter().filter(|(_, open)| open.in_flight == 0);
        if let Some(segment) = idle.min_by_key(|(_, open)| open.used).map(|(segment, _)| *segment) {
            disk.close(self.files.remove(&segment).expect("found above").file);
        }
    }

    /// Closes the files that were not read since the last call; to be called now and then.
    pub fn close_unused(&mut self, disk: &mut dyn Disk) {
        let used_since = std::mem::replace(&mut self.used_since, self.number);
        self.files.retain(|_, open| {
            let is_kept = open.in_flight > 0 || open.used >= used_since;
            if !is_kept {
                disk.close(open.file);
            }
            is_kept
        });
    }

    /// Closes its files; nothing is queued or in flight.
    pub(crate) fn close(&mut self, disk: &mut dyn Disk) {
        assert!(self.is_idle(), "no file is closed under a read");
        for open in std::mem::take(&mut self.files).into_values() {
            disk.close(open.file);
        }
    }

    /// Takes the end of one of its operations; their tokens are `Owner::Pages`'s.
    pub fn on_completion(&mut self, completion: Completion) -> Loaded {
        let Completion { token, result, mut buf } = completion;
        assert_eq!(Owner::of(token), self.owner);
        let place = self.in_flight.remove(&(token & ((1 << NUMBER_BITS) - 1))).expect("completes once");
        self.files.get_mut(&place.segment).expect("open while in flight").in_flight -= 1;
        let Waiting { fault, tickets } = self.waiting.remove(&place).expect("waits while in flight");
        let result = match result {
            Ok(_) => resolve(&self.dir, fault, &buf),
            Err(source) => Err(Error::io(&self.dir.join(place.path()), FileOp::Read, source)),
        };
        if buf.capacity() <= BUFFER_BYTES_KEPT_MAX && self.free.len() < self.reads_in_flight_max {
            buf.clear();
            self.free.push(buf);
        }
        Loaded { tickets, result }
    }
}

/// The blocks that hold `place`: offset and length.
fn aligned(place: Place) -> (u64, usize) {
    let block = BLOCK as u64;
    let offset = u64::from(place.offset) / block * block;
    let end = u64::from(place.end()).next_multiple_of(block);
    (offset, usize::try_from(end - offset).expect("smaller than 4 GiB"))
}

/// The envelope of `place` within the blocks that were read for it.
fn envelope(dir: &Path, place: Place, blocks: &[u8]) -> Result<std::ops::Range<usize>, Error> {
    let from = place.offset as usize % BLOCK;
    let envelope = from..from + place.len as usize;
    if envelope.end > blocks.len() {
        return Err(Error::corrupt(&dir.join(place.path()), u64::from(place.offset), "the segment file is cut short"));
    }
    Ok(envelope)
}

fn resolve(dir: &Path, fault: Fault, blocks: &[u8]) -> Result<(), Error> {
    let range = envelope(dir, fault.place(), blocks)?;
    fault.resolve(&blocks[range]).map_err(|error| below(dir, error))
}

/// Paths in errors of `page` are relative to the data directory; the operator needs the whole one.
fn below(dir: &Path, error: Error) -> Error {
    match error {
        Error::Corrupt { path, offset, what } => Error::Corrupt { path: dir.join(path), offset, what },
        other => other,
    }
}

/// Opens a segment that a state reaches: if there is none, that is damage.
fn open_segment(disk: &mut dyn Disk, path: &Path) -> Result<FileId, Error> {
    disk.open(path, OpenKind::Read).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::corrupt(path, 0, "the segment file is gone")
        }
        other => other,
    })
}

fn read_blocking(disk: &mut dyn Disk, dir: &Path, place: Place) -> Result<Buffer, Error> {
    let file = open_segment(disk, &dir.join(place.path()))?;
    let (offset, len) = aligned(place);
    let mut buf = Buffer::new();
    let result = disk.read_blocking(file, offset, len, &mut buf);
    disk.close(file);
    result.map(|()| buf)
}

/// Reads the page of `fault` into memory. Blocks; for start-up, recovery and tests.
///
/// **Errors** `Corrupt` with the whole path.
pub fn load(disk: &mut dyn Disk, dir: &Path, fault: Fault) -> Result<(), Error> {
    let blocks = read_blocking(disk, dir, fault.place())?;
    resolve(dir, fault, &blocks)
}

/// Tries `operation` until it has all its pages. Blocks; for start-up, recovery and tests.
pub fn load_for<T>(
    disk: &mut dyn Disk,
    dir: &Path,
    mut operation: impl FnMut() -> Result<T, Fault>,
) -> Result<T, Error> {
    loop {
        match operation() {
            Ok(value) => return Ok(value),
            Err(fault) => load(disk, dir, fault)?,
        }
    }
}

/// The payload of the table at `place`. Blocks.
pub(crate) fn read_table(disk: &mut dyn Disk, dir: &Path, kind: Kind, place: Place) -> Result<Vec<u8>, Error> {
    let blocks = read_blocking(disk, dir, place)?;
    let range = envelope(dir, place, &blocks)?;
    page::open(kind, place, &blocks[range]).map(<[u8]>::to_vec).map_err(|error| below(dir, error))
}
