//! Inspects a log that no process uses. It changes nothing.

use std::path::{Path, PathBuf};

use super::{
    entry::HardState,
    options::Known,
    recover::{Found, Scan},
    segment::{Segment, name},
};
use crate::{Error, disk::Disk};

/// The contents of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    /// A number that was drawn when the log was created.
    pub id: u64,
    /// How often it was opened.
    pub life: u32,
    /// Index and term of the entry after which it starts.
    pub mark: (u64, u64),
    /// Index and term of its last entry; the mark if there is none.
    pub last: (u64, u64),
    /// Last hard state.
    pub hard_state: HardState,
    /// The segments of the log, in order.
    pub segments: Vec<SegmentSummary>,
    /// Names of segments that wait for reuse.
    pub spares: Vec<String>,
    /// Where an unfinished group would be cut off.
    pub torn: Option<(PathBuf, u64)>,
}

/// A segment of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentSummary {
    /// Its file's name.
    pub name: String,
    /// Length of the file.
    pub bytes: u32,
    /// The end of its last valid frame.
    pub used_bytes: u32,
}

/// Reads the log in `dir` as opening would, but changes nothing; `None` if there is no log. Blocks.
///
/// **Errors** as [`super::Wal::open`].
pub fn inspect(disk: &mut dyn Disk, dir: &Path) -> Result<Option<Summary>, Error> {
    let _lock = disk.lock(dir)?;
    let found = Found::read(disk, dir)?;
    let Some(last) = found.last() else { return Ok(None) };
    let Scan { id, replay, segments, tail, .. } =
        Scan::of(disk, dir, &found, (last, Known { applied: u64::MAX, trimmable: 0 }))?;
    let part = |segment: &Segment| SegmentSummary {
        name: name(segment.sequence),
        bytes: segment.len,
        used_bytes: if segment.sequence == last { tail.end } else { segment.end },
    };
    let in_use = |sequence: &u32| segments.iter().any(|segment| segment.sequence == *sequence);
    let last_entry = replay.entries.last().map_or(replay.mark, |entry| (entry.index, entry.term));
    let summary = Summary {
        id,
        life: replay.life,
        mark: replay.mark,
        last: last_entry,
        hard_state: replay.hard_state,
        segments: segments.iter().map(part).collect(),
        spares: found.files.keys().filter(|sequence| !in_use(sequence)).map(|sequence| name(*sequence)).collect(),
        torn: tail.torn(dir, last),
    };
    for candidate in found.files.values() {
        disk.close(candidate.segment.file);
    }
    Ok(Some(summary))
}
