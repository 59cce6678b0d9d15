//! Runs on: connection core.
//!
//! The counts and sizes of a unary call that its log lines tell, as etcd counts them. Only calls that are logged are
//! measured, so bytes are decoded again here rather than kept in mind.
//!
//! **Source** etcd v3.7.1 `etcdserver/api/v3rpc/interceptor.go logUnaryRequestStats`, `etcdserver/txn/util.go`.

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{self as pb, response_op::Response},
    txn,
    wire::{Value, fields},
};

use super::body::Body;
use crate::{
    method::Method,
    protobuf::{PREFIX_BYTES, nested_len},
};

/// What the line `request stats` tells; -1 where etcd does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stats {
    pub(super) request_count: i64,
    /// **Units** bytes.
    pub(super) request_size: i64,
    pub(super) response_count: i64,
    /// **Units** bytes.
    pub(super) response_size: i64,
}

/// Fields of RangeResponse and DeleteRangeResponse.
const HEADER: u64 = 1;
const KVS: u64 = 2;
const COUNT: u64 = 4;
const DELETED: u64 = 2;

/// What is counted of a call of `method` with this message and answer; no answer for a call that failed.
pub(super) fn stats(method: Method, body: &Bytes, answer: Option<&Body>) -> Stats {
    let size = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
    let response_size = size(answer.map_or(0, Body::message_len));
    let (request_count, request_size, response_count) = match method {
        Method::Range => (0, size(body.len()), answer.map_or(0, count)),
        Method::Put => (1, size(body.len()), 0),
        Method::DeleteRange => (0, size(body.len()), answer.map_or(0, |answer| number(message(answer), DELETED))),
        Method::Txn => match answer.map(|answer| operations(body, message(answer))) {
            Some((operations, bytes)) => (size(operations), size(bytes), 0),
            None => (0, 0, 0),
        },
        _ => return Stats { request_count: -1, request_size: -1, response_count: -1, response_size: -1 },
    };
    Stats { request_count, request_size, response_count, response_size }
}

/// Whether the line `request stats` tells what this call asked for.
pub(super) fn tells_content(method: Method, answer: Option<&Body>) -> bool {
    match method {
        Method::Range | Method::Put | Method::DeleteRange => true,
        Method::Txn => answer.is_some(),
        _ => false,
    }
}

/// The answer to a call that only read, as the line `apply request took too long` tells it.
pub(super) fn read_response(method: Method, answer: &Body) -> String {
    let size = answer.message_len() - unapplied_len(answer);
    if method == Method::Range {
        return format!("range_response_count:{} size:{size}", keys(answer));
    }
    let txn = pb::TxnResponse::decode(message(answer)).unwrap_or_default();
    let counts: Vec<_> = txn.responses.iter().filter_map(|op| op.response.as_ref()).filter_map(range_count).collect();
    format!("responses:<{}> size:{size}", counts.join(" "))
}

fn range_count(response: &Response) -> Option<String> {
    let Response::ResponseRange(range) = response else { return None };
    Some(format!("range_response_count:{}", range.kvs.len()))
}

/// The bytes of an answer that is there whole.
fn message(answer: &Body) -> &[u8] {
    match answer {
        Body::Whole(framed) => framed.get(PREFIX_BYTES..).unwrap_or_default(),
        Body::Large(_) => &[],
    }
}

/// Keys in the range of a RangeResponse.
fn count(answer: &Body) -> i64 {
    match answer {
        Body::Whole(_) => number(message(answer), COUNT),
        Body::Large(large) => large.count(),
    }
}

/// Keys that a RangeResponse shows.
fn keys(answer: &Body) -> usize {
    match answer {
        Body::Whole(_) => fields(message(answer)).flatten().filter(|(field, _)| *field == KVS).count(),
        Body::Large(large) => large.left(),
    }
}

fn number(message: &[u8], field: u64) -> i64 {
    let found = fields(message).flatten().find_map(|(at, value)| match value {
        Value::Varint(number) if at == field => Some(number.cast_signed()),
        _ => None,
    });
    found.unwrap_or(0)
}

/// Bytes of the header of an answer that etcd adds only after it has measured: all but the revision.
fn unapplied_len(answer: &Body) -> usize {
    let header = match answer {
        Body::Whole(_) => fields(message(answer)).flatten().find_map(|(at, value)| match value {
            Value::Delimited(header) if at == HEADER => pb::ResponseHeader::decode(header).ok(),
            _ => None,
        }),
        Body::Large(large) => pb::ResponseHeader::decode(large.header().message()).ok(),
    };
    let Some(header) = header else { return 0 };
    let bare = pb::ResponseHeader { revision: header.revision, ..pb::ResponseHeader::default() };
    nested_len(header.encoded_len()) - nested_len(bare.encoded_len())
}

/// Number and size of the operations that a txn has done.
fn operations(body: &Bytes, response: &[u8]) -> (usize, usize) {
    const SUCCEEDED: u64 = 2;
    let Ok(request) = txn::decode(body.clone()) else { return (0, 0) };
    let done = if number(response, SUCCEEDED) != 0 { request.success } else { request.failure };
    (done.len(), done.iter().map(Message::encoded_len).sum())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protobuf::framed;

    fn header() -> Option<pb::ResponseHeader> {
        Some(pb::ResponseHeader { cluster_id: 1 << 60, member_id: 1 << 60, revision: 3, raft_term: 2 })
    }

    fn range(keys: usize, count: i64) -> pb::RangeResponse {
        let kvs = vec![proto::mvccpb::KeyValue { key: "k".into(), ..Default::default() }; keys];
        pb::RangeResponse { header: header(), kvs, more: true, count }
    }

    #[test]
    fn ranges_and_deletes_tell_how_many_keys_they_met() {
        let body = Bytes::from(pb::RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec());
        let answer = Body::Whole(framed(&range(2, 9)));
        let expected = Stats {
            request_count: 0,
            request_size: 3,
            response_count: 9,
            response_size: i64::try_from(range(2, 9).encoded_len()).unwrap(),
        };
        assert_eq!(stats(Method::Range, &body, Some(&answer)), expected);
        let failed = Stats { response_count: 0, response_size: 0, ..expected };
        assert_eq!(stats(Method::Range, &body, None), failed);
        let deleted = pb::DeleteRangeResponse { header: header(), deleted: 7, prev_kvs: Vec::new() };
        assert_eq!(stats(Method::DeleteRange, &body, Some(&Body::Whole(framed(&deleted)))).response_count, 7);
        let bare =
            pb::RangeResponse { header: Some(pb::ResponseHeader { revision: 3, ..Default::default() }), ..range(2, 9) };
        let expected = format!("range_response_count:2 size:{}", bare.encoded_len());
        assert_eq!(read_response(Method::Range, &answer), expected);
    }

    #[test]
    fn a_txn_tells_of_the_branch_that_it_took() {
        let op = |key: &'static str| pb::RequestOp {
            request: Some(pb::request_op::Request::RequestRange(pb::RangeRequest {
                key: key.into(),
                ..Default::default()
            })),
        };
        let request = pb::TxnRequest { success: vec![op("k"), op("kk")], failure: vec![op("k")], ..Default::default() };
        let body = Bytes::from(request.encode_to_vec());
        let response = |succeeded| {
            let op = |keys| pb::ResponseOp { response: Some(Response::ResponseRange(range(keys, 1))) };
            let responses = vec![op(1), op(0)];
            Body::Whole(framed(&pb::TxnResponse { header: header(), succeeded, responses }))
        };
        let of = |answer: Option<&Body>| {
            let Stats { request_count, request_size, response_count, .. } = stats(Method::Txn, &body, answer);
            (request_count, request_size, response_count)
        };
        assert_eq!(of(Some(&response(true))), (2, 11, 0));
        assert_eq!(of(Some(&response(false))), (1, 5, 0));
        assert_eq!(of(None), (0, 0, 0));
        let told = read_response(Method::Txn, &response(true));
        assert!(told.starts_with("responses:<range_response_count:1 range_response_count:0> size:"), "{told}");
    }

    #[test]
    fn what_etcd_does_not_count_is_minus_one() {
        let answer = Body::Whole(framed(&pb::StatusResponse::default()));
        let stats = stats(Method::Status, &Bytes::new(), Some(&answer));
        let expected = Stats { request_count: -1, request_size: -1, response_count: -1, response_size: -1 };
        assert_eq!(stats, expected);
        assert!(!tells_content(Method::Status, Some(&answer)) && !tells_content(Method::Txn, None));
    }
}
