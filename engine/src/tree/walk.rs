//! Reads of a tree: one entry, the rank of a key, and a walk from leaf to leaf.
//!
//! Every function takes a root slot and works on the tree below it, published or not. A `Fault` leaves a [`Walk`] where
//! it was (`next_leaf`), or it must be sought again (`seek`).
//!
//! A long walk need not leave its leaves in the tree. It may read them into slots of its own (`Walk::wanted`), and it
//! drops each slot once it is past the leaf. Places are not reused. So as long as the tree holds the place, such a leaf
//! equals that of the tree.
//!
//! It knows no tombstone rules and no compaction; `cursor` and `mvcc` do.

use std::{collections::VecDeque, sync::Arc};

use bytes::Bytes;

use super::{
    leaf::{EntryMeta, Leaf},
    node::{Inner, Node, Slot},
};
use crate::{Fault, Revision};

/// A revision that comes after every version of a key.
pub(crate) const AFTER: Revision = Revision::new(-1, 0);

/// The newest version of `key` at or below `revision`.
pub(crate) fn find(root: &Arc<Slot>, key: &[u8], revision: Revision) -> Result<Option<EntryMeta>, Fault> {
    let mut node = root.look()?;
    let mut continues = false;
    while let Node::Inner(inner) = node {
        let position = inner.child_of(key, revision);
        if position < inner.separators().len() {
            continues = inner.separators().key(position) == key;
        }
        let slot = &inner.children()[position].slot;
        slot.mark_used();
        node = slot.look()?;
    }
    let Node::Leaf(leaf) = node else { unreachable!("the way down ends at a leaf") };
    let position = leaf.lower_bound(key, revision);
    if position < leaf.len() {
        return Ok(leaf.is_of(position, key).then(|| leaf.meta(position)));
    }
    // The newest version would have been here, whatever older ones the next leaf begins with.
    if !continues || revision == Revision::MAX {
        return Ok(None);
    }
    // The run goes on in the next leaf.
    let mut walk = Walk::default();
    walk.seek(root, key, revision)?;
    if !walk.next_leaf(false, None)? {
        return Ok(None);
    }
    let leaf = walk.leaf();
    Ok(leaf.is_of(0, key).then(|| leaf.meta(0)))
}

/// The leaf that (`key`, `Revision::MAX`) leads to. It calls `on_way` with each inner node and the position of the
/// child that it takes.
fn leaf_of<'a>(root: &'a Arc<Slot>, key: &[u8], mut on_way: impl FnMut(&'a Inner, usize)) -> Result<&'a Leaf, Fault> {
    let mut node = root.look()?;
    loop {
        match node {
            Node::Leaf(leaf) => return Ok(leaf),
            Node::Inner(inner) => {
                let position = inner.child_of(key, Revision::MAX);
                on_way(inner, position);
                let slot = &inner.children()[position].slot;
                slot.mark_used();
                node = slot.look()?;
            }
        }
    }
}

/// Faults on the way to the leaf that holds the newest version of `key`, or would hold it.
#[inline]
pub(crate) fn touch(root: &Arc<Slot>, key: &[u8]) -> Result<(), Fault> {
    leaf_of(root, key, |_, _| {}).map(drop)
}

/// The value of `key` in the meta tree.
pub(crate) fn value_of(root: &Arc<Slot>, key: &[u8]) -> Result<Option<Bytes>, Fault> {
    let leaf = leaf_of(root, key, |_, _| {})?;
    let position = leaf.lower_bound(key, Revision::MAX);
    let is_there = position < leaf.len() && leaf.is_of(position, key);
    Ok(is_there.then(|| Bytes::copy_from_slice(leaf.value(position))))
}

/// The number of live entries before (`key`, `Revision::MAX`) and, if wanted, their bytes.
pub(crate) fn rank(root: &Arc<Slot>, key: &[u8], with_bytes: bool) -> Result<(u64, u64), Fault> {
    let mut sums = (0, 0);
    let leaf = leaf_of(root, key, |inner, position| {
        for child in &inner.children()[..position] {
            sums.0 += child.sums.live;
            sums.1 += child.sums.live_bytes;
        }
    })?;
    let position = leaf.lower_bound(key, Revision::MAX);
    if with_bytes {
        let (live, bytes) = leaf.live_before(position);
        return Ok((sums.0 + live, sums.1 + bytes));
    }
    Ok((sums.0 + leaf.live_count_before(position), 0))
}

/// Bytes of the first `count` live entries. There must be as many. The result is what [`rank`] returns for the next
/// key.
pub(crate) fn bytes_of_first(root: &Arc<Slot>, count: u64) -> Result<u64, Fault> {
    let (mut left, mut bytes) = (count, 0);
    let mut slot = root;
    loop {
        match slot.look()? {
            Node::Leaf(leaf) => return Ok(bytes + leaf.live_bytes_of_first(left)),
            Node::Inner(inner) => {
                let mut children = inner.children().iter();
                let child = children.find(|child| {
                    let is_past = child.sums.live > left;
                    if !is_past {
                        left -= child.sums.live;
                        bytes += child.sums.live_bytes;
                    }
                    is_past
                });
                match child {
                    Some(child) if left > 0 => slot = &child.slot,
                    _ => break,
                }
            }
        }
    }
    assert_eq!(left, 0, "there are as many");
    Ok(bytes)
}

/// The number of entries of every kind before (`key`, `Revision::MAX`).
pub(crate) fn entries_before(root: &Arc<Slot>, key: &[u8]) -> Result<u64, Fault> {
    let mut entries = 0;
    let leaf = leaf_of(root, key, |inner, position| {
        entries += inner.children()[..position].iter().map(|child| child.sums.versions).sum::<u64>();
    })?;
    Ok(entries + u64::try_from(leaf.lower_bound(key, Revision::MAX)).expect("a leaf is small"))
}

/// The pages that are missing below `root` and may hold entries from `start` on and before `end`, in key order and at
/// most `max`. With `skips_dead`, only pages with live entries. What lies below a missing page is not known yet.
pub(crate) fn missing(
    root: &Arc<Slot>,
    span: (&[u8], Option<&[u8]>),
    skips_dead: bool,
    max: usize,
) -> impl Iterator<Item = Fault> {
    let mut slots = Vec::new();
    missing_slots(root, span, skips_dead, max, &mut slots);
    slots.into_iter().map(Slot::fault)
}

/// Appends the slots of [`missing`] to `out`.
fn missing_slots<'a>(
    slot: &'a Arc<Slot>,
    (start, end): (&[u8], Option<&[u8]>),
    skips_dead: bool,
    max: usize,
    out: &mut Vec<&'a Arc<Slot>>,
) {
    let inner = match slot.resident() {
        None => return out.push(slot),
        Some(Node::Leaf(_)) => return,
        Some(Node::Inner(inner)) => inner,
    };
    for position in inner.child_of(start, Revision::MAX)..inner.len() {
        let is_behind = position > 0 && end.is_some_and(|end| inner.separators().key(position - 1) >= end);
        if is_behind || out.len() >= max {
            return;
        }
        let child = &inner.children()[position];
        if !skips_dead || child.sums.live > 0 {
            missing_slots(&child.slot, (start, end), skips_dead, max, out);
        }
    }
}

/// The number of all live entries, and their bytes.
pub(crate) fn total(root: &Arc<Slot>) -> Result<(u64, u64), Fault> {
    let sums = root.look()?.sums();
    Ok((sums.live, sums.live_bytes))
}

/// A position in a tree: a leaf, an entry of it, and the way to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Walk {
    path: Vec<(Arc<Slot>, usize)>,
    leaf: Option<Arc<Slot>>,
    /// Position in the leaf. It is the leaf's length if the first entry that was sought is in the next leaf.
    pub(crate) position: usize,
    /// Leaves that were read for this walk only, from the present one on, in order.
    aside: VecDeque<Arc<Slot>>,
}

impl Walk {
    /// Goes to the first entry that is not before (`key`, `revision`), or to the end of the leaf before it.
    pub(crate) fn seek(&mut self, root: &Arc<Slot>, key: &[u8], revision: Revision) -> Result<(), Fault> {
        self.seek_wanted(root, (key, revision), false).map(drop)
    }

    /// As [`Walk::seek`]. But if nothing is live in the leaf that it leads to, or in a node on the way, that is not
    /// read, and the walk is before the next leaf; it returns false then.
    pub(crate) fn seek_live(&mut self, root: &Arc<Slot>, key: &[u8], revision: Revision) -> Result<bool, Fault> {
        self.seek_wanted(root, (key, revision), true)
    }

    fn seek_wanted(
        &mut self,
        root: &Arc<Slot>,
        (key, revision): (&[u8], Revision),
        skips_dead: bool,
    ) -> Result<bool, Fault> {
        self.leave();
        let mut slot = root;
        while let Some(Node::Inner(inner)) = slot.resident() {
            let position = inner.child_of(key, revision);
            self.path.push((Arc::clone(slot), position));
            let child = &inner.children()[position];
            if skips_dead && child.sums.live == 0 {
                return Ok(false);
            }
            slot = &child.slot;
        }
        self.leaf = Some(self.held(slot)?);
        self.position = self.leaf().lower_bound(key, revision);
        Ok(true)
    }

    /// Releases the way to its position. The walk must be sought again.
    pub(crate) fn leave(&mut self) {
        self.path.clear();
        self.leaf = None;
    }

    /// The slot with the leaf of `slot` in it: `slot` itself, or one of the walk's own.
    fn held(&mut self, slot: &Arc<Slot>) -> Result<Arc<Slot>, Fault> {
        if slot.resident().is_none()
            && let Some(at) = self.aside.iter().position(|aside| aside.place() == slot.place())
            && self.aside[at].resident().is_some()
        {
            self.aside.drain(..at);
            return Ok(Arc::clone(&self.aside[0]));
        }
        slot.look().map(|_| Arc::clone(slot))
    }

    /// The reads that are needed to go on from `start` to `end` in the tree of `root`: the next leaves, at most `max`,
    /// or pages on the way to them. The first `shared` of them, which it counts down, stay in the tree. The others are
    /// read for this walk only.
    pub(crate) fn wanted(
        &mut self,
        root: &Arc<Slot>,
        (start, end): (&[u8], Option<&[u8]>),
        skips_dead: bool,
        max: usize,
        shared: &mut usize,
    ) -> Vec<Fault> {
        let mut slots = Vec::new();
        missing_slots(root, (start, end), skips_dead, max + self.aside.len(), &mut slots);
        self.aside.retain(|aside| slots.iter().any(|slot| slot.place() == aside.place()));
        self.aside.retain(|aside| aside.resident().is_some());
        slots.retain(|slot| self.aside.iter().all(|aside| aside.place() != slot.place()));
        slots.truncate(max);
        let mut faults = Vec::with_capacity(slots.len());
        for slot in slots {
            if let Some(left) = shared.checked_sub(1) {
                *shared = left;
                faults.push(slot.fault());
                continue;
            }
            let aside = slot.unread();
            faults.push(slot.fault_aside(&aside));
            self.aside.push_back(aside);
        }
        // Reads in the order of their places are joined if the pages are neighbours.
        faults.sort_unstable_by_key(Fault::place);
        faults
    }

    pub(crate) fn leaf(&self) -> &Leaf {
        match self.leaf.as_ref().and_then(|slot| slot.resident()) {
            Some(Node::Leaf(leaf)) => leaf,
            _ => unreachable!("a walk is sought before it is read"),
        }
    }

    /// Goes to the first entry of the next leaf, or of the next leaf with something live below it. Returns false if
    /// there is none, or none before `end`.
    pub(crate) fn next_leaf(&mut self, skips_dead: bool, end: Option<&[u8]>) -> Result<bool, Fault> {
        let mut depth = self.path.len();
        while let Some(level) = depth.checked_sub(1) {
            let (slot, at) = &self.path[level];
            let Some(Node::Inner(inner)) = slot.resident() else { unreachable!("the path is of inner nodes") };
            let Some(position) = first_wanted(inner, at + 1, skips_dead) else {
                depth = level;
                continue;
            };
            if end.is_some_and(|end| inner.separators().key(position - 1) >= end) {
                return Ok(false);
            }
            let (path, leaf) = first_leaf(&inner.children()[position].slot, skips_dead);
            self.leaf = Some(self.held(&leaf)?);
            self.path.truncate(depth);
            self.path[level].1 = position;
            self.path.extend(path);
            self.position = 0;
            return Ok(true);
        }
        Ok(false)
    }
}

/// The first child from `from` on, or the first with something live below it.
fn first_wanted(inner: &Inner, from: usize, skips_dead: bool) -> Option<usize> {
    (from..inner.len()).find(|position| !skips_dead || inner.children()[*position].sums.live > 0)
}

type Path = Vec<(Arc<Slot>, usize)>;

/// The way from `slot` down to its first leaf, or to its first leaf with something live, as far as it is in memory.
fn first_leaf(mut slot: &Arc<Slot>, skips_dead: bool) -> (Path, Arc<Slot>) {
    let mut path = Vec::new();
    while let Some(Node::Inner(inner)) = slot.resident() {
        let position = first_wanted(inner, 0, skips_dead).unwrap_or(0);
        path.push((Arc::clone(slot), position));
        slot = &inner.children()[position].slot;
    }
    (path, Arc::clone(slot))
}
