//! Runs on: tests.
//!
//! Calls while authentication is enabled. Users and logins are as apply would have made them.

use std::{sync::Arc, time::Duration};

use prost::Message;
use proto::{
    authpb::{self, permission::Type},
    etcdserverpb as pb,
    etcdserverpb::watch_request,
    internal::{self, Request as Entry},
};

use super::{Client, Member, put, run, settle};
use crate::{
    api::call::Head,
    auth::{
        Users,
        logins::{self, Login},
    },
    error::Code,
    method::Method,
    raft::message::ToRaft,
};

/// `root`, who may do everything, and `alice`, who may read and write what begins with an `a`.
fn users() -> Users {
    let mut users = Users::default();
    let mut ask = |request: Entry| {
        if let Some(change) = users.change(&request).unwrap() {
            users = change.users;
        }
    };
    for name in ["root", "alice"] {
        let add =
            pb::AuthUserAddRequest { name: name.into(), hashed_password: "aGFzaA==".into(), ..Default::default() };
        ask(Entry::AuthUserAdd(add));
    }
    ask(Entry::AuthRoleAdd(pb::AuthRoleAddRequest { name: "a".into() }));
    let perm = authpb::Permission { perm_type: Type::Readwrite.into(), key: "a".into(), range_end: "b".into() };
    ask(Entry::AuthRoleGrantPermission(pb::AuthRoleGrantPermissionRequest { name: "a".into(), perm: Some(perm) }));
    for (user, role) in [("root", "root"), ("alice", "a")] {
        ask(Entry::AuthUserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }));
    }
    ask(Entry::AuthEnable(pb::AuthEnableRequest {}));
    users
}

impl Member {
    /// Authentication is enabled, and both users have logged in.
    fn with_users(&self) {
        self.desk.shared.users.store(Arc::new(users()));
        self.desk.shared.raft.applied.store(9, std::sync::atomic::Ordering::Release);
        for (token, name) in [(&b"r.1"[..], "root"), (b"a.2", "alice")] {
            let login = Login::new(name, Duration::ZERO);
            self.desk.take_logins(&[logins::Change::Begun(2, logins::digest(token), login)]);
        }
    }

    /// What a call of this token is told: its code, or that it is not answered yet.
    async fn told(&self, method: Method, token: Option<&str>, message: Vec<u8>) -> Option<Code> {
        let client = Client::sending([message]);
        self.call_as(method, token, &client);
        settle().await;
        let told = client.told.borrow();
        told.is_over.then(|| told.end.as_ref().map_or(Code::Ok, |end| end.code))
    }

    fn call_as(&self, method: Method, token: Option<&str>, client: &Client) {
        let head = Head { token: token.map(str::as_bytes), ..Head::default() };
        let call = self.open(method, &head).unwrap();
        self.begin(call, client);
    }

    /// The names and revisions in the headers of what was proposed.
    fn names(&self) -> Vec<(String, u64)> {
        let mut taken = Vec::new();
        self.to_raft.take(&mut taken);
        let proposals = taken.into_iter().filter_map(|message| match message {
            ToRaft::Propose(proposal) => Some(proposal.entry),
            _ => None,
        });
        proposals
            .map(|entry| {
                let (header, request) = internal::decode(entry).unwrap();
                assert!(matches!(request, Entry::Put(_)));
                (header.username, header.auth_revision)
            })
            .collect()
    }
}

fn get(key: &'static str, range_end: &'static str) -> Vec<u8> {
    pb::RangeRequest { key: key.into(), range_end: range_end.into(), serializable: true, ..Default::default() }
        .encode_to_vec()
}

#[tokio::test]
async fn a_read_is_judged_by_its_token() {
    run(async |member: Member| {
        member.with_users();
        for (token, key, range_end, code) in [
            (Some("r.1"), "z", "", Code::Ok),
            (Some("a.2"), "a", "", Code::Ok),
            (Some("a.2"), "a", "b", Code::Ok),
            (Some("a.2"), "a", "c", Code::PermissionDenied),
            (Some("a.2"), "z", "", Code::PermissionDenied),
            (Some("a.3"), "a", "", Code::Unauthenticated),
            (Some("nonsense"), "a", "", Code::Unauthenticated),
            (None, "a", "", Code::InvalidArgument),
        ] {
            for method in [Method::Range, Method::RangeStream] {
                let told = member.told(method, token, get(key, range_end)).await;
                assert_eq!(told, Some(code), "{method:?} {token:?} {key} {range_end}");
            }
        }
        member.desk.shared.users.store(Arc::default());
        assert_eq!(member.told(Method::Range, None, get("z", "")).await, Some(Code::Ok), "nobody need say so any more");
    })
    .await;
}

#[tokio::test]
async fn an_entry_names_who_asks_and_a_token_that_comes_early_waits() {
    run(async |member: Member| {
        member.with_users();
        let revision = member.desk.shared.users.load().revision();
        assert_eq!(member.told(Method::Put, Some("a.2"), put("z")).await, None, "apply judges it");
        assert_eq!(member.names(), [("alice".to_owned(), revision)]);
        assert_eq!(member.told(Method::Put, None, put("z")).await, None);
        assert_eq!(member.names(), [(String::new(), 0)]);
        assert_eq!(member.told(Method::Put, Some("b.3"), put("a")).await, Some(Code::Unauthenticated));
        let early = Client::sending([put("a")]);
        member.call_as(Method::Put, Some("c.10"), &early);
        settle().await;
        assert!(!early.told.borrow().is_over && member.names().is_empty(), "what it was given by is not applied here");
        let login = Login::new("alice", Duration::ZERO);
        member.desk.take_logins(&[logins::Change::Begun(10, logins::digest(b"c.10"), login)]);
        let mut names = Vec::new();
        for _ in 0..1000 {
            tokio::time::sleep(Duration::from_millis(1)).await;
            names = member.names();
            if !names.is_empty() {
                break;
            }
        }
        assert_eq!(names, [("alice".to_owned(), revision)]);
    })
    .await;
}

#[tokio::test]
async fn only_administrators_administer() {
    run(async |member: Member| {
        member.with_users();
        for method in [Method::Compact, Method::MemberRemove, Method::MoveLeader, Method::HashKv, Method::Usage] {
            let told = member.told(method, Some("a.2"), Vec::new()).await;
            assert_eq!(told, Some(Code::PermissionDenied), "{method:?}");
            assert_eq!(member.told(method, None, Vec::new()).await, Some(Code::InvalidArgument), "{method:?}");
        }
        assert_eq!(member.told(Method::Status, Some("a.2"), Vec::new()).await, Some(Code::Ok));
        assert_eq!(member.told(Method::Status, None, Vec::new()).await, Some(Code::InvalidArgument));
        assert_eq!(member.told(Method::HealthCheck, None, Vec::new()).await, Some(Code::Ok));
    })
    .await;
}

#[tokio::test]
async fn a_watcher_that_is_not_permitted_is_cancelled_and_its_stream_goes_on() {
    run(async |member: Member| {
        member.with_users();
        let create = |key: &'static str| {
            let request = pb::WatchCreateRequest { key: key.into(), ..Default::default() };
            let union = Some(watch_request::RequestUnion::CreateRequest(request));
            pb::WatchRequest { request_union: union }.encode_to_vec()
        };
        let client = Client { sends_more: true, ..Client::sending([create("z"), create("a")]) };
        member.call_as(Method::Watch, Some("a.2"), &client);
        settle().await;
        let told = client.told.borrow();
        let answers: Vec<pb::WatchResponse> = told
            .messages
            .iter()
            .flat_map(|piece| super::split(piece))
            .map(|raw| pb::WatchResponse::decode(raw).unwrap())
            .collect();
        let shown: Vec<_> =
            answers.iter().map(|answer| (answer.created, answer.canceled, answer.cancel_reason.as_str())).collect();
        let denied = "rpc error: code = PermissionDenied desc = etcdserver: permission denied";
        assert_eq!((shown, told.is_over), (vec![(true, true, denied), (true, false, "")], false));
    })
    .await;
}
