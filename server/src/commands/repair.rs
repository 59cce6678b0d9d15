//! Runs on: main thread, in place of the server.
//!
//! `orlop verify --repair`, and the lines that say what damage costs.

use std::{path::Path, process::ExitCode};

use engine::{Revision, salvage::Loss};

use super::cli::{self, Invocation};
use crate::{
    boot::{options, repair},
    clock::Clock,
    config::{Config, Values},
};

/// Repairs the store of a lone member in `dir` that no server uses. The exit status is 1 if something is lost.
#[expect(clippy::print_stdout, reason = "a command answers on its streams")]
pub(super) fn run(dir: &Path, values: &Values, invocation: &Invocation<'_>) -> Result<ExitCode, cli::Error> {
    let given = ["profile", "knobs"].into_iter().filter(|name| values.is_set(name));
    let mut arguments: Vec<String> = given.map(|name| format!("--{name}={}", values.text(name))).collect();
    arguments.push(format!("--data-dir={}", dir.display()));
    let config = Config::parse(&arguments, &[], invocation.read_file)?;
    let options = options::store(&config, &Clock::start());
    let writing = |dir: &Path| Ok(engine::disk::open_disk(options::io_preference(&config), dir)?.0);
    let mut tell = |loss: &Loss| println!("{}", shown(loss));
    let repaired = repair::repair(dir, options, &writing, &mut tell).map_err(cli::Error::failed)?;
    let Some(repair::Repaired { records, losses }) = repaired else {
        println!("whole       there is nothing to repair");
        return Ok(ExitCode::SUCCESS);
    };
    println!("repaired    {records} records; {losses} losses are named above; the damaged files are kept in 'damaged'");
    Ok(if losses == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The line about one loss.
pub(super) fn shown(loss: &Loss) -> String {
    match loss {
        Loss::Page { from, to, versions } => {
            let versions = versions.map_or_else(|| "all".to_owned(), |versions| versions.to_string());
            format!("from records {versions} versions of keys {}", range(from, to.as_deref()))
        }
        Loss::Key { key, revision } => format!("lost        key {} as of revision {}", text(key), number(revision)),
        Loss::Keys { from, to, revisions: (first, last) } => format!(
            "lost        keys {} that were written at revisions {} to {} and are named nowhere",
            range(from, to.as_deref()),
            number(first),
            number(last)
        ),
        Loss::History { key, revision } => {
            format!("lost        version {} of key {}, which was replaced since", number(revision), text(key))
        }
        Loss::Rows { from, to } => {
            format!("lost        leases, members or alarms {}", range(from, to.as_deref()))
        }
    }
}

fn number(revision: &Revision) -> String {
    if revision.sub == 0 { revision.main.to_string() } else { format!("{}/{}", revision.main, revision.sub) }
}

fn range(from: &[u8], to: Option<&[u8]>) -> String {
    match to {
        None => format!("from {} on", text(from)),
        Some(to) => format!("from {} up to {}", text(from), text(to)),
    }
}

/// A name as it can be copied: printable ASCII as it is, the rest as escapes, the whole in quotes.
fn text(name: &[u8]) -> String {
    format!("\"{}\"", name.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_has_a_line_that_names_it() {
        let (first, last) = (Revision::new(7, 0), Revision::new(9, 2));
        let key = |key: &'static [u8]| bytes::Bytes::from_static(key);
        for (loss, line) in [
            (
                Loss::Page { from: key(b""), to: Some(key(b"b\"\xff")), versions: Some(3) },
                r#"from records 3 versions of keys from "" up to "b\"\xff""#,
            ),
            (Loss::Key { key: key(b"k"), revision: last }, r#"lost        key "k" as of revision 9/2"#),
            (
                Loss::Keys { from: key(b"a"), to: None, revisions: (first, last) },
                r#"lost        keys from "a" on that were written at revisions 7 to 9/2 and are named nowhere"#,
            ),
            (
                Loss::History { key: key(b"k"), revision: first },
                r#"lost        version 7 of key "k", which was replaced since"#,
            ),
            (Loss::Rows { from: key(b"l"), to: None }, r#"lost        leases, members or alarms from "l" on"#),
        ] {
            assert_eq!(shown(&loss), line);
        }
    }
}
