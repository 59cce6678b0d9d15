//! Runs on: every core.
//!
//! The clock: monotonic time, wall time, and the seeds of all randomness.
//!
//! One clock is made in `boot` and handed down. Nothing else reads time or draws randomness. Copies of a clock are the
//! same clock: they show the same time and draw from one sequence of seeds. A manual clock is for tests and
//! simulations. It stands still until it is moved.
//!
//! Invariant: `now` never goes back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    /// State of the sequence of seeds.
    seeds: Arc<AtomicU64>,
}

#[derive(Clone, Debug)]
enum Source {
    /// The system's clocks. `now` counts from this moment.
    System(Instant),
    /// Set by hand.
    Manual(Arc<Manual>),
}

#[derive(Debug, Default)]
struct Manual {
    /// Nanoseconds since the start.
    now: AtomicU64,
    /// Microseconds by which the wall clock is ahead of `now` after 1970. It may jump, also back.
    wall_ahead_us: AtomicI64,
}

/// SplitMix64 adds this for each number. **Source** Steele, Lea, Flood, "Fast splittable pseudorandom number
/// generators", 2014.
const SEED_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Clock {
    /// A clock of the system. It starts now.
    #[expect(clippy::disallowed_methods, reason = "this is where time and chance come from")]
    pub fn start() -> Self {
        Self { source: Source::System(Instant::now()), seeds: Arc::new(AtomicU64::new(rand::random())) }
    }

    /// A clock that stands at zero until [`Clock::advance`]. Its randomness follows from `seed`.
    pub fn manual(seed: u64) -> Self {
        Self { source: Source::Manual(Arc::default()), seeds: Arc::new(AtomicU64::new(seed)) }
    }

    /// Moves a manual clock forward.
    pub fn advance(&self, by: Duration) {
        self.manual_clock().now.fetch_add(u64::try_from(by.as_nanos()).expect("less than 584 years"), Ordering::AcqRel);
    }

    /// Sets the wall clock of a manual clock. **Units** microseconds since 1970.
    pub fn set_wall(&self, unix_us: i64) {
        let now_us = i64::try_from(self.now().as_micros()).expect("less than 292,000 years");
        self.manual_clock().wall_ahead_us.store(unix_us - now_us, Ordering::Release);
    }

    fn manual_clock(&self) -> &Manual {
        let Source::Manual(manual) = &self.source else { unreachable!("the system's clock goes by itself") };
        manual
    }

    /// Time since the start.
    pub fn now(&self) -> Duration {
        match &self.source {
            Source::System(began) => began.elapsed(),
            Source::Manual(manual) => Duration::from_nanos(manual.now.load(Ordering::Acquire)),
        }
    }

    /// Wall time. **Units** microseconds since 1970.
    #[expect(clippy::disallowed_methods, reason = "this is where time comes from")]
    pub fn unix_us(&self) -> u64 {
        let (since, ahead_us) = match &self.source {
            Source::System(_) => (SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(), 0),
            Source::Manual(manual) => (self.now(), manual.wall_ahead_us.load(Ordering::Acquire)),
        };
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX).saturating_add_signed(ahead_us)
    }

    /// Returns a number that no other call returns: the seed of a random generator.
    pub fn seed(&self) -> u64 {
        // SplitMix64: a counter that is mixed well.
        let mut mixed = self.seeds.fetch_add(SEED_STEP, Ordering::Relaxed).wrapping_add(SEED_STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A random number in 0..1, for spreading timers.
    pub fn jitter(&self) -> f64 {
        // A double holds 53 bits.
        (self.seed() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

/// A duration in the form of Go's, such as `1m0.5s`, for log lines.
pub fn shown(time: Duration) -> String {
    let (minutes, rest) = (time.as_secs() / 60, time - Duration::from_secs(time.as_secs() / 60 * 60));
    match (minutes / 60, minutes % 60) {
        (0, 0) if time.is_zero() => "0s".to_owned(),
        (0, 0) => format!("{time:?}"),
        (0, minutes) => format!("{minutes}m{}s", rest.as_secs_f64()),
        (hours, minutes) => format!("{hours}h{minutes}m{}s", rest.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        let texts = [0, 1, 1_500, 2_177_255, 59_000_000_000, 60_000_000_000, 90_500_000_000, 3_600_000_000_000]
            .map(|nanoseconds| shown(Duration::from_nanos(nanoseconds)));
        assert_eq!(texts, ["0s", "1ns", "1.5µs", "2.177255ms", "59s", "1m0s", "1m30.5s", "1h0m0s"]);
    }

    #[test]
    fn copies_of_a_manual_clock_show_one_time_and_draw_from_one_sequence() {
        let (clock, same) = (Clock::manual(7), Clock::manual(7));
        let copy = clock.clone();
        copy.advance(Duration::from_millis(5));
        assert_eq!((clock.now(), clock.unix_us()), (Duration::from_millis(5), 5000));
        copy.set_wall(3_000_000);
        clock.advance(Duration::from_millis(1));
        assert_eq!((copy.now(), copy.unix_us()), (Duration::from_millis(6), 3_001_000), "the wall clock is set alone");
        let drawn = [clock.seed(), copy.seed(), clock.seed()];
        assert_eq!(drawn, [same.seed(), same.seed(), same.seed()], "one seed, one sequence");
        assert!((0..1000).all(|_| (0.0..1.0).contains(&clock.jitter())));
    }
}
