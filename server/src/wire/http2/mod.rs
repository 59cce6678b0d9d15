//! Runs on: connection core.
//!
//! Connections of HTTP/2, over h2. Each stream is a call with a task of its own. All answers of one turn leave in one
//! write.
//!
//! - `coalesce`: the writer below h2
//! - `frames`: follows the frames of one direction
//! - `pings`: decides which pings of a client are too many
//! - `plain`: what is not gRPC, on encrypted connections
//! - `ration`: bounds what a client's frames may take of a turn, and of memory

use std::{
    cell::Cell,
    future::{Future, poll_fn},
    io,
    rc::Rc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, server::SendResponse};
use http::Request;
use tokio::{sync::watch, task::spawn_local};

use self::{coalesce::Coalesced, pings::Pings};
use super::{
    endpoints::Port,
    grpc::{self, Opening, reply::UnderWay},
    stream::{SILENCE_MAX, Stream},
};
use crate::api::{
    self, Later,
    call::{Caller, Reply},
    desk::Desk,
};

pub mod coalesce;
pub mod frames;
pub mod pings;
pub mod plain;
pub mod ration;

/// How HTTP/2 connections are run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Streams a client may have open on one connection.
    pub streams_max: u32,
    /// Bytes that a client may send on a stream before they are read. **Units** bytes.
    pub stream_window_bytes: u32,
    /// Bytes that a client may send on a connection before they are read. **Units** bytes.
    pub connection_window_bytes: u32,
    /// Bytes that may wait to be written to one connection. **Units** bytes.
    pub buffer_bytes_max: usize,
    /// Shortest time between two pings of a client; zero means gRPC's default.
    pub ping_min: Duration,
    /// Silence after which the server pings; zero means never.
    pub ping_after: Duration,
    /// Time for the answer to a ping.
    pub ping_timeout: Duration,
}

/// What a connection is for.
#[derive(Clone, Copy, Debug)]
pub enum Traffic {
    /// gRPC alone.
    Grpc,
    /// gRPC, and HTTP beside it: the content type tells them apart.
    Both(Port),
    /// HTTP alone.
    Http(Port),
}

/// What small DATA frames that no call has read may lack to 256 bytes each, in connection windows. h2 counts this, and
/// ends a connection that lacks more, with GOAWAY 11. The default is half a window: 2,000 watches that are created at
/// once lack more. Four windows are four streams full of the shortest message, a keep-alive of 15 bytes. A client that
/// wants to do harm gets 16,000 frames of one byte, for which h2 takes about 5 MiB.
const DATA_FRAMES_LACK_WINDOWS: usize = 4;
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
const RESETS_PENDING_MAX: usize = 1000;
/// Size of a call that waits: the future of a put. **Units** bytes.
const TASK_BYTES_MAX: usize = 700;

/// Serves a connection until it ends.
///
/// **Errors** those of the socket and of the protocol.
pub async fn serve(
    desk: Rc<Desk>,
    stream: Stream,
    traffic: Traffic,
    options: &Options,
    mut stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let remote = stream.remote();
    let calls = Rc::new(Cell::new(0));
    let pings = Pings::new(options.ping_min);
    let (io, output) = Coalesced::new(stream, options.buffer_bytes_max, pings, desk.clock.clone(), Rc::clone(&calls));
    let mut handshake = Box::pin(bounded(options).handshake::<_, Bytes>(io));
    let begun = poll_fn(|cx| {
        let polled = handshake.as_mut().poll(cx);
        match output.borrow_mut().poll_end_turn(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            _ => polled.map_err(io::Error::other),
        }
    });
    let mut connection = tokio::time::timeout(SILENCE_MAX, begun).await??;
    drop(handshake);
    let pings = connection.ping_pong().ok_or_else(|| io::Error::other("a connection gives its pings once"))?;
    let mut silence = Box::pin(until_silent(pings, options.ping_after, options.ping_timeout));
    let mut is_stopping = *stop.borrow_and_update();
    if is_stopping {
        connection.graceful_shutdown();
    }
    // The clock is read once for all requests of a turn.
    let mut turn_began = None;
    loop {
        let turn = poll_fn(|cx| {
            let polled = connection.poll_accept(cx);
            if matches!(polled, Poll::Ready(Some(_))) {
                return polled.map_err(io::Error::other);
            }
            turn_began = None;
            if output.borrow_mut().has_too_many_pings() {
                // Only what can be written at once is written. Nobody waits for such a client.
                drop(output.borrow_mut().poll_drain(cx));
                return Poll::Ready(Some(Err(io::Error::other("got too many pings from the client"))));
            }
            match output.borrow_mut().poll_end_turn(cx) {
                Poll::Ready(Err(error)) => Poll::Ready(Some(Err(error))),
                _ => polled.map_err(io::Error::other),
            }
        });
        let accepted = tokio::select! {
            biased;
            accepted = turn => Some(accepted),
            // Unlike `wait_for`, this takes no lock that cores share.
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
                let began = *turn_began.get_or_insert_with(|| desk.now());
                if traffic.is_call(&request) {
                    begin_call(&desk, Caller { remote, began }, request, reply, &calls);
                } else {
                    answer_in_http(&desk, traffic, &request, reply);
                }
            }
            Some(Err(error)) => return Err(error),
            None => return Ok(()),
        }
    }
}

/// The bounds of a connection.
fn bounded(options: &Options) -> h2::server::Builder {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(options.streams_max)
        .initial_window_size(options.stream_window_bytes)
        .initial_connection_window_size(options.connection_window_bytes)
        .data_frame_budget(DATA_FRAMES_LACK_WINDOWS * options.connection_window_bytes as usize)
        .max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_pending_accept_reset_streams(RESETS_PENDING_MAX);
    builder
}

impl Traffic {
    /// Whether a stream is brought to the door, or else answered in HTTP.
    fn is_call<B>(self, request: &Request<B>) -> bool {
        match self {
            Self::Grpc => true,
            Self::Both(_) => grpc::is_named(request.headers()) && grpc::refusal_of_http(request).is_none(),
            Self::Http(_) => false,
        }
    }
}

fn answer_in_http<B>(desk: &Rc<Desk>, traffic: Traffic, request: &Request<B>, reply: SendResponse<Bytes>) {
    match traffic {
        Traffic::Grpc => unreachable!("every stream is a call"),
        Traffic::Both(_) if grpc::is_named(request.headers()) => {
            let refusal = grpc::refusal_of_http(request).expect("it is no call");
            plain::refuse(desk, request.method(), refusal, reply);
        }
        Traffic::Both(port) | Traffic::Http(port) => plain::answer(desk, port, request, reply),
    }
}

/// Brings one stream to the door.
fn begin_call(
    desk: &Rc<Desk>,
    caller: Caller,
    request: Request<RecvStream>,
    reply: SendResponse<Bytes>,
    calls: &Rc<Cell<usize>>,
) {
    let (parts, body) = request.into_parts();
    let len_max = desk.shared.limits.receive_bytes_max;
    let opening = grpc::open(&parts, body, reply, UnderWay::begin(calls), len_max);
    let Some(Opening { method, head, messages, reply }) = opening else { return };
    let call = match api::open(desk, method, &head, caller) {
        Ok(call) => call,
        Err(status) => return reply.refuse(&status),
    };
    drop(parts);
    match api::begin(desk, &call, messages, reply) {
        Later::Nothing => {}
        Later::Answer(decoded, reply) => {
            let task = api::answer(Rc::clone(desk), call, decoded, reply);
            let bytes = size_of_val(&task);
            debug_assert!(bytes <= TASK_BYTES_MAX, "{bytes} bytes are allocated and moved for each call that waits");
            spawn_local(task);
        }
        Later::Serve(messages, reply) => drop(spawn_local(api::serve(Rc::clone(desk), call, messages, reply))),
    }
}

/// Pings the client every `after`. Resolves when an answer has not come within `timeout`.
async fn until_silent(mut pings: h2::PingPong, after: Duration, timeout: Duration) {
    if after.is_zero() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(after).await;
        match tokio::time::timeout(timeout, pings.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The connection's own loop sees the error of the connection, and ends it with its reason.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
