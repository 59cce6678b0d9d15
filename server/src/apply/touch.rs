//! Runs on: apply core.
//!
//! What an entry keeps from the moment it was read until the entry is applied: records, and what was decided.
//!
//! Bounds: what only the answer shows takes `shown_bytes_max`. An answer beyond it is given up; the entry is applied
//! all the same, as on other members.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use engine::{Fault, ReadView, Record, Revision, Version};
use proto::etcdserverpb as pb;

use crate::{
    error::Error,
    gathered::{Gathered, Share},
    kv::{range::memory_of, txn::Decision},
};

/// A table for more records than this is freed: its memory is not worth keeping until the next entry.
const KEPT_MAX: usize = 1024;

/// The records that the present entry needs. One table serves all entries, one after the other.
#[derive(Debug)]
pub struct Pinned {
    records: HashMap<Revision, Record>,
    /// For each delete of the entry, the last key that was touched. So a fault does not make the delete begin anew.
    deletes: Vec<Option<Bytes>>,
    /// Deletes that the touch under way has met.
    deletes_met: usize,
    /// Whether anybody waits for the entry's answer. If not, as in a replay, records that only the answer would show
    /// are not read: no state depends on them.
    is_awaited: bool,
    /// Why the one who waited gets no answer, though the entry is applied.
    lost: Option<Error>,
    /// Memory that the answer takes so far, and may take. **Units** bytes.
    shown_bytes: usize,
    shown_bytes_max: usize,
    /// What the answer takes of the memory of all that are gathered.
    share: Option<Share>,
    gathered: Arc<Gathered>,
    /// The branches of the entry's txn.
    decision: Decision,
}

impl Pinned {
    /// Holds nothing. Answers share `gathered` with those of other cores.
    pub fn new(gathered: Arc<Gathered>) -> Self {
        Self {
            records: HashMap::new(),
            deletes: Vec::new(),
            deletes_met: 0,
            is_awaited: false,
            lost: None,
            shown_bytes: 0,
            shown_bytes_max: gathered.max(),
            share: None,
            gathered,
            decision: Decision::default(),
        }
    }

    /// Forgets the last entry, and begins the next one. `is_awaited` says whether its answer is awaited.
    pub fn clear(&mut self, is_awaited: bool) {
        self.clear_records();
        self.is_awaited = is_awaited;
        self.lost = None;
        self.shown_bytes = 0;
        self.share = None;
        self.decision = Decision::default();
    }

    /// Forgets what a part of the entry needed that was made.
    pub(super) fn clear_records(&mut self) {
        if self.records.capacity() > KEPT_MAX {
            self.records = HashMap::new();
        }
        self.records.clear();
        self.deletes.clear();
        self.deletes_met = 0;
    }

    /// Gives up the answer: whoever waits gets `error`. The entry goes on without what only the answer would show.
    pub(super) fn give_up_answer(&mut self, error: Error) {
        assert!(self.is_awaited, "an answer is given up once");
        self.is_awaited = false;
        self.share = None;
        self.lost = Some(error);
    }

    /// What the answer takes of the memory of all that are gathered, until its client has taken it.
    pub(super) fn take_share(&mut self) -> Option<Share> {
        self.share.take()
    }

    /// Why the answer was given up, if it was.
    pub(super) fn take_lost(&mut self) -> Option<Error> {
        self.lost.take()
    }

    /// Memory that is left for the answer. **Units** bytes.
    pub(super) fn shown_bytes_left(&self) -> usize {
        self.shown_bytes_max - self.shown_bytes.min(self.shown_bytes_max)
    }

    /// Counts `bytes` of memory that the awaited answer takes, and gives it up if it is too large.
    pub(super) fn show(&mut self, bytes: usize) {
        self.shown_bytes += bytes;
        self.count(0);
    }

    /// As [`Pinned::show`], for `bytes` of a part that is under way.
    pub(super) fn count(&mut self, bytes: usize) {
        let (len, max) = (self.shown_bytes + bytes, self.shown_bytes_max);
        let share = self.share.get_or_insert_with(|| self.gathered.share());
        if share.grow_to(len).is_err() {
            // The entry is applied: "too many requests" would say that it was not.
            self.give_up_answer(Error::AnswerTooLarge { len, max });
        }
    }

    /// Decides about the entry's txn, for about `budget` keys. Returns whether all is decided.
    ///
    /// **Errors** a page that is not resident.
    pub(super) fn decide(&mut self, view: &ReadView, request: &pb::TxnRequest, budget: usize) -> Result<bool, Fault> {
        self.decision.step(view, view.revision(), request, budget)
    }

    /// The pages to read together after `fault`, at which a step has stopped; that one first.
    pub(super) fn wanted(&self, view: &ReadView, fault: Fault) -> Vec<Fault> {
        self.decision.wanted(view, view.revision(), fault)
    }

    /// The branches that were decided.
    pub(super) fn path(&self) -> &[bool] {
        self.decision.path()
    }

    /// Whether anybody waits for the entry's answer.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
    }

    /// Pages were taken from memory: what was touched may be touched again.
    pub(super) fn evicted(&mut self) {
        self.deletes.clear();
    }

    /// Begins a touch anew.
    pub(super) fn begin(&mut self) {
        self.deletes_met = 0;
    }

    /// Returns the number of the next delete of this touch.
    pub(super) fn next_delete(&mut self) -> usize {
        let number = self.deletes_met;
        self.deletes_met += 1;
        if number == self.deletes.len() {
            self.deletes.push(None);
        }
        number
    }

    /// The last key that was touched for delete `number`.
    pub(super) fn touched(&self, number: usize) -> Option<&Bytes> {
        self.deletes[number].as_ref()
    }

    /// Notes that `key` was touched for delete `number`.
    pub(super) fn set_touched(&mut self, number: usize, key: Bytes) {
        self.deletes[number] = Some(key);
    }

    /// Reads the record of `version` and holds it.
    ///
    /// **Errors** a page or block that is not resident.
    pub(super) fn pin(&mut self, view: &ReadView, version: &Version) -> Result<Record, Fault> {
        if let Some(record) = self.records.get(&version.revision) {
            return Ok(record.clone());
        }
        let record = view.record(&version.key, version.revision)?.expect("a live version has its record");
        self.records.insert(version.revision, record.clone());
        Ok(record)
    }

    /// As [`Pinned::pin`], for a record that the answer shows.
    pub(super) fn pin_shown(&mut self, view: &ReadView, version: &Version) -> Result<Record, Fault> {
        if self.is_awaited && !self.records.contains_key(&version.revision) {
            let record = self.pin(view, version)?;
            self.show(shown_bytes(&record));
            return Ok(record);
        }
        self.pin(view, version)
    }

    /// The record of `version`. It is in memory: it was pinned, or written a moment ago.
    pub(super) fn record(&self, view: &ReadView, version: &Version) -> Record {
        self.record_of(view, &version.key, version.revision)
    }

    /// As [`Pinned::record`], for the version of `key` at `revision`.
    pub(super) fn record_of(&self, view: &ReadView, key: &[u8], revision: Revision) -> Record {
        if let Some(record) = self.records.get(&revision) {
            return record.clone();
        }
        resident(view.record(key, revision)).expect("a live version has its record")
    }
}

/// Memory that a record takes in an answer. **Units** bytes.
pub(super) fn shown_bytes(record: &Record) -> usize {
    memory_of(&record.key, &record.value)
}

/// Unwraps a result of something that was touched and is resident. A fault here would be a defect of the touch, and
/// would leave half an entry.
pub(super) fn resident<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault:?} was not touched"))
}
