//! Runs on: connection core, apply core.
//!
//! What operators want to know of a member at work: which requests are slow, and in which phase, what is asked for
//! most, what takes up space.
//!
//! - `trace`: where one request spends its time
//! - `slow`: which requests are told of, and what is remembered of them
//! - `text`: requests and entries as text
//! - `hot`: which keys and prefixes are asked for most; it counts them in a `sketch`
//! - `sketch`: the most frequent of many items in a bounded table
//! - `usage`: what prefixes take up, from the sums in the tree
//!
//! Invariants: what is remembered is bounded, whatever clients send; nothing here decides a result.

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

/// What the cores publish of their insight, for whoever asks on any core.
#[derive(Debug)]
pub struct Board {
    /// From when on something is slow.
    pub settings: Settings,
    /// Slow requests, by core.
    pub slow: Vec<Ring>,
    /// What is asked for most, by core.
    pub heat: Vec<ArcSwap<Heat>>,
    /// What the children of the empty prefix took up a moment ago.
    pub usage: ArcSwap<Vec<Row>>,
}

impl Board {
    /// An empty board for `cores` cores.
    pub fn new(settings: Settings, cores: usize) -> Self {
        let slow = (0..cores).map(|_| Ring::default()).collect();
        let heat = (0..cores).map(|_| ArcSwap::default()).collect();
        Self { settings, slow, heat, usage: ArcSwap::default() }
    }

    /// What is asked for most, by core, as published last.
    pub fn heat_now(&self) -> Vec<Arc<Heat>> {
        self.heat.iter().map(ArcSwap::load_full).collect()
    }
}
