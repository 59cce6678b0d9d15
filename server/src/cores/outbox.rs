//! Runs on: raft core, apply core.
//!
//! Sends to connection cores what raft and apply have for them.
//!
//! Invariants: the answers and events of one turn reach a core in one message, in the order of turns. If a mailbox is
//! full, its answers are kept back (the reply slots bound them), and what has happened to logins (their rate is that
//! of bcrypt); its events are dropped. Watchers then read these events from the history.
//! What a core is told of logins comes before the answers of the same entries.

use std::{
    future::{Future, poll_fn},
    rc::Rc,
    sync::Arc,
    task::Poll,
};

use tokio::sync::mpsc;

use crate::{
    api::desk::Desk,
    apply::message::{Answer, AnswersByCore},
    auth::logins,
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
        /// What has happened to logins.
        logins: Vec<logins::Change>,
    },
    /// A connection to serve.
    Accept(Connection),
}

/// Hands the results of a turn to the core of this desk.
pub fn take_turn(desk: &Desk, answers: Vec<(SlotId, Answer)>, batch: Option<&Arc<Batch>>, logins: &[logins::Change]) {
    desk.take_logins(logins);
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

/// What did not fit into a core's mailbox.
#[derive(Default)]
struct Kept {
    answers: Vec<(SlotId, Answer)>,
    /// Last revision of the events that were let go.
    missed: Option<i64>,
    logins: Vec<logins::Change>,
}

impl Kept {
    fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.missed.is_none() && self.logins.is_empty()
    }
}

/// See the head of this file.
pub struct Outbox {
    ways: Vec<(Way, Kept)>,
}

impl Outbox {
    /// An outbox for connection cores, in the order of their positions.
    pub fn new(ways: Vec<Way>) -> Self {
        Self { ways: ways.into_iter().map(|way| (way, Kept::default())).collect() }
    }

    /// Sends the answers of a turn, listed by core, its events, and what has happened to logins.
    pub fn send(&mut self, answers: AnswersByCore, batch: Option<&Arc<Batch>>, logins: &[logins::Change]) {
        if answers.is_empty() && batch.is_none() && logins.is_empty() && !self.has_kept() {
            return;
        }
        let mut answers = answers.into_iter();
        for (way, kept) in &mut self.ways {
            let own = answers.next().unwrap_or_default();
            match way {
                Way::Here(desk) => take_turn(desk, own, batch, logins),
                Way::There(core) => {
                    kept.logins.extend_from_slice(logins);
                    send_to(core, kept, own, batch);
                }
            }
        }
    }

    /// Whether a core has not been sent everything, for want of room.
    pub fn has_kept(&self) -> bool {
        self.ways.iter().any(|(_, kept)| !kept.is_empty())
    }

    /// Resolves when a core that has not been sent everything has room.
    pub async fn has_room(&self) {
        let full = self.ways.iter().filter(|(_, kept)| !kept.is_empty());
        let mut rooms: Vec<_> = full
            .filter_map(|(way, _)| match way {
                Way::Here(_) => None,
                Way::There(core) => Some(Box::pin(core.reserve())),
            })
            .collect();
        poll_fn(|cx| {
            let has_room = rooms.iter_mut().any(|room| room.as_mut().poll(cx).is_ready());
            if has_room { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

fn send_to(core: &mpsc::Sender<ToCore>, kept: &mut Kept, mut own: Vec<(SlotId, Answer)>, batch: Option<&Arc<Batch>>) {
    kept.answers.append(&mut own);
    // A batch behind a gap tells a core of the gap. Where none follows, an empty one does.
    let behind_gap = |last: i64| Arc::new(Batch::new(last + 1, last, Vec::new()));
    let batch = batch.cloned().or_else(|| kept.missed.map(behind_gap));
    if kept.answers.is_empty() && batch.is_none() && kept.logins.is_empty() {
        return;
    }
    let (answers, logins) = (std::mem::take(&mut kept.answers), std::mem::take(&mut kept.logins));
    let message = ToCore::Turn { answers, batch, logins };
    kept.missed = None;
    if let Err(mpsc::error::TrySendError::Full(ToCore::Turn { answers, batch, logins })) = core.try_send(message) {
        (kept.answers, kept.logins) = (answers, logins);
        kept.missed = batch.map(|batch| batch.last_main);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Waker},
    };

    use super::*;

    fn batch(main: i64) -> Arc<Batch> {
        Arc::new(Batch::new(main, main, Vec::new()))
    }

    #[test]
    fn a_core_whose_mailbox_was_full_is_told_of_the_events_that_it_missed() {
        let (sender, mut core) = mpsc::channel(1);
        let mut outbox = Outbox::new(vec![Way::There(sender)]);
        let mut received = || match core.try_recv() {
            Ok(ToCore::Turn { batch, .. }) => batch.map(|batch| (batch.first_main, batch.last_main)),
            _ => panic!("there is a turn"),
        };
        outbox.send(AnswersByCore::new(), Some(&batch(5)), &[]);
        outbox.send(AnswersByCore::new(), Some(&batch(6)), &[]);
        outbox.send(AnswersByCore::new(), Some(&batch(7)), &[]);
        assert!(outbox.has_kept(), "6 and 7 found no room");
        let mut cx = Context::from_waker(Waker::noop());
        assert!(pin!(outbox.has_room()).poll(&mut cx).is_pending());
        assert_eq!(received(), Some((5, 5)));
        assert!(pin!(outbox.has_room()).poll(&mut cx).is_ready());
        outbox.send(AnswersByCore::new(), None, &[]);
        assert_eq!(received(), Some((8, 7)), "nothing happened behind 7, but up to it something did");
        assert!(!outbox.has_kept());
        outbox.send(AnswersByCore::new(), None, &[]);
        outbox.send(AnswersByCore::new(), Some(&batch(8)), &[]);
        assert_eq!(received(), Some((8, 8)));
    }
}
