//! A knobs file: `knob = value` lines, `#` comments, and `[group]` headings for those who like TOML.
//!
//! Under `[wal]`, `segment_bytes = "64MiB"` means `wal-segment-bytes`; without a heading the full name is written.
//! Dashes and underscores are the same, quotes are optional. Nothing is skipped: an odd line is an error with its
//! number.

use std::collections::BTreeSet;

use crate::{
    error::Error,
    knobs::{Knobs, knob},
};

/// Sets what the file's text sets.
///
/// **Errors**: the first line that cannot be taken; `knobs` is then unchanged.
pub fn apply_file(knobs: &mut Knobs, text: &str) -> Result<(), Error> {
    let mut changed = knobs.clone();
    let mut group = String::new();
    let mut seen = BTreeSet::new();
    for (position, line) in text.lines().enumerate() {
        let number = position + 1;
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            group = format!("{}-", name.trim());
            continue;
        }
        let (key, value) = line.split_once('=').ok_or(Error::BadLine { line: number })?;
        let name = format!("{group}{}", key.trim().replace('_', "-"));
        let at_line = |source| Error::Line { line: number, source: Box::new(source) };
        let row = knob(&name).map_err(at_line)?;
        row.set(&mut changed, unquoted(value.trim())).map_err(at_line)?;
        if !seen.insert(name.clone()) {
            return Err(Error::SetTwice { line: number, name });
        }
    }
    *knobs = changed;
    Ok(())
}

/// No knob's value contains a `#`, quoted or not.
fn without_comment(line: &str) -> &str {
    line.split_once('#').map_or(line, |(before, _)| before)
}

fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::IoPathChoice;

    #[test]
    fn both_spellings_set_the_same_knobs() {
        let mut flat = Knobs::default();
        apply_file(&mut flat, "# host 7\nwal-segment-bytes = 128MiB\n\nio-path=portable # tmpfs\n").unwrap();
        let mut toml = Knobs::default();
        apply_file(&mut toml, "[wal]\nsegment_bytes = \"128MiB\"\n[io]\npath = \"portable\"\n").unwrap();
        assert_eq!(flat, toml);
        assert_eq!(flat.wal.segment_bytes, 128 << 20);
        assert_eq!(flat.io.path, IoPathChoice::Portable);
    }

    #[test]
    fn a_bad_line_is_named_and_nothing_is_set() {
        let rows = [
            ("io-path = uring\nwal", "line 2: expected `knob = value`, `[group]` or `# comment`"),
            ("wal-size = 1", "line 1: unknown knob \"wal-size\""),
            ("[wal]\n\nsegment-bytes = 1", "line 3: value \"1\" for wal-segment-bytes is out of bounds (1MiB to 2GiB)"),
            ("io-path = uring\nio_path = auto", "line 2: io-path is set twice"),
        ];
        for (text, want) in rows {
            let mut knobs = Knobs::default();
            assert_eq!(apply_file(&mut knobs, text).unwrap_err().to_string(), want);
            assert_eq!(knobs, Knobs::default());
        }
    }
}
