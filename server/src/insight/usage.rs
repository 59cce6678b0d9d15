//! Runs on: connection core.
//!
//! What prefixes take up, from the sums in the nodes: O(log n) for each, whatever lies below it.
//!
//! Keys are seen as paths: the children of a prefix are its continuations up to the next slash. Invariants: a listing
//! takes at most [`STEPS_MAX`] looks into the tree; what it does not list is told as one rest, so that a listing adds
//! up.

use bytes::Bytes;
use engine::{Fault, KeyRange, RangeEnd, ReadView, Usage};
use proto::wire_range;

/// Children that are listed.
pub const CHILDREN_MAX: usize = 64;
/// Keys that a listing looks at.
pub const STEPS_MAX: usize = 2 * CHILDREN_MAX;
/// Levels that a listing descends to find more than one child.
pub const DESCENT_MAX: usize = 16;

/// A prefix and what it takes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The prefix.
    pub prefix: Bytes,
    /// What all keys that begin with it take up.
    pub usage: Usage,
    /// Whether only what no other row tells of is meant.
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

/// `key`, which begins with `prefix`, up to the next slash behind it; `None` if there is none.
pub fn child_of(prefix: &Bytes, key: &Bytes) -> Option<Bytes> {
    // A slash right behind the prefix is where the child's name begins, as in `/registry/`.
    let behind = prefix.len() + 1;
    let slash = key.get(behind..)?.iter().position(|byte| *byte == b'/')?;
    Some(key.slice(..behind + slash + 1))
}

/// `from` without `part`, which is counted in it.
pub fn less(from: Usage, part: Usage) -> Usage {
    let Usage { keys, live_bytes, versions } = part;
    Usage { keys: from.keys - keys, live_bytes: from.live_bytes - live_bytes, versions: from.versions - versions }
}
