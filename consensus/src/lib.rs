//! Consensus: opaque entries go in, one durable order comes out.
//!
//! A sans-io driver around raft-rs over `engine::wal`. Knows no key, no RPC and no clock: ticks, completions and
//! messages are handed in, entries, messages and confirmed reads are taken out.
//!
//! Invariants: no raft-rs type leaves this crate; bytes of peers are never parsed by raft-rs's codec; configuration
//! changes lie in the log as etcd's bytes, never with raft-rs's enum numbers; an entry is handed out only when it is
//! durable on a quorum, once, in order.

mod driver;
mod error;
mod log;
mod membership;
mod message;
mod proposals;
mod read_index;
mod recovery;

pub use driver::{Applied, Committed, Driver, Identity, Options, Start, Status};
pub use error::Error;
pub use log::EntryKind;
pub use membership::{ConfChange, ConfChangeKind, ConfState, Member, cluster_id, member_id};
pub use message::{Entry, Message, MessageKind};
pub use proposals::RequestIds;
pub use read_index::ConfirmedRead;
pub use recovery::adopt_log;
