//! What etcd's requests mean, in the simplest words: maps of keys, no trees, no pages, no members.
//!
//! The model applies the log's requests in their order, and answers each as etcd does. It keeps everything that ever
//! was: any revision can be read from it, and what may be read is the caller's to say (`compacted`).
//!
//! What requests mean here: no key is written twice in a txn, and a read in a txn of the past sees what was before it.
//! Clients here ask for nothing else. Headers are left out of all answers.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
};

use bytes::Bytes;
use proto::{
    etcdserverpb::{
        self as pb, Compare, compare::CompareResult, compare::CompareTarget, compare::TargetUnion, request_op,
        response_op::Response,
    },
    internal::Request,
    mvccpb::KeyValue,
    wire_range::WireRange,
};

/// Why etcd refuses a request that was applied. Nothing is changed then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    Compacted,
    Future,
    LeaseNotFound,
    LeaseExists,
}

/// What a request that was applied answers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Done {
    Put(Option<KeyValue>),
    Delete(pb::DeleteRangeResponse),
    Txn(pb::TxnResponse),
    Compaction,
    Grant,
    Revoke,
    Refused(Refusal),
    /// One of the members' own.
    Own,
}

/// One change of one key. `after` is `None` if it was deleted.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Change {
    pub(crate) key: Bytes,
    pub(crate) after: Option<KeyValue>,
    /// What the key had before the whole revision.
    pub(crate) before: Option<KeyValue>,
}

/// See the head of this file.
#[derive(Default)]
pub(crate) struct Model {
    pub(crate) revision: i64,
    pub(crate) compacted: i64,
    keys: BTreeMap<Bytes, KeyValue>,
    /// What each key became, with the revisions.
    history: BTreeMap<Bytes, Vec<(i64, Option<KeyValue>)>>,
    /// The changes of each revision from 2 on.
    changes: Vec<Vec<Change>>,
    leases: BTreeMap<i64, BTreeSet<Bytes>>,
}

/// Whether `key` is in the range of a request.
pub(crate) fn is_in(range: &WireRange, key: &[u8]) -> bool {
    match range {
        WireRange::Single(single) => key == single,
        WireRange::From(start) => key >= &start[..],
        WireRange::Bounded { start, end } => key >= &start[..] && key < &end[..],
    }
}

fn start_of(range: &WireRange) -> &Bytes {
    match range {
        WireRange::Single(start) | WireRange::From(start) | WireRange::Bounded { start, .. } => start,
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { revision: 1, ..Self::default() }
    }

    /// Applies a request.
    pub(crate) fn apply(&mut self, request: &Request) -> Done {
        match request {
            Request::Put(put) => match self.check_put(put) {
                Ok(()) => self.write(|model| Done::Put(model.put(put))),
                Err(refusal) => Done::Refused(refusal),
            },
            Request::DeleteRange(delete) => self.write(|model| Done::Delete(model.delete(delete))),
            Request::Txn(txn) => {
                let mut path = Vec::new();
                self.decide(txn, &mut path);
                match self.check_txn(txn, &mut path.iter()) {
                    Ok(()) => self.write(|model| Done::Txn(model.txn(txn, &mut path.iter()))),
                    Err(refusal) => Done::Refused(refusal),
                }
            }
            Request::Compaction(request) => self.compact(request.revision),
            Request::LeaseGrant(grant) if self.leases.contains_key(&grant.id) => Done::Refused(Refusal::LeaseExists),
            Request::LeaseGrant(grant) => {
                self.leases.insert(grant.id, BTreeSet::new());
                Done::Grant
            }
            Request::LeaseRevoke(revoke) => {
                let Some(keys) = self.leases.remove(&revoke.id) else {
                    return Done::Refused(Refusal::LeaseNotFound);
                };
                self.write(|model| {
                    keys.into_iter().for_each(|key| model.end(&key));
                    Done::Revoke
                })
            }
            _ => Done::Own,
        }
    }

    fn compact(&mut self, revision: i64) -> Done {
        if revision <= self.compacted {
            return Done::Refused(Refusal::Compacted);
        }
        if revision > self.revision {
            return Done::Refused(Refusal::Future);
        }
        self.compacted = revision;
        Done::Compaction
    }

    /// Makes the changes of one request, which have one revision together.
    fn write(&mut self, make: impl FnOnce(&mut Self) -> Done) -> Done {
        self.changes.push(Vec::new());
        self.revision += 1;
        let done = make(self);
        if self.changes.last().is_some_and(Vec::is_empty) {
            self.changes.pop();
            self.revision -= 1;
        }
        done
    }

    fn change(&mut self, key: &Bytes, after: Option<KeyValue>) {
        let before = self.at(key, self.revision - 1).cloned();
        match &after {
            Some(kv) => drop(self.keys.insert(key.clone(), kv.clone())),
            None => drop(self.keys.remove(key)),
        }
        self.history.entry(key.clone()).or_default().push((self.revision, after.clone()));
        let changes = self.changes.last_mut().expect("a request is under way");
        changes.push(Change { key: key.clone(), after, before });
    }

    fn detach(&mut self, key: &Bytes) {
        let lease = self.keys.get(key).map_or(0, |kv| kv.lease);
        if let Some(keys) = self.leases.get_mut(&lease) {
            keys.remove(key);
        }
    }

    fn end(&mut self, key: &Bytes) {
        self.detach(key);
        self.change(key, None);
    }

    fn put(&mut self, put: &pb::PutRequest) -> Option<KeyValue> {
        let previous = self.keys.get(&put.key).cloned();
        let (create_revision, version) =
            previous.as_ref().map_or((self.revision, 1), |kv| (kv.create_revision, kv.version + 1));
        let kv = KeyValue {
            key: put.key.clone(),
            value: put.value.clone(),
            create_revision,
            mod_revision: self.revision,
            version,
            lease: put.lease,
        };
        self.detach(&put.key);
        if let Some(keys) = self.leases.get_mut(&put.lease) {
            keys.insert(put.key.clone());
        }
        self.change(&put.key, Some(kv));
        previous.filter(|_| put.prev_kv)
    }

    fn delete(&mut self, delete: &pb::DeleteRangeRequest) -> pb::DeleteRangeResponse {
        let range = WireRange::new(delete.key.clone(), delete.range_end.clone());
        let found: Vec<KeyValue> = self.live(&range).cloned().collect();
        found.iter().for_each(|kv| self.end(&kv.key));
        let deleted = i64::try_from(found.len()).expect("far fewer");
        let prev_kvs = if delete.prev_kv { found } else { Vec::new() };
        pb::DeleteRangeResponse { header: None, deleted, prev_kvs }
    }

    fn live<'a>(&'a self, range: &'a WireRange) -> impl Iterator<Item = &'a KeyValue> {
        let from = self.keys.range(start_of(range).clone()..);
        from.map(|(_, kv)| kv).take_while(|kv| is_in(range, &kv.key))
    }

    fn check_put(&self, put: &pb::PutRequest) -> Result<(), Refusal> {
        let is_there = put.lease == 0 || self.leases.contains_key(&put.lease);
        if is_there { Ok(()) } else { Err(Refusal::LeaseNotFound) }
    }

    fn check_range(&self, range: &pb::RangeRequest) -> Result<(), Refusal> {
        match range.revision {
            0 => Ok(()),
            revision if revision > self.revision => Err(Refusal::Future),
            revision if revision < self.compacted => Err(Refusal::Compacted),
            _ => Ok(()),
        }
    }

    /// The branches of a txn and of those in it: all compares see the state before it.
    fn decide(&self, txn: &pb::TxnRequest, path: &mut Vec<bool>) {
        let succeeds = txn.compare.iter().all(|compare| self.holds(compare));
        path.push(succeeds);
        for op in if succeeds { &txn.success } else { &txn.failure } {
            if let Some(request_op::Request::RequestTxn(nested)) = &op.request {
                self.decide(nested, path);
            }
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let range = WireRange::new(compare.key.clone(), compare.range_end.clone());
        let mut found = self.live(&range).peekable();
        if found.peek().is_none() {
            let is_of_value = compare.target == CompareTarget::Value as i32;
            return !is_of_value && is_so(compare, &KeyValue::default());
        }
        found.all(|kv| is_so(compare, kv))
    }

    fn check_txn(&self, txn: &pb::TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> Result<(), Refusal> {
        let succeeds = *path.next().expect("decided");
        for op in if succeeds { &txn.success } else { &txn.failure } {
            match &op.request {
                Some(request_op::Request::RequestPut(put)) => self.check_put(put)?,
                Some(request_op::Request::RequestRange(range)) => self.check_range(range)?,
                Some(request_op::Request::RequestTxn(nested)) => self.check_txn(nested, path)?,
                _ => {}
            }
        }
        Ok(())
    }

    fn txn(&mut self, txn: &pb::TxnRequest, path: &mut std::slice::Iter<'_, bool>) -> pb::TxnResponse {
        let succeeded = *path.next().expect("decided");
        let responses = if succeeded { &txn.success } else { &txn.failure }.iter().map(|op| {
            let response = match op.request.as_ref().expect("an operation") {
                request_op::Request::RequestPut(put) => {
                    Response::ResponsePut(pb::PutResponse { header: None, prev_kv: self.put(put) })
                }
                request_op::Request::RequestDeleteRange(delete) => Response::ResponseDeleteRange(self.delete(delete)),
                request_op::Request::RequestRange(range) => {
                    let revision = if range.revision == 0 { self.revision } else { range.revision };
                    Response::ResponseRange(self.range(range, revision))
                }
                request_op::Request::RequestTxn(nested) => Response::ResponseTxn(self.txn(nested, path)),
            };
            pb::ResponseOp { response: Some(response) }
        });
        let responses = responses.collect();
        pb::TxnResponse { header: None, succeeded, responses }
    }

    /// What `key` had at `revision`.
    pub(crate) fn at(&self, key: &[u8], revision: i64) -> Option<&KeyValue> {
        let values = self.history.get(key)?;
        let at = values.partition_point(|(from, _)| *from <= revision);
        values[..at].last().and_then(|(_, kv)| kv.as_ref())
    }

    /// What a read at `revision` answers, without orders and filters.
    pub(crate) fn range(&self, request: &pb::RangeRequest, revision: i64) -> pb::RangeResponse {
        let range = WireRange::new(request.key.clone(), request.range_end.clone());
        let mut kvs: Vec<KeyValue> = if revision == self.revision {
            self.live(&range).cloned().collect()
        } else {
            let keys = self.history.range(start_of(&range).clone()..).map(|(key, _)| key);
            let keys = keys.take_while(|key| is_in(&range, key));
            keys.filter_map(|key| self.at(key, revision)).cloned().collect()
        };
        let count = i64::try_from(kvs.len()).expect("far fewer");
        if request.count_only {
            return pb::RangeResponse { header: None, kvs: Vec::new(), more: false, count };
        }
        let more = request.limit > 0 && count > request.limit;
        if more {
            kvs.truncate(usize::try_from(request.limit).expect("far less"));
        }
        if request.keys_only {
            kvs.iter_mut().for_each(|kv| (kv.value, kv.lease) = (Bytes::new(), 0));
        }
        pb::RangeResponse { header: None, kvs, more, count }
    }

    /// The changes of `revision`.
    pub(crate) fn changes(&self, revision: i64) -> &[Change] {
        let at = usize::try_from(revision - 2).ok().and_then(|at| self.changes.get(at));
        at.map_or(&[], Vec::as_slice)
    }
}

fn is_so(compare: &Compare, kv: &KeyValue) -> bool {
    let ordering = match compare.target_union.as_ref().expect("with what it compares") {
        TargetUnion::Value(value) => kv.value.cmp(value),
        TargetUnion::Version(version) => kv.version.cmp(version),
        TargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
        TargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
        TargetUnion::Lease(lease) => kv.lease.cmp(lease),
    };
    match CompareResult::try_from(compare.result).expect("a known one") {
        CompareResult::Equal => ordering == Ordering::Equal,
        CompareResult::NotEqual => ordering != Ordering::Equal,
        CompareResult::Greater => ordering == Ordering::Greater,
        CompareResult::Less => ordering == Ordering::Less,
    }
}

/// A txn's answer without its headers.
pub(crate) fn without_headers(mut response: pb::TxnResponse) -> pb::TxnResponse {
    response.header = None;
    for op in &mut response.responses {
        match op.response.as_mut().expect("an answer") {
            Response::ResponsePut(put) => put.header = None,
            Response::ResponseDeleteRange(delete) => delete.header = None,
            Response::ResponseRange(range) => range.header = None,
            Response::ResponseTxn(nested) => *nested = without_headers(std::mem::take(nested)),
        }
    }
    response
}
