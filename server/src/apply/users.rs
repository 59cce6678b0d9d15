//! Runs on: apply core.
//!
//! Users inside an entry: whether its asker may do what it asks for, and what a request of the Auth service changes.
//!
//! Invariants:
//! - An entry is judged by the users as all entries before it have made them, and by the name and the revision in its
//!   header. So all members judge alike, and one that is behind refuses nothing that was granted.
//! - It is judged before anything of it is done, in etcd's order: who may administer, the alarms, keys.
//! - An entry that is made in steps is judged before the first one.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/apply/auth.go`, `uber_applier.go`.

use std::time::Duration;

use bytes::Bytes;
use engine::{Fault, Mvcc, ReadView};
use proto::internal::{Kind, Request};

use super::{outcome::Outcome, touch::resident};
use crate::{
    auth::{
        Ended, Right, Told, Users,
        check::{Asker, Who},
        logins::{self, Login},
    },
    error::Error,
    lease::attachment_prefix,
    quota,
    shared::Alarms,
};

/// Why something is not permitted, or cannot be judged yet.
#[derive(Debug)]
enum Stop {
    Refused(Error),
    Fault(Fault),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Refused(error)
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

/// Whether a request is one that changes users, or whether they are asked.
pub(super) fn is_of_users(request: &Request) -> bool {
    is_change(request.kind()) || is_question(request.kind())
}

/// Whether such a request changes users.
pub(super) fn is_change(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AuthEnable
            | Kind::AuthDisable
            | Kind::AuthUserAdd
            | Kind::AuthUserDelete
            | Kind::AuthUserChangePassword
            | Kind::AuthUserGrantRole
            | Kind::AuthUserRevokeRole
            | Kind::AuthRoleAdd
            | Kind::AuthRoleDelete
            | Kind::AuthRoleGrantPermission
            | Kind::AuthRoleRevokePermission
    )
}

fn is_question(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::AuthStatus
            | Kind::AuthUserList
            | Kind::AuthRoleList
            | Kind::AuthUserGet
            | Kind::AuthRoleGet
            | Kind::Authenticate
    )
}

/// The first key at or behind `from` that is attached to `lease`.
fn attached(view: &ReadView, lease: i64, from: &[u8]) -> Result<Option<Bytes>, Fault> {
    let prefix = attachment_prefix(lease);
    let mut rows = view.meta_cursor_from(&prefix, &[&prefix, from].concat());
    Ok(rows.next()?.map(|(row, _)| row.slice(prefix.len()..)))
}

/// Whether `asker` may do what `request` asks for.
///
/// **Errors** a page that is not resident.
pub(super) fn judge(
    view: &ReadView,
    (users, alarms): (&Users, &Alarms),
    request: &Request,
    asker: &Asker,
) -> Result<Result<(), Error>, Fault> {
    match permit(view, (users, alarms), request, asker.who()) {
        Ok(()) => Ok(Ok(())),
        Err(Stop::Refused(error)) => Ok(Err(error)),
        Err(Stop::Fault(fault)) => Err(fault),
    }
}

fn permit(view: &ReadView, (users, alarms): (&Users, &Alarms), request: &Request, who: Who<'_>) -> Result<(), Stop> {
    if is_change(request.kind()) || matches!(request, Request::AuthUserList(_) | Request::AuthRoleList(_)) {
        users.check_admin(who)?;
    }
    quota::check(alarms, request)?;
    let mut check_lease =
        |lease| users.check_keys(who, Right::Write, |from| attached(view, lease, from).map_err(Stop::from));
    match request {
        Request::Put(request) => users.check_put(who, request, &mut check_lease),
        Request::Txn(request) => users.check_txn(who, request, &mut check_lease),
        Request::LeaseRevoke(request) => check_lease(request.id),
        Request::DeleteRange(request) => Ok(users.check_delete(who, request)?),
        Request::Range(request) => Ok(users.check(who, Right::Read, &request.key, &request.range_end)?),
        Request::AuthUserGet(request) => Ok(users.check_sees_user(who, &request.name)?),
        Request::AuthRoleGet(request) => Ok(users.check_sees_role(who, &request.role)?),
        _ => Ok(()),
    }
}

/// Executes a request of the Auth service, the entry at `index`. What happens to logins is added to `logins`.
///
/// **Errors** a page that is not resident; nothing was changed then.
pub(super) fn execute(
    mvcc: &mut Mvcc,
    (users, logins): (&mut Users, &mut Vec<logins::Change>),
    (index, request): (u64, &Request),
    now: Duration,
) -> Result<Result<Outcome, Error>, Fault> {
    if !is_change(request.kind()) {
        return Ok(tell((users, logins), (index, request), now).map(|told| outcome(mvcc, told)));
    }
    let change = match users.change(request) {
        Ok(Some(change)) => change,
        Ok(None) => return Ok(Ok(outcome(mvcc, Told::Done))),
        Err(error) => return Ok(Err(error)),
    };
    for (key, _) in &change.rows {
        mvcc.live().touch_meta(key)?;
    }
    let mut write = mvcc.begin();
    for (key, value) in &change.rows {
        resident(match value {
            Some(value) => write.meta_put(key, value),
            None => write.meta_delete(key).map(drop),
        });
    }
    drop(write.finish());
    *users = change.users;
    if change.ended != Ended::Nobody {
        logins.push(logins::Change::Ended(change.ended));
    }
    Ok(Ok(outcome(mvcc, Told::Done)))
}

fn tell(
    (users, logins): (&Users, &mut Vec<logins::Change>),
    (index, request): (u64, &Request),
    now: Duration,
) -> Result<Told, Error> {
    let Request::Authenticate(request) = request else { return users.tell(request) };
    users.check_login(&request.name)?;
    let digest = logins::digest(logins::simple_token(&request.simple_token, index).as_bytes());
    logins.push(logins::Change::Begun(digest, Login::new(request.name.clone(), now)));
    Ok(Told::Login { index, revision: users.revision() })
}

fn outcome(mvcc: &Mvcc, told: Told) -> Outcome {
    Outcome::Users { revision: mvcc.live().revision(), told: Box::new(told) }
}
