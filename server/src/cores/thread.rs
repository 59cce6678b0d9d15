//! Runs on: every core.
//!
//! Runs a core's thread, binds it to a CPU, and ends the process.

#![expect(unsafe_code, reason = "ends the process by the signal it was sent, as etcd does")]

use std::{error::Error, io};

use tokio::task::LocalSet;

/// Runs `future` and everything it spawns on this thread.
///
/// **Errors** the runtime cannot be made.
pub fn block_on<T>(future: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(LocalSet::new().block_on(&runtime, future))
}

/// Binds the calling thread to one CPU.
pub fn pin(position: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let mut set = rustix::thread::CpuSet::new();
    set.set(position % cpus);
    if let Err(error) = rustix::thread::sched_setaffinity(None, &set) {
        tracing::warn!(%error, position, "a core's thread cannot be pinned");
    }
}

/// Stops a member that cannot trust its own state.
pub fn stop_member(error: &dyn Error) -> ! {
    tracing::error!(%error, "the member stops");
    std::process::exit(1)
}

/// Ends the process by `signal`, as etcd does after a clean stop.
pub fn end_by(signal: i32) -> ! {
    // SAFETY: restoring the default action and sending the signal to ourselves touch no memory of ours.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
    // SAFETY: as above.
    unsafe { libc::raise(signal) };
    std::process::exit(128 + signal)
}
