//! Runs on: connection core, raft core, apply core.
//!
//! One client's request on its way through the log. The core that decoded the request makes the proposal and hands it
//! to raft. It goes to apply with its committed entry, and back with its result to the core that waits. It is one box
//! for the whole way, and the core keeps the box for a later request. The bytes of the entry are the one other
//! allocation.
//!
//! Invariants:
//! - `request` was decoded from the bytes of `entry`. So applying the request is applying the entry.
//! - It comes back exactly once, or never if the entry is lost with its leader. Then the slot's deadline answers.

use bytes::Bytes;
use proto::internal::Request;

use super::outcome::Outcome;
use crate::{error::Error, gathered::Share, insight::trace::Stamps, quota::Purpose, slots::ReplyTo};

/// See the head of this file.
#[derive(Debug)]
pub struct Proposal {
    /// Where the answer goes.
    pub reply: ReplyTo,
    /// Request id, as in the entry's header.
    pub id: u64,
    /// The purpose of the request.
    pub purpose: Purpose,
    /// The marshalled `InternalRaftRequest`.
    pub entry: Bytes,
    /// The request, until apply takes it.
    pub request: Option<Request>,
    /// The times at which it passed its stations.
    pub stamps: Stamps,
    /// The memory of the answer, if it is large.
    pub share: Option<Share>,
    /// The result. Until there is one, it is the error that the client gets if no result comes.
    pub result: Result<Outcome, Error>,
}
