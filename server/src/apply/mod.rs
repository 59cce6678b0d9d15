//! Runs on: apply core.
//!
//! Apply: the one place where committed entries change state.
//!
//! - `message`: what apply is told, handed and asked, and what it tells
//! - `proposal`, `outcome`, `fatal`: a client's request on its way, what came of it, why a member stops
//! - `machine`: the queue of committed entries, turn by turn, and what a turn publishes and answers
//! - `entry`: one entry: what it needs in memory, what it changes; with `kv`, `lease`, `alarms` and `members` for its
//!   kinds, `touch` for the records it holds, `table` for the keys beside the users', `restore` for what a start reads
//!   of them
//! - `own`: entries of the server's own; `count`: what is counted of entries; `prefetch`: what entries that wait will
//!   need
//! - `upkeep`: what keeps the store small and the log short: checkpoints, the sweep, giving space back

pub mod alarms;
mod count;
pub mod entry;
pub mod fatal;
mod kv;
mod lease;
pub mod machine;
pub mod members;
pub mod message;
pub mod outcome;
pub mod own;
pub mod prefetch;
pub mod proposal;
pub mod restore;
pub mod table;
#[cfg(test)]
mod tests;
pub mod touch;
pub mod upkeep;
