//! Runs on: main thread, before any core is started.
//!
//! `orlop`: the server. It turns flags and variables into a configuration, starts the log, and starts the member.

use std::process::ExitCode;

use super::{
    cli::{Command, Error, Invocation, Manner, wall_us},
    route,
};
use crate::{
    boot,
    clock::Clock,
    config::{self, Config, Values},
    log,
};

/// The server.
pub(super) static COMMAND: Command = Command {
    name: "",
    forms: &[("[flags]", "Start the server."), ("--version", "Show the version."), ("-h | --help", "Show this.")],
    note: "Each of etcd's flags can be given as a variable, --name as ETCD_NAME, but not as both; Orlop's own as \
        ORLOP_NAME.\n",
    table: &config::TABLE,
    manner: Manner::Server,
    run,
};

fn run(invocation: &Invocation<'_>, values: Values) -> Result<ExitCode, Error> {
    let mut config = Config::new(values, invocation.variables, invocation.read_file)?;
    let clock = Clock::start();
    log::start(config.log_level, config.log_format, &config.log_outputs, wall_us(&clock))
        .map_err(|error| config::Error::Refused(format!("log outputs: {error}")))?;
    for warning in &config.warnings {
        let field = warning.field.iter();
        let fields = field.fold(log::Object::default(), |fields, (name, value)| fields.text(name, value));
        tracing::warn!(%fields, "{}", warning.message);
    }
    match config.advertise(route::default_host) {
        None => {}
        Some(Ok(host)) => tracing::info!(%host, "detected default host for advertise"),
        Some(Err(error)) => tracing::info!(%error, "failed to detect default host"),
    }
    Ok(boot::run(config, clock))
}
