//! Runs on: main thread, before the server starts.
//!
//! `--import` takes over the data directory of a stopped etcd, once. The database and the log become a store and a log
//! of this server. The member keeps its identity.
//!
//! The content of the database is built into a store as of its applied index. The entries after that index go into the
//! log, with term, vote and commit. The start that follows applies what is committed of them, as after any stop. A
//! member of several goes on among the others: they decide about the rest.
//!
//! Invariants:
//! - Nothing of etcd's is changed or removed. Until everything that was built is durable, the directory still belongs
//!   to etcd, unchanged.
//! - The directory changes hands in one step ([`offline::exchange`]). Before that step etcd can start on it and this
//!   server cannot. After it this server can and etcd cannot: `member` is then a file, and etcd's directory is in
//!   `member.imported`.
//! - The database is locked meanwhile, as a running etcd locks it.
//!
//! | in the data directory | before that step | after it |
//! |---|---|---|
//! | `member` | etcd's directory | a file that says what happened |
//! | `member.imported` | the file to be | etcd's directory |
//! | `import.part` | what is being built | what is moved out of it; gone at the end |
//!
//! This file does not know what etcd's files mean, nor whether this release can go on from them. `etcd_files` does.

use std::path::Path;

use consensus::EntryId;
use engine::{
    disk::{BLOCK, Buffer, Disk, FileOp, Op, OpenKind, Owner, offline},
    store, wal,
};

use crate::{
    apply,
    etcd_files::{
        self,
        build::{Builder, OpenDisk},
        error::Error,
        stopped::Stopped,
    },
};

const MEMBER: &str = "member";
const ORIGINAL: &str = "member.imported";
/// What etcd's directory is called between the two steps of [`offline::exchange`] where one step is not to be had.
const BETWEEN: &str = "member.imported.old";
const PART: &str = "import.part";
/// The parts that are moved out of [`PART`], in this order. Without a superblock the other parts do not count.
const PARTS: [&str; 3] = ["wal", "pages", "superblock"];

const NOTE: &str = "This data directory was taken over by Orlop. etcd's own files lie unchanged in member.imported;\n\
    they are older than what Orlop has acknowledged since, and no etcd may go on from them.\n";

/// An import: its directory and the settings of what it builds.
pub struct Import<'a> {
    /// The data directory.
    pub dir: &'a Path,
    /// Settings of the store to be made.
    pub store: store::Options,
    /// Settings of its log.
    pub wal: wal::Options,
}

/// Whether etcd's data lies in `dir`.
///
/// **Errors** the directory cannot be read.
pub fn is_etcd(dir: &Path) -> Result<bool, engine::Error> {
    offline::is_dir(&dir.join(MEMBER))
}

impl Import<'_> {
    /// Takes the directory over. Blocks for a time that grows with the data.
    ///
    /// **Errors** the reason why not. The directory then belongs to etcd as before.
    pub fn run(self, open: OpenDisk<'_>) -> Result<(), Error> {
        let dir = self.dir;
        let mut disk = open(dir)?;
        let _own = disk.lock(dir)?;
        check_unused(dir)?;
        let member = dir.join(MEMBER);
        let mut stopped = Stopped::open(disk.as_mut(), &member, apply::entry::is_applied)?;
        let part = dir.join(PART);
        clear(disk.as_mut(), &part)?;
        tracing::info!(
            path = %stopped.path.display(),
            term = stopped.log.hard_state.term,
            commit = stopped.log.hard_state.commit,
            index = stopped.state.applied.index,
            entries = stopped.log.entries.len(),
            torn = ?stopped.log.torn,
            "importing the data of etcd"
        );
        if let Err(error) = self.make(open, &part, &mut stopped) {
            // etcd may go on here, and needs the room.
            if let Err(left) = clear(disk.as_mut(), &part) {
                tracing::warn!(path = %part.display(), error = %left, "what was built of an import is left there");
            }
            return Err(error);
        }
        hand_over(disk.as_mut(), dir)?;
        tracing::info!(original = %dir.join(ORIGINAL).display(), "imported the data of etcd; its own files are kept");
        Ok(())
    }

    fn make(&self, open: OpenDisk<'_>, part: &Path, stopped: &mut Stopped) -> Result<(), Error> {
        let others = stopped.state.tables.cluster.members.iter().map(|member| member.id);
        let concerned = consensus::concerned_mask(others.filter(|id| *id != stopped.identity.member_id));
        self.write_log(open(part)?.as_mut(), &part.join("wal"), &stopped.log, (stopped.state.applied, concerned))?;
        self.build(open(part)?, part, stopped)
    }

    fn write_log(
        &self,
        disk: &mut dyn Disk,
        dir: &Path,
        log: &etcd_files::wal::Log,
        (applied, concerned): (EntryId, u64),
    ) -> Result<(), Error> {
        let entry = |entry: &etcd_files::wal::Entry| wal::Entry {
            index: entry.index,
            term: entry.term,
            kind: u8::try_from(entry.kind).expect("checked before"),
            data: entry.data.clone(),
        };
        let entries: Vec<wal::Entry> = log.entries.iter().map(entry).collect();
        let etcd_files::wal::HardState { term, vote, commit } = log.hard_state;
        // Should this log lose its end, those are asked to whom etcd may have promised something.
        let hard_state = wal::HardState { term, vote, commit, is_cut: false, concerned };
        consensus::adopt_log(disk, dir, self.wal, applied, &entries, hard_state)?;
        Ok(())
    }

    fn build(&self, disk: Box<dyn Disk>, part: &Path, stopped: &mut Stopped) -> Result<(), Error> {
        let Stopped { database, identity, state, .. } = stopped;
        let mut builder = Builder::create(disk, part, self.store)?;
        builder.leases(&state.tables.leases)?;
        let last = builder.records(database)?;
        // A compaction may have left no record. The revision is never lower than the compacted one.
        state.revision = last.max(state.compact_revision).max(1);
        builder.finish(identity, state)?;
        Ok(())
    }
}

/// Refuses a directory that holds a store of this server, or held one.
fn check_unused(dir: &Path) -> Result<(), Error> {
    let mut is_used = offline::is_dir(&dir.join(ORIGINAL))?;
    for name in PARTS {
        is_used |= offline::exists(&dir.join(name))?;
    }
    if is_used { Err(Error::TwoStores { dir: dir.to_path_buf() }) } else { Ok(()) }
}

/// Removes what an unfinished import has left.
fn clear(disk: &mut dyn Disk, part: &Path) -> Result<(), Error> {
    for dir in [part.join("wal"), part.join("pages"), part.to_path_buf()] {
        if offline::is_dir(&dir)? {
            for name in disk.list(&dir)? {
                disk.remove(&dir.join(name))?;
            }
        }
    }
    Ok(())
}

/// The moment at which the directory changes hands. Everything that was built is durable.
fn hand_over(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let (member, original) = (dir.join(MEMBER), dir.join(ORIGINAL));
    if offline::exists(&original)? {
        disk.remove(&original)?;
    }
    write_note(disk, &original)?;
    disk.sync_dir(dir)?;
    offline::exchange(&member, &original)?;
    disk.sync_dir(dir)?;
    complete(disk, dir)
}

fn write_note(disk: &mut dyn Disk, path: &Path) -> Result<(), Error> {
    let file = disk.open(path, OpenKind::Create { len: BLOCK as u64 })?;
    let mut buf = Buffer::new();
    buf.extend_from_slice(NOTE.as_bytes());
    buf.extend_from_slice(&vec![b'\n'; BLOCK - NOTE.len()]);
    for op in [Op::WriteDurable { file, offset: 0, buf }, Op::Sync { file }] {
        disk.submit(op, Owner::Other.token(0));
        disk.wait()?;
        let mut ended = Vec::new();
        disk.completions(&mut ended);
        for completion in ended {
            completion.result.map_err(|source| engine::Error::io(path, FileOp::Write, source))?;
        }
    }
    disk.close(file);
    Ok(())
}

/// Moves what an import has built to its place, if the directory has changed hands. It is the last step of an import,
/// or the first step of the next start.
///
/// **Errors** the disk's; an import was begun, and etcd's data is no longer there. An empty store must not be served in
/// its place.
pub fn complete(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let part = dir.join(PART);
    end_exchange(disk, dir)?;
    if !offline::exists(&dir.join(MEMBER))? && (offline::exists(&part)? || offline::exists(&dir.join(BETWEEN))?) {
        return Err(Error::ImportWithoutMember { dir: dir.to_path_buf() });
    }
    if !offline::is_file(&dir.join(MEMBER))? || !offline::is_dir(&part)? {
        return Ok(());
    }
    for name in PARTS {
        if offline::exists(&part.join(name))? {
            disk.rename(&part.join(name), &dir.join(name))?;
            disk.sync_dir(&part)?;
            disk.sync_dir(dir)?;
        }
    }
    offline::remove_empty_dir(&part)?;
    Ok(())
}

/// Ends an exchange that was cut off between its steps. It was begun, so all that was built is durable.
fn end_exchange(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let [member, original, between] = [MEMBER, ORIGINAL, BETWEEN].map(|name| dir.join(name));
    if !offline::is_dir(&between)? {
        return Ok(());
    }
    if !offline::exists(&member)? && offline::is_file(&original)? {
        disk.rename(&original, &member)?;
        disk.sync_dir(dir)?;
    }
    if offline::is_file(&member)? && !offline::exists(&original)? {
        offline::rename(&between, &original)?;
        disk.sync_dir(dir)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use consensus::Identity;
    use engine::Store;

    use super::*;
    use crate::{apply::start, boot::options, clock::Clock, config::Config};

    #[test]
    fn what_is_imported_is_the_member_with_its_log_and_its_promises() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        etcd_files::stopped::tests::directory(&dir.join(MEMBER));
        let config = Config::parse(&[], &[], &|_| Err(std::io::Error::other("no file"))).unwrap();
        let clock = Clock::manual(1);
        let (store, wal) = (options::store(&config, &clock), options::wal(&config.knobs.wal, &clock));
        Import { dir, store, wal }.run(&|_| engine::disk::open_buffered()).unwrap();
        let mut disk = engine::disk::open_buffered().unwrap();
        let (_, recovered) = wal::Wal::open(disk.as_mut(), &dir.join("wal"), wal, wal::Known::default()).unwrap();
        assert_eq!(recovered.mark, (10, 2));
        let entries: Vec<_> = recovered.entries.iter().map(|entry| (entry.index, entry.term, entry.kind)).collect();
        assert_eq!(entries, [(11, 3, 0), (12, 3, 1), (13, 3, 0), (14, 3, 0)]);
        let promised = wal::HardState {
            term: 5,
            vote: 2,
            commit: 12,
            is_cut: false,
            concerned: consensus::concerned_mask([2, 0x10]),
        };
        assert_eq!(recovered.hard_state, promised);
        let mut store = Store::open(disk.as_mut(), dir, store).unwrap();
        let start = start::read(&mut store, disk.as_mut(), Identity { cluster_id: 1, member_id: 1 }).unwrap();
        assert_eq!(start.identity, Identity { cluster_id: 8, member_id: 7 });
        assert_eq!((start.tables.conf_state.voters, start.tables.conf_state.learners), (vec![2, 7], vec![0x10]));
        let cluster = start.tables.cluster;
        assert_eq!((cluster.members.len(), cluster.removed), (3, [9].into()));
        assert_eq!((cluster.version.as_deref(), cluster.downgrade.unwrap().is_enabled), (Some("3.6.0"), true));
        assert_eq!((store.applied(), store.mvcc().view().revision()), ((10, 2), 2));
    }

    #[test]
    fn a_directory_that_changed_hands_is_completed_from_wherever_it_stopped() {
        for moved in 0..=PARTS.len() {
            let temporary = tempfile::tempdir().unwrap();
            let dir = temporary.path();
            fs::create_dir_all(dir.join(ORIGINAL)).unwrap();
            fs::create_dir(dir.join(PART)).unwrap();
            fs::write(dir.join(MEMBER), NOTE).unwrap();
            for (position, name) in PARTS.iter().enumerate() {
                fs::write(dir.join(if position < moved { "" } else { PART }).join(name), name).unwrap();
            }
            let mut disk = engine::disk::open_buffered().unwrap();
            complete(disk.as_mut(), dir).unwrap();
            assert!(PARTS.iter().all(|name| fs::read_to_string(dir.join(name)).unwrap() == *name));
            assert!(!dir.join(PART).exists() && dir.join(ORIGINAL).is_dir() && !is_etcd(dir).unwrap());
            complete(disk.as_mut(), dir).unwrap();
        }
    }

    #[test]
    fn an_exchange_in_steps_is_completed_from_wherever_it_stopped() {
        for steps in 0..=3 {
            let temporary = tempfile::tempdir().unwrap();
            let dir = temporary.path();
            let [member, original, between] = [MEMBER, ORIGINAL, BETWEEN].map(|name| dir.join(name));
            fs::create_dir_all(member.join("snap")).unwrap();
            fs::write(&original, NOTE).unwrap();
            fs::create_dir(dir.join(PART)).unwrap();
            fs::write(dir.join(PART).join("superblock"), "whole").unwrap();
            for (from, to) in [(&member, &between), (&original, &member), (&between, &original)].iter().take(steps) {
                fs::rename(from, to).unwrap();
            }
            let mut disk = engine::disk::open_buffered().unwrap();
            complete(disk.as_mut(), dir).unwrap();
            // Before its first step, the directory is etcd's.
            let has_changed_hands = steps > 0;
            assert_eq!(dir.join("superblock").exists(), has_changed_hands, "{steps}");
            assert_eq!(is_etcd(dir).unwrap(), !has_changed_hands, "{steps}");
            assert_eq!(original.join("snap").exists(), has_changed_hands && !between.exists(), "{steps}");
        }
    }

    #[test]
    fn what_an_import_left_that_did_not_end_is_never_taken_for_its_result() {
        let temporary = tempfile::tempdir().unwrap();
        let dir = temporary.path();
        let part = dir.join(PART);
        fs::create_dir_all(part.join("pages")).unwrap();
        fs::write(part.join("superblock"), "half").unwrap();
        fs::write(part.join("pages/00000001.seg"), "half").unwrap();
        let mut disk = engine::disk::open_buffered().unwrap();
        for with_member in [false, true] {
            if with_member {
                fs::create_dir(dir.join(MEMBER)).unwrap();
            }
            // Without what is taken over, an empty store would be served in its place.
            assert_eq!(complete(disk.as_mut(), dir).is_ok(), with_member);
            assert!(part.join("superblock").exists() && !dir.join("superblock").exists());
        }
        clear(disk.as_mut(), &part).unwrap();
        assert!(!part.join("superblock").exists() && !part.join("pages/00000001.seg").exists());
        fs::write(part.join("superblock"), "whole").unwrap();
        hand_over(disk.as_mut(), dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("superblock")).unwrap(), "whole");
        assert!(fs::read_to_string(dir.join(MEMBER)).unwrap().starts_with(NOTE) && dir.join(ORIGINAL).is_dir());
    }
}
