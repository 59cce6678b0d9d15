//! Runs on: connection core.
//!
//! The requests of unary calls, decoded. Each is decoded once, at the edge, however it came. Only insight reads
//! messages again: a sample, for hot keys, and those of slow requests.
//!
//! Invariant: what goes through the log is decoded from the bytes of the entry that will carry it, so its keys and
//! values share the entry's memory.

use bytes::Bytes;
use prost::Message;
use proto::{etcdserverpb as pb, health, internal::Kind, orlop};

use super::desk::{Desk, Draft};
use crate::{error::Error, method::Method, protobuf::why_undecodable};

/// A decoded request.
#[derive(Debug)]
pub(super) enum Request {
    /// A request that goes through the log, or may do so: a txn that only reads does not.
    Draft(Draft),
    /// KV Range.
    Range(pb::RangeRequest),
    /// Anything else.
    Rare(Box<Rare>),
}

/// A request of a kind that comes rarely.
#[derive(Debug)]
pub(super) enum Rare {
    /// Lease LeaseGrant.
    LeaseGrant(pb::LeaseGrantRequest),
    /// Lease LeaseTimeToLive.
    LeaseTimeToLive(pb::LeaseTimeToLiveRequest),
    /// Lease LeaseLeases.
    LeaseLeases,
    /// Cluster MemberList.
    MemberList(pb::MemberListRequest),
    /// Cluster MemberAdd.
    MemberAdd(pb::MemberAddRequest),
    /// Cluster MemberRemove.
    MemberRemove(pb::MemberRemoveRequest),
    /// Cluster MemberUpdate.
    MemberUpdate(pb::MemberUpdateRequest),
    /// Cluster MemberPromote.
    MemberPromote(pb::MemberPromoteRequest),
    /// Maintenance MoveLeader.
    MoveLeader(pb::MoveLeaderRequest),
    /// Maintenance Downgrade.
    Downgrade(pb::DowngradeRequest),
    /// Maintenance Status.
    Status,
    /// Maintenance Defragment.
    Defragment,
    /// Maintenance Hash.
    Hash,
    /// Maintenance HashKV.
    HashKv(pb::HashKvRequest),
    /// Insight Usage.
    Usage(orlop::UsageRequest),
    /// Insight Top.
    Top(orlop::TopRequest),
    /// Health Check.
    HealthCheck(health::HealthCheckRequest),
    /// Health List.
    HealthList,
}

/// What a message asks for, as whoever gives permission sees it.
#[expect(dead_code, reason = "permissions look into it, once there are users")]
#[derive(Clone, Copy, Debug)]
pub(super) enum Asked<'a> {
    /// A unary call's request.
    Unary(&'a Request),
    /// A request of a Watch stream.
    Watch(&'a pb::WatchRequest),
    /// A request of a RangeStream.
    RangeStream(&'a pb::RangeRequest),
    /// A renewal of a lease.
    KeepAlive(&'a pb::LeaseKeepAliveRequest),
    /// A backup.
    Snapshot,
    /// The health of the server.
    Health,
}

/// A message that asks for something.
pub(super) trait Asks {
    /// What it asks for.
    fn asked(&self) -> Asked<'_>;
}

impl Asks for Request {
    fn asked(&self) -> Asked<'_> {
        Asked::Unary(self)
    }
}

impl Asks for pb::WatchRequest {
    fn asked(&self) -> Asked<'_> {
        Asked::Watch(self)
    }
}

impl Asks for pb::RangeRequest {
    fn asked(&self) -> Asked<'_> {
        Asked::RangeStream(self)
    }
}

impl Asks for pb::LeaseKeepAliveRequest {
    fn asked(&self) -> Asked<'_> {
        Asked::KeepAlive(self)
    }
}

impl Asks for pb::SnapshotRequest {
    fn asked(&self) -> Asked<'_> {
        Asked::Snapshot
    }
}

impl Asks for health::HealthCheckRequest {
    fn asked(&self) -> Asked<'_> {
        Asked::Health
    }
}

/// Decodes the message of a unary call.
///
/// **Errors** bytes that are not this message.
pub(super) fn decode<M: Message + Default>(body: Bytes) -> Result<M, Error> {
    M::decode(body).map_err(|error| Error::Undecodable(why_undecodable(&error)))
}

/// Decodes a message of a stream.
///
/// **Errors** bytes that are not this message.
pub(super) fn decode_in_stream<M: Message + Default>(body: Bytes) -> Result<M, Error> {
    M::decode(body).map_err(|error| Error::UndecodableInStream(why_undecodable(&error)))
}

impl Request {
    /// Decodes the request of a unary `method`.
    ///
    /// **Errors** bytes that do not decode; a method that is not served.
    pub(super) fn decode(desk: &Desk, method: Method, body: Bytes) -> Result<Self, Error> {
        let kind = match method {
            Method::Put => Kind::Put,
            Method::Range => return decode(body).map(Self::Range),
            Method::Txn => Kind::Txn,
            Method::DeleteRange => Kind::DeleteRange,
            Method::Compact => Kind::Compaction,
            Method::LeaseRevoke => Kind::LeaseRevoke,
            Method::Alarm => Kind::Alarm,
            _ => return Rare::decode(method, body).map(|rare| Self::Rare(Box::new(rare))),
        };
        desk.draft(kind, &body).map(Self::Draft)
    }
}

impl Rare {
    fn decode(method: Method, body: Bytes) -> Result<Self, Error> {
        Ok(match method {
            Method::LeaseGrant => Self::LeaseGrant(decode(body)?),
            Method::LeaseTimeToLive => Self::LeaseTimeToLive(decode(body)?),
            Method::LeaseLeases => decode::<pb::LeaseLeasesRequest>(body).map(|_| Self::LeaseLeases)?,
            Method::MemberList => decode(body).map(Self::MemberList)?,
            Method::MemberAdd => decode(body).map(Self::MemberAdd)?,
            Method::MemberRemove => decode(body).map(Self::MemberRemove)?,
            Method::MemberUpdate => decode(body).map(Self::MemberUpdate)?,
            Method::MemberPromote => decode(body).map(Self::MemberPromote)?,
            Method::MoveLeader => decode(body).map(Self::MoveLeader)?,
            Method::Downgrade => decode(body).map(Self::Downgrade)?,
            Method::Status => decode::<pb::StatusRequest>(body).map(|_| Self::Status)?,
            Method::Defragment => decode::<pb::DefragmentRequest>(body).map(|_| Self::Defragment)?,
            Method::Hash => decode::<pb::HashRequest>(body).map(|_| Self::Hash)?,
            Method::HashKv => Self::HashKv(decode(body)?),
            Method::Usage => Self::Usage(decode(body)?),
            Method::Top => Self::Top(decode(body)?),
            Method::HealthCheck => Self::HealthCheck(decode(body)?),
            Method::HealthList => decode::<health::HealthListRequest>(body).map(|_| Self::HealthList)?,
            _ => return Err(Error::NotImplemented(method.name())),
        })
    }
}
