//! Runs on: main thread, offline; threads of their own (states that arrive).
//!
//! Why a file of etcd's cannot be read, or nothing can be made from it. This is the one error type of the folder.
//!
//! If etcd's tools refuse the same thing, the text is theirs.

use std::path::PathBuf;

use consensus::ConfState;

use super::schema;

/// Why a file cannot be read, or nothing can be made from it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The disk failed, or a file is damaged.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The log of the new member failed.
    #[error(transparent)]
    Consensus(#[from] consensus::Error),
    /// A bucket holds something that etcd does not write.
    #[error("bucket {name:?} holds something that is not etcd's")]
    Bucket {
        /// Its name.
        name: schema::Name,
    },
    /// A table that was built does not decode.
    #[error(transparent)]
    Table(#[from] crate::apply::restore::Damaged),
    /// A snapshot and the raft message with which it comes speak of different states.
    #[error("the database has another {what} than its raft message")]
    NotTold {
        /// What differs.
        what: &'static str,
    },
    /// There are users and roles, which this release would lose without a word.
    #[error("the file has users or roles, which this release of Orlop does not have")]
    Auth,

    /// A snapshot file without a checksum at its end.
    #[error("snapshot missing hash but --skip-hash-check=false")]
    NoHash,
    /// A snapshot file with the checksum of other bytes.
    #[error("expected sha256 [{}], got [{}]", decimals(told), decimals(found))]
    Hash {
        /// The checksum in the file.
        told: Vec<u8>,
        /// The checksum of its bytes.
        found: Vec<u8>,
    },
    /// A restore writes into a new directory only.
    #[error("data-dir {:?} not empty or could not be read", dir.display())]
    DataDir {
        /// The directory.
        dir: PathBuf,
    },
    /// A restore writes a new log only.
    #[error("wal-dir {:?} exists", dir.display())]
    WalDir {
        /// The directory.
        dir: PathBuf,
    },
    /// An earlier restore was interrupted.
    #[error("{:?} is left of a restore that did not end", dir.display())]
    Unfinished {
        /// What it has built so far.
        dir: PathBuf,
    },
    /// A revision cannot be that far ahead.
    #[error("--bump-revision goes beyond all revisions")]
    Bump,

    /// There are two stores, and nobody can tell which data is newer.
    #[error("{} holds data of etcd and of Orlop", dir.display())]
    TwoStores {
        /// The data directory.
        dir: PathBuf,
    },
    /// An import was begun, and what it takes over is gone.
    #[error(
        "{} holds an import that did not end, and etcd's data is gone from `member`: put it back, or remove \
         `import.part` and everything that begins with `member.imported` to start without it",
        dir.display()
    )]
    ImportWithoutMember {
        /// The data directory.
        dir: PathBuf,
    },
    /// The log is outside of the data directory. Such a log is not taken over.
    #[error("--wal-dir is set: move etcd's log into member/wal of the data directory, and leave the flag out")]
    LogElsewhere,
    /// The place of the database in the log is not known.
    #[error(
        "the database was not written by etcd 3.5 or later, or never written to: start and stop such an etcd on it"
    )]
    Unplaced,
    /// The database comes from a release that is not known.
    #[error("the database has storage version {version}, which this release does not know")]
    StorageVersion {
        /// The version that the file names.
        version: String,
    },
    /// The log begins after the applied entries of the database, and the newer database is not there.
    #[error(
        "the database stands at index {index}, before the log's snapshot at {snapshot}, and {} does not hold that one: \
         remove the member from its cluster, and add it again",
        path.display()
    )]
    Behind {
        /// Last entry that is applied.
        index: u64,
        /// Where the log begins.
        snapshot: u64,
        /// Where the database would be that came with the snapshot.
        path: PathBuf,
    },
    /// The database and the log have different histories.
    #[error("the log has no entry {index} of term {term}, at which the database stands")]
    OtherLog {
        /// Last entry that is applied.
        index: u64,
        /// Its term.
        term: u64,
    },
    /// Committed entries are missing.
    #[error("the log ends at {last}, and {commit} is committed")]
    CutLog {
        /// Its last entry.
        last: u64,
        /// What is committed.
        commit: u64,
    },
    /// An entry is of an earlier term than the one before it.
    #[error("entry {index} of the log is of an earlier term than what stands before it")]
    EarlierTerm {
        /// Its place in the log.
        index: u64,
    },
    /// An entry that is not applied yet has a kind that this release does not apply.
    #[error(
        "entry {index} of the log is not in the database yet, and this release does not apply it ({what}): \
         start etcd on it once more, and stop it by SIGTERM"
    )]
    Entry {
        /// Its place in the log.
        index: u64,
        /// Its kind, or why it cannot be read.
        what: String,
    },
    /// Some member may be of a release before 3.6, which no member of 3.7 stands beside.
    #[error(
        "the cluster has other members, and its version is {version}: Orlop stands beside members of etcd 3.6 and 3.7 \
         alone, so upgrade all of them to 3.6 first, and wait until their /version has it as etcdcluster"
    )]
    TooOld {
        /// The cluster's version.
        version: String,
    },
    /// Other members may be of any release.
    #[error("the cluster has other members, and has not decided on its version: start etcd on it once more")]
    Undecided,
    /// The cluster is of a later version.
    #[error("the cluster's version is {version}, which this release does not know")]
    ClusterVersion {
        /// The cluster's version.
        version: String,
    },
    /// The member of the log is not one of the cluster.
    #[error(
        "the log belongs to member {logged:x}, which is none of the {count} members in the database, and which the log \
         does not add: start etcd on it once more"
    )]
    OtherMember {
        /// The member that wrote the log.
        logged: u64,
        /// How many members there are.
        count: usize,
    },
    /// The member was removed. Its id never comes back.
    #[error("member {id:x} was removed from its cluster")]
    Removed {
        /// The member.
        id: u64,
    },
    /// There is nobody to vote.
    #[error("the database has no member with a vote")]
    NoVoters,
    /// The two places in which a database names the members contradict each other.
    #[error(
        "bucket \"members\" has voters {} and learners {}, and \"confState\" has voters {} and learners {}: start the \
         newest etcd of its release on it once more",
        ids(&members.voters), ids(&members.learners), ids(&stored.voters), ids(&stored.learners)
    )]
    Voters {
        /// The configuration by the members.
        members: ConfState,
        /// The configuration that raft had.
        stored: ConfState,
    },
}

/// Ids as etcd prints them.
fn ids(ids: &[u64]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("{id:x}")).collect();
    format!("[{}]", ids.join(" "))
}

/// An array of bytes as Go prints it.
fn decimals(bytes: &[u8]) -> String {
    bytes.iter().map(u8::to_string).collect::<Vec<_>>().join(" ")
}
