//! Damage of every kind to every structure of a data directory: what is damaged is named, with file and offset, and
//! refused; or it is redundant and nothing is missing. Never a panic, never anything but what was acknowledged.
//!
//! The structures are found by `FORMAT.md`'s tables alone, so this is also a test of that page. A data directory holds
//! a store with checkpoints and a log whose last entries no checkpoint has; one entry a group, so that the one loss
//! that cannot be told from a torn write (`FORMAT.md`, "What cannot be told apart") is of one entry.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

#[cfg(test)]
mod pages;
#[cfg(test)]
#[path = "../replay/mod.rs"]
mod replay;
#[cfg(test)]
mod salvage;
#[cfg(test)]
mod scrub;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use engine::{
    Error, Store,
    disk::{Disk, FileOp, sim::SimStorage},
    wal::{self, Wal},
};

use replay::{DIR, Member, Operation, Shown, apply, model_shown, operations, options, shown, term};

const BLOCK: usize = 4096;
const ENTRIES: usize = 210;

fn wal_options() -> wal::Options {
    wal::Options { segment_bytes: 16 << 10, group_bytes_max: 4096, fresh_id: 9, ..Default::default() }
}

fn entry(index: u64) -> wal::Entry {
    let data = [&index.to_le_bytes()[..], &[7; 300]].concat();
    wal::Entry { index, term: term(index), kind: 1, data: Bytes::from(data) }
}

fn settle(wal: &mut Wal, disk: &mut dyn Disk) {
    let mut ended = Vec::new();
    for _ in 0..10 {
        wal.step(disk).unwrap();
        disk.kick().unwrap();
        disk.completions(&mut ended);
        ended.drain(..).for_each(|completion| wal.on_completion(completion, disk).unwrap());
    }
}

/// A data directory with all of `log`, after each of some checkpoints; the last is what a process left behind.
fn written(log: &[Operation]) -> Vec<SimStorage> {
    let storage = SimStorage::new(1);
    let mut member = Member::open(&storage, options(1), &[], 0).unwrap();
    let mut log_disk = storage.disk();
    let (mut wal, _) =
        Wal::open(&mut log_disk, &Path::new(DIR).join("wal"), wal_options(), wal::Known::default()).unwrap();
    let mut states = Vec::new();
    for index in 1..=log.len() as u64 {
        wal.append(&[entry(index)], None, index).unwrap();
        settle(&mut wal, &mut log_disk);
        assert_eq!(wal.durable(), index);
        member.apply(log).unwrap();
        if index % 40 == 10 && index <= 130 {
            member.sweep(200).unwrap();
            member.reclaim(16).unwrap();
            member.checkpoint().unwrap();
            let (index, term) = member.store.trimmable();
            if index > 0 {
                wal.trim(index, term).unwrap();
                settle(&mut wal, &mut log_disk);
            }
            states.push(storage.crash());
        }
    }
    member.check(&model_shown(log));
    states.push(storage.crash());
    states
}

/// What a member finds.
#[derive(Debug)]
enum Outcome {
    /// It starts, with so many entries, and shows what they say.
    Sound(usize),
    /// It refuses to start, or a read, and names this.
    Refused(PathBuf, u64),
    /// Store and log are of different times, which their owner refuses.
    Apart,
}

struct Case<'a> {
    log: &'a [Operation],
    expected: BTreeMap<usize, Shown>,
}

impl Case<'_> {
    fn open(&mut self, image: &SimStorage, context: &str) -> Outcome {
        match self.try_open(image) {
            Ok(Some((applied, found))) => {
                let log = self.log;
                let expected = self.expected.entry(applied).or_insert_with(|| model_shown(&log[..applied]));
                assert!(*expected == found, "{context}: wrong data");
                Outcome::Sound(applied)
            }
            Ok(None) => Outcome::Apart,
            Err(Error::Corrupt { path, offset, .. }) => Outcome::Refused(path, offset),
            Err(Error::Format { path, .. } | Error::Io { path, op: FileOp::Read, .. }) => Outcome::Refused(path, 0),
            Err(other) => panic!("{context}: {other}"),
        }
    }

    fn try_open(&self, image: &SimStorage) -> Result<Option<(usize, Shown)>, Error> {
        let (mut disk, dir) = (image.disk(), Path::new(DIR));
        let mut store = Store::open(&mut disk, dir, options(1))?;
        let (mut applied, at) = store.applied();
        let known = wal::Known { trimmable: store.trimmable().0, ..wal::Known::default() };
        let (wal, recovered) = Wal::open(&mut disk, &dir.join("wal"), wal_options(), known)?;
        if recovered.mark.0 > applied || wal.last_index() < applied || (applied > 0 && wal.term(applied) != Some(at)) {
            return Ok(None);
        }
        for found in recovered.entries {
            assert_eq!(found, entry(found.index), "the log holds what was appended");
            if found.index > applied {
                let operation = &self.log[usize::try_from(applied).unwrap()];
                applied += 1;
                apply(store.mvcc_mut(), applied, operation, |fault| engine::load(&mut disk, dir, fault))?;
            }
        }
        let view = store.mvcc().view();
        Ok(Some((usize::try_from(applied).unwrap(), shown(&view, &mut disk)?)))
    }
}

/// One thing in a file.
#[derive(Clone, Debug)]
struct Structure {
    name: &'static str,
    path: PathBuf,
    at: usize,
    /// Offsets in it, and beside them what is there.
    fields: Vec<usize>,
}

fn word(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(*bytes[at..].first_chunk().unwrap()) as usize
}

/// Every envelope in a segment file: pages lie back to back from a block boundary on.
fn envelopes(path: &Path, bytes: &[u8], out: &mut Vec<Structure>) {
    let names = ["tree page", "record block", "extent index", "directory chunk", "directory root", "segment table"];
    let mut at = 0;
    while at + 12 <= bytes.len() {
        let (len, kind) = (word(bytes, at + 4), usize::from(bytes[at + 8]));
        if len < 12 || at + len > bytes.len() || !(1..=6).contains(&kind) || bytes[at + 9..at + 12] != [0; 3] {
            at = (at + 1).next_multiple_of(BLOCK);
            continue;
        }
        let fields = vec![0, 4, 8, 9, 12, 12 + (len - 12) / 2, len - 1];
        out.push(Structure { name: names[kind - 1], path: path.to_path_buf(), at, fields });
        at += len;
    }
}

/// Header and frames of a log segment.
fn frames(path: &Path, bytes: &[u8], out: &mut Vec<Structure>) {
    let header = vec![0, 8, 12, 16, 24, 28, 32, 36, 44, 52, 60, 68, 76, 84];
    out.push(Structure { name: "log header", path: path.to_path_buf(), at: 0, fields: header });
    let mut at = BLOCK;
    while at + 8 < bytes.len() {
        let len = word(bytes, at);
        if len == 0 || at + 8 + len > bytes.len() {
            if at.is_multiple_of(BLOCK) {
                break;
            }
            at = at.next_multiple_of(BLOCK);
            continue;
        }
        let name = ["", "group head", "log entry", "hard state", "mark", "life"].get(usize::from(bytes[at + 8]));
        let fields = vec![0, 4, 8, 8 + len / 2, 7 + len];
        out.push(Structure { name: name.copied().unwrap_or("?"), path: path.to_path_buf(), at, fields });
        at += 8 + len;
    }
}

const SUPERBLOCK_FIELDS: [usize; 16] = [0, 8, 12, 16, 24, 32, 40, 48, 56, 64, 76, 88, 100, 112, 507, 508];

fn structures(image: &SimStorage) -> Vec<Structure> {
    let mut out = Vec::new();
    for path in image.paths() {
        let bytes = image.content(&path).unwrap();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("seg") => envelopes(&path, &bytes, &mut out),
            Some("wal") => frames(&path, &bytes, &mut out),
            _ => out.extend([0, 4 * BLOCK].map(|at| Structure {
                name: "superblock copy",
                path: path.clone(),
                at,
                fields: SUPERBLOCK_FIELDS.to_vec(),
            })),
        }
    }
    out
}

#[test]
fn a_flipped_bit_in_any_field_of_any_structure_is_refused_by_name_or_harmless() {
    let log = operations(21, ENTRIES, 40);
    let image = written(&log).pop().unwrap();
    let mut case = Case { log: &log, expected: BTreeMap::new() };
    assert!(matches!(case.open(&image.crash(), "whole"), Outcome::Sound(ENTRIES)));
    // By structure: how often it was refused, and how often nothing was missing.
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for Structure { name, path, at, fields } in structures(&image) {
        for (number, field) in fields.into_iter().enumerate() {
            let (offset, bit) = (at + field, (number * 5 + at / 7) % 8);
            let context = format!("{name} of {} at {at}, byte {field}, bit {bit}", path.display());
            let damaged = image.crash();
            damaged.damage(&path, offset as u64, |sector| sector[offset % 512] ^= 1 << bit);
            let count = counts.entry(name).or_default();
            match case.open(&damaged, &context) {
                Outcome::Sound(ENTRIES) => count.1 += 1,
                Outcome::Sound(applied) => {
                    let is_log = path.extension().is_some_and(|extension| extension == "wal");
                    assert!(is_log && applied == ENTRIES - 1, "{context}: {applied} entries are left");
                    count.1 += 1;
                }
                Outcome::Refused(named, told) => {
                    assert_eq!(named, path, "{context}");
                    let told = usize::try_from(told).unwrap();
                    // A page by its own offset; a log by where its valid part ends.
                    assert!(
                        told <= offset && (name.starts_with("log ") || told == at || name.len() < 11),
                        "{context}: {told}"
                    );
                    count.0 += 1;
                }
                Outcome::Apart => panic!("{context}: store and log are of one time"),
            }
        }
    }
    println!("{counts:?}");
    for name in ["tree page", "record block", "extent index"] {
        assert!(counts[name].0 >= 7, "a {name} is refused: {counts:?}");
    }
    for name in ["directory chunk", "directory root", "segment table"] {
        assert!(counts[name].0 == 0 && counts[name].1 >= 7, "the state before has others, and the log: {counts:?}");
    }
    for name in ["log header", "group head", "log entry"] {
        assert!(counts[name].0 >= 5, "a {name} is refused: {counts:?}");
    }
    assert_eq!(counts["superblock copy"], (0, 2 * SUPERBLOCK_FIELDS.len()), "either copy is redundant");
}

#[test]
fn a_block_that_cannot_be_read_is_refused_by_name_or_harmless() {
    let log = operations(24, ENTRIES, 40);
    let image = written(&log).pop().unwrap();
    let mut case = Case { log: &log, expected: BTreeMap::new() };
    let mut counts: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for path in image.paths() {
        for block in 0..image.content(&path).unwrap().len() / BLOCK {
            let (damaged, context) = (image.crash(), format!("block {block} of {}", path.display()));
            damaged.make_unreadable(&path, (block * BLOCK) as u64);
            let kind = path.extension().map_or("superblock".into(), |kind| kind.to_string_lossy());
            let count = counts.entry(kind.into_owned()).or_default();
            match case.open(&damaged, &context) {
                Outcome::Sound(ENTRIES) => count.1 += 1,
                Outcome::Refused(named, told) => {
                    assert_eq!(named, path, "{context}");
                    assert!(told / BLOCK as u64 <= block as u64, "{context}: {told}");
                    count.0 += 1;
                }
                other => panic!("{context}: {other:?}"),
            }
        }
    }
    assert_eq!(counts["superblock"].0, 0, "either copy is redundant");
    // Behind the end of the log, nothing is needed.
    assert!(counts["wal"].0 >= 10 && counts["wal"].1 >= 1, "{counts:?}");
    assert!(counts["seg"].0 >= 10, "{counts:?}");
}

/// The newest segment of the log: the last one whose header carries the sequence of its name.
fn newest_log(image: &SimStorage) -> PathBuf {
    let is_own = |path: &PathBuf| {
        let content = image.content(path).unwrap();
        path.extension().is_some_and(|extension| extension == "wal")
            && path.file_stem().unwrap().to_str().unwrap() == format!("{:08x}", word(&content, 12))
    };
    image.paths().into_iter().filter(is_own).max().expect("the log is in use")
}

/// Opens `damaged`, in which only files in `named` are not what they were; true if that was refused. What only the
/// newest log segment holds may be missing with it, if `may_end` says so: nothing else tells of it.
fn check_files(case: &mut Case<'_>, damaged: &SimStorage, named: &[&Path], may_end: bool, context: &str) -> bool {
    match case.open(damaged, context) {
        // A segment that nothing reaches, or the other half of what is redundant.
        Outcome::Sound(ENTRIES) => false,
        Outcome::Sound(applied) => {
            assert!(may_end, "{context}: only {applied} entries are left");
            false
        }
        Outcome::Refused(path, _) => {
            let is_near = |file: &&Path| path == **file || path.parent() == file.parent();
            assert!(named.iter().any(is_near), "{context}: {} is named", path.display());
            true
        }
        Outcome::Apart => true,
    }
}

#[test]
fn files_cut_short_swapped_or_missing_are_refused_by_name_or_were_not_needed() {
    let log = operations(22, ENTRIES, 40);
    let image = written(&log).pop().unwrap();
    let mut case = Case { log: &log, expected: BTreeMap::new() };
    let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
    let files: Vec<(PathBuf, Vec<u8>)> =
        image.paths().into_iter().map(|path| (path.clone(), image.content(&path).unwrap())).collect();
    let newest = newest_log(&image);
    for (number, (path, content)) in files.iter().enumerate() {
        let may_end = *path == newest;
        let cuts = [0, BLOCK, content.len() / 2 / BLOCK * BLOCK, content.len() - BLOCK, content.len() - 100];
        for cut in cuts {
            let (damaged, context) = (image.crash(), format!("{} cut to {cut} bytes", path.display()));
            damaged.replace(path, Some(&content[..cut]));
            *refused.entry("cut").or_default() +=
                usize::from(check_files(&mut case, &damaged, &[path], may_end, &context));
        }
        let (damaged, context) = (image.crash(), format!("{} is gone", path.display()));
        damaged.replace(path, None);
        *refused.entry("gone").or_default() +=
            usize::from(check_files(&mut case, &damaged, &[path], may_end, &context));
        for (other, other_content) in &files[number + 1..] {
            let (damaged, context) = (image.crash(), format!("{} and {} swapped", path.display(), other.display()));
            damaged.replace(path, Some(other_content));
            damaged.replace(other, Some(content));
            let is_refused = check_files(&mut case, &damaged, &[path, other], false, &context);
            *refused.entry("swapped").or_default() += usize::from(is_refused);
        }
    }
    println!("{refused:?}");
    assert!(refused.values().all(|count| *count >= 3), "{refused:?}");
}

#[test]
fn files_of_an_earlier_time_are_refused_or_bring_nothing_back() {
    let log = operations(23, ENTRIES, 40);
    let mut states = written(&log);
    let image = states.pop().unwrap();
    let mut case = Case { log: &log, expected: BTreeMap::new() };
    let newest = newest_log(&image);
    let mut refused = 0;
    for (number, state) in states.iter().enumerate() {
        for path in image.paths() {
            let Some(old) = state.content(&path).filter(|old| Some(old) != image.content(&path).as_ref()) else {
                continue;
            };
            let context = format!("{} of checkpoint {number}", path.display());
            let damaged = image.crash();
            damaged.replace(&path, Some(&old));
            match case.open(&damaged, &context) {
                Outcome::Sound(ENTRIES) => {}
                // The newest segment of the log, as it was before its last groups: nothing says that there were more.
                Outcome::Sound(applied) => assert_eq!(path, newest, "{context}: {applied} entries are left"),
                Outcome::Refused(..) | Outcome::Apart => refused += 1,
            }
        }
    }
    assert!(refused >= 2, "{refused} were refused");
    // Everything an earlier superblock file names may be gone: with the whole file of a much earlier time, too.
    let superblock = Path::new(DIR).join("superblock");
    let damaged = image.crash();
    damaged.replace(&superblock, states[0].content(&superblock).as_deref());
    assert!(!matches!(case.open(&damaged, "the first superblock"), Outcome::Sound(_)));
}
