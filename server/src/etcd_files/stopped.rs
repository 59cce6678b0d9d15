//! Runs on: main thread, before the server starts.
//!
//! The database and the log of a stopped etcd, checked against each other. They give the member's identity, its state,
//! and the entries that it has not applied yet.
//!
//! Invariants:
//! - The database is locked as long as a [`Stopped`] lives, as a running etcd locks it. Nothing is changed.
//! - Anything that this release would misunderstand or lose is refused. The error says what to do.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go`.

use std::path::Path;

use consensus::{ConfState, EntryKind, Identity};
use engine::disk::{DirLock, Disk};
use proto::internal::{self, Request};

use super::{
    error::Error,
    file::{Database, Meta},
    state::State,
    wal::{self, Log},
};
use crate::{apply::restore::Tables, shared::Cluster};

/// See the head of this file.
pub struct Stopped {
    /// The database, for its records.
    pub database: Database,
    /// The log after the applied entries of the database.
    pub log: Log,
    /// The identity of the member.
    pub identity: Identity,
    /// The content of the database beside records. Its revision is not set, because only the records show it.
    pub state: State,
    _lock: DirLock,
}

impl Stopped {
    /// Opens the directory `member` of an etcd. `is_applied` says which requests this release applies.
    ///
    /// **Errors** why this member cannot go on here; `Locked` while etcd runs on it.
    pub fn open(disk: &mut dyn Disk, member: &Path, is_applied: fn(&Request) -> bool) -> Result<Self, Error> {
        let path = member.join("snap").join("db");
        let lock = disk.lock(&path)?;
        let mut database = Database::open(&path)?;
        database.check_auth()?;
        let meta = database.meta()?;
        check_version(&meta)?;
        let log = wal::read(disk, &member.join("wal"), meta.applied.index)?;
        check_log(&meta, &log, is_applied)?;
        let (identity, state) = who_and_what(&mut database, meta, &log)?;
        Ok(Self { database, log, identity, state, _lock: lock })
    }
}

/// Refuses versions that this release would misunderstand.
fn check_version(meta: &Meta) -> Result<(), Error> {
    if meta.applied.index == 0 || meta.applied.term == 0 {
        return Err(Error::Unplaced);
    }
    let known = |version: &String| ["3.6.", "3.7."].iter().any(|known| version.starts_with(known));
    match &meta.storage_version {
        // etcd 3.5 writes no version.
        None => Ok(()),
        Some(version) if known(version) => Ok(()),
        Some(version) => Err(Error::StorageVersion { version: version.clone() }),
    }
}

/// Checks that database and log belong together, and that every entry still to be applied is understood.
fn check_log(meta: &Meta, log: &Log, is_applied: fn(&Request) -> bool) -> Result<(), Error> {
    let (index, term) = (meta.applied.index, meta.applied.term);
    if log.snapshot > index {
        return Err(Error::Behind { index, snapshot: log.snapshot });
    }
    if log.term != Some(term) {
        return Err(Error::OtherLog { index, term });
    }
    let last = index + log.entries.len() as u64;
    if log.hard_state.commit > last {
        return Err(Error::CutLog { last, commit: log.hard_state.commit });
    }
    if log.hard_state.term < log.entries.last().map_or(term, |entry| entry.term) {
        return Err(Error::LaterTerm);
    }
    log.entries.iter().try_for_each(|entry| check_entry(entry, is_applied))
}

fn check_entry(entry: &wal::Entry, is_applied: fn(&Request) -> bool) -> Result<(), Error> {
    let what = match EntryKind::from_number(entry.kind) {
        Some(EntryKind::Normal) if entry.data.is_empty() => return Ok(()),
        Some(EntryKind::Normal) => match internal::decode(entry.data.clone()) {
            Ok((_, request)) if is_applied(&request) => return Ok(()),
            Ok((_, request)) => format!("{:?}", request.kind()),
            Err(error) => error.to_string(),
        },
        Some(EntryKind::ConfChange) => "a change of the members".into(),
        None => "a change of several members".into(),
    };
    Err(Error::Entry { index: entry.index, what })
}

/// The identity of the one member that can go on alone, and its state.
fn who_and_what(database: &mut Database, meta: Meta, log: &Log) -> Result<(Identity, State), Error> {
    let members = database.members()?;
    let id = log.metadata.member_id;
    let [member] = members.as_slice() else { return Err(Error::Members { count: members.len() }) };
    if member.id != id || member.is_learner {
        return Err(Error::OtherMember { stored: member.id, logged: id });
    }
    let conf_state = ConfState { voters: vec![id], learners: Vec::new() };
    if meta.conf_state.as_ref().is_some_and(|stored| *stored != conf_state) {
        return Err(Error::Voters);
    }
    let cluster = Cluster {
        members,
        removed: database.removed()?,
        alarms: database.alarms()?,
        version: database.cluster_version()?,
        downgrade: database.downgrade()?,
    };
    let state = State {
        tables: Tables { cluster, conf_state, leases: database.leases()? },
        applied: meta.applied,
        revision: 1,
        compact_revision: meta.compact_revision,
    };
    Ok((Identity { cluster_id: log.metadata.cluster_id, member_id: id }, state))
}

#[cfg(test)]
mod tests {
    use consensus::EntryId;

    use super::*;

    fn entry(index: u64, term: u64, data: Vec<u8>) -> wal::Entry {
        wal::Entry { kind: 0, term, index, data: data.into() }
    }

    fn request(kind: internal::Kind) -> Vec<u8> {
        internal::encode(&internal::RequestHeader { id: 9, ..Default::default() }, kind, &[]).entry.to_vec()
    }

    #[test]
    fn a_log_that_is_not_the_databases_or_not_understood_is_refused() {
        let meta = Meta { applied: EntryId { index: 10, term: 2 }, compact_revision: -1, ..Meta::default() };
        let log = |change: &dyn Fn(&mut Log)| {
            let mut log = Log {
                hard_state: wal::HardState { term: 3, vote: 1, commit: 11 },
                entries: vec![entry(11, 3, Vec::new()), entry(12, 3, request(internal::Kind::Put))],
                term: Some(2),
                snapshot: 5,
                ..Log::default()
            };
            change(&mut log);
            check_log(&meta, &log, crate::apply::entry::is_applied)
        };
        log(&|_| {}).unwrap();
        log(&|log| log.hard_state.commit = 8).unwrap();
        type Case<'a> = (&'a str, &'a dyn Fn(&mut Log));
        let refused: [Case<'_>; 8] = [
            ("before the log's snapshot", &|log| log.snapshot = 11),
            ("no entry 10 of term 2", &|log| log.term = Some(1)),
            ("no entry 10 of term 2", &|log| log.term = None),
            ("13 is committed", &|log| log.hard_state.commit = 13),
            ("a later term", &|log| log.hard_state.term = 2),
            ("AuthEnable", &|log| log.entries[1].data = request(internal::Kind::AuthEnable).into()),
            ("a change of the members", &|log| log.entries[1].kind = 1),
            ("entry 12", &|log| log.entries[1].data = vec![0xff; 9].into()),
        ];
        for (text, change) in refused {
            let error = log(change).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
        for version in [None, Some("3.6.0"), Some("3.7.0"), Some("3.8.0")] {
            let meta = Meta { storage_version: version.map(str::to_owned), ..meta.clone() };
            assert_eq!(check_version(&meta).is_ok(), version != Some("3.8.0"));
        }
        assert!(check_version(&Meta { applied: EntryId { index: 10, term: 0 }, ..meta }).is_err());
    }
}
