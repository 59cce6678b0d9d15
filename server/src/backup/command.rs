//! Runs on: main thread, in place of the server.
//!
//! `orlop snapshot status|restore`: the flags of `etcdutl snapshot`, and its exit codes.

use std::{path::Path, process::ExitCode};

use super::status::Format;
use crate::{
    config::{Config, Stop},
    cores::start,
    etcd_files::{
        error::Error,
        restore::{NewCluster, Restore},
        status::status,
    },
};

const USAGE: &str = "usage: orlop snapshot status FILE [-w simple|json|fields|table]\n\
       orlop snapshot restore FILE [--data-dir DIR] [--wal-dir DIR] [--name NAME]\n\
                      [--initial-cluster NAME=URL] [--initial-cluster-token TOKEN]\n\
                      [--initial-advertise-peer-urls URLS] [--skip-hash-check]\n\
                      [--bump-revision N --mark-compacted]\n\n\
    Takes the snapshot files of etcd and of Orlop, which are the same.";

/// Exit codes of etcd's tools. **Source** etcd v3.7.1 `pkg/cobrautl/error.go`.
const EXIT_BAD_FEATURE: u8 = 4;
const EXIT_BAD_ARGUMENTS: u8 = 128;

/// Flags that go to the configuration of the member to be made.
const MEMBER_FLAGS: [&str; 8] = [
    "data-dir",
    "wal-dir",
    "name",
    "initial-cluster",
    "initial-cluster-token",
    "initial-advertise-peer-urls",
    "profile",
    "knobs",
];

#[derive(Debug, Default)]
struct Words {
    places: Vec<String>,
    member: Vec<String>,
    format: Option<String>,
    skip_hash_check: bool,
    bump_revision: u64,
    mark_compacted: bool,
}

/// Takes the words apart; `None` for what is no flag of these commands.
fn parse(arguments: &[String]) -> Option<Words> {
    let mut words = Words::default();
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        let Some(flag) = argument.strip_prefix('-') else {
            words.places.push(argument.clone());
            continue;
        };
        let flag = flag.strip_prefix('-').unwrap_or(flag);
        let (name, given) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (flag, None),
        };
        let switch = given.as_deref().map_or(Some(true), |text| text.parse().ok());
        match name {
            "skip-hash-check" => words.skip_hash_check = switch?,
            "mark-compacted" => words.mark_compacted = switch?,
            _ => {
                let value = given.or_else(|| rest.next().cloned())?;
                match name {
                    "w" | "write-out" => words.format = Some(value),
                    "bump-revision" => words.bump_revision = value.parse().ok()?,
                    // Of a map that is not made here.
                    "initial-memory-map-size" => {}
                    name if MEMBER_FLAGS.contains(&name) => words.member.push(format!("--{name}={value}")),
                    _ => return None,
                }
            }
        }
    }
    Some(words)
}

/// Runs the command.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command answers on its streams")]
pub fn run(arguments: &[String]) -> ExitCode {
    let is_help = arguments.iter().any(|argument| matches!(argument.as_str(), "-h" | "--help" | "-help"));
    let Some(words) = parse(arguments).filter(|_| !is_help) else {
        return if is_help {
            println!("{USAGE}");
            ExitCode::SUCCESS
        } else {
            eprintln!("{USAGE}");
            ExitCode::from(EXIT_BAD_ARGUMENTS)
        };
    };
    let places: Vec<&str> = words.places.iter().map(String::as_str).collect();
    let ended = match places[..] {
        ["status", file] => print_status(Path::new(file), words.format.as_deref().unwrap_or("simple")),
        ["restore", file] => restore(Path::new(file), &words),
        ["status" | "restore", ..] => {
            eprintln!("Error: snapshot {} requires exactly one argument", places[0]);
            Ok(ExitCode::from(EXIT_BAD_ARGUMENTS))
        }
        _ => {
            eprintln!("{USAGE}");
            Ok(ExitCode::from(EXIT_BAD_ARGUMENTS))
        }
    };
    ended.unwrap_or_else(|error| {
        eprintln!("Error: {error}");
        ExitCode::FAILURE
    })
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command answers on its streams")]
fn print_status(file: &Path, format: &str) -> Result<ExitCode, Error> {
    let format = match format {
        "simple" => Format::Simple,
        "json" => Format::Json,
        "fields" => Format::Fields,
        "table" => Format::Table,
        _ => {
            eprintln!("Error: unsupported output format");
            return Ok(ExitCode::from(EXIT_BAD_FEATURE));
        }
    };
    print!("{}", status(file)?.text(format));
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a command answers on its streams")]
fn restore(file: &Path, words: &Words) -> Result<ExitCode, Error> {
    if (words.bump_revision == 0) == words.mark_compacted {
        eprintln!("Error: --mark-compacted required if --revision-bump > 0");
        return Ok(ExitCode::from(EXIT_BAD_ARGUMENTS));
    }
    let config = Config::parse(&words.member, &[], &|path| std::fs::read_to_string(path));
    let config = config.map_err(|stop| match stop {
        Stop::Usage(text) | Stop::Refused(text) | Stop::Help(text) => text,
        Stop::Version => "--version is no flag of this command".into(),
    });
    let refused = |text: String| {
        eprintln!("Error: {text}");
        Ok(ExitCode::FAILURE)
    };
    let config = match config {
        Ok(config) => config,
        Err(text) => return refused(text),
    };
    let Ok(bump_revision) = i64::try_from(words.bump_revision) else {
        return refused("--bump-revision is out of range".into());
    };
    if let Err(text) = config.verify_bootstrap() {
        return refused(text);
    }
    let restore = Restore {
        file,
        dir: &config.data_dir,
        wal_dir: config.wal_dir.as_deref(),
        cluster: cluster_of(&config),
        skip_hash_check: words.skip_hash_check,
        bump_revision,
        store: start::store_options(&config.knobs),
        consensus: start::consensus_options(&config.knobs),
    };
    restore.run(&|dir| Ok(engine::disk::open_disk(start::io_preference(&config), dir)?.0))?;
    eprintln!("restored {} into {}", file.display(), config.data_dir.display());
    Ok(ExitCode::SUCCESS)
}

/// The cluster that the flags name.
fn cluster_of(config: &Config) -> NewCluster {
    let members = config.initial_cluster.iter();
    NewCluster {
        members: members.map(|(name, urls)| (name.clone(), urls.iter().map(ToString::to_string).collect())).collect(),
        token: config.initial_cluster_token.clone(),
        own_name: config.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Words> {
        parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_taken_in_both_forms_and_unknown_ones_refused() {
        let words = words("restore f --name=a --data-dir d --bump-revision 9 --mark-compacted -w json").unwrap();
        assert_eq!(words.places, ["restore", "f"]);
        assert_eq!(words.member, ["--name=a", "--data-dir=d"]);
        assert_eq!((words.bump_revision, words.mark_compacted, words.skip_hash_check), (9, true, false));
        assert_eq!(words.format.as_deref(), Some("json"));
        for refused in ["restore --nothing x", "restore --name", "restore --bump-revision -1", "x --mark-compacted=2"] {
            assert!(self::words(refused).is_none(), "{refused}");
        }
    }
}
