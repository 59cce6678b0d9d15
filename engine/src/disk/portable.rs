//! `Disk` with `pread` and `pwrite` on threads of its own. It is for kernels that refuse io_uring, and for file systems
//! that refuse O_DIRECT.
//!
//! There are two threads, so that a page read does not wait behind a commit. One thread makes things durable
//! (`WriteDurable`, `Sync`), the other does plain writes and reads. Each has a bounded queue. Operations beyond it wait
//! in `overflow` until `kick` or `completions`.
//!
//! Invariants:
//! - An operation's buffer has one owner at a time: caller, overflow, thread, then the caller again.
//! - `Done::ended` is non-empty before `wake` is written, so a reader of `wake` misses nothing.
//!
//! It makes threads, against the rule that only `cores` does. They hold no state and run no logic.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::FileExt,
    },
    path::Path,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread::{Builder, JoinHandle},
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, IoSlice, ReadWriteFlags, pwritev2},
};

use super::{
    BLOCK, Buffer, Completion, DirLock, Disk, FileId, FileOp, Op, OpenKind, Token,
    files::{Files, read_all},
};
use crate::Error;

/// Operations that one thread's queue holds.
const LANE_OPS_MAX: usize = 256;

/// The portable implementation.
pub(super) struct Portable {
    files: Files,
    durable: Lane,
    plain: Lane,
    done: Arc<Done>,
    in_flight: usize,
}

struct Job {
    file: Arc<File>,
    is_dir: bool,
    op: Op,
    token: Token,
}

/// One thread and the way to it.
struct Lane {
    sender: Option<SyncSender<Job>>,
    overflow: VecDeque<Job>,
    thread: Option<JoinHandle<()>>,
}

/// The place where the threads leave ended operations.
struct Done {
    ended: Mutex<VecDeque<Completion>>,
    arrived: Condvar,
    wake: OwnedFd,
}

impl Done {
    fn ended(&self) -> MutexGuard<'_, VecDeque<Completion>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, completion: Completion) {
        let was_empty = {
            let mut ended = self.ended();
            ended.push_back(completion);
            ended.len() == 1
        };
        self.arrived.notify_one();
        if was_empty {
            // The counter cannot overflow: at most one write per emptied queue, and a reader resets it.
            match rustix::io::write(&self.wake, &1_u64.to_ne_bytes()) {
                Ok(_) | Err(Errno::AGAIN) => {}
                Err(error) => panic!("an eventfd takes 8 bytes: {error}"),
            }
        }
    }
}

impl Portable {
    /// Starts the threads.
    pub(super) fn start(is_direct: bool) -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let done = Arc::new(Done { ended: Mutex::default(), arrived: Condvar::new(), wake });
        Ok(Self {
            files: Files::new(is_direct),
            durable: Lane::start("disk-durable", &done)?,
            plain: Lane::start("disk-plain", &done)?,
            done,
            in_flight: 0,
        })
    }
}

impl Lane {
    fn start(name: &str, done: &Arc<Done>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(LANE_OPS_MAX);
        let done = Arc::clone(done);
        let thread = Builder::new().name(name.to_owned()).spawn(move || serve(&receiver, &done))?;
        Ok(Self { sender: Some(sender), overflow: VecDeque::new(), thread: Some(thread) })
    }

    fn push(&mut self) {
        let sender = self.sender.as_ref().expect("only `drop` takes it");
        while let Some(job) = self.overflow.pop_front() {
            match sender.try_send(job) {
                Ok(()) => {}
                Err(TrySendError::Full(job)) => {
                    self.overflow.push_front(job);
                    return;
                }
                Err(TrySendError::Disconnected(_)) => panic!("the disk's thread ends only with it"),
            }
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the disk's thread panicked");
        }
    }
}

/// The loop of a thread: it does one operation after the other, until the `Disk` is gone.
fn serve(jobs: &Receiver<Job>, done: &Done) {
    let has_dsync = AtomicBool::new(true);
    while let Ok(job) = jobs.recv() {
        let Job { file, is_dir, op, token } = job;
        let (result, buf) = match op {
            Op::WriteDurable { offset, buf, .. } => (write_durable(&file, offset, &buf, &has_dsync), buf),
            Op::Write { offset, buf, .. } => (file.write_all_at(&buf, offset).map(|()| buf.len()), buf),
            Op::Sync { .. } => (if is_dir { file.sync_all() } else { file.sync_data() }.map(|()| 0), Buffer::new()),
            Op::Read { offset, len, mut buf, .. } => {
                let result = buf.fill_with(len, |room| read_all(&file, offset, room));
                (result.map(|()| buf.len()), buf)
            }
        };
        done.push(Completion { token, result, buf });
    }
}

/// Makes one write that is durable when it returns: with RWF_DSYNC, or with a write and fdatasync if the kernel does
/// not know RWF_DSYNC.
fn write_durable(file: &File, offset: u64, buf: &[u8], has_dsync: &AtomicBool) -> io::Result<usize> {
    let mut done = 0;
    while has_dsync.load(Ordering::Relaxed) && done < buf.len() {
        match pwritev2(file, &[IoSlice::new(&buf[done..])], offset + done as u64, ReadWriteFlags::DSYNC) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) if done == 0 => {
                has_dsync.store(false, Ordering::Relaxed)
            }
            Err(error) => return Err(error.into()),
        }
        // The rest of a cut block cannot be written with O_DIRECT.
        if !done.is_multiple_of(BLOCK) {
            return Err(io::ErrorKind::WriteZero.into());
        }
    }
    if done < buf.len() {
        file.write_all_at(&buf[done..], offset + done as u64)?;
        file.sync_data()?;
    }
    Ok(buf.len())
}

impl Disk for Portable {
    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error> {
        Files::create_dir_all(dir)
    }

    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        self.files.open(path, kind)
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
        let handle = self.files.handle(op.file());
        let lane = match op {
            Op::WriteDurable { .. } | Op::Sync { .. } => &mut self.durable,
            Op::Write { .. } | Op::Read { .. } => &mut self.plain,
        };
        lane.overflow.push_back(Job { file: Arc::clone(&handle.file), is_dir: handle.is_dir, op, token });
        self.in_flight += 1;
    }

    fn kick(&mut self) -> Result<(), Error> {
        self.durable.push();
        self.plain.push();
        Ok(())
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let before = out.len();
        out.extend(self.done.ended().drain(..));
        self.in_flight -= out.len() - before;
        if out.len() > before {
            self.durable.push();
            self.plain.push();
        }
    }

    fn wait(&mut self) -> Result<(), Error> {
        assert!(self.in_flight > 0, "nothing to wait for");
        self.kick()?;
        let ended = self.done.ended();
        let waited = self.done.arrived.wait_while(ended, |ended| ended.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.done.wake.as_raw_fd())
    }
}

/// The error of a thread that cannot be started.
pub(super) fn refused(dir: &Path, source: io::Error) -> Error {
    Error::io(dir, FileOp::Setup, source)
}
