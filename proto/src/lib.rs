//! etcd's wire types, and what is fixed by the wire alone.
//!
//! The types are generated from `schema/`, our own `.proto` files with etcd v3.7.1's packages, names, numbers and
//! types; a test compares the descriptors with etcd's; `orlop.v1` is our own. `bytes` fields are `bytes::Bytes`:
//! decoded from a `Bytes`, keys and values share its memory.
//!
//! This crate knows no behaviour: no validation, no defaults, no error texts. It makes no client or server stubs.
//!
//! Files, each importing only this one and files below it:
//!
//! - [`internal`]: what a Raft log entry carries: a header and one request.
//! - [`txn`]: txns, which hold themselves, decoded as deep as etcd decodes them.
//! - [`wire`]: varints, and a walk over the fields of a message that is not decoded.
//! - [`wire_range`]: what a pair (key, range_end) means, everywhere it occurs.
//! - [`error`]: why bytes are not what they should be.

pub mod error;
pub mod internal;
pub mod txn;
pub mod wire;
pub mod wire_range;

/// etcd's services and their messages, and the entries of its Raft log.
#[allow(missing_docs, clippy::all, reason = "generated; the meaning stands in schema/etcdserverpb")]
pub mod etcdserverpb {
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

/// Versions of keys, and events.
#[allow(missing_docs, clippy::all, reason = "generated; the meaning stands in schema/mvccpb")]
pub mod mvccpb {
    include!(concat!(env!("OUT_DIR"), "/mvccpb.rs"));
}

/// Users, roles and permissions as stored.
#[allow(missing_docs, clippy::all, reason = "generated; the meaning stands in schema/authpb")]
pub mod authpb {
    include!(concat!(env!("OUT_DIR"), "/authpb.rs"));
}

/// Members and cluster settings as the log carries them.
#[allow(missing_docs, clippy::all, reason = "generated; the meaning stands in schema/membershippb")]
pub mod membershippb {
    include!(concat!(env!("OUT_DIR"), "/membershippb.rs"));
}

/// gRPC's health service, `grpc.health.v1`.
#[allow(missing_docs, clippy::all, reason = "generated; the meaning stands in schema/grpc")]
pub mod health {
    include!(concat!(env!("OUT_DIR"), "/grpc.health.v1.rs"));
}

/// Orlop's own service, `orlop.v1`.
#[allow(missing_docs, clippy::all, reason = "generated; the meaning stands in schema/orlop")]
pub mod orlop {
    include!(concat!(env!("OUT_DIR"), "/orlop.v1.rs"));
}
