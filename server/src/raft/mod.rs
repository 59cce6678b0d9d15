//! Runs on: raft core.
//!
//! Raft's side of a member: proposals go in, committed entries come out with the proposals that wait for them.

pub mod message;
