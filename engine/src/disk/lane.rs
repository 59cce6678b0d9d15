//! Threads that do operations which may block, one after the other, for a disk whose owner must not wait.
//!
//! Each lane is one thread with a bounded queue. Operations beyond it wait in `overflow` until `push`.
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
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::fs::FileExt,
    },
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
    BLOCK, Buffer, Completion, Op, Token,
    files::{Files, NameWork, Opened, read_all},
};

/// Operations that one thread's queue holds.
const LANE_OPS_MAX: usize = 256;

/// An operation for a lane.
pub(super) struct Job {
    pub(super) work: Work,
    pub(super) token: Token,
}

pub(super) enum Work {
    Data { file: Arc<File>, is_dir: bool, op: Op },
    Name(NameWork),
}

/// An operation that has ended, and the file that it has opened.
pub(super) struct Ended {
    pub(super) completion: Completion,
    pub(super) opened: Option<Opened>,
}

impl Ended {
    /// The completion for the caller. A file that was opened is one of `files` from here on.
    pub(super) fn complete(self, files: &mut Files) -> Completion {
        if let Some(opened) = self.opened {
            files.opened(opened);
        }
        self.completion
    }
}

/// One thread and the way to it.
pub(super) struct Lane {
    sender: Option<SyncSender<Job>>,
    overflow: VecDeque<Job>,
    thread: Option<JoinHandle<()>>,
}

/// The place where the threads leave ended operations.
pub(super) struct Done {
    ended: Mutex<VecDeque<Ended>>,
    arrived: Condvar,
    wake: OwnedFd,
}

impl Done {
    pub(super) fn new() -> io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Arc::new(Self { ended: Mutex::default(), arrived: Condvar::new(), wake }))
    }

    /// The eventfd that becomes readable when something has ended.
    pub(super) fn wake(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    pub(super) fn ended(&self) -> MutexGuard<'_, VecDeque<Ended>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has ended.
    pub(super) fn wait(&self) {
        let waited = self.arrived.wait_while(self.ended(), |ended| ended.is_empty());
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn push(&self, ended: Ended) {
        let was_empty = {
            let mut all = self.ended();
            all.push_back(ended);
            all.len() == 1
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

impl Lane {
    pub(super) fn start(name: &str, done: &Arc<Done>) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(LANE_OPS_MAX);
        let done = Arc::clone(done);
        let thread = Builder::new().name(name.to_owned()).spawn(move || serve(&receiver, &done))?;
        Ok(Self { sender: Some(sender), overflow: VecDeque::new(), thread: Some(thread) })
    }

    /// Queues `job`. It begins after `push`.
    pub(super) fn queue(&mut self, job: Job) {
        self.overflow.push_back(job);
    }

    /// Hands the thread what its queue has room for.
    pub(super) fn push(&mut self) {
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
    while let Ok(Job { work, token }) = jobs.recv() {
        let (result, buf, opened) = match work {
            Work::Data { file, is_dir, op } => {
                let (result, buf) = run(&file, is_dir, op, &has_dsync);
                (result, buf, None)
            }
            Work::Name(work) => match work.run() {
                Ok(opened) => (Ok(0), Buffer::new(), opened),
                Err(error) => (Err(error), Buffer::new(), None),
            },
        };
        done.push(Ended { completion: Completion { token, result, buf }, opened });
    }
}

fn run(file: &File, is_dir: bool, op: Op, has_dsync: &AtomicBool) -> (io::Result<usize>, Buffer) {
    match op {
        Op::WriteDurable { offset, buf, .. } => (write_durable(file, offset, &buf, has_dsync), buf),
        Op::Write { offset, buf, .. } => (file.write_all_at(&buf, offset).map(|()| buf.len()), buf),
        Op::Sync { .. } => (if is_dir { file.sync_all() } else { file.sync_data() }.map(|()| 0), Buffer::new()),
        Op::Read { offset, len, mut buf, .. } => {
            let result = buf.fill_with(len, |room| read_all(file, offset, room));
            (result.map(|()| buf.len()), buf)
        }
        Op::Open { .. } | Op::Remove { .. } => unreachable!("it changes names, and needs no open file"),
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

/// The lane for operations that change names. Its thread begins with the first of them: most disks have none.
#[derive(Default)]
pub(super) struct NameLane(Option<Lane>);

impl NameLane {
    /// Queues `work`. It begins after `push`. If there can be no thread, it ends at once, with the reason.
    pub(super) fn queue(&mut self, work: NameWork, token: Token, done: &Arc<Done>) {
        let lane = match self.0.take().map_or_else(|| Lane::start("disk-names", done), Ok) {
            Ok(lane) => self.0.insert(lane),
            Err(error) => {
                let completion = Completion { token, result: Err(error), buf: Buffer::new() };
                return done.push(Ended { completion, opened: None });
            }
        };
        lane.queue(Job { work: Work::Name(work), token });
    }

    /// Hands the thread what its queue has room for.
    pub(super) fn push(&mut self) {
        if let Some(lane) = &mut self.0 {
            lane.push();
        }
    }
}
