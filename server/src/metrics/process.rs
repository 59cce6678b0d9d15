//! Runs on: connection core.
//!
//! What the kernel knows of this process: memory, processor time, open files, traffic.
//!
//! It reads /proc and asks for limits itself, without `engine::disk`: nothing of this is data of the member or lies on
//! a medium, and the answer comes from memory. A value that cannot be read is left out of the metrics; nothing else
//! happens.

use std::fs;

use rustix::process::{Resource, getrlimit};

/// Clock ticks of a second in /proc. **Source** `man 5 proc_pid_stat`. It is 100 on every platform that we run on.
const TICKS_PER_S: f64 = 100.0;

/// The process at one moment. A value that could not be read is `None`.
#[derive(Debug, Default)]
pub struct Process {
    /// Processor time. **Units** seconds.
    pub cpu_s: Option<f64>,
    /// Start of the process. **Units** seconds since 1970.
    pub start_s: Option<f64>,
    /// Resident memory. **Units** bytes.
    pub resident_bytes: Option<u64>,
    /// Resident memory that no file is behind. **Units** bytes.
    pub anonymous_bytes: Option<u64>,
    /// Virtual memory. **Units** bytes.
    pub virtual_bytes: Option<u64>,
    /// Virtual memory that no file is behind. **Units** bytes.
    pub data_bytes: Option<u64>,
    /// Limit of virtual memory; `u64::MAX` without a limit. **Units** bytes.
    pub virtual_bytes_max: u64,
    /// Threads.
    pub threads: Option<u64>,
    /// Open files.
    pub files: Option<u64>,
    /// Files that may be open.
    pub files_max: u64,
    /// The program and its arguments.
    pub command_line: Vec<String>,
    /// Bytes received and sent in the network namespace. **Units** bytes.
    pub network_bytes: Option<(u64, u64)>,
}

impl Process {
    /// Reads the values.
    pub fn look() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let limit = |resource| getrlimit(resource).current.unwrap_or(u64::MAX);
        let status = read("/proc/self/status");
        let kib = |name| value(&status, name).map(|kib| kib * 1024);
        let stat = Stat::parse(&read("/proc/self/stat"));
        let boot_s = value(&read("/proc/stat"), "btime");
        Self {
            cpu_s: stat.as_ref().map(|stat| stat.cpu_s),
            start_s: stat.as_ref().zip(boot_s).map(|(stat, boot_s)| boot_s as f64 + stat.start_s),
            resident_bytes: kib("VmRSS:"),
            anonymous_bytes: kib("RssAnon:"),
            data_bytes: kib("VmData:"),
            threads: value(&status, "Threads:"),
            virtual_bytes: stat.as_ref().map(|stat| stat.virtual_bytes),
            virtual_bytes_max: limit(Resource::As),
            files: files(),
            files_max: limit(Resource::Nofile),
            command_line: command_line(&fs::read("/proc/self/cmdline").unwrap_or_default()),
            network_bytes: network(&read("/proc/self/net/netstat")),
        }
    }
}

/// Memory of this process that is in use. **Units** bytes.
pub fn resident_bytes() -> Option<u64> {
    value(&fs::read_to_string("/proc/self/status").ok()?, "VmRSS:").map(|kib| kib * 1024)
}

struct Stat {
    cpu_s: f64,
    /// Start of the process, counted from the start of the machine. **Units** seconds.
    start_s: f64,
    virtual_bytes: u64,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The second field is a name in parentheses, which may hold any character.
        let (_, fields) = text.rsplit_once(')')?;
        let fields: Vec<&str> = fields.split_ascii_whitespace().collect();
        // The manual numbers fields from 1. The third field is the first here.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |ticks: u64| ticks as f64 / TICKS_PER_S;
        Some(Self { cpu_s: seconds(field(14)? + field(15)?), start_s: seconds(field(22)?), virtual_bytes: field(23)? })
    }
}

/// The number after `name` at the beginning of a line.
fn value(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Counts open files. The directory's size is their number (Linux 6.2); before that they are counted one by one.
fn files() -> Option<u64> {
    let path = "/proc/self/fd";
    match fs::metadata(path).ok()?.len() {
        // One of them is the directory itself.
        0 => Some((fs::read_dir(path).ok()?.count() as u64).saturating_sub(1)),
        files => Some(files),
    }
}

/// The arguments, each of which ends with a zero byte. What is not text in them is escaped.
fn command_line(bytes: &[u8]) -> Vec<String> {
    let arguments = bytes.strip_suffix(&[0]).into_iter().flat_map(|bytes| bytes.split(|byte| *byte == 0));
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.escape_ascii().to_string());
    arguments.map(text).collect()
}

/// Bytes received and sent, from a file of pairs of lines: names, then values.
fn network(text: &str) -> Option<(u64, u64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let (names, values) = (lines.next()?.split_ascii_whitespace(), lines.next()?.split_ascii_whitespace());
    let (mut received, mut sent) = (None, None);
    for (name, value) in names.zip(values) {
        match name {
            "InOctets" => received = value.parse().ok(),
            "OutOctets" => sent = value.parse().ok(),
            _ => {}
        }
    }
    received.zip(sent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_anything_in_them_do_not_move_the_fields() {
        let text = "7 (a) 1 2 (b) S 1 7 7 0 -1 4194304 9 0 0 0 250 50 0 0 20 0 4 0 12345 4096000 321 184 1 1";
        let stat = Stat::parse(text).unwrap();
        assert_eq!((stat.cpu_s, stat.start_s, stat.virtual_bytes), (3.0, 123.45, 4_096_000));
        assert!(Stat::parse("7 (a) S 1 2").is_none() && Stat::parse("").is_none());
    }

    #[test]
    fn arguments_end_with_zero_bytes() {
        assert_eq!(command_line(b"orlop\0--name\0\0a\xff\0"), ["orlop", "--name", "", r"a\xff"]);
        assert!(command_line(b"").is_empty());
    }

    #[test]
    fn numbers_are_found_by_their_names() {
        assert_eq!(value("cpu 1\nbtime 1700000000\n", "btime"), Some(1_700_000_000));
        assert_eq!(value("VmHWM:\t 9 kB\nVmRSS:\t  12 kB\n", "VmRSS:"), Some(12));
        assert_eq!(value("", "btime"), None);
        let text = "TcpExt: InOctets\nTcpExt: 9\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 12 34\n";
        assert_eq!(network(text), Some((12, 34)));
        assert_eq!(network("IpExt: InOctets\n"), None);
    }
}
