//! Runs on: connection core, apply core.
//!
//! What operators want to know of a running member: which requests are slow and in which phase, which keys are asked
//! for most, and what takes up space.
//!
//! - `trace`: where a request spends its time
//! - `slow`: which requests are logged as slow, and which are remembered
//! - `text`: requests and entries as text
//! - `hot`: which keys and prefixes are asked for most; it counts them in a `sketch`
//! - `sketch`: finds the most frequent of many items in a bounded table
//! - `usage`: the space that prefixes take, from the sums in the tree
//!
//! Invariants: what is remembered is bounded, whatever clients send. Nothing here decides a result.

use std::sync::Arc;

use arc_swap::ArcSwap;

use self::{
    hot::Heat,
    slow::{Ring, Settings},
    usage::Row,
};

pub mod hot;
pub mod sketch;
pub mod slow;
pub mod text;
pub mod trace;
pub mod usage;

/// What each core publishes of its insight, for readers on any core.
#[derive(Debug)]
pub struct Board {
    /// From which durations on something is slow.
    pub settings: Settings,
    /// Slow requests of each core.
    pub slow: Vec<Ring>,
    /// The hottest keys and prefixes of each core.
    pub heat: Vec<ArcSwap<Heat>>,
    /// The space that the children of the empty prefix took at the last measurement.
    pub usage: ArcSwap<Vec<Row>>,
}

impl Board {
    /// An empty board for `cores` cores.
    pub fn new(settings: Settings, cores: usize) -> Self {
        let slow = (0..cores).map(|_| Ring::default()).collect();
        let heat = (0..cores).map(|_| ArcSwap::default()).collect();
        Self { settings, slow, heat, usage: ArcSwap::default() }
    }

    /// The hottest keys and prefixes of each core, as last published.
    pub fn heat_now(&self) -> Vec<Arc<Heat>> {
        self.heat.iter().map(ArcSwap::load_full).collect()
    }
}
