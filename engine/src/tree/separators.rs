//! The separators of the children of an inner node, packed.
//!
//! Invariants:
//! - A separator is a (key, revision) pair. If the keys on both sides differ, it is the shortest key between them with
//!   `Revision::MAX`, which comes before every version of that key.
//! - `heap` is the keys, one directly after the other. The first `prefix_len` bytes are common to all of them. `heads`
//!   are the bytes after these.
//!
//! It knows no child and no page.

use std::cmp::Ordering;

use crate::{
    Revision,
    prefix::{common_prefix_len, head_of},
};

/// The separator of two children.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Separator {
    pub(crate) key: Vec<u8>,
    pub(crate) revision: Revision,
}

/// Separators in order, packed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Separators {
    heap: Vec<u8>,
    /// The first bytes of each key after the prefix, and the end of the key in `heap`.
    heads: Vec<(u32, u32)>,
    prefix_len: usize,
    /// Separators inside the versions of one key: position and revision. All others have `Revision::MAX`.
    revisions: Vec<(u32, Revision)>,
}

impl Separators {
    pub(crate) fn len(&self) -> usize {
        self.heads.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.heap.len()
    }

    pub(super) fn heap_bytes(&self) -> usize {
        self.heap.capacity()
            + self.heads.capacity() * size_of::<(u32, u32)>()
            + self.revisions.capacity() * size_of::<(u32, Revision)>()
    }

    /// The common first bytes of all keys.
    pub(super) fn prefix(&self) -> &[u8] {
        &self.heap[..self.prefix_len]
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

    /// Packs separators. They must be in order.
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

    /// Number of separators that are not after (`key`, `revision`). This is the position of its child.
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

    pub(super) fn insert(&mut self, position: usize, new: &Separator) {
        let new = std::iter::once((&new.key[..], new.revision));
        let packed = Self::pack(self.iter().take(position).chain(new).chain(self.iter().skip(position)));
        *self = packed;
    }

    pub(super) fn remove(&mut self, position: usize) {
        let packed = Self::pack(self.iter().enumerate().filter(|(at, _)| *at != position).map(|(_, kept)| kept));
        *self = packed;
    }
}
