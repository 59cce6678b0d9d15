//! What members answer in a scenario, until it asks.
//!
//! Runs of the plan keep nothing here: their clients are told.

use std::{collections::BTreeMap, sync::Arc};

use engine::ReadView;
use server::{
    apply::{outcome::Outcome, proposal::Proposal},
    error::Error,
};

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Heard {
    proposals: BTreeMap<u64, Result<Outcome, Error>>,
    reads: BTreeMap<u64, Option<Arc<ReadView>>>,
    /// The seconds that leases have, by lease.
    renewals: BTreeMap<i64, i64>,
}

impl Heard {
    pub(crate) fn keep(&mut self, proposals: Vec<Proposal>, reads: Vec<(u64, Option<Arc<ReadView>>)>) {
        self.proposals.extend(proposals.into_iter().map(|proposal| (proposal.id, proposal.result)));
        self.reads.extend(reads);
    }

    pub(crate) fn keep_renewals(&mut self, renewals: &[(i64, i64)]) {
        self.renewals.extend(renewals.iter().copied());
    }

    /// The seconds that the lease has, or 0 if it is gone, once a renewal is answered. It is told once.
    pub(crate) fn take_renewal(&mut self, lease: i64) -> Option<i64> {
        self.renewals.remove(&lease)
    }

    /// What became of the proposal `id`, if that is known. It is told once.
    pub(crate) fn take_proposal(&mut self, id: u64) -> Option<Result<Outcome, Error>> {
        self.proposals.remove(&id)
    }

    /// The view that answers the read `context`, or `None` in it if it was refused. It is told once.
    pub(crate) fn take_read(&mut self, context: u64) -> Option<Option<Arc<ReadView>>> {
        self.reads.remove(&context)
    }
}
