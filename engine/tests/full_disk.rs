//! The log on a full disk: at whatever step the space ends, nothing acknowledged is lost, what waits stays waiting, and
//! the log goes on by itself once there is space. For the page store see `store_full_disk`.
//!
//! The checker is small: entries are numbered and never replaced, so a recovered log is a prefix of what was appended,
//! with at least everything that was acknowledged.

use std::{io, path::Path};

use bytes::Bytes;
use engine::{
    Error,
    disk::{
        Completion, Disk, FileOp,
        sim::{Full, Order, SimDisk, SimStorage},
    },
    wal::{Entry, Known, Options, Wal},
};

const DIR: &str = "data/wal";
/// Looks after which a log that does not move is taken to wait for space.
const PUMPS: usize = 60;

fn options() -> Options {
    Options {
        segment_bytes: 4 * 4096,
        group_bytes_max: 6000,
        writes_in_flight_max: 2,
        spare_segments_max: 2,
        fresh_id: 7,
    }
}

fn entry(index: u64) -> Entry {
    let len = usize::try_from(index * 37 % 900).expect("small");
    let byte = u8::try_from(index % 251).expect("small");
    Entry { index, term: 1, kind: 0, data: Bytes::from(vec![byte; len]) }
}

struct Bench {
    disk: SimDisk,
    wal: Wal,
    appended: u64,
    ended: Vec<Completion>,
}

impl Bench {
    fn open(storage: &SimStorage) -> Result<Self, Error> {
        let mut disk = storage.disk();
        let (wal, recovered) = Wal::open(&mut disk, Path::new(DIR), options(), Known::default())?;
        for (entry, index) in recovered.entries.iter().zip(recovered.mark.0 + 1..) {
            assert_eq!(*entry, self::entry(index), "an entry is what was appended");
        }
        let appended = wal.last_index();
        Ok(Self { disk, wal, appended, ended: Vec::new() })
    }

    fn append(&mut self) -> Result<(), Error> {
        self.appended += 1;
        self.wal.append(&[entry(self.appended)], None, self.appended)
    }

    fn pump(&mut self) -> Result<(), Error> {
        self.wal.step(&mut self.disk)?;
        self.disk.kick()?;
        self.disk.completions(&mut self.ended);
        for completion in self.ended.drain(..) {
            self.wal.on_completion(completion, &mut self.disk)?;
        }
        Ok(())
    }

    /// Until everything is durable, or nothing moves; true for the former.
    fn settle(&mut self) -> Result<bool, Error> {
        let mut idle = 0;
        while self.wal.durable() < self.appended && idle < PUMPS {
            let before = self.wal.durable();
            self.pump()?;
            idle = if self.wal.durable() > before { 0 } else { idle + 1 };
        }
        Ok(self.wal.durable() == self.appended)
    }

    /// Appends `count` entries and trims now and then; stops early where space is wanting.
    fn work(&mut self, count: u64) -> Result<bool, Error> {
        for _ in 0..count {
            self.append()?;
            if !self.settle()? {
                return Ok(false);
            }
            if self.appended.is_multiple_of(20) {
                self.wal.trim(self.appended - 6, 1)?;
            }
            self.pump()?;
        }
        Ok(true)
    }
}

/// Opens every sampled image and expects all that was acknowledged.
fn check_images(storage: &SimStorage, durable: u64, context: &str) {
    for image in storage.crash_images(6) {
        let bench = Bench::open(&image).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert!(bench.appended >= durable, "{context}: {} of {durable} are left", bench.appended);
    }
}

#[test]
fn a_disk_full_at_any_step_makes_the_log_wait_and_space_makes_it_go_on() {
    let (mut waited, mut refused) = (0, 0);
    for step in 0.. {
        let context = format!("full from step {step}");
        let storage = SimStorage::new(step);
        storage.set_order(Order::Seeded);
        storage.set_full(Some((step, Full::Creations)));
        let mut bench = match Bench::open(&storage) {
            Ok(bench) => bench,
            Err(error) => {
                assert!(matches!(error, Error::NoSpace { .. }), "{context}: {error}");
                refused += 1;
                storage.set_full(None);
                Bench::open(&storage).unwrap_or_else(|error| panic!("{context}: {error}"))
            }
        };
        let has_room = bench.work(120).unwrap_or_else(|error| panic!("{context}: {error}"));
        if !has_room {
            waited += 1;
            assert!(bench.wal.room_bytes().is_some_and(|room| room < 4096), "{context}: it says so");
            check_images(&storage, bench.wal.durable(), &context);
            storage.set_full(None);
            assert!(!bench.settle().expect("it runs"), "{context}: it is not asked again before it is told");
            bench.wal.retry_space();
            assert!(bench.settle().expect("it runs"), "{context}: it goes on");
            assert_eq!(bench.wal.room_bytes(), None, "{context}");
            assert!(bench.work(120).expect("it runs"), "{context}");
        }
        let (appended, durable) = (bench.appended, bench.wal.durable());
        assert_eq!(appended, durable);
        check_images(&storage, durable, &context);
        if storage.steps() <= step {
            break;
        }
    }
    assert!(waited > 3 && refused > 0, "waited {waited}, refused {refused}");
}

#[test]
fn room_that_was_promised_is_there_on_a_full_disk() {
    for seed in 0..20 {
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        let mut bench = Bench::open(&storage).expect("a fresh log opens");
        storage.set_full(Some((0, Full::Creations)));
        let overhead = engine::wal::GROUP_OVERHEAD_BYTES as u64 + 64;
        let next = |bench: &Bench| entry(bench.appended + 1).data.len() as u64 + overhead;
        while bench.wal.room_bytes().is_none_or(|room| room >= next(&bench)) {
            // Bursts of any length, from one that waits for each write to one that asks the log for nothing.
            bench.append().expect("it runs");
            if bench.appended.is_multiple_of(seed + 1) || bench.wal.room_bytes().is_none() {
                bench.pump().expect("it runs");
            }
            assert!(bench.appended < 200, "the disk is full by now");
        }
        assert!(bench.settle().expect("it runs"), "seed {seed}: what was let in is written");
        // A mark that makes a segment useless needs no new space, and gives what is needed.
        bench.wal.trim(bench.appended, 1).expect("it runs");
        for _ in 0..30 {
            bench.append().expect("it runs");
            bench.pump().expect("it runs");
        }
    }
}

#[test]
fn a_log_that_reuses_its_segments_needs_no_space() {
    let storage = SimStorage::new(3);
    let mut bench = Bench::open(&storage).expect("a fresh log opens");
    assert!(bench.work(60).expect("it runs"));
    storage.set_full(Some((0, Full::Creations)));
    assert!(bench.work(200).expect("it runs"), "trimmed segments are enough");
}

#[test]
fn space_that_ends_while_a_segment_is_filled_or_synced_gives_that_segment_up() {
    let mut given_up = 0;
    for victim in 0.. {
        let context = format!("operation {victim}");
        let storage = SimStorage::new(4);
        let mut bench = Bench::open(&storage).expect("a fresh log opens");
        storage.set_order(Order::Manual);
        let (mut spare_ops, mut failed) = (0, None);
        let mut result = Ok(());
        while result.is_ok() && bench.appended < 300 {
            result = bench.append();
            for _ in 0..20 {
                result = result.and_then(|()| bench.pump());
                for flight in storage.in_flight() {
                    // Groups are durable writes into the segment before; only the segment that is made ready has
                    // others.
                    let is_zeros = flight.op == FileOp::Write && flight.len == 4 * 4096;
                    let is_spare = flight.op == FileOp::Sync || is_zeros;
                    if is_spare && spare_ops == victim {
                        failed = Some(flight.clone());
                        storage.fail(flight.number, io::ErrorKind::StorageFull);
                    } else {
                        storage.complete(flight.number);
                    }
                    spare_ops += u64::from(is_spare);
                }
                bench.wal.retry_space();
            }
        }
        let Some(failed) = failed else {
            assert!(victim > 10, "there are several segments");
            break;
        };
        storage.set_order(Order::Submission);
        if failed.op == FileOp::Sync && failed.path == Path::new(DIR) {
            assert!(matches!(result, Err(Error::NoSpace { .. })), "{context}: names may be lost, the log stops");
        } else {
            result.unwrap_or_else(|error| panic!("{context}: {failed:?}: {error}"));
            assert!(bench.settle().expect("it runs"), "{context}");
            given_up += 1;
        }
        check_images(&storage, bench.wal.durable(), &context);
    }
    assert!(given_up > 5, "{given_up} segments were given up");
}

#[test]
fn a_group_that_finds_no_space_stops_the_log_and_loses_nothing_acknowledged() {
    let mut stopped = 0;
    for step in 0..150 {
        let storage = SimStorage::new(step);
        storage.set_order(Order::Seeded);
        let Ok(mut bench) = Bench::open(&storage) else { continue };
        storage.set_full(Some((storage.steps() + step, Full::Writes)));
        if let Err(error) = bench.work(120) {
            assert!(matches!(error, Error::NoSpace { .. }), "{error}");
            assert!(matches!(bench.wal.step(&mut bench.disk), Err(Error::Stopped)), "nothing is tried again");
            stopped += 1;
        }
        check_images(&storage, bench.wal.durable(), &format!("full from step {step}"));
        let durable = bench.wal.durable();
        let killed = Bench::open(&storage.kill()).expect("there is space at the next start");
        assert!(killed.appended >= durable);
    }
    assert!(stopped > 100, "stopped {stopped} times");
}

/// Whether an operation changes names.
fn changes_names(op: FileOp) -> bool {
    matches!(op, FileOp::Create | FileOp::Rename | FileOp::Open | FileOp::Remove)
}

#[test]
fn a_disk_that_does_not_open_the_next_segment_holds_up_only_what_needs_it() {
    let storage = SimStorage::new(5);
    let mut bench = Bench::open(&storage).unwrap();
    storage.set_order(Order::Manual);
    let mut held = false;
    for _ in 0..400 {
        bench.append().unwrap();
        for _ in 0..4 {
            bench.pump().unwrap();
            for flight in storage.in_flight() {
                held |= changes_names(flight.op);
                if !changes_names(flight.op) {
                    storage.complete(flight.number);
                }
            }
        }
    }
    assert!(held, "the next segment is not opened");
    let durable = bench.wal.durable();
    assert!(durable > 10 && durable < bench.appended, "{durable} of {} entries are durable", bench.appended);
    assert!(bench.wal.is_waiting() && bench.wal.room_bytes().is_none(), "it waits for the disk, not for space");
    // The disk answers again.
    storage.set_order(Order::Seeded);
    assert!(bench.settle().unwrap());
    let kept = bench.appended;
    drop(bench);
    assert_eq!(Bench::open(&storage.crash()).unwrap().appended, kept);
}

#[test]
fn segments_that_are_not_kept_are_removed_while_the_log_goes_on() {
    let storage = SimStorage::new(6);
    let mut bench = Bench::open(&storage).unwrap();
    for _ in 0..200 {
        bench.append().unwrap();
        assert!(bench.settle().unwrap());
    }
    let before = storage.paths().len();
    assert!(before > 6, "the log has many segments");
    storage.set_order(Order::Manual);
    bench.wal.trim(bench.appended, 1).unwrap();
    let mut held = 0;
    for _ in 0..50 {
        bench.append().unwrap();
        for _ in 0..4 {
            bench.pump().unwrap();
            let flights = storage.in_flight();
            held = flights.iter().filter(|flight| flight.op == FileOp::Remove).count().max(held);
            for flight in flights.into_iter().filter(|flight| flight.op != FileOp::Remove) {
                storage.complete(flight.number);
            }
        }
    }
    assert!(held > 2, "the removals are in flight");
    assert_eq!(bench.wal.durable(), bench.appended, "nothing waits for them");
    storage.set_order(Order::Seeded);
    assert!(bench.settle().unwrap());
    for _ in 0..PUMPS {
        bench.pump().unwrap();
    }
    assert!(storage.paths().len() < before - 2, "{:?}", storage.paths());
    let kept = bench.appended;
    drop(bench);
    assert_eq!(Bench::open(&storage.crash()).unwrap().appended, kept);
}

#[test]
fn a_spare_that_cannot_be_renamed_is_kept_and_tried_again() {
    let storage = SimStorage::new(7);
    let mut bench = Bench::open(&storage).unwrap();
    for _ in 0..60 {
        bench.append().unwrap();
        assert!(bench.settle().unwrap());
    }
    bench.wal.trim(bench.appended, 1).unwrap();
    bench.append().unwrap();
    assert!(bench.settle().unwrap());
    storage.set_order(Order::Manual);
    let mut refused = 0;
    for _ in 0..600 {
        bench.append().unwrap();
        for _ in 0..4 {
            bench.pump().unwrap();
            for flight in storage.in_flight() {
                if flight.op == FileOp::Rename {
                    storage.fail(flight.number, io::ErrorKind::StorageFull);
                    refused += 1;
                } else {
                    storage.complete(flight.number);
                }
            }
        }
    }
    assert!(refused > 0 && bench.wal.room_bytes().is_some(), "it is refused, and told");
    assert!(bench.wal.durable() < bench.appended);
    storage.set_order(Order::Seeded);
    bench.wal.retry_space();
    assert!(bench.settle().unwrap());
    let kept = bench.appended;
    drop(bench);
    assert_eq!(Bench::open(&storage.crash()).unwrap().appended, kept);
}
