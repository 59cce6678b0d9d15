//! Runs on: tests.
//!
//! What other members ask for on the peer port, without sockets. Raft and apply are played by the test.

use std::{cell::RefCell, rc::Rc, sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use consensus::{Progress, peer::http1::Headers};
use prost::Message;
use proto::etcdserverpb as pb;
use tokio::task::spawn_local;

use super::{Member, run, settle};
use crate::{
    api::lease::remote::{LeftRequest, LeftResponse},
    apply::message::{Answer, ToApply},
    error::Error,
    raft::message::ToRaft,
    shared::{Cluster, Downgrade},
    wire::{
        endpoints::{self, Port},
        http1::{Request, Response},
    },
};

/// A request whose answer may come later.
struct Asked(Rc<RefCell<Option<Response>>>);

impl Asked {
    /// Status, body and whether the answer says which cluster this is.
    fn answer(&self) -> (u16, Bytes, bool) {
        let response = self.0.borrow_mut().take().expect("it is answered");
        let names_cluster = response.lines.iter().any(|line| line == "X-Etcd-Cluster-Id: 1");
        (response.status, response.body, names_cluster)
    }

    fn text(&self) -> (u16, String) {
        let (status, body, _) = self.answer();
        (status, String::from_utf8(body.into()).unwrap())
    }
}

impl Member {
    async fn ask(&self, method: &str, path: &str, body: impl Into<Bytes>) -> Asked {
        self.ask_with(method, path, &[], body).await
    }

    async fn ask_with(&self, method: &str, path: &str, lines: &[(&str, &str)], body: impl Into<Bytes>) -> Asked {
        let headers = lines.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let request =
            Request { body: body.into(), headers: Headers::new(headers), ..Request::of(method, path).unwrap() };
        let (desk, asked) = (Rc::clone(&self.desk), Asked(Rc::default()));
        let slot = Rc::clone(&asked.0);
        spawn_local(async move { *slot.borrow_mut() = Some(endpoints::answer(&desk, Port::Peers, &request).await) });
        settle().await;
        asked
    }

    fn publish(&self, cluster: Cluster) {
        self.desk.shared.cluster.store(cluster.into());
    }
}

#[tokio::test]
async fn each_path_takes_its_method_alone_and_says_so_as_etcd_does() {
    run(async |member: Member| {
        for (method, path, allow) in [
            ("POST", "/members", Some("Allow: GET")),
            ("POST", "/members/hashkv", Some("Allow: GET")),
            ("PUT", "/downgrade/enabled", Some("Allow: GET")),
            ("POST", "/version", Some("Allow: GET")),
            ("GET", "/members/promote/1", Some("Allow: POST")),
            ("GET", "/leases", None),
            ("GET", "/leases/internal", None),
        ] {
            let asked = member.ask(method, path, "").await;
            let response = asked.0.borrow_mut().take().unwrap();
            let told = response.lines.iter().find(|line| line.starts_with("Allow")).map(AsRef::as_ref);
            assert_eq!(
                (response.status, &response.body[..], told),
                (405, &b"Method Not Allowed\n"[..], allow),
                "{path}"
            );
        }
        assert_eq!(member.ask("GET", "/health", "").await.text().0, 404, "that is for clients");
        let (status, body) = member.ask("HEAD", "/raft/probing", "").await.text();
        assert!(status == 200 && body.starts_with(r#"{"OK":true,"Now":""#) && body.ends_with("\"}\n"), "{body}");
    })
    .await;
}

#[tokio::test]
async fn a_leader_renews_for_others_and_a_follower_says_that_it_does_not_lead() {
    run(async |member: Member| {
        let body = || pb::LeaseKeepAliveRequest { id: 7 }.encode_to_vec();
        let renewed = async |answer| {
            let asked = member.ask("POST", "/leases", body()).await;
            let ToApply::Renew { reply, lease: 7 } = member.asked() else { panic!("the lessor is asked") };
            member.desk.deliver([(reply.slot, answer)]);
            settle().await;
            asked
        };
        let (status, told, names_cluster) = renewed(Answer::Renewed(9)).await.answer();
        let expected = pb::LeaseKeepAliveResponse { header: None, id: 7, ttl: 9 };
        assert_eq!((status, pb::LeaseKeepAliveResponse::decode(told).unwrap(), names_cluster), (200, expected, false));
        assert_eq!(renewed(Answer::Renewed(0)).await.text(), (404, "lease not found\n".into()));
        assert_eq!(renewed(Answer::NotPrimary).await.text(), (400, "not a primary lessor\n".into()));
        assert_eq!(member.ask("POST", "/leases", "\u{7f}").await.text(), (400, "error unmarshalling request\n".into()));
        // Apply lags, or the lease has expired and is about to be revoked.
        for (committed, lags) in [(1, true), (0, false)] {
            member.desk.shared.raft.commit.store(committed, Ordering::Release);
            let asked = member.ask("POST", "/leases", body()).await;
            let ToApply::Renew { reply, .. } = member.asked() else { panic!("the lessor is asked") };
            member.pass(Duration::from_secs(1)).await;
            assert_eq!(asked.0.borrow().is_some(), lags);
            member.desk.deliver([(reply.slot, Answer::Renewed(9))]);
            settle().await;
            let (status, told, _) = asked.answer();
            assert_eq!((status, told.starts_with(b"waiting for node")), if lags { (408, true) } else { (200, false) });
        }
    })
    .await;
}

#[tokio::test]
async fn a_leader_says_what_is_left_of_a_lease() {
    run(async |member: Member| {
        let request = pb::LeaseTimeToLiveRequest { id: 7, keys: true };
        let left = async |answer| {
            let asked =
                member.ask("POST", "/leases/internal", LeftRequest { request: Some(request) }.encode_to_vec()).await;
            let ToApply::TimeToLive { reply, lease: 7 } = member.asked() else { panic!("the lessor is asked") };
            member.desk.deliver([(reply.slot, answer)]);
            settle().await;
            asked
        };
        let (status, told, _) = left(Answer::TimeToLive(Some((5, 9)))).await.answer();
        let told = LeftResponse::decode(told).unwrap().response.unwrap();
        assert_eq!((status, told.id, told.ttl, told.granted_ttl), (200, 7, 5, 9));
        assert_eq!(told.header, Some(pb::ResponseHeader::default()));
        assert_eq!(left(Answer::TimeToLive(None)).await.text(), (404, "lease not found\n".into()));
        assert_eq!(left(Answer::NotPrimary).await.text(), (500, "not a primary lessor\n".into()));
        assert_eq!(member.ask("POST", "/leases/internal", "").await.text().0, 400);
    })
    .await;
}

#[tokio::test]
async fn a_promotion_is_answered_with_the_members_or_etcds_status() {
    run(async |member: Member| {
        let named = |id: u64, is_learner| consensus::Member {
            id,
            name: "a\"b".into(),
            peer_urls: vec!["http://m:1".into()],
            is_learner,
            ..consensus::Member::default()
        };
        member.publish(Cluster { members: vec![named(0xab, false), named(0xcd, true)], ..Cluster::default() });
        let shown = r#"{"id":171,"peerURLs":["http://m:1"],"name":"a\"b"}"#;
        let learner = shown.replace(r#""name""#, r#""isLearner":true,"name""#).replace("171", "205");
        let (status, body, names_cluster) = member.ask("GET", "/members", "").await.answer();
        assert_eq!((status, names_cluster, body), (200, true, format!("[{shown},{learner}]\n").into()));
        let message = || {
            let mut taken = Vec::new();
            member.to_raft.take(&mut taken);
            taken.pop()
        };
        let promoted = async |progress| {
            let asked = member.ask("POST", "/members/promote/205", "").await;
            let Some(ToRaft::Progress { reply, member_id: 205 }) = message() else { panic!("raft is asked") };
            member.desk.deliver([(reply.slot, Answer::Progress(progress))]);
            settle().await;
            asked
        };
        let at = |matched, leader_matched| Ok(Progress { matched, leader_matched, ..Progress::default() });
        let ready = || at(1, 1);
        for (result, status, text) in [
            (Ok(vec![named(0xab, false)]), 200, format!("[{shown}]\n")),
            (Err(Error::MemberNotLearner), 412, "membership: can only promote a learner member\n".into()),
            (Err(Error::MemberNotFound), 404, "membership: ID not found\n".into()),
            (Err(Error::Timeout), 500, r#"{"message":"Internal Server Error"}"#.into()),
        ] {
            let asked = promoted(ready()).await;
            let Some(ToRaft::ChangeMembers(mut proposal)) = message() else { panic!("it is proposed") };
            proposal.result = result.map(crate::apply::outcome::Outcome::Members);
            member.desk.deliver([(proposal.reply.slot, Answer::Applied(proposal))]);
            settle().await;
            let (told, body, names_cluster) = asked.answer();
            assert_eq!((told, names_cluster, body), (status, true, text.into()));
        }
        let late = promoted(at(1, 9)).await;
        assert_eq!(late.text(), (412, format!("{}\n", Error::LearnerNotReady)));
        for id in ["", "+1", "1x", "18446744073709551616"] {
            let expected = (404, format!("member {id} not found in cluster\n"));
            assert_eq!(member.ask("POST", &format!("/members/promote/{id}"), "").await.text(), expected);
        }
        // Who was passed a request that was passed on already does not pass it on.
        member.desk.shared.raft.leader.store(0xcd, Ordering::Release);
        let asked = member.ask_with("POST", "/members/promote/205", &[("x-orlop-passed-on", "1")], "").await;
        let Some(ToRaft::Progress { reply, .. }) = message() else { panic!("raft is asked") };
        member.desk.deliver([(reply.slot, Answer::Progress(Err(Error::NotLeader)))]);
        settle().await;
        assert_eq!(asked.text().0, 500);
    })
    .await;
}

#[tokio::test]
async fn hashes_are_told_to_members_of_the_same_cluster() {
    run(async |member: Member| {
        let asked = member.ask_with("GET", "/members/hashkv", &[("x-etcd-cluster-id", "1")], "{}").await;
        let (status, body, names_cluster) = asked.answer();
        let body = String::from_utf8(body.into()).unwrap();
        assert_eq!((status, names_cluster), (200, true));
        let expected = r#"{"header":{"revision":1},"hash":1084519789,"compact_revision":-1,"hash_revision":1}"#;
        assert_eq!(body, expected);
        let asked = member.ask_with("GET", "/members/hashkv", &[("x-etcd-cluster-id", "2")], "{}").await;
        assert_eq!(asked.text(), (412, "cluster ID mismatch\n".into()));
        let future = member.ask("GET", "/members/hashkv", r#"{"revision":9}"#).await;
        assert_eq!(future.text(), (400, "mvcc: required revision is a future revision\n".into()));
        let bad = member.ask("GET", "/members/hashkv", "").await;
        assert_eq!(bad.text(), (400, "error unmarshalling request\n".into()));
    })
    .await;
}

#[tokio::test]
async fn whether_the_cluster_is_downgraded_is_read_linearizably() {
    run(async |member: Member| {
        assert_eq!(member.ask("GET", "/downgrade/enabled", "").await.text(), (200, "false".into()));
        let downgrade = Downgrade { is_enabled: true, target: "3.6.0".into() };
        member.publish(Cluster { downgrade: Some(downgrade), ..Cluster::default() });
        member.desk.shared.raft.read_floor.store(u64::MAX, Ordering::Release);
        for (answer, expected) in [
            (Answer::Readable, (200, "true".to_owned())),
            (
                Answer::Unreadable(Error::Timeout),
                (500, "failed linearized read: etcdserver: request timed out\n".into()),
            ),
        ] {
            let asked = member.ask("GET", "/downgrade/enabled", "").await;
            let [reply] = member.reads()[..] else { panic!("one read tells") };
            member.desk.deliver([(reply.slot, answer)]);
            settle().await;
            assert_eq!(asked.text(), expected);
        }
    })
    .await;
}
