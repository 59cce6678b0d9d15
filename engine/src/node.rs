//! Tree nodes, their page form, and the slots that hold them.
//!
//! A [`Slot`] is what a parent holds for a child: the node in memory, its place on disk, or both.
//!
//! Invariants:
//! - `Slot::place` unset (dirty): `Slot::node` is set. `Slot::place` set (clean): the node is what lies there, and may have to be read.
//! - Both are set once while a slot is shared; only `Slot::unshared` changes a node, that is while one owner holds the only way to it.
//!   So readers look without locks or counts, and what a reader or a checkpoint reaches never changes.
//! - A slot belongs to one parent of the unpublished tree; older trees may share it.
//! - `Slot::born` tells whether a slot is older than the last seal (`tree::Ledger`).
//!
//! To give back the memory of a clean node, the writer puts `Slot::on_disk` in its place in a copy of the parent; a node never goes
//! while somebody may look at it. It does not read files (a `Fault` says what to read) and knows no order between nodes: `tree` does.

mod inner;
mod leaf;
pub(crate) mod varint;

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub use inner::Inner;
pub(crate) use inner::{Child, INNER_CHILDREN_MAX, Separator, Separators};
pub use leaf::Leaf;
pub(crate) use leaf::{ENTRY_BYTES_MAX, EntryMeta, NEWEST, TOMBSTONE, VALUE};

use crate::{Error, Fault, Place};

/// One node of a tree as its parent holds it: resident, on disk, or both.
///
/// A dirty slot (no place yet) is always resident. A clean one (it has a place) may have to be read first.
pub struct Slot {
    node: OnceLock<Arc<Node>>,
    place: OnceLock<Place>,
    born: u32,
}

impl Slot {
    /// A slot whose node was not written yet.
    pub fn new_dirty(node: Node) -> Arc<Self> {
        Self::born_in(node, 0)
    }

    /// A dirty slot made in the `born`th checkpoint interval; 0 counts as older than every checkpoint.
    pub(crate) fn born_in(node: Node, born: u32) -> Arc<Self> {
        Arc::new(Self { node: OnceLock::from(Arc::new(node)), place: OnceLock::new(), born })
    }

    /// A slot whose node lies at `place` and was not read yet.
    pub fn on_disk(place: Place) -> Arc<Self> {
        Arc::new(Self { node: OnceLock::new(), place: OnceLock::from(place), born: 0 })
    }

    /// Whether the node has no place on disk.
    pub fn is_dirty(&self) -> bool {
        self.place.get().is_none()
    }

    /// Where the node lies on disk, once it was written.
    pub fn place(&self) -> Option<Place> {
        self.place.get().copied()
    }

    /// Says where the checkpoint wrote the node: once, for a dirty slot.
    pub fn set_place(&self, place: Place) {
        assert!(self.node.get().is_some(), "what was written is resident");
        assert!(self.place.set(place).is_ok(), "a node is written once");
    }

    /// The node, or what must be read to have it.
    pub fn node(self: &Arc<Self>) -> Result<Arc<Node>, Fault> {
        self.node.get().map(Arc::clone).ok_or_else(|| self.fault())
    }

    /// The node for one look, no count taken.
    #[inline]
    pub(crate) fn look(self: &Arc<Self>) -> Result<&Node, Fault> {
        self.resident().ok_or_else(|| self.fault())
    }

    /// Puts the node read from [`Slot::place`] into the slot; a node that is already there stays.
    pub fn install(&self, node: Node) {
        assert!(!self.is_dirty(), "only a node that lies on disk is installed");
        self.node.get_or_init(|| Arc::new(node));
    }

    /// The node, if it is in memory.
    #[inline]
    pub(crate) fn resident(&self) -> Option<&Node> {
        self.node.get().map(|node| &**node)
    }

    pub(crate) fn born(&self) -> u32 {
        self.born
    }

    /// The node of a slot that nobody else can reach, to be changed: it becomes dirty, its page goes to `dead_places`.
    #[inline]
    pub(crate) fn unshared<'a>(
        slot: &'a mut Arc<Self>,
        born: u32,
        dead_places: &mut Vec<Place>,
    ) -> Option<&'a mut Node> {
        let slot = Arc::get_mut(slot)?;
        let node = slot.node.get_mut()?;
        dead_places.extend(slot.place.take());
        slot.born = born;
        Some(Arc::make_mut(node))
    }

    #[cold]
    fn fault(self: &Arc<Self>) -> Fault {
        Fault::node(Arc::clone(self), self.place().expect("a dirty node is resident"))
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("place", &self.place()).field("resident", &self.resident().is_some()).finish()
    }
}

/// A node of the key tree or of the meta tree. Immutable once published.
#[derive(Clone, Debug)]
pub enum Node {
    /// Entries.
    Leaf(Leaf),
    /// Children.
    Inner(Inner),
}

/// What a parent knows of everything below a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sums {
    /// Keys whose newest version is live; in the meta tree: entries.
    pub live: u64,
    /// Encoded lengths of the records of those versions. **Units** bytes.
    pub live_bytes: u64,
    /// All versions.
    pub versions: u64,
    /// Smallest compact revision at which something below can be dropped; `i64::MAX` for never.
    pub droppable_at: i64,
}

impl Sums {
    pub(crate) const ZERO: Self = Self { live: 0, live_bytes: 0, versions: 0, droppable_at: i64::MAX };

    pub(crate) fn add(&mut self, other: &Self) {
        self.live += other.live;
        self.live_bytes += other.live_bytes;
        self.versions += other.versions;
        self.droppable_at = self.droppable_at.min(other.droppable_at);
    }
}

impl Node {
    /// A leaf without entries: the root of an empty tree.
    pub fn empty() -> Self {
        Self::Leaf(Leaf::default())
    }

    /// Appends the page form (`FORMAT.md`, "Tree pages"). Every child must have a place.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Leaf(leaf) => leaf.encode(out),
            Self::Inner(inner) => inner.encode(out),
        }
    }

    /// The node in `bytes`, every bound and the order of the keys checked.
    ///
    /// **Errors** `Corrupt` with an empty path and the offset in `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        match bytes.first() {
            Some(&leaf::PAGE_KIND) => Leaf::decode(bytes).map(Self::Leaf),
            Some(&inner::PAGE_KIND) => Inner::decode(bytes).map(Self::Inner),
            _ => Err(malformed(0, "kind of tree page")),
        }
    }

    /// The slots of the children, in key order; none for a leaf.
    pub fn children(&self) -> impl Iterator<Item = &Arc<Slot>> {
        let children = match self {
            Self::Leaf(_) => &[],
            Self::Inner(inner) => inner.children(),
        };
        children.iter().map(|child| &child.slot)
    }

    /// What a parent would hold for it.
    pub fn sums(&self) -> Sums {
        match self {
            Self::Leaf(leaf) => leaf.sums(),
            Self::Inner(inner) => inner.sums(),
        }
    }
}

/// The error for a page that is intact but does not hold a node.
fn malformed(at: usize, what: &'static str) -> Error {
    Error::Corrupt { path: PathBuf::new(), offset: u64::try_from(at).unwrap_or(u64::MAX), what }
}

/// Length of what `a` and `b` begin with in common.
pub(crate) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// First four bytes as a number that orders as they do; shorter ones are filled with zeros, so equal heads decide nothing.
#[inline]
fn head_of(bytes: &[u8]) -> u32 {
    if let Some(head) = bytes.first_chunk::<4>() {
        return u32::from_be_bytes(*head);
    }
    let mut head = [0; 4];
    head[..bytes.len()].copy_from_slice(bytes);
    u32::from_be_bytes(head)
}
