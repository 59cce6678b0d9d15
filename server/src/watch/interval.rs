//! Runs on: connection core.
//!
//! Finds the watchers of a key. Watchers are seated by their key or range.
//!
//! - Watchers of an equal range share one *group*. `exact` maps a key to the group of the watchers of just this key.
//!   `ranges` is an AVL tree of the other groups by (start, end). Each node knows the greatest end below it (CLRS,
//!   interval trees).
//! - Finding the groups of a key costs O(1) for `exact`, and O(log n + m log n) for n ranges of which m match.
//!   Inserting and removing cost O(log n). The tree is balanced by rule and not by chance, because clients choose the
//!   ranges and their order.
//!
//! Invariants:
//! - A group has at least one member. `seat.position` of a member is its place in `members`. When a member is removed,
//!   the last member moves into its place, and the caller is told which one moved.
//! - For each node, keys left of it are smaller and keys right of it are greater. Heights differ by at most one.
//!   `widest` is the node at or below it with the greatest end.
//!
//! This file knows a watcher only as a number.

use std::{cmp::Ordering, collections::HashMap};

use bytes::Bytes;
use proto::wire_range::WireRange;
use slab::Slab;

/// Number of a watcher.
pub(super) type WatcherSlot = u32;

/// Where a watcher sits in an [`Index`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seat {
    group: u32,
    position: u32,
}

/// Watchers by the keys they watch.
#[derive(Default)]
pub(super) struct Index {
    groups: Slab<Group>,
    exact: HashMap<Bytes, u32>,
    ranges: Tree,
    len: usize,
}

struct Group {
    range: WireRange,
    members: Vec<WatcherSlot>,
}

impl Index {
    /// Seated watchers.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Seats `watcher` so that it is found by the keys of `range`, which is not empty.
    pub(super) fn insert(&mut self, range: &WireRange, watcher: WatcherSlot) -> Seat {
        assert!(!range.is_empty(), "an empty range is never watched");
        let known = match range {
            WireRange::Single(key) => self.exact.get(key).copied(),
            WireRange::From(_) | WireRange::Bounded { .. } => self.ranges.group_of(&Span::new(range)),
        };
        let group = known.unwrap_or_else(|| self.add_group(range));
        let members = &mut self.groups[group as usize].members;
        let position = number(members.len());
        members.push(watcher);
        self.len += 1;
        Seat { group, position }
    }

    /// Frees `seat`. If a watcher is returned, it has moved from its own seat into this one.
    pub(super) fn remove(&mut self, seat: Seat) -> Option<WatcherSlot> {
        self.len -= 1;
        let group = &mut self.groups[seat.group as usize];
        group.members.swap_remove(seat.position as usize);
        if !group.members.is_empty() {
            return group.members.get(seat.position as usize).copied();
        }
        let group = self.groups.remove(seat.group as usize);
        match &group.range {
            WireRange::Single(key) => {
                let removed = self.exact.remove(key);
                assert_eq!(removed, Some(seat.group), "a group is found by its key");
            }
            range => self.ranges.remove(&Span::new(range), seat.group),
        }
        None
    }

    /// Appends to `out` the groups whose ranges contain `key`, each once.
    pub(super) fn find(&self, key: &[u8], out: &mut Vec<u32>) {
        out.extend(self.exact.get(key));
        self.ranges.stab(key, out);
    }

    /// Whether any watcher watches `key`.
    pub(super) fn concerns(&self, key: &[u8]) -> bool {
        self.exact.contains_key(key) || self.ranges.is_stabbed(key)
    }

    /// The watchers of a group.
    pub(super) fn members(&self, group: u32) -> &[WatcherSlot] {
        &self.groups[group as usize].members
    }

    fn add_group(&mut self, range: &WireRange) -> u32 {
        let group = number(self.groups.insert(Group { range: range.clone(), members: Vec::with_capacity(1) }));
        match range {
            WireRange::Single(key) => {
                let former = self.exact.insert(key.clone(), group);
                assert_eq!(former, None, "one group for a key");
            }
            range => self.ranges.insert(Span::new(range), group),
        }
        group
    }
}

fn number(position: usize) -> u32 {
    u32::try_from(position).expect("watchers of a core are bounded below 2^32")
}

/// A range of keys in the order of the tree: by start, then by end. A range without end counts as the greatest.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Span {
    start: Bytes,
    end: Option<Bytes>,
}

impl Span {
    fn new(range: &WireRange) -> Self {
        match range {
            WireRange::From(start) => Self { start: start.clone(), end: None },
            WireRange::Bounded { start, end } => Self { start: start.clone(), end: Some(end.clone()) },
            WireRange::Single(_) => unreachable!("single keys are found by hash"),
        }
    }

    fn cmp(&self, other: &Self) -> Ordering {
        self.start.cmp(&other.start).then_with(|| self.cmp_end(other))
    }

    fn cmp_end(&self, other: &Self) -> Ordering {
        match (&self.end, &other.end) {
            (Some(a), Some(b)) => a.cmp(b),
            (a, b) => a.is_none().cmp(&b.is_none()),
        }
    }

    fn ends_behind(&self, key: &[u8]) -> bool {
        self.end.as_ref().is_none_or(|end| end > key)
    }
}

/// No node.
const NIL: u32 = u32::MAX;

struct Node {
    span: Span,
    group: u32,
    left: u32,
    right: u32,
    /// Levels of the subtree, the node included. A leaf has 1.
    height: i8,
    widest: u32,
}

/// An AVL tree in an arena.
struct Tree {
    nodes: Slab<Node>,
    root: u32,
}

impl Default for Tree {
    fn default() -> Self {
        Self { nodes: Slab::new(), root: NIL }
    }
}

impl Tree {
    fn node(&self, at: u32) -> &Node {
        &self.nodes[at as usize]
    }

    fn node_mut(&mut self, at: u32) -> &mut Node {
        &mut self.nodes[at as usize]
    }

    fn group_of(&self, span: &Span) -> Option<u32> {
        let mut at = self.root;
        while at != NIL {
            let node = self.node(at);
            at = match span.cmp(&node.span) {
                Ordering::Equal => return Some(node.group),
                Ordering::Less => node.left,
                Ordering::Greater => node.right,
            };
        }
        None
    }

    fn stab(&self, key: &[u8], out: &mut Vec<u32>) {
        self.stab_below(self.root, key, out);
    }

    fn stab_below(&self, at: u32, key: &[u8], out: &mut Vec<u32>) {
        if at == NIL {
            return;
        }
        let node = self.node(at);
        if !self.node(node.widest).span.ends_behind(key) {
            return;
        }
        self.stab_below(node.left, key, out);
        if node.span.start <= key {
            if node.span.ends_behind(key) {
                out.push(node.group);
            }
            self.stab_below(node.right, key, out);
        }
    }

    /// Whether a range contains `key`. One path decides. If some range on the left side ends after the key, look at the
    /// one with the greatest end. It contains the key, or it begins after the key; then everything on the right side
    /// begins after the key too.
    fn is_stabbed(&self, key: &[u8]) -> bool {
        let mut at = self.root;
        while at != NIL {
            let node = self.node(at);
            if node.span.start <= key && node.span.ends_behind(key) {
                return true;
            }
            let is_left = node.left != NIL && self.node(self.node(node.left).widest).span.ends_behind(key);
            at = if is_left { node.left } else { node.right };
        }
        false
    }

    fn insert(&mut self, span: Span, group: u32) {
        let node = number(self.nodes.insert(Node { span, group, left: NIL, right: NIL, height: 1, widest: NIL }));
        self.node_mut(node).widest = node;
        self.root = self.insert_below(self.root, node);
    }

    /// Puts the single node `new` below `at`. Returns the new root of this subtree.
    fn insert_below(&mut self, at: u32, new: u32) -> u32 {
        if at == NIL {
            return new;
        }
        match self.node(new).span.cmp(&self.node(at).span) {
            Ordering::Less => {
                let left = self.insert_below(self.node(at).left, new);
                self.node_mut(at).left = left;
            }
            Ordering::Greater => {
                let right = self.insert_below(self.node(at).right, new);
                self.node_mut(at).right = right;
            }
            Ordering::Equal => unreachable!("equal ranges share a group"),
        }
        self.balance(at)
    }

    fn remove(&mut self, span: &Span, group: u32) {
        let (root, removed) = self.remove_below(self.root, span);
        assert_eq!(self.node(removed).group, group, "a group is found by its range");
        self.nodes.remove(removed as usize);
        self.root = root;
    }

    /// Unlinks the node of `span`, which is at or below `at`. Returns the new root of this subtree, and the unlinked
    /// node.
    fn remove_below(&mut self, at: u32, span: &Span) -> (u32, u32) {
        assert_ne!(at, NIL, "a group is found by its range");
        let (left, right) = (self.node(at).left, self.node(at).right);
        match span.cmp(&self.node(at).span) {
            Ordering::Less => {
                let (left, removed) = self.remove_below(left, span);
                self.node_mut(at).left = left;
                (self.balance(at), removed)
            }
            Ordering::Greater => {
                let (right, removed) = self.remove_below(right, span);
                self.node_mut(at).right = right;
                (self.balance(at), removed)
            }
            Ordering::Equal if left == NIL => (right, at),
            Ordering::Equal if right == NIL => (left, at),
            Ordering::Equal => {
                let (right, next) = self.remove_first(right);
                self.node_mut(next).left = left;
                self.node_mut(next).right = right;
                (self.balance(next), at)
            }
        }
    }

    /// Unlinks the smallest node at or below `at`. Returns the new root of this subtree, and the unlinked node.
    fn remove_first(&mut self, at: u32) -> (u32, u32) {
        let left = self.node(at).left;
        if left == NIL {
            return (self.node(at).right, at);
        }
        let (left, first) = self.remove_first(left);
        self.node_mut(at).left = left;
        (self.balance(at), first)
    }

    fn height(&self, at: u32) -> i8 {
        if at == NIL { 0 } else { self.node(at).height }
    }

    /// Computes anew what `at` stores about its children.
    fn refresh(&mut self, at: u32) {
        let node = self.node(at);
        let (left, right) = (node.left, node.right);
        let height = 1 + self.height(left).max(self.height(right));
        let mut widest = at;
        for child in [left, right] {
            if child != NIL {
                let candidate = self.node(child).widest;
                if self.node(candidate).span.cmp_end(&self.node(widest).span) == Ordering::Greater {
                    widest = candidate;
                }
            }
        }
        let node = self.node_mut(at);
        node.height = height;
        node.widest = widest;
    }

    /// Restores the balance of `at`. Its children are balanced and differ in height by at most two. Returns the new
    /// root of this subtree.
    fn balance(&mut self, at: u32) -> u32 {
        self.refresh(at);
        let (left, right) = (self.node(at).left, self.node(at).right);
        match self.height(left) - self.height(right) {
            2 => {
                if self.height(self.node(left).left) < self.height(self.node(left).right) {
                    let left = self.rotate_left(left);
                    self.node_mut(at).left = left;
                }
                self.rotate_right(at)
            }
            -2 => {
                if self.height(self.node(right).right) < self.height(self.node(right).left) {
                    let right = self.rotate_right(right);
                    self.node_mut(at).right = right;
                }
                self.rotate_left(at)
            }
            difference => {
                debug_assert!(difference.abs() < 2);
                at
            }
        }
    }

    fn rotate_left(&mut self, at: u32) -> u32 {
        let up = self.node(at).right;
        self.node_mut(at).right = self.node(up).left;
        self.node_mut(up).left = at;
        self.refresh(at);
        self.refresh(up);
        up
    }

    fn rotate_right(&mut self, at: u32) -> u32 {
        let up = self.node(at).left;
        self.node_mut(at).left = self.node(up).right;
        self.node_mut(up).right = at;
        self.refresh(at);
        self.refresh(up);
        up
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    /// Walks the tree, and panics if an invariant does not hold. Returns the height and the spans in order.
    fn verify(tree: &Tree, at: u32, spans: &mut Vec<Span>) -> i8 {
        if at == NIL {
            return 0;
        }
        let node = tree.node(at);
        let first = spans.len();
        let left = verify(tree, node.left, spans);
        spans.push(node.span.clone());
        let right = verify(tree, node.right, spans);
        assert!((left - right).abs() < 2, "balanced");
        assert_eq!(node.height, 1 + left.max(right));
        let widest = &tree.node(node.widest).span;
        assert!(spans[first..].contains(widest));
        assert!(spans[first..].iter().all(|span| span.cmp_end(widest) != Ordering::Greater));
        node.height
    }

    fn key(rng: &mut SmallRng) -> Bytes {
        let len = rng.random_range(1..4);
        (0..len).map(|_| [0, b'a', b'b', 0xff][rng.random_range(0..4)]).collect::<Vec<u8>>().into()
    }

    fn range(rng: &mut SmallRng) -> WireRange {
        loop {
            let end = [Bytes::new(), Bytes::from_static(b"\0"), key(rng), key(rng)][rng.random_range(0..4)].clone();
            let range = WireRange::new(key(rng), end);
            if !range.is_empty() {
                return range;
            }
        }
    }

    #[test]
    fn finds_exactly_the_watchers_whose_range_contains_the_key() {
        for seed in 0..20 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let mut index = Index::default();
            let mut model: BTreeMap<WatcherSlot, (WireRange, Seat)> = BTreeMap::new();
            for step in 0..600 {
                if rng.random_range(0..3) > 0 || model.is_empty() {
                    let range = range(&mut rng);
                    let seat = index.insert(&range, step);
                    model.insert(step, (range, seat));
                } else {
                    let victim = *model.keys().nth(rng.random_range(0..model.len())).unwrap();
                    let (_, seat) = model.remove(&victim).unwrap();
                    if let Some(moved) = index.remove(seat) {
                        model.get_mut(&moved).unwrap().1 = seat;
                    }
                }
                assert_eq!(index.len(), model.len());
                let mut spans = vec![];
                verify(&index.ranges, index.ranges.root, &mut spans);
                assert!(spans.is_sorted_by(|a, b| a.cmp(b) == Ordering::Less));
                let key = key(&mut rng);
                let mut groups = vec![];
                index.find(&key, &mut groups);
                assert_eq!(index.concerns(&key), !groups.is_empty(), "seed {seed} step {step}");
                let mut found: Vec<_> = groups.iter().flat_map(|&group| index.members(group)).copied().collect();
                found.sort_unstable();
                let expected: Vec<_> =
                    model.iter().filter(|(_, (range, _))| range.contains(&key)).map(|(&watcher, _)| watcher).collect();
                assert_eq!(found, expected, "seed {seed} step {step}");
            }
        }
    }

    #[test]
    fn ascending_ranges_leave_the_tree_shallow() {
        let mut index = Index::default();
        for start in 0..10_000u32 {
            index.insert(&WireRange::new(Bytes::from(start.to_be_bytes().to_vec()), Bytes::from_static(b"\0")), start);
        }
        assert!(index.ranges.height(index.ranges.root) <= 20, "1.44 log2 of 10,000");
    }
}
