//! Takes tree pages out of segments that must be emptied. The writer makes such nodes dirty; the next checkpoint writes
//! them elsewhere.
//!
//! A tour walks the tree in key order and looks at the places that inner nodes hold. It reads all inner nodes, but only
//! those leaves that it moves. Its position is a key, so changes of the tree between two steps do not mislead it.
//!
//! Invariants:
//! - Where the tour has passed, no clean node lies in a segment of `Victims`, neither below nor on the way there. New
//!   nodes there (from changes, splits, joins) are dirty, and dirty nodes are written to segments that were begun
//!   later. So after one tour the tree reaches none of these segments.
//! - A step that faults has changed nothing.
//!
//! It does not choose segments (`reclaim` does).

use std::sync::Arc;

use super::{
    ledger::{Ledger, modify},
    node::{Inner, Node, Slot},
    separators::Separator,
};
use crate::{Fault, Revision, victims::Victims};

/// Whether the page of `slot` lies in one of the victims.
fn holds(victims: &Victims, slot: &Slot) -> bool {
    slot.place().is_some_and(|place| victims.contains(place.segment))
}

/// The work of a step, and the position of the next one.
pub(crate) struct Step {
    pub(crate) examined: usize,
    /// `None` after the last node.
    pub(crate) next: Option<Separator>,
}

/// The position before every key.
pub(crate) fn start() -> Separator {
    Separator { key: Vec::new(), revision: Revision::MAX }
}

/// Makes dirty the nodes in `victims` on the way to `from`, and those below the last inner node of it, after `from`; at
/// most about `nodes_max` nodes. Otherwise returns the pages that must be read first, those of all such leaves
/// together.
pub(crate) fn rewrite(
    root: &mut Arc<Slot>,
    ledger: &mut Ledger,
    victims: &Victims,
    from: &Separator,
    nodes_max: usize,
) -> Result<Step, Vec<Fault>> {
    let way = Way::find(root, victims, from).map_err(|fault| vec![fault])?;
    let Some(parent) = way.parent else {
        if way.holds_victim {
            modify(root, ledger, |_, _| Ok(())).map_err(|fault| vec![fault])?;
        }
        return Ok(Step { examined: 1, next: None });
    };
    let first = parent.child_of(&from.key, from.revision);
    let mut targets = Vec::new();
    let mut next = way.end;
    let held = parent.children().iter().enumerate().skip(first).filter(|(_, child)| holds(victims, &child.slot));
    for (position, child) in held.clone() {
        let is_full = targets.len() >= nodes_max.max(1);
        match child.slot.look() {
            Ok(_) if !is_full => targets.push(position),
            Err(_) if targets.is_empty() => {
                return Err(held.filter_map(|(_, child)| child.slot.look().err()).collect());
            }
            Ok(_) | Err(_) => {
                next = Some(parent.separators().get(position - 1));
                break;
            }
        }
    }
    let examined = parent.len() - first;
    if way.holds_victim || !targets.is_empty() {
        rewrite_in(root, ledger, &way.positions, &targets).map_err(|fault| vec![fault])?;
    }
    Ok(Step { examined, next })
}

/// The way down to the inner node whose children are leaves.
struct Way<'a> {
    /// Positions of the children that were taken, from the root down to `parent`.
    positions: Vec<usize>,
    parent: Option<&'a Inner>,
    /// The end of what is below `parent`.
    end: Option<Separator>,
    holds_victim: bool,
}

impl<'a> Way<'a> {
    fn find(root: &'a Arc<Slot>, victims: &Victims, from: &Separator) -> Result<Self, Fault> {
        let depth = depth(root)?;
        let mut way = Self { positions: Vec::new(), parent: None, end: None, holds_victim: holds(victims, root) };
        let mut slot = root;
        for level in 0..depth {
            let Node::Inner(inner) = slot.look()? else { unreachable!("all leaves lie at one depth") };
            way.parent = Some(inner);
            way.holds_victim |= holds(victims, slot);
            let position = inner.child_of(&from.key, from.revision);
            if level + 1 < depth {
                if position < inner.separators().len() {
                    way.end = Some(inner.separators().get(position));
                }
                way.positions.push(position);
                slot = &inner.children()[position].slot;
            }
        }
        Ok(way)
    }
}

/// Levels of inner nodes. It reads the first leaf, because an inner node does not show whether its children are leaves.
fn depth(root: &Arc<Slot>) -> Result<usize, Fault> {
    let mut depth = 0;
    let mut slot = root;
    while let Node::Inner(inner) = slot.look()? {
        depth += 1;
        slot = &inner.children()[0].slot;
    }
    Ok(depth)
}

/// Makes the nodes on the way dirty, and the `targets` among the children of the last one. All of them must be
/// resident.
fn rewrite_in(slot: &mut Arc<Slot>, ledger: &mut Ledger, way: &[usize], targets: &[usize]) -> Result<(), Fault> {
    modify(slot, ledger, |node, ledger| {
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
