//! Walks over the trees of a damaged store, around pages that cannot be read.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;

use super::{
    bounds::Span,
    loss::{Loss, sound},
};
use crate::{
    Error, Fault, Revision,
    disk::Disk,
    pages::{Superblock, reader::load_for},
    tree::{EntryMeta, Leaf, Node, Slot, Sums},
};

/// Memory for tree pages that are held for look-ups. **Units** bytes.
const NODE_BYTES_MAX: u64 = 64 << 20;

/// A page of the key tree that cannot be read.
#[derive(Clone, Debug)]
pub(super) struct LostPage {
    /// The entries below it.
    pub(super) span: Span,
    /// What its parent knows of it; `None` for the root.
    pub(super) sums: Option<Sums>,
    /// The last entry of the leaf before it, if that can be read.
    before: Option<(Bytes, Revision)>,
}

impl LostPage {
    /// The page, for whoever is told.
    pub(super) fn loss(&self) -> Loss {
        let from = self.span.low.as_ref().map_or_else(Bytes::new, |low| low.key.clone().into());
        let to = self.span.high.as_ref().map(|high| high.key.clone().into());
        Loss::Page { from, to, versions: self.sums.map(|sums| sums.versions) }
    }

    /// Whether versions of `key` may go on behind this page.
    pub(super) fn cuts(&self, key: &[u8]) -> bool {
        self.span.high.as_ref().is_some_and(|high| high.key == key)
    }

    /// The version of `key` directly before this page, if there is one and it can be read.
    pub(super) fn newer(&self, key: &[u8]) -> Option<Revision> {
        self.before.as_ref().filter(|(before, _)| before == key).map(|(_, revision)| *revision)
    }
}

/// The trees of a state.
pub(super) struct Trees {
    dir: PathBuf,
    roots: Option<[crate::Place; 2]>,
    /// The key tree for look-ups, with the pages that were read. It is made anew when they take too much memory.
    held: Option<Arc<Slot>>,
}

/// A page to be visited: its slot, the entries below it, and what its parent knows of it.
type Visit = (Arc<Slot>, Span, Option<Sums>);

impl Trees {
    pub(super) fn new(dir: &Path, state: &Superblock) -> Self {
        let roots = state.pages.map(|pages| [pages.key_root, pages.meta_root]);
        Self { dir: dir.to_path_buf(), roots, held: None }
    }

    /// Calls `leaf` with each leaf of a tree, and `lost` with each page that cannot be read, in order.
    fn walk(
        &self,
        disk: &mut dyn Disk,
        tree: usize,
        leaf: &mut dyn FnMut(&Leaf),
        lost: &mut dyn FnMut(Span, Option<Sums>),
    ) -> Result<(), Error> {
        let Some(roots) = self.roots else { return Ok(()) };
        let mut stack: Vec<Visit> = vec![(Slot::on_disk(roots[tree], &Arc::default()), Span::default(), None)];
        while let Some((slot, span, sums)) = stack.pop() {
            let Some(node) = sound(load_for(disk, &self.dir, || slot.node()))? else {
                lost(span, sums);
                continue;
            };
            match &*node {
                Node::Leaf(found) => leaf(found),
                Node::Inner(inner) => {
                    let separators = inner.separators();
                    for position in (0..inner.len()).rev() {
                        let low = position.checked_sub(1).map(|before| separators.get(before));
                        let high = (position < separators.len()).then(|| separators.get(position));
                        let below =
                            Span { low: low.or_else(|| span.low.clone()), high: high.or_else(|| span.high.clone()) };
                        let child = &inner.children()[position];
                        // A slot of its own, so that a node is released with the last of its children.
                        stack.push((child.slot.unread(), below, Some(child.sums)));
                    }
                }
            }
        }
        Ok(())
    }

    /// The pages of the key tree that cannot be read, and where entries of the meta tree are missing.
    pub(super) fn lost_pages(&self, disk: &mut dyn Disk) -> Result<(Vec<LostPage>, Vec<Span>), Error> {
        let (mut pages, mut rows) = (Vec::new(), Vec::new());
        let before = RefCell::new(None);
        let mut leaf = |leaf: &Leaf| {
            let last = leaf.len().checked_sub(1).map(|last| (leaf.key(last), leaf.meta(last).revision));
            before.replace(last);
        };
        let mut lost = |span, sums| pages.push(LostPage { span, sums, before: before.take() });
        self.walk(disk, 0, &mut leaf, &mut lost)?;
        self.walk(disk, 1, &mut |_| {}, &mut |span, _| rows.push(span))?;
        Ok((pages, rows))
    }

    /// Calls `each` with every version that the key tree names, as far as it can be read.
    pub(super) fn versions(&self, disk: &mut dyn Disk, each: &mut dyn FnMut(Bytes, &EntryMeta)) -> Result<(), Error> {
        let mut leaf = |leaf: &Leaf| (0..leaf.len()).for_each(|at| each(leaf.key(at), &leaf.meta(at)));
        self.walk(disk, 0, &mut leaf, &mut |_, _| {})
    }

    /// Calls `each` with every entry of the meta tree that can be read.
    pub(super) fn rows(&self, disk: &mut dyn Disk, each: &mut dyn FnMut(Bytes, Bytes)) -> Result<(), Error> {
        let mut leaf = |leaf: &Leaf| {
            (0..leaf.len()).for_each(|at| each(leaf.key(at), Bytes::copy_from_slice(leaf.value(at))));
        };
        self.walk(disk, 1, &mut leaf, &mut |_, _| {})
    }

    /// Whether the key tree names the version of `key` at `revision`, which no lost page can hold.
    pub(super) fn has(&mut self, disk: &mut dyn Disk, key: &[u8], revision: Revision) -> Result<bool, Error> {
        let Some(roots) = self.roots else { return Ok(false) };
        let is_full = self.held.as_ref().is_none_or(|root| root.residency().bytes() > NODE_BYTES_MAX);
        if is_full {
            self.held = Some(Slot::on_disk(roots[0], &Arc::default()));
        }
        let root = self.held.as_ref().expect("made above");
        load_for(disk, &self.dir, || find(root, key, revision))
    }
}

fn find(root: &Arc<Slot>, key: &[u8], revision: Revision) -> Result<bool, Fault> {
    let mut slot = root;
    loop {
        match slot.look()? {
            Node::Leaf(leaf) => {
                let position = leaf.lower_bound(key, revision);
                let is_there = position < leaf.len() && leaf.is_of(position, key);
                return Ok(is_there && leaf.meta(position).revision == revision);
            }
            Node::Inner(inner) => slot = &inner.children()[inner.child_of(key, revision)].slot,
        }
    }
}
