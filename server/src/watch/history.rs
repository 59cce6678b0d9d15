//! Runs on: connection core.
//!
//! The part of a `ReadView` that watching needs, as a trait. So the hub cannot use more of the view, and a test can
//! replace it by a small model with injected faults.
//!
//! Invariants that an implementation keeps:
//! - What a view shows at a revision never changes. `revision` and `compact_revision` never decrease from one view to
//!   the next.
//! - A fault names what must be read. The same call succeeds once that is resident. No call changes anything.

use engine::{Fault, ReadView, Record, Revision, RevisionCursor};

/// An immutable view on the store's revisions.
pub trait History {
    /// Names what must be read before a call can go on.
    type Fault;
    /// Versions in revision order.
    type Records<'a>: Records<Fault = Self::Fault>
    where
        Self: 'a;

    /// Newest revision in the view.
    fn revision(&self) -> i64;

    /// Revision of the last compaction, -1 if there was none.
    fn compact_revision(&self) -> i64;

    /// The version of `key` that was live at main revision `at`.
    ///
    /// **Errors** the page or block that is not resident.
    fn get(&self, key: &[u8], at: i64) -> Result<Option<Record>, Self::Fault>;

    /// The version of `key` written at `revision`.
    ///
    /// **Errors** the page or block that is not resident.
    fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Self::Fault>;

    /// All stored versions from `from` on, tombstones included.
    fn records_from(&self, from: Revision) -> Self::Records<'_>;
}

/// A walk over versions in revision order.
pub trait Records {
    /// Names what must be read before the walk can go on.
    type Fault;

    /// The next version; `None` after the newest.
    ///
    /// **Errors** the block that is not resident; the same call may be repeated once it is.
    fn next(&mut self) -> Result<Option<Record>, Self::Fault>;
}

impl History for ReadView {
    type Fault = Fault;
    type Records<'a> = RevisionCursor;

    fn revision(&self) -> i64 {
        self.revision()
    }

    fn compact_revision(&self) -> i64 {
        self.compact_revision()
    }

    fn get(&self, key: &[u8], at: i64) -> Result<Option<Record>, Fault> {
        self.get(key, at)
    }

    fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Fault> {
        self.record(key, revision)
    }

    fn records_from(&self, from: Revision) -> RevisionCursor {
        self.records_from(from)
    }
}

impl Records for RevisionCursor {
    type Fault = Fault;

    fn next(&mut self) -> Result<Option<Record>, Fault> {
        self.next()
    }
}
