//! Runs on: main thread.
//!
//! The commands that users run: the server and the commands beside it, on one command line.
//!
//! | file | what it has |
//! |---|---|
//! | `cli` | the command line: finds the command, prints help, reports failures |
//! | `serve` | `orlop`: the server |
//! | `route` | the address of this host, for the server |
//! | `snapshot` | `orlop snapshot status`, `orlop snapshot restore` |
//! | `inspect`, `repair` | `orlop inspect`, `orlop verify`; `orlop verify --repair`, and what damage costs |
//! | `tune` | `orlop tune` |
//! | `top/` | `orlop top`: what it asks, its table |
//!
//! A new command is a file with a table of flags and a function, and an entry in `COMMANDS`. Commands import nothing
//! from each other.

use std::process::ExitCode;

mod cli;
mod inspect;
mod repair;
mod route;
mod serve;
mod snapshot;
pub mod top;
mod tune;

use cli::{Command, Invocation};

/// All commands, in the order of the help. The first one runs if there is no name.
static COMMANDS: [&Command; 6] =
    [&serve::COMMAND, &snapshot::COMMAND, &inspect::INSPECT, &inspect::VERIFY, &tune::COMMAND, &top::COMMAND];

/// Runs the command that the arguments after the program's name ask for, with the environment.
pub fn run(arguments: &[String], variables: &[(String, String)]) -> ExitCode {
    let read_file = |path: &str| std::fs::read_to_string(path);
    cli::run(&COMMANDS, arguments, &Invocation { variables, read_file: &read_file })
}
