//! What knobs must be to one another, and to the host.
//!
//! Each rule stands with its reason; a problem names every knob that could be changed to solve it. Only what would
//! break or mislead is a problem: a merely unwise setting is the operator's business.

use std::fmt;

use crate::{
    host::Host,
    knobs::{Knobs, REGISTRY},
    value::{KIB, MIB},
};

/// A setting, or a combination of settings, that cannot work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Names of the knobs involved, the most likely culprit first.
    pub knobs: Vec<String>,
    /// What is wrong, with the values and the reason.
    pub text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.knobs.join(", "), self.text)
    }
}

/// An entry is the request plus a header and its record's framing; this is generous for both.
const ENTRY_OVERHEAD_BYTES: u64 = 64 * KIB;

/// What files are made of. **Units** bytes.
const BLOCK_BYTES: u64 = 4 * KIB;

/// Least memory for pages and blocks.
const CACHE_BYTES_MIN: u64 = 8 * MIB;
/// What a host whose memory is not known is taken to have.
const HOST_BYTES_ASSUMED: u64 = 1024 * MIB;

/// Memory that a process needs beside its budgets: code, stacks, allocator slack.
const MEMORY_BASE_BYTES: u64 = 64 * MIB;

impl Knobs {
    /// Checks bounds and the relations between knobs.
    ///
    /// **Errors**: every problem found, not only the first.
    pub fn check(&self) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        for row in REGISTRY.iter().filter(|row| !row.is_in_bounds(self)) {
            let (min, max) = row.bounds();
            let text = format!("{} of {} is out of bounds ({min} to {max})", row.get(self), row.name());
            problems.push(Problem { knobs: vec![row.name()], text });
        }
        let mut rule = |holds: bool, knobs: &[&'static str], text: String| {
            if !holds {
                problems.push(Problem { knobs: names(knobs), text });
            }
        };
        let request = widen(self.server.max_request_bytes);
        let entry = request.saturating_add(ENTRY_OVERHEAD_BYTES);
        rule(
            self.consensus.election_ms >= self.consensus.heartbeat_ms.saturating_mul(5),
            &["consensus-election-ms", "consensus-heartbeat-ms"],
            format!(
                "{} ms is less than five heartbeats of {} ms: a single late heartbeat would cause an election",
                self.consensus.election_ms, self.consensus.heartbeat_ms
            ),
        );
        rule(
            self.wal.segment_bytes >= entry && self.wal.segment_bytes >= widen(self.wal.group_bytes_max) + MIB,
            &["wal-segment-bytes", "wal-group-bytes-max", "server-max-request-bytes"],
            "a log segment must hold the largest group and the largest request's entry, with its framing".into(),
        );
        rule(
            self.store.segment_bytes >= entry && self.store.segment_bytes >= widen(self.store.write_bytes),
            &["store-segment-bytes", "store-write-bytes", "server-max-request-bytes"],
            "a page-store segment must hold one write and the largest record".into(),
        );
        rule(
            self.store.cache_bytes == 0 || widen(self.store.cache_bytes) >= CACHE_BYTES_MIN,
            &["store-cache-bytes"],
            "with so little a tree page would be read for every request: 8 MiB is the least, 0 follows the host".into(),
        );
        rule(
            self.store.write_bytes >= self.store.record_block_bytes,
            &["store-write-bytes", "store-record-block-bytes"],
            "a write must hold one block of records".into(),
        );
        rule(
            self.store.checkpoint_wal_bytes >= self.wal.segment_bytes,
            &["store-checkpoint-wal-bytes", "wal-segment-bytes"],
            "a checkpoint must let go of at least one log segment, or it only costs".into(),
        );
        rule(
            widen(self.store.recent_bytes_max) >= self.store.checkpoint_wal_bytes.saturating_mul(2),
            &["store-recent-bytes-max", "store-checkpoint-wal-bytes"],
            "while one checkpoint writes its records the next one's gather: memory for both is needed".into(),
        );
        rule(
            widen(self.consensus.proposals_bytes_max) >= entry,
            &["consensus-proposals-bytes-max", "server-max-request-bytes"],
            "the largest request could never be proposed".into(),
        );
        rule(
            self.server.connection_window_bytes >= self.server.stream_window_bytes,
            &["server-connection-window-bytes", "server-stream-window-bytes"],
            "a stream cannot use a window larger than its connection's".into(),
        );
        problems.extend(self.segments_of_parts());
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Segments that are not made of whole blocks.
    fn segments_of_parts(&self) -> impl Iterator<Item = Problem> {
        let sizes = [("wal-segment-bytes", self.wal.segment_bytes), ("store-segment-bytes", self.store.segment_bytes)];
        sizes.into_iter().filter(|(_, bytes)| bytes % BLOCK_BYTES != 0).map(|(name, bytes)| {
            let below = bytes - bytes % BLOCK_BYTES;
            let text = format!("segments are made of blocks of 4 KiB: {below} or {} would fit", below + BLOCK_BYTES);
            Problem { knobs: names(&[name]), text }
        })
    }

    /// Raises what must hold the largest request's entry to the next power of two, where it is smaller; gives the
    /// names.
    ///
    /// For a `max_request_bytes` that comes from etcd's flag, whose user knows nothing of segments.
    pub fn make_room_for_requests(&mut self, request_bytes: u64) -> Vec<String> {
        let room = request_bytes.saturating_add(ENTRY_OVERHEAD_BYTES).checked_next_power_of_two().unwrap_or(u64::MAX);
        let mut raised = Vec::new();
        for (name, size) in
            [("wal-segment-bytes", &mut self.wal.segment_bytes), ("store-segment-bytes", &mut self.store.segment_bytes)]
        {
            if *size < room {
                *size = room;
                raised.push(name.to_owned());
            }
        }
        if widen(self.consensus.proposals_bytes_max) < room {
            self.consensus.proposals_bytes_max = usize::try_from(room).unwrap_or(usize::MAX);
            raised.push("consensus-proposals-bytes-max".to_owned());
        }
        self.store.checkpoint_wal_bytes = self.store.checkpoint_wal_bytes.max(self.wal.segment_bytes);
        let recent = usize::try_from(self.store.checkpoint_wal_bytes.saturating_mul(2)).unwrap_or(usize::MAX);
        self.store.recent_bytes_max = self.store.recent_bytes_max.max(recent);
        raised
    }

    /// Checks the knobs against the machine they will run on.
    ///
    /// **Errors**: every problem found. None of them stops a server; they are for a warning and for `orlop tune`.
    pub fn check_host(&self, host: &Host) -> Result<(), Vec<Problem>> {
        let mut problems = Vec::new();
        let (serving, committing) = (self.server.cores, self.server.raft_apply.threads());
        if serving > host.cpus {
            let text = format!("{serving} serving threads on {} CPUs", host.cpus);
            problems.push(Problem { knobs: names(&["server-cores"]), text });
        } else if serving.max(1) + committing > host.cpus && committing > 0 {
            let serving = serving.max(1);
            let text = format!("{serving} serving threads and {committing} for raft and apply on {} CPUs", host.cpus);
            problems.push(Problem { knobs: names(&["server-raft-apply", "server-cores"]), text });
        }
        let budget = self.memory_bytes(host);
        if budget > host.memory_bytes {
            let text = format!(
                "the memory budgets add up to {} MiB, this host has {} MiB",
                budget / MIB,
                host.memory_bytes / MIB
            );
            let knobs = names(&["store-recent-bytes-max", "store-cache-bytes", "consensus-proposals-bytes-max"]);
            problems.push(Problem { knobs, text });
        }
        if problems.is_empty() { Ok(()) } else { Err(problems) }
    }

    /// Sum of the memory budgets that do not depend on the number of clients.
    ///
    /// **Units**: bytes.
    pub fn memory_bytes(&self, host: &Host) -> u64 {
        let budgets = [
            cache_bytes(self.store.cache_bytes, host),
            self.store.recent_bytes_max,
            self.consensus.proposals_bytes_max,
            self.consensus.tail_bytes_max,
        ];
        budgets.into_iter().map(widen).fold(MEMORY_BASE_BYTES, u64::saturating_add)
    }
}

/// What a setting of `store-cache-bytes` comes to on this host.
///
/// **Units**: bytes.
pub fn cache_bytes(setting: usize, host: &Host) -> usize {
    let memory = if host.memory_bytes == 0 { HOST_BYTES_ASSUMED } else { host.memory_bytes };
    match setting {
        0 => usize::try_from((memory / 4).max(CACHE_BYTES_MIN)).unwrap_or(usize::MAX),
        bytes => bytes,
    }
}

fn names(knobs: &[&str]) -> Vec<String> {
    knobs.iter().map(|&name| name.to_owned()).collect()
}

fn widen(size: usize) -> u64 {
    u64::try_from(size).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::RaftApply;

    /// Breaks one rule at a time; the problem must name the knob that was turned.
    #[test]
    fn each_rule_catches_its_violation_and_names_the_knob() {
        let rows: [(&str, &str); 9] = [
            ("consensus-election-ms", "499"),
            ("wal-segment-bytes", "1MiB"),
            ("wal-group-bytes-max", "64MiB"),
            ("server-max-request-bytes", "16MiB"),
            ("store-record-block-bytes", "1MiB"),
            ("store-cache-bytes", "4MiB"),
            ("store-checkpoint-wal-bytes", "4MiB"),
            ("store-recent-bytes-max", "255MiB"),
            ("server-stream-window-bytes", "16MiB"),
        ];
        for (name, text) in rows {
            let mut knobs = Knobs::default();
            if name == "store-record-block-bytes" {
                knobs.store.write_bytes = 64 << 10;
            }
            crate::knobs::knob(name).unwrap().set(&mut knobs, text).unwrap();
            let problems = knobs.check().unwrap_err();
            assert!(problems.iter().any(|p| p.knobs.iter().any(|knob| knob == name)), "{name}={text}: {problems:?}");
        }
        assert_eq!(Knobs::default().check(), Ok(()));
    }

    #[test]
    fn a_segment_that_is_not_made_of_blocks_is_refused_with_those_that_fit() {
        for name in ["wal-segment-bytes", "store-segment-bytes"] {
            let mut knobs = Knobs::default();
            crate::knobs::knob(name).unwrap().set(&mut knobs, "67109000").unwrap();
            let problems = knobs.check().unwrap_err();
            assert_eq!(problems.len(), 1, "{problems:?}");
            assert_eq!(problems[0].knobs, [name]);
            assert!(problems[0].text.ends_with("67108864 or 67112960 would fit"), "{}", problems[0].text);
        }
    }

    #[test]
    fn room_is_made_for_any_request_that_the_bounds_allow() {
        for bytes in [1, 1 << 20, 15 << 20, 16 << 20, 33 << 20, 500 << 20] {
            let mut knobs = Knobs::default();
            let raised = knobs.make_room_for_requests(bytes);
            knobs.server.max_request_bytes = usize::try_from(bytes).unwrap();
            assert_eq!(knobs.check(), Ok(()), "{bytes}");
            assert_eq!(raised.is_empty(), bytes <= 15 << 20, "{bytes}: {raised:?}");
        }
    }

    #[test]
    fn a_field_assigned_out_of_bounds_is_found() {
        let mut knobs = Knobs::default();
        knobs.wal.writes_in_flight_max = 0;
        let problems = knobs.check().unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].knobs, ["wal-writes-in-flight-max"]);
    }

    #[test]
    fn the_cache_follows_the_host_unless_it_is_set() {
        let host = |memory_mib: u64| Host { cpus: 2, memory_bytes: memory_mib * MIB, open_files_max: 1024 };
        let mib = |setting, memory| widen(cache_bytes(setting, &host(memory))) / MIB;
        assert_eq!([0, 16, 4096].map(|memory| mib(0, memory)), [256, 8, 1024]);
        assert_eq!(mib(32 << 20, 4096), 32);
    }

    #[test]
    fn a_host_too_small_is_named() {
        let host = Host { cpus: 2, memory_bytes: 512 * MIB, open_files_max: 1024 };
        let mut knobs = Knobs::default();
        knobs.server.cores = 3;
        let problems = knobs.check_host(&host).unwrap_err();
        assert_eq!(problems[0].text, "3 serving threads on 2 CPUs");
        assert!(problems[1].knobs.iter().any(|knob| knob == "store-recent-bytes-max"));
        (knobs.server.cores, knobs.server.raft_apply) = (0, RaftApply::TwoThreads);
        let problems = knobs.check_host(&host).unwrap_err();
        assert_eq!(problems[0].text, "1 serving threads and 2 for raft and apply on 2 CPUs");
        assert_eq!(problems[0].knobs, ["server-raft-apply", "server-cores"]);
        knobs.server.raft_apply = RaftApply::OneThread;
        assert_eq!(knobs.check_host(&host).unwrap_err().len(), problems.len() - 1);
    }
}
