//! What cannot be read of a damaged store, or is gone with it.

use bytes::Bytes;

use crate::{Error, Revision, disk::FileOp};

/// Something that cannot be read, or is gone with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Loss {
    /// A page of the key tree. It can be made again from the records of its keys.
    Page {
        /// The first key that it may hold; empty if it is the first page.
        from: Bytes,
        /// The first key behind it; `None` if it is the last page.
        to: Option<Bytes>,
        /// Versions that it holds, if that is known.
        versions: Option<u64>,
    },
    /// A key whose newest version cannot be read, or of which it is not known whether it was deleted.
    Key {
        /// The key.
        key: Bytes,
        /// The revision of the version that is lost, or of the last one that can be read.
        revision: Revision,
    },
    /// Keys of which nothing is known any more: both their page of the key tree and their records cannot be read.
    Keys {
        /// The first key that may be one of them.
        from: Bytes,
        /// The first key behind them; `None` for no end.
        to: Option<Bytes>,
        /// The first and the last revision at which they may have been written.
        revisions: (Revision, Revision),
    },
    /// An older version of a key that goes on.
    History {
        /// The key.
        key: Bytes,
        /// The revision of the version.
        revision: Revision,
    },
    /// Entries of the meta tree: leases, members, alarms.
    Rows {
        /// The first name that one of them may have.
        from: Bytes,
        /// The first name behind them; `None` for no end.
        to: Option<Bytes>,
    },
}

impl Loss {
    /// How much is lost with it, compared with others.
    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Page { .. } => 1,
            Self::History { .. } => 1 << 8,
            Self::Key { .. } => 1 << 16,
            Self::Keys { .. } | Self::Rows { .. } => 1 << 24,
        }
    }
}

/// Whether `error` says that something cannot be read.
fn is_damage(error: &Error) -> bool {
    matches!(error, Error::Corrupt { .. } | Error::Io { op: FileOp::Read | FileOp::Open, .. })
}

/// The result of a read; `None` if it is damaged.
pub(super) fn sound<T>(read: Result<T, Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(error) if is_damage(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
