//! Runs on: connection core, raft core.
//!
//! The messages to the raft core.

use bytes::Bytes;

use crate::{apply::proposal::Proposal, quota::Purpose};

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
}
