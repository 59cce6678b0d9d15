//! Runs on: connection core.
//!
//! The Watch service moves requests into this core's hub, and moves the hub's bytes out to the streams as fast as
//! clients take them.
//!
//! There is one loop for each stream (not for each watcher), and one loop on each core for the watchers that are
//! behind. `watch` decides what is sent, and to whom.

use std::rc::Rc;

use proto::etcdserverpb::WatchRequest;

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

/// A stream of the core's watchers. It ends with its call, however that ends.
struct Open<'a> {
    desk: &'a Desk,
    stream: StreamId,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.desk.watchers.close(self.stream);
    }
}

/// Serves one Watch stream. A client that has said that it sends no more keeps its watchers: as in etcd, the stream
/// lives until the client leaves.
///
/// **Errors** a message that does not decode; a client that left.
pub(super) async fn serve<Q: Requests, A: Answers>(
    desk: &Desk,
    call: &Call,
    inbound: &mut Inbound<'_, Q>,
    outbound: &mut Outbound<'_, A>,
) -> Result<(), Error> {
    let (stream, wake) = desk.watchers.open(desk.clock.now(), desk.clock.jitter());
    let _open = Open { desk, stream };
    let mut sends_more = true;
    loop {
        while let Some(chunk) = desk.watchers.take_output(stream) {
            outbound.send(chunk).await?;
        }
        tokio::select! {
            biased;
            () = wake.notified() => {}
            request = inbound.take::<WatchRequest>(), if sends_more => {
                let Some(request) = request? else {
                    sends_more = false;
                    continue;
                };
                // A create that is not permitted is answered by a cancelled watcher, not by the end of the stream.
                let denied = admit::permit(desk, call, request.asked()).err().map(|error| error.to_string());
                desk.watchers.on_request(stream, request, denied.as_deref(), &desk.published());
            }
            () = outbound.left() => return Err(Error::Canceled),
        }
    }
}
