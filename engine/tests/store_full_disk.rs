//! The page store, alone and with its log beside it, on a full disk: at whatever write the space ends, a checkpoint
//! waits and nothing else does, nothing acknowledged is lost, and all goes on once there is space. For the log alone
//! see `full_disk`.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

#[cfg(test)]
mod replay;

use std::path::Path;

use bytes::Bytes;
use engine::{
    Checkpoint, Error, Progress,
    disk::{
        Disk, FileOp,
        sim::{Full, Order, SimDisk, SimStorage},
    },
    wal::{self, Wal},
};

use replay::{Change, DIR, Member, Operation, model_shown, operations, options};

#[test]
fn a_full_disk_stops_a_checkpoint_and_nothing_else() {
    let log = operations(15, 200, 60);
    let expected = model_shown(&log);
    let mut stopped = 0;
    let mut room = 32 << 10;
    loop {
        let storage = SimStorage::new(15);
        let mut member = Member::open(&storage, options(2), &[], 0).unwrap();
        storage.set_capacity(Some(room));
        let mut was_stopped = false;
        for part in 1..=4 {
            while member.applied < log.len() * part / 4 {
                member.apply(&log).unwrap();
            }
            let mut job = member.store.checkpoint_begin();
            let generation = member.store.generation();
            loop {
                match member.step(&mut job) {
                    Ok(true) => break,
                    Ok(false) => continue,
                    Err(Error::NoSpace { .. }) => {}
                    Err(other) => panic!("{other}"),
                }
                was_stopped = true;
                assert_eq!(member.store.generation(), generation);
                if member.applied < log.len() {
                    member.apply(&log).unwrap();
                }
                let mut crashed = Member::open(&storage.crash(), options(2), &log, member.trimmed).unwrap();
                crashed.check(&expected);
                storage.set_capacity(Some(u64::MAX));
            }
            assert_eq!(member.store.generation(), generation + 1, "the checkpoint went on where it was");
        }
        member.checkpoint().unwrap();
        member.check(&expected);
        member.store.verify(&mut member.disk).unwrap();
        if !was_stopped {
            break;
        }
        stopped += 1;
        room += 20 << 10;
    }
    assert!(stopped >= 4, "stopped {stopped} times");
}

/// A store of which most has died, ready for a checkpoint that empties segments.
fn sparse(storage: &SimStorage, log: &mut Vec<Operation>) -> Member {
    let put = |key: u64, bytes: usize| Change::Put(Bytes::from(format!("key/{key:04}")), Bytes::from(vec![7; bytes]));
    log.extend((0..64).map(|first| Operation::Write((0..8).map(|more| put(8 * first + more, 300)).collect())));
    let mut member = Member::open(storage, options(1), &[], 0).unwrap();
    while member.applied < log.len() {
        member.apply(log).unwrap();
    }
    member.checkpoint().unwrap();
    log.extend((0..512).filter(|key| key % 4 != 0).map(|key| Operation::Write(vec![put(key, 1)])));
    log.push(Operation::Compact(100));
    while member.applied < log.len() {
        member.apply(log).unwrap();
    }
    while !member.sweep(1000).unwrap() {}
    member.checkpoint().unwrap();
    while member.reclaim(100).unwrap() {}
    assert!(member.store.wants_checkpoint(), "victims were found");
    member
}

#[test]
fn a_disk_that_is_full_at_any_write_only_puts_off_that_space_is_given_back() {
    let (mut given_up, mut emptied) = (0, 0);
    for victim in 0.. {
        let storage = SimStorage::new(26);
        let mut log = Vec::new();
        let mut member = sparse(&storage, &mut log);
        let expected = model_shown(&log);
        let mut job = member.store.checkpoint_begin();
        // The disk is full from one moment on, and has room again when the checkpoint says that it waits for it.
        let mut steps = 0;
        let was_full = loop {
            if steps == victim {
                storage.set_capacity(Some(0));
            }
            steps += 1;
            match member.step(&mut job) {
                Ok(true) => break steps > victim,
                Ok(false) => {}
                Err(Error::NoSpace { .. }) => storage.set_capacity(Some(u64::MAX)),
                Err(other) => panic!("{other}"),
            }
        };
        storage.set_capacity(Some(u64::MAX));
        member.store.verify(&mut member.disk).unwrap();
        given_up += u64::from(member.store.reclaimed().segments == 0);
        for _ in 0..400 {
            while member.reclaim(100).unwrap() {}
            if member.store.wants_checkpoint() {
                member.checkpoint().unwrap();
                member.store.verify(&mut member.disk).unwrap();
            }
        }
        emptied += member.store.reclaimed().segments;
        member.check(&expected);
        let trimmed = member.trimmed;
        drop(member);
        Member::open(&storage.crash(), options(1), &log, trimmed).unwrap().check(&expected);
        if !was_full {
            break;
        }
    }
    assert!(given_up > 0 && emptied > 10, "{given_up} given up, {emptied} emptied");
}

#[test]
fn a_write_refused_for_space_is_written_once_there_is_some() {
    let log = operations(16, 120, 40);
    let expected = model_shown(&log);
    for victim in 0.. {
        let storage = SimStorage::new(16);
        let mut member = Member::open(&storage, options(1), &[], 0).unwrap();
        while member.applied < log.len() {
            member.apply(&log).unwrap();
        }
        storage.set_order(Order::Manual);
        let mut job = member.store.checkpoint_begin();
        let (mut writes, mut failures) = (0, 0);
        let mut completions = Vec::new();
        let done = loop {
            match job.step(&mut member.disk).unwrap() {
                Progress::Done(done) => break done,
                Progress::Working => continue,
                Progress::Waiting => {}
            }
            for flight in storage.in_flight() {
                // Segments, and at last the superblock.
                if flight.op == FileOp::Write && writes == victim && failures == 0 {
                    storage.fail(flight.number, std::io::ErrorKind::StorageFull);
                } else {
                    storage.complete(flight.number);
                }
                writes += u64::from(flight.op == FileOp::Write);
            }
            member.disk.completions(&mut completions);
            for completion in completions.drain(..) {
                if let Err(error) = job.on_completion(completion) {
                    assert!(matches!(error, Error::NoSpace { .. }), "{error}");
                    failures += 1;
                }
            }
        };
        member.store.checkpoint_end(*done);
        if failures == 0 {
            assert!(victim > 3, "the checkpoint has several writes");
            break;
        }
        assert_eq!(failures, 1);
        storage.set_order(Order::Submission);
        drop(member);
        let mut member = Member::open(&storage.crash(), options(1), &log, 0).unwrap();
        assert_eq!(member.store.generation(), 2);
        member.check(&expected);
        member.store.verify(&mut member.disk).unwrap();
    }
}

/// A store and its log on one disk, as in a data directory.
struct Whole {
    member: Member,
    log_disk: SimDisk,
    wal: Wal,
    job: Option<Checkpoint>,
    waits: usize,
}

impl Whole {
    /// Opens both and replays what the log has; it must be a prefix of `log`.
    fn open(storage: &SimStorage, log: &[Operation]) -> Result<Self, Error> {
        let mut log_disk = storage.disk();
        let options =
            wal::Options { segment_bytes: 16 << 10, group_bytes_max: 4 << 10, fresh_id: 7, ..Default::default() };
        let (wal, recovered) = Wal::open(&mut log_disk, &Path::new(DIR).join("wal"), options, wal::Known::default())?;
        let last = usize::try_from(wal.last_index()).unwrap();
        let member = Member::open(storage, self::options(1), &log[..last], recovered.mark.0)?;
        Ok(Self { member, log_disk, wal, job: None, waits: 0 })
    }

    /// Until all of the log is durable, or nothing moves for want of space.
    fn settle(&mut self) -> Result<bool, Error> {
        let mut ended = Vec::new();
        for _ in 0..30 {
            self.wal.step(&mut self.log_disk)?;
            self.log_disk.kick()?;
            self.log_disk.completions(&mut ended);
            for completion in ended.drain(..) {
                self.wal.on_completion(completion, &mut self.log_disk)?;
            }
            if self.wal.durable() == self.wal.last_index() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Logs and applies the next operation; false if the log has no room for it.
    fn run(&mut self, log: &[Operation]) -> Result<bool, Error> {
        const LEN: usize = 700;
        let index = self.member.applied as u64 + 1;
        if self.wal.last_index() < index {
            let needed = (LEN + 2 * wal::GROUP_OVERHEAD_BYTES) as u64;
            if self.wal.room_bytes().is_some_and(|room| room < needed) {
                return Ok(false);
            }
            let data = Bytes::from(vec![1; LEN]);
            self.wal.append(&[wal::Entry { index, term: replay::term(index), kind: 0, data }], None, index)?;
        }
        assert!(self.settle()?, "what was let in is written");
        self.member.apply(log)?;
        Ok(true)
    }

    /// Goes on with the checkpoint under way; one that finds no space waits.
    fn checkpoint(&mut self) -> Result<(), Error> {
        let mut job = self.job.take().unwrap_or_else(|| self.member.store.checkpoint_begin());
        loop {
            match self.member.step(&mut job) {
                Ok(true) => break,
                Ok(false) => {}
                Err(Error::NoSpace { .. }) => {
                    self.waits += 1;
                    self.job = Some(job);
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        let (index, term) = self.member.store.trimmable();
        if index > 0 {
            self.wal.trim(index, term)?;
            self.settle()?;
        }
        Ok(())
    }
}

#[test]
fn a_data_directory_on_a_disk_full_at_any_step_loses_nothing_and_goes_on() {
    let log = operations(18, 120, 40);
    let (mut log_full, mut waits) = (0, 0);
    for step in 0.. {
        let storage = SimStorage::new(step);
        let mut whole = Whole::open(&storage, &log).unwrap();
        let from = storage.steps() + step;
        storage.set_full(Some((from, Full::Creations)));
        let mut is_full = true;
        while whole.member.applied < log.len() {
            let has_room = whole.run(&log).unwrap();
            if has_room && whole.job.is_none() && !whole.member.applied.is_multiple_of(15) {
                continue;
            }
            whole.member.sweep(50).unwrap();
            whole.checkpoint().unwrap();
            if has_room || whole.wal.room_bytes().is_none() {
                continue;
            }
            // Neither log nor store can go on: all that was acknowledged is there, here and after a crash.
            assert!(is_full, "there is space");
            log_full += 1;
            for image in storage.crash_images(3) {
                let mut crashed = Whole::open(&image, &log).unwrap();
                assert!(crashed.member.applied >= whole.member.applied);
                crashed.member.check(&model_shown(&log[..crashed.member.applied]));
            }
            whole.member.check(&model_shown(&log[..whole.member.applied]));
            is_full = false;
            storage.set_full(None);
            whole.wal.retry_space();
            for _ in 0..10 {
                whole.settle().unwrap();
            }
        }
        waits += whole.waits;
        storage.set_full(None);
        if whole.job.is_some() {
            whole.checkpoint().unwrap();
        }
        whole.checkpoint().unwrap();
        whole.member.check(&model_shown(&log));
        whole.member.store.verify(&mut whole.member.disk).unwrap();
        if storage.steps() <= from {
            break;
        }
    }
    assert!(log_full > 10 && waits > 100, "the log was full {log_full} times, a checkpoint waited {waits} times");
}
