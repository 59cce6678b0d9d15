//! What only offline tools do with names: on the real file system, beside any `Disk`.

use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::FileOp;
use crate::Error;

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
