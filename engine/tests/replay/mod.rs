//! A log of operations that stands for the WAL, and what the store must hold after any prefix of it.
//!
//! The model is a reference `Mvcc` that never touches a disk; that it means what etcd means is `model.rs`'s to show.
//! Here a store that was checkpointed, crashed, reopened and replayed must not be told from it.

use std::{path::Path, time::Duration};

use bytes::Bytes;
use engine::{
    Checkpoint, Error, Fault, KeyRange, Mvcc, Progress, RangeEnd, ReadView, Record, Revision, Store,
    disk::{
        Disk, FileOp, Owner,
        sim::{Random, SimDisk, SimStorage},
    },
    load_for,
    store::Options,
};

pub(crate) const DIR: &str = "/data";

pub(crate) fn options(shards: usize) -> Options {
    Options {
        segment_bytes: 64 << 10,
        write_bytes: 8 << 10,
        writes_in_flight_max: 3,
        record_block_bytes: 1 << 10,
        // Smaller than one block: readers live on what was resolved last.
        cache_bytes: 2048,
        shards,
        reclaim_bytes_per_second: 1 << 20,
        reclaim_bytes_max: 96 << 10,
        fresh_id: 7,
    }
}

/// One entry of the log.
#[derive(Clone, Debug)]
pub(crate) enum Operation {
    /// Changes in one revision.
    Write(Vec<Change>),
    /// Deletes all keys from the first up to the second, in one revision and in several steps.
    DeleteMany(Bytes, Bytes),
    Meta(Bytes, Option<Bytes>),
    /// Compacts to this many parts in a hundred of the way from the compacted to the current revision.
    Compact(i64),
    Nothing,
}

#[derive(Clone, Debug)]
pub(crate) enum Change {
    Put(Bytes, Bytes),
    Delete(Bytes),
}

fn key(random: &mut Random, keys: u64) -> Bytes {
    let number = random.below(keys);
    match number % 5 {
        0 => Bytes::from(vec![0xff, u8::try_from(number % 256).unwrap(), 0x00]),
        1 => Bytes::from(format!("/registry/pods/{}/{number}", "n".repeat(200))),
        _ => Bytes::from(format!("/registry/pods/default/{number}")),
    }
}

fn value(random: &mut Random) -> Bytes {
    let len = match random.below(40) {
        0 => 20_000,
        1..=6 => 0,
        7..=14 => 900,
        _ => random.below(100),
    };
    let fill = u8::try_from(random.below(256)).unwrap();
    Bytes::from(vec![fill; usize::try_from(len).unwrap()])
}

/// `count` random operations.
pub(crate) fn operations(seed: u64, count: usize, keys: u64) -> Vec<Operation> {
    let mut random = Random::new(seed);
    let random = &mut random;
    (0..count)
        .map(|_| match random.below(20) {
            0 => Operation::Compact(random.below(101).cast_signed()),
            1 => Operation::Nothing,
            2 if random.chance(1, 2) => {
                let first = format!("/registry/pods/default/{}", random.below(keys).max(keys / 50));
                Operation::DeleteMany(first.clone().into(), format!("{first}:").into())
            }
            2..5 => {
                let name = Bytes::from(format!("lease/{}", random.below(12)));
                let value = random.chance(3, 4).then(|| value(random).slice(..0).into_iter().chain([1, 2]).collect());
                Operation::Meta(name, value)
            }
            _ => {
                let changes = 1 + random.below(4);
                let change = |random: &mut Random| match random.below(4) {
                    0 => Change::Delete(key(random, keys)),
                    _ => Change::Put(key(random, keys), value(random)),
                };
                Operation::Write((0..changes).map(|_| change(random)).collect())
            }
        })
        .collect()
}

/// Applies the entry at `index` and publishes it; faults are resolved by `read`.
pub(crate) fn apply(
    mvcc: &mut Mvcc,
    index: u64,
    operation: &Operation,
    mut read: impl FnMut(Fault) -> Result<(), Error>,
) -> Result<(), Error> {
    while !apply_step(mvcc, index, operation, &mut read)? {}
    Ok(())
}

/// Keys that a step of [`Operation::DeleteMany`] deletes, at most.
const STEP_KEYS: usize = 2;

/// Deletes the first keys of `range`. Returns whether that were all.
fn delete_step(mvcc: &mut Mvcc, range: &KeyRange) -> Result<bool, Fault> {
    let mut next = mvcc.live().cursor(range, i64::MAX);
    let mut end = None;
    for _ in 0..=STEP_KEYS {
        end = next.next()?;
    }
    let is_last = end.is_none();
    let end = end.map_or(range.end.clone(), |end| RangeEnd::Before(end.key));
    let step = KeyRange { start: range.start.clone(), end };
    let mut write = mvcc.begin();
    loop {
        // Every version has the lease 5.
        let is_by_lease = range.start.len().is_multiple_of(2);
        match if is_by_lease { write.end_some_of(5, &step) } else { write.end_some(&step, |_| {}) } {
            Ok(None) => break,
            Ok(Some(_)) => {}
            Err(fault) => {
                write.pause();
                return Err(fault);
            }
        }
    }
    if is_last {
        write.finish()
    } else {
        write.pause()
    };
    Ok(is_last)
}

/// A step of [`apply`]. Returns whether it was the last. Otherwise what was done is published, and nobody sees it.
fn apply_step(
    mvcc: &mut Mvcc,
    index: u64,
    operation: &Operation,
    mut read: impl FnMut(Fault) -> Result<(), Error>,
) -> Result<bool, Error> {
    let mut settle = |mvcc: &mut Mvcc, step: &mut dyn FnMut(&mut Mvcc) -> Result<(), Fault>| loop {
        match step(mvcc) {
            Ok(()) => return Ok::<(), Error>(()),
            Err(fault) => read(fault)?,
        }
    };
    match operation {
        Operation::DeleteMany(from, to) => {
            let range = KeyRange { start: from.clone(), end: RangeEnd::Before(to.clone()) };
            if !mvcc.is_unfinished() {
                // What cannot be read is met before anything is changed.
                settle(mvcc, &mut |mvcc| {
                    let mut cursor = mvcc.live().cursor(&range, i64::MAX);
                    while let Some(version) = cursor.next()? {
                        mvcc.touch(&version.key)?;
                    }
                    Ok(())
                })?;
            }
            let mut is_done = false;
            settle(mvcc, &mut |mvcc| delete_step(mvcc, &range).map(|done| is_done = done))?;
            if !is_done {
                let view = mvcc.view();
                let now = mvcc.publish(view.applied_index(), view.applied_term());
                assert_eq!(now.revision(), view.revision(), "nothing of it is seen yet");
                return Ok(false);
            }
        }
        Operation::Write(changes) => {
            for change in changes {
                let (Change::Put(key, _) | Change::Delete(key)) = change;
                settle(mvcc, &mut |mvcc| mvcc.touch(key))?;
            }
            let mut write = mvcc.begin();
            for change in changes {
                match change {
                    Change::Put(key, value) => drop(write.put(key.clone(), value.clone(), 5).expect("touched")),
                    Change::Delete(key) => drop(write.delete(key).expect("touched")),
                }
            }
            write.finish();
        }
        Operation::Meta(key, value) => {
            settle(mvcc, &mut |mvcc| mvcc.touch_meta(key))?;
            let mut change = |mvcc: &mut Mvcc| {
                let mut write = mvcc.begin();
                match value {
                    Some(value) => write.meta_put(key, value)?,
                    None => drop(write.meta_delete(key)?),
                }
                write.finish();
                Ok(())
            };
            settle(mvcc, &mut change)?;
        }
        Operation::Compact(parts) => {
            let view = mvcc.view();
            let compacted = view.compact_revision().max(0);
            let to = compacted + (view.revision() - compacted) * parts / 100;
            if to > view.compact_revision() && to > 0 {
                mvcc.compact(to);
            }
        }
        Operation::Nothing => {}
    }
    mvcc.publish(index, term(index));
    Ok(true)
}

/// What the store must be after `operations`.
pub(crate) fn model(operations: &[Operation]) -> Mvcc {
    let mut mvcc = Mvcc::in_memory();
    for (index, operation) in (1..).zip(operations) {
        apply(&mut mvcc, index, operation, |_| unreachable!("everything is in memory")).unwrap();
    }
    mvcc
}

/// Everything a view shows at its revision and at the compacted one.
#[derive(Debug, PartialEq)]
pub(crate) struct Shown {
    revision: i64,
    compact_revision: i64,
    applied: (u64, u64),
    counts: Vec<u64>,
    live: Vec<Vec<Record>>,
    /// From the compacted revision on: below it, what is stored depends on how far the sweep came.
    history: Vec<Record>,
    meta: Vec<(Bytes, Bytes)>,
    hashes: Vec<(u32, i64)>,
}

pub(crate) fn shown(view: &ReadView, disk: &mut dyn Disk) -> Result<Shown, Error> {
    shown_in(Path::new(DIR), view, disk)
}

pub(crate) fn shown_in(dir: &Path, view: &ReadView, disk: &mut dyn Disk) -> Result<Shown, Error> {
    let revisions = [view.revision(), view.compact_revision().max(1)];
    let mut shown = Shown {
        revision: view.revision(),
        compact_revision: view.compact_revision(),
        applied: (view.applied_index(), view.applied_term()),
        counts: Vec::new(),
        live: Vec::new(),
        history: Vec::new(),
        meta: Vec::new(),
        hashes: Vec::new(),
    };
    for at in revisions {
        shown.counts.push(load_for(disk, dir, || view.count(&KeyRange::all(), at))?);
        let mut cursor = view.cursor(&KeyRange::all(), at);
        let mut live = Vec::new();
        while let Some(version) = load_for(disk, dir, || cursor.next())? {
            let record = load_for(disk, dir, || view.get(&version.key, at))?.expect("the cursor shows live keys");
            assert_eq!((record.revision, &record.key), (version.revision, &version.key));
            live.push(record);
        }
        shown.live.push(live);
        let mut hash = view.hash_kv(at);
        shown.hashes.push(loop {
            if let Some(hash) = load_for(disk, dir, || hash.step(view, 10))? {
                break hash;
            }
        });
    }
    let mut records = view.records_from(Revision::new(view.compact_revision() + 1, 0));
    while let Some(record) = load_for(disk, dir, || records.next())? {
        shown.history.push(record);
    }
    let mut meta = view.meta_cursor(b"");
    while let Some(entry) = load_for(disk, dir, || meta.next())? {
        shown.meta.push(entry);
    }
    load_for(disk, dir, || view.verify().map(drop))?;
    Ok(shown)
}

pub(crate) fn model_shown(operations: &[Operation]) -> Shown {
    shown(&model(operations).view(), &mut SimStorage::new(0).disk()).unwrap()
}

/// Term of the entry at `index`.
pub(crate) fn term(index: u64) -> u64 {
    1 + index / 50
}

/// Reads a page that an entry waits for: a read that failed is tried again.
pub(crate) fn load_patiently(disk: &mut dyn Disk, dir: &Path, fault: &Fault) -> Result<(), Error> {
    loop {
        match engine::load(disk, dir, fault.clone()) {
            Err(Error::Io { op: FileOp::Read, .. }) => {}
            result => return result,
        }
    }
}

/// A store that replays a log, with what a log would know.
pub(crate) struct Member {
    pub(crate) store: Store,
    pub(crate) disk: SimDisk,
    /// Entries applied.
    pub(crate) applied: usize,
    /// Entries that the log has let go of.
    pub(crate) trimmed: u64,
    /// Virtual time.
    pub(crate) now: Duration,
}

impl Member {
    /// Opens the store and replays `log` behind what it has; nothing it needs may be trimmed.
    pub(crate) fn open(storage: &SimStorage, options: Options, log: &[Operation], trimmed: u64) -> Result<Self, Error> {
        let mut disk = storage.disk();
        let store = Store::open(&mut disk, Path::new(DIR), options)?;
        let (index, _) = store.applied();
        assert!(index >= trimmed, "the log was trimmed to {trimmed}, the state ends at {index}");
        assert!(index <= log.len() as u64, "the state holds an entry that was never written");
        let mut member = Self { store, disk, applied: usize::try_from(index).unwrap(), trimmed, now: Duration::ZERO };
        while member.applied < log.len() {
            member.apply(log)?;
        }
        Ok(member)
    }

    /// Applies the next entry of `log`.
    pub(crate) fn apply(&mut self, log: &[Operation]) -> Result<(), Error> {
        let before = self.applied;
        while self.applied == before {
            self.apply_part(log)?;
        }
        Ok(())
    }

    /// Applies a step of the next entry of `log`.
    pub(crate) fn apply_part(&mut self, log: &[Operation]) -> Result<(), Error> {
        let (store, disk) = (&mut self.store, &mut self.disk);
        let dir = store.dir().to_path_buf();
        let index = self.applied as u64 + 1;
        let read = |fault| load_patiently(disk, &dir, &fault);
        let is_done = apply_step(store.mvcc_mut(), index, &log[self.applied], read)?;
        // Memory is always short here; what goes is seen with the next publish.
        store.evict(if is_done { 4 } else { 1 });
        self.applied += usize::from(is_done);
        Ok(())
    }

    /// Reads what upkeep asks for. It goes round what cannot be read.
    fn read(&mut self, fault: Fault) -> Result<(), Error> {
        assert!(!self.store.unreadable().avoids(fault.place()), "upkeep asks for a page once");
        let dir = self.store.dir().to_path_buf();
        match engine::load_noted(&mut self.disk, &dir, fault, self.store.unreadable()) {
            Ok(()) | Err(Error::Io { op: FileOp::Read, .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(crate) fn sweep(&mut self, budget: usize) -> Result<bool, Error> {
        self.store.unreadable().retry();
        loop {
            match self.store.sweep(budget) {
                Ok(progress) => return Ok(progress.is_done),
                Err(fault) => self.read(fault)?,
            }
        }
    }

    /// A step of giving space back, a tenth of a second after the last one; whether there is more to do at once.
    pub(crate) fn reclaim(&mut self, pages: usize) -> Result<bool, Error> {
        self.now += Duration::from_millis(100);
        loop {
            match self.store.reclaim(self.now, pages) {
                Ok(is_more) => return Ok(is_more),
                Err(faults) => {
                    assert!(!faults.is_empty(), "what stops has to be read");
                    faults.into_iter().try_for_each(|fault| self.read(fault))?;
                }
            }
        }
    }

    /// Steps a checkpoint once; true when it has ended.
    pub(crate) fn step(&mut self, job: &mut Checkpoint) -> Result<bool, Error> {
        let progress = job.step(&mut self.disk)?;
        match progress {
            Progress::Done(done) => {
                self.store.checkpoint_end(*done);
                // Right after a fallback the store lets go of nothing; what the log let go of before is gone.
                self.trimmed = self.trimmed.max(self.store.trimmable().0);
                return Ok(true);
            }
            Progress::Working => self.disk.kick()?,
            Progress::Waiting => self.disk.wait()?,
        }
        let mut completions = Vec::new();
        self.disk.completions(&mut completions);
        let mut result = Ok(());
        for completion in completions {
            assert_eq!(Owner::of(completion.token), Owner::Checkpoint);
            result = job.on_completion(completion).and(result);
        }
        result.map(|()| false)
    }

    /// A whole checkpoint, with nothing beside it.
    pub(crate) fn checkpoint(&mut self) -> Result<(), Error> {
        let mut job = self.store.checkpoint_begin();
        while !self.step(&mut job)? {}
        Ok(())
    }

    pub(crate) fn check(&mut self, expected: &Shown) {
        let view = self.store.mvcc().view();
        assert_eq!(&shown(&view, &mut self.disk).unwrap(), expected);
        let sizes = self.store.sizes();
        assert!(sizes.in_use > 0 && sizes.in_use <= sizes.allocated);
    }
}
