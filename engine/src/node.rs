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
//! - `Residency::bytes` is the sum of `Slot::charged` over all slots that share it, those that only old views reach included.
//!
//! To give back the memory of a clean node, the writer puts `Slot::evicted` in its place in a copy of the parent; a node never goes
//! while somebody may look at it. It does not read files (a `Fault` says what to read) and knows no order between nodes: `tree` does.

mod inner;
mod leaf;
pub(crate) mod varint;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub use inner::Inner;
pub(crate) use inner::{Child, INNER_CHILDREN_MAX, Separator, Separators};
pub use leaf::Leaf;
pub(crate) use leaf::{ENTRY_BYTES_MAX, EntryMeta, NEWEST, TOMBSTONE, VALUE};

use crate::{Error, Fault, Place};

/// Memory that the nodes of a store's trees take.
#[derive(Debug, Default)]
pub struct Residency {
    bytes: AtomicU64,
}

impl Residency {
    /// **Units** bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// One node of a tree as its parent holds it: resident, on disk, or both.
///
/// A dirty slot (no place yet) is always resident. A clean one (it has a place) may have to be read first.
pub struct Slot {
    node: OnceLock<Arc<Node>>,
    place: OnceLock<Place>,
    born: u32,
    /// What `residency` counts for it. **Units** bytes.
    charged: AtomicU32,
    /// Whether a search came by since the clock's hand did; a scan leaves no trace.
    is_used: AtomicBool,
    residency: Arc<Residency>,
}

impl Slot {
    /// A slot whose node was not written yet, the root of trees of its own.
    pub fn new_dirty(node: Node) -> Arc<Self> {
        Self::born_in(node, 0, &Arc::default())
    }

    /// A dirty slot made in the `born`th checkpoint interval; 0 counts as older than every checkpoint.
    pub(crate) fn born_in(node: Node, born: u32, residency: &Arc<Residency>) -> Arc<Self> {
        let slot = Self::empty(born, OnceLock::new(), residency);
        slot.hold(&slot.node, node);
        Arc::new(slot)
    }

    /// A slot whose node lies at `place` and was not read yet.
    pub fn on_disk(place: Place, residency: &Arc<Residency>) -> Arc<Self> {
        Arc::new(Self::empty(0, place.into(), residency))
    }

    fn empty(born: u32, place: OnceLock<Place>, residency: &Arc<Residency>) -> Self {
        let (node, charged, is_used) = (OnceLock::new(), AtomicU32::new(0), AtomicBool::new(false));
        Self { node, place, born, charged, is_used, residency: Arc::clone(residency) }
    }

    /// What takes the place of this clean slot when its memory is given back.
    pub fn evicted(&self) -> Arc<Self> {
        Self::on_disk(self.place().expect("only a clean node can be read again"), &self.residency)
    }

    /// This clean slot with another form of its node in memory, whose page is the same: other children are resident.
    pub(crate) fn reshaped(&self, node: Node) -> Arc<Self> {
        let place = self.place().expect("a dirty node has no page yet");
        let slot = Self::empty(self.born, place.into(), &self.residency);
        slot.hold(&slot.node, node);
        Arc::new(slot)
    }

    /// Puts a node into the empty cell `to` of this slot, and counts it.
    fn hold(&self, to: &OnceLock<Arc<Node>>, node: Node) {
        to.get_or_init(|| {
            let bytes = u32::try_from(node.bytes()).expect("a node is smaller than 4 GiB");
            self.charged.store(bytes, Ordering::Relaxed);
            self.residency.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
            Arc::new(node)
        });
    }

    /// Counts a node anew that was changed in place.
    pub(crate) fn recharge(&self) {
        let bytes = self.resident().map_or(0, Node::bytes);
        let bytes = u32::try_from(bytes).expect("a node is smaller than 4 GiB");
        let before = self.charged.swap(bytes, Ordering::Relaxed);
        if bytes != before {
            self.residency.bytes.fetch_add(u64::from(bytes), Ordering::Relaxed);
            self.residency.bytes.fetch_sub(u64::from(before), Ordering::Relaxed);
        }
    }

    /// Memory of its node. **Units** bytes.
    pub(crate) fn charged(&self) -> u64 {
        u64::from(self.charged.load(Ordering::Relaxed))
    }

    /// The account it is counted in.
    pub(crate) fn residency(&self) -> &Arc<Residency> {
        &self.residency
    }

    /// A search came by.
    #[inline]
    pub(crate) fn mark_used(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a search came by since this was asked last.
    pub(crate) fn take_used(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
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
        self.hold(&self.node, node);
    }

    /// The node, if it is in memory.
    #[inline]
    pub(crate) fn resident(&self) -> Option<&Node> {
        self.node.get().map(|node| &**node)
    }

    pub(crate) fn born(&self) -> u32 {
        self.born
    }

    /// The node of a slot that nobody else can reach, to be changed, and the page it had: the slot becomes dirty. What is changed
    /// is counted by [`Slot::recharge`].
    #[inline]
    pub(crate) fn unshared(slot: &mut Arc<Self>, born: u32) -> Option<(&mut Node, Option<Place>)> {
        let slot = Arc::get_mut(slot)?;
        let node = slot.node.get_mut()?;
        slot.born = born;
        *slot.is_used.get_mut() = true;
        Some((Arc::make_mut(node), slot.place.take()))
    }

    #[cold]
    fn fault(self: &Arc<Self>) -> Fault {
        Fault::node(Arc::clone(self), self.place().expect("a dirty node is resident"))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.residency.bytes.fetch_sub(u64::from(*self.charged.get_mut()), Ordering::Relaxed);
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
    /// What the records of those versions take up in the answer to a Range, each behind its tag and length; in the meta tree: keys and
    /// values. **Units** bytes.
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

    /// The node in `bytes`, every bound and the order of the keys checked; its children will be counted in `residency`.
    ///
    /// **Errors** `Corrupt` with an empty path and the offset in `bytes`.
    pub fn decode(bytes: &[u8], residency: &Arc<Residency>) -> Result<Self, Error> {
        match bytes.first() {
            Some(&leaf::PAGE_KIND) => Leaf::decode(bytes).map(Self::Leaf),
            Some(&inner::PAGE_KIND) => Inner::decode(bytes, residency).map(Self::Inner),
            _ => Err(malformed(0, "kind of tree page")),
        }
    }

    /// Memory it takes, with the slots of its children but not what those hold. **Units** bytes.
    pub fn bytes(&self) -> usize {
        // Two reference counts.
        const OVERHEAD: usize = 16;
        OVERHEAD
            + size_of::<Self>()
            + match self {
                Self::Leaf(leaf) => leaf.heap_bytes(),
                Self::Inner(inner) => inner.heap_bytes(),
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
