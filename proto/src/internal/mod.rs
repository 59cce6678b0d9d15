//! What an entry of the Raft log carries: etcd's `InternalRaftRequest`, that is a header and exactly one request.
//!
//! [`encode`] embeds a client's request bytes as they came, without decoding them; [`decode`] hands back the request
//! with keys and values sharing the entry's memory; [`request_id`] reads who waits for an entry, and nothing else. They
//! work field by field, as the generated `InternalRaftRequest` is 1.3 kB of mostly absent options.
//!
//! Invariants: the fields of an entry stand in ascending order, as etcd writes them: requests numbered below 100, the
//! header (100), the other requests. What `encode` writes, `decode` reads back. Where `decode` gives a header,
//! `request_id` gives its id. An entry etcd would abort on (no known request, or neither header nor id) is an error
//! here, never a guess.
//!
//! This file does not know what a request does, and does not check it: bytes that are no such request are found by
//! `decode` only.
//!
//! Source: etcd-3.7.1 `api/etcdserverpb/raft_internal.proto`, `server/etcdserver/server.go` `applyEntryNormal`.

use std::ops::Range;

use bytes::Bytes;
use prost::Message;

pub use crate::etcdserverpb::RequestHeader;

use crate::{
    error::Error,
    etcdserverpb as pb, membershippb, txn,
    wire::{Value, delimited_key_len, fields, put_delimited_key},
};

const FIELD_ID: u64 = 1;
const FIELD_HEADER: u64 = 100;
/// The id in a header.
const FIELD_HEADER_ID: u64 = 1;

/// Hands every kind, with its field's name, number and message, to a macro.
macro_rules! with_kinds {
    ($then:ident) => {
        $then! {
            Range range 3 pb::RangeRequest,
            Put put 4 pb::PutRequest,
            DeleteRange delete_range 5 pb::DeleteRangeRequest,
            Txn txn 6 pb::TxnRequest,
            Compaction compaction 7 pb::CompactionRequest,
            LeaseGrant lease_grant 8 pb::LeaseGrantRequest,
            LeaseRevoke lease_revoke 9 pb::LeaseRevokeRequest,
            Alarm alarm 10 pb::AlarmRequest,
            LeaseCheckpoint lease_checkpoint 11 pb::LeaseCheckpointRequest,
            AuthEnable auth_enable 1000 pb::AuthEnableRequest,
            AuthDisable auth_disable 1011 pb::AuthDisableRequest,
            Authenticate authenticate 1012 pb::InternalAuthenticateRequest,
            AuthStatus auth_status 1013 pb::AuthStatusRequest,
            AuthUserAdd auth_user_add 1100 pb::AuthUserAddRequest,
            AuthUserDelete auth_user_delete 1101 pb::AuthUserDeleteRequest,
            AuthUserGet auth_user_get 1102 pb::AuthUserGetRequest,
            AuthUserChangePassword auth_user_change_password 1103 pb::AuthUserChangePasswordRequest,
            AuthUserGrantRole auth_user_grant_role 1104 pb::AuthUserGrantRoleRequest,
            AuthUserRevokeRole auth_user_revoke_role 1105 pb::AuthUserRevokeRoleRequest,
            AuthUserList auth_user_list 1106 pb::AuthUserListRequest,
            AuthRoleList auth_role_list 1107 pb::AuthRoleListRequest,
            AuthRoleAdd auth_role_add 1200 pb::AuthRoleAddRequest,
            AuthRoleDelete auth_role_delete 1201 pb::AuthRoleDeleteRequest,
            AuthRoleGet auth_role_get 1202 pb::AuthRoleGetRequest,
            AuthRoleGrantPermission auth_role_grant_permission 1203 pb::AuthRoleGrantPermissionRequest,
            AuthRoleRevokePermission auth_role_revoke_permission 1204 pb::AuthRoleRevokePermissionRequest,
            ClusterVersionSet cluster_version_set 1300 membershippb::ClusterVersionSetRequest,
            ClusterMemberAttrSet cluster_member_attr_set 1301 membershippb::ClusterMemberAttrSetRequest,
            DowngradeInfoSet downgrade_info_set 1302 membershippb::DowngradeInfoSetRequest,
            DowngradeVersionTest downgrade_version_test 9900 pb::DowngradeVersionTestRequest,
        }
    };
}

macro_rules! define_kinds {
    ($($kind:ident $field:ident $number:literal $message:ty,)*) => {
        /// Which request an entry carries; the value is its field number.
        #[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
        #[repr(u16)]
        pub enum Kind {
            $(#[doc = concat!("Field `", stringify!($field), "`.")] $kind = $number,)*
        }

        /// The request of an entry, decoded.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Request {
            $(#[doc = concat!("Field `", stringify!($field), "`.")] $kind($message),)*
        }

        impl Kind {
            /// All of them, by ascending field number.
            pub const ALL: &[Self] = &[$(Self::$kind,)*];

            fn from_number(number: u64) -> Option<Self> {
                match number {
                    $($number => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }

        impl Request {
            /// Which request it is.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// The request of `kind` that `raw` is, as a client sends it; its byte fields share memory with `raw`.
            ///
            /// **Errors**: `Malformed`; `TooDeep` and `Damaged` for a txn.
            pub fn decode(kind: Kind, raw: Bytes) -> Result<Self, Error> {
                if kind == Kind::Txn {
                    return txn::decode(raw).map(Self::Txn);
                }
                Ok(match kind {
                    $(Kind::$kind => Self::$kind(<$message>::decode(raw)?),)*
                })
            }
        }
    };
}

with_kinds!(define_kinds);

impl Kind {
    /// Its field number in `InternalRaftRequest`.
    #[must_use]
    pub fn number(self) -> u64 {
        u64::from(self as u16)
    }
}

/// An entry, and where in it the request lies.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Encoded {
    /// The whole entry.
    pub entry: Bytes,
    /// Position of the request's bytes in it.
    pub request: Range<usize>,
}

impl Encoded {
    /// The request's bytes, which share the entry's memory: what is decoded from them does, too.
    #[must_use]
    pub fn request(&self) -> Bytes {
        self.entry.slice(self.request.clone())
    }
}

/// The entry that carries `raw`, a request of `kind` as the client sent it. One allocation, of the entry's length.
#[must_use]
pub fn encode(header: &RequestHeader, kind: Kind, raw: &[u8]) -> Encoded {
    let header_bytes = header.encoded_len();
    let length = len_of(header_bytes, kind, raw.len());
    let mut out = Vec::with_capacity(length);
    let put_request = |out: &mut Vec<u8>| {
        put_delimited_key(kind.number(), raw.len(), out);
        let start = out.len();
        out.extend_from_slice(raw);
        start..out.len()
    };
    let put_header = |out: &mut Vec<u8>| {
        put_delimited_key(FIELD_HEADER, header_bytes, out);
        header.encode_raw(out);
    };
    let request = if kind.number() < FIELD_HEADER {
        let request = put_request(&mut out);
        put_header(&mut out);
        request
    } else {
        put_header(&mut out);
        put_request(&mut out)
    };
    assert_eq!(out.len(), length, "encoded_len and encode disagree");
    Encoded { entry: Bytes::from(out), request }
}

/// Length of the entry that [`encode`] makes of a request of `raw_bytes`: what etcd compares with
/// `--max-request-bytes`.
#[must_use]
pub fn encoded_len(header: &RequestHeader, kind: Kind, raw_bytes: usize) -> usize {
    len_of(header.encoded_len(), kind, raw_bytes)
}

fn len_of(header_bytes: usize, kind: Kind, raw_bytes: usize) -> usize {
    delimited_key_len(kind.number(), raw_bytes)
        + raw_bytes
        + delimited_key_len(FIELD_HEADER, header_bytes)
        + header_bytes
}

/// The header and the request of an entry; byte fields share the entry's memory.
///
/// **Errors**: every one of them means that the entry must not be applied, and that a member which met it committed
/// cannot go on.
pub fn decode(entry: Bytes) -> Result<(RequestHeader, Request), Error> {
    let mut old_id = 0;
    let mut header = None;
    let mut request = None;
    for field in fields(&entry) {
        match field? {
            (FIELD_ID, Value::Varint(value)) => old_id = value,
            (FIELD_HEADER, Value::Delimited(raw)) => header = Some(RequestHeader::decode(raw)?),
            (number, Value::Delimited(raw)) => {
                if let Some(kind) = Kind::from_number(number)
                    && request.replace(Request::decode(kind, entry.slice_ref(raw))?).is_some()
                {
                    return Err(Error::SeveralRequests);
                }
            }
            (_, Value::Varint(_) | Value::Fixed) => {}
        }
    }
    let mut header = match header {
        Some(header) => header,
        None if old_id != 0 => RequestHeader::default(),
        None => return Err(Error::NoHeader),
    };
    if old_id != 0 {
        header.id = old_id;
    }
    Ok((header, request.ok_or(Error::NoRequest)?))
}

/// The header of an entry. The request is passed by its length.
///
/// **Errors** the entry is malformed as far as its header, or has none.
pub fn header(entry: &[u8]) -> Result<RequestHeader, Error> {
    for field in fields(entry) {
        if let (FIELD_HEADER, Value::Delimited(raw)) = field? {
            return Ok(RequestHeader::decode(raw)?);
        }
    }
    Err(Error::NoHeader)
}

/// The id by which the proposer of an entry waits for it: that of the header that [`decode`] gives. The request is
/// passed by its length, nothing is allocated.
///
/// None if the entry carries no id, or is damaged. Some does not mean that `decode` accepts the entry.
#[must_use]
pub fn request_id(entry: &[u8]) -> Option<u64> {
    let mut old_id = 0;
    let mut header_id = None;
    for field in fields(entry) {
        match field.ok()? {
            (FIELD_ID, Value::Varint(value)) => old_id = value,
            (FIELD_HEADER, Value::Delimited(raw)) => header_id = Some(id_of(raw)?),
            _ => {}
        }
    }
    if old_id != 0 { Some(old_id) } else { header_id }
}

/// The id in an encoded header; 0 if it has none, as protobuf has it.
fn id_of(header: &[u8]) -> Option<u64> {
    let mut id = 0;
    for field in fields(header) {
        match field {
            Ok((FIELD_HEADER_ID, Value::Varint(value))) => id = value,
            Ok(_) => {}
            // A group, which prost skips; no etcd member writes one.
            Err(_) => return RequestHeader::decode(header).ok().map(|header| header.id),
        }
    }
    Some(id)
}

#[cfg(test)]
mod tests;
