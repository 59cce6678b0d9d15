//! Runs on: main thread.
//!
//! Orlop: etcd's API over a store of its own.
//!
//! This file owns only the allocator. `commands` reads the arguments and the environment.

use std::{ffi::OsString, process::ExitCode};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    abort_at_panic();
    // Names and values that are not UTF-8 are none of ours. They fail where they are read, not here.
    let text = |word: OsString| word.to_string_lossy().into_owned();
    let arguments: Vec<String> = std::env::args_os().skip(1).map(text).collect();
    let variables: Vec<(String, String)> = std::env::vars_os().map(|(name, value)| (text(name), text(value))).collect();
    server::commands::run(&arguments, &variables)
}

/// Makes a panic of any thread end the process, whatever the profile. A half-dead member is worse than a restart.
fn abort_at_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        std::process::abort();
    }));
}
