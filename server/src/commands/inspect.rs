//! Runs on: main thread, in place of the server.
//!
//! `orlop inspect` and `orlop verify`: what lies in a data directory that no server uses, and whether all of it is what was written.
//!
//! Changes nothing in the directory. Damage is named with its file and offset, all of it in one run; the exit status is 1 then.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use engine::inspect::{Report, State, report, verify};
use engine::wal::{self, Summary};
use engine::{Error, disk::Disk};

const USAGE: &str = "usage: orlop inspect [--verify] [--wal-dir DIR] DATA-DIR\n\
       orlop verify [--wal-dir DIR] DATA-DIR\n\n\
    Prints superblocks, segments and log of a data directory that no server uses; --verify reads every page and record.";

struct Words {
    dir: PathBuf,
    wal_dir: PathBuf,
    verifies: bool,
}

fn parse(arguments: &[String]) -> Option<Words> {
    let (mut dir, mut wal_dir, mut verifies) = (None, None, false);
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match argument.split_once('=').unwrap_or((argument, "")) {
            ("--verify" | "-verify", "") => verifies = true,
            ("--wal-dir" | "-wal-dir", "") => wal_dir = Some(rest.next()?),
            ("--wal-dir" | "-wal-dir", _) => wal_dir = argument.split_once('=').map(|_| argument),
            // The flag that the server has, for those who write it.
            ("--data-dir" | "-data-dir", "") if dir.is_none() => dir = Some(rest.next()?),
            (word, _) if word.starts_with('-') || dir.is_some() => return None,
            _ => dir = Some(argument),
        }
    }
    let dir = PathBuf::from(dir?);
    let behind = |text: &String| text.split_once('=').map_or_else(|| text.clone(), |(_, value)| value.to_owned());
    let wal_dir = wal_dir.map_or_else(|| dir.join("wal"), |text| PathBuf::from(behind(text)));
    Some(Words { dir, wal_dir, verifies })
}

/// Runs `orlop inspect`, or with `verifies` `orlop verify`.
#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command answers on its streams")]
pub fn run(arguments: &[String], verifies: bool) -> ExitCode {
    if arguments.iter().any(|argument| matches!(argument.as_str(), "-h" | "--help" | "-help")) {
        println!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let Some(words) = parse(arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    let disk = engine::disk::open_buffered();
    let looked = disk.and_then(|mut disk| look(&words, verifies || words.verifies, disk.as_mut()));
    match looked {
        Ok((text, damages)) => {
            print!("{text}");
            if damages == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Err(error) => {
            eprintln!("orlop inspect: {error}");
            ExitCode::FAILURE
        }
    }
}

/// What is to be printed, and how much is damaged.
fn look(words: &Words, verifies: bool, disk: &mut dyn Disk) -> Result<(String, usize), Error> {
    let mut text = String::new();
    let mut damages = 0;
    match report(disk, &words.dir) {
        Ok(found) => describe_store(&mut text, &found),
        Err(error @ (Error::Corrupt { .. } | Error::Format { .. })) => {
            damages += 1;
            line(&mut text, &format!("damage      {error}"));
        }
        Err(error) => return Err(error),
    }
    match wal::inspect(disk, &words.wal_dir) {
        Ok(Some(found)) => describe_log(&mut text, &words.wal_dir, &found),
        Ok(None) => line(&mut text, &format!("log         {} holds none", words.wal_dir.display())),
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
        let checked = verify(disk, &words.dir, &mut damage)?;
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
    let sum = |of: fn(&engine::inspect::Segment) -> u32| report.segments.iter().map(|each| u64::from(of(each))).sum();
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
    if let Some((path, offset)) = torn {
        line(text, &format!("            torn, to be cut at the next start: {} at {offset}", path.display()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Option<Words> {
        parse(&text.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn flags_are_taken_in_any_order_and_unknown_ones_refused() {
        let given = words("--verify d --wal-dir w").unwrap();
        assert_eq!((given.dir, given.wal_dir, given.verifies), ("d".into(), "w".into(), true));
        let given = words("--wal-dir=w --data-dir d").unwrap();
        assert_eq!((given.dir, given.wal_dir, given.verifies), ("d".into(), "w".into(), false));
        assert_eq!(words("d").unwrap().wal_dir, PathBuf::from("d/wal"));
        for refused in ["--verify", "d e", "--nothing d", "d --wal-dir"] {
            assert!(words(refused).is_none(), "{refused}");
        }
    }
}
