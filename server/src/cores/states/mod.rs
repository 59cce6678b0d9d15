//! Runs on: connection core, threads of its own (receiving, which blocks on the disk).
//!
//! Whole states on their way: from this member to others, and from another one to this.
//!
//! Whoever needs a state fetches it, so it goes on where it broke. A follower that is behind the leader's log hears by
//! a raft message that a state is held ready for it (`offers`). A member that is damaged, or has lost the end of its
//! log, asks any other one by itself. Members of etcd fetch nothing: they post theirs, and are posted one.
//!
//! - `ways`: to apply, to raft and to the disk
//! - `offers`: states that are held ready, and sent
//! - `fetch`: fetches one state
//! - `database_in`, `database_out`: states in etcd's form, which are posted
//! - `receive`: the thread that builds what arrives
//!
//! Invariants:
//! - One state is fetched at a time. One that the leader offers takes the place of any other.
//! - Every store that apply gives for a state comes back to it: with raft's, or by `ToApply::Discard`.

mod database_in;
mod database_out;
mod fetch;
mod offers;
mod receive;
mod ways;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::atomic::Ordering,
    time::Duration,
};

use consensus::Message;
use tokio::{sync::mpsc, task::spawn_local, time::MissedTickBehavior};

pub use self::ways::OpenDisk;

use self::{
    database_out::Posts,
    fetch::{Arriving, Fetch},
    offers::Offers,
    ways::Ways,
};
use crate::{
    api::desk::Desk,
    apply::arrived::Arrived,
    peer::{message::ToStates, state::asked::Wanted},
    raft::message::ToRaft,
};

/// Time between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time between two warnings that a state did not arrive.
const TELL_EVERY: Duration = Duration::from_secs(30);

/// See the head of this file.
struct States {
    ways: Rc<Ways>,
    offers: Rc<RefCell<Offers>>,
    posts: Rc<RefCell<Posts>>,
    arriving: Rc<Arriving>,
    /// Counts up to ask one member after the other.
    asked: Cell<usize>,
    /// When it was told last that a state did not arrive.
    told_at: Cell<Option<Duration>>,
}

/// Runs until nobody can ask any more.
pub async fn run(desk: Rc<Desk>, open_disk: OpenDisk, mut inbox: mpsc::Receiver<ToStates>) {
    let (ways, offers) = (Rc::new(Ways { desk, open_disk }), Rc::<RefCell<Offers>>::default());
    let (posts, arriving) = (Rc::default(), Rc::default());
    let states = Rc::new(States { ways, offers, posts, arriving, asked: Cell::new(0), told_at: Cell::default() });
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                None => return,
                Some(ToStates::Wanted { to, is_posted }) => states.want(to, is_posted),
                Some(ToStates::Post { message, urls }) => {
                    let (ways, posts) = (Rc::clone(&states.ways), Rc::clone(&states.posts));
                    spawn_local(async move { database_out::post(&ways, &posts, *message, &urls).await });
                }
                Some(ToStates::Offered { message, urls }) => states.fetch_offered(message, urls),
                Some(ToStates::Asked { stream, count, request }) => {
                    let (ways, offers) = (Rc::clone(&states.ways), Rc::clone(&states.offers));
                    spawn_local(async move {
                        offers::serve(&ways, &offers, stream, &request).await;
                        drop(count);
                    });
                }
                Some(ToStates::Posted { stream, count, body, rest }) => {
                    let (ways, arriving) = (Rc::clone(&states.ways), Rc::clone(&states.arriving));
                    spawn_local(async move {
                        database_in::take((&ways, &arriving), stream, body, rest).await;
                        drop(count);
                    });
                }
            },
            _ = ticks.tick() => {
                let now = states.ways.desk.clock.now();
                let ended = states.offers.borrow_mut().take_expired(now);
                let unsent = states.posts.borrow_mut().take_expired(now);
                for (to, is_whole) in ended.into_iter().chain(unsent.into_iter().map(|to| (to, false))) {
                    states.ways.tell_raft(ToRaft::StateSent { to, is_whole });
                }
                states.ask_for_one();
            }
        }
    }
}

impl States {
    /// The follower `to` needs a state: one that it fetches, or one that is posted.
    fn want(&self, to: u64, is_posted: bool) {
        let (ways, offers, posts) = (Rc::clone(&self.ways), Rc::clone(&self.offers), Rc::clone(&self.posts));
        spawn_local(async move {
            match is_posted {
                true => database_out::offer(&ways, &posts, to).await,
                false => offers::offer(&ways, &offers, to).await,
            }
        });
    }

    /// Fetches the state that the leader has offered with `message`.
    fn fetch_offered(self: &Rc<Self>, message: Box<Message>, urls: Vec<String>) {
        let Some(state) = message.snapshot.as_deref() else { return };
        let fetch = Fetch { from: message.from, urls, wanted: Wanted::Offered(state.at) };
        let before = self.arriving.now();
        if let Some(before) = before.filter(|now| (now.fetch.from, now.fetch.wanted) == (fetch.from, fetch.wanted)) {
            before.message.replace(Some(message));
            return;
        }
        self.begin(fetch, Some(message));
    }

    /// Asks another member for its state, if this one needs one and none is on its way.
    fn ask_for_one(self: &Rc<Self>) {
        let shared = &self.ways.desk.shared;
        let stands_still = shared.standstill.load().is_some();
        if self.arriving.now().is_some() || !(stands_still || shared.raft.wants_state.load(Ordering::Acquire)) {
            return;
        }
        let cluster = shared.cluster.load();
        let others: Vec<_> = cluster.members.iter().filter(|member| member.id != shared.identity.member_id).collect();
        if others.is_empty() {
            return;
        }
        let other = others[self.asked.get() % others.len()];
        self.asked.set(self.asked.get() + 1);
        let least = self.ways.desk.published().applied_index() + u64::from(!stands_still);
        let fetch = Fetch { from: other.id, urls: other.peer_urls.clone(), wanted: Wanted::Least(least) };
        self.begin(fetch, None);
    }

    fn begin(self: &Rc<Self>, fetch: Fetch, message: Option<Box<Message>>) {
        let own = self.arriving.begin(fetch, message);
        let states = Rc::clone(self);
        spawn_local(async move {
            let desk = &states.ways.desk;
            let (began, counters) = (desk.clock.now(), desk.registry.peers.of(own.fetch.from));
            counters.received_states.begun();
            let fetched = fetch::fetch(&states.ways, &own).await;
            counters.received_states.ended(fetched.is_ok().then(|| desk.clock.now().saturating_sub(began)));
            states.arriving.end(&own);
            match fetched {
                Ok(arrived) => states.arrived(own.message.take(), arrived),
                Err(why) => states.tell_of_none(own.fetch.from, &why),
            }
        });
    }

    /// Says in the log that a state did not arrive; not every time, as this member asks again and again.
    fn tell_of_none(&self, from: u64, why: &str) {
        let (now, from) = (self.ways.desk.clock.now(), format!("{from:x}"));
        if self.told_at.get().is_some_and(|at| now < at + TELL_EVERY) {
            return tracing::debug!(from, why, "a state of another member did not arrive");
        }
        self.told_at.set(Some(now));
        tracing::warn!(from, why, "a state of another member did not arrive");
    }

    /// All of a state is here.
    fn arrived(&self, message: Option<Box<Message>>, arrived: Box<Arrived>) {
        tracing::info!(index = arrived.at.index, "all of a state of another member has arrived");
        self.ways.tell_raft(ToRaft::StateArrived { message, arrived });
    }
}
