//! What the writer of the trees must report to the page store, and the one way to change a node.
//!
//! Invariants:
//! - Every page that a change makes unreachable from the unpublished tree is listed once in `dead_places`.
//! - `interval` counts seals. A slot with a lower `born` may belong to the sealed trees.
//!
//! It knows no keys and no order; `change` does.

use std::sync::Arc;

use super::node::{Node, Residency, Slot};
use crate::{Fault, Place, Revision};

/// What the writer must report to the page store, and its present interval between two seals.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Pages that the unpublished trees no longer reach.
    pub(crate) dead_places: Vec<Place>,
    /// Versions that the sweep has dropped.
    pub(crate) dead_records: Vec<(Revision, u32)>,
    /// Dirty slots that were replaced while a checkpoint may be writing them. If it has written them, their pages are
    /// dead.
    orphans: Vec<Arc<Slot>>,
    /// Counts seals; a slot with a lower `born` may belong to the sealed trees.
    interval: u32,
    is_sealed: bool,
    /// Memory of the nodes made dirty since the last seal. **Units** bytes.
    dirty_bytes: u64,
    residency: Arc<Residency>,
}

impl Ledger {
    /// A ledger of trees whose nodes are counted in `residency`.
    pub(crate) fn new(residency: Arc<Residency>) -> Self {
        Self { residency, ..Self::default() }
    }

    /// Memory of the nodes that the next checkpoint will write. **Units** bytes.
    pub(crate) fn dirty_bytes(&self) -> u64 {
        self.dirty_bytes
    }

    /// Whether the page of `slot` can be read: it has a page, and no checkpoint under way is still writing it.
    pub(crate) fn is_stored(&self, slot: &Slot) -> bool {
        !slot.is_dirty() && (!self.is_sealed || slot.born() + 1 < self.interval)
    }

    /// Notes that a checkpoint begins to write what is dirty now.
    pub(crate) fn seal(&mut self) {
        assert!(!self.is_sealed, "one checkpoint at a time");
        self.is_sealed = true;
        self.interval += 1;
        self.dirty_bytes = 0;
    }

    /// Notes that the checkpoint sets no more places.
    pub(crate) fn unseal(&mut self) {
        assert!(self.is_sealed, "a checkpoint ends once");
        self.is_sealed = false;
        self.dead_places.extend(self.orphans.drain(..).filter_map(|slot| slot.place()));
    }

    /// Takes in a slot that the unpublished tree no longer reaches.
    pub(super) fn retire(&mut self, slot: &Arc<Slot>) {
        if let Some(place) = slot.place() {
            self.dead_places.push(place);
        } else if self.is_sealed && (slot.born() < self.interval || slot.born() == 0) {
            self.orphans.push(Arc::clone(slot));
        } else {
            self.dirty_bytes = self.dirty_bytes.saturating_sub(slot.charged());
        }
    }

    /// A slot for a node that has just been made.
    pub(super) fn dirty(&mut self, node: Node) -> Arc<Slot> {
        let slot = Slot::born_in(node, self.interval, &self.residency);
        slot.mark_used();
        self.dirty_bytes += slot.charged();
        slot
    }
}

/// Changes the node of `slot`. If nobody else reaches it, it is changed in place. Otherwise a copy takes its place.
pub(super) fn modify<R>(
    slot: &mut Arc<Slot>,
    ledger: &mut Ledger,
    change: impl FnOnce(&mut Node, &mut Ledger) -> Result<R, Fault>,
) -> Result<R, Fault> {
    if let Some((node, place)) = Slot::unshared(slot, ledger.interval) {
        ledger.dead_places.extend(place);
        let result = change(node, ledger);
        // This is needed even if the change gave up: the node's page is given up already, so the node is dirty.
        slot.recharge();
        if place.is_some() {
            ledger.dirty_bytes += slot.charged();
        }
        return result;
    }
    let mut copy = slot.look()?.clone();
    let result = change(&mut copy, ledger)?;
    ledger.retire(slot);
    *slot = ledger.dirty(copy);
    Ok(result)
}
