//! Runs on: connection core.
//!
//! Messages as bytes, with their length in front, as gRPC streams carry them. Also the pieces with which the most
//! frequent answers, watch events and large ranges are written by hand.
//!
//! Invariants: fields are written in the order of their numbers, and zero values are left out. prost and Go's protobuf
//! do the same, so the bytes equal theirs. Only a stored record is passed on as it is, with its lease before its value.
//! Every `*_len` equals the number of bytes that its `put_*` appends.

use bytes::{BufMut, Bytes};
use engine::Record;
use prost::Message;

use crate::error::Error;

/// The prefix of a message: one byte "compressed", then four bytes length, big-endian. **Units** bytes.
pub const PREFIX_BYTES: usize = 5;

/// Largest message that a gRPC client can take. etcd sends no larger one. **Units** bytes.
pub const MESSAGE_BYTES_MAX: usize = i32::MAX as usize;

/// The reason, in the words of Go's protobuf, why bytes do not decode.
///
/// Go writes the space behind `proto:` as U+00A0 in some builds and as a plain one in others.
pub fn why_undecodable(error: &prost::DecodeError) -> &'static str {
    if error.to_string().contains("UTF-8") {
        "string field contains invalid UTF-8"
    } else {
        "proto: cannot parse invalid wire-format data"
    }
}

/// An answer that may be of any length, with its length in front.
///
/// **Errors** it is longer than [`MESSAGE_BYTES_MAX`].
pub fn framed_answer(message: &impl Message) -> Result<Bytes, Error> {
    let len = message.encoded_len();
    if len > MESSAGE_BYTES_MAX {
        return Err(Error::AnswerTooLarge { len, max: MESSAGE_BYTES_MAX });
    }
    Ok(framed(message))
}

/// A message with its length in front.
///
/// **Bounds** a message is shorter than 4 GiB; the code that builds ours keeps them far below.
pub fn framed(message: &impl Message) -> Bytes {
    let len = message.encoded_len();
    // A `Vec` takes single bytes, as varints are, at half the cost of a `BytesMut`; being full it becomes `Bytes` as it
    // is.
    let mut out = Vec::with_capacity(PREFIX_BYTES + len);
    put_prefix(&mut out, len);
    message.encode_raw(&mut out);
    assert_eq!(out.len(), PREFIX_BYTES + len, "a message is as long as it says");
    out.into()
}

/// Appends the prefix of a message of `len` bytes.
pub fn put_prefix(out: &mut impl BufMut, len: usize) {
    out.put_u8(0);
    out.put_u32(u32::try_from(len).expect("a message is shorter than 4 GiB"));
}

/// Appends a record as an `mvccpb.KeyValue`, with exactly [`Record::key_value_len`] bytes. A tombstone has only its key
/// and the revision of the deletion: its other fields are zero.
pub fn put_key_value(out: &mut impl BufMut, record: &Record) {
    if !record.key.is_empty() {
        put_bytes(out, 1 << 3 | 2, &record.key);
    }
    put_field(out, 2 << 3, record.create_revision);
    put_field(out, 3 << 3, record.revision.main);
    put_field(out, 4 << 3, record.version);
    if !record.value.is_empty() {
        put_bytes(out, 5 << 3 | 2, &record.value);
    }
    put_field(out, 6 << 3, record.lease);
}

/// Length of a field with a short tag and `len` bytes in it. **Units** bytes.
pub fn nested_len(len: usize) -> usize {
    1 + varint_len(len as u64) + len
}

/// Length of a field of bytes; 0 if there are none, because the field is then absent. **Units** bytes.
pub fn bytes_len(bytes: &[u8]) -> usize {
    if bytes.is_empty() { 0 } else { nested_len(bytes.len()) }
}

/// Length of a field with a number; 0 for the number 0, because the field is then absent. **Units** bytes.
pub fn field_len(value: i64) -> usize {
    if value == 0 { 0 } else { 1 + varint_len(value.cast_unsigned()) }
}

/// Appends a field with a number, unless it is 0.
pub fn put_field(out: &mut impl BufMut, tag: u8, value: i64) {
    if value != 0 {
        out.put_u8(tag);
        put_varint(out, value.cast_unsigned());
    }
}

/// Appends a field of bytes.
pub fn put_bytes(out: &mut impl BufMut, tag: u8, bytes: &[u8]) {
    out.put_u8(tag);
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

fn varint_len(value: u64) -> usize {
    // Each byte holds seven bits. Zero takes one byte.
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

/// Appends a varint.
pub fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(low_bits(value) | 0x80);
        value >>= 7;
    }
    out.put_u8(low_bits(value));
}

fn low_bits(value: u64) -> u8 {
    u8::try_from(value & 0x7f).expect("seven bits")
}
