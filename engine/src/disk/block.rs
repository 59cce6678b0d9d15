//! The unit of I/O, and the unit that the medium writes whole.
//!
//! It knows no file and no operation.

/// The unit of every offset and length on the data plane. O_DIRECT requires it everywhere, and the checksummed
/// structures are aligned to it. **Units** bytes.
pub const BLOCK: usize = 4096;

/// What the medium writes whole or not at all. **Units** bytes.
pub const SECTOR: usize = 512;

const _: () = assert!(BLOCK.is_multiple_of(SECTOR));

pub(crate) fn assert_aligned(offset: u64, len: usize) {
    assert!(offset.is_multiple_of(BLOCK as u64), "offset {offset} is not at a block");
    assert!(len > 0 && len.is_multiple_of(BLOCK), "length {len} is not of whole blocks");
}
