//! Runs on: apply core.
//!
//! Questions to the lessor that wait, and until when this member is sure to lead (`renewals`).

use std::{collections::VecDeque, time::Duration};

use super::{message::ToApply, upkeep::waiters::Waiters};
use crate::slots::ReplyTo;

/// See the head of this file.
#[derive(Default)]
pub(super) struct Unanswered {
    /// Until then, no other member can have become the leader of a later term.
    pub(super) sure_until: Duration,
    /// Questions that came before what was committed then was applied, with that index and when they came.
    pub(super) behind: VecDeque<(u64, Duration, ToApply)>,
    /// Who renews a lease while it is not sure who leads, with the lease.
    pub(super) unsure: Waiters<i64>,
    /// Who renews a lease that has expired and is not revoked yet, with the lease.
    pub(super) expired: Waiters<i64>,
    /// Who renews a lease of which the next leader may believe that it has less time left, with the lease.
    pub(super) taken_back: Waiters<i64>,
}

impl Unanswered {
    /// Whether somebody waits until it is sure who leads.
    pub(super) fn want_lead(&self) -> bool {
        !self.unsure.is_empty()
    }

    /// This member leads no more. Takes out all who wait for what a leader alone does.
    pub(super) fn demote(&mut self) -> Vec<ReplyTo> {
        self.sure_until = Duration::ZERO;
        let waiting = [&mut self.unsure, &mut self.expired, &mut self.taken_back];
        waiting.into_iter().flat_map(Waiters::drain).map(|(_, reply)| reply).collect()
    }
}
