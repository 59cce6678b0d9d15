//! protobuf's wire format as far as we read and write it ourselves: varints, keys of fields, and a walk over the fields
//! of a message that decodes nothing else.
//!
//! The varints are prost's: there is no second implementation. Groups are not read here: etcd's messages have none, and
//! prost skips those that are unknown.
//!
//! Invariants: the walk never reads beyond its slice, takes no memory, and ends behind the first error.

use bytes::{BufMut, Bytes};
use prost::encoding::{decode_varint, encode_varint, encoded_len_varint};

use crate::error::Error;

const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const DELIMITED: u64 = 2;
const FIXED32: u64 = 5;

/// The value of one field.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Value<'a> {
    /// A number, a flag or an enum.
    Varint(u64),
    /// Bytes, text or a message.
    Delimited(&'a [u8]),
    /// 4 or 8 bytes; none of etcd's messages has such a field.
    Fixed,
}

/// Walks the fields of a message in their order on the wire; gives number and value of each.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of `message`.
pub fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Result<(u64, Value<'a>), Error> {
        let key = decode_varint(&mut self.rest)?;
        let field = key >> 3;
        let value = match key & 7 {
            VARINT => Value::Varint(decode_varint(&mut self.rest)?),
            FIXED64 => self.take(field, 8).map(|_unread| Value::Fixed)?,
            DELIMITED => {
                let length = decode_varint(&mut self.rest)?;
                Value::Delimited(self.take(field, length)?)
            }
            FIXED32 => self.take(field, 4).map(|_unread| Value::Fixed)?,
            _ => return Err(Error::Damaged { field }),
        };
        Ok((field, value))
    }

    fn take(&mut self, field: u64, length: u64) -> Result<&'a [u8], Error> {
        let taken = usize::try_from(length).ok().and_then(|length| self.rest.split_at_checked(length));
        let (taken, rest) = taken.ok_or(Error::Damaged { field })?;
        self.rest = rest;
        Ok(taken)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>), Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Takes a length and as many bytes from the front of `rest`, of which they are a part: the value of `field`.
pub(crate) fn take_delimited(rest: &mut Bytes, field: u64) -> Result<Bytes, Error> {
    let length = decode_varint(rest)?;
    match usize::try_from(length) {
        Ok(length) if length <= rest.len() => Ok(rest.split_to(length)),
        _ => Err(Error::Damaged { field }),
    }
}

/// Writes what stands before the bytes of a delimited field: its key and their length.
pub(crate) fn put_delimited_key(number: u64, length: usize, out: &mut impl BufMut) {
    encode_varint(number << 3 | DELIMITED, out);
    encode_varint(length as u64, out);
}

/// Bytes that [`put_delimited_key`] writes.
pub(crate) fn delimited_key_len(number: u64, length: usize) -> usize {
    encoded_len_varint(number << 3) + encoded_len_varint(length as u64)
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;
    use crate::{
        etcdserverpb::{RangeResponse, ResponseHeader},
        mvccpb::KeyValue,
    };

    #[test]
    fn fields_are_walked_as_prost_wrote_them() {
        let header = ResponseHeader { cluster_id: u64::MAX, ..ResponseHeader::default() };
        let kv = KeyValue { value: vec![7; 300].into(), ..KeyValue::default() };
        let response = RangeResponse { header: Some(header), kvs: vec![kv.clone()], more: true, count: 1 << 40 };
        let message = response.encode_to_vec();
        let found: Result<Vec<_>, Error> = fields(&message).collect();
        let expected = [
            (1, Value::Delimited(&header.encode_to_vec())),
            (2, Value::Delimited(&kv.encode_to_vec())),
            (3, Value::Varint(1)),
            (4, Value::Varint(1 << 40)),
        ];
        assert_eq!(found, Ok(expected.to_vec()));
        for cut in 0..message.len() {
            let walked: Vec<_> = fields(&message[..cut]).collect();
            let is_whole = walked.iter().all(Result::is_ok);
            assert!(walked.len() <= 4 && (!is_whole || walked.len() < 4), "cut at {cut}");
            assert!(walked.iter().rev().skip(1).all(Result::is_ok), "nothing comes behind an error");
        }
    }

    #[test]
    fn fixed_fields_are_passed_and_groups_are_not() {
        let message = [0x09, 1, 2, 3, 4, 5, 6, 7, 8, 0x15, 1, 2, 3, 4, 0x18, 5];
        let found: Result<Vec<_>, Error> = fields(&message).collect();
        assert_eq!(found, Ok(vec![(1, Value::Fixed), (2, Value::Fixed), (3, Value::Varint(5))]));
        assert_eq!(fields(&[0x0b, 0x0c]).next(), Some(Err(Error::Damaged { field: 1 })));
        assert!(matches!(fields(&[0xff; 20]).next(), Some(Err(Error::Malformed(_)))));
    }
}
