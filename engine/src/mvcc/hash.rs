//! etcd's HashKV, in bounded steps and bounded memory.
//!
//! etcd hashes every stored record up to a revision R, in revision order. Of the records up to the compact revision C,
//! it leaves out those that are not in a *keep set*: the newest live versions at R. It builds that set for all keys
//! first. Here each record is looked up in the key tree instead.
//!
//! Invariants:
//! - `next` is above every record that `crc` has taken in, and not above any other.
//! - The answer does not depend on how far the sweep has come, nor on dead records that extents still hold. Where etcd
//!   would hash whatever is stored (its keep set is empty), the records that compaction at C keeps are hashed here.
//!
//! **Source** etcd 3.7.1 `server/storage/mvcc/hash.go`, `kvstore.go` (`hashByRev`), `kvstore_compaction.go`,
//! `key_index.go` (`keep`).

use super::{
    cursor::{Count, KeyRange},
    view::ReadView,
};
use crate::{
    Fault, Record, Revision,
    key_value::{
        TAG_CREATE_REVISION, TAG_KEY, TAG_LEASE, TAG_MOD_REVISION, TAG_VALUE, TAG_VERSION, put_number, put_slice,
    },
};

/// A hash of the store under way.
#[derive(Debug)]
pub struct HashKv {
    /// R: nothing above it is hashed.
    revision: i64,
    /// C: the compact revision of the hash; -1 for none.
    compact_revision: i64,
    /// Whether this is the hash of a compaction at R. Its keep set then also holds tombstones exactly at R.
    is_compaction: bool,
    next: Revision,
    crc: u32,
    keep: Keep,
    record_bytes: Vec<u8>,
}

/// Knowledge about the keep set.
#[derive(Debug)]
enum Keep {
    Unknown,
    /// The search for a first member.
    Counting(Box<Count>),
    Empty,
    Filled,
}

impl ReadView {
    /// The HashKV of this store at `revision`. It is computed in steps on this view or newer ones. Their sweep must be
    /// held at this view's compact revision.
    pub fn hash_kv(&self, revision: i64) -> HashKv {
        HashKv::new(revision, self.compact_revision(), false)
    }

    /// The hash that etcd takes while it compacts to `revision`. `previous` is the compact revision before (-1: none).
    /// It is exact as long as the sweep has dropped nothing for this compaction.
    pub fn hash_compaction(&self, previous: i64, revision: i64) -> HashKv {
        HashKv::new(revision, previous, true)
    }
}

impl HashKv {
    /// The hash at `revision`, with the compact revision that the store had then (-1: none). It is computed on newer
    /// views, whose sweep must be held there.
    pub fn at(revision: i64, compact_revision: i64) -> Self {
        Self::new(revision, compact_revision, false)
    }

    fn new(revision: i64, compact_revision: i64, is_compaction: bool) -> Self {
        assert!(compact_revision <= revision, "what is compacted is not hashed");
        let (next, keep) = (Revision::MIN, Keep::Unknown);
        let crc = crc32c::crc32c(b"key");
        Self { revision, compact_revision, is_compaction, next, crc, keep, record_bytes: Vec::new() }
    }

    /// Hashes about `budget` more records. Returns the hash and its compact revision once it is complete. `view` is the
    /// view from which the hash was made, or a newer one. After a [`Fault`] is resolved, the same call goes on at the
    /// same place.
    pub fn step(&mut self, view: &ReadView, budget: usize) -> Result<Option<(u32, i64)>, Fault> {
        let mut records = view.records_from(self.next);
        let mut left = budget.max(1);
        while let Some(record) = records.next()?.filter(|record| record.revision.main <= self.revision) {
            let Some(is_hashed) = self.is_hashed(view, &record, &mut left)? else { return Ok(None) };
            assert!(record.revision >= self.next, "records come in revision order");
            self.next = Revision::new(record.revision.main, record.revision.sub + 1);
            if is_hashed {
                self.take(&record);
            }
            left = left.saturating_sub(1);
            if left == 0 {
                return Ok(None);
            }
        }
        Ok(Some((self.crc, self.compact_revision)))
    }

    /// Whether a record is part of the hash; `None` if the budget ended before this was known.
    fn is_hashed(&mut self, view: &ReadView, record: &Record, left: &mut usize) -> Result<Option<bool>, Fault> {
        let main = record.revision.main;
        if main > self.compact_revision {
            return Ok(Some(true));
        }
        // Older etcds drop this tombstone and newer ones do not. Their hashes must be equal.
        if main == self.compact_revision && record.is_tombstone {
            return Ok(Some(false));
        }
        let newest = view.find(&record.key, self.revision)?;
        if newest.is_some_and(|newest| newest.revision == record.revision && !newest.is_tombstone()) {
            self.keep = Keep::Filled;
            return Ok(Some(true));
        }
        match self.is_keep_empty(view, left)? {
            None => Ok(None),
            Some(false) => Ok(Some(false)),
            Some(true) => {
                let kept = view.find(&record.key, self.compact_revision)?;
                Ok(Some(kept.is_some_and(|kept| kept.revision == record.revision) && !record.is_tombstone))
            }
        }
    }

    /// Whether no key is live at R (and none deleted exactly at it, for a compaction's hash).
    fn is_keep_empty(&mut self, view: &ReadView, left: &mut usize) -> Result<Option<bool>, Fault> {
        loop {
            match &mut self.keep {
                Keep::Filled => return Ok(Some(false)),
                Keep::Empty => return Ok(Some(true)),
                Keep::Unknown => {
                    let is_filled = self.is_compaction && self.has_tombstone_at_revision(view)?;
                    self.keep = if is_filled {
                        Keep::Filled
                    } else {
                        Keep::Counting(Box::new(view.counter(&KeyRange::all(), self.revision)))
                    };
                }
                Keep::Counting(count) => {
                    let budget = (*left).min(COUNT_BUDGET);
                    view.lead_count(count);
                    let done = count.step(budget)?;
                    if done.unwrap_or(0) > 0 || count.counted() > 0 {
                        self.keep = Keep::Filled;
                    } else if done.is_some() {
                        self.keep = Keep::Empty;
                    } else {
                        *left = left.saturating_sub(budget);
                    }
                    if *left == 0 {
                        return Ok(None);
                    }
                }
            }
        }
    }

    fn has_tombstone_at_revision(&self, view: &ReadView) -> Result<bool, Fault> {
        let mut records = view.records_from(Revision::new(self.revision, 0));
        while let Some(record) = records.next()?.filter(|record| record.revision.main == self.revision) {
            let newest = view.find(&record.key, self.revision)?;
            if record.is_tombstone && newest.is_some_and(|newest| newest.revision == record.revision) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Hashes a record as etcd stores it. The revision is the key. The message, with its fields in the order of their
    /// numbers, is the value.
    fn take(&mut self, record: &Record) {
        let bytes = &mut self.record_bytes;
        bytes.clear();
        bytes.extend_from_slice(&record.revision.main.to_be_bytes());
        bytes.push(b'_');
        bytes.extend_from_slice(&record.revision.sub.to_be_bytes());
        if record.is_tombstone {
            bytes.push(b't');
        }
        put_slice(TAG_KEY, &record.key, bytes);
        if !record.is_tombstone && !record.is_gap() {
            put_number(TAG_CREATE_REVISION, record.create_revision, bytes);
            put_number(TAG_MOD_REVISION, record.revision.main, bytes);
            put_number(TAG_VERSION, record.version, bytes);
            put_slice(TAG_VALUE, &record.value, bytes);
            put_number(TAG_LEASE, record.lease, bytes);
        }
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }
}

/// Keys that are looked at before the budget is checked again.
const COUNT_BUDGET: usize = 1024;
