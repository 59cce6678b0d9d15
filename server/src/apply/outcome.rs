//! Runs on: apply core, connection core.
//!
//! The result of applying an entry, on its way to the client that waits for it. It is small, because every answer is
//! moved from core to core. Large parts are in a box.
//!
//! Headers carry the revision alone. The code that answers the client fills in the rest.

use proto::{etcdserverpb as pb, mvccpb::KeyValue};

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
    /// An entry that no client sent.
    Internal,
}

const _: () = assert!(size_of::<Outcome>() <= 40, "an answer is moved often");
