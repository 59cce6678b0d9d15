//! Runs on: main thread, offline.
//!
//! Builds a data directory from what another store holds: leases first, then records in revision order, then where it stands.
//!
//! Invariants:
//! - What is built is no member before [`Builder::finish`]: it has no identity, and lies where no server looks for it (the caller sees to
//!   that).
//! - Records leave memory by a checkpoint every `CHECKPOINT_BYTES`.
//! - A key is attached to the lease of its newest version, if there is such a lease; as etcd does when it starts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use consensus::{ConfState, Member};
use engine::disk::Disk;
use engine::{Fault, Mvcc, Record, Store, store};

use super::Error;
use crate::apply::table;
use crate::core::Identity;
use crate::lease::{self, Grant};
use crate::quota::Origin;

/// Records that wait for a checkpoint. **Units** bytes.
const CHECKPOINT_BYTES: u64 = 64 << 20;
/// Nodes that are looked at for eviction after a record, while the trees take more memory than they may.
const EVICT_NODES: usize = 256;

/// Where a store that was built stands.
#[derive(Clone, Debug)]
pub struct Place {
    /// Who the member is.
    pub identity: Identity,
    /// Members, ascending by id.
    pub members: Vec<Member>,
    /// Voters and learners.
    pub conf_state: ConfState,
    /// Decided cluster version.
    pub cluster_version: Option<String>,
    /// Active alarms: member id and type. Who raised them is not known; so they stay until a client takes them back.
    pub alarms: Vec<(u64, i32)>,
    /// Last applied entry, and its term.
    pub applied: (u64, u64),
    /// Current revision, at least that of the last record.
    pub revision: i64,
    /// Compact revision; -1 for none.
    pub compact_revision: i64,
}

/// See the head of this file.
pub struct Builder {
    disk: Box<dyn Disk>,
    dir: PathBuf,
    store: Store,
    leases: BTreeSet<i64>,
}

impl Builder {
    /// Creates a store in `dir`, which holds none.
    ///
    /// **Errors** the disk's.
    pub fn create(mut disk: Box<dyn Disk>, dir: &Path, options: store::Options) -> Result<Self, Error> {
        let store = Store::open(disk.as_mut(), dir, options)?;
        assert!(store.generation() == 1, "a store is built once");
        Ok(Self { disk, dir: dir.to_path_buf(), store, leases: BTreeSet::new() })
    }

    /// Does `change` until it has all its pages.
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
            drop(write.finish());
            Ok(())
        })
    }

    fn meta_delete(&mut self, key: &[u8]) -> Result<(), Error> {
        self.change(|mvcc| {
            let mut write = mvcc.begin();
            write.meta_delete(key)?;
            drop(write.finish());
            Ok(())
        })
    }

    /// Adds a lease, before all records.
    ///
    /// **Errors** the disk's.
    pub fn lease(&mut self, id: i64, grant: Grant) -> Result<(), Error> {
        self.leases.insert(id);
        self.meta_put(&lease::grant_key(id), &grant.encode())
    }

    /// Adds a record, above all before it.
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
            // What was written leaves memory with the view before.
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

    /// Writes down where the store stands; all of it is durable then. Gives back the disk.
    ///
    /// **Errors** the disk's.
    pub fn finish(mut self, place: &Place) -> Result<Box<dyn Disk>, Error> {
        self.meta_put(table::IDENTITY, &table::encode_identity(&place.identity))?;
        self.meta_put(table::CONF_STATE, &table::encode_conf_state(&place.conf_state))?;
        for member in &place.members {
            self.meta_put(&table::member_key(member.id), &member.to_json())?;
        }
        for (member_id, alarm) in &place.alarms {
            self.meta_put(&table::alarm_key(*member_id, *alarm), table::encode_origin(Origin::Hand))?;
        }
        if let Some(version) = &place.cluster_version {
            self.meta_put(table::CLUSTER_VERSION, version.as_bytes())?;
        }
        self.store.mvcc_mut().load_end(place.revision, place.compact_revision);
        let (index, term) = place.applied;
        drop(self.store.mvcc_mut().publish(index, term));
        self.checkpoint()?;
        Ok(self.disk)
    }
}
