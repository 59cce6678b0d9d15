//! Runs on: connection core, raft core, apply core.
//!
//! One client's request on its way through the log: made by the core that decoded it, handed to raft, then with its
//! committed entry to apply, and with its result back to the core that waits. One allocation for the whole way.
//!
//! Invariants:
//! - `request` was decoded from the bytes of `entry`, so applying it is applying the entry.
//! - It comes back exactly once, or never, where the entry is lost with its leader: then the slot's deadline answers.

use bytes::Bytes;
use proto::internal::Request;

use super::outcome::Outcome;
use crate::{error::Error, insight::trace::Stamps, quota::Purpose, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug)]
pub struct Proposal {
    /// Who waits.
    pub reply: ReplyTo,
    /// Request id, as in the entry's header.
    pub id: u64,
    /// What it is for.
    pub purpose: Purpose,
    /// The marshalled `InternalRaftRequest`.
    pub entry: Bytes,
    /// Its request, until apply takes it.
    pub request: Option<Request>,
    /// When it passed its stations.
    pub stamps: Stamps,
    /// What came of it; before that, what its client is told if nothing comes.
    pub result: Result<Outcome, Error>,
}
