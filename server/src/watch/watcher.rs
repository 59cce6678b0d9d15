//! Runs on: connection core.
//!
//! One watcher: what it asked for, and how far it has come.
//!
//! Invariants:
//! - Everything that the watcher wants below `next` was put into its stream's outbox, or is older than it asked for.
//!   Nothing at or above `next` was. For a synced watcher, the hub's revision counts instead of `next` if it is
//!   greater.
//! - Nothing at or above `cut` goes to the watcher in the current step. Outside a step `cut` is `Revision::MAX`.
//! - The events of one main revision are one response (or its fragments). So positions are main revisions, mostly. A
//!   revision with very many events is read twice, in parts: first to measure the response, then to send it. Meanwhile
//!   `next` may stand within the revision. While it is measured, nothing of it was sent, and `measured` is the length
//!   of what lies below `next`. While it is sent, `left` is what is still to be sent, and not 0.

use engine::{Record, Revision};
use proto::{
    etcdserverpb::{WatchCreateRequest, watch_create_request::FilterType},
    wire_range::WireRange,
};

use super::interval::Seat;

/// A watcher on a stream of this core.
pub(super) struct Watcher {
    pub(super) range: WireRange,
    /// Position of its stream.
    pub(super) stream: u32,
    /// The id by which its client knows it. It is unique on its stream.
    pub(super) id: i64,
    pub(super) state: State,
    /// The first revision that it still wants.
    pub(super) next: Revision,
    pub(super) cut: Revision,
    /// Length of its events at the main revision of `next` and below `next`, while that is measured. **Units** bytes.
    pub(super) measured: u64,
    /// Length of its events at the main revision of `next` that were measured and not sent. **Units** bytes.
    pub(super) left: u64,
    /// Its stream had no room for one of its events in this step.
    pub(super) is_stalled: bool,
    /// No progress is sent below this revision, at which the watcher started.
    pub(super) progress_from: i64,
    /// The last call of `Hub::gather` that had room for it.
    pub(super) mark: u64,
    /// No event was sent since the last automatic progress.
    pub(super) is_idle: bool,
    pub(super) wants_prev_kv: bool,
    pub(super) wants_fragments: bool,
    pub(super) wants_progress: bool,
    pub(super) has_no_puts: bool,
    pub(super) has_no_deletes: bool,
}

/// The list that holds a watcher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// It is in no list yet.
    New,
    /// It gets events as they happen.
    Synced(Seat),
    /// It is unsynced, and each step of catching up serves it. `position` is its place in the hub's list of such
    /// watchers.
    Running { seat: Seat, position: u32 },
    /// It is unsynced, and waits in its stream's queue for room.
    Parked { ticket: u64 },
    /// It was cancelled by compaction. It keeps its id until the client cancels it too.
    Compacted,
}

impl Watcher {
    /// A watcher as `request` asks for it. It is in no list yet.
    pub(super) fn new(range: WireRange, stream: u32, id: i64, revision: i64, request: &WatchCreateRequest) -> Self {
        let start = request.start_revision;
        assert!(start >= 0, "a negative start is refused before");
        let has_filter = |filter: FilterType| request.filters.contains(&i32::from(filter));
        Self {
            range,
            stream,
            id,
            state: State::New,
            next: Revision::new(if start == 0 { revision + 1 } else { start }, 0),
            cut: Revision::MAX,
            measured: 0,
            left: 0,
            is_stalled: false,
            progress_from: if start == 0 { revision } else { start },
            mark: 0,
            is_idle: true,
            wants_prev_kv: request.prev_kv,
            wants_fragments: request.fragment,
            wants_progress: request.progress_notify,
            has_no_puts: has_filter(FilterType::Noput),
            has_no_deletes: has_filter(FilterType::Nodelete),
        }
    }

    /// Whether an event of a key in its range is for it at this point of a step.
    pub(super) fn wants(&self, record: &Record) -> bool {
        let is_filtered = if record.is_tombstone { self.has_no_deletes } else { self.has_no_puts };
        self.next <= record.revision && record.revision < self.cut && !is_filtered
    }

    /// Whether it is within a main revision, which is measured or sent in parts.
    pub(super) fn is_within(&self) -> bool {
        self.next.sub > 0 || self.left > 0
    }

    pub(super) fn is_synced(&self) -> bool {
        matches!(self.state, State::Synced(_))
    }
}
