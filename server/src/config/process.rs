//! Runs on: main thread, before any core is started.
//!
//! The process's own arguments, environment and exit codes around `Config::parse`.
//!
//! Invariant: exit codes are etcd's - 0 for help and version, 2 for a flag that does not parse, 1 for a setting that cannot be.

use super::{Config, LogLevel, Stop};
use std::process::ExitCode;

const EXIT_REFUSED: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// The configuration of this process; or what it has to exit with, after having said why.
pub fn from_process(arguments: Vec<String>) -> Result<Config, ExitCode> {
    // A variable that is not text is not one of ours.
    let variables: Vec<(String, String)> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let read_file = |path: &str| std::fs::read_to_string(path);
    Config::parse(&arguments, &variables, &read_file).map_err(|stop| match stop {
        Stop::Help(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Stop::Version => {
            // etcd's tools parse the first line.
            println!("etcd Version: {}\nOrlop Version: {}", crate::ETCD_VERSION, crate::RELEASE);
            println!("OS/Arch: {}/{}", std::env::consts::OS, std::env::consts::ARCH);
            ExitCode::SUCCESS
        }
        Stop::Usage(text) => {
            eprintln!("{text}\nUsage: orlop [flags]; --help lists them.");
            ExitCode::from(EXIT_USAGE)
        }
        Stop::Refused(text) => {
            crate::log::start(LogLevel::Info);
            tracing::warn!(error = %text, "failed to verify flags");
            ExitCode::from(EXIT_REFUSED)
        }
    })
}
