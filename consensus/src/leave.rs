//! A leader that is to be removed hands leadership on first.
//!
//! raft-rs's leader cannot go on once it is no member any more. If it stepped down at that moment, the others might not
//! know yet that its removal is committed; of two voters, the other one could then never find out. So a leader that is
//! asked to propose its own removal transfers leadership, and the removal is proposed to its successor. If nobody takes
//! leadership over in time, the leader proposes its own removal after all, and steps down when it is applied.
//!
//! A follower passes configuration changes on only to a leader that has surely applied what it found in its log: a new
//! one makes empty entries of those that come before (raft-rs and etcd's raft alike), and nobody would answer whoever
//! asked. The successor of a leader that is to be removed would be asked at once, and always too early.
//!
//! Invariants:
//! - In each term, leadership is handed on for this reason at most once (`tried_in`).

use std::cmp::Reverse;

use bytes::Bytes;
use raft::{Raft, StateRole};

use crate::{
    entry::EntryKind,
    log::Log,
    members::{ConfChange, ConfChangeKind},
};

/// See the head of this file.
#[derive(Debug, Default)]
pub(crate) struct Leave {
    /// Leadership is to be handed on.
    is_due: bool,
    tried_in: u64,
}

/// Ticks behind the leader's first commit in its term, as this member hears of it, until configuration changes go to
/// the leader. One whole tick is enough for the leader to apply what it has told others to be committed.
const SETTLED_TICKS: u32 = 2;

/// How long this member has known that the leader of its term commits.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    term: u64,
    ticks: u32,
}

impl Settled {
    pub(crate) fn pass_tick(&mut self, raft: &Raft<Log>) {
        if self.term != raft.term || !raft.commit_to_current_term() {
            (self.term, self.ticks) = (raft.term, 0);
        } else {
            self.ticks = self.ticks.saturating_add(1);
        }
    }

    /// Whether a configuration change is kept here for now, since its leader would make nothing of it.
    pub(crate) fn comes_before(&self, raft: &Raft<Log>, kind: EntryKind) -> bool {
        let is_settled = self.term == raft.term && self.ticks >= SETTLED_TICKS;
        kind == EntryKind::ConfChange && raft.state != StateRole::Leader && !is_settled
    }
}

impl Leave {
    /// Whether leadership is handed on before this entry is proposed.
    pub(crate) fn comes_before(&mut self, raft: &Raft<Log>, kind: EntryKind, data: &Bytes) -> bool {
        let is_first = self.tried_in < raft.term && raft.lead_transferee.is_none();
        let comes_before = is_first && removes(raft.id, kind, data) && transferee(raft).is_some();
        self.is_due |= comes_before;
        comes_before
    }

    /// To whom leadership is to be handed on now.
    pub(crate) fn take_due(&mut self, raft: &Raft<Log>) -> Option<u64> {
        let is_due = std::mem::take(&mut self.is_due);
        let transferee = transferee(raft).filter(|_| is_due)?;
        self.tried_in = raft.term;
        Some(transferee)
    }
}

/// The voter that can take leadership over soonest. None if this member does not lead, or is the only voter.
pub(crate) fn transferee(raft: &Raft<Log>) -> Option<u64> {
    transferees(raft).first().copied()
}

/// The other voters, beginning with the one that can take leadership over soonest: those that were heard of lately come
/// first, and among them the one with the longest log. None if this member does not lead.
pub(crate) fn transferees(raft: &Raft<Log>) -> Vec<u64> {
    if raft.state != StateRole::Leader {
        return Vec::new();
    }
    let members = raft.prs().iter().map(|(id, progress)| (*id, progress));
    let voters = members.filter(|(id, _)| *id != raft.id && raft.prs().conf().voters().contains(*id));
    let mut known: Vec<_> =
        voters.map(|(id, progress)| (progress.recent_active, progress.matched, Reverse(id))).collect();
    known.sort_unstable();
    known.into_iter().rev().map(|(_, _, Reverse(id))| id).collect()
}

fn removes(member_id: u64, kind: EntryKind, data: &Bytes) -> bool {
    kind == EntryKind::ConfChange
        && ConfChange::decode(data)
            .is_ok_and(|change| change.kind == ConfChangeKind::RemoveNode && change.member_id == member_id)
}
