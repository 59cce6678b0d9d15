//! Power loss at every single write of a workload with checkpoints: in every legal image the store opens, the log
//! behind it is enough, and what it shows is what the log says. The log itself stands beside the disk as a list of
//! operations (`replay`); that a real log keeps what it acknowledged is `wal_crash.rs`'s to show.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

#[cfg(test)]
mod replay;

use std::path::Path;

use engine::{
    Checkpoint, Error, Progress, Store,
    disk::{
        Disk, FileOp, Owner,
        sim::{Faults, Order, Random, SimStorage},
    },
    store::Options,
    wal::{Entry, Known, Wal},
};

use replay::{DIR, Member, Operation, Shown, apply, load_patiently, model_shown, operations, options, term};

/// Images looked at for each step at most.
const IMAGES_MAX: usize = 24;

/// How a run ended: what was applied, what the log had let go of, and how many segments were emptied.
struct Stopped {
    applied: usize,
    trimmed: u64,
    emptied: u64,
}

/// Applies `log` with sweeps, reclaim and checkpoints in between, some of them beside traffic, until the end or the
/// storage stops.
fn run(storage: &SimStorage, options: Options, log: &[Operation], seed: u64) -> (Stopped, Result<(), Error>) {
    let mut random = Random::new(seed);
    let mut member = match Member::open(storage, options, &[], 0) {
        Ok(member) => member,
        Err(error) => return (Stopped { applied: 0, trimmed: 0, emptied: 0 }, Err(error)),
    };
    storage.set_faults(READ_ERRORS);
    let mut job = None;
    let mut result = Ok(());
    while result.is_ok() && (member.applied < log.len() || job.is_some()) {
        result = match (&mut job, random.below(10)) {
            (_, 0) => member.sweep(20).map(drop),
            (_, 8..10) => member.reclaim(8).map(drop),
            (None, 1) => {
                job = Some(member.store.checkpoint_begin());
                Ok(())
            }
            (None, 2) if member.store.wants_checkpoint() => {
                job = Some(member.store.checkpoint_begin());
                Ok(())
            }
            (Some(running), 2..6) => member.step(running).map(|is_done| {
                if is_done {
                    job = None;
                }
            }),
            _ if member.applied < log.len() => member.apply_part(log),
            _ => Ok(()),
        };
    }
    let emptied = member.store.reclaimed().segments;
    (Stopped { applied: member.applied, trimmed: member.trimmed, emptied }, result)
}

/// Some reads fail, and succeed when they are tried again.
const READ_ERRORS: Faults =
    Faults { write_error: 0, sync_error: 0, read_error: 20, lost: 0, misdirected: 0, corrupt: 0 };

/// Opens `image` and replays. Reads fail meanwhile, and a start that was refused is made again.
fn opened(image: &SimStorage, options: Options, log: &[Operation], trimmed: u64) -> Member {
    patiently(image, || Member::open(image, options, log, trimmed)).unwrap()
}

/// Tries `open` again until no read of it fails. Then no read fails any more.
fn patiently<T>(image: &SimStorage, mut open: impl FnMut() -> Result<T, Error>) -> Result<T, Error> {
    image.set_faults(READ_ERRORS);
    let opened = loop {
        let failed = image.injected().len();
        match open() {
            // What cannot be read where it is needed is refused as damage is.
            Err(Error::Io { op: FileOp::Read, .. } | Error::Corrupt { .. }) if image.injected().len() > failed => {}
            result => break result,
        }
    };
    image.set_faults(Faults::default());
    opened
}

/// Opens `image`, replays, compares, writes on, and does so once more.
fn recovers(image: &SimStorage, options: Options, log: &[Operation], trimmed: u64, expected: &Shown) {
    let mut member = opened(image, options, log, trimmed);
    member.check(expected);
    image.set_faults(READ_ERRORS);
    member.sweep(1000).unwrap();
    while member.reclaim(1000).unwrap() {}
    member.checkpoint().unwrap();
    image.set_faults(Faults::default());
    member.store.verify(&mut member.disk).unwrap();
    member.check(expected);
    let trimmed = member.trimmed;
    drop(member);
    let mut member = opened(&image.crash(), options, log, trimmed);
    member.check(expected);
    member.store.verify(&mut member.disk).unwrap();
}

fn survives_power_loss_at_every_step(seed: u64, entries: usize, keys: u64, options: Options) -> Stopped {
    let log = operations(seed, entries, keys);
    let whole = SimStorage::new(seed);
    whole.set_order(Order::Seeded);
    let (complete, result) = run(&whole, options, &log, seed);
    result.unwrap();
    assert_eq!(complete.applied, log.len());
    assert!(complete.trimmed > 0, "the workload has checkpoints");
    for steps in 0..=whole.steps() {
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        storage.stop_after(steps);
        let (stopped, result) = run(&storage, options, &log, seed);
        assert_eq!(result.is_err(), steps < whole.steps(), "seed {seed} stops after step {steps}");
        let log = &log[..stopped.applied];
        let expected = model_shown(log);
        for (number, image) in storage.crash_images(IMAGES_MAX).iter().enumerate() {
            println!("seed {seed}, stopped after step {steps} of {}, image {number}", whole.steps());
            recovers(image, options, log, stopped.trimmed, &expected);
        }
    }
    complete
}

#[test]
fn state_survives_power_loss_at_every_write_in_every_image() {
    survives_power_loss_at_every_step(1, 250, 24, options(1));
}

#[test]
fn state_of_three_shards_survives_power_loss_at_every_write() {
    survives_power_loss_at_every_step(2, 150, 24, options(3));
}

#[test]
fn state_survives_power_loss_at_every_write_while_segments_are_emptied() {
    let options = Options { segment_bytes: 16 << 10, ..options(1) };
    let complete = survives_power_loss_at_every_step(3, 220, 60, options);
    assert!(complete.emptied > 5, "{} segments were emptied", complete.emptied);
}

#[test]
fn long_runs_with_many_power_losses_lose_nothing() {
    for seed in 0..20 {
        let options = options(1 + usize::try_from(seed % 3).unwrap());
        let log = operations(seed, 700, 300);
        let mut storage = SimStorage::new(seed);
        let mut random = Random::new(seed);
        let (mut applied, mut trimmed) = (0, 0);
        while applied < log.len() {
            println!("seed {seed}, applied {applied}");
            storage.set_order(Order::Seeded);
            let mut member = Member::open(&storage, options, &log[..applied], trimmed).unwrap();
            storage.stop_after(storage.steps() + 1 + random.below(60));
            storage.set_faults(READ_ERRORS);
            let mut job = None;
            let mut result = Ok(());
            while result.is_ok() && member.applied < log.len() {
                result = match (&mut job, random.below(12)) {
                    (_, 0) => member.sweep(50).map(drop),
                    (_, 11) => member.reclaim(20).map(drop),
                    (None, 1) => {
                        job = Some(member.store.checkpoint_begin());
                        Ok(())
                    }
                    (Some(running), 2..8) => member.step(running).map(|is_done| {
                        if is_done {
                            job = None;
                        }
                    }),
                    _ => member.apply(&log),
                };
            }
            (applied, trimmed) = (member.applied, member.trimmed);
            drop(member);
            storage = if random.chance(1, 4) { storage.kill() } else { storage.crash() };
        }
        recovers(&storage, options, &log, trimmed, &model_shown(&log));
    }
}

fn wal_options() -> engine::wal::Options {
    engine::wal::Options {
        segment_bytes: 64 << 10,
        group_bytes_max: 4096,
        writes_in_flight_max: 2,
        ..Default::default()
    }
}

/// What the log holds after `index`, when entries name the operations by their positions.
fn entry(index: u64, operations: &[Operation]) -> Entry {
    let bytes = match &operations[usize::try_from(index - 1).unwrap()] {
        Operation::Write(changes) => 100 * changes.len(),
        _ => 10,
    };
    let data = [&index.to_le_bytes()[..], &vec![1; bytes]].concat();
    Entry { index, term: term(index), kind: 1, data: data.into() }
}

/// Log and store on one disk, as one core runs them: an entry is applied once it is durable, the log is trimmed behind
/// checkpoints.
struct Core<'a> {
    operations: &'a [Operation],
    disk: engine::disk::sim::SimDisk,
    wal: Wal,
    store: Store,
    job: Option<Checkpoint>,
    applied: u64,
}

impl<'a> Core<'a> {
    /// Opens both and replays; what the log kept has to reach up to `acknowledged`.
    fn open(storage: &SimStorage, operations: &'a [Operation], acknowledged: u64) -> Result<Self, Error> {
        let mut disk = storage.disk();
        let dir = Path::new(DIR);
        let store = Store::open(&mut disk, dir, options(2))?;
        let known = Known { applied: store.applied().0, trimmable: store.trimmable().0 };
        let (wal, recovered) = Wal::open(&mut disk, &dir.join("wal"), wal_options(), known)?;
        let (applied, applied_term) = store.applied();
        assert!(recovered.mark.0 <= applied, "the log begins where the state ends, or before");
        assert!(wal.last_index() >= acknowledged.max(applied), "nothing acknowledged is missing");
        assert!(applied == 0 || wal.term(applied) == Some(applied_term));
        let mut core = Core { operations, disk, wal, store, job: None, applied };
        for found in recovered.entries {
            let wanted = entry(found.index, operations);
            if found.index <= applied {
                assert_eq!((found.term, found.kind, found.data.len()), (wanted.term, wanted.kind, 0));
                continue;
            }
            assert_eq!(found, wanted);
            if found.index > core.applied {
                core.apply()?;
            }
        }
        Ok(core)
    }

    fn apply(&mut self) -> Result<(), Error> {
        self.applied += 1;
        let position = usize::try_from(self.applied).expect("a short log") - 1;
        let (disk, mvcc) = (&mut self.disk, self.store.mvcc_mut());
        apply(mvcc, self.applied, &self.operations[position], |fault| load_patiently(disk, Path::new(DIR), &fault))
    }

    /// One turn of the core's loop.
    fn turn(&mut self, random: &mut Random) -> Result<(), Error> {
        let last = self.wal.last_index();
        match random.below(6) {
            0 if self.job.is_none() => self.job = Some(self.store.checkpoint_begin()),
            1..4 if last < self.operations.len() as u64 => {
                let more = (last + 1).min(self.operations.len() as u64);
                self.wal.append(&[entry(more, self.operations)], None, more)?;
            }
            _ if self.applied < self.wal.durable().min(last) => self.apply()?,
            _ => {}
        }
        if let Some(job) = &mut self.job
            && let Progress::Done(done) = job.step(&mut self.disk)?
        {
            self.job = None;
            self.store.checkpoint_end(*done);
            let (index, at) = self.store.trimmable();
            assert!(index == 0 || at == term(index));
            self.wal.trim(index, at)?;
        }
        self.wal.step(&mut self.disk)?;
        self.disk.kick()?;
        let mut completions = Vec::new();
        self.disk.completions(&mut completions);
        for completion in completions {
            match Owner::of(completion.token) {
                Owner::Wal => self.wal.on_completion(completion, &mut self.disk)?,
                Owner::Checkpoint => self.job.as_mut().expect("it has writes in flight").on_completion(completion)?,
                other => panic!("nobody is {other:?}"),
            }
        }
        Ok(())
    }
}

#[test]
fn log_and_store_on_one_disk_lose_nothing_at_any_step() {
    let mut trimmed = 0;
    for seed in 0..4 {
        let operations = operations(seed, 120, 30);
        for run in 0_u64.. {
            let storage = SimStorage::new(seed);
            storage.set_order(Order::Seeded);
            let mut random = Random::new(seed);
            storage.stop_after(run * 7 + seed);
            let mut acknowledged = 0;
            let mut core = Core::open(&storage, &operations, 0);
            storage.set_faults(READ_ERRORS);
            if let Ok(core) = &mut core {
                while core.applied < operations.len() as u64 && core.turn(&mut random).is_ok() {
                    acknowledged = core.applied;
                }
                acknowledged = acknowledged.max(core.applied);
            }
            let is_complete = acknowledged == operations.len() as u64;
            drop(core);
            for image in storage.crash_images(4) {
                println!("seed {seed}, run {run}, {acknowledged} acknowledged");
                let open = || Core::open(&image, &operations, acknowledged);
                let mut core = patiently(&image, open).expect("a crash is no damage");
                let applied = usize::try_from(core.applied).expect("a short log");
                let view = core.store.mvcc().view();
                let shown = replay::shown(&view, &mut core.disk).expect("a crash is no damage");
                assert_eq!(shown, model_shown(&operations[..applied]));
                trimmed = trimmed.max(core.wal.mark().0);
            }
            if is_complete {
                break;
            }
        }
    }
    assert!(trimmed > 50, "the log was trimmed behind checkpoints: {trimmed}");
}
