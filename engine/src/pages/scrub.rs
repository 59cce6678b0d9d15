//! Reads a page store again while it is in use, to find what its medium no longer holds as it was written.
//!
//! Invariants:
//! - It reads the newest durable state, as a start would: from the superblock down, and never from memory. It shares
//!   nothing with the process that uses the store but `Unreadable`, and it changes nothing.
//! - What that state reaches is not removed before the state has two successors (`space`). So a read that fails while
//!   the state is the newest shows damage. If there is a newer one by then, the step is done again.
//! - Each step reads at least one page more than the way to it, and about `bytes_max`. A position is a key or a
//!   revision, so it stays valid while the store changes.
//! - Memory holds the pages on the way to one leaf, one extent, and the chunks of the directory.
//!
//! What lies below a page that cannot be read is passed by. It chooses no pace, and does not read the log
//! (`wal::Scrub` does).

use std::{collections::BTreeMap, path::Path, path::PathBuf, sync::Arc};

use super::{
    reader::{load, read_table},
    superblock::{self, Pages, Superblock},
};
use crate::{
    Error, Fault, Place, Revision, Unreadable,
    disk::{BLOCK, Disk, FileOp},
    extent::{BlockCache, Chunk, Extent},
    page::Kind,
    tree::{Node, Separator, Slot},
};

/// How often a step is done again because a checkpoint has ended meanwhile. What fails then is left to the next round.
const TRIES: usize = 3;
/// Bytes of a key in a position, at most. A longer one is cut: the position then lies a little before it.
const KEY_BYTES_MAX: usize = 64 << 10;

/// Where a scrub goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Position {
    /// At its beginning: the superblock and the tables.
    Tables,
    /// In the key tree, at this version of a key.
    Keys(Vec<u8>, Revision),
    /// In the meta tree, at this key.
    Meta(Vec<u8>, Revision),
    /// At the records from this revision on.
    Records(Revision),
}

/// The beginning of a tree.
const TREE_START: (Vec<u8>, Revision) = (Vec::new(), Revision::MAX);

impl Position {
    /// One line of text, for a file.
    pub fn encode(&self) -> String {
        let tree = |name: &str, key: &[u8], revision: Revision| {
            let key: String = key.iter().take(KEY_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
            format!("{name} {} {} x{key}", revision.main, revision.sub)
        };
        match self {
            Self::Tables => "tables".to_owned(),
            Self::Keys(key, revision) => tree("keys", key, *revision),
            Self::Meta(key, revision) => tree("meta", key, *revision),
            Self::Records(revision) => format!("records {} {}", revision.main, revision.sub),
        }
    }

    /// The inverse of [`Position::encode`]; `None` for anything else.
    pub fn decode(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split(' ').collect();
        let revision = |main: &str, sub: &str| Some(Revision { main: main.parse().ok()?, sub: sub.parse().ok()? });
        match *words {
            ["tables"] => Some(Self::Tables),
            ["keys", main, sub, key] => Some(Self::Keys(bytes_of(key)?, revision(main, sub)?)),
            ["meta", main, sub, key] => Some(Self::Meta(bytes_of(key)?, revision(main, sub)?)),
            ["records", main, sub] => Some(Self::Records(revision(main, sub)?)),
            _ => None,
        }
    }
}

/// The bytes of `x` and hexadecimal digits.
fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = hex.strip_prefix('x')?.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok();
    rest.is_empty().then(|| pairs.iter().map(byte).collect()).flatten()
}

/// What a step has found.
#[derive(Debug)]
pub struct Step {
    /// Bytes that were read.
    pub bytes: u64,
    /// What cannot be read, or is not as it was written, and was not known yet.
    pub damage: Vec<Error>,
    /// Where to go on; `None` at the end of the store.
    pub next: Option<Position>,
}

/// The scrub of one store.
#[derive(Debug)]
pub struct Scrub {
    dir: PathBuf,
    unreadable: Arc<Unreadable>,
    /// The chunks of the directory that were read in this round.
    chunks: BTreeMap<Place, Arc<Chunk>>,
}

impl Scrub {
    /// A scrub of the store in `dir`. It notes in `unreadable` what it cannot read, and what can be read again.
    pub fn new(dir: &Path, unreadable: Arc<Unreadable>) -> Self {
        Self { dir: dir.to_path_buf(), unreadable, chunks: BTreeMap::new() }
    }

    /// Reads about `bytes_max` bytes at `from`. Blocks.
    ///
    /// **Errors** the disk takes no operations. What cannot be read is no error of the step.
    pub fn step(&mut self, disk: &mut dyn Disk, from: &Position, bytes_max: u64) -> Result<Step, Error> {
        let mut bytes = 0;
        let mut next = None;
        for _ in 0..TRIES {
            let before = superblock::peek(disk, &self.dir)?;
            let mut reading = Reading::new(disk, &self.dir, bytes_max);
            next = reading.read(&mut self.chunks, from, &before)?;
            let Reading { read, ends, .. } = reading;
            bytes += read;
            let has_failed = ends.iter().any(|(_, end)| end.is_err());
            if has_failed && newest(&superblock::peek(disk, &self.dir)?) != newest(&before) {
                continue;
            }
            if next.is_none() {
                self.chunks.clear();
            }
            return Ok(Step { bytes, damage: self.note(ends), next });
        }
        Ok(Step { bytes, damage: Vec::new(), next })
    }

    /// Notes the ends of reads. Returns the failures that are new.
    fn note(&self, ends: Vec<(Option<Place>, Result<(), Error>)>) -> Vec<Error> {
        let mut news = Vec::new();
        for (place, end) in ends {
            let is_news = place.is_none_or(|place| self.unreadable.note(place, &end));
            news.extend(end.err().filter(|_| is_news));
        }
        news
    }
}

/// The newest valid copy.
fn newest(copies: &[Option<Superblock>; 2]) -> Option<&Superblock> {
    copies.iter().flatten().max_by_key(|state| state.generation)
}

/// One try of a step.
struct Reading<'a> {
    disk: &'a mut dyn Disk,
    dir: &'a Path,
    read: u64,
    bytes_max: u64,
    /// The end of each read, with the page that it was of.
    ends: Vec<(Option<Place>, Result<(), Error>)>,
}

impl<'a> Reading<'a> {
    fn new(disk: &'a mut dyn Disk, dir: &'a Path, bytes_max: u64) -> Self {
        Self { disk, dir, read: 0, bytes_max, ends: Vec::new() }
    }

    fn is_full(&self) -> bool {
        self.read >= self.bytes_max
    }

    /// Takes in the end of a read; `None` if it failed.
    fn end<T>(&mut self, place: Option<Place>, result: Result<T, Error>) -> Result<Option<T>, Error> {
        self.read += place.map_or(BLOCK as u64, |place| u64::from(place.len));
        match result {
            Ok(value) => {
                self.ends.push((place, Ok(())));
                Ok(Some(value))
            }
            Err(error @ (Error::Corrupt { .. } | Error::Io { op: FileOp::Read | FileOp::Open, .. })) => {
                self.ends.push((place, Err(error)));
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn read(
        &mut self,
        chunks: &mut BTreeMap<Place, Arc<Chunk>>,
        from: &Position,
        copies: &[Option<Superblock>; 2],
    ) -> Result<Option<Position>, Error> {
        let state = newest(copies).copied();
        if *from == Position::Tables {
            self.superblock(copies)?;
        }
        let Some(pages) = state.and_then(|state| state.pages) else { return Ok(None) };
        match from {
            Position::Tables => {
                self.table(Kind::SegmentTable, pages.segments)?;
                self.table(Kind::DirectoryRoot, pages.directory)?;
                Ok(Some(Position::Keys(TREE_START.0, TREE_START.1)))
            }
            Position::Keys(key, revision) => {
                let next = self.tree(pages.key_root, key, *revision)?;
                let next = next.map(|next| Position::Keys(next.key, next.revision));
                Ok(Some(next.unwrap_or(Position::Meta(TREE_START.0, TREE_START.1))))
            }
            Position::Meta(key, revision) => {
                let next = self.tree(pages.meta_root, key, *revision)?;
                let next = next.map(|next| Position::Meta(next.key, next.revision));
                Ok(Some(next.unwrap_or(Position::Records(Revision::MIN))))
            }
            Position::Records(from) => Ok(self.records(chunks, &pages, *from)?.map(Position::Records)),
        }
    }

    /// Judges the copies of the superblock. A store that had no checkpoint has only one.
    fn superblock(&mut self, copies: &[Option<Superblock>; 2]) -> Result<(), Error> {
        let generation = newest(copies).map_or(0, |state| state.generation);
        for (copy, state) in (0..).zip(copies) {
            let is_expected = generation != 1 || copy == generation % 2;
            let offset = copy * superblock::COPY_STRIDE;
            let damaged = || Error::corrupt(&superblock::path(self.dir), offset, "a copy of the superblock");
            let result = if state.is_some() || !is_expected { Ok(()) } else { Err(damaged()) };
            self.end(None, result)?;
        }
        Ok(())
    }

    fn table(&mut self, kind: Kind, place: Place) -> Result<Option<Vec<u8>>, Error> {
        let table = read_table(self.disk, self.dir, kind, place);
        self.end(Some(place), table)
    }

    /// Reads the pages of the tree at `root` from `key` on. Returns where to go on.
    fn tree(&mut self, root: Place, key: &[u8], revision: Revision) -> Result<Option<Separator>, Error> {
        // These slots are its own, so that nothing is taken from memory, and each page goes when it was checked.
        let from = Separator { key: key.to_vec(), revision };
        self.below(&Slot::on_disk(root, &Arc::default()), Some(&from))
    }

    fn below(&mut self, slot: &Arc<Slot>, from: Option<&Separator>) -> Result<Option<Separator>, Error> {
        let Some(node) = self.node(slot)? else { return Ok(None) };
        let Node::Inner(inner) = &*node else { return Ok(None) };
        let first = from.map_or(0, |from| inner.child_of(&from.key, from.revision));
        let separators = inner.separators();
        for (position, child) in inner.children().iter().enumerate().skip(first) {
            let child = Slot::on_disk(child.slot.place().expect("read from disk"), slot.residency());
            if let Some(next) = self.below(&child, from.filter(|_| position == first))? {
                return Ok(Some(next));
            }
            if self.is_full() && position < separators.len() {
                return Ok(Some(separators.get(position)));
            }
        }
        Ok(None)
    }

    fn node(&mut self, slot: &Arc<Slot>) -> Result<Option<Arc<Node>>, Error> {
        match slot.node() {
            Ok(node) => Ok(Some(node)),
            Err(fault) => {
                let loaded = self.load(fault)?;
                Ok(loaded.map(|()| slot.node().unwrap_or_else(|_| unreachable!("it was loaded into this slot"))))
            }
        }
    }

    fn load(&mut self, fault: Fault) -> Result<Option<()>, Error> {
        let place = fault.place();
        let result = load(self.disk, self.dir, fault);
        self.end(Some(place), result)
    }

    /// Reads the extents from revision `from` on. Returns where to go on.
    fn records(
        &mut self,
        chunks: &mut BTreeMap<Place, Arc<Chunk>>,
        pages: &Pages,
        from: Revision,
    ) -> Result<Option<Revision>, Error> {
        let Some(root) = self.table(Kind::DirectoryRoot, pages.directory)? else { return Ok(None) };
        let (places, _) = root.as_chunks::<{ Place::ENCODED_LEN }>();
        let places: Vec<Place> = places.iter().filter_map(|bytes| Place::from_bytes(*bytes)).collect();
        let held: BTreeMap<_, _> = std::mem::take(chunks);
        chunks.extend(places.iter().filter_map(|place| Some((*place, Arc::clone(held.get(place)?)))));
        drop(held);
        for place in places {
            let chunk = match chunks.get(&place) {
                Some(chunk) => Arc::clone(chunk),
                None => match self.chunk(place)? {
                    Some(chunk) => chunk,
                    None => continue,
                },
            };
            let next = self.extents(chunk.extents(), from)?;
            chunks.insert(place, chunk);
            if next.is_some() {
                return Ok(next);
            }
        }
        Ok(None)
    }

    fn chunk(&mut self, place: Place) -> Result<Option<Arc<Chunk>>, Error> {
        let payload = read_table(self.disk, self.dir, Kind::DirectoryChunk, place);
        let malformed = || Error::corrupt(&self.dir.join(place.path()), place.offset.into(), "malformed table");
        let chunk = payload.and_then(|payload| Chunk::decode(place, &payload).ok_or_else(malformed));
        self.end(Some(place), chunk)
    }

    fn extents(&mut self, extents: &[Extent], from: Revision) -> Result<Option<Revision>, Error> {
        for extent in extents.iter().filter(|extent| extent.last >= from) {
            if let Err(fault) = BlockCache::new(0).whole(extent) {
                self.load(fault)?;
            }
            if self.is_full() {
                return Ok(Some(Revision { main: extent.last.main, sub: extent.last.sub + 1 }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_is_read_from_what_it_writes_and_from_nothing_else() {
        let revision = Revision { main: 7, sub: 3 };
        for position in [
            Position::Tables,
            Position::Keys(TREE_START.0, TREE_START.1),
            Position::Keys(b"a \n\xff".to_vec(), revision),
            Position::Meta(b"m".to_vec(), Revision::MAX),
            Position::Records(revision),
        ] {
            assert_eq!(Position::decode(&position.encode()), Some(position));
        }
        for other in ["", "tables ", "keys 1 2", "keys 1 2 3 xa", "keys 1 2 xaz", "records 1", "records x 1", "log"] {
            assert_eq!(Position::decode(other), None, "{other:?}");
        }
    }
}
