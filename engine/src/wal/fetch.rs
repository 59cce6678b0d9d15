//! Reads entries back while the log goes on: for members that are so far behind that memory no longer holds what they
//! need.
//!
//! Invariants:
//! - A fetch is one operation on one segment, and that segment is kept until the operation ends.
//! - It reads whole entries alone: their positions say where they end.
//! - What it hands out is what the positions name when the operation ends. Entries that were replaced or trimmed
//!   meanwhile are not among it.
//!
//! The owner bounds how many fetches there are, and how much each may bring.

use std::path::Path;

use super::{
    entry::Entry,
    positions::{Position, Positions},
    record::{BODY, FRAME, Record, frame_crc, frame_head},
    window,
};
use crate::{
    Error,
    disk::{Buffer, FileId, Op},
};

/// What a fetch has brought.
#[derive(Debug)]
pub struct Fetched {
    /// The first entry that was asked for.
    pub from: u64,
    /// The entries from there on; none if they were trimmed or replaced meanwhile.
    ///
    /// **Errors** `Corrupt` if the first of them is not as it was written, or cannot be read.
    pub entries: Result<Vec<Entry>, Error>,
}

/// The place where a fetch reads.
#[derive(Clone, Copy, Debug)]
struct Piece {
    sequence: u32,
    /// A multiple of `BODY`.
    start: u32,
    end: u32,
}

#[derive(Debug)]
struct Fetch {
    number: u64,
    file: FileId,
    from: u64,
    piece: Piece,
}

/// The fetches of a log.
#[derive(Debug, Default)]
pub(super) struct Fetches {
    in_flight: Vec<Fetch>,
    ended: Vec<Fetched>,
}

impl Fetches {
    /// The operation that reads the entries from `from` on, `bytes_max` at most but at least one. They end before
    /// `limit` of their segment, which is open as `file`.
    pub(super) fn begin(
        &mut self,
        positions: &Positions,
        (number, file): (u64, FileId),
        (from, bytes_max, limit): (u64, usize, u32),
    ) -> Op {
        let first = positions.get(from).expect("the caller has looked");
        let start = first.offset - first.offset % BODY;
        let end = end_of(positions, (from, first), bytes_max, limit);
        assert!(first.offset < end && end <= limit, "an entry takes some bytes");
        self.in_flight.push(Fetch { number, file, from, piece: Piece { sequence: first.sequence, start, end } });
        let len = usize::try_from(end.next_multiple_of(BODY) - start).expect("a segment fits in memory");
        Op::Read { file, offset: start.into(), len, buf: Buffer::new() }
    }

    /// Whether a fetch reads the segment `sequence`.
    pub(super) fn reads(&self, sequence: u32) -> bool {
        self.in_flight.iter().any(|fetch| fetch.piece.sequence == sequence)
    }

    /// The file that operation `number` reads, if it is a fetch.
    pub(super) fn file_of(&self, number: u64) -> Option<FileId> {
        self.in_flight.iter().find(|fetch| fetch.number == number).map(|fetch| fetch.file)
    }

    /// Takes the end of operation `number`, a fetch on the file `path`.
    pub(super) fn on_done(&mut self, number: u64, read: std::io::Result<Buffer>, positions: &Positions, path: &Path) {
        let at = self.in_flight.iter().position(|fetch| fetch.number == number).expect("`file_of` knew it");
        let Fetch { from, piece, .. } = self.in_flight.swap_remove(at);
        let entries = match read {
            Ok(buf) => decode(positions, from, piece, buf, path),
            Err(_) => Err(Error::corrupt(path, piece.start.into(), "the disk cannot read it")),
        };
        self.ended.push(Fetched { from, entries });
    }

    pub(super) fn take(&mut self) -> Vec<Fetched> {
        std::mem::take(&mut self.ended)
    }
}

/// Where the entries from `from` on, at `first`, end in their segment, with about `bytes_max` bytes.
fn end_of(positions: &Positions, (from, first): (u64, Position), bytes_max: usize, limit: u32) -> u32 {
    let fits = |end: u32| usize::try_from(end - first.offset).is_ok_and(|bytes| bytes <= bytes_max);
    let mut end = None;
    for index in from + 1.. {
        let next = positions.get(index).filter(|next| next.sequence == first.sequence && next.offset < limit);
        let next_end = next.map_or(limit, |next| next.offset);
        if !fits(next_end) {
            return end.unwrap_or(next_end);
        }
        end = Some(next_end);
        if next.is_none() {
            break;
        }
    }
    end.unwrap_or(limit)
}

fn decode(positions: &Positions, from: u64, piece: Piece, buf: Buffer, path: &Path) -> Result<Vec<Entry>, Error> {
    let bytes = window::shared(buf);
    let mut entries = Vec::new();
    for index in from.. {
        let here = positions.get(index).filter(|at| at.sequence == piece.sequence && at.offset >= piece.start);
        let Some(at) = here.filter(|at| at.offset < piece.end) else { break };
        let rest = usize::try_from(at.offset - piece.start).expect("inside a segment");
        let entry = bytes.get(rest..).and_then(|_| entry_in(&bytes.slice(rest..), at.chain));
        match entry.filter(|entry| entry.index == index) {
            Some(entry) => entries.push(entry),
            None if index > from => break,
            None => return Err(Error::corrupt(path, at.offset.into(), "an entry that was durable")),
        }
    }
    Ok(entries)
}

/// The entry whose frame starts with `bytes`, if it continues `chain`.
fn entry_in(bytes: &bytes::Bytes, chain: u32) -> Option<Entry> {
    let (len, crc) = frame_head(bytes)?;
    let end = FRAME.checked_add(usize::try_from(len).ok()?)?;
    let frame = bytes.get(..end)?;
    if crc != frame_crc(chain, &frame[..4], &frame[FRAME..]) {
        return None;
    }
    match Record::decode(&bytes.slice(FRAME..end)) {
        Some(Record::Entry(entry)) => Some(entry),
        _ => None,
    }
}
