//! The errors between bytes and durable bytes: one enum for the whole crate.
//!
//! It owns no policy. There is a variant where the caller does something different: after `NoSpace` a checkpoint can be
//! tried again, `Corrupt` needs an operator, `Io` and `Stopped` end the member. The engine itself never retries.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

/// Why an operation of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation. After a failed write or sync the owner stops.
    #[error("{op} of {} failed: {source}", path.display())]
    Io {
        /// File or directory the operation named.
        path: PathBuf,
        /// The operation on it.
        op: FileOp,
        /// The system's own error.
        source: io::Error,
    },
    /// The file system is full, or a quota on it is.
    #[error("no space left on device: {op} of {}", path.display())]
    NoSpace {
        /// File that could not grow.
        path: PathBuf,
        /// The operation on it.
        op: FileOp,
    },
    /// Bytes that were durable once are not as they were written.
    #[error("{} is damaged at offset {offset}: {what}", path.display())]
    Corrupt {
        /// The damaged file; empty if only the reader of the file knows it.
        path: PathBuf,
        /// The first byte that cannot be trusted.
        offset: u64,
        /// The check that failed.
        what: &'static str,
    },
    /// Another process uses the directory.
    #[error("{} is in use by another process", path.display())]
    Locked {
        /// Directory whose lock is held.
        path: PathBuf,
    },
    /// A file of a format that this release does not read.
    #[error("{} has format {found}, this release reads {supported}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The newest version that this release reads.
        supported: u32,
    },
    /// An entry that no segment can hold.
    #[error("log entry of {bytes} bytes exceeds the bound of {bytes_max}")]
    EntryTooLarge {
        /// Size of the entry.
        bytes: usize,
        /// Largest size that fits.
        bytes_max: usize,
    },
    /// An earlier failure stopped this part. Nothing is done any more until the member is started again.
    #[error("stopped by an earlier failure")]
    Stopped,
}

impl Error {
    /// The error for `source`, which `op` on `path` got. A full disk gets a variant of its own.
    pub fn io(path: &Path, op: FileOp, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::NoSpace { path: path.to_path_buf(), op },
            _ => Self::Io { path: path.to_path_buf(), op, source },
        }
    }

    /// The system's error of a failed operation, without the file that it names.
    pub(crate) fn into_io(self) -> io::Error {
        match self {
            Self::Io { source, .. } => source,
            Self::NoSpace { .. } => io::ErrorKind::StorageFull.into(),
            other => io::Error::other(other.to_string()),
        }
    }

    /// A copy of this error, for another caller that waits for the same operation.
    pub fn again(&self) -> Self {
        match self {
            Self::Io { path, op, source } => {
                let raw = source.raw_os_error();
                let source = raw.map_or_else(|| source.kind().into(), io::Error::from_raw_os_error);
                Self::Io { path: path.clone(), op: *op, source }
            }
            Self::NoSpace { path, op } => Self::NoSpace { path: path.clone(), op: *op },
            Self::Corrupt { path, offset, what } => Self::Corrupt { path: path.clone(), offset: *offset, what },
            Self::Locked { path } => Self::Locked { path: path.clone() },
            Self::Format { path, found, supported } => {
                Self::Format { path: path.clone(), found: *found, supported: *supported }
            }
            Self::EntryTooLarge { bytes, bytes_max } => Self::EntryTooLarge { bytes: *bytes, bytes_max: *bytes_max },
            Self::Stopped => Self::Stopped,
        }
    }

    /// The error for a page that is intact but malformed at position `at` of its payload.
    pub(crate) fn malformed(at: usize, what: &'static str) -> Self {
        Self::Corrupt { path: PathBuf::new(), offset: u64::try_from(at).unwrap_or(u64::MAX), what }
    }

    /// The error for bytes of `path` at `offset` that fail the check `what`.
    pub fn corrupt(path: &Path, offset: u64, what: &'static str) -> Self {
        Self::Corrupt { path: path.to_path_buf(), offset, what }
    }
}

/// An operation on a file, for error texts.
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
