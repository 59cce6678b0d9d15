//! A log that goes on as that of the only voter, because an operator says that the others are gone for good.
//!
//! What is not known to be committed is cut off. Behind the rest come configuration changes that remove everybody else,
//! learners too, and they count as committed. Apply takes them as any others, so members, their former ids and the
//! configuration follow.
//!
//! Invariants:
//! - The log changes in one step (`wal::take_place`): a crash leaves the one from before, or the new one.
//! - What a sole voter holds durably is committed. A member that is one already keeps all of it, however often it is
//!   forced.
//!
//! **Source** etcd v3.7.1 `server/etcdserver/bootstrap.go bootstrapWALFromSnapshot`, `server/storage/util.go`. Unlike
//! etcd, which stops in the midst of it, a learner is refused, and a member that was removed.

use std::{collections::BTreeMap, path::Path};

use engine::{
    disk::Disk,
    wal::{self, HardState, Wal},
};

use crate::{
    entry::{EntryId, EntryKind},
    error::Error,
    log::Log,
    members::{ConfChange, ConfChangeKind, Member},
    recovery::{self, adopt_log},
    start::{Options, Start},
};

/// The peer URL of a member that its log does not know. **Source** etcd.
const DEFAULT_PEER_URL: &str = "http://localhost:2380";

/// What was done to a log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Forced {
    /// What was known to be committed before.
    pub commit_before: u64,
    /// What is committed now.
    pub commit: u64,
    /// Entries that were cut off.
    pub entries_cut: u64,
    /// Members that are removed, ascending.
    pub removed: Vec<u64>,
}

/// Makes the log in `dir` that of a sole voter, the member `own`, whose state `start` describes. `disk` must not be
/// used for the log afterwards. Blocks. Returns `None` if there is nothing to do: the member is that already, or its
/// log has not begun.
///
/// **Errors**: `NotForced`; those of `Driver::open`; the log is damaged. The log is then as it was.
pub fn force_new_cluster(
    disk: &mut dyn Disk,
    dir: &Path,
    own: u64,
    options: &Options,
    start: &Start,
) -> Result<Option<Forced>, Error> {
    let known = wal::Known { applied: start.applied.index, trimmable: start.trimmable };
    let (wal, recovered) = Wal::open(disk, dir, options.wal, known)?;
    let wal::Recovered { mut mark, mut entries, mut hard_state, .. } = recovered;
    if recovery::is_fresh(mark, &entries, hard_state, start) {
        return Ok(None);
    }
    if recovery::is_of_another(&wal, mark, hard_state, start) {
        (mark, entries) = ((start.applied.index, start.applied.term), Vec::new());
        hard_state.commit = hard_state.commit.max(mark.0);
    }
    drop(wal);
    let applied = start.applied.index;
    let mut log = Log::new(mark, applied, 0).ok_or_else(|| Error::LogAheadOfState {
        dir: dir.to_path_buf(),
        mark: mark.0,
        applied,
    })?;
    let hard_state = recovery::load(dir, &mut log, mark, entries.clone(), hard_state, start)?;
    let (commit, members) = committed(own, &entries, hard_state.commit, start)?;
    if members.get(&own) == Some(&true) {
        return Err(Error::NotForced { what: "it is a learner, and only a voter can be a cluster by itself" });
    }
    let changes = changes(own, &members);
    if changes.is_empty() {
        return Ok(None);
    }
    let count = entries.len();
    entries.retain(|entry| entry.index <= commit);
    let entries_cut = (count - entries.len()) as u64;
    let term = hard_state.term.max(1);
    entries.extend(changes.iter().zip(commit + 1..).map(|(change, index)| wal::Entry {
        index,
        term,
        kind: EntryKind::ConfChange as u8,
        data: change.encode(),
    }));
    let last = commit + changes.len() as u64;
    let after = EntryId { index: mark.0, term: mark.1 };
    let forced = HardState { term, vote: hard_state.vote, commit: last, is_cut: false, concerned: 0 };
    let instead = wal::begin_instead(disk, dir)?;
    adopt_log(disk, &instead, options.wal, after, &entries, forced)?;
    wal::take_place(disk, dir)?;
    let removed = changes.iter().filter(|change| change.kind == ConfChangeKind::RemoveNode);
    let removed = removed.map(|change| change.member_id).collect();
    Ok(Some(Forced { commit_before: hard_state.commit, commit: last, entries_cut, removed }))
}

/// How far the log is committed, and who is a member there, each with whether it is a learner.
fn committed(
    own: u64,
    entries: &[wal::Entry],
    mut commit: u64,
    start: &Start,
) -> Result<(u64, BTreeMap<u64, bool>), Error> {
    let known = &start.conf_state;
    let mut members: BTreeMap<u64, bool> = known.voters.iter().map(|id| (*id, false)).collect();
    members.extend(known.learners.iter().map(|id| (*id, true)));
    for entry in entries.iter().filter(|entry| entry.index > start.applied.index) {
        let mut voters = members.iter().filter(|(_, is_learner)| !**is_learner).map(|(id, _)| *id);
        let is_alone = voters.next() == Some(own) && voters.next().is_none();
        if entry.index > commit && !is_alone {
            break;
        }
        commit = commit.max(entry.index);
        if entry.kind != EntryKind::ConfChange as u8 {
            continue;
        }
        let change = ConfChange::decode(&entry.data)?;
        match change.kind {
            // Changes of no member were refused before they were proposed.
            _ if change.member_id == 0 => {}
            ConfChangeKind::AddNode => drop(members.insert(change.member_id, false)),
            ConfChangeKind::AddLearnerNode => drop(members.insert(change.member_id, true)),
            ConfChangeKind::RemoveNode if change.member_id == own => {
                return Err(Error::NotForced { what: "it was removed from its cluster" });
            }
            ConfChangeKind::RemoveNode => drop(members.remove(&change.member_id)),
            ConfChangeKind::UpdateNode => {}
        }
    }
    Ok((commit, members))
}

/// The changes that leave the member `own` alone of `members`.
fn changes(own: u64, members: &BTreeMap<u64, bool>) -> Vec<ConfChange> {
    let mut changes = Vec::new();
    if !members.contains_key(&own) {
        // It comes first: without any voter there is no configuration.
        let peer_urls = vec![DEFAULT_PEER_URL.to_owned()];
        changes.push(ConfChange::bootstrap(&Member { id: own, peer_urls, ..Member::default() }));
    }
    let removal =
        |id: &u64| ConfChange { id: 0, kind: ConfChangeKind::RemoveNode, member_id: *id, context: bytes::Bytes::new() };
    changes.extend(members.keys().filter(|id| **id != own).map(removal));
    changes
}
