//! Runs on: connection core, threads of its own.
//!
//! Snapshots as etcd sends them: a raft message, and behind it, in the same body, the whole database of the sender.
//!
//! | file | what it owns |
//! |---|---|
//! | `head` | the message in front of the database |
//! | `receive` | from the bytes of the database to a state beside the live one |
//!
//! **Source** etcd v3.7.1 `server/etcdserver/api/rafthttp/{http,snapshot_sender}.go`.

pub mod head;
pub mod receive;
