//! Runs on: connection core.
//!
//! Prometheus' text format.

use std::fmt::{Display, Write as _};

use crate::metrics::histogram::Snapshot;

/// An answer to /metrics as it grows.
pub(super) struct Text(String);

impl Text {
    pub(super) fn new() -> Self {
        Self(String::with_capacity(128 * 1024))
    }

    pub(super) fn into_string(self) -> String {
        self.0
    }

    pub(super) fn line(&mut self, line: std::fmt::Arguments<'_>) {
        self.0.write_fmt(line).expect("a String takes every write");
        self.0.push('\n');
    }

    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        self.line(format_args!("# HELP {name} {help}\n# TYPE {name} {kind}"));
    }

    /// Writes a sample. `labels` come with their braces, or are empty.
    pub(super) fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        self.line(format_args!("{name}{labels} {value}"));
    }

    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    /// Writes a family of one sample, which is 1 and carries its information in the label.
    pub(super) fn label(&mut self, name: &str, help: &str, label: &str, value: &str) {
        self.family(name, "gauge", help);
        self.sample(name, &format!("{{{label}=\"{}\"}}", escaped(value)), 1);
    }

    /// Writes the histogram `shown`. Its numbers are `scale` times those in the family's unit.
    pub(super) fn histogram(&mut self, name: &str, help: &str, shown: &Snapshot, scale: f64) {
        self.family(name, "histogram", help);
        self.series(name, "", shown, scale);
    }

    /// Writes one series of a histogram. `labels` come without braces, or are empty.
    pub(super) fn series(&mut self, name: &str, labels: &str, shown: &Snapshot, scale: f64) {
        let comma = if labels.is_empty() { "" } else { "," };
        for (bound, count) in &shown.buckets {
            let bound = number(*bound as f64 / scale);
            self.line(format_args!("{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}"));
        }
        self.line(format_args!("{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {}", shown.count));
        let braced = if labels.is_empty() { String::new() } else { format!("{{{labels}}}") };
        self.sample(&format!("{name}_sum"), &braced, number(shown.sum as f64 / scale));
        self.sample(&format!("{name}_count"), &braced, shown.count);
    }
}

/// A number in Go's shortest form, `%g`. Queries name buckets by this text.
pub(super) fn number(value: f64) -> String {
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').expect("the form has an exponent");
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..6).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{value}"),
    }
}

/// A label's value, escaped as the format requires.
pub(super) fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
