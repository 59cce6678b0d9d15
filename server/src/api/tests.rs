//! Runs on: tests.
//!
//! Calls through the door without HTTP. The client is made of channels, and the desk stands over an empty store. Raft
//! and apply are missing, or the test plays them.

use std::{
    cell::RefCell,
    collections::VecDeque,
    path::Path,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use engine::{PageReader, Store, disk::sim::SimStorage, store};
use prost::Message;
use proto::{etcdserverpb as pb, internal::Request};
use tokio::task::{LocalSet, spawn_local, yield_now};

use super::{
    Later, answer, begin,
    call::{Answers, Call, Caller, Head, Left, Reply, Requests},
    desk::{Desk, Parts},
    open, serve,
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
    loader::Loader,
    mailbox::Post,
    method::Method,
    metrics::registry::Registry,
    protobuf::PREFIX_BYTES,
    raft::message::ToRaft,
    shared::Shared,
    watch::{encode::Responder, hub::Bounds},
};

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
}

/// A client: what it sends, and what it was told. It may leave.
#[derive(Clone, Default)]
struct Client {
    sends: Rc<RefCell<VecDeque<Bytes>>>,
    told: Rc<RefCell<Told>>,
    has_left: bool,
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
        Poll::Ready(Ok(self.sends.borrow_mut().pop_front()))
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

    fn begin(self) -> Result<Self, Left> {
        if self.has_left { Err(Left) } else { Ok(self) }
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

struct Member {
    desk: Rc<Desk>,
    to_raft: Rc<Post<ToRaft>>,
    to_apply: Rc<Post<ToApply>>,
}

impl Member {
    fn new() -> Self {
        let storage = SimStorage::new(1);
        let dir = Path::new("data");
        let store = Store::open(&mut storage.disk(), dir, store::Options::default()).unwrap();
        let shared = Arc::new(Shared::for_tests(store.mvcc().published(), 1));
        shared.raft.leader.store(0xab, std::sync::atomic::Ordering::Release);
        let registry = Arc::new(Registry::new(GATES.to_vec(), 1));
        let (unary, apply) = (Duration::from_millis(300), Duration::from_millis(100));
        let board = Arc::new(Board::new(Settings { unary, apply, is_extensive: true }, 1));
        let bounds = Bounds { stream_buffer_bytes_max: 1 << 20, fragment_bytes_max: 1 << 20, watchers_max: 8 };
        let counters = Arc::clone(&registry.connections[0]);
        let watchers = Watchers::new(bounds, Responder::default(), 1, counters, Duration::from_secs(600), 1 << 20);
        let loader = Loader::new(Box::new(storage.disk()), PageReader::new(dir, 1, 1));
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
        });
        Self { desk, to_raft, to_apply }
    }

    fn open(&self, method: Method, head: &Head<'_>) -> Result<Call, Status> {
        open(&self.desk, method, head, Caller { remote: None, began: Duration::ZERO })
    }

    /// Brings a call of `client` to the door.
    fn call(&self, method: Method, client: &Client) {
        let call = self.open(method, &Head::default()).unwrap();
        let desk = Rc::clone(&self.desk);
        match begin(&desk, &call, client.clone(), client.clone()) {
            Later::Nothing => {}
            Later::Answer(decoded, reply) => drop(spawn_local(answer(desk, call, decoded, reply))),
            Later::Serve(requests, reply) => drop(spawn_local(serve(desk, call, requests, reply))),
        }
    }

    fn handled(&self, method: Method, code: Code) -> u64 {
        self.desk.counters.methods[method as usize].handled[code as usize].get()
    }

    /// Plays raft and apply: everything that was proposed is done at revision 7.
    fn answer_proposals(&self) -> Vec<Request> {
        let (mut taken, mut requests) = (Vec::new(), Vec::new());
        self.to_raft.take(&mut taken);
        for message in taken {
            let ToRaft::Propose(mut proposal) = message else { panic!("the door proposes for clients") };
            requests.extend(proposal.request.take());
            proposal.result = Ok(Outcome::Put { revision: 7, previous: None });
            let at = Duration::from_millis(1);
            proposal.stamps = Stamps { proposed: at, committed: at, applied: at };
            self.desk.deliver([(proposal.reply.slot, Answer::Applied(proposal))]);
        }
        requests
    }
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
        let head = Head { client_api_version: Some(b"\xff"), wants_leader: false };
        assert_eq!(member.open(Method::Put, &head).unwrap_err(), Error::InvalidClientApiVersion.into());
        member.desk.shared.raft.leader.store(0, std::sync::atomic::Ordering::Release);
        let head = Head { client_api_version: Some(b"3.7"), wants_leader: true };
        assert_eq!(member.open(Method::Put, &head).unwrap_err(), Error::NoLeader.into());
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

#[tokio::test]
async fn a_linearizable_read_needs_a_leader_and_a_serializable_one_does_not() {
    run(async |member: Member| {
        member.desk.shared.raft.leader.store(0, std::sync::atomic::Ordering::Release);
        for (serializable, range_end) in [(false, ""), (true, ""), (false, "z"), (true, "z")] {
            let request =
                pb::RangeRequest { key: "k".into(), range_end: range_end.into(), serializable, ..Default::default() };
            let client = Client::sending([request.encode_to_vec()]);
            member.call(Method::Range, &client);
            settle().await;
            let told = client.told.borrow();
            let expected = (!serializable).then(|| Status::from(Error::NoLeader));
            assert_eq!((told.end.clone(), told.messages.len()), (expected, usize::from(serializable)));
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
        let client = Client::sending([renew(1), renew(2)]);
        member.call(Method::LeaseKeepAlive, &client);
        for (lease, ttl) in [(1, 10), (2, 0)] {
            settle().await;
            let mut asked = Vec::new();
            member.to_apply.take(&mut asked);
            let [ToApply::Renew { reply, lease: renewed }] = &asked[..] else { panic!("one question at a time") };
            assert_eq!(*renewed, lease);
            member.desk.deliver([(reply.slot, Answer::Renewed(ttl))]);
        }
        settle().await;
        let told = client.told.borrow();
        let ttls = [0, 1].map(|at| told.message::<pb::LeaseKeepAliveResponse>(at).ttl);
        assert_eq!((ttls, told.is_over, told.end.is_none()), ([10, 0], true, true));
        let counted = &member.desk.counters.methods[Method::LeaseKeepAlive as usize];
        assert_eq!((counted.received.get(), counted.sent.get()), (2, 2));
        assert_eq!(member.handled(Method::LeaseKeepAlive, Code::Ok), 1);
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
