//! Runs on: connection core.
//!
//! The Watch service moves requests into this core's hub, and moves the hub's bytes out to the streams as fast as
//! clients take them.
//!
//! There is one loop for each stream (not for each watcher), and one loop on each core for the watchers that are
//! behind. `watch` decides what is sent, and to whom.

use std::rc::Rc;

use proto::etcdserverpb::WatchRequest;
use tokio::sync::Notify;

use super::{
    admit::{self, Inbound, Outbound},
    call::{Answers, Call, Requests},
    desk::Desk,
    request::Asks,
};
use crate::{error::Error, watch::stream::StreamId};

/// The loop that brings a core's unsynced watchers up to date, in bounded steps between other work.
pub async fn catch_up(desk: Rc<Desk>) {
    loop {
        desk.watchers.fallen_behind().await;
        loop {
            let view = desk.published();
            match desk.watchers.catch_up(&view) {
                Ok(false) => break,
                Ok(true) => tokio::task::yield_now().await,
                // The loader has reported that the page cannot be read. The watchers keep their place, and the next
                // batch tries again.
                Err(fault) => {
                    if desk.load_all([fault]).await.is_err() {
                        break;
                    }
                }
            }
        }
    }
}

/// Serves one Watch stream.
///
/// **Errors** a message that does not decode; a client that left.
pub(super) async fn serve<Q: Requests, A: Answers>(
    desk: &Desk,
    call: &Call,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let (stream, wake) = desk.watchers.open(desk.clock.now(), desk.clock.jitter());
    let result = run(desk, call, stream, &wake, inbound, outbound).await;
    desk.watchers.close(stream);
    result
}

async fn run<Q: Requests, A: Answers>(
    desk: &Desk,
    call: &Call,
    stream: StreamId,
    wake: &Notify,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    loop {
        while let Some(chunk) = desk.watchers.take_output(stream) {
            outbound.send(chunk).await?;
        }
        tokio::select! {
            biased;
            () = wake.notified() => {}
            request = inbound.take::<WatchRequest>() => {
                let Some(request) = request? else { return Ok(()) };
                // A create that is not permitted is answered by a cancelled watcher, not by the end of the stream.
                let denied = admit::permit(desk, call, request.asked()).err().map(|error| error.to_string());
                desk.watchers.on_request(stream, request, denied.as_deref(), &desk.published());
            }
            () = outbound.left() => return Err(Error::Canceled),
        }
    }
}
