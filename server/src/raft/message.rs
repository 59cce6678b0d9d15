//! Runs on: connection core, raft core.
//!
//! The messages to the raft core.

use bytes::Bytes;

use crate::{apply::proposal::Proposal, quota::Purpose, slots::ReplyTo};

/// Messages to the raft core.
#[derive(Debug)]
pub enum ToRaft {
    /// Propose a client's request. It comes back with its result.
    Propose(Box<Proposal>),
    /// Propose a request of the server's own, for which nobody waits.
    ProposeOwn {
        /// The marshalled `InternalRaftRequest`.
        entry: Bytes,
        /// The purpose of the request.
        purpose: Purpose,
    },
    /// Find out which index a linearizable read must see. Apply answers once it has published that.
    Read(ReplyTo),
}
