//! From a log directory and a stored state to the state raft starts with.
//!
//! Owns the checks that both belong together, and the first entries of a new cluster's log. Runs once, at start, and
//! blocks.
//!
//! What is restored: term = the larger of the hard state's and the last entry's (a torn group may end between an entry
//! and its hard state); commit = the larger of the hard state's and the applied index, because commit-only hard states
//! are not written at once. What is durable beyond commit is decided by the next leader; a single voter commits all of
//! it.
//!
//! A log that is damaged, or ends before what the state holds, starts again behind the state, as one that was cut
//! (`cut`), if there are other members to make up for it. Alone, the member could not know what it has acknowledged: it
//! is refused, and nothing is changed.
//!
//! A configuration change with another one behind it is committed, whatever the hard state says: a leader proposes none
//! before it has applied all that are in its log. A member that did not know this after a restart could lead with a
//! configuration that lacks two changes, and two majorities would share no member.

use std::path::{Path, PathBuf};

use engine::{
    disk::Disk,
    wal::{self, HardState, Wal},
};
use raft::eraftpb;

use crate::{
    entry::{EntryId, EntryKind},
    error::Error,
    log::Log,
    start::{Options, Start},
};

/// What a driver starts from.
pub(crate) struct Restored {
    pub(crate) wal: Wal,
    pub(crate) log: Log,
    pub(crate) hard_state: HardState,
    /// Last number handed to the WAL.
    pub(crate) ticket: u64,
    pub(crate) truncated_tail: Option<(PathBuf, u64)>,
    /// Why the log was put aside.
    pub(crate) damage: Option<engine::Error>,
}

pub(crate) fn restore(disk: &mut dyn Disk, dir: &Path, options: &Options, start: &Start) -> Result<Restored, Error> {
    let known = wal::Known { applied: start.applied.index, trimmable: start.trimmable };
    let ((mut wal, recovered), damage) = open(disk, dir, options.wal, (known, start))?;
    let wal::Recovered { mark, mut entries, mut hard_state, truncated_tail, .. } = recovered;
    let mut ticket = 0;
    if is_fresh(mark, &entries, hard_state, start) {
        ticket = 1;
        let HardState { is_cut, concerned, .. } = hard_state;
        (entries, hard_state) = first_entries(start);
        (hard_state.is_cut, hard_state.concerned) = (is_cut, concerned);
        wal.append(&entries, Some(hard_state), ticket)?;
        wait_durable(&mut wal, disk, ticket)?;
    }
    let mut mark = mark;
    let EntryId { index, term } = start.applied;
    let is_of_another = is_of_another(&wal, mark, hard_state, start);
    // The log has lost what the state holds, and perhaps more. The other members have the rest.
    let is_behind = !is_of_another && start.has_peers() && mark.0 + (entries.len() as u64) < index;
    let is_lost = start.has_run && mark == (0, 0) && entries.is_empty() && hard_state == HardState::default();
    if (is_behind || is_lost) && !hard_state.is_cut {
        // This is durable before the log starts again, behind which nothing tells that it has lost anything.
        ticket = 1;
        (hard_state.is_cut, hard_state.concerned) = (true, u64::MAX);
        wal.append(&[], Some(hard_state), ticket)?;
        wait_durable(&mut wal, disk, ticket)?;
    }
    if is_of_another || is_behind {
        ticket += 1;
        (mark, entries) = ((index, term), Vec::new());
        wal.restart_after(index, term)?;
        wal.append(&[], None, ticket)?;
        wait_durable(&mut wal, disk, ticket)?;
        hard_state.commit = hard_state.commit.max(index);
    }
    let mut log = Log::new(mark, start.applied.index, options.tail_bytes_max)
        .ok_or_else(|| Error::LogAheadOfState { dir: dir.to_path_buf(), mark: mark.0, applied: start.applied.index })?;
    let hard_state = load(dir, &mut log, mark, entries, hard_state, start)?;
    let HardState { term, vote, commit, .. } = hard_state;
    let raft_state = eraftpb::HardState { term, vote, commit, ..eraftpb::HardState::default() };
    log.set_initial_state(raft_state, start.conf_state.to_raft());
    Ok(Restored { wal, log, hard_state, ticket, truncated_tail, damage })
}

/// Whether the log is the one from before the state: it was to be restarted behind that, and nothing that was promised
/// is missing. Its hard state knew the state's term before that was installed; a new log's knows none.
pub(crate) fn is_of_another(wal: &Wal, mark: (u64, u64), hard_state: HardState, start: &Start) -> bool {
    let EntryId { index, term } = start.applied;
    let is_from_before = start.is_installed && hard_state.term >= term;
    is_from_before && mark.0 < index && wal.term(index) != Some(term)
}

/// Opens the log. If it is damaged, and there are other members to make up for it, it is put aside, and a new one
/// opened, which is behind the state.
fn open(
    disk: &mut dyn Disk,
    dir: &Path,
    options: wal::Options,
    (known, start): (wal::Known, &Start),
) -> Result<((Wal, wal::Recovered), Option<engine::Error>), Error> {
    match Wal::open(disk, dir, options, known) {
        Ok(opened) => Ok((opened, None)),
        Err(damage @ engine::Error::Corrupt { .. }) if start.has_peers() => {
            wal::set_aside(disk, dir)?;
            Ok((Wal::open(disk, dir, options, known)?, Some(damage)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Writes a new log in `dir` that goes on from another program's: it starts after `after`, and holds `entries`, which
/// follow there, and `hard_state`. Blocks until all of it is durable.
///
/// **Errors**: the disk's; an entry that is too large for the log.
///
/// **Panics** if there is a log in `dir` already, or if the arguments contradict each other.
pub fn adopt_log(
    disk: &mut dyn Disk,
    dir: &Path,
    options: wal::Options,
    after: EntryId,
    entries: &[wal::Entry],
    hard_state: HardState,
) -> Result<(), Error> {
    const ENTRIES_AT_ONCE: usize = 1024;
    let (mut wal, recovered) = Wal::open(disk, dir, options, wal::Known::default())?;
    let is_new =
        recovered.mark == (0, 0) && recovered.entries.is_empty() && recovered.hard_state == HardState::default();
    assert!(is_new, "a log is adopted once");
    assert!(hard_state.commit >= after.index && hard_state.term >= after.term, "what was applied was committed");
    if after.index > 0 {
        wal.restart_after(after.index, after.term)?;
    }
    let mut ticket = 0;
    for entries in entries.chunks(ENTRIES_AT_ONCE) {
        ticket += 1;
        wal.append(entries, None, ticket)?;
        wait_durable(&mut wal, disk, ticket)?;
    }
    wal.append(&[], Some(hard_state), ticket + 1)?;
    wait_durable(&mut wal, disk, ticket + 1)
}

/// Nothing was ever acknowledged by this log: empty, or a torn rest of the first group itself.
pub(crate) fn is_fresh(mark: (u64, u64), entries: &[wal::Entry], hard_state: HardState, start: &Start) -> bool {
    let first = start.bootstrap.len() as u64;
    // The hard state lies behind the entries it commits: without it even all of them are a torn group.
    let is_new = HardState { is_cut: false, concerned: 0, ..hard_state } == HardState::default();
    let is_torn = is_new && entries.len() as u64 <= first;
    mark == (0, 0)
        && start.applied.index == 0
        && first > 0
        && is_torn
        && entries.iter().all(|entry| entry.term == 1 && entry.kind == EntryKind::ConfChange as u8)
}

/// etcd's first entries: one AddNode per member, term 1, committed.
fn first_entries(start: &Start) -> (Vec<wal::Entry>, HardState) {
    assert!(start.bootstrap.is_sorted_by(|a, b| a.member_id < b.member_id), "bootstrap members ascend by id");
    let entries: Vec<wal::Entry> = start
        .bootstrap
        .iter()
        .zip(1..)
        .map(|(change, index)| wal::Entry { index, term: 1, kind: EntryKind::ConfChange as u8, data: change.encode() })
        .collect();
    let commit = entries.len() as u64;
    (entries, HardState { term: 1, vote: 0, commit, is_cut: false, concerned: 0 })
}

fn wait_durable(wal: &mut Wal, disk: &mut dyn Disk, ticket: u64) -> Result<(), Error> {
    let mut completions = Vec::new();
    wal.step(disk)?;
    while wal.durable() < ticket {
        disk.wait()?;
        disk.completions(&mut completions);
        for completion in completions.drain(..) {
            wal.on_completion(completion, disk)?;
        }
        wal.step(disk)?;
    }
    Ok(())
}

pub(crate) fn load(
    dir: &Path,
    log: &mut Log,
    mark: (u64, u64),
    entries: Vec<wal::Entry>,
    recovered: HardState,
    start: &Start,
) -> Result<HardState, Error> {
    let broken = |index, what| Error::LogBroken { dir: dir.to_path_buf(), index, what };
    let (mut last_index, mut last_term) = mark;
    let (mut last_change, mut settled) = (0, 0);
    for entry in entries {
        if entry.index != last_index + 1 {
            return Err(broken(entry.index, "its index does not follow"));
        }
        if entry.term < last_term {
            return Err(broken(entry.index, "its term is smaller than its predecessor's"));
        }
        let Some(kind) = EntryKind::from_number(u64::from(entry.kind)) else {
            return Err(broken(entry.index, "its kind is unknown"));
        };
        (last_index, last_term) = (entry.index, entry.term);
        if kind == EntryKind::ConfChange {
            settled = std::mem::replace(&mut last_change, entry.index);
        }
        if entry.index <= start.applied.index {
            log.pass(entry.index, entry.term);
        } else {
            log.restore(entry.index, entry.term, kind, entry.data);
        }
    }
    if recovered.commit > last_index {
        // The log writes a hard state behind the entries it speaks of.
        return Err(broken(recovered.commit, "it is committed, and missing"));
    }
    let applied = start.applied;
    if last_index < applied.index {
        return Err(Error::LogBehindState { dir: dir.to_path_buf(), last_index, applied: applied.index });
    }
    match log.term_of(applied.index) {
        Some(log_term) if log_term != applied.term => Err(Error::TermMismatch {
            dir: dir.to_path_buf(),
            index: applied.index,
            log_term,
            state_term: applied.term,
        }),
        _ => {
            // A larger term in the entries than in the hard state: no vote was cast in it, or it would have been
            // durable before it was sent.
            let newer = last_term > recovered.term;
            let hard_state = HardState {
                term: recovered.term.max(last_term),
                vote: if newer { 0 } else { recovered.vote },
                commit: recovered.commit.max(applied.index).max(settled),
                is_cut: recovered.is_cut,
                concerned: recovered.concerned,
            };
            assert!(applied.index <= hard_state.commit && hard_state.commit <= last_index);
            assert!(applied.term <= hard_state.term);
            Ok(hard_state)
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::members::{ConfChange, Member};

    type Case = (&'static [u64], HardState, (u64, u64), Option<HardState>);

    #[test]
    fn log_and_state_are_joined_or_refused() {
        let hard = |term, vote, commit| HardState { term, vote, commit, is_cut: false, concerned: 0 };
        // Log behind mark (4, 2) with entries 5.. of these terms; hard state; applied index and term; restored hard
        // state.
        let cases: [Case; 9] = [
            (&[2, 2, 3], hard(3, 7, 6), (5, 2), Some(hard(3, 7, 6))),
            // Commit-only hard states lag behind what was applied.
            (&[2, 2, 3], hard(3, 7, 5), (7, 3), Some(hard(3, 7, 7))),
            // Cut between an entry and its hard state: its term is known, a vote in it is not.
            (&[2, 2, 3], hard(2, 7, 5), (5, 2), Some(hard(3, 0, 5))),
            (&[], hard(2, 0, 4), (4, 2), Some(hard(2, 0, 4))),
            (&[2, 2, 3], hard(3, 7, 8), (5, 2), None), // a committed entry is missing
            (&[2, 2, 3], hard(3, 7, 7), (8, 3), None), // the state is newer
            (&[2, 2, 3], hard(3, 7, 7), (7, 2), None), // the state is another log's
            (&[2, 1], hard(3, 7, 5), (5, 2), None),    // terms decrease
            (&[], hard(2, 0, 4), (4, 1), None),        // another log's, at the mark itself
        ];
        for (number, (terms, recovered, (index, term), expected)) in cases.into_iter().enumerate() {
            let start = Start { applied: EntryId { index, term }, ..Start::default() };
            let mut log = Log::new((4, 2), index, 0).unwrap();
            let entries = terms.iter().zip(5..).map(|(&term, index)| {
                let data = Bytes::from_static(b"x");
                wal::Entry { index, term, kind: 0, data }
            });
            let loaded = load(Path::new("wal"), &mut log, (4, 2), entries.collect(), recovered, &start);
            assert_eq!(loaded.ok(), expected, "case {number}");
        }
    }

    #[test]
    fn a_configuration_change_with_another_one_behind_it_is_committed() {
        let hard_state = HardState { term: 2, vote: 1, commit: 4, is_cut: false, concerned: 0 };
        for (kinds, commit) in [([0, 0, 0, 0], 4), ([0, 1, 0, 0], 4), ([1, 0, 1, 0], 5), ([1, 1, 0, 1], 6)] {
            let entry = |(kind, index)| wal::Entry { index, term: 2, kind, data: Bytes::from_static(b"x") };
            let entries = kinds.into_iter().zip(5..).map(entry).collect();
            let start = Start { applied: EntryId { index: 4, term: 2 }, ..Start::default() };
            let mut log = Log::new((4, 2), 4, 0).unwrap();
            let loaded = load(Path::new("wal"), &mut log, (4, 2), entries, hard_state, &start).unwrap();
            assert_eq!(loaded, HardState { commit, ..hard_state }, "{kinds:?}");
        }
    }

    #[test]
    fn a_torn_first_group_is_written_again_and_a_whole_one_is_not() {
        let members = [1, 2].map(|id| Member { id, ..Member::default() });
        let start = Start { bootstrap: members.iter().map(ConfChange::bootstrap).collect(), ..Start::default() };
        let (entries, hard_state) = first_entries(&start);
        assert_eq!(entries.len(), 2);
        for torn in 0..=2 {
            assert!(is_fresh((0, 0), &entries[..torn], HardState::default(), &start), "{torn} entries");
        }
        assert!(!is_fresh((0, 0), &entries, hard_state, &start));
        assert!(!is_fresh((0, 0), &[], HardState::default(), &Start::default()), "a member that joins");
        let applied = Start { applied: EntryId { index: 2, term: 1 }, ..start };
        assert!(!is_fresh((0, 0), &[], HardState::default(), &applied), "a lost log is not a new one");
    }
}
