//! Runs on: apply core.
//!
//! Apply: the one place where committed entries change state.

pub mod entry;
mod kv;
pub mod message;
pub mod outcome;
pub mod prefetch;
pub mod proposal;
pub mod restore;
pub mod table;
#[cfg(test)]
mod tests;
