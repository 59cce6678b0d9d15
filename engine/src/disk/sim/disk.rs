//! One core's view of a simulated storage: a [`Disk`] like any other.
//!
//! Invariants: a handle stays valid until `close`. An operation is refused once the storage has stopped. This file
//! keeps no content; `state` holds files and names.

use std::{
    collections::VecDeque,
    io,
    os::fd::RawFd,
    path::{Path, PathBuf},
};

use super::{
    state::{Done, Order, Pending, Target},
    storage::SimStorage,
};
use crate::{
    disk::{Buffer, Completion, DirLock, Disk, FileId, FileOp, Op, OpenKind, Token, assert_aligned},
    error::Error,
};

impl SimStorage {
    /// A view of this disk for one more core.
    pub fn disk(&self) -> SimDisk {
        let mut state = self.state();
        state.disks += 1;
        SimDisk { storage: self.clone(), number: state.disks, handles: Vec::new() }
    }
}

/// One core's view of a `SimStorage`.
pub struct SimDisk {
    storage: SimStorage,
    number: u64,
    handles: Vec<Option<(PathBuf, Target)>>,
}

impl SimDisk {
    fn handle(&self, file: FileId) -> &(PathBuf, Target) {
        let handle = usize::try_from(file.0).ok().and_then(|at| self.handles.get(at));
        handle.and_then(Option::as_ref).expect("the file is open in this instance")
    }

    /// The target of the reserved, or once open, `file` becomes `target`.
    fn opened(&mut self, file: FileId, target: Target) {
        self.handle(file);
        let at = usize::try_from(file.0).expect("checked by `handle`");
        self.handles[at] = Some((self.handle(file).0.clone(), target));
    }

    fn fails(path: &Path, op: FileOp, kind: io::ErrorKind) -> Error {
        Error::io(path, op, kind.into())
    }
}

/// Releases a simulated lock.
struct Held {
    storage: SimStorage,
    dir: PathBuf,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.storage.state().locked.remove(&self.dir);
    }
}

impl Disk for SimDisk {
    fn create_dir_all(&mut self, dir: &Path) -> Result<(), Error> {
        let mut state = self.storage.state();
        if !state.dirs.contains(dir) {
            state.step()?;
            state.dirs.extend(dir.ancestors().map(Path::to_path_buf));
        }
        Ok(())
    }

    fn open(&mut self, path: &Path, kind: OpenKind) -> Result<FileId, Error> {
        let target = self.storage.state().open(path, kind)?;
        let file = self.reserve(path);
        self.opened(file, target);
        Ok(file)
    }

    fn reserve(&mut self, path: &Path) -> FileId {
        let handle = Some((path.to_path_buf(), Target::Unopened));
        let position = self.handles.iter().position(Option::is_none).unwrap_or(self.handles.len());
        if position == self.handles.len() {
            self.handles.push(handle);
        } else {
            self.handles[position] = handle;
        }
        FileId(u32::try_from(position).expect("far fewer than 2^32 files are open"))
    }

    fn close(&mut self, file: FileId) {
        self.handle(file);
        self.handles[usize::try_from(file.0).expect("checked by `handle`")] = None;
    }

    fn path(&self, file: FileId) -> &Path {
        &self.handle(file).0
    }

    fn len(&mut self, file: FileId) -> Result<u64, Error> {
        match self.handle(file).1 {
            Target::File(number) => Ok(self.storage.state().files[&number].len),
            Target::Dir => Ok(0),
            Target::Unopened => panic!("a file has a length once it is open"),
        }
    }

    fn list(&mut self, dir: &Path) -> Result<Vec<String>, Error> {
        let state = self.storage.state();
        if !state.dirs.contains(dir) {
            return Err(Self::fails(dir, FileOp::List, io::ErrorKind::NotFound));
        }
        let of_dir = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(of_dir.filter_map(|path| path.file_name()?.to_str().map(str::to_owned)).collect())
    }

    fn remove(&mut self, path: &Path) -> Result<(), Error> {
        self.storage.state().remove(path)
    }

    fn rename(&mut self, from: &Path, to: &Path) -> Result<(), Error> {
        self.storage.state().rename(from, to)
    }

    fn sync_dir(&mut self, dir: &Path) -> Result<(), Error> {
        let mut state = self.storage.state();
        state.step()?;
        let at = state.next();
        state.sync_names(dir, at);
        Ok(())
    }

    fn lock(&mut self, dir: &Path) -> Result<DirLock, Error> {
        if !self.storage.state().locked.insert(dir.to_path_buf()) {
            return Err(Error::Locked { path: dir.to_path_buf() });
        }
        Ok(DirLock::holding(Held { storage: self.storage.clone(), dir: dir.to_path_buf() }))
    }

    fn read_blocking(&mut self, file: FileId, offset: u64, len: usize, buf: &mut Buffer) -> Result<(), Error> {
        assert_aligned(offset, len);
        let (path, target) = self.handle(file);
        let Target::File(number) = *target else { panic!("a directory is not read") };
        let mut state = self.storage.state();
        if state.is_stopped {
            return Err(Error::Stopped);
        }
        state.read(path, number, offset, len, buf).map_err(|source| Error::io(path, FileOp::Read, source))?;
        Ok(())
    }

    fn submit(&mut self, op: Op, token: Token) {
        op.assert_valid();
        let (path, target) = self.handle(op.file()).clone();
        match (&op, &target) {
            (Op::Open { .. }, Target::Unopened) => {}
            (Op::Open { .. }, _) => panic!("a file is opened once"),
            (Op::Remove { file }, _) => self.opened(*file, Target::Unopened),
            (_, Target::Unopened) => panic!("an operation names an open file"),
            _ => {}
        }
        let mut state = self.storage.state();
        let number = state.next();
        state.pending.push(Pending { number, disk: self.number, token, path, target, op });
    }

    fn kick(&mut self) -> Result<(), Error> {
        if self.storage.is_stopped() { Err(Error::Stopped) } else { Ok(()) }
    }

    fn completions(&mut self, out: &mut Vec<Completion>) {
        let mut state = self.storage.state();
        state.run(false);
        let done = state.done.get_mut(&self.number).map(std::mem::take).unwrap_or_default();
        drop(state);
        for Done { completion, opened } in done {
            if let Some((file, target)) = opened {
                self.opened(file, target);
            }
            out.push(completion);
        }
    }

    fn wait(&mut self) -> Result<(), Error> {
        let mut state = self.storage.state();
        while state.done.get(&self.number).is_none_or(VecDeque::is_empty) {
            let is_anything_in_flight = state.pending.iter().any(|pending| pending.disk == self.number);
            assert!(is_anything_in_flight || state.is_stopped, "nothing to wait for");
            if state.is_stopped || state.order == Order::Manual {
                return Err(Error::Stopped);
            }
            state.run(true);
        }
        Ok(())
    }

    fn wake_fd(&self) -> Option<RawFd> {
        None
    }
}
