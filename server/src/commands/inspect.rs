//! Runs on: main thread, in place of the server.
//!
//! `orlop inspect` shows the contents of a data directory that no server uses. `orlop verify` checks that everything in
//! it is as it was written.
//!
//! They change nothing in the directory, but for `--repair` (`repair`). One run names all damage, each with its file
//! and offset, and what is lost by it. The exit status is then 1.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use engine::{
    Error,
    disk::Disk,
    inspect::{Report, Segment, State, report, verify},
    salvage::Salvage,
    wal::{self, Summary},
};

use super::{
    cli::{self, Command, Manner},
    repair,
};
use crate::config::{
    Fate::Used,
    Kind::{Switch, Text},
    Section, Table, Values, row,
};

/// `orlop inspect`.
pub(super) static INSPECT: Command = Command {
    name: "inspect",
    forms: &[("[flags] DATA-DIR", "Show superblocks, segments and log of a data directory that no server uses.")],
    note: "",
    table: &TABLE,
    manner: Manner::Own,
    run: |_, values| run("inspect", &values, values.switch("verify")),
};

/// `orlop verify`.
pub(super) static VERIFY: Command = Command {
    name: "verify",
    forms: &[("[flags] DATA-DIR", "Show what inspect shows, check every page and record, and name what is lost.")],
    note: "",
    table: &VERIFY_TABLE,
    manner: Manner::Own,
    run: |invocation, values| match values.switch("repair") {
        true => repair::run(&dirs_of("verify", &values)?.dir, &values, invocation),
        false => run("verify", &values, true),
    },
};

static TABLE: Table = Table::of(&[FLAGS]);
static VERIFY_TABLE: Table = Table::of(&[FLAGS, REPAIR]);

#[rustfmt::skip]
const REPAIR: Section = ("Repair", &[
    row("repair", Switch, "false", Used,
        "Build the store anew from what can be read, and list what is dropped; its files are kept in 'damaged'."),
    row("profile", Text, "", Used, "Knobs for the new store, by name."),
    row("knobs", Text, "", Used, "File with a knob a line, for the new store."),
]);

#[rustfmt::skip]
const FLAGS: Section = ("Flags", &[
    row("verify", Switch, "false", Used, "Check every page and record."),
    row("data-dir", Text, "", Used, "The data directory, for those who write it as the server's flag."),
    row("wal-dir", Text, "", Used, "Directory of the log; if not given, 'wal' in the data directory."),
]);

/// The directories to look at.
struct Dirs {
    dir: PathBuf,
    wal_dir: PathBuf,
}

fn dirs_of(name: &str, values: &Values) -> Result<Dirs, cli::Error> {
    let wanted = || cli::Error::Usage(format!("{name} requires exactly one data directory"));
    Dirs::of(values).ok_or_else(wanted)
}

impl Dirs {
    /// The one directory that the arguments name, as a word or with the server's flag.
    fn of(values: &Values) -> Option<Self> {
        let flag = values.is_set("data-dir").then(|| values.text("data-dir"));
        let dir = match (flag, &values.words()[..]) {
            (Some(dir), []) => PathBuf::from(dir),
            (None, [dir]) => PathBuf::from(dir),
            _ => return None,
        };
        let wal_dir = if values.is_set("wal-dir") { values.text("wal-dir").into() } else { dir.join("wal") };
        Some(Self { dir, wal_dir })
    }
}

#[expect(clippy::print_stdout, reason = "a command answers on its streams")]
fn run(name: &str, values: &Values, verifies: bool) -> Result<ExitCode, cli::Error> {
    let dirs = dirs_of(name, values)?;
    let mut disk = engine::disk::open_buffered().map_err(cli::Error::failed)?;
    let (text, damages) = look(&dirs, verifies, disk.as_mut()).map_err(cli::Error::failed)?;
    print!("{text}");
    Ok(if damages == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Returns the text to print, and the number of damaged things.
fn look(dirs: &Dirs, verifies: bool, disk: &mut dyn Disk) -> Result<(String, usize), Error> {
    let mut text = String::new();
    let mut damages = 0;
    match report(disk, &dirs.dir) {
        Ok(found) => describe_store(&mut text, &found),
        Err(error @ (Error::Corrupt { .. } | Error::Format { .. })) => {
            damages += 1;
            line(&mut text, &format!("damage      {error}"));
        }
        Err(error) => return Err(error),
    }
    match wal::inspect(disk, &dirs.wal_dir) {
        Ok(Some(found)) => describe_log(&mut text, &dirs.wal_dir, &found),
        Ok(None) => line(&mut text, &format!("log         {} holds none", dirs.wal_dir.display())),
        Err(error @ (Error::Corrupt { .. } | Error::Format { .. })) => {
            damages += 1;
            line(&mut text, &format!("damage      {error}"));
        }
        Err(error) => return Err(error),
    }
    if verifies && damages == 0 {
        let mut damage = |error: &Error| {
            damages += 1;
            line(&mut text, &format!("damage      {error}"));
        };
        let lock = disk.lock(&dirs.dir)?;
        let checked = verify(disk, &dirs.dir, &lock, &mut damage)?;
        if damages > 0 {
            drop(Salvage::open(disk, &dirs.dir, &lock, &mut |loss| line(&mut text, &repair::shown(loss)))?);
        }
        line(
            &mut text,
            &format!(
                "verified    {} tree pages, {} extents, {} records: {}",
                checked.nodes,
                checked.extents,
                checked.records,
                if damages == 0 { "all as they were written".into() } else { format!("{damages} damaged places") }
            ),
        );
    }
    Ok((text, damages))
}

fn line(text: &mut String, content: &str) {
    writeln!(text, "{content}").expect("a string takes everything");
}

fn describe_store(text: &mut String, report: &Report) {
    for (position, copy) in report.copies.iter().enumerate() {
        let mark = if position == report.newest { ", newest" } else { "" };
        let content = match copy {
            None => "damaged, or never written".to_owned(),
            Some(State { store_id, generation, revision, compact_revision, applied: (index, term) }) => format!(
                "store {store_id:016x} generation {generation} revision {revision} compacted {compact_revision} \
                 applied {index} term {term}{mark}"
            ),
        };
        line(text, &format!("superblock  {position}: {content}"));
    }
    let sum = |of: fn(&Segment) -> u32| report.segments.iter().map(|each| u64::from(of(each))).sum();
    let (files, live): (u64, u64) = (sum(|segment| segment.file_bytes), sum(|segment| segment.live_bytes));
    let (records, live_records) = report.records;
    line(text, &format!("extents     {} with {records} records, {live_records} of them live", report.extents));
    line(text, &format!("segments    {} with {files} bytes, {live} of them live", report.segments.len()));
    for segment in &report.segments {
        let (file, live) = (u64::from(segment.file_bytes), u64::from(segment.live_bytes));
        let percent = (live * 100).checked_div(file).unwrap_or(0);
        let dead = file - live.min(file);
        line(
            text,
            &format!(
                "            {:08} {file:>12} bytes {live:>12} live {dead:>12} dead {percent:>4} %",
                segment.number
            ),
        );
    }
}

fn describe_log(text: &mut String, dir: &Path, log: &Summary) {
    let Summary { id, life, mark, last, hard_state, segments, spares, torn } = log;
    line(text, &format!("log         {} id {id:016x} opened {life} times", dir.display()));
    line(
        text,
        &format!(
            "            after index {} term {}, up to index {} term {}; term {} vote {:x} commit {}",
            mark.0, mark.1, last.0, last.1, hard_state.term, hard_state.vote, hard_state.commit
        ),
    );
    for segment in segments {
        line(
            text,
            &format!("            {} {:>12} bytes {:>12} used", segment.name, segment.bytes, segment.used_bytes),
        );
    }
    if !spares.is_empty() {
        line(text, &format!("            to be reused: {}", spares.join(" ")));
    }
    if hard_state.is_cut {
        line(
            text,
            "            cut at its end: a member among others asks them before it votes, until it has caught up",
        );
    }
    if let Some((path, offset)) = torn {
        line(text, &format!("            torn, to be cut at the next start: {} at {offset}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dirs_of(line: &str) -> Option<Dirs> {
        let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Dirs::of(&Values::read(&TABLE, &arguments).unwrap())
    }

    #[test]
    fn one_directory_is_named_as_a_word_or_with_a_flag() {
        for (line, dir, wal_dir) in [
            ("--verify d --wal-dir w", "d", "w"),
            ("--wal-dir=w --data-dir d", "d", "w"),
            ("--data-dir=d", "d", "d/wal"),
            ("d", "d", "d/wal"),
            ("-- -d", "-d", "-d/wal"),
        ] {
            let dirs = dirs_of(line).unwrap();
            assert_eq!((dirs.dir, dirs.wal_dir), (dir.into(), wal_dir.into()), "{line}");
        }
        for line in ["", "--verify", "d e", "--data-dir d e"] {
            assert!(dirs_of(line).is_none(), "{line}");
        }
    }
}
