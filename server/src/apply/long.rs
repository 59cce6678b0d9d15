//! Runs on: apply core.
//!
//! An entry that deletes or reads very many keys, made in bounded steps. Between two of them, the core serves others,
//! and what was done leaves memory.
//!
//! Invariants:
//! - Result, revisions and records are those of the same entry made at once. Until its end, no view shows a change of
//!   a key, and no other entry is applied.
//! - What is decided about the entry (that it is not refused, the branches of its txns) is decided once, before its
//!   first change.
//! - The store alone says how far the entry has come, so a start goes on from any state between two steps. The row
//!   [`table::UNDER_WAY`] names the entry, the branches and the operation under way. What this operation has deleted
//!   is dead, and what it has detached is gone. A put and the row behind it are changed in one step.
//! - A step changes nothing of which it might have to forget a part: what it needs is in memory before.
//!
//! Views in the middle show the rows of the meta tree and the sums of the key tree as they are then: metrics and the
//! usage of prefixes count what is left. The keys of a lease are told when the entry has ended (`api/lease`).
//!
//! Bounds: [`Steps::keys`] keys a step. An answer is held whole, within the bound of [`Pinned`].

use std::slice::Iter;

use bytes::Bytes;
use engine::{Fault, KeyRange, Mvcc, RangeEnd, ReadView, Version};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{request_op, response_op::Response},
    internal::Request,
};

use super::{
    count::Written,
    kv, lease as leases,
    outcome::Outcome,
    table,
    touch::{Pinned, resident},
};
use crate::{
    error::Error,
    kv::{
        key_value, keys,
        range::{Job, LEAVES_AHEAD_MAX, has_default_order, is_filtered},
        txn,
    },
    lease::{self, Lessor},
    quota,
    shared::Alarms,
};

/// What is made in steps, and how large they are.
#[derive(Clone, Copy, Debug)]
pub struct Steps {
    /// An entry that deletes and reads more keys than this is made in steps.
    pub at_once_max: u64,
    /// Keys that a step deletes or reads, at most about.
    pub keys: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Self { at_once_max: 1024, keys: 4096 }
    }
}

/// Keys of a step that are looked at before they are deleted, because they may have leases, or are to be shown.
const LOOKED_AT_MAX: usize = 256;

/// The part of an entry that is made after the other.
#[derive(Clone, Debug)]
enum Operation {
    Put(pb::PutRequest),
    Range(pb::RangeRequest),
    Delete(pb::DeleteRangeRequest),
    Revoke(i64),
}

/// The entry under way.
#[derive(Debug)]
pub(super) struct Long {
    index: u64,
    path: txn::Path,
    operations: Vec<Operation>,
    /// The operation under way.
    number: usize,
    /// What the delete under way may still have to delete, and what it answers.
    left: Option<KeyRange>,
    deleted: pb::DeleteRangeResponse,
    /// The read under way.
    reading: Option<Job>,
    /// What the operations before it answer.
    responses: Vec<Response>,
    written: Written,
    /// The lowest and the highest key that it has changed in this run.
    hull: Option<(Bytes, Bytes)>,
    /// An earlier run has begun it.
    is_resumed: bool,
}

/// The end of a long entry.
#[derive(Debug)]
pub(super) struct Ended {
    /// The client's result.
    pub outcome: Outcome,
    /// What it wrote in this run.
    pub written: Written,
    /// Set if it has changed keys: the lowest and the highest of them, or `None` if an earlier run has changed some,
    /// too.
    pub unlisted: Option<Option<(Bytes, Bytes)>>,
}

/// Whether `request` might delete or read many keys.
pub(super) fn is_ranged(request: &Request) -> bool {
    fn has_range(ops: &[pb::RequestOp]) -> bool {
        ops.iter().any(|op| match &op.request {
            Some(request_op::Request::RequestDeleteRange(delete)) => !delete.range_end.is_empty(),
            Some(request_op::Request::RequestRange(range)) => !range.range_end.is_empty(),
            Some(request_op::Request::RequestTxn(nested)) => has_range(&nested.success) || has_range(&nested.failure),
            Some(request_op::Request::RequestPut(_)) | None => false,
        })
    }
    match request {
        Request::DeleteRange(delete) => !delete.range_end.is_empty(),
        Request::Txn(txn) => has_range(&txn.success) || has_range(&txn.failure),
        Request::LeaseRevoke(_) => true,
        _ => false,
    }
}

/// The operations of the branches that are taken, in the order of execution.
fn operations(request: &Request, path: &[bool]) -> Vec<Operation> {
    let mut found = Vec::new();
    match request {
        Request::DeleteRange(delete) => found.push(Operation::Delete(delete.clone())),
        Request::LeaseRevoke(revoke) => found.push(Operation::Revoke(revoke.id)),
        Request::Txn(txn) => operations_of(txn, &mut path.iter(), &mut found),
        _ => unreachable!("it deletes keys"),
    }
    found
}

fn operations_of(request: &pb::TxnRequest, path: &mut Iter<'_, bool>, found: &mut Vec<Operation>) {
    let (_, ops) = kv::next_branch(request, path);
    for op in ops {
        match &op.request {
            Some(request_op::Request::RequestPut(put)) => found.push(Operation::Put(put.clone())),
            Some(request_op::Request::RequestRange(range)) => found.push(Operation::Range(range.clone())),
            Some(request_op::Request::RequestDeleteRange(delete)) => found.push(Operation::Delete(delete.clone())),
            Some(request_op::Request::RequestTxn(nested)) => operations_of(nested, path, found),
            None => {}
        }
    }
}

/// The keys that `operations` delete, and read if somebody waits for that, as far as the store tells. Some may be
/// counted twice. They count as very many if the page at an edge of a range cannot be read: what is made in steps needs
/// it only if there is something to delete in it.
fn count(mvcc: &Mvcc, operations: &[Operation], is_awaited: bool) -> Result<u64, Fault> {
    let view = mvcc.live();
    let only_grows = !operations.iter().any(|operation| matches!(operation, Operation::Delete(_)));
    operations.iter().try_fold(0, |sum: u64, operation| {
        let counted = match operation {
            Operation::Delete(delete) => {
                view.sums(&keys(&delete.key, &delete.range_end), u64::MAX).map(|(live, _)| live)
            }
            Operation::Revoke(lease) => view.meta_count(&lease::attachment_prefix(*lease)),
            Operation::Range(range) if is_awaited => count_read(view, range, only_grows),
            Operation::Put(_) | Operation::Range(_) => Ok(0),
        };
        match counted {
            Err(fault) if mvcc.unreadable().avoids(fault.place()) => Ok(u64::MAX),
            counted => Ok(sum.saturating_add(counted?)),
        }
    })
}

/// The keys that `range` has to meet at most. If nothing is deleted before it (`only_grows`), its limit holds.
fn count_read(view: &ReadView, range: &pb::RangeRequest, only_grows: bool) -> Result<u64, Fault> {
    if range.range_end.is_empty() {
        return Ok(0);
    }
    let keys = keys(&range.key, &range.range_end);
    if range.revision > 0 {
        // What was there may be gone now.
        return view.usage(&keys).map(|usage| usage.versions);
    }
    let live = view.sums(&keys, u64::MAX)?.0;
    let is_limited = only_grows && range.limit > 0 && has_default_order(range) && !is_filtered(range);
    Ok(if is_limited { live.min(range.limit.unsigned_abs()) } else { live })
}

/// An empty answer of `operation`, for one that an earlier run has made.
fn unknown(operation: &Operation) -> Response {
    match operation {
        Operation::Put(_) => Response::ResponsePut(pb::PutResponse::default()),
        Operation::Range(_) => Response::ResponseRange(pb::RangeResponse::default()),
        Operation::Delete(_) | Operation::Revoke(_) => {
            Response::ResponseDeleteRange(pb::DeleteRangeResponse::default())
        }
    }
}

impl Long {
    /// Begins the entry at `index`, or goes on with it where an earlier run has come to. Returns `None` if it is not
    /// long. The inner error is the client's; nothing was changed then.
    ///
    /// **Errors** a page that is not resident; nothing was changed.
    pub(super) fn begin(
        mvcc: &mut Mvcc,
        (lessor, alarms): (&Lessor, &Alarms),
        steps: Steps,
        (index, request): (u64, &Request),
        pinned: &Pinned,
    ) -> Result<Option<Result<Self, Error>>, Fault> {
        if !is_ranged(request) {
            return Ok(None);
        }
        let view = mvcc.live();
        let row = view.meta_get(table::UNDER_WAY)?.and_then(|row| table::decode_under_way(&row));
        if let Some((_, number, path)) = row.filter(|(of, ..)| *of == index) {
            let operations = operations(request, &path);
            let responses = operations[..number].iter().map(unknown).collect();
            return Ok(Some(Ok(Self { number, responses, is_resumed: true, ..Self::new(index, path, operations) })));
        }
        assert!(!mvcc.is_unfinished(), "what is under way has its row");
        let path = if matches!(request, Request::Txn(_)) { pinned.path().to_vec() } else { txn::Path::new() };
        let operations = operations(request, &path);
        if count(mvcc, &operations, pinned.is_awaited())? <= steps.at_once_max {
            return Ok(None);
        }
        view.touch_meta(table::UNDER_WAY)?;
        if let Err(error) = quota::check(alarms, request) {
            return Ok(Some(Err(error)));
        }
        if let Request::LeaseRevoke(revoke) = request
            && !lessor.contains(revoke.id)
        {
            return Ok(Some(Err(Error::LeaseNotFound)));
        }
        if let Request::Txn(txn) = request {
            for operation in &operations {
                if let Operation::Put(put) = operation {
                    view.touch(&put.key)?;
                }
            }
            if let Err(error) = kv::check_txn(view, lessor, txn, &mut path.iter(), &mut None) {
                return Ok(Some(Err(error)));
            }
        }
        let long = Self::new(index, path, operations);
        long.note(mvcc);
        Ok(Some(Ok(long)))
    }

    fn new(index: u64, path: txn::Path, operations: Vec<Operation>) -> Self {
        let (responses, written) = (Vec::with_capacity(operations.len()), Written::default());
        let deleted = pb::DeleteRangeResponse::default();
        Self {
            index,
            path,
            operations,
            number: 0,
            left: None,
            deleted,
            reading: None,
            responses,
            written,
            hull: None,
            is_resumed: false,
        }
    }

    /// Sets the row to the operation under way. Its page is in memory.
    fn note(&self, mvcc: &mut Mvcc) {
        let mut write = mvcc.begin();
        resident(write.meta_put(table::UNDER_WAY, &table::encode_under_way(self.index, self.number, &self.path)));
        write.pause();
    }

    /// Makes the next step. Returns whether all operations are made; then [`Long::end`] follows.
    ///
    /// **Errors** a page that is not resident. What was done before stays, and the next call goes on there.
    pub(super) fn step(
        &mut self,
        mvcc: &mut Mvcc,
        steps: Steps,
        has_leases: bool,
        pinned: &mut Pinned,
    ) -> Result<bool, Fault> {
        let mut budget = steps.keys;
        while budget > 0 && self.number < self.operations.len() {
            mvcc.live().touch_meta(table::UNDER_WAY)?;
            let is_done = match self.operations[self.number].clone() {
                Operation::Put(put) => self.put(mvcc, &put, pinned)?,
                Operation::Range(range) => self.read(mvcc, &range, pinned, &mut budget)?,
                Operation::Delete(delete) => self.delete(mvcc, &delete, has_leases, pinned, &mut budget)?,
                Operation::Revoke(lease) => self.revoke(mvcc, lease, &mut budget)?,
            };
            budget = budget.saturating_sub(1);
            pinned.clear_records();
            if is_done {
                self.number += 1;
                self.note(mvcc);
            }
        }
        Ok(self.number == self.operations.len())
    }

    fn put(&mut self, mvcc: &mut Mvcc, put: &pb::PutRequest, pinned: &mut Pinned) -> Result<bool, Fault> {
        let keeps = put.ignore_value || put.ignore_lease;
        if self.is_resumed && keeps && kv::live_version(mvcc.live(), &put.key)?.is_none() {
            // It was there when the entry began; a repair between two runs has lost it.
            self.responses.push(Response::ResponsePut(pb::PutResponse::default()));
            return Ok(true);
        }
        kv::touch_put(mvcc.live(), put, pinned)?;
        let mut write = mvcc.begin();
        let prev_kv = kv::put(&mut write, put, pinned);
        let header = Some(txn::inner_header(write.revision()));
        let changes = write.pause();
        let value_len = changes.records.last().map_or(0, |change| change.record.value.len());
        self.written.put_bytes += (put.key.len() + value_len) as u64;
        self.has_changed(&put.key);
        self.responses.push(Response::ResponsePut(pb::PutResponse { header, prev_kv }));
        Ok(true)
    }

    fn read(
        &mut self,
        mvcc: &Mvcc,
        range: &pb::RangeRequest,
        pinned: &mut Pinned,
        budget: &mut usize,
    ) -> Result<bool, Fault> {
        let mut response = pb::RangeResponse::default();
        if pinned.is_awaited() {
            let view = mvcc.live();
            let begin = || Job::new(view, range.clone(), pinned.shown_bytes_left());
            let job = self.reading.get_or_insert_with(|| begin().expect("checked: the revision can be read"));
            let seen_before = job.seen();
            let stepped = job.step(view, *budget);
            pinned.count(job.bytes());
            if pinned.is_awaited() {
                let Some(answer) = stepped? else {
                    *budget = 0;
                    return Ok(false);
                };
                *budget -= usize::try_from(job.seen() - seen_before).map_or(*budget, |seen| seen.min(*budget));
                match answer {
                    Ok(answer) => {
                        response = pb::RangeResponse { header: Some(txn::inner_header(job.header_revision)), ..answer };
                        pinned.show(job.bytes());
                    }
                    Err(error) => pinned.give_up_answer(error),
                }
            }
        }
        self.reading = None;
        self.responses.push(Response::ResponseRange(response));
        Ok(true)
    }

    /// The pages to read after `fault`, at which a step has stopped; that one first.
    pub(super) fn wanted(&mut self, fault: Fault) -> Vec<Fault> {
        let mut wanted = vec![fault.clone()];
        if let Some(job) = &mut self.reading {
            wanted.extend(job.wanted(fault, LEAVES_AHEAD_MAX));
        }
        wanted
    }

    fn delete(
        &mut self,
        mvcc: &mut Mvcc,
        delete: &pb::DeleteRangeRequest,
        has_leases: bool,
        pinned: &mut Pinned,
        budget: &mut usize,
    ) -> Result<bool, Fault> {
        let left = self.left.get_or_insert_with(|| keys(&delete.key, &delete.range_end));
        let shows = delete.prev_kv && pinned.is_awaited();
        let piece = if has_leases || shows { look(mvcc.live(), left, shows, pinned)? } else { left.clone() };
        let (mut attached, mut shown) = (Vec::new(), Vec::new());
        let mut write = mvcc.begin();
        let mut first = None;
        let mut count = 0;
        let ended = write.end_some(&piece, |version| {
            count += 1;
            if first.is_none() {
                first = Some(Bytes::copy_from_slice(version.key));
            }
            if version.lease != 0 {
                attached.push(lease::attachment_key(version.lease, version.key));
            }
            if shows {
                shown.push((Bytes::copy_from_slice(version.key), version.revision));
            }
        });
        for key in attached {
            resident(write.meta_delete(&key));
        }
        for (key, revision) in shown {
            self.deleted.prev_kvs.push(key_value(pinned.record_of(&write, &key, revision)));
        }
        if !pinned.is_awaited() {
            self.deleted.prev_kvs = Vec::new();
        }
        let header = Some(txn::inner_header(write.revision()));
        write.pause();
        let last = ended?;
        *budget = budget.saturating_sub(count);
        self.deleted.deleted += i64::try_from(count).expect("a leaf is small");
        self.written.deleted += count as u64;
        if let (Some(first), Some(last)) = (&first, &last) {
            self.has_changed(first);
            self.has_changed(last);
        }
        let left = self.left.take().expect("set above");
        match last {
            Some(last) if left.end != RangeEnd::Single => {
                self.left = Some(left.after(&last));
                Ok(false)
            }
            _ => {
                let response = pb::DeleteRangeResponse { header, ..std::mem::take(&mut self.deleted) };
                self.responses.push(Response::ResponseDeleteRange(response));
                Ok(true)
            }
        }
    }

    fn revoke(&mut self, mvcc: &mut Mvcc, lease: i64, budget: &mut usize) -> Result<bool, Fault> {
        let attached = leases::touch_attached(mvcc.live(), lease, LOOKED_AT_MAX)?;
        let mut write = mvcc.begin();
        let mut left = &attached[..];
        while let [first, .., last] | [first @ last] = left {
            let range = KeyRange { start: first.clone(), end: RangeEnd::Before([&last[..], &[0]].concat().into()) };
            let ended = resident(write.end_some_of(lease, &range)).expect("an attached key is live");
            left = &left[left.partition_point(|key| *key <= ended)..];
        }
        let mut rows = &attached[..];
        while let [first, .., last] | [first @ last] = rows {
            let [from, last] = [first, last].map(|key| lease::attachment_key(lease, key));
            let removed = resident(write.meta_delete_some(&from, &last));
            assert!(removed > 0, "an attachment was looked at");
            rows = &rows[removed..];
        }
        write.pause();
        *budget = budget.saturating_sub(attached.len());
        self.written.deleted += attached.len() as u64;
        if let (Some(first), Some(last)) = (attached.first(), attached.last()) {
            self.has_changed(first);
            self.has_changed(last);
        }
        Ok(attached.is_empty())
    }

    fn has_changed(&mut self, key: &Bytes) {
        match &mut self.hull {
            None => self.hull = Some((key.clone(), key.clone())),
            Some((first, _)) if key < first => *first = key.clone(),
            Some((_, last)) if key > last => *last = key.clone(),
            Some(_) => {}
        }
    }

    /// Ends the entry, whose operations are all made. It must not be called again then.
    ///
    /// **Errors** a page that is not resident; call again.
    pub(super) fn end(&mut self, mvcc: &mut Mvcc, lessor: &mut Lessor, request: &Request) -> Result<Ended, Fault> {
        assert!(self.number == self.operations.len(), "all operations are made");
        mvcc.live().touch_meta(table::UNDER_WAY)?;
        if let Request::LeaseRevoke(revoke) = request {
            mvcc.live().touch_meta(&lease::grant_key(revoke.id))?;
        }
        let has_changed = mvcc.is_unfinished();
        let mut write = mvcc.begin();
        if let Request::LeaseRevoke(revoke) = request {
            // A repair between two runs may have lost it.
            assert!(lessor.revoke(revoke.id) || self.is_resumed, "only entries revoke leases");
            resident(write.meta_delete(&lease::grant_key(revoke.id)));
        }
        resident(write.meta_delete(table::UNDER_WAY));
        let revision = write.finish().revision;
        let header = Some(txn::inner_header(revision));
        let mut responses = std::mem::take(&mut self.responses).into_iter();
        let outcome = match request {
            Request::DeleteRange(_) => match responses.next() {
                Some(Response::ResponseDeleteRange(response)) => {
                    Outcome::DeleteRange(Box::new(pb::DeleteRangeResponse { header, ..response }))
                }
                _ => unreachable!("one delete was made"),
            },
            Request::LeaseRevoke(_) => Outcome::LeaseRevoke { revision },
            Request::Txn(request) => {
                let response = assembled(request, &mut self.path.iter(), &mut responses);
                Outcome::Txn(Box::new(pb::TxnResponse { header, ..response }))
            }
            _ => unreachable!("it deletes keys"),
        };
        let hull = self.hull.take().filter(|_| !self.is_resumed);
        assert!(has_changed || hull.is_none(), "what it has changed is unfinished until now");
        Ok(Ended { outcome, written: self.written, unlisted: has_changed.then_some(hull) })
    }
}

/// Brings into memory what the first live keys of `range` need that are deleted, besides their leaves. Returns the part
/// of the range that was looked at.
fn look(view: &ReadView, range: &KeyRange, shows: bool, pinned: &mut Pinned) -> Result<KeyRange, Fault> {
    let mut cursor = view.cursor(range, view.revision());
    let mut last = None;
    for _ in 0..LOOKED_AT_MAX {
        let Some(version) = cursor.next()? else { return Ok(range.clone()) };
        look_at(view, &version, shows, pinned)?;
        last = Some(version.key);
    }
    let last = last.expect("it looks at some");
    let end = match range.end {
        RangeEnd::Single => RangeEnd::Single,
        RangeEnd::Open | RangeEnd::Before(_) => RangeEnd::Before([&last[..], &[0]].concat().into()),
    };
    Ok(KeyRange { start: range.start.clone(), end })
}

fn look_at(view: &ReadView, version: &Version, shows: bool, pinned: &mut Pinned) -> Result<(), Fault> {
    if version.lease != 0 {
        view.touch_meta(&lease::attachment_key(version.lease, &version.key))?;
    }
    if shows { pinned.pin_shown(view, version).map(drop) } else { Ok(()) }
}

/// The answer to a txn, from those of its operations.
fn assembled(
    request: &pb::TxnRequest,
    path: &mut Iter<'_, bool>,
    responses: &mut impl Iterator<Item = Response>,
) -> pb::TxnResponse {
    let (succeeded, ops) = kv::next_branch(request, path);
    let mut found = Vec::with_capacity(ops.len());
    for op in ops {
        let response = match &op.request {
            None => continue,
            Some(request_op::Request::RequestTxn(nested)) => {
                let nested = assembled(nested, path, responses);
                Response::ResponseTxn(pb::TxnResponse { header: Some(pb::ResponseHeader::default()), ..nested })
            }
            Some(_) => responses.next().expect("each operation has its answer"),
        };
        found.push(pb::ResponseOp { response: Some(response) });
    }
    pb::TxnResponse { header: None, succeeded, responses: found }
}
