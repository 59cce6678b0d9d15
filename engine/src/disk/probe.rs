//! Which I/O path this machine and directory allow: tried on a real file in the real directory, never guessed.
//!
//! io_uring with O_DIRECT where both work; else `pwrite` on threads, with O_DIRECT where that works. The answer and its
//! reason are for the first lines a server prints. Deliberately measures nothing: speed is `orlop tune`'s.

use std::fmt;
use std::path::Path;

use super::files::Files;
use super::portable::{Portable, refused};
use super::uring::Uring;
use super::{BLOCK, Buffer, Disk, FileOp, Op, OpenKind, Owner};
use crate::Error;

/// What the operator asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// io_uring where it is allowed.
    #[default]
    Auto,
    /// io_uring, or an error.
    Uring,
    /// Threads, even where io_uring is allowed.
    Portable,
}

/// The implementations for real files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IoKind {
    /// io_uring.
    Uring,
    /// `pread` and `pwrite` on threads.
    Portable,
}

/// A choice that was made, and why.
#[derive(Clone, Debug)]
pub struct IoPath {
    /// The implementation.
    pub kind: IoKind,
    /// Whether files bypass the page cache.
    pub is_direct: bool,
    /// The reason, for humans.
    pub why: String,
}

impl fmt::Display for IoPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            IoKind::Uring => "io_uring",
            IoKind::Portable => "portable",
        };
        let cache = if self.is_direct { "O_DIRECT" } else { "page cache" };
        write!(f, "{kind}, {cache} ({})", self.why)
    }
}

impl IoPath {
    /// One more disk on this path, for another thread.
    pub fn disk(&self, dir: &Path) -> Result<Box<dyn Disk>, Error> {
        let started: std::io::Result<Box<dyn Disk>> = match self.kind {
            IoKind::Uring => Uring::start(self.is_direct).map(|disk| Box::new(disk) as Box<dyn Disk>),
            IoKind::Portable => Portable::start(self.is_direct).map(|disk| Box::new(disk) as Box<dyn Disk>),
        };
        started.map_err(|source| refused(dir, source))
    }
}

/// Name of the file that is tried on; removed again.
const PROBE: &str = ".orlop-io-probe";

/// The best disk for `dir` (which is created) that `preference` allows, and how it was chosen.
///
/// **Errors** what the portable path meets, or with `Preference::Uring` why io_uring cannot be used.
pub fn open_disk(preference: Preference, dir: &Path) -> Result<(Box<dyn Disk>, IoPath), Error> {
    Files::create_dir_all(dir)?;
    let path_of = |kind, is_direct, why| IoPath { kind, is_direct, why };
    let direct = path_of(IoKind::Uring, true, "allowed by the kernel and the file system".to_owned());
    let mut why = "asked for by a flag".to_owned();
    if preference != Preference::Portable {
        match probed(&direct, dir) {
            Ok(disk) => return Ok((disk, direct)),
            Err(error) if preference == Preference::Uring => return Err(error),
            Err(error @ (Error::NoSpace { .. } | Error::Locked { .. })) => return Err(error),
            Err(error) => why = format!("io_uring with O_DIRECT is refused: {error}"),
        }
    }
    let path = path_of(IoKind::Portable, true, why.clone());
    match probed(&path, dir) {
        Ok(disk) => Ok((disk, path)),
        Err(error @ Error::NoSpace { .. }) => Err(error),
        Err(error) => {
            let path = path_of(IoKind::Portable, false, format!("{why}; O_DIRECT is refused: {error}"));
            Ok((probed(&path, dir)?, path))
        }
    }
}

/// A disk that goes through the kernel's page cache, for offline tools that read files wherever they lie: it tries nothing out, so
/// a directory may be read-only.
///
/// **Errors** its thread cannot be started.
pub fn open_buffered() -> Result<Box<dyn Disk>, Error> {
    let path = IoPath { kind: IoKind::Portable, is_direct: false, why: String::new() };
    path.disk(Path::new("."))
}

/// A disk on `path`, if a durable write, a read and a sync of a directory work on it in `dir`.
fn probed(path: &IoPath, dir: &Path) -> Result<Box<dyn Disk>, Error> {
    let mut disk = path.disk(dir)?;
    let file = dir.join(PROBE);
    if file.exists() {
        disk.remove(&file)?;
    }
    let tried = try_file(&mut *disk, &file, dir);
    if file.exists() {
        disk.remove(&file)?;
    }
    tried.map(|()| disk)
}

fn try_file(disk: &mut dyn Disk, path: &Path, dir: &Path) -> Result<(), Error> {
    let file = disk.open(path, OpenKind::Create { len: 2 * BLOCK as u64 })?;
    let dir_file = disk.open(dir, OpenKind::Directory)?;
    let mut pattern = Buffer::zeroed(BLOCK);
    pattern.fill(0xa5);
    let ops = [
        (FileOp::Write, Op::WriteDurable { file, offset: BLOCK as u64, buf: pattern }),
        (FileOp::Sync, Op::Sync { file }),
        (FileOp::Sync, Op::Sync { file: dir_file }),
        (FileOp::Read, Op::Read { file, offset: 0, len: 2 * BLOCK, buf: Buffer::new() }),
    ];
    let mut ended = Vec::new();
    for (kind, op) in ops {
        disk.submit(op, Owner::Other.token(0));
        disk.wait()?;
        disk.completions(&mut ended);
        let completion = ended.pop().expect("`wait` waited for it");
        completion.result.map_err(|source| Error::io(path, kind, source))?;
        if kind == FileOp::Read {
            let is_as_written = completion.buf.len() == 2 * BLOCK
                && completion.buf[..BLOCK].iter().all(|byte| *byte == 0)
                && completion.buf[BLOCK..].iter().all(|byte| *byte == 0xa5);
            if !is_as_written {
                return Err(Error::corrupt(path, 0, "a file just written reads otherwise"));
            }
        }
    }
    disk.close(file);
    disk.close(dir_file);
    Ok(())
}
