//! Gives back the memory of nodes that can be read again. A clock's hand walks over a tree in key order.
//!
//! Invariants:
//! - A node is evicted only under these conditions. It is clean, and its page can be read (`Ledger::is_stored`). No
//!   search has passed it since the hand was last there. Nothing below it is resident. A root stays.
//! - Eviction changes only what is resident. Pages, places and sums stay as they are. The parent of an evicted node is
//!   copied, so views published before keep their nodes. The parent's page stays its own, and a dirty parent stays
//!   dirty.
//! - Each call looks at a bounded number of nodes. It leaves the hand at a key, which later changes of the tree do not
//!   move.
//!
//! It does not decide when memory is short (`Store` does).

use std::sync::Arc;

use super::{
    ledger::Ledger,
    node::{Inner, Node, Slot},
};
use crate::Revision;

/// The position of the clock's hand in a tree: the first child that is not before it. A new hand is at the beginning.
#[derive(Debug)]
pub(crate) struct Hand {
    key: Vec<u8>,
    revision: Revision,
}

impl Default for Hand {
    fn default() -> Self {
        Self { key: Vec::new(), revision: Revision::MAX }
    }
}

/// The result of one call.
#[derive(Debug, Default)]
pub(crate) struct Lap {
    /// Nodes looked at.
    pub(crate) looked: usize,
    /// Nodes whose memory is freed with the last view that reaches them.
    pub(crate) evicted: usize,
    /// The hand has come to the end, and is at the beginning again.
    pub(crate) is_over: bool,
}

/// Moves the hand over about `budget` nodes.
pub(crate) fn evict(root: &mut Arc<Slot>, ledger: &mut Ledger, hand: &mut Hand, budget: usize) -> Lap {
    let mut lap = Lap::default();
    let mut pass = Pass { ledger, hand, lap: &mut lap, budget };
    let (pruned, is_over) = pass.over(root);
    if let Some(pruned) = pruned {
        *root = pruned;
    }
    if is_over {
        *hand = Hand::default();
        lap.is_over = true;
    }
    lap
}

struct Pass<'a> {
    ledger: &'a mut Ledger,
    hand: &'a mut Hand,
    lap: &'a mut Lap,
    budget: usize,
}

impl Pass<'_> {
    /// Goes over the subtree of `slot`, from the hand on. Returns the slot that replaces it, if anything was evicted,
    /// and whether the end was reached.
    fn over(&mut self, slot: &Arc<Slot>) -> (Option<Arc<Slot>>, bool) {
        let Some(Node::Inner(inner)) = slot.resident() else { return (None, true) };
        let mut changed: Vec<(usize, Arc<Slot>)> = Vec::new();
        let mut position = inner.child_of(&self.hand.key, self.hand.revision);
        let is_over = loop {
            let child = &inner.children()[position].slot;
            let (mut pruned, is_passed) = self.over(child);
            if is_passed && let Some(evicted) = self.look_at(pruned.as_ref().unwrap_or(child)) {
                pruned = Some(evicted);
            }
            changed.extend(pruned.map(|pruned| (position, pruned)));
            if !is_passed {
                break false;
            }
            position += 1;
            if position == inner.len() {
                break true;
            }
            let separators = inner.separators();
            self.hand.key.clear();
            self.hand.key.extend_from_slice(separators.key(position - 1));
            self.hand.revision = separators.revision(position - 1);
            if self.lap.looked >= self.budget {
                break false;
            }
        };
        (self.prune(slot, inner, changed), is_over)
    }

    /// Looks at one child whose subtree was passed. Returns its replacement if it is evicted.
    fn look_at(&mut self, slot: &Arc<Slot>) -> Option<Arc<Slot>> {
        self.lap.looked += 1;
        let node = slot.resident()?;
        let is_evictable = self.ledger.is_stored(slot) && node.children().all(|child| child.resident().is_none());
        // The mark is taken even if the node stays, because it must show later searches.
        let is_used = slot.take_used();
        if !is_evictable || is_used {
            return None;
        }
        self.lap.evicted += 1;
        Some(slot.unread())
    }

    /// `slot` with other slots for some of its children.
    fn prune(&mut self, slot: &Arc<Slot>, inner: &Inner, changed: Vec<(usize, Arc<Slot>)>) -> Option<Arc<Slot>> {
        if changed.is_empty() {
            return None;
        }
        let mut copy = inner.clone();
        for (position, pruned) in changed {
            copy.child_mut(position).slot = pruned;
        }
        if !slot.is_dirty() {
            return Some(slot.reshaped(Node::Inner(copy)));
        }
        self.ledger.retire(slot);
        Some(self.ledger.dirty(Node::Inner(copy)))
    }
}
