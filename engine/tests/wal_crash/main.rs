//! The log over the simulated medium: whatever a crash leaves, nothing acknowledged is missing and nothing is invented.
//!
//! Workloads run until the medium stops, after every single step in turn; each legal image is opened, checked
//! (`bench`), written to and crashed once more.

#[cfg(test)]
mod bench;

use std::path::{Path, PathBuf};

use bytes::Bytes;
use engine::{
    Error,
    disk::{
        Disk, FileOp, IoKind, IoPath, Preference, open_disk,
        sim::{FaultKind, Faults, Order, Random, SimStorage},
    },
    wal::{Entry, HardState, Known, Options, Wal},
};

use bench::{Bench, Change, DIR, KEPT_SEEDS, State, check_image, fresh_entries, options, stop_and_check};

#[test]
fn nothing_acknowledged_is_missing_after_any_step_in_every_image() {
    // One write in flight and tiny entries: few sectors differ, so that nearly every legal image is opened.
    for steps in 0.. {
        if stop_and_check(1, steps, options(4, 1), 150, 60, 120) {
            assert!(steps > 30, "the workload is worth its name");
            return;
        }
    }
}

#[test]
fn nothing_acknowledged_is_missing_with_writes_in_flight_at_once() {
    for (seed, in_flight) in [(2, 2), (3, 3)] {
        for steps in 0.. {
            if stop_and_check(seed, steps, options(8, in_flight), 120, 2500, 24) {
                assert!(steps > 60, "the workload is worth its name");
                break;
            }
        }
    }
}

#[test]
fn entries_larger_than_a_segment_get_a_larger_one() {
    for seed in 1..=3 {
        for steps in 0.. {
            if stop_and_check(seed, steps, options(4, 2), 60, 60_000, 6) {
                assert!(steps > 60, "the workload is worth its name");
                break;
            }
        }
    }
    let (clean, options) = written(9, 12, 3_000_000, 2);
    let (bench, recovered) = Bench::open(&clean, options).expect("it opens");
    assert_eq!(recovered.entries.len(), 12);
    assert!(recovered.entries.iter().any(|entry| entry.data.len() > 8 * options.segment_bytes as usize));
    drop(bench);
}

#[test]
fn random_workloads_survive_a_crash_at_a_random_step() {
    for seed in KEPT_SEEDS.into_iter().chain(100..400) {
        let mut random = Random::new(seed ^ 0xabcd);
        let in_flight = usize::try_from(random.below(3)).expect("small") + 1;
        let blocks = u32::try_from(4 + random.below(12)).expect("small");
        let steps = random.below(250);
        stop_and_check(seed, steps, options(blocks, in_flight), 200, 200 + random.below(6000), 6);
    }
}

/// A log with `groups` durable groups of one entry each, crashed cleanly.
fn written(seed: u64, groups: u64, len: u64, in_flight: usize) -> (SimStorage, Options) {
    let storage = SimStorage::new(seed);
    let options = options(64, in_flight);
    let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
    let mut random = Random::new(seed);
    for index in 1..=groups {
        bench.append(fresh_entries(&mut random, index, 1, 1, len), None).expect("the log runs");
        bench.settle().expect("the log runs");
    }
    (storage.crash(), options)
}

/// A log over several segments, at work: `groups` durable groups of one entry each.
fn filled_segments(seed: u64, groups: u64) -> (Bench, SimStorage, Options) {
    let storage = SimStorage::new(seed);
    let options = Options { spare_segments_max: 0, ..options(4, 2) };
    let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
    let mut random = Random::new(seed);
    for index in 1..=groups {
        bench.append(fresh_entries(&mut random, index, 1, 1, 900), None).expect("the log runs");
        bench.settle().expect("the log runs");
    }
    (bench, storage, options)
}

#[test]
fn damage_before_the_tail_is_refused_with_file_and_offset() {
    let (clean, options) = written(5, 60, 700, 2);
    let path = clean.paths().into_iter().find(|path| path.ends_with("00000001.wal")).expect("the first segment");
    let content = clean.content(&path).expect("it exists");
    let end = content.iter().rposition(|byte| *byte != 0).expect("it was written");
    // The last group may be taken for one that was never acknowledged; everything before it may not.
    let last_group = content.windows(5).rposition(|bytes| bytes == b"group").expect("groups have heads") - 11;
    assert!(last_group > 3 * 4096 && end > last_group);
    for offset in (0..last_group).step_by(97) {
        let image = clean.crash();
        let sector = u64::try_from(offset).expect("small");
        image.damage(&path, sector, |bytes| bytes[offset % 512] ^= 0x40);
        match Bench::open(&image, options) {
            Err(Error::Corrupt { path: named, offset: at, .. }) => {
                assert_eq!(named, path);
                assert!(at <= sector, "offset {offset} is reported as {at}");
            }
            Err(error) => panic!("offset {offset}: {error}"),
            // A byte between the header's fields and the first frame, or in the padding behind a group, means nothing.
            Ok((_, recovered)) => {
                assert_eq!(recovered.entries.len(), 60, "offset {offset}");
                assert_eq!(content[offset], 0, "offset {offset}");
            }
        }
    }
}

#[test]
fn damage_in_the_last_group_cuts_nothing_before_it() {
    let (clean, options) = written(6, 9, 700, 1);
    let path = clean.paths().into_iter().find(|path| path.ends_with("00000001.wal")).expect("the first segment");
    let content = clean.content(&path).expect("it exists");
    let last_group = content.windows(5).rposition(|bytes| bytes == b"group").expect("groups have heads") - 11;
    clean.damage(&path, last_group as u64 + 60, |bytes| bytes[(last_group + 60) % 512] ^= 1);
    let (_, recovered) = Bench::open(&clean, options).expect("an unfinished group is cut");
    assert_eq!(recovered.entries.len(), 8);
    let (torn, offset) = recovered.truncated_tail.expect("the cut is reported");
    assert_eq!(torn, path);
    assert!(offset >= last_group as u64);
}

#[test]
fn damage_in_the_last_group_is_refused_once_its_end_is_stated() {
    for groups in 1..12 {
        let storage = SimStorage::new(6);
        let options = options(64, 2);
        let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
        let mut random = Random::new(groups);
        for index in 1..=groups {
            bench.append(fresh_entries(&mut random, index, 1, 1, 700), None).expect("the log runs");
            bench.settle().expect("the log runs");
        }
        let bytes = bench.wal.len_bytes();
        for _ in 0..5 {
            bench.wal.state_end();
            bench.pump().expect("the log runs");
        }
        assert!((bytes..bytes + 4200).contains(&bench.wal.len_bytes()), "it takes a block");
        let clean = storage.crash();
        let (_, recovered) = Bench::open(&clean.crash(), options).expect("it is whole");
        assert_eq!((recovered.entries.len() as u64, &recovered.truncated_tail), (groups, &None));
        let path = Path::new(DIR).join("00000001.wal");
        let content = clean.content(&path).expect("it exists");
        let heads: Vec<usize> =
            (0..content.len() - 5).filter(|at| content[*at..].starts_with(b"group")).map(|at| at - 11).collect();
        assert_eq!(heads.len() as u64, 1 + groups + 1, "a life, the groups, and the end, once");
        let [.., last, end] = heads[..] else { unreachable!("there are three") };
        assert!(end.is_multiple_of(4096), "the end stands in a block of its own");
        for offset in [last, last + 49, last + 60] {
            let image = clean.crash();
            image.damage(&path, offset as u64, |sector| sector[offset % 512] ^= 1);
            match Bench::open(&image, options) {
                Err(Error::Corrupt { path: named, offset: at, .. }) => assert!(named == path && at <= offset as u64),
                other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
            }
        }
    }
}

/// Power losses at random moments, on devices that lose whole blocks of 4 KiB that were being written. Returns in how
/// many of `seeds` something was missing that had been durable before a pause, and how many blocks were lost. If not
/// `is_stated`, the log does nothing in a pause.
fn lost_blocks(seeds: std::ops::Range<u64>, is_stated: bool) -> (usize, usize) {
    let (mut missing, mut lost) = (0, 0);
    for seed in seeds {
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        let options = options(16, 2);
        let mut random = Random::new(seed);
        let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
        bench.work(&mut random, 30, 900).expect("the log runs");
        let before_pause = bench.wal.durable();
        for _ in 0..20 {
            if is_stated {
                bench.wal.state_end();
            }
            bench.pump().expect("the log runs");
        }
        let next = bench.history.now.last_index() + 1;
        for index in next..next + random.below(3) + 1 {
            let term = bench.history.now.last_term().max(bench.history.now.hard_state.term).max(1);
            bench.append(fresh_entries(&mut random, index, term, 1, 900), None).expect("the log runs");
            if random.chance(1, 2) {
                bench.settle().expect("the log runs");
            }
        }
        bench.wal.step(&mut bench.disk).expect("the log runs");
        let writes = storage.in_flight();
        let image = storage.crash_images(3).pop().expect("there is one");
        let is_unreadable = random.chance(1, 4);
        for write in writes.iter().filter(|write| write.len > 0) {
            for block in (write.offset..write.offset + write.len).step_by(4096) {
                if image.content(&write.path).is_none_or(|content| (content.len() as u64) < block + 4096) {
                    continue;
                }
                lost += 1;
                if is_unreadable {
                    image.make_unreadable(&write.path, block);
                }
                let garbage = random.chance(1, 2).then(|| random.bits().to_le_bytes());
                for sector in (block..block + 4096).step_by(512) {
                    image.damage(&write.path, sector, |bytes| match garbage {
                        Some(garbage) => bytes.copy_from_slice(&garbage.repeat(64)),
                        None => bytes.fill(0),
                    });
                }
            }
        }
        match Bench::open(&image, options) {
            Ok((_, recovered)) => {
                missing += usize::from(!bench.history.allows(&State::of(&recovered), before_pause));
            }
            // Nothing is missing, and a person must look: it cannot be read, or it is the header of a segment.
            Err(Error::Corrupt { offset, .. }) => assert!(is_unreadable || offset == 0, "seed {seed}: at {offset}"),
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
    (missing, lost)
}

#[test]
fn a_block_that_power_loss_takes_whole_holds_nothing_from_before_a_pause() {
    let (missing, lost) = lost_blocks(0..300, true);
    assert!(missing == 0 && lost > 100, "{missing} of {lost}");
    let (missing, lost) = lost_blocks(0..300, false);
    assert!(missing > 20, "without it, {missing} of {lost} losses take what was durable");
}

#[test]
fn damaged_bytes_in_any_segment_are_refused_or_harmless() {
    let (bench, storage, options) = filled_segments(8, 120);
    let mut random = Random::new(8);
    let expected = bench.history.now.clone();
    let segments: Vec<PathBuf> = storage.paths();
    assert!(segments.len() > 3);
    let mut refused = 0;
    for path in &segments {
        for block in 0..4_u64 {
            let image = storage.crash();
            let offset = block * 4096 + random.below(4096);
            image.damage(path, offset, |bytes| bytes.fill(0));
            let before = image.content(path);
            let inspected = engine::wal::inspect(&mut image.disk(), Path::new(DIR));
            assert!(image.content(path) == before, "a look changes nothing");
            match Bench::open(&image, options) {
                Err(Error::Corrupt { .. }) => {
                    assert!(matches!(inspected, Err(Error::Corrupt { .. })), "a look finds what a start refuses");
                    refused += 1;
                }
                Err(error) => panic!("{} at {offset}: {error}", path.display()),
                Ok((_, recovered)) => {
                    let looked = inspected.expect("a look takes what a start takes").expect("there is a log");
                    let last = recovered.entries.last().map_or(recovered.mark, |entry| (entry.index, entry.term));
                    assert_eq!((looked.mark, looked.last), (recovered.mark, last));
                    assert_eq!(
                        (looked.hard_state, looked.torn),
                        (recovered.hard_state, recovered.truncated_tail.clone())
                    );
                    assert_eq!(recovered.hard_state.is_cut, recovered.truncated_tail.is_some());
                    // Only what the last group held may be missing.
                    let found = State::of(&recovered);
                    let kept = expected.entries.len() - 1;
                    assert!(found.entries.len() >= kept, "{} at {offset}: {}", path.display(), found.entries.len());
                    assert!(found.entries[..kept] == expected.entries[..kept]);
                }
            }
        }
    }
    assert!(refused > 4, "only {refused} refused");
}

#[test]
fn missing_segment_is_refused() {
    let (_bench, storage, options) = filled_segments(9, 120);
    let image = storage.crash();
    let mut disk = image.disk();
    disk.remove(&Path::new(DIR).join("00000002.wal")).expect("it is there");
    drop(disk);
    match Bench::open(&image, options) {
        Err(Error::Corrupt { path, .. }) => assert!(path.ends_with("00000003.wal"), "{}", path.display()),
        other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
    }
}

#[test]
fn lost_header_of_a_segment_in_use_is_refused() {
    for groups in [5, 60] {
        let (clean, options) = written(10, groups, 700, 2);
        let path = Path::new(DIR).join("00000001.wal");
        clean.damage(&path, 0, |sector| sector.fill(0));
        match Bench::open(&clean, options) {
            Err(Error::Corrupt { path: named, offset: 0, .. }) => assert_eq!(named, path),
            other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
        }
    }
    let (mut bench, storage, options) = filled_segments(10, 120);
    bench.settle().expect("the log runs");
    let in_use = |path: &PathBuf| storage.content(path).is_some_and(|content| content.starts_with(b"ORLOPWAL"));
    let newest = storage.paths().into_iter().rfind(in_use).expect("segments are in use");
    let image = storage.crash();
    image.damage(&newest, 0, |sector| sector.fill(0));
    match Bench::open(&image, options) {
        Err(Error::Corrupt { path: named, offset: 0, .. }) => assert_eq!(named, newest),
        other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
    }
}

/// Kills the log at random moments, opens it again while writes of the killed process still land, and goes on. Returns
/// in how many of `lives` something acknowledged was missing, or the log did not open.
fn kills(seeds: std::ops::Range<u64>, is_unlocked: bool) -> (usize, usize) {
    let (mut lives, mut failed) = (0, 0);
    for seed in seeds {
        let mut storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        if is_unlocked {
            storage.unlock_files();
        }
        let mut random = Random::new(seed);
        let options = options(8, 3);
        let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
        for _ in 0..12 {
            bench.work(&mut random, 10, 2000).expect("the log runs");
            for _ in 0..4 {
                bench.act(&mut random, 6000).expect("the log runs");
                bench.wal.step(&mut bench.disk).expect("the log runs");
            }
            let durable = bench.wal.durable();
            storage = storage.kill();
            lives += 1;
            let Ok((next, recovered)) = Bench::open(&storage, options) else {
                failed += 1;
                break;
            };
            let found = State::of(&recovered);
            if !bench.history.allows(&found, durable) {
                failed += 1;
                break;
            }
            bench = next;
        }
    }
    (lives, failed)
}

#[test]
fn writes_of_a_killed_process_are_waited_for() {
    assert_eq!(kills(0..150, false).1, 0);
    let (lives, failed) = kills(0..150, true);
    assert!(failed > 5, "without a lock, {failed} of {lives} lives find a broken log");
}

#[test]
fn lost_header_is_refused_though_the_first_group_is_long() {
    let storage = SimStorage::new(14);
    let options = options(1024, 2);
    let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
    let entry = |index, len| Entry { index, term: 1, kind: 0, data: Bytes::from(vec![5; len]) };
    // The first segment is nearly full, so the long entry begins the second one.
    for (index, len) in [(1, 3_900_000), (2, 1_500_000), (3, 10)] {
        bench.append(vec![entry(index, len)], None).expect("the log runs");
        bench.settle().expect("the log runs");
    }
    let image = storage.crash();
    let path = Path::new(DIR).join("00000002.wal");
    assert!(image.content(&path).expect("it exists").starts_with(b"ORLOPWAL"));
    image.damage(&path, 0, |sector| sector.fill(0));
    match Bench::open(&image, options) {
        Err(Error::Corrupt { path: named, offset: 0, .. }) => assert_eq!(named, path),
        other => panic!("{:?}", other.map(|(_, recovered)| recovered)),
    }
}

/// The segments in `image` with headers of their own, in order.
fn segments_in_use(image: &SimStorage) -> Vec<PathBuf> {
    let is_own = |path: &PathBuf| {
        let content = image.content(path).expect("it exists");
        let sequence = content.get(12..16).map_or(0, |word| u32::from_le_bytes(word.try_into().expect("four bytes")));
        content.starts_with(b"ORLOPWAL") && path.ends_with(format!("{sequence:08x}.wal"))
    };
    image.paths().into_iter().filter(is_own).collect()
}

#[test]
fn lost_header_of_the_newest_segment_is_refused_though_the_one_before_it_is_gone() {
    let (mut apart, mut refused) = (0, 0);
    for seed in 0..40 {
        let storage = SimStorage::new(seed);
        let options = options(6, 2);
        let mut random = Random::new(seed);
        let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
        for index in 1..=80 {
            bench.append(fresh_entries(&mut random, index, 1, 1, 3000), None).expect("the log runs");
            bench.settle().expect("the log runs");
            if random.chance(1, 12) && index > 1 {
                bench.trim(index - 1, 1).expect("the log runs");
                bench.settle().expect("the log runs");
            }
            let image = storage.crash();
            let in_use = segments_in_use(&image);
            let [.., before, newest] = &in_use[..] else { continue };
            let number = |path: &PathBuf| u32::from_str_radix(path.file_stem()?.to_str()?, 16).ok();
            if number(before).map(|number| number + 1) == number(newest) {
                continue;
            }
            apart += 1;
            for is_flipped in [true, false] {
                let damaged = image.crash();
                if is_flipped {
                    damaged.damage(newest, 40, |sector| sector[40] ^= 1);
                } else {
                    damaged.make_unreadable(newest, 0);
                }
                match Bench::open(&damaged, options) {
                    Err(Error::Corrupt { path, offset: 0, .. }) => {
                        assert_eq!(&path, newest, "seed {seed}");
                        refused += 1;
                    }
                    other => panic!("seed {seed}: {:?}", other.map(|(_, recovered)| recovered.mark)),
                }
            }
        }
    }
    assert!(apart > 10 && refused == 2 * apart, "{apart} logs with a gap, {refused} refused");
}

#[test]
fn a_block_of_a_spare_that_cannot_be_read_is_no_damage_and_the_first_of_a_segment_in_use_is() {
    let (bench, storage, options) = filled_segments(15, 56);
    drop(bench);
    let clean = storage.crash();
    let is_in_use = |path: &PathBuf| clean.content(path).is_some_and(|content| content.starts_with(b"ORLOPWAL"));
    let segments: Vec<_> = clean.paths().into_iter().filter(|path| path.extension().is_some()).collect();
    assert!(segments.iter().any(is_in_use) && !segments.iter().all(is_in_use));
    for path in segments {
        let blocks = if is_in_use(&path) { 1 } else { u64::from(options.segment_bytes) / 4096 };
        for block in 0..blocks {
            let image = clean.crash();
            image.make_unreadable(&path, block * 4096);
            match Bench::open(&image, options) {
                Ok((_, recovered)) => {
                    assert!(!is_in_use(&path), "{}", path.display());
                    assert_eq!(recovered.entries.len(), 56);
                }
                Err(error) => {
                    assert!(is_in_use(&path), "block {block} of {}: {error}", path.display());
                    assert!(matches!(error, Error::Corrupt { .. }), "{}: {error}", path.display());
                }
            }
        }
    }
}

#[test]
fn group_behind_a_lost_one_never_revives() {
    let storage = SimStorage::new(11);
    let options = options(8, 2);
    let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
    storage.set_order(Order::Manual);
    let entry = |index| Entry { index, term: 1, kind: 0, data: Bytes::from(vec![5; 100]) };
    for index in [1, 2] {
        bench.append(vec![entry(index)], None).expect("the log runs");
        bench.pump().expect("the log runs");
    }
    let writes: Vec<_> = storage.in_flight().into_iter().filter(|write| write.path.ends_with("00000001.wal")).collect();
    assert_eq!(writes.len(), 2, "both groups are in flight");
    storage.complete(writes[1].number);
    let image = storage.crash_images(2).swap_remove(0);
    image.set_order(Order::Submission);
    // The first group is lost, the second is there; now the same first group is written once more.
    let (mut bench, recovered) = Bench::open(&image, options).expect("an unfinished group is cut");
    assert_eq!(recovered.entries, [], "nothing was acknowledged");
    assert!(recovered.truncated_tail.is_some());
    bench.append(vec![entry(1)], None).expect("the log runs");
    bench.settle().expect("the log runs");
    let (_, recovered) = Bench::open(&image.crash(), options).expect("it opens");
    assert_eq!(recovered.entries, [entry(1)], "the group behind the lost one stays gone");
}

#[test]
fn entries_outlive_a_replacement_that_is_not_durable() {
    let (mut bench, storage, options) = filled_segments(12, 48);
    let (first, last) = (bench.history.now.entries[25].clone(), bench.history.now.last_index());
    storage.set_order(Order::Manual);
    bench.trim(first.index, first.term).expect("the log runs");
    bench.pump().expect("the log runs");
    let entry = Entry { index: first.index + 1, term: 2, kind: 0, data: Bytes::from_static(b"in its place") };
    bench.append(vec![entry], None).expect("the log runs");
    bench.pump().expect("the log runs");
    let groups: Vec<_> = storage.in_flight().into_iter().filter(|write| write.path.ends_with("00000003.wal")).collect();
    assert_eq!(groups.len(), 2, "the mark and the replacement are in flight");
    storage.complete(groups[0].number);
    for _ in 0..3 {
        bench.pump().expect("the log runs");
    }
    for (number, image) in storage.crash_images(64).into_iter().enumerate() {
        image.set_order(Order::Submission);
        let (_, recovered) = Bench::open(&image, options).unwrap_or_else(|error| panic!("image {number}: {error}"));
        assert_eq!(recovered.mark, (first.index, first.term), "image {number}");
        let kept = recovered.mark.0 + recovered.entries.len() as u64;
        assert!(kept == last || kept == first.index + 1, "image {number}: ends at {kept}");
    }
}

#[test]
fn entries_outlive_a_mark_that_is_not_durable() {
    let (mut bench, storage, options) = filled_segments(13, 52);
    let last = bench.history.now.last_index();
    let marks = [10, 40].map(|at: usize| bench.history.now.entries[at].clone());
    storage.set_order(Order::Manual);
    for mark in &marks {
        bench.trim(mark.index, mark.term).expect("the log runs");
        bench.pump().expect("the log runs");
    }
    let groups: Vec<_> = storage.in_flight().into_iter().filter(|write| write.path.ends_with("00000003.wal")).collect();
    assert_eq!(groups.len(), 2, "both marks are in flight");
    storage.complete(groups[0].number);
    for _ in 0..3 {
        bench.pump().expect("the log runs");
    }
    for (number, image) in storage.crash_images(64).into_iter().enumerate() {
        image.set_order(Order::Submission);
        let (_, recovered) = Bench::open(&image, options).unwrap_or_else(|error| panic!("image {number}: {error}"));
        assert!(marks.iter().any(|mark| recovered.mark == (mark.index, mark.term)), "image {number}");
        assert_eq!(recovered.mark.0 + recovered.entries.len() as u64, last, "image {number}");
    }
}

#[test]
fn failing_medium_stops_the_log_and_loses_nothing_acknowledged() {
    let mut failed = 0;
    for seed in KEPT_SEEDS.into_iter().chain(0..300) {
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        let options = options(8, 2);
        let mut random = Random::new(seed);
        let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
        storage.set_faults(Faults { write_error: 15, sync_error: 15, ..Faults::default() });
        let result = bench.work(&mut random, 100, 3000);
        if let Err(error) = result {
            failed += 1;
            assert!(matches!(error, Error::Io { .. }), "seed {seed}: {error}");
            assert!(!storage.injected().is_empty(), "seed {seed}: {error}");
            let durable = bench.wal.durable();
            assert!(matches!(bench.wal.append(&[], None, u64::MAX), Err(Error::Stopped)), "seed {seed}");
            assert!(matches!(bench.wal.step(&mut bench.disk), Err(Error::Stopped)), "seed {seed}");
            assert_eq!(bench.wal.durable(), durable, "seed {seed}");
        }
        storage.set_faults(Faults::default());
        for (number, image) in storage.crash_images(4).into_iter().enumerate() {
            let context = format!("seed {seed}, failed, image {number}");
            check_image(&image, options, &bench.history, bench.wal.durable(), &context);
        }
    }
    assert!(failed > 100, "faults were met in {failed} runs");
}

#[test]
fn trimmed_segments_are_reused_within_a_full_disk() {
    let storage = SimStorage::new(4);
    let options = options(4, 2);
    storage.set_capacity(Some(4 * u64::from(options.segment_bytes)));
    let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
    let mut random = Random::new(4);
    for index in 1..=400 {
        bench.append(fresh_entries(&mut random, index, 1, 1, 900), None).expect("the log runs");
        bench.settle().expect("the space is reused");
        if index % 10 == 0 {
            bench.trim(index - 3, 1).expect("the log runs");
            assert!(bench.wal.len_bytes() < 5 * 1000 + 4096, "{} bytes of log", bench.wal.len_bytes());
        }
    }
    assert!(storage.paths().len() <= 4);
    check_image(&storage.crash(), options, &bench.history, bench.wal.durable(), "reused");
}

#[test]
fn lying_medium_is_refused_or_costs_only_the_last_groups() {
    let (mut refused, mut injected) = (0, 0);
    for seed in KEPT_SEEDS.into_iter().chain(0..400) {
        let storage = SimStorage::new(seed);
        let in_flight = 2;
        let options = options(8, in_flight);
        let mut random = Random::new(seed);
        let (mut bench, _) = Bench::open(&storage, options).expect("a fresh log opens");
        let per_mille = 25;
        storage.set_faults(match seed % 3 {
            0 => Faults { lost: per_mille, ..Faults::default() },
            1 => Faults { misdirected: per_mille, ..Faults::default() },
            _ => Faults { corrupt: per_mille, ..Faults::default() },
        });
        // No trims: then every byte of the log still counts.
        let mut groups = Vec::new();
        for _ in 0..20 {
            let next = bench.history.now.last_index() + 1;
            bench.append(fresh_entries(&mut random, next, 1, 1, 1200), None).expect("the medium reports no error");
            bench.settle().expect("the medium reports no error");
            groups.push(next);
        }
        let faults: Vec<_> = storage.injected();
        storage.set_faults(Faults::default());
        let image = storage.crash();
        match Bench::open(&image, options) {
            Err(Error::Corrupt { .. }) => {
                refused += 1;
                assert!(!faults.is_empty(), "seed {seed}: refused without cause");
            }
            Err(error) => panic!("seed {seed}: {error}"),
            Ok((_, recovered)) => {
                let found = State::of(&recovered);
                let kept = found.entries.len();
                assert!(found.entries[..] == bench.history.now.entries[..kept], "seed {seed}: {faults:?}");
                assert!(groups.len() - kept <= in_flight, "seed {seed}: {kept} entries left after {faults:?}");
            }
        }
        injected += usize::from(faults.iter().any(|fault| fault.fault != FaultKind::ReadError));
    }
    assert!(injected > 100 && refused > 50, "{injected} runs had faults, {refused} were refused");
}

#[test]
fn entries_read_back_are_what_was_appended() {
    for seed in 0..20 {
        let storage = SimStorage::new(seed);
        storage.set_order(Order::Seeded);
        let mut random = Random::new(seed);
        let (mut bench, _) = Bench::open(&storage, options(16, 2)).expect("a fresh log opens");
        for _ in 0..60 {
            bench.work(&mut random, 5, 3000).expect("the log runs");
            let State { mark, entries, .. } = bench.history.now.clone();
            let Some(skipped) = random.bits().checked_rem(entries.len() as u64) else { continue };
            let bytes_max = usize::try_from(random.below(20_000)).expect("small");
            let from = mark.0 + 1 + skipped;
            let read = bench.fetch(from, bytes_max);
            assert!(!read.is_empty(), "seed {seed}");
            let bytes: usize = read.iter().skip(1).map(|entry| entry.data.len()).sum();
            assert!(bytes <= bytes_max, "seed {seed}: {bytes} of {bytes_max}");
            let skipped = usize::try_from(skipped).expect("small");
            assert!(read[..] == entries[skipped..skipped + read.len()], "seed {seed}");
            assert_eq!(bench.wal.term(from), Some(entries[skipped].term), "seed {seed}");
        }
    }
}

/// The operations in flight that read.
fn reads(storage: &SimStorage) -> Vec<u64> {
    let flights = storage.in_flight().into_iter();
    flights.filter(|flight| flight.op == FileOp::Read).map(|flight| flight.number).collect()
}

#[test]
fn a_segment_that_is_read_is_kept_and_what_was_trimmed_or_replaced_meanwhile_is_not_handed_out() {
    let (mut bench, storage, _) = filled_segments(21, 48);
    let now = bench.history.now.clone();
    let [early, late] = [3_usize, 40].map(|at| now.entries[at].clone());
    storage.set_order(Order::Manual);
    for from in [early.index, late.index] {
        assert!(bench.wal.fetch(&mut bench.disk, from, 1 << 20));
    }
    let waiting = reads(&storage);
    assert_eq!(waiting.len(), 2, "one operation each");
    // A mark beyond the first, and another entry in place of the second.
    let mark = now.entries[20].clone();
    bench.trim(mark.index, mark.term).expect("the log runs");
    let other = Entry { term: late.term + 1, data: Bytes::from_static(b"in its place"), ..late.clone() };
    bench.append(vec![other.clone()], None).expect("the log runs");
    let first = Path::new(DIR).join("00000001.wal");
    while bench.wal.durable() < bench.history.ticket {
        bench.pump().expect("the log runs");
        let flights = storage.in_flight().into_iter();
        flights.filter(|flight| flight.op != FileOp::Read).for_each(|flight| storage.complete(flight.number));
    }
    assert!(storage.paths().contains(&first), "what is read is kept");
    waiting.into_iter().for_each(|number| storage.complete(number));
    storage.set_order(Order::Seeded);
    for _ in 0..40 {
        bench.pump().expect("the log runs");
    }
    assert!(!storage.paths().contains(&first), "and given up then");
    let fetched = bench.wal.take_fetched();
    assert_eq!(fetched.len(), 2);
    for fetched in fetched {
        let entries = fetched.entries.expect("it is no damage");
        assert!(entries.is_empty(), "{} is gone: {entries:?}", fetched.from);
    }
    assert_eq!(bench.fetch(late.index, 1 << 20), [other], "it is read where it is now");
    assert!(!bench.wal.fetch(&mut bench.disk, late.index + 1, 1 << 20), "there is nothing behind it");
}

#[test]
fn an_entry_that_cannot_be_read_back_is_damage_and_one_behind_it_ends_the_piece() {
    let (mut bench, storage, _) = filled_segments(22, 48);
    let entries = bench.history.now.entries.clone();
    storage.make_unreadable(&Path::new(DIR).join("00000001.wal"), 2 * 4096);
    let fetch = |bench: &mut Bench, from| {
        assert!(bench.wal.fetch(&mut bench.disk, from, 1 << 20));
        loop {
            bench.pump().expect("the log runs");
            if let Some(fetched) = bench.wal.take_fetched().pop() {
                return fetched.entries;
            }
        }
    };
    assert!(matches!(fetch(&mut bench, 1), Err(Error::Corrupt { .. })));
    let last = entries.last().expect("it has entries");
    assert_eq!(fetch(&mut bench, last.index).expect("it is whole"), std::slice::from_ref(last));
}

#[test]
fn second_opening_of_a_log_in_use_is_refused() {
    let storage = SimStorage::new(1);
    let (_bench, _) = Bench::open(&storage, options(4, 1)).expect("a fresh log opens");
    assert!(matches!(Bench::open(&storage, options(4, 1)), Err(Error::Locked { .. })));
}

#[test]
fn commit_alone_causes_no_write_and_rides_along() {
    let storage = SimStorage::new(1);
    let (mut bench, _) = Bench::open(&storage, options(16, 2)).expect("a fresh log opens");
    let mut random = Random::new(1);
    let vote = HardState { term: 1, vote: 1, commit: 0, is_cut: true, concerned: 0 };
    bench.append(fresh_entries(&mut random, 1, 1, 2, 100), Some(vote)).expect("the log runs");
    bench.settle().expect("the log runs");
    for _ in 0..10 {
        bench.pump().expect("the log runs");
    }
    let before = storage.steps();
    bench.append(Vec::new(), Some(HardState { commit: 2, is_cut: false, ..vote })).expect("the log runs");
    assert_eq!(bench.wal.durable(), bench.history.ticket, "a commit has nothing to wait for");
    bench.pump().expect("the log runs");
    assert_eq!(storage.steps(), before, "a commit alone is not written");
    bench.append(fresh_entries(&mut random, 3, 1, 1, 100), None).expect("the log runs");
    bench.settle().expect("the log runs");
    assert_eq!(storage.steps(), before + 1, "one group, one write");
    let (_, recovered) = Bench::open(&storage.crash(), options(16, 2)).expect("it opens");
    assert_eq!(recovered.hard_state, HardState { commit: 2, is_cut: false, ..vote });
}

/// Appends, replaces, trims, reopens and reads back on a real file system.
fn work_on(preference: Preference, dir: &Path) -> IoPath {
    let options = Options { segment_bytes: 3 << 20, ..options(0, 2) };
    let dir = dir.join("wal");
    let (mut disk, path) = open_disk(preference, &dir).expect("some path works");
    let mut random = Random::new(3);
    let mut state = State::new();
    for life in 1..=3 {
        let (mut wal, recovered) = Wal::open(&mut *disk, &dir, options, Known::default()).expect("the log opens");
        assert_eq!((recovered.life, recovered.truncated_tail.is_some()), (life, false), "{path}");
        assert!(state.is_like(&State::of(&recovered)), "{path}");
        let mut ended = Vec::new();
        for ticket in 1..=300 {
            let from = if ticket == 7 { state.last_index() } else { state.last_index() + 1 };
            let count = random.below(9) + 1;
            let entries = fresh_entries(&mut random, from, u64::from(life), count, 3000);
            let hard_state =
                HardState { term: u64::from(life), vote: 1, commit: from - 1, is_cut: false, concerned: 0 };
            wal.append(&entries, Some(hard_state), ticket).expect("the log runs");
            entries.into_iter().for_each(|entry| state.apply(&Change::Put(entry)));
            state.hard_state = hard_state;
            if ticket == 200 {
                let kept = &state.entries[state.entries.len() / 2];
                let mark = (kept.index, kept.term);
                wal.trim(mark.0, mark.1).expect("the log runs");
                state.apply(&Change::Mark(mark.0, mark.1));
            }
            wal.step(&mut *disk).expect("the medium works");
            while wal.durable() + 2 < ticket || (ticket == 300 && wal.durable() < ticket) {
                disk.wait().expect("the medium works");
                disk.completions(&mut ended);
                for completion in ended.drain(..) {
                    wal.on_completion(completion, &mut *disk).expect("the medium works");
                }
            }
        }
        let mut read = Vec::new();
        while read.len() < state.entries.len() {
            assert!(wal.fetch(&mut *disk, state.mark.0 + 1 + read.len() as u64, 1 << 20), "{path}");
            while read.len() < state.entries.len() {
                disk.wait().expect("the medium works");
                disk.completions(&mut ended);
                for completion in ended.drain(..) {
                    wal.on_completion(completion, &mut *disk).expect("the medium works");
                }
                if let Some(fetched) = wal.take_fetched().pop() {
                    read.extend(fetched.entries.expect("it is all there"));
                    break;
                }
            }
        }
        assert!(read == state.entries, "{path}");
        assert!(matches!(Wal::open(&mut *disk, &dir, options, Known::default()), Err(Error::Locked { .. })), "{path}");
        drop(wal);
        (disk, _) = open_disk(preference, &dir).expect("some path works");
    }
    path
}

#[test]
fn every_real_path_holds_what_was_appended() {
    let temp = tempfile::tempdir().expect("a temporary directory");
    let auto = work_on(Preference::Auto, &temp.path().join("auto"));
    let is_refused = std::env::var_os("ORLOP_TESTS_WITHOUT_IO_URING").is_some();
    assert!(auto.kind == IoKind::Uring || is_refused && !auto.why.is_empty(), "{auto}");
    let portable = work_on(Preference::Portable, &temp.path().join("portable"));
    assert_eq!(portable.kind, IoKind::Portable);
    // A file system in memory, where there is one: it takes O_DIRECT or refuses it, by kernel version.
    if let Ok(memory) = tempfile::tempdir_in("/dev/shm") {
        work_on(Preference::Auto, &memory.path().join("auto"));
        work_on(Preference::Portable, &memory.path().join("portable"));
    }
}
