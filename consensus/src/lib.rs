//! Consensus: opaque entries go in, one durable order comes out.
//!
//! A sans-io driver around raft-rs over `engine::wal`. Knows no key, no RPC and no clock: ticks, completions and
//! messages are handed in, entries, messages and confirmed reads are taken out.
//!
//! Invariants: no raft-rs type leaves this crate; bytes of peers are never parsed by raft-rs's codec; configuration
//! changes lie in the log as etcd's bytes, never with raft-rs's enum numbers; an entry is handed out only when it is
//! durable on a quorum, once, in order.
//!
//! Files, each importing only files below it:
//!
//! - `driver`: raft-rs on one side, the write-ahead log on the other; everything a caller does goes through it.
//!   `driver/propose`: what may enter the log. `driver/ready`: from raft-rs to the log, the caller and the peers.
//!   `driver/reads`: rounds of reads. `driver/time`: what follows from time alone. `driver/install`: a state instead of
//!   entries. `driver/cut`: what is held back while the log is cut.
//! - `forced`: a log that goes on as that of the only voter.
//! - `recovery`: from a log directory and a stored state to what raft starts with; takes over another program's log.
//! - `start`: what a driver is opened with: identity, state, bounds, timing.
//! - `log`: the log as raft-rs sees it, its newest part in memory. `fetch`: what of the rest peers need.
//! - `states`: states for followers whose next entries are gone.
//! - `peer`: what members say to each other, as bytes.
//! - `leave`: a leader that is to be removed hands leadership on first, and its successor is asked when it can answer.
//! - `concerned`: whom this member's last promises may concern.
//! - `cut`: what a member may promise whose log was cut at its end.
//! - `check`: what a peer's message must keep before raft-rs sees it.
//! - `message`: messages between members as plain data, and their translation to and from raft-rs.
//! - `members`: member ids and etcd's form of members and configuration changes.
//! - `entry`: log entries as plain data, and the form in which raft-rs holds one.
//! - `elections`: when a member campaigns, and when a leader should lead no more.
//! - `read_index`: from which index on a linearizable read may be answered.
//! - `backlog`: the bound on what waits between proposal and apply.
//! - `request_ids`: request ids in etcd's scheme.
//! - `error`: everything that this crate reports.

mod backlog;
mod check;
mod concerned;
mod cut;
mod driver;
mod elections;
mod entry;
mod error;
mod fetch;
mod forced;
mod leave;
mod log;
mod members;
mod message;
pub mod peer;
mod read_index;
mod recovery;
mod request_ids;
mod start;
mod states;

pub use concerned::concerned_mask;
pub use driver::{Driver, Progress, Status};
pub use entry::{Committed, Entry, EntryId, EntryKind};
pub use error::{Error, Refused};
pub use forced::{Forced, force_new_cluster};
pub use members::{ConfChange, ConfChangeKind, ConfState, Member, cluster_id, member_id};
pub use message::{Message, MessageKind, Snapshot};
pub use read_index::ConfirmedRead;
pub use recovery::adopt_log;
pub use request_ids::RequestIds;
pub use start::{Identity, Options, PARTS_PER_TICK, Start};
