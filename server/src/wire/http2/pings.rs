//! Runs on: connection core.
//!
//! Which pings of a client are too many: the policy of grpc-go, which etcd runs with, for connections of h2, which
//! answers pings at any rate.
//!
//! A ping that comes too soon after the last one is a strike; more than two strikes in a row, with nothing sent to the
//! client between them, end the connection.
//! **Source** grpc-go v1.82.1 `internal/transport/http2_server.go handlePing`; etcd v3.7.1 `embed/etcd.go`.

use std::time::Duration;

/// Strikes that are borne.
const STRIKES_MAX: u32 = 2;
/// Between two pings of a client without a call.
const IDLE_MIN: Duration = Duration::from_hours(2);
/// What grpc-go takes where no time is set.
const DEFAULT_MIN: Duration = Duration::from_mins(5);

/// What the client is told.
pub const TOO_MANY: &[u8] = b"too_many_pings";
/// ENHANCE_YOUR_CALM.
pub const CALM: u32 = 11;

/// See the head of this file.
#[derive(Debug)]
pub struct Pings {
    min: Duration,
    last: Option<Duration>,
    strikes: u32,
    has_sent: bool,
}

impl Pings {
    /// The policy of a connection whose pings are `min` apart at least; zero is gRPC's own default.
    pub fn new(min: Duration) -> Self {
        let min = if min.is_zero() { DEFAULT_MIN } else { min };
        Self { min, last: None, strikes: 0, has_sent: false }
    }

    /// Headers or data were sent: what came before is forgiven.
    pub fn sent(&mut self) {
        self.has_sent = true;
    }

    /// A ping has come; whether it is one too many.
    pub fn received(&mut self, now: Duration, has_calls: bool) -> bool {
        let before = self.last.replace(now);
        if std::mem::take(&mut self.has_sent) {
            self.strikes = 0;
            return false;
        }
        let min = if has_calls { self.min } else { IDLE_MIN };
        if before.is_some_and(|before| before + min > now) {
            self.strikes += 1;
        }
        self.strikes > STRIKES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(pings: &mut Pings, times_s: &[u64], has_calls: bool) -> Vec<bool> {
        times_s.iter().map(|s| pings.received(Duration::from_secs(*s), has_calls)).collect()
    }

    #[test]
    fn the_third_ping_that_comes_too_soon_is_one_too_many() {
        let min = Duration::from_secs(5);
        assert_eq!(verdicts(&mut Pings::new(min), &[0, 1, 2, 3], true), [false, false, false, true]);
        assert_eq!(verdicts(&mut Pings::new(min), &[0, 5, 10, 15, 20], true), [false; 5]);
        assert_eq!(
            verdicts(&mut Pings::new(min), &[0, 5, 10, 15], false),
            [false, false, false, true],
            "without a call"
        );
        assert_eq!(verdicts(&mut Pings::new(Duration::ZERO), &[0, 299, 598, 897], true), [false, false, false, true]);
    }

    #[test]
    fn what_is_sent_forgives() {
        let mut pings = Pings::new(Duration::from_secs(5));
        assert_eq!(verdicts(&mut pings, &[0, 1, 2], true), [false; 3]);
        pings.sent();
        assert_eq!(verdicts(&mut pings, &[3, 4, 5, 6], true), [false, false, false, true]);
    }
}
