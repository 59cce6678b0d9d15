//! Reads the few fields of a reply that matter, without decoding the rest.
//!
//! Decoding a watch of many small events, or a listing, would cost the generator more than answering costs the server.
//! Field numbers are those of `rpc.proto` and `kv.proto`; the walk over fields is `proto::wire`'s. Malformed input ends
//! it with an error.

use proto::wire::{Value, fields};

use crate::error::Error;

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
            (1, Value::Delimited(header)) => page.revision = varint_field(header, 3)?.cast_signed(),
            (2, Value::Delimited(key_value)) => {
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
        if let (n, Value::Delimited(value)) = field?
            && n == number
        {
            found = value;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use proto::{
        etcdserverpb::{RangeResponse, ResponseHeader},
        mvccpb::KeyValue,
    };

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
