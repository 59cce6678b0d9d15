//! Runs on: main thread, in place of the server.
//!
//! `orlop snapshot status`: what is in a snapshot file, as `etcdutl snapshot status` prints it.
//!
//! **Source** etcd v3.7.1 `etcdutl/etcdutl/printer*.go`.

use crate::etcd_files::status::Status;

/// How a status is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Separated by commas.
    Simple,
    /// A JSON object.
    Json,
    /// A line for each figure.
    Fields,
    /// A table.
    Table,
}

impl Status {
    /// The text that etcdutl prints.
    pub fn text(&self, format: Format) -> String {
        let Self { hash, revision, total_keys, total_size, version } = self;
        match format {
            Format::Simple => format!("{}\n", self.cells().join(", ")),
            Format::Json => format!(
                "{{\"hash\":{hash},\"revision\":{revision},\"totalKey\":{total_keys},\"totalSize\":{total_size},\
                 \"version\":{}}}\n",
                serde_json::Value::from(version.as_str())
            ),
            Format::Fields => format!(
                "\"Hash\" : {hash}\n\"Revision\" : {revision}\n\"Keys\" : {total_keys}\n\"Size\" : {total_size}\n\
                 \"Version\" : {version}\n"
            ),
            Format::Table => self.table(),
        }
    }

    fn cells(&self) -> [String; 5] {
        let Self { hash, revision, total_keys, total_size, version } = self;
        [format!("{hash:x}"), revision.to_string(), total_keys.to_string(), human_bytes(*total_size), version.clone()]
    }

    fn table(&self) -> String {
        const HEADS: [&str; 5] = ["HASH", "REVISION", "TOTAL KEYS", "TOTAL SIZE", "VERSION"];
        let cells = self.cells();
        let widths: Vec<usize> = HEADS.iter().zip(&cells).map(|(head, cell)| head.len().max(cell.len())).collect();
        let line = |left: &str, middle: &str, right: &str| {
            let parts: Vec<String> = widths.iter().map(|width| "─".repeat(width + 2)).collect();
            format!("{left}{}{right}\n", parts.join(middle))
        };
        let row = |cells: Vec<String>| format!("│{}│\n", cells.join("│"));
        let heads = HEADS.iter().zip(&widths).map(|(head, width)| format!(" {head:^width$} ")).collect();
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:>width$} ")).collect();
        [line("┌", "┬", "┐"), row(heads), line("├", "┼", "┤"), row(cells), line("└", "┴", "┘")].concat()
    }
}

/// As Go's `humanize.Bytes`: three digits at most, powers of 1000.
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
    // Rounded to tenths, half of one upwards.
    let tenths = (u128::from(bytes) * 20 / u128::from(scale)).div_ceil(2);
    if tenths < 100 {
        return format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit]);
    }
    // Go rounds what is left to even.
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
        assert_eq!(status.text(Format::Table), expected);
        assert_eq!(status.text(Format::Simple), "956c06e5, 12, 9, 324 kB, 3.7.0\n");
    }
}
