//! Runs on: tests.
//!
//! Calls through the door without HTTP. The client is made of channels, and the desk stands over an empty store. Raft
//! and apply are missing, or the test plays them.
//!
//! - `others`: other members, played by the test
//! - `members`: changes of the members, and of the leader
//! - `leases`: leases on a member that does not lead; streams without a leader
//! - `peers`: what other members ask for
//! - `replaced`: reads over which another member's state comes

use std::{
    cell::RefCell,
    collections::VecDeque,
    path::Path,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use engine::{PageReader, Store, disk::sim::SimStorage, store};
use prost::Message;
use proto::{etcdserverpb as pb, etcdserverpb::watch_request, health, internal::Request};
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::{
    Later, answer, begin,
    call::{Answers, Call, Caller, Head, Left, Reply, Requests},
    desk::{Desk, EXPIRE_EVERY, Parts},
    open,
    others::{Nobody, Others},
    range::{
        large::{Frame, Large},
        scan::{Piece, Scan},
    },
    serve,
    watchers::Watchers,
};
use crate::{
    apply::{
        message::{Answer, ToApply},
        outcome::Outcome,
    },
    clock::Clock,
    config::GATES,
    error::{Code, Error, Status},
    insight::{Board, slow::Settings, trace::Stamps},
    kv::keys,
    lease::Renewal,
    loader::Loader,
    mailbox::Post,
    method::Method,
    metrics::registry::Registry,
    protobuf::{MESSAGE_BYTES_MAX, PREFIX_BYTES},
    raft::message::ToRaft,
    shared::Shared,
    slots::ReplyTo,
    watch::{encode::Responder, hub::Bounds},
    wire::{
        endpoints::{self, Port},
        http1,
    },
};

mod leases;
mod members;
mod others;
mod peers;
mod replaced;

/// What a client was told.
#[derive(Debug, Default)]
struct Told {
    messages: Vec<Bytes>,
    end: Option<Status>,
    is_over: bool,
}

impl Told {
    fn message<M: Message + Default>(&self, position: usize) -> M {
        M::decode(self.messages[position].slice(PREFIX_BYTES..)).unwrap()
    }

    /// The times to live that renewals were answered with, by piece.
    fn ttls(&self) -> Vec<Vec<i64>> {
        let ttl = |message| pb::LeaseKeepAliveResponse::decode(message).unwrap().ttl;
        self.messages.iter().map(|piece| split(piece).map(ttl).collect()).collect()
    }
}

/// The messages of one piece.
fn split(piece: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut left = piece;
    std::iter::from_fn(move || {
        let (prefix, rest) = left.split_at_checked(PREFIX_BYTES)?;
        let (message, rest) = rest.split_at(u32::from_be_bytes(prefix[1..].try_into().unwrap()) as usize);
        left = rest;
        Some(message)
    })
}

/// A client: what it sends, and what it was told. It may leave.
#[derive(Clone, Default)]
struct Client {
    sends: Rc<RefCell<VecDeque<Bytes>>>,
    told: Rc<RefCell<Told>>,
    has_left: bool,
    /// It has not said that it sends no more.
    sends_more: bool,
}

impl Client {
    fn sending(messages: impl IntoIterator<Item = Vec<u8>>) -> Self {
        let client = Self::default();
        client.sends.borrow_mut().extend(messages.into_iter().map(Bytes::from));
        client
    }
}

impl Requests for Client {
    fn poll_next(&mut self, _: &mut Context<'_>) -> Poll<Result<Option<Bytes>, Error>> {
        match self.sends.borrow_mut().pop_front() {
            None if self.sends_more => Poll::Pending,
            message => Poll::Ready(Ok(message)),
        }
    }
}

impl Reply for Client {
    type Answers = Self;

    fn answer(self, message: Bytes) {
        let mut told = self.told.borrow_mut();
        told.messages.push(message);
        told.is_over = true;
    }

    fn refuse(self, status: &Status) {
        self.finish(Some(status));
    }

    fn begin(self) -> Self {
        self
    }

    fn poll_left(&mut self, _: &mut Context<'_>) -> Poll<()> {
        if self.has_left { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Answers for Client {
    async fn send(&mut self, messages: Bytes) -> Result<(), Left> {
        self.told.borrow_mut().messages.push(messages);
        Ok(())
    }

    async fn left(&mut self) {
        if !self.has_left {
            std::future::pending().await
        }
    }

    fn finish(self, status: Option<&Status>) {
        let mut told = self.told.borrow_mut();
        told.end = status.cloned();
        told.is_over = true;
    }
}

const DIR: &str = "data";

fn store_of(storage: &SimStorage) -> Store {
    Store::open(&mut storage.disk(), Path::new(DIR), store::Options::default()).unwrap()
}

struct Member {
    desk: Rc<Desk>,
    to_raft: Rc<Post<ToRaft>>,
    to_apply: Rc<Post<ToApply>>,
}

impl Member {
    fn new() -> Self {
        Self::among(Box::new(Nobody))
    }

    /// A member that can ask `others`.
    fn among(others: Box<dyn Others>) -> Self {
        let storage = SimStorage::new(1);
        let store = store_of(&storage);
        Self::over(&storage, &store, others)
    }

    /// A member over `store`, which is in `storage`.
    fn over(storage: &SimStorage, store: &Store, others: Box<dyn Others>) -> Self {
        let shared = Arc::new(Shared::for_tests(store.mvcc().published(), 1));
        shared.raft.leader.store(0xab, Ordering::Release);
        shared.raft.read_floor.store(0, Ordering::Release);
        let registry = Arc::new(Registry::new(GATES.to_vec(), 1));
        let (unary, apply) = (Duration::from_millis(300), Duration::from_millis(100));
        let board = Arc::new(Board::new(Settings { unary, apply, is_extensive: true, is_debug: false }, 1));
        let bounds = Bounds { stream_buffer_bytes_max: 1 << 20, fragment_bytes_max: 1 << 20, watchers_max: 8 };
        let counters = Arc::clone(&registry.connections[0]);
        let watchers = Watchers::new(bounds, Responder::default(), 1, counters, Duration::from_secs(600), 1 << 20);
        let loader = Loader::new(Box::new(storage.disk()), PageReader::new(Path::new(DIR), 1, 1, Arc::default()));
        let (to_raft, to_apply) = (Post::new(64), Post::new(64));
        let desk = Desk::new(Parts {
            id: 0,
            shared,
            registry,
            board,
            clock: Clock::manual(1),
            watchers,
            to_raft: Rc::clone(&to_raft),
            to_apply: Rc::clone(&to_apply),
            loader,
            others,
        });
        Self { desk, to_raft, to_apply }
    }

    fn open(&self, method: Method, head: &Head<'_>) -> Result<Call, Status> {
        open(&self.desk, method, head, Caller { remote: None, began: self.desk.ticked() })
    }

    /// Brings a call of `client` to the door.
    fn call(&self, method: Method, client: &Client) {
        self.call_within(None, method, client);
    }

    /// Brings a call of `client`, which waits as long as `timeout`, to the door.
    fn call_within(&self, timeout: Option<Duration>, method: Method, client: &Client) {
        let call = self.open(method, &Head { timeout, ..Head::default() }).unwrap();
        let desk = Rc::clone(&self.desk);
        match begin(&desk, &call, client.clone(), client.clone()) {
            Later::Nothing => {}
            Later::Answer(decoded, reply) => drop(spawn_local(answer(desk, call, decoded, reply))),
            Later::Serve(requests, reply) => drop(spawn_local(serve(desk, call, requests, reply))),
        }
    }

    /// Lets time pass, and housekeeping see it.
    async fn pass(&self, by: Duration) {
        self.desk.clock.advance(by);
        self.desk.expire();
        settle().await;
    }

    fn handled(&self, method: Method, code: Code) -> u64 {
        self.desk.counters.methods[method as usize].handled[code as usize].get()
    }

    /// The one question that apply was asked.
    fn asked(&self) -> ToApply {
        let mut asked = Vec::new();
        self.to_apply.take(&mut asked);
        assert_eq!(asked.len(), 1, "one question at a time");
        asked.remove(0)
    }

    /// The reads that wait for a round. The member has other voters.
    fn reads(&self) -> Vec<ReplyTo> {
        let mut taken = Vec::new();
        self.to_raft.take(&mut taken);
        let reply = |message| match message {
            ToRaft::Read(reply) => reply,
            other => panic!("only reads are asked for, and no {other:?}"),
        };
        taken.into_iter().map(reply).collect()
    }

    /// Plays raft and apply: everything that was proposed is done at revision 7.
    fn answer_proposals(&self) -> Vec<Request> {
        self.answer_proposals_with(|| Ok(Outcome::Put { revision: 7, previous: None }))
    }

    fn answer_proposals_with(&self, result: impl Fn() -> Result<Outcome, Error>) -> Vec<Request> {
        let (mut taken, mut requests) = (Vec::new(), Vec::new());
        self.to_raft.take(&mut taken);
        for message in taken {
            let ToRaft::Propose(mut proposal) = message else { panic!("the door proposes for clients") };
            requests.extend(proposal.request.take());
            proposal.result = result();
            let at = Duration::from_millis(1);
            proposal.stamps = Stamps { proposed: at, committed: at, applied: at };
            self.desk.deliver([(proposal.reply.slot, Answer::Applied(proposal))]);
        }
        requests
    }
}

async fn run_among(others: impl Others + 'static, test: impl AsyncFnOnce(Member)) {
    LocalSet::new().run_until(test(Member::among(Box::new(others)))).await;
}

async fn run(test: impl AsyncFnOnce(Member)) {
    LocalSet::new().run_until(test(Member::new())).await;
}

/// Runs the other tasks until none can go on.
async fn settle() {
    for _ in 0..16 {
        yield_now().await;
    }
}

fn put(key: &'static str) -> Vec<u8> {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }.encode_to_vec()
}

#[tokio::test]
async fn a_put_is_proposed_once_it_is_checked_and_answered_with_its_revision() {
    run(async |member: Member| {
        let (good, bad) = (Client::sending([put("k")]), Client::sending([put("")]));
        member.call(Method::Put, &good);
        member.call(Method::Put, &bad);
        settle().await;
        assert_eq!(bad.told.borrow().end, Some(Status::from(Error::EmptyKey)), "and nothing was proposed for it");
        let requests = member.answer_proposals();
        assert!(matches!(&requests[..], [Request::Put(put)] if put.key == "k" && put.value == "v"));
        settle().await;
        let response: pb::PutResponse = good.told.borrow().message(0);
        assert_eq!(response.header, Some(member.desk.header(7)));
        assert_eq!((member.handled(Method::Put, Code::Ok), member.handled(Method::Put, Code::InvalidArgument)), (1, 1));
        assert_eq!(member.desk.counters.methods[Method::Put as usize].received.get(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_call_that_is_refused_at_the_door_is_counted_once_and_reaches_nobody() {
    run(async |member: Member| {
        let refused = member.open(Method::AuthEnable, &Head::default()).unwrap_err();
        assert_eq!(refused.code, Code::Unimplemented);
        let head = Head { client_api_version: Some(b"\xff"), ..Head::default() };
        assert_eq!(member.open(Method::Put, &head).unwrap_err(), Error::InvalidClientApiVersion.into());
        member.desk.shared.raft.leader.store(0, std::sync::atomic::Ordering::Release);
        let head = Head { client_api_version: Some(b"3.7"), wants_leader: true, timeout: None };
        assert_eq!(member.open(Method::Put, &head).unwrap_err(), Error::NoLeader.into());
        member.desk.shared.raft.lost_at.store(1, std::sync::atomic::Ordering::Release);
        assert!(member.open(Method::Put, &head).is_ok(), "the next leader is awaited");
        assert_eq!(member.handled(Method::AuthEnable, Code::Unimplemented), 1);
        assert_eq!(member.handled(Method::Put, Code::InvalidArgument), 1);
        assert_eq!(member.handled(Method::Put, Code::Unavailable), 1);
    })
    .await;
}

#[tokio::test]
async fn who_leaves_before_the_answer_is_counted_and_a_late_answer_finds_nobody() {
    run(async |member: Member| {
        let client = Client { has_left: true, ..Client::sending([put("k")]) };
        member.call(Method::Put, &client);
        settle().await;
        assert_eq!(member.handled(Method::Put, Code::Canceled), 1);
        assert_eq!(member.answer_proposals().len(), 1);
        settle().await;
        assert!(client.told.borrow().messages.is_empty() && !client.told.borrow().is_over);
    })
    .await;
}

/// Reads of each kind, of a client that wants them `serializable`.
fn reads_of_each_kind(serializable: bool) -> Vec<(Method, Vec<u8>)> {
    let range = |range_end: &'static str| pb::RangeRequest {
        key: "k".into(),
        range_end: range_end.into(),
        serializable,
        ..Default::default()
    };
    let op = pb::RequestOp { request: Some(pb::request_op::Request::RequestRange(range(""))) };
    let txn = pb::TxnRequest { success: vec![op], ..Default::default() };
    vec![
        (Method::Range, range("").encode_to_vec()),
        (Method::Range, range("z").encode_to_vec()),
        (Method::Range, pb::RangeRequest { count_only: true, ..range("z") }.encode_to_vec()),
        (Method::RangeStream, range("z").encode_to_vec()),
        (Method::Txn, txn.encode_to_vec()),
        (Method::MemberList, pb::MemberListRequest { linearizable: !serializable }.encode_to_vec()),
    ]
}

#[tokio::test]
async fn a_serializable_read_asks_nobody_and_a_linearizable_one_only_among_other_voters() {
    run(async |member: Member| {
        let floor = &member.desk.shared.raft.read_floor;
        for (serializable, has_others) in [(false, false), (true, false), (true, true), (false, true)] {
            floor.store(if has_others { u64::MAX } else { 0 }, Ordering::Release);
            for (method, request) in reads_of_each_kind(serializable) {
                let client = Client::sending([request]);
                member.call(method, &client);
                settle().await;
                let asked = member.reads();
                let waits = has_others && !serializable;
                assert_eq!((asked.len(), client.told.borrow().is_over), (usize::from(waits), !waits), "{method:?}");
                member.desk.deliver(asked.into_iter().map(|reply| (reply.slot, Answer::Readable)));
                settle().await;
                let told = client.told.borrow();
                assert!(told.is_over && told.end.is_none() && !told.messages.is_empty(), "{method:?}");
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_read_that_is_not_confirmed_is_told_why_and_takes_no_slot_any_more() {
    run(async |member: Member| {
        member.desk.shared.raft.read_floor.store(u64::MAX, Ordering::Release);
        let reads = || reads_of_each_kind(false).into_iter();
        let clients: Vec<Client> = reads().map(|(_, request)| Client::sending([request])).collect();
        let ask = || reads().zip(&clients).for_each(|((method, _), client)| member.call(method, client));
        ask();
        settle().await;
        let asked = member.reads();
        assert_eq!(asked.len(), clients.len(), "all leave with one turn");
        member.pass(member.desk.shared.limits.request_timeout).await;
        assert!(clients.iter().all(|client| !client.told.borrow().is_over), "they may wait a little longer");
        member.pass(EXPIRE_EVERY).await;
        for client in &clients {
            assert_eq!(client.told.borrow().end, Some(Status::from(Error::Timeout)));
        }
        assert_eq!(member.desk.counters.reads_failed.get(), clients.len() as u64);
        member.desk.deliver(asked.into_iter().map(|reply| (reply.slot, Answer::Readable)));
        let client = Client::sending([reads().next().unwrap().1]);
        member.call(Method::Range, &client);
        settle().await;
        let replies = member.reads();
        member.desk.deliver(replies.into_iter().map(|reply| (reply.slot, Answer::Unreadable(Error::Corrupt))));
        settle().await;
        assert_eq!(client.told.borrow().end, Some(Status::from(Error::Corrupt)));
    })
    .await;
}

#[tokio::test]
async fn readiness_makes_a_linearizable_read_among_other_voters() {
    run(async |member: Member| {
        member.desk.shared.raft.read_floor.store(u64::MAX, Ordering::Release);
        let told = |path: &'static str| {
            let (desk, told) = (Rc::clone(&member.desk), Rc::new(RefCell::new(None)));
            let slot = Rc::clone(&told);
            spawn_local(async move {
                let request = http1::Request::of("GET", path).expect("a path");
                *slot.borrow_mut() = Some(endpoints::answer(&desk, Port::Metrics, &request).await);
            });
            told
        };
        for (path, waits) in [
            ("/livez", false),
            ("/health?serializable=true", false),
            ("/readyz?exclude=linearizable_read", false),
            ("/readyz/non_learner", false),
            ("/readyz", true),
            ("/readyz/linearizable_read", true),
            ("/health", true),
        ] {
            for fails in [false, true] {
                let told = told(path);
                settle().await;
                let asked = member.reads();
                assert_eq!((asked.len(), told.borrow().is_none()), (usize::from(waits), waits), "{path}");
                let answer = || if fails { Answer::Unreadable(Error::Timeout) } else { Answer::Readable };
                member.desk.deliver(asked.into_iter().map(|reply| (reply.slot, answer())));
                settle().await;
                let response = told.borrow_mut().take().expect("it is answered");
                assert_eq!(response.status, if fails && waits { 503 } else { 200 }, "{path}");
                if fails && path == "/health" {
                    let body = std::str::from_utf8(&response.body).unwrap();
                    assert!(body.contains("RANGE ERROR:etcdserver: request timed out"), "{body}");
                }
            }
        }
    })
    .await;
}

#[tokio::test]
async fn what_is_answered_at_once_is_checked_as_everything_is() {
    run(async |member: Member| {
        for (key, sort_order, sort_target) in [("k", 99, 0), ("k", 0, 99), ("", 0, 0)] {
            let request = pb::RangeRequest { key: key.into(), sort_order, sort_target, ..Default::default() };
            let client = Client::sending([request.encode_to_vec()]);
            member.call(Method::Range, &client);
            settle().await;
            let expected = if key.is_empty() { Error::EmptyKey } else { Error::InvalidSortOption };
            assert_eq!(client.told.borrow().end, Some(Status::from(expected)));
        }
        assert_eq!(member.handled(Method::Range, Code::InvalidArgument), 3);
    })
    .await;
}

#[tokio::test]
async fn every_message_of_a_stream_is_counted_and_a_renewal_asks_apply() {
    run(async |member: Member| {
        let renew = |id| pb::LeaseKeepAliveRequest { id }.encode_to_vec();
        let client = Client::sending([renew(1)]);
        member.call(Method::LeaseKeepAlive, &client);
        settle().await;
        let ToApply::Renew { reply, lease: 1 } = member.asked() else { panic!("one renewal is asked for alone") };
        // While it is asked for, others come.
        client.sends.borrow_mut().extend([2, 3, 4].map(|id| renew(id).into()));
        member.desk.deliver([(reply.slot, Answer::Renewed(10))]);
        settle().await;
        let ToApply::RenewAll { reply, leases } = member.asked() else { panic!("what comes together is asked so") };
        assert_eq!(leases, [2, 3, 4]);
        let renewals = vec![Renewal::Renewed(20), Renewal::Waits, Renewal::Unknown];
        member.desk.deliver([(reply.slot, Answer::RenewedAll(renewals))]);
        settle().await;
        assert_eq!(client.told.borrow().ttls(), [vec![10], vec![20]], "one that waits holds up none before it");
        let ToApply::Renew { reply, lease: 3 } = member.asked() else { panic!("one that waits is asked for alone") };
        member.desk.deliver([(reply.slot, Answer::Renewed(0))]);
        settle().await;
        let told = client.told.borrow();
        assert_eq!(told.ttls(), [vec![10], vec![20], vec![0, 0]], "one piece for what was answered together");
        assert_eq!((told.is_over, told.end.is_none()), (true, true));
        let counted = &member.desk.counters.methods[Method::LeaseKeepAlive as usize];
        assert_eq!((counted.received.get(), counted.sent.get()), (4, 4));
        assert_eq!(member.handled(Method::LeaseKeepAlive, Code::Ok), 1);
    })
    .await;
}

#[tokio::test]
async fn watches_that_are_created_together_are_answered_together_and_before_a_bad_message() {
    run(async |member: Member| {
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(watch_request::RequestUnion::CreateRequest(create)) };
        let create = create.encode_to_vec();
        let client = Client::sending([create.clone(), create.clone(), create, vec![0xff]]);
        member.call(Method::Watch, &client);
        settle().await;
        let told = client.told.borrow();
        assert_eq!(told.messages.len(), 1, "one piece");
        let created = split(&told.messages[0]).map(|message| pb::WatchResponse::decode(message).unwrap().watch_id);
        assert_eq!(created.collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(told.end.as_ref().map(|end| end.code), Some(Code::Internal));
    })
    .await;
}

#[tokio::test]
async fn a_physical_compaction_waits_for_what_was_compacted_before() {
    run(async |member: Member| {
        for (result, is_ok) in [(Ok(Outcome::Compaction { revision: 7 }), true), (Err(Error::Compacted), false)] {
            member.desk.shared.swept_revision.store(i64::MIN, Ordering::Release);
            let physical = pb::CompactionRequest { revision: 3, physical: true };
            let client = Client::sending([physical.encode_to_vec()]);
            member.call(Method::Compact, &client);
            settle().await;
            member.answer_proposals_with(|| result.clone());
            settle().await;
            assert!(!client.told.borrow().is_over, "the sweep is not done");
            let ToApply::AwaitSweep { reply, revision } = member.asked() else { panic!("it asks for the sweep") };
            assert_eq!(revision, member.desk.published().compact_revision());
            member.desk.shared.swept_revision.store(revision, Ordering::Release);
            member.desk.deliver([(reply.slot, Answer::Swept)]);
            settle().await;
            let told = client.told.borrow();
            assert_eq!((told.is_over, told.messages.len()), (true, usize::from(is_ok)));
        }
        let client = Client::sending([pb::CompactionRequest { revision: 3, physical: false }.encode_to_vec()]);
        member.desk.shared.swept_revision.store(i64::MIN, Ordering::Release);
        member.call(Method::Compact, &client);
        settle().await;
        member.answer_proposals_with(|| Err(Error::Compacted));
        settle().await;
        assert_eq!(client.told.borrow().end, Some(Error::Compacted.into()), "who asked for nothing physical is told");
    })
    .await;
}

#[tokio::test]
async fn a_full_post_refuses_and_what_nobody_answers_times_out() {
    run(async |member: Member| {
        let clients: Vec<_> = (0..65).map(|_| Client::sending([put("k")])).collect();
        clients.iter().for_each(|client| member.call(Method::Put, client));
        settle().await;
        assert_eq!(clients[64].told.borrow().end, Some(Status::from(Error::TooManyRequests)));
        member.desk.clock.advance(Duration::from_secs(8));
        member.desk.expire();
        settle().await;
        assert!(clients[..64].iter().all(|client| client.told.borrow().end == Some(Error::Timeout.into())));
        assert_eq!(member.desk.counters.proposals_failed.get(), 64);
    })
    .await;
}

#[tokio::test]
async fn a_proposal_whose_time_is_over_has_timed_out_and_failed() {
    run(async |member: Member| {
        let client = Client::sending([put("k")]);
        member.call_within(Some(Duration::from_secs(1)), Method::Put, &client);
        settle().await;
        member.pass(Duration::from_millis(999)).await;
        assert!(!client.told.borrow().is_over);
        member.pass(Duration::from_millis(1)).await;
        assert_eq!(client.told.borrow().end, Some(Error::Timeout.into()));
        assert_eq!(member.handled(Method::Put, Code::Unavailable), 1);
        assert_eq!(member.desk.counters.proposals_failed.get(), 1);
        member.answer_proposals();
        settle().await;
        assert!(client.told.borrow().messages.is_empty(), "a late answer finds nobody");
    })
    .await;
}

#[tokio::test]
async fn who_leaves_when_its_time_is_nearly_over_left_because_of_it() {
    run(async |member: Member| {
        let leave = || Client { has_left: true, ..Client::sending([put("k")]) };
        let second = Some(Duration::from_secs(1));
        for (ms, timeout, canceled, unavailable) in [(890, second, 1, 0), (20, second, 1, 1), (0, None, 2, 1)] {
            member.desk.clock.advance(Duration::from_millis(ms));
            member.call_within(timeout, Method::Put, &leave());
            settle().await;
            let counted = [Code::Canceled, Code::Unavailable].map(|code| member.handled(Method::Put, code));
            assert_eq!(counted, [canceled, unavailable]);
        }
        assert_eq!(member.desk.counters.proposals_failed.get(), 3, "nobody waits for any of them");
    })
    .await;
}

#[tokio::test]
async fn a_call_whose_time_is_over_ends_whatever_it_waits_for() {
    run(async |member: Member| {
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let waiting = [
            (Method::Put, vec![]),
            (Method::Watch, vec![create.encode_to_vec()]),
            (Method::LeaseKeepAlive, vec![pb::LeaseKeepAliveRequest { id: 1 }.encode_to_vec()]),
            (Method::LeaseLeases, vec![vec![]]),
        ];
        for (method, messages) in waiting {
            let client = Client { sends_more: true, ..Client::sending(messages) };
            member.call_within(Some(Duration::from_secs(1)), method, &client);
            settle().await;
            assert!(!client.told.borrow().is_over, "{method:?}");
            member.pass(Duration::from_secs(1)).await;
            assert_eq!(client.told.borrow().end, Some(Error::DeadlineExceeded.into()), "{method:?}");
            assert_eq!(member.handled(method, Code::DeadlineExceeded), 1, "{method:?}");
        }
        assert_eq!(member.desk.counters.watch_streams.get(), 0, "its watchers are gone");
    })
    .await;
}

#[tokio::test]
async fn a_watch_client_that_sends_no_more_keeps_its_stream() {
    run(async |member: Member| {
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let client = Client::sending([create.encode_to_vec()]);
        member.call(Method::Watch, &client);
        settle().await;
        assert!(client.told.borrow().message::<pb::WatchResponse>(0).created);
        assert!(!client.told.borrow().is_over);
        assert_eq!(member.desk.counters.watchers.get(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_call_needs_exactly_one_message_that_decodes_and_says_so_as_grpc_go_does() {
    run(async |member: Member| {
        let range = || pb::RangeRequest { key: "k".into(), ..Default::default() }.encode_to_vec();
        let bad = || b"\xff\xff\xff".to_vec();
        let malformed = "proto: cannot parse invalid wire-format data";
        for (method, messages, expected) in [
            (Method::Put, vec![], Error::NoMessage),
            (Method::Put, vec![bad()], Error::Undecodable(malformed)),
            (Method::Range, vec![bad()], Error::Undecodable(malformed)),
            (
                Method::HealthCheck,
                vec![b"\x0a\x01\xff".to_vec()],
                Error::Undecodable("string field contains invalid UTF-8"),
            ),
            (Method::RangeStream, vec![], Error::NoRequest),
            (Method::RangeStream, vec![bad()], Error::UndecodableInStream(malformed)),
            (Method::RangeStream, vec![range(), range()], Error::SeveralRequests),
            (Method::RangeStream, vec![range(), bad()], Error::UndecodableInStream(malformed)),
            (Method::Snapshot, vec![vec![], vec![]], Error::SeveralRequests),
            (Method::Watch, vec![bad()], Error::UndecodableInStream(malformed)),
            (Method::LeaseKeepAlive, vec![bad()], Error::UndecodableInStream(malformed)),
        ] {
            let client = Client::sending(messages);
            member.call(method, &client);
            settle().await;
            assert_eq!(client.told.borrow().end, Some(Status::from(expected)), "{method:?}");
            assert!(client.told.borrow().messages.is_empty(), "{method:?}");
        }
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_no_client_can_take_is_refused() {
    run(async |member: Member| {
        let request = pb::RangeRequest { key: "a".into(), range_end: "b".into(), ..Default::default() };
        let range = keys(&request.key, &request.range_end);
        let frame = || Frame { header: member.desk.header_bytes(7), more: false, count: 1 };
        for (fields_len, is_allowed) in [(MESSAGE_BYTES_MAX - 100, true), (MESSAGE_BYTES_MAX, false)] {
            let (scan, _, _) = Scan::new(&member.desk, &request, &range).await.unwrap();
            let large = Large::new(scan, Piece::default(), frame(), (1, fields_len), false);
            assert_eq!(large.is_ok(), is_allowed);
            let refused =
                large.err().map(|error| (error.code(), error.to_string().starts_with("trying to send message")));
            assert_eq!(refused, (!is_allowed).then_some((Code::ResourceExhausted, true)));
        }
    })
    .await;
}

#[tokio::test]
async fn a_disk_that_hangs_fails_health_and_readiness_but_not_liveness() {
    run(async |member: Member| {
        let shared = &member.desk.shared;
        let statuses = async || {
            let mut statuses = Vec::new();
            for path in ["/health", "/readyz", "/livez", "/health?serializable=true"] {
                let request = http1::Request::of("GET", path).expect("a path");
                statuses.push(endpoints::answer(&member.desk, Port::Clients, &request).await.status);
            }
            statuses
        };
        member.desk.clock.advance(Duration::from_millis(1));
        let fine = [200, 200, 200, 200];
        let hung = [503, 503, 200, 200];
        assert_eq!(statuses().await, fine);
        shared.is_log_stalled.store(true, std::sync::atomic::Ordering::Release);
        assert_eq!(statuses().await, hung);
        shared.is_log_stalled.store(false, std::sync::atomic::Ordering::Release);
        // Raft itself may not move.
        shared.pulse.raft.strike(member.desk.clock.now());
        member.desk.clock.advance(shared.limits.log_wait_max / 2);
        assert_eq!(statuses().await, fine);
        member.desk.clock.advance(shared.limits.log_wait_max / 2);
        assert_eq!(statuses().await, hung);
        shared.pulse.raft.strike(member.desk.clock.now());
        assert_eq!(statuses().await, fine);
    })
    .await;
}

#[tokio::test]
async fn the_health_service_withdraws_the_member_while_it_defragments() {
    run(async |member: Member| {
        let statuses = |client: &Client| {
            let told = client.told.borrow();
            let status = |position| told.message::<health::HealthCheckResponse>(position).status;
            (0..told.messages.len()).map(status).collect::<Vec<i32>>()
        };
        let check = async || {
            let client = Client::sending([Vec::new()]);
            member.call(Method::HealthCheck, &client);
            settle().await;
            statuses(&client)
        };
        let apply_answers = |answer: fn(ToApply) -> (ReplyTo, Answer)| {
            let mut asked = Vec::new();
            member.to_apply.take(&mut asked);
            let (reply, answer) = answer(asked.pop().expect("a question"));
            member.desk.deliver([(reply.slot, answer)]);
        };
        let watching = Client::sending([Vec::new()]);
        member.call(Method::HealthWatch, &watching);
        assert_eq!(check().await, [1]);
        let client = Client::sending([Vec::new()]);
        member.call(Method::Defragment, &client);
        assert_eq!(check().await, [2]);
        apply_answers(|asked| match asked {
            ToApply::Defragment { reply } => (reply, Answer::Defragmenting(1)),
            _ => unreachable!("a run is asked for first"),
        });
        assert_eq!(check().await, [2]);
        apply_answers(|asked| match asked {
            ToApply::AwaitDefragment { reply, run: 1 } => (reply, Answer::Defragmented),
            _ => unreachable!("then its end is waited for"),
        });
        assert_eq!(check().await, [1]);
        assert!(client.told.borrow().is_over);
        assert_eq!(statuses(&watching), [1, 2, 1]);
    })
    .await;
}

#[tokio::test]
async fn a_long_read_beyond_those_that_may_hold_their_revisions_is_to_be_tried_again() {
    run(async |member: Member| {
        let hash = async || {
            let client = Client::sending([Vec::new()]);
            member.call(Method::HashKv, &client);
            settle().await;
            assert!(client.told.borrow().is_over);
            client.told.borrow().end.clone()
        };
        let held = member.desk.hold(1).unwrap();
        let refusal = hash().await.expect("one revision is held, and no more may be");
        assert_eq!((refusal.code, refusal.message.contains("try again")), (Code::Unavailable, true));
        drop(held);
        assert_eq!(hash().await, None);
    })
    .await;
}
