//! Changes to a copy-on-write B+tree: put, remove, the end of many live versions, and the sweep that drops old ones.
//!
//! One writer owns the root slot. A node that only the unpublished tree reaches is changed in place. Any other node is
//! copied. So the first change after a publish copies a path, and the next changes mostly find copies that they may
//! change.
//!
//! Invariants:
//! - All leaves are at one depth. A root that is an inner node has at least two children. Only a root may be an empty
//!   leaf.
//! - `Child::sums` are exact; `Leaf::superseded_at` is exact. `verify` checks both.
//! - The newest version of a key, if there is one, is in the leaf that (`key`, `Revision::MAX`) leads to. Splits keep
//!   this. The sweep keeps it too: it takes leaves from right to left, so that a run of versions loses its oldest
//!   first.
//! - An operation that faults has changed nothing that a reader could see.
//! - A sweep passes by pages that cannot be read. They keep what could be dropped below them.
//! - Every page that a change makes unreachable from the unpublished tree is listed once in `Ledger::dead_places`.
//!
//! It does not know the next revision, records or views; `mvcc` does.

use std::sync::Arc;

use super::{
    leaf::{ENTRY_BYTES_MAX, EndedKeys, EntryMeta, Leaf, VALUE},
    ledger::{Ledger, modify},
    node::{Child, INNER_CHILDREN_MAX, Inner, Node, Slot},
    separators::{Separator, Separators},
    sums::Sums,
    walk::find,
};
use crate::{Fault, Revision, Unreadable, prefix::common_prefix_len};

/// An inner node of at least four children is split when its separators exceed this. **Units** bytes.
pub(crate) const SEPARATOR_BYTES_MAX: usize = 8192;
/// A node is joined with a neighbour when it has become smaller than this part of its maximum ...
const SMALL_DIVISOR: usize = 4;
/// ... and both together stay below three of these parts, so that the next insertion does not split them again.
const JOINED_PARTS: usize = 3;

/// The change of a subtree's sums.
#[derive(Clone, Copy)]
struct Delta {
    live: i64,
    live_bytes: i64,
    versions: i64,
    droppable_at: i64,
}

impl Delta {
    fn apply(&self, sums: &mut Sums) {
        let add = |sum: u64, delta: i64| sum.checked_add_signed(delta).expect("sums are exact");
        sums.live = add(sums.live, self.live);
        sums.live_bytes = add(sums.live_bytes, self.live_bytes);
        sums.versions = add(sums.versions, self.versions);
        sums.droppable_at = sums.droppable_at.min(self.droppable_at);
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("sums stay far below 2^63")
}

/// A node that was cut off on the right side of another.
struct Cut {
    separator: Separator,
    child: Child,
}

/// The result of a change of a leaf for a subtree.
struct Changed {
    delta: Delta,
    /// The parts that were cut off, in order, and the sums of the rest, if anything was cut off.
    cuts: Vec<Cut>,
    remaining: Option<Sums>,
}

/// An entry that must be inserted.
pub(crate) struct NewEntry<'a> {
    pub(crate) key: &'a [u8],
    pub(crate) revision: Revision,
    /// The value of an entry of the meta tree.
    pub(crate) value: &'a [u8],
    /// Makes the entry from the newest one of the key. Returns `None` to leave everything as it is.
    pub(crate) make: &'a mut dyn FnMut(Option<&EntryMeta>) -> Option<EntryMeta>,
}

/// Inserts a version before the older ones of its key, or sets an entry of the meta tree.
pub(crate) fn put(root: &mut Arc<Slot>, ledger: &mut Ledger, new: &mut NewEntry<'_>) -> Result<(), Fault> {
    let key = new.key;
    change_leaf(root, ledger, key, |leaf, ledger| put_in_leaf(leaf, ledger, new))
}

/// Ends the live versions of one leaf: the one that holds the newest version of `from`, which is live. It ends those
/// from `from` on and before `end`; only those with `lease`, if there is one, which `from` must have then. `tombstone`
/// makes the entry that ends a version, from its key and its own entry; all of them have one main revision, and
/// ascending sub revisions. Returns the keys.
pub(crate) fn end_live(
    root: &mut Arc<Slot>,
    ledger: &mut Ledger,
    (from, end, lease): (&[u8], Option<&[u8]>, Option<i64>),
    mut tombstone: impl FnMut(&[u8], &EntryMeta) -> EntryMeta,
) -> Result<EndedKeys, Fault> {
    let mut ended = None;
    change_leaf(root, ledger, from, |leaf, ledger| {
        let (changed, keys) = end_live_in_leaf(leaf, ledger, (from, end, lease), &mut tombstone);
        ended = Some(keys);
        changed
    })?;
    Ok(ended.expect("a leaf was changed"))
}

/// Changes the leaf that (`key`, `Revision::MAX`) leads to. A fault comes before `change` is called.
fn change_leaf(
    root: &mut Arc<Slot>,
    ledger: &mut Ledger,
    key: &[u8],
    mut change: impl FnMut(&mut Leaf, &mut Ledger) -> Changed,
) -> Result<(), Fault> {
    let changed = modify(root, ledger, |node, ledger| change_in(node, ledger, key, &mut change))?;
    if let Some(remaining) = changed.remaining {
        let cuts = changed.cuts;
        let separators = Separators::pack(cuts.iter().map(|cut| (&cut.separator.key[..], cut.separator.revision)));
        let mut children = vec![Child { slot: Arc::clone(root), sums: remaining }];
        children.extend(cuts.into_iter().map(|cut| cut.child));
        *root = ledger.dirty(Node::Inner(Inner::new(separators, children)));
    }
    Ok(())
}

fn change_in(
    node: &mut Node,
    ledger: &mut Ledger,
    key: &[u8],
    change: &mut impl FnMut(&mut Leaf, &mut Ledger) -> Changed,
) -> Result<Changed, Fault> {
    match node {
        Node::Leaf(leaf) => Ok(change(leaf, ledger)),
        Node::Inner(inner) => {
            // A new version comes before all other versions of its key.
            let position = inner.child_of(key, Revision::MAX);
            let child = inner.child_mut(position);
            let changed = modify(&mut child.slot, ledger, |node, ledger| change_in(node, ledger, key, change))?;
            let Some(remaining) = changed.remaining else {
                changed.delta.apply(&mut child.sums);
                return Ok(changed);
            };
            child.sums = remaining;
            let is_last = position + 1 == inner.len();
            for (cut, position) in changed.cuts.into_iter().zip(position..) {
                inner.insert_behind(position, &cut.separator, cut.child);
            }
            let mut cuts = Vec::new();
            cut_inner(inner, ledger, is_last, &mut cuts);
            let remaining = (!cuts.is_empty()).then(|| inner.sums());
            Ok(Changed { delta: changed.delta, cuts, remaining })
        }
    }
}

/// What a changed leaf reports when it has become too large, or not.
fn changed(leaf: &mut Leaf, ledger: &mut Ledger, delta: Delta, inserted: Option<usize>) -> Changed {
    let mut cuts = Vec::new();
    cut_leaf(leaf, ledger, inserted, &mut cuts);
    let remaining = (!cuts.is_empty()).then(|| leaf.sums());
    Changed { delta, cuts, remaining }
}

fn end_live_in_leaf(
    leaf: &mut Leaf,
    ledger: &mut Ledger,
    (from, end, lease): (&[u8], Option<&[u8]>, Option<i64>),
    tombstone: &mut impl FnMut(&[u8], &EntryMeta) -> EntryMeta,
) -> (Changed, EndedKeys) {
    let first = leaf.lower_bound(from, Revision::MAX);
    let last = end.map_or(leaf.len(), |end| leaf.lower_bound(end, Revision::MAX));
    assert!(first < last && leaf.is_of(first, from), "the first version to end is there");
    let mut delta = Delta { live: 0, live_bytes: 0, versions: 0, droppable_at: i64::MAX };
    let (with_ends, keys) = leaf.ended(first..last, lease, |key, meta| {
        delta.live -= 1;
        delta.live_bytes -= signed(meta.live_bytes(key.len()));
        delta.versions += 1;
        let ended = tombstone(key, meta);
        assert!(meta.revision < ended.revision && ended.is_tombstone() && ended.is_newest(), "revisions ascend");
        delta.droppable_at = meta.droppable_at(ended.revision.main).min(ended.droppable_at(i64::MAX));
        ended
    });
    *leaf = with_ends;
    (changed(leaf, ledger, delta, None), keys)
}

fn put_in_leaf(leaf: &mut Leaf, ledger: &mut Ledger, new: &mut NewEntry<'_>) -> Changed {
    let NewEntry { key, revision, value, ref mut make } = *new;
    let position = leaf.lower_bound(key, Revision::MAX);
    let is_known = position < leaf.len() && leaf.is_of(position, key);
    let before = is_known.then(|| leaf.meta(position));
    let Some(meta) = make(before.as_ref()) else {
        let delta = Delta { live: 0, live_bytes: 0, versions: 0, droppable_at: i64::MAX };
        return Changed { delta, cuts: Vec::new(), remaining: None };
    };
    assert!(meta.is_newest() && meta.revision == revision, "what is put is the newest");
    let mut delta = Delta { live: 0, live_bytes: 0, versions: 1, droppable_at: meta.droppable_at(i64::MAX) };
    if let Some(before) = before {
        assert!(before.is_newest(), "nothing goes between the versions of a key");
        if before.is_live() {
            delta.live -= 1;
            delta.live_bytes -= signed(before.live_bytes(key.len()));
        }
        if meta.flags & VALUE != 0 {
            leaf.remove(position);
            delta.versions -= 1;
        } else {
            assert!(before.revision < revision, "revisions ascend");
            leaf.clear_newest(position);
            delta.droppable_at = delta.droppable_at.min(before.droppable_at(revision.main));
        }
    }
    leaf.insert(position, key, meta, value);
    if meta.is_live() {
        delta.live += 1;
        delta.live_bytes += signed(meta.live_bytes(key.len()));
    }
    changed(leaf, ledger, delta, Some(position))
}

/// Cuts a leaf until every part fits. The parts after the first one go into `cuts`, in order.
fn cut_leaf(leaf: &mut Leaf, ledger: &mut Ledger, inserted: Option<usize>, cuts: &mut Vec<Cut>) {
    if leaf.entry_bytes() <= ENTRY_BYTES_MAX || leaf.len() < 2 {
        return;
    }
    let position = leaf.split_position(inserted);
    let mut right = leaf.split_off(position);
    let separator = separator_between(leaf, &right);
    cut_leaf(leaf, ledger, None, cuts);
    let mut behind = Vec::new();
    cut_leaf(&mut right, ledger, None, &mut behind);
    let sums = right.sums();
    cuts.push(Cut { separator, child: Child { slot: ledger.dirty(Node::Leaf(right)), sums } });
    cuts.append(&mut behind);
}

fn separator_between(left: &Leaf, right: &Leaf) -> Separator {
    let mut key = right.key(0).to_vec();
    if right.superseded_at() != i64::MAX {
        return Separator { key, revision: right.meta(0).revision };
    }
    let common = common_prefix_len(&left.key(left.len() - 1), &key);
    assert!(common < key.len(), "keys ascend");
    key.truncate(common + 1);
    Separator { key, revision: Revision::MAX }
}

pub(super) fn is_overfull(inner: &Inner) -> bool {
    inner.len() > INNER_CHILDREN_MAX || (inner.len() >= 4 && inner.separators().bytes() > SEPARATOR_BYTES_MAX)
}

/// Cuts an inner node until every part fits. `is_appended` says that the last child was the one that grew.
fn cut_inner(inner: &mut Inner, ledger: &mut Ledger, is_appended: bool, cuts: &mut Vec<Cut>) {
    if !is_overfull(inner) {
        return;
    }
    let position = if is_appended { inner.len() - 1 } else { inner.len() / 2 };
    let (separator, mut right) = inner.split_off(position);
    cut_inner(inner, ledger, false, cuts);
    let mut behind = Vec::new();
    cut_inner(&mut right, ledger, false, &mut behind);
    let sums = right.sums();
    cuts.push(Cut { separator, child: Child { slot: ledger.dirty(Node::Inner(right)), sums } });
    cuts.append(&mut behind);
}

/// The result for a subtree that lost entries.
struct Shrunk {
    sums: Sums,
    is_empty: bool,
}

/// Removes the entry `from` of the meta tree, and those behind it in its leaf up to `last`. Returns how many these
/// were; 0 if there is no entry `from`.
pub(crate) fn remove(root: &mut Arc<Slot>, ledger: &mut Ledger, from: &[u8], last: &[u8]) -> Result<usize, Fault> {
    assert!(from <= last, "the first is removed");
    if find(root, from, Revision::MAX)?.is_none() {
        return Ok(0);
    }
    let mut removed = 0;
    let shrunk = remove_in(root, ledger, (from, last), &mut removed)?;
    settle_root(root, ledger, &shrunk);
    Ok(removed)
}

fn remove_in(
    slot: &mut Arc<Slot>,
    ledger: &mut Ledger,
    (from, last): (&[u8], &[u8]),
    removed: &mut usize,
) -> Result<Shrunk, Fault> {
    modify(slot, ledger, |node, ledger| match node {
        Node::Leaf(leaf) => {
            let position = leaf.lower_bound(from, Revision::MAX);
            assert!(position < leaf.len() && leaf.is_of(position, from), "found before");
            while position < leaf.len() && leaf.cmp_key(position, last).is_le() {
                leaf.remove(position);
                *removed += 1;
            }
            Ok(Shrunk { sums: leaf.sums(), is_empty: leaf.is_empty() })
        }
        Node::Inner(inner) => {
            let position = inner.child_of(from, Revision::MAX);
            let shrunk = remove_in(&mut inner.child_mut(position).slot, ledger, (from, last), removed)?;
            Ok(settle(inner, ledger, position, &shrunk))
        }
    })
}

/// How far a pass of the sweep has come, from right to left.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pass {
    /// The beginning of what was passed; `None` before the first page that cannot be read. Whatever can be dropped from
    /// here on lies below such pages.
    from: Option<Separator>,
}

/// What a step of the sweep did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Swept {
    /// It has looked at so many entries of a leaf, and dropped so many of them.
    Leaf { looked: usize, dropped: usize },
    /// It has passed a page that cannot be read.
    Passed,
    /// There is nothing left to drop, but for what was passed.
    Done,
}

/// The next thing that a sweep comes to.
enum Next {
    /// The leaf at the end of the way. All of the way is in memory.
    Leaf,
    /// A page that cannot be read. What is before it begins before this separator, if there is one.
    Unreadable(Option<Separator>),
    Nothing,
}

/// Drops the entries that can be dropped at `compact_revision` from the rightmost leaf that has any and was not passed.
pub(crate) fn sweep(
    root: &mut Arc<Slot>,
    ledger: &mut Ledger,
    compact_revision: i64,
    pass: &mut Pass,
    unreadable: &Unreadable,
) -> Result<Swept, Fault> {
    let mut way = Vec::new();
    let search = Search { compact_revision, unreadable };
    match search.next(root, pass.from.as_ref(), None, &mut way)? {
        Next::Leaf => {}
        Next::Nothing | Next::Unreadable(None) => return Ok(Swept::Done),
        Next::Unreadable(from) => {
            pass.from = from;
            return Ok(Swept::Passed);
        }
    }
    let mut counts = (0, 0);
    let shrunk = sweep_in(root, ledger, compact_revision, &way, &mut counts)?;
    settle_root(root, ledger, &shrunk);
    Ok(Swept::Leaf { looked: counts.0, dropped: counts.1 })
}

struct Search<'a> {
    compact_revision: i64,
    unreadable: &'a Unreadable,
}

impl Search<'_> {
    /// Looks below `slot`, which begins at `low`, for the rightmost leaf that begins before `from` and has something to
    /// drop. `way` becomes the positions of the children on the way to it.
    fn next(
        &self,
        slot: &Arc<Slot>,
        from: Option<&Separator>,
        low: Option<Separator>,
        way: &mut Vec<usize>,
    ) -> Result<Next, Fault> {
        let inner = match slot.resident() {
            Some(Node::Inner(inner)) => inner,
            Some(Node::Leaf(leaf)) => {
                let has_any = leaf.sums().droppable_at <= self.compact_revision;
                return Ok(if has_any { Next::Leaf } else { Next::Nothing });
            }
            None if slot.place().is_some_and(|place| self.unreadable.avoids(place)) => {
                return Ok(Next::Unreadable(low));
            }
            None => return Err(slot.fault()),
        };
        let separators = inner.separators();
        let last = from.map_or(inner.len() - 1, |from| {
            let position = inner.child_of(&from.key, from.revision);
            let begins_there = position > 0 && separators.get(position - 1) == *from;
            position - usize::from(begins_there)
        });
        for position in (0..=last).rev() {
            let child = &inner.children()[position];
            if child.sums.droppable_at > self.compact_revision {
                continue;
            }
            let low = if position == 0 { low.clone() } else { Some(separators.get(position - 1)) };
            way.push(position);
            match self.next(&child.slot, from.filter(|_| position == last), low, way)? {
                Next::Nothing => drop(way.pop()),
                found => return Ok(found),
            }
        }
        Ok(Next::Nothing)
    }
}

fn sweep_in(
    slot: &mut Arc<Slot>,
    ledger: &mut Ledger,
    compact_revision: i64,
    way: &[usize],
    counts: &mut (usize, usize),
) -> Result<Shrunk, Fault> {
    let Some((position, below)) = way.split_first() else {
        let Node::Leaf(leaf) = slot.look()? else { unreachable!("the way ends at a leaf") };
        let kept = leaf.swept(compact_revision, |meta| ledger.dead_records.push((meta.revision, meta.bytes)));
        *counts = (leaf.len(), leaf.len() - kept.len());
        ledger.retire(slot);
        let shrunk = Shrunk { sums: kept.sums(), is_empty: kept.is_empty() };
        *slot = ledger.dirty(Node::Leaf(kept));
        return Ok(shrunk);
    };
    modify(slot, ledger, |node, ledger| {
        let Node::Inner(inner) = node else { unreachable!("the way is of inner nodes") };
        let shrunk = sweep_in(&mut inner.child_mut(*position).slot, ledger, compact_revision, below, counts)?;
        Ok(settle(inner, ledger, *position, &shrunk))
    })
}

/// Handles the child that shrank. An empty child is removed. A small one is joined with a neighbour that is in memory.
fn settle(inner: &mut Inner, ledger: &mut Ledger, position: usize, shrunk: &Shrunk) -> Shrunk {
    inner.child_mut(position).sums = shrunk.sums;
    if shrunk.is_empty && inner.len() == 1 {
        return Shrunk { sums: Sums::ZERO, is_empty: true };
    }
    if shrunk.is_empty {
        let removed = inner.remove(position);
        ledger.retire(&removed.slot);
    } else {
        let has_left = position > 0 && join(inner, ledger, position - 1);
        if !has_left && position + 1 < inner.len() {
            join(inner, ledger, position);
        }
    }
    Shrunk { sums: inner.sums(), is_empty: false }
}

fn settle_root(root: &mut Arc<Slot>, ledger: &mut Ledger, shrunk: &Shrunk) {
    if shrunk.is_empty {
        ledger.retire(root);
        *root = ledger.dirty(Node::empty());
        return;
    }
    loop {
        let only_child = match root.resident() {
            Some(Node::Inner(inner)) if inner.len() == 1 => Arc::clone(&inner.children()[0].slot),
            _ => return,
        };
        ledger.retire(root);
        *root = only_child;
    }
}

/// Joins the children at `left` and `left + 1` if one is small, both are in memory, and together they are not too
/// large.
fn join(inner: &mut Inner, ledger: &mut Ledger, left: usize) -> bool {
    let [left_child, right_child] = &inner.children()[left..left + 2] else { unreachable!("two children") };
    let (Some(left_node), Some(right_node)) = (left_child.slot.resident(), right_child.slot.resident()) else {
        return false;
    };
    let joined = match (left_node, right_node) {
        (Node::Leaf(left), Node::Leaf(right)) => join_leaves(left, right).map(Node::Leaf),
        (Node::Inner(left_inner), Node::Inner(right_inner)) => {
            let between = inner.separators().get(left);
            join_inner(left_inner, &between, right_inner).map(Node::Inner)
        }
        _ => unreachable!("all leaves lie at one depth"),
    };
    let Some(joined) = joined else { return false };
    let mut sums = left_child.sums;
    sums.add(&right_child.sums);
    let right_child = inner.remove(left + 1);
    ledger.retire(&right_child.slot);
    let child = inner.child_mut(left);
    ledger.retire(&child.slot);
    *child = Child { slot: ledger.dirty(joined), sums };
    true
}

fn join_leaves(left: &Leaf, right: &Leaf) -> Option<Leaf> {
    let is_small = left.entry_bytes().min(right.entry_bytes()) < ENTRY_BYTES_MAX / SMALL_DIVISOR;
    (is_small && left.joined_bytes(right) <= ENTRY_BYTES_MAX / SMALL_DIVISOR * JOINED_PARTS).then(|| left.joined(right))
}

fn join_inner(left: &Inner, between: &Separator, right: &Inner) -> Option<Inner> {
    let is_small = left.len().min(right.len()) < INNER_CHILDREN_MAX / SMALL_DIVISOR;
    let bytes = left.separators().bytes() + between.key.len() + right.separators().bytes();
    let fits = left.len() + right.len() <= INNER_CHILDREN_MAX / SMALL_DIVISOR * JOINED_PARTS
        && bytes <= SEPARATOR_BYTES_MAX / SMALL_DIVISOR * JOINED_PARTS;
    (is_small && fits).then(|| left.joined(between, right))
}
