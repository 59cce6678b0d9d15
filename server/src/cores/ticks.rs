//! Runs on: raft core, apply core.
//!
//! The heartbeat of a loop that may be busy all the time.
//!
//! The runtime's timer wakes a loop that sleeps. A loop that does not sleep looks at the clock. So a tick is at most
//! one turn late, however many messages there are, and the next one is not late for that. What was missed altogether is
//! not made up for here: raft is told the time itself (`raft::machine`), and everything else needs only the present.

use std::{pin::Pin, time::Duration};

use tokio::time::{Sleep, sleep};

/// See the head of this file.
pub(super) struct Ticks {
    period: Duration,
    next: Duration,
    timer: Pin<Box<Sleep>>,
    /// When the timer rings.
    rings_at: Duration,
}

impl Ticks {
    /// Ticks that are `period` apart. The first is due now.
    pub(super) fn new(period: Duration) -> Self {
        Self { period, next: Duration::ZERO, timer: Box::pin(sleep(Duration::ZERO)), rings_at: Duration::ZERO }
    }

    /// Whether a tick is due. A due tick then counts as made.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        if now < self.next {
            return false;
        }
        self.next += self.period;
        if self.next <= now {
            self.next = now + self.period;
        }
        true
    }

    /// Resolves when a tick is due, or at `at` if that is earlier. It is `now`.
    pub(super) async fn ring(&mut self, now: Duration, at: Duration) {
        let at = at.min(self.next);
        if at != self.rings_at || self.timer.is_elapsed() {
            self.rings_at = at;
            self.timer.set(sleep(at.saturating_sub(now)));
        }
        self.timer.as_mut().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_loop_that_never_sleeps_ticks_by_the_clock() {
        let (ms, mut ticks) = (Duration::from_millis, Ticks::new(Duration::from_millis(100)));
        let start = Duration::from_secs(3605);
        assert!(ticks.is_due(start), "the first");
        // Each turn takes 7 ms. A late tick does not make those after it late.
        let due: Vec<u64> = (0..1000).step_by(7).filter(|at| ticks.is_due(start + ms(*at))).collect();
        assert_eq!(due, [105, 203, 301, 406, 504, 602, 700, 805, 903]);
    }

    #[tokio::test]
    async fn who_stood_still_makes_one_tick_and_no_burst() {
        let (ms, mut ticks) = (Duration::from_millis, Ticks::new(Duration::from_millis(100)));
        assert!(ticks.is_due(ms(50)));
        assert!(ticks.is_due(ms(5050)));
        let due: Vec<u64> = (5051..5400).filter(|at| ticks.is_due(ms(*at))).collect();
        assert_eq!(due, [5150, 5250, 5350]);
    }

    #[tokio::test]
    async fn a_loop_that_sleeps_wakes_at_what_comes_first() {
        let (ms, hour) = (Duration::from_millis, Duration::from_secs(3600));
        for (period, at) in [(ms(1), Duration::MAX), (hour, ms(1001)), (hour, ms(999))] {
            let mut ticks = Ticks::new(period);
            assert!(ticks.is_due(ms(1000)));
            for _ in 0..3 {
                let rung = tokio::time::timeout(hour / 60, ticks.ring(ms(1000), at)).await;
                assert!(rung.is_ok(), "{period:?}, {at:?}");
            }
        }
    }
}
