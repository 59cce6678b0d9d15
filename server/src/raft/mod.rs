//! Runs on: raft core.
//!
//! Raft's side of a member: proposals go in, committed entries come out with the proposals that wait for them.
//!
//! - `message`: what raft is told
//! - `machine`: the log and its order, turn by turn
//! - `waiters`: proposals on their way through the log
//!
//! Reads that must ask other members, and what follows from leadership, will stand in `reads` and `leadership`; a
//! single voter needs neither.

pub mod machine;
pub mod message;
#[cfg(test)]
mod tests;
pub mod waiters;
