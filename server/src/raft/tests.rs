//! Runs on: tests.
//!
//! Raft and apply must make the same configuration of a configuration change.

use std::path::Path;

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, ConfState, Driver, Identity, Member, Options, Start};
use engine::{disk::sim::SimStorage, wal};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::apply::members;

/// Raft of member 1 with these voters and learners.
fn driver(state: &ConfState) -> Driver {
    let mut disk = SimStorage::new(1).disk();
    let wal = wal::Options { segment_bytes: 1 << 20, ..wal::Options::default() };
    let options = Options::from_knobs(&tuning::Consensus::default(), true, 1, wal);
    let bootstrap = vec![ConfChange::bootstrap(&Member { id: 1, ..Member::default() })];
    let start = Start { bootstrap, conf_state: state.clone(), ..Start::default() };
    Driver::open(&mut disk, Path::new("wal"), Identity { member_id: 1, cluster_id: 1 }, options, start).unwrap()
}

#[test]
fn apply_computes_the_configuration_that_raft_reaches() {
    const KINDS: [ConfChangeKind; 4] = [
        ConfChangeKind::AddNode,
        ConfChangeKind::RemoveNode,
        ConfChangeKind::UpdateNode,
        ConfChangeKind::AddLearnerNode,
    ];
    let mut refused = 0;
    for seed in 0..50 {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut state = ConfState::default();
        let mut driver = driver(&state);
        for step in 0..40 {
            let kind = if state.voters.is_empty() { ConfChangeKind::AddNode } else { KINDS[random.random_range(0..4)] };
            let member_id = random.random_range(u64::from(state.voters.is_empty())..5);
            let change = ConfChange { id: 0, kind, member_id, context: Bytes::new() };
            let computed = members::changed(&state, &change);
            let reached = driver.apply_conf_change(&change);
            assert_eq!(computed.as_ref(), reached.as_ref().ok(), "seed {seed}, step {step}: {change:?} of {state:?}");
            refused += u32::from(computed.is_none());
            state = computed.unwrap_or(state);
        }
    }
    assert!(refused > 10, "no voter would be left");
}
