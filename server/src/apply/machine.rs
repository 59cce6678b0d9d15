//! Runs on: apply core.
//!
//! Takes committed entries, and gives state, answers and events.
//!
//! A turn applies the entries that were handed over, in log order, and publishes one view for all of them. Only then
//! does it hand out answers and events. So a reply never leaves before its entry is durable (raft hands out nothing
//! else) and visible. A turn also makes one step of each upkeep.
//!
//! Invariants:
//! - `queue` holds entries in log order; its front is applied next. `applied` never decreases. It becomes
//!   `Report::applied` once it is published.
//! - `answers` and `events` belong to entries up to `applied`. They leave with their publish or after it.
//! - At most one checkpoint and one set of faults are under way. Pages that cannot be read stop nothing but the entry
//!   that needs them (`standstill`): upkeep goes round them.
//! - `report` gathers what must be proposed, and what raft must do about the log and the configuration, until raft can
//!   take it. It is bounded by the lessor's bound on revocations, and by one checkpoint at a time.
//!
//! A plain state machine: time comes in with each call, and `clock` times each entry. It drives no disk. It knows no
//! thread, no socket, no runtime and no raft; `cores` moves its inputs and outputs.

use std::{
    collections::VecDeque,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus::{ConfChange, EntryId, EntryKind};
use engine::{Checkpoint, CheckpointDone, Fault, Store, planted::is_planted};
use proto::{
    etcdserverpb as pb,
    internal::{self, Kind},
};

use super::{
    arrived::Install,
    attempts::Attempts,
    count,
    entry::{self, Applier, Asked, Executed},
    fatal::Fatal,
    message::{Answer, AnswersByCore, Entry, Handed, ReadsAt, Report, Space, Standing, ToApply},
    outcome::Outcome,
    prefetch,
    standstill::Standstill,
    table,
    touch::Pinned,
    unanswered::Unanswered,
    upkeep::{
        checkpoint::{self, Checkpoints, Moment},
        compactor::Compactor,
        reclaim::Reclaim,
        space::{self, Taken},
        sweep::Sweep,
    },
    users,
};
use crate::{
    auth::{check::Asker, logins},
    clock::Clock,
    config::AutoCompaction,
    error::Error,
    floor,
    insight::slow::{self, Throttle},
    metrics::counters::CommitCounters,
    quota::{self, Purpose},
    shared::{RaisedBy, Shared},
    slots::ReplyTo,
    watch::batch::{Batch, Event},
};

/// What became of the entry at the front.
enum Front {
    /// It was applied.
    Applied,
    /// A step of it was made.
    Paused,
    /// It needs these pages first.
    Needs(Vec<Fault>),
}

/// The results of a turn.
#[derive(Default)]
pub struct Turn {
    /// Answers, listed by core; empty if there are none.
    pub answers: AnswersByCore,
    /// Events of this turn's publish.
    pub batch: Option<Arc<Batch>>,
    /// Pages that apply or its upkeep needs before it can go on.
    pub faults: Vec<Fault>,
    /// A checkpoint that must be run.
    pub checkpoint: Option<Checkpoint>,
    /// What has happened to logins.
    pub logins: Vec<logins::Change>,
    /// Whether there is work that need not wait for an input.
    pub more: bool,
}

/// Settings of apply.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of log after which a checkpoint begins. **Units** bytes.
    pub checkpoint_wal_bytes: u64,
    /// Bytes of records that no checkpoint has written. Above this bound, proposals are refused. **Units** bytes.
    pub recent_bytes_max: u64,
    /// Versions that one step of the sweep looks at.
    pub sweep_entries_per_step: usize,
    /// Places of tree pages that one step of reclaim looks at.
    pub reclaim_pages_per_step: usize,
    /// An entry that takes longer than this to apply is logged.
    pub warning_apply: Duration,
    /// Automatic compaction.
    pub auto_compaction: AutoCompaction,
    /// The time that a new leader adds to every lease.
    pub election_timeout: Duration,
    /// This member's name, published to the members table.
    pub name: String,
    /// This member's client URLs, published likewise.
    pub client_urls: Vec<String>,
    /// Last index of the log at the start. Entries up to here are applied again, and not counted again.
    pub replayed_to: u64,
    /// Times each entry. Only counters and log lines depend on it.
    pub clock: Clock,
}

/// See the head of this file.
pub struct Apply {
    pub(super) shared: Arc<Shared>,
    pub(super) counters: Arc<CommitCounters>,
    pub(super) options: Options,
    pub(super) store: Store,
    pub(super) applier: Applier,
    pub(super) queue: VecDeque<Entry>,
    /// The request at the front of `queue` with its id, once it is decoded.
    pub(super) asked: Option<(u64, Asked)>,
    pub(super) pinned: Pinned,
    pub(super) standstill: Standstill,
    /// When pages are asked for again that the system refused to read.
    retry_at: Duration,
    /// Expired leases whose revocation is to be proposed, once its pages are known to be readable.
    pub(super) expiring: VecDeque<i64>,
    /// The last attached key of the first of them that is known to be readable.
    pub(super) expiring_at: Option<Bytes>,
    pub(super) applied: EntryId,
    /// Last index that was handed over.
    pub(super) handed: u64,
    answers: AnswersByCore,
    pub(super) events: Vec<Event>,
    /// First main revision that no batch has covered.
    next_main: i64,
    /// Set if the last applied entry was made in steps: its events are not in `events`. The keys between which they
    /// lie, if that is known.
    pub(super) unlisted: Option<Option<(Bytes, Bytes)>>,
    is_faulted: bool,
    pub(super) report: Report,
    /// The parts of the last report that need not be repeated.
    told: (EntryId, Space, bool, u64),
    pub(super) standing: Standing,
    pub(super) log_bytes: u64,
    /// When this member's name and URLs, or the cluster's version, were proposed last.
    pub(super) published_at: Option<Duration>,
    /// First request id of this run. The ids of this member have the same high bits.
    first_id: u64,
    /// When the front entry came to the front.
    front_since: Duration,
    /// When the last applied entry was done.
    applied_at: Duration,
    slow_applies: Throttle,
    /// Ids of requests of the server's own, and when they were proposed; at most [`OWN_TIMED_MAX`].
    pub(super) own_since: VecDeque<(u64, Duration)>,
    compactor: Compactor,
    pub(super) checkpoints: Checkpoints,
    pub(super) sweep: Sweep,
    /// Reads that wait until their index is published, in the order in which they were asked for, and since when.
    pub(super) reads: VecDeque<(Duration, ReadsAt)>,
    /// The index that holds everything that was acknowledged before this member started, once it is known.
    pub(super) caught_up_at: Option<u64>,
    pub(super) unanswered: Unanswered,
    reclaim: Reclaim,
    pub(super) install: Install,
    pub(super) attempts: Attempts,
    pub(super) taken: Taken,
}

impl Apply {
    /// Apply over recovered state.
    pub fn new(
        shared: Arc<Shared>,
        counters: Arc<CommitCounters>,
        options: Options,
        store: Store,
        mut applier: Applier,
    ) -> Self {
        let view = store.mvcc().view();
        let applied = EntryId { index: view.applied_index(), term: view.applied_term() };
        let mut taken = Taken::new(Arc::clone(&shared), Arc::clone(&counters));
        taken.sum_up(&store);
        let unread = applier.unread.take();
        let pinned = Pinned::new(Arc::clone(&shared.gathered));
        let mut apply = Self {
            answers: no_answers(shared.connections.cores()),
            first_id: shared.request_ids.load(Ordering::Relaxed),
            compactor: Compactor::new(options.auto_compaction, options.clock.now()),
            checkpoints: Checkpoints::new(options.checkpoint_wal_bytes, options.recent_bytes_max),
            shared,
            counters,
            options,
            store,
            applier,
            queue: VecDeque::new(),
            asked: None,
            pinned,
            standstill: Standstill::default(),
            retry_at: Duration::ZERO,
            expiring: VecDeque::new(),
            expiring_at: None,
            applied,
            handed: applied.index,
            events: Vec::new(),
            next_main: view.revision() + 1,
            unlisted: None,
            is_faulted: false,
            report: Report { applied, ..Report::default() },
            told: (applied, Space::default(), false, 0),
            standing: Standing::default(),
            log_bytes: 0,
            published_at: None,
            front_since: Duration::ZERO,
            applied_at: Duration::ZERO,
            slow_applies: Throttle::default(),
            own_since: VecDeque::new(),
            sweep: Sweep::left(),
            reads: VecDeque::new(),
            caught_up_at: None,
            unanswered: Unanswered::default(),
            reclaim: Reclaim::default(),
            install: Install::default(),
            attempts: Attempts::default(),
            taken,
        };
        apply.shared.hashes.begin(view.compact_revision());
        apply.publish_cluster();
        apply.publish_users();
        apply.publish_leases();
        if let Some(reason) = unread {
            apply.standstill.begin_for_good(&apply.shared, reason);
            apply.publish_behind();
        }
        apply.shared.raft.applied.store(applied.index, Ordering::Release);
        apply
    }

    /// Takes one message.
    ///
    /// **Errors** the member must stop.
    pub fn receive(&mut self, message: ToApply, now: Duration) -> Result<(), Fatal> {
        let lifetime = 2 * self.shared.limits.request_timeout;
        match message {
            ToApply::Renew { .. } | ToApply::RenewAll { .. } | ToApply::TimeToLive { .. } | ToApply::Leases { .. } => {
                self.ask_lessor(message, now);
            }
            ToApply::AwaitSweep { reply, revision } => self.sweep.wait(reply, revision, now, lifetime),
            ToApply::Defragment { reply } => {
                let run = self.reclaim.defragment.ask();
                self.answer(reply, Answer::Defragmenting(run));
            }
            ToApply::AwaitDefragment { reply, run } => self.reclaim.defragment.wait(reply, run, now, lifetime),
            ToApply::Incoming { answer, cache_bytes } => {
                if let Err(store) = answer.send(self.incoming(cache_bytes)) {
                    self.discard(store);
                }
            }
            ToApply::Discard(store) => self.discard(*store),
            ToApply::ClusterVersion(version) => drop(self.decide_version(version)),
            ToApply::Downgraded => self.end_downgrade(),
            ToApply::Corrupt(member) => self.accuse(member),
            ToApply::CheckpointWaits => self.checkpoints.waits(),
            ToApply::Checkpointed(done) => {
                let done = *done?;
                if done.is_install() { self.installed(done, now) } else { self.checkpointed(done, now) }
            }
            ToApply::Loaded(loaded) => {
                loaded?;
                self.is_faulted = false;
            }
        }
        Ok(())
    }

    /// Takes what raft hands over. Leases expire on the leader alone. They stop as soon as this member no longer leads.
    pub fn hand(&mut self, handed: Handed, now: Duration) {
        assert!(handed.log_bytes >= self.log_bytes, "what was written stays written");
        self.log_bytes = handed.log_bytes;
        let before = std::mem::replace(&mut self.standing, handed.standing);
        if before.leads && (!self.standing.leads || self.standing.term != before.term) {
            self.demote();
        }
        self.handed = handed.entries.last().map_or(self.handed, |last| last.index);
        self.queue.extend(handed.entries);
        if let Some(arrived) = handed.install {
            self.install(arrived);
        }
        handed.unneeded.into_iter().for_each(|arrived| self.arrive(Box::new(arrived)));
        self.take_reads(handed.reads, handed.caught_up_at, now);
        self.promote_lessor(now);
        if let Some(at) = handed.lead_confirmed_at
            && self.standing.leads
        {
            self.lead_confirmed(at, now);
        }
    }

    /// Lets leases run, with their whole time, once this member has applied the first entry of the term that it leads:
    /// before that it may not know of a renewal, a revocation or a lease.
    fn promote_lessor(&mut self, now: Duration) {
        let has_begun = self.standing.term_start.is_some_and(|start| self.applied.index >= start);
        let leads = self.standing.leads || is_planted("expiry without leadership");
        if leads && (has_begun || !self.standing.leads) && !self.applier.lessor.leads() {
            self.applier.lessor.promote(now, self.options.election_timeout);
            self.settle_unsure(now);
        }
    }

    /// Takes in that a heartbeat interval has passed.
    pub fn tick(&mut self, now: Duration) {
        self.shared.pulse.apply.strike(now);
        self.report.asks_lead |= self.unanswered.want_lead();
        self.taken.sum_up(&self.store);
        self.store.balance();
        self.sweep.look_again();
        if now >= self.retry_at {
            self.retry_at = now + RETRY_EVERY;
            self.store.unreadable().retry();
        }
        self.look_after_damage(now);
        if self.standstill.is_on() {
            self.publish_behind();
            return;
        }
        self.keep_alarm(now);
        if self.shared.has_leader() {
            self.publish_attributes(now);
        }
        if !self.standing.leads {
            return;
        }
        if self.applier.lessor.leads() {
            self.checkpoint_leases(now);
        }
        let view = self.store.mvcc().view();
        if let Some(revision) = self.compactor.due(now, view.revision(), view.compact_revision()) {
            tracing::info!(revision, "starting auto compaction");
            let request = pb::CompactionRequest { revision, physical: false };
            self.propose_as_leader(Kind::Compaction, &request);
        }
    }

    /// Makes one turn; see the head of this file.
    ///
    /// **Errors** the member must stop.
    pub fn turn(&mut self, now: Duration) -> Result<Turn, Fatal> {
        let applied_before = self.applied.index;
        let installs = self.begin_install()?;
        if installs.is_some() || self.install.is_on() {
            let answers = self.take_answers();
            return Ok(Turn { answers, checkpoint: installs, ..Turn::default() });
        }
        let mut faults = if self.is_faulted { Vec::new() } else { self.apply_queue(now)? };
        self.promote_lessor(now);
        self.settle_behind(now);
        if !self.is_faulted && faults.is_empty() {
            faults.extend(self.expire_leases(now));
        }
        // Reclaim comes before eviction, which takes pages that were loaded and not yet searched.
        if !self.is_faulted && faults.is_empty() {
            faults = self.reclaim(now);
        }
        // There is no eviction while an entry waits for a page, unless another entry was applied. Pages that were
        // loaded for the waiting entry then stay until it is applied, or are asked for again.
        let has_progressed = faults.is_empty() || self.applied.index > applied_before;
        let is_short = !self.is_faulted && has_progressed && self.store.wants_eviction();
        let has_evicted =
            is_short && self.store.evict(EVICT_NODES_PER_TURN << self.store.shortage().min(EVICT_DOUBLINGS_MAX));
        if has_evicted {
            self.pinned.evicted();
        }
        if has_evicted || self.applied.index > self.report.applied.index || self.store.mvcc().is_ahead() {
            self.publish();
        }
        if faults.is_empty() && !self.is_held() {
            faults.extend(self.sweep(now));
        }
        self.is_faulted |= !faults.is_empty();
        let checkpoint = self.begin_checkpoint(now);
        self.answer_reads();
        let answers = self.take_answers();
        let batch = self.take_batch();
        let can_apply = !self.queue.is_empty() && !self.standstill.is_on();
        let is_expiring = !self.expiring.is_empty() && !self.standstill.is_on();
        let can_change = (self.sweep.is_going() || can_apply) && !self.is_held();
        let has_work = can_change || is_expiring || self.reclaim.is_going() || self.store.wants_eviction();
        let more = !self.is_faulted && has_work;
        let logins = std::mem::take(&mut self.applier.logins);
        Ok(Turn { answers, batch, faults, checkpoint, logins, more })
    }

    /// The report that raft must get, if there is anything new.
    pub fn take_report(&mut self) -> Option<Report> {
        let is_waiting = self.checkpoints.is_waiting();
        self.report.space = space::felt(&self.store, self.options.recent_bytes_max, is_waiting);
        self.report.stands_still = self.standstill.is_on();
        self.report.passed_over = self.install.chosen();
        let Report {
            applied,
            ref conf_changes,
            ref own,
            trim,
            space,
            has_alarm_come,
            asks_lead,
            stands_still,
            passed_over,
            hands_over,
            installed,
        } = self.report;
        let is_late = is_planted("a configuration change that raft learns late") && self.applied.term > 1;
        let is_late = is_late && own.is_empty() && trim.is_none();
        let is_repeated = (conf_changes.is_empty() || is_late)
            && own.is_empty()
            && trim.is_none()
            && installed.is_none()
            && !has_alarm_come
            && !asks_lead
            && !hands_over;
        if is_repeated && self.told == (applied, space, stands_still, passed_over) {
            return None;
        }
        self.told = (applied, space, stands_still, passed_over);
        let mut report = std::mem::replace(&mut self.report, Report { applied, ..Report::default() });
        if is_late {
            std::mem::swap(&mut self.report.conf_changes, &mut report.conf_changes);
        }
        Some(report)
    }

    /// Bytes of entries that wait here.
    #[cfg(test)]
    pub(super) fn waiting_bytes(&self) -> usize {
        self.queue.iter().map(|entry| entry.data.len()).sum()
    }

    pub(super) fn answer(&mut self, reply: ReplyTo, answer: Answer) {
        self.answers[reply.core].push((reply.slot, answer));
    }

    fn take_answers(&mut self) -> AnswersByCore {
        if self.answers.iter().all(Vec::is_empty) {
            return AnswersByCore::new();
        }
        let cores = self.answers.len();
        std::mem::replace(&mut self.answers, no_answers(cores))
    }

    /// Whether apply and the sweep should wait for the checkpoint that is being written, because their changes do not
    /// fit in memory now.
    pub(super) fn is_held(&self) -> bool {
        let is_full = checkpoint::is_dirty_due(&self.store) || self.checkpoints.is_full(&self.store);
        // No refusal bounds what an entry adds that is made in steps.
        let can_wait = !self.checkpoints.is_waiting() || self.applier.long.is_some();
        is_full && self.store.is_checkpointing() && can_wait
    }

    /// Applies the entries that were handed over, in log order. Stops when the queue is empty, when a page is missing,
    /// or when a checkpoint must end first.
    fn apply_queue(&mut self, now: Duration) -> Result<Vec<Fault>, Fatal> {
        // The batch of what was installed is one of its own.
        if self.unlisted.is_some() || self.install.is_chosen || !self.standstill.lets_pass(now) {
            return Ok(Vec::new());
        }
        if !self.queue.is_empty() {
            self.applied_at = self.options.clock.now();
        }
        while let Some(entry) = self.queue.front()
            && !self.is_held()
        {
            assert_eq!(entry.index, self.applied.index + 1, "each entry is applied once, in order");
            let front = match entry.kind {
                EntryKind::Normal if entry.data.is_empty() => Front::Applied,
                EntryKind::Normal => self.apply_request(now)?,
                EntryKind::ConfChange => self.apply_conf_change()?,
            };
            let faults = match front {
                Front::Applied => Vec::new(),
                Front::Paused => {
                    self.standstill.passed(&self.shared);
                    return Ok(Vec::new());
                }
                Front::Needs(faults) => faults,
            };
            if let Some(first) = faults.first() {
                let (first, index) = (first.clone(), entry_index(&self.queue));
                if !self.standstill.has_failed(&first, self.store.unreadable()) {
                    self.standstill.waits_for(&first);
                    return Ok(faults);
                }
                if self.pinned.is_awaited() {
                    // Without the records that only the answer would show, it may be applied as on other members.
                    self.pinned.give_up_answer(Error::Corrupt);
                    continue;
                }
                self.standstill.begin(&self.shared, self.store.dir(), index, now);
                self.publish_behind();
                return Ok(Vec::new());
            }
            self.standstill.passed(&self.shared);
            let entry = self.queue.pop_front().expect("the front was there");
            self.applied = EntryId { index: entry.index, term: entry.term };
            if self.unlisted.is_some() {
                // Its batch is of its own.
                break;
            }
        }
        Ok(Vec::new())
    }

    /// Applies the request at the front, or a step of it.
    fn apply_request(&mut self, now: Duration) -> Result<Front, Fatal> {
        let entry = self.queue.front_mut().expect("there is one to apply");
        if self.asked.is_none() {
            self.asked = Some(asked(entry, self.applier.users.is_enabled())?);
            self.pinned.clear(entry.proposal.is_some());
            self.front_since = self.applied_at;
        }
        let (id, asked) = self.asked.as_ref().expect("set above");
        if !entry::is_applied(&asked.request) {
            return Err(Fatal::Unapplied { index: entry.index, kind: asked.request.kind() });
        }
        let (id, kind) = (*id, asked.request.kind());
        let recent = self.store.mvcc().recent_bytes();
        let mvcc = self.store.mvcc_mut();
        let asked_at = (entry.index, asked);
        let executed = match self.applier.execute(mvcc, asked_at, &mut self.pinned, now, &mut self.events) {
            Ok(executed) => executed,
            Err(fault) => {
                let first = self.applier.wanted(self.store.mvcc().live(), &self.pinned, fault);
                let (mvcc, behind) = (self.store.mvcc(), self.queue.iter().skip(1));
                let faults = prefetch::faults(mvcc.live(), mvcc.unreadable(), first, &asked.request, behind);
                return Ok(Front::Needs(faults));
            }
        };
        let Executed::Done { result, written, unlisted } = executed else { return Ok(Front::Paused) };
        assert!(self.unlisted.is_none(), "what was not listed is told before more is applied");
        self.unlisted = unlisted;
        let is_new = entry.index > self.options.replayed_to;
        self.taken.keeper.observe(&asked.request, recent, &self.applier.cluster.alarms, is_new);
        self.asked = None;
        self.note_kind(kind, result.is_ok(), now);
        self.note_time(kind, &result);
        let proposal = self.queue.front_mut().and_then(|entry| entry.proposal.take());
        if is_new {
            let is_own = proposal.is_none() && id >> ID_COUNT_BITS == self.first_id >> ID_COUNT_BITS;
            count::applied(&self.counters, &result, written, is_own);
            if is_own && let Some(position) = self.own_since.iter().position(|(known, _)| *known == id) {
                // What was proposed before it and did not come was lost.
                let (_, since) = self.own_since.drain(..=position).next_back().expect("it was found");
                self.counters.own_requests.ended(kind, self.applied_at.saturating_sub(since));
            }
        }
        if let Some(mut proposal) = proposal {
            proposal.result = result.and_then(|outcome| self.pinned.take_lost().map_or(Ok(outcome), Err));
            proposal.share = self.pinned.take_share();
            proposal.stamps.applied = self.applied_at;
            self.answer(proposal.reply, Answer::Applied(proposal));
        }
        Ok(Front::Applied)
    }

    /// Does what follows from an entry of this kind, beside its result.
    fn note_kind(&mut self, kind: Kind, is_ok: bool, now: Duration) {
        match kind {
            Kind::Compaction if is_ok => {
                self.shared.hashes.compacted(self.store.mvcc().live().compact_revision());
                self.sweep.compacted(now);
                let took = self.options.clock.now().saturating_sub(self.front_since);
                self.counters.compaction.observe_time(took);
            }
            Kind::LeaseGrant => self.publish_leases(),
            Kind::LeaseRevoke => {
                self.publish_leases();
                self.end_renewals();
                self.settle_taken_back(now);
            }
            Kind::LeaseCheckpoint => self.settle_taken_back(now),
            Kind::Alarm => {
                self.report.has_alarm_come = true;
                self.publish_cluster();
            }
            Kind::ClusterMemberAttrSet | Kind::ClusterVersionSet | Kind::DowngradeInfoSet => self.publish_cluster(),
            kind if is_ok && users::is_change(kind) => self.publish_users(),
            _ => {}
        }
    }

    /// Counts how long the entry at the front took, with its wait for pages, and logs it if that was long. Entries that
    /// a start applies again are not counted.
    fn note_time(&mut self, kind: Kind, result: &Result<Outcome, Error>) {
        self.applied_at = self.options.clock.now();
        let entry = self.queue.front().expect("it is being applied");
        if entry.index <= self.options.replayed_to {
            return;
        }
        let took = self.applied_at.saturating_sub(self.front_since);
        let is_success = matches!(result, Ok(_) | Err(Error::Compacted));
        self.counters.applies.observe(kind, is_success, took);
        if took > self.options.warning_apply {
            self.counters.slow_applies.add(1);
            if let Some(withheld) = self.slow_applies.pass(self.applied_at) {
                let result = result.as_ref().map(|outcome| outcome.told(&self.shared));
                slow::tell_apply(took, self.options.warning_apply, &entry.data, result, withheld);
            }
        }
    }

    /// Applies the configuration change at the front.
    fn apply_conf_change(&mut self) -> Result<Front, Fatal> {
        let entry = self.queue.front().expect("there is one to apply");
        let not_understood = |source| Fatal::ConfChange { index: entry.index, source };
        let change = ConfChange::decode(&entry.data).map_err(not_understood)?;
        let named = change.named().map_err(not_understood)?;
        let changed = self.applier.change_configuration(self.store.mvcc_mut(), (&change, named.as_ref()));
        let result = match changed {
            Ok(result) => result,
            Err(fault) => return Ok(Front::Needs(vec![fault])),
        };
        self.tell_members(&change, &result);
        if result.is_ok() {
            let conf_state = self.applier.conf_state.clone();
            self.store.set_vital(table::encode_vital(&self.shared.identity, &conf_state));
            self.report.conf_changes.push((change, conf_state));
            self.publish_cluster();
        }
        self.applied_at = self.options.clock.now();
        if let Some(mut proposal) = self.queue.front_mut().and_then(|entry| entry.proposal.take()) {
            proposal.result = result.map(|()| Outcome::Members(self.applier.cluster.members.clone()));
            proposal.stamps.applied = self.applied_at;
            self.answer(proposal.reply, Answer::Applied(proposal));
        }
        Ok(Front::Applied)
    }

    /// Logs what became of a configuration change, unless a start applies it again.
    fn tell_members(&self, change: &ConfChange, result: &Result<(), Error>) {
        let (kind, member) = (change.kind, format!("{:x}", change.member_id));
        match result {
            _ if self.applied.index < self.options.replayed_to => {}
            Ok(()) => tracing::info!(?kind, member, "the members have changed"),
            Err(error) => tracing::warn!(?kind, member, %error, "a change of the members was refused"),
        }
    }

    /// Makes everything that was applied visible.
    pub(super) fn publish(&mut self) {
        let EntryId { index, term } = self.applied;
        drop(self.store.mvcc_mut().publish(index, term));
        self.report.applied = self.applied;
        self.shared.raft.applied.store(index, Ordering::Release);
        self.taken.publish(self.store.mvcc().recent_bytes());
    }

    pub(super) fn publish_leases(&self) {
        self.shared.has_leases.store(!self.applier.lessor.is_empty(), Ordering::Release);
    }

    pub(super) fn publish_cluster(&self) {
        let is_removed = self.applier.cluster.removed.contains(&self.shared.identity.member_id);
        self.shared.is_removed.store(is_removed, Ordering::Release);
        self.shared.cluster.store(Arc::new(self.applier.cluster.clone()));
    }

    pub(super) fn publish_users(&self) {
        self.shared.users.store(Arc::new(self.applier.users.clone()));
    }

    fn take_batch(&mut self) -> Option<Arc<Batch>> {
        let unlisted = self.unlisted.take();
        if self.events.is_empty() && unlisted.is_none() {
            return None;
        }
        let view = self.store.mvcc().view();
        assert!(self.applied.index == view.applied_index(), "events follow their publish");
        let last_main = view.revision();
        let first_main = std::mem::replace(&mut self.next_main, last_main + 1);
        let events = std::mem::take(&mut self.events);
        assert!(events.is_empty() || unlisted.is_none(), "an entry that is made in steps ends in a turn of its own");
        Some(Arc::new(match unlisted {
            Some(hull) => Batch::unlisted(first_main, last_main, hull),
            None => Batch::new(first_main, last_main, events),
        }))
    }

    /// Makes one step of giving space back. Returns the pages that it must read.
    fn reclaim(&mut self, now: Duration) -> Vec<Fault> {
        let is_sweeping = self.sweep.is_going();
        for reply in self.reclaim.take_ended(&mut self.store, is_sweeping, &self.counters, now) {
            self.answer(reply, Answer::Defragmented);
        }
        self.reclaim.step(&mut self.store, now, self.options.reclaim_pages_per_step)
    }

    /// Makes one step of the sweep. Returns the page that it must read.
    fn sweep(&mut self, now: Duration) -> Option<Fault> {
        if self.sweep.is_going() && !self.is_faulted {
            let of_hash = self.shared.hashes.floor();
            let floor = floor::lowest_of(&self.shared.floors).min(of_hash);
            let began = self.options.clock.now();
            let step = self.sweep.step(&mut self.store, floor, self.options.sweep_entries_per_step);
            let (dropped, is_done) = match step {
                Ok(step) => step,
                Err(fault) => return Some(fault),
            };
            self.counters.versions_dropped.add(dropped);
            self.counters.sweep_step.observe_time(self.options.clock.now().saturating_sub(began));
            self.taken.keeper.swept(dropped);
            if is_done {
                // Readers hold what was dropped until the next view. In an idle store that view may come late.
                self.publish();
                let compacted = self.store.mvcc().live().compact_revision();
                self.sweep.ended(compacted, floor, now, &self.counters, &self.shared.sizes);
                // Who waits for a compaction waits for its hash, but not for readers.
                self.shared.swept_revision.store(compacted.min(of_hash), Ordering::Release);
            }
        }
        let swept = self.shared.swept_revision.load(Ordering::Acquire);
        for reply in self.sweep.take_waiters(swept) {
            self.answer(reply, Answer::Swept);
        }
        None
    }

    fn begin_checkpoint(&mut self, now: Duration) -> Option<Checkpoint> {
        let recent = self.store.mvcc().recent_bytes();
        let moment = Moment {
            now,
            written: self.log_bytes,
            applied_at: self.applied_at,
            is_sweeping: self.sweep.is_going(),
            is_tight: self.taken.keeper.wants_checkpoint(recent, &self.applier.cluster.alarms),
        };
        if !self.checkpoints.is_due(&self.store, &moment) {
            return None;
        }
        self.taken.keeper.checkpoint_begun();
        self.checkpoints.begun(self.log_bytes, now);
        let began = self.options.clock.now();
        let checkpoint = self.store.checkpoint_begin();
        self.counters.checkpoint_freeze.observe_time(self.options.clock.now().saturating_sub(began));
        Some(checkpoint)
    }

    fn checkpointed(&mut self, done: CheckpointDone, now: Duration) {
        for error in done.unread() {
            tracing::error!(%error, "a page cannot be read; requests that need it fail");
        }
        let left = self.store.left_segments().clone();
        self.store.checkpoint_end(done);
        for segment in self.store.left_segments().difference(&left) {
            tracing::warn!(
                segment,
                "a segment cannot be emptied, because of pages that cannot be read: it is left alone"
            );
        }
        let reclaimed = self.store.reclaimed();
        self.counters.segments_emptied.set(reclaimed.segments);
        self.counters.moved_bytes.set(reclaimed.moved_bytes);
        self.counters.checkpoint.observe_time(self.checkpoints.ended(now));
        // This comes before the sizes are published anew: the written records are in files now.
        self.taken.sum_up(&self.store);
        // The written records leave memory with the next view. In an idle store that view may come late.
        self.publish();
        let (index, term) = self.store.trimmable();
        if index > 0 {
            self.report.trim = Some(EntryId { index, term });
        }
    }
}

/// The index of the entry at the front.
fn entry_index(queue: &VecDeque<Entry>) -> u64 {
    queue.front().expect("there is one to apply").index
}

fn no_answers(cores: usize) -> AnswersByCore {
    (0..cores).map(|_| Vec::new()).collect()
}

/// What the entry asks for, with its request id. A client's request comes decoded with its proposal. An alarm is
/// decoded again, because its header says who raised it, and the header of any where it is judged who asks.
///
/// **Errors** the entry cannot be understood.
fn asked(entry: &mut Entry, is_judged: bool) -> Result<(u64, Asked), Fatal> {
    let not_understood = |source| Fatal::Entry { index: entry.index, source };
    if let Some(proposal) = &mut entry.proposal
        && proposal.purpose != Purpose::Alarm
        && let Some(request) = proposal.request.take()
    {
        let asker = match is_judged {
            true => internal::header(&entry.data).map_err(not_understood)?.into(),
            false => Asker::default(),
        };
        return Ok((proposal.id, Asked { request, raised_by: RaisedBy::Hand, asker }));
    }
    let (header, request) = internal::decode(entry.data.clone()).map_err(not_understood)?;
    Ok((header.id, Asked { request, raised_by: quota::raised_by(&header), asker: header.into() }))
}

/// Nodes that one turn looks at for eviction. This takes about 50 us.
const EVICT_NODES_PER_TURN: usize = 256;
/// For each quarter by which nodes exceed their memory, eviction looks at twice as many nodes, up to this many
/// doublings. Under load all nodes are in use all the time.
const EVICT_DOUBLINGS_MAX: u64 = 4;

/// Pause between two tries to read pages that the system refused to read.
const RETRY_EVERY: Duration = Duration::from_secs(60);

/// The low bits of a request id that count requests. The high bits name the member. **Source** etcd v3.7.1
/// `pkg/idutil/id.go`.
const ID_COUNT_BITS: u32 = 48;
