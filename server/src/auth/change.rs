//! Runs on: apply core.
//!
//! What an entry of the Auth service makes of the users, with etcd's checks in etcd's order.
//!
//! Invariants: a refused entry changes nothing. An entry that changes something writes the state's row, since the
//! revision grows with it; enabling alone leaves the revision as it is.
//!
//! One thing differs from etcd: permissions of one role for the same key are in the order in which they came. etcd
//! sorts more than twelve of them in an order that follows from its sort alone.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use proto::{authpb, etcdserverpb as pb, internal::Request};

use super::{ROOT, STATE, User, Users, role_key, user_key};
use crate::error::Error;

/// Which logins end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// None.
    Nobody,
    /// Those of this user.
    User(String),
    /// All.
    Everybody,
}

/// What a request of the Auth service is told, besides that it was done.
#[derive(Clone, Debug, PartialEq)]
pub enum Told {
    /// Nothing more.
    Done,
    /// Whether authentication is enabled, and the revision.
    Status(bool, u64),
    /// Names of users or roles, sorted.
    Names(Vec<String>),
    /// Permissions of a role.
    Permissions(Vec<authpb::Permission>),
    /// A login has begun.
    Login {
        /// Where its entry lies in the log: a part of simple tokens.
        index: u64,
        /// The revision of the users.
        revision: u64,
    },
}

/// What an entry changes.
#[derive(Debug)]
pub struct Change {
    /// The users from then on.
    pub users: Users,
    /// Rows that are written, or deleted if they have no value.
    pub rows: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    /// Logins that end.
    pub ended: Ended,
}

impl Users {
    /// What `request` of the Auth service makes of these; `None` if it changes nothing, as it need not.
    ///
    /// **Errors** etcd's.
    pub fn change(&self, request: &Request) -> Result<Option<Change>, Error> {
        match request {
            Request::AuthEnable(_) => self.enable(),
            Request::AuthDisable(_) => Ok(self.disable()),
            Request::AuthUserAdd(request) => self.add_user(request).map(Some),
            Request::AuthUserDelete(request) => self.delete_user(&request.name).map(Some),
            Request::AuthUserChangePassword(request) => self.change_password(request).map(Some),
            Request::AuthUserGrantRole(request) => self.grant_role(&request.user, &request.role),
            Request::AuthUserRevokeRole(request) => self.revoke_role(&request.name, &request.role).map(Some),
            Request::AuthRoleAdd(request) => self.add_role(&request.name).map(Some),
            Request::AuthRoleDelete(request) => self.delete_role(&request.role).map(Some),
            Request::AuthRoleGrantPermission(request) => self.grant(&request.name, request.perm.as_ref()).map(Some),
            Request::AuthRoleRevokePermission(request) => {
                self.revoke(&request.role, &request.key, &request.range_end).map(Some)
            }
            other => unreachable!("{:?} changes no users", other.kind()),
        }
    }

    /// Answers a request of the Auth service that only asks.
    ///
    /// **Errors** etcd's.
    pub fn tell(&self, request: &Request) -> Result<Told, Error> {
        match request {
            Request::AuthStatus(_) => Ok(Told::Status(self.is_enabled, self.revision)),
            Request::AuthUserList(_) => Ok(Told::Names(self.users.keys().cloned().collect())),
            Request::AuthRoleList(_) => Ok(Told::Names(self.roles.keys().cloned().collect())),
            Request::AuthUserGet(request) => {
                let user = self.users.get(&request.name).ok_or(Error::UserNotFound)?;
                Ok(Told::Names(user.roles().to_vec()))
            }
            Request::AuthRoleGet(request) => {
                let role = self.roles.get(&request.role).ok_or(Error::RoleNotFound)?;
                let everything = || authpb::Permission {
                    perm_type: authpb::permission::Type::Readwrite.into(),
                    key: Bytes::new(),
                    range_end: Bytes::from_static(&[0]),
                };
                let is_root = request.role == ROOT;
                Ok(Told::Permissions(if is_root { vec![everything()] } else { role.key_permission.clone() }))
            }
            other => unreachable!("{:?} asks for no users", other.kind()),
        }
    }

    /// Whether this user may log in, whose password was found right.
    ///
    /// **Errors** etcd's.
    pub fn check_login(&self, name: &str) -> Result<(), Error> {
        if !self.is_enabled {
            return Err(Error::AuthNotEnabled);
        }
        self.users.get(name).and_then(|user| user.password()).map(drop).ok_or(Error::AuthFailed)
    }

    fn enable(&self) -> Result<Option<Change>, Error> {
        if self.is_enabled {
            tracing::info!("authentication is already enabled; ignored auth enable request");
            return Ok(None);
        }
        let root = self.users.get(ROOT).ok_or(Error::RootUserMissing)?;
        if !root.is_root {
            return Err(Error::RootRoleMissing);
        }
        let users = Self { is_enabled: true, ..self.clone() };
        let rows = vec![(STATE.to_vec(), Some(users.encode_state()))];
        tracing::info!("enabled authentication");
        Ok(Some(Change { users, rows, ended: Ended::Nobody }))
    }

    fn disable(&self) -> Option<Change> {
        self.is_enabled.then(|| {
            let mut change = self.begin();
            change.users.is_enabled = false;
            change.ended = Ended::Everybody;
            tracing::info!("disabled authentication");
            change.finish()
        })
    }

    fn add_user(&self, request: &pb::AuthUserAddRequest) -> Result<Change, Error> {
        let name = &request.name;
        if name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.users.contains_key(name) {
            return Err(Error::UserExists);
        }
        let options = request.options.unwrap_or_default();
        let password = if options.no_password { Bytes::new() } else { password(&request.hashed_password)? };
        let stored = authpb::User { name: name.clone().into(), password, roles: Vec::new(), options: Some(options) };
        let mut change = self.begin();
        change.put_user(stored);
        tracing::info!("user-name" = name, "added a user");
        Ok(change.finish())
    }

    fn delete_user(&self, name: &str) -> Result<Change, Error> {
        if self.is_enabled && name == ROOT {
            tracing::error!("user-name" = name, "cannot delete 'root' user");
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.users.get(name).ok_or(Error::UserNotFound)?;
        let mut change = self.begin();
        change.users.users.remove(name);
        change.rows.push((user_key(name), None));
        change.ended = Ended::User(name.to_owned());
        tracing::info!("user-name" = name, "user-roles" = ?user.roles(), "deleted a user");
        Ok(change.finish())
    }

    fn change_password(&self, request: &pb::AuthUserChangePasswordRequest) -> Result<Change, Error> {
        let name = &request.name;
        let user = self.users.get(name).ok_or(Error::UserNotFound)?;
        let password = if user.password().is_some() { password(&request.hashed_password)? } else { Bytes::new() };
        let mut change = self.begin();
        change.put_user(authpb::User { name: name.clone().into(), password, ..user.stored.clone() });
        change.ended = Ended::User(name.clone());
        tracing::info!("user-name" = name, "user-roles" = ?user.roles(), "changed a password of a user");
        Ok(change.finish())
    }

    fn grant_role(&self, name: &str, role: &str) -> Result<Option<Change>, Error> {
        let user = self.users.get(name).ok_or(Error::UserNotFound)?;
        if role != ROOT && !self.roles.contains_key(role) {
            return Err(Error::RoleNotFound);
        }
        let Err(place) = user.stored.roles.binary_search_by(|known| known.as_str().cmp(role)) else {
            tracing::warn!(
                "user-name" = name,
                "user-roles" = ?user.roles(),
                "duplicate-role-name" = role,
                "ignored grant role request to a user"
            );
            return Ok(None);
        };
        let mut stored = user.stored.clone();
        stored.roles.insert(place, role.to_owned());
        let mut change = self.begin();
        let roles = format!("{:?}", stored.roles);
        change.put_user(stored);
        tracing::info!("user-name" = name, "user-roles" = roles, "added-role-name" = role, "granted a role to a user");
        Ok(Some(change.finish()))
    }

    fn revoke_role(&self, name: &str, role: &str) -> Result<Change, Error> {
        if self.is_enabled && name == ROOT && role == ROOT {
            tracing::error!("user-name" = name, "role-name" = role, "'root' user cannot revoke 'root' role");
            return Err(Error::InvalidAuthManagement);
        }
        let user = self.users.get(name).ok_or(Error::UserNotFound)?;
        let stored = without(user, role).ok_or(Error::RoleNotGranted)?;
        let mut change = self.begin();
        let roles = format!("{:?}", stored.roles);
        change.put_user(stored);
        tracing::info!(
            "user-name" = name,
            "old-user-roles" = ?user.roles(),
            "new-user-roles" = roles,
            "revoked-role-name" = role,
            "revoked a role from a user"
        );
        Ok(change.finish())
    }

    fn add_role(&self, name: &str) -> Result<Change, Error> {
        if name.is_empty() {
            return Err(Error::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(Error::RoleExists);
        }
        let mut change = self.begin();
        change.put_role(name, authpb::Role { name: name.to_owned().into(), key_permission: Vec::new() });
        tracing::info!("role-name" = name, "created a role");
        Ok(change.finish())
    }

    fn delete_role(&self, name: &str) -> Result<Change, Error> {
        if self.is_enabled && name == ROOT {
            tracing::error!("role-name" = name, "cannot delete 'root' role");
            return Err(Error::InvalidAuthManagement);
        }
        if !self.roles.contains_key(name) {
            return Err(Error::RoleNotFound);
        }
        let mut change = self.begin();
        change.users.roles.remove(name);
        change.rows.push((role_key(name), None));
        for stored in self.users.values().filter_map(|user| without(user, name)) {
            change.put_user(stored);
        }
        tracing::info!("role-name" = name, "deleted a role");
        Ok(change.finish())
    }

    fn grant(&self, name: &str, permission: Option<&authpb::Permission>) -> Result<Change, Error> {
        let granted = permission.ok_or(Error::PermissionNotGiven)?;
        if !is_range(&granted.key, &granted.range_end) {
            return Err(Error::InvalidAuthManagement);
        }
        let role = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        let mut role = authpb::Role::clone(role);
        let permissions = &mut role.key_permission;
        // As in etcd, only the first one of this key may be the same range.
        let place = permissions.partition_point(|known| known.key < granted.key);
        match permissions.get_mut(place) {
            Some(known) if known.key == granted.key && known.range_end == granted.range_end => {
                known.perm_type = granted.perm_type;
            }
            _ => {
                let behind = permissions.partition_point(|known| known.key <= granted.key);
                permissions.insert(behind, granted.clone());
            }
        }
        let mut change = self.begin();
        change.put_role(name, role);
        tracing::info!(
            "role-name" = name,
            "permission-name" = granted.perm_type().as_str_name(),
            "key" = %granted.key.escape_ascii(),
            "range-end" = %granted.range_end.escape_ascii(),
            "granted/updated a permission to a role"
        );
        Ok(change.finish())
    }

    fn revoke(&self, name: &str, key: &[u8], range_end: &[u8]) -> Result<Change, Error> {
        let role = self.roles.get(name).ok_or(Error::RoleNotFound)?;
        let mut left = authpb::Role::clone(role);
        left.key_permission.retain(|known| known.key != key || known.range_end != range_end);
        if left.key_permission.len() == role.key_permission.len() {
            return Err(Error::PermissionNotGranted);
        }
        let mut change = self.begin();
        change.put_role(name, left);
        tracing::info!(
            "role-name" = name,
            "key" = %key.escape_ascii(),
            "range-end" = %range_end.escape_ascii(),
            "revoked a permission on range"
        );
        Ok(change.finish())
    }

    /// A change with which the revision grows.
    fn begin(&self) -> Change {
        let users = Self { revision: self.revision + 1, ..self.clone() };
        Change { users, rows: Vec::new(), ended: Ended::Nobody }
    }
}

impl Change {
    fn put_user(&mut self, stored: authpb::User) {
        let name = String::from_utf8(stored.name.to_vec()).expect("names are text");
        self.rows.push((user_key(&name), Some(stored.encode_to_vec())));
        self.users.put_user(name, stored);
    }

    /// Puts a role, and gives those who have it their rights.
    fn put_role(&mut self, name: &str, role: authpb::Role) {
        self.rows.push((role_key(name), Some(role.encode_to_vec())));
        self.users.roles.insert(name.to_owned(), Arc::new(role));
        let has = |user: &User| user.roles().iter().any(|known| known == name);
        let holders: Vec<String> =
            self.users.users.iter().filter(|(_, user)| has(user)).map(|(name, _)| name.clone()).collect();
        holders.iter().for_each(|name| self.users.refresh(name));
    }

    fn finish(mut self) -> Self {
        self.rows.push((STATE.to_vec(), Some(self.users.encode_state())));
        self
    }
}

/// The hash that an entry has, which members send in Base64.
///
/// **Errors** it is not Base64: etcd's error has another meaning, too.
fn password(hashed: &str) -> Result<Bytes, Error> {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    STANDARD.decode(hashed).map(Bytes::from).map_err(|_malformed| Error::NoPasswordUser)
}

/// The user without a role; `None` if it does not have it.
fn without(user: &User, role: &str) -> Option<authpb::User> {
    let mut stored = user.stored.clone();
    stored.roles.retain(|known| known != role);
    (stored.roles.len() < user.stored.roles.len()).then_some(stored)
}

/// Whether a permission can be for this range.
fn is_range(key: &[u8], range_end: &[u8]) -> bool {
    !key.is_empty() && (range_end.is_empty() || range_end == [0] || key < range_end)
}

#[cfg(test)]
mod tests {
    use proto::authpb::{Permission, permission::Type};

    use super::*;
    use crate::auth::{Right, check::Who};

    /// Users to whom requests were made, and what was written of them.
    #[derive(Default)]
    struct Store {
        users: Users,
        rows: std::collections::BTreeMap<Vec<u8>, Vec<u8>>,
    }

    impl Store {
        fn ask(&mut self, request: Request) -> Result<Ended, Error> {
            let Some(Change { users, rows, ended }) = self.users.change(&request)? else { return Ok(Ended::Nobody) };
            for (key, value) in rows {
                match value {
                    Some(value) => drop(self.rows.insert(key, value)),
                    None => drop(self.rows.remove(&key)),
                }
            }
            self.users = users;
            assert_eq!(self.restored(), self.rows, "what was written is what is there");
            Ok(ended)
        }

        /// The rows of what is read from the rows.
        fn restored(&self) -> std::collections::BTreeMap<Vec<u8>, Vec<u8>> {
            let mut users = Users::default();
            for (key, value) in &self.rows {
                match &key[..1] {
                    STATE => users.take_state(value).unwrap(),
                    super::super::USERS => users.take_user(value).unwrap(),
                    _ => users.take_role(value).unwrap(),
                }
            }
            users.taken();
            let all = |users: &Users| format!("{users:?}");
            assert_eq!(all(&users), all(&self.users));
            users.rows().collect()
        }

        fn user(&mut self, name: &str) -> Result<Ended, Error> {
            let request =
                pb::AuthUserAddRequest { name: name.into(), hashed_password: "aGFzaA==".into(), ..Default::default() };
            self.ask(Request::AuthUserAdd(request))
        }

        fn role(&mut self, name: &str) -> Result<Ended, Error> {
            self.ask(Request::AuthRoleAdd(pb::AuthRoleAddRequest { name: name.into() }))
        }

        fn grant_role(&mut self, user: &str, role: &str) -> Result<Ended, Error> {
            self.ask(Request::AuthUserGrantRole(pb::AuthUserGrantRoleRequest { user: user.into(), role: role.into() }))
        }

        fn revoke_role(&mut self, name: &str, role: &str) -> Result<Ended, Error> {
            self.ask(Request::AuthUserRevokeRole(pb::AuthUserRevokeRoleRequest {
                name: name.into(),
                role: role.into(),
            }))
        }

        fn grant(&mut self, role: &str, key: &str, end: &str) -> Result<Ended, Error> {
            let perm = Permission {
                perm_type: Type::Readwrite.into(),
                key: key.to_owned().into(),
                range_end: end.to_owned().into(),
            };
            self.ask(Request::AuthRoleGrantPermission(pb::AuthRoleGrantPermissionRequest {
                name: role.into(),
                perm: Some(perm),
            }))
        }

        fn enable(&mut self) -> Result<Ended, Error> {
            self.ask(Request::AuthEnable(pb::AuthEnableRequest {}))
        }

        fn writes(&self, name: &str, key: &str) -> Result<(), Error> {
            let who = Who { name, revision: self.users.revision() };
            self.users.check(who, Right::Write, key.as_bytes(), &[])
        }
    }

    #[test]
    fn the_revision_grows_with_what_changes_and_with_nothing_else() {
        let mut store = Store::default();
        let mut revisions = vec![store.users.revision()];
        let mut note = |store: &Store| revisions.push(store.users.revision());
        store.user("root").unwrap();
        note(&store);
        assert_eq!(store.user("root"), Err(Error::UserExists));
        assert_eq!(store.enable(), Err(Error::RootRoleMissing));
        note(&store);
        store.grant_role("root", "root").unwrap();
        note(&store);
        store.grant_role("root", "root").unwrap();
        store.enable().unwrap();
        store.enable().unwrap();
        note(&store);
        let disable = Request::AuthDisable(pb::AuthDisableRequest {});
        assert_eq!(store.ask(disable.clone()), Ok(Ended::Everybody));
        note(&store);
        assert_eq!(store.ask(disable), Ok(Ended::Nobody), "it is disabled");
        note(&store);
        assert_eq!(revisions, [1, 2, 2, 3, 3, 4, 4]);
    }

    #[test]
    fn rights_follow_roles_and_permissions() {
        let mut store = Store::default();
        for name in ["root", "alice"] {
            store.user(name).unwrap();
        }
        assert_eq!(store.grant_role("alice", "writer"), Err(Error::RoleNotFound));
        store.role("writer").unwrap();
        store.grant_role("alice", "writer").unwrap();
        store.grant_role("root", "root").unwrap();
        store.enable().unwrap();
        assert_eq!(store.writes("alice", "a"), Err(Error::PermissionDenied));
        assert_eq!(store.grant("writer", "b", "a"), Err(Error::InvalidAuthManagement));
        store.grant("writer", "a", "c").unwrap();
        assert_eq!((store.writes("alice", "b"), store.writes("root", "x")), (Ok(()), Ok(())));
        let old = Who { name: "alice", revision: store.users.revision() - 1 };
        assert_eq!(store.users.check(old, Right::Read, b"b", &[]), Err(Error::AuthOldRevision));
        assert_eq!(store.users.check(Who::default(), Right::Read, b"b", &[]), Err(Error::UserEmpty));
        let revoke =
            pb::AuthRoleRevokePermissionRequest { role: "writer".into(), key: "a".into(), range_end: "c".into() };
        store.ask(Request::AuthRoleRevokePermission(revoke.clone())).unwrap();
        assert_eq!(store.ask(Request::AuthRoleRevokePermission(revoke)), Err(Error::PermissionNotGranted));
        assert_eq!(store.writes("alice", "b"), Err(Error::PermissionDenied));
        store.grant("writer", "a", "").unwrap();
        let delete = Request::AuthRoleDelete(pb::AuthRoleDeleteRequest { role: "writer".into() });
        store.ask(delete).unwrap();
        assert_eq!(store.writes("alice", "a"), Err(Error::PermissionDenied));
        store.role("writer").unwrap();
        assert_eq!(store.revoke_role("alice", "writer"), Err(Error::RoleNotGranted), "it went with the role");
        assert_eq!(store.writes("bob", "a"), Err(Error::PermissionDenied));
    }

    #[test]
    fn nobody_is_left_without_an_administrator() {
        let mut store = Store::default();
        store.user("root").unwrap();
        store.role("root").unwrap();
        store.grant_role("root", "root").unwrap();
        store.enable().unwrap();
        assert_eq!(store.revoke_role("root", "root"), Err(Error::InvalidAuthManagement));
        let user = Request::AuthUserDelete(pb::AuthUserDeleteRequest { name: "root".into() });
        let role = Request::AuthRoleDelete(pb::AuthRoleDeleteRequest { role: "root".into() });
        for request in [user, role] {
            assert_eq!(store.ask(request), Err(Error::InvalidAuthManagement));
        }
        let told = store.users.tell(&Request::AuthRoleGet(pb::AuthRoleGetRequest { role: "root".into() }));
        let Ok(Told::Permissions(all)) = told else { panic!("{told:?}") };
        assert_eq!((all.len(), &all[0].key[..], &all[0].range_end[..]), (1, &b""[..], &b"\0"[..]));
    }

    #[test]
    fn the_keys_of_a_lease_are_checked_range_by_range() {
        let mut store = Store::default();
        for name in ["root", "alice"] {
            store.user(name).unwrap();
        }
        store.role("writer").unwrap();
        store.grant_role("alice", "writer").unwrap();
        store.grant_role("root", "root").unwrap();
        store.grant("writer", "a", "c").unwrap();
        store.grant("writer", "x", "\0").unwrap();
        store.enable().unwrap();
        let check = |name, keys: &[&'static str]| {
            let (who, mut looks) = (Who { name, revision: store.users.revision() }, 0);
            let result: Result<(), Error> = store.users.check_keys(who, Right::Write, |from| {
                looks += 1;
                Ok(keys.iter().find(|key| key.as_bytes() >= from).map(|key| Bytes::from_static(key.as_bytes())))
            });
            (result, looks)
        };
        let many: Vec<&str> = [vec!["aa"; 1000], vec!["x"; 1000]].concat();
        assert_eq!(check("alice", &many), (Ok(()), 2));
        assert_eq!(check("alice", &["b", "c"]), (Err(Error::PermissionDenied), 2));
        assert_eq!(check("alice", &[]), (Ok(()), 1));
        assert_eq!(check("root", &["b", "c"]), (Ok(()), 0));
        assert_eq!(check("bob", &["b"]), (Err(Error::PermissionDenied), 1));
    }
}
