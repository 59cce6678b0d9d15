//! Runs on: raft core, checkpoint thread.
//!
//! A disk that measures its durable writes: those of the log, and the last ones of a checkpoint.
//!
//! Every operation goes through unchanged. The time of a log write runs from the turn that submitted it to the turn
//! that found it done. Both times come from [`Timed::at`], so no clock is read. The commit of a checkpoint is what
//! etcd's alerts take for the commit of the backend. It runs from the first of the last syncs to the end of the
//! superblock's write; what comes before, since [`Timed::begin`], is counted apart. The checkpoint thread has time to
//! read the clock. The log and the checkpoint bound what is in
//! flight.

use std::{collections::VecDeque, os::fd::RawFd, path::Path, sync::Arc, time::Duration};

use engine::{
    Error,
    disk::{Buffer, Completion, DirLock, Disk, FileId, Op, OpenKind, Token},
};

use super::counters::CommitCounters;
use crate::clock::Clock;

/// Sees the operations of a disk come and go.
pub trait Watcher: Send {
    /// Called when an operation is handed to the disk.
    fn submitted(&mut self, op: &Op, token: Token);

    /// Called when an operation has ended.
    fn ended(&mut self, token: Token);
}

/// Measures the durable writes of the log.
pub struct LogWrites {
    counters: Arc<CommitCounters>,
    now: Duration,
    /// Tokens and times of the writes under way, oldest first.
    in_flight: VecDeque<(Token, Duration)>,
}

impl LogWrites {
    /// Counts the writes in `counters`.
    pub fn new(counters: Arc<CommitCounters>) -> Self {
        Self { counters, now: Duration::ZERO, in_flight: VecDeque::new() }
    }
}

impl Watcher for LogWrites {
    fn submitted(&mut self, op: &Op, token: Token) {
        if let Op::WriteDurable { buf, .. } = op {
            self.counters.wal_bytes.add(buf.len() as u64);
            self.in_flight.push_back((token, self.now));
        }
    }

    fn ended(&mut self, token: Token) {
        let position = self.in_flight.iter().position(|(known, _)| *known == token);
        let Some((_, began)) = position.and_then(|position| self.in_flight.remove(position)) else { return };
        self.counters.wal_write.observe_time(self.now - began);
    }
}

/// Measures the last syncs of a checkpoint and the write of the superblock after them.
pub struct CheckpointCommits {
    counters: Arc<CommitCounters>,
    clock: Clock,
    /// Syncs under way.
    syncs: Vec<Token>,
    /// When the checkpoint began.
    begun: Duration,
    /// When the last syncs began.
    began: Duration,
    superblock: Option<Token>,
}

impl CheckpointCommits {
    /// Counts the commits in `counters`.
    pub fn new(counters: Arc<CommitCounters>, clock: Clock) -> Self {
        let (begun, began) = (clock.now(), Duration::ZERO);
        Self { counters, clock, syncs: Vec::new(), begun, began, superblock: None }
    }
}

impl Watcher for CheckpointCommits {
    fn submitted(&mut self, op: &Op, token: Token) {
        match op {
            Op::Sync { .. } => {
                if self.syncs.is_empty() {
                    self.began = self.clock.now();
                }
                self.syncs.push(token);
            }
            Op::WriteDurable { .. } => self.superblock = Some(token),
            _ => {}
        }
    }

    fn ended(&mut self, token: Token) {
        self.syncs.retain(|known| *known != token);
        if self.superblock.take_if(|known| *known == token).is_some() {
            self.counters.checkpoint_spill.observe_time(self.began.saturating_sub(self.begun));
            self.counters.checkpoint_commit.observe_time(self.clock.now().saturating_sub(self.began));
        }
    }
}

/// See the head of this file.
pub struct Timed<W> {
    disk: Box<dyn Disk>,
    watcher: W,
}

impl<W: Watcher> Timed<W> {
    /// Wraps `disk`; `watcher` sees its operations.
    pub fn new(disk: Box<dyn Disk>, watcher: W) -> Self {
        Self { disk, watcher }
    }
}

impl Timed<LogWrites> {
    /// Sets the time to `now`.
    pub fn at(&mut self, now: Duration) -> &mut Self {
        assert!(now >= self.watcher.now, "time does not go back");
        self.watcher.now = now;
        self
    }
}

impl Timed<CheckpointCommits> {
    /// A checkpoint begins.
    pub fn begin(&mut self) {
        self.watcher.begun = self.watcher.clock.now();
    }
}

impl<W: Watcher> Disk for Timed<W> {
    fn submit(&mut self, op: Op, token: Token) {
        self.watcher.submitted(&op, token);
        self.disk.submit(op, token);
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let known = out.len();
        self.disk.completions(out);
        out[known..].iter().for_each(|completion| self.watcher.ended(completion.token));
    }

    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error> {
        self.disk.create_dir_all(dir)
    }

    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        self.disk.open(path, kind)
    }

    fn reserve(&mut self, path: &Path) -> FileId {
        self.disk.reserve(path)
    }

    fn close(&mut self, file: FileId) {
        self.disk.close(file);
    }

    fn path(&self, file: FileId) -> &Path {
        self.disk.path(file)
    }

    fn len(&mut self, file: FileId) -> Result<u64, Error> {
        self.disk.len(file)
    }

    fn list(&mut self, dir: &Path) -> Result<Vec<String>, Error> {
        self.disk.list(dir)
    }

    fn remove(&mut self, path: &Path) -> Result<(), Error> {
        self.disk.remove(path)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&mut self, dir: &Path) -> Result<(), Error> {
        self.disk.sync_dir(dir)
    }

    fn lock(&mut self, dir: &Path) -> Result<DirLock, Error> {
        self.disk.lock(dir)
    }

    fn read_blocking(&mut self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error> {
        self.disk.read_blocking(file, offset, len, buf)
    }

    fn kick(&mut self) -> Result<(), Error> {
        self.disk.kick()
    }

    fn wait(&mut self) -> Result<(), Error> {
        self.disk.wait()
    }

    fn wake_fd(&self) -> Option<RawFd> {
        self.disk.wake_fd()
    }
}

#[cfg(test)]
mod tests {
    use engine::disk::{BLOCK, Owner, sim::SimStorage};

    use super::*;

    #[test]
    fn a_durable_write_takes_from_its_submission_to_its_end_and_nothing_else_is_timed() {
        let counters = Arc::<CommitCounters>::default();
        let mut disk = Timed::new(Box::new(SimStorage::new(1).disk()), LogWrites::new(Arc::clone(&counters)));
        disk.create_dir_all(Path::new("data")).unwrap();
        let file = disk.open(Path::new("data/log"), OpenKind::Create { len: 4 * BLOCK as u64 }).unwrap();
        let ms = Duration::from_millis;
        let write = |offset: usize| Op::WriteDurable { file, offset: offset as u64, buf: Buffer::zeroed(BLOCK) };
        disk.at(ms(10)).submit(write(0), Owner::Wal.token(1));
        disk.submit(Op::Sync { file }, Owner::Wal.token(2));
        disk.at(ms(15)).submit(write(BLOCK), Owner::Wal.token(3));
        let mut ended = Vec::new();
        while ended.len() < 3 {
            disk.wait().unwrap();
            disk.at(ms(40)).completions(&mut ended);
        }
        let shown = crate::metrics::histogram::Snapshot::of([&counters.wal_write].into_iter());
        assert_eq!((shown.count, shown.sum), (2, 55_000_000));
        assert_eq!(counters.wal_bytes.get(), 2 * BLOCK as u64);
        assert!(disk.watcher.in_flight.is_empty());
    }

    #[test]
    fn a_checkpoint_counts_once_however_many_syncs_it_had() {
        let counters = Arc::<CommitCounters>::default();
        let watcher = CheckpointCommits::new(Arc::clone(&counters), Clock::start());
        let mut disk = Timed::new(Box::new(SimStorage::new(1).disk()), watcher);
        let dir = Path::new("data");
        let mut store = engine::Store::open(&mut disk, dir, engine::store::Options::default()).unwrap();
        let commits = |counters: &CommitCounters| {
            let histograms = [&counters.checkpoint_commit, &counters.checkpoint_spill];
            histograms.map(|histogram| crate::metrics::histogram::Snapshot::of([histogram].into_iter()).count)
        };
        let before = commits(&counters);
        for index in 1..4 {
            let mut write = store.mvcc_mut().begin();
            write.put("k".into(), "v".into(), 0).unwrap();
            drop(write.finish());
            drop(store.mvcc_mut().publish(index, 1));
            disk.begin();
            let done = store.checkpoint_begin().run(&mut disk).unwrap();
            store.checkpoint_end(done);
        }
        assert_eq!(commits(&counters), before.map(|count| count + 3));
        assert!(disk.watcher.syncs.is_empty() && disk.watcher.superblock.is_none());
    }
}
