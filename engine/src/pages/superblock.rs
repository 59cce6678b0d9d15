//! The superblock: the one place that says which state of the page store is the present one.
//!
//! Invariants:
//! - The file holds two copies, [`COPY_STRIDE`] apart. Generation `g` goes to copy `g % 2`, in one durable write. So
//!   the previous generation is untouched while its successor is written.
//! - All of a copy is in its first sector, so a torn write leaves the old copy or the new one. A CRC over that sector
//!   shows damage. The parity of the generation shows a misdirected write.
//! - The newest valid copy counts. Nothing that the other copy needs is given up before a newer one is durable
//!   (`space`, `Store::trimmable`). So either copy alone is enough.
//! - The file is created whole under another name. So once it has its name, at least one copy was valid.
//! - The bytes read at a start may come from a killed process and not be durable. So the file's name and bytes are
//!   synced before anything is built upon them.
//!
//! It does not know the content of the places in it.

use std::path::{Path, PathBuf};

use crate::{
    Error, Place,
    disk::{BLOCK, Buffer, Disk, FileOp, Op, OpenKind, Owner},
};

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "superblock";
const FILE_NEW: &str = "superblock.new";

/// Version of the page store's format.
pub(crate) const FORMAT: u32 = 3;
/// Version of a state in the middle of a log entry (`Superblock::unfinished`). A release that does not know such states
/// must not take it for a whole one.
const FORMAT_UNFINISHED: u32 = 4;
/// Version of a state that came from another member (`Superblock::is_installed`): the log need not lead to it.
const FORMAT_INSTALLED: u32 = 5;

const MAGIC: [u8; 8] = *b"ORLOPSB\0";

/// Distance between the copies. It is more than a device rewrites internally in one piece. **Units** bytes.
pub(crate) const COPY_STRIDE: u64 = 16 << 10;
pub(crate) const FILE_BYTES: u64 = 2 * COPY_STRIDE;

// These are offsets in a copy. Each is the previous one plus its size.
const MAGIC_AT: usize = 0;
const FORMAT_AT: usize = MAGIC_AT + 8;
const NEXT_SEGMENT_AT: usize = FORMAT_AT + 4;
const STORE_ID_AT: usize = NEXT_SEGMENT_AT + 4;
const GENERATION_AT: usize = STORE_ID_AT + 8;
const REVISION_AT: usize = GENERATION_AT + 8;
const COMPACT_REVISION_AT: usize = REVISION_AT + 8;
const APPLIED_INDEX_AT: usize = COMPACT_REVISION_AT + 8;
const APPLIED_TERM_AT: usize = APPLIED_INDEX_AT + 8;
const KEY_ROOT_AT: usize = APPLIED_TERM_AT + 8;
const META_ROOT_AT: usize = KEY_ROOT_AT + Place::ENCODED_LEN;
const DIRECTORY_AT: usize = META_ROOT_AT + Place::ENCODED_LEN;
const SEGMENTS_AT: usize = DIRECTORY_AT + Place::ENCODED_LEN;
const UNFINISHED_AT: usize = SEGMENTS_AT + Place::ENCODED_LEN;
const VITAL_LEN_AT: usize = UNFINISHED_AT + 8;
const VITAL_AT: usize = VITAL_LEN_AT + 2;
const END: usize = VITAL_AT + VITAL_MAX;
const CRC_AT: usize = COPY_LEN - 4;
const COPY_LEN: usize = 512;
// A copy fits in the smallest possible sector, so that the medium never tears it.
const _: () = assert!(END <= CRC_AT && COPY_LEN <= BLOCK && COPY_STRIDE >= BLOCK as u64);

/// Bytes that [`Vital`] has room for.
pub const VITAL_MAX: usize = 256;

/// What whoever uses the store cannot do without, kept beside the trees: it is there as long as either copy of the
/// superblock is. The store does not know what it means. Empty if none was given.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Vital {
    len: u16,
    bytes: [u8; VITAL_MAX],
}

impl Vital {
    /// Nothing.
    pub const EMPTY: Self = Self { len: 0, bytes: [0; VITAL_MAX] };

    /// These bytes; `None` if they are more than [`VITAL_MAX`].
    pub fn new(content: &[u8]) -> Option<Self> {
        let mut vital = Self { len: u16::try_from(content.len()).ok()?, ..Self::EMPTY };
        vital.bytes.get_mut(..content.len())?.copy_from_slice(content);
        Some(vital)
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for Vital {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vital({})", self.as_slice().escape_ascii())
    }
}

/// The places to which all pages of one state are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pages {
    pub(crate) key_root: Place,
    pub(crate) meta_root: Place,
    /// The directory root, which says where the directory chunks lie.
    pub(crate) directory: Place,
    /// The segment table.
    pub(crate) segments: Place,
}

/// One state of the page store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// A number that was drawn when the store was created.
    pub(crate) store_id: u64,
    /// Counts the states, from 1.
    pub(crate) generation: u64,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    pub(crate) applied_index: u64,
    pub(crate) applied_term: u64,
    /// `None` for a store that has had no checkpoint.
    pub(crate) pages: Option<Pages>,
    /// The lowest segment number that was never used.
    pub(crate) next_segment: u32,
    /// Changes of the revision after `revision` that are in this state: those that the log entry after the applied one
    /// has made so far. Nobody may see them yet.
    pub(crate) unfinished: u64,
    /// The state was made by another member and installed here. If the log does not hold the applied entry, it is to
    /// be restarted there.
    pub(crate) is_installed: bool,
    pub(crate) vital: Vital,
}

impl Superblock {
    /// The first state of a new store.
    pub(crate) fn fresh(store_id: u64) -> Self {
        Self {
            store_id,
            generation: 1,
            revision: 1,
            compact_revision: -1,
            applied_index: 0,
            applied_term: 0,
            pages: None,
            next_segment: 1,
            unfinished: 0,
            is_installed: false,
            vital: Vital::EMPTY,
        }
    }

    fn format(&self) -> u32 {
        assert!(!self.is_installed || self.unfinished == 0, "a state is installed whole");
        match (self.is_installed, self.unfinished) {
            (true, _) => FORMAT_INSTALLED,
            (false, 0) => FORMAT,
            (false, _) => FORMAT_UNFINISHED,
        }
    }

    /// The offset of its copy in the file.
    pub(crate) fn offset(&self) -> u64 {
        self.generation % 2 * COPY_STRIDE
    }

    /// The bytes of its copy, padded to a block.
    pub(crate) fn encode(&self) -> Buffer {
        let mut buf = Buffer::zeroed(BLOCK);
        let mut put = |at: usize, bytes: &[u8]| buf[at..at + bytes.len()].copy_from_slice(bytes);
        put(MAGIC_AT, &MAGIC);
        put(FORMAT_AT, &self.format().to_le_bytes());
        put(NEXT_SEGMENT_AT, &self.next_segment.to_le_bytes());
        put(STORE_ID_AT, &self.store_id.to_le_bytes());
        put(GENERATION_AT, &self.generation.to_le_bytes());
        put(REVISION_AT, &self.revision.to_le_bytes());
        put(COMPACT_REVISION_AT, &self.compact_revision.to_le_bytes());
        put(APPLIED_INDEX_AT, &self.applied_index.to_le_bytes());
        put(APPLIED_TERM_AT, &self.applied_term.to_le_bytes());
        if let Some(pages) = &self.pages {
            put(KEY_ROOT_AT, &pages.key_root.to_bytes());
            put(META_ROOT_AT, &pages.meta_root.to_bytes());
            put(DIRECTORY_AT, &pages.directory.to_bytes());
            put(SEGMENTS_AT, &pages.segments.to_bytes());
        }
        put(UNFINISHED_AT, &self.unfinished.to_le_bytes());
        put(VITAL_LEN_AT, &self.vital.len.to_le_bytes());
        put(VITAL_AT, self.vital.as_slice());
        let crc = crc32fast::hash(&buf[..CRC_AT]);
        buf[CRC_AT..COPY_LEN].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(Self::decode(&buf, self.generation % 2).ok(), Some(*self), "what is written can be read");
        buf
    }

    /// The state that `bytes`, filled up with zeros, would hold if magic, format and checksum were right.
    pub(crate) fn decode_resealed(bytes: &[u8]) -> Option<Self> {
        let mut copy = [0; COPY_LEN];
        let len = bytes.len().min(COPY_LEN);
        copy[..len].copy_from_slice(&bytes[..len]);
        copy[..FORMAT_AT].copy_from_slice(&MAGIC);
        let is_finished = copy[UNFINISHED_AT..VITAL_LEN_AT].iter().all(|byte| *byte == 0);
        let format = if is_finished { FORMAT } else { FORMAT_UNFINISHED };
        copy[FORMAT_AT..FORMAT_AT + 4].copy_from_slice(&format.to_le_bytes());
        let crc = crc32fast::hash(&copy[..CRC_AT]);
        copy[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        (0..2).find_map(|number| Self::decode(&copy, number).ok())
    }

    /// The state in copy number `copy`, whose bytes begin at `bytes[0]`.
    fn decode(bytes: &[u8], copy: u64) -> Result<Self, Damage> {
        let bytes: &[u8; COPY_LEN] = bytes.first_chunk().ok_or(Damage::Bytes)?;
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let double = |at: usize| u64::from(word(at)) | u64::from(word(at + 4)) << 32;
        if bytes[..FORMAT_AT] != MAGIC || word(CRC_AT) != crc32fast::hash(&bytes[..CRC_AT]) {
            return Err(Damage::Bytes);
        }
        if !(FORMAT..=FORMAT_INSTALLED).contains(&word(FORMAT_AT)) {
            return Err(Damage::Format(word(FORMAT_AT)));
        }
        let place = |at: usize| Place::from_bytes(*bytes[at..].first_chunk().expect("inside the copy"));
        let has_no_pages = bytes[KEY_ROOT_AT..UNFINISHED_AT].iter().all(|byte| *byte == 0);
        let pages = match (place(KEY_ROOT_AT), place(META_ROOT_AT), place(DIRECTORY_AT), place(SEGMENTS_AT)) {
            (Some(key_root), Some(meta_root), Some(directory), Some(segments)) => {
                Some(Pages { key_root, meta_root, directory, segments })
            }
            _ if has_no_pages => None,
            _ => return Err(Damage::Bytes),
        };
        let vital_len = usize::from(u16::from_le_bytes([bytes[VITAL_LEN_AT], bytes[VITAL_LEN_AT + 1]]));
        let vital = bytes[VITAL_AT..END].get(..vital_len).and_then(Vital::new).ok_or(Damage::Bytes)?;
        let state = Self {
            store_id: double(STORE_ID_AT),
            generation: double(GENERATION_AT),
            revision: double(REVISION_AT).cast_signed(),
            compact_revision: double(COMPACT_REVISION_AT).cast_signed(),
            applied_index: double(APPLIED_INDEX_AT),
            applied_term: double(APPLIED_TERM_AT),
            pages,
            next_segment: word(NEXT_SEGMENT_AT),
            unfinished: double(UNFINISHED_AT),
            is_installed: word(FORMAT_AT) == FORMAT_INSTALLED,
            vital,
        };
        let is_sound = state.generation > 0
            && !(state.is_installed && state.unfinished > 0)
            && state.generation % 2 == copy
            && state.next_segment > 0
            && state.revision >= 1
            && i64::try_from(state.unfinished).is_ok()
            && state.format() == word(FORMAT_AT)
            && (-1..=state.revision).contains(&state.compact_revision);
        if is_sound { Ok(state) } else { Err(Damage::Bytes) }
    }
}

/// The reason why a copy cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    Bytes,
    /// The copy is intact, but has a format that this release does not know.
    Format(u32),
}

/// The contents of the superblock file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opened {
    /// The newest valid state.
    pub(crate) newest: Superblock,
    /// The state before it, unless its copy is damaged.
    pub(crate) previous: Option<Superblock>,
}

/// Whether the data directory has a superblock.
pub(crate) fn exists(disk: &mut dyn Disk, dir: &Path) -> Result<bool, Error> {
    Ok(disk.list(dir)?.iter().any(|name| name == FILE))
}

/// Reads both copies, and makes sure that what was read is durable. Nothing else may be in flight. A copy that cannot
/// be read is as good as a damaged one; the next checkpoint but one writes it anew.
///
/// **Errors** `Corrupt` if neither is valid; `Format` if one is of a later release, because using the other copy would
/// undo what that release wrote.
pub(crate) fn read(disk: &mut dyn Disk, dir: &Path) -> Result<Opened, Error> {
    let path = dir.join(FILE);
    let file = disk.open(&path, OpenKind::Write)?;
    let mut copies = [None, None];
    let mut later = None;
    for (copy, state) in (0..).zip(&mut copies) {
        let mut buf = Buffer::new();
        match disk.read_blocking(file, copy * COPY_STRIDE, BLOCK, &mut buf) {
            Err(Error::Io { op: FileOp::Read, .. }) => continue,
            result => result?,
        }
        match Superblock::decode(&buf, copy) {
            Ok(valid) => *state = Some(valid),
            Err(Damage::Format(found)) => later = Some(found),
            Err(Damage::Bytes) => {}
        }
    }
    perform(disk, &path, Op::Sync { file })?;
    disk.close(file);
    disk.sync_dir(dir)?;
    if let Some(found) = later {
        return Err(Error::Format { path, found, supported: FORMAT_INSTALLED });
    }
    let (newest, previous) = match copies {
        [Some(a), Some(b)] if a.generation > b.generation => (a, Some(b)),
        [Some(a), Some(b)] => (b, Some(a)),
        [Some(only), None] | [None, Some(only)] => (only, None),
        [None, None] => return Err(Error::corrupt(&path, 0, "neither copy of the superblock is valid")),
    };
    if previous.is_some_and(|previous| previous.store_id != newest.store_id) {
        return Err(Error::corrupt(&path, 0, "the copies are of two stores"));
    }
    // If a copy is older than the last but one, its replacement was lost. What it names may be gone.
    let previous = previous.filter(|previous| previous.generation + 1 == newest.generation);
    Ok(Opened { newest, previous })
}

/// Reads both copies, for an inspection. Nothing is made durable. `None` for a copy that is damaged or cannot be read.
///
/// **Errors** `Format` for a copy of a later release.
pub(crate) fn peek(disk: &mut dyn Disk, dir: &Path) -> Result<[Option<Superblock>; 2], Error> {
    let path = dir.join(FILE);
    let file = disk.open(&path, OpenKind::Read)?;
    let mut copies = [None, None];
    for (copy, state) in (0..).zip(&mut copies) {
        let mut buf = Buffer::new();
        match disk.read_blocking(file, copy * COPY_STRIDE, BLOCK, &mut buf) {
            Err(Error::Io { op: FileOp::Read, .. }) => continue,
            result => result?,
        }
        *state = match Superblock::decode(&buf, copy) {
            Ok(valid) => Some(valid),
            Err(Damage::Format(found)) => return Err(Error::Format { path, found, supported: FORMAT_INSTALLED }),
            Err(Damage::Bytes) => None,
        };
    }
    disk.close(file);
    Ok(copies)
}

/// Creates the file with the first state. It is durable on return.
pub(crate) fn create(disk: &mut dyn Disk, dir: &Path, store_id: u64) -> Result<Superblock, Error> {
    let path = dir.join(FILE_NEW);
    if disk.list(dir)?.iter().any(|name| name == FILE_NEW) {
        disk.remove(&path)?;
    }
    let file = disk.open(&path, OpenKind::Create { len: FILE_BYTES })?;
    let state = Superblock::fresh(store_id);
    perform(disk, &path, Op::WriteDurable { file, offset: state.offset(), buf: state.encode() })?;
    // The file's length must survive as well. A durable write only promises its own bytes.
    perform(disk, &path, Op::Sync { file })?;
    disk.close(file);
    disk.rename(&path, &dir.join(FILE))?;
    disk.sync_dir(dir)?;
    Ok(state)
}

/// Writes the copy of `state` durably. Blocks.
pub(crate) fn write(disk: &mut dyn Disk, dir: &Path, state: &Superblock) -> Result<(), Error> {
    let path = dir.join(FILE);
    let file = disk.open(&path, OpenKind::Write)?;
    perform(disk, &path, Op::WriteDurable { file, offset: state.offset(), buf: state.encode() })?;
    disk.close(file);
    Ok(())
}

/// Does `op` and waits for its end. Nothing else is in flight at a start.
fn perform(disk: &mut dyn Disk, path: &Path, op: Op) -> Result<(), Error> {
    let kind = if matches!(op, Op::Sync { .. }) { FileOp::Sync } else { FileOp::Write };
    disk.submit(op, Owner::Checkpoint.token(0));
    disk.wait()?;
    let mut done = Vec::new();
    disk.completions(&mut done);
    assert_eq!(done.len(), 1, "nothing else is in flight at a start");
    let result = done.pop().map_or(Ok(0), |completion| completion.result);
    result.map(drop).map_err(|source| Error::io(path, kind, source))
}

/// Path of the file.
pub(crate) fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(generation: u64) -> Superblock {
        let place = |offset| Place { segment: 3, offset, len: 4096 };
        Superblock {
            generation,
            revision: 1 << 40,
            compact_revision: 77,
            applied_index: u64::MAX,
            applied_term: 5,
            pages: Some(Pages { key_root: place(0), meta_root: place(1), directory: place(2), segments: place(3) }),
            next_segment: 9,
            ..Superblock::fresh(0xfeed)
        }
    }

    #[test]
    fn any_flipped_bit_makes_a_copy_invalid_and_so_does_the_place_of_the_other() {
        let vital = |len: usize| Vital::new(&vec![7; len]);
        assert_eq!(vital(VITAL_MAX + 1), None);
        let with_vital = |len| Superblock { vital: vital(len).unwrap(), ..state(6) };
        for state in [
            state(6),
            Superblock { pages: None, ..state(6) },
            Superblock { unfinished: 7, ..state(6) },
            Superblock { is_installed: true, ..state(6) },
            with_vital(1),
            with_vital(VITAL_MAX),
        ] {
            let bytes = state.encode();
            assert_eq!(Superblock::decode(&bytes, 0), Ok(state));
            assert_eq!(Superblock::decode(&bytes, 1), Err(Damage::Bytes));
            for bit in 0..COPY_LEN * 8 {
                let mut damaged = bytes.to_vec();
                damaged[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(Superblock::decode(&damaged, 0), Err(Damage::Bytes), "bit {bit}");
            }
            assert_eq!(Superblock::decode(&bytes[..COPY_LEN - 1], 0), Err(Damage::Bytes));
        }
        assert_eq!(Superblock::decode(&[0; COPY_LEN], 0), Err(Damage::Bytes));
    }

    #[test]
    fn another_format_is_told_from_damage() {
        for other in [FORMAT - 1, FORMAT_INSTALLED + 1] {
            let mut bytes = state(6).encode();
            bytes[FORMAT_AT..FORMAT_AT + 4].copy_from_slice(&other.to_le_bytes());
            let crc = crc32fast::hash(&bytes[..CRC_AT]);
            bytes[CRC_AT..COPY_LEN].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(Superblock::decode(&bytes, 0), Err(Damage::Format(other)));
        }
    }
}
