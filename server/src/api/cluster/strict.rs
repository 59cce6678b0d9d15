//! Runs on: connection core.
//!
//! What speaks against a change of the members, as far as this member sees it: the change would leave too few voters
//! that have ever started, or this member has not been connected to enough of them. It is asked before the change is
//! proposed, unless the operator has turned it off (`--strict-reconfig-check`).
//!
//! It only looks: a change that passes may still lose the quorum, if members fail just then.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/server.go`: `mayAddMember`, `mayRemoveMember`, `mayPromoteMember`;
//! `server/etcdserver/api/membership/cluster.go`: `IsReadyTo...`; `server/etcdserver/util.go`.

use std::{collections::BTreeMap, time::Duration};

use consensus::Member;

use crate::error::Error;

/// A connection counts that is at least this old. **Source** etcd v3.7.1 `server/etcdserver/server.go`
/// `HealthInterval`.
const HEALTHY_AFTER: Duration = Duration::from_secs(5);

/// What this member sees of the others.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sight<'a> {
    /// This member.
    pub(super) own: u64,
    /// All members.
    pub(super) members: &'a [Member],
    /// Since when this member is connected to others.
    pub(super) links: &'a BTreeMap<u64, Duration>,
    /// The time now.
    pub(super) now: Duration,
}

impl Sight<'_> {
    /// Whether a member may be added.
    ///
    /// **Errors** too few voters have started; this member is not connected to a quorum of the voters there would be.
    pub(super) fn check_add(self, is_learner: bool) -> Result<(), Error> {
        let voters = self.voters().count();
        let started = self.started(None);
        // A single member may be joined by the second one: so a cluster is built up from a backup.
        let is_second = started == 1 && voters == 1;
        if !is_learner && !is_second && started < quorum(voters + 1) {
            return Err(Error::NotEnoughStarted);
        }
        if voters == 1 || self.connected() >= quorum(voters + 1) { Ok(()) } else { Err(Error::Unhealthy) }
    }

    /// Whether the member `id` may be removed.
    ///
    /// **Errors** too few voters that stay have started; they may be no quorum, as seen from here.
    pub(super) fn check_remove(self, id: u64) -> Result<(), Error> {
        let voters = self.voters().count();
        if self.members.iter().any(|member| member.id == id && member.is_learner) {
            return Ok(());
        }
        if self.started(Some(id)) < quorum(self.voters().filter(|voter| voter.id != id).count()) {
            return Err(Error::NotEnoughStarted);
        }
        // One that is down is no part of the quorum that works.
        if id != self.own && !self.links.contains_key(&id) {
            return Ok(());
        }
        let stays = self.connected().saturating_sub(1);
        if stays < 1 + voters.saturating_sub(1) / 2 { Err(Error::Unhealthy) } else { Ok(()) }
    }

    /// Whether a learner may become a voter. It counts as one that has started.
    ///
    /// **Errors** too few voters have started.
    pub(super) fn check_promote(self) -> Result<(), Error> {
        let voters = 1 + self.voters().count();
        if 1 + self.started(None) < quorum(voters) { Err(Error::NotEnoughStarted) } else { Ok(()) }
    }

    fn voters(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().filter(|member| !member.is_learner)
    }

    /// Voters but for one that have said what they are called: they do that when they have started.
    fn started(&self, but: Option<u64>) -> usize {
        self.voters().filter(|voter| Some(voter.id) != but && !voter.name.is_empty()).count()
    }

    /// Voters to which this member has been connected for long enough; itself included.
    fn connected(&self) -> usize {
        let is_old = |since: &Duration| *since + HEALTHY_AFTER < self.now;
        self.voters().filter(|voter| voter.id == self.own || self.links.get(&voter.id).is_some_and(is_old)).count()
    }
}

fn quorum(members: usize) -> usize {
    members / 2 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(60);

    /// Members 1 to `voters`, of which those in `started` have started; member 9 is a learner. Member 1 looks, and has
    /// been connected to each of `links` for so many seconds.
    fn seen(voters: u64, started: &[u64], links: &[(u64, u64)], ask: impl Fn(Sight<'_>) -> Result<(), Error>) -> u8 {
        let member = |id: u64| Member {
            id,
            name: if started.contains(&id) { format!("m{id}") } else { String::new() },
            is_learner: id == 9,
            ..Member::default()
        };
        let members: Vec<_> = (1..=voters).chain([9]).map(member).collect();
        let links = links.iter().map(|(id, age)| (*id, NOW - Duration::from_secs(*age))).collect();
        match ask(Sight { own: 1, members: &members, links: &links, now: NOW }) {
            Ok(()) => b'y',
            Err(Error::NotEnoughStarted) => b's',
            Err(Error::Unhealthy) => b'u',
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn a_member_is_added_where_the_quorum_there_would_be_has_started_and_is_connected() {
        let voter = |voters, started: &[u64], links: &[(u64, u64)]| {
            seen(voters, started, links, |sight| sight.check_add(false))
        };
        assert_eq!(voter(1, &[1], &[]), b'y', "a single member");
        assert_eq!(voter(1, &[], &[]), b's');
        assert_eq!(voter(2, &[1], &[(2, 50)]), b's', "the one that was added has not started");
        assert_eq!(voter(2, &[1, 2], &[(2, 50)]), b'y');
        assert_eq!(voter(2, &[1, 2], &[(2, 5)]), b'u', "it is not connected for more than five seconds");
        assert_eq!(voter(3, &[1, 2, 3], &[(2, 6), (3, 6)]), b'y');
        assert_eq!(voter(3, &[1, 2, 3], &[(2, 6), (9, 50)]), b'u', "two of four, and learners do not count");
        assert_eq!(voter(3, &[1, 2], &[(2, 6), (3, 6)]), b's');
        assert_eq!(voter(4, &[1, 2, 3], &[(2, 6), (3, 6)]), b'y');
        let learner =
            |voters, started: &[u64], links: &[(u64, u64)]| seen(voters, started, links, |sight| sight.check_add(true));
        assert_eq!(learner(3, &[1], &[(2, 6), (3, 6)]), b'y', "a learner is no part of the quorum");
        assert_eq!(learner(3, &[1, 2, 3], &[(2, 6)]), b'u');
    }

    #[test]
    fn a_member_is_removed_where_those_that_stay_are_enough() {
        let remove = |id, voters, started: &[u64], links: &[(u64, u64)]| {
            seen(voters, started, links, |sight| sight.check_remove(id))
        };
        assert_eq!(remove(9, 1, &[], &[]), b'y', "a learner goes at any time");
        assert_eq!(remove(1, 1, &[1], &[]), b's', "nobody stays");
        assert_eq!(remove(3, 3, &[1, 2, 3], &[(2, 6), (3, 6)]), b'y');
        assert_eq!(remove(3, 3, &[1, 3], &[(2, 6), (3, 6)]), b's', "one of two has started");
        assert_eq!(remove(3, 3, &[1, 2, 3], &[(2, 6)]), b'y', "it is down");
        assert_eq!(remove(3, 3, &[1, 2, 3], &[(2, 1), (3, 6)]), b'u');
        assert_eq!(remove(1, 3, &[1, 2, 3], &[(2, 6)]), b'u', "this member itself");
        assert_eq!(remove(1, 3, &[1, 2, 3], &[(2, 6), (3, 6)]), b'y');
        assert_eq!(remove(7, 3, &[1, 2, 3], &[(2, 6), (3, 6)]), b'y', "one that is not there is refused later");
    }

    #[test]
    fn a_learner_is_promoted_where_it_makes_a_quorum_with_those_that_have_started() {
        let promote = |voters, started: &[u64]| seen(voters, started, &[], |sight| sight.check_promote());
        assert_eq!([promote(1, &[1]), promote(1, &[]), promote(2, &[1]), promote(3, &[1])], *b"ysys");
        assert_eq!([promote(3, &[1, 2]), promote(4, &[1, 2]), promote(5, &[1, 2])], *b"yys");
    }
}
