//! Runs on: main thread, in place of the server.
//!
//! The work of `snapshot restore`: it makes a new member of a new cluster from a snapshot file of etcd or Orlop.
//!
//! Invariants:
//! - Keys, revisions, leases, alarms and what the cluster decided come from the file. Members and ids are those of the
//!   new cluster. The log begins with the members, as etcdutl's does.
//! - The directory gets its name when everything in it is durable. So nobody can start on half a store.
//!
//! **Source** etcd v3.7.1 `etcdutl/snapshot/v3_snapshot.go Restore`.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

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
use crate::{apply::restore::Tables, auth::Users, shared::Cluster};

/// The cluster that begins with the restored member, as `--initial-cluster` and its token describe it.
#[derive(Clone, Debug)]
pub struct NewCluster {
    /// Names and peer URLs of the members.
    pub members: Vec<(String, Vec<String>)>,
    /// Makes the ids of this cluster differ from those of other clusters.
    pub token: String,
    /// Name of the new member. It is one of `members`.
    pub own_name: String,
}

impl NewCluster {
    /// The ids of any new cluster of these members, and the members by their ids.
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

/// A restore: its file, its directories and its settings.
pub struct Restore<'a> {
    /// The snapshot file.
    pub file: &'a Path,
    /// The data directory that is made.
    pub dir: &'a Path,
    /// The directory of its log, if it is outside of the data directory.
    pub wal_dir: Option<&'a Path>,
    /// The new cluster.
    pub cluster: NewCluster,
    /// Whether the checksum after the file's content is ignored.
    pub skip_hash_check: bool,
    /// How far the revision is moved forward; 0 for not at all. Everything before it is then compacted.
    pub bump_revision: i64,
    /// Settings of the new store.
    pub store: store::Options,
    /// Settings of its log.
    pub consensus: consensus::Options,
}

/// The directory in which a new directory is built before it gets its name.
fn part_of(dir: &Path) -> PathBuf {
    let mut name = dir.file_name().unwrap_or_default().to_os_string();
    name.push(".part");
    dir.with_file_name(name)
}

impl Restore<'_> {
    /// Restores the member.
    ///
    /// **Errors** the reason why not. What was begun is left under another name.
    pub fn run(self, open: OpenDisk<'_>) -> Result<(), Error> {
        let part = part_of(self.dir);
        self.check_room(&part)?;
        if !self.skip_hash_check {
            file::check_hash(self.file)?;
        }
        let mut database = Database::open(self.file)?;
        let users = database.users()?;
        let (identity, members) = self.cluster.bootstrap();
        let builder = Builder::create(open(&part)?, &part, self.store)?;
        let wal_dir = self.wal_dir.map_or_else(|| part.join("wal"), Path::to_path_buf);
        self.write_log(open(&part)?.as_mut(), &wal_dir, identity, &members)?;
        let mut disk = self.load(builder, (&mut database, users), identity, members)?;
        disk.rename(&part, self.dir)?;
        let above = self.dir.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        disk.sync_dir(above)?;
        Ok(())
    }

    /// Refuses to write where something exists. A directory that cannot be read counts as one that is not empty.
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

    /// Writes the entries of the members, with which the log of every new cluster begins.
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

    /// Loads the file's content into the store, and makes it the new member's.
    fn load(
        &self,
        mut builder: Builder,
        (database, users): (&mut Database, Users),
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
        let cluster = Cluster {
            members,
            // The cluster is a new one: nobody was removed from it.
            removed: BTreeSet::new(),
            alarms: database.alarms()?,
            version: database.cluster_version()?,
            downgrade: database.downgrade()?,
        };
        let state = State {
            tables: Tables { cluster, users, conf_state: ConfState { voters, learners: Vec::new() }, leases },
            applied,
            revision: revision.max(compact_revision).max(1),
            compact_revision,
        };
        builder.finish(&identity, &state)
    }
}

/// The record for a revision that changed nothing.
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

#[cfg(test)]
mod tests {
    use engine::{Fault, Mvcc, ReadView, Store, wal};
    use prost::Message;

    use super::*;
    use crate::{
        apply::{restore::restore, table},
        etcd_files::{
            bolt::writer::{FileWriter, PAGE_SIZE},
            content::Walk,
        },
        lease::{self, Grant},
        shared::{Downgrade, RaisedBy},
    };

    fn records(view: &ReadView, mut load: impl FnMut(Fault)) -> Vec<Record> {
        let mut cursor = view.records_from(Revision::MIN);
        let mut records = Vec::new();
        loop {
            match cursor.next() {
                Ok(Some(record)) => records.push(record),
                Ok(None) => return records,
                Err(fault) => load(fault),
            }
        }
    }

    /// A snapshot file without a checksum, its records, and the rest of its content.
    fn write_file(path: &Path) -> (Vec<Record>, State) {
        write_file_with(path, Users::default())
    }

    fn write_file_with(path: &Path, users: Users) -> (Vec<Record>, State) {
        let mut mvcc = Mvcc::in_memory();
        for (key, lease) in [("a", 7), ("b", 0), ("c", 8), ("a", 0), ("b", 7)] {
            let mut write = mvcc.begin();
            write.put(Bytes::from_static(key.as_bytes()), Bytes::from_static(b"value"), lease).unwrap();
            drop(write.finish());
        }
        let mut write = mvcc.begin();
        write.delete(b"c").unwrap();
        drop(write.finish());
        let view = mvcc.publish(9, 2);
        let member = Member { id: 1, name: "other".into(), ..Member::default() };
        let cluster = Cluster {
            members: vec![member],
            alarms: [((5, 1), RaisedBy::Quota)].into(),
            version: Some("3.7.0".into()),
            removed: [3].into(),
            downgrade: Some(Downgrade { is_enabled: true, target: "3.6.0".into() }),
        };
        let conf_state = ConfState { voters: vec![1], learners: Vec::new() };
        let leases = vec![(7, Grant { ttl_s: 60, remaining_s: 9 })];
        let state = State::of(&view, Tables { cluster, users, conf_state, leases });
        let write = |writer| {
            let mut walk = Walk::new(&state, writer);
            while walk.step(&view, 2, usize::MAX).unwrap().is_none() {}
            walk.finish().finish().unwrap()
        };
        let (_, layout) = write(FileWriter::measuring(PAGE_SIZE));
        std::fs::write(path, write(FileWriter::writing(layout)).0).unwrap();
        (records(&view, |fault| panic!("{fault:?}: all is in memory")), state)
    }

    fn run(file: &Path, dir: &Path, skip_hash_check: bool) -> Result<(), Error> {
        let cluster = NewCluster {
            members: vec![("m".into(), vec!["http://localhost:2380".into()])],
            token: "token".into(),
            own_name: "m".into(),
        };
        run_for(cluster, file, dir, skip_hash_check)
    }

    fn run_for(cluster: NewCluster, file: &Path, dir: &Path, skip_hash_check: bool) -> Result<(), Error> {
        let wal = wal::Options { segment_bytes: 4 << 20, ..wal::Options::default() };
        let restore = Restore {
            file,
            dir,
            wal_dir: None,
            cluster,
            skip_hash_check,
            bump_revision: 0,
            store: store::Options::default(),
            consensus: consensus::Options::from_knobs(&tuning::Consensus::default(), true, 1, wal),
        };
        restore.run(&|_| engine::disk::open_buffered())
    }

    #[test]
    fn a_file_with_users_is_refused_and_leaves_nothing_that_a_good_one_meets() {
        let temporary = tempfile::tempdir().unwrap();
        let [with_role, enabled, plain, dir] =
            ["role", "enabled", "plain", "data"].map(|name| temporary.path().join(name));
        let mut users = Users::default();
        users.take_role(&proto::authpb::Role { name: "r".into(), key_permission: Vec::new() }.encode_to_vec()).unwrap();
        write_file_with(&with_role, users);
        let mut users = Users::default();
        users.take_state(&[1, 0, 0, 0, 0, 0, 0, 0, 5]).unwrap();
        write_file_with(&enabled, users);
        write_file(&plain);
        for file in [with_role, enabled] {
            assert!(matches!(run(&file, &dir, true), Err(Error::Auth)));
        }
        run(&plain, &dir, true).unwrap();
    }

    #[test]
    fn a_restored_member_knows_what_the_file_holds_and_is_itself() {
        let temporary = tempfile::tempdir().unwrap();
        let (file, dir) = (temporary.path().join("file"), temporary.path().join("data"));
        let (expected, told) = write_file(&file);
        assert!(matches!(run(&file, &dir, false), Err(Error::NoHash)));
        run(&file, &dir, true).unwrap();
        let mut disk = engine::disk::open_buffered().unwrap();
        let store = Store::open(disk.as_mut(), &dir, store::Options::default()).unwrap();
        let view = store.mvcc().view();
        let mut load = |fault| engine::load(disk.as_mut(), &dir, fault).unwrap();
        assert_eq!(records(&view, &mut load), expected);
        assert_eq!((view.revision(), view.compact_revision()), (told.revision, -1));
        let tables: Result<Tables, crate::apply::restore::Damaged> = restore(&view, |fault| {
            load(fault);
            Ok(())
        });
        let tables = tables.unwrap();
        let [member] = tables.cluster.members.as_slice() else { panic!("the flags name one member") };
        assert_eq!((member.name.as_str(), tables.conf_state.voters), ("m", vec![member.id]));
        assert_eq!(tables.cluster.alarms, [((5, 1), RaisedBy::Hand)].into());
        assert_eq!(tables.cluster.version, told.tables.cluster.version);
        assert_eq!(tables.leases, told.tables.leases);
        let mut database = Database::open(&file).unwrap();
        assert_eq!(database.removed().unwrap(), told.tables.cluster.removed);
        assert!(tables.cluster.removed.is_empty(), "the cluster is a new one");
        assert_eq!(tables.cluster.downgrade, told.tables.cluster.downgrade);
        // The meta tree is a single page here, and it is in memory by now.
        let identity = view.meta_get(table::IDENTITY).unwrap().and_then(|bytes| table::decode_identity(&bytes));
        assert_eq!(identity.map(|identity| identity.member_id), Some(member.id));
        let mut attached = view.meta_cursor(&lease::attachment_prefix(7));
        let (key, _) = attached.next().unwrap().unwrap();
        assert_eq!(key[..], lease::attachment_key(7, b"b"));
        assert_eq!(attached.next().unwrap(), None);
        assert_eq!((view.applied_index(), view.applied_term()), (1, 1));
    }

    #[test]
    fn three_members_are_restored_from_one_file_with_the_ids_that_etcd_gives_them() {
        let temporary = tempfile::tempdir().unwrap();
        let file = temporary.path().join("file");
        let (expected, _) = write_file(&file);
        let names = ["n1", "n2", "n3"];
        let url = |name: &&str| (name.to_string(), vec![format!("http://127.0.0.1:1238{}", &name[1..])]);
        let members: Vec<_> = names.iter().map(url).collect();
        let mut ids = Vec::new();
        for name in names {
            let dir = temporary.path().join(name);
            let cluster = NewCluster { members: members.clone(), token: "etcd-cluster".into(), own_name: name.into() };
            run_for(cluster, &file, &dir, true).unwrap();
            let mut disk = engine::disk::open_buffered().unwrap();
            let store = Store::open(disk.as_mut(), &dir, store::Options::default()).unwrap();
            let view = store.mvcc().view();
            let mut load = |fault| engine::load(disk.as_mut(), &dir, fault).unwrap();
            assert_eq!(records(&view, &mut load), expected);
            let tables: Result<Tables, crate::apply::restore::Damaged> = restore(&view, |fault| {
                load(fault);
                Ok(())
            });
            assert_eq!(tables.unwrap().conf_state.voters.len(), 3);
            assert_eq!((view.applied_index(), view.applied_term()), (3, 1));
            let identity = view.meta_get(table::IDENTITY).unwrap().and_then(|bytes| table::decode_identity(&bytes));
            ids.push(identity.unwrap());
        }
        // What `etcdutl snapshot restore` makes of the same flags.
        let stock = [0x2084_1a00_2de0_0821, 0x248f_f181_7228_a82b, 0xb12c_0c72_d112_e294]
            .map(|member_id| Identity { cluster_id: 0x5746_5ba4_b3cc_6075, member_id });
        assert_eq!(ids, stock);
    }

    #[test]
    fn nothing_is_restored_over_what_is_there() {
        let temporary = tempfile::tempdir().unwrap();
        let (file, dir) = (temporary.path().join("file"), temporary.path().join("data"));
        write_file(&file);
        std::fs::create_dir(&dir).unwrap();
        std::fs::write(dir.join("something"), b"").unwrap();
        assert!(matches!(run(&file, &dir, true), Err(Error::DataDir { .. })));
        std::fs::remove_file(dir.join("something")).unwrap();
        std::fs::create_dir(part_of(&dir)).unwrap();
        std::fs::write(part_of(&dir).join("something"), b"").unwrap();
        assert!(matches!(run(&file, &dir, true), Err(Error::Unfinished { .. })));
        std::fs::remove_file(part_of(&dir).join("something")).unwrap();
        run(&file, &dir, true).unwrap();
        assert!(matches!(run(&file, &dir, true), Err(Error::DataDir { .. })));
    }
}
