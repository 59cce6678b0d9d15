//! What a driver is opened with: who the member is, what its state machine knows, bounds and timing.
//!
//! Plain data, and its translation from `tuning`'s knobs and to raft-rs's configuration. Reads no clock and no
//! environment, draws nothing: the seed of all randomness comes with `Options`.

use engine::wal;

use crate::{
    entry::EntryId,
    members::{ConfChange, ConfState},
};

/// Parts of a tick, as which a driver is told of time. A tick is a heartbeat interval.
pub const PARTS_PER_TICK: u32 = 64;

/// Who this member is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's id.
    pub cluster_id: u64,
    /// Own id, never 0.
    pub member_id: u64,
}

/// What the state machine knows when the driver is opened.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The last entry that the stored state contains.
    pub applied: EntryId,
    /// The state came from another member, and nothing has been built upon it yet. If the log does not lead to it, that
    /// starts again behind it.
    pub is_installed: bool,
    /// The log may have been trimmed up to this index; 0 if nothing is known of that.
    pub trimmable: u64,
    /// The configuration at that place; empty for an empty state.
    pub conf_state: ConfState,
    /// The members a new cluster starts with, as `ConfChange::bootstrap` makes them, ascending by id. Used only when
    /// the log is empty; empty for a member that joins.
    pub bootstrap: Vec<ConfChange>,
    /// As far as its operator says, the member has no others. It counts while the state does not tell.
    pub is_alone: bool,
    /// The other members have seen this one run. If its log is empty, it has lost it.
    pub has_run: bool,
}

impl Start {
    /// Whether there are other voters, as far as is known without the log. A member that joins comes to others.
    pub(crate) fn has_peers(&self) -> bool {
        if self.applied.index > 0 {
            return self.conf_state.voters.len() > 1;
        }
        !self.is_alone && self.bootstrap.len() != 1
    }
}

/// Bounds and timing, as `Options::from_knobs` derives them from `tuning`.
#[derive(Debug, Clone)]
pub struct Options {
    /// Ticks without a leader before a member campaigns; the real figure is drawn from [n, 1.25 n), finer than a tick.
    pub election_ticks: usize,
    /// Ticks between a leader's heartbeats.
    pub heartbeat_ticks: usize,
    /// Ask before campaigning.
    pub pre_vote: bool,
    /// Entries in one append message. **Units**: bytes.
    pub message_bytes_max: u64,
    /// Append messages in flight per peer.
    pub messages_in_flight_max: usize,
    /// All entries between proposal and apply. **Units**: bytes.
    pub proposals_bytes_max: u64,
    /// Committed entries that are not applied; beyond this proposals are refused (etcd: 5000).
    pub backlog_entries_max: u64,
    /// Committed entries queued for the caller; beyond this no more are fetched until some are taken. **Units**: bytes.
    pub committed_bytes_max: u64,
    /// Applied entries kept in memory for followers that are a little behind. **Units**: bytes.
    pub tail_bytes_max: u64,
    /// Applied entries kept in the log for followers when it is trimmed (etcd: 5000).
    pub catch_up_entries: u64,
    /// Log kept behind what was applied for followers, too, if that is more. **Units**: bytes.
    pub catch_up_log_bytes: u64,
    /// Reads of peers that wait for a leader's round. One more is dropped, and its member asks again.
    pub reads_max: usize,
    /// Ticks after which a read's unanswered round is asked again (etcd: 500 ms).
    pub read_retry_ticks: usize,
    /// Ticks after which a full disk is asked for a log segment again.
    pub space_retry_ticks: usize,
    /// Ticks for which the log is kept after a state was sent to a follower, which needs what comes next.
    pub state_kept_ticks: usize,
    /// Draws election timeouts, and names what this life of the member asks for: no other life should have the same.
    pub seed: u64,
    /// The log's own.
    pub wal: wal::Options,
}

/// Time after which an unanswered read round is asked again. **Source**: etcd v3.7.1 `etcdserver/read/read.go`.
const READ_RETRY_MS: u64 = 500;
/// Time after which a full disk is asked again: each try takes what space there is, for a moment.
const SPACE_RETRY_MS: u64 = 1000;
/// Time for which the log is kept after a state was sent. **Source**: etcd v3.7.1 `etcdserver/server.go`
/// `releaseDelayAfterSnapshot`.
const STATE_KEPT_MS: u64 = 30_000;
/// What is read back at once for one follower. **Units**: bytes.
const FETCH_BYTES_MAX: usize = 4 << 20;
/// Reads of peers that wait for a round. A member asks once for all its reads of a turn, so this bounds turns.
const READS_MAX: usize = 4096;

impl Options {
    /// Options as the knobs say; `pre_vote` is etcd's flag, `seed` is the member's own randomness.
    pub fn from_knobs(knobs: &tuning::Consensus, pre_vote: bool, seed: u64, wal: wal::Options) -> Options {
        let ticks = |ms: u64| usize::try_from(ms.div_ceil(knobs.heartbeat_ms)).unwrap_or(usize::MAX);
        Options {
            election_ticks: ticks(knobs.election_ms),
            heartbeat_ticks: 1,
            pre_vote,
            message_bytes_max: knobs.message_bytes_max,
            messages_in_flight_max: knobs.messages_in_flight_max,
            proposals_bytes_max: knobs.proposals_bytes_max as u64,
            backlog_entries_max: knobs.backlog_entries_max,
            committed_bytes_max: knobs.apply_batch_bytes_max as u64,
            tail_bytes_max: knobs.tail_bytes_max as u64,
            catch_up_entries: knobs.snapshot_catchup_entries,
            catch_up_log_bytes: knobs.catchup_log_bytes,
            reads_max: READS_MAX,
            read_retry_ticks: ticks(READ_RETRY_MS),
            space_retry_ticks: ticks(SPACE_RETRY_MS),
            state_kept_ticks: ticks(STATE_KEPT_MS),
            seed,
            wal,
        }
    }

    /// The same for raft-rs, for a member whose state stands at index `applied`.
    pub(crate) fn to_raft(&self, identity: Identity, applied: u64) -> raft::Config {
        raft::Config {
            id: identity.member_id,
            // To raft-rs, a part of a tick is a tick.
            election_tick: self.election_ticks * PARTS_PER_TICK as usize,
            heartbeat_tick: self.heartbeat_ticks * PARTS_PER_TICK as usize,
            applied,
            max_size_per_msg: self.message_bytes_max,
            max_inflight_msgs: self.messages_in_flight_max,
            check_quorum: true,
            pre_vote: self.pre_vote,
            read_only_option: raft::ReadOnlyOption::Safe,
            priority: 0,
            max_uncommitted_size: self.proposals_bytes_max.max(self.message_bytes_max),
            max_committed_size_per_ready: self.committed_bytes_max,
            ..raft::Config::default()
        }
    }

    /// What is read back at once for a follower that needs what memory no longer holds: some messages. **Units**:
    /// bytes.
    pub(crate) fn fetch_bytes(&self) -> usize {
        usize::try_from(self.message_bytes_max).unwrap_or(usize::MAX).saturating_mul(2).min(FETCH_BYTES_MAX)
    }

    /// A number that no other life of the member has.
    pub(crate) fn life(&self) -> u64 {
        mix(!self.seed)
    }

    /// Parts of a tick without a leader after which `member_id` campaigns in `term`, for the `attempt`th time in its
    /// life: from one election timeout to one and a quarter.
    pub(crate) fn election_timeout_parts(&self, member_id: u64, term: u64, attempt: u64) -> usize {
        let parts = self.election_ticks * PARTS_PER_TICK as usize;
        let spread = (parts / 4).max(1);
        let drawn = mix(self.seed ^ mix(member_id ^ mix(term ^ mix(attempt)))) % spread as u64;
        parts + usize::try_from(drawn).expect("below a quarter of the parts")
    }

    /// Parts of a tick after which `member_id` campaigns in `term` when its leader is known to be gone: up to a tenth
    /// of an election timeout, and at least 1.
    pub(crate) fn haste_parts(&self, member_id: u64, term: u64, attempt: u64) -> usize {
        let spread = (self.election_ticks * PARTS_PER_TICK as usize / 10).max(1);
        let drawn = mix(!self.seed ^ mix(member_id ^ mix(term ^ mix(attempt)))) % spread as u64;
        1 + usize::try_from(drawn).expect("below a tenth of the parts")
    }
}

/// Spreads a seed over all bits (SplitMix64's finalizer).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
