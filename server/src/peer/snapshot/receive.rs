//! Runs on: a thread of its own.
//!
//! From the bytes of a database to a state beside the live one.
//!
//! A bbolt file is read from its meta pages and its root down, and the root may be its last page. So all of it goes
//! into a file first, which is gone again when the state is built.
//!
//! Invariant: whatever comes of it, the caller has the store back. Each database has a file of its own: one that was
//! given up may still be read while the next one comes.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use consensus::Identity;
use engine::{
    Store,
    disk::{Disk, Spool, offline},
};

use crate::{
    apply::arrived::Arrived,
    etcd_files::{
        build::Builder,
        error::Error,
        received::{self, Told},
    },
};

/// How the names of the files in the data directory begin. A number follows.
const FILE: &str = "received-";
/// Counts the files of this process.
static FILES: AtomicU64 = AtomicU64::new(0);

/// Receives one database. Blocks on its disk.
pub struct Receiver {
    builder: Builder,
    identity: Identity,
    told: Told,
    file: Spool,
}

impl Receiver {
    /// Builds what `told` announces in `store`, a state beside the live one (`Store::incoming`), for the member
    /// `identity`.
    ///
    /// **Errors** the file system's; the store is given back.
    pub fn new(
        disk: Box<dyn Disk>,
        store: Store,
        identity: Identity,
        told: Told,
    ) -> Result<Self, (engine::Error, Box<Store>)> {
        let name = format!("{FILE}{}", FILES.fetch_add(1, Ordering::Relaxed));
        match Spool::create(&store.dir().join(name)) {
            Ok(file) => Ok(Self { builder: Builder::incoming(disk, store), identity, told, file }),
            Err(error) => Err((error, Box::new(store))),
        }
    }

    /// Takes the next bytes.
    ///
    /// **Errors** the file system's.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), engine::Error> {
        self.file.push(bytes)
    }

    /// All bytes have come: builds the state.
    ///
    /// **Errors** see [`received::build`]; the caller hands the store to `Apply::discard`.
    pub fn end(mut self) -> Result<Box<Arrived>, (Error, Box<Store>)> {
        let built = received::build(self.file.path(), &mut self.builder, &self.identity, &self.told);
        let store = self.builder.into_store();
        match built {
            Ok(tables) => Ok(Box::new(Arrived { store, at: self.told.at, tables })),
            Err(error) => Err((error, Box::new(store))),
        }
    }

    /// Gives up. The caller hands the store to `Apply::discard`.
    pub fn abandon(self) -> Box<Store> {
        Box::new(self.builder.into_store())
    }
}

/// Removes what a life before has left in the data directory `dir`. A member that cannot do that has other troubles.
pub fn remove_leftover(dir: &Path) {
    for path in files(dir) {
        match offline::remove_file(&path) {
            Ok(()) => tracing::info!(path = %path.display(), "a snapshot that had not come whole is removed"),
            Err(error) => tracing::warn!(%error, "a snapshot that had not come whole is not removed"),
        }
    }
}

/// The files in the data directory.
fn files(dir: &Path) -> Vec<PathBuf> {
    let names = offline::list(dir).unwrap_or_default();
    let is_one = |name: &std::ffi::OsString| name.to_str().is_some_and(|name| name.starts_with(FILE));
    names.into_iter().filter(is_one).map(|name| dir.join(name)).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use bytes::Bytes;
    use consensus::{ConfState, EntryId, Member};
    use engine::{Mvcc, Record, Revision, disk::sim::Random, load_for, store};

    use super::*;
    use crate::{
        apply::restore::Tables,
        auth::Users,
        etcd_files::{
            bolt::writer::{FileWriter, PAGE_SIZE},
            content::Walk,
            state::State,
        },
        lease::Grant,
        shared::{Cluster, RaisedBy},
    };

    const IDENTITY: Identity = Identity { cluster_id: 7, member_id: 2 };
    const AT: EntryId = EntryId { index: 5000, term: 3 };

    fn told() -> Told {
        Told { at: AT, conf_state: ConfState { voters: vec![1, 2], learners: vec![9] } }
    }

    /// The database of a leader, and its records.
    fn database() -> (Vec<u8>, Vec<Record>, Tables) {
        database_with(Users::default())
    }

    fn database_with(users: Users) -> (Vec<u8>, Vec<Record>, Tables) {
        let mut mvcc = Mvcc::in_memory();
        for number in 0..2000_u32 {
            let key = format!("/registry/{}", number.wrapping_mul(2_654_435_761) % 700);
            let mut write = mvcc.begin();
            write.put(key.into(), vec![1; 200].into(), i64::from(number % 50)).unwrap();
            drop(write.finish());
        }
        mvcc.compact(1200);
        let view = mvcc.publish(AT.index, AT.term);
        let member =
            |id| Member { id, name: format!("m{id}"), peer_urls: vec![format!("http://m{id}:1")], ..Member::default() };
        let cluster = Cluster {
            members: vec![member(1), member(2), Member { is_learner: true, ..member(9) }],
            removed: [4].into(),
            alarms: [((1, 1), RaisedBy::Hand)].into(),
            version: Some("3.7.0".into()),
            downgrade: None,
        };
        let leases = (1..50).map(|id| (id, Grant { ttl_s: 60, remaining_s: 0 })).collect();
        let state = State::of(&view, Tables { cluster, users, conf_state: told().conf_state, leases });
        let write = |writer| {
            let mut walk = Walk::new(&state, writer);
            while walk.step(&view, 1000, usize::MAX).unwrap().is_none() {}
            walk.finish().finish().unwrap()
        };
        let (_, layout) = write(FileWriter::measuring(PAGE_SIZE));
        let (file, _) = write(FileWriter::writing(layout));
        let mut records = Vec::new();
        let mut cursor = view.records_from(Revision::MIN);
        while let Some(record) = cursor.next().unwrap() {
            if view.is_kept(&record, 1200).unwrap() {
                records.push(record);
            }
        }
        (file, records, state.tables)
    }

    fn receive(dir: &Path, told: Told, file: &[u8]) -> Result<Box<Arrived>, String> {
        let mut disk = engine::disk::open_buffered().unwrap();
        let options = store::Options { cache_bytes: 1 << 20, ..store::Options::default() };
        let live = Store::open(disk.as_mut(), dir, options).unwrap();
        let mut receiver = Receiver::new(disk, live.incoming(64 << 10), IDENTITY, told).map_err(|_error| "").unwrap();
        file.chunks(70_001).for_each(|piece| receiver.push(piece).unwrap());
        assert_eq!(files(dir).len(), 1);
        let ended = receiver.end().map_err(|(error, _)| error.to_string());
        assert!(files(dir).is_empty(), "it is not needed any more");
        ended
    }

    #[test]
    fn a_leaders_database_becomes_a_state() {
        let (file, expected, tables) = database();
        let temporary = tempfile::tempdir().unwrap();
        std::fs::write(temporary.path().join("received-7"), b"left by a life before").unwrap();
        remove_leftover(temporary.path());
        let arrived = receive(temporary.path(), told(), &file).unwrap();
        assert_eq!(arrived.at, AT);
        assert_eq!(format!("{:?}", arrived.tables), format!("{tables:?}"));
        let view = arrived.store.mvcc().view();
        assert_eq!((view.revision(), view.compact_revision()), (2001, 1200));
        let mut disk = engine::disk::open_buffered().unwrap();
        let (mut cursor, mut records) = (view.records_from(Revision::MIN), Vec::new());
        while let Some(record) = load_for(disk.as_mut(), temporary.path(), || cursor.next()).unwrap() {
            records.push(record);
        }
        assert_eq!(records, expected);
    }

    #[test]
    fn what_the_message_does_not_say_is_refused() {
        let (file, ..) = database();
        let temporary = tempfile::tempdir().unwrap();
        let refused = |told: Told, file: &[u8]| receive(temporary.path(), told, file).unwrap_err();
        let at = |index, term| Told { at: EntryId { index, term }, ..told() };
        assert!(refused(at(4999, 3), &file).contains("another place in the log"));
        assert!(refused(at(5000, 4), &file).contains("another place in the log"));
        let mut users = Users::default();
        let role = proto::authpb::Role { name: "r".into(), key_permission: Vec::new() };
        users.take_role(&prost::Message::encode_to_vec(&role)).unwrap();
        assert!(refused(told(), &database_with(users).0).contains("users or roles"));
        let conf_state = ConfState { voters: vec![1, 2, 9], learners: vec![] };
        assert!(refused(Told { conf_state, ..told() }, &file).contains("another configuration"));
        for cut in [0, 1, 4096, file.len() / 2, file.len() - 1] {
            refused(told(), &file[..cut]);
        }
    }

    #[test]
    fn no_database_of_a_lying_peer_ends_the_member() {
        let (file, ..) = database();
        let mut refused = 0;
        for seed in 0..16 {
            let (mut random, mut lie) = (Random::new(seed), file.clone());
            for _ in 0..=random.below(20) {
                // Mostly in what leads to the rest.
                let below = if random.chance(1, 2) { 200 } else { lie.len() as u64 };
                let page = usize::try_from(random.below(lie.len() as u64) / 4096 * 4096).unwrap();
                let at = page + usize::try_from(random.below(below.min(4096))).unwrap();
                lie[at] ^= 1 << random.below(8);
            }
            let temporary = tempfile::tempdir().unwrap();
            refused += u32::from(receive(temporary.path(), told(), &lie).is_err());
        }
        assert!(refused > 4, "{refused} of 16 lies were refused");
    }

    #[test]
    fn what_is_given_up_leaves_no_file() {
        let temporary = tempfile::tempdir().unwrap();
        let mut disk = engine::disk::open_buffered().unwrap();
        let live = Store::open(disk.as_mut(), temporary.path(), store::Options::default()).unwrap();
        let mut receiver = Receiver::new(disk, live.incoming(64 << 10), IDENTITY, told()).map_err(|_error| "").unwrap();
        receiver.push(&Bytes::from_static(b"some")).unwrap();
        drop(receiver.abandon());
        assert!(files(temporary.path()).is_empty());
    }
}
