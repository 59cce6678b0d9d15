//! Runs on: main thread, in place of the server.
//!
//! The work of `snapshot restore`: a new member of a new cluster from a snapshot file, etcd's or Orlop's.
//!
//! Invariants:
//! - Keys, revisions, leases, alarms and the cluster's version are the file's. Members and ids are those of the new
//!   cluster. The log begins with the members, as etcdutl's does.
//! - The directory gets its name when everything in it is durable. So nobody can start on half a store.
//!
//! **Source** etcd v3.7.1 `etcdutl/snapshot/v3_snapshot.go Restore`.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use consensus::{ConfChange, ConfState, Driver, EntryId, Identity, Member};
use engine::{
    Record, Revision,
    disk::{Disk, offline},
    store,
};

use super::{
    build::{Builder, OpenDisk},
    error::Error,
    file::{self, Database},
    state::State,
};
use crate::{apply::restore::Tables, shared::Cluster};

/// The cluster that begins with the restored member, as `--initial-cluster` and its token name it.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Names and peer URLs of the members.
    pub members: Vec<(String, Vec<String>)>,
    /// Makes ids of this cluster differ from those of others.
    pub token: String,
    /// Name of the member to be made, one of the members'.
    pub own_name: String,
}

impl NewCluster {
    /// The ids, as those of any new cluster of these members, and the members by their ids.
    fn bootstrap(&self) -> (Identity, Vec<Member>) {
        let member = |(name, peer_urls): &(String, Vec<String>)| {
            let id = consensus::member_id(peer_urls, &self.token, None);
            Member { id, peer_urls: peer_urls.clone(), name: name.clone(), ..Member::default() }
        };
        let mut members: Vec<Member> = self.members.iter().map(member).collect();
        let own = members.iter().find(|member| member.name == self.own_name).expect("the caller has checked the names");
        let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
        let identity = Identity { cluster_id: consensus::cluster_id(&ids), member_id: own.id };
        members.sort_unstable_by_key(|member| member.id);
        (identity, members)
    }
}

/// What is restored, and how.
pub struct Restore<'a> {
    /// The snapshot file.
    pub file: &'a Path,
    /// The data directory to be made.
    pub dir: &'a Path,
    /// The directory of its log, if that lies outside of the data directory.
    pub wal_dir: Option<&'a Path>,
    /// The cluster to be.
    pub cluster: NewCluster,
    /// Whether the checksum behind the file's content is ignored.
    pub skip_hash_check: bool,
    /// How far the revision is moved on, with all before it compacted; 0 for not.
    pub bump_revision: i64,
    /// Settings of the store to be made.
    pub store: store::Options,
    /// Settings of its log.
    pub consensus: consensus::Options,
}

/// Where a directory is built before it gets its name.
fn part_of(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    dir.with_file_name(name)
}

impl Restore<'_> {
    /// Restores.
    ///
    /// **Errors** why not; what was begun is left beside, under another name.
    pub fn run(self, open: OpenDisk<'_>) -> Result<(), Error> {
        let part = part_of(self.dir);
        self.check_room(&part)?;
        if !self.skip_hash_check {
            file::check_hash(self.file)?;
        }
        let mut database = Database::open(self.file)?;
        database.check_auth()?;
        let (identity, members) = self.cluster.bootstrap();
        let builder = Builder::create(open(&part)?, &part, self.store)?;
        let wal_dir = self.wal_dir.map_or_else(|| part.join("wal"), Path::to_path_buf);
        self.write_log(open(&part)?.as_mut(), &wal_dir, identity, &members)?;
        let mut disk = self.load(builder, &mut database, identity, members)?;
        disk.rename(&part, self.dir)?;
        let above = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk.sync_dir(above)?;
        Ok(())
    }

    /// Refuses to write where something is. A directory that cannot be read counts as one with something in it.
    fn check_room(&self, part: &Path) -> Result<(), Error> {
        let has_room = |dir: &Path| offline::is_empty_or_missing(dir).unwrap_or(false);
        if !has_room(self.dir) {
            return Err(Error::DataDir { dir: self.dir.to_path_buf() });
        }
        if let Some(dir) = self.wal_dir
            && offline::exists(dir)?
        {
            return Err(Error::WalDir { dir: dir.to_path_buf() });
        }
        if !has_room(part) {
            return Err(Error::Unfinished { dir: part.to_path_buf() });
        }
        Ok(())
    }

    /// Writes the members' entries, with which the log of every new cluster begins.
    fn write_log(
        &self,
        disk: &mut dyn Disk,
        wal_dir: &Path,
        identity: Identity,
        members: &[Member],
    ) -> Result<(), Error> {
        let start = consensus::Start {
            bootstrap: members.iter().map(ConfChange::bootstrap).collect(),
            ..consensus::Start::default()
        };
        drop(Driver::open(disk, wal_dir, identity, self.consensus.clone(), start)?);
        Ok(())
    }

    /// Brings the file's content into the store, which is the new member's then.
    fn load(
        &self,
        mut builder: Builder,
        database: &mut Database,
        identity: Identity,
        members: Vec<Member>,
    ) -> Result<Box<dyn Disk>, Error> {
        let mut compact_revision = database.meta()?.compact_revision;
        let leases = database.leases()?;
        builder.leases(&leases)?;
        let mut revision = builder.records(database)?;
        if self.bump_revision > 0 {
            let main = revision.checked_add(self.bump_revision).filter(|main| *main < i64::MAX / 2);
            let main = main.ok_or(Error::Bump)?;
            builder.record(&gap(main))?;
            (revision, compact_revision) = (main, main);
        }
        let voters = members.iter().map(|member| member.id).collect();
        let applied = EntryId { index: members.len() as u64, term: 1 };
        let cluster = Cluster { members, alarms: database.alarms()?, version: database.cluster_version()? };
        let state = State {
            tables: Tables { cluster, conf_state: ConfState { voters, learners: Vec::new() }, leases },
            applied,
            revision: revision.max(compact_revision).max(1),
            compact_revision,
        };
        builder.finish(&identity, &state)
    }
}

/// The record of a revision that changed nothing.
fn gap(main: i64) -> Record {
    Record {
        key: Bytes::new(),
        value: Bytes::new(),
        create_revision: 0,
        revision: Revision::new(main, 0),
        version: 0,
        lease: 0,
        is_tombstone: false,
    }
}
