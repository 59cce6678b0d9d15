//! Runs on: apply core.
//!
//! Gives space back: the steps of it beside apply, and the runs on request.

use std::time::Duration;

use engine::{Fault, Store};

use super::{checkpoint, defragment::Defragment};
use crate::{metrics::counters::CommitCounters, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug, Default)]
pub struct Reclaim {
    /// There is more to do at once.
    is_going: bool,
    /// Runs that were asked for.
    pub defragment: Defragment,
}

impl Reclaim {
    /// Whether there is more to do at once.
    pub fn is_going(&self) -> bool {
        self.is_going
    }

    /// Begins and ends the runs that were asked for. Returns the replies that waited for runs that have ended.
    pub fn take_ended(
        &mut self,
        store: &mut Store,
        is_sweeping: bool,
        counters: &CommitCounters,
        now: Duration,
    ) -> Vec<ReplyTo> {
        self.defragment.step(store, is_sweeping, counters, now)
    }

    /// Makes one step over about `pages` places. Returns the pages that it must read.
    pub fn step(&mut self, store: &mut Store, now: Duration, pages: usize) -> Vec<Fault> {
        // Pages that the step takes out of segments become dirty, so a due checkpoint comes first.
        if checkpoint::is_dirty_due(store) {
            self.is_going = false;
            return Vec::new();
        }
        let step = store.reclaim(now, pages);
        self.is_going = matches!(step, Ok(true));
        step.err().unwrap_or_default()
    }
}
