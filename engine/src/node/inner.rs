//! An inner node: children with the sums of what is below them, and the separators between them.
//!
//! Invariants:
//! - One separator less than children. Everything below child `i` is before separator `i`, everything below child `i + 1` is not.
//!   A separator is a (key, revision) pair; where the keys on both sides differ it is the shortest key between them with
//!   `Revision::MAX`, which comes before every version of that key.
//! - `Separators::heap` is the keys back to back; `prefix_len` bytes are common to all of them; `heads` are the bytes behind.
//! - `Child::sums` are exact for the subtree.
//!
//! It does not know its limits: `tree` splits and merges.

use std::cmp::Ordering;
use std::sync::Arc;

use super::{Residency, Slot, Sums, common_prefix_len, head_of, malformed, varint};
use crate::{Error, Place, Revision};

/// First byte of an inner node's page.
pub(super) const PAGE_KIND: u8 = 2;

/// Children of an inner node; one more splits it.
pub(crate) const INNER_CHILDREN_MAX: usize = 32;

/// Children a page may claim: more is not ours.
const CHILDREN_DECODED_MAX: u64 = 1024;
/// Bytes of separators that a page may expand to, if it is not itself of that order.
const KEYS_DECODED_MAX: usize = 1 << 20;
/// Versions and live keys a page may claim for a child, so that sums over any tree stay far from overflow.
const COUNT_MAX: u64 = 1 << 48;
/// Bytes a page may claim for a child.
const BYTES_MAX: u64 = 1 << 53;

/// What separates two children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Separator {
    pub(crate) key: Vec<u8>,
    pub(crate) revision: Revision,
}

/// Separators in order, packed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Separators {
    heap: Vec<u8>,
    /// First bytes of each key behind the prefix, and where the key ends in `heap`.
    heads: Vec<(u32, u32)>,
    prefix_len: usize,
    /// Those that lie inside the versions of one key: position and revision; all others have `Revision::MAX`.
    revisions: Vec<(u32, Revision)>,
}

impl Separators {
    pub(crate) fn len(&self) -> usize {
        self.heads.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.heap.len()
    }

    fn heap_bytes(&self) -> usize {
        self.heap.capacity()
            + self.heads.capacity() * size_of::<(u32, u32)>()
            + self.revisions.capacity() * size_of::<(u32, Revision)>()
    }

    #[inline]
    pub(crate) fn key(&self, position: usize) -> &[u8] {
        let start = if position == 0 { 0 } else { self.heads[position - 1].1 as usize };
        &self.heap[start..self.heads[position].1 as usize]
    }

    pub(crate) fn revision(&self, position: usize) -> Revision {
        let found = self.revisions.binary_search_by_key(&position, |(at, _)| *at as usize);
        found.map_or(Revision::MAX, |found| self.revisions[found].1)
    }

    pub(crate) fn get(&self, position: usize) -> Separator {
        Separator { key: self.key(position).to_vec(), revision: self.revision(position) }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&[u8], Revision)> {
        (0..self.len()).map(|position| (self.key(position), self.revision(position)))
    }

    /// Packs separators, which must be in order.
    pub(crate) fn pack<'a>(separators: impl Iterator<Item = (&'a [u8], Revision)>) -> Self {
        let mut packed = Self::default();
        for (key, revision) in separators {
            if revision != Revision::MAX {
                packed.revisions.push((u32::try_from(packed.heads.len()).expect("a node is small"), revision));
            }
            packed.heap.extend_from_slice(key);
            packed.heads.push((0, u32::try_from(packed.heap.len()).expect("a node is smaller than 4 GiB")));
        }
        if let Some(last) = packed.len().checked_sub(1) {
            packed.prefix_len = common_prefix_len(packed.key(0), packed.key(last));
            for position in 0..=last {
                packed.heads[position].0 = head_of(&packed.key(position)[packed.prefix_len..]);
            }
        }
        packed
    }

    /// Number of separators that are not after (`key`, `revision`): the position of the child it belongs to.
    #[inline]
    pub(crate) fn child_of(&self, key: &[u8], revision: Revision) -> usize {
        if self.heads.is_empty() {
            return 0;
        }
        let len = self.prefix_len.min(key.len());
        match key[..len].cmp(&self.heap[..len]) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.len(),
            Ordering::Equal if key.len() < self.prefix_len => return 0,
            Ordering::Equal => {}
        }
        let tail = &key[self.prefix_len..];
        let head = head_of(tail);
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            let order = self.heads[middle].0.cmp(&head).then_with(|| self.key(middle)[self.prefix_len..].cmp(tail));
            if order.is_lt() || (order.is_eq() && self.revision(middle) >= revision) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn insert(&mut self, position: usize, new: &Separator) {
        let new = std::iter::once((&new.key[..], new.revision));
        let packed = Self::pack(self.iter().take(position).chain(new).chain(self.iter().skip(position)));
        *self = packed;
    }

    fn remove(&mut self, position: usize) {
        let packed = Self::pack(self.iter().enumerate().filter(|(at, _)| *at != position).map(|(_, kept)| kept));
        *self = packed;
    }
}

/// A child and what is below it.
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
        // The counts lie scattered; reading them all first lets the misses overlap, which the increments would not.
        let shared: usize = self.children.iter().map(|child| Arc::strong_count(&child.slot)).sum();
        assert!(shared >= self.children.len(), "a child is held by its parent");
        let mut children = Vec::with_capacity(self.children.len() + 1);
        children.extend_from_slice(&self.children);
        Self { separators: self.separators.clone(), children }
    }
}

impl Inner {
    /// A node over children in order.
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

    /// Position of the child that (`key`, `revision`) belongs to.
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

    /// Puts a child behind the one at `position`.
    pub(crate) fn insert_behind(&mut self, position: usize, separator: &Separator, child: Child) {
        self.separators.insert(position, separator);
        self.children.insert(position + 1, child);
    }

    /// Takes a child out; its neighbours' ranges close up.
    pub(crate) fn remove(&mut self, position: usize) -> Child {
        if self.separators.len() > 0 {
            self.separators.remove(position.saturating_sub(1));
        }
        self.children.remove(position)
    }

    /// Cuts the node in two: what separates them, and the part from child `position` on.
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

    /// This node's children followed by those of `right`, from which `between` separates them.
    pub(crate) fn joined(&self, between: &Separator, right: &Self) -> Self {
        let between = std::iter::once((&between.key[..], between.revision));
        let separators = Separators::pack(self.separators.iter().chain(between).chain(right.separators.iter()));
        Self::new(separators, self.children.iter().chain(&right.children).cloned().collect())
    }

    /// Memory behind its vectors, and that of the children's slots. **Units** bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        // A slot behind its two reference counts.
        const SLOT_BYTES: usize = 16 + size_of::<Slot>();
        self.separators.heap_bytes() + self.children.capacity() * size_of::<Child>() + self.children.len() * SLOT_BYTES
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(PAGE_KIND);
        varint::write(out, u64::try_from(self.len()).expect("a node is small"));
        let prefix_len = self.separators.prefix_len;
        varint::write(out, u64::try_from(prefix_len).expect("a key is smaller than 4 GiB"));
        out.extend_from_slice(&self.separators.heap[..prefix_len]);
        for (position, child) in self.children.iter().enumerate() {
            if let Some(before) = position.checked_sub(1) {
                let suffix = &self.separators.key(before)[prefix_len..];
                varint::write(out, u64::try_from(suffix.len()).expect("a key is smaller than 4 GiB"));
                out.extend_from_slice(suffix);
                // Main revisions begin at 1: 0 says that the separator does not lie inside the versions of a key.
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

    pub(super) fn decode(bytes: &[u8], residency: &Arc<Residency>) -> Result<Self, Error> {
        let mut reader = Reader { bytes, at: 1, residency };
        let node = reader.node();
        node.filter(|_| reader.at == bytes.len()).ok_or_else(|| malformed(reader.at, "inner node"))
    }
}

/// Reads a page that may hold anything.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    residency: &'a Arc<Residency>,
}

impl<'a> Reader<'a> {
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
        // A node with long keys has few children; a short page that claims both would blow up in memory.
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
                Ordering::Less => true,
                Ordering::Equal => *at > revision,
                Ordering::Greater => false,
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
