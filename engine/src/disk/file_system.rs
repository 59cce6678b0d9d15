//! The file system of a directory. Other programs write to it through the page cache, and so share the medium with the
//! log.
//!
//! Writes of the log wait behind everything that the kernel has handed to the medium before them. If a file of hundreds
//! of MiB is synced at its end, all of it is handed over at once. If it is written back as it grows, at most a few MiB
//! are under way.

use std::{
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::syncfs;

use super::FileOp;
use crate::Error;

/// A handle on a file system, for any thread.
#[derive(Clone, Debug)]
pub struct FileSystem {
    dir: Arc<File>,
    path: PathBuf,
}

impl FileSystem {
    /// The file system of `dir`.
    ///
    /// **Errors** `dir` cannot be opened.
    pub fn of(dir: &Path) -> Result<Self, Error> {
        let file = File::open(dir).map_err(|source| Error::io(dir, FileOp::Open, source))?;
        Ok(Self { dir: Arc::new(file), path: dir.to_path_buf() })
    }

    /// Writes back what any process has written to the file system so far, and waits for that. Blocks.
    ///
    /// **Errors** somebody's bytes could not be written. This says nothing about our own files, which have their own
    /// syncs.
    pub fn write_back(&self) -> Result<(), Error> {
        syncfs(&self.dir).map_err(|source| Error::io(&self.path, FileOp::Sync, source.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_written_back() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("backup"), vec![1; 1 << 20]).unwrap();
        FileSystem::of(dir.path()).unwrap().write_back().unwrap();
        assert!(FileSystem::of(&dir.path().join("none")).is_err());
    }
}
