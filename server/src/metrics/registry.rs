//! Runs on: every core.
//!
//! All counters of this process, for readers on any core.

use std::sync::Arc;

use super::{
    counters::{CommitCounters, Counters, ScrubCounters},
    peers::Peers,
};
use crate::config::Stage;

/// See the head of this file.
#[derive(Debug)]
pub struct Registry {
    /// Counters of every connection core.
    pub connections: Vec<Arc<Counters>>,
    /// Counters of raft, apply and the checkpoints. They are kept apart, because they change with every entry.
    pub commit: Arc<CommitCounters>,
    /// Counters of the scrub.
    pub scrub: Arc<ScrubCounters>,
    /// Numbers about each other member.
    pub peers: Peers,
    /// Feature gates with their stage and value.
    pub features: Vec<(&'static str, Stage, bool)>,
}

impl Registry {
    /// Counters for `cores` connection cores, all zero.
    pub fn new(features: Vec<(&'static str, Stage, bool)>, cores: usize) -> Self {
        Self {
            connections: (0..cores).map(|_| Arc::default()).collect(),
            commit: Arc::default(),
            scrub: Arc::default(),
            peers: Peers::default(),
            features,
        }
    }
}
