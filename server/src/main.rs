//! Runs on: the main thread.
//!
//! Orlop: etcd's API over a store of its own.

use std::process::ExitCode;

use server::{
    ETCD_VERSION, RELEASE,
    backup::command,
    config::{Config, LogFormat, LogLevel, LogOutput, Stop},
    cores, inspect, log, top, tune,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // Names and values that are not UTF-8 are none of ours; they fail where they are read, not here.
    let text = |word: std::ffi::OsString| word.to_string_lossy().into_owned();
    let arguments: Vec<String> = std::env::args_os().skip(1).map(text).collect();
    if arguments.first().is_some_and(|first| first == "tune") {
        return tune::run(&arguments[1..]);
    }
    if arguments.first().is_some_and(|first| first == "snapshot") {
        return command::run(&arguments[1..]);
    }
    if let Some(first) = arguments.first().filter(|first| matches!(first.as_str(), "inspect" | "verify")) {
        return inspect::run(&arguments[1..], first == "verify");
    }
    if arguments.first().is_some_and(|first| first == "top") {
        return top::run(&arguments[1..]);
    }
    let variables: Vec<(String, String)> = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    match Config::parse(&arguments, &variables, &|path| std::fs::read_to_string(path)) {
        Ok(config) => {
            if let Err(error) = log::start(config.log_level, config.log_format, &config.log_outputs) {
                return explain(Stop::Refused(format!("log outputs: {error}")));
            }
            for warning in &config.warnings {
                tracing::warn!(field = warning.field, value = %warning.value, "{}", warning.message);
            }
            cores::start::run(config)
        }
        Err(stop) => explain(stop),
    }
}

/// Says why no server is started, on the stream and with the exit status that etcd uses.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "there is no log yet")]
fn explain(stop: Stop) -> ExitCode {
    match stop {
        Stop::Help(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Stop::Version => {
            println!("etcd Version: {ETCD_VERSION}\nOrlop Version: {RELEASE}");
            println!("Go OS/Arch: {}/{}", std::env::consts::OS, std::env::consts::ARCH);
            ExitCode::SUCCESS
        }
        Stop::Usage(text) => {
            eprintln!("{text}");
            ExitCode::from(2)
        }
        Stop::Refused(text) => {
            match log::start(LogLevel::Error, LogFormat::Json, &[LogOutput::Stderr]) {
                Ok(()) => tracing::error!(error = %text, "failed to verify flags"),
                Err(_) => eprintln!("{text}"),
            }
            ExitCode::FAILURE
        }
    }
}
