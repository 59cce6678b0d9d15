//! Knows how much of each segment file is live, which files are dead, and when they are removed.
//!
//! Invariants:
//! - `segments[s].live_bytes` is the sum of what the present state reaches in segment `s`: tree pages, the live bytes
//!   of extents, directory chunks, directory root and segment table. It never exceeds `file_bytes`.
//! - A segment that reaches zero live bytes and is written no more is *dead at* the generation that first does without
//!   it. Superblocks of that generation and later do not reach it; older ones may.
//! - A dead file is removed by the checkpoint that writes generation `n` only if it was dead at `n - 2` or before: then
//!   both superblock copies on the medium (`n - 1` and `n - 2`) do without it. And only if no view from before it died
//!   is held: each superseded directory is remembered weakly, and a view keeps its directory alive.
//! - Segment numbers ascend for ever.
//!
//! The stored table leaves out the directory root and itself. Their lengths follow from the superblock, so the table
//! can be encoded before it has a place. `reclaim` decides which segments are emptied.

use std::{collections::BTreeMap, path::Path};

use crate::{Error, Place, disk::Disk, page};

/// One segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentSpace {
    /// Length of the file.
    pub(crate) file_bytes: u32,
    /// Bytes in it that the present state reaches.
    pub(crate) live_bytes: u32,
}

const ENTRY_LEN: usize = 12;

/// A file that the present state does not use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DeadFile {
    pub(crate) segment: u32,
    file_bytes: u64,
    /// Generation of the first state without it.
    generation: u64,
}

/// The segments of the store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Space {
    segments: BTreeMap<u32, SegmentSpace>,
    dead: Vec<DeadFile>,
}

impl Space {
    /// Counts a segment file that was created.
    pub(crate) fn create(&mut self, segment: u32, file_bytes: u32) {
        let before = self.segments.insert(segment, SegmentSpace { file_bytes, live_bytes: 0 });
        assert!(before.is_none(), "a segment number is used once");
    }

    /// Counts `place`, which was written.
    pub(crate) fn add(&mut self, place: Place) {
        self.add_bytes(place.segment, u64::from(place.len));
    }

    /// Counts `bytes` that were written to `segment`.
    pub(crate) fn add_bytes(&mut self, segment: u32, bytes: u64) {
        let entry = self.segments.get_mut(&segment).expect("pages are written to segments of the table");
        let live = u64::from(entry.live_bytes) + bytes;
        assert!(live <= u64::from(entry.file_bytes), "no more is live than the file holds");
        entry.live_bytes = u32::try_from(live).expect("bounded by the file");
    }

    /// Removes `place` from the account: it is not reached any more.
    pub(crate) fn remove(&mut self, place: Place) {
        self.remove_bytes(place.segment, u64::from(place.len));
    }

    /// Removes `bytes` of `segment` from the account: they are not reached any more.
    pub(crate) fn remove_bytes(&mut self, segment: u32, bytes: u64) {
        let entry = self.segments.get_mut(&segment).expect("what dies was live");
        let bytes = u32::try_from(bytes).expect("bounded by the file");
        entry.live_bytes = entry.live_bytes.checked_sub(bytes).expect("what dies was live");
    }

    /// Removes the segments without live bytes from the table, except those that are open for more pages. `generation`
    /// is the first state without them.
    pub(crate) fn bury(&mut self, generation: u64, is_open: impl Fn(u32) -> bool) {
        self.segments.retain(|segment, entry| {
            let is_kept = entry.live_bytes > 0 || is_open(*segment);
            if !is_kept {
                self.dead.push(DeadFile { segment: *segment, file_bytes: u64::from(entry.file_bytes), generation });
            }
            is_kept
        });
    }

    /// Takes in a file that was found at start and that no state of the present generation names.
    pub(crate) fn adopt_dead(&mut self, segment: u32, file_bytes: u64, generation: u64) {
        assert!(!self.segments.contains_key(&segment), "a segment of the table is not dead");
        self.dead.push(DeadFile { segment, file_bytes, generation });
    }

    /// Takes the place of `before` in generation `generation`, the first state without what that holds.
    pub(crate) fn supersede(&mut self, before: Self, generation: u64) {
        // No superblock has named this space before: what is dead here is as dead as what comes from there.
        self.dead.iter_mut().for_each(|dead| dead.generation = generation);
        for (segment, entry) in before.segments {
            self.adopt_dead(segment, u64::from(entry.file_bytes), generation);
        }
        self.dead.extend(before.dead);
    }

    /// Takes out the dead files that may be removed while `generation` is being written. Generation `oldest_view`
    /// superseded the oldest view that is still held. Files that died then or later stay.
    pub(crate) fn take_removable(&mut self, generation: u64, oldest_view: Option<u64>) -> Vec<DeadFile> {
        let (removable, kept) = self.dead.iter().partition(|dead| {
            dead.generation + 2 <= generation && oldest_view.is_none_or(|oldest| dead.generation < oldest)
        });
        self.dead = kept;
        removable
    }

    /// Length of the dead files that can be removed after two more checkpoints. Files that died in generation
    /// `oldest_view` or later do not count, because a held view may read them. **Units** bytes.
    pub(crate) fn aging_bytes(&self, oldest_view: Option<u64>) -> u64 {
        let is_aging = |dead: &&DeadFile| oldest_view.is_none_or(|oldest| dead.generation < oldest);
        self.dead.iter().filter(is_aging).map(|dead| dead.file_bytes).sum()
    }

    /// Puts back a file that could not be removed.
    pub(crate) fn restore_dead(&mut self, dead: DeadFile) {
        self.dead.push(dead);
    }

    /// Files that the present state does not use: number and length.
    pub(crate) fn dead_files(&self) -> impl Iterator<Item = (u32, u64)> {
        self.dead.iter().map(|dead| (dead.segment, dead.file_bytes))
    }

    pub(crate) fn segments(&self) -> &BTreeMap<u32, SegmentSpace> {
        &self.segments
    }

    /// Whether `places`, which the table does not count, fit into its segments.
    pub(crate) fn is_sound(&self, places: &[Place]) -> bool {
        let mut more: BTreeMap<u32, u64> = BTreeMap::new();
        for place in places {
            *more.entry(place.segment).or_default() += u64::from(place.len);
        }
        more.iter().all(|(segment, bytes)| {
            let entry = self.segments.get(segment);
            entry.is_some_and(|entry| u64::from(entry.live_bytes) + bytes <= u64::from(entry.file_bytes))
        })
    }

    /// Length of all files, and the live part of it. **Units** bytes.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        let files: u64 = self.segments.values().map(|segment| u64::from(segment.file_bytes)).sum();
        let dead: u64 = self.dead.iter().map(|dead| dead.file_bytes).sum();
        let live: u64 = self.segments.values().map(|segment| u64::from(segment.live_bytes)).sum();
        (files + dead, live)
    }

    /// Length of the table after `more` segments are added. **Units** bytes.
    pub(crate) fn encoded_bytes(&self, more: usize) -> usize {
        (self.segments.len() + more) * ENTRY_LEN
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for (segment, entry) in &self.segments {
            for word in [*segment, entry.file_bytes, entry.live_bytes] {
                out.extend_from_slice(&word.to_le_bytes());
            }
        }
    }

    /// The table in `payload`; `None` if it is not one.
    pub(crate) fn decode(payload: &[u8]) -> Option<Self> {
        let (entries, rest) = payload.as_chunks::<ENTRY_LEN>();
        let mut space = Self::default();
        for entry in entries {
            let word = |at: usize| u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]);
            let (number, segment) = (word(0), SegmentSpace { file_bytes: word(4), live_bytes: word(8) });
            let is_sound = number > 0
                && segment.live_bytes <= segment.file_bytes
                && space.segments.last_key_value().is_none_or(|(last, _)| *last < number);
            if !is_sound {
                return None;
            }
            space.segments.insert(number, segment);
        }
        rest.is_empty().then_some(space)
    }
}

/// Numbers of the segment files, ascending.
pub(crate) fn segment_files(disk: &mut dyn Disk, pages_dir: &Path) -> Result<Vec<u32>, Error> {
    let mut files: Vec<u32> = disk.list(pages_dir)?.iter().filter_map(|name| segment_number(name)).collect();
    files.sort_unstable();
    Ok(files)
}

fn segment_number(name: &str) -> Option<u32> {
    let number: u32 = name.strip_suffix(".seg")?.parse().ok()?;
    // Only the exact name that this number gets counts: "+1.seg" is none of ours.
    (page::segment_path(number).file_name()?.to_str()? == name && number > 0).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dead_file_outlives_both_superblocks_and_every_view_that_reach_it() {
        let mut space = Space::default();
        space.create(1, 8192);
        space.create(2, 8192);
        let place = Place { segment: 1, offset: 0, len: 100 };
        space.add(place);
        space.bury(4, |segment| segment == 2);
        assert_eq!(space.segments().len(), 2);
        space.remove(place);
        space.bury(5, |segment| segment == 2);
        assert_eq!(space.segments().keys().copied().collect::<Vec<_>>(), [2]);
        assert_eq!(space.sizes(), (16384, 0));
        assert_eq!(space.take_removable(6, None), []);
        assert_eq!(space.take_removable(7, Some(5)), []);
        assert_eq!(space.take_removable(7, Some(6)).len(), 1);
        assert_eq!(space.sizes(), (8192, 0));
    }

    #[test]
    fn the_table_survives_its_encoding_and_unsound_ones_are_refused() {
        let mut space = Space::default();
        (1..5).for_each(|segment| space.create(segment, 4096 * segment));
        space.add_bytes(3, 77);
        let mut payload = Vec::new();
        space.encode(&mut payload);
        assert_eq!(payload.len(), space.encoded_bytes(0));
        assert_eq!(Space::decode(&payload).unwrap().segments, space.segments);
        assert!(Space::decode(&payload[..payload.len() - 1]).is_none());
        assert!(Space::decode(&[&payload[12..], &payload[..12]].concat()).is_none());
        payload[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(Space::decode(&payload).is_none());
    }
}
