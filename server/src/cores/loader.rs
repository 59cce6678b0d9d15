//! Runs on: connection core.
//!
//! Brings pages into memory for one core: a fault goes in, and whoever waits goes on when its bytes are there.
//!
//! Invariants: every submitted read has one waiter, named by its token; a waiter that went away leaves its read to end
//! alone. Bounds: reads in flight by the requests of the core; open segment files by the reader's own bound.

use std::{cell::RefCell, collections::HashMap, rc::Rc};

use engine::{
    Error, Fault,
    disk::{Completion, Disk},
    store::PageReader,
};
use tokio::sync::oneshot;

struct State {
    disk: Box<dyn Disk>,
    reader: PageReader,
    waiting: HashMap<u64, oneshot::Sender<Result<(), Error>>>,
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
    /// **Errors** it cannot be read, or is damaged.
    pub async fn load(&self, fault: Fault) -> Result<(), Error> {
        let (done, wait) = oneshot::channel();
        {
            let State { disk, reader, waiting, next } = &mut *self.0.borrow_mut();
            let number = *next;
            *next += 1;
            reader.submit(disk.as_mut(), fault, number)?;
            disk.kick()?;
            waiting.insert(number, done);
        }
        wait.await.unwrap_or(Err(Error::Stopped))
    }

    /// The descriptor that tells when [`Loader::collect`] has something to do.
    pub fn wake_fd(&self) -> Option<std::os::fd::RawFd> {
        self.0.borrow().disk.wake_fd()
    }

    /// Takes in reads that have ended.
    pub fn collect(&self) {
        let mut ended: Vec<Completion> = Vec::new();
        let State { disk, reader, waiting, .. } = &mut *self.0.borrow_mut();
        disk.completions(&mut ended);
        for completion in ended {
            let (number, result) = reader.on_completion(completion);
            if let Some(done) = waiting.remove(&number) {
                // The request that waited may be gone; then nobody needs to know.
                drop(done.send(result));
            }
        }
    }
}
