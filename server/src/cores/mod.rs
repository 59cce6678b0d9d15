//! Runs on: every core.
//!
//! Threads and their loops: they move inputs and outputs between the state machines, the disks and the runtime.
//! Everything else is handed time and messages.
//!
//! - `thread`: how a core's thread runs, is bound to a CPU, and ends the process
//! - `wake`: a disk's completions as the runtime sees them
//! - `ticks`: the heartbeat of a loop that may be busy all the time
//! - `reads`: page reads as the runtime sees them
//! - `listen`: addresses, and which core serves a new connection
//! - `outbox`: what raft and apply have for connection cores
//! - `connection_loop`: a core that serves connections
//! - `apply_loop`: apply on a thread of its own
//! - `raft_loop`: raft on a thread of its own, or together with apply
//! - `checkpoint`: writes checkpoints
//! - `warm`: brings in pages behind a start
//!
//! Each core has a runtime of its own and shares nothing but what `shared` names. Where raft and apply run is
//! [`Placement`]'s to say; a connection core asks them by message alone, wherever they are.

pub mod apply_loop;
pub mod checkpoint;
pub mod connection_loop;
pub mod listen;
pub mod outbox;
pub mod raft_loop;
pub mod reads;
pub mod thread;
mod ticks;
mod wake;
pub mod warm;

/// **Units** bytes of a core's stack; the kernel gives memory only for what is touched.
///
/// Requests are walked recursively, and the deepest that is decoded, `proto::txn::LEVELS_MAX` messages, must fit
/// wherever it is: checked, decided, applied, answered and dropped. A test walks one on such a stack.
pub const STACK_BYTES: usize = 64 << 20;

/// Which threads raft and apply run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// None of their own: both run in the loop of the first serving core.
    Shared,
    /// One thread for both.
    OneThread,
    /// A thread for each.
    TwoThreads,
}

impl Placement {
    /// Threads beside the serving ones.
    pub fn threads(self) -> usize {
        match self {
            Self::Shared => 0,
            Self::OneThread => 1,
            Self::TwoThreads => 2,
        }
    }
}
