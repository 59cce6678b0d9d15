//! Runs on: tests.
//!
//! - `entry`: single entries over a store in memory
//! - `machines`: raft and apply over a simulated disk, turn by turn

mod entry;
mod machines;
