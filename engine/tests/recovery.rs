//! A store whose medium is damaged, full or failing: it recovers, or it refuses and says where; it never panics and
//! never shows anything but what the log says.

#![expect(clippy::unwrap_used, reason = "functions shared by tests fail as tests do")]

#[cfg(test)]
mod replay;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use engine::{
    Error, KeyRange, PageReader, Progress, ShardProgress, Store,
    disk::{
        Disk, IoKind, IoPath, OpenKind, Owner, Preference, open_disk,
        sim::{Faults, Order, Random, SimStorage},
    },
    store::Options,
    test_support::segment_path,
};

use replay::{Change, DIR, Member, Operation, apply, model_shown, operations, options, shown, shown_in};

fn superblock() -> PathBuf {
    Path::new(DIR).join("superblock")
}

const COPY_STRIDE: u64 = 16 << 10;

/// A store that applied `log` with a checkpoint after each of `checkpoints` parts, closed in order.
fn written(seed: u64, log: &[Operation], checkpoints: usize) -> (SimStorage, u64) {
    let storage = SimStorage::new(seed);
    let mut member = Member::open(&storage, options(1), &[], 0).unwrap();
    for part in 1..=checkpoints {
        while member.applied < log.len() * part / checkpoints {
            member.apply(log).unwrap();
        }
        member.sweep(100).unwrap();
        member.checkpoint().unwrap();
    }
    let trimmed = member.trimmed;
    drop(member);
    (storage, trimmed)
}

#[test]
fn either_superblock_copy_alone_is_enough() {
    let log = operations(11, 300, 60);
    let expected = model_shown(&log);
    for checkpoints in [2, 3, 7, 8] {
        for copy in [0, 1] {
            for at in [Some(0), Some(9), Some(40), Some(511), None] {
                let (storage, trimmed) = written(11, &log, checkpoints);
                assert!(trimmed > 0 || checkpoints == 2);
                match at {
                    Some(at) => storage.damage(&superblock(), copy * COPY_STRIDE, |sector| sector[at] ^= 0x10),
                    None => storage.make_unreadable(&superblock(), copy * COPY_STRIDE),
                }
                let mut member = Member::open(&storage, options(1), &log, trimmed).unwrap();
                assert_eq!(member.store.trimmable(), (0, 0), "one good copy lets go of no log");
                member.check(&expected);
                for _ in 0..3 {
                    member.checkpoint().unwrap();
                    member.check(&expected);
                    member.store.verify(&mut member.disk).unwrap();
                }
                assert!(member.store.trimmable().0 > 0);
            }
        }
    }
}

#[test]
fn a_store_without_a_valid_superblock_is_refused() {
    let log = operations(12, 40, 20);
    let open = |storage: &SimStorage| Store::open(&mut storage.disk(), Path::new(DIR), options(1)).map(drop);
    let (storage, _) = written(12, &log, 3);
    for copy in [0, 1] {
        storage.damage(&superblock(), copy * COPY_STRIDE, |sector| sector[100] ^= 1);
    }
    let refused = open(&storage);
    assert!(matches!(&refused, Err(Error::Corrupt { path, offset: 0, .. }) if *path == superblock()), "{refused:?}");

    let (storage, _) = written(12, &log, 3);
    storage.disk().remove(&superblock()).unwrap();
    assert!(matches!(open(&storage), Err(Error::Corrupt { .. })));

    let (storage, _) = written(12, &log, 3);
    let later = |sector: &mut [u8; 512]| {
        sector[8..12].copy_from_slice(&6_u32.to_le_bytes());
        let crc = crc32fast::hash(&sector[..508]);
        sector[508..].copy_from_slice(&crc.to_le_bytes());
    };
    storage.damage(&superblock(), 0, later);
    assert!(matches!(open(&storage), Err(Error::Format { found: 6, supported: 5, .. })));

    let (storage, _) = written(12, &log, 3);
    let store = Store::open(&mut storage.disk(), Path::new(DIR), options(1)).unwrap();
    assert!(matches!(open(&storage), Err(Error::Locked { .. })));
    drop(store);
    open(&storage).unwrap();
}

/// Opens, replays and reads everything. `None` if the store refused, as damage.
fn read_all(storage: &SimStorage, log: &[Operation], trimmed: u64) -> Option<replay::Shown> {
    let result = Member::open(storage, options(1), log, trimmed).and_then(|mut member| {
        let view = member.store.mvcc().view();
        shown(&view, &mut member.disk)
    });
    match result {
        Ok(shown) => Some(shown),
        Err(Error::Corrupt { path, .. }) => {
            assert!(path.starts_with(DIR), "the whole path is named: {}", path.display());
            None
        }
        Err(other) => panic!("{other}"),
    }
}

/// What an offline check names.
fn damages(storage: &SimStorage) -> usize {
    let mut named = 0;
    let mut disk = storage.disk();
    let lock = disk.lock(Path::new(DIR)).unwrap();
    let checked = engine::inspect::verify(&mut disk, Path::new(DIR), &lock, &mut |error| {
        assert!(matches!(error, Error::Corrupt { path, .. } if path.starts_with(DIR)), "{error}");
        named += 1;
    });
    match checked {
        Ok(checked) => assert!(checked.nodes > 0 && checked.records > 0),
        Err(Error::Corrupt { .. }) => named += 1,
        Err(other) => panic!("{other}"),
    }
    named
}

#[test]
fn a_flipped_bit_anywhere_is_refused_or_harmless() {
    let log = operations(13, 150, 40);
    let expected = model_shown(&log);
    let mut random = Random::new(13);
    let (mut refused, mut harmless) = (0, 0);
    let (storage, _) = written(13, &log, 4);
    let files = storage.paths();
    assert!(files.len() >= 3, "{files:?}");
    for path in files {
        let sectors = storage.content(&path).unwrap().len() as u64 / 512;
        for sector in 0..sectors {
            let (storage, trimmed) = written(13, &log, 4);
            let bit = usize::try_from(random.below(4096)).unwrap();
            let is_blank = storage.content(&path).unwrap()[usize::try_from(sector * 512).unwrap()..][..512] == [0; 512];
            if is_blank && random.chance(9, 10) {
                continue;
            }
            storage.damage(&path, sector * 512, |bytes| bytes[bit / 8] ^= 1 << (bit % 8));
            match read_all(&storage, &log, trimmed) {
                Some(shown) => {
                    assert_eq!(shown, expected, "{} sector {sector} bit {bit}", path.display());
                    harmless += 1;
                }
                None => {
                    assert!(damages(&storage) > 0, "{} sector {sector} bit {bit} is named", path.display());
                    refused += 1;
                }
            }
        }
    }
    assert_eq!(damages(&storage), 0, "nothing else is");
    assert!(refused > 20 && harmless > 20, "refused {refused}, harmless {harmless}");
}

#[test]
fn a_page_in_the_place_of_another_and_a_missing_file_are_refused() {
    let log = operations(14, 100, 40);
    let (storage, trimmed) = written(14, &log, 2);
    let segments: Vec<_> = storage.paths().into_iter().filter(|path| path.extension().is_some()).collect();
    let content = storage.content(&segments[0]).unwrap();
    let mut refused = 0;
    for from in 0..content.len() / 4096 {
        let (storage, trimmed) = written(14, &log, 2);
        let to = (from + 1) % (content.len() / 4096);
        if content[from * 4096..][..4096] == content[to * 4096..][..4096] {
            continue;
        }
        for sector in 0..8 {
            let bytes = &content[from * 4096 + sector * 512..][..512];
            let at = (to * 4096 + sector * 512) as u64;
            storage.damage(&segments[0], at, |sector| sector.copy_from_slice(bytes));
        }
        match read_all(&storage, &log, trimmed) {
            Some(shown) => assert_eq!(shown, model_shown(&log)),
            None => refused += 1,
        }
    }
    assert!(refused > 0);
    storage.disk().remove(&segments[0]).unwrap();
    assert_eq!(read_all(&storage, &log, trimmed), None);
}

/// Seeds that once failed, and some that did not.
const FAULT_SEEDS: std::ops::Range<u64> = 0..60;

#[test]
fn with_every_fault_the_store_recovers_or_refuses() {
    let (mut recovered, mut refused, mut failed, mut emptied) = (0, 0, 0, 0);
    for seed in FAULT_SEEDS {
        println!("seed {seed}");
        let log = operations(seed, 250, 80);
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        let mut random = Random::new(seed);
        let small = Options { segment_bytes: 16 << 10, ..options(1 + usize::try_from(seed % 2).unwrap()) };
        let mut member = Member::open(&storage, small, &[], 0).unwrap();
        let rate = [0, 0, 10, 30][usize::try_from(seed % 4).unwrap()];
        let other = 30 - rate;
        storage.set_faults(Faults {
            write_error: rate,
            sync_error: rate,
            read_error: 20,
            lost: other / 3,
            misdirected: other / 3,
            corrupt: other / 3,
        });
        let mut job = None;
        let mut result = Ok(());
        while result.is_ok() && member.applied < log.len() {
            result = match (&mut job, random.below(12)) {
                (_, 0) => member.sweep(50).map(drop),
                (_, 10..12) => member.reclaim(20).map(drop),
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
        emptied += member.store.reclaimed().segments;
        if let Err(error) = result {
            // What was evicted, and what is moved, is read again, and may have been lost by then.
            assert!(matches!(error, Error::Io { .. } | Error::Corrupt { .. }), "{error}");
            if let Some(mut job) = job.filter(|_| matches!(error, Error::Io { .. })) {
                let again = job.step(&mut member.disk);
                assert!(matches!(again, Err(Error::Stopped)), "after an I/O error nothing is tried");
            }
            failed += 1;
        }
        let log = &log[..member.applied];
        let trimmed = member.trimmed;
        drop(member);
        let image = storage.crash();
        let opened = Store::open(&mut image.disk(), Path::new(DIR), options(1)).map(|store| store.applied().0);
        // A superblock that was lost twice leaves a state older than the log, which the log's owner sees.
        if opened.is_ok_and(|applied| applied < trimmed) {
            refused += 1;
            continue;
        }
        match read_all(&image, log, trimmed) {
            Some(shown) => {
                assert_eq!(shown, model_shown(log), "seed {seed}");
                recovered += 1;
            }
            None => refused += 1,
        }
    }
    assert!(recovered > 10 && refused > 3 && failed > 5, "{recovered} recovered, {refused} refused, {failed} failed");
    assert!(emptied > 100, "{emptied} segments were emptied");
}

fn churn(member: &mut Member, log: &mut Vec<Operation>, rounds: usize, value_bytes: usize) {
    for round in 0..rounds {
        let changes = |chunk: u64| {
            let key = |number: u64| Bytes::from(format!("key/{number:04}"));
            let value = Bytes::from(vec![u8::try_from(round % 256).unwrap(); value_bytes]);
            (chunk * 8..chunk * 8 + 8).map(|number| Change::Put(key(number), value.clone())).collect()
        };
        log.extend((0..8).map(|chunk| Operation::Write(changes(chunk))));
        log.push(Operation::Compact(100));
        while member.applied < log.len() {
            member.apply(log).unwrap();
        }
        member.sweep(10_000).unwrap();
        member.checkpoint().unwrap();
        // Records leave memory with the next publish.
        log.push(Operation::Nothing);
        member.apply(log).unwrap();
    }
}

#[test]
fn overwriting_for_ever_takes_bounded_space() {
    let storage = SimStorage::new(17);
    let mut log = Vec::new();
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    churn(&mut member, &mut log, 10, 400);
    let sizes = member.store.sizes();
    for reopened in 0..8 {
        churn(&mut member, &mut log, 10, 400);
        let now = member.store.sizes();
        assert!(now.allocated <= 2 * sizes.allocated, "{now:?} after {sizes:?}, reopened {reopened} times");
        let files: u64 = storage.paths().iter().map(|path| storage.content(path).unwrap().len() as u64).sum();
        assert!(now.allocated <= files + (1 << 10), "what is told is there: {now:?}, {files}");
        member.store.verify(&mut member.disk).unwrap();
        let trimmed = member.trimmed;
        drop(member);
        member = Member::open(&storage, options(1), &log, trimmed).unwrap();
    }
    member.check(&model_shown(&log));
}

#[test]
fn a_view_that_is_held_keeps_what_it_reads() {
    let storage = SimStorage::new(18);
    let mut log = Vec::new();
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    churn(&mut member, &mut log, 2, 600);
    member.checkpoint().unwrap();
    drop(member);
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    // Nothing of this view is in memory yet.
    let held = member.store.mvcc().view();
    let expected = model_shown(&log);
    churn(&mut member, &mut log, 12, 600);
    assert_eq!(shown(&held, &mut member.disk).unwrap(), expected);
    let while_held = member.store.sizes().allocated;
    drop(held);
    churn(&mut member, &mut log, 1, 600);
    assert!(member.store.sizes().allocated < while_held / 2, "and lets go of it after");
}

#[test]
fn the_state_before_the_newest_survives_the_removal_of_dead_files() {
    let mut removed = 0;
    for rounds in 3..9 {
        for steps in 0..12 {
            let storage = SimStorage::new(23);
            let mut log = Vec::new();
            let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
            churn(&mut member, &mut log, rounds, 600);
            let newest = member.store.generation();
            let files = storage.paths().len();
            let mut job = member.store.checkpoint_begin();
            (0..steps).for_each(|_| assert!(!member.step(&mut job).unwrap()));
            removed += usize::from(storage.paths().len() < files);
            let trimmed = member.trimmed;
            drop((member, job));
            let storage = storage.crash();
            storage.damage(&superblock(), newest % 2 * COPY_STRIDE, |sector| sector[3] ^= 1);
            let mut member = Member::open(&storage, options(1), &log, trimmed).unwrap();
            assert_eq!(member.store.generation(), newest - 1);
            member.check(&model_shown(&log));
            member.store.verify(&mut member.disk).unwrap();
        }
    }
    assert!(removed > 0, "files were removed meanwhile");
}

/// Steps a checkpoint until only the write of its superblock is left, in flight.
fn stop_at_the_superblock(member: &mut Member, storage: &SimStorage) -> engine::Checkpoint {
    storage.set_order(Order::Manual);
    let mut job = member.store.checkpoint_begin();
    loop {
        let progress = job.step(&mut member.disk).unwrap();
        assert!(!matches!(progress, Progress::Done(_)), "its superblock is in flight first");
        let in_flight = storage.in_flight();
        if in_flight.iter().any(|flight| flight.path == superblock()) {
            return job;
        }
        in_flight.iter().for_each(|flight| storage.complete(flight.number));
        let mut completions = Vec::new();
        member.disk.completions(&mut completions);
        completions.into_iter().for_each(|completion| job.on_completion(completion).unwrap());
    }
}

#[test]
fn a_page_that_a_checkpoint_is_still_writing_stays_in_memory() {
    let log = operations(23, 2600, 30_000);
    let (storage, trimmed) = written(23, &log[..2000], 3);
    storage.set_order(Order::Seeded);
    let mut member = Member::open(&storage, options(2), &log[..2000], trimmed).unwrap();
    let mut evicted = 0;
    for end in [2050, 2100, 2500, 2600] {
        while member.applied < end {
            member.apply(&log[..end]).unwrap();
        }
        let expected = model_shown(&log[..end]);
        let mut job = member.store.checkpoint_begin();
        while !member.step(&mut job).unwrap() {
            let mvcc = member.store.mvcc_mut();
            // The first round takes away the marks that searches left.
            evicted += (0..3).map(|_| mvcc.evict(usize::MAX).evicted).sum::<usize>();
            let view = mvcc.publish(end as u64, replay::term(end as u64));
            assert_eq!(shown(&view, &mut storage.disk()).unwrap(), expected);
        }
    }
    assert!(evicted > 5, "{evicted}");
}

#[test]
fn what_a_checkpoint_wrote_is_given_up_though_the_clock_was_at_rest() {
    let log = operations(24, 2000, 3000);
    let storage = SimStorage::new(24);
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    let step = |member: &mut Member| {
        member.store.evict(16);
        let view = member.store.mvcc().view();
        let (index, term) = (view.applied_index(), view.applied_term());
        drop(view);
        drop(member.store.mvcc_mut().publish(index, term));
    };
    // Nothing was written, so nothing can go: the clock finds that out, and rests.
    let full = member.store.mvcc().node_bytes();
    (0..1000).for_each(|_| step(&mut member));
    assert!(!member.store.wants_eviction() && member.store.mvcc().node_bytes() >= full);
    member.checkpoint().unwrap();
    let mut steps = 0;
    while member.store.wants_eviction() && steps < 10_000 {
        step(&mut member);
        steps += 1;
    }
    let left = member.store.mvcc().node_bytes();
    assert!(left < full / 4, "{left} of {full} bytes after {steps} steps");
}

#[test]
fn what_a_view_held_does_not_keep_the_clock_at_rest_for_ever() {
    let log = operations(24, 2000, 3000);
    let storage = SimStorage::new(24);
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    member.checkpoint().unwrap();
    let step = |member: &mut Member| {
        while member.store.wants_eviction() {
            let bytes = member.store.mvcc().node_bytes();
            member.store.evict(16);
            let view = member.store.mvcc().view();
            let (index, term) = (view.applied_index(), view.applied_term());
            drop(view);
            drop(member.store.mvcc_mut().publish(index, term));
            if member.store.mvcc().node_bytes() == bytes && !member.store.wants_eviction() {
                break;
            }
        }
        member.store.balance();
    };
    let held = member.store.mvcc().view();
    let full = member.store.mvcc().node_bytes();
    step(&mut member);
    assert!(
        member.store.mvcc().node_bytes() >= full && !member.store.wants_eviction(),
        "it is held, and looked for in vain"
    );
    drop(held);
    member.store.balance();
    // All of it is read again: as much as when the clock came to rest.
    let view = member.store.mvcc().view();
    engine::load_for(&mut storage.disk(), member.store.dir(), || view.verify()).unwrap();
    drop(view);
    let read = member.store.mvcc().node_bytes();
    assert!(member.store.wants_eviction(), "{read} of {full} bytes");
    step(&mut member);
    let left = member.store.mvcc().node_bytes();
    assert!(left < read / 4, "{left} of {read} bytes");
}

#[test]
fn a_superblock_found_after_a_kill_is_made_durable_before_it_is_built_upon() {
    let mut built_upon = 0;
    for seed in 0..8 {
        let storage = SimStorage::new(seed);
        let mut log = Vec::new();
        let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
        churn(&mut member, &mut log, 5, 600);
        let job = stop_at_the_superblock(&mut member, &storage);
        let (generation, trimmed) = (member.store.generation(), member.trimmed);
        drop((member, job));
        let killed = storage.kill();
        killed.set_order(Order::Submission);
        let mut member = Member::open(&killed, options(1), &log, trimmed).unwrap();
        built_upon += usize::from(member.store.generation() > generation);
        let job = stop_at_the_superblock(&mut member, &killed);
        let trimmed = member.trimmed.max(member.store.trimmable().0);
        drop((member, job));
        for image in killed.crash_images(32) {
            image.set_order(Order::Submission);
            let mut member = Member::open(&image, options(1), &log, trimmed).unwrap();
            member.check(&model_shown(&log));
            member.store.verify(&mut member.disk).unwrap();
        }
    }
    assert!(built_upon > 0, "some kills leave the new superblock");
}

#[test]
fn a_store_killed_while_it_was_created_keeps_what_comes_after() {
    let log = operations(25, 30, 20);
    let expected = model_shown(&log);
    for steps in 0..10 {
        let storage = SimStorage::new(25);
        storage.stop_after(steps);
        drop(Store::open(&mut storage.disk(), Path::new(DIR), options(1)));
        let killed = storage.kill();
        let mut member = Member::open(&killed, options(1), &log, 0).unwrap();
        member.checkpoint().unwrap();
        member.checkpoint().unwrap();
        let trimmed = member.trimmed;
        assert_eq!(trimmed, log.len() as u64);
        drop(member);
        for image in killed.crash_images(32) {
            Member::open(&image, options(1), &log, trimmed).unwrap().check(&expected);
        }
    }
}

#[test]
fn a_reader_with_few_files_and_few_reads_brings_every_page() {
    let log = operations(19, 400, 200);
    let (storage, _) = written(19, &log, 6);
    let mut disk = storage.disk();
    let store = Store::open(&mut disk, Path::new(DIR), options(1)).unwrap();
    storage.set_order(Order::Seeded);
    let view = store.mvcc().view();
    let mut reader = PageReader::new(Path::new(DIR), 2, 3, Arc::default());
    let mut cursors: Vec<_> = (0..20).map(|_| (view.cursor(&KeyRange::all(), view.revision()), 0_u64)).collect();
    let mut runnable: Vec<u64> = (0..20).collect();
    let mut completions = Vec::new();
    while !runnable.is_empty() || !reader.is_idle() {
        for ticket in std::mem::take(&mut runnable) {
            let (cursor, count) = &mut cursors[usize::try_from(ticket).unwrap()];
            loop {
                match cursor.next() {
                    Ok(Some(_)) => *count += 1,
                    Ok(None) => break,
                    Err(fault) => {
                        reader.read(fault, ticket);
                        break;
                    }
                }
            }
        }
        assert!(reader.step(&mut disk).is_empty(), "every file is there");
        assert!(storage.in_flight().len() <= 3);
        if !reader.is_idle() {
            disk.wait().unwrap();
        }
        disk.completions(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(Owner::of(completion.token), Owner::Pages);
            for loaded in reader.on_completion(completion) {
                loaded.result.unwrap();
                runnable.extend(loaded.tickets);
            }
        }
    }
    let expected = model_shown(&log);
    let live = shown(&view, &mut disk).unwrap();
    assert_eq!(live, expected);
    let count = view.count(&KeyRange::all(), view.revision()).unwrap();
    assert!(count > 50 && cursors.iter().all(|(_, counted)| *counted == count));
}

#[test]
fn a_reader_lets_go_of_files_that_nobody_reads() {
    let log = operations(27, 200, 100);
    let (storage, _) = written(27, &log, 2);
    let mut disk = storage.disk();
    let store = Store::open(&mut disk, Path::new(DIR), options(1)).unwrap();
    let fault = store.mvcc().view().version_of(b"key", i64::MAX).unwrap_err();
    let mut reader = PageReader::new(Path::new(DIR), 4, 4, Arc::default());
    let reads = |reader: &mut PageReader, disk: &mut dyn Disk| {
        reader.read(fault.clone(), 0);
        if !reader.step(disk).is_empty() {
            return false;
        }
        disk.wait().unwrap();
        let mut completions = Vec::new();
        disk.completions(&mut completions);
        completions
            .into_iter()
            .flat_map(|completion| reader.on_completion(completion))
            .all(|loaded| loaded.result.is_ok())
    };
    assert!(reads(&mut reader, &mut disk));
    disk.remove(&Path::new(DIR).join(fault.place().path())).unwrap();
    reader.close_unused(&mut disk);
    assert!(reads(&mut reader, &mut disk), "what is in use stays open");
    reader.close_unused(&mut disk);
    assert!(reads(&mut reader, &mut disk), "it was read since the last time");
    reader.close_unused(&mut disk);
    reader.close_unused(&mut disk);
    assert!(!reads(&mut reader, &mut disk), "the file was closed, and so its space is free");
}

#[test]
fn shards_write_on_their_own_threads_and_disks() {
    let log = operations(20, 400, 200);
    let storage = SimStorage::new(20);
    let mut member = Member::open(&storage, options(3), &log, 0).unwrap();
    let mut job = member.store.checkpoint_begin();
    let shards = job.split();
    assert_eq!(shards.len(), 3);
    let shards = std::thread::scope(|scope| {
        let run = |mut shard: engine::ShardJob| {
            let mut disk = storage.disk();
            let mut completions = Vec::new();
            loop {
                match shard.step(&mut disk).unwrap() {
                    ShardProgress::Done => return shard,
                    ShardProgress::Working => disk.kick().unwrap(),
                    ShardProgress::Waiting => disk.wait().unwrap(),
                }
                disk.completions(&mut completions);
                completions.drain(..).for_each(|completion| shard.on_completion(completion).unwrap());
            }
        };
        let threads: Vec<_> = shards.into_iter().map(|shard| scope.spawn(move || run(shard))).collect();
        threads.into_iter().rev().map(|thread| thread.join().unwrap()).collect()
    });
    job.join(shards);
    let done = job.run(&mut member.disk).unwrap();
    member.store.checkpoint_end(done);
    member.store.verify(&mut member.disk).unwrap();
    drop(member);
    let mut member = Member::open(&storage.crash(), options(1), &log, 0).unwrap();
    assert_eq!(member.store.applied().0, log.len() as u64);
    member.check(&model_shown(&log));
}

#[test]
fn large_records_and_long_keys_have_their_own_blocks_and_segments() {
    let storage = SimStorage::new(21);
    let put = |key: Bytes, len: usize| Operation::Write(vec![Change::Put(key, Bytes::from(vec![9; len]))]);
    let log = vec![
        put(Bytes::from_static(b"a"), 300_000),
        put(Bytes::from(vec![7; 100_000]), 10),
        put(Bytes::from_static(b"c"), 65_536),
        put(Bytes::from_static(b"a"), 0),
    ];
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    member.checkpoint().unwrap();
    drop(member);
    let mut member = Member::open(&storage, options(1), &log, 0).unwrap();
    member.check(&model_shown(&log));
    member.store.verify(&mut member.disk).unwrap();
    assert!(storage.content(&Path::new(DIR).join(segment_path(1))).unwrap().len() > 300_000);
}

#[test]
fn every_file_in_the_directory_is_opened_with_a_name_of_ours() {
    let log = operations(22, 50, 20);
    let (storage, trimmed) = written(22, &log, 2);
    let mut disk = storage.disk();
    for name in ["+1.seg", "1.seg", "00000000.seg", "x.seg", "00000001.seg.bak"] {
        let file = disk.open(&Path::new(DIR).join("pages").join(name), OpenKind::Create { len: 4096 }).unwrap();
        disk.close(file);
    }
    let mut member = Member::open(&storage, options(1), &log, trimmed).unwrap();
    for _ in 0..4 {
        member.checkpoint().unwrap();
    }
    member.check(&model_shown(&log));
    assert!(storage.paths().iter().any(|path| path.ends_with("+1.seg")), "what is not ours is left alone");
    let view: Arc<_> = member.store.mvcc().view();
    assert_eq!(view.applied_index(), log.len() as u64);
}

/// Writes, checkpoints and reopens on a real file system; what showed each time has to be what the log says.
fn works_on(preference: Preference, dir: &Path) -> IoPath {
    let log = operations(24, 600, 200);
    let options = Options { shards: 2, segment_bytes: 256 << 10, ..options(2) };
    for part in 1..=4 {
        let (mut disk, path) = open_disk(preference, dir).unwrap();
        let mut store = Store::open(&mut *disk, dir, options).unwrap();
        let first = usize::try_from(store.applied().0).unwrap();
        let log = &log[..log.len() * part / 4];
        for (position, operation) in log.iter().enumerate().skip(first) {
            let index = position as u64 + 1;
            apply(store.mvcc_mut(), index, operation, |fault| engine::load(&mut *disk, dir, fault)).unwrap();
            if position % 40 == 39 {
                engine::load_for(&mut *disk, dir, || store.sweep(1000)).unwrap();
                let done = store.checkpoint_begin().run(&mut *disk).unwrap();
                store.checkpoint_end(done);
            }
        }
        store.verify(&mut *disk).unwrap();
        let view = store.mvcc().view();
        assert_eq!(shown_in(dir, &view, &mut *disk).unwrap(), model_shown(log), "{path}");
        let again = Store::open(&mut *disk, dir, options);
        assert!(matches!(again, Err(Error::Locked { .. })), "{path}");
        if part == 4 {
            return path;
        }
    }
    unreachable!("the last part returns")
}

#[test]
fn the_store_works_on_every_path_to_a_real_disk() {
    for preference in [Preference::Auto, Preference::Portable] {
        let dir = tempfile::tempdir().unwrap();
        let path = works_on(preference, dir.path());
        println!("{path}");
        let is_refused = std::env::var_os("ORLOP_TESTS_WITHOUT_IO_URING").is_some();
        let is_portable = preference == Preference::Portable || is_refused;
        assert_eq!(path.kind, if is_portable { IoKind::Portable } else { IoKind::Uring }, "{path}");
    }
}
