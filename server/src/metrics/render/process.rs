//! Runs on: connection core.
//!
//! The process, and what dashboards take from Go's runtime.

use super::{
    scrape::Scrape,
    text::{Text, number},
};
use crate::metrics::{counters::Counters, histogram::Count, process::Process};

pub(super) fn render(of: &Scrape<'_>, process: &Process, text: &mut Text) {
    render_process(process, text);
    render_runtime(of, process, text);
}

fn render_process(process: &Process, text: &mut Text) {
    if let Some(cpu_s) = process.cpu_s {
        text.counter("process_cpu_seconds_total", "Total user and system CPU time spent in seconds.", number(cpu_s));
    }
    if let Some(start_s) = process.start_s {
        let help = "Start time of the process since unix epoch in seconds.";
        text.gauge("process_start_time_seconds", help, number(start_s));
    }
    if let Some(bytes) = process.resident_bytes {
        text.gauge("process_resident_memory_bytes", "Resident memory size in bytes.", bytes);
    }
    if let Some(bytes) = process.virtual_bytes {
        text.gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", bytes);
    }
    let bytes_max = process.virtual_bytes_max;
    text.gauge("process_virtual_memory_max_bytes", "Maximum amount of virtual memory available in bytes.", bytes_max);
    if let Some((received, sent)) = process.network_bytes {
        let help = "Number of bytes received by the process over the network.";
        text.counter("process_network_receive_bytes_total", help, received);
        let help = "Number of bytes sent by the process over the network.";
        text.counter("process_network_transmit_bytes_total", help, sent);
    }
    if let Some(files) = process.files {
        text.gauge("process_open_fds", "Number of open file descriptors.", files);
        text.gauge("os_fd_used", "The number of used file descriptors.", files);
    }
    text.gauge("process_max_fds", "Maximum number of open file descriptors.", process.files_max);
    text.gauge("os_fd_limit", "The file descriptor limit.", process.files_max);
}

/// Those of Go's families that have something like it here: name, help, and whether it is of virtual memory.
/// `left_out.txt` beside this folder names the others.
const MEMORY: [(&str, &str, bool); 5] = [
    (
        "go_memstats_alloc_bytes",
        "Number of bytes allocated in heap and currently in use. Equals to /memory/classes/heap/objects:bytes. \
         Here: resident memory that no file is behind.",
        false,
    ),
    (
        "go_memstats_heap_alloc_bytes",
        "Number of heap bytes allocated and currently in use, same as go_memstats_alloc_bytes. Equals to \
         /memory/classes/heap/objects:bytes. Here: resident memory that no file is behind.",
        false,
    ),
    (
        "go_memstats_heap_inuse_bytes",
        "Number of heap bytes that are in use. Equals to /memory/classes/heap/objects:bytes + \
         /memory/classes/heap/unused:bytes. Here: resident memory that no file is behind.",
        false,
    ),
    (
        "go_memstats_heap_sys_bytes",
        "Number of heap bytes obtained from system. Equals to /memory/classes/heap/objects:bytes + \
         /memory/classes/heap/unused:bytes + /memory/classes/heap/released:bytes + /memory/classes/heap/free:bytes. \
         Here: virtual memory that no file is behind.",
        true,
    ),
    (
        "go_memstats_sys_bytes",
        "Number of bytes obtained from system. Equals to /memory/classes/total:byte. \
         Here: virtual memory that no file is behind.",
        true,
    ),
];

fn render_runtime(of: &Scrape<'_>, process: &Process, text: &mut Text) {
    let (connections, _) = of.shared.connections.total_and_least();
    let threads = process.threads.unwrap_or(0);
    let help = "Number of goroutines that currently exist. Here: threads, connections and calls under way.";
    text.gauge("go_goroutines", help, threads + connections as u64 + calls_under_way(of));
    text.gauge("go_threads", "Number of OS threads created. Here: OS threads now.", threads);
    let help = "Information about the Go environment. Here: the label names this program, which is not written in Go.";
    text.label("go_info", help, "version", &format!("none: Orlop {}", crate::RELEASE));
    let name = "go_sched_gomaxprocs_threads";
    let help = "The current runtime.GOMAXPROCS setting, or the number of operating system threads that can execute \
                user-level Go code simultaneously. Sourced from /sched/gomaxprocs:threads. Here: serving cores.";
    text.gauge(name, help, of.shared.connections.cores());
    for (name, help, is_virtual) in MEMORY {
        if let Some(bytes) = if is_virtual { process.data_bytes } else { process.anonymous_bytes } {
            text.gauge(name, help, bytes);
        }
    }
}

/// Calls that have begun and not ended. Other cores count meanwhile, so it may be off by a few.
fn calls_under_way(of: &Scrape<'_>) -> u64 {
    let sum = |count: fn(&Counters) -> u64| of.registry.connections.iter().map(|of| count(of)).sum::<u64>();
    let ended = sum(|of| of.methods.iter().flat_map(|of| &of.handled).map(Count::get).sum());
    let begun = sum(|of| of.methods.iter().map(|of| of.started.get()).sum());
    begun.saturating_sub(ended)
}
