//! A leaf: entries packed in key order (key ascending, revision descending), in the same form as on disk.
//!
//! The heap is the common prefix of the keys, followed by the entries. A slot per entry holds its offset and the first
//! bytes of its suffix, so that a binary search seldom touches the heap. An entry is `flags, suffix length, suffix`. A
//! version continues with `main, [sub], [create, version, [lease]], record length`, and an entry of the meta tree with
//! `value length, value`. All numbers are varints. `create` is stored as the distance below `main`.
//!
//! Invariants:
//! - Entries are strictly ordered; `prefix_len` is a common prefix of all keys (not always the longest).
//! - `NEWEST` is set on the first entry of each key's run, except where the run begins in the previous leaf. In that
//!   case `superseded_at` is the main revision of the last entry there; otherwise it is `i64::MAX`.
//! - There are no gaps and no dead bytes: `heap` is the prefix, then the entries, one directly after the other.
//!
//! It does not know its neighbours or its size limit; `change` splits and joins.

use std::{cmp::Ordering, ops::Range};

use bytes::Bytes;

use super::sums::Sums;
use crate::{
    Error, Revision,
    prefix::{common_prefix_len, head_of},
    varint,
};

/// First byte of a leaf's page.
pub(super) const LEAF_PAGE_KIND: u8 = 1;

/// A leaf is split when its entries exceed this, unless there is only one. **Units** bytes, without the prefix.
pub(crate) const ENTRY_BYTES_MAX: usize = 4096;

/// Bytes that a tombstone takes beside the suffix of its key, about. **Units** bytes.
const TOMBSTONE_BYTES: usize = 14;

/// The entry is the newest version of its key.
pub(crate) const NEWEST: u8 = 1;
/// The version is a tombstone.
pub(crate) const TOMBSTONE: u8 = 2;
/// A sub revision other than 0 is stored.
const SUB: u8 = 4;
/// A lease other than 0 is stored.
const LEASE: u8 = 8;
/// The entry belongs to the meta tree: it has a value and no revision.
pub(crate) const VALUE: u8 = 16;
const FLAGS: u8 = NEWEST | TOMBSTONE | SUB | LEASE | VALUE;

/// An entry without its key and, in the meta tree, without its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EntryMeta {
    pub(crate) flags: u8,
    pub(crate) revision: Revision,
    pub(crate) create_revision: i64,
    pub(crate) version: i64,
    pub(crate) lease: i64,
    /// Length of the stored record; in the meta tree, of the value.
    pub(crate) bytes: u32,
}

impl EntryMeta {
    pub(crate) fn is_newest(&self) -> bool {
        self.flags & NEWEST != 0
    }

    pub(crate) fn is_tombstone(&self) -> bool {
        self.flags & TOMBSTONE != 0
    }

    pub(crate) fn is_live(&self) -> bool {
        self.flags & (NEWEST | TOMBSTONE) == NEWEST
    }

    /// The bytes that it adds to `Sums::live_bytes` when it is live, under a key of `key_len` bytes.
    pub(crate) fn live_bytes(&self, key_len: usize) -> u64 {
        let bytes = u64::from(self.bytes);
        let before = if self.flags & VALUE == 0 { 1 + varint::len(bytes) } else { key_len };
        bytes + u64::try_from(before).expect("a key is smaller than 4 GiB")
    }

    /// The smallest compact revision at which it can be dropped. Its next newer version is at `newer`.
    pub(crate) fn droppable_at(&self, newer: i64) -> i64 {
        // A tombstone exactly at the compact revision stays, as in etcd.
        if self.is_tombstone() { newer.min(self.revision.main + 1) } else { newer }
    }
}

/// The beginning of an entry, and the parts of it that a search and a count need.
#[derive(Clone, Copy, Debug)]
struct EntrySlot {
    head: u32,
    /// Offset in the heap. The highest bit says that the entry is live.
    offset_and_live: u32,
}

/// Set in `EntrySlot::offset_and_live` for live entries. Heaps stay below it.
const LIVE: u32 = 1 << 31;

impl EntrySlot {
    fn new(suffix: &[u8], offset: usize, flags: u8) -> Self {
        let offset = u32::try_from(offset).ok().filter(|offset| *offset < LIVE).expect("a leaf is smaller than 2 GiB");
        let is_live = flags & (NEWEST | TOMBSTONE) == NEWEST;
        Self { head: head_of(suffix), offset_and_live: if is_live { offset | LIVE } else { offset } }
    }

    #[inline]
    fn offset(self) -> usize {
        (self.offset_and_live & !LIVE) as usize
    }

    #[inline]
    fn is_live(self) -> bool {
        self.offset_and_live & LIVE != 0
    }
}

/// Entries of a tree, packed.
#[derive(Debug)]
pub struct Leaf {
    heap: Vec<u8>,
    slots: Vec<EntrySlot>,
    prefix_len: usize,
    superseded_at: i64,
    /// The position of the last insertion, and how many insertions in a row came directly after the previous one. It
    /// shows ascending insertion: such a leaf is split at its end. It is not stored.
    ascent: (u32, u32),
}

impl Clone for Leaf {
    /// A copy is made to be changed, so it gets room for an entry or two.
    fn clone(&self) -> Self {
        let mut heap = Vec::with_capacity(self.heap.len() + ENTRY_BYTES_MAX / 16);
        heap.extend_from_slice(&self.heap);
        let mut slots = Vec::with_capacity(self.slots.len() + 4);
        slots.extend_from_slice(&self.slots);
        Self { heap, slots, ..*self }
    }
}

impl Default for Leaf {
    fn default() -> Self {
        Self { heap: Vec::new(), slots: Vec::new(), prefix_len: 0, superseded_at: i64::MAX, ascent: (0, 0) }
    }
}

/// Keys of a leaf.
pub(crate) struct EndedKeys {
    /// The keys, one behind the other.
    pub(crate) keys: Bytes,
    /// The end of each of them in `keys`.
    pub(crate) ends: Vec<u32>,
}

impl Leaf {
    /// Memory of its vectors. **Units** bytes.
    pub(super) fn heap_bytes(&self) -> usize {
        self.heap.capacity() + self.slots.capacity() * size_of::<EntrySlot>()
    }
}

/// An entry that was parsed, its suffix and value as ranges of the heap.
struct Parsed {
    suffix: Range<usize>,
    meta: EntryMeta,
    value: Range<usize>,
    end: usize,
}

const CHECKED: &str = "entries were checked when they came in";

/// The entry at `at`; `None` if it does not end inside `heap` or is malformed.
#[inline]
fn parse(heap: &[u8], at: usize) -> Option<Parsed> {
    let flags = *heap.get(at)?;
    let mut at = at + 1;
    let suffix_len = usize::try_from(varint::read(heap, &mut at)?).ok()?;
    let suffix = at..at.checked_add(suffix_len)?;
    at = suffix.end;
    if at > heap.len() {
        return None;
    }
    let mut meta = EntryMeta { flags, revision: Revision::MIN, create_revision: 0, version: 0, lease: 0, bytes: 0 };
    if flags & VALUE != 0 {
        let len = varint::read(heap, &mut at)?;
        meta.bytes = u32::try_from(len).ok()?;
        let value = at..at.checked_add(usize::try_from(len).ok()?)?;
        let end = value.end;
        return (end <= heap.len()).then_some(Parsed { suffix, meta, value, end });
    }
    meta.revision.main = i64::try_from(varint::read(heap, &mut at)?).ok()?;
    if flags & SUB != 0 {
        meta.revision.sub = i64::try_from(varint::read(heap, &mut at)?).ok()?;
    }
    if flags & TOMBSTONE == 0 {
        let distance = i64::try_from(varint::read(heap, &mut at)?).ok()?;
        meta.create_revision = meta.revision.main.checked_sub(distance)?;
        meta.version = varint::read(heap, &mut at)?.cast_signed();
        if flags & LEASE != 0 {
            meta.lease = varint::read(heap, &mut at)?.cast_signed();
        }
    }
    meta.bytes = u32::try_from(varint::read(heap, &mut at)?).ok()?;
    Some(Parsed { suffix, meta, value: at..at, end: at })
}

/// Reserves room for `needed` more items, or for `slack` if that is more. Doubling would leave most leaves half empty:
/// a changed leaf is usually written and copied before it grows again.
fn grow<T>(items: &mut Vec<T>, needed: usize, slack: usize) {
    if items.capacity() - items.len() < needed {
        items.reserve_exact(needed.max(slack));
    }
}

/// The flags with which an entry is stored: they say which of its fields are.
fn stored_flags(meta: &EntryMeta) -> u8 {
    let sub = if meta.revision.sub == 0 { 0 } else { SUB };
    let lease = if meta.lease == 0 { 0 } else { LEASE };
    meta.flags & !(SUB | LEASE) | sub | lease
}

/// Appends the part of an entry after the suffix.
fn write_rest(out: &mut Vec<u8>, meta: &EntryMeta, value: &[u8]) {
    if meta.flags & VALUE != 0 {
        varint::write(out, u64::from(meta.bytes));
        out.extend_from_slice(value);
        return;
    }
    assert!(value.is_empty(), "the key tree holds no values");
    varint::write(out, meta.revision.main.cast_unsigned());
    if meta.flags & SUB != 0 {
        varint::write(out, meta.revision.sub.cast_unsigned());
    }
    if meta.flags & TOMBSTONE == 0 {
        varint::write(out, (meta.revision.main - meta.create_revision).cast_unsigned());
        varint::write(out, meta.version.cast_unsigned());
        if meta.flags & LEASE != 0 {
            varint::write(out, meta.lease.cast_unsigned());
        }
    }
    varint::write(out, u64::from(meta.bytes));
}

impl Leaf {
    /// A leaf for the entries that will be pushed. `superseded_at` is as in the head of this file.
    fn with_prefix(prefix: &[u8], superseded_at: i64, heap_len: usize, slots_len: usize) -> Self {
        let mut heap = Vec::with_capacity(prefix.len() + heap_len);
        heap.extend_from_slice(prefix);
        let slots = Vec::with_capacity(slots_len);
        Self { heap, slots, prefix_len: prefix.len(), superseded_at, ascent: (0, 0) }
    }

    /// Number of entries.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Bytes of all entries, without the prefix.
    pub(crate) fn entry_bytes(&self) -> usize {
        self.heap.len() - self.prefix_len
    }

    /// Main revision of the previous entry, if it is a version of the same key; otherwise `i64::MAX`.
    pub(crate) fn superseded_at(&self) -> i64 {
        self.superseded_at
    }

    fn prefix(&self) -> &[u8] {
        &self.heap[..self.prefix_len]
    }

    #[inline]
    fn parsed(&self, position: usize) -> Parsed {
        parse(&self.heap, self.slots[position].offset()).expect(CHECKED)
    }

    #[inline]
    fn suffix_range(&self, position: usize) -> Range<usize> {
        let mut at = self.slots[position].offset() + 1;
        let len = usize::try_from(varint::read(&self.heap, &mut at).expect(CHECKED)).expect(CHECKED);
        at..at + len
    }

    #[inline]
    fn suffix(&self, position: usize) -> &[u8] {
        &self.heap[self.suffix_range(position)]
    }

    /// The first byte after the entry.
    fn entry_end(&self, position: usize) -> usize {
        self.slots.get(position + 1).map_or(self.heap.len(), |slot| slot.offset())
    }

    pub(crate) fn meta(&self, position: usize) -> EntryMeta {
        self.parsed(position).meta
    }

    #[inline]
    pub(crate) fn flags(&self, position: usize) -> u8 {
        self.heap[self.slots[position].offset()]
    }

    #[inline]
    pub(crate) fn is_live(&self, position: usize) -> bool {
        self.slots[position].is_live()
    }

    /// The value of an entry of the meta tree.
    pub(crate) fn value(&self, position: usize) -> &[u8] {
        &self.heap[self.parsed(position).value]
    }

    pub(crate) fn key(&self, position: usize) -> Bytes {
        let mut key = Vec::with_capacity(self.key_len(position));
        self.push_key(position, &mut key);
        key.into()
    }

    /// Appends the key.
    pub(crate) fn push_key(&self, position: usize, out: &mut Vec<u8>) {
        out.extend_from_slice(self.prefix());
        out.extend_from_slice(self.suffix(position));
    }

    /// Length of the key. **Units** bytes.
    pub(crate) fn key_len(&self, position: usize) -> usize {
        self.prefix_len + self.suffix_range(position).len()
    }

    /// Whether the entry is one of `key`.
    #[inline]
    pub(crate) fn is_of(&self, position: usize, key: &[u8]) -> bool {
        key.len() >= self.prefix_len
            && key[self.prefix_len..] == *self.suffix(position)
            && key[..self.prefix_len] == *self.prefix()
    }

    /// The order of an entry's key relative to `key`.
    pub(crate) fn cmp_key(&self, position: usize, key: &[u8]) -> Ordering {
        let len = self.prefix_len.min(key.len());
        let order = self.prefix()[..len].cmp(&key[..len]);
        if order.is_ne() {
            return order;
        }
        if key.len() < self.prefix_len { Ordering::Greater } else { self.suffix(position).cmp(&key[len..]) }
    }

    /// Position of the first entry that is not before (`key`, `revision`). Newer revisions come first.
    #[inline]
    pub(crate) fn lower_bound(&self, key: &[u8], revision: Revision) -> usize {
        let len = self.prefix_len.min(key.len());
        match key[..len].cmp(&self.prefix()[..len]) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.len(),
            Ordering::Equal if key.len() < self.prefix_len => return 0,
            Ordering::Equal => {}
        }
        let tail = &key[self.prefix_len..];
        let head = head_of(tail);
        let is_before = |position: usize| {
            let slot = self.slots[position];
            let order = slot.head.cmp(&head).then_with(|| self.suffix(position).cmp(tail));
            // Nothing is newer than `Revision::MAX`, so most searches read no revision.
            order.is_lt() || (order.is_eq() && revision != Revision::MAX && self.meta(position).revision > revision)
        };
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            if is_before(middle) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    /// The number of live entries before `position`, and their bytes.
    pub(crate) fn live_before(&self, position: usize) -> (u64, u64) {
        let mut sums = (0, 0);
        for position in (0..position).filter(|position| self.is_live(*position)) {
            sums.0 += 1;
            sums.1 += self.bytes(position);
        }
        sums
    }

    /// Bytes of the first `count` live entries. There must be as many.
    pub(crate) fn live_bytes_of_first(&self, count: u64) -> u64 {
        let count = usize::try_from(count).expect("a leaf is small");
        let live = (0..self.len()).filter(|position| self.is_live(*position));
        live.take(count).map(|position| self.bytes(position)).sum()
    }

    /// Number of live entries before `position`.
    pub(crate) fn live_count_before(&self, position: usize) -> u64 {
        let live = self.slots[..position].iter().filter(|slot| slot.is_live()).count();
        u64::try_from(live).expect("a leaf is small")
    }

    /// The bytes that an entry adds to `live_bytes` when it is live.
    fn bytes(&self, position: usize) -> u64 {
        let Parsed { suffix, meta, .. } = self.parsed(position);
        meta.live_bytes(self.prefix_len + suffix.len())
    }

    pub(crate) fn sums(&self) -> Sums {
        let mut sums = Sums::ZERO;
        let mut newer = self.superseded_at;
        for position in 0..self.len() {
            let meta = self.meta(position);
            if meta.is_newest() {
                newer = i64::MAX;
            }
            if meta.is_live() {
                sums.live += 1;
                sums.live_bytes += self.bytes(position);
            }
            sums.versions += 1;
            sums.droppable_at = sums.droppable_at.min(meta.droppable_at(newer));
            newer = meta.revision.main;
        }
        sums
    }

    /// Inserts an entry at `position`. This must be its place in the order.
    pub(crate) fn insert(&mut self, position: usize, key: &[u8], mut meta: EntryMeta, value: &[u8]) {
        assert!(position <= self.len());
        assert!(position > 0 || self.superseded_at == i64::MAX, "nothing goes between the versions of a key");
        meta.flags = stored_flags(&meta);
        let shared = common_prefix_len(self.prefix(), key);
        if self.is_empty() {
            self.heap.clear();
            self.heap.extend_from_slice(key);
            self.prefix_len = key.len();
        } else if shared < self.prefix_len {
            *self = self.rebuilt(0..self.len(), shared, ENTRY_BYTES_MAX / 4);
        }
        let suffix = &key[self.prefix_len..];
        let at = self.slots.get(position).map_or(self.heap.len(), |slot| slot.offset());
        // The entry is built at the end of the heap and then rotated into place, so that no second buffer is needed.
        let end = self.heap.len();
        grow(&mut self.heap, suffix.len() + value.len() + 64, ENTRY_BYTES_MAX / 16);
        self.heap.push(meta.flags);
        varint::write(&mut self.heap, u64::try_from(suffix.len()).expect("a key is smaller than 4 GiB"));
        self.heap.extend_from_slice(suffix);
        write_rest(&mut self.heap, &meta, value);
        let len = self.heap.len() - end;
        self.heap[at..].rotate_right(len);
        // This cannot overflow: the last entry is checked to begin below `LIVE`.
        let slot = EntrySlot::new(suffix, at, meta.flags);
        assert!(self.heap.len() < LIVE as usize, "a leaf is smaller than 2 GiB");
        let moved = u32::try_from(len).expect("an entry is smaller than 2 GiB");
        for slot in &mut self.slots[position..] {
            slot.offset_and_live = slot.offset_and_live.wrapping_add(moved);
        }
        grow(&mut self.slots, 1, 4);
        self.slots.insert(position, slot);
        let position = u32::try_from(position).expect("a leaf is small");
        let in_a_row = if self.ascent.0 + 1 == position { self.ascent.1.saturating_add(1) } else { 0 };
        self.ascent = (position, in_a_row);
    }

    /// Removes the mark of the newest version from an entry, before a newer one is inserted before it.
    pub(crate) fn clear_newest(&mut self, position: usize) {
        let slot = &mut self.slots[position];
        let flags = &mut self.heap[slot.offset()];
        assert!(*flags & NEWEST != 0, "only the newest version is superseded");
        *flags &= !NEWEST;
        slot.offset_and_live &= !LIVE;
    }

    /// Removes an entry.
    pub(crate) fn remove(&mut self, position: usize) {
        let range = self.slots[position].offset()..self.entry_end(position);
        let moved = u32::try_from(range.len()).expect("an entry is smaller than 4 GiB");
        self.heap.drain(range);
        self.slots.remove(position);
        for slot in &mut self.slots[position..] {
            slot.offset_and_live -= moved;
        }
    }

    /// The leaf without the entries that can be dropped at `compact_revision`. It calls `on_drop` for each of them.
    pub(crate) fn swept(&self, compact_revision: i64, mut on_drop: impl FnMut(&EntryMeta)) -> Self {
        let mut kept = Self::with_prefix(self.prefix(), self.superseded_at, self.entry_bytes(), self.len());
        let mut newer = self.superseded_at;
        for position in 0..self.len() {
            let meta = self.meta(position);
            if meta.is_newest() {
                newer = i64::MAX;
            }
            if meta.droppable_at(newer) <= compact_revision {
                on_drop(&meta);
            } else {
                if kept.is_empty() && position > 0 {
                    // If a version stays, the version that supersedes it stays too.
                    assert!(meta.is_newest(), "a run loses its oldest versions first");
                    kept.superseded_at = i64::MAX;
                }
                kept.push_from(self, position);
            }
            newer = meta.revision.main;
        }
        kept
    }

    /// The leaf with a new entry before each live one at `positions` (with `lease`, if there is one), which is no live
    /// version any more. `tombstone` makes the new entry, from the key and the entry that it ends. Also returns the
    /// keys that it ended.
    pub(crate) fn ended(
        &self,
        positions: Range<usize>,
        lease: Option<i64>,
        mut tombstone: impl FnMut(&[u8], &EntryMeta) -> EntryMeta,
    ) -> (Self, EndedKeys) {
        let mut keys = Vec::new();
        let mut ends = Vec::new();
        let is_wanted = |position: usize| {
            positions.contains(&position)
                && self.is_live(position)
                && lease.is_none_or(|lease| self.meta(position).lease == lease)
        };
        for position in positions.clone().filter(|position| is_wanted(*position)) {
            self.push_key(position, &mut keys);
            ends.push(u32::try_from(keys.len()).expect("the keys of a leaf are few"));
        }
        let heap_len = self.entry_bytes() + keys.len() - ends.len() * self.prefix_len + ends.len() * TOMBSTONE_BYTES;
        let mut leaf = Self::with_prefix(self.prefix(), self.superseded_at, heap_len, self.len() + ends.len());
        let (mut start, mut next) = (0, ends.iter());
        for position in 0..self.len() {
            if is_wanted(position) {
                let end = usize::try_from(*next.next().expect("it was counted")).expect("it was a length");
                let mut meta = tombstone(&keys[start..end], &self.meta(position));
                meta.flags = stored_flags(&meta);
                leaf.push_new(self.suffix(position), &meta);
                start = end;
                leaf.push_from(self, position);
                leaf.clear_newest(leaf.len() - 1);
            } else {
                leaf.push_from(self, position);
            }
        }
        (leaf, EndedKeys { keys: keys.into(), ends })
    }

    /// Appends an entry without a value.
    fn push_new(&mut self, suffix: &[u8], meta: &EntryMeta) {
        self.slots.push(EntrySlot::new(suffix, self.heap.len(), meta.flags));
        self.heap.push(meta.flags);
        varint::write(&mut self.heap, u64::try_from(suffix.len()).expect("a key is smaller than 4 GiB"));
        self.heap.extend_from_slice(suffix);
        write_rest(&mut self.heap, meta, &[]);
    }

    /// The position at which an overfull leaf is cut. An entry was inserted at `inserted`. The result is between 1 and
    /// `len - 1`.
    pub(crate) fn split_position(&self, inserted: Option<usize>) -> usize {
        assert!(self.len() >= 2, "one entry is never cut");
        let last = self.len() - 1;
        if let Some(inserted) = inserted {
            // Keys ascend, so full leaves are left on the left side.
            let ascends = self.ascent.1 >= 4 || (inserted == last && self.ascent.1 >= 1);
            if ascends && inserted > 0 && self.ascent.0 as usize == inserted {
                return inserted;
            }
            // Versions are inserted at the front of their run. So full leaves of old versions are left after them.
            let mut run_end = inserted + 1;
            while run_end < self.len() && self.flags(run_end) & NEWEST == 0 {
                run_end += 1;
            }
            let run_bytes = self.entry_end(run_end - 1) - self.slots[inserted].offset();
            if run_bytes > self.entry_bytes() / 2 {
                return (inserted + 1).min(last);
            }
        }
        let half = self.prefix_len + self.entry_bytes() / 2;
        self.slots.partition_point(|slot| slot.offset() < half).clamp(1, last)
    }

    /// Cuts the leaf in two. Returns the entries from `position` on.
    pub(crate) fn split_off(&mut self, position: usize) -> Self {
        assert!(0 < position && position < self.len(), "both parts keep entries");
        let mut right = self.rebuilt(position..self.len(), self.shared_prefix_len(position..self.len()), 0);
        if self.flags(position) & NEWEST == 0 {
            right.superseded_at = self.meta(position - 1).revision.main;
        } else {
            right.superseded_at = i64::MAX;
        }
        let slack = if position * 2 < self.len() { 0 } else { ENTRY_BYTES_MAX / 8 };
        *self = self.rebuilt(0..position, self.shared_prefix_len(0..position), slack);
        right
    }

    /// Bytes that `joined` would hold, at most. **Units** bytes, without the prefix.
    pub(crate) fn joined_bytes(&self, right: &Self) -> usize {
        let prefix = common_prefix_len(self.prefix(), right.prefix());
        // The length field of a suffix may grow with the suffix.
        let grown = |leaf: &Self| leaf.entry_bytes() + leaf.len() * (leaf.prefix_len - prefix + 1);
        grown(self) + grown(right)
    }

    /// This leaf's entries followed by those of `right`, its right neighbour.
    pub(crate) fn joined(&self, right: &Self) -> Self {
        assert!(!self.is_empty() && !right.is_empty());
        let prefix = common_prefix_len(self.prefix(), right.prefix());
        let mut joined = self.rebuilt(0..self.len(), prefix, right.heap.len());
        for position in 0..right.len() {
            joined.push_from(right, position);
        }
        joined
    }

    /// Length of the longest prefix common to the keys in a range of positions.
    fn shared_prefix_len(&self, range: Range<usize>) -> usize {
        let (first, last) = (self.suffix(range.start), self.suffix(range.end - 1));
        self.prefix_len + common_prefix_len(first, last)
    }

    /// A leaf of a range of its entries, with a prefix of `prefix_len` that all of them share.
    fn rebuilt(&self, range: Range<usize>, prefix_len: usize, slack: usize) -> Self {
        let key_start;
        let prefix = if prefix_len <= self.prefix_len {
            &self.heap[..prefix_len]
        } else {
            key_start = self.key(range.start);
            &key_start[..prefix_len]
        };
        let shorter = self.prefix_len.saturating_sub(prefix_len);
        let heap_len = self.entry_bytes() + range.len() * (shorter + 1) + slack;
        let mut leaf = Self::with_prefix(prefix, self.superseded_at, heap_len, range.len() + 8);
        for position in range {
            leaf.push_from(self, position);
        }
        leaf
    }

    /// Appends an entry of `other`, whose prefix may be shorter or longer.
    fn push_from(&mut self, other: &Self, position: usize) {
        let start = other.slots[position].offset();
        let end = other.entry_end(position);
        let offset = self.heap.len();
        if self.prefix_len == other.prefix_len {
            self.heap.extend_from_slice(&other.heap[start..end]);
            self.slots.push(EntrySlot::new(other.suffix(position), offset, other.heap[start]));
            return;
        }
        let suffix_range = other.suffix_range(position);
        let rest = &other.heap[suffix_range.end..end];
        let suffix = &other.heap[suffix_range];
        let (front, back) = if self.prefix_len < other.prefix_len {
            (&other.prefix()[self.prefix_len..], suffix)
        } else {
            (&suffix[..0], &suffix[self.prefix_len - other.prefix_len..])
        };
        self.heap.push(other.heap[start]);
        varint::write(&mut self.heap, u64::try_from(front.len() + back.len()).expect("a key is smaller than 4 GiB"));
        let suffix_at = self.heap.len();
        self.heap.extend_from_slice(front);
        self.heap.extend_from_slice(back);
        let slot = EntrySlot::new(&self.heap[suffix_at..], offset, other.heap[start]);
        self.heap.extend_from_slice(rest);
        self.slots.push(slot);
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(LEAF_PAGE_KIND);
        varint::write(out, u64::try_from(self.len()).expect("a leaf is small"));
        varint::write(out, u64::try_from(self.prefix_len).expect("a key is smaller than 4 GiB"));
        let is_continued = self.superseded_at != i64::MAX;
        varint::write(out, if is_continued { self.superseded_at.cast_unsigned() } else { 0 });
        out.extend_from_slice(&self.heap);
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let mut at = 1;
        let header = |at: &mut usize| varint::read(bytes, at).ok_or_else(|| Error::malformed(*at, "header of leaf"));
        let count = header(&mut at)?;
        let prefix_len = header(&mut at)?;
        let superseded_at = header(&mut at)?;
        let heap = bytes[at..].to_vec();
        let count = usize::try_from(count).ok().filter(|count| *count <= heap.len());
        let prefix_len = usize::try_from(prefix_len).ok().filter(|len| *len <= heap.len());
        let superseded_at = i64::try_from(superseded_at).ok().map(|main| if main == 0 { i64::MAX } else { main });
        let (Some(count), Some(prefix_len), Some(superseded_at)) = (count, prefix_len, superseded_at) else {
            return Err(Error::malformed(at, "header of leaf"));
        };
        let slots = Vec::with_capacity(count);
        let mut leaf = Self { heap, slots, prefix_len, superseded_at, ascent: (0, 0) };
        let mut entry_at = prefix_len;
        let mut before = None;
        for _ in 0..count {
            let entry = leaf
                .take_in(entry_at, before.as_ref())
                .ok_or_else(|| Error::malformed(at + entry_at, "entry of leaf"))?;
            entry_at = entry.end;
            before = Some(entry);
        }
        let is_sound = entry_at == leaf.heap.len() && (count > 0 || (prefix_len == 0 && superseded_at == i64::MAX));
        if is_sound { Ok(leaf) } else { Err(Error::malformed(at + entry_at, "end of leaf")) }
    }

    /// Adds the slot of the entry at `offset` of a heap that was read from disk. The entry must be sound, and must
    /// follow the last one, `before`, in order.
    fn take_in(&mut self, offset: usize, before: Option<&Parsed>) -> Option<Parsed> {
        let entry = parse(&self.heap, offset)?;
        let meta = &entry.meta;
        let has_sound_flags = match meta.flags & VALUE {
            0 => meta.flags & !FLAGS == 0 && meta.flags & (TOMBSTONE | LEASE) != TOMBSTONE | LEASE,
            _ => meta.flags == VALUE | NEWEST,
        };
        let suffix = &self.heap[entry.suffix.clone()];
        let continues = match before {
            None => self.superseded_at != i64::MAX && self.superseded_at >= meta.revision.main,
            Some(before) => {
                let is_same_kind = before.meta.flags & VALUE == meta.flags & VALUE;
                let order = self.heap[before.suffix.clone()].cmp(suffix);
                let is_ordered = order.is_lt() || (order.is_eq() && before.meta.revision > meta.revision);
                if !is_same_kind || !is_ordered {
                    return None;
                }
                order.is_eq()
            }
        };
        let is_sound = has_sound_flags
            && continues != meta.is_newest()
            && meta.revision.main < i64::MAX
            && (!self.slots.is_empty() || continues == (self.superseded_at != i64::MAX));
        if !is_sound || offset >= LIVE as usize {
            return None;
        }
        self.slots.push(EntrySlot::new(suffix, offset, meta.flags));
        Some(entry)
    }
}
