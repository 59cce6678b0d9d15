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
    complete(disk.as_mut(), dir)?;
    let mut damages = 0_u64;
    engine::inspect::verify(disk.as_mut(), dir, &mut |_| damages += 1)?;
    if damages == 0 {
        return Ok(None);
    }
    let mut losses = 0;
    let mut salvage = Salvage::open(disk.as_mut(), dir, &mut |loss| {
        losses += u64::from(!matches!(loss, Loss::Page { .. }));
        tell(loss);
    })?;
    let _lock = disk.lock(dir)?;
    let (identity, tables) = tables(&mut salvage, disk.as_mut())?;
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
    let mut records = 0;
    salvage.records(disk.as_mut(), &mut |record| {
        records += 1;
        builder.record(&record)
    })?;
    let (index, term) = salvage.applied();
    let (revision, compact_revision) = (salvage.revision(), salvage.compact_revision());
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

/// The member's tables, as far as they can be read.
///
/// **Errors** there is no member without what is lost.
fn tables(salvage: &mut Salvage, disk: &mut dyn Disk) -> Result<(Identity, Tables), Error> {
    let (mut identity, mut conf_state) = (None, None);
    let mut tables = Tables::default();
    salvage.rows(disk, &mut |key, value| match key.first() {
        _ if key == table::IDENTITY => identity = table::decode_identity(&value),
        _ if key == table::CONF_STATE => conf_state = table::decode_conf_state(&value),
        _ if key == table::CLUSTER_VERSION => {
            tables.cluster.version = String::from_utf8(value.to_vec()).ok();
        }
        _ if key.starts_with(table::MEMBER_PREFIX) => tables.cluster.members.extend(Member::from_json(&value)),
        _ if key.starts_with(table::ALARM_PREFIX) => {
            if let Some((alarm, raised_by)) = table::decode_alarm(&key, &value) {
                tables.cluster.alarms.insert(alarm, raised_by);
            }
        }
        _ => tables.leases.extend(lease::stored_grant(&key, &value)),
    })?;
    let identity: Identity = identity.ok_or(Damaged { what: "identity" })?;
    tables.conf_state = conf_state.ok_or(Damaged { what: "configuration" })?;
    if !tables.cluster.members.iter().any(|member| member.id == identity.member_id) {
        return Err(Damaged { what: "members" }.into());
    }
    Ok((identity, tables))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
