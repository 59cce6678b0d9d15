//! Runs on: main thread, offline; threads of their own (states that arrive).
//!
//! Files that are read at any offset, whatever the blocks of the medium are.
//!
//! Invariants: a [`DiskSource`] has a disk of its own, which goes through the page cache, because etcd's files may be
//! on any file system. It changes nothing and locks nothing.

use std::path::{Path, PathBuf};

use engine::{
    Error,
    disk::{BLOCK, Buffer, Disk, FileId, OpenKind, open_buffered},
};

/// Bytes that can be read at any offset.
pub trait Source {
    /// Number of bytes. **Units** bytes.
    fn bytes(&self) -> u64;
    /// Reads `len` bytes from `offset` on, or as many as there are.
    ///
    /// **Errors** the medium's.
    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error>;
    /// The name in error texts.
    fn path(&self) -> &Path;
}

/// A file as a [`Source`].
pub struct DiskSource {
    disk: Box<dyn Disk>,
    file: FileId,
    len: u64,
    path: PathBuf,
    buffer: Buffer,
}

impl DiskSource {
    /// Opens `path`.
    ///
    /// **Errors** the file does not exist, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut disk = open_buffered()?;
        let file = disk.open(path, OpenKind::Read)?;
        let len = disk.len(file)?;
        Ok(Self { disk, file, len, path: path.to_path_buf(), buffer: Buffer::new() })
    }
}

impl Source for DiskSource {
    fn bytes(&self) -> u64 {
        self.len
    }

    fn read(&mut self, offset: u64, len: usize) -> Result<Vec<u8>, Error> {
        let block = BLOCK as u64;
        let from = offset / block * block;
        let end = offset.saturating_add(len as u64).min(self.len).next_multiple_of(block);
        let wanted = usize::try_from(end.saturating_sub(from)).unwrap_or(usize::MAX);
        if wanted == 0 {
            return Ok(Vec::new());
        }
        self.disk.read_blocking(self.file, from, wanted, &mut self.buffer)?;
        let skipped = usize::try_from(offset - from).expect("less than a block");
        let bytes = self.buffer.get(skipped..).unwrap_or_default();
        Ok(bytes[..bytes.len().min(len)].to_vec())
    }

    fn path(&self) -> &Path {
        &self.path
    }
}
