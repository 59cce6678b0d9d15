//! Runs on: main thread, before the server starts.
//!
//! The database and the log of a stopped etcd, checked against each other. They give the member's identity, its state,
//! and the entries that it has not applied yet.
//!
//! The database stands at its `consistent_index`. Its configuration is that of its members, as in etcd 3.7. Entries
//! behind that index are kept, with what is committed of them, so that the start that follows applies those, and the
//! cluster decides about the rest. Term and vote are those of the log.
//!
//! Invariants:
//! - The database is locked as long as a [`Stopped`] lives, as a running etcd locks it. Nothing is changed.
//! - Anything that this release would misunderstand or lose is refused. The error says what to do.
//! - The hard state fits the entries: they are of its term at most, and what is applied is committed.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go`.

use std::path::{Path, PathBuf};

use consensus::{ConfChange, ConfChangeKind, ConfState, EntryKind, Identity, Member};
use engine::disk::{DirLock, Disk, offline};
use proto::internal::{self, Request};

use super::{
    error::Error,
    file::{Database, Meta},
    state::State,
    v2_request,
    wal::{self, Log},
};
use crate::{
    apply::{members::changed, restore::Tables},
    shared::{Cluster, Minor, minor_of},
};

/// See the head of this file.
pub struct Stopped {
    /// The file of the database.
    pub path: PathBuf,
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
        let (snap, wal) = (member.join("snap"), member.join("wal"));
        let lock = disk.lock(&snap.join("db"))?;
        let (path, mut database) = newest(&snap, wal::newest_snapshot(disk, &wal)?)?;
        let meta = database.meta()?;
        check_version(&meta)?;
        let mut log = wal::read(disk, &wal, meta.applied.index)?;
        check_log(&meta, &mut log)?;
        let told = understand(&mut log, is_applied)?;
        let (identity, state) = who_and_what(&mut database, meta, &log, &told)?;
        Ok(Self { path, database, log, identity, state, _lock: lock })
    }
}

/// The database that etcd would start on, in directory `snap`, where the newest snapshot of the log is `snapshot`. A
/// member that ended while it took over a received one has that beside its own.
fn newest(snap: &Path, snapshot: u64) -> Result<(PathBuf, Database), Error> {
    let path = snap.join("db");
    let mut database = Database::open(&path)?;
    let index = database.meta()?.applied.index;
    if index >= snapshot {
        return Ok((path, database));
    }
    let path = snap.join(format!("{snapshot:016x}.snap.db"));
    if offline::exists(&path)? {
        database = Database::open(&path)?;
        if database.meta()?.applied.index >= snapshot {
            return Ok((path, database));
        }
    }
    Err(Error::Behind { index, snapshot, path })
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

/// Checks that database and log belong together, and makes the hard state fit both.
fn check_log(meta: &Meta, log: &mut Log) -> Result<(), Error> {
    let (index, term) = (meta.applied.index, meta.applied.term);
    if log.term != Some(term) {
        return Err(Error::OtherLog { index, term });
    }
    let mut last = (index, term);
    for entry in &log.entries {
        if entry.term < last.1 {
            return Err(Error::EarlierTerm { index: entry.index });
        }
        last = (entry.index, entry.term);
    }
    let hard_state = &mut log.hard_state;
    if hard_state.commit > last.0 {
        return Err(Error::CutLog { last: last.0, commit: hard_state.commit });
    }
    // It does not wait for the disk where the commit alone changes, and what is applied was committed.
    hard_state.commit = hard_state.commit.max(index);
    if hard_state.term < last.1 {
        // It is written behind the entries, and the process ended between the two: it has not voted in their term.
        (hard_state.term, hard_state.vote) = (last.1, 0);
    }
    Ok(())
}

/// What the entries after the database say about the cluster.
#[derive(Debug, Default)]
struct Told {
    /// The last version that is decided there.
    version: Option<String>,
    /// Changes of the members, by their place in the log.
    changes: Vec<(u64, ConfChange)>,
}

/// Checks that every entry still to be applied is understood. What etcd 3.5 says in an earlier form is brought into
/// the later one.
fn understand(log: &mut Log, is_applied: fn(&Request) -> bool) -> Result<Told, Error> {
    let mut told = Told::default();
    let commit = log.hard_state.commit;
    for entry in &mut log.entries {
        let index = entry.index;
        let refused = |what: String| Error::Entry { index, what };
        match EntryKind::from_number(entry.kind) {
            Some(EntryKind::Normal) if entry.data.is_empty() => {}
            Some(EntryKind::Normal) => {
                let request = request(entry).map_err(refused)?;
                if !is_applied(&request) {
                    return Err(refused(format!("{:?}", request.kind())));
                }
                if let Request::ClusterVersionSet(set) = request
                    && index <= commit
                {
                    told.version = Some(set.ver);
                }
            }
            Some(EntryKind::ConfChange) => {
                let change = ConfChange::decode(&entry.data);
                let change = change.and_then(|change| change.named().map(|_| change));
                told.changes.push((index, change.map_err(|error| refused(error.to_string()))?));
            }
            None => return Err(refused("a change of several members at once".into())),
        }
    }
    Ok(told)
}

/// The request of `entry`, which is brought into the form of today.
fn request(entry: &mut wal::Entry) -> Result<Request, String> {
    let decoded = internal::decode(entry.data.clone()).or_else(|error| {
        let data = v2_request::translate(&entry.data).ok_or(error)?;
        entry.data = data.clone();
        internal::decode(data)
    });
    decoded.map(|(_, request)| request).map_err(|error| error.to_string())
}

/// The identity of the member, and its state.
fn who_and_what(database: &mut Database, meta: Meta, log: &Log, told: &Told) -> Result<(Identity, State), Error> {
    let cluster = Cluster {
        members: database.members()?,
        removed: database.removed()?,
        alarms: database.alarms()?,
        version: database.cluster_version()?,
        downgrade: database.downgrade()?,
    };
    let wal::Metadata { member_id, cluster_id } = log.metadata;
    let conf_state = configuration(&cluster.members, &meta, told)?;
    check_membership(&cluster, member_id, told)?;
    let state = State {
        tables: Tables { cluster, users: database.users()?, conf_state, leases: database.leases()? },
        applied: meta.applied,
        revision: 1,
        compact_revision: meta.compact_revision,
    };
    Ok((Identity { cluster_id, member_id }, state))
}

/// The configuration of `members`, if it is the one that raft had.
fn configuration(members: &[Member], meta: &Meta, told: &Told) -> Result<ConfState, Error> {
    let ids = |is_learner| members.iter().filter(move |member| member.is_learner == is_learner).map(|member| member.id);
    let conf_state = ConfState { voters: ids(false).collect(), learners: ids(true).collect() };
    if conf_state.voters.is_empty() {
        return Err(Error::NoVoters);
    }
    let Some(stored) = &meta.conf_state else { return Ok(conf_state) };
    // etcd notes what raft makes of a change before it changes the members. It may have ended between the two.
    let next = told.changes.iter().find(|(index, _)| *index == meta.applied.index + 1);
    let next = next.and_then(|(_, change)| changed(&conf_state, change));
    if *stored != conf_state && Some(stored) != next.as_ref() {
        return Err(Error::Voters { members: conf_state, stored: stored.clone() });
    }
    Ok(conf_state)
}

/// Checks that the member `id` is one of its cluster, and that this release can stand beside the other members.
fn check_membership(cluster: &Cluster, id: u64, told: &Told) -> Result<(), Error> {
    if cluster.removed.contains(&id) {
        return Err(Error::Removed { id });
    }
    let is_added = |change: &ConfChange| {
        change.member_id == id && matches!(change.kind, ConfChangeKind::AddNode | ConfChangeKind::AddLearnerNode)
    };
    let count = cluster.members.len();
    let is_member = cluster.members.iter().any(|member| member.id == id);
    if !is_member && !told.changes.iter().any(|(_, change)| is_added(change)) {
        return Err(Error::OtherMember { logged: id, count });
    }
    let others = cluster.members.iter().map(|member| member.id);
    let others = others.chain(told.changes.iter().map(|(_, change)| change.member_id)).any(|other| other != id);
    let Some(version) = told.version.as_ref().or(cluster.version.as_ref()) else {
        return if others { Err(Error::Undecided) } else { Ok(()) };
    };
    let own = minor_of(crate::CLUSTER_VERSION);
    match minor_of(version) {
        None => Err(Error::ClusterVersion { version: version.clone() }),
        found if found > own => Err(Error::ClusterVersion { version: version.clone() }),
        found if others && found < Some(LEAST_BESIDE) => Err(Error::TooOld { version: version.clone() }),
        Some(_) => Ok(()),
    }
}

/// The lowest version of a cluster in which members of this release stand beside others. A release of etcd supports
/// the one before, and members of 3.5 say in their logs what etcd 3.7 does not understand.
const LEAST_BESIDE: Minor = (3, 6);

#[cfg(test)]
pub(crate) mod tests {
    use bytes::Bytes;
    use consensus::EntryId;
    use engine::Mvcc;
    use prost::Message;
    use proto::membershippb::ClusterVersionSetRequest;

    use super::*;
    use crate::{
        apply::entry::is_applied,
        auth::Users,
        etcd_files::{
            bolt::writer::{FileWriter, PAGE_SIZE},
            content::Walk,
        },
        lease::Grant,
        shared::Downgrade,
    };

    fn entry(index: u64, term: u64, data: Vec<u8>) -> wal::Entry {
        wal::Entry { kind: 0, term, index, data: data.into() }
    }

    fn request(kind: internal::Kind) -> Vec<u8> {
        internal::encode(&internal::RequestHeader { id: 9, ..Default::default() }, kind, &[]).entry.to_vec()
    }

    fn change(index: u64, kind: ConfChangeKind, member: &Member) -> wal::Entry {
        let context = Bytes::from(member.to_json());
        let change = ConfChange { id: 9, kind, member_id: member.id, context };
        wal::Entry { kind: 1, term: 3, index, data: change.encode() }
    }

    fn member(id: u64, is_learner: bool) -> Member {
        Member { id, peer_urls: vec![format!("http://{id}:2380")], is_learner, ..Member::default() }
    }

    /// The state of member 7, which has others: voter 2 and learner 0x10. Member 9 was removed.
    fn tables() -> Tables {
        let cluster = Cluster {
            members: vec![member(2, false), member(7, false), member(0x10, true)],
            removed: [9].into(),
            version: Some("3.6.0".into()),
            downgrade: Some(Downgrade { is_enabled: true, target: "3.6.0".into() }),
            ..Cluster::default()
        };
        let conf_state = ConfState { voters: vec![2, 7], learners: vec![0x10] };
        Tables { cluster, users: Users::default(), conf_state, leases: vec![(70, Grant { ttl_s: 60, remaining_s: 0 })] }
    }

    /// The file of a database that stands at entry `index` of term 2.
    fn database(path: &Path, index: u64, tables: Tables) {
        let mut mvcc = Mvcc::in_memory();
        let mut write = mvcc.begin();
        write.put(Bytes::from_static(b"key"), Bytes::from_static(b"value"), 70).unwrap();
        drop(write.finish());
        let view = mvcc.publish(index, 2);
        let state = State::of(&view, tables);
        let write = |writer| {
            let mut walk = Walk::new(&state, writer);
            while walk.step(&view, 100, usize::MAX).unwrap().is_none() {}
            walk.finish().finish().unwrap()
        };
        let (_, layout) = write(FileWriter::measuring(PAGE_SIZE));
        std::fs::write(path, write(FileWriter::writing(layout)).0).unwrap();
    }

    /// The directory of member 7 in cluster 8, which stands at entry 10 of term 2. Its log goes on with a put, the
    /// promotion of learner 0x10, and two puts that are not committed.
    pub(crate) fn directory(member_dir: &Path) {
        directory_with(member_dir, tables(), |_, _| None);
    }

    fn directory_with(
        member_dir: &Path,
        tables: Tables,
        edit: impl FnOnce(&mut Vec<wal::Entry>, &mut wal::HardState) -> Option<(u64, u64)>,
    ) {
        std::fs::create_dir_all(member_dir.join("snap")).unwrap();
        std::fs::create_dir_all(member_dir.join("wal")).unwrap();
        database(&member_dir.join("snap/db"), 10, tables);
        let put = |index| entry(index, 3, request(internal::Kind::Put));
        let promoted = Member { id: 0x10, is_promote: true, ..Member::default() };
        let mut entries: Vec<wal::Entry> = (1..=10).map(|index| entry(index, 2, Vec::new())).collect();
        entries.extend([put(11), change(12, ConfChangeKind::AddNode, &promoted), put(13), put(14)]);
        let mut hard_state = wal::HardState { term: 5, vote: 2, commit: 12 };
        let mark = edit(&mut entries, &mut hard_state);
        let name = "0000000000000000-0000000000000000.wal";
        std::fs::write(member_dir.join("wal").join(name), wal::tests::file(&entries, mark, hard_state)).unwrap();
    }

    fn opened(
        tables: Tables,
        edit: impl FnOnce(&mut Vec<wal::Entry>, &mut wal::HardState) -> Option<(u64, u64)>,
    ) -> Result<Stopped, String> {
        let dir = tempfile::tempdir().unwrap();
        directory_with(dir.path(), tables, edit);
        let mut disk = engine::disk::open_buffered().unwrap();
        Stopped::open(disk.as_mut(), dir.path(), is_applied).map_err(|error| error.to_string())
    }

    #[test]
    fn a_member_of_several_goes_on_where_it_stopped() {
        let stopped = opened(tables(), |_, _| None).unwrap();
        assert_eq!(stopped.identity, Identity { cluster_id: 8, member_id: 7 });
        assert_eq!(stopped.state.applied, EntryId { index: 10, term: 2 });
        assert_eq!(stopped.log.hard_state, wal::HardState { term: 5, vote: 2, commit: 12 });
        let entries: Vec<u64> = stopped.log.entries.iter().map(|entry| entry.index).collect();
        assert_eq!(entries, [11, 12, 13, 14], "those that are not committed, too");
        let (found, expected) = (stopped.state.tables, tables());
        assert_eq!((found.conf_state, found.leases), (expected.conf_state, expected.leases));
        assert_eq!(found.cluster.members, expected.cluster.members);
        assert_eq!(found.cluster.removed, expected.cluster.removed);
        assert_eq!(found.cluster.version, expected.cluster.version);
        assert_eq!(found.cluster.downgrade, expected.cluster.downgrade);
    }

    #[test]
    fn term_vote_and_commit_fit_the_entries() {
        // Commit alone lags behind what was applied; entries are written before the hard state of their term.
        for (found, expected) in [((3, 2, 4), (3, 2, 10)), ((2, 7, 11), (3, 0, 11)), ((4, 7, 14), (4, 7, 14))] {
            let hard_state = |(term, vote, commit)| wal::HardState { term, vote, commit };
            let set = |_: &mut Vec<wal::Entry>, now: &mut wal::HardState| {
                *now = hard_state(found);
                None
            };
            assert_eq!(opened(tables(), set).unwrap().log.hard_state, hard_state(expected));
        }
    }

    #[test]
    fn a_configuration_that_raft_had_before_the_members_is_taken_and_any_other_is_refused() {
        // The entry behind the database promotes the learner: raft was told, and the database was not.
        let is_next = |entries: &mut Vec<wal::Entry>, _: &mut wal::HardState| {
            entries.swap(10, 11);
            (entries[10].index, entries[11].index) = (11, 12);
            None
        };
        let with = |voters: &[u64], learners: &[u64]| {
            let conf_state = ConfState { voters: voters.to_vec(), learners: learners.to_vec() };
            Tables { conf_state, ..tables() }
        };
        let stopped = opened(with(&[2, 7, 0x10], &[]), is_next).unwrap();
        assert_eq!(stopped.state.tables.conf_state, tables().conf_state, "that of the members");
        assert!(opened(with(&[2, 7, 0x10], &[]), |_, _| None).is_err(), "another entry comes first");
        let error = opened(with(&[7], &[]), is_next).err().unwrap();
        assert!(error.contains("has voters [2 7] and learners [10], and \"confState\" has voters [7]"), "{error}");
    }

    #[test]
    fn a_member_that_cannot_go_on_beside_the_others_is_refused_with_what_to_do() {
        let with = |change: &dyn Fn(&mut Tables)| {
            let mut tables = tables();
            change(&mut tables);
            opened(tables, |_, _| None).map(|_| ())
        };
        let alone = |tables: &mut Tables| {
            tables.cluster.members = vec![member(7, false)];
            tables.conf_state = ConfState { voters: vec![7], learners: Vec::new() };
        };
        type Case<'a> = (&'a str, &'a dyn Fn(&mut Tables));
        let cases: [Case<'_>; 7] = [
            ("its version is 3.5.0: Orlop stands beside", &|tables| tables.cluster.version = Some("3.5.0".into())),
            ("has not decided on its version", &|tables| tables.cluster.version = None),
            ("version is 3.8.0, which", &|tables| tables.cluster.version = Some("3.8.0".into())),
            ("member 7 was removed", &|tables| tables.cluster.removed = [7].into()),
            ("no member with a vote", &|tables| {
                tables.cluster.members = vec![member(7, true)];
                tables.conf_state = ConfState { voters: Vec::new(), learners: vec![7] };
            }),
            ("member 7, which is none of the 1 members", &|tables| {
                tables.cluster.members = vec![member(2, false)];
                tables.conf_state = ConfState { voters: vec![2], learners: Vec::new() };
            }),
            // The entry behind the database adds another member.
            ("its version is 3.5.0", &|tables| {
                alone(tables);
                tables.cluster.version = Some("3.5.0".into());
            }),
        ];
        for (text, change) in cases {
            let error = with(change).unwrap_err();
            assert!(error.contains(text), "{error}");
        }
        let only = |version: Option<&str>| {
            let mut tables = tables();
            alone(&mut tables);
            tables.cluster.version = version.map(str::to_owned);
            opened(tables, |entries, state| {
                entries.truncate(11);
                state.commit = 11;
                None
            })
            .map(|_| ())
        };
        assert_eq!([Some("3.5.0"), None, Some("3.7.0")].map(only), [Ok(()), Ok(()), Ok(())]);
        let later = |entries: &mut Vec<wal::Entry>, _: &mut wal::HardState| {
            let raw = ClusterVersionSetRequest { ver: "3.6.0".into() }.encode_to_vec();
            let header = internal::RequestHeader { id: 9, ..Default::default() };
            entries[10].data = internal::encode(&header, internal::Kind::ClusterVersionSet, &raw).entry;
            None
        };
        let mut older = tables();
        older.cluster.version = Some("3.5.0".into());
        opened(older, later).unwrap();
    }

    #[test]
    fn a_received_database_that_was_not_yet_taken_over_is() {
        let dir = tempfile::tempdir().unwrap();
        let received = |entries: &mut Vec<wal::Entry>, state: &mut wal::HardState| {
            entries.truncate(12);
            *state = wal::HardState { term: 3, vote: 0, commit: 30 };
            Some((30, 2))
        };
        directory_with(dir.path(), tables(), received);
        let mut disk = engine::disk::open_buffered().unwrap();
        let mut open = || Stopped::open(disk.as_mut(), dir.path(), is_applied);
        let error = open().err().unwrap().to_string();
        assert!(error.contains("stands at index 10, before the log's snapshot at 30, and"), "{error}");
        assert!(error.contains("000000000000001e.snap.db does not hold that one"), "{error}");
        database(&dir.path().join("snap/000000000000001e.snap.db"), 30, tables());
        let stopped = open().unwrap();
        assert_eq!((stopped.state.applied, stopped.log.entries.len()), (EntryId { index: 30, term: 2 }, 0));
        assert_eq!(stopped.log.hard_state, wal::HardState { term: 3, vote: 0, commit: 30 });
        drop(stopped);
        database(&dir.path().join("snap/000000000000001e.snap.db"), 29, tables());
        assert!(open().is_err());
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
            check_log(&meta, &mut log)?;
            understand(&mut log, is_applied).map(|_| ())
        };
        log(&|_| {}).unwrap();
        log(&|log| log.hard_state.commit = 8).unwrap();
        type Case<'a> = (&'a str, &'a dyn Fn(&mut Log));
        let refused: [Case<'_>; 9] = [
            ("no entry 10 of term 2", &|log| log.term = Some(1)),
            ("no entry 10 of term 2", &|log| log.term = None),
            ("13 is committed", &|log| log.hard_state.commit = 13),
            ("entry 12 of the log is of an earlier term", &|log| log.entries[1].term = 2),
            ("AuthEnable", &|log| log.entries[1].data = request(internal::Kind::AuthEnable).into()),
            ("malformed configuration change", &|log| {
                (log.entries[1].kind, log.entries[1].data) = (1, Bytes::from_static(b"\xff"));
            }),
            ("malformed member JSON", &|log| (log.entries[1].kind, log.entries[1].data) = (1, Bytes::new())),
            ("a change of several members", &|log| log.entries[1].kind = 2),
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
