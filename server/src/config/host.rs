//! Runs on: main thread, before any core is started, or in place of the server.
//!
//! What this machine offers: processors, memory within the limits of its control group, open files.
//!
//! Nothing is kept: the kernel's files are read at each call. What they mean is `tuning::Host`'s.

use tuning::Host;

use super::knobs::ReadFile;

/// What this machine offers now. What the kernel does not tell counts as an empty text.
pub fn host(read_file: ReadFile<'_>) -> Host {
    let read = |path: &str| read_file(path).unwrap_or_default();
    let memory_max = read_file("/sys/fs/cgroup/memory.max").ok();
    Host::parse(&read("/proc/self/status"), &read("/proc/meminfo"), &read("/proc/self/limits"), memory_max.as_deref())
}
