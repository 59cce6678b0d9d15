//! One version of one key, as readers see it, and its length as an `mvccpb.KeyValue`. Nothing else computes that
//! length.

use bytes::Bytes;

use crate::{
    Revision,
    key_value::{number_len, slice_len},
};

/// One version of a key: what a put or a delete wrote at its revision.
///
/// A tombstone has only `key` and `revision`. Its other numbers are 0 and its value is empty (etcd's stored form). A
/// record without a key is only a revision: etcd's `snapshot restore --bump-revision` makes one at the end of the gap
/// that it leaves. No range of keys that a client can name holds it. The bytes are shared with the log entry or the
/// block that brought them, so cloning a record copies nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// The key.
    pub key: Bytes,
    /// The value; empty for a tombstone.
    pub value: Bytes,
    /// Main revision of the put that began this generation of the key; 0 for a tombstone.
    pub create_revision: i64,
    /// The revision of this version; `main` is etcd's `mod_revision`.
    pub revision: Revision,
    /// Puts in this generation, from 1; 0 for a tombstone.
    pub version: i64,
    /// The lease to which the version is attached; 0 for none.
    pub lease: i64,
    /// Whether this version ends the generation.
    pub is_tombstone: bool,
}

impl Record {
    /// The end of `key`'s generation at `revision`.
    pub(crate) fn tombstone(key: Bytes, revision: Revision) -> Self {
        let (create_revision, version, lease) = (0, 0, 0);
        Self { key, value: Bytes::new(), create_revision, revision, version, lease, is_tombstone: true }
    }

    /// Whether it is only a revision.
    pub fn is_gap(&self) -> bool {
        self.key.is_empty()
    }

    /// Whether its fields fit together.
    pub(crate) fn is_sound(&self) -> bool {
        let Self { create_revision, version, lease, .. } = *self;
        let is_bare = self.value.is_empty() && create_revision == 0 && version == 0 && lease == 0;
        match (self.is_gap(), self.is_tombstone) {
            (true, is_tombstone) => is_bare && !is_tombstone,
            (false, true) => is_bare,
            (false, false) => (1..=self.revision.main).contains(&create_revision) && version > 0,
        }
    }

    /// Length of the record as an `mvccpb.KeyValue` in an answer or an event, where a tombstone has its revision.
    /// **Units** bytes.
    pub fn key_value_len(&self) -> usize {
        let Self { create_revision, revision, version, lease, .. } = *self;
        let numbers = number_len(create_revision) + number_len(revision.main) + number_len(version) + number_len(lease);
        slice_len(&self.key) + numbers + slice_len(&self.value)
    }

    /// Length of the record as the `mvccpb.KeyValue` that is stored, as in etcd: a tombstone has only its key, a gap
    /// nothing. **Units** bytes. **Bounds** below 4 GiB.
    pub(crate) fn stored_len(&self) -> u32 {
        if self.is_tombstone || self.is_gap() {
            return tombstone_len(&self.key);
        }
        u32::try_from(self.key_value_len()).expect("a record is smaller than 4 GiB")
    }
}

/// [`Record::stored_len`] of a tombstone.
pub(crate) fn tombstone_len(key: &[u8]) -> u32 {
    u32::try_from(slice_len(key)).expect("a key is smaller than 4 GiB")
}
