//! Runs on: apply core.
//!
//! Automatic compaction, periodic or by revision, with etcd's timing.
//!
//! It chooses a revision from the times and revisions that it is given. Its caller proposes the compaction. Invariants:
//! `seen` is ordered by time and bounded by the period divided by the interval. Each revision is asked for at most
//! once.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3compactor/{periodic,revision}.go`.

use std::{collections::VecDeque, time::Duration};

use crate::config::AutoCompaction;

const HOUR: Duration = Duration::from_secs(3600);
/// Looks in one interval.
const LOOKS_PER_INTERVAL: u32 = 10;
const REVISION_INTERVAL: Duration = Duration::from_secs(300);

/// See the head of this file.
pub struct Compactor {
    mode: AutoCompaction,
    seen: VecDeque<i64>,
    next_look: Duration,
    last_success: Duration,
    last_revision: i64,
    is_first: bool,
}

impl Compactor {
    /// A compactor that starts at `now`.
    pub fn new(mode: AutoCompaction, now: Duration) -> Self {
        let (seen, last_revision, is_first) = (VecDeque::new(), 0, true);
        Self { mode, seen, next_look: now, last_success: now, last_revision, is_first }
    }

    /// The revision to compact to now, if a compaction is due. It must be called at least a few times per interval.
    pub fn due(&mut self, now: Duration, revision: i64, compact_revision: i64) -> Option<i64> {
        if now < self.next_look {
            return None;
        }
        let due = match self.mode {
            AutoCompaction::Off => {
                self.next_look = Duration::MAX;
                None
            }
            AutoCompaction::Periodic(period) => self.periodic(period, now, revision),
            AutoCompaction::Revision(kept) => {
                self.next_look = now + REVISION_INTERVAL;
                let target = revision - kept;
                (!self.is_first && target > 0 && target != self.last_revision).then_some(target)
            }
        };
        self.is_first = false;
        let due = due?;
        self.last_revision = due;
        self.last_success = now;
        (due > compact_revision).then_some(due)
    }

    fn periodic(&mut self, period: Duration, now: Duration, revision: i64) -> Option<i64> {
        let interval = period.min(HOUR);
        let look = interval / LOOKS_PER_INTERVAL;
        self.next_look = now + look;
        let looks = usize::try_from(period.as_nanos() / look.as_nanos().max(1)).unwrap_or(usize::MAX);
        let oldest = self.seen.front().copied();
        // The first compaction waits for the whole period, the next ones for the interval.
        let wait = if self.last_revision == 0 { period } else { interval };
        let due = oldest.filter(|oldest| now - self.last_success >= wait && *oldest != self.last_revision);
        self.seen.push_back(revision);
        while self.seen.len() > looks.saturating_add(1) {
            self.seen.pop_front();
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(mode: AutoCompaction, hours: u64, revision_at: impl Fn(u64) -> i64) -> Vec<(u64, i64)> {
        let mut compactor = Compactor::new(mode, Duration::ZERO);
        let mut compacted = (Vec::new(), -1);
        for minute in 0..hours * 60 {
            if let Some(revision) = compactor.due(Duration::from_secs(minute * 60), revision_at(minute), compacted.1) {
                compacted.1 = revision;
                compacted.0.push((minute, revision));
            }
        }
        compacted.0
    }

    #[test]
    fn periodic_keeps_the_period_and_then_follows_hourly() {
        let compacted = run(AutoCompaction::Periodic(2 * HOUR), 5, |minute| 1 + i64::try_from(minute).unwrap());
        // Like etcd's list of revisions, ours reaches back one look (6 minutes) further than the period.
        assert_eq!(compacted, vec![(120, 1), (180, 55), (240, 115)]);
    }

    #[test]
    fn revisions_keep_their_number_and_an_idle_store_is_left_alone() {
        let compacted = run(AutoCompaction::Revision(100), 1, |minute| if minute < 20 { 50 } else { 1000 });
        assert_eq!(compacted, vec![(20, 900)]);
    }

    #[test]
    fn off_never_compacts() {
        assert!(run(AutoCompaction::Off, 100, |minute| i64::try_from(minute).unwrap()).is_empty());
    }
}
