//! The segments that are being emptied.
//!
//! Invariants: the numbers ascend. It does not choose them (`pages::reclaim` does).

use std::sync::Arc;

/// Segments that are being emptied.
#[derive(Clone, Debug, Default)]
pub(crate) struct Victims(Arc<[u32]>);

impl Victims {
    /// A set of segments, in any order.
    pub(crate) fn new(mut segments: Vec<u32>) -> Self {
        segments.sort_unstable();
        Self(segments.into())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn contains(&self, segment: u32) -> bool {
        self.0.binary_search(&segment).is_ok()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}
