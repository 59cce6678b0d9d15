//! An independent search: is there an order of a key's operations that explains what every client was told, and in
//! which each operation lies between its call and its answer?
//!
//! It knows nothing of logs, revisions or members: it sees calls and answers alone. An operation whose fate nobody
//! knows may lie anywhere behind its call, or nowhere. Values are written once, so a key's state is the number of the
//! write that it has.
//!
//! **Source** Wing and Gong, "Testing and verifying concurrent objects", 1993; the memory of what was tried is Lowe's,
//! "Testing for linearizability", 2017.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;

/// What is asked of one key, and what was told. States are values; `None` for an absent key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    Put(Bytes),
    Delete,
    /// Puts the value if the key has what is expected; whether it did, if that was told.
    PutIf {
        expected: Option<Bytes>,
        value: Bytes,
        succeeded: Option<bool>,
    },
    Read(Option<Bytes>),
}

/// An operation; the times are places in the order of all calls and answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Operation {
    pub(crate) called: u64,
    /// `None` if its fate is unknown.
    pub(crate) answered: Option<u64>,
    pub(crate) step: Step,
}

/// The operations on all keys.
#[derive(Default)]
pub(crate) struct History {
    time: u64,
    keys: BTreeMap<Bytes, Vec<Operation>>,
}

/// Where an operation is in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    key: Bytes,
    position: usize,
}

impl History {
    fn now(&mut self) -> u64 {
        self.time += 1;
        self.time
    }

    /// A client asks for something.
    pub(crate) fn calls(&mut self, key: &Bytes, step: Step) -> Place {
        let called = self.now();
        let operations = self.keys.entry(key.clone()).or_default();
        operations.push(Operation { called, answered: None, step });
        Place { key: key.clone(), position: operations.len() - 1 }
    }

    /// A client is told what became of it.
    pub(crate) fn answers(&mut self, place: &Place, tell: impl FnOnce(&mut Step)) {
        let answered = Some(self.now());
        let operation = &mut self.keys.get_mut(&place.key).expect("it was called")[place.position];
        assert!(operation.answered.is_none(), "an operation is answered once");
        operation.answered = answered;
        tell(&mut operation.step);
    }

    /// Checks each key, within `tries_max` steps. Returns how many there are, and how many there were too many
    /// possibilities for.
    pub(crate) fn check(&self, tries_max: usize) -> (u64, u64) {
        let undecided = self.keys.iter().filter(|(key, operations)| {
            let found = is_linearizable(operations, tries_max);
            assert!(found != Some(false), "no order explains what clients were told of {key:?}: {operations:#?}");
            found.is_none()
        });
        (self.keys.len() as u64, undecided.count() as u64)
    }
}

/// A state of the search: the operations that are done, and what the key has.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Tried {
    done: Vec<u64>,
    value: Option<Bytes>,
}

impl Tried {
    fn is_done(&self, position: usize) -> bool {
        self.done[position / 64] >> (position % 64) & 1 == 1
    }

    fn with(&self, position: usize, value: Option<Bytes>) -> Self {
        let mut done = self.done.clone();
        done[position / 64] |= 1 << (position % 64);
        Self { done, value }
    }
}

/// What the key has behind `step`, if it may happen when the key has `value`.
fn after(step: &Step, value: &Option<Bytes>) -> Option<Option<Bytes>> {
    match step {
        Step::Put(new) => Some(Some(new.clone())),
        Step::Delete => Some(None),
        Step::Read(read) => (read == value).then(|| value.clone()),
        Step::PutIf { expected, value: new, succeeded } => {
            let succeeds = expected == value;
            let is_as_told = succeeded.is_none_or(|told| told == succeeds);
            is_as_told.then(|| if succeeds { Some(new.clone()) } else { value.clone() })
        }
    }
}

/// Whether an order explains `operations`; `None` if that was not found out within `tries_max` steps.
pub(crate) fn is_linearizable(operations: &[Operation], tries_max: usize) -> Option<bool> {
    // A read whose answer nobody got tells nothing.
    let known = |operation: &&Operation| operation.answered.is_some() || !matches!(operation.step, Step::Read(_));
    let operations: Vec<&Operation> = operations.iter().filter(known).collect();
    let start = Tried { done: vec![0; operations.len().div_ceil(64)], value: None };
    let mut tried: HashSet<Tried> = HashSet::from([start.clone()]);
    let mut open = vec![start];
    let mut tries = 0;
    while let Some(state) = open.pop() {
        tries += 1;
        if tries > tries_max {
            return None;
        }
        let left = || (0..operations.len()).filter(|position| !state.is_done(*position));
        // What must come first of what is left: nothing that was called behind its answer can come before it.
        let Some(first) = left().filter_map(|position| operations[position].answered).min() else { return Some(true) };
        let mut next = Vec::new();
        for position in left().take_while(|position| operations[*position].called < first) {
            let Some(value) = after(&operations[position].step, &state.value) else { continue };
            let is_read = matches!(operations[position].step, Step::Read(_));
            let reached = state.with(position, value);
            if is_read {
                // It changes nothing, so nothing is lost when it comes now.
                next = vec![reached];
                break;
            }
            next.push(reached);
        }
        open.extend(next.into_iter().filter(|reached| tried.insert(reached.clone())));
    }
    Some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(text: &'static str) -> Option<Bytes> {
        Some(Bytes::from_static(text.as_bytes()))
    }

    fn operations(listed: &[(u64, u64, Step)]) -> Vec<Operation> {
        let operation = |(called, answered, step): &(u64, u64, Step)| Operation {
            called: *called,
            answered: (*answered > 0).then_some(*answered),
            step: step.clone(),
        };
        listed.iter().map(operation).collect()
    }

    #[test]
    fn a_stale_read_has_no_place_in_any_order() {
        let put = |text: &'static str| Step::Put(value(text).unwrap());
        let read = |text| Step::Read(value(text));
        let fine = operations(&[(1, 4, put("a")), (2, 3, read("a")), (5, 6, put("b")), (7, 8, read("b"))]);
        assert_eq!(is_linearizable(&fine, 1000), Some(true));
        let stale = operations(&[(1, 2, put("a")), (3, 4, put("b")), (5, 6, read("a"))]);
        assert_eq!(is_linearizable(&stale, 1000), Some(false));
        let back = operations(&[(1, 2, put("a")), (3, 0, put("b")), (4, 5, read("b")), (6, 7, read("a"))]);
        assert_eq!(is_linearizable(&back, 1000), Some(false), "what was seen stays, though its fate is unknown");
        let late = operations(&[(1, 2, put("a")), (3, 0, put("b")), (4, 5, read("a")), (6, 7, read("b"))]);
        assert_eq!(is_linearizable(&late, 1000), Some(true), "a put of unknown fate may come late");
        assert_eq!(is_linearizable(&late, 1), None, "the search is bounded");
    }

    #[test]
    fn a_condition_holds_when_its_put_happens() {
        let put_if = |expected, text: &'static str, succeeded| Step::PutIf {
            expected,
            value: value(text).unwrap(),
            succeeded: Some(succeeded),
        };
        let both = operations(&[(1, 4, put_if(None, "a", true)), (2, 3, put_if(None, "b", true))]);
        assert_eq!(is_linearizable(&both, 1000), Some(false), "one of the two must fail");
        let one = operations(&[(1, 4, put_if(None, "a", true)), (2, 3, put_if(None, "b", false))]);
        assert_eq!(is_linearizable(&one, 1000), Some(true));
    }
}
