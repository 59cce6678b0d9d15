//! Runs on: tests.
//!
//! - `member`: raft and apply over a simulated disk, turn by turn
//! - `configuration`: changes of the members, and entries that stop a member
//! - `entry`: single entries over a store in memory
//! - `flips`: one flipped bit anywhere in a member's files
//! - `long`: entries that are made in steps
//! - `machines`: what waits for a checkpoint, and the order in which the two machines move
//! - `standstill`: pages that cannot be read
//! - `users`: who may do what

mod configuration;
mod entry;
mod flips;
mod long;
mod machines;
mod member;
mod standstill;
mod users;
