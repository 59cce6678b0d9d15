//! Tree nodes and the slots that hold them.

use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;

use crate::{Error, Fault, Place};

/// One node of a tree as its parent holds it: resident, on disk, or both.
///
/// A dirty slot (no place yet) is always resident. A clean one (it has a place) may have to be read first.
#[derive(Debug)]
pub struct Slot {
    place: OnceLock<Place>,
    node: ArcSwapOption<Node>,
}

impl Slot {
    /// A slot whose node was not written yet.
    pub fn new_dirty(node: Node) -> Arc<Self> {
        Arc::new(Self { place: OnceLock::new(), node: ArcSwapOption::from_pointee(node) })
    }

    /// A slot whose node lies at `place` and was not read yet.
    pub fn on_disk(place: Place) -> Arc<Self> {
        Arc::new(Self { place: OnceLock::from(place), node: ArcSwapOption::empty() })
    }

    /// Whether the node has no place on disk.
    pub fn is_dirty(&self) -> bool {
        self.place.get().is_none()
    }

    /// Where the node lies on disk, once it was written.
    pub fn place(&self) -> Option<Place> {
        self.place.get().copied()
    }

    /// Says where the checkpoint wrote the node. Called once for a dirty slot.
    pub fn set_place(&self, place: Place) {
        assert!(self.place.set(place).is_ok(), "a node is written once");
    }

    /// The node, or what must be read to have it.
    pub fn node(self: &Arc<Self>) -> Result<Arc<Node>, Fault> {
        self.node.load_full().ok_or_else(|| Fault::node(Arc::clone(self), self.place().expect("absent means clean")))
    }

    /// Puts the node read from [`Slot::place`] into the slot; a node that is already there stays.
    pub fn install(&self, node: Node) {
        self.node.compare_and_swap(&None::<Arc<Node>>, Some(Arc::new(node)));
    }
}

/// A node of the key tree or of the meta tree. Immutable once published.
#[derive(Debug)]
pub enum Node {
    /// Entries.
    Leaf(Leaf),
    /// Children.
    Inner(Inner),
}

/// Entries of a tree, packed.
#[derive(Debug)]
pub struct Leaf {}

/// Children of a node, with separators and sums.
#[derive(Debug)]
pub struct Inner {
    children: Vec<Arc<Slot>>,
}

impl Node {
    /// Appends the page form (FORMAT.md, "Tree pages"). Every child must have a place.
    pub fn encode(&self, _out: &mut Vec<u8>) {
        unimplemented!()
    }

    /// The node in `bytes`, every bound checked.
    ///
    /// **Errors** a malformed page.
    pub fn decode(_bytes: &[u8]) -> Result<Self, Error> {
        unimplemented!()
    }

    /// The slots of the children, in key order; none for a leaf.
    pub fn children(&self) -> impl Iterator<Item = &Arc<Slot>> {
        match self {
            Self::Leaf(_) => [].iter(),
            Self::Inner(inner) => inner.children.iter(),
        }
    }
}
