//! States for followers whose next entries are gone: who needs one, and the heads of those that can be sent.
//!
//! raft-rs asks for a state when it would send one (`take`), and again at the follower's next answer. Whoever owns the
//! state machine is told (`wanted`), and says which state it can send to whom (`offer`).
//!
//! Invariants:
//! - For each follower there is at most one offer. It is used once: what is behind it is held for one transfer.
//! - An offer that lies before the log's first entry is of no use any more, and is dropped.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use crate::message::Snapshot;

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct States {
    /// raft-rs asks through a shared reference.
    inner: RefCell<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: BTreeSet<u64>,
    offers: BTreeMap<u64, Snapshot>,
}

impl States {
    /// The state to send to `to`, if one is offered from which the log leads on, behind `leads_on`. Otherwise one is
    /// wanted.
    pub(crate) fn take(&self, to: u64, leads_on: u64) -> Option<Snapshot> {
        let inner = &mut *self.inner.borrow_mut();
        let offer = inner.offers.remove(&to).filter(|offer| offer.at.index >= leads_on);
        if offer.is_none() {
            inner.wanted.insert(to);
        }
        offer
    }

    /// Who needs a state, each once.
    pub(crate) fn take_wanted(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.inner.get_mut().wanted)
    }

    /// `state` can be sent to `to`.
    pub(crate) fn offer(&mut self, to: u64, state: Snapshot) {
        self.inner.get_mut().offers.insert(to, state);
    }

    /// This member leads no more, or again: nothing is on offer.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }
}
