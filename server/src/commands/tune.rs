//! Runs on: main thread, in place of the server.
//!
//! `orlop tune`: measures this host's disk and prints the settings it recommends, each with the figures behind it.
//!
//! The output is a knobs file that `--knobs` accepts as it is. Figures and reasons are its comments. Only values that
//! differ from the default are set. Where the default is right, a comment says which figure shows it.
//!
//! Invariants: the recommended settings pass `Knobs::check`. The file that was measured on is removed, after a failure
//! too. Time comes from the clock that is passed in. It measures the given directory through the same `engine::disk` as
//! the server, and nothing else: not the network, and not a running server.

use std::{fmt::Write as _, path::Path, process::ExitCode, time::Duration};

use engine::{
    Error,
    disk::{BLOCK, Buffer, Disk, FileId, FileOp, IoKind, IoPath, Op, OpenKind, Owner, Preference, open_disk},
};
use tuning::{Host, Knobs, MIB};

use super::cli::{self, Command, Invocation, Manner};
use crate::{
    clock::Clock,
    config::{Fate::Used, Kind::Text, ReadFile, Section, Table, Values, host, row},
};

/// `orlop tune`.
pub(super) static COMMAND: Command = Command {
    name: "tune",
    forms: &[("[flags]", "Measure this host and recommend settings.")],
    note: "Measures durable writes in a directory for a few seconds and prints a file for --knobs.\n",
    table: &Table::of(&[FLAGS]),
    manner: Manner::Own,
    run,
};

#[rustfmt::skip]
const FLAGS: Section = ("Flags", &[
    row("data-dir", Text, ".", Used, "Directory on the disk to be measured."),
]);

const FILE: &str = ".orlop-tune";
const FILE_BYTES: u64 = 64 * MIB;
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_IN_FLIGHT: usize = 4;
const DEPTHS: [usize; 3] = [1, 2, 4];
const SYNCS_MAX: usize = 2000;
/// A slow disk is measured for this time, instead of for a number of writes.
const SYNCS_TIME_MAX: Duration = Duration::from_millis(600);
/// Rounds for each path. The best figures count, because other programs on the host can only make them worse.
const ROUNDS: usize = 3;

/// Durable writes of 4 KiB, with this many in flight.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Syncs {
    in_flight: usize,
    per_second: f64,
    p50_us: f64,
    p99_us: f64,
    max_us: f64,
}

/// The figures of one I/O path in the directory.
#[derive(Debug, Clone, PartialEq)]
struct Figures {
    /// Rate of large writes, with the sync at their end. **Units** MB/s.
    write_mb_per_s: f64,
    /// One for each of `DEPTHS`.
    syncs: Vec<Syncs>,
}

impl Figures {
    /// The better value of each figure. Other programs on the host can only make them worse.
    fn or_better(mut self, other: Self) -> Self {
        self.write_mb_per_s = self.write_mb_per_s.max(other.write_mb_per_s);
        for (mine, theirs) in self.syncs.iter_mut().zip(other.syncs) {
            assert_eq!(mine.in_flight, theirs.in_flight);
            if theirs.per_second > mine.per_second {
                *mine = theirs;
            }
        }
        self
    }
}

/// A setting, with the figures that support it.
#[derive(Debug, PartialEq)]
struct Recommendation {
    knob: &'static str,
    value: String,
    why: String,
}

#[expect(clippy::print_stdout, reason = "a command answers on its streams")]
fn run(invocation: &Invocation<'_>, values: Values) -> Result<ExitCode, cli::Error> {
    values.refuse_words()?;
    let dir = values.text("data-dir");
    if dir.is_empty() {
        return Err(cli::Error::Usage("--data-dir is empty".into()));
    }
    let clock = Clock::start();
    let text = report(Path::new(&dir), invocation.read_file, &|| clock.now()).map_err(cli::Error::failed)?;
    print!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// Monotonic time since any fixed moment.
type Now<'a> = &'a dyn Fn() -> Duration;

fn report(dir: &Path, read_file: ReadFile<'_>, now: Now<'_>) -> Result<String, Error> {
    let host = host(read_file);
    let (mut chosen, path) = measure(Preference::Auto, dir, now)?;
    let mut slowest_us = chosen.syncs[0].p50_us;
    let mut portable: Option<Figures> = None;
    for round in 0..ROUNDS {
        if round > 0 {
            let again = measure(Preference::Auto, dir, now)?.0;
            slowest_us = slowest_us.max(again.syncs[0].p50_us);
            chosen = chosen.or_better(again);
        }
        if path.kind == IoKind::Uring {
            let again = measure(Preference::Portable, dir, now)?.0;
            portable = Some(match portable {
                Some(before) => before.or_better(again),
                None => again,
            });
        }
    }
    let mut text = format!(
        "# {} CPUs, {} MiB of memory, {} open files\n# {}: {path}\n",
        host.cpus,
        host.memory_bytes / MIB,
        host.open_files_max,
        dir.display()
    );
    describe(&mut text, if portable.is_some() { "io_uring" } else { "portable" }, &chosen);
    if let Some(portable) = &portable {
        describe(&mut text, "portable", portable);
    }
    for recommendation in recommend(&host, &chosen, portable.as_ref()) {
        line(&mut text, &format!("\n# {}", recommendation.why));
        let is_default = tuning::knob(recommendation.knob).is_ok_and(|row| row.default_text() == recommendation.value);
        let mark = if is_default { "# default: " } else { "" };
        line(&mut text, &format!("{mark}{} = {}", recommendation.knob, recommendation.value));
    }
    for note in notes(&host, &chosen, slowest_us, load(read_file)) {
        line(&mut text, &format!("\n# Note: {note}"));
    }
    Ok(text)
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a String takes every write");
}

fn describe(text: &mut String, name: &str, figures: &Figures) {
    line(text, &format!("# {name}: {:.0} MB/s in writes of 1 MiB", figures.write_mb_per_s));
    for syncs in &figures.syncs {
        line(
            text,
            &format!(
                "# {name}: durable writes of 4 KiB, {} at once: {:.0}/s, p50 {:.0} us, p99 {:.0} us, max {:.0} us",
                syncs.in_flight, syncs.per_second, syncs.p50_us, syncs.p99_us, syncs.max_us
            ),
        );
    }
}

/// The average number of threads that ran or wanted to run in the last minute; 0 if it is not known.
fn load(read_file: ReadFile<'_>) -> f64 {
    let text = read_file("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

/// The settings that follow from the figures.
fn recommend(host: &Host, chosen: &Figures, portable: Option<&Figures>) -> Vec<Recommendation> {
    let mut all = Vec::new();
    let mut add = |knob, value: String, why| all.push(Recommendation { knob, value, why });
    let single = chosen.syncs[0];
    if let Some(portable) = portable {
        let other = portable.syncs[0];
        // Handing a write to a thread costs CPU that is not measured here, so threads must be clearly faster.
        let is_faster = other.p50_us < 0.8 * single.p50_us;
        let why =
            format!("one durable write takes {:.0} us on io_uring, {:.0} us on a thread", single.p50_us, other.p50_us);
        add("io-path", if is_faster { "portable" } else { "auto" }.to_owned(), why);
    }
    let best = chosen.syncs.iter().map(|syncs| syncs.per_second).fold(0.0, f64::max);
    if let Some(enough) = chosen.syncs.iter().find(|syncs| syncs.per_second >= 0.9 * best) {
        // The depth is never below the default of two. The next group must not wait for the loop while one write is in
        // flight.
        let depth = enough.in_flight.max(Knobs::default().wal.writes_in_flight_max);
        let why =
            format!("{} at once reach {:.0} of {best:.0} durable writes a second", enough.in_flight, enough.per_second);
        add("wal-writes-in-flight-max", depth.to_string(), why);
    }
    let checkpoint_mib = checkpoint_mib(chosen.write_mb_per_s, host);
    let why = format!(
        "a checkpoint of that much log is written in about {:.1} s at {:.0} MB/s, and held twice in {} MiB of memory",
        f64::from(checkpoint_mib) * 1.05 / chosen.write_mb_per_s.max(1.0),
        chosen.write_mb_per_s,
        host.memory_bytes / MIB
    );
    if u64::from(checkpoint_mib) * MIB < Knobs::default().wal.segment_bytes {
        let why = "log segments are not larger than what starts a checkpoint".to_owned();
        add("wal-segment-bytes", format!("{checkpoint_mib}MiB"), why);
    }
    add("store-checkpoint-wal-bytes", size_text(checkpoint_mib), why);
    let why = "two checkpoints' worth of records and as much again, for those larger than their entries".to_owned();
    add("store-recent-bytes-max", size_text(checkpoint_mib * 4), why);
    let cache_mib = power_of_two_mib(host.memory_bytes / 4, 8, 1 << 20);
    let why = format!("the most that is not above a quarter of {} MiB of memory", host.memory_bytes / MIB);
    add("store-cache-bytes", size_text(cache_mib), why);
    all
}

/// How much log may lie between two checkpoints. Writing a checkpoint takes at most five seconds. Four times the log's
/// records fit into a quarter of the memory.
fn checkpoint_mib(write_mb_per_s: f64, host: &Host) -> u32 {
    let by_memory = host.memory_bytes / 16;
    let by_disk = Duration::try_from_secs_f64(write_mb_per_s * 5.0).unwrap_or_default().as_secs() * 1_000_000;
    power_of_two_mib(by_memory.min(by_disk), 16, 256)
}

/// The largest power of two MiB that is not above `bytes`, within the bounds.
fn power_of_two_mib(bytes: u64, min: u32, max: u32) -> u32 {
    let mib = u32::try_from(bytes / MIB).unwrap_or(u32::MAX).clamp(min, max);
    1 << mib.ilog2()
}

/// A size as the registry shows it.
fn size_text(mib: u32) -> String {
    if mib.is_multiple_of(1024) { format!("{}GiB", mib / 1024) } else { format!("{mib}MiB") }
}

/// Problems that no knob can fix.
fn notes(host: &Host, chosen: &Figures, slowest_us: f64, load: f64) -> Vec<String> {
    let mut all = Vec::new();
    if Duration::try_from_secs_f64(load).is_ok_and(|load| load >= Duration::from_secs(host.cpus as u64)) {
        all.push(format!(
            "{load:.1} threads wanted the {} CPUs meanwhile, and who waits for a CPU seems to wait for the disk: \
             measure on a host that is quiet",
            host.cpus
        ));
    }
    let quickest_us = chosen.syncs[0].p50_us;
    if slowest_us > 2.0 * quickest_us {
        all.push(format!(
            "the disk was busy with something else: one durable write took from {quickest_us:.0} to {slowest_us:.0} us \
             by round"
        ));
    }
    let p99_ms = chosen.syncs[0].p99_us / 1000.0;
    if p99_ms > 10.0 {
        all.push(format!("one durable write in a hundred takes over {p99_ms:.0} ms; etcd asks for less than 10 ms"));
    }
    let connections = host.open_files_max.saturating_sub(150);
    if connections < 10_000 {
        all.push(format!("the limit on open files allows {connections} connections; raise it with `ulimit -n`"));
    }
    all
}

/// Measures the path that `preference` leads to. Returns the figures and that path.
fn measure(preference: Preference, dir: &Path, now: Now<'_>) -> Result<(Figures, IoPath), Error> {
    let (mut disk, path) = open_disk(preference, dir)?;
    let name = dir.join(FILE);
    // A run that was killed has left this file.
    if disk.list(dir)?.iter().any(|name| name == FILE) {
        disk.remove(&name)?;
    }
    let file = disk.open(&name, OpenKind::Create { len: FILE_BYTES })?;
    let figures = measure_file(&mut *disk, file, now);
    // After a failure, writes may still be under way. The name can be removed all the same.
    if figures.is_ok() {
        disk.close(file);
    }
    disk.remove(&name)?;
    Ok((figures?, path))
}

fn measure_file(disk: &mut dyn Disk, file: FileId, now: Now<'_>) -> Result<Figures, Error> {
    // The log also fills its files with zeros first, so that durable writes meet allocated blocks.
    let chunk = CHUNK_BYTES as u64;
    let fills = (0..FILE_BYTES / chunk).map(|number| (number * chunk, CHUNK_BYTES));
    let started = now();
    drive(disk, file, CHUNKS_IN_FLIGHT, fills, now, Duration::MAX, |offset, buf| Op::Write { file, offset, buf })?;
    disk.submit(Op::Sync { file }, Owner::Other.token(0));
    finish_one(disk, file)?;
    let seconds = (now() - started).as_secs_f64();
    let write_mb_per_s = Duration::from_micros(FILE_BYTES).as_secs_f64() / seconds.max(1e-9);
    let mut syncs = Vec::new();
    for in_flight in DEPTHS {
        let blocks = (0..SYNCS_MAX as u64).map(|number| (number * BLOCK as u64, BLOCK));
        let started = now();
        let write = |offset, buf| Op::WriteDurable { file, offset, buf };
        let latencies = drive(disk, file, in_flight, blocks, now, SYNCS_TIME_MAX, write)?;
        syncs.push(summarise(in_flight, latencies, now() - started));
    }
    Ok(Figures { write_mb_per_s, syncs })
}

/// Keeps `depth` operations in flight until the places or the time run out. Returns the latency of each.
fn drive(
    disk: &mut dyn Disk,
    file: FileId,
    depth: usize,
    mut places: impl Iterator<Item = (u64, usize)>,
    now: Now<'_>,
    time_max: Duration,
    operation: impl Fn(u64, Buffer) -> Op,
) -> Result<Vec<Duration>, Error> {
    let started = now();
    let mut latencies = Vec::new();
    let mut submitted = vec![Duration::ZERO; depth];
    let mut free: Vec<(usize, Buffer)> = (0..depth).map(|slot| (slot, Buffer::new())).collect();
    let mut ended = Vec::new();
    loop {
        while now() - started < time_max {
            let Some((slot, mut buf)) = free.pop() else { break };
            let Some((offset, len)) = places.next() else {
                free.push((slot, buf));
                break;
            };
            buf.resize(len);
            submitted[slot] = now();
            disk.submit(operation(offset, buf), Owner::Other.token(slot as u64));
        }
        if free.len() == depth {
            return Ok(latencies);
        }
        disk.wait()?;
        disk.completions(&mut ended);
        for completion in ended.drain(..) {
            let slot = usize::try_from(completion.token & 0xff).expect("below 256");
            completion.result.map_err(|source| Error::io(disk.path(file), FileOp::Write, source))?;
            latencies.push(now() - submitted[slot]);
            free.push((slot, completion.buf));
        }
    }
}

fn finish_one(disk: &mut dyn Disk, file: FileId) -> Result<(), Error> {
    let mut ended = Vec::new();
    disk.wait()?;
    disk.completions(&mut ended);
    let completion = ended.pop().expect("`wait` waited for it");
    completion.result.map(drop).map_err(|source| Error::io(disk.path(file), FileOp::Sync, source))
}

fn summarise(in_flight: usize, mut latencies: Vec<Duration>, took: Duration) -> Syncs {
    assert!(!latencies.is_empty(), "at least one write is always started");
    latencies.sort();
    let last = latencies.len() - 1;
    let at = |percent: usize| latencies[last * percent / 100].as_secs_f64() * 1e6;
    let count = u32::try_from(latencies.len()).unwrap_or(u32::MAX);
    let per_second = f64::from(count) / took.as_secs_f64().max(1e-9);
    Syncs { in_flight, per_second, p50_us: at(50), p99_us: at(99), max_us: at(100) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(write_mb_per_s: f64, rates: [f64; 3], p50_us: f64) -> Figures {
        let syncs = DEPTHS.into_iter().zip(rates).map(|(in_flight, per_second)| Syncs {
            in_flight,
            per_second,
            p50_us,
            p99_us: p50_us * 3.0,
            max_us: p50_us * 9.0,
        });
        Figures { write_mb_per_s, syncs: syncs.collect() }
    }

    fn host(memory_mib: u64) -> Host {
        Host { cpus: 2, memory_bytes: memory_mib * MIB, open_files_max: 1 << 20 }
    }

    #[test]
    fn what_is_recommended_can_be_started_on_any_host() {
        for memory_mib in [0, 64, 512, 1024, 4096, 24_000, 1 << 20] {
            for write_mb_per_s in [0.0, 5.0, 100.0, 5000.0] {
                let disk = figures(write_mb_per_s, [100.0, 200.0, 400.0], 70.0);
                let mut knobs = Knobs::default();
                let settings = recommend(&host(memory_mib), &disk, Some(&disk));
                for one in &settings {
                    tuning::knob(one.knob).and_then(|row| row.set(&mut knobs, &one.value)).unwrap();
                }
                assert_eq!(knobs.check(), Ok(()), "{memory_mib} MiB, {write_mb_per_s} MB/s: {settings:?}");
                assert!(
                    memory_mib < 1024 || knobs.memory_bytes(&host(memory_mib)) < memory_mib * MIB * 3 / 4,
                    "{memory_mib} MiB"
                );
            }
        }
    }

    #[test]
    fn a_setting_follows_its_figure() {
        let value = |name: &str, disk: &Figures, portable: Option<&Figures>, memory_mib| {
            let all = recommend(&host(memory_mib), disk, portable);
            all.into_iter().find(|one| one.knob == name).map(|one| one.value)
        };
        let even = figures(500.0, [9000.0, 9100.0, 9200.0], 80.0);
        let parallel = figures(500.0, [9000.0, 15_000.0, 30_000.0], 80.0);
        let quick = figures(500.0, [9000.0, 9100.0, 9200.0], 40.0);
        assert_eq!(value("wal-writes-in-flight-max", &even, None, 8192).unwrap(), "2");
        assert_eq!(value("wal-writes-in-flight-max", &parallel, None, 8192).unwrap(), "4");
        assert_eq!(value("io-path", &even, Some(&quick), 8192).unwrap(), "portable");
        assert_eq!(value("io-path", &even, Some(&even), 8192).unwrap(), "auto");
        assert_eq!(value("io-path", &even, None, 8192), None);
        assert_eq!(value("store-checkpoint-wal-bytes", &even, None, 8192).unwrap(), "256MiB");
        assert_eq!(value("store-checkpoint-wal-bytes", &even, None, 512).unwrap(), "32MiB");
        assert_eq!(value("store-checkpoint-wal-bytes", &figures(10.0, [1.0; 3], 1.0), None, 8192).unwrap(), "32MiB");
    }

    #[test]
    fn what_no_knob_mends_is_said() {
        assert!(notes(&host(8192), &figures(100.0, [1.0; 3], 70.0), 100.0, 1.9).is_empty());
        let slow =
            notes(&Host { open_files_max: 1024, ..host(8192) }, &figures(100.0, [1.0; 3], 5000.0), 20_000.0, 2.0);
        let words = ["2.0 threads", "from 5000 to 20000 us", "15 ms", "874 connections"];
        assert_eq!(slow.len(), words.len());
        assert!(slow.iter().zip(words).all(|(note, word)| note.contains(word)), "{slow:?}");
    }

    #[test]
    fn the_least_disturbed_round_counts() {
        let quick = figures(100.0, [9.0, 5.0, 9.0], 70.0);
        let slow = figures(200.0, [5.0, 9.0, 5.0], 700.0);
        let both = quick.clone().or_better(slow.clone());
        assert_eq!(both.write_mb_per_s, 200.0);
        assert_eq!(both.syncs, [quick.syncs[0], slow.syncs[1], quick.syncs[2]]);
    }

    #[test]
    fn percentiles_are_of_the_sorted_latencies() {
        let latencies = (1..=101).rev().map(Duration::from_micros).collect();
        let syncs = summarise(1, latencies, Duration::from_secs(1));
        assert_eq!([syncs.p50_us, syncs.p99_us, syncs.max_us].map(f64::round), [51.0, 100.0, 101.0]);
        assert_eq!(syncs.per_second.round(), 101.0);
    }
}
