//! The crate's only clock: monotonic nanoseconds and the CPU time this process has used.
//!
//! Every latency is a difference of two readings of [`now_ns`]; every schedule starts at one. Nothing here can go
//! backwards. Wall-clock time is deliberately absent: nothing the generator reports depends on it.

use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_gettime};

/// Nanoseconds on CLOCK_MONOTONIC, the clock the pacing timer is armed with too.
pub(crate) fn now_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::Monotonic))
}

/// CPU time, user and system, that all threads of this process have used so far.
pub(crate) fn process_cpu_ns() -> u64 {
    nanoseconds(clock_gettime(ClockId::ProcessCPUTime))
}

/// A duration in nanoseconds, saturating at 584 years.
pub(crate) fn duration_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The form in which the kernel takes a monotonic instant or an interval.
pub(crate) fn timespec(ns: u64) -> Timespec {
    let seconds = i64::try_from(ns / 1_000_000_000).expect("584 years of nanoseconds are fewer than 2^63 seconds");
    let rest = i64::try_from(ns % 1_000_000_000).expect("a remainder below 10^9 fits");
    Timespec { tv_sec: seconds, tv_nsec: rest }
}

fn nanoseconds(time: Timespec) -> u64 {
    let seconds = u64::try_from(time.tv_sec).expect("monotonic and CPU clocks start at zero");
    let rest = u64::try_from(time.tv_nsec).expect("the kernel normalises tv_nsec to 0..10^9");
    assert!(rest < 1_000_000_000);
    seconds * 1_000_000_000 + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timespec_and_back_is_the_identity() {
        for ns in [0, 1, 999_999_999, 1_000_000_000, 123_456_789_012_345] {
            assert_eq!(nanoseconds(timespec(ns)), ns);
        }
    }
}
