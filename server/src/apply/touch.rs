//! Runs on: apply core.
//!
//! What an entry keeps in memory from the moment it was read until the entry is applied.

use std::collections::HashMap;

use bytes::Bytes;
use engine::{Fault, ReadView, Record, Revision, Version};

/// A table for more records than this is freed: its memory is not worth keeping until the next entry.
const KEPT_MAX: usize = 1024;

/// The records that the present entry needs. One table serves all entries, one after the other.
#[derive(Debug, Default)]
pub struct Pinned {
    records: HashMap<Revision, Record>,
    /// For each delete of the entry, the last key that was touched. So a fault does not make the delete begin anew.
    deletes: Vec<Option<Bytes>>,
    /// Deletes that the touch under way has met.
    deletes_met: usize,
    /// Whether anybody waits for the entry's answer. If not, as in a replay, records that only the answer would show
    /// are not read: no state depends on them.
    is_awaited: bool,
}

impl Pinned {
    /// Forgets the last entry, and begins the next one. `is_awaited` says whether its answer is awaited.
    pub fn clear(&mut self, is_awaited: bool) {
        if self.records.capacity() > KEPT_MAX {
            self.records = HashMap::new();
        }
        self.records.clear();
        self.deletes.clear();
        self.deletes_met = 0;
        self.is_awaited = is_awaited;
    }

    /// Whether anybody waits for the entry's answer.
    pub fn is_awaited(&self) -> bool {
        self.is_awaited
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

/// Unwraps a result of something that was touched and is resident. A fault here would be a defect of the touch, and
/// would leave half an entry.
pub(super) fn resident<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault:?} was not touched"))
}
