//! Runs on: tests.
//!
//! Who may do what, entry by entry, over a store in memory.

use std::time::Duration;

use engine::Mvcc;
use proto::{
    authpb::{self, permission::Type},
    etcdserverpb as pb,
    etcdserverpb::{alarm_request::AlarmAction, request_op},
    internal::{Request, RequestHeader},
};

use crate::{
    apply::{
        entry::{Applier, Asked, Executed},
        outcome::Outcome,
        restore::{Damaged, Tables, restore},
        touch::Pinned,
    },
    auth::{Ended, Told, Users, check::Asker, logins},
    error::Error,
    gathered::Gathered,
    lease::{Lessor, Params},
    shared::RaisedBy,
};

struct Store {
    mvcc: Mvcc,
    applier: Applier,
}

impl Store {
    /// A store whose users are `root`, and `alice`, who may write from `a` to `c` and read from `b` to `d`.
    fn new() -> Self {
        let params = Params { ttl_min_s: 2, retry_after: Duration::from_secs(7), checkpoint_every: None };
        let applier = Applier::new(Lessor::new(params), Tables::default(), None);
        let mut store = Self { mvcc: Mvcc::in_memory(), applier };
        for name in ["root", "alice"] {
            let (name, hashed_password) = (name.to_owned(), "aGFzaA==".to_owned());
            let add = pb::AuthUserAddRequest { name, hashed_password, ..Default::default() };
            store.done(Request::AuthUserAdd(add));
        }
        store.done(Request::AuthRoleAdd(pb::AuthRoleAddRequest { name: "some".into() }));
        for (user, role) in [("root", "root"), ("alice", "some")] {
            let (user, role) = (user.into(), role.into());
            store.done(Request::AuthUserGrantRole(pb::AuthUserGrantRoleRequest { user, role }));
        }
        store.grant(Type::Write, "a", "c");
        store.grant(Type::Read, "b", "d");
        store.done(Request::AuthEnable(pb::AuthEnableRequest {}));
        store
    }

    fn grant(&mut self, kind: Type, key: &'static str, range_end: &'static str) {
        let perm = authpb::Permission { perm_type: kind.into(), key: key.into(), range_end: range_end.into() };
        let grant = pb::AuthRoleGrantPermissionRequest { name: "some".into(), perm: Some(perm) };
        self.done(Request::AuthRoleGrantPermission(grant));
    }

    /// Executes what root asks for.
    fn done(&mut self, request: Request) -> Outcome {
        self.ask("root", request).expect("root may do everything")
    }

    fn ask(&mut self, name: &str, request: Request) -> Result<Outcome, Error> {
        let revision = self.applier.users.revision();
        self.ask_at(name, revision, request)
    }

    fn ask_at(&mut self, name: &str, auth_revision: u64, request: Request) -> Result<Outcome, Error> {
        let (mut pinned, mut events) = (Pinned::new(Gathered::new(usize::MAX)), Vec::new());
        pinned.clear(true);
        let header = RequestHeader { id: 1, username: name.to_owned(), auth_revision };
        let asked = Asked { request, raised_by: RaisedBy::Hand, asker: Asker::from(header) };
        let before = self.mvcc.live().revision();
        loop {
            let executed = self.applier.execute(&mut self.mvcc, (9, &asked), &mut pinned, Duration::ZERO, &mut events);
            if let Executed::Done { result, .. } = executed.expect("all is in memory") {
                assert!(result.is_ok() || self.mvcc.live().revision() == before, "what is refused changes nothing");
                return result;
            }
        }
    }

    fn restored(&mut self) -> Users {
        let view = self.mvcc.publish(0, 0);
        restore(&view, |fault| -> Result<(), Damaged> { panic!("{fault:?}: all is in memory") }).unwrap().users
    }
}

fn put(key: &'static str) -> pb::PutRequest {
    pb::PutRequest { key: key.into(), value: "v".into(), ..Default::default() }
}

fn delete(key: &'static str, range_end: &'static str, prev_kv: bool) -> Request {
    Request::DeleteRange(pb::DeleteRangeRequest { key: key.into(), range_end: range_end.into(), prev_kv })
}

fn op(request: request_op::Request) -> pb::RequestOp {
    pb::RequestOp { request: Some(request) }
}

#[test]
fn an_entry_is_judged_by_its_asker_and_by_all_that_came_before_it() {
    let mut store = Store::new();
    let denied = Err(Error::PermissionDenied);
    let refused = |result: Result<Outcome, Error>| result.map(drop);
    assert_eq!(refused(store.ask("alice", Request::Put(put("a")))), Ok(()));
    assert_eq!(refused(store.ask("alice", Request::Put(put("c")))), denied);
    assert_eq!(refused(store.ask("bob", Request::Put(put("a")))), denied);
    assert_eq!(refused(store.ask_at("", 0, Request::Put(put("a")))), Err(Error::UserEmpty));
    let shows = |key| Request::Put(pb::PutRequest { prev_kv: true, ..put(key) });
    assert_eq!(refused(store.ask("alice", shows("b"))), Ok(()));
    assert_eq!(refused(store.ask("alice", shows("a"))), denied, "she may not read it");
    assert_eq!(refused(store.ask("alice", delete("a", "c", false))), Ok(()));
    assert_eq!(refused(store.ask("alice", delete("a", "c", true))), denied);
    assert_eq!(refused(store.ask("alice", delete("a", "\0", false))), denied);
    let old = store.applier.users.revision();
    store.grant(Type::Write, "c", "");
    assert_eq!(refused(store.ask_at("alice", old, Request::Put(put("a")))), Err(Error::AuthOldRevision));
    assert_eq!(refused(store.ask("alice", Request::Put(put("c")))), Ok(()), "as soon as it is granted");
    let compact = Request::Compaction(pb::CompactionRequest { revision: 1, physical: false });
    assert_eq!(refused(store.ask("alice", compact)), Ok(()), "it was judged before it was proposed");
}

#[test]
fn all_of_a_txn_is_judged_whatever_it_will_decide() {
    let mut store = Store::new();
    let compare = |key: &'static str| pb::Compare { key: key.into(), ..Default::default() };
    let nested =
        |inner| op(request_op::Request::RequestTxn(pb::TxnRequest { failure: vec![inner], ..Default::default() }));
    let read = |key: &'static str| {
        op(request_op::Request::RequestRange(pb::RangeRequest { key: key.into(), ..Default::default() }))
    };
    let write = |key| op(request_op::Request::RequestPut(put(key)));
    for (compare, op, may) in [
        (compare("b"), write("b"), true),
        (compare("a"), write("b"), false),
        (compare("b"), nested(write("c")), false),
        (compare("b"), nested(write("a")), true),
        (compare("b"), nested(read("c")), true),
        (compare("b"), nested(nested(read("a"))), false),
    ] {
        let txn = pb::TxnRequest { compare: vec![compare], failure: vec![op], ..Default::default() };
        let result = store.ask("alice", Request::Txn(txn.clone()));
        assert_eq!(result.is_ok(), may, "{txn:?}: {result:?}");
    }
}

#[test]
fn a_lease_is_hers_who_may_write_all_of_its_keys() {
    let mut store = Store::new();
    for id in [7, 8] {
        store.done(Request::LeaseGrant(pb::LeaseGrantRequest { ttl: 60, id }));
    }
    let attach = |key, lease| Request::Put(pb::PutRequest { lease, ..put(key) });
    store.done(attach("a", 7));
    assert!(store.ask("alice", attach("b", 7)).is_ok());
    store.done(attach("z", 7));
    assert_eq!(store.ask("alice", attach("b", 7)).unwrap_err(), Error::PermissionDenied);
    let revoke = |id| Request::LeaseRevoke(pb::LeaseRevokeRequest { id });
    assert_eq!(store.ask("alice", revoke(7)).unwrap_err(), Error::PermissionDenied);
    store.done(attach("b", 8));
    assert!(store.ask("alice", revoke(8)).is_ok());
    assert_eq!(store.ask("alice", revoke(9)).unwrap_err(), Error::LeaseNotFound);
}

#[test]
fn users_are_managed_by_administrators_and_seen_by_themselves() {
    let mut store = Store::new();
    let get = |name: &str| Request::AuthUserGet(pb::AuthUserGetRequest { name: name.into() });
    let role = |role: &str| Request::AuthRoleGet(pb::AuthRoleGetRequest { role: role.into() });
    let told = |outcome: Outcome| match outcome {
        Outcome::Users { told, .. } => *told,
        other => panic!("{other:?}"),
    };
    assert_eq!(store.ask("alice", get("alice")).map(told), Ok(Told::Names(vec!["some".into()])));
    assert_eq!(store.ask("alice", get("root")).map(told), Err(Error::PermissionDenied));
    assert!(store.ask("alice", role("some")).is_ok());
    assert_eq!(store.ask("alice", role("root")).map(told), Err(Error::PermissionDenied));
    let list = Request::AuthUserList(pb::AuthUserListRequest {});
    assert_eq!(store.ask("alice", list.clone()).map(told), Err(Error::PermissionDenied));
    assert_eq!(store.ask("nobody", list.clone()).map(told), Err(Error::UserNotFound));
    assert_eq!(store.ask("root", list).map(told), Ok(Told::Names(vec!["alice".into(), "root".into()])));
    let status = Request::AuthStatus(pb::AuthStatusRequest {});
    let revision = store.applier.users.revision();
    assert_eq!(store.ask_at("", 0, status).map(told), Ok(Told::Status(true, revision)));
}

#[test]
fn users_are_there_after_a_start_and_logins_follow_the_entries() {
    let mut store = Store::new();
    assert_eq!(format!("{:?}", store.restored()), format!("{:?}", store.applier.users));
    let login = |name: &str| {
        Request::Authenticate(proto::etcdserverpb::InternalAuthenticateRequest {
            name: name.into(),
            password: String::new(),
            simple_token: "abc".into(),
        })
    };
    assert_eq!(store.ask_at("", 0, login("bob")).unwrap_err(), Error::AuthFailed);
    assert!(store.ask_at("", 0, login("alice")).is_ok());
    let delete = Request::AuthUserDelete(pb::AuthUserDeleteRequest { name: "alice".into() });
    store.done(delete);
    store.done(Request::AuthDisable(pb::AuthDisableRequest {}));
    assert_eq!(store.ask_at("", 0, login("root")).unwrap_err(), Error::AuthNotEnabled);
    let [logins::Change::Begun(digest, login), logins::Change::Ended(one), logins::Change::Ended(all)] =
        &store.applier.logins[..]
    else {
        panic!("{:?}", store.applier.logins)
    };
    assert_eq!((*digest, login.user.as_str()), (logins::digest(b"abc.9"), "alice"));
    assert_eq!((one, all), (&Ended::User("alice".into()), &Ended::Everybody));
    assert!(!store.restored().is_enabled() && store.restored().user("alice").is_none());
}

#[test]
fn an_alarm_refuses_before_a_permission_does() {
    let mut store = Store::new();
    let (action, alarm) = (AlarmAction::Activate as i32, pb::AlarmType::Nospace as i32);
    store.done(Request::Alarm(pb::AlarmRequest { action, member_id: 1, alarm }));
    assert_eq!(store.ask("alice", Request::Put(put("z"))).unwrap_err(), Error::NoSpace);
    assert_eq!(store.ask("alice", delete("z", "", false)).unwrap_err(), Error::PermissionDenied);
}
