//! The one seam to files: bytes reach a medium, and come back from it, only through `Disk`.
//!
//! There are two planes. The control plane (create, open, rename, list, blocking reads) is synchronous: it waits for
//! the file system, however long. It is for start-up, and for threads that serve nobody. The data plane is sans-io:
//! `submit` queues operations, `kick` hands all queued ones over in one call, `completions` collects those that have
//! ended, in any order. It also opens and removes files, for owners that must go on while a device does not answer.
//!
//! Promises of every implementation, on which its users rely:
//! - Operations in flight are unordered. A `Sync` covers the writes to its file that *completed* before it was
//!   submitted.
//! - A completed `WriteDurable` survives power loss. A `Write` does so after a later `Sync` of its file.
//! - A name (create, rename, remove) survives power loss after `sync_dir`, or after a `Sync` of a handle opened with
//!   `OpenKind::Directory`.
//! - Every submitted operation completes exactly once and gives its buffer back. Partial writes are continued inside;
//!   a read that meets the end of the file completes with fewer bytes than asked for.
//! - Nothing is retried after an error.
//! - Offsets and lengths are multiples of `BLOCK` (asserted), so that the same code runs with O_DIRECT and without.
//!
//! One instance belongs to one thread at a time. Several users may share it. The top byte of a token names the user
//! (see `Token`), and a completion goes to the user that its token names. The instance bounds nothing: each user bounds
//! its own operations in flight. It knows no format, no retry and no clock, on purpose.
//!
//! Files:
//! - `seam`: the trait `Disk` and its operations.
//! - `block`: the unit of I/O. `buffer`: memory that O_DIRECT accepts.
//! - `uring`, `portable`: the two implementations for real files. `files`: the control plane that both share.
//!   `lane`: their threads.
//! - `probe`: finds the implementation that a machine and a directory allow.
//! - `offline`: files and directories for tools that run without a server.
//! - `spool`: a file that is written once, read and gone.
//! - `file_system`: writes back what other programs wrote to the file system of a directory.
//! - `sim/`: a simulated medium with power loss and faults.

mod block;
mod buffer;
mod file_system;
mod files;
mod lane;
pub mod offline;
mod portable;
mod probe;
mod seam;
pub mod sim;
mod spool;
#[cfg(test)]
mod tests;
mod uring;

pub use crate::error::FileOp;
pub(crate) use block::assert_aligned;
pub use block::{BLOCK, SECTOR};
pub use buffer::Buffer;
pub use file_system::FileSystem;
pub use probe::{IoKind, IoPath, Preference, open_buffered, open_disk, probe};
pub use seam::{Completion, DirLock, Disk, FileId, Op, OpenKind, Owner, Token};
pub use spool::Spool;
