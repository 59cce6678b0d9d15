//! Runs on: connection core.
//!
//! The checks that a KV request must pass before anything else looks at it: etcd's static checks, in etcd's order.
//!
//! It owns no state and reads no key. It costs O(size of the request · log), for hostile txns too.
//! **Source** etcd v3.7.1 `server/etcdserver/api/v3rpc/key.go`.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use proto::etcdserverpb::{
    DeleteRangeRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, range_request, request_op::Request,
};

use crate::error::Error;

/// Checks a Range.
///
/// **Errors** an empty key, an unknown sort order or target.
pub fn range(request: &RangeRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    let known = range_request::SortOrder::try_from(request.sort_order).is_ok()
        && range_request::SortTarget::try_from(request.sort_target).is_ok();
    if known { Ok(()) } else { Err(Error::InvalidSortOption) }
}

/// Checks a Put.
///
/// **Errors** an empty key; a value beside `ignore_value`, a lease beside `ignore_lease`.
pub fn put(request: &PutRequest) -> Result<(), Error> {
    if request.key.is_empty() {
        return Err(Error::EmptyKey);
    }
    if request.ignore_value && !request.value.is_empty() {
        return Err(Error::ValueProvided);
    }
    if request.ignore_lease && request.lease != 0 {
        return Err(Error::LeaseProvided);
    }
    Ok(())
}

/// Checks a DeleteRange.
///
/// **Errors** an empty key.
pub fn delete(request: &DeleteRangeRequest) -> Result<(), Error> {
    if request.key.is_empty() { Err(Error::EmptyKey) } else { Ok(()) }
}

/// Checks a Txn with at most `ops_max` operations per level.
///
/// **Errors** those of its operations; too many of them; keys written twice.
pub fn txn(request: &TxnRequest, ops_max: usize) -> Result<(), Error> {
    txn_ops(request, ops_max)?;
    Written::of(&request.success)?;
    Written::of(&request.failure)?;
    Ok(())
}

fn txn_ops(request: &TxnRequest, ops_max: usize) -> Result<(), Error> {
    let ops = request.compare.len().max(request.success.len()).max(request.failure.len());
    if ops > ops_max {
        return Err(Error::TooManyOps);
    }
    if request.compare.iter().any(|compare| compare.key.is_empty()) {
        return Err(Error::EmptyKey);
    }
    request.success.iter().chain(&request.failure).try_for_each(|request| op(request, ops_max - ops))
}

fn op(op: &RequestOp, ops_max: usize) -> Result<(), Error> {
    match &op.request {
        Some(Request::RequestRange(request)) => range(request),
        Some(Request::RequestPut(request)) => put(request),
        Some(Request::RequestDeleteRange(request)) => delete(request),
        Some(Request::RequestTxn(request)) => txn_ops(request, ops_max),
        None => Err(Error::KeyNotFound),
    }
}

/// The keys that one level of a txn puts, and the ranges that it deletes. Those of its children are included.
#[derive(Default)]
struct Written {
    puts: HashSet<Bytes>,
    /// Disjoint intervals, by start, with their end. An interval whose end is not after its start is empty. This is so
    /// in etcd too: there a delete of "every key from k" has the end "\0", and so escapes this check.
    deletes: BTreeMap<Bytes, Bytes>,
}

impl Written {
    fn of(ops: &[RequestOp]) -> Result<Self, Error> {
        let mut written = Self::default();
        for op in ops {
            if let Some(Request::RequestDeleteRange(delete)) = &op.request {
                written.add_delete(delete);
            }
        }
        for op in ops {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                let then = Self::of(&txn.success)?;
                let otherwise = Self::of(&txn.failure)?;
                written.add_children(then, otherwise)?;
            }
        }
        for op in ops {
            if let Some(Request::RequestPut(put)) = &op.request {
                written.add_put(put.key.clone())?;
            }
        }
        Ok(written)
    }

    fn add_put(&mut self, key: Bytes) -> Result<(), Error> {
        if self.deletes_hold(&key) || !self.puts.insert(key) { Err(Error::DuplicateKey) } else { Ok(()) }
    }

    /// Only one of the two branches of a child is executed, so both may put the same key. No other two puts may.
    fn add_children(&mut self, then: Self, otherwise: Self) -> Result<(), Error> {
        for key in &then.puts {
            self.add_put(key.clone())?;
        }
        for key in otherwise.puts {
            if then.puts.contains(&key) {
                continue;
            }
            self.add_put(key)?;
        }
        for (start, end) in then.deletes.into_iter().chain(otherwise.deletes) {
            self.insert_delete(start, end);
        }
        Ok(())
    }

    fn add_delete(&mut self, delete: &DeleteRangeRequest) {
        let end = if delete.range_end.is_empty() {
            let mut after = Vec::with_capacity(delete.key.len() + 1);
            after.extend_from_slice(&delete.key);
            after.push(0);
            Bytes::from(after)
        } else {
            delete.range_end.clone()
        };
        if end > delete.key {
            self.insert_delete(delete.key.clone(), end);
        }
    }

    fn insert_delete(&mut self, mut start: Bytes, mut end: Bytes) {
        if let Some((before, before_end)) = self.deletes.range::<Bytes, _>(..=&start).next_back()
            && *before_end >= start
        {
            start = before.clone();
            end = end.max(before_end.clone());
            self.deletes.remove(&start);
        }
        while let Some((next, next_end)) = self.deletes.range::<Bytes, _>(&start..).next()
            && *next <= end
        {
            let next = next.clone();
            end = end.max(next_end.clone());
            self.deletes.remove(&next);
        }
        self.deletes.insert(start, end);
    }

    fn deletes_hold(&self, key: &Bytes) -> bool {
        let before = self.deletes.range::<Bytes, _>(..=key).next_back();
        before.is_some_and(|(_, end)| key < end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put_op(key: &'static str) -> RequestOp {
        RequestOp { request: Some(Request::RequestPut(PutRequest { key: key.into(), ..Default::default() })) }
    }

    fn delete_op(key: &'static str, end: &'static str) -> RequestOp {
        let delete = DeleteRangeRequest { key: key.into(), range_end: end.into(), ..Default::default() };
        RequestOp { request: Some(Request::RequestDeleteRange(delete)) }
    }

    fn txn_op(success: Vec<RequestOp>, failure: Vec<RequestOp>) -> RequestOp {
        RequestOp { request: Some(Request::RequestTxn(TxnRequest { success, failure, ..Default::default() })) }
    }

    fn checked(success: Vec<RequestOp>) -> Result<(), Error> {
        txn(&TxnRequest { success, ..Default::default() }, 128)
    }

    #[test]
    fn writes_of_one_key_are_refused_where_etcd_refuses_them() {
        let duplicate = Err(Error::DuplicateKey);
        assert_eq!(checked(vec![put_op("a"), put_op("a")]), duplicate);
        assert_eq!(checked(vec![put_op("b"), delete_op("a", "c")]), duplicate);
        assert_eq!(checked(vec![put_op("c"), delete_op("a", "c")]), Ok(()));
        assert_eq!(checked(vec![put_op("c"), delete_op("a", "\0")]), Ok(()));
        assert_eq!(checked(vec![delete_op("a", "c"), delete_op("b", "d")]), Ok(()));
        assert_eq!(checked(vec![txn_op(vec![put_op("a")], vec![put_op("a")])]), Ok(()));
        assert_eq!(checked(vec![txn_op(vec![put_op("a")], vec![]), put_op("a")]), duplicate);
        assert_eq!(checked(vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![], vec![put_op("a")])]), duplicate);
        let deletes_first = vec![txn_op(vec![delete_op("a", "")], vec![]), txn_op(vec![put_op("a")], vec![])];
        assert_eq!(checked(deletes_first), duplicate);
        let puts_first = vec![txn_op(vec![put_op("a")], vec![]), txn_op(vec![delete_op("a", "")], vec![])];
        assert_eq!(checked(puts_first), Ok(()));
    }

    #[test]
    fn delete_ranges_merge_into_disjoint_ones() {
        let mut written = Written::default();
        for (start, end) in [("d", "f"), ("a", "b"), ("b", "c"), ("e", "k"), ("c", "d")] {
            written.insert_delete(start.into(), end.into());
        }
        assert_eq!(written.deletes.len(), 1);
        assert!(written.deletes_hold(&"a".into()) && written.deletes_hold(&"j".into()));
        assert!(!written.deletes_hold(&"k".into()));
    }

    #[test]
    fn operation_budget_shrinks_with_depth() {
        let many = |n| (0..n).map(|_| delete_op("a", "")).collect::<Vec<_>>();
        assert_eq!(checked(many(128)), Ok(()));
        assert_eq!(checked(many(129)), Err(Error::TooManyOps));
        assert_eq!(checked(vec![txn_op(many(127), vec![])]), Ok(()));
        assert_eq!(checked(vec![txn_op(many(128), vec![])]), Err(Error::TooManyOps));
        assert_eq!(checked(vec![RequestOp { request: None }]), Err(Error::KeyNotFound));
    }
}
