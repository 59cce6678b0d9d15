//! `Disk` with io_uring. The kernel does the work, without a thread of ours; but for changes of names, which it would
//! make one system call at a time as well (`lane`).
//!
//! Invariants:
//! - Every operation that the kernel has is in `slots`, with its buffer. The buffer may move, because it is a pointer;
//!   its memory does not. The buffer is given back only after the kernel's completion. `drop` waits for all of them.
//! - At most `RING_OPS_MAX` operations are with the kernel, half of the capacity of the completion queue. So that queue
//!   never overflows. Operations beyond that wait in `queue`.
//!
//! A completion may come in parts: the rest of a write or read is submitted again under the same slot. No registered
//! buffers or files are used: one write per group commit does not pay for their bookkeeping.

#![expect(unsafe_code, reason = "the kernel is handed pointers into buffers that the slots keep alive")]

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    sync::Arc,
};

use io_uring::{IoUring, opcode, squeue, types};
use rustix::event::{PollFd, PollFlags, poll};

use super::{
    BLOCK, Buffer, Completion, DirLock, Disk, FileId, FileOp, Op, OpenKind, Token,
    files::Files,
    lane::{Done, NameLane},
};
use crate::Error;

/// Operations with the kernel at once.
const RING_OPS_MAX: u32 = 256;

/// The io_uring implementation.
pub(super) struct Uring {
    files: Files,
    slots: Vec<Slot>,
    free: Vec<usize>,
    queue: VecDeque<Job>,
    ended: Vec<Completion>,
    /// The reason why the ring itself cannot go on.
    broken: Option<io::Error>,
    names: NameLane,
    names_in_flight: usize,
    /// It also has the eventfd that the kernel writes.
    done: Arc<Done>,
    ring: IoUring,
}

/// An operation, and its progress.
struct Job {
    op: Op,
    token: Token,
    /// It is kept open while the kernel works on it.
    file: Arc<File>,
    is_dir: bool,
    done: usize,
}

/// An operation the kernel has.
type Slot = Option<Job>;

impl Uring {
    /// Sets up a ring. Fails if the kernel refuses one.
    pub(super) fn start(is_direct: bool) -> io::Result<Self> {
        let ring = match IoUring::builder().setup_coop_taskrun().build(RING_OPS_MAX) {
            // Kernels before 5.19 do not know the flag.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => IoUring::new(RING_OPS_MAX)?,
            result => result?,
        };
        let done = Done::new()?;
        ring.submitter().register_eventfd(done.wake().as_raw_fd())?;
        Ok(Self {
            files: Files::new(is_direct),
            slots: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            ended: Vec::new(),
            broken: None,
            names: NameLane::default(),
            names_in_flight: 0,
            done,
            ring,
        })
    }

    fn with_kernel(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Moves queued operations to the ring as far as it has room, and enters the kernel if there is anything new.
    fn push(&mut self) -> io::Result<()> {
        let mut is_new = false;
        while self.with_kernel() < RING_OPS_MAX as usize {
            let Some(job) = self.queue.pop_front() else { break };
            let at = self.free.pop().unwrap_or(self.slots.len());
            if at == self.slots.len() {
                self.slots.push(None);
            }
            let entry = self.slots[at].insert(job).entry().user_data(at as u64);
            // SAFETY: the buffer and the file the entry points to are owned by the slot, which is emptied only after
            // the kernel completed this entry (`reap`), and `drop` waits for that.
            let pushed = unsafe { self.ring.submission().push(&entry) };
            pushed.expect("the queue holds RING_OPS_MAX entries and was emptied by the last submit");
            is_new = true;
        }
        if is_new { self.enter(0) } else { Ok(()) }
    }

    /// Submits all entries in the ring, of which the kernel may take a part at a time, and waits until
    /// `completions_min` completions have come.
    fn enter(&mut self, completions_min: usize) -> io::Result<()> {
        loop {
            match self.ring.submit_and_wait(completions_min) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) if self.ring.submission().is_empty() => return Ok(()),
                Ok(_) => {}
            }
        }
    }

    /// Takes the kernel's completions, and the lane's.
    fn reap(&mut self) {
        if self.names_in_flight > 0 {
            let Self { files, done, ended, names_in_flight, .. } = self;
            for name in done.ended().drain(..) {
                *names_in_flight -= 1;
                ended.push(name.complete(files));
            }
            self.names.push();
        }
        let Self { ring, slots, free, queue, ended, .. } = self;
        for completed in ring.completion() {
            let at = usize::try_from(completed.user_data()).expect("a slot's position");
            let mut job = slots[at].take().expect("the kernel completes what it has, once");
            free.push(at);
            match job.advance(completed.result()) {
                None => queue.push_front(job),
                Some(result) => ended.push(job.end(result)),
            }
        }
        if !self.queue.is_empty()
            && self.broken.is_none()
            && let Err(error) = self.push()
        {
            self.broken = Some(error);
        }
    }

    /// Waits until something may have ended, of the kernel's or of the lane's.
    fn wait_for_any(&mut self) -> io::Result<()> {
        if self.names_in_flight == 0 {
            return self.enter(1);
        }
        let wake = self.done.wake();
        match poll(&mut [PollFd::new(&wake, PollFlags::IN)], None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        match rustix::io::read(wake, &mut [0; 8]) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn check(&mut self, result: io::Result<()>) -> Result<(), Error> {
        let failed = result.err().or_else(|| self.broken.take());
        failed.map_or(Ok(()), |source| Err(Error::io(Path::new("io_uring"), FileOp::Setup, source)))
    }
}

impl Job {
    /// The next work of the kernel for this operation.
    fn entry(&mut self) -> squeue::Entry {
        let fd = types::Fd(self.file.as_raw_fd());
        let done = self.done;
        match &mut self.op {
            Op::WriteDurable { offset, buf, .. } => {
                let (rest, offset) = (&buf[done..], *offset + done as u64);
                let write = opcode::Write::new(fd, rest.as_ptr(), len_of(rest)).offset(offset);
                write.rw_flags(libc::RWF_DSYNC).build()
            }
            Op::Write { offset, buf, .. } => {
                let (rest, offset) = (&buf[done..], *offset + done as u64);
                opcode::Write::new(fd, rest.as_ptr(), len_of(rest)).offset(offset).build()
            }
            Op::Sync { .. } => {
                let flags = if self.is_dir { types::FsyncFlags::empty() } else { types::FsyncFlags::DATASYNC };
                opcode::Fsync::new(fd).flags(flags).build()
            }
            Op::Read { offset, len, buf, .. } => {
                let offset = *offset + done as u64;
                let rest = &mut buf.room(*len)[done..];
                opcode::Read::new(fd, rest.as_mut_ptr().cast(), len_of(rest)).offset(offset).build()
            }
            Op::Open { .. } | Op::Remove { .. } => unreachable!("the lane changes names"),
        }
    }

    /// Takes the kernel's answer; `None` when there is more to do.
    fn advance(&mut self, answer: i32) -> Option<io::Result<usize>> {
        let Ok(count) = usize::try_from(answer) else {
            let error = io::Error::from_raw_os_error(-answer);
            return if error.kind() == io::ErrorKind::Interrupted { None } else { Some(Err(error)) };
        };
        self.done += count;
        let is_cut = !self.done.is_multiple_of(BLOCK);
        match &self.op {
            Op::Sync { .. } | Op::Open { .. } | Op::Remove { .. } => Some(Ok(0)),
            Op::Read { len, .. } => (count == 0 || is_cut || self.done == *len).then_some(Ok(self.done)),
            Op::WriteDurable { buf, .. } | Op::Write { buf, .. } => match self.done {
                done if done == buf.len() => Some(Ok(done)),
                // The rest of a cut block cannot be written with O_DIRECT.
                _ if count == 0 || is_cut => Some(Err(io::ErrorKind::WriteZero.into())),
                _ => None,
            },
        }
    }

    fn end(self, result: io::Result<usize>) -> Completion {
        let buf = match self.op {
            Op::Read { mut buf, .. } => {
                // SAFETY: the kernel said that it filled so many bytes, from the first on.
                unsafe { buf.filled(result.as_ref().map_or(0, |count| *count)) };
                buf
            }
            other => other.into_buffer(),
        };
        Completion { token: self.token, result, buf }
    }
}

/// The kernel takes at most 2 GiB at once. The rest follows.
fn len_of<T>(bytes: &[T]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(1 << 30)
}

impl Disk for Uring {
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
        if matches!(op, Op::Open { .. } | Op::Remove { .. }) {
            self.names_in_flight += 1;
            return self.names.queue(self.files.name_work(op), token, &self.done);
        }
        let handle = self.files.handle(op.file());
        let (file, is_dir) = (Arc::clone(handle.open()), handle.is_dir);
        self.queue.push_back(Job { op, token, file, is_dir, done: 0 });
    }

    fn kick(&mut self) -> Result<(), Error> {
        self.names.push();
        let pushed = self.push();
        self.check(pushed)
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        self.reap();
        out.append(&mut self.ended);
    }

    fn wait(&mut self) -> Result<(), Error> {
        self.kick()?;
        loop {
            self.reap();
            if !self.ended.is_empty() {
                return self.check(Ok(()));
            }
            assert!(self.with_kernel() + self.names_in_flight > 0, "nothing to wait for");
            let waited = self.wait_for_any();
            self.check(waited)?;
        }
    }

    fn wake_fd(&self) -> Option<RawFd> {
        Some(self.done.wake().as_raw_fd())
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        self.queue.clear();
        while self.with_kernel() > 0 {
            if self.enter(1).is_err() {
                // The kernel may still write to these buffers, so they are leaked and not freed.
                std::mem::forget(std::mem::take(&mut self.slots));
                return;
            }
            self.reap();
        }
    }
}
