//! Walks over many cold keys: they read what lies side by side at once, leave little behind, and read on where a common
//! read failed.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

use std::{io::ErrorKind, path::Path, sync::Arc};

use bytes::Bytes;
use engine::{
    Fault, Fingers, KeyRange, Met, PageReader, Store,
    disk::{
        Disk,
        sim::{Order, SimDisk, SimStorage},
    },
    store::Options,
};

const DIR: &str = "/data";
const KEYS: u32 = 80_000;
const STEP: usize = 1000;

fn key(number: u32) -> Bytes {
    // Long enough that a leaf holds about 50.
    format!("registry/pods/{number:07}-{:060}", number.wrapping_mul(2_654_435_761)).into()
}

fn value(number: u32) -> Bytes {
    format!("value of {number}").into()
}

/// Puts every `step`th key from `first` on.
fn put(store: &mut Store, disk: &mut dyn Disk, index: u64, first: u32, step: u32) {
    for number in (first..KEYS).step_by(step as usize) {
        engine::load_for(disk, Path::new(DIR), || store.mvcc_mut().touch(&key(number))).unwrap();
        let mut write = store.mvcc_mut().begin();
        write.put(key(number), value(number), 0).unwrap();
        drop(write.finish());
    }
    drop(store.mvcc_mut().publish(index, 1));
}

fn checkpoint(store: &mut Store, disk: &mut SimDisk) {
    let done = store.checkpoint_begin().run(disk).unwrap();
    store.checkpoint_end(done);
}

/// A store of which nothing is in memory, its keys written in seven rounds, so that neighbours are in different
/// extents.
fn cold(storage: &SimStorage) -> Store {
    let mut disk = storage.disk();
    let mut store = Store::open(&mut disk, Path::new(DIR), Options::default()).unwrap();
    for round in 0..7 {
        put(&mut store, &mut disk, u64::from(round) + 1, round, 7);
    }
    checkpoint(&mut store, &mut disk);
    drop(store);
    Store::open(&mut disk, Path::new(DIR), Options::default()).unwrap()
}

/// Reads what faults name, several at once.
struct Pages {
    storage: SimStorage,
    disk: SimDisk,
    reader: PageReader,
    /// Operations so far, and the pages that they brought.
    reads: u64,
    pages: usize,
    /// Fails each operation with this number among so many.
    fails_every: Option<u64>,
}

impl Pages {
    fn new(storage: &SimStorage) -> Self {
        storage.set_order(Order::Manual);
        let (disk, reader) = (storage.disk(), PageReader::new(Path::new(DIR), 4, 4, Arc::default()));
        Self { storage: storage.clone(), disk, reader, reads: 0, pages: 0, fails_every: None }
    }

    /// How many of the pages could not be read.
    fn load(&mut self, faults: Vec<Fault>) -> usize {
        faults.into_iter().zip(0..).for_each(|(fault, ticket)| self.reader.read(fault, ticket));
        let mut failed = 0;
        while !self.reader.is_idle() {
            assert!(self.reader.step(&mut self.disk).is_empty(), "every file is there");
            let mut completions = Vec::new();
            for operation in self.storage.in_flight() {
                self.reads += 1;
                match self.fails_every {
                    Some(every) if self.reads.is_multiple_of(every) => {
                        self.storage.fail(operation.number, ErrorKind::Other);
                    }
                    _ => self.storage.complete(operation.number),
                }
            }
            self.disk.completions(&mut completions);
            for loaded in completions.into_iter().flat_map(|completion| self.reader.on_completion(completion)) {
                self.pages += 1;
                failed += usize::from(loaded.result.is_err());
            }
        }
        failed
    }
}

/// Walks over all keys in steps, each on the newest view; between them `meanwhile` has its way. The keys.
fn walk(store: &mut Store, pages: &mut Pages, mut meanwhile: impl FnMut(&mut Store, &mut Pages)) -> Vec<u8> {
    let view = store.mvcc().view();
    let mut cursor = view.cursor(&KeyRange::all(), view.revision());
    drop(view);
    let mut keys = Vec::new();
    loop {
        let view = store.mvcc().view();
        view.lead(&mut cursor);
        let mut budget = STEP;
        loop {
            match cursor.next_within(&mut budget) {
                Ok(Met::Live(outline)) => {
                    let before = keys.len();
                    cursor.push_key(&mut keys);
                    assert_eq!(keys.len() - before, outline.key_bytes);
                }
                Ok(Met::End) => return keys,
                Ok(Met::Paused) => break,
                Err(fault) => drop(pages.load(cursor.wanted(fault, 16))),
            }
        }
        drop(view);
        meanwhile(store, pages);
    }
}

fn all_keys() -> Vec<u8> {
    (0..KEYS).flat_map(key).collect()
}

#[test]
fn a_long_walk_reads_neighbours_at_once_and_leaves_only_its_beginning() {
    let storage = SimStorage::new(1);
    let mut store = cold(&storage);
    let mut pages = Pages::new(&storage);
    assert!(walk(&mut store, &mut pages, |_, _| {}) == all_keys());
    let (leaves, kept) = (pages.pages, store.mvcc().node_bytes());
    assert!(leaves > 1000, "{leaves} pages");
    assert!(pages.reads < leaves as u64 / 8, "{} reads of {leaves} pages", pages.reads);
    // 512 leaves of 4 KiB and their slots, and the nodes above all.
    assert!(kept < 4 << 20, "{kept} bytes are kept");
    // Another walk finds the beginning there, and leaves a little more.
    let before = pages.pages;
    assert!(walk(&mut store, &mut pages, |_, _| {}) == all_keys());
    let again = pages.pages - before;
    assert!((leaves / 4..leaves * 3 / 4).contains(&again), "{again} of {leaves} pages were read again");
}

#[test]
fn a_walk_whose_leaves_are_its_own_goes_on_in_newer_trees() {
    let storage = SimStorage::new(2);
    let mut store = cold(&storage);
    let mut pages = Pages::new(&storage);
    let mut round = 7;
    let keys = walk(&mut store, &mut pages, |store, pages| {
        round += 1;
        if round % 5 == 0 {
            // Some of the leaves that it holds or will come to are other ones now.
            pages.storage.set_order(Order::Submission);
            put(store, &mut pages.storage.disk(), round, u32::try_from(round).unwrap() * 37 % 1000, 1000);
            if round % 20 == 0 {
                checkpoint(store, &mut pages.storage.disk());
            }
            pages.storage.set_order(Order::Manual);
        }
    });
    assert!(keys == all_keys(), "the revision it began at shows all keys, and none twice");
}

#[test]
fn pages_whose_common_read_failed_are_read_one_by_one() {
    let storage = SimStorage::new(3);
    let mut store = cold(&storage);
    let mut pages = Pages::new(&storage);
    pages.fails_every = Some(3);
    let view = store.mvcc().view();
    let mut cursor = view.cursor(&KeyRange::all(), view.revision());
    let (mut keys, mut failed) = (Vec::new(), 0);
    loop {
        match cursor.next_within(&mut usize::MAX.clone()) {
            Ok(Met::Live(_)) => cursor.push_key(&mut keys),
            Ok(Met::End) => break,
            Ok(Met::Paused) => unreachable!("the budget has no end"),
            // What could not be read is wanted again.
            Err(fault) => failed += pages.load(cursor.wanted(fault, 16)),
        }
    }
    assert!(keys == all_keys());
    assert!(failed > 0 && failed < pages.pages / 2, "{failed} of {} pages", pages.pages);
    drop(view);
    pages.fails_every = None;
    assert!(walk(&mut store, &mut pages, |_, _| {}) == all_keys());
}

#[test]
fn records_of_a_long_walk_are_read_a_few_blocks_at_once() {
    let storage = SimStorage::new(4);
    let store = cold(&storage);
    let view = store.mvcc().view();
    let mut read = [0, 0];
    for (is_long, read) in [false, true].into_iter().zip(&mut read) {
        let mut pages = Pages::new(&storage);
        let mut cursor = view.cursor(&KeyRange::all(), view.revision());
        let mut fingers = Fingers::default();
        for number in 0..KEYS {
            let version = loop {
                match cursor.next() {
                    Ok(version) => break version.unwrap(),
                    Err(fault) => drop(pages.load(cursor.wanted(fault, 16))),
                }
            };
            let before = pages.reads;
            let record = loop {
                match view.locate(&version.key, version.revision, &mut fingers) {
                    Ok(found) => break found.unwrap().to_record(),
                    Err(fault) if is_long => drop(pages.load(fault.scanning(0).with_ahead().collect())),
                    Err(fault) => drop(pages.load(vec![fault.scanning(0)])),
                }
            };
            *read += pages.reads - before;
            assert_eq!((record.key, record.value), (key(number), value(number)));
        }
    }
    assert!(read[1] < read[0] * 2 / 3, "{read:?} operations, a block at a time and a few at once");
}

#[test]
fn a_delete_needs_no_leaf_that_holds_only_former_versions() {
    let (storage, dir) = (SimStorage::new(4), Path::new(DIR));
    let mut disk = storage.disk();
    let mut store = Store::open(&mut disk, dir, Options::default()).unwrap();
    for round in 0..150 {
        let mut write = store.mvcc_mut().begin();
        for number in 0..20 {
            write.put(key(number), value(round), 0).unwrap();
        }
        drop(write.finish());
        drop(store.mvcc_mut().publish(u64::from(round) + 1, 1));
    }
    checkpoint(&mut store, &mut disk);
    drop(store);
    let mut store = Store::open(&mut disk, dir, Options::default()).unwrap();
    let all = KeyRange { start: key(0), end: engine::RangeEnd::Before(key(20)) };
    // As an entry is touched before it is applied: each live key, and what is between them.
    engine::load_for(&mut disk, dir, || {
        let view = store.mvcc().live();
        let mut cursor = view.cursor(&all, view.revision());
        while let Some(version) = cursor.next()? {
            view.touch(&version.key)?;
        }
        Ok(())
    })
    .unwrap();
    let mut write = store.mvcc_mut().begin();
    let (mut left, mut deleted) = (all, 0);
    loop {
        let ended = write.delete_some(&left).expect("it was touched");
        let Some(last) = ended.last() else { break };
        deleted += ended.len();
        left = left.after(&last.key);
    }
    assert_eq!(deleted, 20);
    drop(write.finish());
}
