//! Runs on: main thread, offline.
//!
//! Reads a bbolt file: its buckets, and the keys of a bucket in order.
//!
//! It accepts what bbolt accepts: any page size, either meta page as the newer one, buckets inside a leaf, nodes over
//! several pages, free pages in a list or not, anything after the high-water mark.
//!
//! Invariants:
//! - An unsound page or element is `Corrupt`, with the offset of its page. Nothing panics.
//! - Every walk ends: a cursor visits no more pages than the file has, and keys that do not ascend are `Corrupt`.
//! - Memory holds the nodes from the root to the current leaf, and `chunks`, which `CHUNKS_MAX` bounds.
//!
//! It takes no lock. If another process may write the file, the caller takes the file's lock first.

use std::{collections::VecDeque, path::Path};

use bytes::Bytes;
use engine::Error;

use super::page::{
    BRANCH, BUCKET_LEN, HEADER_LEN, Header, LEAF, META_LEN, Meta, NO_FREELIST, PAGE_SIZE_MAX, PAGE_SIZE_MIN,
    branch_element, leaf_element, long,
};
use crate::etcd_files::source::Source;

/// Bytes that are read at once. **Units** bytes.
const CHUNK_BYTES: usize = 128 << 10;
/// Chunks that are kept. Neighbouring pages of a bucket need not be neighbours in the file.
const CHUNKS_MAX: usize = 64;
/// Levels of a tree, at most. With two children for each branch, so many levels have more pages than a file.
const DEPTH_MAX: usize = 64;

/// A bbolt file.
pub struct BoltFile<S> {
    source: S,
    meta: Meta,
    /// Chunks by number. The one used last is at the back.
    chunks: VecDeque<(u64, Vec<u8>)>,
    /// The pages that were reached, one bit for each; `None` if reached pages are not noted.
    reached: Option<Vec<u64>>,
}

/// A bucket's place.
#[derive(Clone, Debug)]
pub enum Bucket {
    /// The page of its root.
    Root(u64),
    /// The bucket is in this one leaf.
    Inline(Bytes),
}

impl<S: Source> BoltFile<S> {
    /// Finds the newer valid meta page.
    ///
    /// **Errors** `Corrupt` if there is none.
    pub fn open(mut source: S) -> Result<Self, Error> {
        let mut newest: Option<Meta> = None;
        let sizes = (PAGE_SIZE_MIN.ilog2()..=PAGE_SIZE_MAX.ilog2()).map(|exponent| 1_u64 << exponent);
        for offset in std::iter::once(0).chain(sizes) {
            let Some(meta) = Meta::decode(&source.read(offset, META_LEN)?) else { continue };
            // At the place of another page size, the content of a page may look like a second meta page.
            let is_placed = offset == 0 || u64::from(meta.page_size) == offset;
            let agrees = newest.is_none_or(|newest| newest.page_size == meta.page_size && newest.txid < meta.txid);
            if is_placed && agrees {
                newest = Some(meta);
            }
        }
        let meta = newest.ok_or_else(|| Error::corrupt(source.path(), 0, "no valid meta page of a bbolt file"))?;
        if meta.high_water * u64::from(meta.page_size) > source.bytes() {
            return Err(Error::corrupt(source.path(), source.bytes(), "the file is cut short"));
        }
        Ok(Self { source, meta, chunks: VecDeque::new(), reached: None })
    }

    /// The meta page of the file.
    pub fn meta(&self) -> &Meta {
        &self.meta
    }

    /// The name of the file in error texts.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// From now on, notes which pages are reached. A page that is reached twice is `Corrupt`. [`BoltFile::check_free`]
    /// then checks the pages that were not reached.
    pub fn note_reached(&mut self) {
        let pages = usize::try_from(self.meta.high_water).expect("pages of a file that is there");
        self.reached = Some(vec![0; pages.div_ceil(64)]);
    }

    fn damaged(&self, page: u64, what: &'static str) -> Error {
        let offset = page.saturating_mul(u64::from(self.meta.page_size));
        Error::corrupt(self.source.path(), offset, what)
    }

    /// Reads bytes at a place inside of the file.
    fn read(&mut self, mut offset: u64, mut len: usize) -> Result<Vec<u8>, Error> {
        let mut out = Vec::with_capacity(len.min(CHUNK_BYTES));
        while len > 0 {
            let number = offset / CHUNK_BYTES as u64;
            let skipped = usize::try_from(offset % CHUNK_BYTES as u64).expect("less than a chunk");
            let chunk = self.chunk(number)?;
            let part = chunk.get(skipped..).unwrap_or_default();
            let part = &part[..part.len().min(len)];
            if part.is_empty() {
                return Err(Error::corrupt(self.source.path(), offset, "the file is cut short"));
            }
            out.extend_from_slice(part);
            offset += part.len() as u64;
            len -= part.len();
        }
        Ok(out)
    }

    fn chunk(&mut self, number: u64) -> Result<&[u8], Error> {
        let kept = self.chunks.iter().position(|(at, _)| *at == number);
        let chunk = match kept.and_then(|at| self.chunks.remove(at)) {
            Some(chunk) => chunk,
            None => {
                if self.chunks.len() == CHUNKS_MAX {
                    self.chunks.pop_front();
                }
                (number, self.source.read(number * CHUNK_BYTES as u64, CHUNK_BYTES)?)
            }
        };
        self.chunks.push_back(chunk);
        Ok(&self.chunks.back().expect("just put there").1)
    }

    /// The node at a page: all of its pages.
    fn node(&mut self, page: u64) -> Result<(Header, Bytes), Error> {
        let size = u64::from(self.meta.page_size);
        if page < 2 || page >= self.meta.high_water {
            return Err(self.damaged(page, "a page outside of the file is named"));
        }
        let header = self.read(page * size, HEADER_LEN)?;
        let header = Header::decode(&header).expect("read whole");
        if header.id != page {
            return Err(self.damaged(page, "a page carries another number"));
        }
        let end = page + 1 + u64::from(header.overflow);
        if end > self.meta.high_water {
            return Err(self.damaged(page, "a page reaches past the end"));
        }
        self.reach(page, end)?;
        let len = usize::try_from((end - page) * size).expect("part of a file that is there");
        Ok((header, self.read(page * size, len)?.into()))
    }

    fn reach(&mut self, page: u64, end: u64) -> Result<(), Error> {
        for page in page..end {
            let Some(reached) = &mut self.reached else { return Ok(()) };
            let at = usize::try_from(page / 64).expect("below the high-water mark");
            if reached[at] >> (page % 64) & 1 == 1 {
                return Err(self.damaged(page, "a page is used twice"));
            }
            reached[at] |= 1 << (page % 64);
        }
        Ok(())
    }

    /// Checks that every page that was not reached is free, as bbolt's own check does. If the file has no list of free
    /// pages, every other page is free.
    ///
    /// **Errors** `Corrupt`.
    pub fn check_free(&mut self) -> Result<(), Error> {
        let list = self.meta.freelist;
        if list == NO_FREELIST {
            return Ok(());
        }
        let (header, node) = self.node(list)?;
        let count = |at| long(&node, at).and_then(|count| usize::try_from(count).ok());
        // The first word of a list with a length beyond 16 bits is its length.
        let (first, count) = match header.count {
            u16::MAX => (HEADER_LEN + 8, count(HEADER_LEN)),
            count => (HEADER_LEN, Some(count.into())),
        };
        let end = count.and_then(|count| count.checked_mul(8)?.checked_add(first)).filter(|end| *end <= node.len());
        let Some(end) = end else { return Err(self.damaged(list, "the free list is malformed")) };
        for at in (first..end).step_by(8) {
            let page = long(&node, at).expect("inside of the list");
            if page < 2 || page >= self.meta.high_water {
                return Err(self.damaged(list, "a page outside of the file is free"));
            }
            self.reach(page, page + 1)?;
        }
        let Some(reached) = &self.reached else { return Ok(()) };
        let is_reached = |page: &u64| {
            let at = usize::try_from(page / 64).expect("below the high-water mark");
            reached[at] >> (page % 64) & 1 == 1
        };
        match (2..self.meta.high_water).find(|page| !is_reached(page)) {
            Some(page) => Err(self.damaged(page, "a page is neither used nor free")),
            None => Ok(()),
        }
    }

    /// The buckets, by name.
    ///
    /// **Errors** `Corrupt`.
    pub fn buckets(&mut self) -> Result<Vec<(Bytes, Bucket)>, Error> {
        let mut cursor = self.cursor(&Bucket::Root(self.meta.root));
        let mut buckets = Vec::new();
        while let Some(entry) = cursor.next_of_any(self)? {
            if !entry.is_bucket {
                return Err(self.damaged(self.meta.root, "a key outside of the buckets"));
            }
            let root = long(&entry.value, 0).filter(|_| entry.value.len() >= BUCKET_LEN);
            let bucket = match root {
                None => return Err(self.damaged(self.meta.root, "a bucket is cut short")),
                Some(0) => Bucket::Inline(entry.value.slice(BUCKET_LEN..)),
                Some(root) => Bucket::Root(root),
            };
            buckets.push((entry.key, bucket));
        }
        Ok(buckets)
    }

    /// The keys of a bucket, in order.
    pub fn cursor(&self, bucket: &Bucket) -> Cursor {
        Cursor { next: Some(bucket.clone()), stack: Vec::new(), last: Bytes::new(), pages_left: self.meta.high_water }
    }
}

/// A key and its value. They share the node's memory.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: Bytes,
    /// Its value.
    pub value: Bytes,
    is_bucket: bool,
}

#[derive(Debug)]
struct Level {
    page: u64,
    header: Header,
    node: Bytes,
    position: usize,
}

/// Walks over a bucket.
#[derive(Debug)]
pub struct Cursor {
    /// Where to go down next.
    next: Option<Bucket>,
    stack: Vec<Level>,
    last: Bytes,
    pages_left: u64,
}

impl Cursor {
    /// The next key.
    ///
    /// **Errors** `Corrupt`; a bucket inside of this one is an error too.
    pub fn next<S: Source>(&mut self, file: &mut BoltFile<S>) -> Result<Option<Entry>, Error> {
        let entry = self.next_of_any(file)?;
        if entry.as_ref().is_some_and(|entry| entry.is_bucket) {
            return Err(file.damaged(self.page(), "a bucket inside of a bucket"));
        }
        Ok(entry)
    }

    fn page(&self) -> u64 {
        self.stack.last().map_or(0, |level| level.page)
    }

    fn next_of_any<S: Source>(&mut self, file: &mut BoltFile<S>) -> Result<Option<Entry>, Error> {
        loop {
            if let Some(bucket) = self.next.take() {
                self.descend(file, bucket)?;
            }
            let Some(level) = self.stack.last_mut() else { return Ok(None) };
            if level.position == usize::from(level.header.count) {
                self.stack.pop();
                continue;
            }
            let position = level.position;
            level.position += 1;
            if level.header.flags & BRANCH != 0 {
                let Some(element) = branch_element(&level.node, position) else {
                    return Err(file.damaged(level.page, "an element of a branch is malformed"));
                };
                self.next = Some(Bucket::Root(element.child));
                continue;
            }
            let Some(element) = leaf_element(&level.node, position) else {
                return Err(file.damaged(level.page, "an element of a leaf is malformed"));
            };
            if *element.key <= *self.last {
                return Err(file.damaged(level.page, "keys do not ascend"));
            }
            let (key, value) = (level.node.slice_ref(element.key), level.node.slice_ref(element.value));
            self.last = key.clone();
            return Ok(Some(Entry { key, value, is_bucket: element.is_bucket }));
        }
    }

    fn descend<S: Source>(&mut self, file: &mut BoltFile<S>, bucket: Bucket) -> Result<(), Error> {
        let (page, header, node) = match bucket {
            Bucket::Inline(node) => {
                let header = Header::decode(&node).filter(|header| header.flags & LEAF != 0);
                (0, header.ok_or_else(|| file.damaged(0, "a bucket's own leaf is malformed"))?, node)
            }
            Bucket::Root(page) => {
                let (header, node) = file.node(page)?;
                let pages = 1 + u64::from(header.overflow);
                if self.pages_left < pages || self.stack.len() == DEPTH_MAX {
                    return Err(file.damaged(page, "pages name one another in a circle"));
                }
                self.pages_left -= pages;
                (page, header, node)
            }
        };
        if header.flags != BRANCH && header.flags != LEAF {
            return Err(file.damaged(page, "a page is neither branch nor leaf"));
        }
        self.stack.push(Level { page, header, node, position: 0 });
        Ok(())
    }
}
