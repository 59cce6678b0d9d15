//! Tree nodes, their page form, and the slots that hold them. All three are in this file because each holds the next: a
//! slot holds a node, an inner node holds children, a child is a slot.
//!
//! A [`Slot`] is a parent's reference to a child: the node in memory, its place on disk, or both.
//!
//! Invariants:
//! - If `Slot::place` is not set (dirty), `Slot::node` is set. If `Slot::place` is set (clean), the node lies there,
//!   and may have to be read.
//! - Both are set once while a slot is shared. Only `Slot::unshared` changes a node, and only while one owner holds the
//!   only way to it. So readers look at nodes without locks or counts. What a reader or a checkpoint reaches never
//!   changes.
//! - A slot belongs to one parent of the unpublished tree; older trees may share it.
//! - `Slot::born` shows whether a slot is older than the last seal (`Ledger`).
//! - `Residency::bytes` is the sum of `Slot::charged` over all slots that share it, including slots that only old views
//!   reach.
//! - An inner node has one separator less than children. Everything below child `i` is before separator `i`. Everything
//!   below child `i + 1` is not. `Child::sums` are exact for the subtree.
//!
//! To give back the memory of a clean node, the writer puts `Slot::unread` in its place in a copy of the parent. A node
//! is never freed while somebody may look at it. This file reads no file (a `Fault` says what to read), and knows no
//! limits of a node: `change` splits and joins.

use std::{
    cmp::Ordering as KeyOrdering,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::{
    leaf::{LEAF_PAGE_KIND, Leaf},
    separators::{Separator, Separators},
    sums::Sums,
};
use crate::{
    Error, Fault, Place, Revision,
    fault::Resolve,
    page::{self, Kind},
    varint,
};

/// First byte of an inner node's page.
const INNER_PAGE_KIND: u8 = 2;

/// Children of an inner node; one more splits it.
pub(crate) const INNER_CHILDREN_MAX: usize = 32;

/// Children that a page may claim. A page with more is not ours.
const CHILDREN_DECODED_MAX: u64 = 1024;
/// Bytes to which the separators of a page may expand, unless the page itself is about as large.
const KEYS_DECODED_MAX: usize = 1 << 20;
/// Versions and live keys that a page may claim for a child, so that sums over any tree stay far from overflow.
const COUNT_MAX: u64 = 1 << 48;
/// Bytes that a page may claim for a child.
const BYTES_MAX: u64 = 1 << 53;

/// Memory that the nodes of a store's trees take.
#[derive(Debug, Default)]
pub struct Residency {
    bytes: AtomicU64,
}

impl Residency {
    /// Bytes of all nodes in memory. **Units** bytes.
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
    /// The bytes that `residency` counts for it. **Units** bytes.
    charged: AtomicU32,
    /// Whether a search has passed since the hand of the clock did. A scan leaves no mark.
    is_used: AtomicBool,
    residency: Arc<Residency>,
}

impl Slot {
    /// A slot with a node that was not written yet, and with a residency account of its own: the root of an empty tree.
    pub fn new_dirty(node: Node) -> Arc<Self> {
        Self::born_in(node, 0, &Arc::default())
    }

    /// A dirty slot made in the `born`th checkpoint interval; 0 counts as older than every checkpoint.
    pub(crate) fn born_in(node: Node, born: u32, residency: &Arc<Residency>) -> Arc<Self> {
        let slot = Self::empty(born, OnceLock::new(), residency);
        slot.hold(&slot.node, node);
        Arc::new(slot)
    }

    /// A slot with a node that lies at `place` and was not read yet.
    pub fn on_disk(place: Place, residency: &Arc<Residency>) -> Arc<Self> {
        Arc::new(Self::empty(0, place.into(), residency))
    }

    fn empty(born: u32, place: OnceLock<Place>, residency: &Arc<Residency>) -> Self {
        let (node, charged, is_used) = (OnceLock::new(), AtomicU32::new(0), AtomicBool::new(false));
        Self { node, place, born, charged, is_used, residency: Arc::clone(residency) }
    }

    /// Another slot for the page of this clean one. The page was not read in it yet.
    pub fn unread(&self) -> Arc<Self> {
        Self::on_disk(self.place().expect("only a clean node can be read again"), &self.residency)
    }

    /// This clean slot with another form of its node in memory. The page is the same, but other children are resident.
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

    /// Counts anew a node that was changed in place.
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

    /// The account that counts it.
    pub(crate) fn residency(&self) -> &Arc<Residency> {
        &self.residency
    }

    /// Notes that a search has passed.
    #[inline]
    pub(crate) fn mark_used(&self) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
    }

    /// Whether a search has passed since the last call.
    pub(crate) fn take_used(&self) -> bool {
        self.is_used.swap(false, Ordering::Relaxed)
    }

    /// Whether the node has no place on disk.
    pub fn is_dirty(&self) -> bool {
        self.place.get().is_none()
    }

    /// The place of the node on disk, once it was written.
    pub fn place(&self) -> Option<Place> {
        self.place.get().copied()
    }

    /// Sets the place where the checkpoint wrote the node. This happens once, for a dirty slot.
    pub fn set_place(&self, place: Place) {
        assert!(self.node.get().is_some(), "what was written is resident");
        assert!(self.place.set(place).is_ok(), "a node is written once");
    }

    /// The node, or the fault that says what must be read.
    pub fn node(self: &Arc<Self>) -> Result<Arc<Node>, Fault> {
        self.node.get().map(Arc::clone).ok_or_else(|| self.fault())
    }

    /// The node for one look; no reference is counted.
    #[inline]
    pub(crate) fn look(self: &Arc<Self>) -> Result<&Node, Fault> {
        self.resident().ok_or_else(|| self.fault())
    }

    /// Puts the node that was read from [`Slot::place`] into the slot. A node that is already there stays.
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

    /// The node of a slot that nobody else can reach, to be changed, and the page that it had. The slot becomes dirty.
    /// [`Slot::recharge`] counts the change.
    #[inline]
    pub(crate) fn unshared(slot: &mut Arc<Self>, born: u32) -> Option<(&mut Node, Option<Place>)> {
        let slot = Arc::get_mut(slot)?;
        let node = slot.node.get_mut()?;
        slot.born = born;
        *slot.is_used.get_mut() = true;
        Some((Arc::make_mut(node), slot.place.take()))
    }

    /// The fault that says what must be read.
    #[cold]
    pub(super) fn fault(self: &Arc<Self>) -> Fault {
        let place = self.place().expect("a dirty node is resident");
        Fault::new(place, Arc::<Self>::clone(self))
    }

    /// The fault of a walk that wants the page of this slot in `aside`, if the page is a leaf. `aside` is a slot of the
    /// walk's own with the same place.
    pub(crate) fn fault_aside(self: &Arc<Self>, aside: &Arc<Self>) -> Fault {
        let place = self.place().expect("a dirty node is resident");
        assert_eq!(aside.place(), Some(place), "it stands for the same page");
        Fault::new(place, Arc::new(Aside { slot: Arc::clone(self), aside: Arc::clone(aside) }))
    }
}

impl Resolve for Slot {
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error> {
        self.install(Node::decode(page::open(Kind::Node, place, envelope)?, &self.residency)?);
        Ok(())
    }
}

/// A slot with a missing page, and the slot in which a walk wants the page if it is a leaf.
struct Aside {
    slot: Arc<Slot>,
    aside: Arc<Slot>,
}

impl Resolve for Aside {
    fn resolve(&self, place: Place, envelope: &[u8]) -> Result<(), Error> {
        let node = Node::decode(page::open(Kind::Node, place, envelope)?, &self.slot.residency)?;
        match node {
            Node::Leaf(_) => self.aside.install(node),
            Node::Inner(_) => self.slot.install(node),
        }
        Ok(())
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

/// A node of the key tree or of the meta tree. It is immutable once published.
#[derive(Clone, Debug)]
pub enum Node {
    /// Entries.
    Leaf(Leaf),
    /// Children.
    Inner(Inner),
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

    /// The node in `bytes`. Every bound and the order of the keys are checked. `residency` will count its children.
    ///
    /// **Errors** `Corrupt` with an empty path and the offset in `bytes`.
    pub fn decode(bytes: &[u8], residency: &Arc<Residency>) -> Result<Self, Error> {
        match bytes.first() {
            Some(&LEAF_PAGE_KIND) => Leaf::decode(bytes).map(Self::Leaf),
            Some(&INNER_PAGE_KIND) => Inner::decode(bytes, residency).map(Self::Inner),
            _ => Err(Error::malformed(0, "kind of tree page")),
        }
    }

    /// Memory that it takes, with the slots of its children, but without what those hold. **Units** bytes.
    pub fn bytes(&self) -> usize {
        // These are two reference counts.
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

    /// The sums that a parent holds for it.
    pub fn sums(&self) -> Sums {
        match self {
            Self::Leaf(leaf) => leaf.sums(),
            Self::Inner(inner) => inner.sums(),
        }
    }
}

/// A child and the sums of what is below it.
#[derive(Clone, Debug)]
pub(crate) struct Child {
    pub(crate) slot: Arc<Slot>,
    pub(crate) sums: Sums,
}

/// Children of a node, with separators and sums.
#[derive(Debug)]
pub struct Inner {
    separators: Separators,
    children: Vec<Child>,
}

impl Clone for Inner {
    fn clone(&self) -> Self {
        // The reference counts are scattered in memory. Reading all of them first lets the cache misses overlap;
        // increments alone would not.
        let shared: usize = self.children.iter().map(|child| Arc::strong_count(&child.slot)).sum();
        assert!(shared >= self.children.len(), "a child is held by its parent");
        let mut children = Vec::with_capacity(self.children.len() + 1);
        children.extend_from_slice(&self.children);
        Self { separators: self.separators.clone(), children }
    }
}

impl Inner {
    /// A node over these children, in order.
    pub(crate) fn new(separators: Separators, children: Vec<Child>) -> Self {
        assert_eq!(separators.len() + 1, children.len(), "separators stand between children");
        Self { separators, children }
    }

    pub(crate) fn len(&self) -> usize {
        self.children.len()
    }

    pub(crate) fn separators(&self) -> &Separators {
        &self.separators
    }

    pub(crate) fn children(&self) -> &[Child] {
        &self.children
    }

    pub(crate) fn child_mut(&mut self, position: usize) -> &mut Child {
        &mut self.children[position]
    }

    /// Position of the child to which (`key`, `revision`) belongs.
    #[inline]
    pub(crate) fn child_of(&self, key: &[u8], revision: Revision) -> usize {
        self.separators.child_of(key, revision)
    }

    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::ZERO;
        for child in &self.children {
            sums.add(&child.sums);
        }
        sums
    }

    /// Inserts a child after the one at `position`.
    pub(crate) fn insert_behind(&mut self, position: usize, separator: &Separator, child: Child) {
        self.separators.insert(position, separator);
        self.children.insert(position + 1, child);
    }

    /// Removes a child. The ranges of its neighbours close up.
    pub(crate) fn remove(&mut self, position: usize) -> Child {
        if self.separators.len() > 0 {
            self.separators.remove(position.saturating_sub(1));
        }
        self.children.remove(position)
    }

    /// Cuts the node in two. Returns the separator between them, and the part from child `position` on.
    pub(crate) fn split_off(&mut self, position: usize) -> (Separator, Self) {
        assert!(0 < position && position < self.len(), "both parts keep children");
        let between = self.separators.get(position - 1);
        let right = Self::new(
            Separators::pack(self.separators.iter().skip(position)),
            self.children.drain(position..).collect(),
        );
        self.separators = Separators::pack(self.separators.iter().take(position - 1));
        (between, right)
    }

    /// This node's children, followed by those of `right`. `between` separates the two.
    pub(crate) fn joined(&self, between: &Separator, right: &Self) -> Self {
        let between = std::iter::once((&between.key[..], between.revision));
        let separators = Separators::pack(self.separators.iter().chain(between).chain(right.separators.iter()));
        Self::new(separators, self.children.iter().chain(&right.children).cloned().collect())
    }

    /// Memory of its vectors and of the children's slots. **Units** bytes.
    fn heap_bytes(&self) -> usize {
        // A slot comes after its two reference counts.
        const SLOT_BYTES: usize = 16 + size_of::<Slot>();
        self.separators.heap_bytes() + self.children.capacity() * size_of::<Child>() + self.children.len() * SLOT_BYTES
    }

    fn encode(&self, out: &mut Vec<u8>) {
        out.push(INNER_PAGE_KIND);
        varint::write(out, u64::try_from(self.len()).expect("a node is small"));
        let prefix = self.separators.prefix();
        varint::write(out, u64::try_from(prefix.len()).expect("a key is smaller than 4 GiB"));
        out.extend_from_slice(prefix);
        for (position, child) in self.children.iter().enumerate() {
            if let Some(before) = position.checked_sub(1) {
                let suffix = &self.separators.key(before)[prefix.len()..];
                varint::write(out, u64::try_from(suffix.len()).expect("a key is smaller than 4 GiB"));
                out.extend_from_slice(suffix);
                // Main revisions begin at 1. A 0 says that the separator is not inside the versions of a key.
                let revision = self.separators.revision(before);
                let is_inside = revision != Revision::MAX;
                assert!(revision.main > 0, "only versions of one key are separated by revision");
                varint::write(out, if is_inside { revision.main.cast_unsigned() } else { 0 });
                if is_inside {
                    varint::write(out, revision.sub.cast_unsigned());
                }
            }
            let place = child.slot.place().expect("children are written before their parent");
            out.extend_from_slice(&place.to_bytes());
            varint::write(out, child.sums.live);
            varint::write(out, child.sums.live_bytes);
            varint::write(out, child.sums.versions);
            let droppable_at = child.sums.droppable_at;
            varint::write(out, if droppable_at == i64::MAX { 0 } else { droppable_at.cast_unsigned() });
        }
    }

    fn decode(bytes: &[u8], residency: &Arc<Residency>) -> Result<Self, Error> {
        let mut reader = InnerReader { bytes, at: 1, residency };
        let node = reader.node();
        node.filter(|_| reader.at == bytes.len()).ok_or_else(|| Error::malformed(reader.at, "inner node"))
    }
}

/// Reads a page with any content.
struct InnerReader<'a> {
    bytes: &'a [u8],
    at: usize,
    residency: &'a Arc<Residency>,
}

impl<'a> InnerReader<'a> {
    fn number(&mut self) -> Option<u64> {
        varint::read(self.bytes, &mut self.at)
    }

    fn number_up_to(&mut self, max: u64) -> Option<u64> {
        self.number().filter(|number| *number <= max)
    }

    fn slice(&mut self) -> Option<&'a [u8]> {
        let len = usize::try_from(self.number()?).ok()?;
        let end = self.at.checked_add(len)?;
        let slice = self.bytes.get(self.at..end)?;
        self.at = end;
        Some(slice)
    }

    fn revision(&mut self) -> Option<Revision> {
        match i64::try_from(self.number()?).ok()? {
            0 => Some(Revision::MAX),
            main => Some(Revision::new(main, i64::try_from(self.number()?).ok()?)),
        }
    }

    fn child(&mut self) -> Option<Child> {
        let place = self.bytes.get(self.at..)?.first_chunk::<{ Place::ENCODED_LEN }>()?;
        self.at += Place::ENCODED_LEN;
        let slot = Slot::on_disk(Place::from_bytes(*place)?, self.residency);
        let live = self.number_up_to(COUNT_MAX)?;
        let live_bytes = self.number_up_to(BYTES_MAX)?;
        let versions = self.number_up_to(COUNT_MAX)?;
        let droppable_at = match i64::try_from(self.number()?).ok()? {
            0 => i64::MAX,
            main => main,
        };
        (live <= versions).then_some(Child { slot, sums: Sums { live, live_bytes, versions, droppable_at } })
    }

    fn node(&mut self) -> Option<Inner> {
        let count = self.number_up_to(CHILDREN_DECODED_MAX)?;
        let prefix = self.slice()?;
        // A node with long keys has few children. A short page that claims long keys and many children would take too
        // much memory.
        let keys_len = usize::try_from(count.checked_sub(1)?).ok()?.checked_mul(prefix.len())?;
        if keys_len > KEYS_DECODED_MAX.max(self.bytes.len().checked_mul(8)?) {
            return None;
        }
        let mut children = vec![self.child()?];
        let mut keys: Vec<(Vec<u8>, Revision)> = Vec::new();
        for _ in 1..count {
            let key = [prefix, self.slice()?].concat();
            let revision = self.revision()?;
            let follows = keys.last().is_none_or(|(last, at)| match last.cmp(&key) {
                KeyOrdering::Less => true,
                KeyOrdering::Equal => *at > revision,
                KeyOrdering::Greater => false,
            });
            if !follows {
                return None;
            }
            keys.push((key, revision));
            children.push(self.child()?);
        }
        let separators = Separators::pack(keys.iter().map(|(key, revision)| (&key[..], *revision)));
        Some(Inner::new(separators, children))
    }
}
