//! Reads a log again while it is in use, to find what its medium no longer holds as it was written.
//!
//! Invariants:
//! - It reads only segments that have a successor. No write goes to them, and the successor's header says where they
//!   end. It changes nothing.
//! - A segment that is not needed any more gets another name before its bytes change. So damage counts only if the
//!   headers of the segment and of its successor are still the same after it was met.
//! - A step reads at least one frame, and about `bytes_max`.
//!
//! The newest segment is not read: a start judges its end. It chooses no pace.

use std::path::{Path, PathBuf};

use super::{
    positions::Position,
    record::{BODY, Header, HeaderSector},
    segment::{Segment, name, sequence_of},
    window::{Window, is_read_error},
};
use crate::{
    Error,
    disk::{BLOCK, Buffer, Disk, FileId, FileOp, OpenKind},
};

/// Bytes that are read at once. **Units** bytes.
const WINDOW_BYTES: usize = 1 << 20;

/// What a step has found.
#[derive(Debug)]
pub struct Scrubbed {
    /// Bytes that were read.
    pub bytes: u64,
    /// What is not as it was written. The rest of its segment was not looked at.
    pub damage: Option<Error>,
}

/// A segment that is being read.
#[derive(Clone, Copy, Debug)]
struct Reading {
    id: u64,
    sequence: u32,
    /// The headers of the segment and of its successor.
    headers: (HeaderSector, HeaderSector),
    /// Offset and chain of its last frame's end.
    end: (u32, u32),
    at: Position,
}

/// The scrub of one log.
#[derive(Debug)]
pub struct Scrub {
    dir: PathBuf,
    /// The last segment that was done with.
    after: u32,
    reading: Option<Reading>,
}

impl Scrub {
    /// A scrub of the log in `dir`, from its beginning.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_path_buf(), after: 0, reading: None }
    }

    /// Reads about `bytes_max` bytes; `None` once all segments were read. Blocks.
    ///
    /// **Errors** the disk takes no operations.
    pub fn step(&mut self, disk: &mut dyn Disk, bytes_max: u32) -> Result<Option<Scrubbed>, Error> {
        if self.reading.is_none() {
            return self.begin(disk);
        }
        let mut reading = self.reading.take().expect("looked above");
        let from = reading.at.offset;
        let result = reading.advance(disk, &self.dir, bytes_max);
        let damage = match result {
            Ok(is_done) => {
                self.after = if is_done { reading.sequence } else { self.after };
                self.reading = (!is_done).then_some(reading);
                None
            }
            Err(error @ (Error::Corrupt { .. } | Error::Io { op: FileOp::Read | FileOp::Open, .. })) => {
                self.after = reading.sequence;
                let headers = (self.header(disk, reading.sequence)?, self.header(disk, reading.sequence + 1)?);
                (headers == (Some(reading.headers.0), Some(reading.headers.1))).then_some(error)
            }
            Err(error) => return Err(error),
        };
        Ok(Some(Scrubbed { bytes: u64::from(reading.at.offset - from), damage }))
    }

    /// Chooses the next segment.
    fn begin(&mut self, disk: &mut dyn Disk) -> Result<Option<Scrubbed>, Error> {
        let mut sequences: Vec<u32> = disk.list(&self.dir)?.iter().filter_map(|name| sequence_of(name)).collect();
        sequences.sort_unstable();
        let newest = self.newest(disk, &sequences)?;
        let left = self.after + 1..newest;
        for sequence in sequences.into_iter().filter(|sequence| left.contains(sequence)) {
            self.after = sequence;
            let bytes = 2 * BLOCK as u64;
            let headers = (self.header(disk, sequence)?, self.header(disk, sequence + 1)?);
            let (Some(first), Some(second)) = headers else { continue };
            match (first, second) {
                (HeaderSector::Valid(header, chain), HeaderSector::Valid(next, _))
                    if (header.sequence, next.sequence) == (sequence, sequence + 1) && header.id == next.id =>
                {
                    let at = Position { sequence, offset: BODY, chain };
                    let end = (next.previous_end, next.previous_chain);
                    self.reading = Some(Reading { id: header.id, sequence, headers: (first, second), end, at });
                    return Ok(Some(Scrubbed { bytes, damage: None }));
                }
                // The successor's turn comes.
                (HeaderSector::Valid(header, _), _) if header.sequence == sequence => {}
                // Every segment before the newest got its header, and keeps it as long as it has its name.
                _ if self.header(disk, sequence)? == Some(first) => {
                    let damage = Some(Error::corrupt(&self.dir.join(name(sequence)), 0, "segment header"));
                    return Ok(Some(Scrubbed { bytes, damage }));
                }
                _ => {}
            }
        }
        Ok(None)
    }

    /// The newest segment with a header of its own; 0 if there is none.
    fn newest(&self, disk: &mut dyn Disk, sequences: &[u32]) -> Result<u32, Error> {
        for sequence in sequences.iter().rev() {
            let is_own = |header: &Header| header.sequence == *sequence;
            if matches!(self.header(disk, *sequence)?, Some(HeaderSector::Valid(header, _)) if is_own(&header)) {
                return Ok(*sequence);
            }
        }
        Ok(0)
    }

    /// The first sector of segment `sequence`; `None` if there is no such file any more.
    fn header(&self, disk: &mut dyn Disk, sequence: u32) -> Result<Option<HeaderSector>, Error> {
        let Some(file) = open(disk, &self.dir, sequence)? else { return Ok(None) };
        let mut block = Buffer::new();
        let read = disk.read_blocking(file, 0, BLOCK, &mut block);
        disk.close(file);
        if is_read_error(&read) {
            return Ok(Some(HeaderSector::Unreadable));
        }
        read.map(|()| Some(Header::decode(&block)))
    }
}

/// Opens a segment for reading; `None` if its file is gone.
fn open(disk: &mut dyn Disk, dir: &Path, sequence: u32) -> Result<Option<FileId>, Error> {
    match disk.open(&dir.join(name(sequence)), OpenKind::Read) {
        Ok(file) => Ok(Some(file)),
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

impl Reading {
    /// Reads frames. Returns whether the segment was read to its end.
    fn advance(&mut self, disk: &mut dyn Disk, dir: &Path, bytes_max: u32) -> Result<bool, Error> {
        let path = dir.join(name(self.sequence));
        let Some(file) = open(disk, dir, self.sequence)? else {
            return Err(Error::corrupt(&path, 0, "the segment is gone"));
        };
        let len = disk.len(file).map(|len| u32::try_from(len).unwrap_or(u32::MAX));
        let result = len.and_then(|len| {
            let segment = Segment { sequence: self.sequence, file, len, end: self.end.0 };
            self.follow(disk, &segment, bytes_max)
        });
        disk.close(file);
        result
    }

    fn follow(&mut self, disk: &mut dyn Disk, segment: &Segment, bytes_max: u32) -> Result<bool, Error> {
        let until = self.at.offset.saturating_add(bytes_max);
        let mut window = Window::default();
        while self.at.offset < self.end.0 {
            let Some((at, frame)) = window.next_frame(disk, segment, (self.id, self.at), WINDOW_BYTES)? else {
                let what = "a frame before the end of the segment";
                return Err(Error::corrupt(disk.path(segment.file), self.at.offset.into(), what));
            };
            self.at = Position { offset: at.offset + frame.len, chain: frame.crc, ..at };
            if self.at.offset >= until && self.at.offset < self.end.0 {
                return Ok(false);
            }
        }
        if (self.at.offset, self.at.chain) != self.end {
            let what = "the end of the segment is not the one that its successor states";
            return Err(Error::corrupt(disk.path(segment.file), self.at.offset.into(), what));
        }
        Ok(true)
    }
}
