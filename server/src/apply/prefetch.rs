//! Runs on: apply core; warm threads after a start.
//!
//! Finds the pages that waiting entries will need. They are loaded together and ahead, instead of one entry after the
//! other.
//!
//! Invariants: this only helps. A page that it misses, or loads in vain, changes nothing: each entry is touched again
//! before it is applied. Bounds: `FAULTS_MAX` pages at once.

use std::collections::BTreeSet;

use consensus::EntryKind;
use engine::{Fault, Place, ReadView, Unreadable};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::request_op,
    internal::{self, Request},
};

use super::message::Entry;
use crate::kv::keys;

/// Pages that are loaded at once.
const FAULTS_MAX: usize = 64;
/// Entries that are looked at after the one that waits.
const ENTRIES_MAX: usize = 64;

/// The faults that a look ahead finds.
struct Ahead<'a> {
    view: &'a ReadView,
    unreadable: &'a Unreadable,
    faults: Vec<Fault>,
    places: BTreeSet<Place>,
}

impl<'a> Ahead<'a> {
    fn new(view: &'a ReadView, unreadable: &'a Unreadable) -> Self {
        Self { view, unreadable, faults: Vec::new(), places: BTreeSet::new() }
    }

    /// The first page is asked for in any case.
    fn add(&mut self, fault: Fault) {
        let is_wanted = self.faults.is_empty() || !self.unreadable.avoids(fault.place());
        if is_wanted && self.places.insert(fault.place()) {
            self.faults.push(fault);
        }
    }

    fn is_full(&self) -> bool {
        self.faults.len() >= FAULTS_MAX
    }

    fn key(&mut self, key: &[u8]) {
        if !self.is_full()
            && let Err(fault) = self.view.touch(key)
        {
            self.add(fault);
        }
    }

    fn delete(&mut self, request: &pb::DeleteRangeRequest) {
        let range = keys(&request.key, &request.range_end);
        let left = FAULTS_MAX.saturating_sub(self.faults.len());
        for fault in self.view.missing(&range, &range.start, self.view.revision(), left) {
            self.add(fault);
        }
    }

    fn txn(&mut self, request: &pb::TxnRequest) {
        for compare in &request.compare {
            self.key(&compare.key);
        }
        for op in request.success.iter().chain(&request.failure) {
            match &op.request {
                Some(request_op::Request::RequestPut(put)) => self.key(&put.key),
                Some(request_op::Request::RequestDeleteRange(delete)) => self.delete(delete),
                Some(request_op::Request::RequestRange(_) | request_op::Request::RequestTxn(_)) | None => {}
            }
        }
    }

    fn request(&mut self, request: &Request) {
        match request {
            Request::Put(put) => self.key(&put.key),
            Request::DeleteRange(delete) => self.delete(delete),
            Request::Txn(txn) => self.txn(txn),
            _ => {}
        }
    }
}

/// The pages that applying `request` on `view` would need and that are not in memory.
pub fn faults_of(view: &ReadView, unreadable: &Unreadable, request: &Request) -> Vec<Fault> {
    let mut ahead = Ahead::new(view, unreadable);
    ahead.request(request);
    ahead.faults
}

/// Returns `first`, the faults for which `front` waits, and the other faults of `front` and of the entries after it.
pub fn faults<'a>(
    view: &ReadView,
    unreadable: &Unreadable,
    first: Vec<Fault>,
    front: &Request,
    behind: impl Iterator<Item = &'a Entry>,
) -> Vec<Fault> {
    let mut ahead = Ahead::new(view, unreadable);
    first.into_iter().for_each(|fault| ahead.add(fault));
    ahead.request(front);
    for entry in behind.take(ENTRIES_MAX) {
        if ahead.is_full() {
            break;
        }
        if let Some(request) = entry.proposal.as_ref().and_then(|proposal| proposal.request.as_ref()) {
            ahead.request(request);
        } else if entry.kind == EntryKind::Normal
            && !entry.data.is_empty()
            && let Ok((_, request)) = internal::decode(entry.data.clone())
        {
            ahead.request(&request);
        }
    }
    ahead.faults
}
