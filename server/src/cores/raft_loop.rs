//! Runs on: raft core.
//!
//! Moves raft's messages and drives its log's disk. Also the loop of raft on a thread of its own, and the loop of raft
//! and apply together.

use std::time::Duration;

use engine::disk::Disk;
use tokio::sync::mpsc;

use super::{apply_loop::ApplyCore, outbox::Outbox, peer_loop::Peers, ticks::Ticks, wake::Wake};
use crate::{
    apply::{
        fatal::Fatal,
        message::{Handed, Report},
    },
    clock::Clock,
    mailbox::Inbox,
    metrics::timed::{LogWrites, Timed},
    raft::{machine::Raft, message::ToRaft},
};

/// So many turns in a row, and then all other tasks of the thread have theirs, whatever else there is to do here.
const TURNS_MAX: u32 = 64;

/// Raft with its inputs, its outputs and the log's disk.
pub struct RaftCore {
    /// The machine.
    pub raft: Raft,
    /// The log's disk.
    pub disk: Timed<LogWrites>,
    /// What other cores send.
    pub inbox: Inbox<ToRaft>,
    /// Messages that have come and are not yet taken in.
    pub messages: Vec<ToRaft>,
    /// The connections with other members.
    pub peers: Peers,
}

impl RaftCore {
    /// Takes in the messages that have come, then lets raft and the log move.
    fn turn(&mut self, now: Duration) -> Result<(), Fatal> {
        self.peers.deliver(&mut self.raft, now)?;
        self.inbox.take(&mut self.messages);
        for message in self.messages.drain(..) {
            self.raft.receive(message, now);
        }
        self.raft.turn(self.disk.at(now), now)
    }

    fn wake(&self) -> Result<Wake, Fatal> {
        Wake::new(self.disk.wake_fd()).map_err(Fatal::Wake)
    }
}

/// Runs raft and apply in one loop, until nobody can send to them any more.
///
/// **Errors** the member must stop.
pub async fn run_both(
    mut core: RaftCore,
    mut apply: ApplyCore,
    mut outbox: Outbox,
    clock: Clock,
    heartbeat: Duration,
) -> Result<(), Fatal> {
    let wake = core.wake()?;
    let mut ticks = Ticks::new(heartbeat);
    let mut turns = 0;
    loop {
        turns = (turns + 1) % TURNS_MAX;
        let now = clock.now();
        core.raft.pass(now);
        if ticks.is_due(now) {
            core.raft.tick(now);
            apply.apply.tick(now);
        }
        apply.receive(now)?;
        core.turn(now)?;
        if let Some(handed) = core.raft.take_handed(now) {
            apply.apply.hand(handed, now);
        }
        let turn = apply.apply.turn(now)?;
        if let Some(report) = apply.apply.take_report() {
            core.raft.report(report, now)?;
            core.raft.settle(core.disk.at(now), now)?;
        }
        let more = turn.more;
        core.peers.collect(&mut core.raft, now);
        outbox.send(core.raft.take_answers(), None, &[]);
        apply.hand_out(turn, &mut outbox);
        let more = more || core.raft.has_more();
        if more || turns == 0 {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            () = ticks.ring(now, core.raft.due()) => {}
            is_open = core.inbox.receive(&mut core.messages) => if !is_open { return Ok(()) },
            is_open = apply.inbox.receive(&mut apply.messages) => if !is_open { return Ok(()) },
            () = core.peers.news() => {}
            woken = wake.ready() => woken.map_err(Fatal::Wake)?,
            () = outbox.has_room(), if outbox.has_kept() => {}
            () = std::future::ready(()), if more => {}
        }
    }
}

/// The channels between raft and apply, for apply on another thread.
pub struct ToApplyThread {
    /// What raft hands over.
    pub handed: mpsc::Sender<Handed>,
    /// What apply reports.
    pub reports: mpsc::Receiver<Report>,
}

/// Runs raft on a thread of its own, until nobody can send to it any more.
///
/// **Errors** the member must stop.
pub async fn run(
    mut core: RaftCore,
    mut apply: ToApplyThread,
    mut outbox: Outbox,
    clock: Clock,
    heartbeat: Duration,
) -> Result<(), Fatal> {
    let wake = core.wake()?;
    let mut ticks = Ticks::new(heartbeat);
    let mut report = None;
    let mut turns = 0;
    loop {
        turns = (turns + 1) % TURNS_MAX;
        let now = clock.now();
        core.raft.pass(now);
        if ticks.is_due(now) {
            core.raft.tick(now);
        }
        while let Some(report) = report.take().or_else(|| apply.reports.try_recv().ok()) {
            core.raft.report(report, now)?;
        }
        core.turn(now)?;
        let has_room = match apply.handed.try_reserve() {
            Ok(permit) => {
                if let Some(handed) = core.raft.take_handed(now) {
                    permit.send(handed);
                }
                true
            }
            Err(_full) => false,
        };
        core.peers.collect(&mut core.raft, now);
        outbox.send(core.raft.take_answers(), None, &[]);
        let more = has_room && core.raft.has_more();
        if more || turns == 0 {
            tokio::task::yield_now().await;
        }
        tokio::select! {
            biased;
            () = ticks.ring(now, core.raft.due()) => {}
            next = apply.reports.recv() => match next {
                Some(next) => report = Some(next),
                None => return Ok(()),
            },
            is_open = core.inbox.receive(&mut core.messages) => if !is_open { return Ok(()) },
            () = core.peers.news() => {}
            woken = wake.ready() => woken.map_err(Fatal::Wake)?,
            // There is room again for the entries that were not handed over.
            permit = apply.handed.reserve(), if !has_room => if permit.is_err() { return Ok(()) },
            () = outbox.has_room(), if outbox.has_kept() => {}
            () = std::future::ready(()), if more => {}
        }
    }
}
