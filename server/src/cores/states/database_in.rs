//! Runs on: connection core.
//!
//! Takes a snapshot that another member posts, as etcd's leaders do.
//!
//! Invariants: the answer that all is well follows when all of the state is durable here and raft has its message: the
//! leader sends nothing else to this member before, and keeps its log. Anything else is an answer that says why.
//!
//! Bounds: a connection on which nothing comes for [`SILENCE_MAX`] is given up.

use std::{rc::Rc, time::Duration};

use bytes::{Bytes, BytesMut};
use consensus::peer::http1::Body;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
};

use super::{
    fetch::{self, Arriving, Fetch, UnderWay},
    receive::{self, Told},
    ways::Ways,
};
use crate::{
    apply::arrived::Arrived,
    etcd_files::received,
    metrics::histogram::Count,
    peer::{
        snapshot::{
            head::{Head, Refusal},
            receive::Receiver,
        },
        state::asked::Wanted,
    },
    raft::message::ToRaft,
    wire::{
        http1::Response,
        stream::{Parked, Stream},
    },
};

/// How long nothing may come, and how long an answer may take. **Source** etcd v3.7.1 `rafthttp`, `ConnReadTimeout`.
const SILENCE_MAX: Duration = Duration::from_secs(5);
/// What is read at once. **Units** bytes.
const READ_BYTES: usize = 64 << 10;

/// The body of a request, as it comes.
struct Source {
    stream: Stream,
    buffer: BytesMut,
    body: Body,
}

impl Source {
    /// The next piece; `None` at the end.
    ///
    /// **Errors** the connection's: what has come is not all.
    async fn next(&mut self) -> Result<Option<Bytes>, String> {
        loop {
            let taken = self.body.take(&mut self.buffer).map_err(|error| error.to_string())?;
            if taken.is_some() || self.body.is_over() {
                return Ok(taken);
            }
            self.buffer.reserve(READ_BYTES);
            match tokio::time::timeout(SILENCE_MAX, self.stream.read_buf(&mut self.buffer)).await {
                Ok(Ok(0)) => return Err("the connection ended".into()),
                Ok(Ok(_)) => {}
                Ok(Err(error)) => return Err(error.to_string()),
                Err(_late) => return Err("nothing comes".into()),
            }
        }
    }
}

/// Where a snapshot goes.
type To<'a> = (&'a Rc<Ways>, &'a Arriving);

/// Takes what is posted over `stream`: `body`, of which `buffer` has come already.
pub(super) async fn take(to: To<'_>, stream: Parked, body: Body, buffer: BytesMut) {
    let Ok(stream) = stream.unpark() else { return };
    let mut source = Source { stream, buffer, body };
    let response = match receive(to, &mut source).await {
        Ok(()) => Response::new(204, &[], ""),
        Err((status, why)) => {
            tracing::warn!(why, "a snapshot that was posted is refused");
            Response::text(status, format!("{why}\n"))
        }
    };
    let desk = &to.0.desk;
    let cluster_id = desk.shared.identity.cluster_id;
    let answer = response.with(format!("X-Etcd-Cluster-Id: {cluster_id:x}")).last(desk.clock.unix_us());
    let answered = async {
        source.stream.write_all(&answer).await?;
        source.stream.shutdown().await
    };
    if !matches!(tokio::time::timeout(SILENCE_MAX, answered).await, Ok(Ok(()))) {
        tracing::debug!("whoever has posted a snapshot does not take the answer");
    }
}

const BAD: u16 = 400;
const FAILED: u16 = 500;

/// Receives the message and the database, and hands both to raft.
///
/// **Errors** the status and the text of the answer.
async fn receive((ways, arriving): To<'_>, source: &mut Source) -> Result<(), (u16, String)> {
    let undecoded = |why: &str| (BAD, format!("failed to decode raft message ({why})"));
    let mut head = Head::default();
    let (message, rest) = loop {
        let piece = source.next().await.map_err(|why| undecoded(&why))?.ok_or_else(|| undecoded("unexpected EOF"))?;
        match head.push(&piece) {
            Ok(None) => {}
            Ok(Some(taken)) => break taken,
            Err(Refusal::Undecodable) => return Err(undecoded("it is none, or too long")),
            Err(Refusal::OtherKind) => return Err((BAD, "wrong raft message type".into())),
        }
    };
    let desk = &ways.desk;
    if message.to != desk.shared.identity.member_id {
        let why = "failed to process raft message (cannot process message to mismatch member)";
        return Err((FAILED, why.into()));
    }
    let Some(snapshot) = message.snapshot.as_deref() else { return Err(undecoded("it has no snapshot")) };
    let told = received::Told { at: snapshot.at, conf_state: snapshot.conf_state.clone() };
    let fetch = Fetch { from: message.from, urls: Vec::new(), wanted: Wanted::Offered(told.at) };
    let under_way = arriving.begin(fetch, None);
    let (began, counters) = (desk.clock.now(), desk.registry.peers.of(message.from));
    counters.received_states.begun();
    let received = database(ways, &under_way, source, (rest, told), &counters.received_states.bytes).await;
    counters.received_states.ended(received.is_ok().then(|| desk.clock.now().saturating_sub(began)));
    arriving.end(&under_way);
    let arrived = received.map_err(|why| (FAILED, format!("failed to save KV snapshot ({why})")))?;
    tracing::info!(index = arrived.at.index, "all of a snapshot of another member has arrived");
    desk.tell_raft(ToRaft::StateArrived { message: Some(message), arrived }).await;
    Ok(())
}

/// Receives the database behind `rest`.
///
/// **Errors** why there is no state. Its store is back with apply then.
async fn database(
    ways: &Rc<Ways>,
    under_way: &UnderWay,
    source: &mut Source,
    (rest, told): (Bytes, received::Told),
    received_bytes: &Count,
) -> Result<Box<Arrived>, String> {
    let (store, disk) = fetch::room(ways).await?;
    let receiver = Receiver::new(disk, store, ways.desk.shared.identity, told).map_err(|(error, store)| {
        fetch::give_back(ways, Some(store));
        error.to_string()
    })?;
    let (pieces, mut from_thread) = receive::start(receiver, receive::run_database).map_err(|(error, receiver)| {
        fetch::give_back(ways, Some(receiver.abandon()));
        error.to_string()
    })?;
    let came = tokio::select! {
        came = hand_on(source, rest, pieces, received_bytes) => came,
        () = under_way.canceled() => Err("another one takes its place".to_owned()),
    };
    // The thread ends when no piece can come any more.
    loop {
        match from_thread.recv().await {
            Some(Told::Position(_)) => {}
            Some(Told::Arrived(arrived)) => return Ok(arrived),
            Some(Told::Left(store, why)) => {
                fetch::give_back(ways, store);
                return Err(came.err().unwrap_or(why));
            }
            None => return Err("its thread has ended".into()),
        }
    }
}

/// Hands all of the body to the thread.
///
/// **Errors** the body broke off. What became of the thread it tells by itself.
async fn hand_on(
    source: &mut Source,
    rest: Bytes,
    pieces: mpsc::Sender<Option<Bytes>>,
    received_bytes: &Count,
) -> Result<(), String> {
    let mut piece = Some(rest);
    while let Some(bytes) = piece {
        received_bytes.add(bytes.len() as u64);
        if pieces.send(Some(bytes)).await.is_err() {
            return Ok(());
        }
        piece = source.next().await?;
    }
    drop(pieces.send(None).await);
    Ok(())
}
