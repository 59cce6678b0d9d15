//! Decoding of `TxnRequest`, the one message that holds itself.
//!
//! prost refuses what is nested deeper than 100 messages, which is 50 txns; etcd takes [`LEVELS_MAX`]. Here the stack
//! of messages under way is a vector, so that decoding a deep txn needs no more of the thread's stack than a flat one.
//! Unknown fields are skipped, as protobuf asks, within prost's own limit.
//!
//! A recursive walk over the result needs a stack for [`LEVELS_MAX`]. Dropping the result is such a walk.
//!
//! Invariants: of the messages in `stack` each is held by the one before it, and txns and operations alternate, a txn
//! first. A message that prost decodes is decoded to the same value.

use bytes::Bytes;
use prost::{
    Message,
    encoding::{DecodeContext, WireType, decode_key, skip_field},
};

use crate::{
    error::Error,
    etcdserverpb::{Compare, RequestOp, TxnRequest, request_op::Request},
    wire::take_delimited,
};

/// Messages that may be nested in one another, the outermost txn included; so 4,999 txns around a put.
///
/// **Source**: protobuf-go v1.36 `internal/impl/decode.go`, `protowire.DefaultRecursionLimit`; etcd 3.7.1 takes 4,999
/// and refuses 5,000.
pub const LEVELS_MAX: usize = 10_000;

enum Level {
    Txn { txn: TxnRequest, rest: Bytes },
    Op { op: RequestOp, is_success: bool, rest: Bytes },
}

/// The txn that `raw` holds; its byte fields share memory with it.
///
/// **Errors**: `TooDeep`, `Malformed`, `Damaged`.
pub fn decode(raw: Bytes) -> Result<TxnRequest, Error> {
    let mut stack = vec![Level::Txn { txn: TxnRequest::default(), rest: raw }];
    loop {
        let level = stack.last_mut().expect("the outermost txn leaves last");
        let below = match level {
            Level::Txn { rest, .. } | Level::Op { rest, .. } if rest.is_empty() => {
                if let Some(txn) = finish(&mut stack) {
                    return Ok(txn);
                }
                continue;
            }
            Level::Txn { txn, rest } => txn_field(txn, rest)?,
            Level::Op { op, rest, .. } => op_field(op, rest)?,
        };
        let held = match below {
            Field::Nothing => continue,
            Field::Leaf => 1,
            Field::Message(level) => {
                stack.push(level);
                0
            }
        };
        if stack.len() + held > LEVELS_MAX {
            return Err(Error::TooDeep);
        }
    }
}

/// What a field was.
enum Field {
    /// Nothing, or nothing we know.
    Nothing,
    /// A message that holds no other.
    Leaf,
    /// A message that is read next.
    Message(Level),
}

/// Reads one field of a txn.
fn txn_field(txn: &mut TxnRequest, rest: &mut Bytes) -> Result<Field, Error> {
    match decode_key(rest)? {
        (1, WireType::LengthDelimited) => {
            txn.compare.push(Compare::decode(take_delimited(rest, 1)?)?);
            Ok(Field::Leaf)
        }
        (field @ (2 | 3), WireType::LengthDelimited) => {
            let rest = take_delimited(rest, field.into())?;
            Ok(Field::Message(Level::Op { op: RequestOp::default(), is_success: field == 2, rest }))
        }
        (field, wire_type) => {
            skip_field(wire_type, field, rest, DecodeContext::default())?;
            Ok(Field::Nothing)
        }
    }
}

/// Reads one field of an operation. One that is set twice is merged, one of another kind replaced.
fn op_field(op: &mut RequestOp, rest: &mut Bytes) -> Result<Field, Error> {
    let (field, wire_type) = decode_key(rest)?;
    if wire_type != WireType::LengthDelimited || !(1..=4).contains(&field) {
        skip_field(wire_type, field, rest, DecodeContext::default())?;
        return Ok(Field::Nothing);
    }
    let raw = take_delimited(rest, field.into())?;
    let before = op.request.take();
    let request = match (field, before) {
        (1, Some(Request::RequestRange(range))) => Request::RequestRange(merged(range, raw)?),
        (1, _) => Request::RequestRange(Message::decode(raw)?),
        (2, Some(Request::RequestPut(put))) => Request::RequestPut(merged(put, raw)?),
        (2, _) => Request::RequestPut(Message::decode(raw)?),
        (3, Some(Request::RequestDeleteRange(delete))) => Request::RequestDeleteRange(merged(delete, raw)?),
        (3, _) => Request::RequestDeleteRange(Message::decode(raw)?),
        (_, Some(Request::RequestTxn(txn))) => return Ok(Field::Message(Level::Txn { txn, rest: raw })),
        (_, _) => return Ok(Field::Message(Level::Txn { txn: TxnRequest::default(), rest: raw })),
    };
    op.request = Some(request);
    Ok(Field::Leaf)
}

fn merged<M: Message>(mut message: M, raw: Bytes) -> Result<M, prost::DecodeError> {
    message.merge(raw)?;
    Ok(message)
}

/// Hands the innermost message, which is read to its end, to the one around it; the txn itself if there is none.
fn finish(stack: &mut Vec<Level>) -> Option<TxnRequest> {
    match (stack.pop(), stack.last_mut()) {
        (Some(Level::Txn { txn, .. }), None) => return Some(txn),
        (Some(Level::Txn { txn, .. }), Some(Level::Op { op, .. })) => op.request = Some(Request::RequestTxn(txn)),
        (Some(Level::Op { op, is_success, .. }), Some(Level::Txn { txn, .. })) => {
            let ops = if is_success { &mut txn.success } else { &mut txn.failure };
            ops.push(op);
        }
        _ => unreachable!("txns and operations alternate"),
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::etcdserverpb::{DeleteRangeRequest, PutRequest, RangeRequest};

    /// xorshift64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % bound as u64).unwrap()
        }

        fn txn(&mut self, depth: usize) -> TxnRequest {
            let compare = (0..self.below(3)).map(|n| Compare { key: vec![b'c'; n].into(), ..Default::default() });
            let mut txn = TxnRequest { compare: compare.collect(), ..Default::default() };
            for _ in 0..self.below(4) {
                let op = self.op(depth);
                if self.below(2) == 0 { txn.success.push(op) } else { txn.failure.push(op) }
            }
            txn
        }

        fn op(&mut self, depth: usize) -> RequestOp {
            let key = Bytes::from(self.below(1000).to_string());
            let request = match self.below(6) {
                0 => None,
                1 => Some(Request::RequestRange(RangeRequest { key, limit: 3, ..Default::default() })),
                2 => Some(Request::RequestPut(PutRequest { key, lease: -1, ..Default::default() })),
                3 => Some(Request::RequestDeleteRange(DeleteRangeRequest { key, ..Default::default() })),
                _ if depth > 0 => Some(Request::RequestTxn(self.txn(depth - 1))),
                _ => None,
            };
            RequestOp { request }
        }
    }

    #[test]
    fn a_txn_is_decoded_as_prost_does_whatever_the_bytes() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let (mut whole, mut refused) = (0, 0);
        for _ in 0..4000 {
            let txn = random.txn(6);
            let mut bytes = txn.encode_to_vec();
            assert_eq!(decode(bytes.clone().into()), Ok(txn));
            // Fields twice, in any order, cut, or other bytes altogether.
            let other = random.txn(2).encode_to_vec();
            bytes.extend_from_slice(&other);
            for _ in 0..random.below(3) {
                if bytes.is_empty() {
                    break;
                }
                let at = random.below(bytes.len());
                match random.below(3) {
                    0 => bytes[at] = u8::try_from(random.below(256)).unwrap(),
                    1 => bytes.truncate(at),
                    _ => bytes.insert(at, u8::try_from(random.below(256)).unwrap()),
                }
            }
            let bytes = Bytes::from(bytes);
            match TxnRequest::decode(bytes.clone()) {
                Ok(known) => {
                    whole += 1;
                    assert_eq!(decode(bytes.clone()), Ok(known), "{bytes:?}");
                }
                Err(error) => {
                    refused += 1;
                    // A known field of another wire type is unknown to protobuf-go and to us; prost refuses it.
                    let is_type = error.to_string().contains("invalid wire type");
                    assert!(is_type || decode(bytes.clone()).is_err(), "{error}: {bytes:?}");
                }
            }
        }
        assert!(whole > 500 && refused > 500, "{whole} whole, {refused} refused");
    }

    #[test]
    fn an_operation_set_twice_is_merged() {
        let nested = |key: &'static str| {
            let compare = vec![Compare { key: key.into(), ..Default::default() }];
            let txn = TxnRequest { compare, ..Default::default() };
            RequestOp { request: Some(Request::RequestTxn(txn)) }.encode_to_vec()
        };
        let mut raw = Vec::new();
        prost::encoding::bytes::encode(2, &[nested("a"), nested("b")].concat(), &mut raw);
        let known = TxnRequest::decode(&raw[..]).unwrap();
        assert_eq!(decode(raw.into()), Ok(known));
    }

    fn nested(txns: usize) -> Bytes {
        let put = PutRequest { key: "k".into(), ..Default::default() };
        let mut raw = Vec::new();
        prost::encoding::message::encode(2, &RequestOp { request: Some(Request::RequestPut(put)) }, &mut raw);
        for _ in 1..txns {
            let mut op = Vec::new();
            prost::encoding::bytes::encode(4, &raw, &mut op);
            raw.clear();
            prost::encoding::bytes::encode(2, &op, &mut raw);
        }
        raw.into()
    }

    #[test]
    fn txns_nest_as_deep_as_etcds_and_no_deeper() {
        let decode_on_a_small_stack = |txns: usize| {
            let raw = nested(txns);
            match decode(raw) {
                Ok(mut txn) => {
                    // Taken apart level by level: dropping it whole takes a stack.
                    let mut depth = 1;
                    while let Some(Request::RequestTxn(below)) = txn.success.pop().and_then(|op| op.request) {
                        (txn, depth) = (below, depth + 1);
                    }
                    Ok(depth)
                }
                Err(error) => Err(error),
            }
        };
        for txns in [1, 50, 51, 1000, 4999] {
            assert_eq!(decode_on_a_small_stack(txns), Ok(txns));
        }
        for txns in [5000, 5001, 100_000] {
            assert_eq!(decode_on_a_small_stack(txns), Err(Error::TooDeep));
        }
    }
}
