//! Runs on: connection core.
//!
//! The loop of a core that serves connections: the messages it takes from other cores, and the tasks that run beside
//! its connections.

use std::{rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use tokio::{
    sync::{mpsc, watch},
    task::spawn_local,
    time::MissedTickBehavior,
};

use super::{
    outbox::{ToCore, take_turn},
    reads,
};
use crate::{
    api::{
        self,
        desk::{Desk, EXPIRE_EVERY},
    },
    apply::message::ToApply,
    mailbox::{Post, carry},
    peer::{
        self,
        message::{ToPeers, ToStates},
    },
    raft::message::ToRaft,
    wire::{
        http2,
        socket::{self, Connection, Serves},
    },
};

/// How often a core publishes the keys and prefixes it is asked for most.
const HEAT_EVERY: Duration = Duration::from_secs(1);
/// How often the usage by prefix in /metrics is measured anew.
const USAGE_EVERY: Duration = Duration::from_secs(15);
/// Rounds of housekeeping after which scans that nobody continues are forgotten.
const FORGET_EVERY: u64 = 50;

/// What serves every connection of a core.
#[derive(Clone)]
pub struct Serving {
    /// Bounds and times.
    pub options: http2::Options,
    /// Becomes true when the member is told to stop.
    pub stop: watch::Receiver<bool>,
    /// The way to the connections with other members.
    pub peers: mpsc::Sender<ToPeers>,
    /// The way to whoever sends and fetches whole states.
    pub states: mpsc::Sender<ToStates>,
}

/// A connection core's posts to raft and apply.
#[derive(Clone)]
pub struct Posts {
    /// To raft.
    pub to_raft: Rc<Post<ToRaft>>,
    /// To apply.
    pub to_apply: Rc<Post<ToApply>>,
}

impl Posts {
    /// Empty posts, each for at most `messages_max` messages.
    pub fn new(messages_max: usize) -> Self {
        Self { to_raft: Post::new(messages_max), to_apply: Post::new(messages_max) }
    }
}

/// The channels from any thread to raft and apply.
#[derive(Clone)]
pub struct ToMachines {
    /// To raft.
    pub to_raft: mpsc::Sender<Vec<ToRaft>>,
    /// To apply.
    pub to_apply: mpsc::Sender<Vec<ToApply>>,
}

impl ToMachines {
    /// Carries the posts of this thread to raft and apply on other threads.
    pub fn carry(self, posts: Posts) {
        spawn_local(carry(posts.to_raft, self.to_raft));
        spawn_local(carry(posts.to_apply, self.to_apply));
    }
}

/// Starts the tasks that run on a connection core beside its connections.
pub fn spawn_beside(desk: &Rc<Desk>) {
    spawn_local(api::watch::catch_up(Rc::clone(desk)));
    spawn_local(housekeeping(Rc::clone(desk)));
    spawn_local(reads::collect(desk.loader().clone()));
    spawn_local(reads::close_unused(desk.loader().clone()));
}

/// Takes messages from other cores until no sender is left.
pub async fn run(desk: Rc<Desk>, mut inbox: mpsc::Receiver<ToCore>, serving: Serving) {
    while let Some(message) = inbox.recv().await {
        match message {
            ToCore::Turn { answers, batch, logins } => take_turn(&desk, answers, batch.as_ref(), &logins),
            ToCore::Accept(connection) => serve(&desk, connection, &serving),
        }
    }
}

/// Serves a connection on the core of this desk.
pub fn serve(desk: &Rc<Desk>, connection: Connection, serving: &Serving) {
    let Serving { options, stop, peers, states } = serving.clone();
    match connection.serves() {
        Serves::Peers => spawn_local(peer::port::serve(Rc::clone(desk), connection, (peers, states), stop)),
        _ => spawn_local(socket::serve(Rc::clone(desk), connection, options, stop)),
    };
}

async fn housekeeping(desk: Rc<Desk>) {
    let mut ticks = tokio::time::interval(EXPIRE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut publish_at = Duration::ZERO;
    for count in 1_u64.. {
        ticks.tick().await;
        desk.expire();
        if count.is_multiple_of(FORGET_EVERY) {
            desk.fingers.borrow_mut().forget_unused();
        }
        let now = desk.clock.now();
        desk.shared.pulse.cores[desk.id].strike(now);
        desk.watchers.on_tick(now, desk.shared.raft.term.load(std::sync::atomic::Ordering::Acquire));
        if now >= publish_at {
            publish_at = now + HEAT_EVERY;
            if let Some(heat) = desk.heat.borrow_mut().publish(now) {
                desk.board.heat[desk.id].store(heat);
            }
        }
    }
}

/// Keeps the usage by prefix in /metrics up to date, so that a scrape waits for no page.
pub async fn keep_usage(desk: Rc<Desk>) {
    let mut ticks = tokio::time::interval(USAGE_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        // The loader has reported a page that cannot be read. The last figures stay.
        if let Ok(rows) = api::insight::children(&desk, &desk.published(), Bytes::new()).await {
            desk.board.usage.store(Arc::new(rows));
        }
    }
}
