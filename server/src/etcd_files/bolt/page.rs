//! Runs on: connection core (writing), main thread (reading, offline).
//!
//! The forms of bbolt's pages: header, meta, and the elements of branch and leaf nodes.
//!
//! A node takes one page and `overflow` more pages after it. The positions of an element's bytes count from the element
//! itself.
//!
//! Decoding checks every length against the bytes that are there, and never panics.

/// Length of a page's header.
pub const HEADER_LEN: usize = 16;
/// Length of an element of a branch or a leaf.
pub const ELEMENT_LEN: usize = 16;
/// Length of a bucket's root and sequence. The inline page follows them, if there is one.
pub const BUCKET_LEN: usize = 16;
/// Bytes of a page that a meta page uses.
pub const META_LEN: usize = HEADER_LEN + 64;
/// Stands in place of the free list's page. The list is then not stored, and the next writer rebuilds it.
pub const NO_FREELIST: u64 = u64::MAX;

/// Flag of a branch page.
pub const BRANCH: u16 = 0x01;
/// Flag of a leaf page.
pub const LEAF: u16 = 0x02;
/// Flag of a meta page.
pub const META: u16 = 0x04;
/// Flag of a leaf element whose value is a bucket.
pub const BUCKET: u32 = 0x01;

const MAGIC: u32 = 0xED0C_DAED;
const VERSION: u32 = 2;

/// The beginning of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Position of the page in the file, in pages.
    pub id: u64,
    /// The kind of the page.
    pub flags: u16,
    /// Number of elements.
    pub count: u16,
    /// Number of further pages that belong to it.
    pub overflow: u32,
}

impl Header {
    /// The stored form.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[..8].copy_from_slice(&self.id.to_le_bytes());
        out[8..10].copy_from_slice(&self.flags.to_le_bytes());
        out[10..12].copy_from_slice(&self.count.to_le_bytes());
        out[12..].copy_from_slice(&self.overflow.to_le_bytes());
        out
    }

    /// Reads the front of a page; `None` if it is too short.
    pub fn decode(page: &[u8]) -> Option<Self> {
        let half = |at: usize| page.get(at..at + 2)?.try_into().ok().map(u16::from_le_bytes);
        Some(Self { id: long(page, 0)?, flags: half(8)?, count: half(10)?, overflow: word(page, 12)? })
    }
}

pub(super) fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
}

pub(super) fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
}

/// The content of a meta page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// **Units** bytes.
    pub page_size: u32,
    /// Page of the root of all buckets.
    pub root: u64,
    /// Page of the free list, or [`NO_FREELIST`].
    pub freelist: u64,
    /// Number of pages in the file.
    pub high_water: u64,
    /// The transaction that wrote it. Of two valid copies, the one with the higher transaction counts.
    pub txid: u64,
}

impl Meta {
    /// The used bytes of the meta page at `id`.
    pub fn encode(&self, id: u64) -> [u8; META_LEN] {
        let mut out = [0; META_LEN];
        out[..HEADER_LEN].copy_from_slice(&Header { id, flags: META, count: 0, overflow: 0 }.encode());
        let words = [MAGIC, VERSION, self.page_size, 0];
        for (word, at) in words.into_iter().zip((HEADER_LEN..).step_by(4)) {
            out[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        // The 0 is the sequence of the root bucket, which etcd does not use.
        let longs = [self.root, 0, self.freelist, self.high_water, self.txid];
        for (long, at) in longs.into_iter().zip((HEADER_LEN + 16..).step_by(8)) {
            out[at..at + 8].copy_from_slice(&long.to_le_bytes());
        }
        let sum = fnv1a(&out[HEADER_LEN..META_LEN - 8]);
        out[META_LEN - 8..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Reads a meta page; `None` if it is not one, is damaged, or describes an impossible file.
    pub fn decode(page: &[u8]) -> Option<Self> {
        let header = Header::decode(page)?;
        let body = page.get(HEADER_LEN..META_LEN)?;
        let is_meta = header.flags & META != 0 && word(body, 0)? == MAGIC && word(body, 4)? == VERSION;
        if !is_meta || long(body, 56)? != fnv1a(&body[..56]) {
            return None;
        }
        let meta = Self {
            page_size: word(body, 8)?,
            root: long(body, 16)?,
            freelist: long(body, 32)?,
            high_water: long(body, 40)?,
            txid: long(body, 48)?,
        };
        let is_sound = (PAGE_SIZE_MIN..=PAGE_SIZE_MAX).contains(&meta.page_size)
            && meta.page_size.is_power_of_two()
            && meta.root >= 2
            && meta.root < meta.high_water
            && meta.high_water <= u64::MAX / u64::from(meta.page_size);
        is_sound.then_some(meta)
    }
}

/// Smallest page size that is looked for. **Units** bytes.
pub const PAGE_SIZE_MIN: u32 = 512;
/// Largest page size that is looked for. bbolt uses the page size of the operating system, and looks no further either.
/// **Units** bytes.
pub const PAGE_SIZE_MAX: u32 = 512 << 15;

fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

/// An element of a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafElement<'a> {
    /// Whether the value is a bucket.
    pub is_bucket: bool,
    /// The key. It is never empty.
    pub key: &'a [u8],
    /// Its value.
    pub value: &'a [u8],
}

/// An element of a branch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BranchElement<'a> {
    /// The first key below it.
    pub key: &'a [u8],
    /// Page of the child.
    pub child: u64,
}

/// The element at `position` of a leaf; `None` if its bytes are outside of it. `node` is all pages of the leaf.
pub fn leaf_element(node: &[u8], position: usize) -> Option<LeafElement<'_>> {
    let at = HEADER_LEN.checked_add(position.checked_mul(ELEMENT_LEN)?)?;
    let from = at.checked_add(usize::try_from(word(node, at + 4)?).ok()?)?;
    let middle = from.checked_add(usize::try_from(word(node, at + 8)?).ok()?)?;
    let end = middle.checked_add(usize::try_from(word(node, at + 12)?).ok()?)?;
    let is_bucket = word(node, at)? & BUCKET != 0;
    let element = LeafElement { is_bucket, key: node.get(from..middle)?, value: node.get(middle..end)? };
    (!element.key.is_empty()).then_some(element)
}

/// The element at `position` of a branch, as [`leaf_element`].
pub fn branch_element(node: &[u8], position: usize) -> Option<BranchElement<'_>> {
    let at = HEADER_LEN.checked_add(position.checked_mul(ELEMENT_LEN)?)?;
    let from = at.checked_add(usize::try_from(word(node, at)?).ok()?)?;
    let end = from.checked_add(usize::try_from(word(node, at + 4)?).ok()?)?;
    let element = BranchElement { key: node.get(from..end)?, child: long(node, at + 8)? };
    (!element.key.is_empty()).then_some(element)
}
