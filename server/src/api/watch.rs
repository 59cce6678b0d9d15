//! Runs on: connection core.
//!
//! The Watch service moves requests into this core's hub, and moves the hub's bytes out to the streams as fast as
//! clients take them.
//!
//! There is one loop for each stream (not for each watcher), and one loop on each core for the watchers that are
//! behind. `watch` decides what is sent, and to whom.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    rc::Rc,
    sync::atomic::Ordering,
    time::Duration,
};

use proto::etcdserverpb::WatchRequest;

use super::{
    admit::{self, Inbound, Outbound},
    call::{Answers, Call, Left, Requests},
    desk::Desk,
    request::Asks,
};
use crate::{
    error::Error,
    metrics::counters::WatchPiece,
    watch::{hub::Piece, stream::StreamId},
};

/// Requests of one stream that are taken before their answers are sent.
const TOGETHER_MAX: usize = 256;

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
                // batch tries again. Responses that have begun cannot wait: their streams end.
                Err(fault) => {
                    if desk.load_all([fault]).await.is_err() {
                        desk.watchers.fail_open();
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
    let raft_term = desk.shared.raft.term.load(Ordering::Acquire);
    let (stream, wake) = desk.watchers.open(desk.clock.now(), desk.clock.jitter(), raft_term);
    let _open = Open { desk, stream };
    let mut sends_more = true;
    let mut taken = Ok(());
    loop {
        while let Some(piece) = desk.watchers.take_output(stream) {
            send(desk, outbound, piece).await?;
        }
        if desk.watchers.is_broken(stream) {
            // The client watches again from where it was, and is told what was compacted.
            return Err(Error::Stopped);
        }
        taken?;
        let takes_more = sends_more && !desk.watchers.is_open(stream);
        taken = tokio::select! {
            biased;
            () = wake.notified() => Ok(()),
            request = inbound.take::<WatchRequest>(), if takes_more => match request? {
                Some(request) => {
                    on_request(desk, call, stream, request);
                    take_at_hand(desk, call, stream, inbound)
                }
                None => {
                    sends_more = false;
                    Ok(())
                }
            },
            () = outbound.left() => return Err(Error::Canceled),
        };
    }
}

/// Takes the requests that have come together with the last one. They are answered together: see `lease::keep_alive`.
fn take_at_hand<Q: Requests>(
    desk: &Desk,
    call: &Call,
    stream: StreamId,
    inbound: &mut Inbound<'_, Q>,
) -> Result<(), Error> {
    for _ in 1..TOGETHER_MAX {
        let Some(request) = inbound.take_at_hand()? else { break };
        on_request(desk, call, stream, request);
    }
    Ok(())
}

fn on_request(desk: &Desk, call: &Call, stream: StreamId, request: WatchRequest) {
    // A create that is not permitted is answered by a cancelled watcher, not by the end of the stream.
    let denied = admit::permit(desk, call, request.asked()).err().map(|error| error.to_string());
    desk.watchers.on_request(stream, request, denied.as_deref(), &desk.published());
}

/// Sends a piece of the stream's output, and counts how long the client let it wait. No clock is read for a piece that
/// the client takes at once.
async fn send<A: Answers>(desk: &Desk, outbound: &mut Outbound<'_, A>, piece: Piece) -> Result<(), Left> {
    let Piece { bytes, events, has_progress } = piece;
    let mut waiting_since = None;
    let mut sending = pin!(outbound.send(bytes));
    poll_fn(|cx| {
        let polled = sending.as_mut().poll(cx);
        if polled.is_pending() && waiting_since.is_none() {
            waiting_since = Some(desk.clock.now());
        }
        polled
    })
    .await?;
    let piece = match events {
        0 if has_progress => WatchPiece::Progress,
        0 => WatchPiece::Control,
        events => WatchPiece::Events(events),
    };
    desk.counters.watch_sends.sent(piece, waiting_since.map_or(Duration::ZERO, |since| desk.since(since)));
    Ok(())
}
