//! Runs on: main thread, in place of the server.
//!
//! `orlop snapshot status`: what is in a snapshot file, as `etcdutl snapshot status` prints it.
//!
//! **Source** etcd v3.7.1 `etcdutl/snapshot/v3_snapshot.go Status`, `etcdutl/etcdutl/printer*.go`.

use std::collections::BTreeSet;
use std::path::Path;

use engine::disk::Disk;
use prost::Message;
use proto::mvccpb::KeyValue;
use sha2::{Digest, Sha256};

use super::{Error, file::Backup, schema};

/// What is said of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// CRC-32C of all names, keys and values.
    pub hash: u32,
    /// Revision of the last record.
    pub revision: i64,
    /// Keys that are not deleted.
    pub total_keys: usize,
    /// **Units** bytes.
    pub total_size: u64,
    /// Of the schema; empty before 3.6.
    pub version: String,
}

/// Reads all of the file, and checks it as bbolt does.
///
/// **Errors** damage.
pub fn status(disk: Box<dyn Disk>, path: &Path) -> Result<Status, Error> {
    let mut backup = Backup::open(disk, path)?;
    let mut status = Status { hash: 0, revision: 0, total_keys: 0, total_size: backup.bytes(), version: String::new() };
    // Half a SHA-256 stands for a key: there may be more keys than memory for them.
    let mut keys: BTreeSet<u128> = BTreeSet::new();
    for (name, bucket) in backup.buckets().clone() {
        status.hash = crc32c::crc32c_append(status.hash, &name);
        let mut cursor = backup.file().cursor(&bucket);
        while let Some(entry) = cursor.next(backup.file())? {
            status.hash = crc32c::crc32c_append(status.hash, &entry.key);
            status.hash = crc32c::crc32c_append(status.hash, &entry.value);
            if name[..] == *schema::META.as_bytes() && entry.key[..] == *schema::STORAGE_VERSION {
                status.version = String::from_utf8(entry.value.to_vec())
                    .map_err(|_not_text| Error::Bucket { name: schema::META })?;
            }
            if name[..] != *schema::KEY.as_bytes() {
                continue;
            }
            let damaged = || Error::Bucket { name: schema::KEY };
            let (revision, is_tombstone) = schema::parse_revision(&entry.key).ok_or_else(damaged)?;
            let kv = KeyValue::decode(entry.value).map_err(|_malformed| damaged())?;
            let digest = Sha256::digest(&kv.key);
            let key = u128::from_be_bytes(*digest.first_chunk().expect("32 bytes"));
            status.revision = revision.main;
            if is_tombstone {
                keys.remove(&key);
            } else {
                keys.insert(key);
            }
        }
    }
    backup.file().check_free()?;
    status.total_keys = keys.len();
    Ok(status)
}

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
