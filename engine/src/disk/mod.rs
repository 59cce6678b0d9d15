//! The one seam to files: whoever wants bytes on a medium, or back from it, goes through `Disk`.
//!
//! Two planes. The control plane (create, open, rename, list, blocking reads) is synchronous and belongs to start-up and
//! to the rare change of a segment. The data plane is sans-io: `submit` queues operations, `kick` hands all that are
//! queued to the kernel in one call, `completions` collects what has ended, in any order.
//!
//! What an implementation promises, and its users rely on:
//! - Operations in flight are unordered. A `Sync` covers the writes to its file that *completed* before it was submitted.
//! - A completed `WriteDurable` survives power loss. A `Write` does so after a later `Sync` of its file.
//! - A name (create, rename, remove) survives power loss after `sync_dir`, or after a `Sync` of a handle opened with
//!   `OpenKind::Directory`.
//! - Every submitted operation completes exactly once and gives its buffer back. Partial writes are continued inside;
//!   a read that meets the end of the file completes with fewer bytes than asked for.
//! - Nothing is retried after an error.
//! - Offsets and lengths are multiples of `BLOCK` (asserted), so that the same code runs with O_DIRECT and without.
//!
//! One instance belongs to one thread at a time. Several users may share it: the top byte of a token names the user
//! (see `Token`), and a completion is handed to the user its token names. The instance bounds nothing: each user bounds
//! what it has in flight. It deliberately knows no format, no retry and no clock.

mod buffer;
mod file_system;
mod files;
pub mod offline;
mod portable;
mod probe;
pub mod sim;
#[cfg(test)]
mod tests;
mod uring;

use std::fmt;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;

pub use buffer::Buffer;
pub use file_system::FileSystem;
pub use probe::{IoKind, IoPath, Preference, open_buffered, open_disk};

use crate::Error;

/// Unit of every offset and length on the data plane, in bytes: what O_DIRECT asks for everywhere, and what the
/// checksummed structures are aligned to.
pub const BLOCK: usize = 4096;

/// What the medium writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;

const _: () = assert!(BLOCK.is_multiple_of(SECTOR));

/// A file that one `Disk` instance has open; meaningless to any other instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// What an operation did to a file, for error texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileOp {
    /// Create a directory or a file.
    Create,
    /// Open an existing file.
    Open,
    /// Read.
    Read,
    /// Write.
    Write,
    /// Make durable.
    Sync,
    /// List a directory.
    List,
    /// Remove a name.
    Remove,
    /// Change a name.
    Rename,
    /// Take the directory's lock.
    Lock,
    /// Set up the I/O path itself.
    Setup,
}

impl fmt::Display for FileOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create => "create",
            Self::Open => "open",
            Self::Read => "read",
            Self::Write => "write",
            Self::Sync => "sync",
            Self::List => "list",
            Self::Remove => "remove",
            Self::Rename => "rename",
            Self::Lock => "lock",
            Self::Setup => "setup",
        })
    }
}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenKind {
    /// Existing file, for reading.
    Read,
    /// Existing file, for reading and writing.
    Write,
    /// New file (an existing one is an error) of `len` bytes, a multiple of `BLOCK`. Its space is reserved, so a full
    /// disk shows here and not at a write; it reads as zeros. Not durable before a sync of it and of its directory.
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
}

impl Op {
    /// The file it works on.
    pub const fn file(&self) -> FileId {
        match self {
            Self::WriteDurable { file, .. }
            | Self::Write { file, .. }
            | Self::Sync { file }
            | Self::Read { file, .. } => *file,
        }
    }

    fn assert_valid(&self) {
        match self {
            Self::WriteDurable { offset, buf, .. } | Self::Write { offset, buf, .. } => {
                assert_aligned(*offset, buf.len())
            }
            Self::Read { offset, len, .. } => assert_aligned(*offset, *len),
            Self::Sync { .. } => {}
        }
    }
}

fn assert_aligned(offset: u64, len: usize) {
    assert!(offset.is_multiple_of(BLOCK as u64), "offset {offset} is not at a block");
    assert!(len > 0 && len.is_multiple_of(BLOCK), "length {len} is not of whole blocks");
}

/// Names an operation in flight, and in its top byte the user it belongs to. Chosen by the user, unique while in flight.
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
    /// The token of this user's operation `number`, which has to fit in 56 bits.
    pub const fn token(self, number: u64) -> Token {
        assert!(number >> 56 == 0);
        (self as u64) << 56 | number
    }

    /// Whose operation `token` is.
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
    /// Bytes written or read (0 for a sync), or why it failed. A short count is only ever a read past the end.
    pub result: io::Result<usize>,
    /// The operation's buffer; for a read, cut to the bytes that were read. Empty for a sync.
    pub buf: Buffer,
}

/// Keeps a directory locked against other processes until it is dropped.
pub struct DirLock {
    _held: Box<dyn Send + Sync>,
}

impl DirLock {
    fn holding(held: impl Send + Sync + 'static) -> Self {
        Self { _held: Box::new(held) }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}

/// Files, as one thread sees them. See the head of this file for what is promised.
pub trait Disk: Send {
    /// Creates `dir` and what is missing above it; an existing directory is no error. Names are durable on return.
    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error>;
    /// Opens `path`.
    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error>;
    /// Closes `file`; nothing of it may be in flight.
    fn close(&mut self, file: FileId);
    /// The path `file` was opened with, for error texts.
    fn path(&self, file: FileId) -> &Path;
    /// Size in bytes.
    fn len(&mut self, file: FileId) -> Result<u64, Error>;
    /// Names of the files directly in `dir`, in order; names that are not UTF-8 and directories are left out.
    fn list(&mut self, dir: &Path) -> Result<Vec<String>, Error>;
    /// Removes a file's name.
    fn remove(&mut self, path: &Path) -> Result<(), Error>;
    /// Renames a file; an existing target is replaced.
    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error>;
    /// Makes the names in `dir` durable. Blocks.
    fn sync_dir(&mut self, dir: &Path) -> Result<(), Error>;
    /// Locks `dir` against other processes; `Error::Locked` when it is taken.
    fn lock(&mut self, dir: &Path) -> Result<DirLock, Error>;
    /// Reads `len` bytes at `offset`, both multiples of `BLOCK`; shorter at the end of the file. Blocks, and leaves the
    /// operations in flight alone. For start-up, recovery and tests.
    fn read_blocking(&mut self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error>;

    /// Queues `op`. Nothing is promised before the next `kick`.
    fn submit(&mut self, op: Op, token: Token);
    /// Hands everything queued to the kernel.
    fn kick(&mut self) -> Result<(), Error>;
    /// Appends the operations that have ended to `out`; never blocks.
    fn completions(&mut self, out: &mut Vec<Completion>);
    /// Kicks, then blocks until `completions` has something to give. Something has to be in flight.
    fn wait(&mut self) -> Result<(), Error>;
    /// An eventfd that becomes readable when an operation ends. A level-triggered poller reads it to clear it; an
    /// edge-triggered one need not. It may be readable with nothing to give.
    fn wake_fd(&self) -> Option<RawFd>;
}
