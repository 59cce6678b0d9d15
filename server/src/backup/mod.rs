//! Runs on: connection core (the Snapshot call), main thread (the offline commands).
//!
//! etcd's files in and out: what of a member's state lies where in the bbolt file that etcd keeps and its tools
//! exchange.
//!
//! `schema` has the buckets, keys and values. `content` brings a state into a file, and `stream` is the Snapshot call.
//! `file` reads one, `build` makes a data directory of what was read; `status` and `restore` do what `orlop snapshot`
//! asks for.

pub mod build;
pub mod content;
pub mod file;
pub mod restore;
pub mod schema;
pub mod status;
pub mod stream;

/// Why a file is not read, or nothing made of it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk, or damage in a file.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The log.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// A bucket holds what etcd does not write.
    #[error("bucket {name:?} holds something that is not etcd's")]
    Bucket {
        /// Its name.
        name: schema::Name,
    },
    /// What was asked for cannot be done.
    #[error("{0}")]
    Refused(String),
}

/// Refuses what this release would lose without a word.
pub(crate) fn refuse_auth(backup: &mut file::Backup) -> Result<(), Error> {
    if backup.has_auth()? {
        return Err(Error::Refused("the file has users or roles, which this release of Orlop does not have".into()));
    }
    Ok(())
}
