//! Runs on: main thread, before the server starts.
//!
//! `--import`: takes over the data directory of a stopped etcd, once: database and log become a store and a log of this server's, and
//! the member goes on as who it was.
//!
//! What the database holds is built into a store as of its applied index; the entries behind it go into the log with term, vote and
//! commit, and are applied by the start that follows, as after any stop.
//!
//! Invariants:
//! - Nothing of etcd's is changed or removed. Until all that was built is durable, the directory is etcd's as it was.
//! - It changes hands in one step ([`engine::disk::offline::exchange`]): before it etcd can start on the directory and this server cannot, behind it
//!   the other way round. `member` is a file then, on which no etcd starts; what it was lies in `member.imported`.
//! - The database is locked meanwhile, as a running etcd locks it.
//!
//! | in the data directory | before | behind |
//! |---|---|---|
//! | `member` | etcd's directory | a file that says what happened |
//! | `member.imported` | the file to be | etcd's directory |
//! | `import.part` | what is being built | what is moved out of it; gone at the end |
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go`.

pub mod etcd_wal;

use std::path::Path;

use consensus::{Applied, ConfState, EntryKind};
use engine::disk::{BLOCK, Buffer, Disk, FileOp, Op, OpenKind, Owner};
use engine::{store, wal};
use proto::internal;

use crate::apply;
use crate::backup::build::{Builder, Place};
use crate::backup::file::{Backup, Meta};
use crate::backup::restore::{Reading, Writing, load_content};
use crate::backup::{Error, refuse_auth};
use crate::core::Identity;
use etcd_wal::Log;

const MEMBER: &str = "member";
const ORIGINAL: &str = "member.imported";
const PART: &str = "import.part";
/// Moved out of [`PART`] in this order: without a superblock nothing else counts.
const PARTS: [&str; 3] = ["wal", "pages", "superblock"];

const NOTE: &str = "This data directory was taken over by Orlop. etcd's own files lie unchanged in member.imported;\n\
    they are older than what Orlop has acknowledged since, and no etcd may go on from them.\n";

/// What is taken over, and how.
pub struct Import<'a> {
    /// The data directory.
    pub dir: &'a Path,
    /// Settings of the store to be made.
    pub store: store::Options,
    /// Settings of its log.
    pub wal: wal::Options,
}

/// Whether etcd's data lies in `dir`.
pub fn is_etcd(dir: &Path) -> bool {
    dir.join(MEMBER).is_dir()
}

fn refused(text: impl Into<String>) -> Error {
    Error::Refused(text.into())
}

impl Import<'_> {
    /// Takes the directory over. Blocks, for as long as the data is large.
    ///
    /// **Errors** why not; the directory is etcd's as before then.
    pub fn run(self, reading: Reading<'_>, writing: Writing<'_>) -> Result<(), Error> {
        let dir = self.dir;
        let mut disk = writing(dir)?;
        let _own = disk.lock(dir)?;
        if PARTS.iter().any(|name| dir.join(name).exists()) || dir.join(ORIGINAL).is_dir() {
            return Err(refused(format!("{} holds data of etcd and of Orlop", dir.display())));
        }
        let (snap, logs) = (dir.join(MEMBER).join("snap"), dir.join(MEMBER).join("wal"));
        let database = snap.join("db");
        let _etcds = disk.lock(&database)?;
        let mut backup = Backup::open(reading()?, &database)?;
        refuse_auth(&mut backup)?;
        let meta = backup.meta()?;
        check_version(&meta)?;
        let log = etcd_wal::read(disk.as_mut(), reading, &logs, meta.applied_index)?;
        check_log(&meta, &log)?;
        let place = place_of(&mut backup, meta, &log)?;
        let part = dir.join(PART);
        clear(disk.as_mut(), &part)?;
        tracing::info!(
            path = %database.display(),
            index = place.applied.0,
            entries = log.entries.len(),
            torn = ?log.torn,
            "importing the data of etcd"
        );
        self.write_log(writing(&part)?.as_mut(), &part.join("wal"), &log, place.applied)?;
        self.build(writing(&part)?, &part, &mut backup, place)?;
        hand_over(disk.as_mut(), dir)?;
        tracing::info!(original = %dir.join(ORIGINAL).display(), "imported the data of etcd; its own files are kept");
        Ok(())
    }

    fn write_log(&self, disk: &mut dyn Disk, dir: &Path, log: &Log, (index, term): (u64, u64)) -> Result<(), Error> {
        let entry = |entry: &etcd_wal::Entry| wal::Entry {
            index: entry.index,
            term: entry.term,
            kind: u8::try_from(entry.kind).expect("checked before"),
            data: entry.data.clone(),
        };
        let entries: Vec<wal::Entry> = log.entries.iter().map(entry).collect();
        // The commit may not have been written down before what it committed was applied.
        let etcd_wal::HardState { term: newest, vote, commit } = log.hard_state;
        let hard_state = wal::HardState { term: newest, vote, commit: commit.max(index) };
        consensus::adopt_log(disk, dir, self.wal, Applied { index, term }, &entries, hard_state)?;
        Ok(())
    }

    fn build(&self, disk: Box<dyn Disk>, part: &Path, backup: &mut Backup, mut place: Place) -> Result<(), Error> {
        let mut builder = Builder::create(disk, part, self.store)?;
        let last = load_content(&mut builder, backup)?;
        // What compaction left behind may be all older.
        place.revision = last.max(place.compact_revision).max(1);
        builder.finish(&place)?;
        Ok(())
    }
}

/// Refuses what this release would misunderstand.
fn check_version(meta: &Meta) -> Result<(), Error> {
    if meta.applied_index == 0 || meta.applied_term == 0 {
        return Err(refused(
            "the database was not written by etcd 3.5 or later, or never written to: start and stop such an etcd on it",
        ));
    }
    let known = |version: &String| ["3.6.", "3.7."].iter().any(|known| version.starts_with(known));
    match &meta.storage_version {
        // 3.5 writes none.
        None => Ok(()),
        Some(version) if known(version) => Ok(()),
        Some(version) => {
            Err(refused(format!("the database has storage version {version}, which this release does not know")))
        }
    }
}

/// Whether database and log belong together, and all that is to be applied is understood.
fn check_log(meta: &Meta, log: &Log) -> Result<(), Error> {
    let index = meta.applied_index;
    if log.snapshot > index {
        return Err(refused(format!(
            "the database stands at index {index}, before the log's snapshot at {}: start etcd on it first",
            log.snapshot
        )));
    }
    if log.term != Some(meta.applied_term) {
        let term = meta.applied_term;
        return Err(refused(format!("the log has no entry {index} of term {term}, at which the database stands")));
    }
    let last = index + log.entries.len() as u64;
    if log.hard_state.commit > last {
        return Err(refused(format!("the log ends at {last}, and {} is committed", log.hard_state.commit)));
    }
    if log.hard_state.term < log.entries.last().map_or(meta.applied_term, |entry| entry.term) {
        return Err(refused("the log's entries are of a later term than its state"));
    }
    log.entries.iter().try_for_each(check_entry)
}

fn check_entry(entry: &etcd_wal::Entry) -> Result<(), Error> {
    let what = match EntryKind::from_number(entry.kind) {
        Some(EntryKind::Normal) if entry.data.is_empty() => return Ok(()),
        Some(EntryKind::Normal) => match internal::decode(entry.data.clone()) {
            Ok((_, request)) if apply::is_applied(&request) => return Ok(()),
            Ok((_, request)) => format!("{:?}", request.kind()),
            Err(error) => error.to_string(),
        },
        Some(EntryKind::ConfChange) => "a change of the members".into(),
        None => "a change of several members".into(),
    };
    Err(refused(format!(
        "entry {} of the log is not in the database yet, and this release does not apply it ({what}): start etcd on it once more, \
         and stop it by SIGTERM",
        entry.index
    )))
}

/// Who the member is and where it stands.
fn place_of(backup: &mut Backup, meta: Meta, log: &Log) -> Result<Place, Error> {
    let members = backup.members()?;
    let id = log.metadata.member_id;
    let [member] = members.as_slice() else {
        return Err(refused(format!("the cluster has {} members; only one alone can be imported", members.len())));
    };
    if member.id != id || member.is_learner {
        return Err(refused(format!("the only member is {:x}, and the log belongs to {id:x}", member.id)));
    }
    let conf_state = ConfState { voters: vec![id], learners: Vec::new() };
    if meta.conf_state.as_ref().is_some_and(|stored| *stored != conf_state) {
        return Err(refused("the database's configuration has other voters than its one member"));
    }
    Ok(Place {
        identity: Identity { cluster_id: log.metadata.cluster_id, member_id: id },
        members,
        conf_state,
        cluster_version: backup.cluster_version()?,
        alarms: backup.alarms()?,
        applied: (meta.applied_index, meta.applied_term),
        revision: 1,
        compact_revision: meta.compact_revision,
    })
}

/// Removes what an import that did not end has left.
fn clear(disk: &mut dyn Disk, part: &Path) -> Result<(), Error> {
    for dir in [part.join("wal"), part.join("pages"), part.to_path_buf()] {
        if dir.is_dir() {
            for name in disk.list(&dir)? {
                disk.remove(&dir.join(name))?;
            }
        }
    }
    Ok(())
}

/// The moment the directory changes hands; all that was built is durable.
fn hand_over(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let (member, original) = (dir.join(MEMBER), dir.join(ORIGINAL));
    if original.exists() {
        disk.remove(&original)?;
    }
    write_note(disk, &original)?;
    disk.sync_dir(dir)?;
    engine::disk::offline::exchange(&member, &original)?;
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

/// Moves what an import has built to its place, if the directory changed hands: the import's last step, or the next start's first.
///
/// **Errors** the disk's.
pub fn complete(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let part = dir.join(PART);
    if !dir.join(MEMBER).is_file() || !part.is_dir() {
        return Ok(());
    }
    for name in PARTS {
        if part.join(name).exists() {
            disk.rename(&part.join(name), &dir.join(name))?;
            disk.sync_dir(&part)?;
            disk.sync_dir(dir)?;
        }
    }
    engine::disk::offline::remove_empty_dir(&part)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

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
            assert!(!dir.join(PART).exists() && dir.join(ORIGINAL).is_dir() && !is_etcd(dir));
            complete(disk.as_mut(), dir).unwrap();
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
            complete(disk.as_mut(), dir).unwrap();
            assert!(part.join("superblock").exists() && !dir.join("superblock").exists());
        }
        clear(disk.as_mut(), &part).unwrap();
        assert!(!part.join("superblock").exists() && !part.join("pages/00000001.seg").exists());
        fs::write(part.join("superblock"), "whole").unwrap();
        hand_over(disk.as_mut(), dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("superblock")).unwrap(), "whole");
        assert!(fs::read_to_string(dir.join(MEMBER)).unwrap().starts_with(NOTE) && dir.join(ORIGINAL).is_dir());
    }

    fn entry(index: u64, term: u64, data: Vec<u8>) -> etcd_wal::Entry {
        etcd_wal::Entry { kind: 0, term, index, data: data.into() }
    }

    fn request(kind: internal::Kind) -> Vec<u8> {
        let mut out = Vec::new();
        internal::encode(&internal::RequestHeader { id: 9, ..Default::default() }, kind, &[], &mut out);
        out
    }

    #[test]
    fn a_log_that_is_not_the_databases_or_not_understood_is_refused() {
        let meta = Meta { applied_index: 10, applied_term: 2, compact_revision: -1, ..Meta::default() };
        let log = |change: &dyn Fn(&mut Log)| {
            let mut log = Log {
                hard_state: etcd_wal::HardState { term: 3, vote: 1, commit: 11 },
                entries: vec![entry(11, 3, Vec::new()), entry(12, 3, request(internal::Kind::Put))],
                term: Some(2),
                snapshot: 5,
                ..Log::default()
            };
            change(&mut log);
            check_log(&meta, &log)
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
        assert!(check_version(&Meta { applied_term: 0, ..meta }).is_err());
    }
}
