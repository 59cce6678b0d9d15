//! Runs on: every core.
//!
//! The state that all cores of this process share: the member's identity, its bounds, and the published state.
//!
//! Invariants:
//! - Each field has one writer, but for `is_removed`, which apply and raft set, and `hashes`, which has a lock of its
//!   own that is taken once per compaction. Apply publishes `view`, `cluster`,
//!   `sizes`, `swept_revision`, `standstill`, `is_behind`, `has_leases` and `raft.applied`. Raft publishes the rest of
//!   `raft`, and `links`. Each connection core writes its own entry of `floors` and `connections`, and each loop its
//!   own beat of `pulse`. All cores read everything.
//! - Everything that a view shows was durable before the view was published. A reply leaves after the view that holds
//!   its write was published. So on a single voter, any view loaded after a request arrived answers it linearizably
//!   (`raft.read_floor`).
//!
//! This file holds values only. Nothing here waits, or knows what a request is.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use consensus::{Identity, Member};
use engine::{Published, disk::FileSystem};
use proto::etcdserverpb as pb;
use tokio::sync::{Notify, watch};

use crate::{auth::Users, floor, gathered::Gathered, hashes::Hashes, header::Ids};

pub use pb::AlarmType as Alarm;

/// The bound on the data of this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The quota; `None` for no quota. **Units** bytes.
    pub bytes: Option<u64>,
    /// Below this amount of data, an alarm that the quota raised is disarmed; 0 for never. **Units** bytes.
    pub disarm_below: u64,
}

impl Quota {
    /// A quota of `bytes`; `u64::MAX` means none. Its alarm is disarmed below `disarm_percent` of it; 0 means never.
    pub fn new(bytes: u64, disarm_percent: u64) -> Self {
        let bytes = (bytes < u64::MAX).then_some(bytes);
        let part = u128::from(bytes.unwrap_or(u64::MAX)) * u128::from(disarm_percent.min(100)) / 100;
        Self { bytes, disarm_below: u64::try_from(part).expect("a part of a u64") }
    }

    /// The quota as Status and metrics show it; negative for none.
    pub fn shown(&self) -> i64 {
        self.bytes.map_or(-1, |bytes| i64::try_from(bytes).unwrap_or(i64::MAX))
    }

    /// Whether a request of `cost` fits beside `used` bytes. A request without cost always fits.
    pub fn has_room(&self, used: u64, cost: u64) -> bool {
        cost == 0 || self.bytes.is_none_or(|bytes| used.saturating_add(cost) < bytes)
    }
}

/// The bounds on requests.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a marshalled entry at most. **Units** bytes.
    pub request_bytes_max: usize,
    /// Bytes of a message from a client at most. **Units** bytes.
    pub receive_bytes_max: usize,
    /// Operations in one level of a txn.
    pub txn_ops_max: usize,
    /// How long a write to the log may take before the disk counts as hung.
    pub log_wait_max: Duration,
    /// Bytes of all answers together that are gathered before they are sent. **Units** bytes of memory.
    pub gathered_bytes_max: usize,
    /// Entries that a scan visits before its core turns to other work.
    pub scan_entries_per_turn: usize,
    /// Revisions that one core may hold.
    pub held_revisions_max: usize,
    /// How long a revision may be held.
    pub held_revision_age_max: Duration,
    /// How long a proposal may take: 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// How long a member hears nothing of a leader before it campaigns.
    pub election_timeout: Duration,
    /// Learners that the cluster may have.
    pub learners_max: usize,
    /// Whether changes of the members are refused that could lose the quorum.
    pub is_reconfig_strict: bool,
    /// Connections of all cores together.
    pub connections_max: usize,
    /// Quota on the data of the store.
    pub quota: Quota,
    /// Whether the health service says that this member does not serve while it defragments.
    pub withdraws_for_defragment: bool,
    /// The address of this host from which other members are dialled, if that matters.
    pub dial_from: Option<IpAddr>,
    /// Bytes of a backup between two write-backs of the log's file system; 0 for no write-backs.
    pub snapshot_write_back_bytes: u64,
    /// A simple token that is not used for so long ends.
    pub token_time_to_live: Duration,
    /// Whether the hash of each compaction is taken.
    pub takes_hashes: bool,
}

/// Who raised an alarm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RaisedBy {
    /// A client raised it, or a member of etcd, whose entries do not say who raised it.
    Hand,
    /// The quota of the alarm's member raised it.
    Quota,
}

/// The active alarms, each with a member id and the number of its type.
pub type Alarms = BTreeMap<(u64, i32), RaisedBy>;

/// Those of `alarms` that are of this type; all, if it is none. Each with the id of its member.
pub fn alarms_of(alarms: &Alarms, kind: i32) -> Vec<(u64, i32)> {
    let is_wanted = |of: i32| kind == Alarm::None as i32 || kind == of;
    alarms.keys().copied().filter(|(_, of)| is_wanted(*of)).collect()
}

/// An alarm's name. A number without a name is its own name.
pub fn alarm_name(alarm: i32) -> String {
    Alarm::try_from(alarm).map_or_else(|_| alarm.to_string(), |alarm| alarm.as_str_name().to_owned())
}

/// An alarm as Status shows it: Go's text form of the message.
pub fn alarm_text(member: u64, alarm: i32) -> String {
    let alarm = alarm_name(alarm);
    if member == 0 { format!("alarm:{alarm}") } else { format!("memberID:{member}  alarm:{alarm}") }
}

/// The small replicated tables beside the keys.
#[derive(Clone, Debug, Default)]
pub struct Cluster {
    /// Members by id.
    pub members: Vec<Member>,
    /// Ids of former members. They never return.
    pub removed: BTreeSet<u64>,
    /// Active alarms.
    pub alarms: Alarms,
    /// Decided cluster version, such as `3.7.0`.
    pub version: Option<String>,
    /// The last decision about a downgrade, if there was one.
    pub downgrade: Option<Downgrade>,
}

impl Cluster {
    /// The version of etcd's schema that a database of this cluster has. It follows what the cluster has decided, so
    /// that all its members can open the file; those before 3.6 name none.
    pub fn storage_version(&self) -> Option<&str> {
        const FIRST: Minor = (3, 6);
        let own = crate::STORAGE_VERSION;
        let decided = self.version.as_deref().and_then(|version| Some((version, minor_of(version)?)));
        match decided {
            Some((_, decided)) if decided < FIRST => None,
            Some((version, decided)) if Some(decided) < minor_of(own) => Some(version),
            _ => Some(own),
        }
    }
}

/// A release, as far as clusters care: major and minor.
pub type Minor = (u64, u64);

/// Major and minor of a version in dotted form.
pub fn minor_of(version: &str) -> Option<Minor> {
    let mut numbers = version.split('.').map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// A decision to downgrade the cluster, or not to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Downgrade {
    /// The cluster is downgraded.
    pub is_enabled: bool,
    /// To this version, such as `3.6.0`; empty if it is not.
    pub target: String,
}

/// Where raft stands, for headers and status.
#[derive(Debug)]
pub struct Raft {
    /// Current term.
    pub term: AtomicU64,
    /// Leader id, 0 if none.
    pub leader: AtomicU64,
    /// Committed index, of entries that are durable here. It is known here before another member hears of it from this
    /// one.
    pub commit: AtomicU64,
    /// Applied index.
    pub applied: AtomicU64,
    /// Entries proposed and not yet answered.
    pub pending: AtomicUsize,
    /// A view that has applied this index answers a linearizable read without a round. `u64::MAX` while there are other
    /// voters, which may have elected another leader.
    pub read_floor: AtomicU64,
    /// The state of any other member would help this one: its log lacks what it may have promised.
    pub wants_state: AtomicBool,
    /// When this member became the leader last, on its clock; 0 for never. **Units** nanoseconds.
    pub elected_at: AtomicU64,
    /// When a leader was known last, on this member's clock, if none is known now; 0 for never. **Units** nanoseconds.
    pub lost_at: AtomicU64,
}

impl Default for Raft {
    fn default() -> Self {
        let [term, leader, commit, applied, elected_at, lost_at] = [0; 6].map(AtomicU64::new);
        let (pending, read_floor) = (AtomicUsize::new(0), AtomicU64::new(u64::MAX));
        let wants_state = AtomicBool::new(false);
        Self { term, leader, commit, applied, pending, read_floor, wants_state, elected_at, lost_at }
    }
}

/// Sizes of the store. **Units** bytes.
#[derive(Debug, Default)]
pub struct Sizes {
    /// Allocated bytes, including those that are not checkpointed yet; never 0.
    pub allocated: AtomicU64,
    /// Reachable bytes after the last turn. They count against the quota.
    pub in_use: AtomicU64,
}

/// The number of connections of each core, and whether one is to end for another one.
#[derive(Debug)]
pub struct Connections {
    counts: Vec<AtomicUsize>,
    place_wanted: Notify,
}

impl Connections {
    /// The counts for `cores` cores, all 0.
    pub fn new(cores: usize) -> Self {
        Self { counts: (0..cores).map(|_| AtomicUsize::new(0)).collect(), place_wanted: Notify::new() }
    }

    /// The count of one core.
    pub fn of(&self, core: usize) -> &AtomicUsize {
        &self.counts[core]
    }

    /// Number of connection cores.
    pub fn cores(&self) -> usize {
        self.counts.len()
    }

    /// Tells one connection at a time that another one wants its place: of those that wait for this, the one that has
    /// waited for longest. If none does, the next one is told that will.
    pub fn place_wanted(&self) -> &Notify {
        &self.place_wanted
    }

    /// The number of all connections, and the position of the core with the fewest.
    pub fn total_and_least(&self) -> (usize, usize) {
        let counts = || self.counts.iter().map(|count| count.load(Ordering::Relaxed));
        let least = counts().enumerate().min_by_key(|(_, count)| *count).map_or(0, |(position, _)| position);
        (counts().sum(), least)
    }
}

/// When a loop last moved, on the member's clock. **Units** nanoseconds.
#[derive(Debug, Default)]
pub struct Beat(AtomicU64);

impl Beat {
    /// The loop moves at `now`.
    pub fn strike(&self, now: Duration) {
        self.0.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// When each loop of the member last moved. Each has one writer: its loop, once in a heartbeat or more often.
#[derive(Debug)]
pub struct Pulse {
    /// Raft.
    pub raft: Beat,
    /// Apply.
    pub apply: Beat,
    /// The connection cores.
    pub cores: Vec<Beat>,
}

impl Pulse {
    fn new(cores: usize) -> Self {
        Self { raft: Beat::default(), apply: Beat::default(), cores: (0..cores).map(|_| Beat::default()).collect() }
    }

    /// How long raft's loop has not moved; nothing before it has moved at all.
    pub fn raft_silence(&self, now: Duration) -> Duration {
        match self.raft.0.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            moved => now.saturating_sub(Duration::from_nanos(moved)),
        }
    }

    /// When the loop last moved that has not moved for longest.
    pub fn oldest(&self) -> Duration {
        let beats = [&self.raft, &self.apply].into_iter().chain(&self.cores);
        Duration::from_nanos(beats.map(|beat| beat.0.load(Ordering::Relaxed)).min().unwrap_or(0))
    }
}

/// See the head of this file.
pub struct Shared {
    /// The identity of the member.
    pub identity: Identity,
    /// Bounds on requests.
    pub limits: Limits,
    /// The newest view.
    pub view: Published,
    /// The part of each answer that names the member.
    pub ids: Ids,
    /// Members, alarms, version.
    pub cluster: ArcSwap<Cluster>,
    /// Users and roles, as the last applied entry has left them.
    pub users: ArcSwap<Users>,
    /// This member was removed from the cluster: it has applied its removal, or another member has said so. It must
    /// stop.
    pub is_removed: AtomicBool,
    /// Where raft stands.
    pub raft: Raft,
    /// Since when this member is connected to others, by id, on its clock. Who transports messages publishes it.
    pub links: ArcSwap<BTreeMap<u64, Duration>>,
    /// When the log last said that another member is refused, on this member's clock; 0 for never. **Units**
    /// nanoseconds.
    pub refusal_told_at: AtomicU64,
    /// Sizes of the store.
    pub sizes: Sizes,
    /// The revisions that each core holds; see [`crate::floor`].
    pub floors: Vec<Arc<floor::Told>>,
    /// The last compaction of which everything is dropped that no reader holds.
    pub swept_revision: AtomicI64,
    /// The hashes of compactions.
    pub hashes: Hashes,
    /// A number that no other life of this member has; never 0.
    pub life: u64,
    /// Numbers of connections with other members: one that was established later has a higher one.
    pub connection_numbers: AtomicU64,
    /// Source of request ids. They follow etcd's scheme, with one counter for the process.
    pub request_ids: AtomicU64,
    /// Connections by core.
    pub connections: Arc<Connections>,
    /// Whether the loops move.
    pub pulse: Pulse,
    /// Whether the health service says that this member serves.
    pub is_serving: watch::Sender<bool>,
    /// The process ends. It is set once.
    pub is_stopping: AtomicBool,
    /// The log or a checkpoint waits for space on its disk.
    pub is_disk_full: AtomicBool,
    /// A write to the log has not ended for a long time.
    pub is_log_stalled: AtomicBool,
    /// Whether there are leases. While there are none, no key has one.
    pub has_leases: AtomicBool,
    /// Why apply stands still, if it does: the page that the next entry needs and that cannot be read.
    pub standstill: ArcSwapOption<String>,
    /// The state lacks something that was acknowledged before this start, because apply stands still. So no read is
    /// linearizable, and of leases nothing can be said.
    pub is_behind: AtomicBool,
    /// The file system of the log.
    pub log_file_system: FileSystem,
    /// The answers that are gathered.
    pub gathered: Arc<Gathered>,
}

impl Shared {
    /// The shared state of the member `identity` with `cores` connection cores, at its start.
    pub fn new(
        identity: Identity,
        limits: Limits,
        view: Published,
        cores: usize,
        first_request_id: u64,
        log_file_system: FileSystem,
    ) -> Self {
        Self {
            ids: Ids::new(identity.cluster_id, identity.member_id),
            gathered: Gathered::new(limits.gathered_bytes_max),
            hashes: Hashes::new(limits.takes_hashes),
            identity,
            limits,
            view,
            cluster: ArcSwap::default(),
            users: ArcSwap::default(),
            is_removed: AtomicBool::new(false),
            raft: Raft::default(),
            links: ArcSwap::default(),
            refusal_told_at: AtomicU64::new(0),
            sizes: Sizes::default(),
            floors: (0..cores).map(|_| Arc::default()).collect(),
            swept_revision: AtomicI64::new(-1),
            life: first_request_id.max(1),
            connection_numbers: AtomicU64::new(0),
            request_ids: AtomicU64::new(first_request_id),
            connections: Arc::new(Connections::new(cores)),
            pulse: Pulse::new(cores),
            is_serving: watch::Sender::new(true),
            is_stopping: AtomicBool::new(false),
            is_disk_full: AtomicBool::new(false),
            is_log_stalled: AtomicBool::new(false),
            has_leases: AtomicBool::new(true),
            standstill: ArcSwapOption::empty(),
            is_behind: AtomicBool::new(false),
            log_file_system,
        }
    }

    /// The shared state of member 0xab of cluster 1 with `cores` cores. Its log is in the working directory.
    #[cfg(test)]
    pub(crate) fn for_tests(view: Published, cores: usize) -> Self {
        let limits = Limits {
            held_revisions_max: 1,
            held_revision_age_max: Duration::ZERO,
            request_bytes_max: 1 << 20,
            receive_bytes_max: 1 << 20,
            txn_ops_max: 128,
            scan_entries_per_turn: 128,
            gathered_bytes_max: 1 << 20,
            log_wait_max: Duration::from_secs(2),
            request_timeout: Duration::from_secs(7),
            election_timeout: Duration::from_secs(1),
            learners_max: 1,
            is_reconfig_strict: true,
            connections_max: 8,
            quota: Quota::new(1 << 31, 90),
            withdraws_for_defragment: true,
            dial_from: None,
            snapshot_write_back_bytes: 0,
            token_time_to_live: Duration::from_secs(300),
            takes_hashes: false,
        };
        let identity = Identity { cluster_id: 1, member_id: 0xab };
        let log = FileSystem::of(std::path::Path::new(".")).expect("there is a working directory");
        Self::new(identity, limits, view, cores, 1, log)
    }

    /// The next request id.
    pub fn next_request_id(&self) -> u64 {
        self.request_ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether there is a voter beside this member.
    pub fn has_other_voters(&self) -> bool {
        let is_other = |member: &Member| member.id != self.identity.member_id && !member.is_learner;
        self.cluster.load().members.iter().any(is_other)
    }

    /// Whether this member is a learner.
    pub fn is_learner(&self) -> bool {
        let is_own = |member: &Member| member.id == self.identity.member_id && member.is_learner;
        self.cluster.load().members.iter().any(is_own)
    }

    /// Whether a leader is known.
    pub fn has_leader(&self) -> bool {
        self.raft.leader.load(Ordering::Acquire) != 0
    }

    /// Whether no leader has been known for an election timeout, so that clients are refused who want one. A leader
    /// that is gone is forgotten at once here, and the next one is there within a moment: who asks meanwhile waits for
    /// it. etcd goes on to believe in the old one for an election timeout.
    pub fn is_leaderless(&self, now: Duration) -> bool {
        if self.has_leader() {
            return false;
        }
        let lost_at = self.raft.lost_at.load(Ordering::Acquire);
        lost_at == 0 || now >= Duration::from_nanos(lost_at) + self.limits.election_timeout
    }

    /// A response header at `revision`.
    pub fn header(&self, revision: i64) -> pb::ResponseHeader {
        pb::ResponseHeader {
            cluster_id: self.identity.cluster_id,
            member_id: self.identity.member_id,
            revision,
            raft_term: self.raft.term.load(Ordering::Acquire),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_fits_as_long_as_the_sum_stays_below_the_quota() {
        let quota = Quota::new(1000, 90);
        assert!(quota.has_room(499, 500) && !quota.has_room(500, 500) && quota.has_room(5000, 0));
        assert_eq!((quota.shown(), quota.disarm_below), (1000, 900));
        let none = Quota::new(u64::MAX, 90);
        assert!(none.has_room(u64::MAX, 500));
        assert_eq!(none.shown(), -1);
    }

    #[test]
    fn the_schema_is_that_of_the_clusters_version_and_none_before_3_6() {
        for (version, expected) in [
            (None, Some("3.7.0")),
            (Some("3.0.0"), None),
            (Some("3.5.0"), None),
            (Some("3.6.0"), Some("3.6.0")),
            (Some("3.7.0"), Some("3.7.0")),
            (Some("3.10.0"), Some("3.7.0")),
        ] {
            let cluster = Cluster { version: version.map(str::to_owned), ..Cluster::default() };
            assert_eq!(cluster.storage_version(), expected, "{version:?}");
        }
    }
}
