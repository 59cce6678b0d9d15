//! Runs on: apply core (beginnings and ends), connection core (look-ups).
//!
//! Logins: which simple token is whose. They are no part of the state: each member learns of them as it applies, and
//! forgets them when it ends.
//!
//! Invariants:
//! - A token itself is kept nowhere, only its SHA-256. A look-up takes no longer for one that is nearly right.
//! - Each connection core has a table of its own, which it fills in the order in which entries were applied. A login
//!   lives as long as any core has used it within the time to live: the moment of its last use is shared.
//! - At most [`LOGINS_MAX`] are kept; the one that was not used for longest goes first.
//!
//! **Source** etcd v3.7.1 `server/auth/simple_token.go`.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sha2::{Digest as _, Sha256};

use super::Ended;

/// Logins at most.
pub const LOGINS_MAX: usize = 100_000;

const LOOK_EVERY: Duration = Duration::from_secs(1);

/// What is kept of a token.
pub type Digest = [u8; 32];

/// The digest of a token.
pub fn digest(token: &[u8]) -> Digest {
    Sha256::digest(token).into()
}

/// The token whose random part is `prefix`, of the entry at `index`.
pub fn simple_token(prefix: &str, index: u64) -> String {
    format!("{prefix}.{index}")
}

/// A user who has logged in.
#[derive(Debug)]
pub struct Login {
    /// The user's name.
    pub user: String,
    /// When it was last used. **Units** milliseconds of the clock.
    used_ms: AtomicU64,
}

impl Login {
    /// A login that is used now.
    pub fn new(user: String, now: Duration) -> Arc<Self> {
        Arc::new(Self { user, used_ms: AtomicU64::new(millis(now)) })
    }
}

/// What happens to logins, in the order of the entries.
#[derive(Clone, Debug)]
pub enum Change {
    /// One has begun.
    Begun(Digest, Arc<Login>),
    /// Some have ended.
    Ended(Ended),
}

/// The logins that one core knows.
#[derive(Debug)]
pub struct Logins {
    by_digest: HashMap<Digest, Arc<Login>>,
    time_to_live: Duration,
    /// When they are looked through next.
    look_at: Duration,
}

impl Logins {
    /// None yet. One that is not used for `time_to_live` ends.
    pub fn new(time_to_live: Duration) -> Self {
        Self { by_digest: HashMap::new(), time_to_live, look_at: Duration::ZERO }
    }

    /// Takes in what has happened.
    pub fn take(&mut self, change: &Change) {
        match change {
            Change::Begun(digest, login) => {
                if self.by_digest.len() >= LOGINS_MAX {
                    self.forget_oldest();
                }
                self.by_digest.insert(*digest, Arc::clone(login));
            }
            Change::Ended(Ended::Nobody) => {}
            Change::Ended(Ended::User(name)) => self.by_digest.retain(|_, login| login.user != *name),
            Change::Ended(Ended::Everybody) => self.by_digest.clear(),
        }
    }

    /// Whose token this is, which counts as a use of it; `None` for nobody's.
    pub fn user_of(&self, token: &[u8], now: Duration) -> Option<&Arc<Login>> {
        let login = self.by_digest.get(&digest(token))?;
        login.used_ms.fetch_max(millis(now), Ordering::Relaxed);
        Some(login)
    }

    /// Ends those that were not used for too long, once a second.
    pub fn expire(&mut self, now: Duration) {
        if now < self.look_at {
            return;
        }
        self.look_at = now + LOOK_EVERY;
        let Some(oldest) = now.checked_sub(self.time_to_live).map(millis) else { return };
        self.by_digest.retain(|_, login| login.used_ms.load(Ordering::Relaxed) >= oldest);
    }

    fn forget_oldest(&mut self) {
        let used = |login: &Arc<Login>| login.used_ms.load(Ordering::Relaxed);
        if let Some(digest) = self.by_digest.iter().min_by_key(|(_, login)| used(login)).map(|(digest, _)| *digest) {
            self.by_digest.remove(&digest);
        }
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn begun(token: &str, user: &str, now: Duration) -> Change {
        Change::Begun(digest(token.as_bytes()), Login::new(user.to_owned(), now))
    }

    #[test]
    fn a_login_lives_while_any_core_uses_it() {
        let (mut here, mut there) = (Logins::new(300 * SECOND), Logins::new(300 * SECOND));
        let login = begun("abc.7", "alice", Duration::ZERO);
        here.take(&login);
        there.take(&login);
        assert!(here.user_of(b"abc.8", SECOND).is_none());
        assert_eq!(there.user_of(b"abc.7", 200 * SECOND).unwrap().user, "alice");
        here.expire(500 * SECOND);
        assert!(here.user_of(b"abc.7", 500 * SECOND).is_some(), "it was used there, and now");
        there.expire(801 * SECOND);
        assert!(there.user_of(b"abc.7", 801 * SECOND).is_none());
    }

    #[test]
    fn logins_end_with_their_user_or_all_at_once() {
        let mut logins = Logins::new(SECOND);
        for (token, user) in [("a", "alice"), ("b", "bob"), ("c", "alice")] {
            logins.take(&begun(token, user, Duration::ZERO));
        }
        logins.take(&Change::Ended(Ended::User("alice".into())));
        let known = |logins: &Logins| [&b"a"[..], b"b", b"c"].map(|token| logins.user_of(token, SECOND).is_some());
        assert_eq!(known(&logins), [false, true, false]);
        logins.take(&Change::Ended(Ended::Everybody));
        assert_eq!(known(&logins), [false; 3]);
    }
}
