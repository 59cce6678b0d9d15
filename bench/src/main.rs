//! `bench`: load for servers of the etcd API, Orlop or stock etcd, and a report of how they bore it.
//!
//! Flags become a `Plan` here, and nowhere else is a flag looked at; threads of load are started, and what they report
//! is printed. Progress goes to stderr, the report to stdout. Exit status: 0, or 1 if anything failed, or 2 for flags
//! that make no sense.
//!
//! Files, each importing only files below it:
//!
//! - `flags`: the command line (clap's), checked and turned into a `Plan`.
//! - `load`: one thread of load: its connections, its clock, when each request leaves.
//! - `lane`: a connection's share of the load, and what is made of the answers.
//! - `workload`, `schedule`: what is asked of the server, and when.
//! - `report`, `histogram`: what was seen, and what is printed of it.
//! - `client`: a socket with its HTTP/2 session, and its return after a loss.
//! - `tls`: encryption between the two.
//! - `http2`, `hpack`, `messages`: a client's side of HTTP/2 and gRPC, as a state machine.
//! - `reply`: the few fields of a reply that matter.
//! - `clock`, `error`: the only clock; why the generator stops.
//!
//! Deliberately absent: authentication, retries of requests, and any knowledge of one particular server.

mod client;
mod clock;
mod error;
#[cfg(test)]
mod fake;
mod flags;
mod histogram;
mod hpack;
mod http2;
mod lane;
mod load;
mod messages;
mod reply;
mod report;
mod schedule;
mod tls;
mod workload;

use std::{
    io::IsTerminal,
    process::ExitCode,
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, sync_channel},
    },
};

use clap::Parser;

use crate::{
    error::Error,
    load::{Plan, Report, START_NEVER},
    report::{Setting, Summary, Tally},
};

/// 7-14 % less CPU than glibc's allocator on HTTP/2 loads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// From all threads being ready to the common start.
const START_DELAY_NS: u64 = 20_000_000;

fn main() -> ExitCode {
    let flags = flags::Flags::parse();
    let outcome = flags
        .plan()
        .map_err(|error| (2, error))
        .and_then(|plan| raise_open_files(plan.conns).and_then(|()| run(&flags, &plan)).map_err(|error| (1, error)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err((status, error)) => {
            eprintln!("bench: {error}");
            ExitCode::from(status)
        }
    }
}

/// Runs the plan and prints the report; answers whether it was free of errors.
fn run(flags: &flags::Flags, plan: &Plan) -> Result<bool, Error> {
    let start_ns = AtomicU64::new(0);
    let (sender, receiver) = sync_channel(2 * plan.threads);
    let summary = std::thread::scope(|scope| {
        for thread in 0..plan.threads {
            let (sender, start_ns) = (sender.clone(), &start_ns);
            scope.spawn(move || load::run(plan, thread, start_ns, &sender));
        }
        drop(sender);
        let summary = collect(flags, plan, &start_ns, &receiver);
        if summary.is_err() {
            start_ns.store(START_NEVER, Ordering::Release);
            // Threads still getting ready must not wait for a reader.
            receiver.iter().for_each(drop);
        }
        summary
    })?;
    let mut out = std::io::stdout().lock();
    if flags.is_json() {
        summary.write_json(&mut out)?;
    } else {
        summary.write_text(&mut out)?;
    }
    Ok(!summary.has_errors())
}

/// Starts the threads together and sums up what they report until the last has finished.
fn collect(
    flags: &flags::Flags,
    plan: &Plan,
    start_ns: &AtomicU64,
    reports: &Receiver<Report>,
) -> Result<Summary, Error> {
    for _ in 0..plan.threads {
        match reports.recv() {
            Ok(Report::Ready) => {}
            Ok(Report::Failed(error)) => return Err(error),
            Ok(Report::Second(_) | Report::Finished { .. }) | Err(_) => unreachable!("no thread has started yet"),
        }
    }
    let classes = plan.workload.classes();
    let has_progress = !flags.is_json() || std::io::stderr().is_terminal();
    let started_ns = clock::now_ns() + START_DELAY_NS;
    let cpu_ns = clock::process_cpu_ns();
    start_ns.store(started_ns, Ordering::Release);
    let (mut run, mut second) = (Tally::new(classes.len()), Tally::new(classes.len()));
    let (mut last_end_ns, mut printed_ns, mut reported, mut running) = (started_ns, started_ns, 0, plan.threads);
    while running > 0 {
        match reports.recv() {
            Ok(Report::Second(tally)) => {
                run.merge(&tally);
                second.merge(&tally);
                reported += 1;
                if reported >= running {
                    let now_ns = clock::now_ns();
                    if has_progress {
                        let line = report::progress_line(
                            (now_ns - started_ns) / 1_000_000_000,
                            seconds(now_ns - printed_ns),
                            &second,
                            run.errors(),
                        );
                        eprintln!("{line}");
                    }
                    second.clear();
                    (printed_ns, reported) = (now_ns, 0);
                }
            }
            Ok(Report::Finished { tally, end_ns }) => {
                run.merge(&tally);
                second.merge(&tally);
                last_end_ns = last_end_ns.max(end_ns);
                running -= 1;
            }
            Ok(Report::Failed(error)) => return Err(error),
            Ok(Report::Ready) | Err(_) => unreachable!("a thread gets ready once and finishes before it ends"),
        }
    }
    let cpu_us = seconds(clock::process_cpu_ns() - cpu_ns) * 1e6;
    let elapsed_s = seconds(last_end_ns - started_ns);
    let item_name = plan.workload.item_name();
    Ok(Summary::new(setting(flags, plan), classes, item_name, &run, elapsed_s, cpu_us))
}

fn setting(flags: &flags::Flags, plan: &Plan) -> Setting {
    Setting {
        command: flags.command_name(),
        endpoints: plan.endpoints.iter().map(|endpoint| endpoint.authority.clone()).collect(),
        conns: plan.conns,
        clients: plan.clients,
        threads: plan.threads,
        rate: plan.rate,
        loop_kind: if plan.rate > 0 { "open" } else { "closed" },
    }
}

fn seconds(ns: u64) -> f64 {
    std::time::Duration::from_nanos(ns).as_secs_f64()
}

/// A connection is a file: thousands of them need more than the usual soft limit.
fn raise_open_files(conns: usize) -> Result<(), Error> {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let needed = u64::try_from(conns).expect("usize is at most 64 bits") + 64;
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    limit.current = Some(limit.maximum.map_or(needed, |maximum| maximum.min(needed)));
    setrlimit(Resource::Nofile, limit).map_err(Error::system("setrlimit"))
}
