//! Runs on: connection core.
//!
//! Decides which pings of a client are too many. The policy is that of grpc-go, on which etcd runs. It is needed
//! because h2 answers pings at any rate.
//!
//! A ping that comes too soon after the last one is a strike. More than two strikes in a row, with nothing sent to the
//! client between them, end the connection.
//! **Source** grpc-go v1.82.1 `internal/transport/http2_server.go handlePing`; etcd v3.7.1 `embed/etcd.go`.

use std::time::Duration;

/// Strikes that are tolerated.
const STRIKES_MAX: u32 = 2;
/// Shortest time between two pings of a client without a call.
const IDLE_MIN: Duration = Duration::from_hours(2);
/// The shortest time that grpc-go takes if none is set.
const DEFAULT_MIN: Duration = Duration::from_mins(5);

/// The text that the client gets.
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
    /// The policy for a connection whose pings must be at least `min` apart; zero means gRPC's own default.
    pub fn new(min: Duration) -> Self {
        let min = if min.is_zero() { DEFAULT_MIN } else { min };
        Self { min, last: None, strikes: 0, has_sent: false }
    }

    /// Forgives earlier strikes, because headers or data were sent.
    pub fn sent(&mut self) {
        self.has_sent = true;
    }

    /// Counts a ping that has come. Returns whether it is one too many.
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
