//! Runs on: raft core, apply core.
//!
//! Sends to connection cores what raft and apply have for them.
//!
//! Invariants: the answers and events of one turn reach a core in one message, in the order of turns. If a mailbox is
//! full, its answers are kept back (the reply slots bound them) and its events are dropped. Watchers then read these
//! events from the history.

use std::{rc::Rc, sync::Arc};

use tokio::sync::mpsc;

use crate::{
    api::desk::Desk,
    apply::message::{Answer, Answers},
    slots::SlotId,
    watch::batch::Batch,
    wire::socket::Connection,
};

/// Messages to a connection core.
pub enum ToCore {
    /// The results of a turn of raft or apply for this core.
    Turn {
        /// Answers to its requests.
        answers: Vec<(SlotId, Answer)>,
        /// Events for its watchers.
        batch: Option<Arc<Batch>>,
    },
    /// A connection to serve.
    Accept(Connection),
}

/// Hands the results of a turn to the core of this desk.
pub fn take_turn(desk: &Desk, answers: Vec<(SlotId, Answer)>, batch: Option<&Arc<Batch>>) {
    desk.deliver(answers);
    if let Some(batch) = batch {
        desk.watchers.on_batch(batch, &desk.published());
    }
}

/// The way to a connection core.
#[derive(Clone)]
pub enum Way {
    /// The core runs on this thread.
    Here(Rc<Desk>),
    /// The core runs on another thread.
    There(mpsc::Sender<ToCore>),
}

/// See the head of this file.
pub struct Outbox {
    ways: Vec<Way>,
    kept: Answers,
}

impl Outbox {
    /// An outbox for connection cores, in the order of their positions.
    pub fn new(ways: Vec<Way>) -> Self {
        let kept = ways.iter().map(|_| Vec::new()).collect();
        Self { ways, kept }
    }

    /// Sends the answers of a turn, listed by core, and its events.
    pub fn send(&mut self, answers: Answers, batch: Option<&Arc<Batch>>) {
        if answers.is_empty() && batch.is_none() && !self.has_kept() {
            return;
        }
        let mut answers = answers.into_iter();
        for (way, kept) in self.ways.iter().zip(&mut self.kept) {
            let own = answers.next().unwrap_or_default();
            match way {
                Way::Here(desk) => take_turn(desk, own, batch),
                Way::There(core) => send_to(core, kept, own, batch),
            }
        }
    }

    /// Whether answers wait for room.
    pub fn has_kept(&self) -> bool {
        self.kept.iter().any(|kept| !kept.is_empty())
    }
}

fn send_to(
    core: &mpsc::Sender<ToCore>,
    kept: &mut Vec<(SlotId, Answer)>,
    mut own: Vec<(SlotId, Answer)>,
    batch: Option<&Arc<Batch>>,
) {
    kept.append(&mut own);
    if kept.is_empty() && batch.is_none() {
        return;
    }
    let message = ToCore::Turn { answers: std::mem::take(kept), batch: batch.cloned() };
    if let Err(mpsc::error::TrySendError::Full(ToCore::Turn { answers, .. })) = core.try_send(message) {
        *kept = answers;
    }
}
