//! Runs on: connection core, raft core, apply core, scrub thread.
//!
//! The counters: [`Counters`] of each connection core, [`CommitCounters`] of raft, apply and the checkpoints,
//! [`ScrubCounters`] of the scrub.
//!
//! Invariants: every [`Count`] has one writer, the core that it belongs to. A counter only grows.

use std::time::Duration;

use super::{
    histogram::{Count, Histogram},
    latency::{Applies, OwnRequests, Requests},
};
use crate::{
    error::{Code, Error},
    insight::trace::PHASES,
    method::{Flow, Method},
};

/// Nanoseconds of a millisecond: the unit in which first buckets are given.
const MS: u64 = 1_000_000;

/// Number of gRPC codes.
const CODES: usize = 17;

/// Their names, by number.
pub const CODE_NAMES: [&str; CODES] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];

/// The counters of one method.
#[derive(Debug, Default)]
pub struct OfMethod {
    /// Calls begun.
    pub started: Count,
    /// Calls ended, by code.
    pub handled: [Count; CODES],
    /// Messages from clients.
    pub received: Count,
    /// Messages to clients.
    pub sent: Count,
}

/// The API versions of clients that are counted separately. A client may claim anything, so the list is fixed. A
/// version that is not on it counts as the last one.
pub const CLIENT_VERSIONS: [&str; 13] =
    ["3.0", "3.1", "3.2", "3.3", "3.4", "3.5", "3.6", "3.7", "3.8", "3.9", "4.0", "unknown", "other"];

/// The types of calls that are counted separately, beside the client's version.
pub const CALL_TYPES: [&str; 2] = ["unary", "stream"];

/// Every check of /livez and /readyz: its endpoint and name, in the order of [`Counters::checks`].
pub const CHECKS: [(&str, &str); 5] = [
    ("livez", "serializable_read"),
    ("readyz", "data_corruption"),
    ("readyz", "serializable_read"),
    ("readyz", "linearizable_read"),
    ("readyz", "non_learner"),
];

/// The streams whose failures are counted, with etcd's names for them.
pub const FAILING_STREAMS: [(Method, &str); 2] =
    [(Method::Watch, "watch"), (Method::LeaseKeepAlive, "lease-keepalive")];

/// Why learners are not promoted, in etcd's words for its own use. The last one is for all others.
pub const PROMOTION_REASONS: [&str; 5] = [
    "etcdserver: can only promote a learner member which is in sync with leader",
    "membership: can only promote a learner member",
    "membership: ID not found",
    "etcdserver: re-configuration failed due to not enough started members",
    "other",
];

/// Results of one check.
#[derive(Debug, Default)]
pub struct Check {
    /// It passed.
    pub passed: Count,
    /// It failed.
    pub failed: Count,
    /// The last result: its time in microseconds shifted left by one, and in the lowest bit whether the check passed; 0
    /// before the first.
    pub last: Count,
}

/// A piece of a watch stream's output, as far as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchPiece {
    /// It has this many events, at least one.
    Events(u64),
    /// It has automatic progress, and no events.
    Progress,
    /// It has only answers to requests.
    Control,
}

/// How long clients let pieces of watch streams wait, by what the pieces have.
#[derive(Debug)]
pub struct WatchSends {
    /// Pieces with events.
    pub events: Histogram<14>,
    /// The same, divided by the events of the piece.
    pub per_event: Histogram<14>,
    /// Pieces with automatic progress.
    pub progress: Histogram<14>,
    /// Pieces with answers to requests.
    pub control: Histogram<14>,
}

impl Default for WatchSends {
    fn default() -> Self {
        let histogram = || Histogram::new(MS);
        Self { events: histogram(), per_event: histogram(), progress: histogram(), control: histogram() }
    }
}

impl WatchSends {
    /// Counts a piece that was sent. Its client let it wait for `waited`.
    pub fn sent(&self, piece: WatchPiece, waited: Duration) {
        match piece {
            WatchPiece::Events(events) => {
                let waited_ns = u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX);
                self.events.observe(waited_ns);
                self.per_event.observe(waited_ns / events.max(1));
            }
            WatchPiece::Progress => self.progress.observe_time(waited),
            WatchPiece::Control => self.control.observe_time(waited),
        }
    }
}

/// The counters of one connection core.
#[derive(Debug)]
pub struct Counters {
    /// By method.
    pub methods: Vec<OfMethod>,
    /// Calls by type and by client's version.
    pub requests: [[Count; CLIENT_VERSIONS.len()]; CALL_TYPES.len()],
    /// Bytes of messages from clients. **Units** bytes.
    pub received_bytes: Count,
    /// Bytes of messages to clients. **Units** bytes.
    pub sent_bytes: Count,
    /// Answers of /health: healthy.
    pub health_ok: Count,
    /// Answers of /health: not healthy.
    pub health_failed: Count,
    /// Results of the checks, as [`CHECKS`] lists them.
    pub checks: [Check; CHECKS.len()],
    /// Reads of ranges, including those in txns that only read.
    pub ranges: Count,
    /// Txns of more than one read.
    pub txns: Count,
    /// Proposals that were refused because there was no leader, or that were not answered in time.
    pub proposals_failed: Count,
    /// Linearizable reads that were refused.
    pub reads_failed: Count,
    /// Those of them that no round confirmed in time.
    pub reads_late: Count,
    /// Learners that this member promoted as the leader.
    pub promotions: Count,
    /// Promotions that it refused as the leader, by [`PROMOTION_REASONS`].
    pub promotions_failed: [Count; PROMOTION_REASONS.len()],
    /// Durations of unary requests.
    pub latencies: Requests,
    /// Time that unary requests spent, by phase. **Units** nanoseconds.
    pub phases: [Count; PHASES.len()],
    /// Slow requests, by the phase that took longest.
    pub slow: [Count; PHASES.len()],
    /// Reads that took longer than the limit for an apply.
    pub slow_reads: Count,
    /// Durations of backups, whole.
    pub backups: Histogram<17>,
    /// How long clients let watch streams wait.
    pub watch_sends: WatchSends,
    /// Answers to /metrics.
    pub scrapes: Count,
    /// Durations of Hash.
    pub hash: Histogram<15>,
    /// Durations of HashKV.
    pub hash_kv: Histogram<15>,
    /// Streams whose clients sent what is no message, by [`FAILING_STREAMS`].
    pub stream_failures: [Count; FAILING_STREAMS.len()],
    /// Open watch streams.
    pub watch_streams: Count,
    /// Watchers.
    pub watchers: Count,
    /// Watchers that are behind.
    pub watchers_unsynced: Count,
    /// Events for watchers so far.
    pub events: Count,
    /// Events that wait for their stream to take them.
    pub events_pending: Count,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            methods: Method::ALL.iter().map(|_| OfMethod::default()).collect(),
            requests: Default::default(),
            received_bytes: Count::default(),
            sent_bytes: Count::default(),
            health_ok: Count::default(),
            health_failed: Count::default(),
            checks: Default::default(),
            ranges: Count::default(),
            txns: Count::default(),
            proposals_failed: Count::default(),
            reads_failed: Count::default(),
            reads_late: Count::default(),
            promotions: Count::default(),
            promotions_failed: Default::default(),
            latencies: Requests::default(),
            phases: Default::default(),
            slow: Default::default(),
            slow_reads: Count::default(),
            backups: Histogram::new(10 * MS),
            watch_sends: WatchSends::default(),
            scrapes: Count::default(),
            hash: Histogram::new(10 * MS),
            hash_kv: Histogram::new(10 * MS),
            stream_failures: Default::default(),
            watch_streams: Count::default(),
            watchers: Count::default(),
            watchers_unsynced: Count::default(),
            events: Count::default(),
            events_pending: Count::default(),
        }
    }
}

impl Counters {
    /// A call began.
    pub fn started(&self, method: Method) {
        self.methods[method as usize].started.add(1);
    }

    /// A call ended.
    pub fn handled(&self, method: Method, code: Code) {
        self.methods[method as usize].handled[code as usize].add(1);
    }

    /// A message of `bytes` came.
    pub fn received(&self, method: Method, bytes: usize) {
        self.methods[method as usize].received.add(1);
        self.received_bytes.add(bytes as u64);
    }

    /// `count` messages, of `bytes` together, were sent.
    pub fn sent(&self, method: Method, count: usize, bytes: usize) {
        self.methods[method as usize].sent.add(count as u64);
        self.sent_bytes.add(bytes as u64);
    }

    /// Counts a call of a client with this API version, if it named one.
    pub fn requested(&self, method: Method, version: Option<&[u8]>) {
        let unknown = CLIENT_VERSIONS.len() - 2;
        let position = match version {
            None => unknown,
            Some([b'3', b'.', minor @ b'0'..=b'9']) => usize::from(minor - b'0'),
            Some(version) => {
                let known = CLIENT_VERSIONS[..=unknown].iter().position(|known| known.as_bytes() == version);
                known.unwrap_or(CLIENT_VERSIONS.len() - 1)
            }
        };
        self.requests[usize::from(method.flow() != Flow::Unary)][position].add(1);
    }

    /// Counts what became of a promotion that this member decided about as the leader.
    pub fn promoted(&self, result: Result<(), &Error>) {
        let position = match result {
            Ok(()) => return self.promotions.add(1),
            Err(Error::LearnerNotReady) => 0,
            Err(Error::MemberNotLearner) => 1,
            Err(Error::MemberNotFound | Error::MemberRemoved) => 2,
            Err(Error::NotEnoughStarted) => 3,
            Err(_) => 4,
        };
        self.promotions_failed[position].add(1);
    }

    /// Counts a stream that has failed: its client has sent what is no message.
    pub fn stream_failed(&self, method: Method) {
        let position = FAILING_STREAMS.iter().position(|(failing, _)| *failing == method);
        position.into_iter().for_each(|position| self.stream_failures[position].add(1));
    }

    /// Counts a result of a check of /livez or /readyz.
    pub fn checked(&self, endpoint: &str, name: &str, has_passed: bool, now: Duration) {
        let Some(position) = CHECKS.iter().position(|check| *check == (endpoint, name)) else { return };
        let check = &self.checks[position];
        if has_passed { &check.passed } else { &check.failed }.add(1);
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX >> 1);
        check.last.set(now_us << 1 | u64::from(has_passed));
    }
}

/// The counters of the scrub.
#[derive(Debug, Default)]
pub struct ScrubCounters {
    /// Bytes that were read again.
    pub bytes: Count,
    /// Places that were found damaged and were not known to be.
    pub damage: Count,
    /// When the last round ended; 0 for never. **Units** seconds after 1970.
    pub ended: Count,
}

/// The counters on the way of an entry: those of raft, apply and the checkpoints.
#[derive(Debug)]
pub struct CommitCounters {
    /// Puts, including those in txns.
    pub puts: Count,
    /// Bytes of keys and values that were put. **Units** bytes.
    pub put_bytes: Count,
    /// Deletes, including those in txns. A revoked lease counts one for each of its keys.
    pub deletes: Count,
    /// Reads inside txns that write.
    pub ranges: Count,
    /// Txns of more than one operation.
    pub txns: Count,
    /// Leases granted.
    pub leases_granted: Count,
    /// Renewals.
    pub leases_renewed: Count,
    /// Leases revoked, including expired ones.
    pub leases_revoked: Count,
    /// Leases whose revocation this member proposed because they had expired.
    pub leases_expired: Count,
    /// Times to live of granted leases. **Units** seconds.
    pub lease_ttl: Histogram<24>,
    /// How often this member, as the leader, sent heartbeats late.
    pub heartbeat_failures: Count,
    /// 1 while a state of another member is installed.
    pub installs_inflight: Count,
    /// How often a leader was found that was not the leader before.
    pub leader_changes: Count,
    /// Durations of the entries that the member proposed itself.
    pub own_requests: OwnRequests,
    /// Durations of applying entries.
    pub applies: Applies,
    /// Entries that took longer than `--warning-apply-duration`.
    pub slow_applies: Count,
    /// Versions that sweeps have dropped.
    pub versions_dropped: Count,
    /// When the last sweep ended, in microseconds since the process began; 0 before the first.
    pub swept_at_us: Count,
    /// Durations of sweeps. Each is measured from the compaction's entry on.
    pub sweep: Histogram<14>,
    /// Durations of the steps of sweeps.
    pub sweep_step: Histogram<13>,
    /// Durations of applying the entries of compactions.
    pub compaction: Histogram<14>,
    /// Bytes written to the log. **Units** bytes.
    pub wal_bytes: Count,
    /// Durations of the log's durable writes.
    pub wal_write: Histogram<14>,
    /// Durations of checkpoints.
    pub checkpoint: Histogram<14>,
    /// Durations of freezing what a checkpoint writes. Apply does it.
    pub checkpoint_freeze: Histogram<14>,
    /// Durations of checkpoints up to their last syncs. The checkpoint thread counts them.
    pub checkpoint_spill: Histogram<14>,
    /// Durations of the last syncs and the superblock of a checkpoint. The checkpoint thread counts them.
    pub checkpoint_commit: Histogram<14>,
    /// 1 while a defragmentation runs.
    pub defragment_inflight: Count,
    /// Durations of defragmentations.
    pub defragment: Histogram<13>,
    /// Segments emptied to give their space back.
    pub segments_emptied: Count,
    /// Bytes moved out of these segments. **Units** bytes.
    pub moved_bytes: Count,
    /// Bytes in memory of each of [`MEMORY`]. **Units** bytes.
    pub memory: [Count; MEMORY.len()],
}

/// The parts of the store in memory: records and nodes that no checkpoint has written, other nodes, and the blocks that
/// were read from extents.
pub const MEMORY: [&str; 4] = ["recent", "dirty_nodes", "clean_nodes", "blocks"];

impl Default for CommitCounters {
    fn default() -> Self {
        Self {
            puts: Count::default(),
            put_bytes: Count::default(),
            deletes: Count::default(),
            ranges: Count::default(),
            txns: Count::default(),
            leases_granted: Count::default(),
            leases_renewed: Count::default(),
            leases_revoked: Count::default(),
            leases_expired: Count::default(),
            lease_ttl: Histogram::new(1),
            heartbeat_failures: Count::default(),
            installs_inflight: Count::default(),
            leader_changes: Count::default(),
            own_requests: OwnRequests::default(),
            applies: Applies::default(),
            slow_applies: Count::default(),
            versions_dropped: Count::default(),
            swept_at_us: Count::default(),
            sweep: Histogram::new(100 * MS),
            sweep_step: Histogram::new(MS),
            compaction: Histogram::new(MS / 2),
            wal_bytes: Count::default(),
            wal_write: Histogram::new(MS),
            checkpoint: Histogram::new(10 * MS),
            checkpoint_freeze: Histogram::new(MS),
            checkpoint_spill: Histogram::new(MS),
            checkpoint_commit: Histogram::new(MS),
            defragment_inflight: Count::default(),
            defragment: Histogram::new(100 * MS),
            segments_emptied: Count::default(),
            moved_bytes: Count::default(),
            memory: Default::default(),
        }
    }
}

impl CommitCounters {
    /// Counts a defragmentation that began at `began` and has ended.
    pub fn defragmented(&self, began: Duration, now: Duration) {
        self.defragment_inflight.set(0);
        self.defragment.observe_time(now.saturating_sub(began));
    }

    /// Counts a sweep that has ended. It began with its compaction's entry.
    pub fn swept(&self, began: Duration, now: Duration) {
        self.sweep.observe_time(now.saturating_sub(began));
        self.swept_at_us.set(u64::try_from(now.as_micros()).unwrap_or(u64::MAX));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_claim_to_be_takes_a_bounded_number_of_names() {
        let counters = Counters::default();
        for version in ["3.7", "3.0", "4.0", "3.70", "", "unknown", "\"} 1"] {
            counters.requested(Method::Put, Some(version.as_bytes()));
        }
        counters.requested(Method::Watch, None);
        let row = |calls: usize| counters.requests[calls].iter().map(Count::get).collect::<Vec<_>>();
        assert_eq!(row(0), [1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 1, 1, 3]);
        assert_eq!(row(1), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
    }
}
