//! Clients: what they ask, what they are told, and that it agrees with the truth and with real time.
//!
//! A client has one request under way. It waits for the answer until its patience ends; then it does not know what
//! became of the request, and asks for something else.
//!
//! What is checked at each answer: a write was applied, at the revision that the answer names; that revision is above
//! all that anybody had been told before the write was asked for. A linearizable read is of a revision that is at least
//! as high, and the value is the one that the key had at that revision.

use std::{collections::BTreeMap, ops::AddAssign, time::Duration};

use bytes::Bytes;
use engine::{ReadView, disk::sim::Random};
use proto::{
    etcdserverpb::{self as pb, compare::TargetUnion, request_op},
    internal::Request,
};
use server::apply::{outcome::Outcome, proposal::Proposal};

use super::{checks::Truth, member::Member, plan::sequence, story::Story};

const KEYS: u64 = 40;
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    Write { id: u64 },
    Read { context: u64, key: Bytes },
}

#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) member: usize,
    pub(crate) asked: Asked,
    pub(crate) until: Duration,
    /// The highest revision that anybody had been told of before.
    floor: i64,
}

/// What became of what was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Asks {
    pub(crate) asked: u64,
    pub(crate) written: u64,
    pub(crate) read: u64,
    pub(crate) refused: u64,
    pub(crate) unknown: u64,
}

impl AddAssign for Asks {
    fn add_assign(&mut self, other: Self) {
        let Self { asked, written, read, refused, unknown } = other;
        self.asked += asked;
        self.written += written;
        self.read += read;
        self.refused += refused;
        self.unknown += unknown;
    }
}

pub(crate) struct Clients {
    pub(crate) waiting: Vec<Option<Waiting>>,
    /// The highest revision that anybody was told of.
    told: i64,
    /// What clients know of the keys' revisions, for their txns.
    known: BTreeMap<Bytes, i64>,
    contexts: u64,
    pub(crate) tally: Asks,
    randoms: Vec<Random>,
}

fn key(random: &mut Random) -> Bytes {
    format!("/registry/{:04}", random.below(KEYS)).into()
}

/// A request in a few words.
fn shown(request: &Request) -> String {
    match request {
        Request::Put(put) => format!("put {:?}", put.key),
        Request::DeleteRange(delete) => format!("delete {:?}", delete.key),
        Request::Txn(txn) => {
            format!("txn if {:?}", txn.compare.first().and_then(|compare| compare.target_union.clone()))
        }
        other => format!("{:?}", other.kind()),
    }
}

impl Clients {
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        let waiting = (0..count).map(|_| None).collect();
        let randoms = (0..count).map(|client| sequence(seed, "client", client)).collect();
        Self { waiting, told: 0, known: BTreeMap::new(), contexts: 0, tally: Asks::default(), randoms }
    }

    /// When the client acts again, and which of so many members it asks now.
    pub(crate) fn next(&mut self, client: usize, pause_us_max: u64, members: usize) -> (Duration, usize) {
        let random = &mut self.randoms[client];
        let pause = Duration::from_micros(1000 + random.below(pause_us_max));
        (pause, usize::try_from(random.below(members as u64)).expect("a few"))
    }

    /// Client `client` asks `member` for something.
    pub(crate) fn ask(&mut self, client: usize, (at, member): (usize, &mut Member), now: Duration, story: &mut Story) {
        let random = &mut self.randoms[client];
        let key = key(random);
        let (floor, until) = (self.told, now + PATIENCE);
        self.tally.asked += 1;
        let value = Bytes::from(format!(
            "{client}-{}-{}",
            self.tally.asked,
            "x".repeat(usize::try_from(random.below(200)).unwrap())
        ));
        let put = || pb::PutRequest { key: key.clone(), value: value.clone(), ..pb::PutRequest::default() };
        let request = match random.below(10) {
            0..=3 => {
                self.contexts += 1;
                let context = self.contexts;
                member.read(context);
                story.tell(now, || format!("client {client} asks m{} to read {key:?}", at + 1));
                let asked = Asked::Read { context, key };
                self.waiting[client] = Some(Waiting { member: at, asked, until, floor });
                return;
            }
            4 => Request::DeleteRange(pb::DeleteRangeRequest { key: key.clone(), ..Default::default() }),
            5..=6 => {
                let wanted = self.known.get(&key).copied().unwrap_or(0);
                let compare = pb::Compare {
                    result: pb::compare::CompareResult::Equal as i32,
                    target: pb::compare::CompareTarget::Mod as i32,
                    key: key.clone(),
                    range_end: Bytes::new(),
                    target_union: Some(TargetUnion::ModRevision(wanted)),
                };
                let op = pb::RequestOp { request: Some(request_op::Request::RequestPut(put())) };
                Request::Txn(pb::TxnRequest { compare: vec![compare], success: vec![op], failure: Vec::new() })
            }
            _ => Request::Put(put()),
        };
        story.tell(now, || format!("client {client} asks m{}: {}", at + 1, shown(&request)));
        let id = member.propose(request);
        self.waiting[client] = Some(Waiting { member: at, asked: Asked::Write { id }, until, floor });
    }

    /// A member answers a proposal.
    pub(crate) fn answered(&mut self, proposal: &Proposal, truth: &Truth, now: Duration, story: &mut Story) {
        if matches!(proposal.result, Ok(Outcome::LeaseGrant { .. })) {
            return;
        }
        let asked = Asked::Write { id: proposal.id };
        let is_it = |waiting: &Option<Waiting>| waiting.as_ref().is_some_and(|waiting| waiting.asked == asked);
        let revision = match &proposal.result {
            Ok(Outcome::Put { revision, .. }) => *revision,
            Ok(Outcome::DeleteRange(response)) => response.header.as_ref().map_or(0, |header| header.revision),
            Ok(Outcome::Txn(response)) => response.header.as_ref().map_or(0, |header| header.revision),
            Ok(other) => panic!("{other:?} was not asked for"),
            Err(_) => {
                if let Some(client) = self.waiting.iter().position(is_it) {
                    self.waiting[client] = None;
                    self.tally.refused += 1;
                }
                return;
            }
        };
        if let Some(client) = self.waiting.iter().position(is_it) {
            story.tell(now, || format!("client {client} is told: done at {revision}"));
        }
        assert_eq!(truth.made(proposal.id), Some(revision), "what is acknowledged was applied there");
        self.told = self.told.max(revision);
        let Some(client) = self.waiting.iter().position(is_it) else { return };
        let waiting = self.waiting[client].take().expect("just seen");
        assert!(revision >= waiting.floor, "a write at {revision}, {} was known before", waiting.floor);
        if let Ok(Outcome::Put { .. }) = &proposal.result {
            assert!(revision > waiting.floor, "a put has a revision of its own");
        }
        self.tally.written += 1;
    }

    /// `member` answers the read `context` from `view`, or refuses it.
    pub(crate) fn read(
        &mut self,
        (context, view): (u64, Option<&ReadView>),
        (at, member): (usize, &Member),
        truth: &Truth,
        now: Duration,
        story: &mut Story,
    ) {
        let is_it = |waiting: &Option<Waiting>| match waiting {
            Some(Waiting { asked: Asked::Read { context: asked, .. }, .. }) => *asked == context,
            _ => false,
        };
        let Some(client) = self.waiting.iter().position(is_it) else { return };
        let Some(Waiting { asked: Asked::Read { key, .. }, floor, .. }) = self.waiting[client].take() else { return };
        let Some(view) = view else {
            self.tally.refused += 1;
            return;
        };
        let (revision, value) = (view.revision(), member.get(view, &key));
        story.tell(now, || format!("client {client} is told by m{}: {value:.8?} at {revision}", at + 1));
        assert!(revision >= floor, "a read at {revision}, {floor} was known before it was asked for");
        assert!(revision <= truth.revision(), "a read at {revision} of what nobody has committed");
        assert_eq!(value.as_ref(), truth.value_at(&key, revision), "{key:?} at {revision}");
        self.told = self.told.max(revision);
        if let Some(mod_revision) = truth.modified(&key, revision) {
            self.known.insert(key, mod_revision);
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
            if waiting.as_ref().is_some_and(|waiting| waiting.member == member) {
                *waiting = None;
                self.tally.unknown += 1;
            }
        }
    }

    /// Gives up what has waited for too long.
    pub(crate) fn give_up(&mut self, client: usize, now: Duration) {
        if self.waiting[client].as_ref().is_some_and(|waiting| waiting.until <= now) {
            self.waiting[client] = None;
            self.tally.unknown += 1;
        }
    }
}
