//! Runs on: apply core.
//!
//! What a member of a larger cluster does about damage that it serves around: others have what is lost here, so one of
//! them is asked for its state (`shared.standstill` says so to whoever asks).
//!
//! Such a state helps only if it is not behind this member's. So apply stands still from before it is asked for until
//! it is there. Who leads does not stand still, but hands leadership over first, also when an entry needs what is lost.
//!
//! Invariants:
//! - A lone member does nothing of this.
//! - Nothing is waited for longer than [`WAIT`], unless a state is arriving.
//! - Attempts get rarer: damage that nobody can make up for costs little.

use std::time::Duration;

use super::{attempts::Attempts, machine::Apply};

/// How long a state is waited for before it begins to arrive.
const WAIT: Duration = Duration::from_secs(10);

impl Apply {
    pub(super) fn has_other_voters(&self) -> bool {
        self.applier.conf_state.has_other_voters(self.shared.identity.member_id)
    }

    /// Looks whether there is damage to be made up for, or a state is waited for in vain.
    pub(super) fn look_after_damage(&mut self, now: Duration) {
        if let Some(until) = self.standstill.waits_until() {
            if self.install.is_chosen {
                return;
            }
            if self.standing.leads || (now >= until && !self.install.is_arriving()) {
                self.standstill.passed(&self.shared);
            }
            return;
        }
        let is_damaged = self.standstill.is_on() || self.store.unreadable().has_lost();
        if !is_damaged || !self.has_other_voters() {
            self.attempts = Attempts::default();
            return;
        }
        let waits_already = self.standstill.is_on() || !self.shared.has_leader();
        if (!self.standing.leads && waits_already) || !self.attempts.is_due(now) {
            return;
        }
        if self.standing.leads {
            tracing::warn!("pages of this member cannot be read: it hands leadership over");
            self.report.hands_over = true;
        } else {
            self.standstill.begin_repair(&self.shared, now + WAIT);
        }
    }
}
