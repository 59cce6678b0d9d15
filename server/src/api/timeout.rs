//! Runs on: connection core.
//!
//! Why a proposal timed out, as far as this member knows: etcd tells three reasons apart.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/v3_server.go parseProposeCtxErr`, `server/etcdserver/util.go`.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use super::desk::Desk;
use crate::{error::Error, shared::Shared};

/// The part of a proposal's time that is not two election timeouts.
const BESIDE_ELECTIONS: Duration = Duration::from_secs(5);

/// The error of a proposal that began at `began` and whose time is over.
pub(super) fn told_apart(desk: &Desk, began: Duration) -> Error {
    let Shared { raft, limits, identity, cluster, links, .. } = &*desk.shared;
    let elected_at = Duration::from_nanos(raft.elected_at.load(Ordering::Acquire));
    // The election took at most two timeouts. What began in that time may have been lost with the leader before.
    let elections = limits.request_timeout.saturating_sub(BESIDE_ELECTIONS);
    if began < elected_at && began > elected_at.saturating_sub(elections) {
        return Error::TimeoutLeaderFailed;
    }
    let members = cluster.load().members.iter().map(|member| member.id).collect::<Vec<_>>();
    let leader = raft.leader.load(Ordering::Acquire);
    if is_cut_off(began, (identity.member_id, leader), &members, &links.load()) {
        return Error::TimeoutConnectionLost;
    }
    Error::Timeout
}

/// Whether a member has not been connected since `began` with whom it takes for its agreement: a quorum of all members
/// if it leads itself, and else the leader.
fn is_cut_off(began: Duration, (own, leader): (u64, u64), members: &[u64], links: &BTreeMap<u64, Duration>) -> bool {
    let is_connected = |id: u64| links.get(&id).is_some_and(|since| *since < began);
    match leader {
        0 => false,
        leader if leader != own => !is_connected(leader),
        _ => 1 + members.iter().filter(|id| **id != own && is_connected(**id)).count() < members.len() / 2 + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leader_needs_a_quorum_and_a_follower_its_leader() {
        let second = Duration::from_secs;
        let links = BTreeMap::from([(2, second(5)), (3, second(9))]);
        // Who leads, of how many members, and whether member 1 is cut off at second 7 and at second 10.
        for (leader, members, expected) in [
            (0, 3, [false, false]),
            (1, 1, [false, false]),
            (1, 3, [false, false]),
            (1, 5, [true, false]),
            (1, 7, [true, true]),
            (2, 3, [false, false]),
            (3, 3, [true, false]),
            (4, 5, [true, true]),
        ] {
            let members: Vec<u64> = (1..=members).collect();
            let is_cut_off = [7, 10].map(|at| is_cut_off(second(at), (1, leader), &members, &links));
            assert_eq!(is_cut_off, expected, "member {leader} of {} leads", members.len());
        }
    }
}
