//! What only offline tools do with names: on the real file system, beside any `Disk`.

use std::{ffi::OsString, io, path::Path};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::FileOp;
use crate::Error;

/// What a name leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameKind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// Neither: a socket, a device, a pipe.
    Other,
}

/// What `path` leads to, symbolic links followed; `None` if there is nothing.
///
/// **Errors** it cannot be told, for want of a permission for instance.
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

/// Whether `dir` is missing or holds nothing. **Errors** it cannot be read, or is no directory.
pub fn is_empty_or_missing(dir: &Path) -> Result<bool, Error> {
    match list(dir) {
        Ok(names) => Ok(names.is_empty()),
        Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Gives two names to one another in one step: at no moment is one of them missing. Durable after a sync of their directory.
///
/// Where the file system cannot do that, `b` takes the name of `a` in two steps, `a` that of `b` with `.old` behind it in between.
///
/// **Errors** one of them is not there, or not to be renamed.
pub fn exchange(a: &Path, b: &Path) -> Result<(), Error> {
    let failed = |source: std::io::Error| Error::io(a, FileOp::Rename, source);
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

/// Removes a directory that holds nothing any more.
///
/// **Errors** it holds something.
pub fn remove_empty_dir(dir: &Path) -> Result<(), Error> {
    std::fs::remove_dir(dir).map_err(|source| Error::io(dir, FileOp::Remove, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_and_a_directory_exchange_their_names() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        std::fs::create_dir(&a).unwrap();
        std::fs::write(a.join("inside"), b"1").unwrap();
        std::fs::write(&b, b"2").unwrap();
        exchange(&a, &b).unwrap();
        assert_eq!(std::fs::read(&a).unwrap(), b"2");
        assert_eq!(std::fs::read(b.join("inside")).unwrap(), b"1");
        assert!(remove_empty_dir(&b).is_err());
        assert!(exchange(&a, &dir.path().join("c")).is_err());
    }
}
