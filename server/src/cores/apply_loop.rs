//! Runs on: apply core.
//!
//! Moves messages into apply and hands out what a turn of it gives. Also the loop of apply on a thread of its own.

use std::time::Duration;

use engine::Checkpoint;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_local,
};

use super::{outbox::Outbox, ticks::Ticks};
use crate::{
    apply::{
        fatal::Fatal,
        machine::{Apply, Turn},
        message::{Handed, Report, ToApply},
    },
    clock::Clock,
    loader::Loader,
    mailbox::Inbox,
};

/// Handovers and reports that may wait between two threads. Raft and apply bound what they hold.
pub const WAITING_MAX: usize = 64;

/// Apply with its inputs and outputs.
pub struct ApplyCore {
    /// The machine.
    pub apply: Apply,
    /// What other cores send.
    pub inbox: Inbox<ToApply>,
    /// The channel from tasks of this thread.
    pub to_self: mpsc::Sender<Vec<ToApply>>,
    /// Page reads of this thread.
    pub loader: Loader,
    /// Where checkpoints are sent to be run.
    pub checkpoints: std::sync::mpsc::Sender<Checkpoint>,
    /// Becomes true when clients may be served.
    pub ready: watch::Sender<bool>,
    /// Messages that have come and are not yet taken in.
    pub messages: Vec<ToApply>,
}

impl ApplyCore {
    /// Takes in the messages that have come.
    ///
    /// **Errors** the member must stop.
    pub(super) fn receive(&mut self, now: Duration) -> Result<(), Fatal> {
        self.inbox.take(&mut self.messages);
        self.messages.drain(..).try_for_each(|message| self.apply.receive(message, now))
    }

    /// Hands out the results of a turn.
    pub(super) fn hand_out(&mut self, turn: Turn, outbox: &mut Outbox) {
        outbox.send(turn.answers, turn.batch.as_ref(), &turn.logins);
        if !turn.faults.is_empty() {
            let (loader, to_self) = (self.loader.clone(), self.to_self.clone());
            spawn_local(async move {
                let loaded = loader.load_readable(turn.faults).await;
                // The loop that would receive it may have ended.
                drop(to_self.send(vec![ToApply::Loaded(loaded)]).await);
            });
        }
        if let Some(checkpoint) = turn.checkpoint {
            self.checkpoints.send(checkpoint).expect("the thread of checkpoints ends after apply's inbox");
        }
        if !*self.ready.borrow() && self.apply.is_ready() {
            self.ready.send_replace(true);
        }
    }
}

/// The channels between apply and raft, for raft on another thread.
pub struct ToRaftThread {
    /// What raft hands over.
    pub handed: mpsc::Receiver<Handed>,
    /// What apply reports.
    pub reports: mpsc::Sender<Report>,
}

/// Runs apply on a thread of its own until raft is gone.
///
/// **Errors** the member must stop.
pub async fn run(
    mut core: ApplyCore,
    mut raft: ToRaftThread,
    mut outbox: Outbox,
    clock: Clock,
    heartbeat: Duration,
) -> Result<(), Fatal> {
    let mut ticks = Ticks::new(heartbeat);
    let mut handed = None;
    loop {
        let now = clock.now();
        if ticks.is_due(now) {
            core.apply.tick(now);
        }
        core.receive(now)?;
        while let Some(handed) = handed.take().or_else(|| raft.handed.try_recv().ok()) {
            core.apply.hand(handed, now);
        }
        let turn = core.apply.turn(now)?;
        let is_told = match raft.reports.try_reserve() {
            Ok(permit) => {
                if let Some(report) = core.apply.take_report() {
                    permit.send(report);
                }
                true
            }
            Err(_full) => false,
        };
        let more = turn.more;
        core.hand_out(turn, &mut outbox);
        if more {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            () = ticks.ring(now, Duration::MAX) => {}
            is_open = core.inbox.receive(&mut core.messages) => if !is_open { return Ok(()) },
            next = raft.handed.recv() => match next {
                Some(next) => handed = Some(next),
                None => return Ok(()),
            },
            // There is room again for the report that raft was not told.
            permit = raft.reports.reserve(), if !is_told => if permit.is_err() { return Ok(()) },
            () = outbox.has_room(), if outbox.has_kept() => {}
            () = std::future::ready(()), if more => {}
        }
    }
}
