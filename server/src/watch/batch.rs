//! Runs on: connection core, apply core.
//!
//! The changes of keys that one publish of apply made, as watchers get them. The apply core makes a batch, and all
//! connection cores share it.
//!
//! Invariants:
//! - A batch never changes, except for the encoded forms. The core that needs one first fills it in; then it never
//!   changes.
//! - `events` are in revision order, all with `first_main <= main <= last_main`. If `unlisted` is set, they are empty.
//! - `Event::encoded` is made at most once per event and core, whatever the number of watchers. A watcher costs only a
//!   copy of it.
//!
//! A batch does not know who gets its events; [`super::hub`] does.

use std::sync::OnceLock;

use bytes::Bytes;
use engine::{Record, Revision};

use super::{encode, history::History};

/// The events of one publish.
#[derive(Debug)]
pub struct Batch {
    /// First main revision that the batch covers: the one after the store's revision before the publish.
    pub first_main: i64,
    /// The store's revision after the publish; `first_main - 1` if it changed no key.
    pub last_main: i64,
    /// The changes, in revision order.
    pub events: Vec<Event>,
    /// Whether there are changes that are not in `events`, because they are too many.
    pub unlisted: Option<Unlisted>,
}

/// Changes that must be read from the store.
#[derive(Debug)]
pub struct Unlisted {
    /// The lowest and the highest key that may be changed; `None` for any key.
    pub hull: Option<(Bytes, Bytes)>,
}

impl Batch {
    /// A batch of the revisions `first_main..=last_main`.
    pub fn new(first_main: i64, last_main: i64, events: Vec<Event>) -> Self {
        assert!(last_main >= first_main - 1, "a batch does not go back");
        debug_assert!(events.is_sorted_by(|a, b| a.record.revision < b.record.revision), "events in revision order");
        assert!(events.first().is_none_or(|event| event.main() >= first_main), "events belong to the batch");
        assert!(events.last().is_none_or(|event| event.main() <= last_main), "events belong to the batch");
        Self { first_main, last_main, events, unlisted: None }
    }

    /// A batch of the revisions `first_main..=last_main`, with changes of keys in `hull` (of any key, if there is none)
    /// that it does not list.
    pub fn unlisted(first_main: i64, last_main: i64, hull: Option<(Bytes, Bytes)>) -> Self {
        Self { unlisted: Some(Unlisted { hull }), ..Self::new(first_main, last_main, Vec::new()) }
    }
}

/// One change of one key.
#[derive(Debug)]
pub struct Event {
    record: Record,
    prev: Prev,
    plain: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

/// What is known of the version that was live before the event's main revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Prev {
    /// There was no such version.
    Absent,
    /// The version has this revision.
    At(Revision),
    /// The key must be read to find out.
    Unknown,
}

impl Event {
    /// A change that has just happened. `prev` is the version it replaced or deleted, if one was live.
    pub fn new(record: Record, prev: Option<Revision>) -> Self {
        let prev = match prev {
            // `prev_kv` is the version that was live before the whole revision. It is never a version that an earlier
            // change of the same revision wrote.
            Some(prev) if prev.main == record.revision.main => Prev::Unknown,
            Some(prev) => {
                assert!(prev < record.revision, "a version replaces an older one");
                Prev::At(prev)
            }
            None => Prev::Absent,
        };
        Self::with(record, prev)
    }

    /// A change read from the past.
    pub(super) fn past(record: Record) -> Self {
        Self::with(record, Prev::Unknown)
    }

    fn with(record: Record, prev: Prev) -> Self {
        Self { record, prev, plain: OnceLock::new(), with_prev: OnceLock::new() }
    }

    /// The version that the change wrote.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// The main revision of the change.
    pub fn main(&self) -> i64 {
        self.record.revision.main
    }

    /// Whether the event created its key. **Source** etcd v3.7.1 `v3rpc/watch.go` `IsCreateEvent`.
    fn is_create(&self) -> bool {
        !self.record.is_tombstone && self.record.create_revision == self.main()
    }

    /// The encoded field `events` of a response, without `prev_kv`.
    pub(super) fn encoded(&self) -> &Bytes {
        // Two cores may both encode. Neither waits for the other, and the results are equal.
        match self.plain.get() {
            Some(bytes) => bytes,
            None => {
                let bytes = encode::event(&self.record, None);
                self.plain.get_or_init(|| bytes)
            }
        }
    }

    /// As [`Event::encoded`], with `prev_kv` if there is one. A create has none; nor has an event whose previous
    /// revision is compacted.
    ///
    /// **Errors** a page or block that must be read to know the previous version.
    pub(super) fn encoded_with_prev<H: History>(&self, view: &H) -> Result<&Bytes, H::Fault> {
        if let Some(bytes) = self.with_prev.get() {
            return Ok(bytes);
        }
        let bytes = match self.previous(view)? {
            Some(prev) => encode::event(&self.record, Some(&prev)),
            None => self.encoded().clone(),
        };
        Ok(self.with_prev.get_or_init(|| bytes))
    }

    /// The form with `prev_kv` if [`Event::encoded_with_prev`] has made it.
    pub(super) fn resolved_with_prev(&self) -> Option<&Bytes> {
        self.with_prev.get()
    }

    fn previous<H: History>(&self, view: &H) -> Result<Option<Record>, H::Fault> {
        let before = self.main() - 1;
        if self.is_create() || before < view.compact_revision() {
            return Ok(None);
        }
        let prev = match self.prev {
            Prev::Absent => None,
            Prev::At(revision) => view.record(&self.record.key, revision)?,
            Prev::Unknown => view.get(&self.record.key, before)?,
        };
        debug_assert!(prev.as_ref().is_none_or(|prev| prev.key == self.record.key && !prev.is_tombstone));
        Ok(prev)
    }
}
