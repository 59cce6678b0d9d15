//! Facts about the machine, read from the text of a few kernel files.
//!
//! The caller reads the files; this file only understands their text. A missing or odd text leaves its fact at the most
//! careful value: one CPU, no memory known, no open files.

use crate::value::KIB;

/// What the host offers this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Host {
    /// CPUs the process may run on, at least 1.
    pub cpus: usize,
    /// Physical memory, or the control group's limit if that is smaller. **Units**: bytes.
    pub memory_bytes: u64,
    /// Soft limit of open files.
    pub open_files_max: u64,
}

impl Host {
    /// From `/proc/self/status`, `/proc/meminfo`, `/proc/self/limits` and, if there is one, the control group's
    /// `memory.max`.
    pub fn parse(status: &str, meminfo: &str, limits: &str, memory_max: Option<&str>) -> Self {
        let physical = field(meminfo, "MemTotal:").and_then(|v| v.split_whitespace().next()?.parse::<u64>().ok());
        let physical_bytes = physical.unwrap_or(0).saturating_mul(KIB);
        let limit_bytes = memory_max.and_then(|text| text.trim().parse::<u64>().ok());
        Self {
            cpus: field(status, "Cpus_allowed_list:").and_then(count_cpus).unwrap_or(1).max(1),
            memory_bytes: limit_bytes.map_or(physical_bytes, |limit| limit.min(physical_bytes)),
            open_files_max: field(limits, "Max open files").and_then(soft_limit).unwrap_or(0),
        }
    }
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

fn soft_limit(columns: &str) -> Option<u64> {
    match columns.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

/// A list such as `0-3,8`.
fn count_cpus(list: &str) -> Option<usize> {
    list.split(',').try_fold(0_usize, |sum, part| {
        let (first, last) = part.trim().split_once('-').unwrap_or((part.trim(), part.trim()));
        let (first, last) = (first.parse::<usize>().ok()?, last.parse::<usize>().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_are_read_and_missing_ones_stay_careful() {
        let status = "Name:\torlop\nCpus_allowed:\tf\nCpus_allowed_list:\t0-1,4,6-7\n";
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
                      Max open files            1024                 524288               files     \n";
        let host = Host::parse(status, "MemTotal:       24684136 kB\nMemFree: 1 kB\n", limits, Some("max\n"));
        assert_eq!(host, Host { cpus: 5, memory_bytes: 24_684_136 * 1024, open_files_max: 1024 });
        let host = Host::parse(status, "MemTotal:       24684136 kB\n", limits, Some("536870912\n"));
        assert_eq!(host.memory_bytes, 512 << 20);
        assert_eq!(Host::parse("", "", "", None), Host { cpus: 1, memory_bytes: 0, open_files_max: 0 });
        for list in ["", "3-1", "a", "0-18446744073709551615"] {
            assert_eq!(count_cpus(list), None, "{list}");
        }
    }
}
