//! Runs on: tests.
//!
//! Leases on a member that does not lead, and streams whose clients want a leader. The leader is played by the test.

use std::{rc::Rc, sync::atomic::Ordering};

use prost::Message;
use proto::etcdserverpb as pb;
use tokio::task::spawn_local;

use super::{Client, Member, others::Played, run_among, settle};
use crate::{
    api::{
        call::Head,
        desk::EXPIRE_EVERY,
        lease::remote::{LeftRequest, LeftResponse},
        serve,
    },
    apply::message::{Answer, ToApply},
    error::{Error, Status},
    method::Method,
    shared::Cluster,
};

/// A member of two, of which the other one leads, played by the test.
async fn run(test: impl AsyncFnOnce(Member, Played)) {
    let others = Played::default();
    run_among(others.clone(), async |member: Member| {
        let named = |id: u64| consensus::Member {
            id,
            peer_urls: vec![format!("http://m{id}:1"), format!("http://m{id}:2")],
            ..consensus::Member::default()
        };
        let members = vec![named(2), named(0xab)];
        member.desk.shared.cluster.store(Cluster { members, ..Cluster::default() }.into());
        member.lead(2);
        test(member, others).await;
    })
    .await;
}

impl Member {
    fn lead(&self, leader: u64) {
        self.desk.shared.raft.leader.store(leader, Ordering::Release);
    }
}

fn renew(id: i64) -> Vec<u8> {
    pb::LeaseKeepAliveRequest { id }.encode_to_vec()
}

/// The leader's answer to the question that came first, a renewal. Returns the lease.
fn answer_renewal(others: &Played, status: u16, answer: impl FnOnce(i64) -> (i64, i64)) -> i64 {
    let asked = others.first();
    assert_eq!((asked.method, asked.path.as_str()), ("POST", "/leases"));
    let lease = pb::LeaseKeepAliveRequest::decode(asked.body).unwrap().id;
    let (id, ttl) = answer(lease);
    others.answer(status, pb::LeaseKeepAliveResponse { header: None, id, ttl }.encode_to_vec());
    lease
}

#[tokio::test]
async fn a_renewal_goes_to_the_leader_until_it_gets_an_answer() {
    run(async |member: Member, others: Played| {
        let client = Client { sends_more: true, ..Client::sending([renew(7)]) };
        member.call(Method::LeaseKeepAlive, &client);
        settle().await;
        assert_eq!(others.break_off(), "http://m2:1");
        settle().await;
        // It does not lead any more, and its successor is not known yet. Then it is this member, for a moment.
        assert_eq!(answer_renewal(&others, 400, |id| (id, 9)), 7);
        settle().await;
        member.lead(0);
        member.pass(EXPIRE_EVERY).await;
        assert_eq!(others.waiting(), 0);
        member.lead(0xab);
        member.pass(EXPIRE_EVERY).await;
        let ToApply::Renew { reply, lease: 7 } = member.asked() else { panic!("the own lessor is asked") };
        member.desk.deliver([(reply.slot, Answer::NotPrimary)]);
        settle().await;
        member.lead(2);
        member.pass(EXPIRE_EVERY).await;
        answer_renewal(&others, 200, |id| (id + 1, 9));
        settle().await;
        assert!(client.told.borrow().messages.is_empty(), "that was the answer to another question");
        answer_renewal(&others, 200, |id| (id, 9));
        settle().await;
        assert_eq!(client.told.borrow().ttls(), [vec![9]]);
        // One that is not there is no error.
        client.sends.borrow_mut().push_back(renew(8).into());
        member.pass(EXPIRE_EVERY).await;
        assert_eq!(client.told.borrow().ttls().len(), 1);
    })
    .await;
}

#[tokio::test]
async fn renewals_that_come_together_are_asked_for_side_by_side_and_answered_in_order() {
    run(async |member: Member, others: Played| {
        let client = Client::sending((1..=40).map(renew));
        member.call(Method::LeaseKeepAlive, &client);
        settle().await;
        assert_eq!(others.waiting(), 16);
        let mut asked = Vec::new();
        while others.waiting() > 0 {
            let lease = others.first().body;
            let lease = pb::LeaseKeepAliveRequest::decode(lease).unwrap().id;
            let status = if lease % 10 == 0 { 404 } else { 200 };
            asked.push(answer_renewal(&others, status, |id| (id, 100 + id)));
            settle().await;
        }
        assert_eq!(asked, (1..=40).collect::<Vec<_>>());
        let told = client.told.borrow();
        let expected = (1..=40).map(|id| if id % 10 == 0 { 0 } else { 100 + id }).collect::<Vec<_>>();
        assert_eq!((told.ttls().concat(), told.is_over, told.end.is_none()), (expected, true, true));
    })
    .await;
}

#[tokio::test]
async fn renewals_end_with_an_error_when_nobody_answers_or_nobody_leads_for_long() {
    for (leader, error) in [(2, Error::Timeout), (0, Error::NoLeader)] {
        run(async |member: Member, others: Played| {
            let client = Client { sends_more: true, ..Client::sending([renew(7), renew(8)]) };
            member.lead(leader);
            member.call(Method::LeaseKeepAlive, &client);
            settle().await;
            let mut passed = EXPIRE_EVERY;
            while passed <= member.desk.shared.limits.request_timeout {
                assert!(!client.told.borrow().is_over);
                // The last one is asked, and does not answer at all.
                while others.waiting() > 0 && passed.as_secs() < 6 {
                    others.answer(503, "");
                    settle().await;
                }
                member.pass(EXPIRE_EVERY).await;
                passed += EXPIRE_EVERY;
            }
            member.pass(EXPIRE_EVERY).await;
            assert_eq!(client.told.borrow().end, Some(Status::from(error.clone())));
        })
        .await;
    }
}

#[tokio::test]
async fn the_leader_says_what_is_left_of_a_lease() {
    run(async |member: Member, others: Played| {
        let request = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
        let answer = |id| {
            let keys = vec!["a".into(), "b".into()];
            let response =
                pb::LeaseTimeToLiveResponse { header: Some(Default::default()), id, ttl: 5, granted_ttl: 9, keys };
            LeftResponse { response: Some(response) }.encode_to_vec()
        };
        let client = Client::sending([request.encode_to_vec()]);
        member.call(Method::LeaseTimeToLive, &client);
        settle().await;
        let asked = others.first();
        assert_eq!((asked.method, asked.path.as_str()), ("POST", "/leases/internal"));
        assert_eq!(LeftRequest::decode(asked.body).unwrap().request, Some(request));
        others.answer(500, "not a primary lessor\n");
        settle().await;
        others.answer(200, answer(8));
        settle().await;
        member.pass(EXPIRE_EVERY).await;
        others.answer(200, answer(7));
        settle().await;
        let told: pb::LeaseTimeToLiveResponse = client.told.borrow().message(0);
        assert_eq!((told.ttl, told.granted_ttl, told.keys.len()), (5, 9, 2));
        assert_eq!(told.header, Some(member.desk.newest_header()));
        let client = Client::sending([request.encode_to_vec()]);
        member.call(Method::LeaseTimeToLive, &client);
        settle().await;
        others.answer(404, "lease not found\n");
        settle().await;
        let told: pb::LeaseTimeToLiveResponse = client.told.borrow().message(0);
        assert_eq!((told.ttl, told.granted_ttl, told.id), (-1, 0, 7));
    })
    .await;
}

#[tokio::test]
async fn streams_that_want_a_leader_end_after_three_election_timeouts_without_one() {
    run(async |member: Member, others: Played| {
        let election_timeout = member.desk.shared.limits.election_timeout;
        let create = pb::WatchCreateRequest { key: "k".into(), ..Default::default() };
        let create = pb::WatchRequest { request_union: Some(pb::watch_request::RequestUnion::CreateRequest(create)) };
        let open = |method, message: Vec<u8>, wants_leader| {
            let client = Client { sends_more: true, ..Client::sending([message]) };
            let call = member.open(method, &Head { wants_leader, ..Head::default() }).unwrap();
            spawn_local(serve(Rc::clone(&member.desk), call, client.clone(), client.clone()));
            client
        };
        let watches = [true, false].map(|wants_leader| open(Method::Watch, create.encode_to_vec(), wants_leader));
        let renews = open(Method::LeaseKeepAlive, renew(7), true);
        settle().await;
        let is_over = |client: &Client| client.told.borrow().is_over;
        // A leader that is there when somebody looks is enough.
        for (leader, looks) in [(0, 2), (2, 1), (0, 2)] {
            member.lead(leader);
            for _ in 0..looks {
                member.pass(election_timeout).await;
                assert!(!watches.iter().any(is_over));
            }
        }
        while others.waiting() > 0 {
            others.break_off();
            settle().await;
        }
        assert!(!is_over(&renews), "it waits for a leader");
        member.pass(election_timeout).await;
        let no_leader = Status::from(Error::NoLeader);
        assert_eq!(watches[0].told.borrow().end, Some(no_leader.clone()));
        assert_eq!(renews.told.borrow().end, Some(no_leader));
        assert!(!is_over(&watches[1]), "its client does not mind");
        assert_eq!(member.desk.counters.watch_streams.get(), 1);
        member.lead(2);
        let watch = open(Method::Watch, create.encode_to_vec(), true);
        member.pass(3 * election_timeout).await;
        assert!(!is_over(&watch));
    })
    .await;
}
