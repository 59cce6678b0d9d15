//! Decodes bytes from a medium, which may hold anything, as each structure of the page store. The fuzz targets call it.
//!
//! One property holds for all structures: decoding never panics, whatever the bytes are. And what it accepts is what
//! the engine itself would write, so that reading it later cannot fail. `wal::decode_hostile` does the same for the
//! log. Nothing else calls this.

use std::sync::Arc;

use crate::{
    Place,
    extent::{self, Chunk},
    pages::{Space, Superblock},
    tree::Node,
};

/// Decodes `bytes` as a tree page. True if they were one.
pub fn tree_page(bytes: &[u8]) -> bool {
    let Ok(node) = Node::decode(bytes, &Arc::default()) else { return false };
    match &node {
        Node::Leaf(leaf) => {
            for position in 0..leaf.len() {
                let (key, meta) = (leaf.key(position), leaf.meta(position));
                assert_eq!(leaf.lower_bound(&key, meta.revision), position, "an entry is found where it is");
                assert!(leaf.is_of(position, &key) && leaf.value(position).len() <= bytes.len());
                let (live, _) = leaf.live_before(position);
                assert_eq!(live, leaf.live_count_before(position), "two ways to count");
            }
            let swept = leaf.swept(i64::MAX - 1, |_| {});
            assert!(swept.len() <= leaf.len() && swept.sums().live == leaf.sums().live, "no live entry is dropped");
        }
        Node::Inner(inner) => {
            for (position, (key, revision)) in inner.separators().iter().enumerate() {
                assert_eq!(inner.child_of(key, revision), position + 1, "a separator begins its right child");
            }
        }
    }
    let mut once = Vec::new();
    node.encode(&mut once);
    let again = Node::decode(&once, &Arc::default()).expect("what is written can be read");
    assert_eq!(again.sums(), node.sums());
    let mut twice = Vec::new();
    again.encode(&mut twice);
    assert_eq!(once, twice, "a page has one form");
    true
}

/// Decodes `bytes` as a block of records. True if they were one.
pub fn record_block(bytes: &[u8]) -> bool {
    let Some(written) = extent::rewritten_block(bytes) else { return false };
    assert_eq!(written, bytes, "a block has one form");
    true
}

/// Decodes `bytes` as the index of an extent. True if they were one.
pub fn extent_index(bytes: &[u8]) -> bool {
    let Some(written) = extent::rewritten_index(bytes) else { return false };
    assert_eq!(written, bytes, "an index has one form");
    true
}

/// Decodes `bytes` as a chunk of the directory. True if they were one.
pub fn directory_chunk(bytes: &[u8]) -> bool {
    let Some(chunk) = Chunk::decode(Place { segment: 1, offset: 0, len: 1 }, bytes) else { return false };
    let mut out = Vec::new();
    chunk.encode(&mut out);
    assert_eq!(out, bytes, "a chunk has one form");
    true
}

/// Decodes `bytes` as the table of segments. True if they were one.
pub fn segment_table(bytes: &[u8]) -> bool {
    let Some(space) = Space::decode(bytes) else { return false };
    let mut out = Vec::new();
    space.encode(&mut out);
    assert_eq!(out, bytes, "a table has one form");
    let (files, live) = space.sizes();
    assert!(live <= files, "no more is live than there is");
    true
}

/// Decodes `bytes` as a copy of the superblock, after its checksum was corrected. True if they were one.
pub fn superblock(bytes: &[u8]) -> bool {
    let Some(state) = Superblock::decode_resealed(bytes) else { return false };
    assert_eq!(Superblock::decode_resealed(&state.encode()), Some(state), "what is written can be read");
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mvcc, Record, Revision, disk::sim::Random};

    type Target = fn(&[u8]) -> bool;

    /// The pages of a small tree.
    fn pages() -> Vec<Vec<u8>> {
        let mut mvcc = Mvcc::in_memory();
        for number in 0..900_u16 {
            let mut write = mvcc.begin();
            let key = format!("/registry/{:04}", number % 600).into_bytes();
            drop(write.put(key.into(), "value".into(), i64::from(number % 3)).unwrap());
            if number.is_multiple_of(7) {
                drop(write.delete(b"/registry/0100").unwrap());
            }
            drop(write.finish());
        }
        drop(mvcc.publish(1, 1));
        let root = mvcc.seal_for_checkpoint().roots.key_root.node().unwrap();
        let mut pages = Vec::new();
        for (offset, slot) in root.children().enumerate() {
            let mut page = Vec::new();
            slot.node().unwrap().encode(&mut page);
            pages.push(page);
            let offset = u32::try_from(64 * offset).unwrap();
            slot.set_place(Place { segment: 1, offset, len: 64 });
        }
        let mut page = Vec::new();
        root.encode(&mut page);
        pages.push(page);
        assert!(pages.len() > 3, "a root and its leaves");
        pages
    }

    fn block() -> Vec<u8> {
        let mut builder = extent::BlockBuilder::default();
        for main in (1..6).rev() {
            let is_tombstone = main == 3;
            builder.push(&Record {
                key: "key".into(),
                value: if is_tombstone { "".into() } else { "value".into() },
                create_revision: if is_tombstone { 0 } else { 1 },
                revision: Revision::new(main, 0),
                version: if is_tombstone { 0 } else { main },
                lease: 0,
                is_tombstone,
            });
        }
        let mut out = Vec::new();
        builder.finish(&mut out);
        out
    }

    /// Sound bytes of each structure.
    fn samples() -> Vec<(Target, Vec<u8>)> {
        let mut samples: Vec<(Target, Vec<u8>)> = pages().into_iter().map(|page| (tree_page as Target, page)).collect();
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        samples.push((record_block, block()));
        // The length and fence of each block: nothing, then a key, then a version of that key.
        let index = words(&[3, 16, 22, 29]).into_iter().chain(*b"\x40\0\0\0\0\0\x50\0\0\0\0\0k\x60\0\0\0\x05\x01k");
        samples.push((extent_index, index.collect()));
        samples.push((extent_index, words(&[1, 8, 100]).into_iter().chain([0, 0]).collect()));
        // First and last revision, the place of the index, then records and bytes: first all, then the live ones.
        samples.push((directory_chunk, words(&[1, 0, 0, 0, 9, 0, 0, 0, 3, 4096, 64, 9, 5, 1000, 500])));
        samples.push((segment_table, words(&[1, 4096, 77, 2, 4096, 0])));
        // Magic, format, store, generation, next segment, revision, compact revision, applied entry.
        samples.push((superblock, words(&[0, 0, 0, 1, 7, 7, 1, 0, 1, 0, 1])));
        samples
    }

    #[test]
    fn sound_samples_are_accepted_and_changed_ones_never_panic() {
        let mut random = Random::new(11);
        for (target, sample) in samples() {
            assert!(target(&sample), "{sample:?}");
            for _ in 0..4000 {
                let mut bytes = sample.clone();
                for _ in 0..1 + random.below(3) {
                    let at = usize::try_from(random.below(bytes.len() as u64 + 1)).unwrap();
                    let byte = random.bits().to_le_bytes()[0];
                    match bytes.get_mut(at) {
                        Some(changed) if random.below(2) == 0 => *changed = byte,
                        _ => bytes.insert(at, byte),
                    }
                }
                target(&bytes);
            }
        }
    }
}
