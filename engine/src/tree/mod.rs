//! Copy-on-write B+trees over pages: the key tree and the meta tree.
//!
//! Files, from the ground up:
//! - `sums`: what a parent knows about a subtree.
//! - `leaf`: entries packed in key order. `separators`: the separators between the children of an inner node.
//! - `node`: nodes, their page form, and the slots that hold them.
//! - `ledger`: what the writer reports to the page store, and the one way to change a node.
//! - `walk`: one entry, the rank of a key, and the walk from leaf to leaf.
//! - `change`: put, remove, and the sweep that drops old versions.
//! - `evict`: gives back the memory of nodes that can be read again.
//! - `rewrite`: takes tree pages out of segments that must be emptied.
//! - `verify`: walks a whole tree, and panics if an invariant does not hold.

mod change;
mod evict;
mod leaf;
mod ledger;
mod node;
mod rewrite;
mod separators;
mod sums;
mod verify;
mod walk;

pub(crate) use change::{NewEntry, Pass, Swept, end_live, put, remove, sweep};
pub(crate) use evict::{Hand, evict};
pub(crate) use leaf::{EndedKeys, EntryMeta, Leaf, NEWEST, TOMBSTONE, VALUE};
pub(crate) use ledger::Ledger;
pub use node::{Node, Slot};
pub(crate) use rewrite::{Terms, rewrite, start};
pub(crate) use separators::Separator;
pub(crate) use sums::Sums;
pub use verify::Profile;
pub(crate) use verify::verify;
pub(crate) use walk::{AFTER, Walk, bytes_of_first, entries_before, find, missing, rank, total, touch, value_of};
