//! Runs on: connection core, commit core.
//!
//! What operators want to know of a member at work: which requests are slow, and in which phase, what is asked for most, what
//! takes up space.
//!
//! `trace` notes where a request spends its time, `slow` decides which requests are told of, `text` how they
//! are written; `hot` counts keys and prefixes in a `sketch`, `usage` asks the nodes' sums; `service` answers for all of them.
//!
//! Invariants: what is remembered is bounded, whatever clients send; nothing here decides a result.

pub mod hot;
pub mod service;
pub mod sketch;
pub mod slow;
pub mod text;
pub mod trace;
pub mod usage;
