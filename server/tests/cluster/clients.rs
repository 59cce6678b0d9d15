//! Clients: what they ask, what they are told, and that it agrees with the truth and with real time.
//!
//! A client has one request under way. It waits for the answer until its patience ends; then it does not know what
//! became of the request, and asks for something else.
//!
//! What is checked at each answer: it is what the model answers (`checks`). The revision of a write, and that of a
//! linearizable read, is not below any that anybody had been told of before it was asked for. What a read shows is what
//! the model has at its revision; it is refused as compacted, or as of the future, only when that is so. In a run whose
//! histories are searched, every key is searched at the end (`search`).

use std::{collections::BTreeMap, ops::AddAssign, time::Duration};

use bytes::Bytes;
use engine::{ReadView, disk::sim::Random};
use proto::{
    etcdserverpb::{self as pb, request_op},
    internal::Request,
};
use server::{
    apply::{outcome::Outcome, proposal::Proposal},
    error::Error,
};

use super::{
    checks::{Fate, Truth},
    member::Member,
    mix::{self, Asks, Known},
    plan::{Plan, sequence},
    search::{History, Place, Step},
    story::Story,
};

pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
/// Steps of the search for an order of the operations on one key.
const TRIES_MAX: usize = 200_000;

#[derive(Debug, PartialEq)]
enum Asked {
    Write { id: u64 },
    Read { context: u64, request: pb::RangeRequest },
}

#[derive(Debug)]
pub(crate) struct Waiting {
    member: usize,
    asked: Asked,
    until: Duration,
    /// The highest revision that anybody had been told of before, and the highest that anybody knew to be compacted.
    floor: i64,
    compacted: i64,
    /// Where it is in the history that is searched.
    place: Option<Place>,
}

/// Numbers of a run, to see that something happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) asked: u64,
    pub(crate) written: u64,
    pub(crate) read: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
    /// Reads of what was compacted, or does not exist yet.
    pub(crate) out_of_reach: u64,
    pub(crate) keys_searched: u64,
    pub(crate) keys_undecided: u64,
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { asked, written, read, refused, unknown, out_of_reach, keys_searched, keys_undecided } = other;
        self.asked += asked;
        self.written += written;
        self.read += read;
        self.refused += refused;
        self.unknown += unknown;
        self.out_of_reach += out_of_reach;
        self.keys_searched += keys_searched;
        self.keys_undecided += keys_undecided;
    }
}

pub(crate) struct Clients {
    pub(crate) waiting: Vec<Option<Waiting>>,
    /// The highest revision that anybody was told of, and the highest that anybody knows to be compacted.
    told: i64,
    compacted: i64,
    /// What clients know of the keys, for their txns.
    known: BTreeMap<Bytes, (i64, Option<Bytes>)>,
    contexts: u64,
    /// Set if histories are searched.
    history: Option<History>,
    pub(crate) tally: Tally,
    bulk_keys: u64,
    randoms: Vec<Random>,
}

/// What a read was answered.
pub(crate) type Answer = Result<(i64, pb::RangeResponse), Error>;

impl Clients {
    pub(crate) fn new(plan: &Plan) -> Self {
        let Plan { seed, clients: count, is_searched, bulk_keys, .. } = *plan;
        Self {
            waiting: (0..count).map(|_| None).collect(),
            told: 0,
            compacted: 0,
            known: BTreeMap::new(),
            contexts: 0,
            history: is_searched.then(History::default),
            tally: Tally::default(),
            bulk_keys,
            randoms: (0..count).map(|client| sequence(seed, "client", client)).collect(),
        }
    }

    /// When the client acts again, and which of so many members it asks now.
    pub(crate) fn next(&mut self, client: usize, pause_us_max: u64, members: usize) -> (Duration, usize) {
        let random = &mut self.randoms[client];
        let pause = Duration::from_micros(1000 + random.below(pause_us_max));
        (pause, usize::try_from(random.below(members as u64)).expect("a few"))
    }

    /// Client `client` asks `member` for something. `lease` may be alive.
    pub(crate) fn ask(
        &mut self,
        client: usize,
        (at, member): (usize, &mut Member),
        lease: i64,
        truth: &Truth,
        story: &mut Story,
    ) {
        self.tally.asked += 1;
        let key = |key: &Bytes| self.known.get(key).cloned().unwrap_or((0, None));
        let known =
            Known { key: &key, lease, revision: self.told.max(1), bulk_keys: self.bulk_keys, number: self.tally.asked };
        let random = &mut self.randoms[client];
        let asks = match &self.history {
            Some(_) => mix::drawn_of_registers(random, &known),
            None => mix::drawn(random, &known),
        };
        let now = story.now;
        story.tell(now, || format!("client {client} asks m{}: {}", member.id, shown(&asks)));
        let step = self.history.is_some().then(|| step_of(&asks, &self.known));
        let asked = match asks {
            Asks::Write(request) => Asked::Write { id: member.propose(request) },
            Asks::Read(request) if request.serializable => {
                let answer = member.read(&member.shared.view.load(), &request);
                return self.read((client, now), &request, (0, 0), answer, truth, story);
            }
            Asks::Read(request) => {
                self.contexts += 1;
                member.ask_read(self.contexts);
                Asked::Read { context: self.contexts, request }
            }
        };
        let place = step.map(|(key, step)| self.history.as_mut().expect("just seen").calls(&key, step));
        let (floor, compacted, until) = (self.told, self.compacted, now + PATIENCE);
        self.waiting[client] = Some(Waiting { member: at, asked, until, floor, compacted, place });
    }

    /// A member answers a proposal.
    pub(crate) fn answered(
        &mut self,
        (at, proposal): (usize, &Proposal),
        truth: &mut Truth,
        now: Duration,
        story: &mut Story,
    ) {
        let fate = truth.answered(proposal);
        let asked = Asked::Write { id: proposal.id };
        let is_its = |waiting: &Waiting| waiting.member == at && waiting.asked == asked;
        let is_it = |waiting: &Option<Waiting>| waiting.as_ref().is_some_and(is_its);
        let client = self.waiting.iter().position(is_it);
        if let Some(client) = client {
            story.tell(now, || format!("client {client} is told: {fate:?}"));
        }
        let waiting = client.and_then(|client| self.waiting[client].take());
        match fate {
            Fate::Applied(revision) => self.told = self.told.max(revision),
            Fate::Declined => {}
            Fate::Refused => {
                self.tally.refused += u64::from(waiting.is_some());
                // It is as if it had not been asked for; to the search its fate is unknown.
                return;
            }
            Fate::Unknown => {
                self.tally.unknown += u64::from(waiting.is_some());
                return;
            }
        }
        if let Ok(Outcome::Compaction { .. }) = &proposal.result {
            self.compacted = self.compacted.max(truth.compacted());
        }
        let Some(waiting) = waiting else { return };
        if let Fate::Applied(revision) = fate {
            assert!(revision >= waiting.floor, "a write at {revision}, {} was known before", waiting.floor);
            if let Ok(Outcome::Put { .. }) = &proposal.result {
                assert!(revision > waiting.floor, "a put has a revision of its own");
            }
        }
        if let (Some(place), Some(history)) = (&waiting.place, &mut self.history) {
            history.answers(place, |step| {
                if let (Step::PutIf { succeeded, .. }, Ok(Outcome::Txn(response))) = (step, &proposal.result) {
                    *succeeded = Some(response.succeeded);
                }
            });
        }
        self.tally.written += 1;
    }

    /// `member` answers the read `context` from `view`, or refuses it.
    pub(crate) fn answer_read(
        &mut self,
        (context, view): (u64, Option<&ReadView>),
        member: &Member,
        truth: &Truth,
        story: &mut Story,
    ) {
        let is_it = |waiting: &Option<Waiting>| match waiting {
            Some(Waiting { asked: Asked::Read { context: asked, .. }, .. }) => *asked == context,
            _ => false,
        };
        let Some(client) = self.waiting.iter().position(is_it) else { return };
        let Waiting { asked, floor, compacted, place, .. } = self.waiting[client].take().expect("just seen");
        let Asked::Read { request, .. } = asked else { unreachable!("just seen") };
        let Some(view) = view else {
            self.tally.refused += 1;
            return;
        };
        let answer = member.read(view, &request);
        if let (Some(place), Some(history), Some(Ok((_, response)))) = (&place, &mut self.history, &answer) {
            let read = response.kvs.first().map(|kv| kv.value.clone());
            history.answers(place, |step| *step = Step::Read(read));
        }
        self.read((client, story.now), &request, (floor, compacted), answer, truth, story);
    }

    /// Checks a read that was asked for when `floor` was known and `compacted` was compacted. It has no answer if the
    /// member cannot read its disk.
    fn read(
        &mut self,
        (client, now): (usize, Duration),
        request: &pb::RangeRequest,
        (floor, compacted): (i64, i64),
        answer: Option<Answer>,
        truth: &Truth,
        story: &mut Story,
    ) {
        let revision = request.revision;
        let (at, response) = match answer {
            Some(Ok(answer)) => answer,
            Some(Err(Error::Compacted)) => {
                assert!(revision < truth.compacted(), "{request:?} is refused, and nothing there is compacted");
                self.tally.out_of_reach += 1;
                return;
            }
            Some(Err(Error::FutureRevision)) => {
                assert!(revision > floor, "{request:?} is refused, and {floor} was known before");
                self.tally.out_of_reach += 1;
                return;
            }
            Some(Err(error)) => panic!("{request:?}: {error}"),
            None => {
                self.tally.unknown += 1;
                return;
            }
        };
        story.tell(now, || format!("client {client} is told: {} keys at {at}", response.kvs.len()));
        assert!(at >= floor, "a read at {at}, {floor} was known before it was asked for");
        assert!(at <= truth.revision(), "a read at {at} of what nobody has committed");
        let of = if revision > 0 { revision } else { at };
        assert!(of >= compacted, "a read of {of}, {compacted} was known to be compacted before it was asked for");
        assert_eq!(response, truth.model.range(request, of), "{request:?} at {of}");
        self.told = self.told.max(at);
        if request.range_end.is_empty() && revision == 0 {
            let found = truth.model.at(&request.key, at);
            let known = found.map_or((0, None), |kv| (kv.mod_revision, Some(kv.value.clone())));
            self.known.insert(request.key.clone(), known);
        }
        self.tally.read += 1;
    }

    /// The highest revision that anybody was told of.
    pub(crate) fn told(&self) -> i64 {
        self.told
    }

    /// Who waits for `member` is told nothing any more.
    pub(crate) fn lost(&mut self, member: usize) {
        for waiting in &mut self.waiting {
            if waiting.take_if(|waiting| waiting.member == member).is_some() {
                self.tally.unknown += 1;
            }
        }
    }

    /// Gives up what has waited for too long.
    pub(crate) fn give_up(&mut self, client: usize, now: Duration) {
        if self.waiting[client].take_if(|waiting| waiting.until <= now).is_some() {
            self.tally.unknown += 1;
        }
    }

    /// Searches the histories for orders that explain them.
    pub(crate) fn check_end(&mut self) {
        if let Some(history) = &self.history {
            let (searched, undecided) = history.check(TRIES_MAX);
            self.tally.keys_searched += searched;
            self.tally.keys_undecided += undecided;
        }
    }
}

/// A request about one key, as the search sees it.
fn step_of(asks: &Asks, known: &BTreeMap<Bytes, (i64, Option<Bytes>)>) -> (Bytes, Step) {
    match asks {
        Asks::Read(range) => (range.key.clone(), Step::Read(None)),
        Asks::Write(Request::Put(put)) => (put.key.clone(), Step::Put(put.value.clone())),
        Asks::Write(Request::DeleteRange(delete)) => (delete.key.clone(), Step::Delete),
        Asks::Write(Request::Txn(txn)) => {
            let [pb::RequestOp { request: Some(request_op::Request::RequestPut(put)) }] = &txn.success[..] else {
                panic!("{txn:?} is about one key")
            };
            let expected = known.get(&put.key).and_then(|(_, value)| value.clone());
            (put.key.clone(), Step::PutIf { expected, value: put.value.clone(), succeeded: None })
        }
        Asks::Write(other) => panic!("{other:?} is not about a key"),
    }
}

/// A request in a few words.
fn shown(asks: &Asks) -> String {
    match asks {
        Asks::Read(range) => {
            let pb::RangeRequest { key, range_end, revision, serializable, .. } = range;
            format!("read {key:?} {range_end:?} at {revision}, serializable: {serializable}")
        }
        Asks::Write(Request::Put(put)) => format!("put {:?}, lease {}", put.key, put.lease),
        Asks::Write(Request::DeleteRange(delete)) => format!("delete {:?} {:?}", delete.key, delete.range_end),
        Asks::Write(Request::Txn(txn)) => {
            let pb::TxnRequest { compare, success, failure } = txn;
            format!("txn of {} compares, {} and {} operations", compare.len(), success.len(), failure.len())
        }
        Asks::Write(other) => format!("{other:?}"),
    }
}
