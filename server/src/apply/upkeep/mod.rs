//! Runs on: apply core.
//!
//! The work that keeps the store small and the log short, a step at a time beside apply.
//!
//! - `checkpoint`: when a checkpoint begins
//! - `sweep`: drops what compactions made invisible, and knows who waits for that
//! - `reclaim`: gives space back
//! - `defragment`: runs of `reclaim` on request
//! - `space`: the space that the store takes, and this member's NOSPACE alarm
//! - `compactor`: automatic compaction
//! - `waiters`: requests that wait for something to happen
//!
//! Nothing here decides a result: all members' states are the same, whenever each does its upkeep.

pub mod checkpoint;
pub mod compactor;
pub mod defragment;
pub mod reclaim;
pub mod space;
pub mod sweep;
pub mod waiters;
