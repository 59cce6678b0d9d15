//! Proposals: what may enter the log, and what is refused.
//!
//! Invariants: bounds are checked before raft-rs is asked; a proposal that was refused leaves nothing behind. All that
//! is proposed at once is one step of raft, so each follower gets it in one message.

use bytes::Bytes;
use engine::wal;
use raft::eraftpb;

use super::Driver;
use crate::{
    backlog::Backlog,
    entry::{ENTRY_OVERHEAD_BYTES, EntryKind, entry_cost_bytes, raft_entry},
    error::{Error, Refused},
    members::ConfChange,
};

/// Part of a log segment that clients' entries leave free while there is no next one.
const LOG_RESERVE: u64 = 16;
/// Part of a log segment below which what only grows the store is refused while there is no next one.
const LOG_TIGHT: u64 = 4;
/// A follower holds at most so many times what a leader takes between proposal and apply, and one message.
const UNAPPLIED_TIMES_MAX: u64 = 2;

impl Driver {
    /// Proposes requests, as `propose_entries` does.
    ///
    /// **Bounds**, **Errors**: as `propose_entries`.
    pub fn propose_all(&mut self, requests: impl IntoIterator<Item = Bytes>) -> Vec<Refused> {
        self.propose_entries(requests.into_iter().map(|data| (EntryKind::Normal, data)))
    }

    /// Proposes one request, as `propose_entries` does.
    ///
    /// **Errors**: as `propose_entries`.
    pub fn propose(&mut self, request: Bytes) -> Result<(), Error> {
        self.propose_one(EntryKind::Normal, request)
    }

    /// Proposes a configuration change, as `propose_entries` does.
    ///
    /// **Errors**: as `propose_entries`.
    pub fn propose_conf_change(&mut self, change: &ConfChange) -> Result<(), Error> {
        self.propose_one(EntryKind::ConfChange, change.encode())
    }

    /// Proposes requests and configuration changes, in their order, as one step of raft: each follower gets them in one
    /// message. The caller then calls `step`. The result names those that were refused, by ascending position; all
    /// others are accepted. Bounds are checked for each as if those before it had been proposed already.
    ///
    /// At most one configuration change may be between proposal and apply. A leader refuses another one with `NoLeader`
    /// meanwhile: it can be proposed when that one is applied. (etcd makes an empty entry of it.) A leader that is to
    /// be removed hands leadership on first (`leave`): its removal is refused likewise, as all else is. So is a change
    /// that a follower would pass on to a leader that has only begun.
    ///
    /// **Bounds**: refused beyond `backlog_entries_max` and `proposals_bytes_max`.
    /// **Errors**: `TooManyRequests`, `NoSpace`, `LogWaits`, `NoLeader`, `TooLarge` (more than the log can hold),
    /// `Stopped`. An accepted proposal may still be lost with its leader: then it is never handed out, and the
    /// proposer's timeout answers.
    pub fn propose_entries(&mut self, proposals: impl Iterator<Item = (EntryKind, Bytes)>) -> Vec<Refused> {
        let refused = self.propose_in_order(proposals);
        if let Some(transferee) = self.leave.take_due(&self.raw.raft) {
            self.transfer_leader(transferee);
        }
        refused
    }

    fn propose_one(&mut self, kind: EntryKind, data: Bytes) -> Result<(), Error> {
        match self.propose_entries(std::iter::once((kind, data))).pop() {
            None => Ok(()),
            Some(Refused { error, .. }) => Err(error),
        }
    }

    fn propose_in_order(&mut self, proposals: impl Iterator<Item = (EntryKind, Bytes)>) -> Vec<Refused> {
        let mut accepted = Vec::with_capacity(proposals.size_hint().0);
        let mut refused = Vec::new();
        let mut backlog = self.backlog();
        let unhanded_bytes = self.unhanded_bytes;
        let mut waits = false;
        let mut is_changing = self.is_leader() && self.raw.raft.has_pending_conf();
        for (position, (kind, data)) in proposals.enumerate() {
            // What comes behind one that waits does not overtake it.
            let checked = match waits {
                true => Err(Error::LogWaits),
                false if kind == EntryKind::ConfChange && is_changing => Err(Error::NoLeader),
                false if self.settled.comes_before(&self.raw.raft, kind) => Err(Error::NoLeader),
                false if self.leave.comes_before(&self.raw.raft, kind, &data) => Err(Error::NoLeader),
                false => self.check_proposal(&data, backlog),
            };
            waits |= matches!(checked, Err(Error::LogWaits));
            match checked {
                Ok(log_bytes) => {
                    is_changing |= kind == EntryKind::ConfChange && self.is_leader();
                    self.unhanded_bytes += log_bytes;
                    let entry = raft_entry(0, 0, kind, data);
                    backlog.bytes += unstable_cost_bytes(raft::util::entry_approximate_size(&entry), 1);
                    accepted.push(entry);
                }
                Err(error) => refused.push(Refused { position, error }),
            }
        }
        if accepted.is_empty() {
            return refused;
        }
        let count = accepted.len() + refused.len();
        let mut message = eraftpb::Message::default();
        message.set_msg_type(eraftpb::MessageType::MsgPropose);
        message.from = self.identity.member_id;
        message.set_entries(accepted.into());
        let reason = match self.raw.raft.step(message) {
            Ok(()) => return refused,
            // The leader was checked: what remains is raft-rs's own bound on uncommitted bytes.
            Err(raft::Error::ProposalDropped) => None,
            Err(source) => Some(source.to_string()),
        };
        self.unhanded_bytes = unhanded_bytes;
        let error = || match &reason {
            None => self.backlog().refusal(),
            Some(reason) => Error::Stopped { reason: reason.clone() },
        };
        let mut earlier = refused.into_iter().peekable();
        let all = (0..count).map(|position| {
            let known = earlier.next_if(|refused| refused.position == position);
            known.unwrap_or_else(|| Refused { position, error: error() })
        });
        let all = all.collect();
        if let Some(reason) = reason {
            self.stop(&reason);
        }
        all
    }

    /// May this be proposed, with `backlog` before it? The bytes that it will take in the log.
    fn check_proposal(&self, data: &[u8], backlog: Backlog) -> Result<u64, Error> {
        self.check_running()?;
        let bytes_max = wal::ENTRY_BYTES_MAX;
        if data.len() > bytes_max {
            return Err(Error::TooLarge { bytes: data.len(), bytes_max });
        }
        if !self.can_propose() {
            return Err(Error::NoLeader);
        }
        let (entries_max, bytes_max) = (self.options.backlog_entries_max, self.options.proposals_bytes_max);
        backlog.check(entry_cost_bytes(data), entries_max, bytes_max)?;
        let log_bytes = entry_cost_bytes(data) + wal::GROUP_OVERHEAD_BYTES as u64;
        self.check_log_room(log_bytes)?;
        Ok(log_bytes)
    }

    /// Whether there is a leader for proposals: one is known, and if this member leads, it is not handing over.
    fn can_propose(&self) -> bool {
        self.raw.raft.leader_id != raft::INVALID_ID && !self.is_handing_over()
    }

    fn check_log_room(&self, entry_bytes: u64) -> Result<(), Error> {
        let segment_bytes = u64::from(self.options.wal.segment_bytes);
        let wanted = self.unhanded_bytes + entry_bytes;
        match (self.wal.room_bytes(), self.wal.room_before_next_bytes()) {
            (Some(room_bytes), _) if wanted + segment_bytes / LOG_RESERVE > room_bytes => {
                Err(Error::NoSpace { room_bytes })
            }
            // The disk may turn out to be full. Then what is left must be there for what frees space.
            (None, Some(room_bytes)) if wanted + segment_bytes / LOG_TIGHT > room_bytes => Err(Error::LogWaits),
            _ => Ok(()),
        }
    }

    /// Set while the log's disk has no room for another segment: what is left of the last one. **Units**: bytes.
    pub fn log_room_bytes(&self) -> Option<u64> {
        self.wal.room_bytes()
    }

    /// Whether so little of the log's last segment is left that it is kept for what frees space.
    pub fn is_log_tight(&self) -> bool {
        let tight = u64::from(self.options.wal.segment_bytes) / LOG_TIGHT;
        self.wal.room_bytes().is_some_and(|room| room < self.unhanded_bytes + tight)
    }

    pub(super) fn backlog(&self) -> Backlog {
        let raft_log = &self.raw.raft.raft_log;
        let unstable = &raft_log.unstable;
        let unstable_bytes = unstable_cost_bytes(unstable.entries_size, unstable.entries.len());
        Backlog { entries: self.commit() - self.applied, bytes: self.raw.store().unapplied_bytes() + unstable_bytes }
    }

    /// Whether so much waits to be applied that a follower takes no more: its apply is slow, or its disk is full.
    /// Heartbeats go on. Of what is passed over it takes as much as a leader has before it sends a state instead.
    pub(super) fn is_over_full(&self) -> bool {
        let (proposals_bytes_max, catch_up_log_bytes) =
            (self.options.proposals_bytes_max, self.options.catch_up_log_bytes);
        let is_passed_over = self.raw.raft.raft_log.last_index() < self.passed_over;
        let kept_bytes = if is_passed_over { catch_up_log_bytes } else { 0 };
        self.backlog().bytes > proposals_bytes_max.max(kept_bytes).saturating_mul(UNAPPLIED_TIMES_MAX)
    }

    /// The state machine has a state up to the entry at `index`, and drops the entries up to there when it is handed
    /// them.
    pub fn pass_over(&mut self, index: u64) {
        self.passed_over = index;
    }

    /// The most that may wait between proposal and apply: entries, and their bytes.
    pub fn proposals_max(&self) -> (u64, u64) {
        (self.options.backlog_entries_max, self.options.proposals_bytes_max)
    }
}

/// What `count` entries cost while only raft-rs holds them; `size_bytes` is its own measure of them.
fn unstable_cost_bytes(size_bytes: usize, count: usize) -> u64 {
    size_bytes as u64 + count as u64 * ENTRY_OVERHEAD_BYTES
}
