//! What an entry of the Raft log carries: etcd's `InternalRaftRequest`, that is a header and exactly one request.
//!
//! [`encode`] embeds a client's request bytes as they came, without decoding them; [`decode`] hands back the request
//! with keys and values sharing the entry's memory. Both work field by field, as the generated `InternalRaftRequest` is
//! 1.3 kB of mostly absent options.
//!
//! Invariants: the fields of an entry stand in ascending order, as etcd writes them: requests numbered below 100, the
//! header (100), the other requests. What `encode` writes, `decode` reads back. An entry etcd would abort on (no known
//! request, or neither header nor id) is an error here, never a guess.
//!
//! This file does not know what a request does, and does not check it: bytes that are no such request are found by
//! `decode` only.
//!
//! Source: etcd-3.7.1 `api/etcdserverpb/raft_internal.proto`, `server/etcdserver/server.go` `applyEntryNormal`.

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use crate::{etcdserverpb as pb, membershippb, txn};

pub use crate::etcdserverpb::RequestHeader;

/// Why bytes are not an entry, or not a txn.
#[derive(Debug, thiserror::Error, Eq, PartialEq)]
pub enum Error {
    /// The bytes are not protobuf, or not of these messages.
    #[error("entry cannot be decoded: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// A field runs past the end of the entry, or has a wire type that these messages do not use.
    #[error("entry is damaged at field {field}")]
    Damaged {
        /// Its number, 0 where not even that can be read.
        field: u64,
    },
    /// Messages are nested too deep, see [`txn::LEVELS_MAX`]. protobuf-go's words.
    #[error("proto: exceeded maximum recursion depth")]
    TooDeep,
    /// No request is set, or only one that this release does not know.
    #[error("entry carries no known request")]
    NoRequest,
    /// More than one request is set.
    #[error("entry carries more than one request")]
    SeveralRequests,
    /// Neither a header nor an id says who waits for it.
    #[error("entry has no header")]
    NoHeader,
}

const FIELD_ID: u64 = 1;
const FIELD_HEADER: u64 = 100;
const WIRE_VARINT: u64 = 0;
const WIRE_FIXED64: u64 = 1;
const WIRE_BYTES: u64 = 2;
const WIRE_FIXED32: u64 = 5;

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

            fn decode(kind: Kind, raw: Bytes) -> Result<Self, Error> {
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

/// Appends to `out` the entry that carries `raw`, a request of `kind` as the client sent it.
pub fn encode(header: &RequestHeader, kind: Kind, raw: &[u8], out: &mut Vec<u8>) {
    let length_before = out.len();
    let length = encoded_len(header, kind, raw.len());
    out.reserve(length);
    if kind.number() < FIELD_HEADER {
        encode_key(kind.number(), raw.len(), out);
        out.extend_from_slice(raw);
    }
    encode_key(FIELD_HEADER, header.encoded_len(), out);
    header.encode_raw(out);
    if kind.number() > FIELD_HEADER {
        encode_key(kind.number(), raw.len(), out);
        out.extend_from_slice(raw);
    }
    assert_eq!(out.len() - length_before, length, "encoded_len and encode disagree");
}

/// Bytes that [`encode`] will append for a request of `raw_bytes`: what etcd compares with `--max-request-bytes`.
#[must_use]
pub fn encoded_len(header: &RequestHeader, kind: Kind, raw_bytes: usize) -> usize {
    let header_bytes = header.encoded_len();
    key_len(kind.number(), raw_bytes) + raw_bytes + key_len(FIELD_HEADER, header_bytes) + header_bytes
}

/// The header and the request of an entry; byte fields share the entry's memory.
///
/// **Errors**: every one of them means that the entry must not be applied, and that a member which met it committed
/// cannot go on.
pub fn decode(mut entry: Bytes) -> Result<(RequestHeader, Request), Error> {
    let mut old_id = 0;
    let mut header = None;
    let mut request = None;
    while entry.has_remaining() {
        let key = decode_varint(&mut entry)?;
        let (field, wire_type) = (key >> 3, key & 7);
        match wire_type {
            WIRE_VARINT => {
                let value = decode_varint(&mut entry)?;
                if field == FIELD_ID {
                    old_id = value;
                }
            }
            WIRE_FIXED64 => drop(take(&mut entry, field, 8)?),
            WIRE_FIXED32 => drop(take(&mut entry, field, 4)?),
            WIRE_BYTES => {
                let length = decode_varint(&mut entry)?;
                let raw = take(&mut entry, field, length)?;
                if field == FIELD_HEADER {
                    header = Some(RequestHeader::decode(raw)?);
                } else if let Some(kind) = Kind::from_number(field)
                    && request.replace(Request::decode(kind, raw)?).is_some()
                {
                    return Err(Error::SeveralRequests);
                }
            }
            _ => return Err(Error::Damaged { field }),
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

fn encode_key(number: u64, length: usize, out: &mut impl BufMut) {
    encode_varint(number << 3 | WIRE_BYTES, out);
    encode_varint(length as u64, out);
}

fn key_len(number: u64, length: usize) -> usize {
    encoded_len_varint(number << 3) + encoded_len_varint(length as u64)
}

fn take(entry: &mut Bytes, field: u64, length: u64) -> Result<Bytes, Error> {
    match usize::try_from(length) {
        Ok(length) if length <= entry.len() => Ok(entry.split_to(length)),
        _ => Err(Error::Damaged { field }),
    }
}

#[cfg(test)]
mod tests;
