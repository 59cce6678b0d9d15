//! What is known of a state while it takes the place of this member's. `install` has the rest.

use crate::message::Snapshot;

/// The ticket of what waits until a state is installed.
pub(super) const NEVER: u64 = u64::MAX;

/// A state that this member takes in place of its own.
#[derive(Debug)]
pub(super) struct Installing {
    pub(super) state: Snapshot,
    /// The ticket with which the term of its message is durable.
    pub(super) hard_state_ticket: u64,
    pub(super) is_handed: bool,
    /// The ready that brought it.
    pub(super) number: u64,
}
