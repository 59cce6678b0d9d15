//! Reads the few fields of a reply that matter, without decoding the rest.
//!
//! A watch of many small events, or a listing, would otherwise cost the generator more than the server. Field numbers are those
//! of `rpc.proto` and `kv.proto`. Malformed input ends the walk with an error; it never reads beyond its slice.

use crate::error::Error;

/// One field's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// Fixed-width; none that we read.
    Other,
}

/// Walks the fields of an encoded message.
pub(crate) struct Fields<'a> {
    rest: &'a [u8],
}

/// The fields of `message`, in their order on the wire.
pub(crate) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message }
}

/// A page of a listing, as far as the next page depends on it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page<'a> {
    pub(crate) revision: i64,
    pub(crate) keys: u64,
    pub(crate) key_last: &'a [u8],
    pub(crate) has_more: bool,
}

/// Reads a RangeResponse.
pub(crate) fn page(message: &[u8]) -> Result<Page<'_>, Error> {
    let mut page = Page::default();
    for field in fields(message) {
        match field? {
            (1, Value::Bytes(header)) => page.revision = varint_field(header, 3)?.cast_signed(),
            (2, Value::Bytes(key_value)) => {
                page.keys += 1;
                page.key_last = bytes_field(key_value, 1)?;
            }
            (3, Value::Varint(more)) => page.has_more = more != 0,
            _ => {}
        }
    }
    Ok(page)
}

/// The last value of a varint field, or 0, as protobuf has it.
pub(crate) fn varint_field(message: &[u8], number: u64) -> Result<u64, Error> {
    let mut found = 0;
    for field in fields(message) {
        if let (n, Value::Varint(value)) = field?
            && n == number
        {
            found = value;
        }
    }
    Ok(found)
}

/// The last value of a bytes field, or nothing.
pub(crate) fn bytes_field(message: &[u8], number: u64) -> Result<&[u8], Error> {
    let mut found: &[u8] = &[];
    for field in fields(message) {
        if let (n, Value::Bytes(value)) = field?
            && n == number
        {
            found = value;
        }
    }
    Ok(found)
}

const MALFORMED: Error = Error::Grpc { reason: "malformed reply" };

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64, Error> {
        let mut value = 0;
        for (at, byte) in self.rest.iter().take(10).enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * at);
            if byte & 0x80 == 0 {
                self.rest = &self.rest[at + 1..];
                return Ok(value);
            }
        }
        Err(MALFORMED)
    }

    fn bytes(&mut self, count: u64) -> Result<&'a [u8], Error> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(MALFORMED)?;
        self.rest = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>), Error> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Varint(self.varint()?),
            1 => self.bytes(8).map(|_| Value::Other)?,
            2 => {
                let count = self.varint()?;
                Value::Bytes(self.bytes(count)?)
            }
            5 => self.bytes(4).map(|_| Value::Other)?,
            _ => return Err(MALFORMED),
        };
        Ok((tag >> 3, value))
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

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::etcdserverpb::{RangeResponse, ResponseHeader};
    use proto::mvccpb::KeyValue;

    use super::*;

    fn response() -> RangeResponse {
        let kvs = ["a", "b", "last"].map(|key| KeyValue {
            key: key.into(),
            value: vec![7; 300].into(),
            ..KeyValue::default()
        });
        let header = ResponseHeader { cluster_id: u64::MAX, revision: 1 << 40, ..ResponseHeader::default() };
        RangeResponse { header: Some(header), kvs: kvs.to_vec(), more: true, count: 9 }
    }

    #[test]
    fn a_page_is_read_as_prost_wrote_it() {
        let message = response().encode_to_vec();
        let found = page(&message).unwrap();
        assert_eq!(found, Page { revision: 1 << 40, keys: 3, key_last: b"last", has_more: true });
        assert_eq!(varint_field(&message, 4).unwrap(), 9);
    }

    #[test]
    fn every_cut_is_an_error_or_a_shorter_message() {
        let message = response().encode_to_vec();
        for cut in 0..message.len() {
            if let Ok(found) = page(&message[..cut]) {
                assert!(found.keys < 3 || !found.has_more || cut == message.len() - 2, "cut at {cut}");
            }
        }
        assert!(page(&[0xff; 20]).is_err());
    }
}
