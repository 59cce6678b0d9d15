//! Runs on: main thread, in place of the server.
//!
//! `orlop snapshot restore`: a new member of a new cluster from a snapshot file, etcd's or Orlop's.
//!
//! Invariants: keys, revisions, leases, alarms and the cluster's version are the file's; members and ids follow from the flags as those
//! of a new cluster do; the log begins with the members, as etcdutl's does. The directory appears under its name when everything
//! in it is durable, so that no half of a store can be started.
//!
//! **Source** etcd v3.7.1 `etcdutl/snapshot/v3_snapshot.go Restore`.

use std::path::{Path, PathBuf};

use consensus::{ConfChange, ConfState, Driver, Member};
use engine::disk::Disk;
use engine::{Record, Revision, store};

use super::build::{Builder, Place};
use super::file::{self, Backup};
use super::{Error, refuse_auth};
use crate::config::Config;
use crate::core::Identity;

/// What is restored, and how.
pub struct Restore<'a> {
    /// The snapshot file.
    pub file: &'a Path,
    /// The member that will be: name, directories, initial cluster.
    pub config: &'a Config,
    /// Whether the checksum behind the file's content is ignored.
    pub skip_hash_check: bool,
    /// How far the revision is moved on, with all before it compacted; 0 for not.
    pub bump_revision: i64,
    /// Settings of the store to be made.
    pub store: store::Options,
    /// Settings of its log.
    pub consensus: consensus::Options,
}

/// Gives a disk that reads files anywhere.
pub type Reading<'a> = &'a dyn Fn() -> Result<Box<dyn Disk>, engine::Error>;
/// Gives a disk for a directory of a store.
pub type Writing<'a> = &'a dyn Fn(&Path) -> Result<Box<dyn Disk>, engine::Error>;

/// Where a directory is built before it gets its name.
fn part_of(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    dir.with_file_name(name)
}

impl Restore<'_> {
    /// Restores. `reading` gives a disk to read files anywhere, `disk` one for a directory of the store.
    ///
    /// **Errors** why not; what was begun is left beside, under another name.
    pub fn run(self, reading: Reading<'_>, disk: Writing<'_>) -> Result<(), Error> {
        let config = self.config;
        config.verify_bootstrap().map_err(Error::Refused)?;
        let dir = config.data_dir.as_path();
        let part = part_of(dir);
        if has_files(dir) {
            return Err(Error::Refused(format!("data-dir {:?} not empty or could not be read", dir.display())));
        }
        if let Some(wal) = config.wal_dir.as_ref().filter(|wal| wal.exists()) {
            return Err(Error::Refused(format!("wal-dir {:?} exists", wal.display())));
        }
        if has_files(&part) {
            return Err(Error::Refused(format!("{:?} is left of a restore that did not end", part.display())));
        }
        if !self.skip_hash_check {
            file::check_hash(reading()?, self.file)?;
        }
        let mut backup = Backup::open(reading()?, self.file)?;
        refuse_auth(&mut backup)?;
        let (identity, members) = members_of(config);
        let builder = Builder::create(disk(&part)?, &part, self.store)?;
        let applied = (members.len() as u64, 1);
        let mut at = disk(&part)?;
        let wal_dir = config.wal_dir.clone().unwrap_or_else(|| part.join("wal"));
        self.write_log(at.as_mut(), &wal_dir, &identity, &members)?;
        drop(at);
        let mut disk = self.load(builder, &mut backup, identity, members, applied)?;
        disk.rename(&part, dir)?;
        let above = dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk.sync_dir(above)?;
        Ok(())
    }

    /// The members' entries, as every new cluster's log begins.
    fn write_log(
        &self,
        disk: &mut dyn Disk,
        wal_dir: &Path,
        identity: &Identity,
        members: &[Member],
    ) -> Result<(), Error> {
        let start = consensus::Start {
            bootstrap: members.iter().map(ConfChange::bootstrap).collect(),
            ..consensus::Start::default()
        };
        let ids = consensus::Identity { member_id: identity.member_id, cluster_id: identity.cluster_id };
        drop(Driver::open(disk, wal_dir, ids, self.consensus.clone(), start)?);
        Ok(())
    }

    fn load(
        &self,
        mut builder: Builder,
        backup: &mut Backup,
        identity: Identity,
        members: Vec<Member>,
        applied: (u64, u64),
    ) -> Result<Box<dyn Disk>, Error> {
        let mut compact_revision = backup.meta()?.compact_revision;
        let mut revision = load_content(&mut builder, backup)?;
        if self.bump_revision > 0 {
            let main = revision.checked_add(self.bump_revision).filter(|main| *main < i64::MAX / 2);
            let main = main.ok_or_else(|| Error::Refused("--bump-revision goes beyond all revisions".into()))?;
            builder.record(&gap(main))?;
            (revision, compact_revision) = (main, main);
        }
        let voters = members.iter().map(|member| member.id).collect();
        builder.finish(&Place {
            identity,
            conf_state: ConfState { voters, learners: Vec::new() },
            members,
            cluster_version: backup.cluster_version()?,
            alarms: backup.alarms()?,
            applied,
            revision: revision.max(compact_revision).max(1),
            compact_revision,
        })
    }
}

/// Leases and records; the revision of the last record, or 0.
pub(crate) fn load_content(builder: &mut Builder, backup: &mut Backup) -> Result<i64, Error> {
    for (id, grant) in backup.leases()? {
        builder.lease(id, grant)?;
    }
    let mut records = backup.records();
    let mut revision = 0;
    while let Some(record) = records.next(backup)? {
        revision = record.revision.main;
        builder.record(&record)?;
    }
    Ok(revision)
}

fn gap(main: i64) -> Record {
    Record {
        key: bytes::Bytes::new(),
        value: bytes::Bytes::new(),
        create_revision: 0,
        revision: Revision::new(main, 0),
        version: 0,
        lease: 0,
        is_tombstone: false,
    }
}

/// Whether something is in the way. What cannot be read is.
fn has_files(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) => error.kind() != std::io::ErrorKind::NotFound,
    }
}

/// Ids as those of a new cluster of `--initial-cluster`.
fn members_of(config: &Config) -> (Identity, Vec<Member>) {
    let member = |(name, urls): (&String, &Vec<crate::config::Url>)| {
        let peer_urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        let id = consensus::member_id(&peer_urls, &config.initial_cluster_token, None);
        Member { id, peer_urls, name: name.clone(), ..Member::default() }
    };
    let mut members: Vec<Member> = config.initial_cluster.iter().map(member).collect();
    let own = members.iter().find(|member| member.name == config.name).expect("verified before");
    let ids: Vec<u64> = members.iter().map(|member| member.id).collect();
    let identity = Identity { cluster_id: consensus::cluster_id(&ids), member_id: own.id };
    members.sort_unstable_by_key(|member| member.id);
    (identity, members)
}
