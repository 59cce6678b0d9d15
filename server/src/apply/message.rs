//! Runs on: connection core, raft core, apply core.
//!
//! What the apply core is told and asked, and what comes back into the reply slots of connection cores.

use engine::CheckpointDone;

use super::proposal::Proposal;
use crate::slots::ReplyTo;

/// Messages to the apply core.
pub enum ToApply {
    /// Renew a lease.
    Renew {
        /// Who waits.
        reply: ReplyTo,
        /// Lease id.
        lease: i64,
    },
    /// How long a lease lasts.
    TimeToLive {
        /// Who waits.
        reply: ReplyTo,
        /// Lease id.
        lease: i64,
    },
    /// All leases.
    Leases {
        /// Who waits.
        reply: ReplyTo,
    },
    /// Answer once the sweep has passed `revision`.
    AwaitSweep {
        /// Who waits.
        reply: ReplyTo,
        /// Compacted revision.
        revision: i64,
    },
    /// Give back what space there is to give; the number of the run that does it is the answer.
    Defragment {
        /// Who waits.
        reply: ReplyTo,
    },
    /// Answer once that run has ended.
    AwaitDefragment {
        /// Who waits.
        reply: ReplyTo,
        /// Its number.
        run: u64,
    },
    /// The checkpoint under way waits for space on its disk.
    CheckpointWaits,
    /// A checkpoint ended.
    Checkpointed(Result<Box<CheckpointDone>, engine::Error>),
    /// The faults of a turn were resolved.
    Loaded(Result<(), engine::Error>),
}

/// What comes back into a reply slot.
#[derive(Debug)]
pub enum Answer {
    /// A proposal with its result.
    Applied(Box<Proposal>),
    /// A lease was renewed; 0 for an unknown one. **Units** seconds.
    Renewed(i64),
    /// What is left of a lease, and what it was granted; `None` for an unknown one. **Units** seconds.
    TimeToLive(Option<(i64, i64)>),
    /// Lease ids by remaining time.
    Leases(Vec<i64>),
    /// The sweep has passed the revision asked for.
    Swept,
    /// The number of the run that gives space back.
    Defragmenting(u64),
    /// That run has ended.
    Defragmented,
    /// Nobody answered in time.
    TimedOut,
}
