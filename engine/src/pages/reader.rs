//! Reads the page that a [`Fault`] names. Each core has one reader, over its own `Disk`.
//!
//! A plain state machine. `read` queues a fault with the caller's ticket. `step` submits. `on_completion` resolves the
//! page and returns the tickets that waited for it. Readers of the same page share one read. Pages that are queued one
//! after the other, and are neighbours in their segment or nearly so, are read in one operation.
//!
//! Invariants:
//! - `files` holds at most `files_max` open segments, besides those with reads in flight. The one that was used longest
//!   ago is closed.
//! - At most `reads_in_flight_max` reads are in flight. More wait in `queue`, which the callers bound.
//! - `waiting` has an entry for exactly the places that are queued or in flight.
//! - A removed file takes space while it is open, but not longer than until the second `close_unused` after its last
//!   read.
//!
//! It retries nothing, with one exception. If a common read of several pages failed, the pages are read again one by
//! one: a page that cannot be read concerns only the readers that wait for it (`Loaded::result`). Its caller decides
//! whether the member can go on without the page.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    Error, Fault, Place, Unreadable,
    disk::{BLOCK, Buffer, Completion, Disk, FileId, FileOp, Op, OpenKind, Owner},
    page::{self, Kind},
};

/// Bytes of all buffers that are kept for later reads. **Units** bytes.
const FREE_BYTES_MAX: usize = 1 << 20;

/// Bytes that one operation reads for several pages, at most. **Units** bytes.
const RUN_BYTES_MAX: u64 = 64 << 10;

/// Unwanted bytes between two pages that are still read together, at most. A second read costs more. **Units** bytes.
const GAP_BYTES_MAX: u64 = 16 << 10;

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

/// A place that waits for its read.
#[derive(Clone, Copy, Debug)]
struct Queued {
    place: Place,
    /// The read that it shared with others has failed.
    is_alone: bool,
}

/// What one operation reads.
#[derive(Debug)]
struct Run {
    /// Places of one segment, in ascending order.
    places: Vec<Place>,
    /// Beginning and end, in whole blocks. **Units** bytes.
    span: Range<u64>,
}

impl Run {
    fn new(place: Place) -> Self {
        Self { places: vec![place], span: aligned(place) }
    }

    /// Takes `place` in, if it comes directly after the places that are there.
    fn take(&mut self, place: Place) -> bool {
        let span = aligned(place);
        let last = self.places.last().expect("there is one");
        let is_behind = place.segment == last.segment
            && place.offset >= last.end()
            && span.start <= self.span.end + GAP_BYTES_MAX
            && span.end - self.span.start <= RUN_BYTES_MAX;
        if is_behind {
            self.places.push(place);
            self.span.end = span.end;
        }
        is_behind
    }
}

/// The end of a page's read.
#[derive(Debug)]
pub struct Loaded {
    /// The tickets that waited for it.
    pub tickets: Vec<u64>,
    /// Whether it is in memory now. **Errors** `Corrupt` for a page that is not as it was written; `Io`.
    pub result: Result<(), Error>,
    /// It cannot be read, and nobody knew that yet.
    pub is_news: bool,
}

/// The page reads of one core.
#[derive(Debug)]
pub struct PageReader {
    dir: PathBuf,
    files_max: usize,
    reads_in_flight_max: usize,
    files: BTreeMap<u32, Open>,
    queue: VecDeque<Queued>,
    in_flight: BTreeMap<u64, Run>,
    waiting: BTreeMap<Place, Waiting>,
    free: Vec<Buffer>,
    /// Total bytes of the buffers in `free`.
    free_bytes: usize,
    number: u64,
    owner: Owner,
    first_number: u64,
    /// The value of `number` when unused files were last closed.
    used_since: u64,
    /// Where the ends of all reads are noted.
    unreadable: Arc<Unreadable>,
}

/// Bits of a token's number that count reads.
const NUMBER_BITS: u32 = 40;

impl PageReader {
    /// A reader of the store in `dir`. It notes in `unreadable` which pages it could not read, and which it could.
    /// **Bounds** open files and reads in flight, each at least 1.
    pub fn new(dir: &Path, files_max: usize, reads_in_flight_max: usize, unreadable: Arc<Unreadable>) -> Self {
        Self::for_owner(Owner::Pages, 0, dir, (files_max, reads_in_flight_max), unreadable)
    }

    /// A reader whose reads are operations of `owner`, with numbers from `first_number` on.
    pub(crate) fn for_owner(
        owner: Owner,
        first_number: u64,
        dir: &Path,
        (files_max, reads_in_flight_max): (usize, usize),
        unreadable: Arc<Unreadable>,
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
            free_bytes: 0,
            number: 0,
            owner,
            first_number,
            used_since: 0,
            unreadable,
        }
    }

    /// Queues the page of `fault`. `ticket` comes back once the page is in memory.
    pub fn read(&mut self, fault: Fault, ticket: u64) {
        let place = fault.place();
        if let Some(waiting) = self.waiting.get_mut(&place) {
            // Another fault on this place may have another slot. A page is resolved for the first fault. The second one
            // tries again, and faults again if it still has to.
            waiting.tickets.push(ticket);
            return;
        }
        self.waiting.insert(place, Waiting { fault, tickets: vec![ticket] });
        self.queue.push_back(Queued { place, is_alone: false });
    }

    /// Whether reads are queued or in flight.
    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Submits reads as far as the bounds allow. The caller kicks the disk. Reads whose file cannot be opened end at
    /// once.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Vec<Loaded> {
        let mut failed = Vec::new();
        while self.in_flight.len() < self.reads_in_flight_max {
            let Some(run) = self.next_run() else { break };
            let file = match self.open(run.places[0].segment, disk) {
                Ok(file) => file,
                Err(error) => {
                    failed.extend(run.places.iter().map(|place| self.end(*place, Err(error.again()))));
                    continue;
                }
            };
            let Range { start: offset, end } = run.span;
            let len = usize::try_from(end - offset).expect("smaller than 4 GiB");
            let number = self.number;
            self.number = (self.number + 1) % (1 << NUMBER_BITS);
            self.in_flight.insert(number, run);
            let buf = self.free.pop().unwrap_or_default();
            self.free_bytes -= buf.capacity();
            disk.submit(Op::Read { file, offset, len, buf }, self.owner.token(self.first_number | number));
        }
        failed
    }

    /// Takes from the queue what one operation will read.
    fn next_run(&mut self) -> Option<Run> {
        let Queued { place, is_alone } = self.queue.pop_front()?;
        let mut run = Run::new(place);
        while !is_alone && self.queue.pop_front_if(|next| !next.is_alone && run.take(next.place)).is_some() {}
        Some(run)
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

    /// Closes the files that were not read since the last call. It should be called now and then.
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

    /// Closes its files. Nothing may be queued or in flight.
    pub(crate) fn close(&mut self, disk: &mut dyn Disk) {
        assert!(self.is_idle(), "no file is closed under a read");
        for open in std::mem::take(&mut self.files).into_values() {
            disk.close(open.file);
        }
    }

    /// Takes the end of one of its operations, which have tokens of `Owner::Pages`. Returns the pages that it brought;
    /// none if they will be read again one by one.
    pub fn on_completion(&mut self, completion: Completion) -> Vec<Loaded> {
        let Completion { token, result, mut buf } = completion;
        assert_eq!(Owner::of(token), self.owner);
        let Run { places, span } = self.in_flight.remove(&(token & ((1 << NUMBER_BITS) - 1))).expect("completes once");
        self.files.get_mut(&places[0].segment).expect("open while in flight").in_flight -= 1;
        let mut loaded = Vec::new();
        match result {
            Ok(_) => loaded.extend(places.iter().map(|place| self.resolve(*place, span.start, &buf))),
            Err(source) if places.len() == 1 => {
                let path = self.dir.join(places[0].path());
                loaded.push(self.end(places[0], Err(Error::io(&path, FileOp::Read, source))));
            }
            // A failure of one page must not concern the others.
            Err(_) => self.queue.extend(places.iter().map(|place| Queued { place: *place, is_alone: true })),
        }
        buf.clear();
        if self.free_bytes + buf.capacity() <= FREE_BYTES_MAX {
            self.free_bytes += buf.capacity();
            self.free.push(buf);
        }
        loaded
    }

    /// Puts the page of `place` into memory. `blocks` were read from `start` on.
    fn resolve(&mut self, place: Place, start: u64, blocks: &[u8]) -> Loaded {
        let Waiting { fault, tickets } = self.waiting.remove(&place).expect("waits while in flight");
        let from = usize::try_from(u64::from(place.offset) - start).expect("within what was read");
        let result = resolve(&self.dir, fault, blocks.get(from..).unwrap_or_default());
        self.loaded(place, tickets, result)
    }

    fn end(&mut self, place: Place, result: Result<(), Error>) -> Loaded {
        let Waiting { tickets, .. } = self.waiting.remove(&place).expect("waits while queued or in flight");
        self.loaded(place, tickets, result)
    }

    fn loaded(&self, place: Place, tickets: Vec<u64>, result: Result<(), Error>) -> Loaded {
        let is_news = self.unreadable.note(place, &result);
        Loaded { tickets, result, is_news }
    }
}

/// The blocks that hold `place`. **Units** bytes.
fn aligned(place: Place) -> Range<u64> {
    let block = BLOCK as u64;
    u64::from(place.offset) / block * block..u64::from(place.end()).next_multiple_of(block)
}

/// The envelope of `place`, at the beginning of `bytes`, which were read from there on.
fn envelope<'a>(dir: &Path, place: Place, bytes: &'a [u8]) -> Result<&'a [u8], Error> {
    let is_cut = || Error::corrupt(&dir.join(place.path()), u64::from(place.offset), "the segment file is cut short");
    bytes.get(..place.len as usize).ok_or_else(is_cut)
}

fn resolve(dir: &Path, fault: Fault, bytes: &[u8]) -> Result<(), Error> {
    let envelope = envelope(dir, fault.place(), bytes)?;
    fault.resolve(envelope).map_err(|error| below(dir, error))
}

/// Paths in errors of `page` are relative to the data directory. The operator needs the whole path.
fn below(dir: &Path, error: Error) -> Error {
    match error {
        Error::Corrupt { path, offset, what } => Error::Corrupt { path: dir.join(path), offset, what },
        other => other,
    }
}

/// Opens a segment that a state reaches. If there is none, that is damage.
fn open_segment(disk: &mut dyn Disk, path: &Path) -> Result<FileId, Error> {
    disk.open(path, OpenKind::Read).map_err(|error| match error {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            Error::corrupt(path, 0, "the segment file is gone")
        }
        other => other,
    })
}

/// The bytes from the beginning of `place` to the end of its last block. Blocks.
fn with_read<T>(
    disk: &mut dyn Disk,
    dir: &Path,
    place: Place,
    take: impl FnOnce(&[u8]) -> Result<T, Error>,
) -> Result<T, Error> {
    let file = open_segment(disk, &dir.join(place.path()))?;
    let Range { start, end } = aligned(place);
    let mut buf = Buffer::new();
    let result = disk.read_blocking(file, start, usize::try_from(end - start).expect("smaller than 4 GiB"), &mut buf);
    disk.close(file);
    result?;
    take(buf.get(place.offset as usize % BLOCK..).unwrap_or_default())
}

/// Reads the page of `fault` into memory. Blocks; for start-up, recovery and tests.
///
/// **Errors** `Corrupt` with the whole path.
pub fn load(disk: &mut dyn Disk, dir: &Path, fault: Fault) -> Result<(), Error> {
    let place = fault.place();
    with_read(disk, dir, place, |bytes| resolve(dir, fault, bytes))
}

/// As [`load`]. Notes in `unreadable` whether the page could be read.
///
/// **Errors** as [`load`].
pub fn load_noted(disk: &mut dyn Disk, dir: &Path, fault: Fault, unreadable: &Unreadable) -> Result<(), Error> {
    let place = fault.place();
    let result = load(disk, dir, fault);
    unreadable.note(place, &result);
    result
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
    with_read(disk, dir, place, |bytes| {
        let payload = page::open(kind, place, envelope(dir, place, bytes)?);
        payload.map(<[u8]>::to_vec).map_err(|error| below(dir, error))
    })
}
