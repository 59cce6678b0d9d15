//! Runs on: apply core (what is due), connection core (what was taken).
//!
//! Hashes of compactions: what etcd hashes while it compacts, for members to compare. All members compact at the same
//! revisions, so each has the same hash of a compaction, whatever it has written since.
//!
//! A hash is that of its moment: the versions that its compaction drops are part of it. So the sweep waits until it is
//! taken, as far as the compact revision before. Reading everything at each compaction costs more than the compaction,
//! so it is done only where `CompactHashCheck` is on. etcd, which reads everything anyway, always does.
//!
//! Invariants:
//! - `floor` is the compact revision before the first compaction that is due, or `i64::MAX`. It is set before the sweep
//!   takes its first step for that compaction: apply does both.
//! - At most [`DUE_MAX`] are due; one more is not taken, as etcd takes none of a compaction that comes before the one
//!   before has ended. At most [`TAKEN_MAX`] are kept.
//!
//! The lock is taken once per compaction, and by those who ask for a hash.
//!
//! **Source** etcd v3.7.1 `server/storage/mvcc/hash.go`, `kvstore.go` (`compact`).

use std::{
    collections::VecDeque,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, Ordering},
    },
};

use tokio::sync::Notify;

/// Compactions whose hash is still to be taken.
const DUE_MAX: usize = 4;
/// Hashes that are kept, the newest ones. **Source** etcd, `hashStorageMaxSize`.
const TAKEN_MAX: usize = 10;

/// A compaction, as hashes know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// The compact revision before; -1 for none.
    pub previous: i64,
    /// What was compacted to.
    pub revision: i64,
    /// Compactions of another state, before a state of another member took its place, have another number.
    state: u64,
}

/// The hash of a compaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CompactionHash {
    /// HashKV's hash.
    pub hash: u32,
    /// The compact revision of the hash: the one before the compaction; -1 for none.
    pub compact_revision: i64,
    /// The revision that was compacted to.
    pub revision: i64,
}

#[derive(Debug, Default)]
struct Inner {
    state: u64,
    /// The compact revision now.
    compacted: i64,
    due: VecDeque<Compaction>,
    /// In the order of their revisions.
    taken: VecDeque<CompactionHash>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Hashes {
    is_on: bool,
    floor: AtomicI64,
    inner: Mutex<Inner>,
    is_due: Notify,
}

impl Hashes {
    /// No hashes yet. Without `is_on`, none are ever taken.
    pub fn new(is_on: bool) -> Self {
        let (floor, inner) = (AtomicI64::new(i64::MAX), Mutex::default());
        Self { is_on, floor, inner, is_due: Notify::new() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // What panics here takes the process with it.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, inner: &Inner) {
        let floor = inner.due.front().map_or(i64::MAX, |due| due.previous);
        self.floor.store(floor, Ordering::Release);
    }

    /// The sweep must leave what a revision from here on shows.
    pub fn floor(&self) -> i64 {
        self.floor.load(Ordering::Acquire)
    }

    /// This state holds from now on, with its compact revision. Hashes of another one are void.
    pub fn begin(&self, compact_revision: i64) {
        let inner = &mut *self.inner();
        *inner = Inner { state: inner.state + 1, compacted: compact_revision, ..Inner::default() };
        self.publish(inner);
    }

    /// A compaction to `revision` was applied. The sweep has not begun with it.
    pub fn compacted(&self, revision: i64) {
        let inner = &mut *self.inner();
        assert!(revision > inner.compacted, "compaction goes forward");
        let previous = std::mem::replace(&mut inner.compacted, revision);
        if !self.is_on {
            return;
        }
        if inner.due.len() == DUE_MAX {
            return tracing::warn!(revision, "compactions follow each other too fast: the hash of one is not taken");
        }
        inner.due.push_back(Compaction { previous, revision, state: inner.state });
        self.publish(inner);
        self.is_due.notify_one();
    }

    /// The compaction whose hash is to be taken next. One reader waits at a time.
    pub async fn due(&self) -> Compaction {
        loop {
            let next = self.inner().due.front().copied();
            match next {
                Some(due) => return due,
                None => self.is_due.notified().await,
            }
        }
    }

    /// Whether the hash of `due` is still wanted.
    pub fn is_wanted(&self, due: Compaction) -> bool {
        self.inner().due.front() == Some(&due)
    }

    /// The hash of `due`, unless it is void; `None` if it cannot be taken.
    pub fn take(&self, due: Compaction, hash: Option<u32>) {
        let inner = &mut *self.inner();
        if inner.due.pop_front_if(|front| *front == due).is_none() {
            return;
        }
        if let Some(hash) = hash {
            let (revision, compact_revision) = (due.revision, due.previous);
            tracing::info!(hash, revision, "compact-revision" = compact_revision, "storing new hash");
            inner.taken.push_back(CompactionHash { hash, compact_revision, revision });
            if inner.taken.len() > TAKEN_MAX {
                inner.taken.pop_front();
            }
        }
        self.publish(inner);
    }

    /// The hash of the compaction to `revision`.
    pub fn at(&self, revision: i64) -> Option<CompactionHash> {
        self.inner().taken.iter().find(|taken| taken.revision == revision).copied()
    }

    /// All hashes above `revision`, the newest one first.
    pub fn above(&self, revision: i64) -> Vec<CompactionHash> {
        self.inner().taken.iter().rev().take_while(|taken| taken.revision > revision).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(hashes: &Hashes) -> Option<Compaction> {
        hashes.inner().due.front().copied()
    }

    #[test]
    fn the_sweep_waits_for_each_hash_in_turn() {
        let hashes = Hashes::new(true);
        hashes.begin(-1);
        assert_eq!((hashes.floor(), due(&hashes)), (i64::MAX, None));
        hashes.compacted(5);
        hashes.compacted(9);
        let first = due(&hashes).unwrap();
        assert_eq!((first.previous, first.revision, hashes.floor()), (-1, 5, -1));
        hashes.take(first, Some(7));
        assert_eq!((hashes.floor(), hashes.at(5).unwrap().hash, hashes.at(9)), (5, 7, None));
        let second = due(&hashes).unwrap();
        hashes.take(second, None);
        assert_eq!((hashes.floor(), hashes.at(9)), (i64::MAX, None), "what cannot be taken holds nothing up");
        hashes.take(second, Some(8));
        assert_eq!(hashes.at(9), None, "it comes too late");
    }

    #[test]
    fn hashes_of_another_state_are_void() {
        let hashes = Hashes::new(true);
        hashes.begin(3);
        hashes.compacted(5);
        let before = due(&hashes).unwrap();
        hashes.begin(3);
        assert!(!hashes.is_wanted(before));
        hashes.compacted(5);
        hashes.take(before, Some(1));
        assert_eq!((hashes.at(5), hashes.floor()), (None, 3));
    }

    #[test]
    fn ten_are_kept_and_four_are_due_at_most() {
        let hashes = Hashes::new(true);
        hashes.begin(-1);
        for revision in 1..=12 {
            hashes.compacted(revision);
            hashes.take(due(&hashes).unwrap(), Some(1));
        }
        assert_eq!(hashes.at(2), None);
        let above: Vec<_> = hashes.above(10).iter().map(|taken| (taken.revision, taken.compact_revision)).collect();
        assert_eq!(above, [(12, 11), (11, 10)]);
        assert_eq!(hashes.above(0).len(), TAKEN_MAX);
        (13..=20).for_each(|revision| hashes.compacted(revision));
        assert_eq!(hashes.inner().due.len(), DUE_MAX);
        hashes.begin(20);
        hashes.compacted(21);
        assert_eq!(due(&hashes).unwrap().previous, 20, "a compaction that is not hashed is one all the same");
    }

    #[test]
    fn none_is_taken_where_nobody_compares() {
        let hashes = Hashes::new(false);
        hashes.begin(-1);
        hashes.compacted(5);
        assert_eq!((hashes.floor(), due(&hashes)), (i64::MAX, None));
    }
}
