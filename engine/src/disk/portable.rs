//! `Disk` with `pread` and `pwrite` on threads of its own. It is for kernels that refuse io_uring, and for file systems
//! that refuse O_DIRECT.
//!
//! There are two threads (`lane`), so that a page read does not wait behind a commit. One thread makes things durable
//! (`WriteDurable`, `Sync`), the other does plain writes and reads. A third changes names, where that is asked for.

use std::{
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    sync::Arc,
};

use super::{
    Buffer, Completion, DirLock, Disk, FileId, FileOp, Op, OpenKind, Token,
    files::Files,
    lane::{Done, Job, Lane, NameLane, Work},
};
use crate::Error;

/// The portable implementation.
pub(super) struct Portable {
    files: Files,
    durable: Lane,
    plain: Lane,
    names: NameLane,
    done: Arc<Done>,
    in_flight: usize,
}

impl Portable {
    /// Starts the threads.
    pub(super) fn start(is_direct: bool) -> io::Result<Self> {
        let done = Done::new()?;
        Ok(Self {
            files: Files::new(is_direct),
            durable: Lane::start("disk-durable", &done)?,
            plain: Lane::start("disk-plain", &done)?,
            names: NameLane::default(),
            done,
            in_flight: 0,
        })
    }
}

impl Disk for Portable {
    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error> {
        Files::create_dir_all(dir)
    }

    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        self.files.open(path, kind)
    }

    fn reserve(&mut self, path: &Path) -> FileId {
        self.files.reserve(path)
    }

    fn close(&mut self, file: FileId) {
        self.files.close(file);
    }

    fn path(&self, file: FileId) -> &Path {
        &self.files.handle(file).path
    }

    fn len(&mut self, file: FileId) -> Result<u64, Error> {
        self.files.len(file)
    }

    fn list(&mut self, dir: &Path) -> Result<Vec<String>, Error> {
        Files::list(dir)
    }

    fn remove(&mut self, path: &Path) -> Result<(), Error> {
        Files::remove(path)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        Files::rename(from, to)
    }

    fn sync_dir(&mut self, dir: &Path) -> Result<(), Error> {
        Files::sync_dir(dir)
    }

    fn lock(&mut self, dir: &Path) -> Result<DirLock, Error> {
        Files::lock(dir)
    }

    fn read_blocking(&mut self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error> {
        self.files.read_blocking(file, offset, len, buf)
    }

    fn submit(&mut self, op: Op, token: Token) {
        op.assert_valid();
        self.in_flight += 1;
        let lane = match op {
            Op::WriteDurable { .. } | Op::Sync { .. } => &mut self.durable,
            Op::Write { .. } | Op::Read { .. } => &mut self.plain,
            Op::Open { .. } | Op::Remove { .. } => {
                return self.names.queue(self.files.name_work(op), token, &self.done);
            }
        };
        let handle = self.files.handle(op.file());
        lane.queue(Job { work: Work::Data { file: Arc::clone(handle.open()), is_dir: handle.is_dir, op }, token });
    }

    fn kick(&mut self) -> Result<(), Error> {
        self.durable.push();
        self.plain.push();
        self.names.push();
        Ok(())
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let before = out.len();
        let files = &mut self.files;
        out.extend(self.done.ended().drain(..).map(|ended| ended.complete(files)));
        self.in_flight -= out.len() - before;
        if out.len() > before {
            self.durable.push();
            self.plain.push();
            self.names.push();
        }
    }

    fn wait(&mut self) -> Result<(), Error> {
        assert!(self.in_flight > 0, "nothing to wait for");
        self.kick()?;
        self.done.wait();
        Ok(())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.done.wake().as_raw_fd())
    }
}

/// The error of a thread that cannot be started.
pub(super) fn refused(dir: &Path, source: io::Error) -> Error {
    Error::io(dir, FileOp::Setup, source)
}
