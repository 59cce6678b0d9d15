//! Soak: three weeks of virtual time in one store, with its traffic by day and by night, a compaction every five
//! minutes, a crash every day. What it takes on disk and in memory stays within its bounds on the last day as on the
//! first, and it shows what the model shows.

use std::time::Duration;

use bytes::Bytes;
use engine::{
    Mvcc,
    disk::sim::{Random, SimDisk, SimStorage},
    store::Options,
};

use crate::replay::{Change, Member, Operation, apply, options, shown};

const DAYS: u64 = 21;
/// A compaction every five minutes.
const INTERVALS_PER_DAY: u64 = 24 * 12;
/// Entries after which a member checkpoints for its log's sake.
const ENTRIES_PER_CHECKPOINT: usize = 60;
/// Keys that are there all the time.
const KEYS: u64 = 3000;

fn soak_options() -> Options {
    Options { segment_bytes: 16 << 10, ..options(1) }
}

struct Soak {
    storage: SimStorage,
    random: Random,
    member: Member,
    log: Vec<Operation>,
    /// The model: the same entries, all in memory.
    model: Mvcc,
    modelled: usize,
    node_bytes_max: u64,
}

impl Soak {
    fn new(seed: u64) -> Self {
        let storage = SimStorage::new(seed);
        let member = Member::open(&storage, soak_options(), &[], 0).unwrap();
        let model = Mvcc::in_memory();
        let random = Random::new(seed);
        Self { storage, random, member, log: Vec::new(), model, modelled: 0, node_bytes_max: 0 }
    }

    /// What the cluster does in five minutes: status updates of a few keys, leases renewed, events that come, and go at
    /// night.
    fn traffic(&mut self, day: u64, interval: u64) {
        let is_day = (8 * 12..20 * 12).contains(&interval);
        for _ in 0..if is_day { 5 } else { 1 } {
            let hot = self.random.below(KEYS).min(self.random.below(KEYS)).min(self.random.below(KEYS));
            let most = if self.random.below(40) == 0 { 3000 } else { 300 };
            let bytes = usize::try_from(50 + self.random.below(most)).unwrap();
            let fill = u8::try_from(self.random.below(256)).unwrap();
            let mut changes = vec![Change::Put(format!("/registry/pods/{hot:05}").into(), vec![fill; bytes].into())];
            if is_day {
                let event = format!("/registry/events/{day:02}/{interval:03}/{:02}", self.random.below(40));
                changes.push(Change::Put(event.into(), vec![fill; 120].into()));
            }
            self.log.push(Operation::Write(changes));
        }
        if interval < 96 {
            // By night yesterday's events expire, some in each interval.
            let yesterday = |interval: u64, number: u64| {
                Bytes::from(format!("/registry/events/{:02}/{interval:03}/{number:02}", day.wrapping_sub(1)))
            };
            let gone = (0..2).flat_map(|half| (0..40).map(move |number| (96 + 2 * interval + half, number)));
            let gone = gone.map(|(interval, number)| Change::Delete(yesterday(interval, number)));
            self.log.push(Operation::Write(gone.collect()));
        }
        if interval.is_multiple_of(50) {
            let value = Bytes::from(vec![1; 30]);
            self.log.push(Operation::Meta(format!("lease/{}", interval % 7).into(), Some(value)));
        }
        self.log.push(Operation::Compact(100));
    }

    /// Five minutes of a member: entries, sweeps, space given back, and a checkpoint where one is due.
    fn run(&mut self) {
        while self.member.applied < self.log.len() {
            self.member.apply(&self.log).unwrap();
            self.node_bytes_max = self.node_bytes_max.max(self.member.store.mvcc().node_bytes());
            let is_due = self.member.applied.is_multiple_of(ENTRIES_PER_CHECKPOINT);
            self.member.sweep(20).unwrap();
            self.member.reclaim(4).unwrap();
            if is_due || self.member.store.wants_checkpoint() {
                self.member.checkpoint().unwrap();
            }
        }
        while !self.member.sweep(200).unwrap() {}
        self.member.now += Duration::from_secs(300);
    }

    fn model(&mut self) -> &Mvcc {
        for (index, operation) in (1..).zip(&self.log).skip(self.modelled) {
            apply(&mut self.model, index, operation, |_| unreachable!("everything is in memory")).unwrap();
        }
        while !self.model.sweep(usize::MAX).unwrap().is_done {}
        self.modelled = self.log.len();
        &self.model
    }

    /// The end of a day: the member crashes, and is what the model says.
    fn crash(&mut self) {
        let storage = self.storage.crash();
        let trimmed = self.member.trimmed;
        let now = self.member.now;
        self.member = Member::open(&storage, soak_options(), &self.log, trimmed).unwrap();
        self.member.now = now;
        self.storage = storage;
        let mut no_disk: SimDisk = SimStorage::new(0).disk();
        let expected = shown(&self.model().view(), &mut no_disk).unwrap();
        self.member.check(&expected);
        self.member.store.verify(&mut self.member.disk).unwrap();
    }

    fn files(&self) -> u64 {
        let segments = self.storage.paths().into_iter().filter(|path| path.extension().is_some());
        segments.map(|path| self.storage.content(&path).unwrap().len() as u64).sum()
    }
}

#[test]
fn three_weeks_of_churn_stay_within_their_bounds() {
    let mut soak = Soak::new(41);
    for first in (0..KEYS).step_by(8) {
        let put = |number| Change::Put(format!("/registry/pods/{number:05}").into(), vec![7; 250].into());
        soak.log.push(Operation::Write((first..KEYS.min(first + 8)).map(put).collect()));
    }
    let (mut files_max, mut emptied) = (0, 0);
    let mut first_week = (0, 0);
    for day in 0..DAYS {
        for interval in 0..INTERVALS_PER_DAY {
            soak.traffic(day, interval);
            soak.run();
            if day > 0 && interval.is_multiple_of(48) {
                let (files, in_use) = (soak.files(), soak.member.store.sizes().in_use);
                // Beside what is live: the segments that are written, and what waits for the next checkpoint.
                assert!(
                    files <= in_use * 13 / 10 + 12 * (16 << 10),
                    "day {day}.{interval}: {files} bytes for {in_use}"
                );
                files_max = files_max.max(files);
            }
        }
        emptied += soak.member.store.reclaimed().segments;
        soak.crash();
        if day == 6 {
            first_week = (files_max, soak.node_bytes_max);
            (files_max, soak.node_bytes_max) = (0, 0);
        }
    }
    let (files, nodes) = first_week;
    assert!(files_max <= files * 11 / 10, "{files_max} bytes in files, {files} in the first week");
    assert!(
        soak.node_bytes_max <= nodes * 11 / 10,
        "{} bytes of nodes, {nodes} in the first week",
        soak.node_bytes_max
    );
    assert!(emptied > 1000, "{emptied} segments were emptied");
}
