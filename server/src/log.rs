//! Runs on: every core.
//!
//! Log lines as etcd writes them: one JSON object in each line, with `level`, `ts`, `caller`, `msg` and the fields.
//!
//! Most lines name their fields where they are written. Where a name is not known there, or a value is a list, the line
//! has a field `fields` that is an [`Object`], and shows what that holds in its place.
//!
//! It reads no clock: the code that starts the log passes the source of time in.
//!
//! **Source** etcd v3.7.1 `client/pkg/logutil/zap.go`.

use std::{
    fmt::{self, Write as _},
    fs::OpenOptions,
    io::{self, Write},
    sync::{Mutex, MutexGuard, PoisonError},
};

use tracing::{
    Dispatch, Event, Level, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::{
    fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter, format::Writer, time::FormatTime},
    registry::LookupSpan,
};

use crate::config::{LogFormat, LogLevel, LogOutput};

/// etcd's format, with the clock of its timestamps.
struct Json<C>(C);

/// The clock of the terminal's format.
struct Wall<C>(C);

impl<C: Fn() -> u64> FormatTime for Wall<C> {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        writer.write_str(&timestamp((self.0)()))
    }
}

/// Sends log lines of at least `level` to `outputs` from now on. `unix_us` returns microseconds since 1970.
///
/// **Errors** a log file that cannot be opened.
pub fn start(
    level: LogLevel,
    format: LogFormat,
    outputs: &[LogOutput],
    unix_us: impl Fn() -> u64 + Send + Sync + 'static,
) -> io::Result<()> {
    let level = match level {
        LogLevel::Debug => Level::DEBUG,
        LogLevel::Info => Level::INFO,
        LogLevel::Warn => Level::WARN,
        LogLevel::Error | LogLevel::Fatal => Level::ERROR,
    };
    let outputs = Outputs(Mutex::new(outputs.iter().map(open).collect::<io::Result<_>>()?));
    tracing::dispatcher::set_global_default(lines(level, format, outputs, unix_us)).map_err(io::Error::other)
}

/// A layer that writes lines in `format`.
fn lines(
    level: Level,
    format: LogFormat,
    outputs: Outputs,
    unix_us: impl Fn() -> u64 + Send + Sync + 'static,
) -> Dispatch {
    let lines = tracing_subscriber::fmt().with_max_level(level).with_writer(outputs);
    match format {
        LogFormat::Json => lines.event_format(Json(unix_us)).finish().into(),
        LogFormat::Console => lines.with_timer(Wall(unix_us)).with_ansi(false).finish().into(),
    }
}

fn open(output: &LogOutput) -> io::Result<Box<dyn Write + Send>> {
    Ok(match output {
        LogOutput::Stderr => Box::new(io::stderr()),
        LogOutput::Stdout => Box::new(io::stdout()),
        LogOutput::File(path) => Box::new(OpenOptions::new().create(true).append(true).open(path)?),
    })
}

/// Every output gets every line, whole. A lock is good enough: lines are rare, and no request waits for one.
struct Outputs(Mutex<Vec<Box<dyn Write + Send>>>);

struct Line<'a>(MutexGuard<'a, Vec<Box<dyn Write + Send>>>);

impl<'a> MakeWriter<'a> for Outputs {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for output in self.0.iter_mut() {
            output.write_all(bytes)?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.iter_mut().try_for_each(Write::flush)
    }
}

/// Fields of a line, in the order in which they were added.
#[derive(Debug, Default)]
pub struct Object(String);

impl Object {
    /// Adds a text.
    pub fn text(self, name: &str, value: &str) -> Self {
        self.put(name, &quoted(value))
    }

    /// Adds a list of texts.
    pub fn list<'a>(self, name: &str, values: impl IntoIterator<Item = &'a str>) -> Self {
        let values: Vec<String> = values.into_iter().map(quoted).collect();
        self.put(name, &format!("[{}]", values.join(",")))
    }

    fn put(mut self, name: &str, json: &str) -> Self {
        let comma = if self.0.is_empty() { "" } else { "," };
        write!(self.0, "{comma}{}:{json}", quoted(name)).expect("a String takes every write");
        self
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{}}}", self.0)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    rest: String,
}

impl Fields {
    fn put(&mut self, field: &Field, json: &str) {
        write!(self.rest, ",{}:{json}", quoted(field.name())).expect("a String takes every write");
    }

    /// Puts the fields of an [`Object`], as it shows itself.
    fn put_all(&mut self, object: &str) {
        let fields = object.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).expect("an Object has braces");
        if !fields.is_empty() {
            write!(self.rest, ",{fields}").expect("a String takes every write");
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match field.name() {
            "message" => self.message = text,
            "fields" => self.put_all(&text),
            _ => self.put(field, &quoted(&text)),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" { value.clone_into(&mut self.message) } else { self.put(field, &quoted(value)) }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, &value.to_string());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, &value.to_string());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, if value { "true" } else { "false" });
    }
}

fn level(level: Level) -> &'static str {
    match level {
        Level::ERROR => "error",
        Level::WARN => "warn",
        Level::INFO => "info",
        Level::DEBUG | Level::TRACE => "debug",
    }
}

/// The date of a day, counted from 1970-01-01. **Source** H. Hinnant, "chrono-compatible low-level date algorithms".
fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

/// A time in the form `2006-01-02T15:04:05.000000Z`.
pub fn timestamp(unix_us: u64) -> String {
    let seconds = unix_us / 1_000_000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let micros = unix_us % 1_000_000;
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micros:06}Z")
}

/// A number of bytes as etcd's logs show it, such as `20 kB`. **Source** dustin/go-humanize v1.0.1 `bytes.go Bytes`.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    if bytes < 10 {
        return format!("{bytes} B");
    }
    let (mut unit, mut scale) = (0, 1_u64);
    while bytes / scale >= 1000 {
        unit += 1;
        scale *= 1000;
    }
    let tenths = (bytes as f64 / scale as f64 * 10.0 + 0.5).floor() / 10.0;
    if tenths < 10.0 { format!("{tenths:.1} {}", UNITS[unit]) } else { format!("{tenths:.0} {}", UNITS[unit]) }
}

/// A time in the form that HTTP gives dates, `Mon, 02 Jan 2006 15:04:05 GMT`.
pub fn http_date(unix_us: u64) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = unix_us / 1_000_000;
    let days = seconds / 86_400;
    let (year, month, day) = civil(days);
    let at = |names: &[&'static str], position: u64| names[usize::try_from(position).expect("a small number")];
    let (name, month) = (at(&DAYS, days % 7), at(&MONTHS, month - 1));
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{name}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

impl<C, S, N> FormatEvent<S, N> for Json<C>
where
    C: Fn() -> u64,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let metadata = event.metadata();
        let mut fields = Fields::default();
        event.record(&mut fields);
        let file = metadata.file().unwrap_or("").rsplit_once("src/").map_or("", |(_, file)| file);
        writeln!(
            writer,
            r#"{{"level":"{}","ts":"{}","caller":"{file}:{}","msg":{}{}}}"#,
            level(*metadata.level()),
            timestamp((self.0)()),
            metadata.line().unwrap_or(0),
            quoted(&fields.message),
            fields.rest,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_have_the_time_of_the_clock_that_was_handed_in() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let written = |format| {
            let output = Outputs(Mutex::new(vec![open(&LogOutput::File(path.clone())).unwrap()]));
            let dispatch = lines(Level::INFO, format, output, || 951_782_400_000_001);
            tracing::dispatcher::with_default(&dispatch, || tracing::warn!(count = 3, "a \"word\""));
            std::fs::read_to_string(&path).unwrap()
        };
        let json = written(LogFormat::Json);
        assert!(json.starts_with(r#"{"level":"warn","ts":"2000-02-29T00:00:00.000001Z","caller":"log.rs:"#), "{json}");
        assert!(json.ends_with(concat!(r#","msg":"a \"word\"","count":3}"#, "\n")), "{json}");
        let both = written(LogFormat::Console);
        assert!(both[json.len()..].starts_with("2000-02-29T00:00:00.000001Z  WARN "), "{both}");
    }

    #[test]
    fn an_object_stands_in_the_line_as_fields_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let output = Outputs(Mutex::new(vec![open(&LogOutput::File(path.clone())).unwrap()]));
        let dispatch = lines(Level::INFO, LogFormat::Json, output, || 0);
        tracing::dispatcher::with_default(&dispatch, || {
            let fields = Object::default().text("na\"me", "m").list("urls", ["http://a:1", "b"]).list("none", []);
            tracing::info!(before = 1, %fields, "some");
            let fields = Object::default();
            tracing::info!(%fields, "none");
        });
        let text = std::fs::read_to_string(&path).unwrap();
        let ends: Vec<&str> = text.lines().map(|line| line.split_once(r#","msg":"#).unwrap().1).collect();
        let some = r#""some","before":1,"na\"me":"m","urls":["http://a:1","b"],"none":[]}"#;
        assert_eq!(ends, [some, r#""none"}"#]);
    }

    #[test]
    fn bytes_are_rounded_as_etcd_rounds_them() {
        let shown = [0, 9, 82, 999, 1000, 9_949, 9_950, 20_480, 999_949, 82_854_982].map(bytes);
        let expected = ["0 B", "9 B", "82 B", "999 B", "1.0 kB", "9.9 kB", "10 kB", "20 kB", "1000 kB", "83 MB"];
        assert_eq!(shown, expected);
        assert_eq!(bytes(u64::MAX), "18 EB");
    }

    #[test]
    fn timestamps_are_civil_dates() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(timestamp(951_782_400_000_001), "2000-02-29T00:00:00.000001Z");
        assert_eq!(timestamp(1_795_651_199_999_999), "2026-11-25T23:59:59.999999Z");
        assert_eq!(http_date(1_795_651_199_999_999), "Wed, 25 Nov 2026 23:59:59 GMT");
    }
}
