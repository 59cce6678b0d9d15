//! Runs on: raft core.
//!
//! Takes proposals, and gives one durable order of entries.
//!
//! A turn takes in finished writes, proposes what has gathered, and lets raft and the log move. Then it hands the
//! committed entries to apply, each with the proposal that waits for it. In a later turn, raft is told what apply
//! reports.
//!
//! Invariants:
//! - Entries are handed out in log order, each once, when they are durable on a quorum. The bytes that are handed out
//!   and not yet applied are bounded (`unfinished_bytes`), however slow apply is.
//! - A proposal is in `proposals` (raft was not asked yet, or could not take it yet), or in `waiters` (raft has
//!   accepted it), or gone. A proposal that is gone was refused with an answer, or handed to apply.
//! - A configuration change that apply has applied reaches raft before raft learns that its entry was applied.
//! - A full disk does not stop the member. Proposals that do not fit are refused before they reach the log
//!   ([`Raft::receive`]), and committed entries are still applied. While the log's disk is full, each proposal is
//!   checked against the space that all proposals before it leave.
//! - Without a leader, and while one hands over, proposals of clients wait in `proposals`, too, until their clients
//!   give up, here or at the members that have forwarded them.
//! - A leader whose disk is full hands leadership to a voter, and again after a while (`space`) if it leads still:
//!   nobody could write through it. If the others' disks are full as well, that changes nothing for them.
//! - As long as it is not known whether the log gets a next segment, its last quarter is left free: proposals wait in
//!   `proposals`, in their order and bounded as what is proposed is.
//! - Nor does a disk that hangs stop it: as long as a write to the log does not end, proposals of clients are refused,
//!   and the member says that it is not ready. When the write ends, all goes on. What was proposed before stays so.
//! - As long as apply stands still because of damage, proposals of clients are refused.
//! - Raft's time follows the clock: each turn begins with [`Raft::pass`], before it takes messages. A member that stood
//!   still makes up for a short time only ([`BEHIND_TICKS_MAX`]): it heard nothing, so its silence counts for nothing.
//! - `log_bytes` counts all bytes of the log that were ever written. It never decreases.
//!
//! A plain state machine: time comes in with each call, and the log's disk is the only thing that it drives. It knows
//! no thread, no socket, no runtime, and not what an entry means. `cores` moves its inputs and outputs.
//!
//! - `lead`: leadership that is handed to another member
//! - `propose`: what is proposed, and what is refused instead
//! - `space`: what a disk does that is full, or that hangs

mod lead;
mod propose;
mod space;

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus::{
    Committed, ConfChange, ConfState, Driver, EntryId, EntryKind, Message, MessageKind, PARTS_PER_TICK, Progress,
    Snapshot, Status,
};
use engine::disk::{Completion, Disk, Owner};
use proto::internal;

use super::{
    message::ToRaft,
    proposals::Proposals,
    reads::Reads,
    transfer::{Leaving, Transfers},
    waiters::Waiters,
};
use crate::{
    apply::{
        arrived::Arrived,
        fatal::Fatal,
        message::{Answer, AnswersByCore, Entry, Handed, Report, Space, Standing},
        own::Own,
    },
    error::Error,
    metrics::counters::CommitCounters,
    quota::Asking,
    shared::Shared,
};

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
    /// Bytes of entries that are handed out at once. **Units** bytes.
    batch_bytes_max: u64,
    /// Time between two ticks of raft.
    heartbeat: Duration,
    /// Up to when raft knows the time; `None` before the first turn.
    passed_until: Option<Duration>,
    /// What is proposed next. What the log cannot take yet stays here.
    proposals: Proposals,
    waiters: Waiters,
    transfers: Transfers,
    /// The end of this leader, if it is on its way.
    leaving: Option<Leaving>,
    answers: AnswersByCore,
    completions: Vec<Completion>,
    /// Lots that were handed out and are not finished, in order.
    lots: VecDeque<Lot>,
    unfinished_bytes: u64,
    unfinished_proposals: usize,
    /// Last index that was handed out.
    handed: u64,
    /// Where raft stood when apply was last told.
    told: Option<Standing>,
    reads: Reads,
    /// The term in which apply asked whether this member leads still, the read that tells, and when it was begun.
    asks_lead: Option<(u64, u64, Duration)>,
    /// When the last such read was begun in which a majority has said so, until apply is told.
    lead_confirmed_at: Option<Duration>,
    /// The read that tells what was acknowledged before this member started.
    start_read: StartRead,
    /// The state that raft takes, until apply must install it.
    needed: Option<Box<Arrived>>,
    /// States that raft does not need, on their way to apply.
    unneeded: Vec<Arrived>,
    /// How apply feels the lack of space.
    space: Space,
    /// When leadership was handed over last because a disk is full.
    left_full_at: Option<Duration>,
    /// Apply stands still.
    stands_still: bool,
    /// Bounds how often this member's alarm is proposed.
    asking: Asking,
    /// The log was cut at its end, and this member has not caught up since.
    is_cut: bool,
    /// What may be forwarded to the leader until that is set anew. **Units** bytes of entries.
    forward_room: usize,
    /// What was forwarded and has not left raft: a follower's messages wait for its log. **Units** bytes of entries.
    forwarding_bytes: usize,
    /// The leader to which that goes.
    forwarding_to: u64,
    /// Since when the log has waited for its disk, and how far it was durable then.
    log_wait: Option<(Duration, u64)>,
    /// A longer wait is a stall.
    log_wait_max: Duration,
    log_bytes: u64,
    /// The log's length at the last look. **Units** bytes.
    log_len: u64,
    /// When the last tick was, of a leader that has others to beat for.
    beat_at: Option<Duration>,
}

impl Raft {
    /// Raft over a recovered log, with a tick each `heartbeat`. Apply holds at most twice `batch_bytes_max` bytes of
    /// entries at once. A write to the log that takes longer than `log_wait_max` is a stall.
    pub fn new(
        shared: Arc<Shared>,
        counters: Arc<CommitCounters>,
        driver: Driver,
        batch_bytes_max: u64,
        log_wait_max: Duration,
        heartbeat: Duration,
    ) -> Self {
        assert!(heartbeat >= Duration::from_millis(1), "a part of a tick must not be zero");
        let status = driver.status();
        let log_len = driver.log_bytes();
        let mut raft = Self {
            answers: no_answers(shared.connections.cores()),
            shared,
            counters,
            driver,
            batch_bytes_max,
            heartbeat,
            passed_until: None,
            proposals: Proposals::default(),
            waiters: Waiters::default(),
            transfers: Transfers::default(),
            leaving: None,
            completions: Vec::new(),
            lots: VecDeque::new(),
            unfinished_bytes: 0,
            unfinished_proposals: 0,
            handed: status.applied,
            told: None,
            reads: Reads::default(),
            asks_lead: None,
            lead_confirmed_at: None,
            start_read: StartRead::Wanted,
            needed: None,
            unneeded: Vec::new(),
            space: Space::default(),
            left_full_at: None,
            stands_still: false,
            asking: Asking::default(),
            is_cut: false,
            forward_room: usize::MAX,
            forwarding_bytes: 0,
            forwarding_to: 0,
            log_wait: None,
            log_wait_max,
            log_bytes: log_len,
            log_len,
            beat_at: None,
        };
        raft.is_cut = raft.driver.is_cut();
        raft.publish_status(Duration::ZERO);
        raft
    }

    /// Takes one message.
    pub fn receive(&mut self, message: ToRaft, now: Duration) {
        if self.driver.log_room_bytes().is_some() {
            // A proposal is checked against the space that the earlier ones leave, so those are proposed first.
            self.propose_waiting(now);
        }
        match message {
            ToRaft::Propose(proposal) => self.take_proposal(EntryKind::Normal, proposal, now),
            ToRaft::ChangeMembers(proposal) => self.take_proposal(EntryKind::ConfChange, proposal, now),
            ToRaft::TransferLeader { reply, target } => {
                if let Err(error) = self.transfer_leader(reply, target, now) {
                    self.answers[reply.core].push((reply.slot, Answer::Transferred(Err(error))));
                }
            }
            ToRaft::LeaveLead { reply } => self.leave_lead(reply, now),
            ToRaft::Progress { reply, member_id } => {
                let progress = self.progress(member_id);
                self.answers[reply.core].push((reply.slot, Answer::Progress(progress)));
            }
            ToRaft::ProposeOwn { entry, purpose } => self.propose_own(Own { entry, purpose, of_leader_in: None }, now),
            ToRaft::Read(reply) => self.reads.push(reply),
            ToRaft::OfferState { to, at, conf_state } => self.offer_state(to, at, conf_state),
            ToRaft::StateSent { to, is_whole } => self.report_state(to, is_whole),
            ToRaft::HandOver => self.hand_over(),
            ToRaft::StateArrived { message, arrived } => {
                let taken = match message {
                    Some(message) => self.receive_state(*message, arrived),
                    None => self.receive_asked(arrived),
                };
                // An error of the log stops the member in the next step, which says so again.
                if let Err(error) = taken {
                    tracing::warn!(%error, "a state of another member is not taken");
                }
            }
        }
    }

    /// How far the log of a member has come.
    ///
    /// **Errors** this member does not lead; there is no such member.
    fn progress(&self, member_id: u64) -> Result<Progress, Error> {
        if !self.driver.status().is_leader {
            return Err(Error::NotLeader);
        }
        self.driver.progress(member_id).ok_or(Error::MemberNotFound)
    }

    /// Raft's configuration, at the index that it knows as applied.
    pub fn configuration(&self) -> (u64, &ConfState) {
        (self.driver.status().applied, self.driver.conf_state())
    }

    /// Takes a message of another member.
    ///
    /// **Errors** `Malformed`: no honest member sends it, and nothing of it was done; any other: the member must stop.
    pub fn receive_peer(&mut self, message: Message, now: Duration) -> Result<(), consensus::Error> {
        if message.kind == MessageKind::Snapshot {
            return Err(consensus::Error::Malformed { what: "a state without what is in it" });
        }
        if message.kind == MessageKind::Propose {
            return self.take_forwarded(message, now);
        }
        self.driver.receive(message)
    }

    /// Takes the message of another member with which a state comes, and the state, all of which has arrived.
    ///
    /// **Errors** as `receive_peer`.
    pub fn receive_state(&mut self, message: Message, arrived: Box<Arrived>) -> Result<(), consensus::Error> {
        let is_same = |state: &Snapshot| state.at == arrived.at && state.conf_state == arrived.tables.conf_state;
        let is_it = message.snapshot.as_deref().is_some_and(is_same);
        let was_taken = self.driver.takes_state();
        let received = if is_it {
            self.driver.receive(message)
        } else {
            Err(consensus::Error::Malformed { what: "a state that is not what its message says" })
        };
        if !was_taken && self.driver.takes_state() {
            assert!(self.needed.replace(arrived).is_none(), "the one before was installed");
        } else {
            self.unneeded.push(*arrived);
        }
        received
    }

    /// Whether the state of any other member would help this one: see `consensus`, `Driver::wants_state`.
    pub fn wants_state(&self) -> bool {
        self.driver.wants_state()
    }

    /// Takes a state for which this member has asked another one: because it wants it, or because of damage.
    ///
    /// **Errors** `Malformed`: no honest member sends it.
    pub fn receive_asked(&mut self, arrived: Box<Arrived>) -> Result<(), consensus::Error> {
        let conf_state = arrived.tables.conf_state.clone();
        let state = Snapshot { at: arrived.at, conf_state, ..Snapshot::default() };
        let adopted = self.driver.adopt(&state);
        if matches!(adopted, Ok(true)) {
            assert!(self.needed.replace(arrived).is_none(), "the one before was installed");
        } else {
            self.unneeded.push(*arrived);
        }
        adopted.map(drop)
    }

    /// Who leads, as far as this member knows; 0 for nobody.
    pub fn leader(&self) -> u64 {
        self.driver.status().leader_id
    }

    /// The process of the member `member_id` is gone: its connections have closed, and its port refuses new ones.
    pub fn gone(&mut self, member_id: u64) {
        self.driver.gone(member_id);
    }

    /// Other members are connected, soon after the start.
    pub fn hasten_first_election(&mut self) {
        self.driver.hasten_first_election();
    }

    /// A message to the member `member_id` was lost.
    pub fn unreachable(&mut self, member_id: u64) {
        self.driver.report_unreachable(member_id);
    }

    /// Messages to other members since the last call, in order. What they promise is durable.
    pub fn take_messages(&mut self) -> Vec<Message> {
        let messages = self.driver.take_messages();
        let proposals = messages.iter().filter(|message| message.kind == MessageKind::Propose);
        let left: usize = proposals.flat_map(|message| &message.entries).map(|entry| entry.data.len()).sum();
        self.forwarding_bytes = self.forwarding_bytes.saturating_sub(left);
        messages
    }

    /// Asks for a round for the reads that have come.
    ///
    /// **Errors** the member must stop.
    fn ask_reads(&mut self, now: Duration) -> Result<(), Fatal> {
        if self.start_read == StartRead::Wanted {
            let number = self.reads.next();
            self.driver.read_index(number)?;
            self.start_read = StartRead::Asked(number);
        }
        if let Some(number) = self.reads.number(now) {
            self.driver.read_index(number)?;
        }
        Ok(())
    }

    /// Takes in the reads that were confirmed, and with the member's own one that it leads.
    fn note_reads(&mut self) {
        let status = self.driver.status();
        for read in self.driver.take_reads() {
            if let Some((term, _, at)) = self.asks_lead.take_if(|(_, number, _)| *number <= read.context)
                && status.is_leader
                && term == status.term
            {
                self.lead_confirmed_at = Some(at);
            }
            if let StartRead::Asked(number) = self.start_read
                && number <= read.context
            {
                self.start_read = StartRead::Confirmed(read.index);
            }
            self.reads.confirm(read);
        }
    }

    /// Tells raft what time it is. Called before the messages of a turn are taken, and at least once in a tick.
    pub fn pass(&mut self, now: Duration) {
        if self.driver.is_cut() {
            self.driver.know_former(&self.shared.cluster.load().removed);
        }
        let until = *self.passed_until.get_or_insert(now);
        let (part, behind) = (self.part(), now.saturating_sub(until));
        if behind > BEHIND_TICKS_MAX * self.heartbeat {
            self.passed_until = Some(now);
            self.driver.stood_still();
            return self.driver.pass(BEHIND_TICKS_MAX * PARTS_PER_TICK);
        }
        let parts = u32::try_from(behind.as_nanos() / part.as_nanos()).expect("few ticks have few parts");
        self.passed_until = Some(until + part * parts);
        self.driver.pass(parts);
    }

    /// When raft will do something by itself, in [`Raft::pass`] or in a turn.
    pub fn due(&self) -> Duration {
        let raft = self.part().saturating_mul(self.driver.due_parts());
        let raft = raft.saturating_add(self.passed_until.unwrap_or_default());
        self.proposals.gather_until().map_or(raft, |until| raft.min(until))
    }

    fn part(&self) -> Duration {
        self.heartbeat / PARTS_PER_TICK
    }

    /// Looks after what waits. Called about once in a heartbeat interval.
    pub fn tick(&mut self, now: Duration) {
        self.shared.pulse.raft.strike(now);
        self.watch_log(now);
        self.leave_if_full(now);
        self.watch_beats(now);
        let lifetime = 2 * self.shared.limits.request_timeout;
        self.waiters.forget_lost(now, lifetime);
        self.reads.forget_lost(now, lifetime);
    }

    /// Says so if the heartbeats of this leader come late. **Source** etcd v3.7.1 `server/etcdserver/raft.go`.
    fn watch_beats(&mut self, now: Duration) {
        let beats = self.driver.status().is_leader && self.shared.has_other_voters();
        let before = std::mem::replace(&mut self.beat_at, beats.then_some(now));
        let (Some(before), expected) = (before.filter(|_| beats), 2 * self.heartbeat) else { return };
        if let Some(exceeded) = now.saturating_sub(before).checked_sub(expected).filter(|late| !late.is_zero()) {
            self.counters.heartbeat_failures.add(1);
            tracing::warn!(
                "heartbeat-interval" = ?self.heartbeat,
                "expected-duration" = ?expected,
                "exceeded-duration" = ?exceeded,
                "leader failed to send out heartbeat on time; took too long, leader is overloaded likely from slow disk"
            );
        }
    }

    /// Makes one turn; see the head of this file.
    ///
    /// **Errors** the member must stop.
    pub fn turn(&mut self, disk: &mut dyn Disk, now: Duration) -> Result<(), Fatal> {
        let mut completions = std::mem::take(&mut self.completions);
        disk.completions(&mut completions);
        for completion in completions.drain(..) {
            assert_eq!(Owner::of(completion.token), Owner::Wal, "raft's disk serves the log alone");
            self.driver.on_completion(completion, disk)?;
        }
        for error in self.driver.take_unreadable() {
            tracing::error!(%error, "the log is damaged: a member that needs what was there needs a snapshot");
        }
        self.completions = completions;
        self.settle(disk, now)
    }

    /// Proposes what has gathered, and lets raft and the log move.
    ///
    /// **Errors** the member must stop.
    pub fn settle(&mut self, disk: &mut dyn Disk, now: Duration) -> Result<(), Fatal> {
        self.propose_gathered(now);
        self.ask_reads(now)?;
        self.driver.step(disk)?;
        disk.kick()?;
        self.note_reads();
        self.end_transfers(now);
        self.go_on_leaving(now);
        self.note_log();
        if self.is_log_stalled() {
            self.watch_log(now);
        }
        self.publish_status(now);
        // This comes before the answers go. A client that is refused for space then finds the reason in the status.
        self.publish_disk_full();
        Ok(())
    }

    /// What apply must be handed, if there is anything new.
    pub fn take_handed(&mut self, now: Duration) -> Option<Handed> {
        let status = self.driver.status();
        let Status { is_leader, term, term_start, read_floor, .. } = status;
        // Who is handed leadership may lead before this member hears of it.
        let leads = is_leader && !self.driver.is_handing_over();
        let standing = Standing { leads, term, term_start, read_floor };
        let entries = self.take_committed(now);
        let lead_confirmed_at = self.lead_confirmed_at.take();
        let install = self.driver.take_install().map(|state| {
            let needed = self.needed.take().expect("raft takes states with what is in them");
            assert_eq!(needed.at, state.at, "raft takes one state at a time");
            needed
        });
        let unneeded = std::mem::take(&mut self.unneeded);
        let caught_up_at = match self.start_read {
            StartRead::Confirmed(index) => Some(index),
            _ => None,
        };
        let is_old = self.told == Some(standing) && lead_confirmed_at.is_none() && caught_up_at.is_none();
        if entries.is_empty() && is_old && !self.reads.has_confirmed() && install.is_none() && unneeded.is_empty() {
            return None;
        }
        if caught_up_at.is_some() {
            self.start_read = StartRead::Told;
        }
        self.told = Some(standing);
        let (reads, log_bytes) = (self.reads.take_confirmed(), self.log_bytes);
        Some(Handed { entries, standing, log_bytes, lead_confirmed_at, install, unneeded, reads, caught_up_at })
    }

    /// Whether the log was cut at its end, and this member has not caught up since.
    pub fn is_cut(&self) -> bool {
        self.is_cut
    }

    /// Whether more entries could be handed to apply at once, or proposed.
    pub fn has_more(&self) -> bool {
        self.has_gathered()
            || self.unfinished_bytes < 2 * self.batch_bytes_max && self.driver.status().commit > self.handed
    }

    /// Takes a report of apply. The caller must then call [`Raft::settle`].
    ///
    /// **Errors** the member must stop.
    pub fn report(&mut self, report: Report, now: Duration) -> Result<(), Fatal> {
        match report.installed {
            Some(at) => self.installed(at)?,
            // What was applied before a state is installed is in that state.
            None if self.driver.is_installing() => {}
            None => {
                for (change, state) in report.conf_changes {
                    let reached = self.driver.apply_conf_change(&change)?;
                    assert_eq!(reached, state, "raft and apply make the same of {change:?}");
                }
                self.driver.applied(report.applied.index);
            }
        }
        self.driver.pass_over(report.passed_over);
        let done = report.applied.index.max(report.passed_over);
        while let Some(lot) = self.lots.pop_front_if(|lot| lot.last <= done) {
            self.unfinished_bytes -= lot.bytes;
            self.unfinished_proposals -= lot.proposals;
        }
        if let Some(place) = report.trim {
            self.trim(place)?;
        }
        let status = self.driver.status();
        self.space = report.space;
        self.stands_still = report.stands_still;
        if report.hands_over {
            self.hand_over();
        }
        // An answer that is on its way will do.
        let is_asked = self.asks_lead.is_some_and(|(term, ..)| term == status.term);
        if report.asks_lead && status.is_leader && !is_asked {
            let number = self.reads.next();
            self.driver.read_index(number)?;
            self.asks_lead = Some((status.term, number, now));
        }
        if report.has_alarm_come {
            self.asking.heard();
        }
        report.own.into_iter().for_each(|own| self.propose_own(own, now));
        Ok(())
    }

    /// Apply has installed the state at `at` for which raft has asked: the log starts again behind it.
    fn installed(&mut self, at: EntryId) -> Result<(), Fatal> {
        self.note_log();
        self.driver.installed()?;
        self.log_len = self.driver.log_bytes();
        self.lots.clear();
        (self.unfinished_bytes, self.unfinished_proposals) = (0, 0);
        self.handed = at.index;
        Ok(())
    }

    /// Followers that need a state, because the log before them is gone. Each is to be offered one.
    pub fn take_wanted_states(&mut self) -> BTreeSet<u64> {
        self.driver.take_wanted_states()
    }

    /// The state at `at`, with this configuration, is ready to be sent to the member `to`. A message says when.
    pub fn offer_state(&mut self, to: u64, at: EntryId, conf_state: ConfState) {
        self.driver.offer_state(to, Snapshot { at, conf_state, data: Bytes::new() });
    }

    /// The transfer of a state to the member `to` has ended: whether all of it arrived.
    pub fn report_state(&mut self, to: u64, is_whole: bool) {
        self.driver.report_state(to, is_whole);
    }

    /// Refusals since the last call, by core; empty when there are none.
    pub fn take_answers(&mut self) -> AnswersByCore {
        if self.answers.iter().all(Vec::is_empty) {
            return AnswersByCore::new();
        }
        let cores = self.answers.len();
        std::mem::replace(&mut self.answers, no_answers(cores))
    }

    /// Requests in the log that are not applied yet, with their indexes. After a start, these are the ones that will be
    /// applied again.
    pub fn unapplied(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.driver.unapplied()
    }

    /// Takes committed entries, as many as apply may have, each with the proposal that waits for it.
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
            if self.waiters.count() > 0 {
                let id = match kind {
                    EntryKind::Normal => internal::request_id(&data),
                    EntryKind::ConfChange => ConfChange::decode(&data).ok().map(|change| change.id),
                };
                proposal = id.and_then(|id| self.waiters.take(id, &data));
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

    /// Adds the growth of the log since the last look.
    fn note_log(&mut self) {
        if !self.is_cut && self.driver.is_cut() {
            self.is_cut = true;
            tracing::error!(
                "the leader counts on entries that this member does not have. Was the raft log corrupted, truncated, \
                 or lost? It votes for nobody until it has caught up. If the others cannot elect without it, start one \
                 that has everything with --force-new-cluster"
            );
        } else if self.is_cut && !self.driver.is_cut() {
            self.is_cut = false;
            tracing::info!("what may be missing at the end of the log is there again: this member votes as others do");
        }
        let len = self.driver.log_bytes();
        self.log_bytes += len.saturating_sub(self.log_len);
        self.log_len = len;
    }

    /// Says in the log who leads, in the words of etcd's raft.
    fn tell_leader(&self, before: u64, status: &Status) {
        let (own, term, leader) = (self.shared.identity.member_id, status.term, status.leader_id);
        match (before, leader) {
            (0, _) => tracing::info!("raft.node: {own:x} elected leader {leader:x} at term {term}"),
            (_, 0) => tracing::info!("raft.node: {own:x} lost leader {before:x} at term {term}"),
            _ => tracing::info!("raft.node: {own:x} changed leader from {before:x} to {leader:x} at term {term}"),
        }
    }

    fn publish_status(&mut self, now: Duration) {
        let status = self.driver.status();
        let raft = &self.shared.raft;
        assert!(status.term >= raft.term.load(Ordering::Relaxed), "the term never decreases");
        raft.term.store(status.term, Ordering::Release);
        let before = raft.leader.load(Ordering::Relaxed);
        let is_new = status.leader_id != 0 && status.leader_id != before;
        if status.leader_id != before {
            self.tell_leader(before, &status);
        }
        self.counters.leader_changes.add(u64::from(is_new));
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if is_new && status.is_leader {
            raft.elected_at.store(now, Ordering::Release);
        }
        if before != 0 && status.leader_id == 0 {
            raft.lost_at.store(now, Ordering::Release);
        }
        raft.leader.store(status.leader_id, Ordering::Release);
        raft.commit.store(status.commit, Ordering::Release);
        raft.wants_state.store(self.driver.wants_state(), Ordering::Release);
        raft.read_floor.store(status.read_floor.unwrap_or(u64::MAX), Ordering::Release);
        let pending = self.proposals.len() + self.waiters.count() + self.unfinished_proposals;
        raft.pending.store(pending, Ordering::Release);
    }
}

/// How far the read has come that is made once after a start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum StartRead {
    Wanted,
    /// Raft is asked for the read with this number.
    Asked(u64),
    /// Everything that was acknowledged before the start lies at or below this index.
    Confirmed(u64),
    /// Apply knows it.
    Told,
}

/// Ticks that are made up for when a turn comes late. A member that stood still for longer would campaign before it has
/// taken in what its leader sent meanwhile.
const BEHIND_TICKS_MAX: u32 = 2;

/// Memory that an entry takes beside its bytes while apply has it. **Units** bytes.
const ENTRY_OVERHEAD_BYTES: u64 = size_of::<Entry>() as u64;

fn no_answers(cores: usize) -> AnswersByCore {
    (0..cores).map(|_| Vec::new()).collect()
}
