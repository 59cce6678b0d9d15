//! A scrub finds what an inspection of the stopped store finds, while the store is in use and changes; and nothing
//! else.

use std::{path::Path, sync::Arc};

use engine::{
    Error, Unreadable,
    disk::{Disk, sim::SimStorage},
    inspect,
    scrub::{Position, Scrub},
    wal,
};

use crate::{
    ENTRIES, newest_log,
    replay::{DIR, Member, operations, options},
    structures, written,
};

/// All that a scrub of the store in `image` finds, in steps of about `bytes_max`.
fn pages(image: &SimStorage, bytes_max: u64) -> Vec<Error> {
    let (mut disk, mut from, mut found) = (image.disk(), Position::Tables, Vec::new());
    let mut scrub = Scrub::new(Path::new(DIR), Arc::default());
    for _ in 0..100_000 {
        let step = scrub.step(&mut disk, &from, bytes_max).unwrap();
        found.extend(step.damage);
        let Some(next) = step.next else { return found };
        assert_ne!(next, from, "it gets on");
        from = Position::decode(&next.encode()).unwrap();
    }
    panic!("a scrub ends");
}

/// All that a scrub of the log in `image` finds.
fn log(image: &SimStorage, bytes_max: u32) -> Vec<Error> {
    let (mut disk, mut found) = (image.disk(), Vec::new());
    let mut scrub = wal::Scrub::new(&Path::new(DIR).join("wal"));
    while let Some(step) = scrub.step(&mut disk, bytes_max).unwrap() {
        found.extend(step.damage);
    }
    found
}

fn path_of(error: &Error) -> &Path {
    let (Error::Corrupt { path, .. } | Error::Io { path, .. }) = error else { panic!("{error} is no damage") };
    path
}

#[test]
fn whatever_page_is_flipped_or_unreadable_is_found_if_it_is_reached() {
    let image = written(&operations(31, ENTRIES, 40)).pop().unwrap();
    for bytes_max in [1, 5000, u64::MAX] {
        assert!(pages(&image, bytes_max).is_empty());
    }
    let (mut found, mut dead) = (0, 0);
    for (number, structure) in structures(&image).into_iter().enumerate() {
        if structure.path.extension().is_some_and(|extension| extension == "wal") {
            continue;
        }
        let damaged = image.crash();
        let offset = structure.at + structure.fields[number % structure.fields.len()];
        if number % 3 == 0 {
            damaged.make_unreadable(&structure.path, offset as u64);
        } else {
            damaged.damage(&structure.path, offset as u64, |sector| sector[offset % 512] ^= 1 << (number % 8));
        }
        let scrubbed = pages(&damaged, if number % 2 == 0 { 1 } else { 50_000 });
        assert!(scrubbed.iter().all(|error| path_of(error) == structure.path), "{structure:?}: {scrubbed:?}");
        let mut is_reached = structure.name == "superblock copy";
        let mut disk = damaged.disk();
        let lock = disk.lock(Path::new(DIR)).unwrap();
        let verified = inspect::verify(&mut disk, Path::new(DIR), &lock, &mut |_| is_reached = true);
        assert!(verified.is_ok() || is_reached, "{structure:?}: {verified:?}");
        assert_eq!(is_reached, !scrubbed.is_empty(), "{structure:?}: {scrubbed:?}");
        if is_reached { found += 1 } else { dead += 1 }
    }
    assert!(found >= 30 && dead >= 1, "{found} were found, {dead} are not reached");
}

#[test]
fn whatever_is_flipped_in_a_complete_segment_of_the_log_is_found() {
    let images = written(&operations(32, ENTRIES, 40));
    let mut found = 0;
    for image in images {
        assert!(log(&image, 1).is_empty() && log(&image, u32::MAX).is_empty());
        let newest = newest_log(&image);
        let inspected = wal::inspect(&mut image.disk(), &Path::new(DIR).join("wal")).unwrap().unwrap();
        for (number, structure) in structures(&image).into_iter().enumerate() {
            let name = structure.path.file_name().unwrap().to_str().unwrap();
            let Some(segment) = inspected.segments.iter().find(|segment| segment.name == name) else { continue };
            if structure.path == newest || structure.at >= segment.used_bytes as usize {
                continue;
            }
            let damaged = image.crash();
            let offset = structure.at + structure.fields[number % structure.fields.len()];
            damaged.damage(&structure.path, offset as u64, |sector| sector[offset % 512] ^= 1 << (number % 8));
            let scrubbed = log(&damaged, if number % 2 == 0 { 1 } else { 100_000 });
            assert!(!scrubbed.is_empty(), "{structure:?}, byte {offset}");
            assert!(scrubbed.iter().all(|error| path_of(error) == structure.path), "{structure:?}: {scrubbed:?}");
            found += 1;
        }
    }
    assert!(found >= 20, "{found}");
}

#[test]
fn beside_checkpoints_sweeps_and_the_reuse_of_files_nothing_is_found() {
    let operations = operations(33, 400, 60);
    let storage = SimStorage::new(33);
    let mut member = Member::open(&storage, options(1), &[], 0).unwrap();
    let (mut disk, mut from, mut rounds) = (storage.disk(), Position::Tables, 0);
    let unreadable = Arc::new(Unreadable::default());
    let mut scrub = Scrub::new(Path::new(DIR), Arc::clone(&unreadable));
    for index in 0..operations.len() {
        member.apply(&operations[..=index]).unwrap();
        if index % 7 == 0 {
            member.sweep(200).unwrap();
            member.reclaim(16).unwrap();
            member.checkpoint().unwrap();
        }
        let step = scrub.step(&mut disk, &from, 3000).unwrap();
        assert!(step.damage.is_empty(), "{step:?}");
        from = step.next.unwrap_or_else(|| {
            rounds += 1;
            Position::Tables
        });
    }
    assert!(rounds >= 2, "{rounds} rounds");
    assert_eq!(unreadable.count(), 0);
}
