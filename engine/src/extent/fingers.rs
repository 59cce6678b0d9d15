//! Remembers where walks over keys found the last version in each extent. The next version that they want of an extent
//! is mostly directly after it.
//!
//! A scan works in one block of each extent that has keys of its range. All these blocks are held here until the scan
//! has left them. So it need not look for them again, and the cache need not keep them.
//!
//! A long scan reads a few blocks of an extent at once. The blocks that it has not reached yet are held here too.
//!
//! Invariants: a finger is only a hint. A record that is found through it was compared by revision, and no two records
//! share one. The held blocks take at most [`BYTES_MAX`]. Blocks are read ahead up to [`AHEAD_BYTES_MAX`]. A block of a
//! single record is held until the next such block comes, because nothing else is in it.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use foldhash::fast::RandomState;

use super::block::{Block, Stored};
use crate::{Place, Revision};

/// Bytes of held blocks at most. If scans work in more, the cache keeps the others. **Units** bytes.
const BYTES_MAX: usize = 32 << 20;

/// While the held blocks take less than this, others are read ahead. **Units** bytes.
const AHEAD_BYTES_MAX: usize = 20 << 20;

/// The place where the last version was found in an extent.
#[derive(Debug)]
struct Finger {
    block: Arc<Block>,
    position: usize,
    /// The next blocks, in order.
    ahead: VecDeque<Arc<Block>>,
    /// Whether something was found through it since [`Fingers::forget_unused`].
    is_used: bool,
}

impl Finger {
    fn bytes(&self) -> usize {
        self.block.bytes() + self.ahead.iter().map(|block| block.bytes()).sum::<usize>()
    }

    /// Goes to the version of `key` at `revision`, if it is in a held block. Returns the bytes of the blocks that it
    /// dropped.
    fn seek(&mut self, key: &[u8], revision: Revision) -> Option<usize> {
        let found = self.block.behind(self.position, revision).or_else(|| self.block.find(key, revision));
        if let Some(position) = found {
            (self.position, self.is_used) = (position, true);
            return Some(0);
        }
        let mut ahead = self.ahead.iter().enumerate();
        let (at, position) = ahead.find_map(|(at, block)| Some((at, block.find(key, revision)?)))?;
        let before = self.bytes();
        (self.position, self.is_used) = (position, true);
        self.block = self.ahead.drain(..=at).next_back().expect("it was found there");
        Some(before - self.bytes())
    }
}

/// See the head of this file. Each thread that walks has its own.
#[derive(Debug, Default)]
pub struct Fingers {
    /// Fingers, by the place of an extent's index.
    last: HashMap<Place, Finger, RandomState>,
    /// The last block of a single record that was found.
    alone: Option<Arc<Block>>,
    /// Bytes of the blocks in `last`. **Units** bytes.
    bytes: usize,
}

impl Fingers {
    /// Forgets the extents in which nothing was found since the last call. It should be called now and then.
    pub fn forget_unused(&mut self) {
        self.alone = None;
        self.last.retain(|_, finger| std::mem::take(&mut finger.is_used));
        self.last.shrink_to_fit();
        self.bytes = self.last.values().map(Finger::bytes).sum();
    }

    /// Whether there is room for blocks read ahead.
    pub(super) fn has_room_ahead(&self) -> bool {
        self.bytes < AHEAD_BYTES_MAX
    }

    /// Whether the version of `key` at `revision` is in a held block of the extent with its index at `extent`. The
    /// finger is then on it.
    pub(super) fn seek(&mut self, extent: Place, key: &[u8], revision: Revision) -> bool {
        let passed = self.last.get_mut(&extent).and_then(|finger| finger.seek(key, revision));
        self.bytes -= passed.unwrap_or_default();
        passed.is_some()
    }

    /// The record under the finger of the extent with its index at `extent`.
    pub(super) fn at(&self, extent: Place) -> Option<Stored<'_>> {
        self.last.get(&extent).map(|finger| Stored::new(&finger.block, finger.position))
    }

    /// Remembers that something was found in the extent with its index at `extent`, and the next blocks.
    pub(super) fn put(
        &mut self,
        extent: Place,
        (block, position): (Arc<Block>, usize),
        ahead: VecDeque<Arc<Block>>,
    ) -> Stored<'_> {
        let before = self.last.remove(&extent);
        self.bytes -= before.as_ref().map_or(0, Finger::bytes);
        if block.len() == 1 {
            return Stored::new(self.alone.insert(block), position);
        }
        let finger = Finger { block, position, ahead, is_used: true };
        if self.bytes + finger.bytes() > BYTES_MAX {
            *self = Self::default();
        }
        self.bytes += finger.bytes();
        let finger = self.last.entry(extent).insert_entry(finger).into_mut();
        Stored::new(&finger.block, finger.position)
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use bytes::Bytes;

    use super::{
        super::block::{Block, BlockBuilder},
        *,
    };
    use crate::{
        Fault, Record,
        disk::sim::SimStorage,
        store::{Options, Store},
    };

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

    fn put(fingers: &mut Fingers, extent: Place, block: &Arc<Block>, key: &[u8], ahead: &[Arc<Block>]) {
        let position = block.find(key, Revision::new(5, 0)).unwrap();
        fingers.put(extent, (Arc::clone(block), position), ahead.iter().cloned().collect());
    }

    #[test]
    fn what_is_held_is_found_before_and_behind_and_bounded_by_bytes() {
        let mut fingers = Fingers::default();
        // In a real store, no two records have the same revision. Here they do, so the next record is always taken.
        let small = block(&["a", "b", "c", "d", "e", "f", "g", "h"], 10);
        put(&mut fingers, extent(0), &small, b"h", &[]);
        let mut seek = |extent, key: &[u8], main| {
            let is_found = fingers.seek(extent, key, Revision::new(main, 0));
            is_found.then(|| fingers.at(extent).unwrap().record().key)
        };
        assert_eq!(seek(extent(0), b"h", 5).unwrap(), "h");
        assert_eq!(seek(extent(0), b"bb", 5), None);
        assert_eq!(seek(extent(0), b"a", 5).unwrap(), "a");
        assert_eq!(seek(extent(0), b"b", 5).unwrap(), "b");
        assert_eq!(seek(extent(0), b"c", 4), None);
        assert_eq!(seek(extent(1), b"c", 5), None);

        let alone = block(&["a"], 1 << 20);
        put(&mut fingers, extent(0), &alone, b"a", &[]);
        assert_eq!((fingers.last.len(), fingers.bytes), (0, 0), "the extent's finger went on to what is not held");
        let large = block(&["a", "b"], 1 << 20);
        for offset in 0..100 {
            put(&mut fingers, extent(offset), &large, b"a", &[]);
            put(&mut fingers, extent(offset), &large, b"a", &[]);
            assert_eq!(fingers.bytes, fingers.last.len() * large.bytes());
            assert!(fingers.bytes <= BYTES_MAX);
        }
    }

    #[test]
    fn blocks_ahead_are_held_until_the_finger_has_passed_them() {
        let revision = Revision::new(5, 0);
        let blocks = [block(&["a", "b"], 10), block(&["c", "d"], 10), block(&["e", "f"], 10)];
        let mut fingers = Fingers::default();
        put(&mut fingers, extent(0), &blocks[0], b"b", &blocks[1..]);
        assert_eq!(fingers.bytes, 3 * blocks[0].bytes());
        assert!(!fingers.seek(extent(0), b"g", revision));
        assert_eq!(fingers.bytes, 3 * blocks[0].bytes(), "whoever looks for something else changes nothing");
        assert!(fingers.seek(extent(0), b"d", revision));
        assert_eq!(fingers.bytes, 2 * blocks[0].bytes());
        assert!(!fingers.seek(extent(0), b"a", revision));
        assert!(fingers.seek(extent(0), b"e", revision));
        assert_eq!(fingers.bytes, blocks[0].bytes());
        put(&mut fingers, extent(0), &blocks[1], b"d", &blocks[2..]);
        assert_eq!(fingers.bytes, 2 * blocks[0].bytes());
    }

    #[test]
    fn what_was_used_since_the_last_call_is_not_forgotten() {
        let revision = Revision::new(5, 0);
        let small = block(&["a", "b"], 10);
        let mut fingers = Fingers::default();
        put(&mut fingers, extent(0), &small, b"a", &[]);
        put(&mut fingers, extent(1), &small, b"a", &[]);
        fingers.forget_unused();
        assert_eq!(fingers.bytes, 2 * small.bytes());
        assert!(fingers.seek(extent(0), b"b", revision));
        fingers.forget_unused();
        assert_eq!(fingers.bytes, small.bytes(), "nothing was found in the other one since");
        assert!(fingers.seek(extent(0), b"a", revision));
        assert!(!fingers.seek(extent(1), b"a", revision));
        fingers.forget_unused();
        fingers.forget_unused();
        assert!(!fingers.seek(extent(0), b"a", revision));
        assert_eq!(fingers.bytes, 0);
    }

    #[test]
    fn blocks_read_ahead_are_taken_though_there_is_no_room_for_more_by_then() {
        let (storage, dir) = (SimStorage::new(1), Path::new("/data"));
        let mut disk = storage.disk();
        let mut store = Store::open(&mut disk, dir, Options::default()).unwrap();
        let mut write = store.mvcc_mut().begin();
        for number in 0..200 {
            write.put(Bytes::from(format!("key {number:03}")), Bytes::from(vec![7; 500]), 0).unwrap();
        }
        drop(write.finish());
        drop(store.mvcc_mut().publish(1, 1));
        let done = store.checkpoint_begin().run(&mut disk).unwrap();
        store.checkpoint_end(done);
        drop(store);

        let store = Store::open(&mut disk, dir, Options::default()).unwrap();
        let view = store.mvcc().view();
        let (key, revision) = (b"key 000", Revision::new(view.revision(), 0));
        let mut fingers = Fingers::default();
        let with_ahead = loop {
            let Err(fault) = view.locate(key, revision, &mut fingers) else { panic!("nothing was in memory") };
            let faults: Vec<Fault> = fault.with_ahead().collect();
            let count = faults.len();
            faults.into_iter().for_each(|fault| crate::load(&mut disk, dir, fault).unwrap());
            if count > 1 {
                break count;
            }
        };
        let large = block(&["a", "b"], AHEAD_BYTES_MAX / 2);
        put(&mut fingers, extent(0), &large, b"a", &[]);
        assert!(!fingers.has_room_ahead());
        assert!(view.locate(key, revision, &mut fingers).unwrap().is_some());
        let held = fingers.last.values().map(|finger| finger.ahead.len()).max();
        assert_eq!(held, Some(with_ahead - 1));
    }
}
