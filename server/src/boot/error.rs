//! Runs on: main thread, core 0.
//!
//! The reasons why a member does not start.

use super::bootstrap;
use crate::{
    apply::{restore::Damaged, start},
    config, etcd_files, wire,
};

/// See the head of this file.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The storage failed.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The log or raft failed.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// A socket or a thread failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// The data directory belongs to another program.
    #[error(
        "{path} holds data of etcd, which is left untouched; start once with --import to take it over: the member \
         goes on with its keys, leases and id, and etcd's own files are kept in member.imported"
    )]
    EtcdData {
        /// The directory.
        path: String,
    },
    /// etcd's data cannot be imported.
    #[error("the data of etcd is not imported: {0}")]
    Import(etcd_files::error::Error),
    /// The repaired store cannot be built.
    #[error(transparent)]
    Build(#[from] etcd_files::error::Error),
    /// The member cannot start with these settings.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The member has no data, and cannot begin.
    #[error(transparent)]
    Bootstrap(#[from] bootstrap::Error),
    /// The files of TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] wire::tls::Error),
    /// The member holds other data than another one.
    #[error("{member} found data inconsistency with peers")]
    Inconsistent {
        /// Its id.
        member: String,
    },
    /// The member has peers.
    #[error(
        "the member has peers ({members} members): it gets from them what it has lost, so it is not repaired alone"
    )]
    RepairAmongPeers {
        /// Members of the cluster.
        members: usize,
    },
    /// The damaged files of an earlier repair are still there.
    #[error("{path} holds the damaged files of an earlier repair: move it away first")]
    RepairedBefore {
        /// Their directory.
        path: String,
    },
    /// A table of the store does not decode.
    #[error(transparent)]
    Table(#[from] Damaged),
}

impl From<start::Error> for Error {
    fn from(error: start::Error) -> Self {
        match error {
            start::Error::Engine(error) => error.into(),
            start::Error::Table(error) => error.into(),
        }
    }
}

/// Makes an error of the system that names what was tried.
pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
    let what = what.into();
    move |source| Error::System { what, source }
}
