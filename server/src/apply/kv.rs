//! Runs on: apply core.
//!
//! Put, DeleteRange and Txn inside an entry.
//!
//! Three walks go over the same requests. `touch` brings pages and records into memory. `check` decides whether the
//! entry is refused. `execute` makes the changes and cannot fail. A read inside a txn sees what the txn wrote before
//! it. [`is_plain`] and [`as_put_if_unchanged`] find the requests that need no walk.
//! **Source** etcd v3.7.1 `server/etcdserver/txn/{put,delete,txn}.go`.

use std::slice::Iter;

use bytes::Bytes;
use engine::{Fault, RangeEnd, ReadView, Version, Write};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
        response_op::Response,
    },
    mvccpb,
};

use super::touch::{Pinned, resident};
use crate::{
    error::Error,
    kv::{key_value, keys, range, txn},
    lease::{self, Lessor},
};

/// The branch that a txn takes, read from the path.
pub(super) fn next_branch<'a>(request: &'a pb::TxnRequest, path: &mut Iter<'_, bool>) -> (bool, &'a [pb::RequestOp]) {
    let succeeded = *path.next().expect("a path has a decision for each txn");
    (succeeded, txn::branch(request, succeeded))
}

/// The kind of an operation. An operation without a kind was refused before it was proposed.
fn operation(op: &pb::RequestOp) -> Option<&Request> {
    op.request.as_ref()
}

/// Whether a put changes only its key and answers only its revision. The caller must still check that the version
/// before it has no lease.
pub(super) fn is_plain(put: &pb::PutRequest) -> bool {
    put.lease == 0 && !put.prev_kv && !put.ignore_value && !put.ignore_lease
}

/// Returns the put and the expected revision of the frequent txn of Kubernetes: a plain put if its key was not changed
/// since a revision. The revision is 0 for a key that must not exist.
pub(super) fn as_put_if_unchanged(request: &pb::TxnRequest) -> Option<(&pb::PutRequest, i64)> {
    let ([compare], [op]) = (&request.compare[..], &request.success[..]) else { return None };
    let Some(Request::RequestPut(put)) = &op.request else { return None };
    let is_of_key = compare.key == put.key && compare.range_end.is_empty();
    let is_unchanged = compare.target == CompareTarget::Mod as i32 && compare.result == CompareResult::Equal as i32;
    let expected = if let Some(TargetUnion::ModRevision(expected)) = &compare.target_union { *expected } else { 0 };
    (is_of_key && is_unchanged && is_plain(put)).then_some((put, expected))
}

/// The answer to a txn that did one plain put.
pub(super) fn one_put(revision: i64) -> pb::TxnResponse {
    let put = pb::PutResponse { header: Some(txn::inner_header(revision)), prev_kv: None };
    let responses = vec![pb::ResponseOp { response: Some(Response::ResponsePut(put)) }];
    pb::TxnResponse { header: Some(txn::inner_header(revision)), succeeded: true, responses }
}

/// The version of `key` that a put or delete would replace now.
pub(super) fn live_version(view: &ReadView, key: &[u8]) -> Result<Option<Version>, Fault> {
    Ok(view.version_of(key, view.revision())?.filter(|version| !version.is_tombstone))
}

fn touch_key(view: &ReadView, key: &Bytes, version: Option<&Version>, lease: i64) -> Result<(), Fault> {
    view.touch(key)?;
    if lease != 0 {
        view.touch_meta(&lease::attachment_key(lease, key))?;
    }
    match version {
        Some(version) if version.lease != 0 => view.touch_meta(&lease::attachment_key(version.lease, key)),
        _ => Ok(()),
    }
}

pub(super) fn touch_put(view: &ReadView, request: &pb::PutRequest, pinned: &mut Pinned) -> Result<(), Fault> {
    let version = live_version(view, &request.key)?;
    touch_key(view, &request.key, version.as_ref(), request.lease)?;
    match &version {
        Some(version) if request.ignore_value => pinned.pin(view, version).map(drop),
        Some(version) if request.prev_kv && pinned.is_awaited() => pinned.pin_shown(view, version).map(drop),
        _ => Ok(()),
    }
}

pub(super) fn touch_delete(
    view: &ReadView,
    request: &pb::DeleteRangeRequest,
    pinned: &mut Pinned,
) -> Result<(), Fault> {
    let range = keys(&request.key, &request.range_end);
    let number = pinned.next_delete();
    let mut cursor = match pinned.touched(number) {
        Some(last_key) => view.cursor_after(&range, view.revision(), last_key),
        None => view.cursor(&range, view.revision()),
    };
    while let Some(version) = cursor.next()? {
        touch_key(view, &version.key, Some(&version), 0)?;
        if request.prev_kv && pinned.is_awaited() {
            drop(pinned.pin_shown(view, &version)?);
        }
        // Before this entry is applied, nothing else is applied; if anything is evicted, this is forgotten. So what was
        // touched stays.
        pinned.set_touched(number, version.key);
    }
    Ok(())
}

/// Brings into memory what a read needs, wherever it is in the txn. It reads few keys ([`super::long`]).
pub(super) fn touch_read(
    view: &ReadView,
    request: &pb::RangeRequest,
    only_grows: bool,
    pinned: &mut Pinned,
) -> Result<(), Fault> {
    if !pinned.is_awaited() {
        return Ok(());
    }
    let Ok(mut job) = range::Job::new(view, request.clone(), usize::MAX) else { return Ok(()) };
    while job.step_with(view, usize::MAX, |view, version| pinned.pin_shown(view, version))?.is_none() {}
    if only_grows && request.revision == 0 {
        // Puts before the read can only push present keys beyond its limit, and what these puts write is in memory.
        return Ok(());
    }
    // Deletes before the read may let it reach any key of its range. And after a write, the present newest revision is
    // one of the past.
    let range = keys(&request.key, &request.range_end);
    let is_newest = request.revision == 0;
    let mut cursor = if is_newest { view.cursor(&range, job.at) } else { view.cursor_past(&range, job.at) };
    while let Some(version) = cursor.next()?
        && pinned.is_awaited()
    {
        if range::reads_records(request) {
            drop(pinned.pin_shown(view, &version)?);
        }
    }
    Ok(())
}

/// Whether the branches that are taken delete nothing.
fn only_grows(request: &pb::TxnRequest, path: &mut Iter<'_, bool>) -> bool {
    let (_, ops) = next_branch(request, path);
    ops.iter().all(|op| match operation(op) {
        Some(Request::RequestDeleteRange(_)) => false,
        Some(Request::RequestTxn(nested)) => only_grows(nested, path),
        Some(Request::RequestPut(_) | Request::RequestRange(_)) | None => true,
    })
}

/// Brings into memory what a txn needs whose branches are decided.
pub(super) fn touch_txn(view: &ReadView, request: &pb::TxnRequest, pinned: &mut Pinned) -> Result<(), Fault> {
    let path = pinned.path().to_vec();
    let only_grows = only_grows(request, &mut path.iter());
    touch_ops(view, request, &mut path.iter(), only_grows, pinned)
}

fn touch_ops(
    view: &ReadView,
    request: &pb::TxnRequest,
    path: &mut Iter<'_, bool>,
    only_grows: bool,
    pinned: &mut Pinned,
) -> Result<(), Fault> {
    let (_, ops) = next_branch(request, path);
    for op in ops {
        match operation(op) {
            Some(Request::RequestPut(put)) => touch_put(view, put, pinned)?,
            Some(Request::RequestDeleteRange(delete)) => touch_delete(view, delete, pinned)?,
            Some(Request::RequestRange(range)) => touch_read(view, range, only_grows, pinned)?,
            Some(Request::RequestTxn(nested)) => touch_ops(view, nested, path, only_grows, pinned)?,
            None => {}
        }
    }
    Ok(())
}

pub(super) fn check_put(view: &ReadView, lessor: &Lessor, request: &pb::PutRequest) -> Result<(), Error> {
    if request.lease != 0 && !lessor.contains(request.lease) {
        return Err(Error::LeaseNotFound);
    }
    if (request.ignore_value || request.ignore_lease) && resident(live_version(view, &request.key)).is_none() {
        return Err(Error::KeyNotFound);
    }
    Ok(())
}

/// The lowest key from which open-ended deletes earlier in a txn have deleted everything; `None` before the first such
/// delete.
type Cleared<'a> = Option<&'a Bytes>;

/// Checks the branches that are taken, in the order of execution.
///
/// A put may keep the value or lease of a key that the txn deleted before. Such a put is refused here, before anything
/// has changed. The static check already refuses it if the delete has an end. Like etcd's, it does not see an
/// open-ended delete. etcd goes on and crashes.
pub(super) fn check_txn<'a>(
    view: &ReadView,
    lessor: &Lessor,
    request: &'a pb::TxnRequest,
    path: &mut Iter<'_, bool>,
    cleared: &mut Cleared<'a>,
) -> Result<(), Error> {
    let (_, ops) = next_branch(request, path);
    for op in ops {
        match operation(op) {
            Some(Request::RequestPut(put)) => {
                check_put(view, lessor, put)?;
                let is_cleared = cleared.is_some_and(|from| put.key >= *from);
                if is_cleared && (put.ignore_value || put.ignore_lease) {
                    return Err(Error::KeyNotFound);
                }
            }
            Some(Request::RequestRange(range)) => txn::check_range(view, range)?,
            Some(Request::RequestTxn(nested)) => check_txn(view, lessor, nested, path, cleared)?,
            Some(Request::RequestDeleteRange(delete)) if keys(&delete.key, &delete.range_end).end == RangeEnd::Open => {
                *cleared = Some(cleared.map_or(&delete.key, |from| from.min(&delete.key)));
            }
            Some(Request::RequestDeleteRange(_)) | None => {}
        }
    }
    Ok(())
}

/// Puts a key. Returns the version that it replaced, if the answer shows it.
pub(super) fn put(write: &mut Write<'_>, request: &pb::PutRequest, pinned: &Pinned) -> Option<mvccpb::KeyValue> {
    let shows_previous = request.prev_kv && pinned.is_awaited();
    let needs_previous = shows_previous || request.ignore_value || request.ignore_lease;
    let current = if needs_previous { resident(live_version(write, &request.key)) } else { None };
    let previous: Option<mvccpb::KeyValue> = match &current {
        Some(version) if shows_previous || request.ignore_value => Some(key_value(pinned.record(write, version))),
        _ => None,
    };
    let mut value = request.value.clone();
    let mut lease = request.lease;
    if request.ignore_value {
        value = previous.as_ref().expect("checked: the key is there").value.clone();
    }
    if request.ignore_lease {
        lease = current.as_ref().expect("checked: the key is there").lease;
    }
    let replaced = resident(write.put(request.key.clone(), value, lease));
    let lease_before = replaced.map_or(0, |version| version.lease);
    if lease_before != lease {
        if lease_before != 0 {
            resident(write.meta_delete(&lease::attachment_key(lease_before, &request.key)));
        }
        if lease != 0 {
            resident(write.meta_put(&lease::attachment_key(lease, &request.key), &[]));
        }
    }
    previous.filter(|_| shows_previous)
}

pub(super) fn delete_range(
    write: &mut Write<'_>,
    request: &pb::DeleteRangeRequest,
    pinned: &Pinned,
) -> pb::DeleteRangeResponse {
    let mut response = pb::DeleteRangeResponse::default();
    let mut left = keys(&request.key, &request.range_end);
    loop {
        let ended = resident(write.delete_some(&left));
        for version in &ended {
            if request.prev_kv && pinned.is_awaited() {
                response.prev_kvs.push(key_value(pinned.record(write, version)));
            }
            if version.lease != 0 {
                resident(write.meta_delete(&lease::attachment_key(version.lease, &version.key)));
            }
            response.deleted += 1;
        }
        match ended.last() {
            Some(last) if left.end != RangeEnd::Single => left = left.after(&last.key),
            _ => return response,
        }
    }
}

pub(super) fn read(write: &Write<'_>, request: &pb::RangeRequest, pinned: &Pinned) -> pb::RangeResponse {
    if !pinned.is_awaited() {
        return pb::RangeResponse::default();
    }
    let mut job = range::Job::new(write, request.clone(), usize::MAX).expect("checked: the revision can be read");
    let lookup = |view: &ReadView, version: &Version| Ok(pinned.record(view, version));
    loop {
        if let Some(response) = resident(job.step_with(write, usize::MAX, lookup)) {
            let mut response = response.expect("it has no bound");
            response.header = Some(txn::inner_header(job.header_revision));
            return response;
        }
    }
}

pub(super) fn execute_txn(
    write: &mut Write<'_>,
    request: &pb::TxnRequest,
    path: &mut Iter<'_, bool>,
    pinned: &Pinned,
) -> pb::TxnResponse {
    let (succeeded, ops) = next_branch(request, path);
    let mut responses = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match operation(op) {
            Some(Request::RequestRange(range)) => Response::ResponseRange(read(write, range, pinned)),
            Some(Request::RequestPut(request)) => {
                let prev_kv = put(write, request, pinned);
                let header = Some(txn::inner_header(write.revision()));
                Response::ResponsePut(pb::PutResponse { header, prev_kv })
            }
            Some(Request::RequestDeleteRange(request)) => {
                let mut response = delete_range(write, request, pinned);
                response.header = Some(txn::inner_header(write.revision()));
                Response::ResponseDeleteRange(response)
            }
            Some(Request::RequestTxn(nested)) => {
                let mut response = execute_txn(write, nested, path, pinned);
                response.header = Some(pb::ResponseHeader::default());
                Response::ResponseTxn(response)
            }
            None => continue,
        };
        responses.push(pb::ResponseOp { response: Some(response) });
    }
    pb::TxnResponse { header: None, succeeded, responses }
}
