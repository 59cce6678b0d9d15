//! What must hold whatever happens. The checker knows what members have taken for committed and what clients were told,
//! and nothing of how it came about.
//!
//! One entry at each index; one leader in each term; each request is answered as the model answers it, at the place
//! where the log has it; a request that was refused is never applied.

use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind, Request},
};
use server::{
    apply::{outcome::Outcome, proposal::Proposal},
    error::Error,
};

use super::model::{Change, Done, Model, Refusal, without_headers};

/// The log as all members have it, and what it means.
pub(crate) struct Truth {
    entries: BTreeMap<u64, (u64, Bytes)>,
    leaders: BTreeMap<u64, u64>,
    /// The last entry that the model has applied.
    applied: u64,
    pub(crate) model: Model,
    /// For each entry that was applied, and each time that it was: the store's revision behind it, and its answer. Two
    /// entries may be the same: a member that does not know the time gives a number to a request twice.
    made: HashMap<Bytes, Vec<(i64, Done)>>,
    /// Puts that were refused: no other request is the same.
    refused: HashSet<Bytes>,
}

/// What became of a request, as its client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It was applied, and this is the revision behind it.
    Applied(i64),
    /// It was applied, and changed nothing but perhaps a compaction or a lease.
    Declined,
    /// It was not proposed.
    Refused,
    Unknown,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self {
            entries: BTreeMap::new(),
            leaders: BTreeMap::new(),
            applied: 0,
            model: Model::new(),
            made: HashMap::new(),
            refused: HashSet::new(),
        }
    }

    /// Some member takes the entry at `index` for committed. Returns the requests that are committed now.
    pub(crate) fn committed(&mut self, index: u64, term: u64, data: &Bytes) -> Vec<Request> {
        let mut requests = Vec::new();
        match self.entries.get(&index) {
            Some(known) => assert_eq!((known.0, &known.1), (term, data), "one entry at index {index}"),
            None => drop(self.entries.insert(index, (term, data.clone()))),
        }
        while let Some((_, data)) = self.entries.get(&(self.applied + 1)) {
            let data = data.clone();
            self.applied += 1;
            if let Ok((_, request)) = internal::decode(data.clone()) {
                let done = self.model.apply(&request);
                assert!(!self.refused.contains(&data), "{request:?} was refused, and is applied");
                self.made.entry(data).or_default().push((self.model.revision, done));
                requests.push(request);
            }
        }
        requests
    }

    /// `member` leads in `term`.
    pub(crate) fn leads(&mut self, term: u64, member: u64) {
        let leader = *self.leaders.entry(term).or_insert(member);
        assert_eq!(leader, member, "one leader in term {term}");
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied
    }

    /// Term and index of the last entry that is known to be committed.
    pub(crate) fn last(&self) -> (u64, u64) {
        (self.entries.get(&self.applied).map_or(0, |(term, _)| *term), self.applied)
    }

    pub(crate) fn revision(&self) -> i64 {
        self.model.revision
    }

    pub(crate) fn compacted(&self) -> i64 {
        self.model.compacted
    }

    pub(crate) fn changes(&self, revision: i64) -> &[Change] {
        self.model.changes(revision)
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// Checks what a client is told of its request.
    pub(crate) fn answered(&mut self, proposal: &Proposal) -> Fate {
        let told = match &proposal.result {
            Ok(Outcome::Put { previous, .. }) => Done::Put(previous.as_deref().cloned()),
            Ok(Outcome::DeleteRange(response)) => {
                Done::Delete(pb::DeleteRangeResponse { header: None, ..(**response).clone() })
            }
            Ok(Outcome::Txn(response)) => Done::Txn(without_headers((**response).clone())),
            Ok(Outcome::Compaction { .. }) => Done::Compaction,
            Ok(Outcome::LeaseGrant { .. }) => Done::Grant,
            Ok(Outcome::LeaseRevoke { .. }) => Done::Revoke,
            Ok(other) => panic!("{other:?} was not asked for"),
            Err(Error::Compacted) => Done::Refused(Refusal::Compacted),
            Err(Error::FutureRevision) => Done::Refused(Refusal::Future),
            Err(Error::LeaseNotFound) => Done::Refused(Refusal::LeaseNotFound),
            Err(Error::LeaseExists) => Done::Refused(Refusal::LeaseExists),
            // It may have been applied, and its answer needs what cannot be read; or it is in a state that took the
            // place of this member's.
            Err(Error::Corrupt | Error::Timeout) => return Fate::Unknown,
            Err(_) => {
                if internal::decode(proposal.entry.clone()).is_ok_and(|(_, request)| request.kind() == Kind::Put) {
                    assert!(!self.made.contains_key(&proposal.entry), "it is refused, and was applied: {proposal:?}");
                    self.refused.insert(proposal.entry.clone());
                }
                return Fate::Refused;
            }
        };
        let header = |header: &Option<pb::ResponseHeader>| header.as_ref().map_or(0, |header| header.revision);
        let at = match &proposal.result {
            Ok(
                Outcome::Put { revision, .. }
                | Outcome::Compaction { revision }
                | Outcome::LeaseGrant { revision, .. }
                | Outcome::LeaseRevoke { revision },
            ) => Some(*revision),
            Ok(Outcome::DeleteRange(response)) => Some(header(&response.header)),
            Ok(Outcome::Txn(response)) => Some(header(&response.header)),
            _ => None,
        };
        let Some(made) = self.made.get_mut(&proposal.entry) else {
            panic!("request {} is acknowledged, and nobody has committed it", proposal.id);
        };
        let is_it = |made: &(i64, Done)| made.1 == told && at.is_none_or(|at| at == made.0);
        let Some(position) = made.iter().position(is_it) else {
            panic!("request {} is told {told:?} at {at:?}, and has done {made:?}", proposal.id);
        };
        made.swap_remove(position);
        at.map_or(Fate::Declined, Fate::Applied)
    }
}
