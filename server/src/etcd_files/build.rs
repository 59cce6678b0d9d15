//! Runs on: main thread, offline; threads of their own (states that arrive).
//!
//! Builds a data directory from the content of another store: leases first, then records in revision order, then the
//! rest.
//!
//! Invariants:
//! - Before [`Builder::finish`], the directory is not a member: it has no identity. The caller builds it where no
//!   server looks for it.
//! - Records leave memory through a checkpoint every `CHECKPOINT_BYTES`.
//! - A key is attached to the lease of its newest version, if that lease exists. etcd does the same when it starts.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use consensus::{EntryId, Identity};
use engine::{Fault, Mvcc, Record, Store, disk::Disk, store};

use super::{error::Error, file::Database, state::State};
use crate::{
    apply::{restore::Tables, table},
    lease::{self, Grant},
};

/// Opens a disk for a directory of a store.
pub type OpenDisk<'a> = &'a dyn Fn(&Path) -> Result<Box<dyn Disk>, engine::Error>;

/// Records that may wait for a checkpoint. **Units** bytes.
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// Nodes that one eviction looks at. While the trees take more memory than they may, there is one eviction after each
/// record.
const EVICT_NODES: usize = 256;

/// See the head of this file.
pub struct Builder {
    disk: Box<dyn Disk>,
    dir: PathBuf,
    store: Store,
    leases: BTreeSet<i64>,
}

impl Builder {
    /// Creates a store in `dir`, which must not hold one.
    ///
    /// **Errors** the disk's.
    pub fn create(mut disk: Box<dyn Disk>, dir: &Path, options: store::Options) -> Result<Self, Error> {
        let store = Store::open(disk.as_mut(), dir, options)?;
        assert!(store.generation() == 1, "a store is built once");
        Ok(Self { disk, dir: dir.to_path_buf(), store, leases: BTreeSet::new() })
    }

    /// Builds in `store`, a state beside the live one of its directory, which must be empty.
    pub fn incoming(disk: Box<dyn Disk>, store: Store) -> Self {
        assert!(store.generation() == 1, "a store is built once");
        Self { disk, dir: store.dir().to_path_buf(), store, leases: BTreeSet::new() }
    }

    /// Gives up.
    pub fn into_store(self) -> Store {
        self.store
    }

    /// Tries `change` again until all its pages are in memory.
    fn change<T>(&mut self, mut change: impl FnMut(&mut Mvcc) -> Result<T, Fault>) -> Result<T, Error> {
        loop {
            match change(self.store.mvcc_mut()) {
                Ok(done) => return Ok(done),
                Err(fault) => engine::load(self.disk.as_mut(), &self.dir, fault)?,
            }
        }
    }

    fn meta_put(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        self.change(|mvcc| {
            let mut write = mvcc.begin();
            write.meta_put(key, value)?;
            // An entry may be under way.
            drop(write.pause());
            Ok(())
        })
    }

    /// Adds a row of another member's meta tree. Those of leases must come before all records.
    ///
    /// **Errors** the disk's.
    pub fn row(&mut self, key: &[u8], value: &[u8]) -> Result<(), Error> {
        if let Some((lease, _)) = lease::stored_grant(key, value).filter(|_| key.starts_with(lease::GRANTS)) {
            self.leases.insert(lease);
        }
        self.meta_put(key, value)?;
        self.bound_memory()
    }

    fn meta_delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.change(|mvcc| {
            let mut write = mvcc.begin();
            write.meta_delete(key)?;
            drop(write.pause());
            Ok(())
        })
    }

    /// Adds the leases. This must come before all records.
    ///
    /// **Errors** the disk's.
    pub fn leases(&mut self, leases: &[(i64, Grant)]) -> Result<(), Error> {
        for (id, grant) in leases {
            self.leases.insert(*id);
            self.meta_put(&lease::grant_key(*id), &grant.encode())?;
        }
        Ok(())
    }

    /// Adds the records of `database`. Returns the revision of the last one, or 0.
    ///
    /// **Errors** damage in the database; the disk's.
    pub fn records(&mut self, database: &mut Database) -> Result<i64, Error> {
        let mut records = database.records();
        let mut revision = 0;
        while let Some(record) = records.next(database)? {
            revision = record.revision.main;
            self.record(&record)?;
        }
        Ok(revision)
    }

    /// Adds the row of the entry that is under way. It has made `written` changes, of the revision after `revision`.
    /// This must come after the records up to `revision`, and before those of the entry.
    ///
    /// **Errors** the disk's.
    pub fn under_way(
        &mut self,
        row: &[u8],
        (revision, compact_revision, written): (i64, i64, i64),
    ) -> Result<(), Error> {
        self.meta_put(table::UNDER_WAY, row)?;
        if written > 0 {
            self.store.mvcc_mut().load_unfinished(revision, compact_revision, written);
        }
        Ok(())
    }

    /// Adds a record. Its revision must be above those of all records before it.
    ///
    /// **Errors** the disk's.
    pub fn record(&mut self, record: &Record) -> Result<(), Error> {
        let previous = self.change(|mvcc| mvcc.load(record.clone()))?;
        let before = previous.map_or(0, |previous| previous.lease);
        if before != record.lease {
            if before != 0 {
                self.meta_delete(&lease::attachment_key(before, &record.key))?;
            }
            if self.leases.contains(&record.lease) {
                self.meta_put(&lease::attachment_key(record.lease, &record.key), &[])?;
            }
        }
        self.bound_memory()
    }

    fn bound_memory(&mut self) -> Result<(), Error> {
        let dirty_bytes_max = self.store.dirty_bytes_due();
        let mvcc = self.store.mvcc();
        if mvcc.recent_bytes() >= CHECKPOINT_BYTES || mvcc.dirty_bytes() >= dirty_bytes_max {
            drop(self.store.mvcc_mut().publish(0, 0));
            self.checkpoint()?;
            // This drops the view that held the written records. They leave memory with it.
            drop(self.store.mvcc_mut().publish(0, 0));
        }
        if self.store.wants_eviction() && self.store.evict(EVICT_NODES) {
            drop(self.store.mvcc_mut().publish(0, 0));
            self.store.balance();
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(), Error> {
        let done = self.store.checkpoint_begin().run(self.disk.as_mut())?;
        self.store.checkpoint_end(done);
        Ok(())
    }

    /// Ends a state beside the live one: that of the member `identity`, at the entry `at`. All of it is then durable,
    /// and nothing names it yet. Gives the disk and the state.
    ///
    /// **Errors** the disk's.
    pub fn finish_incoming(
        &mut self,
        identity: &Identity,
        at: EntryId,
        (revision, compact_revision): (i64, i64),
    ) -> Result<(&mut dyn Disk, &Store), Error> {
        self.meta_put(table::IDENTITY, &table::encode_identity(identity))?;
        let row = self.change(|mvcc| mvcc.live().meta_get(table::CONF_STATE))?;
        if let Some(conf_state) = row.and_then(|row| table::decode_conf_state(&row)) {
            self.store.set_vital(table::encode_vital(identity, &conf_state));
        }
        self.store.mvcc_mut().load_end(revision, compact_revision);
        drop(self.store.mvcc_mut().publish(at.index, at.term));
        self.checkpoint()?;
        // The records that were written leave memory.
        drop(self.store.mvcc_mut().publish(at.index, at.term));
        Ok((self.disk.as_mut(), &self.store))
    }

    /// Adds the rest of `state`, and makes the directory that of the member `identity`. All of it is then durable.
    /// Gives back the disk.
    ///
    /// **Errors** the disk's.
    ///
    /// **Panics** if the leases of `state` are not those that were added before the records.
    pub fn finish(mut self, identity: &Identity, state: &State) -> Result<Box<dyn Disk>, Error> {
        let State { tables, applied, revision, compact_revision } = state;
        self.tables(tables)?;
        self.meta_put(table::IDENTITY, &table::encode_identity(identity))?;
        self.store.set_vital(table::encode_vital(identity, &tables.conf_state));
        self.store.mvcc_mut().load_end(*revision, *compact_revision);
        // Both copies of the superblock get the whole state: the one before is not that of a member.
        for _ in 0..2 {
            drop(self.store.mvcc_mut().publish(applied.index, applied.term));
            self.checkpoint()?;
        }
        Ok(self.disk)
    }

    /// Adds what `tables` have beside the leases.
    ///
    /// **Errors** the disk's.
    ///
    /// **Panics** if their leases are not those that were added before the records.
    pub fn tables(&mut self, tables: &Tables) -> Result<(), Error> {
        let Tables { cluster, users, conf_state, leases } = tables;
        assert!(leases.iter().all(|(id, _)| self.leases.contains(id)), "leases come before records");
        self.meta_put(table::CONF_STATE, &table::encode_conf_state(conf_state))?;
        for member in &cluster.members {
            self.meta_put(&table::member_key(member.id), &member.to_json())?;
        }
        for ((member_id, alarm), raised_by) in &cluster.alarms {
            self.meta_put(&table::alarm_key(*member_id, *alarm), table::encode_raised_by(*raised_by))?;
        }
        for id in &cluster.removed {
            self.meta_put(&table::removed_key(*id), &[])?;
        }
        if let Some(version) = &cluster.version {
            self.meta_put(table::CLUSTER_VERSION, version.as_bytes())?;
        }
        if let Some(downgrade) = &cluster.downgrade {
            self.meta_put(table::DOWNGRADE, &table::encode_downgrade(downgrade))?;
        }
        for (key, value) in users.rows() {
            self.meta_put(&key, &value)?;
        }
        Ok(())
    }
}
