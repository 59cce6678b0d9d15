//! The control plane on a real file system, shared by every implementation that has one.
//!
//! Invariants: a handle stays valid until `close`. Directories and files that it makes are for their owner only (0700,
//! 0600). It does nothing off the caller's thread, on purpose. Work that may delay a request goes through `Op`, and is
//! done by others (`NameWork`). A file that is open for writing is locked; it is open once.

use std::{
    fs::{DirBuilder, File, OpenOptions, TryLockError},
    io,
    mem::MaybeUninit,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use rustix::{
    fs::{Advice, FallocateFlags, fadvise, fallocate},
    io::retry_on_intr,
};

use super::{BLOCK, Buffer, DirLock, FileId, FileOp, Op, OpenKind, assert_aligned};
use crate::Error;

/// Pause between two tries to get the lock of a file whose writer was killed.
const LOCK_PAUSE: Duration = Duration::from_millis(5);
/// Tries for half a minute.
const LOCK_TRIES_MAX: usize = 6000;

/// An open file or directory.
pub(super) struct Handle {
    pub(super) path: PathBuf,
    /// Missing while the path is only reserved, and after its name was removed.
    pub(super) file: Option<Arc<File>>,
    pub(super) is_dir: bool,
}

impl Handle {
    /// The open file.
    pub(super) fn open(&self) -> &Arc<File> {
        self.file.as_ref().expect("an operation names an open file")
    }
}

/// The open files of one `Disk`.
pub(super) struct Files {
    handles: Vec<Option<Handle>>,
    is_direct: bool,
}

impl Files {
    /// No open files. Files will be opened with O_DIRECT if `is_direct`.
    pub(super) const fn new(is_direct: bool) -> Self {
        Self { handles: Vec::new(), is_direct }
    }

    pub(super) fn handle(&self, file: FileId) -> &Handle {
        let handle = usize::try_from(file.0).ok().and_then(|at| self.handles.get(at));
        handle.and_then(Option::as_ref).expect("the file is open in this instance")
    }

    pub(super) fn create_dir_all(dir: &Path) -> Result<(), Error> {
        let created = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        created.map_err(|source| Error::io(dir, FileOp::Create, source))?;
        // Every level is synced: an earlier start may have made a directory and died before its name was durable.
        for parent in dir.ancestors().skip(1) {
            let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
            match Self::sync_dir(parent) {
                // We did not make a directory above ours that we may not open.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => break,
                result => result?,
            }
        }
        Ok(())
    }

    pub(super) fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        let opened = open_file(path, kind, self.is_direct)?;
        let file = self.reserve(path);
        self.opened(Opened { file, opened, is_dir: kind == OpenKind::Directory });
        Ok(file)
    }

    pub(super) fn reserve(&mut self, path: &Path) -> FileId {
        let handle = Some(Handle { path: path.to_path_buf(), file: None, is_dir: false });
        let position = self.handles.iter().position(Option::is_none).unwrap_or(self.handles.len());
        if position == self.handles.len() {
            self.handles.push(handle);
        } else {
            self.handles[position] = handle;
        }
        FileId(u32::try_from(position).expect("far fewer than 2^32 files are open"))
    }

    fn handle_mut(&mut self, file: FileId) -> &mut Handle {
        let handle = usize::try_from(file.0).ok().and_then(|at| self.handles.get_mut(at));
        handle.and_then(Option::as_mut).expect("the file is open in this instance")
    }

    /// Notes that a reserved file is open now.
    pub(super) fn opened(&mut self, opened: Opened) {
        let Opened { file, opened, is_dir } = opened;
        let handle = self.handle_mut(file);
        assert!(handle.file.is_none(), "a file is opened once");
        (handle.file, handle.is_dir) = (Some(Arc::new(opened)), is_dir);
    }

    /// The work of `op`, one of those that change names, away from this thread.
    pub(super) fn name_work(&mut self, op: Op) -> NameWork {
        let is_direct = self.is_direct;
        let handle = self.handle_mut(op.file());
        let path = handle.path.clone();
        match op {
            Op::Open { file, kind, from } => {
                assert!(handle.file.is_none(), "a file is opened once");
                NameWork::Open { file, path, kind, from, is_direct }
            }
            Op::Remove { .. } => NameWork::Remove { path, open: handle.file.take() },
            Op::WriteDurable { .. } | Op::Write { .. } | Op::Sync { .. } | Op::Read { .. } => {
                unreachable!("it changes no name")
            }
        }
    }

    pub(super) fn close(&mut self, file: FileId) {
        self.handle(file);
        self.handles[usize::try_from(file.0).expect("checked by `handle`")] = None;
    }

    pub(super) fn len(&self, file: FileId) -> Result<u64, Error> {
        let handle = self.handle(file);
        let metadata = handle.open().metadata().map_err(|source| Error::io(&handle.path, FileOp::Open, source))?;
        Ok(metadata.len())
    }

    pub(super) fn list(dir: &Path) -> Result<Vec<String>, Error> {
        let failed = |source| Error::io(dir, FileOp::List, source);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_type().map_err(failed)?.is_file()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    pub(super) fn remove(path: &Path) -> Result<(), Error> {
        std::fs::remove_file(path).map_err(|source| Error::io(path, FileOp::Remove, source))
    }

    pub(super) fn rename(from: &Path, to: &Path) -> Result<(), Error> {
        std::fs::rename(from, to).map_err(|source| Error::io(from, FileOp::Rename, source))
    }

    pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
        let synced = File::open(dir).and_then(|dir| dir.sync_all());
        synced.map_err(|source| Error::io(dir, FileOp::Sync, source))
    }

    pub(super) fn lock(dir: &Path) -> Result<DirLock, Error> {
        let file = File::open(dir).map_err(|source| Error::io(dir, FileOp::Lock, source))?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock::holding(file)),
            Err(TryLockError::WouldBlock) => Err(Error::Locked { path: dir.to_path_buf() }),
            Err(TryLockError::Error(source)) => Err(Error::io(dir, FileOp::Lock, source)),
        }
    }

    pub(super) fn read_blocking(&self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error> {
        assert_aligned(offset, len);
        let handle = self.handle(file);
        buf.fill_with(len, |room| read_all(handle.open(), offset, room))
            .map_err(|source| Error::io(&handle.path, FileOp::Read, source))
    }
}

/// Opens `path` as `kind` says.
fn open_file(path: &Path, kind: OpenKind, is_direct: bool) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).mode(0o600);
    let mut op = FileOp::Open;
    match kind {
        OpenKind::Read | OpenKind::Directory => {}
        OpenKind::Write => {
            options.write(true);
        }
        OpenKind::Create { .. } => {
            options.write(true).create_new(true);
            op = FileOp::Create;
        }
    }
    if is_direct && kind != OpenKind::Directory {
        options.custom_flags(libc::O_DIRECT);
    }
    let file = options.open(path).map_err(|source| Error::io(path, op, source))?;
    if matches!(kind, OpenKind::Write | OpenKind::Create { .. }) {
        lock_for_writing(path, &file)?;
    }
    match kind {
        OpenKind::Create { len } => reserve_space(path, &file, len)?,
        // After a failed write-back, the page cache may show bytes that the medium never got. So what an earlier
        // process left in the cache is not trusted.
        OpenKind::Read | OpenKind::Write if !is_direct => {
            let dropped = fadvise(&file, 0, None, Advice::DontNeed);
            dropped.map_err(|source| Error::io(path, op, source.into()))?;
        }
        OpenKind::Read | OpenKind::Write | OpenKind::Directory => {}
    }
    Ok(file)
}

/// An operation that changes names. It may wait for the file system for as long as that likes.
pub(super) enum NameWork {
    Open { file: FileId, path: PathBuf, kind: OpenKind, from: Option<PathBuf>, is_direct: bool },
    Remove { path: PathBuf, open: Option<Arc<File>> },
}

/// A file that was opened, and the number that it was reserved with.
pub(super) struct Opened {
    pub(super) file: FileId,
    pub(super) opened: File,
    pub(super) is_dir: bool,
}

impl NameWork {
    /// Does it. Blocks.
    pub(super) fn run(self) -> io::Result<Option<Opened>> {
        match self {
            Self::Open { file, path, kind, from, is_direct } => {
                let is_renamed = from.is_some();
                if let Some(from) = from {
                    std::fs::rename(from, &path)?;
                }
                let opened = open_file(&path, kind, is_direct).map_err(|error| match error {
                    // "No space" says that the file still has its old name.
                    Error::NoSpace { .. } if is_renamed => io::Error::other(error.to_string()),
                    error => error.into_io(),
                })?;
                Ok(Some(Opened { file, opened, is_dir: kind == OpenKind::Directory }))
            }
            Self::Remove { path, open } => {
                // The last link to an open file would give its space back here, but the one who closes it would wait.
                drop(open);
                std::fs::remove_file(path).map(|()| None)
            }
        }
    }
}

/// Locks a file that will be written, as long as it is open, with all that is in flight on it.
///
/// The kernel ends the operations of a killed process after the process itself, and after its lock on the directory is
/// gone. Each of them holds its open file, and with it this lock. So whoever gets the lock finds what was written last.
///
/// **Errors** `Locked` if it takes longer than [`LOCK_TRIES_MAX`] pauses.
#[expect(clippy::disallowed_methods, reason = "a start waits for the device; a running member's files are its own")]
fn lock_for_writing(path: &Path, file: &File) -> Result<(), Error> {
    for _ in 0..LOCK_TRIES_MAX {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(source)) => return Err(Error::io(path, FileOp::Lock, source)),
        }
    }
    Err(Error::Locked { path: path.to_path_buf() })
}

/// Gives a new file its size and its space. Removes the file again if there is no space.
fn reserve_space(path: &Path, file: &File, len: u64) -> Result<(), Error> {
    assert!(len.is_multiple_of(BLOCK as u64));
    if len == 0 {
        return Ok(());
    }
    // A signal interrupts it, as it may take long.
    let reserved = match retry_on_intr(|| fallocate(file, FallocateFlags::empty(), 0, len)) {
        // Not every file system can reserve space. On such a file system, a full disk shows at the write.
        Err(rustix::io::Errno::OPNOTSUPP) => file.set_len(len),
        result => result.map_err(io::Error::from),
    };
    reserved.map_err(|source| {
        let error = Error::io(path, FileOp::Create, source);
        match Files::remove(path) {
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => error,
            Err(removal) => removal,
            Ok(()) => error,
        }
    })
}

/// Reads until `buf` is full or the file ends; returns the bytes read.
pub(super) fn read_all(file: &File, offset: u64, buf: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        let read = rustix::io::pread(file, &mut buf[done..], offset + done as u64).map(|(read, _)| read.len());
        match read {
            Ok(0) => break,
            Ok(count) => {
                done += count;
                // With O_DIRECT, only the end of the file cuts a block. What follows could not be read unaligned.
                if !done.is_multiple_of(BLOCK) {
                    break;
                }
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}
