//! Runs on: connection core.
//!
//! The desk holds what a connection core needs to answer requests: the published state, its posts to raft and apply,
//! its reply slots, its page reads.
//!
//! Invariants:
//! - [`Desk::view`] is the only way to a view that fixes what a client is told. A single voter gets the view at once
//!   (see the head of `shared`). With more voters, the call waits here for a read round, which it shares with all reads
//!   of the turn, and until its index is published. It waits through an election, and at most as long as a proposal
//!   does. Reads that wait take a reply slot each; beyond the slots and the post they are refused.
//! - A read that goes on at a revision it got there takes the newest view for each step ([`Desk::published`]).
//! - A core asks raft and apply by message alone. It never waits for another core while it holds a borrow.
//!
//! The desk knows no method and no connection.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus::{ConfChange, ConfChangeKind, Member, Progress};
use engine::{Fault, Fingers, ReadView};
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind, Request},
};

use super::{deadlines::Deadlines, leaderless::Leaderless, others::Others, watchers::Watchers};
use crate::{
    apply::{
        message::{Answer, ToApply},
        outcome::Outcome,
        proposal::Proposal,
    },
    auth::logins::{self, Logins},
    clock::Clock,
    error::Error,
    floor::{Floor, Floors},
    gathered::Share,
    header::Header,
    insight::{
        Board,
        hot::Heat,
        slow::Teller,
        trace::{Stamps, Trace},
    },
    loader::Loader,
    mailbox::{Post, Refused},
    metrics::{Scrape, counters::Counters, registry::Registry},
    protobuf::why_undecodable,
    quota::{self, Purpose},
    raft::message::ToRaft,
    shared::Shared,
    slots::{ReplyTo, SlotId, Slots, Waiting},
};

/// Requests of one core that may wait for raft and apply.
pub const SLOTS_MAX: usize = 1 << 20;

/// Boxes of proposals that are kept for the next ones.
const PROPOSALS_KEPT: usize = 256;

/// Steps of a short job at most. Each but the last waits for a page; a point read waits for one on each level.
const STEPS_PER_VIEW: usize = 16;

/// Pause before a core is told again that had no room.
const PAUSE: Duration = Duration::from_millis(10);

/// How often [`Desk::expire`] is to be called: nobody waits longer than that beyond its time.
pub const EXPIRE_EVERY: Duration = Duration::from_millis(100);

/// How new a view must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consistency {
    /// It shows everything that was acknowledged before the request came.
    Linearizable,
    /// It shows what this member has, however old that is.
    Serializable,
}

impl Consistency {
    /// The consistency that a request with this flag wants.
    pub fn of(is_serializable: bool) -> Self {
        if is_serializable { Self::Serializable } else { Self::Linearizable }
    }
}

/// A request that will go through the log: the decoded request, and the bytes of the entry that will carry it.
#[derive(Debug)]
pub struct Draft(Box<Proposal>);

impl Draft {
    /// The request.
    pub fn request(&self) -> &Request {
        self.0.request.as_ref().expect("apply takes it, later")
    }

    /// Length of the entry. **Units** bytes.
    pub fn entry_len(&self) -> usize {
        self.0.entry.len()
    }
}

/// The parts of a desk.
pub struct Parts {
    /// Position among the connection cores.
    pub id: usize,
    /// The state that all cores share.
    pub shared: Arc<Shared>,
    /// All counters.
    pub registry: Arc<Registry>,
    /// The published results of insight.
    pub board: Arc<Board>,
    /// Time and randomness.
    pub clock: Clock,
    /// The core's watchers.
    pub watchers: Watchers,
    /// The way to raft.
    pub to_raft: Rc<Post<ToRaft>>,
    /// The way to apply.
    pub to_apply: Rc<Post<ToApply>>,
    /// The core's page reads.
    pub loader: Loader,
    /// The way to other members.
    pub others: Box<dyn Others>,
}

/// See the head of this file.
pub struct Desk {
    /// Position among the connection cores.
    pub id: usize,
    /// The state that all cores share.
    pub shared: Arc<Shared>,
    /// All counters.
    pub registry: Arc<Registry>,
    /// The published results of insight.
    pub board: Arc<Board>,
    /// What this core counts.
    pub counters: Arc<Counters>,
    /// Time and randomness.
    pub clock: Clock,
    /// The core's watchers.
    pub watchers: Watchers,
    /// Notes of the request that is being polled.
    pub current: Cell<Trace>,
    /// Reports slow requests.
    pub teller: Teller,
    /// Counts which keys and prefixes this core is asked for most.
    pub heat: RefCell<Heat>,
    /// Where scans are in each extent.
    pub fingers: RefCell<Fingers>,
    /// Boxes of proposals that have come back, empty.
    #[expect(clippy::vec_box, reason = "it is the boxes that are kept")]
    proposals: RefCell<Vec<Box<Proposal>>>,
    /// The way to other members.
    pub others: Box<dyn Others>,
    /// Calls that wait and have a deadline.
    pub deadlines: Deadlines,
    /// Streams that end when there is no leader.
    pub leaderless: Leaderless,
    /// The time as [`Desk::now`] read it last: no clock is read for a request's deadline.
    ticked: Cell<Duration>,
    floors: Rc<Floors>,
    logins: RefCell<Logins>,
    to_raft: Rc<Post<ToRaft>>,
    to_apply: Rc<Post<ToApply>>,
    slots: Slots<Answer>,
    loader: Loader,
}

impl Desk {
    /// A desk without requests.
    pub fn new(parts: Parts) -> Rc<Self> {
        let Parts { id, shared, registry, board, clock, watchers, to_raft, to_apply, loader, others } = parts;
        let limits = &shared.limits;
        let floors =
            Floors::new(Arc::clone(&shared.floors[id]), limits.held_revisions_max, limits.held_revision_age_max);
        Rc::new(Self {
            id,
            logins: RefCell::new(Logins::new(limits.token_time_to_live)),
            counters: Arc::clone(&registry.connections[id]),
            shared,
            registry,
            board,
            watchers,
            current: Cell::default(),
            teller: Teller::default(),
            heat: RefCell::default(),
            fingers: RefCell::default(),
            proposals: RefCell::default(),
            others,
            deadlines: Deadlines::default(),
            leaderless: Leaderless::default(),
            ticked: Cell::new(clock.now()),
            clock,
            floors,
            to_raft,
            to_apply,
            slots: Slots::new(SLOTS_MAX),
            loader,
        })
    }

    /// Returns a view that answers a request.
    ///
    /// **Errors** a linearizable view: the state ends before what was acknowledged; too many requests wait; no round
    /// was confirmed, or its index not applied, within the request timeout.
    pub async fn view(&self, consistency: Consistency) -> Result<Arc<ReadView>, Error> {
        if let Some(view) = self.view_at_once(consistency) {
            return view;
        }
        let confirmed = self.confirmed().await;
        self.counters.reads_failed.add(u64::from(confirmed.is_err()));
        self.counters.reads_late.add(u64::from(confirmed == Err(Error::Timeout)));
        confirmed.map(|()| self.published())
    }

    /// Returns the view of [`Desk::view`] if it need not wait for it, and `None` otherwise.
    ///
    /// **Errors** as [`Desk::view`].
    pub fn view_at_once(&self, consistency: Consistency) -> Option<Result<Arc<ReadView>, Error>> {
        if consistency == Consistency::Serializable {
            return Some(Ok(self.published()));
        }
        if self.shared.is_behind.load(Ordering::Acquire) {
            self.counters.reads_failed.add(1);
            return Some(Err(Error::of_standstill(self.shared.has_other_voters())));
        }
        // This comes before the view is loaded. While there are no other voters, nothing newer was acknowledged
        // elsewhere.
        let floor = self.shared.raft.read_floor.load(Ordering::Acquire);
        let view = self.published();
        (view.applied_index() >= floor).then_some(Ok(view))
    }

    /// Waits until any view answers a linearizable read that came before this call.
    ///
    /// **Errors** as [`Desk::view`].
    async fn confirmed(&self) -> Result<(), Error> {
        let (waiting, reply) = self.slot()?;
        self.to_raft.send(ToRaft::Read(reply)).map_err(refusal)?;
        match waiting.await {
            Answer::Readable => Ok(()),
            Answer::Unreadable(error) => Err(error),
            Answer::TimedOut => Err(Error::Timeout),
            other => unreachable!("a read is confirmed or not, and gets no {other:?}"),
        }
    }

    /// The newest view. It is for the core's own work and for requests that were already admitted to a revision. It
    /// promises nothing to a client.
    pub fn published(&self) -> Arc<ReadView> {
        self.shared.view.load()
    }

    /// A response header at the newest revision.
    pub fn newest_header(&self) -> pb::ResponseHeader {
        self.header(self.shared.view.revision())
    }

    /// A response header at `revision`.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        self.shared.header(revision)
    }

    /// As [`Desk::header`], in bytes.
    pub fn header_bytes(&self, revision: i64) -> Header {
        Header::new(&self.shared.ids, revision, self.shared.raft.term.load(Ordering::Acquire))
    }

    /// Completes a header that apply made. Apply knows the revision alone.
    pub fn complete(&self, header: &mut Option<pb::ResponseHeader>) {
        let revision = header.as_ref().expect("apply makes the headers of its answers").revision;
        *header = Some(self.header(revision));
    }

    /// Keeps revision `at` readable while the floor lives, whatever is compacted. Each step asks [`Floor::check`].
    ///
    /// **Errors** too many revisions are held; the revision is compacted already.
    pub fn hold(&self, at: i64) -> Result<Floor, Error> {
        self.floors.hold(at, self.clock.now(), || self.published())
    }

    /// Makes a request of `kind` that will go through the log. The request is decoded from the bytes of its entry, in
    /// which `raw` is embedded unchanged.
    ///
    /// **Errors** bytes that are not a request of this kind.
    pub fn draft(&self, kind: Kind, raw: &[u8]) -> Result<Draft, Error> {
        self.draft_for(Purpose::Other, kind, raw)
    }

    /// As [`Desk::draft`], for a `purpose` that the entry may have to name.
    ///
    /// **Errors** as [`Desk::draft`].
    pub fn draft_for(&self, purpose: Purpose, kind: Kind, raw: &[u8]) -> Result<Draft, Error> {
        let id = self.shared.next_request_id();
        let encoded = internal::encode(&quota::header(id, purpose), kind, raw);
        let request = Request::decode(kind, encoded.request()).map_err(undecodable)?;
        let entry = encoded.entry;
        let (reply, stamps, result) = (ReplyTo::NOBODY, Stamps::default(), Err(Error::Timeout));
        let proposal = Proposal { reply, id, purpose, entry, request: Some(request), stamps, share: None, result };
        Ok(Draft(match self.proposals.borrow_mut().pop() {
            Some(mut used) => {
                *used = proposal;
                used
            }
            None => Box::new(proposal),
        }))
    }

    /// Sends a request through the log and waits for its result; see [`super::propose`]. `purpose` says whether the
    /// request grows the store.
    ///
    /// **Errors** the errors of the entry; there are too many requests; no answer in time.
    pub(super) async fn send(&self, draft: Draft, purpose: Purpose) -> Result<Outcome, Error> {
        let waiting = match self.post_proposal(draft, purpose) {
            Ok(waiting) => waiting,
            Err(error) => return self.counted(Err(error)),
        };
        let given_up = GivenUp(&self.counters);
        let answer = waiting.await;
        std::mem::forget(given_up);
        self.counted(self.proposed(answer)).map(|(outcome, _)| outcome)
    }

    /// As [`Desk::send`], for an answer that may be large: with its share of the memory for such answers.
    pub(super) async fn send_shown(&self, draft: Draft, purpose: Purpose) -> Result<(Outcome, Option<Share>), Error> {
        let waiting = match self.post_proposal(draft, purpose) {
            Ok(waiting) => waiting,
            Err(error) => return self.counted(Err(error)),
        };
        let given_up = GivenUp(&self.counters);
        let answer = waiting.await;
        std::mem::forget(given_up);
        self.counted(self.proposed(answer))
    }

    /// Proposes a change of the member `id` and waits for the members that it makes. A member that is added or changed
    /// is in the `context`.
    ///
    /// **Errors** those of the change; there are too many requests; no answer in time.
    pub(super) async fn change_members(
        &self,
        kind: ConfChangeKind,
        id: u64,
        context: Bytes,
    ) -> Result<Vec<Member>, Error> {
        let (waiting, reply) = self.slot()?;
        let change = ConfChange { id: self.shared.next_request_id(), kind, member_id: id, context };
        let (entry, stamps, result) = (change.encode(), Stamps::default(), Err(Error::Timeout));
        let proposal = Proposal {
            reply,
            id: change.id,
            purpose: Purpose::Other,
            entry,
            request: None,
            stamps,
            share: None,
            result,
        };
        self.to_raft.send(ToRaft::ChangeMembers(Box::new(proposal))).map_err(refusal)?;
        let given_up = GivenUp(&self.counters);
        let answer = waiting.await;
        std::mem::forget(given_up);
        match self.counted(self.proposed(answer))? {
            (Outcome::Members(members), _) => Ok(members),
            (other, _) => unreachable!("members were changed, not {other:?}"),
        }
    }

    /// How far the log of the member `member_id` has come.
    ///
    /// **Errors** this member does not lead; there is no such member; as [`Desk::ask`].
    pub(super) async fn progress(&self, member_id: u64) -> Result<Progress, Error> {
        match self.ask_raft(|reply| ToRaft::Progress { reply, member_id }).await? {
            Answer::Progress(progress) => progress,
            other => unreachable!("the question is answered by its progress, not {other:?}"),
        }
    }

    /// Hands leadership over to the member `target`, and waits until it leads.
    ///
    /// **Errors** this member does not lead; `target` is no voter; it takes too long.
    pub async fn transfer_leader(&self, target: u64) -> Result<(), Error> {
        match self.ask_raft(|reply| ToRaft::TransferLeader { reply, target }).await {
            Ok(Answer::Transferred(result)) => result,
            Ok(other) => unreachable!("a transfer ends or not, and gets no {other:?}"),
            Err(Error::Timeout) => Err(Error::LeaderTransferTimeout),
            Err(error) => Err(error),
        }
    }

    /// Hands leadership over to any other voter, and waits until one leads.
    ///
    /// **Errors** no connected voter has taken it; it takes too long.
    pub async fn leave_lead(&self) -> Result<(), Error> {
        match self.ask_raft(|reply| ToRaft::LeaveLead { reply }).await {
            Ok(Answer::Transferred(result)) => result,
            Ok(other) => unreachable!("a transfer ends or not, and gets no {other:?}"),
            Err(Error::Timeout) => Err(Error::LeaderTransferTimeout),
            Err(error) => Err(error),
        }
    }

    async fn ask_raft(&self, message: impl FnOnce(ReplyTo) -> ToRaft) -> Result<Answer, Error> {
        let (waiting, reply) = self.slot()?;
        self.to_raft.send(message(reply)).map_err(refusal)?;
        match waiting.await {
            Answer::TimedOut => Err(Error::Timeout),
            answer => Ok(answer),
        }
    }

    fn counted<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        if let Err(Error::Timeout | Error::NoLeader | Error::Stopped | Error::Corrupt) = result {
            self.counters.proposals_failed.add(1);
        }
        result
    }

    fn post_proposal(&self, Draft(mut proposal): Draft, purpose: Purpose) -> Result<Waiting<Answer>, Error> {
        let (waiting, reply) = self.slot()?;
        (proposal.reply, proposal.purpose) = (reply, purpose);
        self.to_raft.send(ToRaft::Propose(proposal)).map_err(refusal)?;
        Ok(waiting)
    }

    fn proposed(&self, answer: Answer) -> Result<(Outcome, Option<Share>), Error> {
        match answer {
            Answer::Applied(mut proposal) => {
                self.current.set(Trace { stamps: proposal.stamps.passed(), ..self.current.get() });
                let result = std::mem::replace(&mut proposal.result, Err(Error::Timeout));
                let share = proposal.share.take();
                proposal.entry = Bytes::new();
                let proposals = &mut *self.proposals.borrow_mut();
                if proposals.len() < PROPOSALS_KEPT {
                    proposals.push(proposal);
                }
                result.map(|outcome| (outcome, share))
            }
            Answer::TimedOut => Err(Error::Timeout),
            other => unreachable!("a proposal is answered by its result, not {other:?}"),
        }
    }

    fn slot(&self) -> Result<(Waiting<Answer>, ReplyTo), Error> {
        let deadline = self.ticked.get() + self.shared.limits.request_timeout + EXPIRE_EVERY;
        let waiting = self.slots.open(deadline).ok_or(Error::TooManyRequests)?;
        let reply = ReplyTo { core: self.id, slot: waiting.id() };
        Ok((waiting, reply))
    }

    /// Asks apply and waits for the answer.
    ///
    /// **Errors** the post or the slots are full; the member stops; there is no answer within the request timeout.
    pub async fn ask(&self, message: impl FnOnce(ReplyTo) -> ToApply) -> Result<Answer, Error> {
        let (waiting, reply) = self.slot()?;
        self.to_apply.send(message(reply)).map_err(refusal)?;
        match waiting.await {
            Answer::TimedOut => Err(Error::Timeout),
            answer => Ok(answer),
        }
    }

    /// Tells raft something. It waits for room, and gives up only if raft is gone.
    pub async fn tell_raft(&self, message: ToRaft) {
        tell(&self.to_raft, message).await;
    }

    /// Tells apply something, as [`Desk::tell_raft`].
    pub async fn tell_apply(&self, message: ToApply) {
        tell(&self.to_apply, message).await;
    }

    /// Reads the clock. Deadlines of later requests count from this time.
    pub fn now(&self) -> Duration {
        let now = self.clock.now();
        self.ticked.set(now);
        now
    }

    /// The time as it was read last, at the beginning of this turn or a little earlier.
    pub fn ticked(&self) -> Duration {
        self.ticked.get()
    }

    /// Hands answers to the requests that wait for them.
    pub fn deliver(&self, answers: impl IntoIterator<Item = (SlotId, Answer)>) {
        for (slot, answer) in answers {
            self.slots.answer(slot, answer);
        }
    }

    /// Times out requests that waited too long, wakes calls whose time is over, ends streams that want a leader where
    /// there is none, and releases revisions that were held too long.
    pub fn expire(&self) {
        let now = self.now();
        self.slots.expire(now, || Answer::TimedOut);
        self.deadlines.wake_due(now);
        self.leaderless.look(now, self.shared.limits.election_timeout, self.shared.has_leader());
        self.floors.expire(now);
        self.logins.borrow_mut().expire(now);
    }

    /// Takes in what has happened to logins.
    pub fn take_logins(&self, changes: &[logins::Change]) {
        let mut logins = self.logins.borrow_mut();
        changes.iter().for_each(|change| logins.take(change));
    }

    /// Waits until everything is dropped that the compactions so far made invisible and no reader holds.
    ///
    /// **Errors** as [`Desk::ask`].
    pub async fn swept(&self) -> Result<(), Error> {
        let revision = self.published().compact_revision();
        while self.shared.swept_revision.load(Ordering::Acquire) < revision {
            match self.ask(|reply| ToApply::AwaitSweep { reply, revision }).await {
                Ok(_) | Err(Error::Timeout) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Runs a job in bounded steps on `view`. Other requests run between the steps. If a step faults, the pages are
    /// loaded and the step is tried again.
    ///
    /// **Errors** damaged data.
    pub async fn step_through<T>(
        &self,
        view: &ReadView,
        mut step: impl FnMut(&ReadView, usize) -> Result<Option<T>, Fault>,
    ) -> Result<T, Error> {
        loop {
            match step(view, self.shared.limits.scan_entries_per_turn) {
                Ok(Some(done)) => return Ok(done),
                Ok(None) => tokio::task::yield_now().await,
                // Boxed because it is rare: what is read is mostly in memory.
                Err(fault) => Box::pin(self.load_all([fault])).await?,
            }
        }
    }

    /// Runs a job in bounded steps at a held revision, each step on the newest view. So a job that takes longer than
    /// one turn pins no memory.
    ///
    /// **Errors** damaged data; the revision was held for too long and is compacted.
    pub async fn step_along<T, F: IntoIterator<Item = Fault>>(
        &self,
        floor: &Floor,
        mut step: impl FnMut(&ReadView, usize) -> Result<Option<T>, F>,
    ) -> Result<T, Error> {
        loop {
            let view = self.published();
            floor.check(&view)?;
            // The pages just read are resident in the view that missed them, so the same view is tried once more and
            // the step gets on. Then a newer view is taken: this one keeps in memory what was evicted since.
            let mut has_read = false;
            loop {
                match step(&view, self.shared.limits.scan_entries_per_turn) {
                    Ok(Some(done)) => return Ok(done),
                    Ok(None) => break,
                    Err(faults) => self.load_all(faults).await?,
                }
                if std::mem::replace(&mut has_read, true) {
                    break;
                }
            }
            drop(view);
            tokio::task::yield_now().await;
        }
    }

    /// Begins to read at revision `at` or a later one, on `view` at first.
    pub fn reading(&self, view: Arc<ReadView>, at: i64) -> Reading<'_> {
        Reading { desk: self, at, view: Some(view), floor: None }
    }

    /// This core's page reads.
    pub fn loader(&self) -> &Loader {
        &self.loader
    }

    /// Loads the pages that `faults` name into memory, all at once.
    ///
    /// **Errors** damaged data. The damage has been reported, and the member goes on serving what is sound.
    pub async fn load_all(&self, faults: impl IntoIterator<Item = Fault>) -> Result<(), Error> {
        let began = self.clock.now();
        let loaded = self.loader.load_all(faults).await;
        let trace = self.current.get();
        let loading = trace.loading + self.clock.now().saturating_sub(began);
        self.current.set(Trace { loading, ..trace });
        // The loader has reported the damage. The member may also only be stopping.
        loaded.map_err(|error| if matches!(error, engine::Error::Stopped) { Error::Stopped } else { Error::Corrupt })
    }

    /// The state that an answer of /metrics reads.
    pub fn scrape(&self) -> Scrape<'_> {
        let (now, unix_us) = (self.clock.now(), self.clock.unix_us());
        Scrape { shared: &self.shared, registry: &self.registry, board: &self.board, now, unix_us }
    }

    /// Time since `began`.
    pub fn since(&self, began: Duration) -> Duration {
        self.clock.now().saturating_sub(began)
    }
}

/// Jobs that read one revision, or several. Most of them end in their first step, on the view with which they began.
/// For longer ones the revision is held, and they go on in newer views.
pub struct Reading<'a> {
    desk: &'a Desk,
    at: i64,
    /// The view of the first steps; `None` once the revision is held.
    view: Option<Arc<ReadView>>,
    floor: Option<Floor>,
}

impl Reading<'_> {
    /// Whether the revision is held. If not, an error that says that it is compacted is about a moment ago: a new view
    /// tells.
    pub fn is_held(&self) -> bool {
        self.floor.is_some()
    }

    /// A view that can read the revision.
    pub fn view(&self) -> Arc<ReadView> {
        self.view.clone().unwrap_or_else(|| self.desk.published())
    }

    /// Runs a job of bounded steps.
    ///
    /// **Errors** as [`Desk::hold`] and [`Desk::step_along`].
    pub async fn run<T>(
        &mut self,
        mut step: impl FnMut(&ReadView, usize) -> Result<Option<T>, Vec<Fault>>,
    ) -> Result<T, Error> {
        if let Some(view) = &self.view {
            let budget = self.desk.shared.limits.scan_entries_per_turn;
            for _ in 0..STEPS_PER_VIEW {
                match step(view, budget) {
                    Ok(Some(done)) => return Ok(done),
                    Ok(None) => break,
                    // Boxed because it is rare: what is read is mostly in memory.
                    Err(faults) => Box::pin(self.desk.load_all(faults)).await?,
                }
            }
            self.floor = Some(self.desk.hold(self.at)?);
            self.view = None;
        }
        let floor = self.floor.as_ref().expect("it is held when there is no view");
        Box::pin(self.desk.step_along(floor, step)).await
    }
}

/// Counts a proposal as failed if nobody waits for it any more: its client left, or its call's time was over.
struct GivenUp<'a>(&'a Counters);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.proposals_failed.add(1);
    }
}

async fn tell<T>(post: &Post<T>, mut message: T) {
    while let Err((Refused::Full, refused)) = post.give(message) {
        message = refused;
        tokio::time::sleep(PAUSE).await;
    }
}

fn refusal(refused: Refused) -> Error {
    match refused {
        Refused::Full => Error::TooManyRequests,
        Refused::Closed => Error::Stopped,
    }
}

/// The error for bytes that do not decode, in protobuf's words.
fn undecodable(error: proto::error::Error) -> Error {
    use proto::error::Error as E;
    Error::Undecodable(match error {
        E::Malformed(error) => why_undecodable(&error),
        E::TooDeep => "proto: exceeded maximum recursion depth",
        E::Damaged { .. } | E::NoRequest | E::SeveralRequests | E::NoHeader => {
            "proto: cannot parse invalid wire-format data"
        }
    })
}
