//! etcd's MVCC over the two trees.
//!
//! Files, from the ground up:
//! - `recent`: records that no checkpoint has written yet, in revision order.
//! - `cursor`: ranges of keys, and the walks over them.
//! - `view`: one immutable state of the store, and every read of it.
//! - `hash`: etcd's HashKV, in bounded steps and bounded memory.
//! - `write`: the one writer, and the views it publishes.
//! - `load`: loads the records that another store wrote, with the revisions that they have there.

mod cursor;
mod hash;
mod load;
mod recent;
mod view;
mod write;

pub use cursor::{Count, Cursor, KeyRange, Met, MetaCursor, Outline, RangeEnd, RevisionCursor, Usage, Version};
pub use hash::HashKv;
pub(crate) use recent::Recent;
pub use view::{Found, ReadView, Roots};
pub(crate) use write::Tour;
pub use write::{Change, Changes, Ended, Eviction, Mvcc, Published, PutPlain, Sealed, SweepProgress, Write};
