//! Runs on: apply core, connection core.
//!
//! The result of applying an entry, on its way to the client that waits for it. It is small, because every answer is
//! moved from core to core. Large parts are in a box.
//!
//! Headers carry the revision alone. The code that answers the client fills in the rest.

use consensus::Member;
use prost::Message;
use proto::{etcdserverpb as pb, mvccpb::KeyValue};

use crate::{auth::Told, shared::Shared};

/// See the head of this file.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// A Put was done.
    Put {
        /// The revision of the put.
        revision: i64,
        /// The version that it replaced, if the request asked for it.
        previous: Option<Box<KeyValue>>,
    },
    /// Answer to a DeleteRange.
    DeleteRange(Box<pb::DeleteRangeResponse>),
    /// Answer to a Txn.
    Txn(Box<pb::TxnResponse>),
    /// A compaction was done.
    Compaction {
        /// The store's revision.
        revision: i64,
    },
    /// A lease was granted.
    LeaseGrant {
        /// The store's revision.
        revision: i64,
        /// Lease id.
        id: i64,
        /// Granted time to live. **Units** seconds.
        ttl: i64,
    },
    /// A lease was revoked.
    LeaseRevoke {
        /// The store's revision.
        revision: i64,
    },
    /// Alarms were listed, raised or taken back.
    Alarm {
        /// The store's revision.
        revision: i64,
        /// The alarms that the answer shows: member id and type.
        alarms: Vec<(u64, i32)>,
    },
    /// The members were changed. These are all of them now.
    Members(Vec<Member>),
    /// Users or roles were changed, or asked.
    Users {
        /// The store's revision.
        revision: i64,
        /// What is told besides.
        told: Box<Told>,
    },
    /// An entry that no client sent.
    Internal,
}

const _: () = assert!(size_of::<Outcome>() <= 40, "an answer is moved often");

impl Outcome {
    /// The response as etcd's log tells it when the entry was slow: its size. The header counts as
    /// far as etcd's apply makes it.
    #[cold]
    pub(super) fn told(&self, shared: &Shared) -> String {
        let header = |revision| Some(pb::ResponseHeader { revision, ..pb::ResponseHeader::default() });
        let whole = |revision| Some(shared.header(revision));
        let bytes = match self {
            Self::Put { revision, previous } => {
                let prev_kv = previous.as_deref().cloned();
                pb::PutResponse { header: header(*revision), prev_kv }.encoded_len()
            }
            Self::DeleteRange(response) => response.encoded_len(),
            Self::Txn(response) => response.encoded_len(),
            Self::Compaction { revision } => pb::CompactionResponse { header: header(*revision) }.encoded_len(),
            Self::LeaseGrant { revision, id, ttl } => {
                let (id, ttl) = (*id, *ttl);
                pb::LeaseGrantResponse { header: whole(*revision), id, ttl, error: String::new() }.encoded_len()
            }
            Self::LeaseRevoke { revision } => pb::LeaseRevokeResponse { header: whole(*revision) }.encoded_len(),
            Self::Alarm { alarms, .. } => {
                let alarm = |(member_id, alarm)| pb::AlarmMember { member_id, alarm };
                let alarms = alarms.iter().copied().map(alarm).collect();
                pb::AlarmResponse { header: None, alarms }.encoded_len()
            }
            // Names, and what a login is told, do not go into a log.
            Self::Members(_) | Self::Users { .. } | Self::Internal => return String::new(),
        };
        format!("size:{bytes}")
    }
}
