//! Runs on: every core.
//!
//! Wakes the runtime at a disk's completions.

#![expect(unsafe_code, reason = "hands a disk's eventfd to the runtime")]

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd, RawFd},
};

use tokio::io::{Interest, unix::AsyncFd};

/// The eventfd of a disk, watched by the runtime. A disk without one never wakes the runtime.
pub(super) struct Wake(Option<AsyncFd<OwnedFd>>);

impl Wake {
    /// Watches the descriptor of a disk.
    ///
    /// **Errors** the runtime's.
    pub(super) fn new(fd: Option<RawFd>) -> io::Result<Self> {
        let Some(fd) = fd else { return Ok(Self(None)) };
        // SAFETY: the disk that gave the descriptor keeps it open during this call; we keep a duplicate of our own.
        let owned = unsafe { BorrowedFd::borrow_raw(fd) }.try_clone_to_owned()?;
        // SAFETY: an `OwnedFd` names one open descriptor from here to its drop, and the `AsyncFd` keeps it unchanged.
        let watched = unsafe { AsyncFd::register_with_interest(owned, Interest::READABLE) };
        Ok(Self(Some(watched.map_err(io::Error::from)?)))
    }

    /// Resolves when operations have ended.
    ///
    /// **Errors** the descriptor's.
    pub(super) async fn ready(&self) -> io::Result<()> {
        let Some(fd) = &self.0 else { return std::future::pending().await };
        let mut guard = fd.readable().await?;
        let mut count = [0; 8];
        match rustix::io::read(fd.get_ref(), &mut count) {
            // If there is nothing to read, somebody has cleared it already. The caller looks for completions all the
            // same.
            Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
            Err(error) => return Err(error.into()),
        }
        guard.clear_ready();
        Ok(())
    }
}
