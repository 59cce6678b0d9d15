//! Runs on: connection core.
//!
//! Writes a bbolt file from front to back. Buckets with their keys in order go in, and pages come out.
//!
//! The meta pages come first, and they name the root and the number of pages. So the content is passed twice to stream
//! a file. A [`FileWriter::measuring`] keeps no bytes and ends in a [`Layout`]. A writer made from that layout writes
//! the file. Both run the same code, so the same content gives the same layout.
//!
//! Invariants:
//! - Memory is bounded by one node for each level of the tree, and by the bytes that `take` has not taken yet.
//! - Every page below the high-water mark is reachable from the root, so the file needs no free list.
//! - The keys of a bucket ascend strictly. Each bucket is written whole before the next one begins.
//!
//! A node is up to `NODE_BYTES` long and takes as many pages as it needs. So there are few branches, and each branch
//! follows its children at once.

use std::collections::BTreeMap;

use super::page::{BRANCH, BUCKET, BUCKET_LEN, ELEMENT_LEN, HEADER_LEN, Header, LEAF, Meta, NO_FREELIST};

/// Size of a page in most of etcd's files. It is the size of memory pages on etcd's machines. **Units** bytes.
pub const PAGE_SIZE: usize = 4096;
/// Length at which a node is closed. A single element may be longer. **Units** bytes.
const NODE_BYTES: usize = 64 << 10;
/// A bucket that takes at most this part of a page is stored in the leaf that names it. **Source** bbolt `bucket.go`,
/// `maxInlineBucketSize`.
const INLINE_DIVISOR: usize = 4;

/// The facts that must be known before the first page is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    page_size: usize,
    root: u64,
    high_water: u64,
}

impl Layout {
    /// Length of the file. **Units** bytes.
    pub fn bytes(&self) -> u64 {
        self.high_water * self.page_size as u64
    }
}

/// Gives out page numbers in order, and keeps the bytes of the pages until they are taken.
#[derive(Debug)]
struct Pages {
    size: usize,
    next: u64,
    /// The bytes; `None` while only the layout is wanted.
    bytes: Option<Vec<u8>>,
}

impl Pages {
    fn write(&mut self, flags: u16, node: &Node) -> u64 {
        let id = self.next;
        let pages = node.bytes().div_ceil(self.size);
        self.next += pages as u64;
        if let Some(out) = &mut self.bytes {
            let end = out.len() + pages * self.size;
            let overflow = u32::try_from(pages - 1).expect("a node is smaller than 4 GiB");
            node.encode(id, flags, overflow, out);
            out.resize(end, 0);
        }
        id
    }
}

/// A node that is being filled.
#[derive(Debug, Default)]
struct Node {
    elements: Vec<Element>,
    /// Keys and values, one directly after the other. Only keys, while only the layout is wanted.
    payload: Vec<u8>,
    payload_len: usize,
}

#[derive(Clone, Copy, Debug)]
struct Element {
    flags: u32,
    key_len: usize,
    value_len: usize,
    /// The child's page, for a branch.
    child: u64,
}

impl Node {
    fn bytes(&self) -> usize {
        HEADER_LEN + self.elements.len() * ELEMENT_LEN + self.payload_len
    }

    fn is_full_for(&self, len: usize) -> bool {
        !self.elements.is_empty() && self.bytes() + ELEMENT_LEN + len > NODE_BYTES
    }

    fn push(&mut self, element: Element, key: &[u8], value: &[u8], keeps_values: bool) {
        // The first key names the node in the branch above it.
        if keeps_values || self.elements.is_empty() {
            self.payload.extend_from_slice(key);
        }
        if keeps_values {
            self.payload.extend_from_slice(value);
        }
        self.payload_len += key.len() + value.len();
        self.elements.push(element);
    }

    fn first_key(&self) -> &[u8] {
        &self.payload[..self.elements[0].key_len]
    }

    fn encode(&self, id: u64, flags: u16, overflow: u32, out: &mut Vec<u8>) {
        assert_eq!(self.payload.len(), self.payload_len, "a node that is written was kept");
        let count = u16::try_from(self.elements.len()).expect("elements are longer than NODE_BYTES / 2^16");
        out.extend_from_slice(&Header { id, flags, count, overflow }.encode());
        let size = |len: usize| u32::try_from(len).expect("a node is smaller than 4 GiB").to_le_bytes();
        let mut behind = self.elements.len() * ELEMENT_LEN;
        for element in &self.elements {
            if flags == LEAF {
                out.extend_from_slice(&element.flags.to_le_bytes());
                out.extend_from_slice(&size(behind));
                out.extend_from_slice(&size(element.key_len));
                out.extend_from_slice(&size(element.value_len));
            } else {
                out.extend_from_slice(&size(behind));
                out.extend_from_slice(&size(element.key_len));
                out.extend_from_slice(&element.child.to_le_bytes());
            }
            // The next element begins one element later, and its bytes come after those of this one.
            behind = behind + element.key_len + element.value_len - ELEMENT_LEN;
        }
        out.extend_from_slice(&self.payload);
    }

    fn clear(&mut self) {
        self.elements.clear();
        self.payload.clear();
        self.payload_len = 0;
    }
}

const _: () = assert!(NODE_BYTES / (ELEMENT_LEN + 1) < u16::MAX as usize, "a page counts its elements in 16 bits");

/// The B+tree of one bucket, built from its leaves up.
#[derive(Debug)]
struct Tree {
    /// The leaf being filled, then the branch above it, and so on.
    levels: Vec<Node>,
    last: Vec<u8>,
}

impl Tree {
    fn new() -> Self {
        Self { levels: vec![Node::default()], last: Vec::new() }
    }

    fn push(&mut self, pages: &mut Pages, flags: u32, key: &[u8], value: &[u8]) {
        assert!(!key.is_empty() && (self.last.is_empty() || *self.last < *key), "keys ascend");
        self.last.clear();
        self.last.extend_from_slice(key);
        let element = Element { flags, key_len: key.len(), value_len: value.len(), child: 0 };
        self.push_at(pages, 0, element, key, value);
    }

    fn push_at(&mut self, pages: &mut Pages, level: usize, element: Element, key: &[u8], value: &[u8]) {
        if level == self.levels.len() {
            self.levels.push(Node::default());
        }
        if self.levels[level].is_full_for(key.len() + value.len()) {
            self.close(pages, level);
        }
        self.levels[level].push(element, key, value, pages.bytes.is_some());
    }

    /// Writes the node of a level and names it in the branch above.
    fn close(&mut self, pages: &mut Pages, level: usize) {
        let (child, key) = self.write(pages, level);
        let element = Element { flags: 0, key_len: key.len(), value_len: 0, child };
        self.push_at(pages, level + 1, element, &key, &[]);
    }

    fn write(&mut self, pages: &mut Pages, level: usize) -> (u64, Vec<u8>) {
        let node = &mut self.levels[level];
        let id = pages.write(if level == 0 { LEAF } else { BRANCH }, node);
        let key = if node.elements.is_empty() { Vec::new() } else { node.first_key().to_vec() };
        node.clear();
        (id, key)
    }

    /// Writes the nodes that are left. Returns the page of the root.
    fn finish(mut self, pages: &mut Pages) -> u64 {
        let mut level = 0;
        loop {
            let is_top = level + 1 == self.levels.len();
            match self.levels[level].elements.as_slice() {
                [only] if is_top && level > 0 => return only.child,
                _ if is_top => return self.write(pages, level).0,
                [] => {}
                _ => self.close(pages, level),
            }
            level += 1;
        }
    }

    /// The one leaf of a small bucket, for the leaf that names the bucket.
    fn inline(&self, pages: &Pages) -> Option<Vec<u8>> {
        let [leaf] = self.levels.as_slice() else { return None };
        if leaf.bytes() > pages.size / INLINE_DIVISOR {
            return None;
        }
        let mut out = Vec::with_capacity(leaf.bytes());
        if pages.bytes.is_some() {
            leaf.encode(0, LEAF, 0, &mut out);
        }
        // While only the layout is wanted, only the length matters.
        out.resize(leaf.bytes(), 0);
        Some(out)
    }
}

/// See the head of this file.
#[derive(Debug)]
pub struct FileWriter {
    pages: Pages,
    bucket: Tree,
    /// Names and stored values of the buckets written so far.
    buckets: BTreeMap<&'static str, Vec<u8>>,
    expected: Option<Layout>,
}

impl FileWriter {
    fn new(pages: Pages, expected: Option<Layout>) -> Self {
        Self { pages, bucket: Tree::new(), buckets: BTreeMap::new(), expected }
    }

    /// A writer that only finds the layout of a file with pages of this size.
    pub fn measuring(page_size: usize) -> Self {
        Self::new(Pages { size: page_size, next: 2, bytes: None }, None)
    }

    /// A writer of a file of this layout. Its meta pages can be taken at once.
    pub fn writing(layout: Layout) -> Self {
        let size = layout.page_size;
        let mut bytes = Vec::with_capacity(2 * size);
        let page_size = u32::try_from(size).expect("a page is small");
        for id in 0..2 {
            // The newer one comes first, as in a copy that bbolt makes.
            let (root, high_water) = (layout.root, layout.high_water);
            let meta = Meta { page_size, root, freelist: NO_FREELIST, high_water, txid: 2 - id };
            bytes.extend_from_slice(&meta.encode(id));
            bytes.resize(bytes.len().next_multiple_of(size), 0);
        }
        Self::new(Pages { size, next: 2, bytes: Some(bytes) }, Some(layout))
    }

    /// Adds a key to the present bucket. It must be above all keys that are in it.
    pub fn push(&mut self, key: &[u8], value: &[u8]) {
        self.bucket.push(&mut self.pages, 0, key, value);
    }

    /// Ends the present bucket and gives it this name. The next key begins another bucket.
    pub fn end_bucket(&mut self, name: &'static str) {
        let tree = std::mem::replace(&mut self.bucket, Tree::new());
        let inline = tree.inline(&self.pages);
        let root = if inline.is_some() { 0 } else { tree.finish(&mut self.pages) };
        let mut value = [0; BUCKET_LEN].to_vec();
        value[..8].copy_from_slice(&root.to_le_bytes());
        value.extend(inline.unwrap_or_default());
        let taken = self.buckets.insert(name, value);
        assert!(taken.is_none(), "each bucket is written once");
    }

    /// Bytes that wait to be taken.
    pub fn waiting(&self) -> usize {
        self.pages.bytes.as_ref().map_or(0, Vec::len)
    }

    /// Takes the next bytes of the file, after those taken before.
    pub fn take(&mut self) -> Vec<u8> {
        self.pages.bytes.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Ends the file. Returns its last bytes and its layout. `None` if the layout is not the announced one. The content
    /// was then not the same in both passes, and the output is not a valid file.
    pub fn finish(mut self) -> Option<(Vec<u8>, Layout)> {
        assert!(self.bucket.last.is_empty(), "the last bucket was ended");
        let mut root = Tree::new();
        for (name, value) in &self.buckets {
            root.push(&mut self.pages, BUCKET, name.as_bytes(), value);
        }
        let root = root.finish(&mut self.pages);
        let layout = Layout { page_size: self.pages.size, root, high_water: self.pages.next };
        let is_expected = self.expected.is_none_or(|expected| expected == layout);
        is_expected.then(|| (self.take(), layout))
    }
}
