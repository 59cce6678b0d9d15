//! What is left of a damaged store is read back: every key that is not named as lost is there, with the value that it
//! had, and no key comes back that was deleted.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use bytes::Bytes;
use engine::{
    Error, KeyRange, Mvcc, ReadView, Record,
    disk::{
        Disk,
        sim::{Random, SimStorage},
    },
    salvage::{Loss, Salvage},
};

use crate::{
    Structure,
    replay::{self, DIR, Operation, operations},
};

fn live(view: &ReadView) -> BTreeMap<Bytes, Record> {
    let at = view.revision();
    let mut cursor = view.cursor(&KeyRange::all(), at);
    let keys = std::iter::from_fn(|| cursor.next().unwrap()).map(|version| version.key);
    keys.map(|key| (key.clone(), view.get(&key, at).unwrap().unwrap())).collect()
}

#[derive(Debug, Default)]
struct Losses {
    pages: usize,
    /// Versions in the lost pages.
    live: usize,
    /// The root is one of them.
    has_root: bool,
    keys: BTreeSet<Bytes>,
    ranges: Vec<(Bytes, Option<Bytes>)>,
    history: usize,
    rows: Vec<(Bytes, Option<Bytes>)>,
}

impl Losses {
    fn take(&mut self, loss: &Loss) {
        match loss.clone() {
            Loss::Page { versions, .. } => {
                self.pages += 1;
                self.has_root |= versions.is_none();
                self.live += usize::try_from(versions.unwrap_or(0)).unwrap();
            }
            Loss::Key { key, .. } => drop(self.keys.insert(key)),
            Loss::Keys { from, to, .. } => self.ranges.push((from, to)),
            Loss::History { .. } => self.history += 1,
            Loss::Rows { from, to } => self.rows.push((from, to)),
        }
    }

    fn names(&self, key: &Bytes) -> bool {
        self.keys.contains(key) || is_in(&self.ranges, key)
    }
}

fn is_in(ranges: &[(Bytes, Option<Bytes>)], key: &Bytes) -> bool {
    ranges.iter().any(|(from, to)| key >= from && to.as_ref().is_none_or(|to| key <= to))
}

/// Reads back the store in `storage`, and compares it with `model`. `None` if it cannot be opened.
fn read_back(storage: &SimStorage, model: &ReadView, context: &str) -> Option<Losses> {
    let mut disk = storage.disk();
    let mut losses = Losses::default();
    let lock = disk.lock(Path::new(DIR)).unwrap();
    let mut salvage = match Salvage::open(&mut disk, Path::new(DIR), &lock, &mut |loss| losses.take(loss)) {
        Ok(salvage) => salvage,
        Err(Error::Corrupt { .. } | Error::Io { .. }) => return None,
        Err(error) => panic!("{context}: {error}"),
    };
    let mut copy = Mvcc::in_memory();
    let mut load = |record: Record| {
        copy.load(record).unwrap();
        Ok::<(), Error>(())
    };
    salvage.records(&mut disk, &mut load).unwrap();
    copy.load_end(salvage.revision(), salvage.compact_revision());
    let view = copy.publish(1, 1);
    assert_eq!(view.revision(), model.revision(), "{context}");
    let (expected, found) = (live(model), live(&view));
    for (key, record) in &found {
        assert_eq!(expected.get(key), Some(record), "{context}: {key:?} is not as it was");
    }
    for key in expected.keys() {
        assert!(found.contains_key(key) || losses.names(key), "{context}: {key:?} is lost, and nobody says so");
    }
    if losses.keys.is_empty() && losses.ranges.is_empty() && losses.history == 0 {
        let mut revision = model.compact_revision().max(1);
        while revision <= model.revision() {
            let hash = |view: &ReadView| view.hash_kv(revision).step(view, usize::MAX).unwrap().unwrap();
            assert_eq!(hash(&view), hash(model), "{context}: the history at {revision}");
            revision += 1 + (model.revision() - revision) / 5;
        }
    } else {
        assert_eq!(view.compact_revision(), view.revision(), "{context}: no history is told that may not be whole");
    }
    let mut rows = BTreeMap::new();
    salvage.rows(&mut disk, &mut |key, value| drop(rows.insert(key, value))).unwrap();
    let mut cursor = model.meta_cursor(b"");
    while let Some((key, value)) = cursor.next().unwrap() {
        let found = rows.remove(&key);
        assert!(found == Some(value) || (found.is_none() && is_in(&losses.rows, &key)), "{context}: row {key:?}");
    }
    assert!(rows.is_empty());
    Some(losses)
}

/// A store after `log`. If `is_swept`, everything that its compactions have dropped is gone from its trees.
fn written(log: &[Operation], is_swept: bool) -> SimStorage {
    let storage = SimStorage::new(1);
    let mut member = replay::Member::open(&storage, replay::options(1), &[], 0).unwrap();
    while member.applied < log.len() {
        member.apply(log).unwrap();
        let applied = member.applied;
        if applied.is_multiple_of(37) {
            member.sweep(60).unwrap();
            member.reclaim(64).unwrap();
        }
        if applied.is_multiple_of(60) || applied == log.len() {
            member.checkpoint().unwrap();
        }
    }
    while is_swept && !member.sweep(1000).unwrap() {}
    member.store.mvcc_mut().publish(log.len() as u64, replay::term(log.len() as u64));
    member.checkpoint().unwrap();
    member.checkpoint().unwrap();
    storage
}

fn harm(storage: &SimStorage, random: &mut Random, pages: &[Structure]) -> (PathBuf, usize) {
    let page = &pages[usize::try_from(random.below(pages.len() as u64)).unwrap()];
    let offset = page.at + page.fields[usize::try_from(random.below(page.fields.len() as u64)).unwrap()];
    if random.chance(1, 3) {
        storage.make_unreadable(&page.path, offset as u64);
    } else {
        storage.damage(&page.path, offset as u64, |sector| sector[offset % 512] ^= 1 << random.below(8));
    }
    (page.path.clone(), offset)
}

fn is_of_store(found: &Structure) -> bool {
    found.path.extension().is_some_and(|kind| kind == "seg")
}

#[test]
fn a_lost_page_of_the_tree_is_made_again_from_the_records() {
    let (mut pages, mut whole, mut keys, mut live) = (0, 0, 0, 0);
    for seed in 0..6 {
        let log = operations(500 + seed, 600 + 300 * usize::try_from(seed).unwrap(), 100 + 200 * seed);
        let storage = written(&log, true);
        let model = replay::model(&log).view();
        let structures = crate::structures(&storage);
        for page in structures.into_iter().filter(|found| is_of_store(found) && found.name == "tree page") {
            let harmed = storage.crash();
            harmed.make_unreadable(&page.path, page.at as u64);
            let losses = read_back(&harmed, &model, &format!("seed {seed}, {page:?}")).unwrap();
            // Nothing counts what lies below a root.
            if losses.pages > 0 && !losses.has_root {
                pages += 1;
                whole += usize::from(losses.keys.is_empty() && losses.history == 0);
                keys += losses.keys.len();
                live += losses.live;
            }
            assert!(losses.ranges.is_empty(), "no record is lost");
        }
    }
    println!("{pages} pages were lost, {whole} of them made again whole; {keys} keys of {live} versions are in doubt");
    assert!(pages >= 20 && whole >= 4 && keys < live / 10, "most of it is made again");
}

#[test]
fn what_is_left_is_read_back_and_what_is_not_is_named() {
    const CASES: u64 = 400;
    let (mut pages, mut keys, mut ranges, mut closed) = (0, 0, 0, 0);
    for seed in 0..4 {
        let log = operations(300 + seed, 400 + 400 * usize::try_from(seed).unwrap(), 100 + 300 * seed);
        let storage = written(&log, seed % 2 == 0);
        let model = replay::model(&log).view();
        let losses = read_back(&storage.crash(), &model, "whole").unwrap();
        assert!(losses.pages == 0 && losses.keys.is_empty() && losses.history == 0);
        let structures: Vec<Structure> = crate::structures(&storage).into_iter().filter(is_of_store).collect();
        let mut random = Random::new(seed);
        for case in 0..CASES / 4 {
            let harmed = storage.crash();
            let harms: Vec<_> = (0..1 + case % 9).map(|_| harm(&harmed, &mut random, &structures)).collect();
            let Some(losses) = read_back(&harmed, &model, &format!("seed {seed}, {harms:?}")) else {
                closed += 1;
                continue;
            };
            pages += losses.pages;
            keys += losses.keys.len();
            ranges += losses.ranges.len();
        }
    }
    println!("{closed} closed, {pages} pages made again, {keys} keys lost, {ranges} ranges");
    assert!(pages > 20 && keys > 50 && ranges > 0 && closed < 40);
}
