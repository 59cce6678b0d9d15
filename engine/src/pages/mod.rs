//! The page store: where everything is written, what of it is live, and how a state becomes durable.
//!
//! Files, from the ground up:
//! - `superblock`: the one place that says which state is the present one.
//! - `space`: how much of each segment file is live, which files are dead, and when they are removed.
//! - `reader`: reads the page that a `Fault` names; one reader per core.
//! - `writer`: the append cursors of one storage shard, and the writes behind them.
//! - `shard`: a shard's share of a checkpoint: extents and subtrees.
//! - `relocation`: moves the wanted records out of segments that are to be emptied.
//! - `checkpoint`: writes one sealed state beside running traffic, and publishes it with one superblock.
//! - `reclaim`: chooses the segments that are emptied, and says when a checkpoint is worth it for space alone.
//! - `store`: the page store as the apply core owns it.
//! - `scrub`: reads a store again while it is in use, to find damage.
//! - `inspect`: inspects a page store that no process uses. `salvage`: reads back what is left of a damaged one.

mod checkpoint;
pub mod inspect;
mod reader;
mod reclaim;
mod relocation;
pub mod salvage;
pub mod scrub;
mod shard;
mod space;
pub mod store;
mod superblock;
mod writer;

pub use checkpoint::{Checkpoint, CheckpointDone, Progress};
pub use reader::{Loaded, PageReader, load, load_for, load_noted};
pub use reclaim::Reclaimed;
pub use shard::{ShardJob, ShardProgress};
pub(crate) use space::Space;
pub use store::Store;
pub(crate) use superblock::Superblock;
pub use superblock::{VITAL_MAX, Vital};
