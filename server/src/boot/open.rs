//! Runs on: core 0.
//!
//! Opens the data directory: the store, the member's identity, the log.
//!
//! Each directory's I/O path is probed once, before any other thread runs. All disks of the member are opened on the
//! path that was found.

use std::path::Path;

use consensus::{ConfChange, ConfState, Driver, EntryId, Identity, Member};
use engine::{
    ReadView, Store,
    disk::{self, Disk, IoPath},
    load, load_for,
};

use super::{
    error::Error,
    import::{self, Import},
    options, repair,
};
use crate::{
    apply::{
        entry::Applier,
        restore::{Damaged, Restore, Tables},
        table,
    },
    clock::Clock,
    config::Config,
    etcd_files,
    lease::Lessor,
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
}

/// Opens the member that `config` names, or makes it.
///
/// **Errors** the reason why it cannot start.
pub fn open(config: &Config, clock: &Clock) -> Result<Opened, Error> {
    let dir = config.data_dir.as_path();
    if import::is_etcd(dir)? {
        take_over(config, clock)?;
    }
    let paths = probe(config)?;
    let mut data_disk = paths.data.disk(dir)?;
    let disk = data_disk.as_mut();
    import::complete(disk, dir).map_err(Error::Import)?;
    repair::complete(disk, dir)?;
    let mut store = Store::open(disk, dir, options::store(config, clock))?;
    if store.applied() == (0, 0) && store.generation() <= 1 {
        config.verify_bootstrap()?;
        config.verify_alone()?;
    } else if config.discovers {
        let dir = options::wal_dir(config);
        tracing::warn!(
            "wal-dir" = %dir.display(),
            "discovery token is ignored since cluster already initialized; valid logs are found"
        );
    }
    let member = bootstrap_member(config);
    let identity = identity_of(&mut store, disk, &member)?;
    let view = store.mvcc().view();
    let (tables, unread) = restore_readable(&view, store.vital(), disk, dir)?;
    if unread.is_none() {
        store.set_vital(table::encode_vital(&identity, &tables.conf_state));
    }
    let members = tables.conf_state.voters.len() + tables.conf_state.learners.len();
    if members > 1 {
        return Err(Error::Cluster { dir: dir.display().to_string(), identity, members });
    }
    let mut lessor = Lessor::new(options::lease(config));
    lessor.restore(tables.leases);
    let start = consensus::Start {
        applied: EntryId { index: view.applied_index(), term: view.applied_term() },
        trimmable: store.trimmable().0,
        conf_state: tables.conf_state.clone(),
        bootstrap: vec![ConfChange::bootstrap(&member)],
    };
    let log_dir = options::wal_dir(config);
    let mut log_disk = paths.log.disk(&log_dir)?;
    let consensus = options::consensus(&config.knobs, clock);
    let driver = Driver::open(log_disk.as_mut(), &log_dir, identity, consensus, start)?;
    let applier = Applier::new(lessor, tables.cluster, tables.conf_state, unread);
    Ok(Opened { store, paths, log_disk, identity, driver, applier })
}

/// The tables of `view`, as far as they can be read. Also what cannot, if anything: the member then starts, serves what
/// it has, and applies nothing.
///
/// **Errors** the configuration cannot be read, and is not `vital` either; a table that does not decode.
fn restore_readable(
    view: &ReadView,
    vital: &[u8],
    disk: &mut dyn Disk,
    dir: &Path,
) -> Result<(Tables, Option<String>), Error> {
    let mut restore = Restore::new(view);
    let mut unread: Option<engine::Error> = None;
    loop {
        match restore.step(usize::MAX) {
            Ok(Some(tables)) => {
                let mut tables = tables?;
                let Some(error) = unread else { return Ok((tables, None)) };
                if tables.conf_state.voters.is_empty() {
                    let (_, conf_state) = table::decode_vital(vital);
                    let Some(conf_state) = conf_state.filter(|state| !state.voters.is_empty()) else {
                        return Err(error.into());
                    };
                    tables.conf_state = conf_state;
                }
                return Ok((tables, Some(format!("a table cannot be read: {error}"))));
            }
            Ok(None) => {}
            Err(fault) => match load(disk, dir, fault) {
                Ok(()) => {}
                Err(error) if is_damage(&error) => {
                    restore.pass_by();
                    unread.get_or_insert(error);
                }
                Err(error) => return Err(error.into()),
            },
        }
    }
}

/// Whether a page cannot be read, and everything else can.
fn is_damage(error: &engine::Error) -> bool {
    matches!(error, engine::Error::Corrupt { .. } | engine::Error::Io { .. })
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

fn bootstrap_member(config: &Config) -> Member {
    let peer_urls: Vec<String> = config.advertise_peer_urls.iter().map(ToString::to_string).collect();
    let id = consensus::member_id(&peer_urls, &config.initial_cluster_token, None);
    Member { id, peer_urls, name: config.name.clone(), ..Member::default() }
}

/// The identity of the member, as its store has it. If the store is new, the identity of `member`.
fn identity_of(store: &mut Store, disk: &mut dyn Disk, member: &Member) -> Result<Identity, Error> {
    let view = store.mvcc().view();
    let row = load_for(disk, store.dir(), || view.meta_get(table::IDENTITY));
    if let (Err(error), (Some(identity), _)) = (&row, table::decode_vital(store.vital()))
        && is_damage(error)
    {
        return Ok(identity);
    }
    if let Some(bytes) = row? {
        return Ok(table::decode_identity(&bytes).ok_or(Damaged { what: "identity" })?);
    }
    let identity = Identity { cluster_id: consensus::cluster_id(&[member.id]), member_id: member.id };
    first_checkpoint(store, disk, &identity)?;
    Ok(identity)
}

/// Writes the identity of the member, before anything else is written.
fn first_checkpoint(store: &mut Store, disk: &mut dyn Disk, identity: &Identity) -> Result<(), Error> {
    let mut write = store.mvcc_mut().begin();
    write
        .meta_put(table::IDENTITY, &table::encode_identity(identity))
        .unwrap_or_else(|fault| panic!("{fault:?}: a fresh store is resident"));
    drop(write.finish());
    store.set_vital(table::encode_vital(identity, &ConfState::default()));
    drop(store.mvcc_mut().publish(0, 0));
    let done = store.checkpoint_begin().run(disk)?;
    store.checkpoint_end(done);
    Ok(())
}
