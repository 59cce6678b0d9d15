//! Where walks over keys found the last version in each extent: what they want of it next is mostly right behind.
//!
//! A scan goes on in as many blocks as there are extents with keys of its range. Here each of them is held until the scan has left it, so
//! it need not be looked for again, and the cache need not keep it.
//!
//! Invariants: a finger is only a hint, what is found through it was compared with key and revision. Blocks held take at most
//! [`BYTES_MAX`]; one of a single record is not held, there is nothing else in it to come back for.

use std::collections::HashMap;

use super::block::Stored;
use crate::{Place, Revision};

/// Blocks held: where scans are in the middle of more, the cache keeps them. **Units** bytes.
const BYTES_MAX: usize = 32 << 20;

/// See the head of this file; each thread that walks has its own.
#[derive(Debug, Default)]
pub struct Fingers {
    /// By the place of an extent's index.
    last: HashMap<Place, Stored>,
    /// Of the blocks in `last`.
    bytes: usize,
}

impl Fingers {
    /// Forgets everything.
    pub fn clear(&mut self) {
        *self = Self::default();
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
        let held = (!stored.is_alone()).then(|| stored.clone());
        self.bytes += held.as_ref().map_or(0, Stored::block_bytes);
        let before = match held {
            Some(held) => self.last.insert(extent, held),
            None => self.last.remove(&extent),
        };
        self.bytes -= before.as_ref().map_or(0, Stored::block_bytes);
        if self.bytes > BYTES_MAX {
            self.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::block::{Block, BlockBuilder};
    use super::*;
    use crate::Record;

    fn block(keys: &[&'static str], value_bytes: usize) -> Arc<Block> {
        let mut builder = BlockBuilder::default();
        for key in keys {
            let (key, value) = (Bytes::from_static(key.as_bytes()), Bytes::from(vec![7; value_bytes]));
            let revision = Revision::new(5, 0);
            builder.push(&Record {
                key,
                value,
                create_revision: 5,
                revision,
                version: 1,
                lease: 0,
                is_tombstone: false,
            });
        }
        let mut payload = Vec::new();
        builder.finish(&mut payload);
        Arc::new(Block::decode(&payload).unwrap())
    }

    fn extent(offset: u32) -> Place {
        Place { segment: 1, offset, len: 100 }
    }

    #[test]
    fn what_is_held_is_found_before_and_behind_and_bounded_by_bytes() {
        let revision = Revision::new(5, 0);
        let mut fingers = Fingers::default();
        let small = block(&["a", "b", "c", "d", "e", "f", "g", "h"], 10);
        fingers.put(extent(0), &Stored::find(Arc::clone(&small), b"b", revision).unwrap());
        for key in [&b"c"[..], b"h", b"a"] {
            assert!(fingers.find(extent(0), key, revision).is_some());
        }
        assert!(fingers.find(extent(0), b"bb", revision).is_none());
        assert!(fingers.find(extent(0), b"c", Revision::new(4, 0)).is_none());
        assert!(fingers.find(extent(1), b"c", revision).is_none());

        let alone = Stored::find(block(&["a"], 1 << 20), b"a", revision).unwrap();
        fingers.put(extent(0), &alone);
        assert_eq!((fingers.last.len(), fingers.bytes), (0, 0), "the extent's finger went on to what is not held");
        let large = Stored::find(block(&["a", "b"], 1 << 20), b"a", revision).unwrap();
        for offset in 0..100 {
            fingers.put(extent(offset), &large);
            fingers.put(extent(offset), &large);
            assert_eq!(fingers.bytes, fingers.last.len() * large.block_bytes());
            assert!(fingers.bytes <= BYTES_MAX);
        }
    }
}
