//! The fields of an `mvccpb.KeyValue`: their tags, their bytes and their lengths.
//!
//! Zero and empty fields are left out, as protobuf does. The order of the fields is chosen by the writer: a stored
//! record has its value last (`extent::block`), a hashed one has them in number order (`mvcc::hash`).

use crate::varint;

pub(crate) const TAG_KEY: u8 = 1 << 3 | 2;
pub(crate) const TAG_CREATE_REVISION: u8 = 2 << 3;
pub(crate) const TAG_MOD_REVISION: u8 = 3 << 3;
pub(crate) const TAG_VERSION: u8 = 4 << 3;
pub(crate) const TAG_LEASE: u8 = 6 << 3;
pub(crate) const TAG_VALUE: u8 = 5 << 3 | 2;

/// Appends a field with a number, unless it is 0.
pub(crate) fn put_number(tag: u8, number: i64, out: &mut Vec<u8>) {
    if number != 0 {
        out.push(tag);
        varint::write(out, number.cast_unsigned());
    }
}

/// Appends a field of bytes, unless it is empty.
pub(crate) fn put_slice(tag: u8, slice: &[u8], out: &mut Vec<u8>) {
    if !slice.is_empty() {
        out.push(tag);
        varint::write(out, slice.len() as u64);
        out.extend_from_slice(slice);
    }
}

/// Length of a field with a number after its tag; 0 is left out. **Units** bytes.
pub(crate) fn number_len(number: i64) -> usize {
    if number == 0 { 0 } else { 1 + varint::len(number.cast_unsigned()) }
}

/// Length of a field of bytes after its tag; an empty one is left out. **Units** bytes.
pub(crate) fn slice_len(slice: &[u8]) -> usize {
    let len = u64::try_from(slice.len()).unwrap_or(u64::MAX);
    if slice.is_empty() { 0 } else { 1 + varint::len(len) + slice.len() }
}
