//! Runs on: raft core.
//!
//! Proposals in, one durable order of entries out.
//!
//! A turn: take in finished writes, propose what came, let raft and the log move. Committed entries are then handed to
//! apply, with the proposals that wait for them; what apply reports is told to raft in its turn.
//!
//! Invariants:
//! - Entries are handed out in log order, each once, when they are durable on a quorum. What is handed out and not yet
//!   applied is bounded (`unfinished_bytes`), so that apply may be as slow as it likes.
//! - A proposal is either in `proposals` (raft was not asked yet), in `waiters` (accepted), or gone: refused with an
//!   answer, or handed to apply.
//! - A configuration change that apply has applied reaches raft before raft learns that its entry was applied.
//! - A full disk is not the end: proposals that do not fit are refused before they reach the log ([`Raft::receive`]),
//!   and what is committed is applied. When the log's disk is full each proposal is held against what is left with all
//!   before it counted.
//! - `log_bytes` is what was written of the log in all; it never decreases.
//!
//! A plain state machine: time comes in with each call, the log's disk is the only thing it drives. It does not know
//! threads, sockets, the runtime, or what an entry means; `cores` moves its inputs and outputs.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus::{Committed, Driver, EntryId, EntryKind, Refused};
use engine::disk::{Completion, Disk, Owner};
use proto::internal;

use super::{message::ToRaft, waiters::Waiters};
use crate::{
    apply::{
        fatal::Fatal,
        message::{Answer, Answers, Entry, Handed, Report, Space, Standing},
        proposal::Proposal,
    },
    error::Error,
    metrics::counters::CommitCounters,
    quota::{Asking, Purpose},
    shared::Shared,
};

/// What is to be proposed in this turn.
struct Waiting {
    entry: Bytes,
    /// Whose it is; `None` for the server's own.
    proposal: Option<Box<Proposal>>,
}

/// Entries that were handed to apply together.
#[derive(Clone, Copy, Debug)]
struct Lot {
    last: u64,
    bytes: u64,
    proposals: usize,
}

/// See the head of this file.
pub struct Raft {
    shared: Arc<Shared>,
    counters: Arc<CommitCounters>,
    driver: Driver,
    /// **Units** bytes of entries handed out at once.
    batch_bytes_max: u64,
    proposals: Vec<Waiting>,
    waiters: Waiters,
    answers: Answers,
    completions: Vec<Completion>,
    /// Handed out and not finished, in order.
    lots: VecDeque<Lot>,
    unfinished_bytes: u64,
    unfinished_proposals: usize,
    /// Last index handed out.
    handed: u64,
    /// What apply was told last of where raft stands.
    told: Option<Standing>,
    /// How space is felt by apply.
    space: Space,
    /// How often this member's alarm is proposed.
    asking: Asking,
    log_bytes: u64,
    /// The log's length when it was looked at last. **Units** bytes.
    log_len: u64,
}

impl Raft {
    /// Raft over a recovered log; at most twice `batch_bytes_max` bytes of entries are with apply at once.
    pub fn new(shared: Arc<Shared>, counters: Arc<CommitCounters>, driver: Driver, batch_bytes_max: u64) -> Self {
        let status = driver.status();
        let log_len = driver.log_bytes();
        let mut raft = Self {
            answers: no_answers(shared.connections.cores()),
            shared,
            counters,
            driver,
            batch_bytes_max,
            proposals: Vec::new(),
            waiters: Waiters::default(),
            completions: Vec::new(),
            lots: VecDeque::new(),
            unfinished_bytes: 0,
            unfinished_proposals: 0,
            handed: status.applied,
            told: None,
            space: Space::default(),
            asking: Asking::default(),
            log_bytes: log_len,
            log_len,
        };
        raft.publish_status();
        raft
    }

    /// Takes one message.
    pub fn receive(&mut self, message: ToRaft, now: Duration) {
        if self.driver.log_room_bytes().is_some() {
            // Each is held against what is left with those before it counted.
            self.propose_waiting(now);
        }
        match message {
            ToRaft::Propose(mut proposal) => {
                proposal.stamps.proposed = now;
                if let Some(error) = self.refusal_for_space(proposal.purpose, now) {
                    return self.refuse(proposal, error);
                }
                self.proposals.push(Waiting { entry: proposal.entry.clone(), proposal: Some(proposal) });
            }
            ToRaft::ProposeOwn { entry, purpose } => self.propose_own(entry, purpose, now),
        }
    }

    fn propose_own(&mut self, entry: Bytes, purpose: Purpose, now: Duration) {
        if purpose != Purpose::Alarm || self.asking.ask(now) {
            self.proposals.push(Waiting { entry, proposal: None });
        }
    }

    /// A heartbeat interval has passed.
    pub fn tick(&mut self, now: Duration) {
        self.driver.tick();
        self.waiters.forget_lost(now, 2 * self.shared.limits.request_timeout);
    }

    /// One turn; see the head of this file.
    ///
    /// **Errors** the member must stop.
    pub fn turn(&mut self, disk: &mut dyn Disk, now: Duration) -> Result<(), Fatal> {
        let mut completions = std::mem::take(&mut self.completions);
        disk.completions(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(Owner::of(completion.token), Owner::Wal, "raft's disk serves the log alone");
            self.driver.on_completion(completion, disk)?;
        }
        self.completions = completions;
        self.settle(disk, now)
    }

    /// Proposes what came and lets raft and the log move.
    ///
    /// **Errors** the member must stop.
    pub fn settle(&mut self, disk: &mut dyn Disk, now: Duration) -> Result<(), Fatal> {
        self.propose_waiting(now);
        self.driver.step(disk)?;
        disk.kick()?;
        self.note_log();
        self.publish_status();
        // Before the answers go: who is refused for space finds in the status why.
        self.publish_disk_full();
        Ok(())
    }

    /// What apply is to be handed, if there is anything new.
    pub fn take_handed(&mut self, now: Duration) -> Option<Handed> {
        let status = self.driver.status();
        let standing = Standing { leads: status.is_leader, read_floor: status.read_floor };
        let entries = self.take_committed(now);
        if entries.is_empty() && self.told == Some(standing) {
            return None;
        }
        self.told = Some(standing);
        Some(Handed { entries, standing, log_bytes: self.log_bytes })
    }

    /// Whether more could be handed to apply at once.
    pub fn has_more(&self) -> bool {
        self.unfinished_bytes < 2 * self.batch_bytes_max && self.driver.status().commit > self.handed
    }

    /// Takes what apply reports. The caller then has the log settle.
    ///
    /// **Errors** the member must stop.
    pub fn report(&mut self, report: Report, now: Duration) -> Result<(), Fatal> {
        for (change, state) in report.conf_changes {
            let reached = self.driver.apply_conf_change(&change)?;
            assert_eq!(reached, state, "raft and apply make the same of {change:?}");
        }
        self.driver.applied(report.applied.index);
        while let Some(lot) = self.lots.pop_front_if(|lot| lot.last <= report.applied.index) {
            self.unfinished_bytes -= lot.bytes;
            self.unfinished_proposals -= lot.proposals;
        }
        if let Some(place) = report.trim {
            self.trim(place)?;
        }
        self.space = report.space;
        if report.has_alarm_come {
            self.asking.heard();
        }
        for own in report.own {
            self.propose_own(own.entry, own.purpose, now);
        }
        Ok(())
    }

    /// Refusals since the last call, by core; empty when there are none.
    pub fn take_answers(&mut self) -> Answers {
        if self.answers.iter().all(Vec::is_empty) {
            return Answers::new();
        }
        let cores = self.answers.len();
        std::mem::replace(&mut self.answers, no_answers(cores))
    }

    /// Requests of the log that are not applied yet, with their indexes; behind a start, what will be applied again.
    pub fn unapplied(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.driver.unapplied()
    }

    fn refuse(&mut self, mut proposal: Box<Proposal>, error: Error) {
        proposal.result = Err(error);
        self.answers[proposal.reply.core].push((proposal.reply.slot, Answer::Applied(proposal)));
    }

    /// Asks raft to take what waits.
    fn propose_waiting(&mut self, now: Duration) {
        if self.proposals.is_empty() {
            return;
        }
        let mut waiting = std::mem::take(&mut self.proposals);
        let refused = self.driver.propose_all(waiting.iter().map(|waiting| waiting.entry.clone()));
        let mut refused = refused.into_iter().peekable();
        for (position, Waiting { proposal, .. }) in waiting.drain(..).enumerate() {
            let refusal_here = refused.next_if(|refused| refused.position == position);
            if let Some(Refused { error, .. }) = &refusal_here {
                tracing::debug!(%error, "a proposal was refused");
            }
            match (refusal_here, proposal) {
                (None, Some(proposal)) => self.waiters.insert(proposal, now),
                (Some(Refused { error, .. }), Some(proposal)) => {
                    self.refuse(proposal, refusal(&error, self.is_disk_full()));
                }
                (_, None) => {}
            }
        }
        self.proposals = waiting;
    }

    /// Takes committed entries, as many as apply may have, with who waits for them.
    fn take_committed(&mut self, now: Duration) -> Vec<Entry> {
        let room = (2 * self.batch_bytes_max).saturating_sub(self.unfinished_bytes);
        if room == 0 {
            return Vec::new();
        }
        let committed = self.driver.take_committed(room.min(self.batch_bytes_max));
        let Some(last) = committed.last().map(|entry| entry.index) else { return Vec::new() };
        let mut lot = Lot { last, bytes: 0, proposals: 0 };
        let mut entries = Vec::with_capacity(committed.len());
        for entry in committed {
            let Committed { index, term, kind, data } = entry;
            let mut proposal = None;
            if kind == EntryKind::Normal && self.waiters.count() > 0 {
                proposal = internal::request_id(&data).and_then(|id| self.waiters.take(id, &data));
            }
            if let Some(proposal) = &mut proposal {
                proposal.stamps.committed = now;
                lot.proposals += 1;
            }
            lot.bytes += data.len() as u64 + ENTRY_OVERHEAD_BYTES;
            entries.push(Entry { index, term, kind, data, proposal });
        }
        self.handed = last;
        self.unfinished_bytes += lot.bytes;
        self.unfinished_proposals += lot.proposals;
        self.lots.push_back(lot);
        entries
    }

    fn trim(&mut self, place: EntryId) -> Result<(), Fatal> {
        self.note_log();
        self.driver.trim(place)?;
        self.log_len = self.driver.log_bytes();
        Ok(())
    }

    /// Adds what the log has grown by since it was looked at last.
    fn note_log(&mut self) {
        let len = self.driver.log_bytes();
        self.log_bytes += len.saturating_sub(self.log_len);
        self.log_len = len;
    }

    /// Why a client's proposal is refused before the log is asked, if it is.
    fn refusal_for_space(&mut self, purpose: Purpose, now: Duration) -> Option<Error> {
        if self.space.is_full_of_recent {
            return Some(if self.is_disk_full() { Error::NoSpace } else { Error::TooManyRequests });
        }
        if self.space.is_dirty_over {
            return Some(Error::NoSpace);
        }
        match purpose {
            // What is left of the log is kept for what frees space.
            Purpose::Grow if self.driver.is_log_tight() => Some(Error::NoSpace),
            // The alarm is being raised: one entry is enough, and this request is refused all the same.
            Purpose::Alarm if !self.asking.ask(now) => Some(Error::NoSpace),
            Purpose::Alarm => {
                let used = self.shared.sizes.in_use.load(Ordering::Acquire);
                let quota = self.shared.limits.quota.shown();
                tracing::warn!(used, "quota-size-bytes" = quota, "message exceeded backend quota; raising alarm");
                None
            }
            Purpose::Grow | Purpose::Other => None,
        }
    }

    /// Whether the log or a checkpoint waits for space.
    fn is_disk_full(&self) -> bool {
        self.space.is_checkpoint_waiting || self.driver.log_room_bytes().is_some()
    }

    /// Says so when a disk becomes full, and when there is space again.
    fn publish_disk_full(&self) {
        let is_full = self.is_disk_full();
        if self.shared.is_disk_full.load(Ordering::Relaxed) == is_full {
            return;
        }
        self.shared.is_disk_full.store(is_full, Ordering::Release);
        if is_full {
            let (is_log, is_checkpoint) = (self.driver.log_room_bytes().is_some(), self.space.is_checkpoint_waiting);
            tracing::error!(is_log, is_checkpoint, "the disk is full: writes are refused once the log has no room");
        } else {
            tracing::info!("there is space on the disk again");
        }
    }

    fn publish_status(&mut self) {
        let status = self.driver.status();
        let raft = &self.shared.raft;
        assert!(status.term >= raft.term.load(Ordering::Relaxed), "the term never decreases");
        raft.term.store(status.term, Ordering::Release);
        let is_new = status.leader_id != 0 && status.leader_id != raft.leader.load(Ordering::Relaxed);
        self.counters.leader_changes.add(u64::from(is_new));
        raft.leader.store(status.leader_id, Ordering::Release);
        raft.commit.store(status.commit, Ordering::Release);
        raft.pending.store(self.waiters.count() + self.unfinished_proposals, Ordering::Release);
    }
}

/// What an entry takes beside its bytes while apply has it. **Units** bytes.
const ENTRY_OVERHEAD_BYTES: u64 = size_of::<Entry>() as u64;

fn no_answers(cores: usize) -> Answers {
    (0..cores).map(|_| Vec::new()).collect()
}

/// What a client is told when raft refuses its proposal.
fn refusal(error: &consensus::Error, is_disk_full: bool) -> Error {
    match error {
        // What waits, waits for space.
        consensus::Error::TooManyRequests { .. } if is_disk_full => Error::NoSpace,
        consensus::Error::NoSpace { .. } => Error::NoSpace,
        consensus::Error::TooManyRequests { .. } => Error::TooManyRequests,
        consensus::Error::NoLeader => Error::NoLeader,
        consensus::Error::TooLarge { .. } => Error::RequestTooLarge,
        _ => Error::Stopped,
    }
}
