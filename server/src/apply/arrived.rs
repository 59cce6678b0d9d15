//! Runs on: apply core.
//!
//! A state of another member that has arrived here, and is not installed yet.

use consensus::EntryId;
use engine::Store;

use super::restore::Tables;

/// See the head of this file.
#[derive(Debug)]
pub struct Arrived {
    /// The state, beside the live one. All of it is durable.
    pub store: Store,
    /// The last entry in it.
    pub at: EntryId,
    /// Its tables.
    pub tables: Tables,
}
