//! Takes tree pages out of segments that must be emptied. The writer makes such nodes dirty; the next checkpoint writes
//! them elsewhere.
//!
//! A tour walks the tree in key order and looks at the places that inner nodes hold. It reads all inner nodes, but only
//! those leaves that it moves. Its position is a key, so changes of the tree between two steps do not mislead it.
//!
//! Invariants:
//! - Where the tour has passed, no clean node lies in a segment of `Victims`, neither below nor on the way there. New
//!   nodes there (from changes, splits, joins) are dirty, and dirty nodes are written to segments that were begun
//!   later. So after one tour the tree reaches none of these segments, but through pages that cannot be read. The tour
//!   goes round those and counts them (`Step::passed`): what lies below them stays where it is.
//! - A step that faults has changed nothing.
//!
//! It does not choose segments (`reclaim` does).

use std::sync::Arc;

use super::{
    ledger::{Ledger, modify},
    node::{Inner, Node, Slot},
    separators::Separator,
};
use crate::{Fault, Revision, Unreadable, victims::Victims};

/// The work of a step, and the position of the next one.
pub(crate) struct Step {
    pub(crate) examined: usize,
    /// Pages that it went round, because they cannot be read.
    pub(crate) passed: usize,
    /// `None` after the last node.
    pub(crate) next: Option<Separator>,
}

/// The position before every key.
pub(crate) fn start() -> Separator {
    Separator { key: Vec::new(), revision: Revision::MAX }
}

/// What a tour takes out of which segments, and what it goes round.
#[derive(Clone, Copy)]
pub(crate) struct Terms<'a> {
    pub(crate) victims: &'a Victims,
    pub(crate) unreadable: &'a Unreadable,
}

impl Terms<'_> {
    /// Whether the page of `slot` lies in one of the victims.
    fn holds(&self, slot: &Slot) -> bool {
        slot.place().is_some_and(|place| self.victims.contains(place.segment))
    }

    /// The node of `slot`; `None` if its page cannot be read.
    fn look<'a>(&self, slot: &'a Arc<Slot>) -> Result<Option<&'a Node>, Fault> {
        let is_avoided = || slot.place().is_some_and(|place| self.unreadable.avoids(place));
        match slot.resident() {
            None if is_avoided() => Ok(None),
            _ => slot.look().map(Some),
        }
    }
}

/// Makes dirty the nodes in victims on the way to `from`, and those below the last inner node of it, after `from`; at
/// most about `nodes_max` nodes. Otherwise returns the pages that must be read first, those of all such leaves
/// together.
pub(crate) fn rewrite(
    root: &mut Arc<Slot>,
    ledger: &mut Ledger,
    terms: Terms<'_>,
    from: &Separator,
    nodes_max: usize,
) -> Result<Step, Vec<Fault>> {
    let way = Way::find(root, terms, from).map_err(|fault| vec![fault])?;
    let mut step = Step { examined: 1, passed: usize::from(way.is_cut), next: way.end };
    let mut targets = Vec::new();
    if let Some(parent) = way.parent.filter(|_| !way.is_cut) {
        let first = parent.child_of(&from.key, from.revision);
        step.examined = parent.len() - first;
        let held = parent.children().iter().enumerate().skip(first).filter(|(_, child)| terms.holds(&child.slot));
        for (position, child) in held.clone() {
            let is_full = targets.len() >= nodes_max.max(1);
            match terms.look(&child.slot) {
                Ok(None) => step.passed += 1,
                Ok(Some(_)) if !is_full => targets.push(position),
                Err(_) if targets.is_empty() => {
                    return Err(held.filter_map(|(_, child)| terms.look(&child.slot).err()).collect());
                }
                Ok(Some(_)) | Err(_) => {
                    step.next = Some(parent.separators().get(position - 1));
                    break;
                }
            }
        }
    }
    if way.holds_victim || !targets.is_empty() {
        rewrite_in(root, ledger, &way.positions, &targets).map_err(|fault| vec![fault])?;
    }
    Ok(step)
}

/// The way down to the inner node whose children are leaves, or to a page that cannot be read.
struct Way<'a> {
    /// Positions of the children that were taken, from the root down to the last node that is there.
    positions: Vec<usize>,
    /// The last node that is there; `None` if the root is a leaf.
    parent: Option<&'a Inner>,
    /// The end of what is below the way.
    end: Option<Separator>,
    holds_victim: bool,
    /// It ends before a page that cannot be read.
    is_cut: bool,
}

impl<'a> Way<'a> {
    fn find(root: &'a Arc<Slot>, terms: Terms<'_>, from: &Separator) -> Result<Self, Fault> {
        let mut way = Self { positions: Vec::new(), parent: None, end: None, holds_victim: false, is_cut: true };
        let Some(mut node) = terms.look(root)? else { return Ok(way) };
        way.holds_victim = terms.holds(root);
        let Some(depth) = depth(root, terms)? else { return Ok(way) };
        for level in 0..depth {
            let Node::Inner(inner) = node else { unreachable!("all leaves lie at one depth") };
            way.parent = Some(inner);
            if level + 1 == depth {
                break;
            }
            let position = inner.child_of(&from.key, from.revision);
            if position < inner.separators().len() {
                way.end = Some(inner.separators().get(position));
            }
            let slot = &inner.children()[position].slot;
            let Some(below) = terms.look(slot)? else { return Ok(way) };
            way.holds_victim |= terms.holds(slot);
            way.positions.push(position);
            node = below;
        }
        way.is_cut = false;
        Ok(way)
    }
}

/// Levels of inner nodes. It reads the first leaf that can be read, because an inner node does not show whether its
/// children are leaves. `None` if none can be.
fn depth(slot: &Arc<Slot>, terms: Terms<'_>) -> Result<Option<usize>, Fault> {
    let inner = match terms.look(slot)? {
        None => return Ok(None),
        Some(Node::Leaf(_)) => return Ok(Some(0)),
        Some(Node::Inner(inner)) => inner,
    };
    for child in inner.children() {
        if let Some(below) = depth(&child.slot, terms)? {
            return Ok(Some(below + 1));
        }
    }
    Ok(None)
}

/// Makes the nodes on the way dirty, and the `targets` among the children of the last one. All of them must be
/// resident.
fn rewrite_in(slot: &mut Arc<Slot>, ledger: &mut Ledger, way: &[usize], targets: &[usize]) -> Result<(), Fault> {
    modify(slot, ledger, |node, ledger| {
        if way.is_empty() && targets.is_empty() {
            return Ok(());
        }
        let Node::Inner(inner) = node else { unreachable!("the way is of inner nodes") };
        if let Some((position, below)) = way.split_first() {
            return rewrite_in(&mut inner.child_mut(*position).slot, ledger, below, targets);
        }
        for position in targets {
            modify(&mut inner.child_mut(*position).slot, ledger, |_, _| Ok(()))?;
        }
        Ok(())
    })
}
