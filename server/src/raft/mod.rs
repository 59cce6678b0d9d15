//! Runs on: raft core.
//!
//! Raft's side of a member: proposals go in, committed entries come out with the proposals that wait for them.
//!
//! - `message`: the messages to raft
//! - `machine`: the log and its order, turn by turn
//! - `proposals`: what waits to be proposed
//! - `waiters`: proposals on their way through the log
//! - `reads`: linearizable reads on their way
//! - `transfer`: clients that wait for another leader, and a leader that ends

pub mod machine;
pub mod message;
pub mod proposals;
mod reads;
#[cfg(test)]
mod tests;
pub mod transfer;
pub mod waiters;
