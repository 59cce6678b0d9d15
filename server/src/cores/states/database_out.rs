//! Runs on: connection core.
//!
//! Posts snapshots to followers that are etcd's: a raft message and the whole database, in one body.
//!
//! Invariants:
//! - For each follower there is at most one state: from the moment at which raft asks for it until its transfer ends.
//!   Raft hears of every end. What raft's message says of the state is what the database has.
//! - A body that cannot be completed breaks off. From a clean end the follower would take what has come for all, and
//!   end.
//! - Between two pieces the core turns to other work.
//!
//! Bounds: a state for which raft has no message within [`UNSENT_MAX`] is let go of; a piece that is not taken within
//! [`STALL_MAX`], and an answer that does not come within [`ANSWER_MAX`], end the transfer.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use consensus::{
    EntryId, Message, Snapshot,
    peer::{
        http1::{self, BODY_END, CHUNK_END, chunk_head},
        pieces::Pieces,
        raftpb,
    },
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ways::Ways;
use crate::{
    api::database,
    error::Error,
    etcd_files::{bolt::writer::FileWriter, content::Walk, state::State, v2},
    floor::Floor,
    metrics::histogram::Count,
    peer::{
        dial::{dial, host_of},
        port::hello,
    },
    raft::message::ToRaft,
    wire::stream::Stream,
};

const UNSENT_MAX: Duration = Duration::from_secs(5);
/// **Source** etcd v3.7.1 `rafthttp`: a follower's port gives up a connection on which nothing comes for so long.
const STALL_MAX: Duration = Duration::from_secs(5);
/// How long a follower may take for what has come. etcd's only renames a file.
const ANSWER_MAX: Duration = Duration::from_secs(300);
/// A longer answer is cut off: it is only logged. **Units** bytes.
const ANSWER_BYTES_MAX: usize = 4096;

/// A state that is held until raft has its message.
struct Held {
    state: State,
    floor: Floor,
    since: Duration,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Posts {
    held: BTreeMap<u64, Held>,
    /// Followers for whom a state is being captured, or to whom one is on its way.
    busy: BTreeSet<u64>,
}

impl Posts {
    /// Lets go of states for which there was no message. Returns for whom they were.
    pub(super) fn take_expired(&mut self, now: Duration) -> Vec<u64> {
        let is_old = |held: &Held| now.saturating_sub(held.since) > UNSENT_MAX;
        self.held.extract_if(.., |_, held| is_old(held)).map(|(to, _)| to).collect()
    }
}

/// Captures a state for the follower `to`, and offers it to raft.
pub(super) async fn offer(ways: &Ways, posts: &RefCell<Posts>, to: u64) {
    let offered = |state: &State| {
        let conf_state = state.tables.conf_state.clone();
        ways.tell_raft(ToRaft::OfferState { to, at: state.applied, conf_state });
    };
    if let Some(held) = posts.borrow().held.get(&to) {
        return offered(&held.state);
    }
    if !posts.borrow_mut().busy.insert(to) {
        return;
    }
    let captured = database::capture(&ways.desk).await;
    posts.borrow_mut().busy.remove(&to);
    match captured {
        Ok((state, floor)) => {
            offered(&state);
            posts.borrow_mut().held.insert(to, Held { state, floor, since: ways.desk.clock.now() });
        }
        Err(error) => {
            tracing::warn!(%error, to = format!("{to:x}"), "there is no snapshot for a follower");
            if error == Error::Corrupt {
                ways.tell_raft(ToRaft::HandOver);
            }
        }
    }
}

/// Posts the state that raft's `message` is about, to one of `urls`.
pub(super) async fn post(ways: &Ways, posts: &RefCell<Posts>, message: Message, urls: &[String]) {
    let to = message.to;
    let held = posts.borrow_mut().held.remove(&to);
    let is_it = |held: &Held| message.snapshot.as_deref().is_some_and(|told| told.at == held.state.applied);
    let Some(Held { state, floor, .. }) = held.filter(is_it) else {
        return ways.tell_raft(ToRaft::StateSent { to, is_whole: false });
    };
    posts.borrow_mut().busy.insert(to);
    let (began, counters) = (ways.desk.clock.now(), ways.desk.registry.peers.of(to));
    counters.sent_states.begun();
    let posted = send(ways, (&state, &floor), message, urls, &counters.sent_states.bytes).await;
    counters.sent_states.ended(posted.is_ok().then(|| ways.desk.clock.now().saturating_sub(began)));
    posts.borrow_mut().busy.remove(&to);
    let (remote, EntryId { index, .. }) = (format!("{to:x}"), state.applied);
    match &posted {
        Ok(bytes) => {
            tracing::info!("snapshot-index" = index, "remote-peer-id" = remote, bytes, "sent database snapshot");
        }
        Err(why) => {
            tracing::warn!(
                "snapshot-index" = index,
                "remote-peer-id" = remote,
                why,
                "failed to send database snapshot"
            );
        }
    }
    ways.tell_raft(ToRaft::StateSent { to, is_whole: posted.is_ok() });
}

/// Sends all of it, and waits for the answer. Returns the length of the database. **Units** bytes.
///
/// **Errors** why the follower does not have it.
async fn send(
    ways: &Ways,
    (state, floor): (&State, &Floor),
    message: Message,
    urls: &[String],
    sent_bytes: &Count,
) -> Result<u64, String> {
    let desk = &ways.desk;
    let layout = database::measure(desk, state, floor).await.map_err(|error| error.to_string())?;
    let (mut stream, host) = connect(ways, urls).await?;
    let head = hello(&desk.shared).post_snapshot(&host);
    tracing::info!("snapshot-index" = state.applied.index, bytes = layout.bytes(), "sending database snapshot");
    write(&mut stream, &[head.as_bytes()]).await?;
    let first = with_database(message, state);
    chunk(&mut stream, &first, sent_bytes).await?;
    let (mut walk, mut write_back) = (Walk::new(state, FileWriter::writing(layout)), database::WriteBack::default());
    loop {
        let is_done = database::step(desk, floor, &mut walk).await.map_err(|error| error.to_string())?;
        let piece = walk.writer().take();
        chunk(&mut stream, &piece, sent_bytes).await?;
        if is_done {
            break;
        }
        write_back.taken(desk, piece.len()).await;
    }
    // Both walks are over the same state. A different layout means that the records have changed: they are damaged.
    let (rest, _) = walk.finish().finish().ok_or("its records have changed")?;
    chunk(&mut stream, &rest, sent_bytes).await?;
    write(&mut stream, &[BODY_END]).await?;
    match tokio::time::timeout(ANSWER_MAX, answer(&mut stream)).await {
        Ok(Ok((204, _))) => Ok(layout.bytes()),
        Ok(Ok((status, text))) => Err(format!("it is refused with status {status}: {text}")),
        Ok(Err(error)) => Err(error),
        Err(_late) => Err("it is not answered".into()),
    }
}

/// The message in front of the database, as the body has it, with what etcd 3.6 reads beside the database.
fn with_database(message: Message, state: &State) -> Bytes {
    let data = v2::store(&state.tables.cluster).into();
    let snapshot = Snapshot { at: state.applied, conf_state: state.tables.conf_state.clone(), data };
    let message = Message { snapshot: Some(Box::new(snapshot)), ..message };
    let mut pieces = Pieces::default();
    raftpb::encode_message(&message, &mut pieces);
    let encoded = pieces.take().concat();
    [&(encoded.len() as u64).to_be_bytes()[..], &encoded].concat().into()
}

/// A connection to the first of `urls` that takes one, and what it is called.
async fn connect(ways: &Ways, urls: &[String]) -> Result<(Stream, String), String> {
    let mut why = "its URLs are not known".to_owned();
    for url in urls {
        match tokio::time::timeout(STALL_MAX, dial(url, ways.desk.shared.limits.dial_from)).await {
            Ok(Ok(stream)) => return Ok((stream, host_of(url).to_owned())),
            Ok(Err(error)) => why = format!("{url}: {error}"),
            Err(_late) => why = format!("{url}: it does not answer"),
        }
    }
    Err(why)
}

async fn chunk(stream: &mut Stream, bytes: &[u8], sent_bytes: &Count) -> Result<(), String> {
    if bytes.is_empty() {
        return Ok(());
    }
    write(stream, &[&chunk_head(bytes.len()), bytes, CHUNK_END]).await?;
    sent_bytes.add(bytes.len() as u64);
    Ok(())
}

/// Writes `parts`.
///
/// **Errors** the other side does not take them.
async fn write(stream: &mut Stream, parts: &[&[u8]]) -> Result<(), String> {
    let written = async {
        for part in parts {
            stream.write_all(part).await?;
        }
        stream.flush().await
    };
    match tokio::time::timeout(STALL_MAX, written).await {
        Ok(written) => written.map_err(|error| error.to_string()),
        Err(_late) => Err("it is not taken".into()),
    }
}

/// What of an answer is shown in a log.
fn shown(text: &[u8]) -> String {
    String::from_utf8(text.trim_ascii_end().to_vec()).unwrap_or_default()
}

/// The status and the text of the answer.
async fn answer(stream: &mut Stream) -> Result<(u16, String), String> {
    let (mut buffer, mut head, mut text) = (BytesMut::new(), None, Vec::new());
    loop {
        if head.is_none() {
            head = http1::take_answer(&mut buffer).map_err(|error| error.to_string())?;
        }
        if let Some((answer, body)) = &mut head {
            while let Some(piece) = body.take(&mut buffer).map_err(|error| error.to_string())? {
                text.extend_from_slice(&piece[..piece.len().min(ANSWER_BYTES_MAX - text.len())]);
            }
            if body.is_over() || text.len() == ANSWER_BYTES_MAX {
                return Ok((answer.status, shown(&text)));
            }
        }
        let read = stream.read_buf(&mut buffer).await.map_err(|error| error.to_string())?;
        match (read, &head) {
            (0, Some((answer, _))) => return Ok((answer.status, shown(&text))),
            (0, None) => return Err("the connection ended before the answer".into()),
            _ => {}
        }
    }
}
