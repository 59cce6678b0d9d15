//! Runs on: connection core.
//!
//! Measures the space that prefixes take, from the sums in the nodes. Each prefix costs O(log n), whatever is below it.
//!
//! Keys are treated as paths: the children of a prefix are its continuations up to the next slash. Invariants: a
//! listing looks at most [`STEPS_MAX`] times into the tree. What it does not list is one row, the rest. So a listing
//! adds up.

use bytes::Bytes;
use engine::{Fault, KeyRange, RangeEnd, ReadView, Usage};
use proto::wire_range;

/// Children that are listed at most.
pub const CHILDREN_MAX: usize = 64;
/// Keys that a listing looks at, at most.
pub const STEPS_MAX: usize = 2 * CHILDREN_MAX;
/// Levels that a listing descends at most to find more than one child.
pub const DESCENT_MAX: usize = 16;

/// A prefix and the space that it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The prefix.
    pub prefix: Bytes,
    /// The space of all keys that begin with the prefix.
    pub usage: Usage,
    /// Whether this row is the rest: only the space that no other row counts.
    pub is_rest: bool,
}

/// All keys that begin with `prefix`.
pub fn below(prefix: &Bytes) -> KeyRange {
    let end = if prefix.is_empty() { Bytes::from_static(wire_range::NO_END) } else { wire_range::prefix_end(prefix) };
    let end = if end == wire_range::NO_END { RangeEnd::Open } else { RangeEnd::Before(end) };
    KeyRange { start: prefix.clone(), end }
}

/// The first key of a range.
///
/// **Errors** a page that is not resident.
pub fn first_key(view: &ReadView, range: &KeyRange) -> Result<Option<Bytes>, Fault> {
    Ok(view.cursor(range, view.revision()).next()?.map(|version| version.key))
}

/// `key` up to the next slash after `prefix`, with which it begins; `None` if there is none.
pub fn child_of(prefix: &Bytes, key: &Bytes) -> Option<Bytes> {
    // A slash directly after the prefix begins the child's name, as in `/registry/`.
    let behind = prefix.len() + 1;
    let slash = key.get(behind..)?.iter().position(|byte| *byte == b'/')?;
    Some(key.slice(..behind + slash + 1))
}

/// `from` without `part`. `from` includes `part`.
pub fn less(from: Usage, part: Usage) -> Usage {
    let Usage { keys, live_bytes, versions } = part;
    Usage { keys: from.keys - keys, live_bytes: from.live_bytes - live_bytes, versions: from.versions - versions }
}
