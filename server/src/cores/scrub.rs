//! Runs on: scrub thread.
//!
//! Reads everything on disk again, at a bounded rate, so that damage is found while peers and backups still have the
//! good copy: the page store, and then the complete segments of the log.
//!
//! Invariants:
//! - A round over the store takes about the time that the operator has set, or less: at least [`RATE_MIN`] is read in a
//!   second, so that small data is read soon. The log, and pages that were moved meanwhile, come on top. The next round
//!   begins when that time is over.
//! - The place outlives a restart. It is kept in a small file of its own, which is only a help: without it, or with
//!   another content, a round begins anew. A log is read from its beginning again.
//! - It blocks nobody: it has a disk of its own, and holds no state of the store.
//!
//! What it finds is noted in the store's `Unreadable`, counted and logged. It repairs nothing.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use engine::{
    Error,
    disk::{Disk, offline},
    scrub::{self, Position},
    wal,
};

use crate::{clock::Clock, metrics::counters::ScrubCounters, shared::Shared};

/// Bytes that one step reads, about.
const STEP_BYTES: u32 = 1 << 20;
/// Bytes that are read in a second, at least.
const RATE_MIN: u64 = 64 << 10;
/// A start is left alone for so long.
const START_PAUSE: Duration = Duration::from_secs(10);
/// Time between two looks at the clock while nothing is due.
const IDLE_PAUSE: Duration = Duration::from_secs(600);
/// Time between two writes of the place.
const SAVE_INTERVAL: Duration = Duration::from_secs(60);
/// Bytes of the file that keeps the place, at most.
const FILE_BYTES_MAX: usize = 256 << 10;
/// Its first line.
const HEAD: &str = "orlop scrub 1";

/// What is read next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum At {
    Pages(Position),
    Log,
    /// The round has ended.
    End,
}

/// A round, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Round {
    /// When it began. **Units** seconds after 1970.
    began: u64,
    at: At,
}

impl Round {
    fn begin(now: u64) -> Self {
        Self { began: now, at: At::Pages(Position::Tables) }
    }

    fn encode(&self) -> String {
        let at = match &self.at {
            At::Pages(position) => position.encode(),
            At::Log => "log".to_owned(),
            At::End => "end".to_owned(),
        };
        format!("{HEAD}\nbegan {}\n{at}\n", self.began)
    }

    fn decode(text: &str) -> Option<Self> {
        let mut lines = text.strip_suffix('\n')?.split('\n');
        if lines.next() != Some(HEAD) {
            return None;
        }
        let began = lines.next()?.strip_prefix("began ")?.parse().ok()?;
        let at = match lines.next()? {
            "log" => At::Log,
            "end" => At::End,
            position => At::Pages(Position::decode(position)?),
        };
        lines.next().is_none().then_some(Self { began, at })
    }
}

/// The file that keeps the place.
struct Kept {
    path: PathBuf,
    /// When it was written last.
    saved: Duration,
}

impl Kept {
    /// The round that was under way, if it is known.
    fn load(&self) -> Option<Round> {
        Round::decode(&offline::read_text(&self.path, FILE_BYTES_MAX).ok()?)
    }

    fn save(&mut self, round: &Round, now: Duration) {
        self.saved = now;
        let new = self.path.with_extension("new");
        let is_there = offline::exists(&new).unwrap_or(false);
        let removed = if is_there { offline::remove_file(&new) } else { Ok(()) };
        let written = removed.and_then(|()| offline::write_small(&new, round.encode().as_bytes()));
        if let Err(error) = written.and_then(|()| offline::rename(&new, &self.path)) {
            tracing::debug!(%error, "the place of the scrub is not kept");
        }
    }
}

/// See the head of this file.
pub struct Scrubber {
    disk: Box<dyn Disk>,
    clock: Clock,
    shared: Arc<Shared>,
    counters: Arc<ScrubCounters>,
    interval: Duration,
    kept: Kept,
    pages: scrub::Scrub,
    wal_dir: PathBuf,
    log: Option<wal::Scrub>,
}

impl Scrubber {
    /// Reads the store in `dir` and the log in `wal_dir` through `disk`, once in each `interval`.
    pub fn new(
        disk: Box<dyn Disk>,
        (dir, wal_dir): (&Path, PathBuf),
        interval: Duration,
        clock: Clock,
        shared: Arc<Shared>,
        counters: Arc<ScrubCounters>,
    ) -> Self {
        let pages = scrub::Scrub::new(dir, Arc::clone(shared.view.unreadable()));
        let kept = Kept { path: dir.join("scrub"), saved: clock.now() };
        Self { disk, clock, shared, counters, interval, kept, pages, wal_dir, log: None }
    }

    /// Runs until the process ends. While the disk takes no operations, it asks again after a pause.
    #[expect(clippy::disallowed_methods, reason = "its thread serves nobody who would wait")]
    pub fn run(mut self) -> ! {
        std::thread::sleep(START_PAUSE.min(self.interval));
        let mut round = self.kept.load().unwrap_or_else(|| Round::begin(self.now()));
        let mut is_held_up = false;
        loop {
            let pause = match self.step(&mut round) {
                Ok(pause) => {
                    is_held_up = false;
                    pause
                }
                Err(error) => {
                    if !is_held_up {
                        tracing::warn!(%error, "the scrub cannot go on, and will try again");
                    }
                    is_held_up = true;
                    IDLE_PAUSE
                }
            };
            std::thread::sleep(pause);
        }
    }

    /// The wall clock. **Units** seconds after 1970.
    fn now(&self) -> u64 {
        self.clock.unix_us() / 1_000_000
    }

    /// Goes on with `round`, or begins the next one. Returns how long to wait.
    fn step(&mut self, round: &mut Round) -> Result<Duration, Error> {
        let bytes = match &round.at {
            At::Pages(position) => {
                let step = self.pages.step(self.disk.as_mut(), position, u64::from(STEP_BYTES))?;
                step.damage.iter().for_each(|error| self.found(error));
                round.at = step.next.map_or(At::Log, At::Pages);
                step.bytes
            }
            At::Log => {
                let log = self.log.get_or_insert_with(|| wal::Scrub::new(&self.wal_dir));
                if let Some(step) = log.step(self.disk.as_mut(), STEP_BYTES)? {
                    step.damage.iter().for_each(|error| self.found(error));
                    step.bytes
                } else {
                    self.log = None;
                    self.end(round);
                    0
                }
            }
            At::End => {
                let due = round.began.saturating_add(self.interval.as_secs().max(1));
                let now = self.now();
                // A clock that was set back must not put the next round off for longer than one interval.
                if (round.began..due).contains(&now) {
                    return Ok(Duration::from_secs(due - now).min(IDLE_PAUSE));
                }
                *round = Round::begin(now);
                0
            }
        };
        self.counters.bytes.add(bytes);
        let now = self.clock.now();
        if now.saturating_sub(self.kept.saved) >= SAVE_INTERVAL {
            self.kept.save(round, now);
        }
        Ok(pause(bytes, self.shared.sizes.allocated.load(Ordering::Relaxed), self.interval))
    }

    fn found(&self, error: &Error) {
        self.counters.damage.add(1);
        tracing::error!(%error, "a scrub has found damage");
    }

    fn end(&mut self, round: &mut Round) {
        round.at = At::End;
        self.counters.ended.set(self.now());
        let unreadable_pages = self.shared.view.unreadable().count();
        tracing::info!(unreadable_pages, "a scrub has read everything on disk");
        let now = self.clock.now();
        self.kept.save(round, now);
    }
}

/// How long `bytes` take, so that `total` takes `interval` at most.
fn pause(bytes: u64, total: u64, interval: Duration) -> Duration {
    let rate = (total as f64 / interval.as_secs_f64()).max(RATE_MIN as f64);
    Duration::from_secs_f64(bytes as f64 / rate)
}

#[cfg(test)]
mod tests {
    use engine::{Revision, Store, disk::sim::SimStorage, store};

    use super::*;

    #[test]
    fn a_round_is_read_from_what_it_writes_and_from_nothing_else() {
        let records = At::Pages(Position::Records(Revision { main: 3, sub: 1 }));
        for at in [At::Log, At::End, At::Pages(Position::Tables), records] {
            let round = Round { began: 1 << 33, at };
            assert_eq!(Round::decode(&round.encode()), Some(round));
        }
        for other in ["", "orlop scrub 1\nbegan 1\nend", "orlop scrub 2\nbegan 1\nend\n", "orlop scrub 1\nbegan 1\n\n"]
        {
            assert_eq!(Round::decode(other), None, "{other:?}");
        }
    }

    #[test]
    fn large_data_takes_the_interval_and_small_data_less() {
        let week = Duration::from_secs(604_800);
        let total = 1 << 40;
        let whole = pause(1 << 20, total, week) * (1 << 20);
        assert!((whole.as_secs_f64() - week.as_secs_f64()).abs() < 10.0, "{whole:?}");
        assert_eq!(pause(1 << 20, 1 << 20, week), Duration::from_secs(16));
    }

    /// A scrubber of a new, empty store, and its clock.
    fn scrubber(dir: &Path, interval: Duration) -> (Scrubber, Clock, Store) {
        let (storage, clock) = (SimStorage::new(1), Clock::manual(1));
        let store = Store::open(&mut storage.disk(), dir, store::Options::default()).unwrap();
        let shared = Arc::new(Shared::for_tests(store.mvcc().published(), 1));
        storage.disk().create_dir_all(&dir.join("wal")).unwrap();
        let (disk, dirs) = (Box::new(storage.disk()), (dir, dir.join("wal")));
        (Scrubber::new(disk, dirs, interval, clock.clone(), shared, Arc::default()), clock, store)
    }

    #[test]
    fn a_round_ends_and_the_next_begins_when_its_time_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let (mut scrubber, clock, _store) = scrubber(dir.path(), Duration::from_secs(1000));
        clock.advance(Duration::from_secs(50_000));
        let mut round = Round::begin(scrubber.now());
        scrubber.step(&mut round).unwrap();
        assert!(round.at != At::End && scrubber.kept.load() == Some(round.clone()), "a restart goes on from here");
        for _ in 0..10 {
            scrubber.step(&mut round).unwrap();
        }
        assert_eq!((round.began, &round.at), (50_000, &At::End));
        assert_eq!(scrubber.kept.load(), Some(round.clone()), "a restart knows that it has ended");
        assert_eq!(scrubber.counters.ended.get(), 50_000);
        clock.advance(Duration::from_secs(999));
        assert_eq!(scrubber.step(&mut round).unwrap(), Duration::from_secs(1));
        clock.advance(Duration::from_secs(1));
        scrubber.step(&mut round).unwrap();
        assert_eq!(round, Round::begin(51_000));
        round = Round { began: 90_000, at: At::End };
        scrubber.step(&mut round).unwrap();
        assert_eq!(round, Round::begin(51_000), "the clock was set back");
    }
}
