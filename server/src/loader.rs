//! Runs on: connection core, apply core.
//!
//! Loads pages into memory for one core. A fault goes in; its waiter goes on when the bytes are there.
//!
//! Invariants: every submitted read has one waiter, which its token names. If the waiter has gone away, its read ends
//! unnoticed. A page that cannot be read is reported once, and concerns only its waiters: a request that needs the page
//! fails, and all others are served. Bounds: the requests of the core bound the reads in flight, and the reader's own
//! bound limits the open segment files.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use engine::{Error, Fault, Loaded, PageReader, disk::Disk};
use tokio::sync::oneshot;

struct State {
    disk: Box<dyn Disk>,
    reader: PageReader,
    waiting: HashMap<u64, oneshot::Sender<Result<(), Error>>>,
    next: u64,
}

impl State {
    fn end(&mut self, Loaded { tickets, result, is_news }: Loaded) {
        if let Err(error) = &result
            && is_news
        {
            tracing::error!(%error, "a page cannot be read; requests that need it fail");
        }
        for ticket in tickets {
            // The waiting request may be gone. Then nobody needs the result.
            let result = result.as_ref().copied().map_err(Error::again);
            if let Some(done) = self.waiting.remove(&ticket)
                && done.send(result).is_err()
            {
                tracing::trace!(ticket, "nobody waits for this page any more");
            }
        }
    }

    fn step(&mut self) -> Result<(), Error> {
        for failed in self.reader.step(self.disk.as_mut()) {
            self.end(failed);
        }
        self.disk.kick()
    }
}

/// One core's page reads.
#[derive(Clone)]
pub struct Loader(Rc<RefCell<State>>);

impl Loader {
    /// A loader that reads through `disk`.
    pub fn new(disk: Box<dyn Disk>, reader: PageReader) -> Self {
        Self(Rc::new(RefCell::new(State { disk, reader, waiting: HashMap::new(), next: 0 })))
    }

    /// Loads the page that `fault` names.
    ///
    /// **Errors** its file cannot be opened or read, or is damaged there; this has been reported. `Stopped` if the
    /// member stops.
    pub async fn load(&self, fault: Fault) -> Result<(), Error> {
        self.load_all([fault]).await
    }

    /// Loads the pages that `faults` name, all at once.
    ///
    /// **Errors** as [`Loader::load`].
    pub async fn load_all(&self, faults: impl IntoIterator<Item = Fault>) -> Result<(), Error> {
        for wait in self.begin(faults)? {
            // The sender goes away only with the loader. The member has then stopped.
            wait.await.map_err(|_gone| Error::Stopped)??;
        }
        Ok(())
    }

    /// Loads the pages that `faults` name, all at once, as far as they can be read. Those that cannot are noted in the
    /// store's [`engine::Unreadable`].
    ///
    /// **Errors** `Stopped` if the member stops.
    pub async fn load_readable(&self, faults: impl IntoIterator<Item = Fault>) -> Result<(), Error> {
        for wait in self.begin(faults)? {
            match wait.await {
                Ok(Ok(()) | Err(Error::Corrupt { .. } | Error::Io { .. })) => {}
                Ok(Err(error)) => return Err(error),
                Err(_gone) => return Err(Error::Stopped),
            }
        }
        Ok(())
    }

    /// Begins to load the pages that `faults` name.
    fn begin(
        &self,
        faults: impl IntoIterator<Item = Fault>,
    ) -> Result<Vec<oneshot::Receiver<Result<(), Error>>>, Error> {
        let mut waits = Vec::new();
        let state = &mut *self.0.borrow_mut();
        for fault in faults {
            let (done, wait) = oneshot::channel();
            state.waiting.insert(state.next, done);
            state.reader.read(fault, state.next);
            state.next += 1;
            waits.push(wait);
        }
        state.step()?;
        Ok(waits)
    }

    /// The descriptor that becomes readable when [`Loader::collect`] has something to do.
    pub fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        self.0.borrow().disk.wake_fd()
    }

    /// Takes in reads that have ended, and begins reads that waited for a place.
    ///
    /// **Errors** the disk takes no more operations; the member must stop.
    pub fn collect(&self) -> Result<(), Error> {
        let mut ended = Vec::new();
        let state = &mut *self.0.borrow_mut();
        state.disk.completions(&mut ended);
        for completion in ended {
            for loaded in state.reader.on_completion(completion) {
                state.end(loaded);
            }
        }
        state.step()
    }

    /// Closes segment files that were not read since the last call. Removed files take space until they are closed.
    pub fn close_unused(&self) {
        let State { disk, reader, .. } = &mut *self.0.borrow_mut();
        reader.close_unused(disk.as_mut());
    }
}
