//! Runs on: connection core.
//!
//! States that are held ready for other members, and sent.
//!
//! Invariants:
//! - For each member there is at most one state for raft's sake, and one to make up for damage. Who fetches it anew
//!   goes on where the last stream broke, and ends that one.
//! - A state that nobody fetches is let go of after [`UNFETCHED_MAX`], and one whose stream broke after
//!   [`KEPT_FOR`]; raft hears that it was not sent. Until then it is that one which is offered again.
//! - That all of a state was sent is what raft hears last: when the follower answers, it has installed it, and raft
//!   knows by itself. Only if no answer comes for [`KEPT_FOR`] is it told.
//! - Between two frames the core turns to other work.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    time::Duration,
};

use bytes::Bytes;
use consensus::{
    ConfState,
    peer::http1::{BODY_END, CHUNK_END, chunk_head},
};
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::ways::Ways;
use crate::{
    api::desk::Desk,
    error::Error,
    metrics::histogram::Count,
    peer::state::{
        asked::{Asked, Wanted},
        send::{self, Sender, Step, Stop},
    },
    raft::message::ToRaft,
    wire::{http1::Request, stream::Parked},
};

/// How long a state is held ready before anybody fetches it.
const UNFETCHED_MAX: Duration = Duration::from_secs(5);
/// How long it is held ready when its stream broke; and how long a follower may take to install it.
const KEPT_FOR: Duration = Duration::from_secs(15);
/// How long whoever fetches it may take none of it.
const STALL_MAX: Duration = Duration::from_secs(5);
/// How long the end of a long entry is waited for, between two looks.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Whom a state is for, and whether to make up for damage.
type For = (u64, bool);

struct Offer {
    sender: Sender,
    /// The configuration in it, if raft is to hear of it.
    conf_state: Option<ConfState>,
    /// The stream that may go on.
    stream: u64,
    /// When it was last fetched from.
    touched_at: Duration,
}

/// See the head of this file.
#[derive(Default)]
pub(super) struct Offers {
    held: BTreeMap<For, Offer>,
    /// Followers for whom a state is being made ready.
    making: BTreeSet<u64>,
    /// Followers to whom all of a state was sent, and when.
    sent: BTreeMap<u64, Duration>,
    /// Counts streams.
    streams: u64,
}

impl Offers {
    /// Lets go of what nobody fetches. Returns of which followers raft must hear, and whether all was sent to them.
    pub(super) fn take_expired(&mut self, now: Duration) -> Vec<(u64, bool)> {
        let age = |at: Duration| now.saturating_sub(at);
        let most = |offer: &Offer| if offer.stream == 0 { UNFETCHED_MAX } else { KEPT_FOR };
        let expired = self.held.extract_if(.., |_, offer| age(offer.touched_at) > most(offer));
        let unsent = expired.filter(|((_, is_repair), _)| !is_repair).map(|((to, _), _)| (to, false));
        let mut ended: Vec<(u64, bool)> = unsent.collect();
        ended.extend(self.sent.extract_if(.., |_, at| age(*at) > KEPT_FOR).map(|(to, _)| (to, true)));
        ended
    }

    fn hold(&mut self, held_for: For, (sender, conf_state): (Sender, Option<ConfState>), now: Duration) {
        self.sent.remove(&held_for.0);
        self.held.insert(held_for, Offer { sender, conf_state, stream: 0, touched_at: now });
    }

    /// Begins a stream for `asked`. Returns its number; `None` if there is no such state.
    fn begin(&mut self, held_for: For, asked: &Asked, now: Duration) -> Option<u64> {
        let Entry::Occupied(mut held) = self.held.entry(held_for) else { return None };
        let offer = held.get_mut();
        let at = offer.sender.at();
        let is_it = match asked.wanted {
            Wanted::Offered(wanted) => wanted == at,
            Wanted::Least(least) => least <= at.index,
        };
        if !is_it || asked.position.is_some_and(|position| position.at != at) {
            return None;
        }
        self.streams += 1;
        (offer.stream, offer.touched_at) = (self.streams, now);
        offer.sender.resume(asked.position);
        Some(self.streams)
    }

    /// The state of the stream with this number, unless another one has begun.
    fn of_stream(&mut self, held_for: For, stream: u64) -> Option<&mut Offer> {
        self.held.get_mut(&held_for).filter(|offer| offer.stream == stream)
    }
}

/// What sends the state that is published now, and the configuration in it.
///
/// **Errors** damaged data; too many revisions are held.
async fn sender(desk: &Desk) -> Result<(Sender, ConfState), Error> {
    loop {
        let view = desk.published();
        if view.is_unfinished() {
            tokio::time::sleep(LOOK_AGAIN).await;
            continue;
        }
        let conf_state = loop {
            match send::conf_state(&view) {
                Ok(conf_state) => break conf_state.ok_or(Error::Corrupt)?,
                Err(fault) => desk.load_all([fault]).await?,
            }
        };
        match desk.hold(view.compact_revision()) {
            Ok(floor) => return Ok((Sender::new(view, floor, desk.shared.identity.cluster_id), conf_state)),
            // A compaction came in between.
            Err(Error::Compacted) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Holds a state ready for the follower `to`.
pub(super) async fn offer(ways: &Ways, offers: &RefCell<Offers>, to: u64) {
    let held = offers.borrow().held.get(&(to, false)).map(|offer| (offer.sender.at(), offer.conf_state.clone()));
    if let Some((at, Some(conf_state))) = held {
        return ways.tell_raft(ToRaft::OfferState { to, at, conf_state });
    }
    if !offers.borrow_mut().making.insert(to) {
        return;
    }
    let made = sender(&ways.desk).await;
    offers.borrow_mut().making.remove(&to);
    match made {
        Ok((sender, conf_state)) => {
            let at = sender.at();
            offers.borrow_mut().hold((to, false), (sender, Some(conf_state.clone())), ways.desk.clock.now());
            tracing::info!(to = %format!("{to:x}"), index = at.index, "a state is held ready for a follower");
            ways.tell_raft(ToRaft::OfferState { to, at, conf_state });
        }
        Err(error) => {
            tracing::warn!(%error, "there is no state for a follower");
            if error == Error::Corrupt {
                ways.tell_raft(ToRaft::HandOver);
            }
        }
    }
}

/// Serves a request for a state.
pub(super) async fn serve(ways: &Ways, offers: &RefCell<Offers>, stream: Parked, request: &Request) {
    let Ok(mut stream) = stream.unpark() else { return };
    let begun = match Asked::read(&request.path, &request.query) {
        Some(asked) => begin(ways, offers, request, &asked).await.map(|stream| (asked, stream)),
        None => Err("404 Not Found"),
    };
    let cluster_id = ways.desk.shared.identity.cluster_id;
    let head = match &begun {
        Ok(_) => "200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: application/octet-stream".to_owned(),
        Err(status) => format!("{status}\r\nContent-Length: 0\r\nConnection: close"),
    };
    let head = format!("HTTP/1.1 {head}\r\nX-Etcd-Cluster-Id: {cluster_id:x}\r\n\r\n");
    let is_begun = write(&mut stream, head.as_bytes()).await;
    let Ok((asked, number)) = begun else { return };
    let held_for = (asked.from, matches!(asked.wanted, Wanted::Least(_)));
    let desk = &ways.desk;
    let (began, counters) = (desk.clock.now(), desk.registry.peers.of(asked.from));
    counters.sent_states.begun();
    let is_whole = is_begun
        && send(ways, offers, (held_for, number), (&mut stream, &counters.sent_states.bytes)).await
        && write(&mut stream, BODY_END).await;
    counters.sent_states.ended(is_whole.then(|| desk.clock.now().saturating_sub(began)));
    if is_whole {
        let offers = &mut *offers.borrow_mut();
        if offers.of_stream(held_for, number).is_some() {
            offers.held.remove(&held_for);
            if !held_for.1 {
                offers.sent.insert(held_for.0, ways.desk.clock.now());
            }
        }
    }
}

/// Checks who asks, and finds the state.
///
/// **Errors** the status of the answer.
async fn begin(ways: &Ways, offers: &RefCell<Offers>, request: &Request, asked: &Asked) -> Result<u64, &'static str> {
    let shared = &ways.desk.shared;
    if request.method != "GET" {
        return Err("405 Method Not Allowed");
    }
    if request.headers.get("x-etcd-cluster-id") != format!("{:x}", shared.identity.cluster_id) {
        return Err("412 Precondition Failed");
    }
    if !shared.cluster.load().members.iter().any(|member| member.id == asked.from) {
        return Err("403 Forbidden");
    }
    let is_repair = matches!(asked.wanted, Wanted::Least(_));
    let held_for = (asked.from, is_repair);
    let now = ways.desk.clock.now();
    if let Some(number) = offers.borrow_mut().begin(held_for, asked, now) {
        return Ok(number);
    }
    // A part of a state that is not held any more is of no use.
    if !is_repair || asked.position.is_some() {
        return Err("410 Gone");
    }
    let (sender, _) = sender(&ways.desk).await.map_err(|_why| "503 Service Unavailable")?;
    let mut offers = offers.borrow_mut();
    offers.hold(held_for, (sender, None), now);
    offers.begin(held_for, asked, now).ok_or("409 Conflict")
}

/// Sends a state. Returns whether all of it was sent.
async fn send(
    ways: &Ways,
    offers: &RefCell<Offers>,
    (held_for, number): (For, u64),
    (stream, sent_bytes): (&mut (impl AsyncWrite + Unpin), &Count),
) -> bool {
    let desk = &ways.desk;
    loop {
        let newest = desk.published();
        let stepped = match offers.borrow_mut().of_stream(held_for, number) {
            Some(offer) => {
                offer.touched_at = desk.clock.now();
                offer.sender.step(&newest)
            }
            None => return false,
        };
        drop(newest);
        match stepped {
            Ok(Step::Frame(frame)) => {
                if !write_chunk(stream, &frame).await {
                    return false;
                }
                sent_bytes.add(frame.len() as u64);
            }
            Ok(Step::Nothing) => {}
            Ok(Step::Done) => return true,
            Err(Stop::Fault(fault)) => {
                if desk.load_all([fault]).await.is_err() {
                    ways.tell_raft(ToRaft::HandOver);
                    give_up(ways, offers, held_for);
                    return false;
                }
            }
            Err(Stop::Lost(error)) => {
                tracing::warn!(%error, "a state cannot be sent any more");
                give_up(ways, offers, held_for);
                return false;
            }
        }
        tokio::task::yield_now().await;
    }
}

fn give_up(ways: &Ways, offers: &RefCell<Offers>, held_for: For) {
    offers.borrow_mut().held.remove(&held_for);
    if !held_for.1 {
        ways.tell_raft(ToRaft::StateSent { to: held_for.0, is_whole: false });
    }
}

async fn write_chunk(stream: &mut (impl AsyncWrite + Unpin), frame: &Bytes) -> bool {
    write(stream, &chunk_head(frame.len())).await && write(stream, frame).await && write(stream, CHUNK_END).await
}

/// Writes `bytes`. Returns false if the other side does not take them.
async fn write(stream: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> bool {
    let written = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    matches!(tokio::time::timeout(STALL_MAX, written).await, Ok(Ok(())))
}
