//! Runs on: connection core (a snapshot file), main thread (offline).
//!
//! A member's state beside its records, in one place. It is written into a snapshot file, and into the data directory
//! that is built from one.

use consensus::EntryId;
use engine::ReadView;

use crate::apply::restore::Tables;

/// A member's state beside its records.
#[derive(Clone, Debug)]
pub struct State {
    /// Members, alarms, version, configuration, leases.
    pub tables: Tables,
    /// Last applied entry.
    pub applied: EntryId,
    /// Current revision: records up to it belong to the state.
    pub revision: i64,
    /// Of the records up to this revision, compaction keeps the newest of each key; -1 for no compaction.
    pub compact_revision: i64,
}

impl State {
    /// The state that `view` shows. `tables` must come from that view.
    pub fn of(view: &ReadView, tables: Tables) -> Self {
        Self {
            tables,
            applied: EntryId { index: view.applied_index(), term: view.applied_term() },
            revision: view.revision(),
            compact_revision: view.compact_revision(),
        }
    }
}
