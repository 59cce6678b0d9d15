//! Runs on: apply core.
//!
//! A state of another member that has arrived here, and where its installation stands (`install`).

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

/// Where the installation of a state stands.
#[derive(Debug, Default)]
pub(super) struct Install {
    /// A state that may make up for damage.
    pub(super) spare: Option<Box<Arrived>>,
    /// The state that takes the place of this member's, and of its log.
    pub(super) due: Option<Box<Arrived>>,
    /// The superblock is being written.
    pub(super) under_way: Option<UnderWay>,
}

/// A state that is being installed.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) at: EntryId,
    pub(super) tables: Tables,
    /// The log leads to the state: only this member's pages were damaged.
    pub(super) is_repair: bool,
}

impl Install {
    /// Whether nothing else may happen to the store.
    pub(super) fn is_on(&self) -> bool {
        self.due.is_some() || self.under_way.is_some()
    }
}
