//! Runs on: the main thread of `orlop top`; no server runs beside it.
//!
//! `orlop top`: what a member stores and does, as a live table in the terminal, or once as JSON for scripts.
//!
//! Asks `orlop.v1.Insight/Top` and shows the answer; rates are differences between two answers. Needs a terminal for
//! nothing: between two tables it sends the sequence that clears one.

use std::{process::ExitCode, time::Duration};

use proto::orlop::{TopRequest, TopResponse};

pub mod client;
mod table;

/// Between two tables.
const INTERVAL: Duration = Duration::from_secs(2);
/// Rows of a table on the terminal.
const ROWS: u32 = 10;

const USAGE: &str = "Usage: orlop top [--endpoint HOST:PORT] [--interval SECONDS] [--rows N] [--once] [--json]\n\n  \
    --endpoint  A member's client address (127.0.0.1:2379).\n  \
    --interval  Seconds between two tables (2).\n  \
    --rows      Rows of each list (10, at most 100).\n  \
    --once      One answer, then the end.\n  \
    --json      The answer as JSON, one object a line.\n";

#[derive(Debug, PartialEq, Eq)]
struct Options {
    endpoint: String,
    interval: Duration,
    rows: u32,
    is_once: bool,
    is_json: bool,
}

/// What ends the command before its time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line.
    #[error("{0}")]
    Usage(String),
    /// The connection or its socket.
    #[error("{endpoint}: {source}")]
    Io {
        /// The member's address.
        endpoint: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// HTTP/2.
    #[error("{endpoint}: {source}")]
    Http {
        /// The member's address.
        endpoint: String,
        /// What h2 says.
        source: h2::Error,
    },
    /// The member refused.
    #[error("the member refused: {0}")]
    Refused(String),
    /// No answer in time.
    #[error("no answer from {0} within {1:?}")]
    Late(String, Duration),
    /// An answer that cannot be understood.
    #[error("the answer cannot be understood: {0}")]
    Answer(String),
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self, Error> {
        let mut options =
            Self { endpoint: "127.0.0.1:2379".into(), interval: INTERVAL, rows: ROWS, is_once: false, is_json: false };
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let (name, value) = match argument.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (argument.as_str(), None),
            };
            let mut value = || {
                let given = value.or_else(|| rest.next().map(String::as_str));
                given.ok_or_else(|| Error::Usage(format!("{name} needs a value")))
            };
            match name {
                "--endpoint" | "--endpoints" => {
                    let value = value()?;
                    options.endpoint = value.strip_prefix("http://").unwrap_or(value).trim_end_matches('/').into();
                }
                "--interval" => options.interval = seconds(value()?)?,
                "--rows" => {
                    let text = value()?;
                    options.rows = text.parse().map_err(|_text| Error::Usage(format!("{text:?} is no number")))?;
                }
                "--once" => options.is_once = true,
                "--json" => options.is_json = true,
                _ => return Err(Error::Usage(format!("unknown argument {argument:?}"))),
            }
        }
        Ok(options)
    }
}

fn seconds(text: &str) -> Result<Duration, Error> {
    let seconds = text.trim_end_matches('s').parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    let seconds = seconds.ok_or_else(|| Error::Usage(format!("{text:?} is no number of seconds from 0.1 to 3600")))?;
    Ok(Duration::from_secs_f64(seconds))
}

/// Runs the command with the arguments after its name.
#[expect(clippy::print_stderr, clippy::print_stdout, reason = "a command of the terminal")]
pub fn run(arguments: &[String]) -> ExitCode {
    if arguments.iter().any(|argument| argument == "--help" || argument == "-h") {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    let options = match Options::parse(arguments) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("orlop top: {error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    let ended = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => tokio::task::LocalSet::new().block_on(&runtime, show(&options)),
        Err(source) => Err(Error::Io { endpoint: options.endpoint.clone(), source }),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("orlop top: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn show(options: &Options) -> Result<(), Error> {
    let mut client = client::Client::connect(&options.endpoint).await?;
    let mut before: Option<TopResponse> = None;
    loop {
        let now: TopResponse = client.call("/orlop.v1.Insight/Top", &TopRequest { limit: options.rows }).await?;
        let text = match options.is_json {
            true => format!("{}\n", table::json(&now)),
            false => table::table(&now, before.as_ref()),
        };
        let clear = if options.is_once || options.is_json { "" } else { "\x1b[H\x1b[2J" };
        if print(&format!("{clear}{text}")).is_err() || options.is_once {
            // Whoever read it has seen enough.
            return Ok(());
        }
        before = Some(now);
        tokio::time::sleep(options.interval).await;
    }
}

fn print(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_understood_or_refused_by_name() {
        let parse = |line: &str| Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
        let options = parse("--endpoint=http://h:1/ --interval 0.5 --rows 3 --once --json").unwrap();
        let interval = Duration::from_millis(500);
        assert_eq!(options, Options { endpoint: "h:1".into(), interval, rows: 3, is_once: true, is_json: true });
        for (line, why) in [
            ("--interval 0", "\"0\" is no number of seconds from 0.1 to 3600"),
            ("--rows x", "\"x\" is no number"),
            ("--endpoint", "--endpoint needs a value"),
            ("fast", "unknown argument \"fast\""),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), why);
        }
    }
}
