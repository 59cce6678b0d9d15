//! Finds the I/O path that this machine and directory allow. It tries a real file in the real directory, and never
//! guesses.
//!
//! The path is io_uring with O_DIRECT if both work. Otherwise it is `pwrite` on threads, with O_DIRECT if that works.
//! The server prints the answer and its reason in its first lines. A directory is probed once. Every thread then opens
//! its own disk on the path that was found ([`IoPath::disk`]).
//!
//! Invariants: any number of threads and processes may probe one directory at once. Each tries a file that it created
//! itself, and works on the open file, not on its name. So another process may remove the name as a leftover at any
//! time.
//!
//! It does not measure speed; `orlop tune` does.

use std::{fmt, io, path::Path};

use super::{
    block::BLOCK,
    buffer::Buffer,
    files::Files,
    portable::{Portable, refused},
    seam::{Disk, Op, OpenKind, Owner},
    uring::Uring,
};
use crate::error::{Error, FileOp};

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

/// A choice that was made, and the reason.
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

/// The first part of the name of a probe file. The process and a number follow.
const PROBE: &str = ".orlop-io-probe";

/// Finds the best path for `dir` that `preference` allows. Creates `dir`, and removes files of probes that died there.
///
/// **Errors** those of the portable path; with `Preference::Uring`, the reason why io_uring cannot be used.
pub fn probe(preference: Preference, dir: &Path) -> Result<IoPath, Error> {
    Files::create_dir_all(dir)?;
    remove_leftovers(dir)?;
    let path_of = |kind, is_direct, why| IoPath { kind, is_direct, why };
    let mut why = "asked for by a flag".to_owned();
    if preference != Preference::Portable {
        let direct = path_of(IoKind::Uring, true, "allowed by the kernel and the file system".to_owned());
        match try_path(&direct, dir) {
            Ok(()) => return Ok(direct),
            Err(error) if preference == Preference::Uring => return Err(error),
            Err(error @ (Error::NoSpace { .. } | Error::Locked { .. })) => return Err(error),
            Err(error) => why = format!("io_uring with O_DIRECT is refused: {error}"),
        }
    }
    let path = path_of(IoKind::Portable, true, why.clone());
    match try_path(&path, dir) {
        Ok(()) => Ok(path),
        Err(error @ Error::NoSpace { .. }) => Err(error),
        Err(error) => {
            let path = path_of(IoKind::Portable, false, format!("{why}; O_DIRECT is refused: {error}"));
            try_path(&path, dir)?;
            Ok(path)
        }
    }
}

/// As [`probe`], and opens a disk on the path that was found. It is for tools that need one disk.
///
/// **Errors** those of [`probe`].
pub fn open_disk(preference: Preference, dir: &Path) -> Result<(Box<dyn Disk>, IoPath), Error> {
    let path = probe(preference, dir)?;
    Ok((path.disk(dir)?, path))
}

/// A disk that goes through the kernel's page cache, for offline tools that read files on any file system. It does not
/// probe, so a directory may be read-only.
///
/// **Errors** its thread cannot be started.
pub fn open_buffered() -> Result<Box<dyn Disk>, Error> {
    let path = IoPath { kind: IoKind::Portable, is_direct: false, why: String::new() };
    path.disk(Path::new("."))
}

/// Removes the files of probes that died. A probe that is still at work only loses its name, which it no longer needs.
fn remove_leftovers(dir: &Path) -> Result<(), Error> {
    for name in Files::list(dir)?.iter().filter(|name| name.starts_with(PROBE)) {
        remove_if_there(&dir.join(name))?;
    }
    Ok(())
}

fn remove_if_there(path: &Path) -> Result<(), Error> {
    match Files::remove(path) {
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// Tries a durable write, a read, and a sync of a directory, on `path` in `dir`.
fn try_path(path: &IoPath, dir: &Path) -> Result<(), Error> {
    let mut disk = path.disk(dir)?;
    // Processes of two containers may share a directory and have the same number. Then the name is taken.
    for number in 0_u64.. {
        let file = dir.join(format!("{PROBE}-{}-{number}", std::process::id()));
        let tried = try_file(&mut *disk, &file, dir);
        if is_taken(&tried) {
            continue;
        }
        // A refused O_DIRECT may leave an empty file.
        remove_if_there(&file)?;
        return tried;
    }
    unreachable!("some number is free")
}

fn is_taken(tried: &Result<(), Error>) -> bool {
    matches!(tried, Err(Error::Io { op: FileOp::Create, source, .. }) if source.kind() == io::ErrorKind::AlreadyExists)
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

#[cfg(test)]
mod tests {
    use std::{fs, thread};

    use super::*;

    #[test]
    fn threads_that_probe_at_once_all_find_the_path_that_one_finds() {
        let temp = tempfile::tempdir().unwrap();
        for preference in [Preference::Auto, Preference::Portable, Preference::Uring] {
            let alone = probe(preference, temp.path()).map(|path| path.to_string());
            thread::scope(|scope| {
                let probing = || (0..8).map(|_| probe(preference, temp.path())).collect::<Vec<_>>();
                let threads: Vec<_> = (0..6).map(|_| scope.spawn(probing)).collect();
                for found in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
                    match &alone {
                        Ok(alone) => assert_eq!(found.unwrap().to_string(), *alone),
                        Err(_) => assert!(found.is_err(), "{preference:?} is refused here"),
                    }
                }
            });
            assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0, "nothing is left");
        }
    }

    #[test]
    fn leftovers_go_and_the_name_of_another_process_is_not_used() {
        let temp = tempfile::tempdir().unwrap();
        let own = format!("{PROBE}-{}-0", std::process::id());
        for name in [PROBE, &own, ".orlop-io-probe-1-7", "kept"] {
            fs::write(temp.path().join(name), b"left").unwrap();
        }
        let path = probe(Preference::Portable, temp.path()).unwrap();
        assert_eq!(Files::list(temp.path()).unwrap(), ["kept"]);
        // This is as if another process with the same number had begun after the search for leftovers.
        fs::write(temp.path().join(&own), b"theirs").unwrap();
        try_path(&path, temp.path()).unwrap();
        assert_eq!(fs::read(temp.path().join(&own)).unwrap(), b"theirs");
    }
}
