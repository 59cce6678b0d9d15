//! Runs on: connection core, threads of its own (receiving, which blocks on the disk).
//!
//! Whole states on their way: from this member to others, and from another one to this.
//!
//! Whoever needs a state fetches it, so it goes on where it broke. A follower that is behind the leader's log hears by a
//! raft message that a state is held ready for it (`offers`). A member that is damaged, or has lost the end of its log,
//! asks any other one by itself.
//!
//! - `offers`: states that are held ready, and sent
//! - `fetch`: fetches one state
//! - `receive`: the thread that builds what arrives
//!
//! Invariants:
//! - One state is fetched at a time. One that the leader offers takes the place of any other.
//! - Every store that apply gives for a state comes back to it: with raft's, or by `ToApply::Discard`.

mod fetch;
mod offers;
mod receive;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use consensus::Message;
use engine::disk::Disk;
use tokio::{
    sync::{Notify, mpsc},
    task::spawn_local,
    time::MissedTickBehavior,
};

use self::{fetch::Fetch, offers::Offers};
use crate::{
    api::desk::Desk,
    apply::{arrived::Arrived, message::ToApply},
    peer::{message::ToStates, state::asked::Wanted},
    raft::message::ToRaft,
};

/// Time between two looks at what is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Opens one more disk of the data directory, on any thread.
pub type OpenDisk = Arc<dyn Fn() -> Result<Box<dyn Disk>, engine::Error> + Send + Sync>;

/// See the head of this file.
pub struct States {
    desk: Rc<Desk>,
    open_disk: OpenDisk,
    offers: Rc<RefCell<Offers>>,
    under_way: RefCell<Option<Rc<UnderWay>>>,
    /// Counts up to ask one member after the other.
    asked: Cell<usize>,
}

/// A fetch under way.
#[derive(Debug)]
struct UnderWay {
    fetch: Fetch,
    /// What raft hears when all is here; `None` if this member has asked by itself.
    message: RefCell<Option<Box<Message>>>,
    is_over: Cell<bool>,
    told: Notify,
}

impl UnderWay {
    fn cancel(&self) {
        self.is_over.set(true);
        self.told.notify_one();
    }

    async fn canceled(&self) {
        while !self.is_over.get() {
            self.told.notified().await;
        }
    }
}

/// Runs until nobody can ask any more.
pub async fn run(desk: Rc<Desk>, open_disk: OpenDisk, mut inbox: mpsc::Receiver<ToStates>) {
    let offers = Rc::new(RefCell::new(Offers::default()));
    let states = Rc::new(States { desk, open_disk, offers, under_way: RefCell::default(), asked: Cell::new(0) });
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            message = inbox.recv() => match message {
                None => return,
                Some(ToStates::Wanted(to)) => drop(spawn_local(offers::offer(Rc::clone(&states), to))),
                Some(ToStates::Offered { message, urls }) => states.fetch_offered(message, urls),
                Some(ToStates::Asked { stream, count, request }) => {
                    let states = Rc::clone(&states);
                    spawn_local(async move {
                        offers::serve(&states, stream, &request).await;
                        drop(count);
                    });
                }
            },
            _ = ticks.tick() => {
                let now = states.desk.clock.now();
                let ended = states.offers.borrow_mut().take_expired(now);
                for (to, is_whole) in ended {
                    states.tell_raft(ToRaft::StateSent { to, is_whole });
                }
                states.ask_for_one();
            }
        }
    }
}

impl States {
    /// Fetches the state that the leader has offered with `message`.
    fn fetch_offered(self: &Rc<Self>, message: Box<Message>, urls: Vec<String>) {
        let Some(state) = message.snapshot.as_deref() else { return };
        let fetch = Fetch { from: message.from, urls, wanted: Wanted::Offered(state.at) };
        if let Some(before) = &*self.under_way.borrow() {
            if (before.fetch.from, before.fetch.wanted) == (fetch.from, fetch.wanted) {
                before.message.replace(Some(message));
                return;
            }
            before.cancel();
        }
        self.begin(fetch, Some(message));
    }

    /// Asks another member for its state, if this one needs one and none is on its way.
    fn ask_for_one(self: &Rc<Self>) {
        let shared = &self.desk.shared;
        let stands_still = shared.standstill.load().is_some();
        if self.under_way.borrow().is_some() || !(stands_still || shared.raft.wants_state.load(Ordering::Acquire)) {
            return;
        }
        let cluster = shared.cluster.load();
        let others: Vec<_> = cluster.members.iter().filter(|member| member.id != shared.identity.member_id).collect();
        if others.is_empty() {
            return;
        }
        let other = others[self.asked.get() % others.len()];
        self.asked.set(self.asked.get() + 1);
        let least = self.desk.published().applied_index() + u64::from(!stands_still);
        let fetch = Fetch { from: other.id, urls: other.peer_urls.clone(), wanted: Wanted::Least(least) };
        self.begin(fetch, None);
    }

    fn begin(self: &Rc<Self>, fetch: Fetch, message: Option<Box<Message>>) {
        let (message, is_over, told) = (RefCell::new(message), Cell::new(false), Notify::new());
        let own = Rc::new(UnderWay { fetch, message, is_over, told });
        self.under_way.replace(Some(Rc::clone(&own)));
        let states = Rc::clone(self);
        spawn_local(async move {
            let fetched = fetch::fetch(&states, &own).await;
            states.under_way.borrow_mut().take_if(|now| Rc::ptr_eq(now, &own));
            match fetched {
                Ok(arrived) => states.arrived(own.message.take(), arrived),
                Err(why) => {
                    let from = format!("{:x}", own.fetch.from);
                    tracing::warn!(from, why, "a state of another member did not arrive");
                }
            }
        });
    }

    /// All of a state is here.
    fn arrived(&self, message: Option<Box<Message>>, arrived: Box<Arrived>) {
        tracing::info!(index = arrived.at.index, "all of a state of another member has arrived");
        self.tell_raft(ToRaft::StateArrived { message, arrived });
    }

    /// Tells raft, however long that takes.
    fn tell_raft(&self, message: ToRaft) {
        let desk = Rc::clone(&self.desk);
        spawn_local(async move { desk.tell_raft(message).await });
    }

    /// Tells apply, however long that takes.
    fn tell_apply(&self, message: ToApply) {
        let desk = Rc::clone(&self.desk);
        spawn_local(async move { desk.tell_apply(message).await });
    }
}
