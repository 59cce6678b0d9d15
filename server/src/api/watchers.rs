//! Runs on: connection core.
//!
//! The watchers of one core, and the means to wake the loops that serve them.
//!
//! Owns the hub, which decides what is sent and to whom (`watch`). One loop serves each stream (not each watcher). One
//! loop on each core serves the watchers that are behind. Both loops are in `watch.rs` beside this file.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use engine::{Fault, ReadView};
use proto::etcdserverpb::WatchRequest;
use tokio::sync::Notify;

use crate::{
    metrics::counters::Counters,
    watch::{
        batch::Batch,
        encode::Responder,
        hub::{Bounds, Hub, Piece},
        stream::StreamId,
    },
};

/// See the head of this file.
pub struct Watchers {
    hub: RefCell<Hub>,
    counters: Arc<Counters>,
    wakes: RefCell<HashMap<StreamId, Rc<Notify>>>,
    behind: Notify,
    progress_interval: Duration,
    catch_up_bytes: usize,
}

impl Watchers {
    /// The watchers of a core that has none yet, at the store's `revision`.
    pub fn new(
        bounds: Bounds,
        responder: Responder,
        revision: i64,
        counters: Arc<Counters>,
        progress_interval: Duration,
        catch_up_bytes: usize,
    ) -> Self {
        let hub = RefCell::new(Hub::new(bounds, responder, revision));
        let (wakes, behind) = (RefCell::default(), Notify::new());
        Self { hub, counters, wakes, behind, progress_interval, catch_up_bytes }
    }

    /// Takes in the changes of a publish.
    pub fn on_batch(&self, batch: &Arc<Batch>, view: &ReadView) {
        self.hub.borrow_mut().on_batch(batch, view);
        self.wake();
    }

    /// Sends automatic progress when it is due.
    pub fn on_tick(&self, now: Duration, raft_term: u64) {
        let mut hub = self.hub.borrow_mut();
        hub.set_raft_term(raft_term);
        if hub.next_wake().is_some_and(|due| due <= now) {
            hub.on_tick(now);
        }
        drop(hub);
        self.wake();
    }

    /// Opens a stream in the present term. Its progress interval is longer by up to a tenth, as `jitter` in 0..1 says.
    pub fn open(&self, now: Duration, jitter: f64, raft_term: u64) -> (StreamId, Rc<Notify>) {
        let interval = self.progress_interval + self.progress_interval.mul_f64(jitter / 10.0);
        let mut hub = self.hub.borrow_mut();
        // After a start, the first tick of this core may be yet to come.
        hub.set_raft_term(raft_term);
        let stream = hub.open_stream(now, interval);
        drop(hub);
        let wake = Rc::new(Notify::new());
        self.wakes.borrow_mut().insert(stream, Rc::clone(&wake));
        (stream, wake)
    }

    /// Ends a stream.
    pub fn close(&self, stream: StreamId) {
        self.wakes.borrow_mut().remove(&stream);
        self.hub.borrow_mut().close_stream(stream);
        self.wake();
    }

    /// Takes in a request of a stream; `denied` says why a create is not permitted.
    pub fn on_request(&self, stream: StreamId, request: WatchRequest, denied: Option<&str>, view: &ReadView) {
        self.hub.borrow_mut().on_request(stream, request, denied, view);
        self.wake();
    }

    /// The next piece of a stream's output.
    pub fn take_output(&self, stream: StreamId) -> Option<Piece> {
        let piece = self.hub.borrow_mut().take_output(stream);
        self.wake();
        piece
    }

    /// Whether a response of the stream goes out in parts: no request may be taken in meanwhile.
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.hub.borrow().is_open(stream)
    }

    /// Whether a response of the stream has begun that cannot be completed.
    pub fn is_broken(&self, stream: StreamId) -> bool {
        self.hub.borrow().is_broken(stream)
    }

    /// Takes in that a page which [`Watchers::catch_up`] needs cannot be read.
    pub fn fail_open(&self) {
        self.hub.borrow_mut().fail_open();
        self.wake();
    }

    /// Resolves when a watcher has fallen behind since the last call.
    pub async fn fallen_behind(&self) {
        self.behind.notified().await;
    }

    /// Makes one step of bringing watchers up to date. Returns whether there is more to do.
    ///
    /// **Errors** a page that is not resident.
    pub fn catch_up(&self, view: &ReadView) -> Result<bool, Fault> {
        let step = self.hub.borrow_mut().catch_up(view, self.catch_up_bytes);
        self.wake();
        step
    }

    /// Wakes the loops of streams with new output, and the loop of watchers that are behind. Every change of the hub
    /// ends here.
    fn wake(&self) {
        let mut hub = self.hub.borrow_mut();
        let wakes = self.wakes.borrow();
        while let Some(stream) = hub.next_ready() {
            if let Some(wake) = wakes.get(&stream) {
                wake.notify_one();
            }
        }
        if hub.wants_catch_up() {
            self.behind.notify_one();
        }
        let totals = hub.totals();
        self.counters.watch_streams.set(totals.streams as u64);
        self.counters.watchers.set(totals.watchers as u64);
        self.counters.watchers_unsynced.set(totals.watchers_unsynced as u64);
        self.counters.events.set(totals.events_sent);
        self.counters.events_pending.set(totals.events_pending);
    }
}
