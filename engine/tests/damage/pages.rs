//! A store with damage goes on: it applies, sweeps, empties segments and checkpoints around the damage. Whatever is
//! asked of it is answered rightly, or refused with the damaged file and the place. Nothing else is lost, and what it
//! has gone round once it does not ask for again.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use engine::{
    Error, Fault, KeyRange, Mvcc, PageReader, ReadView, Store,
    disk::{
        Disk, FileOp,
        sim::{Random, SimDisk, SimStorage},
    },
    load_for,
};

use crate::{
    Structure,
    replay::{self, DIR, Operation, apply, operations, options},
};

/// What is wrong with the medium.
#[derive(Clone, Debug)]
struct Harm {
    path: PathBuf,
    offset: u64,
    is_flipped: bool,
}

impl Harm {
    fn do_to(&self, storage: &SimStorage) {
        let at = usize::try_from(self.offset % 512).unwrap();
        if self.is_flipped {
            storage.damage(&self.path, self.offset, |sector| sector[at] ^= 1 << (self.offset % 8));
        } else {
            storage.make_unreadable(&self.path, self.offset);
        }
    }

    /// Asserts that `error` is about this damage.
    fn explains(&self, error: &Error) {
        let (path, offset) = match error {
            Error::Corrupt { path, offset, .. } => (path, *offset),
            Error::Io { path, op: FileOp::Read, .. } => (path, 0),
            other => panic!("{self:?} is no reason for {other}"),
        };
        assert!(path == &self.path && offset <= self.offset + 512, "{error} is not {self:?}");
    }
}

/// A store with the model that it must not be told from, where it answers.
struct Harmed {
    harm: Harm,
    disk: SimDisk,
    store: Store,
    reader: PageReader,
    model: Mvcc,
    applied: u64,
    refused: usize,
    reads: u64,
}

impl Harmed {
    /// The store in `storage`, whose content is `model`'s.
    fn open(storage: &SimStorage, model: Mvcc, applied: u64, harm: Harm) -> Result<Self, Error> {
        let mut disk = storage.disk();
        let store = Store::open(&mut disk, Path::new(DIR), options(1))?;
        assert_eq!(store.applied().0, applied);
        let reader = PageReader::new(Path::new(DIR), 4, 4, Arc::clone(store.unreadable()));
        Ok(Self { harm, disk, store, reader, model, applied, refused: 0, reads: 0 })
    }

    fn apply(&mut self, operation: &Operation) {
        let index = self.applied + 1;
        let (reader, disk) = (&mut self.reader, &mut self.disk);
        match apply(self.store.mvcc_mut(), index, operation, |fault| read(reader, disk, fault)) {
            Ok(()) => {
                self.applied = index;
                apply(&mut self.model, index, operation, |_| unreachable!("all is in memory")).unwrap();
            }
            Err(error) => {
                self.harm.explains(&error);
                self.refused += 1;
            }
        }
        self.store.evict(4);
    }

    /// Reads what upkeep asks for. It asks once for each page that cannot be read.
    fn read_for_upkeep(&mut self, faults: Vec<Fault>) {
        assert!(!faults.is_empty(), "what stops has to be read");
        for fault in faults {
            assert!(!self.store.unreadable().avoids(fault.place()), "{fault:?} is known to be unreadable");
            self.reads += 1;
            if let Err(error) = read(&mut self.reader, &mut self.disk, fault) {
                self.harm.explains(&error);
            }
        }
        assert!(self.reads < 100_000, "upkeep gets on");
    }

    /// Sweeps until there is nothing left to drop.
    fn sweep(&mut self) {
        loop {
            match self.store.sweep(50) {
                Ok(progress) if progress.is_done => return,
                Ok(_) => {}
                Err(fault) => self.read_for_upkeep(vec![fault]),
            }
        }
    }

    fn checkpoint(&mut self) {
        let view = self.store.mvcc().view();
        self.store.mvcc_mut().publish(view.applied_index(), view.applied_term());
        let done = self.store.checkpoint_begin().run(&mut self.disk).unwrap();
        done.unread().iter().for_each(|error| self.harm.explains(error));
        self.store.checkpoint_end(done);
    }

    fn reclaim(&mut self, now: Duration) {
        loop {
            match self.store.reclaim(now, 16) {
                Ok(true) => {}
                Ok(false) => return,
                Err(faults) => self.read_for_upkeep(faults),
            }
        }
    }

    fn defragment(&mut self) {
        self.store.defragment();
        for round in 0..1000_u32 {
            self.reclaim(Duration::from_secs(round.into()));
            if self.store.wants_checkpoint() {
                self.checkpoint();
            } else if !self.store.is_defragmenting() {
                return;
            }
        }
        panic!("a defragmentation ends");
    }

    /// Compares every key and every entry of the meta tree. Returns how many could not be read.
    fn check(&mut self) -> usize {
        let (model, view) = (self.model.view(), self.store.mvcc().view());
        assert_eq!((model.revision(), model.applied_index()), (view.revision(), view.applied_index()));
        let mut lost = 0;
        let at = model.revision();
        for key in keys(&model, at) {
            match load_for(&mut self.disk, Path::new(DIR), || view.get(&key, at)) {
                Ok(found) => assert_eq!(found, model.get(&key, at).unwrap(), "{key:?}"),
                Err(error) => {
                    self.harm.explains(&error);
                    lost += 1;
                }
            }
        }
        let mut rows = model.meta_cursor(b"");
        while let Some((key, value)) = rows.next().unwrap() {
            match load_for(&mut self.disk, Path::new(DIR), || view.meta_get(&key)) {
                Ok(found) => assert_eq!(found, Some(value)),
                Err(error) => self.harm.explains(&error),
            }
        }
        lost
    }
}

fn keys(view: &ReadView, at: i64) -> Vec<Bytes> {
    let mut cursor = view.cursor(&KeyRange::all(), at);
    std::iter::from_fn(|| cursor.next().unwrap()).map(|version| version.key).collect()
}

fn read(reader: &mut PageReader, disk: &mut SimDisk, fault: Fault) -> Result<(), Error> {
    reader.read(fault, 7);
    let mut completions = Vec::new();
    loop {
        let mut loaded = reader.step(disk);
        disk.kick().unwrap();
        if loaded.is_empty() {
            disk.wait().unwrap();
            disk.completions(&mut completions);
            completions.drain(..).for_each(|completion| loaded.extend(reader.on_completion(completion)));
        }
        if let Some(loaded) = loaded.pop() {
            return loaded.result;
        }
    }
}

/// A store after `log`. Its last state is in a checkpoint.
fn written(log: &[Operation]) -> SimStorage {
    let storage = SimStorage::new(1);
    let mut member = replay::Member::open(&storage, options(1), &[], 0).unwrap();
    while member.applied < log.len() {
        member.apply(log).unwrap();
        if member.applied.is_multiple_of(60) || member.applied == log.len() {
            member.checkpoint().unwrap();
        }
    }
    member.checkpoint().unwrap();
    storage
}

/// What came of the damage.
#[derive(Debug, Default)]
struct Outcome {
    /// Cases in which the store did not open.
    closed: usize,
    /// Cases with keys that could not be read.
    lost: usize,
    /// Operations that were refused.
    refused: usize,
    /// Cases in which a segment was left.
    left: usize,
}

/// Lets a harmed store live on.
fn live(storage: &SimStorage, log: &[Operation], more: &[Operation], harm: &Harm, outcome: &mut Outcome) {
    harm.do_to(storage);
    let opened = Harmed::open(storage, replay::model(log), log.len() as u64, harm.clone());
    let mut harmed = match opened {
        Ok(harmed) => harmed,
        Err(error) => {
            harm.explains(&error);
            outcome.closed += 1;
            return;
        }
    };
    let before = harmed.check();
    for (number, operation) in more.iter().enumerate() {
        harmed.apply(operation);
        if number % 10 == 9 {
            harmed.sweep();
            harmed.reclaim(Duration::from_secs(number as u64));
            if harmed.store.wants_checkpoint() || number % 30 == 29 {
                harmed.checkpoint();
            }
        }
    }
    harmed.sweep();
    harmed.defragment();
    let is_left = !harmed.store.left_segments().is_empty();
    let lost = harmed.check();
    assert!(lost <= before, "{harm:?}: {lost} keys cannot be read, {before} could not before");
    outcome.lost += usize::from(lost > 0);
    outcome.left += usize::from(is_left);
    let Harmed { model, applied, refused, store, .. } = harmed;
    outcome.refused += refused;
    drop(store);
    let mut again = Harmed::open(storage, model, applied, harm.clone()).unwrap();
    assert_eq!(again.check(), lost);
    again.defragment();
    assert_eq!(again.check(), lost);
}

/// A store after `count` operations over `keys` keys, with one place harmed in each of `cases` cases.
fn harm_everywhere(seed: u64, count: usize, keys: u64, cases: usize) -> Outcome {
    let (log, more) = (operations(seed, count, keys), operations(seed + 1, 150, keys));
    let storage = written(&log);
    let files: Vec<PathBuf> = storage.paths().into_iter().filter(|path| path.starts_with("/data/pages")).collect();
    let mut random = Random::new(seed);
    let mut outcome = Outcome::default();
    for case in 0..cases {
        let path = files[usize::try_from(random.below(files.len() as u64)).unwrap()].clone();
        let bytes = storage.content(&path).unwrap();
        let used = bytes.len() - bytes.iter().rev().take_while(|byte| **byte == 0).count();
        let harm = Harm { path, offset: random.below(used.max(1) as u64), is_flipped: case % 3 > 0 };
        live(&storage.crash(), &log, &more, &harm, &mut outcome);
    }
    println!("seed {seed}: {outcome:?} of {cases}");
    outcome
}

#[test]
fn a_store_whose_directory_has_a_hole_goes_on_around_it() {
    let (seed, keys) = (45, 6000);
    let (log, more) = (operations(seed, 7000, keys), operations(seed + 1, 150, keys));
    let storage = written(&log);
    let mut outcome = Outcome::default();
    let chunks: Vec<Structure> =
        crate::structures(&storage).into_iter().filter(|found| found.name == "directory chunk").collect();
    let cases = chunks.len();
    for (number, Structure { path, at, .. }) in chunks.into_iter().enumerate() {
        let harm = Harm { path, offset: at as u64 + 20, is_flipped: number % 2 == 0 };
        live(&storage.crash(), &log, &more, &harm, &mut outcome);
    }
    println!("{outcome:?} of {cases}");
    assert!(outcome.lost > 0 && outcome.closed == 0, "a chunk that both states have was met");
}

#[test]
fn a_store_with_one_damaged_place_goes_on_around_it() {
    for (seed, count, keys, cases) in [(41, 420, 120, 150), (43, 2500, 2000, 60)] {
        let Outcome { lost, refused, left, .. } = harm_everywhere(seed, count, keys, cases);
        assert!(lost > cases / 20 && refused > cases / 20 && left > cases / 20, "the damage was met");
    }
}
