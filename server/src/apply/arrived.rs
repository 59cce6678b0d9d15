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
    /// States that have begun to arrive, and of which nothing more was heard.
    pub(super) begun: usize,
    /// A state that makes up for damage.
    pub(super) spare: Option<Box<Arrived>>,
    /// `spare` is installed as soon as all entries in it were handed over. Those that were are dropped.
    pub(super) is_chosen: bool,
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

    /// The last entry of the state that is chosen to make up for damage; 0 if there is none.
    pub(super) fn chosen(&self) -> u64 {
        self.spare.as_ref().filter(|_| self.is_chosen).map_or(0, |spare| spare.at.index)
    }

    /// Whether a state is arriving, or has arrived and was not installed.
    pub(super) fn is_arriving(&self) -> bool {
        self.begun > 0 || self.spare.is_some() || self.is_on()
    }

    /// A state that has begun to arrive has come whole, or will not come.
    pub(super) fn ended(&mut self) {
        self.begun = self.begun.checked_sub(1).expect("each has begun once");
    }
}
