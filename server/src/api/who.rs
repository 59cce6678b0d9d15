//! Runs on: connection core.
//!
//! Who asks: from what a call says, a token or a certificate, to a user and a revision, as they go into an entry's
//! header or are held against the users.
//!
//! Invariants:
//! - While authentication is disabled nobody is looked for, and it costs a branch.
//! - A token of an entry that this core has not been told of yet is waited for: whoever has logged in at another member
//!   is known here as soon as that is applied.
//! - No token goes into a log, an error or what `Debug` shows.
//!
//! **Source** etcd v3.7.1 `server/auth/store.go` (`AuthInfoFromCtx`), `simple_token.go`.

use std::{sync::atomic::Ordering, time::Duration};

use super::{
    call::Says,
    desk::{Consistency, Desk},
};
use crate::{
    apply::users::{Stop, attached},
    auth::{
        Right, Users,
        check::{Asker, Who},
    },
    error::Error,
};

/// How long a token that is not known yet is waited for, between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(1);

/// The index in a simple token; `None` if it is none.
fn index_of(token: &[u8]) -> Option<u64> {
    let (_, index) = std::str::from_utf8(token).ok()?.split_once('.')?;
    // As etcd's parser, digits alone: a sign or a second point makes it another text.
    index.bytes().all(|byte| byte.is_ascii_digit()).then(|| index.parse().ok())?
}

impl Desk {
    /// Who asks, if that is known without waiting; nobody while nobody need say so.
    ///
    /// **Errors** a token that nobody was given, or that has ended.
    pub(super) fn asker_at_once(&self, says: &Says) -> Option<Result<Option<Asker>, Error>> {
        let users = self.shared.users.load();
        if !users.is_enabled() {
            return Some(Ok(None));
        }
        let Says::Token(token) = says else { return Some(Ok(None)) };
        let Some(index) = index_of(token) else { return Some(Err(Error::InvalidAuthToken)) };
        if let Some(user) = self.user_of(token) {
            return Some(Ok(Some(Asker::new(user, users.revision()))));
        }
        let is_told = self.shared.raft.applied.load(Ordering::Acquire) >= index && self.has_all_logins();
        is_told.then_some(Err(Error::InvalidAuthToken))
    }

    /// As [`Desk::asker_at_once`], after a wait where that is needed.
    ///
    /// **Errors** as [`Desk::asker_at_once`].
    pub(super) async fn asker(&self, says: &Says) -> Result<Option<Asker>, Error> {
        let until = self.clock.now() + self.shared.limits.request_timeout;
        loop {
            if let Some(asker) = self.asker_at_once(says) {
                return asker;
            }
            if self.clock.now() >= until {
                return Err(Error::InvalidAuthToken);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Holds who asks against the users, by `check`. What follows is read under this judgement: see [`Desk::still`].
    ///
    /// **Errors** as [`Desk::asker_at_once`]; those of `check`.
    pub(super) async fn judge(
        &self,
        says: &Says,
        check: impl FnOnce(&Users, Who<'_>) -> Result<(), Error>,
    ) -> Result<Judged, Error> {
        let asker = self.asker(says).await?;
        self.judge_asker(asker.as_ref(), check)
    }

    /// As [`Desk::judge`], for what shows nothing that was read.
    ///
    /// **Errors** as [`Desk::judge`].
    pub(super) async fn permit(
        &self,
        says: &Says,
        check: impl FnOnce(&Users, Who<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.judge(says, check).await.map(|_judged| ())
    }

    /// As [`Desk::judge`], if that is possible without waiting.
    pub(super) fn judge_at_once(
        &self,
        says: &Says,
        check: impl FnOnce(&Users, Who<'_>) -> Result<(), Error>,
    ) -> Option<Result<Judged, Error>> {
        let asker = self.asker_at_once(says)?;
        Some(asker.and_then(|asker| self.judge_asker(asker.as_ref(), check)))
    }

    fn judge_asker(
        &self,
        asker: Option<&Asker>,
        check: impl FnOnce(&Users, Who<'_>) -> Result<(), Error>,
    ) -> Result<Judged, Error> {
        let who = asker.map(Asker::who).unwrap_or_default();
        check(&self.shared.users.load(), who)?;
        Ok(Judged(who.revision))
    }

    /// Whether who asks has a right on all keys of a lease.
    ///
    /// **Errors** as [`Desk::judge`]; damaged data.
    pub(super) async fn judge_lease(&self, says: &Says, right: Right, lease: i64) -> Result<Judged, Error> {
        let asker = self.asker(says).await?;
        let who = asker.as_ref().map(Asker::who).unwrap_or_default();
        loop {
            let view = self.view(Consistency::Serializable).await?;
            let users = self.shared.users.load_full();
            users.check_known(who)?;
            match users.check_keys(who, right, |from| attached(&view, lease, from).map_err(Stop::from)) {
                Ok(()) => return Ok(Judged(if users.is_enabled() { users.revision() } else { 0 })),
                Err(Stop::Refused(error)) => return Err(error),
                Err(Stop::Fault(fault)) => self.load_all([fault]).await?,
            }
        }
    }

    /// Whether no user was changed since a judgement: what was read meanwhile may be shown.
    ///
    /// **Errors** some were.
    pub(super) fn still(&self, Judged(revision): Judged) -> Result<(), Error> {
        if revision == 0 || revision == self.shared.users.load().revision() {
            return Ok(());
        }
        Err(Error::AuthOldRevision)
    }

    /// Whether anybody must say who asks.
    pub(super) fn judges(&self) -> bool {
        self.shared.users.load().is_enabled()
    }
}

/// By which revision of the users something was judged; 0 where nobody must say who asks.
#[derive(Debug)]
pub(super) struct Judged(u64);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_token_ends_with_the_index_of_its_entry() {
        for (token, index) in [
            ("abcdefghijklmnop.17", Some(17)),
            (".0", Some(0)),
            ("abc", None),
            ("abc.", None),
            ("abc.-1", None),
            ("abc.+1", None),
            ("a.b.1", None),
            ("abc.18446744073709551616", None),
        ] {
            assert_eq!(index_of(token.as_bytes()), index, "{token}");
        }
    }

    #[test]
    fn a_token_is_shown_to_nobody() {
        let says = Says::of(Some(b"Bearer secret.1"));
        assert_eq!(says, Says::Token(Box::new("secret.1".into())));
        assert_eq!((format!("{says:?}"), Says::of(None)), ("Token".into(), Says::Nobody));
    }
}
