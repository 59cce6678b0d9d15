//! Runs on: connection core, raft core, apply core.
//!
//! What the apply core is told, handed and asked; what comes back into the reply slots of connection cores, and what
//! raft is told.

use bytes::Bytes;
use consensus::{ConfChange, ConfState, EntryId, EntryKind};
use engine::CheckpointDone;

use super::{own::Own, proposal::Proposal};
use crate::slots::{ReplyTo, SlotId};

/// A committed entry, durable on a quorum.
#[derive(Debug)]
pub struct Entry {
    /// Log position.
    pub index: u64,
    /// Term it was proposed in.
    pub term: u64,
    /// What `data` is.
    pub kind: EntryKind,
    /// A request, empty for a leader's first entry; or an encoded `ConfChange`.
    pub data: Bytes,
    /// The proposal whose entry it is, if its client waits for it here.
    pub proposal: Option<Box<Proposal>>,
}

/// Where raft stands, as far as apply must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// This member leads.
    pub leads: bool,
    /// What must be applied before clients may be served; `None` while that is not known.
    pub read_floor: Option<u64>,
}

/// What raft hands to apply, in log order.
#[derive(Debug, Default)]
pub struct Handed {
    /// Committed entries behind those handed before.
    pub entries: Vec<Entry>,
    /// Where raft stands.
    pub standing: Standing,
    /// Bytes of log written so far; never decreases.
    pub log_bytes: u64,
}

/// How space is felt by apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Records that no checkpoint has written have reached their bound.
    pub is_full_of_recent: bool,
    /// The checkpoint under way waits for space on its disk.
    pub is_checkpoint_waiting: bool,
    /// The nodes that were changed take more memory than all nodes may.
    pub is_dirty_over: bool,
}

/// What apply tells raft.
#[derive(Debug, Default)]
pub struct Report {
    /// Up to here everything is applied and visible.
    pub applied: EntryId,
    /// Configuration changes up to there that were not refused, in log order, each with the configuration that it made.
    pub conf_changes: Vec<(ConfChange, ConfState)>,
    /// What is to be proposed for the server itself.
    pub own: Vec<Own>,
    /// A checkpoint holds everything up to here: the log may be trimmed.
    pub trim: Option<EntryId>,
    /// How space is felt.
    pub space: Space,
    /// An entry about an alarm was applied since the last report.
    pub has_alarm_come: bool,
}

/// Answers, by connection core.
pub type Answers = Vec<Vec<(SlotId, Answer)>>;

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
