//! Runs on: connection core, threads of its own.
//!
//! What members say to each other beside raft's messages. The sockets are to come.
//!
//! - `state/`: a whole state, from one member to another.

pub mod state;
