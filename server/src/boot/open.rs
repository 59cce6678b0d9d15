//! Runs on: core 0.
//!
//! Opens the data directory: the store, the member's identity, the log.
//!
//! Each directory's I/O path is probed once, before any other thread runs. All disks of the member are opened on the
//! path that was found.

use std::path::Path;

use consensus::{ConfChange, Driver, EntryId, Identity, peer::hello::Remote};
use engine::{
    Store,
    disk::{self, Disk, IoPath},
};

use super::{
    bootstrap::Bootstrap,
    compare,
    error::Error,
    import::{self, Import},
    join, options,
    ports::Ports,
    repair,
};
use crate::{
    apply::{
        entry::Applier,
        start::{self, Start},
    },
    clock::Clock,
    config::Config,
    etcd_files,
    lease::Lessor,
    peer::{
        ask::Network,
        resolve::{Resolver, System},
        snapshot::receive::remove_leftover,
    },
    shared::Cluster,
};

/// The I/O paths of the member.
#[derive(Clone, Debug)]
pub struct IoPaths {
    /// The path of the data directory.
    pub data: IoPath,
    /// The path of the log, which may have a directory of its own.
    pub log: IoPath,
}

/// An opened member before its threads run.
pub struct Opened {
    /// Keys and tables.
    pub store: Store,
    /// The I/O paths.
    pub paths: IoPaths,
    /// The disk on which the log was opened.
    pub log_disk: Box<dyn Disk>,
    /// The identity of the member.
    pub identity: Identity,
    /// Raft and the log.
    pub driver: Driver,
    /// The state beside the keys.
    pub applier: Applier,
    /// Where other members are reached, of which nothing is applied yet.
    pub remotes: Vec<Remote>,
}

/// Opens the member that `config` names, or makes it. Blocks, but for the questions to other members that a member
/// without data may have. Meanwhile those who ask it at its `ports` are turned away: members of a new cluster ask each
/// other, and none of them can answer yet.
///
/// **Errors** the reason why it cannot start.
pub async fn open(config: &Config, clock: &Clock, ports: &Ports) -> Result<Opened, Error> {
    let dir = config.data_dir.as_path();
    if import::is_etcd(dir)? {
        take_over(config, clock)?;
    }
    let paths = probe(config)?;
    let mut data_disk = paths.data.disk(dir)?;
    let disk = data_disk.as_mut();
    let lock = disk.lock(dir)?;
    import::complete(disk, dir).map_err(Error::Import)?;
    repair::complete(disk, dir)?;
    drop(lock);
    remove_leftover(dir);
    let mut store = Store::open(disk, dir, options::store(config, clock))?;
    let is_new = store.applied() == (0, 0) && store.generation() <= 1;
    let begun = if is_new { Some(ports.decline_during(bootstrap(config, clock)).await?) } else { None };
    if !is_new && config.discovers {
        let dir = options::wal_dir(config);
        tracing::warn!(
            "wal-dir" = %dir.display(),
            "discovery token is ignored since cluster already initialized; valid logs are found"
        );
    }
    let fresh = begun.as_ref().map_or_else(|| Bootstrap::of_new_cluster(config).identity, |begun| begun.identity);
    let Start { identity, tables, unread } = start::read(&mut store, disk, fresh)?;
    let begun = match begun {
        Some(begun) => begun,
        None => restarted(config, identity, &tables.cluster).await,
    };
    let Bootstrap { members, remotes, has_run, .. } = begun;
    let view = store.mvcc().view();
    if !is_new && config.gates["InitialCorruptCheck"] {
        let (members, others) = (&tables.cluster.members, network(config));
        let wait = config.request_timeout();
        ports.decline_during(compare::check(&mut store, disk, (identity, members), &others, wait)).await?;
    }
    let lessor = Lessor::new(options::lease(config));
    let start = consensus::Start {
        applied: EntryId { index: view.applied_index(), term: view.applied_term() },
        is_installed: store.is_installed(),
        trimmable: store.trimmable().0,
        conf_state: tables.conf_state.clone(),
        bootstrap: members.iter().map(ConfChange::bootstrap).collect(),
        is_alone: config.initial_cluster.len() <= 1,
        has_run,
    };
    let log_dir = options::wal_dir(config);
    let consensus = options::consensus(config, clock);
    if config.force_new_cluster && !is_new {
        let is_removed = tables.cluster.removed.contains(&identity.member_id);
        force_new_cluster((&paths.log, &log_dir), (identity, is_removed), &consensus, &start)?;
    }
    let mut log_disk = paths.log.disk(&log_dir)?;
    let driver = Driver::open(log_disk.as_mut(), &log_dir, identity, consensus, start)?;
    let mut applier = Applier::new(lessor, tables, unread);
    applier.learners_max = config.learners_max;
    Ok(Opened { store, paths, log_disk, identity, driver, applier, remotes })
}

/// Makes the log in `dir` that of a sole voter: the member `identity`, which may have been removed from its cluster.
fn force_new_cluster(
    (path, dir): (&IoPath, &Path),
    (identity, is_removed): (Identity, bool),
    options: &consensus::Options,
    start: &consensus::Start,
) -> Result<(), Error> {
    if is_removed {
        return Err(consensus::Error::NotForced { what: "it was removed from its cluster" }.into());
    }
    // It is used for this alone: the log that is opened next may be another one.
    let mut disk = path.disk(dir)?;
    let forced = consensus::force_new_cluster(disk.as_mut(), dir, identity.member_id, options, start)?;
    let Some(consensus::Forced { commit_before, commit, entries_cut, removed }) = forced else { return Ok(()) };
    let removed: Vec<String> = removed.iter().map(|id| format!("{id:x}")).collect();
    let removed = removed.join(",");
    tracing::warn!(
        "cluster-id" = %format!("{:x}", identity.cluster_id),
        "local-member-id" = %format!("{:x}", identity.member_id),
        "wal-commit-index" = commit_before,
        "commit-index" = commit,
        "number-of-discarded-entries" = entries_cut,
        removed,
        "forcing restart member"
    );
    Ok(())
}

/// What a member with data begins with, if it has not come far.
async fn restarted(config: &Config, identity: Identity, cluster: &Cluster) -> Bootstrap {
    let mut begun = Bootstrap::of_data(config, identity);
    if begun.members.is_empty() && cluster.members.is_empty() && config.joins {
        begun.remotes = join::remotes(config, &network(config), identity.member_id).await;
    }
    begun
}

/// Finds out who a member without data is.
async fn bootstrap(config: &Config, clock: &Clock) -> Result<Bootstrap, Error> {
    let (others, resolver) = (network(config), Resolver::new(System, clock.clone()));
    let begun = match config.joins {
        true => join::join(config, &others, &resolver).await,
        false => Bootstrap::begin(config, &others, &resolver).await,
    };
    Ok(begun?)
}

/// The way to other members before there is a serving core.
fn network(config: &Config) -> Network {
    Network::new(options::dial_from(config), 1)
}

/// Probes the I/O path of each directory, once.
fn probe(config: &Config) -> Result<IoPaths, Error> {
    let preference = options::io_preference(config);
    let data = disk::probe(preference, &config.data_dir)?;
    let log = match &config.wal_dir {
        Some(dir) => disk::probe(preference, dir)?,
        None => data.clone(),
    };
    Ok(IoPaths { data, log })
}

/// Imports etcd's data, if the operator asked for it.
fn take_over(config: &Config, clock: &Clock) -> Result<(), Error> {
    let dir = config.data_dir.as_path();
    if !config.import {
        return Err(Error::EtcdData { path: dir.display().to_string() });
    }
    if config.wal_dir.is_some() {
        return Err(Error::Import(etcd_files::error::Error::LogElsewhere));
    }
    let (store, wal) = (options::store(config, clock), options::wal(&config.knobs.wal, clock));
    let path = disk::probe(options::io_preference(config), dir)?;
    let open = |dir: &Path| path.disk(dir);
    Import { dir, store, wal }.run(&open).map_err(Error::Import)
}
