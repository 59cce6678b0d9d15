//! The unit of I/O, and what the medium writes whole.
//!
//! Knows no file and no operation.

/// Unit of every offset and length on the data plane, in bytes: what O_DIRECT asks for everywhere, and what the
/// checksummed structures are aligned to.
pub const BLOCK: usize = 4096;

/// What the medium writes whole or not at all, in bytes.
pub const SECTOR: usize = 512;

const _: () = assert!(BLOCK.is_multiple_of(SECTOR));

pub(crate) fn assert_aligned(offset: u64, len: usize) {
    assert!(offset.is_multiple_of(BLOCK as u64), "offset {offset} is not at a block");
    assert!(len > 0 && len.is_multiple_of(BLOCK), "length {len} is not of whole blocks");
}
