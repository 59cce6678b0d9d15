//! The knobs, grouped by who reads them. One declaration gives the field, its documentation and its registry row.
//!
//! Invariants:
//! - A name is `group-field` with dashes (`wal-segment-bytes`), unique, and the flag that sets it, unless etcd has a
//!   flag for the same thing: then that flag, with etcd's spelling and text, sets it on the command line.
//! - Every default lies within its bounds. Bounds are inclusive.
//! - `_max` is inclusive; a unit stands last in a name.
//!
//! What values must be to one another is in `check`.

use crate::{
    error::Error,
    value::{GIB, IoPathChoice, KIB, MIB, RaftApply, Unit, Value},
};

/// One row of the registry.
#[derive(Debug)]
pub struct Knob {
    /// The struct's field in `Knobs`.
    pub group: &'static str,
    /// The knob's field in that struct.
    pub field: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// etcd's flag for it, without dashes.
    pub etcd_flag: Option<&'static str>,
    /// Its documentation, line by line.
    pub help: &'static [&'static str],
    get: fn(&Knobs) -> String,
    set: fn(&mut Knobs, &str) -> Result<(), Error>,
    in_bounds: fn(&Knobs) -> bool,
    bounds: fn() -> (String, String),
}

impl Knob {
    /// Name on the command line and in a knobs file.
    pub fn name(&self) -> String {
        format!("{}-{}", self.group, self.field.replace('_', "-"))
    }

    /// The value as text that `set` takes.
    pub fn get(&self, knobs: &Knobs) -> String {
        (self.get)(knobs)
    }

    /// Sets the value from text.
    ///
    /// **Errors**: `BadValue`, `OutOfBounds`; the knobs are then unchanged.
    pub fn set(&self, knobs: &mut Knobs, text: &str) -> Result<(), Error> {
        (self.set)(knobs, text)
    }

    /// Smallest and largest value, as text.
    pub fn bounds(&self) -> (String, String) {
        (self.bounds)()
    }

    /// The default, as text.
    pub fn default_text(&self) -> String {
        self.get(&Knobs::default())
    }

    /// Whether the value lies within the bounds; a field may have been assigned without `set`.
    pub(crate) fn is_in_bounds(&self, knobs: &Knobs) -> bool {
        (self.in_bounds)(knobs)
    }
}

/// The registry row of a name such as `wal-segment-bytes`.
///
/// **Errors**: `UnknownKnob`.
pub fn knob(name: &str) -> Result<&'static Knob, Error> {
    REGISTRY.iter().find(|k| k.name() == name).ok_or_else(|| Error::UnknownKnob { name: name.into() })
}

macro_rules! knobs {
    ($(
        $(#[doc = $group_doc:literal])+
        $group:ident: $Group:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident: $ty:ty = $default:expr, $min:expr => $max:expr, $unit:ident $(, etcd $etcd:literal)?;
            )+
        }
    )+) => {
        $(
            $(#[doc = $group_doc])+
            #[derive(Debug, Clone, PartialEq)]
            pub struct $Group {
                $(
                    $(#[doc = $doc])+
                    ///
                    #[doc = concat!("**Units**: ", stringify!($unit), ". **Bounds**: `", stringify!($min), "` to `",
                        stringify!($max), "`. **Default**: `", stringify!($default), "`.")]
                    pub $field: $ty,
                )+
            }

            impl Default for $Group {
                fn default() -> Self {
                    Self { $($field: $default),+ }
                }
            }
        )+

        /// All settings, by owner.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct Knobs {
            $(
                $(#[doc = $group_doc])+
                pub $group: $Group,
            )+
        }

        /// Every knob, in the order of declaration.
        pub static REGISTRY: &[Knob] = &[$($(
            Knob {
                group: stringify!($group),
                field: stringify!($field),
                unit: Unit::$unit,
                etcd_flag: only(&[$($etcd)?]),
                help: &[$($doc),+],
                get: |knobs| knobs.$group.$field.show(Unit::$unit),
                set: |knobs, text| {
                    let name = concat!(stringify!($group), "-", stringify!($field));
                    knobs.$group.$field = parse::<$ty>(name, text, Unit::$unit, $min, $max)?;
                    Ok(())
                },
                in_bounds: |knobs| ($min..=$max).contains(&knobs.$group.$field),
                bounds: || {
                    let (min, max): ($ty, $ty) = ($min, $max);
                    (min.show(Unit::$unit), max.show(Unit::$unit))
                },
            },
        )+)+];
    };
}

const fn only(flags: &[&'static str]) -> Option<&'static str> {
    if flags.is_empty() { None } else { Some(flags[0]) }
}

fn parse<T: Value>(name: &str, text: &str, unit: Unit, min: T, max: T) -> Result<T, Error> {
    let name = || name.replace('_', "-");
    let value = T::parse(text, unit).ok_or_else(|| Error::BadValue {
        name: name(),
        text: text.into(),
        expected: T::expected(unit),
    })?;
    if (min..=max).contains(&value) {
        Ok(value)
    } else {
        Err(Error::OutOfBounds { name: name(), text: text.into(), min: min.show(unit), max: max.show(unit) })
    }
}

const KIB_: usize = 1 << 10;
const MIB_: usize = 1 << 20;
const GIB_: usize = 1 << 30;

knobs! {
    /// The write-ahead log (`engine::wal`).
    wal: Wal {
        /// Length of a log segment; it is zero-filled before use and recycled after.
        /// Bigger costs idle disk, smaller costs more frequent switches.
        segment_bytes: u64 = 64 * MIB, MIB => 2 * GIB, Bytes;
        /// A group stops gathering at this size; what comes later waits for the next write.
        /// A single larger entry is still a group of its own.
        group_bytes_max: usize = 2 * MIB_, MIB_ => 64 * MIB_, Bytes;
        /// Durable writes under way at once. One gives the largest groups, two hide the device's turnaround.
        writes_in_flight_max: usize = 2, 1 => 16, Count;
    }

    /// The page store: tree, records, checkpoints (`engine::store`).
    store: Store {
        /// Length of a page-store segment file, the grain in which space is recycled.
        segment_bytes: u64 = 16 * MIB, 4 * MIB => GIB, Bytes;
        /// Size of the writes that a checkpoint assembles.
        write_bytes: usize = MIB_, 64 * KIB_ => 16 * MIB_, Bytes;
        /// Writes of one checkpoint under way at once, for each shard.
        writes_in_flight_max: usize = 4, 1 => 64, Count;
        /// Records are packed into blocks of about this size; a larger record has a block of its own.
        record_block_bytes: usize = 16 * KIB_, 4 * KIB_ => MIB_, Bytes;
        /// Log written since the last checkpoint that starts the next one. More log gathers, for half a minute or up to
        /// half of store-recent-bytes-max, while the pages to write would outweigh the log by far. More means fewer
        /// page writes for each put, and a longer replay.
        checkpoint_wal_bytes: u64 = 128 * MIB, 4 * MIB => 64 * GIB, Bytes;
        /// Records not yet on their pages that may be held in memory; at the bound proposals are refused until a
        /// checkpoint ends.
        recent_bytes_max: usize = GIB_, 8 * MIB_ => 64 * GIB_, Bytes;
        /// Memory for the trees' pages, and for record blocks read back from disk; 0 takes a quarter of the host's.
        cache_bytes: usize = 0, 0 => 4096 * GIB_, Bytes;
        /// Page-store segment files that one core keeps open. All cores together keep at most a quarter of the files
        /// that the process may open.
        open_segments_max: usize = 1024, 8 => 65_536, Count;
        /// Storage shards: files and cursors written in parallel by a checkpoint.
        shards: usize = 1, 1 => 64, Count;
        /// Bytes of live pages and records that are moved in a second, on average at most, to give space back.
        /// Less disturbs less, more follows bigger compactions; `Defragment` does not wait for it.
        reclaim_bytes_per_second: u64 = 32 * MIB, 64 * KIB => 64 * GIB, Bytes;
        /// Bytes of live pages and records that one checkpoint moves, and at most one segment more.
        reclaim_bytes_max: u64 = 64 * MIB, MIB => 64 * GIB, Bytes;
        /// Time in which everything on disk is read again once, in the background, to find what the medium no longer
        /// holds as it was written; 0 turns this off. Small data is read sooner, and then not before the time is over.
        scrub_interval_ms: u64 = 604_800_000, 0 => 31_536_000_000, Milliseconds;
        /// Places of tree pages that one step looks at for those in segments that are to be emptied.
        reclaim_pages_per_step: usize = 256, 1 => 1_000_000, Count;
        /// Versions that one step of the compaction sweep looks at before it lets other work run.
        sweep_entries_per_step: usize = 1000, 1 => 1_000_000, Count, etcd "compaction-batch-limit";
    }

    /// Raft (`consensus`).
    consensus: Consensus {
        /// Time of a tick, and between a leader's heartbeats.
        heartbeat_ms: u64 = 100, 1 => 10_000, Milliseconds, etcd "heartbeat-interval";
        /// Silence of the leader after which a follower campaigns; also part of the time a proposal may take.
        election_ms: u64 = 1000, 5 => 50_000, Milliseconds, etcd "election-timeout";
        /// Time after which a write to the log that does not end makes the member unready and refuses proposals; 0: two
        /// election timeouts.
        log_stall_ms: u64 = 0, 0 => 3_600_000, Milliseconds;
        /// Bytes of proposals accepted but not yet applied; at the bound a proposal gets "too many requests".
        proposals_bytes_max: usize = 64 * MIB_, MIB_ => 4 * GIB_, Bytes;
        /// Committed entries not yet applied; at the bound a proposal gets "too many requests", as in etcd.
        backlog_entries_max: u64 = 5000, 1 => 1_000_000, Count;
        /// Committed entries handed to apply in one batch, by bytes: the grain of a publish.
        apply_batch_bytes_max: usize = MIB_, 64 * KIB_ => 64 * MIB_, Bytes;
        /// Entries already applied that stay in memory for followers, by bytes.
        tail_bytes_max: usize = 32 * MIB_, 64 * KIB_ => 4 * GIB_, Bytes;
        /// Entries in one append message, by bytes; etcd's value.
        message_bytes_max: u64 = MIB, 64 * KIB => 64 * MIB, Bytes;
        /// Append messages to one follower without an answer; etcd's value.
        messages_in_flight_max: usize = 512, 1 => 65_536, Count;
        /// Bytes that wait to be sent to another member, on each of its streams. Proposals wait for room before it is
        /// half full; of all else, what does not fit is lost, and sent again later.
        peer_queue_bytes_max: usize = 8 * MIB_, 64 * KIB_ => GIB_, Bytes;
        /// Entries kept behind a snapshot so that a slow follower need not be sent one.
        snapshot_catchup_entries: u64 = 5000, 0 => u64::MAX, Count, etcd "snapshot-catchup-entries";
        /// Log kept behind a snapshot for the same reason, where that is more; not on a full disk, and not by a member
        /// without peers.
        catchup_log_bytes: u64 = 128 * MIB, 0 => 64 * GIB, Bytes;
    }

    /// Connections, requests, watches (`server`).
    server: Server {
        /// Threads that serve connections. 0 takes all CPUs this process may run on but one, which is left to the
        /// kernel, and those of raft's and apply's own threads; and one thread at least.
        cores: usize = 0, 0 => 1024, Count;
        /// Binds each of those threads to one CPU. For hosts where nothing else runs.
        pin_cores: bool = false, false => true, Switch;
        /// Where raft and apply run: in the loop of the first serving core (shared), on one thread of their own for
        /// both, or on a thread each. auto shares on one or two CPUs, takes one thread on three or four and two on
        /// more; as many serving cores count as so many CPUs.
        raft_apply: RaftApply = RaftApply::Auto, RaftApply::Auto => RaftApply::TwoThreads, Choice;
        /// Lets the kernel back memory with huge pages, if it does so for programs that ask. Without huge pages a
        /// request costs a little more, and memory that is given up goes back in smaller pieces.
        huge_pages: bool = true, false => true, Switch;
        /// Largest client request, compared with its entry; gRPC refuses 512 KiB above.
        max_request_bytes: usize = 1536 * KIB_, 1 => 512 * MIB_, Bytes, etcd "max-request-bytes";
        /// Operations in one level of a transaction.
        max_txn_ops: usize = 128, 0 => 1_000_000, Count, etcd "max-txn-ops";
        /// Streams that a client may have open on one connection.
        max_concurrent_streams: u32 = u32::MAX, 1 => u32::MAX, Count, etcd "max-concurrent-streams";
        /// Client connections; at the bound no more are accepted. The limit of open files, less 150 and those of
        /// segments, is a bound as well.
        connections_max: usize = 65_536, 1 => 16_777_216, Count;
        /// Data, history included, at which writes are refused and the NOSPACE alarm is raised. It stops a client that
        /// writes without end; the store does not need it. More than 128 GiB is taken with a warning: nobody has
        /// measured it.
        quota_backend_bytes: u64 = 32 * GIB, 1 => u64::MAX, Bytes, etcd "quota-backend-bytes";
        /// Part of the quota, in percent. Below it the NOSPACE alarm that the quota raised is taken back by itself. 0
        /// is etcd's way: the alarm stays until `alarm disarm`.
        quota_disarm_percent: u64 = 90, 0 => 99, Count;
        /// Shortest time between two pings of a client; one that pings more often, or without a call, is told to go
        /// away. 0 is gRPC's own 5 minutes.
        keepalive_min_ms: u64 = 5_000, 0 => u64::MAX, Milliseconds, etcd "grpc-keepalive-min-time";
        /// Silence on a connection after which the server pings; 0 never.
        keepalive_interval_ms: u64 = 7_200_000, 0 => u64::MAX, Milliseconds, etcd "grpc-keepalive-interval";
        /// Time for the answer to that ping before the connection is closed.
        keepalive_timeout_ms: u64 = 20_000, 0 => u64::MAX, Milliseconds, etcd "grpc-keepalive-timeout";
        /// Bytes that a client may send on one stream before it is read.
        stream_window_bytes: u32 = 65_535, 65_535 => 16_777_216, Bytes;
        /// Bytes that a client may send on one connection before they are read.
        connection_window_bytes: u32 = 1_048_576, 65_535 => 1_073_741_824, Bytes;
        /// Answers waiting to be sent on one connection, by bytes; at the bound its requests are not read.
        connection_buffer_bytes_max: usize = 4 * MIB_, 64 * KIB_ => GIB_, Bytes;
        /// Messages in each mailbox between two cores; at the bound the sender answers "too many requests" or waits.
        mailbox_messages_max: usize = 4096, 64 => 1_048_576, Count;
        /// Entries that one range visits before its core turns to other requests.
        scan_entries_per_turn: usize = 2048, 64 => 1_000_000, Count;
        /// Memory for all answers that are gathered before they are sent: sorted ranges, ranges of txns, keys of
        /// leases; and as much for what one delete shows. A larger one fails, as one beyond gRPC's 2 GiB does, and so
        /// does one that finds no room beside others, with "too many requests"; a range in the order of keys is never
        /// gathered.
        gathered_bytes_max: usize = 512 * MIB_, MIB_ => 64 * GIB_, Bytes;
        /// Answers not yet taken by one watch stream, by bytes; past it the stream's watchers become unsynced and lose
        /// nothing.
        stream_buffer_bytes_max: usize = MIB_, 16 * KIB_ => GIB_, Bytes;
        /// Records that unsynced watchers of one core read in a turn, by bytes.
        catch_up_bytes_per_turn: usize = MIB_, 16 * KIB_ => 64 * MIB_, Bytes;
        /// Revisions that one core keeps readable for answers longer than a turn; past it they get "too many requests".
        held_revisions_max: usize = 1024, 1 => 1_048_576, Count;
        /// Longest time for which a slow reader's revision is kept from being compacted away.
        held_revision_age_max_ms: u64 = 3_600_000, 1000 => 86_400_000, Milliseconds;
        /// Time between the progress notices of an idle watcher that asked for them.
        watch_progress_interval_ms: u64 = 600_000, 100 => 86_400_000, Milliseconds,
            etcd "watch-progress-notify-interval";
        /// A request that takes longer is logged, with its phases; at most 10 lines a second and core.
        warning_unary_ms: u64 = 300, 0 => 86_400_000, Milliseconds, etcd "warning-unary-request-duration";
        /// An entry that takes longer to apply, or a read, is logged likewise.
        warning_apply_ms: u64 = 100, 0 => 86_400_000, Milliseconds, etcd "warning-apply-duration";
        /// Bytes of a backup, or of a state for an etcd member, that are sent before the log's file system is told to
        /// write back what it holds. Whoever keeps it there syncs it at its end; without this all of it would be
        /// written at once, and the log's writes would wait behind it. 0 turns this off.
        snapshot_write_back_bytes: u64 = 16 * MIB, 0 => 64 * GIB, Bytes;
        /// Time that requests under way have to finish after SIGTERM.
        drain_ms: u64 = 5_000, 0 => 600_000, Milliseconds;
    }

    /// How files are reached (`engine::disk`).
    io: Io {
        /// io_uring, portable, or whichever works.
        path: IoPathChoice = IoPathChoice::Auto, IoPathChoice::Auto => IoPathChoice::Portable, Choice;
        /// Operations of one core that the kernel, or the I/O thread, has at once.
        operations_in_flight_max: u32 = 128, 8 => 4096, Count;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_knob_is_set_from_what_it_shows_and_has_a_name_of_its_own() {
        let mut names = BTreeSet::new();
        let mut flags = BTreeSet::new();
        for row in REGISTRY {
            assert!(names.insert(row.name()), "{}", row.name());
            assert!(row.etcd_flag.is_none_or(|flag| flags.insert(flag)), "{:?}", row.etcd_flag);
            assert!(row.is_in_bounds(&Knobs::default()), "default of {}", row.name());
            let (min, max) = row.bounds();
            for text in [min.as_str(), max.as_str(), row.default_text().as_str()] {
                let mut knobs = Knobs::default();
                row.set(&mut knobs, text).unwrap();
                assert_eq!(row.get(&knobs), text, "{}", row.name());
                let others = REGISTRY.iter().filter(|other| other.name() != row.name());
                assert!(others.into_iter().all(|other| other.get(&knobs) == other.default_text()), "{}", row.name());
            }
        }
    }

    #[test]
    fn a_refused_value_names_the_knob_and_changes_nothing() {
        let mut knobs = Knobs::default();
        let segment = knob("wal-segment-bytes").unwrap();
        assert_eq!(
            segment.set(&mut knobs, "8EiB").unwrap_err().to_string(),
            "invalid value \"8EiB\" for wal-segment-bytes: expected bytes, such as 1048576 or 1MiB"
        );
        assert_eq!(
            segment.set(&mut knobs, "1").unwrap_err().to_string(),
            "value \"1\" for wal-segment-bytes is out of bounds (1MiB to 2GiB)"
        );
        assert_eq!(knob("wal-segments").unwrap_err().to_string(), "unknown knob \"wal-segments\"");
        assert_eq!(knobs, Knobs::default());
    }
}
