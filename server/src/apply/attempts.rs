//! Runs on: apply core.
//!
//! When a member tries to have its damage made up for (`repair`): less and less often.

use std::time::Duration;

/// Pause before the first attempt. It doubles with each one.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// Pause between attempts, at most.
const PAUSE_MAX: Duration = Duration::from_secs(3600);

/// See the head of this file.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    next_at: Option<Duration>,
    pause: Duration,
}

impl Attempts {
    /// Whether it is time for an attempt. Then the next one is planned.
    pub(super) fn is_due(&mut self, now: Duration) -> bool {
        if now < *self.next_at.get_or_insert(now + PAUSE_MIN) {
            return false;
        }
        self.pause = (2 * self.pause).clamp(PAUSE_MIN, PAUSE_MAX);
        self.next_at = Some(now + self.pause);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_get_rarer_and_do_not_end() {
        let mut attempts = Attempts::default();
        let due: Vec<u64> = (0..20_000).filter(|second| attempts.is_due(Duration::from_secs(*second))).collect();
        assert_eq!(due[..4], [5, 10, 20, 40]);
        assert!(due.windows(2).all(|two| two[1] - two[0] <= 3600) && due.len() > 11, "{due:?}");
    }
}
