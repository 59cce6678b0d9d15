//! Runs on: main thread, in place of the server.
//!
//! `orlop snapshot status|restore`: the flags of `etcdutl snapshot`, its exit statuses, and its output.
//!
//! `status` and `restore` share one table of flags. Each accepts the flags of the other, without effect.
//!
//! **Source** etcd v3.7.1 `etcdutl/etcdutl/{snapshot_command,printer*}.go`, `pkg/cobrautl/error.go`.

use std::{path::Path, process::ExitCode};

use super::cli::{Command, Error, Invocation, Manner};
use crate::{
    boot::options,
    clock::Clock,
    config::{
        Config,
        Fate::{Idle, Same, Used},
        Kind::{Switch, Text, Unsigned},
        Section, Table, Values, row,
    },
    etcd_files::{
        restore::{NewCluster, Restore},
        status::{Status, status},
    },
};

/// `orlop snapshot`.
pub(super) static COMMAND: Command = Command {
    name: "snapshot",
    forms: &[
        ("status FILE [flags]", "Show what is in a snapshot file."),
        ("restore FILE [flags]", "Make the data directory of a new member from a snapshot file."),
    ],
    note: "Takes the snapshot files of etcd and of Orlop, which are the same.\n",
    table: &Table::of(&[STATUS, RESTORE, MEMBER]),
    manner: Manner::EtcdTool,
    run,
};

#[rustfmt::skip]
const STATUS: Section = ("Snapshot status", &[
    row("write-out", Text, "simple", Used, "simple, json, fields or table."),
    row("w", Text, "", Same("write-out"), "The same as --write-out."),
]);

#[rustfmt::skip]
const RESTORE: Section = ("Snapshot restore", &[
    row("skip-hash-check", Switch, "false", Used, "Take a file without the checksum at its end."),
    row("bump-revision", Unsigned, "0", Used, "How far the revision is moved on."),
    row("mark-compacted", Switch, "false", Used, "Compact all before that; mandatory with --bump-revision."),
    row("initial-memory-map-size", Text, "", Idle("no file is mapped"), "Size of bbolt's map."),
]);

/// Flags for the configuration of the new member. Flags that are not given have the server's defaults.
#[rustfmt::skip]
const MEMBER: Section = ("Member to be made", &[
    row("data-dir", Text, "", Used, "Its data directory; if empty, the name with '.etcd' in the working directory."),
    row("wal-dir", Text, "", Used, "Directory of its write-ahead log; if empty, in the data directory."),
    row("name", Text, "default", Used, "Its name."),
    row("initial-cluster", Text, "default=http://localhost:2380", Used,
        "The members of the new cluster, as in 'name=url,name=url'."),
    row("initial-cluster-token", Text, "etcd-cluster", Used, "Keeps clusters made of the same URLs apart."),
    row("initial-advertise-peer-urls", Text, "http://localhost:2380", Used, "Its URLs for the other members."),
    row("profile", Text, "", Used, "Knobs for a kind of work, by name."),
    row("knobs", Text, "", Used, "File with a knob a line, as in 'wal-segment-bytes = 128MiB'."),
]);

/// Exit statuses of etcd's tools.
const EXIT_BAD_FEATURE: u8 = 4;
const EXIT_BAD_ARGUMENTS: u8 = 128;

fn run(invocation: &Invocation<'_>, values: Values) -> Result<ExitCode, Error> {
    match values.words()[..] {
        ["status", file] => print_status(Path::new(file), &values.text("write-out")),
        ["restore", file] => restore(Path::new(file), &values, invocation),
        [form @ ("status" | "restore"), ..] => Err(Error::Tool {
            text: format!("snapshot {form} requires exactly one argument"),
            status: EXIT_BAD_ARGUMENTS,
        }),
        [form, ..] => Err(Error::Usage(format!("unknown command {form:?} for \"snapshot\""))),
        [] => Err(Error::Usage("snapshot requires a command".into())),
    }
}

#[expect(clippy::print_stdout, reason = "a command answers on its streams")]
fn print_status(file: &Path, format: &str) -> Result<ExitCode, Error> {
    let unsupported = || Error::Tool { text: "unsupported output format".into(), status: EXIT_BAD_FEATURE };
    let format = Format::named(format).ok_or_else(unsupported)?;
    let found = status(file).map_err(Error::failed)?;
    print!("{}", text(&found, format));
    Ok(ExitCode::SUCCESS)
}

#[expect(clippy::print_stderr, reason = "a command answers on its streams")]
fn restore(file: &Path, values: &Values, invocation: &Invocation<'_>) -> Result<ExitCode, Error> {
    let bump_revision = values.unsigned("bump-revision");
    if (bump_revision == 0) == values.switch("mark-compacted") {
        let text = "--mark-compacted required if --revision-bump > 0".into();
        return Err(Error::Tool { text, status: EXIT_BAD_ARGUMENTS });
    }
    let given = MEMBER.1.iter().filter(|row| values.is_set(row.name));
    let arguments: Vec<String> = given.map(|row| format!("--{}={}", row.name, values.text(row.name))).collect();
    // An error here is a failure, not a usage error: etcdutl too looks at these values only when it restores.
    let config = Config::parse(&arguments, &[], invocation.read_file).map_err(Error::failed)?;
    config.verify_bootstrap().map_err(Error::failed)?;
    let clock = Clock::start();
    let restore = Restore {
        file,
        dir: &config.data_dir,
        wal_dir: config.wal_dir.as_deref(),
        cluster: cluster_of(&config),
        skip_hash_check: values.switch("skip-hash-check"),
        bump_revision: i64::try_from(bump_revision)
            .map_err(|_too_large| Error::failed("--bump-revision is out of range"))?,
        store: options::store(&config, &clock),
        consensus: options::consensus(&config, &clock),
    };
    let writing = |dir: &Path| Ok(engine::disk::open_disk(options::io_preference(&config), dir)?.0);
    restore.run(&writing).map_err(Error::failed)?;
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

/// How a status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// Separated by commas.
    Simple,
    /// A JSON object.
    Json,
    /// One line for each figure.
    Fields,
    /// A table.
    Table,
}

impl Format {
    /// The format with this name.
    fn named(name: &str) -> Option<Self> {
        match name {
            "simple" => Some(Self::Simple),
            "json" => Some(Self::Json),
            "fields" => Some(Self::Fields),
            "table" => Some(Self::Table),
            _ => None,
        }
    }
}

/// The text that etcdutl prints.
fn text(status: &Status, format: Format) -> String {
    let Status { hash, revision, total_keys, total_size, version } = status;
    match format {
        Format::Simple => format!("{}\n", cells(status).join(", ")),
        Format::Json => format!(
            "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{total_keys},\"totalSize\":{total_size},\
             \"version\":{}}}\n",
            serde_json::Value::from(version.as_str())
        ),
        Format::Fields => format!(
            "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_keys}\n\"Size\" : {total_size}\n\
             \"Version\" : {version}\n"
        ),
        Format::Table => table(&cells(status)),
    }
}

fn cells(status: &Status) -> [String; 5] {
    let Status { hash, revision, total_keys, total_size, version } = status;
    [format!("{hash:x}"), revision.to_string(), total_keys.to_string(), human_bytes(*total_size), version.clone()]
}

fn table(cells: &[String; 5]) -> String {
    const HEADS: [&str; 5] = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];
    let widths: Vec<usize> = HEADS.iter().zip(cells).map(|(head, cell)| head.len().max(cell.len())).collect();
    let line = |left: &str, middle: &str, right: &str| {
        let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
        format!("{left}{}{right}\n", parts.join(middle))
    };
    let row = |cells: Vec<String>| format!("│{}│\n", cells.join("│"));
    let heads = HEADS.iter().zip(&widths).map(|(head, width)| format!(" {head:^width$} ")).collect();
    let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} ")).collect();
    [line("┌", "┬", "┐"), row(heads), line("├", "┼", "┤"), row(cells), line("└", "┴", "┘")].concat()
}

/// A size as Go's `humanize.Bytes` prints it: at most three digits, powers of 1000.
fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let mut unit = 0;
    let mut scale = 1_u64;
    while bytes / scale >= 1000 {
        scale *= 1000;
        unit += 1;
    }
    // This rounds to tenths. A half goes up.
    let tenths = (u128::from(bytes) * 20 / u128::from(scale)).div_ceil(2);
    if tenths < 100 {
        return format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]);
    }
    // Go rounds a half to the even number.
    let (whole, rest) = (tenths / 10, tenths % 10);
    let is_up = rest > 5 || rest == 5 && whole % 2 == 1;
    format!("{} {}", whole + u128::from(is_up), UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_written_as_go_does() {
        let cases = [
            (9, "9 B"),
            (10, "10 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (20_480, "20 kB"),
            (20_500, "20 kB"),
            (21_500, "22 kB"),
            (323_584, "324 kB"),
            (9_949_999, "9.9 MB"),
            (9_950_000, "10 MB"),
            (82_854_982, "83 MB"),
            (999_999_999, "1000 MB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn a_table_is_drawn_as_etcdutl_does() {
        let status =
            Status { hash: 0x956c_06e5, revision: 12, total_keys: 9, total_size: 323_584, version: "3.7.0".into() };
        let expected = "\
            ┌──────────┬──────────┬────────────┬────────────┬─────────┐\n\
            │   HASH   │ REVISION │ TOTAL KEYS │ TOTAL SIZE │ VERSION │\n\
            ├──────────┼──────────┼────────────┼────────────┼─────────┤\n\
            │ 956c06e5 │       12 │          9 │     324 kB │   3.7.0 │\n\
            └──────────┴──────────┴────────────┴────────────┴─────────┘\n";
        assert_eq!(text(&status, Format::Table), expected);
        assert_eq!(text(&status, Format::Simple), "956c06e5, 12, 9, 324 kB, 3.7.0\n");
    }
}
