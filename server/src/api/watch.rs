//! Runs on: connection core.
//!
//! The Watch service: moves requests into this core's hub and its bytes out to the streams, as their clients take them.
//!
//! Owns the hub and what wakes its streams' loops; what is sent, and to whom, is decided in `watch`. One loop a stream
//! (not a watcher), one loop a core for those that are behind.

use std::{cell::RefCell, collections::HashMap, rc::Rc, sync::Arc, time::Duration};

use bytes::Bytes;
use engine::{Fault, ReadView, Record, Revision, RevisionCursor};
use h2::server::SendResponse;
use proto::etcdserverpb::WatchRequest;
use tokio::sync::Notify;

use crate::{
    core::Core,
    error::{Code, Error, Status},
    metrics::counters::Counters,
    rpc,
    watch::{
        batch::Batch,
        history::{History, Records},
        hub::{Bounds, Hub, Responder},
        stream::StreamId,
    },
    wire::{
        grpc::{Messages, Sender},
        method::Method,
    },
};

impl History for ReadView {
    type Fault = Fault;
    type Records<'a> = RevisionCursor;

    fn revision(&self) -> i64 {
        self.revision()
    }

    fn compact_revision(&self) -> i64 {
        self.compact_revision()
    }

    fn get(&self, key: &[u8], at: i64) -> Result<Option<Record>, Fault> {
        self.get(key, at)
    }

    fn record(&self, key: &[u8], revision: Revision) -> Result<Option<Record>, Fault> {
        self.record(key, revision)
    }

    fn records_from(&self, from: Revision) -> RevisionCursor {
        self.records_from(from)
    }
}

impl Records for RevisionCursor {
    type Fault = Fault;

    fn next(&mut self) -> Result<Option<Record>, Fault> {
        self.next()
    }
}

/// The watchers of one core, and the loops that serve them.
pub struct WatchCore {
    hub: RefCell<Hub>,
    counters: Arc<Counters>,
    wakes: RefCell<HashMap<StreamId, Rc<Notify>>>,
    behind: Notify,
    progress_interval: Duration,
    catch_up_bytes: usize,
}

impl WatchCore {
    /// A core without watchers, at the store's `revision`.
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

    /// Takes in what a publish changed.
    pub fn on_batch(&self, batch: &Arc<Batch>, view: &ReadView) {
        self.hub.borrow_mut().on_batch(batch, view);
        self.wake();
    }

    /// Automatic progress.
    pub fn on_tick(&self, now: Duration, raft_term: u64) {
        let mut hub = self.hub.borrow_mut();
        hub.set_raft_term(raft_term);
        if hub.next_wake().is_some_and(|due| due <= now) {
            hub.on_tick(now);
        }
        drop(hub);
        self.wake();
    }

    /// Wakes the loops of streams with new output, and the one of those behind; whatever changed the hub ends here.
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
        self.counters.watching(&hub.counters());
    }

    fn take_output(&self, stream: StreamId) -> Option<Bytes> {
        let chunk = self.hub.borrow_mut().take_output(stream);
        self.wake();
        chunk
    }
}

/// The loop of a core that brings unsynced watchers up to date, in bounded steps between other work.
pub async fn catch_up(core: Rc<Core>) {
    loop {
        core.watch.behind.notified().await;
        loop {
            let view = core.view();
            let step = core.watch.hub.borrow_mut().catch_up(view.as_ref(), core.watch.catch_up_bytes);
            core.watch.wake();
            match step {
                Ok(false) => break,
                Ok(true) => tokio::task::yield_now().await,
                // A page that cannot be read was reported; the watchers keep their place, and the next batch tries again.
                Err(fault) => {
                    if core.load(fault).await.is_err() {
                        break;
                    }
                }
            }
        }
    }
}

/// Serves one Watch stream.
pub async fn serve(core: Rc<Core>, messages: Messages, reply: SendResponse<Bytes>) {
    let Some(mut sender) = rpc::start(reply) else { return };
    let jitter = core.watch.progress_interval.mul_f64(core.clock.jitter() / 10.0);
    let stream = core.watch.hub.borrow_mut().open_stream(core.clock.now(), core.watch.progress_interval + jitter);
    let wake = Rc::new(Notify::new());
    core.watch.wakes.borrow_mut().insert(stream, Rc::clone(&wake));
    let result = run(&core, stream, messages, &mut sender, &wake).await;
    core.watch.wakes.borrow_mut().remove(&stream);
    core.watch.hub.borrow_mut().close_stream(stream);
    core.watch.wake();
    let status = result.err().map(Status::from);
    core.counters.handled(Method::Watch, status.as_ref().map_or(Code::Ok, |status| status.code));
    rpc::drop_gone(sender.finish(status.as_ref()));
}

async fn run(
    core: &Core,
    stream: StreamId,
    mut messages: Messages,
    sender: &mut Sender,
    wake: &Notify,
) -> Result<(), Error> {
    loop {
        while let Some(chunk) = core.watch.take_output(stream) {
            core.counters.sent(Method::Watch, chunk.len());
            sender.send(chunk).await.map_err(|gone| {
                tracing::debug!(%gone, "a watch stream's client went away");
                Error::WatchCanceled
            })?;
        }
        tokio::select! {
            biased;
            () = wake.notified() => {}
            body = messages.next() => {
                let Some(body) = body? else { return Ok(()) };
                core.counters.received(Method::Watch, body.len());
                let request: WatchRequest = rpc::decode(body)?;
                let view = core.view();
                core.watch.hub.borrow_mut().on_request(stream, request, None, view.as_ref());
                core.watch.wake();
            }
            () = sender.closed() => return Err(Error::WatchCanceled),
        }
    }
}
