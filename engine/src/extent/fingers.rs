//! Where walks over keys found the last version in each extent: what they want of it next is mostly right behind.
//!
//! A scan goes on in as many blocks as there are extents with keys of its range. Here each of them is held until the scan has left it, so
//! it need not be looked for again, and the cache need not keep it.
//!
//! Invariants: a finger is only a hint, what is found through it was compared with key and revision. Bounded by [`EXTENTS_MAX`] blocks.

use std::collections::HashMap;

use super::block::Stored;
use crate::{Place, Revision};

/// Extents remembered: where scans are in the middle of more, the cache keeps their blocks.
const EXTENTS_MAX: usize = 2048;

/// See the head of this file; each thread that walks has its own.
#[derive(Debug, Default)]
pub struct Fingers {
    /// By the place of an extent's index.
    last: HashMap<Place, Stored>,
}

impl Fingers {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.last = HashMap::new();
    }

    /// The version of `key` at `revision`, if it is in the block found last of the extent whose index lies at `extent`.
    pub(super) fn find(&mut self, extent: Place, key: &[u8], revision: Revision) -> Option<Stored> {
        let last = self.last.get_mut(&extent)?;
        let next = last.neighbour(key, revision)?;
        last.clone_from(&next);
        Some(next)
    }

    /// Remembers what was found in the extent whose index lies at `extent`.
    pub(super) fn put(&mut self, extent: Place, stored: &Stored) {
        if self.last.len() >= EXTENTS_MAX && !self.last.contains_key(&extent) {
            self.last.clear();
        }
        self.last.insert(extent, stored.clone());
    }
}
