//! Puts another log in the place of one.
//!
//! The other log is built in a directory inside of the log's, as any log is. Then a file beside it says that it is
//! whole: that is the moment at which the log changes. What is left to do is done by the next opening of the log.
//!
//! | in the log's directory | means |
//! |---|---|
//! | `instead/` alone | what may be there was not completed, and does not count |
//! | `instead.whole` | the log is the one in `instead/`; segments beside it are the former log's, and go |
//! | `instead.alone` | they are gone; segments in `instead/` move to their place |
//!
//! Invariants: each step is durable before the next. A segment of the former log is never there together with one of
//! the new log.

use std::path::{Path, PathBuf};

use super::segment::sequence_of;
use crate::{
    Error,
    disk::{BLOCK, Disk, OpenKind},
};

const DIR: &str = "instead";
const WHOLE: &str = "instead.whole";
const ALONE: &str = "instead.alone";

/// The directory in which a log is to be built that takes the place of the one in `dir`. Nothing is in it. Blocks.
///
/// **Errors** the disk's.
pub fn begin_instead(disk: &mut dyn Disk, dir: &Path) -> Result<PathBuf, Error> {
    let instead = dir.join(DIR);
    disk.create_dir_all(&instead)?;
    for name in disk.list(&instead)? {
        disk.remove(&instead.join(name))?;
    }
    disk.sync_dir(&instead)?;
    Ok(instead)
}

/// The log that was built has the place of the one in `dir` from the next opening on. It must be durable, and nobody
/// may write to either until then. Blocks.
///
/// **Errors** the disk's. The log is then one of the two.
pub fn take_place(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    disk.sync_dir(&dir.join(DIR))?;
    disk.sync_dir(dir)?;
    let file = disk.open(&dir.join(WHOLE), OpenKind::Create { len: BLOCK as u64 })?;
    disk.close(file);
    disk.sync_dir(dir)
}

/// Completes what [`take_place`] has begun in `dir`, if anything. Blocks.
pub(super) fn complete(disk: &mut dyn Disk, dir: &Path) -> Result<(), Error> {
    let names = disk.list(dir)?;
    let is_there = |name: &str| names.iter().any(|known| known == name);
    if is_there(WHOLE) {
        for segment in names.iter().filter(|name| sequence_of(name).is_some()) {
            disk.remove(&dir.join(segment))?;
        }
        disk.sync_dir(dir)?;
        disk.rename(&dir.join(WHOLE), &dir.join(ALONE))?;
        disk.sync_dir(dir)?;
    } else if !is_there(ALONE) {
        return Ok(());
    }
    let instead = dir.join(DIR);
    for segment in disk.list(&instead)?.iter().filter(|name| sequence_of(name).is_some()) {
        disk.rename(&instead.join(segment), &dir.join(segment))?;
    }
    disk.sync_dir(dir)?;
    disk.sync_dir(&instead)?;
    disk.remove(&dir.join(ALONE))?;
    disk.sync_dir(dir)
}
