//! Runs on: connection core.
//!
//! What the hashes of members say: who holds other data than the leader, or than the majority.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/corrupt.go` (`PeriodicCheck`, `checkPeerHashes`).

use std::collections::BTreeMap;

use crate::{
    hashes::CompactionHash,
    peer::hashes::{PeerHash, Told},
};

/// The leader's own hash at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) hash: u32,
    pub(super) compact_revision: i64,
    pub(super) revision: i64,
}

/// Which member is corrupt, if one is, and why it is thought to be; at most one at a time, as in etcd. `before` was
/// taken before the others were asked at its revision, `after` when the leader had learned that it led still.
pub(super) fn corrupt(id: u64, before: &Own, after: &Own, others: &[Told]) -> Option<(u64, &'static str)> {
    let is_same_moment = (before.revision, before.compact_revision) == (after.revision, after.compact_revision);
    if is_same_moment && before.hash != after.hash {
        return Some((id, "found hash mismatch"));
    }
    others.iter().find_map(|Told { id, hash }| {
        let PeerHash { hash, compact_revision, revision } = hash.as_ref().ok()?;
        let why = if *revision > after.revision {
            "revision from follower must be less than or equal to leader's"
        } else if *compact_revision > after.compact_revision {
            "compact revision from follower must be less than or equal to leader's"
        } else if *compact_revision == before.compact_revision && *hash != before.hash {
            "same compact revision then hashes must match"
        } else {
            return None;
        };
        Some((*id, why))
    })
}

/// What the hashes of one compaction say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All members have the same.
    Equal,
    /// Those who have said something have the same.
    Undecided,
    /// These members are corrupt; 0 stands for the cluster, of which nobody knows who is.
    Corrupt(Vec<u64>),
}

/// Judges the hash of a compaction that the leader `id` has, and those that the others have said.
pub(super) fn verdict(id: u64, own: &CompactionHash, others: &[Told]) -> Verdict {
    let mut ids_by_hash = BTreeMap::from([(own.hash, vec![id])]);
    let mut checked = 0;
    for Told { id, hash } in others {
        if let Ok(told) = hash
            && told.compact_revision == own.compact_revision
        {
            checked += 1;
            ids_by_hash.entry(told.hash).or_default().push(*id);
        }
    }
    if ids_by_hash.len() == 1 {
        return if checked == others.len() { Verdict::Equal } else { Verdict::Undecided };
    }
    let quorum = others.len().div_ceil(2) + 1;
    let Some(right) = ids_by_hash.iter().find(|(_, ids)| ids.len() >= quorum).map(|(hash, _)| *hash) else {
        return Verdict::Corrupt(vec![0]);
    };
    ids_by_hash.remove(&right);
    Verdict::Corrupt(ids_by_hash.into_values().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(id: u64, hash: u32, compact_revision: i64, revision: i64) -> Told {
        Told { id, hash: Ok(PeerHash { hash, compact_revision, revision }) }
    }

    fn silent(id: u64) -> Told {
        Told { id, hash: Err("it is gone".to_owned()) }
    }

    #[test]
    fn the_first_member_that_contradicts_the_leader_is_corrupt() {
        let before = Own { hash: 7, compact_revision: 3, revision: 9 };
        let after = Own { hash: 8, compact_revision: 5, revision: 12 };
        let other = Own { hash: 6, ..before };
        for (after, others, expected) in [
            (after, vec![told(2, 7, 3, 10), silent(3)], None),
            (after, vec![told(2, 6, 4, 10), told(3, 6, 2, 12)], None),
            (after, vec![told(2, 6, 3, 10), told(3, 5, 3, 10)], Some(2)),
            (after, vec![told(2, 7, 3, 13)], Some(2)),
            (after, vec![silent(2), told(3, 6, 6, 10)], Some(3)),
            (other, vec![told(2, 6, 3, 10)], Some(1)),
            (before, vec![told(2, 7, 3, 9)], None),
        ] {
            assert_eq!(corrupt(1, &before, &after, &others).map(|(id, _)| id), expected, "{others:?}");
        }
    }

    #[test]
    fn the_minority_is_corrupt_and_all_are_where_there_is_no_majority() {
        let own = CompactionHash { hash: 7, compact_revision: 3, revision: 9 };
        for (others, expected) in [
            (vec![], Verdict::Equal),
            (vec![told(2, 7, 3, 10), told(3, 7, 3, 9)], Verdict::Equal),
            (vec![told(2, 7, 3, 10), silent(3)], Verdict::Undecided),
            (vec![told(2, 7, 3, 10), told(3, 6, 2, 9)], Verdict::Undecided),
            (vec![told(2, 7, 3, 10), told(3, 6, 3, 9)], Verdict::Corrupt(vec![3])),
            (vec![told(2, 6, 3, 10), told(3, 6, 3, 9)], Verdict::Corrupt(vec![1])),
            (vec![told(2, 6, 3, 10), told(3, 5, 3, 9)], Verdict::Corrupt(vec![0])),
            (vec![told(2, 6, 3, 10)], Verdict::Corrupt(vec![0])),
            (vec![told(2, 6, 3, 10), silent(3)], Verdict::Corrupt(vec![0])),
        ] {
            assert_eq!(verdict(1, &own, &others), expected, "{others:?}");
        }
    }
}
