//! Runs on: apply core.
//!
//! What an entry holds in memory from the moment it was read until the entry was applied.

use std::collections::HashMap;

use bytes::Bytes;
use engine::{Fault, ReadView, Record, Revision, Version};

/// Records of more than this are not worth their table's memory until the next entry.
const KEPT_MAX: usize = 1024;

/// Records that the entry at hand needs. One such table serves all entries, one after the other.
#[derive(Debug, Default)]
pub struct Pinned {
    records: HashMap<Revision, Record>,
    /// How far each delete of the entry has been touched: its last key, so that a fault does not begin it anew.
    deletes: Vec<Option<Bytes>>,
    /// Deletes met in the touch under way.
    deletes_met: usize,
    /// Whether anybody waits for the entry's answer. If not, as in a replay, what only the answer would hold is not
    /// read: no state depends on it.
    is_awaited: bool,
}

impl Pinned {
    /// Forgets the last entry, for one whose answer is awaited or not.
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

    /// A touch begins anew.
    pub(super) fn begin(&mut self) {
        self.deletes_met = 0;
    }

    /// The next delete of a touch: how far it is.
    pub(super) fn next_delete(&mut self) -> usize {
        let number = self.deletes_met;
        self.deletes_met += 1;
        if number == self.deletes.len() {
            self.deletes.push(None);
        }
        number
    }

    /// The last key that delete `number` has touched.
    pub(super) fn touched(&self, number: usize) -> Option<&Bytes> {
        self.deletes[number].as_ref()
    }

    /// Delete `number` has touched `key`.
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

    /// The record of `version`, which is in memory: pinned, or written a moment ago.
    pub(super) fn record(&self, view: &ReadView, version: &Version) -> Record {
        if let Some(record) = self.records.get(&version.revision) {
            return record.clone();
        }
        let record = resident(view.record(&version.key, version.revision));
        record.expect("a live version has its record")
    }
}

/// What was touched is resident; a fault here would be a defect of the touch, and half an entry.
pub(super) fn resident<T>(result: Result<T, Fault>) -> T {
    result.unwrap_or_else(|fault| panic!("{fault:?} was not touched"))
}
