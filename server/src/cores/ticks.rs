//! Runs on: raft core, apply core.
//!
//! The heartbeat of a loop that may be busy all the time.
//!
//! The runtime's timer wakes a loop that sleeps. A loop that does not sleep looks at the clock. So a tick is at most
//! one turn late, however many messages there are.

use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior};

/// See the head of this file.
pub(super) struct Ticks {
    timer: Interval,
    period: Duration,
    next: Duration,
    has_rung: bool,
}

impl Ticks {
    /// Ticks that are `period` apart. The first is due now.
    pub(super) fn new(period: Duration) -> Self {
        let mut timer = tokio::time::interval(period);
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { timer, period, next: Duration::ZERO, has_rung: false }
    }

    /// Whether a tick is due. A due tick then counts as made.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        let has_rung = std::mem::take(&mut self.has_rung);
        if !has_rung && now < self.next {
            return false;
        }
        if !has_rung {
            self.timer.reset();
        }
        self.next = now + self.period;
        true
    }

    /// Resolves when a tick is due.
    pub(super) async fn ring(&mut self) {
        self.timer.tick().await;
        self.has_rung = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_never_sleeps_ticks_by_the_clock() {
        let (ms, mut ticks) = (Duration::from_millis, Ticks::new(Duration::from_secs(3600)));
        assert!(ticks.is_due(ms(5)), "the first");
        ticks.period = ms(100);
        assert!(ticks.is_due(Duration::from_secs(3605)));
        let due = (0..1000).filter(|now| ticks.is_due(Duration::from_secs(3605) + ms(*now))).count();
        assert_eq!(due, 9, "at 100, 200 ... 900");
    }
}
