//! Runs on: apply core.
//!
//! What keeps the store small and the log short, a step at a time beside apply.
//!
//! - `checkpoint`: when a checkpoint begins
//! - `sweep`: dropping what compactions made invisible, and who waits for it
//! - `reclaim`: giving space back
//! - `defragment`: runs of that which somebody asked for
//! - `space`: what the store takes, and this member's NOSPACE alarm
//! - `compactor`: automatic compaction
//! - `waiters`: requests that wait until a number is reached
//!
//! Nothing here decides a result: all members' states are the same, whenever each does its upkeep.

pub mod checkpoint;
pub mod compactor;
pub mod defragment;
pub mod reclaim;
pub mod space;
pub mod sweep;
pub mod waiters;
