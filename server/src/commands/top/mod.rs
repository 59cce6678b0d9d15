//! Runs on: main thread, in place of the server.
//!
//! `orlop top` shows what a member stores and does, as a live table in the terminal, or once as JSON for scripts.
//!
//! - `table`: formats an answer as text and as JSON
//!
//! It asks `orlop.v1.Insight/Top` and shows the answer. Rates are differences between two answers. It does not need a
//! terminal: between two tables it only sends the sequence that clears one.

use std::{process::ExitCode, time::Duration};

use proto::orlop::{TopRequest, TopResponse};
use trust::Trust;

use super::cli::{self, Command, Invocation, Manner};
use crate::{
    config::{
        Fate::{Same, Used},
        Kind::{Switch, Text, Unsigned32},
        Section, Table, Values, row,
    },
    wire::client,
};

mod table;

/// `orlop top`.
pub(super) static COMMAND: Command = Command {
    name: "top",
    forms: &[("[flags]", "Show what a member stores and does.")],
    note: "",
    table: &TABLE,
    manner: Manner::Own,
    run,
};

static TABLE: Table = Table::of(&[FLAGS]);

#[rustfmt::skip]
const FLAGS: Section = ("Flags", &[
    row("endpoint", Text, "127.0.0.1:2379", Used, "A member's client address."),
    row("endpoints", Text, "", Same("endpoint"), "The same as --endpoint."),
    row("cacert", Text, "", Used, "Certificates that sign those of members, for an endpoint with https://."),
    row("cert", Text, "", Used, "Certificate to show to the member."),
    row("key", Text, "", Used, "Its key."),
    row("insecure-skip-tls-verify", Switch, "false", Used, "Take any certificate of the member."),
    row("interval", Text, "2", Used, "Seconds between two tables."),
    row("rows", Unsigned32, "10", Used, "Rows of each list, at most 100."),
    row("once", Switch, "false", Used, "One answer, then the end."),
    row("json", Switch, "false", Used, "The answer as JSON, one object a line."),
]);

#[derive(Debug, PartialEq, Eq)]
struct Options {
    endpoint: String,
    /// Set for an endpoint with TLS.
    trust: Option<Trust>,
    interval: Duration,
    rows: u32,
    is_once: bool,
    is_json: bool,
}

impl Options {
    fn of(values: &Values) -> Result<Self, cli::Error> {
        values.refuse_words()?;
        let given = values.text("endpoint");
        let secure = given.strip_prefix("https://");
        let endpoint = secure.or_else(|| given.strip_prefix("http://")).unwrap_or(&given);
        let file = |name| Some(values.text(name)).filter(|file| !file.is_empty());
        let (cacert, cert, key) = (file("cacert"), file("cert"), file("key"));
        let trust = Trust { cacert, cert, key, skips_verify: values.switch("insecure-skip-tls-verify") };
        Ok(Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            trust: secure.map(|_| trust),
            interval: seconds(&values.text("interval"))?,
            rows: u32::try_from(values.unsigned("rows")).expect("the flag is of 32 bits"),
            is_once: values.switch("once"),
            is_json: values.switch("json"),
        })
    }
}

fn seconds(text: &str) -> Result<Duration, cli::Error> {
    let seconds = text.trim_end_matches('s').parse::<f64>().ok().filter(|seconds| (0.1..=3600.0).contains(seconds));
    let wanted = || {
        cli::Error::Usage(format!("invalid value {text:?} for flag -interval: no number of seconds from 0.1 to 3600"))
    };
    seconds.map(Duration::from_secs_f64).ok_or_else(wanted)
}

fn run(_: &Invocation<'_>, values: Values) -> Result<ExitCode, cli::Error> {
    let options = Options::of(&values)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime
        .map_err(|source| cli::Error::failed(client::Error::Io { endpoint: options.endpoint.clone(), source }))?;
    tokio::task::LocalSet::new().block_on(&runtime, show(&options)).map_err(cli::Error::failed)?;
    Ok(ExitCode::SUCCESS)
}

async fn show(options: &Options) -> Result<(), client::Error> {
    let mut client = client::Client::connect_with(&options.endpoint, options.trust.as_ref()).await?;
    let mut before: Option<TopResponse> = None;
    loop {
        let now: TopResponse = client.call("/orlop.v1.Insight/Top", &TopRequest { limit: options.rows }).await?;
        let text = match options.is_json {
            true => format!("{}\n", table::json(&now)),
            false => table::table(&now, before.as_ref()),
        };
        let clear = if options.is_once || options.is_json { "" } else { "\x1b[H\x1b[2J" };
        if print(&format!("{clear}{text}")).is_err() || options.is_once {
            // The reader has closed the output: it has seen enough.
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
        let parse = |line: &str| {
            let arguments: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            Options::of(&Values::read(&TABLE, &arguments)?)
        };
        let options = parse("--endpoints=http://h:1/ --interval 0.5s --rows 3 --once --json").unwrap();
        let interval = Duration::from_millis(500);
        let endpoint = "h:1".to_owned();
        assert_eq!(options, Options { endpoint, trust: None, interval, rows: 3, is_once: true, is_json: true });
        let options = parse("--endpoint https://h:1 --cacert ca --cert c --key k --insecure-skip-tls-verify").unwrap();
        let file = |name: &str| Some(name.to_owned());
        let trust = Trust { cacert: file("ca"), cert: file("c"), key: file("k"), skips_verify: true };
        assert_eq!((options.endpoint.as_str(), options.trust), ("h:1", Some(trust)));
        for (line, why) in [
            ("--interval 0", "invalid value \"0\" for flag -interval: no number of seconds from 0.1 to 3600"),
            ("fast", "\"fast\" is not a valid flag"),
        ] {
            assert_eq!(parse(line).unwrap_err().to_string(), why);
        }
    }
}
