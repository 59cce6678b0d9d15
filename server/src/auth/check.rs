//! Runs on: apply core, connection core.
//!
//! What requests ask for, held against the rights of who asks.
//!
//! Invariants: where authentication is disabled everything is permitted, and a check is one branch. No check allocates;
//! one of a key or a range takes time that grows with the logarithm of what the user's roles grant. What is not
//! permitted is refused before anything of the request is done.
//!
//! The keys of a lease are checked without looking at each of them: from the first key the walk goes on behind the end
//! of the range that grants it. So a lease of very many keys costs as much as the user has ranges.
//!
//! **Source** etcd v3.7.1 `server/auth/store.go`, `server/etcdserver/apply/auth.go`.

use bytes::Bytes;
use proto::{
    etcdserverpb::{self as pb, request_op},
    internal::RequestHeader,
};

use super::{Right, User, Users};
use crate::error::Error;

/// Who asks, as the header of an entry says it, or a token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who<'a> {
    /// The user's name; empty for nobody.
    pub name: &'a str,
    /// The revision of the users that the name was resolved at; 0 for nobody.
    pub revision: u64,
}

/// Who an entry says has asked; nobody if it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asker {
    name: String,
    revision: u64,
}

impl From<RequestHeader> for Asker {
    fn from(header: RequestHeader) -> Self {
        Self { name: header.username, revision: header.auth_revision }
    }
}

impl Asker {
    /// As a check takes it.
    pub fn who(&self) -> Who<'_> {
        Who { name: &self.name, revision: self.revision }
    }
}

impl Users {
    /// Whether `who` has a right on all of a range.
    ///
    /// **Errors** etcd's.
    pub fn check(&self, who: Who<'_>, right: Right, key: &[u8], range_end: &[u8]) -> Result<(), Error> {
        let Some(user) = self.user_of(who)? else { return Ok(()) };
        if user.is_root() || user.rights().grants(right, key, range_end) {
            return Ok(());
        }
        Err(Error::PermissionDenied)
    }

    /// Whether `who` may do what only administrators may.
    ///
    /// **Errors** etcd's.
    pub fn check_admin(&self, who: Who<'_>) -> Result<(), Error> {
        if !self.is_enabled() {
            return Ok(());
        }
        if who.name.is_empty() {
            return Err(Error::UserEmpty);
        }
        if self.user(who.name).ok_or(Error::UserNotFound)?.is_root() { Ok(()) } else { Err(Error::PermissionDenied) }
    }

    /// Whether `who` is anybody at all.
    ///
    /// **Errors** etcd's.
    pub fn check_known(&self, who: Option<Who<'_>>) -> Result<(), Error> {
        if self.is_enabled() && who.is_none() { Err(Error::UserEmpty) } else { Ok(()) }
    }

    /// Whether `who` may see the user of this name: its own, or as an administrator.
    ///
    /// **Errors** etcd's.
    pub fn check_sees_user(&self, who: Who<'_>, name: &str) -> Result<(), Error> {
        self.check_admin(who).or_else(|error| if who.name == name { Ok(()) } else { Err(error) })
    }

    /// Whether `who` may see the role of this name: one that it has, or as an administrator.
    ///
    /// **Errors** etcd's.
    pub fn check_sees_role(&self, who: Who<'_>, name: &str) -> Result<(), Error> {
        let has = || self.user(who.name).is_some_and(|user| user.roles().iter().any(|role| role == name));
        self.check_admin(who).or_else(|error| if has() { Ok(()) } else { Err(error) })
    }

    /// The user whose rights decide; `None` if everything is permitted.
    fn user_of(&self, who: Who<'_>) -> Result<Option<&User>, Error> {
        if !self.is_enabled() {
            return Ok(None);
        }
        if who.revision == 0 {
            return Err(Error::UserEmpty);
        }
        if who.revision < self.revision() {
            return Err(Error::AuthOldRevision);
        }
        self.user(who.name).map(|user| Some(&**user)).ok_or(Error::PermissionDenied)
    }

    /// Whether `who` has a right on all keys of a lease. `next` gives the first of them at or behind a key.
    ///
    /// **Errors** etcd's; those of `next`.
    pub fn check_keys<E: From<Error>>(
        &self,
        who: Who<'_>,
        right: Right,
        mut next: impl FnMut(&[u8]) -> Result<Option<Bytes>, E>,
    ) -> Result<(), E> {
        if self.check_admin(who).is_ok() {
            return Ok(());
        }
        let mut from: &[u8] = &[];
        while let Some(key) = next(from)? {
            let Some(user) = self.user_of(who)? else { return Ok(()) };
            from = user.rights().end_at(right, &key).ok_or(Error::PermissionDenied)?;
            if from.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Whether `who` may put as `request` does; `check_lease` asks for the keys of a lease.
    ///
    /// **Errors** etcd's.
    pub fn check_put<E: From<Error>>(
        &self,
        who: Who<'_>,
        request: &pb::PutRequest,
        check_lease: &mut impl FnMut(i64) -> Result<(), E>,
    ) -> Result<(), E> {
        self.check(who, Right::Write, &request.key, &[])?;
        if request.lease != 0 {
            // Whoever cannot write all of its keys cannot revoke the lease, and so must not attach to it.
            check_lease(request.lease)?;
        }
        if request.prev_kv {
            self.check(who, Right::Read, &request.key, &[])?;
        }
        Ok(())
    }

    /// Whether `who` may delete as `request` does.
    ///
    /// **Errors** etcd's.
    pub fn check_delete(&self, who: Who<'_>, request: &pb::DeleteRangeRequest) -> Result<(), Error> {
        self.check(who, Right::Write, &request.key, &request.range_end)?;
        if request.prev_kv {
            self.check(who, Right::Read, &request.key, &request.range_end)?;
        }
        Ok(())
    }

    /// Whether `who` may do all that a txn may do, in both branches, whatever it will decide.
    ///
    /// **Errors** etcd's.
    pub fn check_txn<E: From<Error>>(
        &self,
        who: Who<'_>,
        txn: &pb::TxnRequest,
        check_lease: &mut impl FnMut(i64) -> Result<(), E>,
    ) -> Result<(), E> {
        for compare in &txn.compare {
            self.check(who, Right::Read, &compare.key, &compare.range_end)?;
        }
        for op in txn.success.iter().chain(&txn.failure) {
            match &op.request {
                Some(request_op::Request::RequestRange(range)) => {
                    self.check(who, Right::Read, &range.key, &range.range_end)?;
                }
                Some(request_op::Request::RequestPut(put)) => self.check_put(who, put, check_lease)?,
                Some(request_op::Request::RequestDeleteRange(delete)) => self.check_delete(who, delete)?,
                Some(request_op::Request::RequestTxn(inner)) => self.check_txn(who, inner, check_lease)?,
                None => {}
            }
        }
        Ok(())
    }
}
