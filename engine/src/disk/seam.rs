//! The trait [`Disk`], which every implementation keeps, and its operations.
//!
//! The promises are at the head of the folder (`mod.rs`). This file knows no implementation.

use std::{
    fmt, io,
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use super::{block::assert_aligned, buffer::Buffer};
use crate::error::Error;

/// A file that one `Disk` instance has open; meaningless to any other instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenKind {
    /// Existing file, for reading.
    Read,
    /// Existing file, for reading and writing.
    Write,
    /// New file (an existing one is an error) of `len` bytes, a multiple of `BLOCK`. Its space is reserved, so a full
    /// disk shows here and not at a write. It reads as zeros. It is durable only after a sync of it and of its
    /// directory.
    Create {
        /// Size in bytes.
        len: u64,
    },
    /// A directory, to be made durable with `Op::Sync` off the caller's path.
    Directory,
}

/// An operation of the data plane.
#[derive(Debug)]
pub enum Op {
    /// Write all of `buf` at `offset`; complete once it survives power loss.
    WriteDurable {
        /// Target.
        file: FileId,
        /// First byte, a multiple of `BLOCK`.
        offset: u64,
        /// The bytes, a multiple of `BLOCK`, not empty.
        buf: Buffer,
    },
    /// Write all of `buf` at `offset`; survives power loss after a later `Sync`.
    Write {
        /// Target.
        file: FileId,
        /// First byte, a multiple of `BLOCK`.
        offset: u64,
        /// The bytes, a multiple of `BLOCK`, not empty.
        buf: Buffer,
    },
    /// Make every write to `file` that has completed durable, with the metadata that reading it back needs.
    Sync {
        /// Target; also a directory.
        file: FileId,
    },
    /// Read `len` bytes at `offset` into `buf`, whose former content is dropped.
    Read {
        /// Source.
        file: FileId,
        /// First byte, a multiple of `BLOCK`.
        offset: u64,
        /// Bytes to read, a multiple of `BLOCK`, not 0.
        len: usize,
        /// Memory to read into.
        buf: Buffer,
    },
    /// Open `file`, which was reserved for a path. Once this has succeeded, it is as if `Disk::open` had returned it.
    Open {
        /// What `Disk::reserve` returned.
        file: FileId,
        /// As what it is opened. A new file that cannot be made whole is gone again.
        kind: OpenKind,
        /// A file that first takes the path as its name. If there is no space, it keeps the one that it has.
        from: Option<PathBuf>,
    },
    /// Close `file` if it is open, and remove the name with which it was opened. Only `Disk::path` and `Disk::close`
    /// may name it after that.
    Remove {
        /// Target.
        file: FileId,
    },
}

impl Op {
    /// The file that the operation works on.
    pub const fn file(&self) -> FileId {
        match self {
            Self::WriteDurable { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file }
            | Self::Read { file, .. }
            | Self::Open { file, .. }
            | Self::Remove { file } => *file,
        }
    }

    pub(super) fn assert_valid(&self) {
        match self {
            Self::WriteDurable { offset, buf, .. } | Self::Write { offset, buf, .. } => {
                assert_aligned(*offset, buf.len())
            }
            Self::Read { offset, len, .. } => assert_aligned(*offset, *len),
            Self::Sync { .. } | Self::Open { .. } | Self::Remove { .. } => {}
        }
    }

    /// The buffer to give back.
    pub(super) fn into_buffer(self) -> Buffer {
        match self {
            Self::WriteDurable { buf, .. } | Self::Write { buf, .. } | Self::Read { buf, .. } => buf,
            Self::Sync { .. } | Self::Open { .. } | Self::Remove { .. } => Buffer::new(),
        }
    }
}

/// Names an operation in flight. Its top byte names the user. The user chooses it; it is unique while the operation is
/// in flight.
pub type Token = u64;

/// The users that may share one `Disk`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The write-ahead log.
    Wal,
    /// Reads of tree pages and record blocks.
    Pages,
    /// A checkpoint job.
    Checkpoint,
    /// Anything else: tools, measurements, tests.
    Other,
}

impl Owner {
    /// The token of this user's operation `number`, which must fit in 56 bits.
    pub const fn token(self, number: u64) -> Token {
        assert!(number >> 56 == 0);
        (self as u64) << 56 | number
    }

    /// The user of the operation with this `token`.
    pub const fn of(token: Token) -> Self {
        match token >> 56 {
            0 => Self::Wal,
            1 => Self::Pages,
            2 => Self::Checkpoint,
            _ => Self::Other,
        }
    }
}

/// The end of one operation.
#[derive(Debug)]
pub struct Completion {
    /// Token it was submitted with.
    pub token: Token,
    /// Bytes written or read (0 for any other operation), or the reason why it failed. Only a read past the end has a
    /// short count.
    pub result: io::Result<usize>,
    /// The operation's buffer; for a read, cut to the bytes that were read. Empty where there is none.
    pub buf: Buffer,
}

/// Keeps a directory locked against other processes until it is dropped.
pub struct DirLock {
    _held: Box<dyn Send + Sync>,
}

impl DirLock {
    pub(super) fn holding(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}

/// Files as one thread sees them. The head of the folder lists the promises.
pub trait Disk: Send {
    /// Creates `dir` and its missing parents. An existing directory is not an error. Names are durable on return.
    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error>;
    /// Opens `path`. Blocks, as all that changes names here; `Op::Open` does not.
    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error>;
    /// A number for the file `path`, which `Op::Open` is to open. Until then only `path` and `close` may name it.
    fn reserve(&mut self, path: &Path) -> FileId;
    /// Closes `file`. None of its operations may be in flight.
    fn close(&mut self, file: FileId);
    /// The path with which `file` was opened, for error texts.
    fn path(&self, file: FileId) -> &Path;
    /// Size in bytes.
    fn len(&mut self, file: FileId) -> Result<u64, Error>;
    /// Names of the files directly in `dir`, in order. Directories and names that are not UTF-8 are left out.
    fn list(&mut self, dir: &Path) -> Result<Vec<String>, Error>;
    /// Removes a file's name.
    fn remove(&mut self, path: &Path) -> Result<(), Error>;
    /// Renames a file; an existing target is replaced.
    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error>;
    /// Makes the names in `dir` durable. Blocks.
    fn sync_dir(&mut self, dir: &Path) -> Result<(), Error>;
    /// Locks `dir` against other processes; `Error::Locked` when it is taken.
    fn lock(&mut self, dir: &Path) -> Result<DirLock, Error>;
    /// Reads `len` bytes at `offset`, both multiples of `BLOCK`. The result is shorter at the end of the file. It
    /// blocks, and does not touch the operations in flight. It is for start-up, recovery and tests.
    fn read_blocking(&mut self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error>;

    /// Queues `op`. Nothing is promised before the next `kick`.
    fn submit(&mut self, op: Op, token: Token);
    /// Hands everything queued to the kernel.
    fn kick(&mut self) -> Result<(), Error>;
    /// Appends the operations that have ended to `out`; never blocks.
    fn completions(&mut self, out: &mut Vec<Completion>);
    /// Kicks, then blocks until `completions` has something to return. Something must be in flight.
    fn wait(&mut self) -> Result<(), Error>;
    /// An eventfd that becomes readable when an operation ends. A level-triggered poller must read it to clear it; an
    /// edge-triggered one need not. It may be readable although nothing has ended.
    fn wake_fd(&self) -> Option<RawFd>;
}
