//! Runs on: connection core.
//!
//! Fetches one state from another member.
//!
//! Bounds: a stream on which nothing comes for [`SILENCE_MAX`] is given up, and a new one goes on behind what has come.
//! After [`TRIES_MAX`] streams that brought nothing the state is given up.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};

use bytes::BytesMut;
use consensus::{Message, peer::http1};
use engine::{Store, disk::Disk};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::{Notify, mpsc, oneshot},
};

use super::{
    receive::{self, Piece, Told},
    ways::Ways,
};
use crate::{
    apply::{arrived::Arrived, message::ToApply},
    peer::{
        dial::{dial, host_of},
        state::{
            asked::{Asked, Wanted},
            receive::Receiver,
            send::Position,
        },
    },
};

/// How long nothing may come.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// Streams one after the other that bring nothing.
const TRIES_MAX: usize = 10;
/// Pause between two streams.
const PAUSE: Duration = Duration::from_millis(200);
/// What is read at once. **Units** bytes.
const READ_BYTES: usize = 64 << 10;
/// A frame of a state, unpacked, at least. **Units** bytes. A record in it is as long as a request may be.
const FRAME_BYTES_MIN: usize = 16 << 20;
/// Memory for the nodes of a state that is being built. **Units** bytes.
const CACHE_BYTES: usize = 32 << 20;

/// A state that is to be fetched.
#[derive(Clone, Debug)]
pub(super) struct Fetch {
    /// From whom.
    pub(super) from: u64,
    /// Its peer URLs.
    pub(super) urls: Vec<String>,
    /// Which state.
    pub(super) wanted: Wanted,
}

/// A fetch under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    pub(super) fetch: Fetch,
    /// What raft hears when all is here; `None` if this member has asked by itself.
    pub(super) message: RefCell<Option<Box<Message>>>,
    is_over: Cell<bool>,
    told: Notify,
}

impl UnderWay {
    fn new(fetch: Fetch, message: Option<Box<Message>>) -> Self {
        Self { fetch, message: RefCell::new(message), is_over: Cell::new(false), told: Notify::new() }
    }

    /// Another one takes its place.
    fn cancel(&self) {
        self.is_over.set(true);
        self.told.notify_one();
    }

    /// Waits until another one takes its place.
    pub(super) async fn canceled(&self) {
        while !self.is_over.get() {
            self.told.notified().await;
        }
    }
}

/// The state that is on its way here, if one is.
#[derive(Debug, Default)]
pub(super) struct Arriving(RefCell<Option<Rc<UnderWay>>>);

impl Arriving {
    /// What is on its way.
    pub(super) fn now(&self) -> Option<Rc<UnderWay>> {
        self.0.borrow().clone()
    }

    /// A state is on its way, and takes the place of the one before.
    pub(super) fn begin(&self, fetch: Fetch, message: Option<Box<Message>>) -> Rc<UnderWay> {
        let own = Rc::new(UnderWay::new(fetch, message));
        if let Some(before) = self.0.replace(Some(Rc::clone(&own))) {
            before.cancel();
        }
        own
    }

    /// It is not on its way any more.
    pub(super) fn end(&self, own: &Rc<UnderWay>) {
        self.0.borrow_mut().take_if(|now| Rc::ptr_eq(now, own));
    }
}

/// Why a stream ended without a state.
enum Broken {
    /// It may go on.
    Here(String),
    /// There is no such state.
    Refused(u16),
}

/// Fetches a state.
///
/// **Errors** why it did not arrive. Its store is back with apply then.
pub(super) async fn fetch(ways: &Rc<Ways>, under_way: &UnderWay) -> Result<Box<Arrived>, String> {
    if under_way.fetch.urls.is_empty() {
        return Err("its sender is not known here".into());
    }
    let (store, disk) = room(ways).await?;
    let shared = &ways.desk.shared;
    // The other members may take longer requests than this one.
    let frame_bytes_max = FRAME_BYTES_MIN.max(4 * shared.limits.request_bytes_max);
    let receiver = Receiver::new(disk, store, shared.identity, frame_bytes_max);
    let (pieces, mut told) = match receive::start(receiver, receive::run) {
        Ok(started) => started,
        Err((error, receiver)) => {
            give_back(ways, receiver.abandon().map(Box::new));
            return Err(error.to_string());
        }
    };
    let mut pieces = Some(pieces);
    let why = loop_streams(ways, under_way, &mut pieces, &mut told).await;
    let why = match why {
        Ok(arrived) => return Ok(arrived),
        Err(why) => why,
    };
    // The thread gives the store back when nothing can come any more.
    drop(pieces);
    loop {
        match told.recv().await {
            Some(Told::Position(_)) => {}
            // It arrived while it was given up: it may still be of use.
            Some(Told::Arrived(arrived)) => return Ok(arrived),
            Some(Told::Left(store, _)) => {
                give_back(ways, store);
                return Err(why);
            }
            None => return Err(why),
        }
    }
}

/// An empty store for what comes, and a disk for it.
///
/// **Errors** why there is none.
pub(super) async fn room(ways: &Rc<Ways>) -> Result<(Store, Box<dyn Disk>), String> {
    let (answer, store) = oneshot::channel();
    ways.tell_apply(ToApply::Incoming { answer, cache_bytes: CACHE_BYTES });
    let store = store.await.map_err(|_ends| "this member ends".to_owned())?;
    match (ways.open_disk)() {
        Ok(disk) => Ok((store, disk)),
        Err(error) => {
            give_back(ways, Some(Box::new(store)));
            Err(error.to_string())
        }
    }
}

/// Hands the store of a state that does not arrive back to apply.
pub(super) fn give_back(ways: &Rc<Ways>, store: Option<Box<Store>>) {
    if let Some(store) = store {
        ways.tell_apply(ToApply::Discard(store));
    }
}

/// Reads one stream after the other, until all has come.
///
/// **Errors** why there is no more to come.
async fn loop_streams(
    ways: &Rc<Ways>,
    under_way: &UnderWay,
    pieces: &mut Option<mpsc::Sender<Piece>>,
    told: &mut mpsc::Receiver<Told>,
) -> Result<Box<Arrived>, String> {
    let to_thread = pieces.as_ref().expect("it is dropped later").clone();
    let fetch = &under_way.fetch;
    let (mut position, mut tries) = (None, 0);
    loop {
        let url = &fetch.urls[tries % fetch.urls.len()];
        let ended = tokio::select! {
            ended = stream(ways, fetch, position, url, &to_thread) => ended,
            () = under_way.canceled() => return Err("another one takes its place".into()),
            // It says something by itself only at its end.
            end = told.recv() => match end {
                Some(Told::Arrived(arrived)) => return Ok(arrived),
                end => return Err(ended_early(ways, end)),
            },
        };
        let why = match ended {
            Broken::Refused(status) => return Err(format!("{url}: it is refused with status {status}")),
            Broken::Here(why) => why,
        };
        drop(to_thread.send(Piece::Broken).await);
        let before = position;
        match told.recv().await {
            Some(Told::Position(now)) => position = now,
            Some(Told::Arrived(arrived)) => return Ok(arrived),
            end => return Err(ended_early(ways, end)),
        }
        tries = if position == before { tries + 1 } else { 0 };
        if tries >= TRIES_MAX {
            return Err(why);
        }
        tracing::debug!(why, "a state goes on in another stream");
        tokio::time::sleep(PAUSE).await;
    }
}

/// Why the thread has ended without a state. Its store goes back.
fn ended_early(ways: &Rc<Ways>, end: Option<Told>) -> String {
    match end {
        Some(Told::Left(store, why)) => {
            give_back(ways, store);
            why
        }
        _ => "its thread has ended".into(),
    }
}

/// Asks for the state behind `position`, and hands on what comes. Returns why it ended.
async fn stream(
    ways: &Rc<Ways>,
    fetch: &Fetch,
    position: Option<Position>,
    url: &str,
    pieces: &mpsc::Sender<Piece>,
) -> Broken {
    let silence = tokio::time::timeout(SILENCE_MAX, dial(url, ways.desk.shared.limits.dial_from)).await;
    let mut stream = match silence {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Broken::Here(format!("{url}: {error}")),
        Err(_late) => return Broken::Here(format!("{url}: it does not answer")),
    };
    let identity = ways.desk.shared.identity;
    let path = Asked { from: identity.member_id, wanted: fetch.wanted, position }.path();
    let (host, cluster_id) = (host_of(url), identity.cluster_id);
    let head = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Etcd-Cluster-ID: {cluster_id:x}\r\n\r\n");
    if let Err(error) = stream.write_all(head.as_bytes()).await {
        return Broken::Here(format!("{url}: {error}"));
    }
    let (mut buffer, mut body) = (BytesMut::new(), None);
    let counters = ways.desk.registry.peers.of(fetch.from);
    loop {
        buffer.reserve(READ_BYTES);
        match tokio::time::timeout(SILENCE_MAX, stream.read_buf(&mut buffer)).await {
            Ok(Ok(0)) => return Broken::Here(format!("{url}: the connection ended")),
            Ok(Ok(read)) => counters.received_states.bytes.add(read as u64),
            Ok(Err(error)) => return Broken::Here(format!("{url}: {error}")),
            Err(_late) => return Broken::Here(format!("{url}: nothing comes")),
        }
        if body.is_none() {
            match http1::take_answer(&mut buffer) {
                Ok(None) => continue,
                Ok(Some((answer, of_answer))) if answer.status == 200 => body = Some(of_answer),
                // A state is being made ready, or its stream has not ended yet.
                Ok(Some((answer, _))) if answer.status == 503 => return Broken::Here(format!("{url}: not now")),
                Ok(Some((answer, _))) => return Broken::Refused(answer.status),
                Err(error) => return Broken::Here(format!("{url}: {error}")),
            }
        }
        let Some(of_answer) = &mut body else { continue };
        loop {
            match of_answer.take(&mut buffer) {
                Ok(None) => break,
                Ok(Some(bytes)) => {
                    if pieces.send(Piece::Bytes(bytes)).await.is_err() {
                        // The thread has told why.
                        return Broken::Here("it is not taken".into());
                    }
                }
                Err(error) => return Broken::Here(format!("{url}: {error}")),
            }
        }
        if of_answer.is_over() {
            return Broken::Here(format!("{url}: the stream ended before its end"));
        }
    }
}
