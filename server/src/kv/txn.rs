//! Runs on: connection core (txns that only read), apply core (compares inside an entry).
//!
//! Txn: its compares, the path that they choose, and the checks on that path. `apply` does the writes.
//!
//! Invariants: all compares, nested ones too, see the store before the txn. `Path` holds one decision per txn, in the
//! order in which execution meets the txns.
//! **Source** etcd v3.7.1 `server/etcdserver/txn/txn.go`.

use std::cmp::Ordering;

use bytes::Bytes;
use engine::{Fault, KeyRange, ReadView};
use proto::{
    etcdserverpb as pb,
    etcdserverpb::{
        compare::{CompareResult, CompareTarget, TargetUnion},
        request_op::Request,
    },
};

use super::{keys, range::LEAVES_AHEAD_MAX};
use crate::error::Error;

/// The branch that each txn takes, in execution order.
pub type Path = Vec<bool>;

/// The header of a response inside a txn. It carries the revision alone.
pub fn inner_header(revision: i64) -> pb::ResponseHeader {
    pb::ResponseHeader { revision, ..Default::default() }
}

/// The operations of the branch that is taken.
pub fn branch(request: &pb::TxnRequest, succeeded: bool) -> &[pb::RequestOp] {
    if succeeded { &request.success } else { &request.failure }
}

fn all_ops(request: &pb::TxnRequest) -> impl Iterator<Item = &pb::RequestOp> {
    request.success.iter().chain(&request.failure)
}

/// Whether the txn changes nothing, whatever branch it takes.
pub fn is_read_only(request: &pb::TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(op.request, Some(Request::RequestRange(_))))
}

/// Whether all its reads may be served from this member's present state.
pub fn is_serializable(request: &pb::TxnRequest) -> bool {
    all_ops(request).all(|op| matches!(&op.request, Some(Request::RequestRange(range)) if range.serializable))
}

/// Decides which branch each txn takes, in bounded steps: a compare may be about very many keys. What it has seen stays
/// true between two steps, as they all read one revision.
#[derive(Debug, Default)]
pub struct Decision {
    path: Path,
    is_made: bool,
    /// Results of the compares that were evaluated, in the order in which they are met.
    results: Vec<bool>,
    /// The range of the compare under way, and the last key for which it holds.
    range: Option<KeyRange>,
    last_key: Option<Bytes>,
}

impl Decision {
    /// Looks at about `budget` more keys at revision `at`. Returns whether the decision is made.
    ///
    /// **Errors** a page that is not resident; load it and call again.
    pub fn step(
        &mut self,
        view: &ReadView,
        at: i64,
        request: &pb::TxnRequest,
        mut budget: usize,
    ) -> Result<bool, Fault> {
        if !self.is_made {
            self.path.clear();
            self.is_made = self.decide((view, at), request, &mut 0, &mut budget)?;
        }
        Ok(self.is_made)
    }

    /// The pages to read together after `fault`, at which a step has stopped; that one first.
    pub fn wanted(&self, view: &ReadView, at: i64, fault: Fault) -> Vec<Fault> {
        let mut wanted = vec![fault];
        if let Some(range) = &self.range {
            let start = self.last_key.as_ref().unwrap_or(&range.start);
            wanted.extend(view.missing(range, start, at, LEAVES_AHEAD_MAX));
        }
        wanted
    }

    /// The branches.
    pub fn path(&self) -> &[bool] {
        assert!(self.is_made, "it steps until it is made");
        &self.path
    }

    /// Whether all is known about `request` and the txns in it. `met` counts the compares on the way.
    fn decide(
        &mut self,
        view: (&ReadView, i64),
        request: &pb::TxnRequest,
        met: &mut usize,
        budget: &mut usize,
    ) -> Result<bool, Fault> {
        let mut succeeded = true;
        for compare in &request.compare {
            let Some(holds) = self.result(view, compare, *met, budget)? else { return Ok(false) };
            *met += 1;
            if !holds {
                succeeded = false;
                break;
            }
        }
        self.path.push(succeeded);
        for op in branch(request, succeeded) {
            if let Some(Request::RequestTxn(nested)) = &op.request
                && !self.decide(view, nested, met, budget)?
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether compare `number` holds; `None` if the budget ended before that is known.
    fn result(
        &mut self,
        view: (&ReadView, i64),
        compare: &pb::Compare,
        number: usize,
        budget: &mut usize,
    ) -> Result<Option<bool>, Fault> {
        if let Some(known) = self.results.get(number) {
            return Ok(Some(*known));
        }
        let range = self.range.get_or_insert_with(|| keys(&compare.key, &compare.range_end));
        let holds = holds(view, (compare, range), &mut self.last_key, budget)?;
        if let Some(holds) = holds {
            self.results.push(holds);
            (self.range, self.last_key) = (None, None);
        }
        Ok(holds)
    }
}

/// A key as compares see it. All fields of an absent key are zero.
#[derive(Default)]
struct Compared {
    create_revision: i64,
    mod_revision: i64,
    version: i64,
    lease: i64,
    value: Bytes,
}

/// Whether `compare` holds for all of its keys; `None` if the budget ended. `last_key` is the last one for which it
/// does.
fn holds(
    (view, at): (&ReadView, i64),
    (compare, range): (&pb::Compare, &KeyRange),
    last_key: &mut Option<Bytes>,
    budget: &mut usize,
) -> Result<Option<bool>, Fault> {
    let needs_value = compare.target == CompareTarget::Value as i32;
    let mut cursor = match last_key {
        Some(last_key) => view.cursor_after(range, at, last_key),
        None => view.cursor(range, at),
    };
    while let Some(version) = cursor.next()? {
        let Some(left) = budget.checked_sub(1) else { return Ok(None) };
        *budget = left;
        let value = if needs_value {
            view.record(&version.key, version.revision)?.expect("a live version has its record").value
        } else {
            Bytes::new()
        };
        let compared = Compared {
            create_revision: version.create_revision,
            mod_revision: version.revision.main,
            version: version.version,
            lease: version.lease,
            value,
        };
        if !matches(compare, &compared) {
            return Ok(Some(false));
        }
        *last_key = Some(version.key);
    }
    // An absent value is neither equal to nor different from anything.
    Ok(Some(last_key.is_some() || (!needs_value && matches(compare, &Compared::default()))))
}

fn matches(compare: &pb::Compare, key: &Compared) -> bool {
    let number = |found: i64, wanted: i64| found.cmp(&wanted);
    let union = &compare.target_union;
    let ordering = match CompareTarget::try_from(compare.target) {
        Ok(CompareTarget::Value) => {
            let wanted: &[u8] = if let Some(TargetUnion::Value(value)) = union { value } else { &[] };
            key.value.as_ref().cmp(wanted)
        }
        Ok(CompareTarget::Create) => {
            number(key.create_revision, if let Some(TargetUnion::CreateRevision(n)) = union { *n } else { 0 })
        }
        Ok(CompareTarget::Mod) => {
            number(key.mod_revision, if let Some(TargetUnion::ModRevision(n)) = union { *n } else { 0 })
        }
        Ok(CompareTarget::Version) => {
            number(key.version, if let Some(TargetUnion::Version(n)) = union { *n } else { 0 })
        }
        Ok(CompareTarget::Lease) => number(key.lease, if let Some(TargetUnion::Lease(n)) = union { *n } else { 0 }),
        Err(_) => Ordering::Equal,
    };
    match CompareResult::try_from(compare.result) {
        Ok(CompareResult::Equal) => ordering.is_eq(),
        Ok(CompareResult::NotEqual) => ordering.is_ne(),
        Ok(CompareResult::Greater) => ordering.is_gt(),
        Ok(CompareResult::Less) => ordering.is_lt(),
        Err(_) => true,
    }
}

/// Checks a Range on the chosen path. Unlike in a Range of its own, a negative revision counts as compacted.
///
/// **Errors** a revision that does not exist yet, or no longer.
pub fn check_range(view: &ReadView, request: &pb::RangeRequest) -> Result<(), Error> {
    match request.revision {
        0 => Ok(()),
        revision if revision > view.revision() => Err(Error::FutureRevision),
        revision if revision < view.compact_revision() => Err(Error::Compacted),
        _ => Ok(()),
    }
}
