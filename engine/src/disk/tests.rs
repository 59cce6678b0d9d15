//! Tests every implementation against the promises at the head of the folder, on real files.

#![expect(unsafe_code, reason = "a raw descriptor is polled")]

use std::{collections::BTreeSet, os::fd::BorrowedFd, path::Path};

use rustix::event::{PollFd, PollFlags, poll};

use super::{
    BLOCK, Buffer, Completion, Disk, Op, OpenKind, Owner, SECTOR, portable::Portable, sim::SimStorage, uring::Uring,
};
use crate::Error;

/// The disks that this machine allows for `dir`. The portable one with the page cache works everywhere.
fn disks() -> Vec<(&'static str, Box<dyn Disk>)> {
    let mut disks: Vec<(&'static str, Box<dyn Disk>)> =
        vec![("portable, page cache", Box::new(Portable::start(false).unwrap()))];
    disks.push(("portable, O_DIRECT", Box::new(Portable::start(true).unwrap())));
    match Uring::start(true) {
        Ok(uring) => disks.push(("io_uring", Box::new(uring))),
        Err(error) => assert!(
            std::env::var_os("ORLOP_TESTS_WITHOUT_IO_URING").is_some(),
            "this host refuses io_uring ({error}): set ORLOP_TESTS_WITHOUT_IO_URING to test without it"
        ),
    }
    disks
}

fn drain(disk: &mut dyn Disk, count: usize) -> Vec<Completion> {
    let mut ended = Vec::new();
    while ended.len() < count {
        disk.wait().unwrap();
        disk.completions(&mut ended);
    }
    assert_eq!(ended.len(), count);
    ended.sort_by_key(|completion| completion.token);
    ended
}

fn filled(byte: u8, blocks: usize) -> Buffer {
    let mut buf = Buffer::zeroed(blocks * BLOCK);
    buf.fill(byte);
    buf
}

#[test]
fn every_operation_completes_once_with_its_token_and_bytes() {
    for (name, mut disk) in disks() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let blocks = 700_u64;
        let file = disk.open(&path, OpenKind::Create { len: blocks * BLOCK as u64 }).unwrap();
        // These are more blocks than a ring or a thread's queue holds.
        for block in 0..blocks {
            let buf = filled(u8::try_from(block % 251).unwrap(), 1);
            let offset = block * BLOCK as u64;
            let op =
                if block % 2 == 0 { Op::Write { file, offset, buf } } else { Op::WriteDurable { file, offset, buf } };
            disk.submit(op, Owner::Other.token(block));
        }
        disk.kick().unwrap();
        for (block, completion) in (0..).zip(drain(&mut *disk, 700)) {
            assert_eq!(completion.token, Owner::Other.token(block), "{name}");
            assert_eq!(completion.result.unwrap(), BLOCK, "{name}");
            assert_eq!(completion.buf.len(), BLOCK, "{name}");
        }
        disk.submit(Op::Sync { file }, 0);
        assert_eq!(drain(&mut *disk, 1)[0].result.as_ref().unwrap(), &0, "{name}");
        for block in 0..blocks {
            let op = Op::Read { file, offset: block * BLOCK as u64, len: BLOCK, buf: Buffer::new() };
            disk.submit(op, Owner::Other.token(block));
        }
        for (block, completion) in (0..blocks).zip(drain(&mut *disk, 700)) {
            let expected = u8::try_from(block % 251).unwrap();
            assert!(completion.buf.len() == BLOCK && completion.buf.iter().all(|byte| *byte == expected), "{name}");
        }
    }
}

#[test]
fn read_past_the_end_is_short_and_a_failure_keeps_the_buffer() {
    for (name, mut disk) in disks() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("file");
        let file = disk.open(&path, OpenKind::Create { len: 2 * BLOCK as u64 }).unwrap();
        disk.submit(Op::Read { file, offset: BLOCK as u64, len: 4 * BLOCK, buf: Buffer::new() }, 1);
        disk.submit(Op::Read { file, offset: 8 * BLOCK as u64, len: BLOCK, buf: Buffer::new() }, 2);
        let ended = drain(&mut *disk, 2);
        assert_eq!((ended[0].result.as_ref().unwrap(), ended[0].buf.len()), (&BLOCK, BLOCK), "{name}");
        assert_eq!((ended[1].result.as_ref().unwrap(), ended[1].buf.len()), (&0, 0), "{name}");
        let read_only = disk.open(&path, OpenKind::Read).unwrap();
        disk.submit(Op::WriteDurable { file: read_only, offset: 0, buf: filled(1, 1) }, 3);
        let failed = drain(&mut *disk, 1).remove(0);
        assert!(failed.result.is_err() && failed.buf.len() == BLOCK, "{name}");
        let mut buf = Buffer::new();
        disk.read_blocking(file, 0, 4 * BLOCK, &mut buf).unwrap();
        assert_eq!(&buf[..], &[0; 2 * BLOCK][..], "{name}");
    }
}

#[test]
fn names_are_listed_changed_and_locked() {
    for (name, mut disk) in disks() {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("a/b");
        disk.create_dir_all(&dir).unwrap();
        disk.create_dir_all(&dir).unwrap();
        let file = disk.open(&dir.join("two"), OpenKind::Create { len: 0 }).unwrap();
        assert_eq!(disk.len(file).unwrap(), 0, "{name}");
        assert_eq!(disk.path(file), dir.join("two"), "{name}");
        assert!(matches!(disk.open(&dir.join("two"), OpenKind::Create { len: 0 }), Err(Error::Io { .. })), "{name}");
        assert!(matches!(disk.open(&dir.join("none"), OpenKind::Read), Err(Error::Io { .. })), "{name}");
        disk.close(file);
        disk.rename(&dir.join("two"), &dir.join("one")).unwrap();
        let third = disk.open(&dir.join("three"), OpenKind::Create { len: BLOCK as u64 }).unwrap();
        assert_eq!(disk.len(third).unwrap(), BLOCK as u64, "{name}");
        assert_eq!(disk.list(&dir).unwrap(), ["one", "three"], "{name}");
        disk.remove(&dir.join("one")).unwrap();
        assert_eq!(disk.list(&dir).unwrap(), ["three"], "{name}");
        let names = disk.open(&dir, OpenKind::Directory).unwrap();
        disk.submit(Op::Sync { file: names }, 9);
        assert!(drain(&mut *disk, 1)[0].result.is_ok(), "{name}");
        let lock = disk.lock(&dir).unwrap();
        assert!(matches!(disk.lock(&dir), Err(Error::Locked { .. })), "{name}");
        drop(lock);
        disk.lock(&dir).unwrap();
    }
}

/// Performs one operation that changes names.
fn change(disk: &mut dyn Disk, op: Op) -> std::io::Result<usize> {
    disk.submit(op, Owner::Other.token(1));
    drain(disk, 1).remove(0).result
}

#[test]
fn files_are_named_opened_and_removed_by_operations_too() {
    let simulated: Vec<(&str, Box<dyn Disk>)> = vec![("simulated", Box::new(SimStorage::new(1).disk()))];
    for (name, mut disk) in disks().into_iter().chain(simulated) {
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path();
        disk.create_dir_all(dir).unwrap();
        let [one, two] = ["one", "two"].map(|name| dir.join(name));
        let create = OpenKind::Create { len: 2 * BLOCK as u64 };
        let file = disk.reserve(&one);
        assert_eq!(disk.path(file), one, "{name}");
        change(&mut *disk, Op::Open { file, kind: create, from: None }).unwrap();
        // With others in flight, `wait` and `completions` serve both kinds.
        let op = Op::Open { file: disk.reserve(&one), kind: create, from: None };
        disk.submit(op, Owner::Other.token(1));
        disk.submit(Op::WriteDurable { file, offset: 0, buf: filled(7, 1) }, Owner::Other.token(2));
        let mut ended = drain(&mut *disk, 2);
        assert_eq!(ended.pop().unwrap().result.unwrap(), BLOCK, "{name}");
        let taken = ended.pop().unwrap().result.unwrap_err();
        assert_eq!(taken.kind(), std::io::ErrorKind::AlreadyExists, "{name}");
        disk.close(file);
        let file = disk.reserve(&two);
        change(&mut *disk, Op::Open { file, kind: OpenKind::Write, from: Some(one.clone()) }).unwrap();
        assert_eq!(disk.list(dir).unwrap(), ["two"], "{name}");
        assert_eq!(disk.len(file).unwrap(), 2 * BLOCK as u64, "{name}");
        let mut buf = Buffer::new();
        disk.read_blocking(file, 0, BLOCK, &mut buf).unwrap();
        assert_eq!(buf[0], 7, "{name}");
        change(&mut *disk, Op::Remove { file }).unwrap();
        assert_eq!(disk.path(file), two, "{name}");
        disk.close(file);
        assert!(disk.list(dir).unwrap().is_empty(), "{name}");
        let file = disk.reserve(&two);
        let gone = change(&mut *disk, Op::Open { file, kind: OpenKind::Write, from: None }).unwrap_err();
        assert_eq!(gone.kind(), std::io::ErrorKind::NotFound, "{name}");
        disk.close(file);
    }
}

#[test]
fn wake_is_readable_once_something_has_ended() {
    for (name, mut disk) in disks() {
        let temp = tempfile::tempdir().unwrap();
        let file = disk.open(&temp.path().join("file"), OpenKind::Create { len: 1 << 20 }).unwrap();
        let wake = disk.wake_fd().unwrap();
        // SAFETY: the disk keeps the descriptor open, and outlives this use of it.
        let wake = unsafe { BorrowedFd::borrow_raw(wake) };
        for round in 0..50 {
            disk.submit(Op::WriteDurable { file, offset: 0, buf: filled(round, 3) }, round.into());
            disk.kick().unwrap();
            let polled = poll(&mut [PollFd::new(&wake, PollFlags::IN)], None).unwrap();
            assert_eq!(polled, 1, "{name}");
            let mut count = [0; 8];
            rustix::io::read(wake, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1, "{name}");
            let mut ended = Vec::new();
            disk.completions(&mut ended);
            assert_eq!(ended.len(), 1, "{name}");
        }
        let gone = disk.reserve(&temp.path().join("gone"));
        disk.submit(Op::Open { file: gone, kind: OpenKind::Read, from: None }, 1);
        disk.kick().unwrap();
        assert_eq!(poll(&mut [PollFd::new(&wake, PollFlags::IN)], None).unwrap(), 1, "{name}");
        let mut ended = Vec::new();
        disk.completions(&mut ended);
        assert!(ended.len() == 1 && ended[0].result.is_err(), "{name}");
    }
}

#[test]
fn dropping_a_disk_waits_for_what_is_in_flight() {
    for (name, mut disk) in disks() {
        let temp = tempfile::tempdir().unwrap();
        let path: &Path = &temp.path().join("file");
        let file = disk.open(path, OpenKind::Create { len: 64 << 20 }).unwrap();
        for number in 0..8_u8 {
            let op = Op::WriteDurable { file, offset: u64::from(number) << 22, buf: filled(number, 1024) };
            disk.submit(op, number.into());
        }
        disk.kick().unwrap();
        drop(disk);
        let content = std::fs::read(path).unwrap();
        for number in 0..8_u8 {
            let at = usize::from(number) << 22;
            assert!(content[at..at + (4 << 20)].iter().all(|byte| *byte == number), "{name}");
        }
    }
}

/// The first sector of `path` in every image that power loss may leave of `storage`; `None` where the name is gone.
fn outcomes(storage: &SimStorage, path: &Path) -> BTreeSet<Option<u8>> {
    let images = storage.crash_images(1000);
    images.iter().map(|image| image.content(path).map(|content| content.first().copied().unwrap_or(0))).collect()
}

#[test]
fn simulated_power_loss_leaves_each_legal_state_and_no_other() {
    let (storage, dir) = (SimStorage::new(1), Path::new("dir"));
    let path = dir.join("file");
    let mut disk = storage.disk();
    disk.create_dir_all(dir).unwrap();
    let file = disk.open(&path, OpenKind::Create { len: BLOCK as u64 }).unwrap();
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([None, Some(0)]), "the name is not durable");
    disk.sync_dir(dir).unwrap();
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([Some(0)]));
    disk.submit(Op::Write { file, offset: 0, buf: filled(1, 1) }, 1);
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([Some(0), Some(1)]), "a write in flight may be there");
    drain(&mut disk, 1);
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([Some(0), Some(1)]), "a completed write may be lost");
    disk.submit(Op::Sync { file }, 2);
    drain(&mut disk, 1);
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([Some(1)]), "a synced write is kept");
    disk.submit(Op::WriteDurable { file, offset: 0, buf: filled(2, 1) }, 3);
    let sectors: Vec<_> = storage.crash_images(1000).iter().map(|image| image.content(&path).unwrap()).collect();
    assert_eq!(sectors.len(), 1 << (BLOCK / SECTOR), "each sector is torn on its own");
    assert_eq!(sectors.iter().collect::<BTreeSet<_>>().len(), sectors.len());
    drain(&mut disk, 1);
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([Some(2)]), "a durable write is kept");
    disk.rename(&path, &dir.join("other")).unwrap();
    assert_eq!(outcomes(&storage, &path), BTreeSet::from([None, Some(2)]), "a rename may be lost");
    assert_eq!(
        outcomes(&storage.kill(), &path),
        BTreeSet::from([None, Some(2)]),
        "a process's end makes nothing durable"
    );
}
