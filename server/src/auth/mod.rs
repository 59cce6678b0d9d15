//! Runs on: apply core (changes), connection core (checks).
//!
//! Users, their roles, and what these permit: the replicated part of authentication.
//!
//! - `rights`: key ranges, as the roles of a user grant them together
//! - `change`: what an entry of the Auth service makes of the users
//! - `check`: what requests ask for, held against the rights of who asks
//! - `logins`: which token is whose
//!
//! | key of the meta tree | value |
//! |---|---|
//! | `e` | whether authentication is enabled (0 or 1, a byte), and the revision (8 bytes, big-endian) |
//! | `n`, name of a user | `authpb.User`, as in etcd's bucket |
//! | `o`, name of a role | `authpb.Role`, as in etcd's bucket |
//!
//! These keys are neighbours of other small tables, so that no page of leases' keys is needed to know that there are
//! no users.
//!
//! Invariants: [`Users`] is a value that is never changed: an entry makes a new one of it, which shares what it has
//! left as it was, and cores see it as soon as the entry is applied. The rights of a user are always those that its
//! roles grant. Passwords are here as their bcrypt hashes, and `Debug` does not show them.
//!
//! **Source** etcd v3.7.1 `server/auth/store.go`, `server/storage/schema/auth*.go`.

use std::{collections::BTreeMap, fmt, sync::Arc};

use bytes::Bytes;
use prost::Message;
use proto::authpb;

mod change;
pub mod check;
pub mod logins;
mod rights;

pub use change::{Change, Ended, Told};
pub use rights::{Right, Rights};

/// Whether authentication is enabled, and the revision.
pub const STATE: &[u8] = b"e";
/// The first byte of every key of a user.
pub const USERS: &[u8] = b"n";
/// The first byte of every key of a role.
pub const ROLES: &[u8] = b"o";

/// The user that must be there, and have the role of the same name, while authentication is enabled. Whoever has that
/// role may do everything.
pub const ROOT: &str = "root";

/// A row that does not decode, by the name of its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Undecodable(pub &'static str);

/// The revision of a cluster in which nothing was ever changed.
const FIRST_REVISION: u64 = 1;

/// A user.
#[derive(Clone)]
pub struct User {
    stored: authpb::User,
    is_root: bool,
    rights: Rights,
}

impl User {
    /// Has the role that may do everything.
    pub fn is_root(&self) -> bool {
        self.is_root
    }

    /// Its roles, sorted.
    pub fn roles(&self) -> &[String] {
        &self.stored.roles
    }

    /// The bcrypt hash of its password; `None` if it has none, and can only be named by a certificate.
    pub fn password(&self) -> Option<&Bytes> {
        let has_none = self.stored.options.as_ref().is_some_and(|options| options.no_password);
        (!has_none).then_some(&self.stored.password)
    }

    /// What its roles grant.
    pub fn rights(&self) -> &Rights {
        &self.rights
    }
}

impl fmt::Debug for User {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("User")
            .field("roles", &self.stored.roles)
            .field("rights", &self.rights)
            .finish_non_exhaustive()
    }
}

/// See the head of this file.
#[derive(Clone, Debug)]
pub struct Users {
    is_enabled: bool,
    revision: u64,
    users: BTreeMap<String, Arc<User>>,
    roles: BTreeMap<String, Arc<authpb::Role>>,
}

impl Default for Users {
    fn default() -> Self {
        Self { is_enabled: false, revision: FIRST_REVISION, users: BTreeMap::new(), roles: BTreeMap::new() }
    }
}

impl Users {
    /// Whether anybody must say who they are.
    pub fn is_enabled(&self) -> bool {
        self.is_enabled
    }

    /// It grows with each change of users, roles and permissions, and when authentication is disabled.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Whether there is neither a user nor a role.
    pub fn is_empty(&self) -> bool {
        self.users.is_empty() && self.roles.is_empty()
    }

    /// The user of this name.
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.users.get(name)
    }

    /// Takes a row that a store or a database has.
    ///
    /// **Errors** it does not decode.
    pub fn take_state(&mut self, value: &[u8]) -> Result<(), Undecodable> {
        let state = value.split_first().and_then(|(is_enabled, revision)| {
            let revision: [u8; 8] = revision.try_into().ok()?;
            (*is_enabled < 2).then_some((*is_enabled == 1, u64::from_be_bytes(revision)))
        });
        (self.is_enabled, self.revision) = state.ok_or(Undecodable("the state of authentication"))?;
        Ok(())
    }

    /// As [`Users::take_state`], for a user.
    ///
    /// **Errors** it does not decode, or its name is none.
    pub fn take_user(&mut self, value: &[u8]) -> Result<(), Undecodable> {
        let stored = authpb::User::decode(value).map_err(|_malformed| Undecodable("users"))?;
        let name = name_of(&stored.name).ok_or(Undecodable("users"))?;
        self.put_user(name, stored);
        Ok(())
    }

    /// As [`Users::take_state`], for a role. Users have its rights after [`Users::taken`].
    ///
    /// **Errors** it does not decode, or its name is none.
    pub fn take_role(&mut self, value: &[u8]) -> Result<(), Undecodable> {
        let role = authpb::Role::decode(value).map_err(|_malformed| Undecodable("roles"))?;
        let name = name_of(&role.name).ok_or(Undecodable("roles"))?;
        self.roles.insert(name, Arc::new(role));
        Ok(())
    }

    /// All rows were taken.
    pub fn taken(&mut self) {
        let names: Vec<String> = self.users.keys().cloned().collect();
        names.iter().for_each(|name| self.refresh(name));
    }

    /// The users' names and rows, in the order of the names.
    pub fn user_rows(&self) -> impl Iterator<Item = (&str, Vec<u8>)> {
        self.users.iter().map(|(name, user)| (name.as_str(), user.stored.encode_to_vec()))
    }

    /// The roles' names and rows, in the order of the names.
    pub fn role_rows(&self) -> impl Iterator<Item = (&str, Vec<u8>)> {
        self.roles.iter().map(|(name, role)| (name.as_str(), role.encode_to_vec()))
    }

    /// All rows: keys of the meta tree, and values.
    pub fn rows(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let users = self.user_rows().map(|(name, row)| (user_key(name), row));
        let roles = self.role_rows().map(|(name, row)| (role_key(name), row));
        std::iter::once((STATE.to_vec(), self.encode_state())).chain(users).chain(roles)
    }

    fn encode_state(&self) -> Vec<u8> {
        [&[u8::from(self.is_enabled)][..], &self.revision.to_be_bytes()].concat()
    }

    fn put_user(&mut self, name: String, stored: authpb::User) {
        let is_root = stored.roles.iter().any(|role| role == ROOT);
        let granted = stored.roles.iter().filter_map(|role| self.roles.get(role)).flat_map(|role| &role.key_permission);
        let rights = Rights::of(granted);
        self.users.insert(name, Arc::new(User { stored, is_root, rights }));
    }

    /// Gives the user the rights that its roles have now.
    fn refresh(&mut self, name: &str) {
        let stored = self.users[name].stored.clone();
        self.put_user(name.to_owned(), stored);
    }
}

/// The name in a row; `None` if it is no text, or empty.
fn name_of(bytes: &[u8]) -> Option<String> {
    String::from_utf8(bytes.to_vec()).ok().filter(|name| !name.is_empty())
}

fn user_key(name: &str) -> Vec<u8> {
    [USERS, name.as_bytes()].concat()
}

fn role_key(name: &str) -> Vec<u8> {
    [ROLES, name.as_bytes()].concat()
}
