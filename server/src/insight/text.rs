//! Runs on: connection core, apply core.
//!
//! Requests as text for the log, in etcd's form. Keys are escaped. Values are shown only by their size.
//!
//! Invariants: a text has at most about [`TEXT_BYTES_MAX`] bytes, whatever a client sent. It is ASCII only.
//! **Source** etcd v3.7.1 `api/etcdserverpb/raft_internal_stringer.go`.

use bytes::Bytes;
use prost::Message;
use proto::{
    etcdserverpb::{
        Compare, DeleteRangeRequest, LeaseGrantRequest, LeaseRevokeRequest, PutRequest, RangeRequest, RequestOp,
        TxnRequest, compare::TargetUnion, request_op::Request as Op,
    },
    internal::{self, Request},
    txn,
};

use crate::method::Method;

/// Length at which a text is cut. An operation that has begun is still named. **Units** bytes.
pub const TEXT_BYTES_MAX: usize = 1024;
/// Bytes of a key that are shown at most. **Units** bytes.
const KEY_BYTES_MAX: usize = 128;

/// A client's request as text.
pub fn request(method: Method, body: &Bytes) -> String {
    let mut text = Text(String::new());
    let known = match method {
        Method::Put => PutRequest::decode(body.clone()).map(|put| text.put(&put)),
        Method::Range => RangeRequest::decode(body.clone()).map(|range| text.range(&range)),
        Method::DeleteRange => DeleteRangeRequest::decode(body.clone()).map(|delete| text.delete(&delete)),
        Method::Txn => return txn::decode(body.clone()).map_or(String::new(), |txn| text.whole(&txn)),
        _ => Ok(()),
    };
    if known.is_err() { String::new() } else { text.0 }
}

/// An entry of the log as text.
pub fn entry(entry: &Bytes) -> String {
    let Ok((header, request)) = internal::decode(entry.clone()) else { return String::new() };
    let mut text = Text(format!("header:<ID:{}> ", header.id));
    match &request {
        Request::Put(put) => text.within("put", |text| text.put(put)),
        Request::Range(range) => text.within("range", |text| text.range(range)),
        Request::DeleteRange(delete) => text.within("delete_range", |text| text.delete(delete)),
        Request::Txn(txn) => text.within("txn", |text| text.txn(txn)),
        Request::LeaseGrant(LeaseGrantRequest { ttl, id }) => {
            text.within("lease_grant", |text| text.0.push_str(&format!("ttl:{ttl}-second id:{id:016x}")));
        }
        Request::LeaseRevoke(LeaseRevokeRequest { id }) => {
            text.within("lease_revoke", |text| text.0.push_str(&format!("id:{id:016x}")));
        }
        other => text.0.push_str(&format!("{:?}", other.kind())),
    }
    text.0
}

/// A key as text: printable ASCII as it is, the rest as octal escapes, cut where it is long.
pub fn escaped(key: &[u8]) -> String {
    let mut text = Text(String::new());
    text.bytes(key);
    text.0
}

struct Text(String);

impl Text {
    fn is_full(&self) -> bool {
        self.0.len() >= TEXT_BYTES_MAX
    }

    fn within(&mut self, name: &str, fill: impl FnOnce(&mut Self)) {
        self.0.push_str(name);
        self.0.push_str(":<");
        fill(self);
        self.0.push('>');
    }

    fn bytes(&mut self, bytes: &[u8]) {
        for byte in &bytes[..bytes.len().min(KEY_BYTES_MAX)] {
            match byte {
                b'"' | b'\\' => self.0.extend(['\\', char::from(*byte)]),
                b' '..=b'~' => self.0.push(char::from(*byte)),
                _ => self.0.push_str(&format!("\\{byte:03o}")),
            }
        }
        if bytes.len() > KEY_BYTES_MAX {
            self.0.push_str("...");
        }
    }

    fn key(&mut self, name: &str, key: &[u8]) {
        if !key.is_empty() {
            self.0.push_str(name);
            self.0.push_str(":\"");
            self.bytes(key);
            self.0.push_str("\" ");
        }
    }

    fn number(&mut self, name: &str, number: i64) {
        if number != 0 {
            self.0.push_str(&format!("{name}:{number} "));
        }
    }

    fn switch(&mut self, name: &str, is_set: bool) {
        if is_set {
            self.0.push_str(&format!("{name}:true "));
        }
    }

    fn put(&mut self, put: &PutRequest) {
        self.key("key", &put.key);
        self.number("value_size", i64::try_from(put.value.len()).unwrap_or(i64::MAX));
        self.number("lease", put.lease);
        self.switch("prev_kv", put.prev_kv);
        self.switch("ignore_value", put.ignore_value);
        self.switch("ignore_lease", put.ignore_lease);
    }

    fn range(&mut self, range: &RangeRequest) {
        self.key("key", &range.key);
        self.key("range_end", &range.range_end);
        self.number("limit", range.limit);
        self.number("revision", range.revision);
        self.number("sort_order", i64::from(range.sort_order));
        self.number("sort_target", i64::from(range.sort_target));
        self.switch("serializable", range.serializable);
        self.switch("keys_only", range.keys_only);
        self.switch("count_only", range.count_only);
        self.number("min_mod_revision", range.min_mod_revision);
        self.number("max_mod_revision", range.max_mod_revision);
        self.number("min_create_revision", range.min_create_revision);
        self.number("max_create_revision", range.max_create_revision);
    }

    fn delete(&mut self, delete: &DeleteRangeRequest) {
        self.key("key", &delete.key);
        self.key("range_end", &delete.range_end);
        self.switch("prev_kv", delete.prev_kv);
    }

    fn whole(mut self, txn: &TxnRequest) -> String {
        self.txn(txn);
        self.0
    }

    fn txn(&mut self, txn: &TxnRequest) {
        self.within("compare", |text| text.each(&txn.compare, Self::compare));
        self.within(" success", |text| text.each(&txn.success, Self::op));
        self.within(" failure", |text| text.each(&txn.failure, Self::op));
    }

    fn each<T>(&mut self, list: &[T], show: impl Fn(&mut Self, &T)) {
        for (position, item) in list.iter().enumerate() {
            if self.is_full() {
                self.0.push_str(&format!("... {} more", list.len() - position));
                return;
            }
            show(self, item);
        }
    }

    fn compare(&mut self, compare: &Compare) {
        self.0.push_str(&format!(
            "result:{} target:{} ",
            compare.result().as_str_name(),
            compare.target().as_str_name()
        ));
        self.key("key", &compare.key);
        match &compare.target_union {
            Some(TargetUnion::Value(value)) => {
                self.number("value_size", i64::try_from(value.len()).unwrap_or(i64::MAX));
            }
            Some(TargetUnion::Version(number)) => self.number("version", *number),
            Some(TargetUnion::CreateRevision(number)) => self.number("create_revision", *number),
            Some(TargetUnion::ModRevision(number)) => self.number("mod_revision", *number),
            Some(TargetUnion::Lease(number)) => self.number("lease", *number),
            None => {}
        }
        self.key("range_end", &compare.range_end);
    }

    fn op(&mut self, op: &RequestOp) {
        match &op.request {
            Some(Op::RequestPut(put)) => self.within("request_put", |text| text.put(put)),
            Some(Op::RequestRange(range)) => self.within("request_range", |text| text.range(range)),
            Some(Op::RequestDeleteRange(delete)) => self.within("request_delete_range", |text| text.delete(delete)),
            Some(Op::RequestTxn(txn)) if !self.is_full() => self.within("request_txn", |text| text.txn(txn)),
            Some(Op::RequestTxn(_)) => self.0.push_str("request_txn:<...>"),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_told_by_size_and_keys_escaped() {
        let put = PutRequest { key: "a\"\u{7}".into(), value: "secret".into(), lease: 7, ..Default::default() };
        let body = Bytes::from(put.encode_to_vec());
        assert_eq!(request(Method::Put, &body), r#"key:"a\"\007" value_size:6 lease:7 "#);
        let header = internal::RequestHeader { id: 9, ..Default::default() };
        let encoded = internal::encode(&header, internal::Kind::Put, &body);
        assert_eq!(entry(&encoded.entry), r#"header:<ID:9> put:<key:"a\"\007" value_size:6 lease:7 >"#);
    }

    #[test]
    fn a_txn_of_any_size_is_a_short_text_without_values() {
        let put = |value: &'static str| {
            Op::RequestPut(PutRequest { key: "k".into(), value: value.into(), ..Default::default() })
        };
        let op = |request| RequestOp { request: Some(request) };
        let compare =
            Compare { key: "c".into(), target_union: Some(TargetUnion::Value("secret".into())), ..Default::default() };
        let small = TxnRequest { compare: vec![compare], success: vec![op(put("secret"))], failure: vec![] };
        assert_eq!(
            request(Method::Txn, &small.encode_to_vec().into()),
            "compare:<result:EQUAL target:VERSION key:\"c\" value_size:6 > \
             success:<request_put:<key:\"k\" value_size:6 >> failure:<>"
        );
        let mut nested = small;
        for _ in 0..20 {
            nested = TxnRequest { success: vec![op(Op::RequestTxn(nested)); 2], ..Default::default() };
            if nested.encoded_len() > 1 << 16 {
                break;
            }
        }
        let large = TxnRequest { success: vec![op(Op::RequestTxn(nested)); 100], ..Default::default() };
        let text = request(Method::Txn, &large.encode_to_vec().into());
        assert!(text.len() < 4 * TEXT_BYTES_MAX && !text.contains("secret"), "{} bytes", text.len());
    }
}
