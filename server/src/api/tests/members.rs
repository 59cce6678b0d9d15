//! Runs on: tests.
//!
//! Changes of the members, and of the leader. Raft, apply and the other members are played by the test.

use std::{
    collections::BTreeMap,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use consensus::{ConfChange, ConfChangeKind, Progress, member_id};
use prost::Message;
use proto::etcdserverpb as pb;

use super::{Client, Member, others::Played, run, run_among, settle};
use crate::{
    api::{call::Head, desk::EXPIRE_EVERY},
    apply::{message::Answer, outcome::Outcome},
    error::{Error, Status},
    method::Method,
    raft::message::ToRaft,
    shared::Cluster,
    slots::ReplyTo,
    wire::{
        endpoints::{self, Port},
        http1,
    },
};

/// The member that the test is about; it leads, unless the test says otherwise.
const OWN: u64 = 0xab;

fn named(id: u64, is_learner: bool) -> consensus::Member {
    let peer_urls = vec![format!("http://m{id}:2380"), format!("http://m{id}:2381")];
    consensus::Member { id, name: format!("m{id}"), peer_urls, is_learner, ..consensus::Member::default() }
}

impl Member {
    /// Publishes these members, to all of whom this one has been connected for a minute.
    fn publish_members(&self, members: &[consensus::Member]) {
        let shared = &self.desk.shared;
        let links = members.iter().map(|member| (member.id, self.desk.clock.now())).collect::<BTreeMap<_, _>>();
        self.desk.clock.advance(Duration::from_secs(60));
        self.desk.expire();
        shared.links.store(Arc::new(links));
        self.set_members(members);
    }

    fn set_members(&self, members: &[consensus::Member]) {
        self.desk.shared.cluster.store(Arc::new(Cluster { members: members.to_vec(), ..Cluster::default() }));
    }

    /// Another member leads, or nobody (0).
    fn follow(&self, leader: u64) {
        self.desk.shared.raft.leader.store(leader, Ordering::Release);
        self.desk.shared.raft.read_floor.store(u64::MAX, Ordering::Release);
    }

    /// The one message that raft was sent.
    fn raft_message(&self) -> Option<ToRaft> {
        let mut taken = Vec::new();
        self.to_raft.take(&mut taken);
        assert!(taken.len() <= 1, "{taken:?}");
        taken.pop()
    }

    /// Plays raft and apply: the change that was proposed has this result. Returns the change.
    fn answer_change(&self, result: Result<Vec<consensus::Member>, Error>) -> ConfChange {
        let Some(ToRaft::ChangeMembers(mut proposal)) = self.raft_message() else { panic!("no change is proposed") };
        let change = ConfChange::decode(&proposal.entry).unwrap();
        assert_eq!(change.id, proposal.id);
        proposal.result = result.map(Outcome::Members);
        self.desk.deliver([(proposal.reply.slot, Answer::Applied(proposal))]);
        change
    }

    fn asked_for_progress(&self) -> (ReplyTo, u64) {
        let Some(ToRaft::Progress { reply, member_id }) = self.raft_message() else { panic!("it is not asked for") };
        (reply, member_id)
    }

    fn answer_progress(&self, progress: Result<(u64, u64), Error>) -> u64 {
        let (reply, member_id) = self.asked_for_progress();
        let of = |(matched, leader_matched)| Progress { matched, leader_matched, ..Progress::default() };
        let progress = progress.map(of);
        self.desk.deliver([(reply.slot, Answer::Progress(progress))]);
        member_id
    }

    /// Brings a call to the door, and lets it come as far as it can.
    async fn called(&self, method: Method, request: &impl Message) -> Client {
        let client = Client::sending([request.encode_to_vec()]);
        self.call(method, &client);
        settle().await;
        client
    }
}

impl Client {
    fn error(&self) -> Option<Status> {
        self.told.borrow().end.clone()
    }
}

fn urls(urls: &[&str]) -> Vec<String> {
    urls.iter().map(|url| (*url).to_owned()).collect()
}

#[tokio::test]
async fn a_member_is_added_with_the_id_that_etcd_gives_it_and_all_members_are_told() {
    run(async |member: Member| {
        member.publish_members(&[named(OWN, false)]);
        for is_learner in [false, true] {
            let request = pb::MemberAddRequest { peer_ur_ls: urls(&["http://b:1", "HTTP://a:1"]), is_learner };
            let client = member.called(Method::MemberAdd, &request).await;
            let now_s = i64::try_from(member.desk.clock.unix_us() / 1_000_000).unwrap();
            let sorted = urls(&["http://a:1", "http://b:1"]);
            let id = member_id(&sorted, "", Some(now_s));
            let added = consensus::Member { id, peer_urls: sorted.clone(), is_learner, ..Default::default() };
            let change = member.answer_change(Ok(vec![named(OWN, false), added.clone()]));
            let kind = if is_learner { ConfChangeKind::AddLearnerNode } else { ConfChangeKind::AddNode };
            assert_eq!((change.kind, change.member_id), (kind, id));
            assert_eq!(change.named().unwrap(), Some(added));
            settle().await;
            let told: pb::MemberAddResponse = client.told.borrow().message(0);
            let shown = pb::Member { id, peer_ur_ls: sorted, is_learner, ..Default::default() };
            assert_eq!(told.header, Some(member.desk.header(0)));
            assert_eq!((told.member.as_ref(), told.members.get(1)), (Some(&shown), Some(&shown)));
            assert_eq!((told.members[0].id, told.members[0].name.as_str()), (OWN, "m171"));
        }
    })
    .await;
}

#[tokio::test]
async fn a_learner_serves_what_it_has_and_refuses_everything_else() {
    run(async |member: Member| {
        member.set_members(&[named(OWN, true), named(2, false)]);
        member.follow(2);
        let served = [Method::Range, Method::Status, Method::Snapshot, Method::Usage, Method::Top];
        for method in Method::ALL {
            let opened = member.open(*method, &Head::default()).map(drop);
            let expected = if served.contains(method) { Ok(()) } else { Err(Error::NotForLearner.into()) };
            assert_eq!(opened, expected, "{method:?}");
        }
        for serializable in [false, true] {
            let request = pb::RangeRequest { key: "k".into(), serializable, ..Default::default() };
            let refused = (!serializable).then(|| Error::NotForLearner.into());
            assert_eq!(member.called(Method::Range, &request).await.error(), refused);
        }
        let told: pb::StatusResponse =
            member.called(Method::Status, &pb::StatusRequest {}).await.told.borrow().message(0);
        assert!(told.is_learner);
        let ready = http1::Request::of("GET", "/readyz/non_learner").unwrap();
        assert_eq!(endpoints::answer(&member.desk, Port::Metrics, &ready).await.status, 503);
        member.set_members(&[named(OWN, false), named(2, false)]);
        assert!(member.open(Method::Put, &Head::default()).is_ok());
        assert_eq!(endpoints::answer(&member.desk, Port::Metrics, &ready).await.status, 200);
    })
    .await;
}

#[tokio::test]
async fn changes_that_could_lose_the_quorum_are_refused_before_they_are_proposed() {
    run(async |mut member: Member| {
        let add = pb::MemberAddRequest { peer_ur_ls: urls(&["http://a:1"]), is_learner: false };
        let unstarted = consensus::Member { name: String::new(), ..named(2, false) };
        member.publish_members(&[named(OWN, false), unstarted]);
        let error = member.called(Method::MemberAdd, &add).await.error();
        assert_eq!(error, Some(Error::NotEnoughStarted.into()));
        let error = member.called(Method::MemberRemove, &pb::MemberRemoveRequest { id: OWN }).await.error();
        assert_eq!(error, Some(Error::NotEnoughStarted.into()));
        member.publish_members(&[named(OWN, false), named(2, false), named(3, false)]);
        member.desk.shared.links.store(Arc::default());
        assert_eq!(member.called(Method::MemberAdd, &add).await.error(), Some(Error::Unhealthy.into()));
        let bad = pb::MemberAddRequest { peer_ur_ls: urls(&["a"]), is_learner: false };
        assert_eq!(member.called(Method::MemberAdd, &bad).await.error(), Some(Error::MemberBadUrls.into()));
        let secure = urls(&["HTTPS://a:1"]);
        let add_secure = pb::MemberAddRequest { peer_ur_ls: secure.clone(), is_learner: true };
        let update = pb::MemberUpdateRequest { id: 2, peer_ur_ls: secure };
        let error = || Some(Error::MemberUrlsNeedTls.into());
        assert_eq!(member.called(Method::MemberAdd, &add_secure).await.error(), error());
        assert_eq!(member.called(Method::MemberUpdate, &update).await.error(), error());
        assert!(member.raft_message().is_none(), "nothing of this was proposed");
        // Whoever wants no such checks gets none.
        let desk = Rc::get_mut(&mut member.desk).expect("no call is under way");
        Arc::get_mut(&mut desk.shared).expect("nobody else has it").limits.is_reconfig_strict = false;
        member.called(Method::MemberAdd, &add).await;
        member.answer_change(Ok(Vec::new()));
    })
    .await;
}

#[tokio::test]
async fn one_learner_too_many_is_refused_once_it_is_sure_that_none_has_left() {
    run(async |member: Member| {
        let all = [named(OWN, false), named(9, true)];
        let add = |url: &str| pb::MemberAddRequest { peer_ur_ls: urls(&[url]), is_learner: true };
        member.publish_members(&all);
        let error = member.called(Method::MemberAdd, &add("http://a:1")).await.error();
        assert_eq!(error, Some(Error::TooManyLearners.into()));
        member.desk.shared.raft.read_floor.store(u64::MAX, Ordering::Release);
        let client = member.called(Method::MemberAdd, &add("http://a:1")).await;
        let [reply] = member.reads()[..] else { panic!("one read tells") };
        member.set_members(&all[..1]);
        member.desk.deliver([(reply.slot, Answer::Readable)]);
        settle().await;
        member.answer_change(Ok(Vec::new()));
        settle().await;
        assert!(client.told.borrow().is_over && client.error().is_none());
        // What else is wrong with it is said first, as apply finds it first.
        member.set_members(&all);
        let client = member.called(Method::MemberAdd, &add("http://m9:2380")).await;
        member.answer_change(Err(Error::PeerUrlExists));
        settle().await;
        assert_eq!(client.error(), Some(Error::PeerUrlExists.into()));
    })
    .await;
}

#[tokio::test]
async fn members_are_removed_and_changed_and_apply_says_why_not() {
    run(async |member: Member| {
        member.publish_members(&[named(OWN, false), named(2, false), named(3, false)]);
        let client = member.called(Method::MemberRemove, &pb::MemberRemoveRequest { id: 3 }).await;
        let change = member.answer_change(Ok(vec![named(OWN, false), named(2, false)]));
        assert_eq!((change.kind, change.member_id, change.context.len()), (ConfChangeKind::RemoveNode, 3, 0));
        settle().await;
        let told: pb::MemberRemoveResponse = client.told.borrow().message(0);
        assert_eq!((told.header.map(|header| header.revision), told.members.len()), (Some(0), 2));
        let request = pb::MemberUpdateRequest { id: 2, peer_ur_ls: urls(&["b", "a"]) };
        let client = member.called(Method::MemberUpdate, &request).await;
        let change = member.answer_change(Err(Error::MemberNotFound));
        let named = change.named().unwrap().unwrap();
        assert_eq!((change.kind, named.id, named.peer_urls), (ConfChangeKind::UpdateNode, 2, urls(&["b", "a"])));
        settle().await;
        assert_eq!(client.error(), Some(Error::MemberNotFound.into()));
    })
    .await;
}

#[tokio::test]
async fn a_leader_promotes_a_learner_that_has_caught_up() {
    run(async |member: Member| {
        member.publish_members(&[named(OWN, false), named(9, true)]);
        let promote = pb::MemberPromoteRequest { id: 9 };
        for (progress, error) in
            [(Ok((89, 100)), Error::LearnerNotReady), (Err(Error::MemberNotFound), Error::MemberNotFound)]
        {
            let client = member.called(Method::MemberPromote, &promote).await;
            assert_eq!(member.answer_progress(progress), 9);
            settle().await;
            assert_eq!(client.error(), Some(error.into()));
        }
        let client = member.called(Method::MemberPromote, &promote).await;
        member.answer_progress(Ok((90, 100)));
        settle().await;
        let change = member.answer_change(Ok(vec![named(OWN, false), named(9, false)]));
        let named = change.named().unwrap().unwrap();
        assert!(named.is_promote && named.id == 9 && change.kind == ConfChangeKind::AddNode, "{named:?}");
        settle().await;
        let told: pb::MemberPromoteResponse = client.told.borrow().message(0);
        assert!(told.members.len() == 2 && !told.members[1].is_learner);
    })
    .await;
}

#[tokio::test]
async fn a_follower_has_the_leader_promote_and_asks_again_until_it_gets_an_answer() {
    let others = Played::default();
    run_among(others.clone(), async |member: Member| {
        member.publish_members(&[named(2, false), named(9, true), named(OWN, false)]);
        member.follow(2);
        let promote = pb::MemberPromoteRequest { id: 9 };
        let client = member.called(Method::MemberPromote, &promote).await;
        assert_eq!(others.break_off(), "http://m2:2380");
        settle().await;
        let (url, asking) = others.answer(500, "");
        assert_eq!(
            (url.as_str(), asking.method, asking.path.as_str()),
            ("http://m2:2381", "POST", "/members/promote/9")
        );
        // Its next try finds that this member itself leads now, and then that it does not.
        settle().await;
        member.follow(OWN);
        member.pass(EXPIRE_EVERY).await;
        member.answer_progress(Err(Error::NotLeader));
        settle().await;
        member.follow(2);
        member.pass(EXPIRE_EVERY).await;
        others.answer(200, r#"[{"id":9,"peerURLs":["http://m9:2380"],"name":"m9"}]"#);
        settle().await;
        let told: pb::MemberPromoteResponse = client.told.borrow().message(0);
        assert_eq!((told.members.len(), told.members[0].name.as_str()), (1, "m9"));
        let client = member.called(Method::MemberPromote, &promote).await;
        others.answer(412, Error::LearnerNotReady.to_string());
        settle().await;
        assert_eq!(client.error(), Some(Error::LearnerNotReady.into()));
    })
    .await;
}

#[tokio::test]
async fn without_a_leader_a_promotion_waits_for_one_as_long_as_a_request_may() {
    run(async |member: Member| {
        member.publish_members(&[named(OWN, false), named(9, true)]);
        member.follow(0);
        let client = member.called(Method::MemberPromote, &pb::MemberPromoteRequest { id: 9 }).await;
        assert!(!client.told.borrow().is_over);
        member.pass(Duration::from_millis(6_900)).await;
        assert!(!client.told.borrow().is_over);
        member.pass(EXPIRE_EVERY).await;
        assert_eq!(client.error(), Some(Error::NoLeader.into()));
    })
    .await;
}

#[tokio::test]
async fn leadership_is_handed_over_by_the_leader_alone() {
    run(async |member: Member| {
        member.publish_members(&[named(OWN, false), named(2, false)]);
        let request = pb::MoveLeaderRequest { target_id: 2 };
        for result in [Ok(()), Err(Error::BadLeaderTransferee), Err(Error::LeaderTransferTimeout)] {
            let client = member.called(Method::MoveLeader, &request).await;
            let Some(ToRaft::TransferLeader { reply, target: 2 }) = member.raft_message() else {
                panic!("no transfer")
            };
            member.desk.deliver([(reply.slot, Answer::Transferred(result.clone()))]);
            settle().await;
            assert_eq!(client.error(), result.clone().err().map(Status::from));
            if result.is_ok() {
                assert_eq!(client.told.borrow().message::<pb::MoveLeaderResponse>(0).header, None);
            }
        }
        member.follow(2);
        assert_eq!(member.called(Method::MoveLeader, &request).await.error(), Some(Error::NotLeader.into()));
    })
    .await;
}
