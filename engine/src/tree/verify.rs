//! Walks a whole tree, and panics if an invariant of `change`, `leaf` or `node` does not hold.

use std::sync::Arc;

use super::{
    change::{SEPARATOR_BYTES_MAX, is_overfull},
    leaf::{ENTRY_BYTES_MAX, Leaf},
    node::{Inner, Node, Slot},
    sums::Sums,
};
use crate::{Fault, Revision};

/// The shape of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Profile {
    /// Levels, leaves included.
    pub depth: usize,
    /// Number of leaves.
    pub leaves: usize,
    /// Number of inner nodes.
    pub inner: usize,
    /// Bytes of all entries, without the prefixes of leaves.
    pub entry_bytes: usize,
    /// Number of entries.
    pub entries: usize,
    /// The used part of the room for entries, in percent.
    pub fill_percent: usize,
}

/// Checks the tree below `root`.
pub(crate) fn verify(root: &Arc<Slot>) -> Result<Profile, Fault> {
    let mut check = Check { profile: Profile::default(), leaf_depth: None, last: None };
    if let Node::Inner(inner) = root.look()? {
        assert!(inner.len() > 1, "a root has two children");
    }
    check.node(root, 1, None, None)?;
    let Profile { leaves, entry_bytes, .. } = check.profile;
    check.profile.fill_percent = entry_bytes * 100 / (leaves * ENTRY_BYTES_MAX);
    check.profile.depth = check.leaf_depth.expect("there is a leaf");
    Ok(check.profile)
}

type Bound<'a> = (&'a [u8], Revision);

struct Check {
    profile: Profile,
    leaf_depth: Option<usize>,
    /// Key and revision of the last entry seen.
    last: Option<(Vec<u8>, Revision)>,
}

/// Whether `a` comes before `b`: key ascending, revision descending.
fn is_before(a: Bound<'_>, b: Bound<'_>) -> bool {
    a.0 < b.0 || (a.0 == b.0 && a.1 > b.1)
}

impl Check {
    fn node(
        &mut self,
        slot: &Arc<Slot>,
        depth: usize,
        low: Option<Bound<'_>>,
        high: Option<Bound<'_>>,
    ) -> Result<Sums, Fault> {
        let node = slot.look()?;
        match node {
            Node::Leaf(leaf) => {
                assert_eq!(*self.leaf_depth.get_or_insert(depth), depth, "leaves lie at one depth");
                assert!(depth == 1 || !leaf.is_empty(), "only a root is empty");
                self.leaf(leaf, low, high);
            }
            Node::Inner(inner) => self.inner(inner, depth, low, high, slot.is_dirty())?,
        }
        Ok(node.sums())
    }

    fn leaf(&mut self, leaf: &Leaf, low: Option<Bound<'_>>, high: Option<Bound<'_>>) {
        self.profile.leaves += 1;
        self.profile.entries += leaf.len();
        self.profile.entry_bytes += leaf.entry_bytes();
        assert!(leaf.len() < 2 || leaf.entry_bytes() <= ENTRY_BYTES_MAX, "a leaf is not overfull");
        for position in 0..leaf.len() {
            let (key, meta) = (leaf.key(position), leaf.meta(position));
            let entry = (&key[..], meta.revision);
            assert!(low.is_none_or(|low| !is_before(entry, low)), "an entry is not before its leaf's range");
            assert!(high.is_none_or(|high| is_before(entry, high)), "an entry is before the next leaf's range");
            let before = self.last.as_ref().filter(|(last, _)| *last == key).map(|(_, revision)| *revision);
            if let Some((last, revision)) = &self.last {
                assert!(is_before((last, *revision), entry), "entries are in order");
            }
            assert_eq!(meta.is_newest(), before.is_none(), "NEWEST marks the first of a run");
            if position == 0 {
                assert_eq!(leaf.superseded_at(), before.map_or(i64::MAX, |revision| revision.main));
            }
            assert_eq!(leaf.lower_bound(&key, meta.revision), position, "an entry is found where it is");
            self.last = Some((key.to_vec(), meta.revision));
        }
        self.round_trip(&Node::Leaf(leaf.clone()));
    }

    fn inner(
        &mut self,
        inner: &Inner,
        depth: usize,
        low: Option<Bound<'_>>,
        high: Option<Bound<'_>>,
        is_dirty: bool,
    ) -> Result<(), Fault> {
        self.profile.inner += 1;
        assert!(!is_overfull(inner), "an inner node is not overfull, {SEPARATOR_BYTES_MAX}");
        let separators = inner.separators();
        for (position, child) in inner.children().iter().enumerate() {
            assert!(is_dirty || !child.slot.is_dirty(), "below a clean node all is clean");
            let at = |position: usize| (separators.key(position), separators.revision(position));
            let low = if position == 0 { low } else { Some(at(position - 1)) };
            let high = if position == separators.len() { high } else { Some(at(position)) };
            if let (Some(low), Some(high)) = (low, high) {
                assert!(is_before(low, high), "separators ascend");
            }
            let sums = self.node(&child.slot, depth + 1, low, high)?;
            assert_eq!(sums, child.sums, "sums are exact");
        }
        if inner.children().iter().all(|child| !child.slot.is_dirty()) {
            self.round_trip(&Node::Inner(Inner::clone(inner)));
        }
        Ok(())
    }

    /// Checks that a node comes back from its page form unchanged.
    fn round_trip(&self, node: &Node) {
        let mut page = Vec::new();
        node.encode(&mut page);
        let decoded = Node::decode(&page, &Arc::default()).expect("what was encoded decodes");
        let mut again = Vec::new();
        decoded.encode(&mut again);
        assert!(page == again, "a page survives decoding");
        assert_eq!(decoded.sums(), node.sums());
    }
}
