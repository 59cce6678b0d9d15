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
//! - Attempts get rarer, up to [`PAUSE_MAX`]: damage that nobody can make up for costs little.

use std::time::Duration;

use super::machine::Apply;

/// How long a state is waited for before it begins to arrive.
const WAIT: Duration = Duration::from_secs(10);
/// Pause before the first attempt. It doubles with each one.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Pause between attempts, at most.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// When this member tries to have its damage made up for.
#[derive(Debug, Default)]
pub(super) struct Repair {
    next_at: Option<Duration>,
    pause: Duration,
}

impl Apply {
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
        if !is_damaged || !self.applier.conf_state.has_peers() {
            self.repair = Repair::default();
            return;
        }
        if now < *self.repair.next_at.get_or_insert(now + PAUSE_MIN) {
            return;
        }
        self.repair.pause = (2 * self.repair.pause).clamp(PAUSE_MIN, PAUSE_MAX);
        self.repair.next_at = Some(now + self.repair.pause);
        if self.standing.leads {
            tracing::warn!("pages of this member cannot be read: it hands leadership over");
            self.report.hands_over = true;
        } else if !self.standstill.is_on() && self.shared.has_leader() {
            self.standstill.begin_repair(&self.shared, now + WAIT);
        }
    }
}
