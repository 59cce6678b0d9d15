//! What must hold whatever happens. The checkers know what members have applied and what clients were told, and nothing
//! of how it came about.
//!
//! - `Truth`: one entry at each index, one leader in each term; what each entry does, by a model of its own.
//! - `History`: what clients were told agrees with the truth and with real time.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;
use proto::{
    etcdserverpb::{compare::TargetUnion, request_op::Request as Op},
    internal::{self, Request},
};

/// The log as all members have it, and the state that it makes.
#[derive(Default)]
pub(crate) struct Truth {
    entries: BTreeMap<u64, (u64, Bytes)>,
    leaders: BTreeMap<u64, u64>,
    /// The last entry that the model has applied.
    applied: u64,
    revision: i64,
    state: BTreeMap<Bytes, (Bytes, i64)>,
    /// For each key, the values that it had, with the revisions from which on it had them.
    history: BTreeMap<Bytes, Vec<(i64, Option<Bytes>)>>,
    /// For each request that was applied: the store's revision behind it.
    made: HashMap<u64, i64>,
}

impl Truth {
    pub(crate) fn new() -> Self {
        Self { revision: 1, ..Self::default() }
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
            if let Ok((header, request)) = internal::decode(data) {
                self.apply(&request);
                self.made.insert(header.id, self.revision);
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

    pub(crate) fn revision(&self) -> i64 {
        self.revision
    }

    /// How many terms had a leader.
    pub(crate) fn terms(&self) -> usize {
        self.leaders.len()
    }

    /// The store's revision behind the request `id`, if it was applied.
    pub(crate) fn made(&self, id: u64) -> Option<i64> {
        self.made.get(&id).copied()
    }

    /// The value of `key` at `revision`.
    pub(crate) fn value_at(&self, key: &[u8], revision: i64) -> Option<&Bytes> {
        let values = self.history.get(key)?;
        let at = values.partition_point(|(from, _)| *from <= revision);
        values[..at].last().and_then(|(_, value)| value.as_ref())
    }

    /// The revision that last changed `key` by `revision`; 0 if it was not there.
    pub(crate) fn modified(&self, key: &[u8], revision: i64) -> Option<i64> {
        let values = self.history.get(key)?;
        let at = values.partition_point(|(from, _)| *from <= revision);
        values[..at].last().map(|(from, value)| if value.is_some() { *from } else { 0 })
    }

    fn put(&mut self, key: &Bytes, value: &Bytes) {
        self.state.insert(key.clone(), (value.clone(), self.revision));
        self.history.entry(key.clone()).or_default().push((self.revision, Some(value.clone())));
    }

    fn apply(&mut self, request: &Request) {
        match request {
            Request::Put(put) => {
                self.revision += 1;
                self.put(&put.key, &put.value);
            }
            Request::DeleteRange(delete) => {
                assert!(delete.range_end.is_empty(), "clients here delete one key");
                if self.state.remove(&delete.key).is_some() {
                    self.revision += 1;
                    self.history.entry(delete.key.clone()).or_default().push((self.revision, None));
                }
            }
            Request::Txn(txn) => {
                let [compare] = &txn.compare[..] else { panic!("clients here compare one key") };
                let Some(TargetUnion::ModRevision(wanted)) = compare.target_union else { panic!("by its revision") };
                let found = self.state.get(&compare.key).map_or(0, |(_, revision)| *revision);
                if found == wanted {
                    let [op] = &txn.success[..] else { panic!("one operation") };
                    let Some(Op::RequestPut(put)) = &op.request else { panic!("a put") };
                    self.revision += 1;
                    self.put(&put.key, &put.value);
                }
            }
            _ => {}
        }
    }
}
