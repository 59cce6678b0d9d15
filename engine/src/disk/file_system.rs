//! The file system that a directory lies on: what others write to it, through the page cache, shares the medium with
//! the log.
//!
//! Writes of the log wait behind whatever the kernel has handed to the medium before them. A file of hundreds of MiB
//! that is synced at its end is handed over all at once; written back as it grows, it never has more than a few MiB
//! under way.

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
    /// The one that `dir` lies on.
    ///
    /// **Errors** `dir` cannot be opened.
    pub fn of(dir: &Path) -> Result<Self, Error> {
        let file = File::open(dir).map_err(|source| Error::io(dir, FileOp::Open, source))?;
        Ok(Self { dir: Arc::new(file), path: dir.to_path_buf() })
    }

    /// Writes back what any process has written to it so far, and waits for that. Blocks.
    ///
    /// **Errors** anyone's bytes could not be written: nothing follows from it for our own files, which have their own
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
