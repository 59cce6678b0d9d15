//! Runs on: connection core.
//!
//! What a state on its way needs of the member: its desk, and its disk.

use std::{rc::Rc, sync::Arc};

use engine::disk::Disk;
use tokio::task::spawn_local;

use crate::{api::desk::Desk, apply::message::ToApply, raft::message::ToRaft};

/// Opens one more disk of the data directory, on any thread.
pub type OpenDisk = Arc<dyn Fn() -> Result<Box<dyn Disk>, engine::Error> + Send + Sync>;

/// See the head of this file.
pub(super) struct Ways {
    pub(super) desk: Rc<Desk>,
    pub(super) open_disk: OpenDisk,
}

impl Ways {
    /// Tells raft, however long that takes.
    pub(super) fn tell_raft(&self, message: ToRaft) {
        let desk = Rc::clone(&self.desk);
        spawn_local(async move { desk.tell_raft(message).await });
    }

    /// Tells apply, however long that takes.
    pub(super) fn tell_apply(&self, message: ToApply) {
        let desk = Rc::clone(&self.desk);
        spawn_local(async move { desk.tell_apply(message).await });
    }
}
