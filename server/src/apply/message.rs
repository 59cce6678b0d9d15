//! Runs on: connection core, raft core, apply core.
//!
//! The messages to the apply core: entries that raft hands over, and requests. Also the answers in the reply slots of
//! connection cores, and the reports to raft.

use std::time::Duration;

use bytes::Bytes;
use consensus::{ConfChange, ConfState, EntryId, EntryKind, Progress};
use engine::{CheckpointDone, Store};
use tokio::sync::oneshot;

use super::{arrived::Arrived, own::Own, proposal::Proposal};
use crate::{
    error::Error,
    lease::Renewal,
    slots::{ReplyTo, SlotId},
};

/// A committed entry, durable on a quorum.
#[derive(Debug)]
pub struct Entry {
    /// Log position.
    pub index: u64,
    /// The term in which it was proposed.
    pub term: u64,
    /// The meaning of `data`.
    pub kind: EntryKind,
    /// A request (empty in a leader's first entry), or an encoded `ConfChange`.
    pub data: Bytes,
    /// The proposal that made this entry, if its client waits on this member.
    pub proposal: Option<Box<Proposal>>,
}

/// Where raft stands, as far as apply must know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// This member leads.
    pub leads: bool,
    /// The present term.
    pub term: u64,
    /// The first index of the term, if this member leads it.
    pub term_start: Option<u64>,
    /// The index that must be applied before reads need no round; `None` while they do.
    pub read_floor: Option<u64>,
}

/// What raft hands to apply, in log order.
#[derive(Debug, Default)]
pub struct Handed {
    /// The next committed entries, after those handed over before.
    pub entries: Vec<Entry>,
    /// Where raft stands.
    pub standing: Standing,
    /// Bytes of log written so far. Never decreases.
    pub log_bytes: u64,
    /// A majority has confirmed that this member leads, in a round that was begun then.
    pub lead_confirmed_at: Option<Duration>,
    /// This state takes the place of what is applied, and of all entries that were handed over.
    pub install: Option<Box<Arrived>>,
    /// States that raft does not need. They may make up for damage.
    pub unneeded: Vec<Arrived>,
    /// Linearizable reads that are confirmed, in the order in which they were asked for.
    pub reads: Vec<ReadsAt>,
    /// An index that holds everything that was acknowledged before this member started; given once.
    pub caught_up_at: Option<u64>,
}

/// Linearizable reads that may be answered once `index` is applied and published.
#[derive(Debug)]
pub struct ReadsAt {
    /// Everything acknowledged before the reads came lies at or below this index.
    pub index: u64,
    /// Where the answers go.
    pub replies: Vec<ReplyTo>,
}

/// How apply feels the lack of space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// The records that no checkpoint has written have reached their bound.
    pub is_full_of_recent: bool,
    /// The checkpoint under way waits for space on its disk.
    pub is_checkpoint_waiting: bool,
    /// The changed nodes take more memory than all nodes together may.
    pub is_dirty_over: bool,
}

/// What apply tells raft.
#[derive(Debug, Default)]
pub struct Report {
    /// Everything up to here is applied and visible.
    pub applied: EntryId,
    /// Configuration changes that were applied and not refused, in log order. Each comes with the configuration that it
    /// made.
    pub conf_changes: Vec<(ConfChange, ConfState)>,
    /// Requests that raft must propose for the server itself.
    pub own: Vec<Own>,
    /// A checkpoint holds everything up to here, so the log may be trimmed.
    pub trim: Option<EntryId>,
    /// How apply feels the lack of space.
    pub space: Space,
    /// An entry about an alarm was applied since the last report.
    pub has_alarm_come: bool,
    /// Apply must know whether this member leads still.
    pub asks_lead: bool,
    /// Apply stands still: no request may be proposed.
    pub stands_still: bool,
    /// Entries up to this index are dropped when they are handed over: they are in a state that is there. 0 for none.
    pub passed_over: u64,
    /// Another member should lead, because of damage here.
    pub hands_over: bool,
    /// The state at this entry, for which raft has asked, is installed.
    pub installed: Option<EntryId>,
}

/// Answers, listed by connection core.
pub type AnswersByCore = Vec<Vec<(SlotId, Answer)>>;

/// Messages to the apply core.
pub enum ToApply {
    /// Renew a lease. One that has expired is answered when its revocation was applied.
    Renew {
        /// Where the answer goes.
        reply: ReplyTo,
        /// Lease id.
        lease: i64,
    },
    /// Renew several leases, and say at once what became of each.
    RenewAll {
        /// Where the answer goes.
        reply: ReplyTo,
        /// Lease ids.
        leases: Vec<i64>,
    },
    /// Ask for the time that a lease has left.
    TimeToLive {
        /// Where the answer goes.
        reply: ReplyTo,
        /// Lease id.
        lease: i64,
    },
    /// List all leases.
    Leases {
        /// Where the answer goes.
        reply: ReplyTo,
    },
    /// Answer once the sweep has passed `revision`.
    AwaitSweep {
        /// Where the answer goes.
        reply: ReplyTo,
        /// Compacted revision.
        revision: i64,
    },
    /// Give back the space that can be given back. The answer is the number of the run that does it.
    Defragment {
        /// Where the answer goes.
        reply: ReplyTo,
    },
    /// Answer once this run has ended.
    AwaitDefragment {
        /// Where the answer goes.
        reply: ReplyTo,
        /// The number of the run.
        run: u64,
    },
    /// Give an empty state beside this member's, in which that of another one is built with so much memory. It comes
    /// back with `Discard`, or through raft.
    Incoming {
        /// Where it goes.
        answer: oneshot::Sender<Store>,
        /// **Units** bytes.
        cache_bytes: usize,
    },
    /// A state was given up before all of it had arrived.
    Discard(Box<Store>),
    /// This is to be the cluster's version, if this member leads.
    ClusterVersion(String),
    /// The cluster's downgrade is over, if this member leads.
    Downgraded,
    /// This member holds other data than the cluster, if this one leads; 0 if nobody knows who does.
    Corrupt(u64),
    /// The checkpoint under way waits for space on its disk.
    CheckpointWaits,
    /// A checkpoint has ended.
    Checkpointed(Result<Box<CheckpointDone>, engine::Error>),
    /// The pages of a turn's faults were read, as far as they can be.
    Loaded(Result<(), engine::Error>),
}

/// What comes back into a reply slot.
#[derive(Debug)]
pub enum Answer {
    /// A proposal comes back with its result.
    Applied(Box<Proposal>),
    /// A lease was renewed; 0 for an unknown one. **Units** seconds.
    Renewed(i64),
    /// What became of the renewals, in the order in which they were asked for.
    RenewedAll(Vec<Renewal>),
    /// The time that a lease has left, and the granted time; `None` for an unknown lease. **Units** seconds.
    TimeToLive(Option<(i64, i64)>),
    /// Lease ids, in the order of their remaining time.
    Leases(Vec<i64>),
    /// A linearizable read may be answered from any view that is loaded from now on.
    Readable,
    /// A linearizable read cannot be answered.
    Unreadable(Error),
    /// The sweep has passed the revision asked for.
    Swept,
    /// The number of the run that gives space back.
    Defragmenting(u64),
    /// The run has ended.
    Defragmented,
    /// The question is for the leader's lessor, and that of this member does not lead.
    NotPrimary,
    /// How far the log of a member has come; an error if this member does not lead, or knows no such member.
    Progress(Result<Progress, Error>),
    /// Leadership was handed over, or it was not.
    Transferred(Result<(), Error>),
    /// Nobody answered in time.
    TimedOut,
}
