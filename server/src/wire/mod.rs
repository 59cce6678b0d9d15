//! Runs on: connection core.
//!
//! Sockets: from an accepted connection to decoded streams. The only place of this crate that touches one.
//!
//! A connection's first bytes tell HTTP/2 from HTTP/1.1. HTTP/2 streams go to `rpc`, one task each; what all of them
//! answer within a turn leaves in one write. Bounds: connections by their count, streams by the advertised maximum,
//! request bytes by the windows, unsent bytes by the writer.

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    rc::Rc,
    sync::atomic::Ordering,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use tokio::{net::TcpStream, sync::watch};

use crate::{core::Core, endpoints, insight::slow::Origin, rpc};

pub mod coalesce;
pub mod frames;
pub mod grpc;
pub mod http1;
pub mod method;
pub mod pings;
pub mod protobuf;

/// How HTTP/2 connections are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Streams a client may have open on one connection.
    pub streams_max: u32,
    /// **Units** bytes a client may send on a stream before it is read.
    pub stream_window_bytes: u32,
    /// **Units** bytes a client may send on a connection before it is read.
    pub connection_window_bytes: u32,
    /// **Units** bytes that may wait to be written to one connection.
    pub buffer_bytes_max: usize,
    /// Shortest time between two pings of a client; zero is gRPC's default.
    pub ping_min: Duration,
    /// Silence after which the server pings; zero never.
    pub ping_after: Duration,
    /// Time for the answer to a ping.
    pub ping_timeout: Duration,
}

const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
const RESETS_PENDING_MAX: usize = 1000;
const SNIFF_TIMEOUT: Duration = Duration::from_secs(10);
const PREFACE: &[u8; 4] = b"PRI ";

/// Serves one connection until it ends.
pub async fn serve(core: Rc<Core>, socket: TcpStream, options: Options, stop: watch::Receiver<bool>) {
    core.shared.connections[core.id].fetch_add(1, Ordering::Relaxed);
    let result = match tokio::time::timeout(SNIFF_TIMEOUT, is_http2(&socket)).await {
        Ok(Ok(true)) => http2(Rc::clone(&core), socket, &options, stop).await,
        Ok(Ok(false)) => {
            let endpoint = |request| {
                let response = endpoints::answer(&core, &request);
                async move { response }
            };
            http1::serve(socket, endpoint).await
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
    core.shared.connections[core.id].fetch_sub(1, Ordering::Relaxed);
}

async fn is_http2(socket: &TcpStream) -> io::Result<bool> {
    socket.set_nodelay(true)?;
    let mut head = [0; PREFACE.len()];
    loop {
        let len = socket.peek(&mut head).await?;
        if len == 0 || head[..len] != PREFACE[..len] {
            return Ok(false);
        }
        if len == PREFACE.len() {
            return Ok(true);
        }
        // The rest of the four bytes is on its way; peeking does not wait for more than there is.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn http2(
    core: Rc<Core>,
    socket: TcpStream,
    options: &Options,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let remote = socket.peer_addr().ok();
    let calls = Rc::new(Cell::new(0));
    let pings = pings::Pings::new(options.ping_min);
    let (io, output) = coalesce::Coalesced::new(socket, options.buffer_bytes_max, pings, core.clock, Rc::clone(&calls));
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.streams_max)
        .initial_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX);
    let mut handshake = Box::pin(builder.handshake::<_, Bytes>(io));
    let mut connection = poll_fn(|cx| {
        let polled = handshake.as_mut().poll(cx);
        match output.borrow_mut().poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => polled.map_err(io::Error::other),
        }
    })
    .await?;
    drop(handshake);
    let pings = connection.ping_pong().ok_or_else(|| io::Error::other("a connection gives its pings once"))?;
    let mut silence = Box::pin(until_silent(pings, options.ping_after, options.ping_timeout));
    let mut is_stopping = false;
    // One look at the clock for all requests of a turn.
    let mut turn_began = None;
    loop {
        let turn = poll_fn(|cx| {
            let polled = connection.poll_accept(cx);
            if matches!(polled, Poll::Ready(Some(_))) {
                return polled.map_err(io::Error::other);
            }
            turn_began = None;
            if output.borrow_mut().has_too_many_pings() {
                // What can be written at once is; nobody waits for such a client.
                drop(output.borrow_mut().poll_drain(cx));
                return Poll::Ready(Some(Err(io::Error::other("got too many pings from the client"))));
            }
            match output.borrow_mut().poll_drain(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
                _ => polled.map_err(io::Error::other),
            }
        });
        let accepted = tokio::select! {
            biased;
            accepted = turn => Some(accepted),
            _ = stop.changed(), if !is_stopping => None,
            () = &mut silence => return Ok(()),
        };
        let Some(accepted) = accepted else {
            is_stopping = true;
            connection.graceful_shutdown();
            continue;
        };
        match accepted {
            Some(Ok((request, reply))) => {
                let began = *turn_began.get_or_insert_with(|| core.clock.now());
                let origin = Origin { remote, began };
                let (core, call) = (Rc::clone(&core), CallUnderWay::begin(&calls));
                tokio::task::spawn_local(async move {
                    rpc::serve(core, origin, request, reply).await;
                    drop(call);
                });
            }
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        }
    }
}

/// Counts a call from its beginning to its end.
struct CallUnderWay(Rc<Cell<usize>>);

impl CallUnderWay {
    fn begin(calls: &Rc<Cell<usize>>) -> Self {
        calls.set(calls.get() + 1);
        Self(Rc::clone(calls))
    }
}

impl Drop for CallUnderWay {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// Pings the client every `after`; resolves when an answer has not come within `timeout`.
async fn until_silent(mut pings: h2::PingPong, after: Duration, timeout: Duration) {
    if after.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(after).await;
        match tokio::time::timeout(timeout, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection's own loop sees an error of the connection and ends it with its reason.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}

/// Serves only the plain HTTP endpoints on a connection of the metrics port.
pub async fn serve_endpoints(core: Rc<Core>, socket: TcpStream) {
    let endpoint = |request| {
        let response = endpoints::answer_metrics_port(&core, &request);
        async move { response }
    };
    if let Err(error) = http1::serve(socket, endpoint).await {
        tracing::debug!(%error, "a connection of the metrics port ended");
    }
}
