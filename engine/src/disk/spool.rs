//! A file that is needed once: written from its front to its back, read, and gone.
//!
//! For threads that serve nobody. The file is not durable, and none of its users minds.
//!
//! Invariants: at most `UNWRITTEN_BYTES` of it are in the page cache and not on their way to the medium, so that no
//! sync of another file waits for more. The name goes with the [`Spool`], unless the
//! process ends before.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::offline;
use crate::error::{Error, FileOp};

/// **Units** bytes.
const UNWRITTEN_BYTES: u64 = 8 << 20;

/// See the head of this file.
#[derive(Debug)]
pub struct Spool {
    file: File,
    path: PathBuf,
    unwritten: u64,
}

impl Spool {
    /// An empty file at `path`, for its owner only.
    ///
    /// **Errors** it cannot be created.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
        let file = file.map_err(|source| Error::io(path, FileOp::Create, source))?;
        Ok(Self { file, path: path.to_owned(), unwritten: 0 })
    }

    /// Appends `bytes`.
    ///
    /// **Errors** there is no space, or the medium fails.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let path = &self.path;
        let failed = |op| move |source| Error::io(path, op, source);
        self.file.write_all(bytes).map_err(failed(FileOp::Write))?;
        self.unwritten += bytes.len() as u64;
        if self.unwritten >= UNWRITTEN_BYTES {
            self.file.sync_data().map_err(failed(FileOp::Sync))?;
            self.unwritten = 0;
        }
        Ok(())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // If that fails, it is as if the process had ended.
        offline::remove_file(&self.path).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_pushed_is_there_until_the_spool_goes() {
        let temporary = tempfile::tempdir().unwrap();
        let path = temporary.path().join("spool");
        std::fs::write(&path, b"of a life before").unwrap();
        let mut spool = Spool::create(&path).unwrap();
        let piece = vec![7; 3 << 20];
        (0..4).for_each(|_| spool.push(&piece).unwrap());
        assert!(spool.unwritten < UNWRITTEN_BYTES);
        assert_eq!(std::fs::read(spool.path()).unwrap(), piece.repeat(4));
        drop(spool);
        assert!(!path.exists());
        assert!(Spool::create(&temporary.path().join("no/such")).is_err());
    }
}
