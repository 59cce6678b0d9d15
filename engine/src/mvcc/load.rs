//! Loads the records that another store wrote, with the revisions that they have there.
//!
//! It is for a store that is built from a file, before anything is read from it. Records come in revision order, then
//! the revisions of the store. The loader publishes and checkpoints between records, so that memory stays bounded.

use super::{
    cursor::Version,
    write::{Mvcc, Unfinished},
};
use crate::{
    Fault, Record,
    tree::{self, EntryMeta, NEWEST, NewEntry, TOMBSTONE},
};

impl Mvcc {
    /// Appends a record as it is, above all others. Returns the version that it replaces, if its key was live.
    ///
    /// **Errors** a page that is not resident; nothing was changed then.
    ///
    /// **Panics** if the record's fields do not fit together, or if it is not above all others.
    pub fn load(&mut self, record: Record) -> Result<Option<Version>, Fault> {
        assert!(record.is_sound(), "a record that is loaded was checked");
        assert!(record.revision.main >= self.live.roots.revision, "records are loaded in revision order");
        let bytes = record.stored_len();
        let mut previous = None;
        let Record { revision, create_revision, version, lease, is_tombstone, .. } = record;
        let mut make = |newest: Option<&EntryMeta>| {
            previous = newest.filter(|newest| !newest.is_tombstone()).copied();
            let flags = if is_tombstone { NEWEST | TOMBSTONE } else { NEWEST };
            Some(EntryMeta { flags, revision, create_revision, version, lease, bytes })
        };
        let mut new = NewEntry { key: &record.key, revision, value: &[], make: &mut make };
        tree::put(&mut self.live.roots.key_root, &mut self.ledger, &mut new)?;
        let previous = previous.map(|previous| Version::new(record.key.clone(), &previous));
        self.live.roots.revision = revision.main;
        self.live.recent.push(record, bytes);
        self.is_ahead = true;
        Ok(previous)
    }

    /// From here on, the records that are loaded belong to a request under way, whose revision is `revision` + 1. It
    /// has made `written` changes, not all of which need be loaded. See [`Mvcc::load_end`].
    pub fn load_unfinished(&mut self, revision: i64, compact_revision: i64, written: i64) {
        assert!(written > 0, "a request under way has made changes");
        self.load_end(revision, compact_revision);
        self.unfinished = Some(Unfinished { base: revision, written });
        self.live.roots.revision = revision + 1;
    }

    /// Sets the current revision, which may lie above that of the last record, and the compact revision (-1: none).
    pub fn load_end(&mut self, revision: i64, compact_revision: i64) {
        assert!(revision >= self.live.revision(), "the revision never decreases");
        assert!(compact_revision >= self.live.compact_revision() && compact_revision <= revision);
        self.live.roots.revision = revision;
        self.live.roots.compact_revision = compact_revision;
        self.is_ahead = true;
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{KeyRange, ReadView, Revision};

    fn hash(view: &ReadView, revision: i64) -> u32 {
        view.hash_kv(revision).step(view, usize::MAX).unwrap().unwrap().0
    }

    /// Puts and deletes of a few keys, with compactions between them.
    fn history() -> Mvcc {
        let mut mvcc = Mvcc::in_memory();
        for number in 0..200_u32 {
            let mut write = mvcc.begin();
            let key = |number: u32| Bytes::from(format!("k{}", number % 17));
            write.put(key(number * 7), Bytes::from(vec![7; 40]), i64::from(number % 3)).unwrap();
            if number % 4 == 0 {
                write.delete(&key(number * 5)).unwrap();
            }
            drop(write.finish());
        }
        mvcc.compact(90);
        drop(mvcc.publish(200, 2));
        mvcc
    }

    #[test]
    fn what_compaction_keeps_makes_the_same_store_again() {
        let origin = history();
        let view = origin.view();
        let mut copy = Mvcc::in_memory();
        let mut records = view.records_from(Revision::MIN);
        let mut left_out = 0;
        while let Some(record) = records.next().unwrap() {
            if view.is_kept(&record, view.compact_revision()).unwrap() {
                copy.load(record).unwrap();
            } else {
                left_out += 1;
            }
        }
        assert!(left_out > 50, "compaction took something");
        copy.load_end(view.revision(), view.compact_revision());
        let loaded = copy.publish(1, 1);
        assert_eq!(loaded.verify().unwrap().entries + left_out, view.verify().unwrap().entries);
        for revision in view.compact_revision()..=view.revision() {
            assert_eq!(hash(&loaded, revision), hash(&view, revision), "at {revision}");
            assert_eq!(
                loaded.count(&KeyRange::all(), revision).unwrap(),
                view.count(&KeyRange::all(), revision).unwrap()
            );
        }
    }

    #[test]
    fn a_gap_is_hashed_and_belongs_to_no_range_of_a_client() {
        let mut copy = Mvcc::in_memory();
        let record = |key: &'static str, main, version| Record {
            key: Bytes::from_static(key.as_bytes()),
            value: Bytes::new(),
            create_revision: version * main,
            revision: Revision::new(main, 0),
            version,
            lease: 0,
            is_tombstone: false,
        };
        copy.load(record("a", 2, 1)).unwrap();
        let before = copy.publish(1, 1);
        copy.load(record("", 1000, 0)).unwrap();
        copy.load_end(1000, 1000);
        let view = copy.publish(1, 1);
        assert_eq!((view.revision(), view.compact_revision()), (1000, 1000));
        assert_ne!(hash(&view, 1000), hash(&before, 2));
        let everything = KeyRange { start: Bytes::from_static(&[0]), ..KeyRange::all() };
        assert_eq!(view.count(&everything, 1000).unwrap(), 1);
        view.verify().unwrap();
        let mut write = copy.begin();
        write.put("b".into(), Bytes::new(), 0).unwrap();
        assert_eq!(write.finish().revision, 1001);
    }

    #[test]
    fn a_revision_is_reached_without_a_record() {
        let mut copy = Mvcc::in_memory();
        copy.load_end(77, 70);
        let view = copy.publish(1, 1);
        assert_eq!((view.revision(), view.compact_revision()), (77, 70));
    }
}
