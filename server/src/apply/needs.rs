//! Runs on: connection core.
//!
//! What applying a request will need of the store, as far as that is known before it is proposed: the pages that it
//! changes, whichever branch a txn takes, and the records that its state or its answer depends on.
//!
//! A page that cannot be read must be found before the request is in the log ([`super::standstill`]). What is in memory
//! was checked when it came in. So a request is looked at here first, and what is missing is read.
//!
//! Invariants:
//! - [`missing`] visits each key that the request names once, without an allocation for a put without a lease. It costs
//!   O(log n) for a key.
//! - Ranges that are deleted or compared can be long. They are walked in bounded steps ([`Walk`]), and most of their
//!   leaves are read aside, as in a scan. So are the keys of a lease ([`look_at_attached`]).
//! - Reads inside a txn are left out: nothing that is stored depends on them.

use bytes::Bytes;
use engine::{Cursor, Fault, KeyRange, ReadView};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{compare::CompareTarget, request_op::Request as Op},
    internal::Request,
};

use super::{lease as leases, long::is_ranged, table};
use crate::{
    kv::{keys, range::LEAVES_AHEAD_MAX},
    lease::{attachment_key, grant_key},
};

/// Keys of a lease that are looked at in one step.
const ATTACHED_MAX: usize = 256;

/// The pages that `request` needs of `view` and that are missing, `max` of them at most, besides its [`ranges`] and the
/// keys of a lease. There may be more below those that it names. If there are no leases (`has_leases`), no key that is
/// replaced has one.
pub fn missing(view: &ReadView, has_leases: bool, request: &Request, max: usize) -> Vec<Fault> {
    let mut look = Look { view, has_leases, max, missing: Vec::new() };
    if is_ranged(request) {
        look.note(view.touch_meta(table::UNDER_WAY));
    }
    match request {
        Request::Put(put) => look.put(put),
        Request::DeleteRange(delete) => look.delete(delete),
        Request::Txn(txn) => look.txn(txn),
        Request::LeaseGrant(grant) => look.note(view.touch_meta(&grant_key(grant.id))),
        Request::LeaseRevoke(revoke) => look.note(view.touch_meta(&grant_key(revoke.id))),
        Request::Alarm(alarm) => look.note(view.touch_meta(&table::alarm_key(alarm.member_id, alarm.alarm))),
        _ => {}
    }
    look.missing
}

/// A look at the parts of a request, each for itself.
struct Look<'a> {
    view: &'a ReadView,
    has_leases: bool,
    max: usize,
    missing: Vec<Fault>,
}

impl Look<'_> {
    fn note(&mut self, part: Result<(), Fault>) {
        if let Err(fault) = part
            && self.missing.len() < self.max
            && self.missing.iter().all(|other| other.place() != fault.place())
        {
            self.missing.push(fault);
        }
    }

    fn put(&mut self, put: &pb::PutRequest) {
        self.note(look_at_put(self.view, self.has_leases, put));
    }

    fn delete(&mut self, delete: &pb::DeleteRangeRequest) {
        self.note(look_at_delete(self.view, self.has_leases, delete));
    }

    fn txn(&mut self, txn: &pb::TxnRequest) {
        txn.compare.iter().for_each(|compare| self.note(look_at_compare(self.view, compare)));
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(Op::RequestPut(put)) => self.put(put),
                Some(Op::RequestTxn(nested)) => self.txn(nested),
                Some(Op::RequestDeleteRange(delete)) => self.delete(delete),
                Some(Op::RequestRange(_)) | None => {}
            }
        }
    }
}

/// The lease of `key`. Faults on the pages that a put of it needs.
fn lease_of(view: &ReadView, has_leases: bool, key: &[u8]) -> Result<i64, Fault> {
    if has_leases { view.lease_of(key) } else { view.touch(key).map(|()| 0) }
}

fn look_at_put(view: &ReadView, has_leases: bool, put: &pb::PutRequest) -> Result<(), Fault> {
    let lease = lease_of(view, has_leases, &put.key)?;
    for lease in [lease, put.lease] {
        if lease != 0 {
            view.touch_meta(&attachment_key(lease, &put.key))?;
        }
    }
    if put.prev_kv || put.ignore_value {
        view.get(&put.key, view.revision())?;
    }
    Ok(())
}

fn look_at_compare(view: &ReadView, compare: &pb::Compare) -> Result<(), Fault> {
    view.touch(&compare.key)?;
    if compare.target == CompareTarget::Value as i32 {
        view.get(&compare.key, view.revision())?;
    }
    Ok(())
}

/// Looks for what a delete of one key needs.
fn look_at_delete(view: &ReadView, has_leases: bool, delete: &pb::DeleteRangeRequest) -> Result<(), Fault> {
    if !is_single(delete) {
        return Ok(());
    }
    let lease = lease_of(view, has_leases, &delete.key)?;
    if lease != 0 {
        view.touch_meta(&attachment_key(lease, &delete.key))?;
    }
    if delete.prev_kv {
        view.get(&delete.key, view.revision())?;
    }
    Ok(())
}

fn is_single(delete: &pb::DeleteRangeRequest) -> bool {
    delete.range_end.is_empty()
}

/// Looks for what the revocation of `lease` needs, from the attached key after `last` on, for a bounded number of keys.
/// Returns the last key that it has looked at, or `None` at the end.
///
/// **Errors** a page that is not resident.
pub fn look_at_attached(view: &ReadView, lease: i64, last: Option<&Bytes>) -> Result<Option<Bytes>, Fault> {
    leases::touch_more(view, lease, last, ATTACHED_MAX)
}

/// A range of keys on which a request depends.
#[derive(Clone, Debug)]
pub struct Needed {
    range: KeyRange,
    /// Its keys are deleted.
    ends: bool,
    /// The records of its keys are needed.
    reads_records: bool,
}

impl Needed {
    fn of_delete(delete: &pb::DeleteRangeRequest) -> Self {
        Self { range: keys(&delete.key, &delete.range_end), ends: true, reads_records: delete.prev_kv }
    }

    fn of_compare(compare: &pb::Compare) -> Self {
        let reads_records = compare.target == CompareTarget::Value as i32;
        Self { range: keys(&compare.key, &compare.range_end), ends: false, reads_records }
    }
}

/// The ranges of more than one key that `request` deletes or compares, whichever branches it takes.
pub fn ranges(request: &Request) -> Vec<Needed> {
    let mut found = Vec::new();
    match request {
        Request::DeleteRange(delete) if !is_single(delete) => found.push(Needed::of_delete(delete)),
        Request::Txn(txn) => ranges_of(txn, &mut found),
        _ => {}
    }
    found
}

fn ranges_of(txn: &pb::TxnRequest, found: &mut Vec<Needed>) {
    let compares = txn.compare.iter().filter(|compare| !compare.range_end.is_empty());
    found.extend(compares.map(Needed::of_compare));
    for op in txn.success.iter().chain(&txn.failure) {
        match &op.request {
            Some(Op::RequestDeleteRange(delete)) if !is_single(delete) => found.push(Needed::of_delete(delete)),
            Some(Op::RequestTxn(nested)) => ranges_of(nested, found),
            Some(Op::RequestDeleteRange(_) | Op::RequestPut(_) | Op::RequestRange(_)) | None => {}
        }
    }
}

/// A walk over the keys of a range.
pub struct Walk<'a> {
    view: &'a ReadView,
    cursor: Cursor,
    /// The key that was met last, with its lease, and whether everything about it was looked at.
    met: Option<(Bytes, i64)>,
    is_looked_at: bool,
    ends: bool,
    reads_records: bool,
}

impl<'a> Walk<'a> {
    /// The walk over what is `needed` of `view`, after `last_key` if there is one.
    pub fn new(view: &'a ReadView, needed: &Needed, last_key: Option<&Bytes>) -> Self {
        let Needed { range, ends, reads_records } = needed;
        let cursor = match last_key {
            Some(last_key) => view.cursor_after(range, view.revision(), last_key),
            None => view.cursor(range, view.revision()),
        };
        Self { view, cursor, met: None, is_looked_at: true, ends: *ends, reads_records: *reads_records }
    }

    /// Goes on over about `budget` keys. Returns whether the walk has ended.
    ///
    /// **Errors** the pages to read first.
    pub fn step(&mut self, budget: usize) -> Result<bool, Vec<Fault>> {
        for _ in 0..budget.max(1) {
            if self.is_looked_at {
                let cursor = &mut self.cursor;
                let Some(version) = cursor.next().map_err(|fault| cursor.wanted(fault, LEAVES_AHEAD_MAX))? else {
                    return Ok(true);
                };
                self.met = Some((version.key, version.lease));
                self.is_looked_at = false;
            }
            let (key, lease) = self.met.as_ref().expect("set above");
            if self.ends && *lease != 0 {
                self.view.touch_meta(&attachment_key(*lease, key)).map_err(|fault| vec![fault])?;
            }
            if self.reads_records {
                self.view.get(key, self.view.revision()).map_err(|fault| vec![fault])?;
            }
            self.is_looked_at = true;
        }
        Ok(false)
    }

    /// The last key that was looked at.
    pub fn last_key(self) -> Option<Bytes> {
        self.met.filter(|_| self.is_looked_at).map(|(key, _)| key)
    }
}
