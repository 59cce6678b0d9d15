//! Runs on: connection core.
//!
//! Response headers as bytes, and the answers under them. Each answer has one, and the ids of cluster and member are
//! most of it: they are written once.
//!
//! Invariant: the bytes equal prost's (a test compares).

use bytes::{BufMut, Bytes};
use prost::Message;

use crate::protobuf::{PREFIX_BYTES, put_prefix, put_varint};

/// A tag and a varint. **Units** bytes.
const FIELD_LEN_MAX: usize = 11;
/// The field's tag and length, and four fields. **Units** bytes.
const HEADER_LEN_MAX: usize = 2 + 4 * FIELD_LEN_MAX;
const _: () = assert!(HEADER_LEN_MAX - 2 < 0x80, "the header's length fits one byte");
/// The tag of the header in each response.
const HEADER_TAG: u8 = 1 << 3 | 2;

/// The ids of cluster and member, as the first fields of a header.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ids {
    bytes: [u8; 2 * FIELD_LEN_MAX],
    len: usize,
}

impl Ids {
    /// The ids of a member.
    pub fn new(cluster_id: u64, member_id: u64) -> Self {
        let mut bytes = [0; 2 * FIELD_LEN_MAX];
        let mut rest = &mut bytes[..];
        put_field(&mut rest, 1, cluster_id);
        put_field(&mut rest, 2, member_id);
        let len = 2 * FIELD_LEN_MAX - rest.len();
        Self { bytes, len }
    }
}

/// A response header with the tag of its field. It is equal for all answers at the same revision.
#[derive(Clone, Copy, Debug)]
pub struct Header {
    bytes: [u8; HEADER_LEN_MAX],
    len: usize,
}

impl Header {
    /// The header of a member at `revision` in `raft_term`.
    pub fn new(ids: &Ids, revision: i64, raft_term: u64) -> Self {
        let mut bytes = [0; HEADER_LEN_MAX];
        // All bytes of the ids, as a copy of fixed length costs nothing; those behind `len` are written over.
        bytes[2..2 + ids.bytes.len()].copy_from_slice(&ids.bytes);
        let mut rest = &mut bytes[2 + ids.len..];
        put_field(&mut rest, 3, revision.cast_unsigned());
        put_field(&mut rest, 4, raft_term);
        let len = HEADER_LEN_MAX - rest.len();
        bytes[0] = HEADER_TAG;
        bytes[1] = u8::try_from(len - 2).expect("at most HEADER_LEN_MAX");
        Self { bytes, len }
    }

    /// The field of a response.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// The header alone.
    pub fn message(&self) -> &[u8] {
        &self.bytes[2..self.len]
    }
}

/// A response with its length in front: `header`, and `rest`, which has none.
///
/// **Bounds** as [`crate::protobuf::framed`].
pub fn framed_under(header: &Header, rest: &impl Message) -> Bytes {
    let mut out = Vec::with_capacity(PREFIX_BYTES + header.as_slice().len() + rest.encoded_len());
    put_framed_under(&mut out, header, rest);
    out.into()
}

/// Appends what [`framed_under`] returns.
pub fn put_framed_under(out: &mut Vec<u8>, header: &Header, rest: &impl Message) {
    let len = header.as_slice().len() + rest.encoded_len();
    put_prefix(out, len);
    let begins = out.len();
    out.put_slice(header.as_slice());
    rest.encode_raw(out);
    assert_eq!(out.len() - begins, len, "a message is as long as it says");
}

fn put_field(out: &mut impl BufMut, number: u8, value: u64) {
    if value != 0 {
        out.put_u8(number << 3);
        put_varint(out, value);
    }
}

#[cfg(test)]
mod tests {
    use proto::etcdserverpb::{PutResponse, ResponseHeader};

    use super::*;

    #[test]
    fn bytes_equal_those_of_prost() {
        let values = [0, 1, 0x7f, 0x80, 1 << 40, u64::MAX];
        for cluster_id in values {
            for member_id in values {
                for (revision, raft_term) in [(0, 0), (1, 2), (i64::MAX, u64::MAX), (-1, 0), (0, 300)] {
                    let header = ResponseHeader { cluster_id, member_id, revision, raft_term };
                    let written = Header::new(&Ids::new(cluster_id, member_id), revision, raft_term);
                    assert_eq!(ResponseHeader::decode(written.message()).unwrap(), header);
                    let response = PutResponse { header: Some(header), prev_kv: None };
                    assert_eq!(written.as_slice(), response.encode_to_vec());
                }
            }
        }
    }
}
