//! Reads of a tree: one entry, the rank of a place in the order, and a walk from leaf to leaf.
//!
//! Every function takes a root slot and works on whatever tree it leads to, published or not. A `Fault` leaves a [`Walk`] where it
//! was (`next_leaf`) or to be sought again (`seek`).
//!
//! It knows no tombstone rules and no compaction: `cursor` and `mvcc` do.

use std::sync::Arc;

use bytes::Bytes;

use crate::node::{EntryMeta, Leaf, Node, Slot};
use crate::{Fault, Revision};

/// Comes after every version of a key.
pub(crate) const AFTER: Revision = Revision::new(-1, 0);

/// The newest version of `key` that is not newer than `revision`.
pub(crate) fn find(root: &Arc<Slot>, key: &[u8], revision: Revision) -> Result<Option<EntryMeta>, Fault> {
    let mut resident = root.load()?;
    let mut continues = false;
    loop {
        let next = match &*resident {
            Node::Inner(inner) => {
                let position = inner.child_of(key, revision);
                if position < inner.separators().len() {
                    continues = inner.separators().key(position) == key;
                }
                inner.children()[position].slot.load()?
            }
            Node::Leaf(leaf) => {
                let position = leaf.lower_bound(key, revision);
                if position < leaf.len() {
                    return Ok(leaf.is_of(position, key).then(|| leaf.meta(position)));
                }
                break;
            }
        };
        resident = next;
    }
    if !continues {
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

/// The value of `key` in the meta tree.
pub(crate) fn value_of(root: &Arc<Slot>, key: &[u8]) -> Result<Option<Bytes>, Fault> {
    let mut resident = root.load()?;
    loop {
        let next = match &*resident {
            Node::Inner(inner) => inner.children()[inner.child_of(key, Revision::MAX)].slot.load()?,
            Node::Leaf(leaf) => {
                let position = leaf.lower_bound(key, Revision::MAX);
                let is_there = position < leaf.len() && leaf.is_of(position, key);
                return Ok(is_there.then(|| Bytes::copy_from_slice(leaf.value(position))));
            }
        };
        resident = next;
    }
}

/// Live entries before (`key`, `Revision::MAX`) and their bytes.
pub(crate) fn rank(root: &Arc<Slot>, key: &[u8], with_bytes: bool) -> Result<(u64, u64), Fault> {
    let mut resident = root.load()?;
    let mut sums = (0, 0);
    loop {
        let next = match &*resident {
            Node::Inner(inner) => {
                let position = inner.child_of(key, Revision::MAX);
                for child in &inner.children()[..position] {
                    sums.0 += child.sums.live;
                    sums.1 += child.sums.live_bytes;
                }
                inner.children()[position].slot.load()?
            }
            Node::Leaf(leaf) => {
                let position = leaf.lower_bound(key, Revision::MAX);
                if with_bytes {
                    let (live, bytes) = leaf.live_before(position);
                    return Ok((sums.0 + live, sums.1 + bytes));
                }
                return Ok((sums.0 + leaf.live_count_before(position), 0));
            }
        };
        resident = next;
    }
}

/// All live entries and their bytes.
pub(crate) fn total(root: &Arc<Slot>) -> Result<(u64, u64), Fault> {
    let sums = root.load()?.sums();
    Ok((sums.live, sums.live_bytes))
}

/// A place in a tree: a leaf, a position in it, and the way there.
#[derive(Debug, Default)]
pub(crate) struct Walk {
    path: Vec<(Arc<Node>, usize)>,
    leaf: Option<Arc<Node>>,
    /// Position in the leaf; its length where the first entry sought is in the next one.
    pub(crate) position: usize,
}

impl Walk {
    /// Goes to the first entry that is not before (`key`, `revision`), or to the end of the leaf before it.
    pub(crate) fn seek(&mut self, root: &Arc<Slot>, key: &[u8], revision: Revision) -> Result<(), Fault> {
        self.path.clear();
        self.leaf = None;
        let mut node = root.node()?;
        while let Node::Inner(inner) = &*node {
            let position = inner.child_of(key, revision);
            let child = inner.children()[position].slot.node()?;
            self.path.push((node, position));
            node = child;
        }
        let Node::Leaf(leaf) = &*node else { unreachable!("the way down ends at a leaf") };
        self.position = leaf.lower_bound(key, revision);
        self.leaf = Some(node);
        Ok(())
    }

    pub(crate) fn leaf(&self) -> &Leaf {
        match self.leaf.as_deref() {
            Some(Node::Leaf(leaf)) => leaf,
            _ => unreachable!("a walk is sought before it is read"),
        }
    }

    /// Goes to the first entry of the next leaf, or of the next one below which something is live; false if there is none, or
    /// none before `end`.
    pub(crate) fn next_leaf(&mut self, skips_dead: bool, end: Option<&[u8]>) -> Result<bool, Fault> {
        let mut depth = self.path.len();
        while let Some(level) = depth.checked_sub(1) {
            let (node, at) = &self.path[level];
            let Node::Inner(inner) = &**node else { unreachable!("the path is of inner nodes") };
            let wanted = |position: &usize| !skips_dead || inner.children()[*position].sums.live > 0;
            let Some(position) = (at + 1..inner.len()).find(wanted) else {
                depth = level;
                continue;
            };
            if end.is_some_and(|end| inner.separators().key(position - 1) >= end) {
                return Ok(false);
            }
            let (path, leaf) = first_leaf(inner.children()[position].slot.node()?, skips_dead)?;
            self.path.truncate(depth);
            self.path[level].1 = position;
            self.path.extend(path);
            self.leaf = Some(leaf);
            self.position = 0;
            return Ok(true);
        }
        Ok(false)
    }
}

/// The way from `node` down to its first leaf, or its first with something live.
fn first_leaf(mut node: Arc<Node>, skips_dead: bool) -> Result<(Vec<(Arc<Node>, usize)>, Arc<Node>), Fault> {
    let mut path = Vec::new();
    while let Node::Inner(inner) = &*node {
        let wanted = |position: &usize| !skips_dead || inner.children()[*position].sums.live > 0;
        let position = (0..inner.len()).find(wanted).unwrap_or(0);
        let child = inner.children()[position].slot.node()?;
        path.push((node, position));
        node = child;
    }
    Ok((path, node))
}
