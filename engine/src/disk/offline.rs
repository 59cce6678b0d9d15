//! Files and directories for tools that run without a server, on the real file system, without a [`super::Disk`].
//!
//! It handles names, existence and small texts. Data of a member is read and written through a `Disk`.
//!
//! Invariants: each function does one thing and blocks until it is done. A changed name survives power loss once
//! [`sync_dir`] of its directory has returned. Everything made here is for its owner only (0700, 0600). Removing
//! follows no symbolic link.

use std::{
    ffi::OsString,
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::files::Files;
use crate::error::{Error, FileOp};

/// The kind of thing that a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// Neither: a socket, a device, a pipe.
    Other,
}

/// What `path` leads to, with symbolic links followed; `None` if there is nothing.
///
/// **Errors** it cannot be found out, for example because a permission is missing.
pub fn kind_of(path: &Path) -> Result<Option<NameKind>, Error> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() => Ok(Some(NameKind::File)),
        Ok(found) if found.is_dir() => Ok(Some(NameKind::Directory)),
        Ok(_) => Ok(Some(NameKind::Other)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(Error::io(path, FileOp::Open, source)),
    }
}

/// Whether `path` leads to anything. **Errors** as [`kind_of`].
pub fn exists(path: &Path) -> Result<bool, Error> {
    kind_of(path).map(|kind| kind.is_some())
}

/// Whether `path` leads to a directory. **Errors** as [`kind_of`].
pub fn is_dir(path: &Path) -> Result<bool, Error> {
    kind_of(path).map(|kind| kind == Some(NameKind::Directory))
}

/// Whether `path` leads to a file. **Errors** as [`kind_of`].
pub fn is_file(path: &Path) -> Result<bool, Error> {
    kind_of(path).map(|kind| kind == Some(NameKind::File))
}

/// Every name directly in `dir`, in order: files, directories and anything else.
///
/// **Errors** there is no such directory, or it cannot be read.
pub fn list(dir: &Path) -> Result<Vec<OsString>, Error> {
    let failed = |source| Error::io(dir, FileOp::List, source);
    let entries = std::fs::read_dir(dir).map_err(failed)?;
    let mut names: Vec<OsString> =
        entries.map(|entry| entry.map(|entry| entry.file_name())).collect::<Result<_, _>>().map_err(failed)?;
    names.sort_unstable();
    Ok(names)
}

/// Whether `dir` is missing or empty. **Errors** it cannot be read, or is not a directory.
pub fn is_empty_or_missing(dir: &Path) -> Result<bool, Error> {
    match list(dir) {
        Ok(names) => Ok(names.is_empty()),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the directory `dir`. **Errors** it exists, or its parent does not.
pub fn create_dir(dir: &Path) -> Result<(), Error> {
    DirBuilder::new().mode(0o700).create(dir).map_err(|source| Error::io(dir, FileOp::Create, source))
}

/// Makes `dir` and its missing parents. An existing one is not an error. The names are durable on return.
pub fn create_dir_all(dir: &Path) -> Result<(), Error> {
    Files::create_dir_all(dir)
}

/// Renames a file or a directory on the same file system. An existing file is replaced. An empty directory may be
/// replaced by a directory.
pub fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    Files::rename(from, to)
}

/// Exchanges two names in one step. Neither is ever missing.
///
/// Some file systems cannot do that. There `b` takes the name of `a` in two steps. Between them, `a` has the name of
/// `b` with `.old` after it.
///
/// **Errors** one of them does not exist, or cannot be renamed.
pub fn exchange(a: &Path, b: &Path) -> Result<(), Error> {
    let failed = |source: io::Error| Error::io(a, FileOp::Rename, source);
    match renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS) => {
            let mut between = b.as_os_str().to_os_string();
            between.push(".old");
            std::fs::rename(a, &between).map_err(failed)?;
            std::fs::rename(b, a).map_err(failed)?;
            std::fs::rename(&between, b).map_err(failed)
        }
        Err(source) => Err(failed(source.into())),
    }
}

/// Removes a file. **Errors** there is no such file.
pub fn remove_file(path: &Path) -> Result<(), Error> {
    Files::remove(path)
}

/// Removes an empty directory. **Errors** it is not empty.
pub fn remove_empty_dir(dir: &Path) -> Result<(), Error> {
    std::fs::remove_dir(dir).map_err(|source| Error::io(dir, FileOp::Remove, source))
}

/// Removes a directory and everything below it. A missing directory is not an error.
pub fn remove_tree(dir: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(dir, FileOp::Remove, error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Makes the names in `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<(), Error> {
    Files::sync_dir(dir)
}

/// Reads a whole text file. **Bounds** `bytes_max`, so that a path to a wrong file does not fill the memory.
///
/// **Errors** there is no such file, it is longer, or it is not UTF-8.
pub fn read_text(path: &Path, bytes_max: usize) -> Result<String, Error> {
    let invalid = |error| Error::io(path, FileOp::Read, io::Error::new(io::ErrorKind::InvalidData, error));
    String::from_utf8(read_small(path, bytes_max)?).map_err(invalid)
}

/// Reads a whole file. **Bounds** `bytes_max`.
///
/// **Errors** there is no such file, or it is longer.
pub fn read_small(path: &Path, bytes_max: usize) -> Result<Vec<u8>, Error> {
    let failed = |op| move |source| Error::io(path, op, source);
    let file = File::open(path).map_err(failed(FileOp::Open))?;
    let mut bytes = Vec::new();
    let limit = u64::try_from(bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    file.take(limit).read_to_end(&mut bytes).map_err(failed(FileOp::Read))?;
    if bytes.len() > bytes_max {
        return Err(failed(FileOp::Read)(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(bytes)
}

/// Writes a new file of a few bytes, for its owner only. The bytes and the name are durable on return.
///
/// **Errors** there is such a file, or no such directory.
pub fn write_small(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let failed = |op| move |source| Error::io(path, op, source);
    let options = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let mut file = options.map_err(failed(FileOp::Create))?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed(FileOp::Write))?;
    path.parent().map_or(Ok(()), sync_dir)
}

/// What tells one state of a file from another without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    /// When the bytes changed, and when the inode did. **Units** seconds and nanoseconds.
    changed: [(i64, i64); 2],
}

/// The present state of the file that `path` leads to, with symbolic links followed.
///
/// **Errors** there is no such file.
pub fn stamp(path: &Path) -> Result<Stamp, Error> {
    let found = std::fs::metadata(path).map_err(|source| Error::io(path, FileOp::Open, source))?;
    Ok(Stamp {
        device: found.dev(),
        inode: found.ino(),
        len: found.len(),
        changed: [(found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec())],
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, path::PathBuf};

    use super::*;

    #[test]
    fn a_file_and_a_directory_exchange_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        create_dir(&a).unwrap();
        fs::write(a.join("inside"), b"1").unwrap();
        fs::write(&b, b"2").unwrap();
        exchange(&a, &b).unwrap();
        assert_eq!(fs::read(&a).unwrap(), b"2");
        assert_eq!(fs::read(b.join("inside")).unwrap(), b"1");
        assert!(remove_empty_dir(&b).is_err());
        assert!(exchange(&a, &dir.path().join("c")).is_err());
    }

    #[test]
    fn names_are_made_found_moved_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let at = |name: &str| -> PathBuf { temp.path().join(name) };
        assert!(is_empty_or_missing(temp.path()).unwrap() && is_empty_or_missing(&at("none")).unwrap());
        create_dir_all(&at("one/two")).unwrap();
        create_dir_all(&at("one/two")).unwrap();
        assert!(create_dir(&at("one")).is_err() && create_dir(&at("none/below")).is_err());
        fs::write(at("one/file"), b"text").unwrap();
        assert_eq!(list(&at("one")).unwrap(), ["file", "two"]);
        assert!(list(&at("none")).is_err() && !is_empty_or_missing(&at("one")).unwrap());
        assert!(is_empty_or_missing(&at("one/file")).is_err(), "a file is no directory");
        assert_eq!(kind_of(&at("one")).unwrap(), Some(NameKind::Directory));
        assert_eq!(kind_of(&at("one/file")).unwrap(), Some(NameKind::File));
        assert_eq!(kind_of(&at("one/file/below")).unwrap(), None);
        assert_eq!(kind_of(Path::new("/dev/null")).unwrap(), Some(NameKind::Other));
        assert!(is_dir(&at("one")).unwrap() && !is_file(&at("one")).unwrap() && !exists(&at("none")).unwrap());
        rename(&at("one"), &at("moved")).unwrap();
        sync_dir(temp.path()).unwrap();
        assert!(is_file(&at("moved/file")).unwrap() && !exists(&at("one")).unwrap());
        assert!(rename(&at("one"), &at("moved")).is_err());
        remove_file(&at("moved/file")).unwrap();
        assert!(remove_file(&at("moved/file")).is_err());
        fs::write(at("moved/two/deep"), b"").unwrap();
        remove_tree(&at("moved")).unwrap();
        remove_tree(&at("moved")).unwrap();
        assert!(list(temp.path()).unwrap().is_empty());
    }

    #[test]
    fn a_file_that_was_replaced_or_written_has_another_stamp() {
        let temp = tempfile::tempdir().unwrap();
        let (path, other) = (temp.path().join("a"), temp.path().join("b"));
        write_small(&path, b"1").unwrap();
        assert!(write_small(&path, b"2").is_err(), "it writes over nothing");
        let first = stamp(&path).unwrap();
        assert_eq!(stamp(&path).unwrap(), first);
        write_small(&other, b"2").unwrap();
        rename(&other, &path).unwrap();
        assert_ne!(stamp(&path).unwrap(), first);
        assert_eq!(read_small(&path, 1).unwrap(), b"2");
        assert!(stamp(&other).is_err());
    }

    #[test]
    fn a_text_is_read_up_to_its_bound() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("text");
        fs::write(&path, "grüße").unwrap();
        assert_eq!(read_text(&path, 7).unwrap(), "grüße");
        assert!(read_text(&path, 6).is_err());
        fs::write(&path, b"\xff").unwrap();
        assert!(read_text(&path, 7).is_err());
        assert!(read_text(&temp.path().join("none"), 7).is_err());
    }
}
