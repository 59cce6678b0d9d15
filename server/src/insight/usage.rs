//! Runs on: connection core.
//!
//! What prefixes take up, from the sums in the nodes: O(log n) for each, whatever lies below it.
//!
//! Keys are seen as paths: the children of a prefix are its continuations up to the next slash. Invariants: a listing takes at
//! most [`STEPS_MAX`] looks into the tree; what it does not list is told as one rest, so that a listing adds up.

use bytes::Bytes;
use engine::{Fault, KeyRange, RangeEnd, ReadView, Usage};
use proto::wire_range;

use crate::{core::Core, error::Error, kv::keys};

/// Children that are listed.
pub const CHILDREN_MAX: usize = 64;
/// Keys that a listing looks at.
const STEPS_MAX: usize = 2 * CHILDREN_MAX;
/// Levels that a listing descends to find more than one child.
const DESCENT_MAX: usize = 16;

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
fn below(prefix: &Bytes) -> KeyRange {
    let end = if prefix.is_empty() { Bytes::from_static(wire_range::NO_END) } else { wire_range::prefix_end(prefix) };
    keys(prefix, &end)
}

/// What `prefix` takes up.
///
/// **Errors** damaged data.
pub async fn of(core: &Core, view: &ReadView, prefix: Bytes) -> Result<Row, Error> {
    let range = below(&prefix);
    let usage = core.step_through(view, |view, _| view.usage(&range).map(Some)).await?;
    Ok(Row { prefix, usage, is_rest: false })
}

/// What the children of `prefix` take up, and last what is left. An only child's children are told instead of it.
///
/// **Errors** damaged data.
pub async fn children(core: &Core, view: &ReadView, mut prefix: Bytes) -> Result<Vec<Row>, Error> {
    let mut rests = Vec::new();
    for depth in 1.. {
        let whole = of(core, view, prefix).await?;
        let mut rows = level(core, view, &whole).await?;
        let rest = rows.pop_if(|row| row.is_rest);
        if let [only] = rows.as_slice()
            && depth < DESCENT_MAX
        {
            rests.extend(rest);
            prefix = only.prefix.clone();
            continue;
        }
        rows.extend(rest);
        rows.extend(rests.into_iter().rev());
        return Ok(rows);
    }
    unreachable!("the descent ends")
}

async fn level(core: &Core, view: &ReadView, whole: &Row) -> Result<Vec<Row>, Error> {
    let all = below(&whole.prefix);
    let mut rows = Vec::new();
    let mut rest = whole.usage;
    let mut from = whole.prefix.clone();
    for _ in 0..STEPS_MAX {
        let range = KeyRange { start: from, end: all.end.clone() };
        let Some(key) = core.step_through(view, |view, _| first_key(view, &range).map(Some)).await? else { break };
        let Some(child) = child_of(&whole.prefix, &key) else {
            // A key without a child of its own: it is part of the rest, and the next one comes right behind it.
            from = [&key[..], &[0]].concat().into();
            continue;
        };
        if rows.len() == CHILDREN_MAX {
            break;
        }
        let row = of(core, view, child).await?;
        rest = less(rest, row.usage);
        let end = below(&row.prefix).end;
        rows.push(row);
        let RangeEnd::Before(end) = end else { break };
        from = end;
    }
    if rest != Usage::default() {
        rows.push(Row { prefix: whole.prefix.clone(), usage: rest, is_rest: true });
    }
    Ok(rows)
}

fn first_key(view: &ReadView, range: &KeyRange) -> Result<Option<Bytes>, Fault> {
    Ok(view.cursor(range, view.revision()).next()?.map(|version| version.key))
}

/// `key`, which begins with `prefix`, up to the next slash behind it; `None` if there is none.
fn child_of(prefix: &Bytes, key: &Bytes) -> Option<Bytes> {
    // A slash right behind the prefix is where the child's name begins, as in `/registry/`.
    let behind = prefix.len() + 1;
    let slash = key.get(behind..)?.iter().position(|byte| *byte == b'/')?;
    Some(key.slice(..behind + slash + 1))
}

fn less(from: Usage, part: Usage) -> Usage {
    let Usage { keys, live_bytes, versions } = part;
    Usage { keys: from.keys - keys, live_bytes: from.live_bytes - live_bytes, versions: from.versions - versions }
}
