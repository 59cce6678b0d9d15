//! Runs on: every core.
//!
//! Threads and their loops. They move inputs and outputs between the state machines, the disks and the runtime.
//! Everything else is handed time and messages.
//!
//! - `thread`: how a core's thread runs, is bound to a CPU, and ends the process
//! - `wake`: wakes the runtime at a disk's completions
//! - `ticks`: the heartbeat of a loop that may be busy all the time
//! - `reads`: takes in finished page reads
//! - `listen`: listening addresses, and which core serves a new connection
//! - `handshakes`: TLS, before a connection comes to its core
//! - `outbox`: sends what raft and apply have for connection cores
//! - `connection_loop`: a core that serves connections
//! - `apply_loop`: apply on a thread of its own
//! - `peer_loop`: the connections with other members, beside raft
//! - `raft_loop`: raft on a thread of its own, or together with apply
//! - `states/`: whole states, from one member to another
//! - `probes`: how other members are; `versions`: which version the cluster can have
//! - `corruption/`: whether all members hold the same
//! - `checkpoint`: writes checkpoints
//! - `scrub`: reads everything on disk again, to find damage
//! - `warm`: loads pages after a start, ahead of apply
//!
//! Each core has a runtime of its own and shares nothing but what `shared` names. [`Placement`] says where raft and
//! apply run. A connection core asks them by message alone, wherever they run.

pub mod apply_loop;
pub mod checkpoint;
pub mod connection_loop;
pub mod corruption;
pub mod handshakes;
pub mod listen;
pub mod outbox;
pub mod peer_loop;
pub mod probes;
pub mod raft_loop;
pub mod reads;
pub mod scrub;
pub mod states;
pub mod thread;
mod ticks;
pub mod versions;
mod wake;
pub mod warm;

/// Stack of a core's thread. The kernel gives memory only to the part that is touched. **Units** bytes.
///
/// Requests are walked recursively. The deepest request that is decoded has `proto::txn::LEVELS_MAX` messages. It must
/// fit on the stack in every step: when it is checked, decided, applied, answered and dropped. A test walks one on such
/// a stack.
pub const STACK_BYTES: usize = 64 << 20;

/// The threads on which raft and apply run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// They have no thread of their own: both run in the loop of the first serving core.
    Shared,
    /// One thread for both.
    OneThread,
    /// A thread for each.
    TwoThreads,
}

impl Placement {
    /// Number of threads beside the serving ones.
    pub fn threads(self) -> usize {
        match self {
            Self::Shared => 0,
            Self::OneThread => 1,
            Self::TwoThreads => 2,
        }
    }
}
