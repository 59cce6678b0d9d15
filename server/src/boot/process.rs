//! Runs on: main thread.
//!
//! The limits of the process.

use std::io;

use rustix::{
    mm::{MlockAllFlags, mlockall},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    thread::CapabilitySet,
};

/// Raises the limit on open files as far as this process may. Go's runtime does so for etcd.
pub fn raise_files_max() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::debug!(%error, "the limit on open files stays as it is");
    }
}

/// The limit on open files.
pub fn files_max() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files).unwrap_or(usize::MAX)
}

/// Makes the kernel back this process's memory with small pages only.
pub fn leave_huge_pages() {
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!(%error, "huge pages stay as the host has them");
    }
}

/// Keeps the memory of this process from being swapped out. Pages are locked when they are first touched, so that
/// stacks and buffers cost no more than before.
///
/// **Errors** this process may not lock all that it will need.
pub fn lock_memory() -> io::Result<()> {
    let may_lock_all = rustix::thread::capabilities(None)?.effective.contains(CapabilitySet::IPC_LOCK);
    match getrlimit(Resource::Memlock).maximum {
        _ if may_lock_all => {}
        None => setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None })?,
        Some(bytes) => {
            let why = format!("only {bytes} bytes may be locked (RLIMIT_MEMLOCK), and CAP_IPC_LOCK is missing");
            return Err(io::Error::other(why));
        }
    }
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}

/// CPUs that this process may run on.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
