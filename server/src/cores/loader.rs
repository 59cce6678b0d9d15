//! Runs on: connection core.
//!
//! Brings pages into memory for one core: a fault goes in, and whoever waits goes on when its bytes are there.
//!
//! Invariants: every submitted read has one waiter, named by its token; a waiter that went away leaves its read to end
//! alone. Bounds: reads in flight by the requests of the core; open segment files by the reader's own bound.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use engine::{Error, Fault, PageReader, disk::Disk};
use tokio::sync::oneshot;

struct State {
    disk: Box<dyn Disk>,
    reader: PageReader,
    waiting: HashMap<u64, oneshot::Sender<()>>,
    next: u64,
}

/// One core's page reads.
#[derive(Clone)]
pub struct Loader(Rc<RefCell<State>>);

impl Loader {
    /// Reads through `disk`.
    pub fn new(disk: Box<dyn Disk>, reader: PageReader) -> Self {
        Self(Rc::new(RefCell::new(State { disk, reader, waiting: HashMap::new(), next: 0 })))
    }

    /// Brings what `fault` names into memory.
    ///
    /// **Errors** its file cannot be opened or read: the member must stop.
    pub async fn load(&self, fault: Fault) -> Result<(), Error> {
        self.load_all([fault]).await
    }

    /// Brings what each of `faults` names into memory, all at once.
    ///
    /// **Errors** as [`Loader::load`].
    pub async fn load_all(&self, faults: impl IntoIterator<Item = Fault>) -> Result<(), Error> {
        let mut waits = Vec::new();
        {
            let State { disk, reader, waiting, next } = &mut *self.0.borrow_mut();
            for fault in faults {
                let (done, wait) = oneshot::channel();
                waiting.insert(*next, done);
                reader.read(fault, *next);
                *next += 1;
                waits.push(wait);
            }
            reader.step(disk.as_mut())?;
            disk.kick()?;
        }
        for wait in waits {
            // The sender goes only with the loader: then the member has stopped.
            wait.await.map_err(|_gone| Error::Stopped)?;
        }
        Ok(())
    }

    /// The descriptor that tells when [`Loader::collect`] has something to do.
    pub fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        self.0.borrow().disk.wake_fd()
    }

    /// Takes in reads that have ended and begins those that waited for a place.
    ///
    /// **Errors** a read failed, or what it brought is damaged: the member must stop.
    pub fn collect(&self) -> Result<(), Error> {
        let mut ended = Vec::new();
        let State { disk, reader, waiting, .. } = &mut *self.0.borrow_mut();
        disk.completions(&mut ended);
        for completion in ended {
            for ticket in reader.on_completion(completion)? {
                // The request that waited may be gone; then nobody needs to know.
                if let Some(done) = waiting.remove(&ticket)
                    && done.send(()).is_err()
                {
                    tracing::trace!(ticket, "nobody waits for this page any more");
                }
            }
        }
        reader.step(disk.as_mut())?;
        disk.kick()
    }
}
