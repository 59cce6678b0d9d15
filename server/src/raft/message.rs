//! Runs on: connection core, raft core.
//!
//! The messages to the raft core.

use bytes::Bytes;
use consensus::{ConfState, EntryId, Message};

use crate::{
    apply::{arrived::Arrived, proposal::Proposal},
    quota::Purpose,
    slots::ReplyTo,
};

/// Messages to the raft core.
#[derive(Debug)]
pub enum ToRaft {
    /// Propose a client's request. It comes back with its result.
    Propose(Box<Proposal>),
    /// Propose a client's change of the members: the entry is an encoded `ConfChange` with the proposal's id, and there
    /// is no request. It comes back with the members that it has made, or with etcd's error. A leader proposes it when
    /// no other change is under way, its own or one that was forwarded to it.
    ChangeMembers(Box<Proposal>),
    /// Hand leadership over to the voter `target`, and answer once it leads.
    TransferLeader {
        /// Where the answer goes.
        reply: ReplyTo,
        /// The member that is to lead.
        target: u64,
    },
    /// Hand leadership over to any voter that takes it, and answer once it leads, or nobody is left.
    LeaveLead {
        /// Where the answer goes.
        reply: ReplyTo,
    },
    /// Ask how far the log of a member has come. Only a leader knows.
    Progress {
        /// Where the answer goes.
        reply: ReplyTo,
        /// The member.
        member_id: u64,
    },
    /// Propose a request of the server's own, for which nobody waits.
    ProposeOwn {
        /// The marshalled `InternalRaftRequest`.
        entry: Bytes,
        /// The purpose of the request.
        purpose: Purpose,
    },
    /// The state at `at` is held ready for the member `to`, which needs one.
    OfferState {
        /// For whom.
        to: u64,
        /// The last entry in it.
        at: EntryId,
        /// The configuration in it.
        conf_state: ConfState,
    },
    /// The transfer of a state to a member has ended.
    StateSent {
        /// Which member.
        to: u64,
        /// Whether all of it was sent.
        is_whole: bool,
    },
    /// This member cannot read what another one needs of it.
    HandOver,
    /// A state of another member has arrived.
    StateArrived {
        /// The message that announced it; `None` if this member has asked for it.
        message: Option<Box<Message>>,
        /// The state.
        arrived: Box<Arrived>,
    },
    /// Find out which index a linearizable read must see. Apply answers once it has published that.
    Read(ReplyTo),
}
