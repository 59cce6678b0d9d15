//! Runs on: connection core.
//!
//! The peer port: what other members ask for. Streams are granted here and handed over to whoever holds the connections
//! with other members; so are messages that were posted. All else is answered here.
//!
//! Bounds: a posted message has at most [`POST_BYTES_MAX`]; any other body what its endpoint takes.

use std::{
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use consensus::{
    Message,
    peer::{
        hello::{self, Asked, Hello, Standing, Verdict},
        http1::Request as Head,
        raftpb,
    },
};
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    links::POST_BYTES_MAX,
    message::{ToPeers, ToStates},
    state::asked::PREFIX as STATES,
};
use crate::{
    api::desk::Desk,
    shared::Shared,
    wire::{
        endpoints::{self, Port},
        http1::{self, Place, Request, Response, Taking, Waits},
        socket::Connection,
    },
};

/// How long the first request is waited for: members ask at once, and whoever does not takes one of few places. (etcd
/// waits five minutes.)
const FIRST_WAIT: Duration = Duration::from_secs(5);
/// How long each other one is waited for.
const NEXT_WAIT: Duration = Duration::from_secs(60);
/// When the port is full, a connection over which nothing was asked for so long gives its place to a new one.
const PLACE_KEPT_FOR: Duration = Duration::from_secs(1);
/// Time between two lines in the log about members that are refused.
const REFUSALS_EVERY: Duration = Duration::from_secs(10);
/// A body of a request that is not raft's. **Units** bytes. **Source** etcd v3.7.1 `server/lease/leasehttp/http.go`.
const BODY_BYTES_MAX: usize = 64 << 10;

/// What this member says of itself to others.
pub fn hello(shared: &Shared) -> Hello {
    let identity = shared.identity;
    let cluster = shared.cluster.load();
    let own = cluster.members.iter().find(|member| member.id == identity.member_id);
    Hello {
        cluster_id: identity.cluster_id,
        member_id: identity.member_id,
        version: crate::ETCD_VERSION.to_owned(),
        peer_urls: own.map(|own| own.peer_urls.join(",")).unwrap_or_default(),
        life: shared.life,
    }
}

/// Serves one connection until it ends, or is handed over.
pub async fn serve(
    desk: Rc<Desk>,
    connection: Connection,
    (to_peers, to_states): (mpsc::Sender<ToPeers>, mpsc::Sender<ToStates>),
    stop: watch::Receiver<bool>,
) {
    let id = desk.shared.connection_numbers.fetch_add(1, Ordering::Relaxed);
    let (stream, count) = match connection.open() {
        Ok(opened) => opened,
        Err(error) => return tracing::debug!(%error, "a connection of another member ended"),
    };
    let place = Place { connections: Arc::clone(count.connections()), kept_for: PLACE_KEPT_FOR };
    let waits = Waits { first: FIRST_WAIT, next: NEXT_WAIT, place: Some(place) };
    let now = || desk.clock.unix_us();
    let taking = |request: &Request| match raft_path(request) {
        // Nothing is read of whom the head of its request refuses.
        Some(_) => match asked(&desk.shared, request) {
            Some(Ok(Asked::Message)) => Taking::Read(POST_BYTES_MAX),
            Some(Ok(Asked::Stream { .. } | Asked::Snapshot)) => Taking::Over,
            _ => Taking::Dropped,
        },
        None if request.path.starts_with(STATES) => Taking::Over,
        None => Taking::Read(BODY_BYTES_MAX),
    };
    let answer = async |request: Request| answer(&desk, &request, id, &to_peers).await;
    let served = http1::serve(stream, stop, waits, now, taking, answer).await;
    let taken = match served {
        Ok(Some(taken)) => taken,
        Ok(None) => return,
        Err(error) => return tracing::debug!(%error, "a connection of another member ended"),
    };
    if taken.request.path.starts_with(STATES) {
        let Ok(stream) = taken.stream.park() else { return };
        let handed = ToStates::Asked { stream, count, request: Box::new(taken.request) };
        return drop(to_states.send(handed).await);
    }
    let (channel, from) = match asked(&desk.shared, &taken.request) {
        Some(Ok(Asked::Stream { channel, from })) => (channel, from),
        Some(Ok(Asked::Snapshot)) => {
            let Ok(stream) = taken.stream.park() else { return };
            let handed = ToStates::Posted { stream, count, body: taken.body, rest: taken.rest };
            return drop(to_states.send(handed).await);
        }
        _ => return,
    };
    let from = (from, hello::life(&taken.request.headers));
    let Ok(stream) = taken.stream.park() else { return };
    // A member has one of each kind: they take no place from others.
    drop(count);
    let handed = ToPeers::Stream { stream, rest: taken.rest, id, channel, from };
    if to_peers.send(handed).await.is_err() {
        tracing::debug!("a stream comes too late: this member ends");
    }
}

/// A path of raft's.
enum Path {
    Stream,
    Message,
    Snapshot,
}

fn raft_path(request: &Request) -> Option<Path> {
    match request.path.as_str() {
        "/raft" => Some(Path::Message),
        "/raft/snapshot" => Some(Path::Snapshot),
        path if path.starts_with("/raft/stream/") => Some(Path::Stream),
        _ => None,
    }
}

/// What becomes of a request to a path of raft's; `None` if it is not answered at all.
pub fn verdict(shared: &Shared, head: &Head) -> Option<Verdict> {
    let cluster = shared.cluster.load();
    let standing = |id: u64| match () {
        () if cluster.removed.contains(&id) => Standing::Removed,
        () if cluster.members.iter().any(|member| member.id == id) => Standing::Member,
        () => Standing::Unknown,
    };
    hello::check(head, &hello(shared), standing).ok().flatten()
}

/// The message in the body of a POST, with who has posted it, and in which life; `None` if it means nothing between
/// members.
///
/// **Errors** the status and the text of the answer.
pub fn posted(head: &Head, body: Bytes) -> Result<Option<Posted>, (u16, &'static str)> {
    let decoded = raftpb::decode_message(body).map_err(|_why| (400, "error unmarshalling raft message"))?;
    Ok(decoded.map(|message| {
        let from = hello::id(head.headers.get("x-server-from")).unwrap_or(message.from);
        (message, (from, hello::life(&head.headers)))
    }))
}

/// A message, and who has posted it, and in which life.
pub type Posted = (Message, (u64, u64));

/// What a request to a path of raft's is for, or the answer that refuses it; `None` if it is not answered at all.
fn asked(shared: &Shared, request: &Request) -> Option<Result<Asked, Response>> {
    let verdict = verdict(shared, &head_of(request))?;
    Some(verdict.asked.map_err(|refusal| {
        let mut response = Response::text(refusal.status, format!("{}\n", refusal.reason));
        // The method is looked at before all else, and nothing is said of the cluster then.
        if let Some(allow) = refusal.allow {
            return response.with(format!("Allow: {allow}"));
        }
        // Without it, who asks takes the answer for that of a release of before streams, and passes it over.
        if matches!(raft_path(request), Some(Path::Stream)) {
            response.lines.push(format!("X-Server-Version: {}", crate::ETCD_VERSION).into());
        }
        told_of_cluster(shared, response)
    }))
}

fn head_of(request: &Request) -> Head {
    let Request { method, raw_path, headers, .. } = request;
    Head { method: method.clone(), path: raw_path.clone(), headers: headers.clone(), is_kept: true }
}

/// An answer that says which cluster this is, as all of these do.
fn told_of_cluster(shared: &Shared, response: Response) -> Response {
    response.with(format!("X-Etcd-Cluster-Id: {:x}", shared.identity.cluster_id))
}

async fn answer(desk: &Desk, request: &Request, id: u64, to_peers: &mpsc::Sender<ToPeers>) -> Response {
    let shared = &desk.shared;
    if raft_path(request).is_none() {
        return endpoints::answer(desk, Port::Peers, request).await;
    }
    if let Some(Verdict { remote: Some(remote), .. }) = verdict(shared, &head_of(request))
        && to_peers.try_send(ToPeers::Remote(remote)).is_err()
    {
        tracing::debug!("a way to a member is not noted: too much waits");
    }
    let text = |status, reason: &str| told_of_cluster(shared, Response::text(status, format!("{reason}\n")));
    match asked(shared, request) {
        // etcd's handler panics, and its connection is closed.
        None => text(400, "Bad Request"),
        Some(Err(refusal)) => {
            tell_refusal(desk, request, refusal.status);
            refusal
        }
        Some(Ok(Asked::Stream { .. } | Asked::Snapshot)) => unreachable!("what is granted takes its connection over"),
        Some(Ok(Asked::Message)) => match post(desk, request, id, to_peers).await {
            Ok(()) => told_of_cluster(shared, Response::new(204, &[], "")),
            Err((status, reason)) => text(status, reason),
        },
    }
}

/// Says in the log that another member is refused; not every time, as it asks again and again.
fn tell_refusal(desk: &Desk, request: &Request, status: u16) {
    let (now, shared) = (desk.clock.now(), &desk.shared);
    let told_at = Duration::from_nanos(shared.refusal_told_at.load(Ordering::Relaxed));
    if !told_at.is_zero() && now.saturating_sub(told_at) < REFUSALS_EVERY {
        return;
    }
    shared.refusal_told_at.store(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX).max(1), Ordering::Relaxed);
    let of = |name: &str| request.headers.get(name).to_owned();
    let (own_cluster, cluster) = (format!("{:x}", shared.identity.cluster_id), of("x-etcd-cluster-id"));
    let (from, path) = (of("x-server-from"), &request.path);
    if status == 412 && own_cluster != cluster {
        tracing::warn!(
            "local-member-cluster-id" = own_cluster,
            "remote-peer-cluster-id" = cluster,
            "remote-peer-server-from" = from,
            "request cluster ID mismatch"
        );
    } else {
        tracing::warn!(
            "remote-peer-server-from" = from,
            path,
            "status-code" = status,
            "a request of another member is refused"
        );
    }
}

/// Hands on a message that was posted.
///
/// **Errors** the status and the text of the answer.
async fn post(
    desk: &Desk,
    request: &Request,
    id: u64,
    to_peers: &mpsc::Sender<ToPeers>,
) -> Result<(), (u16, &'static str)> {
    if request.is_cut {
        return Err((400, "error reading raft message"));
    }
    // etcd means to answer 403 to whom it does not believe, and answers this.
    let failed = (500, "error processing raft message");
    let Some((message, from)) = posted(&head_of(request), request.body.clone())? else {
        // Types that mean nothing between members are passed over, if they are meant for this one.
        let to = raftpb::addressee(request.body.clone()).expect("it is decoded already");
        return if to == desk.shared.identity.member_id { Ok(()) } else { Err(failed) };
    };
    let (taken, is_taken) = oneshot::channel();
    let (message, bytes) = (Box::new(message), request.body.len());
    let posted = ToPeers::Posted { message, bytes, from, id, taken };
    to_peers.send(posted).await.map_err(|_ends| failed)?;
    let waited = tokio::time::timeout(desk.shared.limits.request_timeout, is_taken).await;
    if matches!(waited, Ok(Ok(true))) { Ok(()) } else { Err(failed) }
}
