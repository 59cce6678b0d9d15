//! Runs on: main thread, before any core is started, or in place of the server.
//!
//! The resources of this machine: processors, memory within the limits of its control group, open files.
//!
//! Nothing is kept: each call reads the kernel's files. `tuning::Host` interprets them.

use tuning::Host;

use super::knobs::ReadFile;

/// The present resources of this machine. A file that the kernel does not have counts as an empty text.
pub fn host(read_file: ReadFile<'_>) -> Host {
    let read = |path: &str| read_file(path).unwrap_or_default();
    let memory_max = read_file("/sys/fs/cgroup/memory.max").ok();
    Host::parse(&read("/proc/self/status"), &read("/proc/meminfo"), &read("/proc/self/limits"), memory_max.as_deref())
}
