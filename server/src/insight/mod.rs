//! Runs on: connection core, commit core.
//!
//! What operators want to know of a member at work: which requests are slow, and in which phase.
//!
//! `trace` notes where a request spends its time, `slow` decides which requests are told of, `text` how they are written.
//!
//! Invariants: what is remembered is bounded, whatever clients send; nothing here decides a result.

pub mod slow;
pub mod text;
pub mod trace;
