//! Runs on: main thread.
//!
//! The command line: it finds the command that the arguments name, reads and shows its flags, and reports its failure.
//!
//! Invariants:
//! - A command is one table of flags and one function. Everything else that users see of commands comes from this file.
//! - What the user asked for is printed on stdout. What is wrong is printed on stderr.
//! - Exit statuses: 0 for success; 1 if the work failed or a setting is refused; 2 for arguments that do not parse.
//!   Commands of etcd's tools have those tools' statuses.
//!
//! It knows no command by name: the caller passes the list.

use std::process::ExitCode;

use crate::{
    ETCD_VERSION, RELEASE,
    clock::Clock,
    config::{self, Fate, LogFormat, LogLevel, LogOutput, Section, Table, Values},
    log,
};

/// One command.
pub(super) struct Command {
    /// The word after `orlop`; empty for the server.
    pub(super) name: &'static str,
    /// The forms of its arguments, and what each does.
    pub(super) forms: &'static [(&'static str, &'static str)],
    /// Text of the help between forms and flags: whole lines, or nothing.
    pub(super) note: &'static str,
    /// Its flags.
    pub(super) table: &'static Table,
    /// How it reports failures.
    pub(super) manner: Manner,
    /// Runs it.
    pub(super) run: fn(&Invocation<'_>, Values) -> Result<ExitCode, Error>,
}

/// How a command reports failures.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// As etcd: a refusal is a line of the log.
    Server,
    /// With the command's name before the reason.
    Own,
    /// As etcdctl and etcdutl: `Error: ` comes before the reason, and bad arguments have their exit status.
    ///
    /// **Source**: etcd v3.7.1 `pkg/cobrautl/error.go`.
    EtcdTool,
}

impl Manner {
    /// Exit status for arguments that do not parse.
    fn usage_status(self) -> u8 {
        match self {
            Self::Server | Self::Own => 2,
            Self::EtcdTool => 128,
        }
    }
}

/// What a command gets beside its flags.
pub(super) struct Invocation<'a> {
    /// The environment.
    pub(super) variables: &'a [(String, String)],
    /// Reads a text file.
    pub(super) read_file: config::ReadFile<'a>,
}

/// Why a command ends before its work is done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    /// A flag or a setting is wrong.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// The command cannot use these words or flags. The message comes with the usage.
    #[error("{0}")]
    Usage(String),
    /// An etcd tool refuses this with an exit status of its own. The message comes without the usage.
    #[error("{text}")]
    Tool {
        /// The tool's words.
        text: String,
        /// The tool's exit status.
        status: u8,
    },
    /// The work failed.
    #[error(transparent)]
    Failed(Box<dyn std::error::Error>),
}

impl Error {
    /// A failure with this reason.
    pub(super) fn failed(why: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self::Failed(why.into())
    }
}

/// The wall clock of `clock`, for the log. **Units** microseconds since 1970.
pub(super) fn wall_us(clock: &Clock) -> impl Fn() -> u64 + Send + Sync + 'static {
    let clock = clock.clone();
    move || clock.unix_us()
}

/// Runs the command that the arguments name. The first of `commands` runs if there is no name.
pub(super) fn run(commands: &[&Command], arguments: &[String], invocation: &Invocation<'_>) -> ExitCode {
    let named = arguments.first().and_then(|first| {
        commands.iter().find(|command| !command.name.is_empty() && command.name == first).map(|found| (*found, 1))
    });
    let (command, names) = named.unwrap_or((commands[0], 0));
    let values = Values::read(command.table, &arguments[names..]);
    let ended = values.map_err(Error::from).and_then(|values| (command.run)(invocation, values));
    ended.unwrap_or_else(|error| explain(command, commands, &error))
}

/// Prints why the command did nothing, or not everything. Returns the exit status.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command answers on its streams")]
fn explain(command: &Command, commands: &[&Command], error: &Error) -> ExitCode {
    match error {
        Error::Config(config::Error::Help) => {
            print!("{}", help(command, commands));
            ExitCode::SUCCESS
        }
        Error::Config(config::Error::Version) => {
            print!("{}", version());
            ExitCode::SUCCESS
        }
        Error::Config(config::Error::Usage(_)) | Error::Usage(_) => {
            let prefix = if command.manner == Manner::EtcdTool { "Error: " } else { "" };
            eprint!("{prefix}{error}\n{}", usage(command, commands));
            ExitCode::from(command.manner.usage_status())
        }
        Error::Tool { text, status } => {
            eprintln!("Error: {text}");
            ExitCode::from(*status)
        }
        Error::Config(config::Error::Refused(_)) | Error::Failed(_) => {
            match command.manner {
                Manner::Server => log_refusal(error),
                Manner::Own => eprintln!("orlop {}: {error}", command.name),
                Manner::EtcdTool => eprintln!("Error: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

/// Reports the refusal as etcd does, in a log of this one line.
#[expect(clippy::print_stderr, reason = "there is no log")]
fn log_refusal(error: &Error) {
    match log::start(LogLevel::Error, LogFormat::Json, &[LogOutput::Stderr], wall_us(&Clock::start())) {
        Ok(()) => tracing::error!(error = %error, "failed to verify flags"),
        Err(_) => eprintln!("{error}"),
    }
}

/// What `--version` prints: etcd's lines, for programs that read them, and Orlop's. There is no Go here; the version
/// says so in a form that is one of Go.
fn version() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: {}\nGo Version: go0.0\nGo OS/Arch: {}/{arch}\n\
         Orlop Version: {RELEASE}\n",
        option_env!("ORLOP_GIT_SHA").unwrap_or("unknown"),
        std::env::consts::OS,
    )
}

/// The forms of a command. For the command without a name, the forms of all commands.
fn usage(command: &Command, commands: &[&Command]) -> String {
    let shown: Vec<&Command> = if command.name.is_empty() { commands.to_vec() } else { vec![command] };
    let mut text = String::from("Usage:\n");
    for command in shown {
        for (form, meaning) in command.forms {
            let name = [command.name, form].iter().filter(|part| !part.is_empty()).copied().collect::<Vec<_>>();
            text.push_str(&format!("\n  orlop {}\n    {meaning}\n", name.join(" ")));
        }
    }
    text
}

/// What `--help` prints.
fn help(command: &Command, commands: &[&Command]) -> String {
    let mut text = usage(command, commands);
    if !command.note.is_empty() {
        text.push_str(&format!("\n{}", command.note));
    }
    for section in command.table.sections {
        text.push_str(&section_help(section));
    }
    if command.table.has_knobs {
        text.push_str(&knobs_help());
    }
    text
}

/// The help for the flags of a section. Flags that etcd itself no longer lists are left out.
fn section_help((title, rows): &Section) -> String {
    let mut text = String::new();
    for row in rows.iter().filter(|row| row.fate != Fate::Legacy) {
        text.push_str(&format!("  --{} '{}'\n    {}", row.name, row.default, row.help));
        match row.fate {
            Fate::Missing(why) => text.push_str(&format!(" (Only the default: {why}.)")),
            Fate::FirstStart(why) => text.push_str(&format!(" (Only the default without data: {why}.)")),
            Fate::Idle(why) => text.push_str(&format!(" (No effect: {why}.)")),
            Fate::Used | Fate::Knob | Fate::Legacy | Fate::Same(_) => {}
        }
        text.push('\n');
    }
    if text.is_empty() { text } else { format!("\n{title}:\n{text}") }
}

fn knobs_help() -> String {
    let mut text = String::from("\nProfiles:\n");
    for profile in tuning::PROFILES {
        text.push_str(&format!("  {}\n    {}\n", profile.name, profile.purpose));
    }
    text.push_str("\nKnobs:\n");
    for knob in tuning::REGISTRY.iter().filter(|knob| knob.etcd_flag.is_none()) {
        let (min, max) = knob.bounds();
        text.push_str(&format!("  --{} '{}'\n   {}", knob.name(), knob.default_text(), knob.help.join("\n   ")));
        text.push_str(&format!(" ({}, {min} to {max})\n", knob.unit));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::COMMANDS;

    #[test]
    fn help_names_every_flag_knob_and_profile() {
        for command in COMMANDS {
            let help = help(command, &COMMANDS);
            for row in command.table.rows().filter(|row| row.fate != Fate::Legacy) {
                assert!(help.contains(&format!("  --{} '", row.name)), "{} --{}", command.name, row.name);
            }
            assert!(command.forms.iter().all(|(_, meaning)| help.contains(meaning)), "{}", command.name);
        }
        let help = help(COMMANDS[0], &COMMANDS);
        for knob in tuning::REGISTRY {
            let name = knob.etcd_flag.map_or_else(|| knob.name(), str::to_owned);
            assert!(help.contains(&format!("  --{name} '")), "{name}");
        }
        assert!(tuning::PROFILES.iter().all(|profile| help.contains(profile.name)));
        assert!(COMMANDS.iter().all(|command| help.contains(&format!("orlop {}", command.name))));
    }

    #[test]
    fn tables_hold_together() {
        for command in COMMANDS {
            command.table.check();
        }
    }
}
