//! The driver: raft-rs on one side, the write-ahead log on the other, and one durable order of entries as the result.
//!
//! Lives on the raft core and is sans-io: it is handed proposals, ticks, messages and completions, and asks the WAL to
//! write. Asynchronous persistence: a ready's entries go to the WAL and raft-rs goes on at once; when the WAL says that
//! they are durable, raft-rs is told, and only then can they commit here. So one write is in flight while the next
//! group gathers, and the own write runs beside the peers'.
//!
//! Invariants:
//! - `ticket` numbers what was handed to the WAL; `unpersisted` holds one record per ready that raft-rs has not been
//!   told of, in order, each with the ticket it waits for. Messages that promise something (votes, acknowledgements)
//!   wait in that record. So do all messages of a term whose vote is not durable yet: a sole voter leads at once, and
//!   after power loss it could put another entry at the same place in the same term.
//! - What a follower needs and memory no longer holds is read back from the WAL, beside everything else (`fetch`).
//! - `delivered` <= commit; entries are queued in `committed`, contiguous after `delivered`; `taken` = last index the
//!   caller has taken; applied <= taken <= delivered. Term, commit and applied never decrease (asserted where they are
//!   read and where they are set).
//! - A state instead of entries goes its own way (`install`).
//! - A leader commits what a majority and it itself hold durably (`stand_apart`). raft-rs by itself would do without
//!   it. Its clients see no difference, as it applies only what it holds; and whose log is cut can ask it (`cut`).
//! - A hard state that moves only the commit index is kept in `hard_state_due` and rides with the next entries: losing
//!   it is legal, because recovery takes the larger of it and the applied index, and the rest commits again in the new
//!   term. A configuration change has it written at once, though nothing waits for that: who was removed may end any
//!   moment, and whoever loses power then must not ask for that one's vote, nor wait for its answer (`cut`).
//! - `unhanded_bytes` is what was proposed and not handed to the WAL. While the log's disk is full it counts against
//!   the room that is left (`Wal::room_bytes`), of which `LOG_RESERVE` stays free for hard states and marks: a mark is
//!   what gives segments back. What a leader sends to a follower whose log is full waits in the WAL's queue,
//!   unacknowledged.
//! - What a follower holds that is not applied is bounded by bytes, however slow it applies (`is_over_full`): appends
//!   beyond it are dropped as if they had been lost.
//! - After an error `stopped` is set: nothing is written, handed out or answered any more.
//! - No clock is read: time is what `pass` is told. No chance is drawn: an election timeout follows from
//!   `options.seed`, the member, the term and how often it has campaigned (`elections`).
//!
//! Files, each with a part of the driver:
//!
//! - `propose`: what may enter the log
//! - `ready`: from raft-rs to the log, the caller and the peers
//! - `install`: a state instead of entries; `installing`: what is known of it meanwhile
//! - `reads`: rounds of linearizable reads
//! - `cut`: what is held back while the log is cut
//! - `time`: what follows from time alone
//!
//! Deliberately not here: what an entry means, request timeouts, the transport, the content of a state.

mod cut;
mod install;
mod installing;
mod propose;
mod reads;
mod ready;
mod time;

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use engine::{
    disk::{Completion, Disk},
    planted::is_planted,
    wal::{self, Wal},
};
use raft::{RawNode, SoftState, StateRole};

use self::installing::Installing;
use crate::{
    check::{check, claims_too_much},
    concerned::Concerned,
    cut::Cut,
    elections::Elections,
    entry::{Committed, EntryId, entry_cost_bytes},
    error::Error,
    leave::{self, Leave, Settled},
    log::Log,
    members::{ConfChange, ConfState},
    message::{Message, MessageKind},
    read_index::ReadIndex,
    recovery,
    start::{Identity, Options, Start},
};

/// How far another member has come, as its leader knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Up to this index its log is known to hold what the leader's holds.
    pub matched: u64,
    /// Up to this index the leader's own log is durable.
    pub leader_matched: u64,
    /// What it lacks of the entries that the leader has in memory. **Units** bytes.
    pub bytes_behind: u64,
    /// It lacks older entries, too, whose bytes are not counted.
    pub is_behind_memory: bool,
    /// The leader has sent it as much as it may, and waits for an answer.
    pub is_waited_for: bool,
    /// It is behind the leader's log, and gets a state.
    pub needs_state: bool,
}

/// Where this member stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Status {
    /// Current term.
    pub term: u64,
    /// The leader's id; 0 if none is known.
    pub leader_id: u64,
    /// Highest index known to be committed and durable here. A leader's: of all that anybody knows to be committed in
    /// its term.
    pub commit: u64,
    /// What the caller reported as applied.
    pub applied: u64,
    /// Last index of the log, durable or not.
    pub last_index: u64,
    /// This member leads.
    pub is_leader: bool,
    /// This member only listens.
    pub is_learner: bool,
    /// First index of the current term, if this member leads it.
    pub term_start: Option<u64>,
    /// Set while reads need no round: on a single voter that leads. A state machine that has applied this index has
    /// applied everything that was acknowledged before this member started, and what it acknowledges later it has
    /// applied itself. Constant within a term.
    pub read_floor: Option<u64>,
    /// Entries committed but not applied.
    pub backlog_entries: u64,
    /// Bytes of all entries that are not applied.
    pub backlog_bytes: u64,
}

/// A ready that raft-rs was not told to be durable yet.
#[derive(Debug)]
struct Unpersisted {
    number: u64,
    ticket: u64,
    messages: Vec<Message>,
}

/// See the head of this file.
pub struct Driver {
    raw: RawNode<Log>,
    wal: Wal,
    identity: Identity,
    options: Options,
    /// Last number handed to the WAL.
    ticket: u64,
    unhanded_bytes: u64,
    /// Entries up to here are dropped when they are handed out; see [`Driver::pass_over`].
    passed_over: u64,
    /// Ticks since a full disk was last asked for a segment.
    space_ticks: usize,
    /// Ticks since something was last handed to the WAL, and what that was.
    quiet_ticks: usize,
    quiet_ticket: u64,
    /// Parts of a tick that have passed since the last one.
    parts: u32,
    elections: Elections,
    unpersisted: VecDeque<Unpersisted>,
    /// The ticket with which the present term and vote are durable.
    vote_ticket: u64,
    hard_state_due: Option<wal::HardState>,
    /// Last hard state raft-rs gave; pair to the asserts on it.
    hard_state: wal::HardState,
    soft_state: SoftState,
    committed: VecDeque<Committed>,
    committed_bytes: u64,
    delivered: u64,
    taken: u64,
    applied: u64,
    reads: ReadIndex,
    messages: Vec<Message>,
    conf_state: ConfState,
    /// First index of the current term, if this member leads it.
    term_start: Option<u64>,
    truncated_tail: Option<(PathBuf, u64)>,
    damage: Option<engine::Error>,
    /// The state that takes the place of this member's, and of its log.
    installing: Option<Installing>,
    /// Ticks for which the log is kept for followers that take a state.
    kept_ticks: usize,
    /// Where it would have been trimmed meanwhile.
    trim_due: Option<EntryId>,
    /// What this member does before it is removed.
    leave: Leave,
    settled: Settled,
    /// Damage that was met while entries were read back, and that the caller was not told yet.
    unreadable: Vec<engine::Error>,
    concerned: Concerned,
    /// Set while the log is cut at its end.
    cut: Option<Cut>,
    /// How often a leader has counted on entries that were gone.
    doubts: u64,
    /// What was known to be committed when the driver was opened.
    replayed_to: u64,
    /// The slots of members that were removed, as far as is known.
    former: u64,
    /// Term and index of the last entry of its leader's own term that this member was sent while it was cut.
    fed_at: Option<(u64, u64)>,
    /// Reused between steps.
    entries: Vec<wal::Entry>,
    stopped: Option<String>,
}

impl Driver {
    /// Opens the log in `dir` and restores raft's state. Blocks. A single voter leads when this returns, unless
    /// configuration changes wait to be applied.
    ///
    /// **Errors**: `Engine` if the log cannot be read; `LogBehindState`, `LogAheadOfState`, `TermMismatch`, `LogBroken`
    /// if log and state do not belong together; `InvalidOptions`.
    pub fn open(
        disk: &mut dyn Disk,
        dir: &Path,
        identity: Identity,
        options: Options,
        start: Start,
    ) -> Result<Driver, Error> {
        let restored = recovery::restore(disk, dir, &options, &start)?;
        let config = options.to_raft(identity, start.applied.index);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, restored.log, &logger)
            .map_err(|source| Error::InvalidOptions { what: source.to_string() })?;
        let applied = start.applied.index;
        let mut driver = Driver {
            soft_state: raw.raft.soft_state(),
            concerned: Concerned::new(restored.hard_state.concerned, options.election_ticks),
            cut: Driver::cut_of(restored.hard_state, identity, &options),
            doubts: 0,
            replayed_to: restored.hard_state.commit,
            former: 0,
            fed_at: None,
            raw,
            wal: restored.wal,
            identity,
            reads: ReadIndex::new(identity.member_id, options.life(), options.reads_max),
            options,
            ticket: restored.ticket,
            unhanded_bytes: 0,
            passed_over: 0,
            space_ticks: 0,
            quiet_ticks: 0,
            quiet_ticket: restored.ticket,
            parts: 0,
            elections: Elections::default(),
            unpersisted: VecDeque::new(),
            vote_ticket: 0,
            hard_state_due: None,
            hard_state: restored.hard_state,
            committed: VecDeque::new(),
            committed_bytes: 0,
            delivered: applied,
            taken: applied,
            applied,
            messages: Vec::new(),
            conf_state: start.conf_state,
            term_start: None,
            truncated_tail: restored.truncated_tail,
            damage: restored.damage,
            installing: None,
            kept_ticks: 0,
            trim_due: None,
            leave: Leave::default(),
            settled: Settled::default(),
            unreadable: Vec::new(),
            entries: Vec::new(),
            stopped: None,
        };
        driver.raw.raft.enable_group_commit(!is_planted("a leader that commits what it does not hold"));
        driver.stand_apart();
        // What concerns nobody is made up for.
        driver.hard_state.is_cut = driver.cut.is_some();
        driver.campaign_alone();
        driver.step(disk)?;
        Ok(driver)
    }

    /// Takes a peer's message. The caller then calls `step`. What a proposal of a peer is refused is dropped: whoever
    /// wants to keep it for later calls `check` and `propose_entries` instead.
    ///
    /// **Errors**: `Malformed`; `Stopped`.
    pub fn receive(&mut self, mut message: Message) -> Result<(), Error> {
        self.check_running()?;
        let is_too_much = claims_too_much(&message, &self.raw.raft);
        check(&mut message, &self.raw.raft)?;
        if is_too_much && !is_planted("an older copy that is trusted") {
            self.doubt()?;
        }
        let is_voter = self.conf_state.voters.contains(&message.from);
        if !self.concerned.admits(&message, is_voter, self.ticket) {
            return Ok(());
        }
        if message.kind == MessageKind::TransferLeader && !self.is_leader() {
            // A follower of either library stops when it forwards one that has a term already.
            return Ok(());
        }
        if message.kind == MessageKind::TimeoutNow && (self.is_sole_voter() || self.takes_state()) {
            // A sole voter campaigns once its log is durable (`campaign_alone`): raft-rs would stop the process before
            // that. A state that has arrived may make one of this member.
            return Ok(());
        }
        if matches!(message.kind, MessageKind::VoteResponse | MessageKind::PreVoteResponse) && !self.is_log_durable() {
            // The question leaves when the log is durable: this answers another one, or none.
            return Ok(());
        }
        if message.kind == MessageKind::Propose && self.is_leader() {
            // What is forwarded passes the same bounds.
            let proposals = message.entries.into_iter().map(|entry| (entry.kind, entry.data));
            drop(self.propose_entries(proposals));
            return self.check_running();
        }
        let is_append = message.kind == MessageKind::Append;
        if self.takes_state() && (is_append || message.kind == MessageKind::Snapshot) {
            return Ok(());
        }
        if is_append && !message.entries.is_empty() && self.is_over_full() {
            // The leader finds out by the next append that this was lost, and sends it again.
            return Ok(());
        }
        if message.kind == MessageKind::ReadIndex && self.is_leader() {
            self.read_for_peer(message);
            return Ok(());
        }
        if self.holds_back(&message) {
            return Ok(());
        }
        let is_doubtful = self.cut.is_some() && !is_planted("a leader that counts on what was lost");
        if is_doubtful && message.kind == MessageKind::Heartbeat {
            // Its commit is of what the leader believes that this member has. Appends say what is committed, too.
            message.commit = message.commit.min(self.raw.raft.raft_log.committed);
        }
        let append = is_append.then_some((message.term, message.index, message.entries.len() as u64));
        let stepped = self.raw.step(message.into_raft());
        append.into_iter().for_each(|append| self.note_fed(append));
        match stepped {
            // Answers of strangers and proposals without a leader are dropped, as every lost message is.
            Ok(()) | Err(raft::Error::StepPeerNotFound | raft::Error::ProposalDropped) => Ok(()),
            Err(source) => Err(self.stop(&source.to_string())),
        }
    }

    /// Checks a message of another member that the caller keeps for later.
    ///
    /// **Errors** as `receive`.
    pub fn check(&self, message: &mut Message) -> Result<(), Error> {
        check(message, &self.raw.raft)
    }

    /// Moves everything that can move: collects what raft-rs has ready, hands it to the WAL, starts writes. The caller
    /// then kicks the disk.
    ///
    /// **Errors**: `Engine` when the WAL fails, then `Stopped`.
    pub fn step(&mut self, disk: &mut dyn Disk) -> Result<(), Error> {
        self.check_running()?;
        self.trim_late()?;
        self.pump()?;
        self.fetch(disk);
        self.wal.step(disk).map_err(|error| self.stop_with(error))
    }

    /// Begins to read what followers need and memory no longer holds.
    fn fetch(&mut self, disk: &mut dyn Disk) {
        let bytes_max = self.options.fetch_bytes();
        while let Some(from) = self.raw.mut_store().fetching().next() {
            if from <= self.wal.mark().0 || !self.wal.fetch(disk, from, bytes_max) {
                self.fetched(from, Vec::new());
            }
        }
    }

    fn fetched(&mut self, from: u64, entries: Vec<wal::Entry>) {
        for context in self.raw.mut_store().fetching().fetched(from, entries) {
            self.raw.on_entries_fetched(context);
        }
    }

    /// Takes the end of one of the WAL's operations, and moves on as `step` does.
    ///
    /// **Errors**: `Engine` when a write failed: the member must stop. Then `Stopped`.
    pub fn on_completion(&mut self, completion: Completion, disk: &mut dyn Disk) -> Result<(), Error> {
        self.check_running()?;
        self.wal.on_completion(completion, disk).map_err(|error| self.stop_with(error))?;
        for wal::Fetched { from, entries } in self.wal.take_fetched() {
            let entries = entries.unwrap_or_else(|error| {
                self.unreadable.push(error);
                self.raw.mut_store().fetching().lost(from);
                Vec::new()
            });
            self.fetched(from, entries);
        }
        self.step(disk)
    }

    /// Committed entries in log order, each exactly once, at most `bytes_max` of data but at least one where there is
    /// one.
    pub fn take_committed(&mut self, bytes_max: u64) -> Vec<Committed> {
        if self.stopped.is_some() || self.installing.is_some() {
            return Vec::new();
        }
        let mut count = 0;
        let mut taken_bytes = 0u64;
        for entry in &self.committed {
            taken_bytes = taken_bytes.saturating_add(entry_cost_bytes(&entry.data));
            if taken_bytes > bytes_max && count > 0 {
                break;
            }
            count += 1;
        }
        let entries: Vec<Committed> = self.committed.drain(..count).collect();
        for entry in &entries {
            assert_eq!(entry.index, self.taken + 1, "committed entries are contiguous");
            self.taken = entry.index;
            self.committed_bytes -= entry_cost_bytes(&entry.data);
        }
        assert!(self.taken <= self.delivered && self.delivered <= self.commit());
        entries
    }

    /// Requests of the log that are not applied yet, with their indexes, in log order. Right after a start these are
    /// the requests that will be applied again.
    pub fn unapplied(&self) -> impl Iterator<Item = (u64, &Bytes)> {
        self.raw.store().unapplied()
    }

    /// The state machine has applied everything up to `index`, which must have been taken.
    pub fn applied(&mut self, index: u64) {
        assert!(index >= self.applied, "applied {index} after {}", self.applied);
        assert!(index <= self.taken, "applied {index}, but only {} was handed out", self.taken);
        if self.stopped.is_some() || index == self.applied {
            return;
        }
        self.applied = index;
        if self.installing.is_some() {
            // The log knows nothing before the state any more.
            return;
        }
        self.raw.advance_apply_to(index);
        self.raw.mut_store().applied_to(index);
        assert_eq!(self.raw.raft.raft_log.applied, self.applied);
        self.campaign_alone();
    }

    /// A committed configuration change takes effect, in log order, before later entries are applied. Not called for a
    /// change that apply refuses. Returns the new configuration, which the caller stores with its state.
    ///
    /// **Errors**: `ConfChangeRefused`, e.g. when no voter would be left; `Stopped`.
    pub fn apply_conf_change(&mut self, change: &ConfChange) -> Result<ConfState, Error> {
        self.check_running()?;
        assert!(self.installing.is_none(), "the configuration comes with the state");
        if let Some(raft_change) = change.to_raft() {
            let state = self
                .raw
                .apply_conf_change(&raft_change)
                .map_err(|source| Error::ConfChangeRefused { reason: source.to_string() })?;
            self.conf_state = ConfState::from_raft(&state);
            self.stand_apart();
            if self.is_leader() && !self.conf_state.voters.contains(&self.identity.member_id) {
                // A leader that is no longer a member looks up its own progress at the next commit and stops the
                // process there.
                let term = self.raw.raft.term;
                self.raw.raft.become_follower(term, raft::INVALID_ID);
            }
        }
        self.write_hard_state()?;
        Ok(self.conf_state.clone())
    }

    /// Makes two groups of the members, this one and the others: while it leads, raft-rs commits what both have, and a
    /// majority. Whoever joins belongs to no group for a moment, which commits less.
    fn stand_apart(&mut self) {
        let own = self.identity.member_id;
        let ConfState { voters, learners, .. } = &self.conf_state;
        let groups: Vec<_> = voters.iter().chain(learners).map(|id| (*id, 1 + u64::from(*id != own))).collect();
        self.raw.raft.assign_commit_groups(&groups);
    }

    /// Messages to other members, in order. Those that promise something are here only once that is durable. Empty for
    /// a single member.
    pub fn take_messages(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.messages)
    }

    /// The voter that can take leadership over soonest; none if this member does not lead, or is the only voter.
    pub fn transferee(&self) -> Option<u64> {
        leave::transferee(&self.raw.raft)
    }

    /// All other voters, beginning with the one that can take leadership over soonest; none if this member does not
    /// lead.
    pub fn transferees(&self) -> Vec<u64> {
        leave::transferees(&self.raw.raft)
    }

    /// Hands leadership to `member_id`, if this member leads; proposals are refused meanwhile.
    pub fn transfer_leader(&mut self, member_id: u64) {
        if self.stopped.is_none() && self.is_leader() {
            self.raw.transfer_leader(member_id);
        }
    }

    /// Leadership is not handed over after all, if the one it was to go to does not lead yet: proposals are taken
    /// again.
    pub fn end_transfer(&mut self) {
        self.raw.raft.abort_leader_transfer();
    }

    /// Whether leadership is being handed over: the one it goes to may lead at any moment, without an election timeout.
    pub fn is_handing_over(&self) -> bool {
        self.raw.raft.lead_transferee.is_some()
    }

    /// How far a member has come; `None` if this one does not lead, or there is no such member.
    pub fn progress(&self, member_id: u64) -> Option<Progress> {
        let of = |id: u64| self.raw.raft.prs().get(id);
        let (member, own) = of(member_id).zip(of(self.identity.member_id)).filter(|_| self.is_leader())?;
        Some(Progress {
            matched: member.matched,
            leader_matched: own.matched,
            bytes_behind: self.raw.store().bytes_after(member.matched),
            is_behind_memory: !self.raw.store().has_all_after(member.matched),
            is_waited_for: member.is_paused(),
            needs_state: member.state == raft::ProgressState::Snapshot,
        })
    }

    /// A message to `member_id` was lost.
    pub fn report_unreachable(&mut self, member_id: u64) {
        if self.stopped.is_none() {
            self.raw.report_unreachable(member_id);
        }
    }

    /// Where this member stands.
    pub fn status(&self) -> Status {
        let raft = &self.raw.raft;
        let backlog = self.backlog();
        Status {
            term: raft.term,
            leader_id: raft.leader_id,
            commit: self.commit(),
            applied: self.applied,
            last_index: raft.raft_log.last_index(),
            is_leader: self.is_leader(),
            is_learner: self.conf_state.learners.contains(&self.identity.member_id),
            term_start: self.term_start,
            read_floor: self.read_floor(),
            backlog_entries: backlog.entries,
            backlog_bytes: backlog.bytes,
        }
    }

    /// Why the log was put aside when it was opened, if it was: this member goes on with what others send it.
    pub fn damage(&self) -> Option<&engine::Error> {
        self.damage.as_ref()
    }

    /// Who this member is.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The configuration as of the last `apply_conf_change`.
    pub fn conf_state(&self) -> &ConfState {
        &self.conf_state
    }

    /// File and offset where recovery cut off an unfinished group, for the log line at start.
    pub fn truncated_tail(&self) -> Option<&(PathBuf, u64)> {
        self.truncated_tail.as_ref()
    }

    /// A checkpoint holds everything up to `applied`: the log behind it may go, but for what slow followers may still
    /// ask for.
    ///
    /// **Errors**: `Engine`, then `Stopped`.
    pub fn trim(&mut self, applied: EntryId) -> Result<(), Error> {
        self.check_running()?;
        if self.installing.is_some() {
            // The log restarts behind the state. What is applied behind that is known here only then.
            return Ok(());
        }
        assert!(applied.index <= self.applied, "trim to {} beyond applied {}", applied.index, self.applied);
        let alone = self.conf_state.voters.len() + self.conf_state.learners.len() <= 1;
        let mut index = applied.index;
        // On a full disk the log is worth more than the snapshot that a follower may then need.
        let is_full = self.wal.room_bytes().is_some();
        if self.is_kept_for_states() && !is_full {
            self.trim_due = Some(applied);
            return Ok(());
        }
        if !alone && !is_full {
            let by_bytes = self.wal.index_before(self.options.catch_up_log_bytes);
            index = index.saturating_sub(self.options.catch_up_entries).min(by_bytes);
        }
        if index <= self.wal.mark().0 {
            return Ok(());
        }
        let term = self.wal.term(index).expect("what is applied is in the log until it is trimmed");
        self.wal.trim(index, term).map_err(|error| self.stop_with(error))?;
        self.raw.mut_store().trimmed_to(index, term);
        Ok(())
    }

    /// Damage of the log that was met since the last call. Followers that need what it holds need a snapshot.
    pub fn take_unreadable(&mut self) -> Vec<engine::Error> {
        std::mem::take(&mut self.unreadable)
    }

    /// Bytes of log behind the last trim: when to make a checkpoint.
    pub fn log_bytes(&self) -> u64 {
        self.wal.len_bytes()
    }

    /// How far the log is durable, while records wait for the disk to end what it was asked to do. As long as this does
    /// not change, the disk does nothing.
    pub fn log_waits_at(&self) -> Option<u64> {
        self.wal.is_waiting().then(|| self.wal.durable())
    }

    /// How far the log is durable.
    pub fn log_durable(&self) -> u64 {
        self.wal.durable()
    }

    /// Bytes handed to the log that are not durable yet.
    pub fn queued_bytes(&self) -> usize {
        self.wal.queued_bytes()
    }

    fn is_sole_voter(&self) -> bool {
        self.conf_state.voters == [self.identity.member_id]
    }

    fn is_log_durable(&self) -> bool {
        self.raw.raft.raft_log.persisted == self.raw.raft.raft_log.last_index()
    }

    fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Committed and durable here: raft-rs hands out nothing beyond, and a follower may know of a commit before it has
    /// the entries on disk.
    fn commit(&self) -> u64 {
        let log = &self.raw.raft.raft_log;
        log.committed.min(log.persisted).max(self.applied)
    }

    fn read_floor(&self) -> Option<u64> {
        let alone = self.is_sole_voter();
        self.term_start.filter(|start| alone && self.is_leader() && *start <= self.commit())
    }

    fn check_running(&self) -> Result<(), Error> {
        match &self.stopped {
            None => Ok(()),
            Some(reason) => Err(Error::Stopped { reason: reason.clone() }),
        }
    }

    fn stop(&mut self, reason: &str) -> Error {
        self.stopped = Some(reason.to_owned());
        self.committed.clear();
        self.committed_bytes = 0;
        self.messages.clear();
        self.unpersisted.clear();
        self.reads.clear();
        Error::Stopped { reason: reason.to_owned() }
    }

    fn stop_with(&mut self, error: engine::Error) -> Error {
        self.stop(&error.to_string());
        Error::Engine(error)
    }

    /// The only voter leads without waiting for a timeout, once its log is durable and no configuration change waits to
    /// be applied (raft-rs refuses to campaign before that).
    fn campaign_alone(&mut self) {
        let raft = &self.raw.raft;
        let alone = self.is_sole_voter();
        if alone && raft.state == StateRole::Follower && self.is_log_durable() && self.stopped.is_none() {
            // Refusals are silent in raft-rs; the next `applied` or tick tries again.
            if let Err(source) = self.raw.campaign() {
                self.stop(&source.to_string());
            }
        }
    }
}
