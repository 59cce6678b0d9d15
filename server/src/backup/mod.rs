//! Runs on: connection core (the Snapshot call), main thread (the offline commands).
//!
//! Snapshot files towards users: `stream` is the Snapshot call, `command` the flags of `orlop snapshot`, `status`
//! what it prints. What is in such a file is `etcd_files`'.

pub mod command;
pub mod status;
pub mod stream;
