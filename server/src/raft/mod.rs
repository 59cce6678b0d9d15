//! Runs on: raft core.
//!
//! Raft's side of a member: proposals go in, committed entries come out with the proposals that wait for them.
//!
//! - `message`: the messages to raft
//! - `machine`: the log and its order, turn by turn
//! - `waiters`: proposals on their way through the log
//!
//! Later, `reads` will hold the reads that must ask other members, and `leadership` what follows from leadership. A
//! single voter needs neither.

pub mod machine;
pub mod message;
#[cfg(test)]
mod tests;
pub mod waiters;
