//! Runs on: main thread, in place of the server.
//!
//! `orlop verify --repair` builds the store of a lone member anew, from what is left of it. The log stays as it is: the
//! start that follows applies what came after the state.
//!
//! Invariants:
//! - Until everything that was built is durable, the directory is as it was. From the renaming of `repair.part` on, it
//!   is the repaired one: a repair that was cut off there is completed, by the next repair or the next start.
//! - Nothing is thrown away: the damaged files are kept in `damaged`.
//! - A member that has peers is refused. It gets what it has lost from them, and may not tell them anything else.
//!
//! | in the data directory | before that step | after it |
//! |---|---|---|
//! | `superblock`, `pages` | the damaged ones | moved to `damaged`, then the repaired ones |
//! | `repair.part` | what is being built | |
//! | `repair.done` | | what is not yet moved out of it; gone at the end |

use std::path::Path;

use bytes::Bytes;
use consensus::{EntryId, Identity, Member};
use engine::{
    disk::{Disk, offline},
    salvage::{Loss, Salvage},
    store,
};

use super::error::Error;
use crate::{
    apply::{
        restore::{Damaged, Tables},
        table,
    },
    auth,
    etcd_files::{
        build::{Builder, OpenDisk},
        state::State,
    },
    lease,
};

const PART: &str = "repair.part";
const DONE: &str = "repair.done";
const DAMAGED: &str = "damaged";
/// The parts that change hands. Without a superblock the others do not count, so it comes last.
const PARTS: [&str; 2] = ["pages", "superblock"];

/// What a repair has built.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Repaired {
    /// Records in the new store.
    pub records: u64,
    /// Keys and versions that are not in it.
    pub losses: u64,
}

/// Repairs the store in `dir`, if anything of it cannot be read. `tell` is told what is made again and what is lost.
/// Blocks for a time that grows with the data. Returns `None` if there is nothing to repair.
///
/// **Errors** the reason why not. The directory is then as it was.
pub fn repair(
    dir: &Path,
    options: store::Options,
    open: OpenDisk<'_>,
    tell: &mut dyn FnMut(&Loss),
) -> Result<Option<Repaired>, Error> {
    let mut disk = open(dir)?;
    // What is found now must be what is repaired.
    let lock = disk.lock(dir)?;
    complete(disk.as_mut(), dir)?;
    let mut damages = 0_u64;
    engine::inspect::verify(disk.as_mut(), dir, &lock, &mut |_| damages += 1)?;
    if damages == 0 {
        return Ok(None);
    }
    let mut losses = 0;
    let mut salvage = Salvage::open(disk.as_mut(), dir, &lock, &mut |loss| {
        losses += u64::from(!matches!(loss, Loss::Page { .. }));
        tell(loss);
    })?;
    let Kept { identity, tables, under_way } = kept(&mut salvage, disk.as_mut())?;
    let members = tables.conf_state.voters.len() + tables.conf_state.learners.len();
    if members > 1 {
        return Err(Error::RepairAmongPeers { members });
    }
    if offline::exists(&dir.join(DAMAGED))? {
        return Err(Error::RepairedBefore { path: dir.join(DAMAGED).display().to_string() });
    }
    let part = dir.join(PART);
    if offline::exists(&part)? {
        offline::remove_tree(&part)?;
    }
    let options = store::Options { fresh_id: salvage.store_id(), ..options };
    let mut builder = Builder::create(open(&part)?, &part, options)?;
    builder.leases(&tables.leases)?;
    let (index, term) = salvage.applied();
    let (base, compact_revision, written) = (salvage.revision(), salvage.compact_revision(), salvage.unfinished());
    let mut records = 0;
    let mut row = under_way;
    salvage.records(disk.as_mut(), &mut |record| {
        if record.revision.main > base
            && let Some(row) = row.take()
        {
            builder.under_way(&row, (base, compact_revision, written))?;
        }
        records += 1;
        builder.record(&record)
    })?;
    if let Some(row) = row {
        builder.under_way(&row, (base, compact_revision, written))?;
    }
    let revision = base + i64::from(written > 0);
    builder.finish(&identity, &State { tables, applied: EntryId { index, term }, revision, compact_revision })?;
    offline::rename(&part, &dir.join(DONE))?;
    offline::sync_dir(dir)?;
    complete(disk.as_mut(), dir)?;
    Ok(Some(Repaired { records, losses }))
}

/// Moves what a repair has built to its place, if it was built whole. It is the last step of a repair, or the first
/// step of the next start.
///
/// **Errors** the disk's.
pub fn complete(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let (done, damaged) = (dir.join(DONE), dir.join(DAMAGED));
    if !offline::is_dir(&done)? {
        return Ok(());
    }
    disk.create_dir_all(&damaged)?;
    for name in PARTS {
        if !offline::exists(&done.join(name))? {
            continue;
        }
        if offline::exists(&dir.join(name))? {
            disk.rename(&dir.join(name), &damaged.join(name))?;
            disk.sync_dir(&damaged)?;
        }
        disk.rename(&done.join(name), &dir.join(name))?;
        disk.sync_dir(&done)?;
        disk.sync_dir(dir)?;
    }
    offline::remove_empty_dir(&done)?;
    Ok(())
}

/// What the meta tree holds.
struct Kept {
    identity: Identity,
    tables: Tables,
    /// The row of the entry that is under way.
    under_way: Option<Bytes>,
}

/// The member's tables, as far as they can be read.
///
/// **Errors** there is no member without what is lost.
fn kept(salvage: &mut Salvage, disk: &mut dyn Disk) -> Result<Kept, Error> {
    let (mut identity, mut conf_state, mut under_way) = (None, None, None);
    let (mut has_auth, mut has_users) = (false, true);
    let mut tables = Tables::default();
    salvage.rows(disk, &mut |key, value| match key.first() {
        _ if key == table::IDENTITY => identity = table::decode_identity(&value),
        _ if key == table::UNDER_WAY => under_way = Some(value),
        _ if key == table::CONF_STATE => conf_state = table::decode_conf_state(&value),
        _ if key == table::CLUSTER_VERSION => {
            tables.cluster.version = String::from_utf8(value.to_vec()).ok();
        }
        _ if key == table::DOWNGRADE => tables.cluster.downgrade = table::decode_downgrade(&value),
        _ if key.starts_with(table::REMOVED_PREFIX) => tables.cluster.removed.extend(table::decode_removed(&key)),
        _ if key.starts_with(table::MEMBER_PREFIX) => tables.cluster.members.extend(Member::from_json(&value)),
        _ if key.starts_with(table::ALARM_PREFIX) => {
            if let Some((alarm, raised_by)) = table::decode_alarm(&key, &value) {
                tables.cluster.alarms.insert(alarm, raised_by);
            }
        }
        _ if key == auth::STATE => has_auth = tables.users.take_state(&value).is_ok(),
        _ if key.starts_with(auth::USERS) => has_users &= tables.users.take_user(&value).is_ok(),
        _ if key.starts_with(auth::ROLES) => has_users &= tables.users.take_role(&value).is_ok(),
        _ => tables.leases.extend(lease::stored_grant(&key, &value)),
    })?;
    tables.users.taken();
    if !has_users || !has_auth && !tables.users.is_empty() {
        // Nobody would be asked who they are, or some would be refused who are not elsewhere.
        return Err(Damaged { what: "the state of authentication" }.into());
    }
    let vital = table::decode_vital(salvage.vital());
    let identity: Identity = identity.or(vital.0).ok_or(Damaged { what: "identity" })?;
    tables.conf_state = conf_state.or(vital.1).ok_or(Damaged { what: "configuration" })?;
    if !tables.cluster.members.iter().any(|member| member.id == identity.member_id) {
        // Its start publishes its name and its client URLs.
        tables.cluster.members.push(Member { id: identity.member_id, ..Member::default() });
    }
    if salvage.unfinished() > 0 && under_way.is_none() {
        return Err(Damaged { what: "the entry under way" }.into());
    }
    Ok(Kept { identity, tables, under_way })
}

#[cfg(test)]
mod tests {
    use std::{fs, time::Duration};

    use engine::{KeyRange, Record, Revision, Store, disk::sim::Random};
    use proto::{etcdserverpb as pb, internal::Request};

    use super::*;
    use crate::{
        apply::{
            entry::{Applier, Asked, Executed},
            long::Steps,
            touch::Pinned,
        },
        auth::check::Asker,
        lease::{Grant, Lessor, Params},
        shared::RaisedBy,
    };

    #[test]
    fn a_repair_is_completed_from_wherever_it_stopped() {
        for steps in 0..=4 {
            let temporary = tempfile::tempdir().unwrap();
            let dir = temporary.path();
            let [done, damaged] = [DONE, DAMAGED].map(|name| dir.join(name));
            fs::create_dir_all(&done).unwrap();
            fs::create_dir_all(&damaged).unwrap();
            for name in PARTS {
                fs::write(dir.join(name), "damaged").unwrap();
                fs::write(done.join(name), "repaired").unwrap();
            }
            let moves = PARTS.map(|name| [(dir.join(name), damaged.join(name)), (done.join(name), dir.join(name))]);
            for (from, to) in moves.iter().flatten().take(steps) {
                fs::rename(from, to).unwrap();
            }
            let mut disk = engine::disk::open_buffered().unwrap();
            complete(disk.as_mut(), dir).unwrap();
            for name in PARTS {
                assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), "repaired", "{steps}");
                assert_eq!(fs::read_to_string(damaged.join(name)).unwrap(), "damaged", "{steps}");
            }
            assert!(!done.exists());
            complete(disk.as_mut(), dir).unwrap();
        }
    }

    /// Executes the entry at index 6, which deletes the keys with an `a`, for `steps` steps, or to its end. Returns
    /// whether it has ended.
    fn go_on(store: &mut Store, disk: &mut dyn Disk, dir: &Path, steps: usize) -> bool {
        let lessor = Lessor::new(Params { ttl_min_s: 2, retry_after: Duration::from_secs(7), checkpoint_every: None });
        let tables = Tables { leases: vec![(9, Grant { ttl_s: 60, remaining_s: 0 })], ..Tables::default() };
        let mut applier = Applier::new(lessor, tables, None);
        applier.steps = Steps { at_once_max: 0, keys: 50 };
        let request = pb::DeleteRangeRequest { key: "a".into(), range_end: "b".into(), prev_kv: false };
        let asked =
            Asked { request: Request::DeleteRange(request), raised_by: RaisedBy::Hand, asker: Asker::default() };
        let (mut pinned, mut events, mut made) =
            (Pinned::new(crate::gathered::Gathered::new(usize::MAX)), Vec::new(), 0);
        while made < steps {
            match applier.execute(store.mvcc_mut(), (6, &asked), &mut pinned, Duration::ZERO, &mut events) {
                Ok(Executed::Paused) => made += 1,
                Ok(Executed::Done { result, .. }) => {
                    result.unwrap();
                    return true;
                }
                Err(fault) => engine::load(disk, dir, fault).unwrap(),
            }
        }
        false
    }

    /// A member of 3,000 keys in `dir`, and of a cluster of these voters.
    fn build(dir: &Path, voters: Vec<u64>) {
        let open = |_: &Path| engine::disk::open_buffered();
        let mut builder = Builder::create(open(dir).unwrap(), dir, store::Options::default()).unwrap();
        let leases = vec![(9, Grant { ttl_s: 60, remaining_s: 0 })];
        builder.leases(&leases).unwrap();
        for number in 0..3000 {
            let (name, main) = (["a", "b"][usize::from(number % 3 == 0)], 2 + number);
            let (revision, lease) = (Revision::new(main, 0), if number % 5 == 0 { 9 } else { 0 });
            let key = format!("{name}{number:04}").into();
            let value = vec![7; 100].into();
            let (create_revision, version, is_tombstone) = (main, 1, false);
            builder.record(&Record { key, value, create_revision, revision, version, lease, is_tombstone }).unwrap();
        }
        let identity = Identity { cluster_id: 1, member_id: 2 };
        let mut tables = Tables { leases, ..Tables::default() };
        tables.conf_state.voters = voters;
        tables.cluster.members.push(Member { id: 2, ..Member::default() });
        let applied = EntryId { index: 5, term: 1 };
        builder.finish(&identity, &State { tables, applied, revision: 3001, compact_revision: -1 }).unwrap();
    }

    /// A member of 3,000 keys in `dir` that stands in the middle of an entry.
    fn stopped_in_an_entry(dir: &Path) {
        build(dir, vec![2]);
        let mut disk = engine::disk::open_buffered().unwrap();
        let mut store = Store::open(disk.as_mut(), dir, store::Options::default()).unwrap();
        assert!(!go_on(&mut store, disk.as_mut(), dir, 5));
        for _ in 0..2 {
            drop(store.mvcc_mut().publish(5, 1));
            let done = store.checkpoint_begin().run(disk.as_mut()).unwrap();
            store.checkpoint_end(done);
        }
        assert!(store.mvcc().is_unfinished());
    }

    #[test]
    fn a_member_that_stands_in_an_entry_is_repaired_and_goes_on_with_it() {
        let (mut repairs, mut random) = (0, Random::new(3));
        for _ in 0..60 {
            let temporary = tempfile::tempdir().unwrap();
            let dir = temporary.path();
            stopped_in_an_entry(dir);
            let files: Vec<_> = fs::read_dir(dir.join("pages")).unwrap().map(|file| file.unwrap().path()).collect();
            let file = &files[usize::try_from(random.below(files.len() as u64)).unwrap()];
            let mut bytes = fs::read(file).unwrap();
            let at = usize::try_from(random.below(bytes.len().min(400_000) as u64)).unwrap();
            bytes[at] ^= 4;
            fs::write(file, bytes).unwrap();
            let mut lost = std::collections::BTreeSet::new();
            let open = |_: &Path| engine::disk::open_buffered();
            let repaired = repair(dir, store::Options::default(), &open, &mut |loss| match loss {
                Loss::Key { key, .. } => drop(lost.insert(key.clone())),
                Loss::Page { .. } | Loss::History { .. } => {}
                loss => panic!("{loss:?}: one flipped bit loses less"),
            });
            let Some(repaired) = repaired.unwrap() else { continue };
            repairs += 1;
            let mut disk = open(dir).unwrap();
            let mut store = Store::open(disk.as_mut(), dir, store::Options::default()).unwrap();
            assert!(store.mvcc().is_unfinished() && store.mvcc().view().revision() == 3001, "{repaired:?}");
            assert!(go_on(&mut store, disk.as_mut(), dir, usize::MAX));
            let view = store.mvcc_mut().publish(6, 1);
            let mut cursor = view.cursor(&KeyRange::all(), view.revision());
            let mut live = Vec::new();
            loop {
                match cursor.next() {
                    Ok(Some(version)) => live.push(version.key),
                    Ok(None) => break,
                    Err(fault) => engine::load(disk.as_mut(), dir, fault).unwrap(),
                }
            }
            let all = (0..3000).filter(|number| number % 3 == 0).map(|number| Bytes::from(format!("b{number:04}")));
            assert!(live.iter().cloned().eq(all.filter(|key| !lost.contains(key))));
            assert_eq!(view.revision(), 3002);
        }
        assert!(repairs > 10, "{repairs}");
    }

    #[test]
    fn a_member_with_peers_is_not_repaired() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        build(dir, vec![2, 3]);
        let file = fs::read_dir(dir.join("pages")).unwrap().next().unwrap().unwrap().path();
        let mut bytes = fs::read(&file).unwrap();
        bytes[20] ^= 4;
        fs::write(&file, &bytes).unwrap();
        let open = |_: &Path| engine::disk::open_buffered();
        let repaired = repair(dir, store::Options::default(), &open, &mut |_| {});
        assert!(matches!(repaired, Err(Error::RepairAmongPeers { members: 2 })), "{repaired:?}");
        assert!(!dir.join(DAMAGED).exists() && !dir.join(PART).exists());
        assert_eq!(fs::read(&file).unwrap(), bytes);
    }

    #[test]
    fn a_repair_that_was_not_built_whole_changes_nothing() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        fs::create_dir_all(dir.join(PART)).unwrap();
        fs::write(dir.join(PART).join("superblock"), "half").unwrap();
        fs::write(dir.join("superblock"), "damaged").unwrap();
        let mut disk = engine::disk::open_buffered().unwrap();
        complete(disk.as_mut(), dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("superblock")).unwrap(), "damaged");
    }
}
