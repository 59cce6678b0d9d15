//! Puts a log aside that is damaged, for an owner that can do without it.
//!
//! Invariant: at every step, what is left is no log, or one that is refused for its missing beginning: the oldest
//! segment goes first, and each is gone durably before the next.

use std::path::Path;

use super::segment::{name, sequence_of};
use crate::{Error, disk::Disk};

/// What is put aside has this behind its name.
const SUFFIX: &str = ".damaged";

/// Whether a log was put aside in `dir`. One that is created there is cut: the one before may have promised anything.
pub(super) fn is_aside(disk: &mut dyn Disk, dir: &Path) -> Result<bool, Error> {
    Ok(disk.list(dir)?.iter().any(|name| is_of_one(name)))
}

fn is_of_one(name: &str) -> bool {
    name.strip_suffix(SUFFIX).is_some_and(|name| sequence_of(name).is_some())
}

/// Gives all segments in `dir` other names (`SSSSSSSS.wal.damaged`), so that the next opening creates a log. What was
/// put aside before is removed. Blocks.
///
/// **Errors** `Locked`; the disk's.
pub fn set_aside(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let _lock = disk.lock(dir)?;
    let names = disk.list(dir)?;
    let mut sequences: Vec<u32> = names.iter().filter_map(|name| sequence_of(name)).collect();
    sequences.sort_unstable();
    for old in names.iter().filter(|name| is_of_one(name)) {
        disk.remove(&dir.join(old))?;
    }
    for sequence in sequences {
        let segment = name(sequence);
        disk.rename(&dir.join(&segment), &dir.join(format!("{segment}{SUFFIX}")))?;
        disk.sync_dir(dir)?;
    }
    Ok(())
}
