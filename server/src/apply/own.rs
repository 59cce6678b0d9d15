//! Runs on: apply core.
//!
//! Entries that the server proposes for itself. Nobody waits for them.

use bytes::Bytes;
use prost::Message;
use proto::internal::{self, Kind};

use crate::quota::{self, Purpose};

/// See the head of this file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Own {
    /// The marshalled `InternalRaftRequest`.
    pub entry: Bytes,
    /// The purpose of the request.
    pub purpose: Purpose,
    /// The term in which this member, as the leader, decided it. `None` for what any member may ask for.
    pub of_leader_in: Option<u64>,
}

impl Own {
    /// The entry with request id `id`, of any member.
    pub fn new(id: u64, purpose: Purpose, kind: Kind, message: &impl Message) -> Self {
        let encoded = internal::encode(&quota::header(id, purpose), kind, &message.encode_to_vec());
        Self { entry: encoded.entry, purpose, of_leader_in: None }
    }
}
