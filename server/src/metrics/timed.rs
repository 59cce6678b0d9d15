//! Runs on: commit core.
//!
//! The log's disk with a memory of when each durable write was handed to it.
//!
//! Everything goes through unchanged. A write's time runs from the turn that submitted it to the turn that found it done,
//! both as handed to [`Timed::at`]: no clock is read here. What is in flight is bounded by the log.

use std::{collections::VecDeque, os::fd::RawFd, path::Path, sync::Arc, time::Duration};

use engine::{
    Error,
    disk::{Buffer, Completion, DirLock, Disk, FileId, Op, OpenKind, Token},
};

use super::counters::CommitCounters;

/// See the head of this file.
pub struct Timed {
    disk: Box<dyn Disk>,
    counters: Arc<CommitCounters>,
    now: Duration,
    /// Token and time of the writes under way, oldest first.
    in_flight: VecDeque<(Token, Duration)>,
}

impl Timed {
    /// `disk`, whose writes are counted in `counters`.
    pub fn new(disk: Box<dyn Disk>, counters: Arc<CommitCounters>) -> Self {
        Self { disk, counters, now: Duration::ZERO, in_flight: VecDeque::new() }
    }

    /// It is `now` from here on.
    pub fn at(&mut self, now: Duration) -> &mut Self {
        assert!(now >= self.now, "time does not go back");
        self.now = now;
        self
    }
}

impl Disk for Timed {
    fn submit(&mut self, op: Op, token: Token) {
        if let Op::WriteDurable { buf, .. } = &op {
            self.counters.wal_bytes.add(buf.len() as u64);
            self.in_flight.push_back((token, self.now));
        }
        self.disk.submit(op, token);
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let known = out.len();
        self.disk.completions(out);
        for completion in &out[known..] {
            let position = self.in_flight.iter().position(|(token, _)| *token == completion.token);
            let Some((_, began)) = position.and_then(|position| self.in_flight.remove(position)) else { continue };
            self.counters.wal_write.observe_time(self.now - began);
        }
    }

    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error> {
        self.disk.create_dir_all(dir)
    }

    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        self.disk.open(path, kind)
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
        let mut disk = Timed::new(Box::new(SimStorage::new(1).disk()), Arc::clone(&counters));
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
        let shown = crate::metrics::counters::Snapshot::of([&counters.wal_write].into_iter());
        assert_eq!((shown.count, shown.sum), (2, 55_000_000));
        assert_eq!(counters.wal_bytes.get(), 2 * BLOCK as u64);
        assert!(disk.in_flight.is_empty());
    }
}
