//! Runs on: raft core.
//!
//! The connections of this member with all others: who is dialled and when, which way each message takes, what is given
//! up.
//!
//! As etcd's members do it, whoever wants messages dials: each member asks every other one for two streams, of appends
//! and of other messages, and fills the two that the other one has asked it for. What finds no stream is posted, one
//! request for each message.
//!
//! Invariants:
//! - Members are those of `shared.cluster`, which apply publishes. Others, who were told at the start or have asked
//!   (remotes), are only posted to; but as long as this member knows of no membership of its own, it asks them for
//!   streams, too: who leads has made it a member before it hears of that, and who has removed it says so.
//! - There is at most one stream of each kind from a member, and one to it. A new one takes the place of the old one.
//! - What waits for a member is bounded in bytes. What does not fit is lost, and raft hears that the member is
//!   unreachable.
//! - A stream on which nothing moves for some seconds (`Options`) is closed. It is dialled again at once, but not more
//!   often than once in [`DIAL_EVERY`].
//! - Nothing of an earlier life of a member is taken behind something of a later one (`lives`).
//! - A member's process is gone if all its URLs refuse connections and none that was made is left.
//!
//! A plain state machine: it knows no socket. Whoever drives it does what [`Links::take_deeds`] says, and tells what
//! becomes of it.
//!
//! - `needless`: what of a turn's messages is not sent
//! - `peer`: what is known of another member and its connections
//! - `posts`: messages that find no stream

mod needless;
mod peer;
mod posts;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use consensus::{
    Message, MessageKind,
    peer::hello::{Channel, Hello, Remote, Told},
};
use engine::wal::ENTRY_BYTES_MAX;

pub use self::peer::{ConnectionId, Traffic};

use self::{
    needless::without_needless,
    peer::{Connection, Dialling, IDLE_MAX, Peer, Purpose, Way},
};
use super::{
    dial::host_of,
    incoming::{Greeted, Incoming},
    lives::Admitted,
    outgoing::Outgoing,
};
use crate::{config::Url, shared::Cluster};

/// Time between two dials for a stream, at least. **Source** etcd v3.7.1 `rafthttp/transport.go`, `DialRetryFrequency`.
pub const DIAL_EVERY: Duration = Duration::from_millis(100);
/// A message of another member on its stream at most: an append with the largest entry that a log takes, or proposals
/// that another member lets gather. What a member takes of its clients may differ from what this one does. **Units**
/// bytes.
pub const MESSAGE_BYTES_MAX: usize = ENTRY_BYTES_MAX + (64 << 20);
/// A posted message at most: anybody may post one. **Units** bytes. **Source** etcd bounds those in front of snapshots
/// so.
pub const POST_BYTES_MAX: usize = 64 << 20;
/// Members that are known by what they have told of themselves alone, at most.
const REMOTES_MAX: usize = 16;
/// How long a member that is none any more is sent what waits for it.
const PARTING: Duration = Duration::from_millis(500);

/// Bounds and times.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What may wait for one stream of a member. **Units** bytes.
    pub waiting_bytes_max: usize,
    /// How long nothing may arrive where something is due (`raft-read-timeout`).
    pub silence_max: Duration,
    /// How long a socket may take nothing of what is written to it (`raft-write-timeout`).
    pub stall_max: Duration,
}

/// What whoever drives the sockets is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Connect to the peer URL `url`, and then tell [`Links::connected`] or [`Links::failed`].
    Dial {
        /// The name of the try.
        attempt: u64,
        /// Where.
        url: String,
    },
    /// There is something to write: [`Links::take_bytes`].
    Write(ConnectionId),
    /// Close the connection. Nothing more is to be told of it.
    Close(ConnectionId),
}

/// A message of another member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Arrived {
    /// The connection over which it came.
    pub id: ConnectionId,
    /// What it says.
    pub message: Message,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Links {
    own: Hello,
    options: Options,
    peers: BTreeMap<u64, Peer>,
    removed: BTreeSet<u64>,
    connections: BTreeMap<ConnectionId, Connection>,
    /// For whom and for what, and which of its URLs is dialled.
    attempts: BTreeMap<u64, (u64, Purpose, usize)>,
    next_attempt: u64,
    deeds: Vec<Deed>,
    messages: Vec<Arrived>,
    unreachable: BTreeSet<u64>,
    unsent_states: BTreeSet<u64>,
    /// Messages with which states go to members of etcd: in requests of their own.
    states_to_post: Vec<Message>,
    gone: Vec<u64>,
    /// Another member has said that this one was removed, and since the last look.
    is_removed: bool,
    is_just_removed: bool,
    /// This member is one of the cluster's, as far as is applied here.
    is_member: bool,
    has_changed: bool,
    /// The member for which there was no room for proposals, and whether there is some again.
    awaits_room: Option<u64>,
    has_room_again: bool,
}

const CHANNELS: [Channel; 2] = [Channel::Appends, Channel::Messages];

impl Links {
    /// The connections of a member that says `own` of itself: none.
    pub fn new(own: Hello, options: Options) -> Self {
        assert!(own.life != 0, "0 is for those who do not say");
        Self {
            own,
            options,
            peers: BTreeMap::new(),
            removed: BTreeSet::new(),
            connections: BTreeMap::new(),
            attempts: BTreeMap::new(),
            next_attempt: 0,
            deeds: Vec::new(),
            messages: Vec::new(),
            unreachable: BTreeSet::new(),
            unsent_states: BTreeSet::new(),
            states_to_post: Vec::new(),
            gone: Vec::new(),
            is_removed: false,
            is_just_removed: false,
            is_member: false,
            has_changed: false,
            awaits_room: None,
            has_room_again: false,
        }
    }

    /// Members are those of `cluster` from now on.
    pub fn set_members(&mut self, cluster: &Cluster, now: Duration) {
        self.removed.clone_from(&cluster.removed);
        let own = cluster.members.iter().find(|member| member.id == self.own.member_id);
        self.is_member = own.is_some();
        if let Some(own) = own {
            self.own.peer_urls = own.peer_urls.join(",");
        }
        for member in cluster.members.iter().filter(|member| member.id != self.own.member_id) {
            let peer = self.peers.entry(member.id).or_default();
            (peer.is_member, peer.leaves_at) = (true, None);
            peer.urls.clone_from(&member.peer_urls);
        }
        let is_in = |id: u64| cluster.members.iter().any(|member| member.id == id);
        let has_left = |(id, peer): (&u64, &Peer)| {
            (self.removed.contains(id) || peer.is_member) && peer.leaves_at.is_none() && !is_in(*id)
        };
        let leaving: Vec<u64> = self.peers.iter().filter(|known| has_left(*known)).map(|(id, _)| *id).collect();
        leaving.into_iter().for_each(|id| self.part_from(id, now));
        self.dial_streams(now);
    }

    /// Knows a way to a member before it is known by the log.
    pub fn add_remote(&mut self, remote: Remote) {
        let Remote { member_id, peer_urls } = remote;
        let remotes = self.peers.values().filter(|peer| !peer.is_member).count();
        let is_known = self.peers.contains_key(&member_id) || self.removed.contains(&member_id);
        let is_url = |url: &String| Url::parse(url).is_ok();
        if member_id == self.own.member_id || is_known || remotes >= REMOTES_MAX || !peer_urls.iter().all(is_url) {
            return;
        }
        self.peers.insert(member_id, Peer { urls: peer_urls, ..Peer::default() });
    }

    /// The member is one no more. Nothing is taken from it, and it is sent what waits already: that its removal is
    /// committed, for whom it may have asked for it.
    fn part_from(&mut self, member_id: u64, now: Duration) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        (peer.is_member, peer.leaves_at) = (false, Some(now + PARTING));
        self.has_changed |= peer.active_since.take().is_some();
        let reading = peer.reading.iter_mut().filter_map(Option::take);
        for id in reading.chain(peer.posting.drain(..)) {
            self.connections.remove(&id);
            self.deeds.push(Deed::Close(id));
        }
        (peer.dials, peer.posts_bytes) = Default::default();
        peer.posts.clear();
        peer.post_attempts.clear();
        peer.urls.clear();
        self.attempts.retain(|_, (of, ..)| *of != member_id);
    }

    fn forget(&mut self, member_id: u64) {
        let Some(peer) = self.peers.remove(&member_id) else { return };
        for id in peer.connections() {
            self.connections.remove(&id);
            self.deeds.push(Deed::Close(id));
        }
        self.attempts.retain(|_, (of, ..)| *of != member_id);
        self.has_changed |= peer.active_since.is_some();
    }

    /// The member `from`, in this `life`, has asked for a stream, and that was granted (`port`). It is written to the
    /// connection `id`.
    pub fn attach(&mut self, channel: Channel, (from, life): (u64, u64), id: ConnectionId, now: Duration) {
        let is_member = self.peers.get(&from).is_some_and(|peer| peer.is_member);
        if !is_member || !self.admit(from, life, id) {
            return self.deeds.push(Deed::Close(id));
        }
        let peer = self.peers.get_mut(&from).expect("it is a member");
        let before = peer.writing[channel as usize].replace(id);
        if let Some(before) = before {
            // What waits there is lost.
            self.connections.remove(&before);
            self.deeds.push(Deed::Close(before));
            self.lose_messages(from);
        }
        let outgoing = Box::new(Outgoing::new(channel, &self.own, self.options.waiting_bytes_max, now));
        let connection = Connection { member_id: from, life: Some(life), picked: 0, way: Way::Writing { outgoing } };
        self.connections.insert(id, connection);
        self.deeds.push(Deed::Write(id));
        self.activate(from, now);
    }

    /// Whether the connection `id` is of a life of the member that counts. Those of a life that is over are closed.
    fn admit(&mut self, member_id: u64, life: u64, id: ConnectionId) -> bool {
        let known = self.peers.get_mut(&member_id).filter(|peer| peer.leaves_at.is_none());
        let Some(peer) = known else { return false };
        match peer.lives.admit(life, id) {
            Admitted::Over => return false,
            Admitted::Same => return true,
            Admitted::New => {}
        }
        let of_others = |id: &ConnectionId| {
            let known = self.connections.get(id).and_then(|connection| connection.life);
            known.is_some_and(|known| known != life)
        };
        let old: Vec<ConnectionId> = peer.connections().filter(of_others).collect();
        for old in old {
            self.deeds.push(Deed::Close(old));
            self.drop_connection(old);
        }
        true
    }

    /// No honest member sends what has come over the connection `id`: it is closed.
    pub fn refuse(&mut self, id: ConnectionId, now: Duration) {
        if self.connections.contains_key(&id) {
            self.deeds.push(Deed::Close(id));
            self.closed(id, false, now);
        }
    }

    /// A connection for the try `attempt` is established, as `id`.
    pub fn connected(&mut self, attempt: u64, id: ConnectionId, now: Duration) {
        let wanted = self.attempts.remove(&attempt);
        let Some((member_id, purpose, picked)) = wanted.filter(|(member_id, ..)| self.peers.contains_key(member_id))
        else {
            return self.deeds.push(Deed::Close(id));
        };
        let own = (member_id, self.own.member_id);
        let peer = self.peers.get_mut(&member_id).expect("just seen");
        peer.refused.clear();
        (peer.is_gone, peer.is_told) = (false, false);
        let way = match purpose {
            Purpose::Stream(channel) => {
                peer.dials[channel as usize].attempt = None;
                peer.reading[channel as usize] = Some(id);
                let request = self.own.ask_for_stream(channel, member_id, host_of(peer.url_at(picked)));
                let incoming = Box::new(Incoming::new(channel, own, MESSAGE_BYTES_MAX));
                Way::Reading { channel, incoming, request: Some(request.into()), heard_at: now }
            }
            Purpose::Posts => {
                peer.post_attempts.remove(&attempt);
                peer.posting.push(id);
                let (request, answer) = (Vec::new(), BytesMut::new());
                Way::Posting { request, answer, is_waiting: false, since: now }
            }
        };
        self.connections.insert(id, Connection { member_id, life: None, picked, way });
        match purpose {
            Purpose::Stream(_) => self.deeds.push(Deed::Write(id)),
            Purpose::Posts => self.post_next(member_id, now),
        }
    }

    /// The try `attempt` has failed; `is_refused` says that nobody listens there.
    pub fn failed(&mut self, attempt: u64, is_refused: bool, why: &str, now: Duration) {
        let Some((member_id, purpose, picked)) = self.attempts.remove(&attempt) else { return };
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        if !std::mem::replace(&mut peer.is_told, true) {
            let url = peer.url_at(picked);
            let id = format!("{member_id:x}");
            tracing::warn!("peer-id" = id, url, error = why, "failed to dial a peer; it goes on");
        }
        if is_refused {
            peer.refused.insert(peer.url_at(picked).to_owned());
        } else {
            peer.refused.clear();
        }
        peer.pass_over(picked);
        match purpose {
            Purpose::Stream(channel) => peer.dials[channel as usize].attempt = None,
            Purpose::Posts => {
                peer.post_attempts.remove(&attempt);
                self.lose_posts(member_id);
            }
        }
        self.deactivate(member_id);
        self.look_whether_gone(member_id);
        self.dial_streams(now);
    }

    /// Bytes have arrived on the connection `id`.
    pub fn received(&mut self, id: ConnectionId, bytes: &[u8], now: Duration) {
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(peer) = self.peers.get_mut(&connection.member_id) {
            peer.traffic.received_bytes += bytes.len() as u64;
        }
        let goes_on = match &mut connection.way {
            // Nothing is said on a stream to another member.
            Way::Writing { .. } => true,
            Way::Posting { answer, .. } => {
                answer.extend_from_slice(bytes);
                self.take_answer(id, now)
            }
            Way::Reading { incoming, heard_at, .. } => {
                incoming.push(bytes);
                *heard_at = now;
                self.read_stream(id, now)
            }
        };
        if !goes_on {
            let member_id = self.connections.get(&id).map(|connection| connection.member_id);
            self.deeds.push(Deed::Close(id));
            self.lose(id);
            self.dial_streams(now);
            member_id.into_iter().for_each(|member_id| self.post_next(member_id, now));
        }
    }

    /// Takes what has arrived on a stream. Returns whether it goes on.
    fn read_stream(&mut self, id: ConnectionId, now: Duration) -> bool {
        let Some(Connection { member_id, picked, way: Way::Reading { channel, incoming, .. }, .. }) =
            self.connections.get_mut(&id)
        else {
            return false;
        };
        let (member_id, picked, channel) = (*member_id, *picked, *channel);
        match incoming.greeted() {
            Ok(None) => {}
            Ok(Some(greeted)) if greeted.told == Told::Done => {
                if !self.admit(member_id, greeted.life, id) {
                    return false;
                }
                self.connections.get_mut(&id).expect("it is of this life").life = Some(greeted.life);
                tracing::info!(
                    "local-member-id" = %format!("{:x}", self.own.member_id),
                    "remote-peer-id" = %format!("{member_id:x}"),
                    ?channel,
                    "established TCP streaming connection with remote peer"
                );
                self.activate(member_id, now);
                self.peers.get_mut(&member_id).expect("it is of this life").is_refusal_told = false;
            }
            Ok(Some(greeted)) => {
                if greeted.told == Told::Removed {
                    self.hear_of_removal();
                }
                self.tell_refusal(member_id, &greeted);
                self.peers.get_mut(&member_id).expect("its connections are closed with it").pass_over(picked);
                return false;
            }
            Err(error) => {
                tracing::warn!(peer = %format!("{member_id:x}"), %error, "a stream is refused");
                return false;
            }
        }
        let Some(Connection { way: Way::Reading { incoming, .. }, .. }) = self.connections.get_mut(&id) else {
            return false;
        };
        let mut came = Vec::new();
        let taken = incoming.messages(&mut came);
        let is_over = incoming.is_over();
        self.messages.extend(came.into_iter().map(|message| Arrived { id, message }));
        if let Err(error) = taken {
            tracing::warn!(peer = %format!("{member_id:x}"), %error, "a stream is closed");
            self.count(member_id, |traffic| traffic.receive_failures += 1);
            self.deactivate(member_id);
            return false;
        }
        !is_over
    }

    /// The connection `id` is closed: by the other side if `is_clean`, else by an error.
    pub fn closed(&mut self, id: ConnectionId, is_clean: bool, now: Duration) {
        let Some(connection) = self.connections.get(&id) else { return };
        let member_id = connection.member_id;
        self.lose(id);
        if !is_clean {
            self.deactivate(member_id);
        }
        self.look_whether_gone(member_id);
        self.dial_streams(now);
        self.post_next(member_id, now);
    }

    /// A connection ends, and with it what was on its way.
    fn lose(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(&id).filter(|connection| connection.loses_messages()) {
            self.lose_messages(connection.member_id);
        }
        self.drop_connection(id);
    }

    fn drop_connection(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.remove(&id) else { return };
        let Some(peer) = self.peers.get_mut(&connection.member_id) else { return };
        peer.posting.retain(|known| *known != id);
        for known in peer.reading.iter_mut().chain(&mut peer.writing) {
            known.take_if(|known| *known == id);
        }
    }

    /// Notes that the process of the member is gone, if that is so.
    fn look_whether_gone(&mut self, member_id: u64) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        let refuse = !peer.urls.is_empty() && peer.urls.iter().all(|url| peer.refused.contains(url));
        let is_gone = refuse && peer.connections().next().is_none();
        if is_gone && !peer.is_gone {
            self.gone.push(member_id);
        }
        peer.is_gone |= is_gone;
    }

    /// Says in the log why a member does not grant a stream.
    fn tell_refusal(&mut self, member_id: u64, greeted: &Greeted) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        if std::mem::replace(&mut peer.is_refusal_told, true) {
            return;
        }
        let (own, cluster) = (format!("{:x}", self.own.cluster_id), &greeted.cluster_id);
        let (id, status) = (format!("{member_id:x}"), greeted.status);
        if status == 412 && *cluster != own {
            tracing::warn!(
                "remote-peer-id" = id,
                "remote-peer-cluster-id" = cluster.as_str(),
                "local-member-cluster-id" = own,
                error = "cluster ID mismatch",
                "request sent was ignored by remote peer due to cluster ID mismatch"
            );
        } else {
            tracing::warn!("remote-peer-id" = id, "status-code" = status, "a peer grants no stream; it is asked again");
        }
    }

    fn count(&mut self, member_id: u64, add: impl FnOnce(&mut Traffic)) {
        if let Some(peer) = self.peers.get_mut(&member_id) {
            add(&mut peer.traffic);
        }
    }

    /// Messages to the member are lost.
    fn lose_messages(&mut self, member_id: u64) {
        self.unreachable.insert(member_id);
        self.count(member_id, |traffic| traffic.send_failures += 1);
    }

    fn hear_of_removal(&mut self) {
        self.is_just_removed |= !std::mem::replace(&mut self.is_removed, true);
    }

    fn activate(&mut self, member_id: u64, now: Duration) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        if peer.active_since.is_none() {
            peer.active_since = Some(now);
            self.has_changed = true;
            tracing::info!("peer-id" = %format!("{member_id:x}"), "peer became active");
        }
    }

    fn deactivate(&mut self, member_id: u64) {
        let Some(peer) = self.peers.get_mut(&member_id) else { return };
        if peer.active_since.take().is_some() {
            self.has_changed = true;
            peer.traffic.disconnections += 1;
            tracing::warn!("peer-id" = %format!("{member_id:x}"), "peer became inactive (message send to peer failed)");
        }
    }

    /// Dials for the streams that are missing, as far as they are due.
    fn dial_streams(&mut self, now: Duration) {
        let is_stranger = !self.is_member;
        let is_asked =
            |peer: &Peer| (peer.is_member || is_stranger) && peer.leaves_at.is_none() && !peer.urls.is_empty();
        for (member_id, peer) in self.peers.iter_mut().filter(|(_, peer)| is_asked(peer)) {
            for channel in CHANNELS {
                let dialling = &mut peer.dials[channel as usize];
                let is_early = dialling.last_at.is_some_and(|at| now < at + DIAL_EVERY);
                if is_early || dialling.attempt.is_some() || peer.reading[channel as usize].is_some() {
                    continue;
                }
                *dialling = Dialling { last_at: Some(now), attempt: Some(self.next_attempt) };
                self.attempts.insert(self.next_attempt, (*member_id, Purpose::Stream(channel), peer.picked));
                self.deeds.push(Deed::Dial { attempt: self.next_attempt, url: peer.url().to_owned() });
                self.next_attempt += 1;
            }
        }
    }

    /// Sends messages of raft, in order.
    pub fn send(&mut self, mut messages: Vec<Message>, now: Duration) {
        without_needless(&mut messages);
        messages.iter().for_each(|message| self.send_one(message, now));
    }

    fn send_one(&mut self, message: &Message, now: Duration) {
        let to = message.to;
        let Some(peer) = self.peers.get(&to) else { return };
        let [appends, others] = peer.writing;
        let stream = if message.kind == MessageKind::Append { appends.or(others) } else { others };
        if message.kind == MessageKind::Snapshot {
            match peer.lives.newest() {
                // It says that a state can be fetched, which only a member of this kind does.
                Some(life) if life != 0 && stream.is_some() => {}
                Some(0) => return self.states_to_post.push(message.clone()),
                _ => {
                    self.unsent_states.insert(to);
                    return;
                }
            }
        }
        let Some(id) = stream else { return self.post(message, now) };
        let Some(Connection { way: Way::Writing { outgoing }, .. }) = self.connections.get_mut(&id) else {
            unreachable!("streams to members are written")
        };
        let had_bytes = outgoing.has_bytes();
        if !outgoing.push(message) {
            let waiting = outgoing.waiting();
            tracing::debug!(kind = ?message.kind, waiting, "a message to another member finds no room");
            self.lose_messages(to);
            if message.kind == MessageKind::Snapshot {
                self.unsent_states.insert(to);
            }
        } else if !had_bytes {
            self.deeds.push(Deed::Write(id));
        }
    }

    /// Takes the messages with which states go to members of etcd, in a request of their own.
    pub fn take_states_to_post(&mut self) -> Vec<Message> {
        std::mem::take(&mut self.states_to_post)
    }

    /// The state for `to` does not leave.
    pub fn state_is_unsent(&mut self, to: u64) {
        self.unsent_states.insert(to);
    }

    /// Whether the member is one of etcd's, as far as it has been heard of.
    pub fn is_of_etcd(&self, member_id: u64) -> bool {
        self.peers.get(&member_id).and_then(|peer| peer.lives.newest()) == Some(0)
    }

    /// How many bytes of proposals can be forwarded to the member: what finds no room is lost, and nobody sends a
    /// proposal again. The other half of the queue is for all else. **Units** bytes.
    pub fn room_for(&mut self, member_id: u64) -> usize {
        let room = self.room_of(member_id);
        (self.awaits_room, self.has_room_again) = ((room == 0).then_some(member_id), false);
        room
    }

    /// Nothing is forwarded to anybody: no room is waited for.
    pub fn forward_nothing(&mut self) {
        (self.awaits_room, self.has_room_again) = (None, false);
    }

    /// Takes what is to be written to the connection `id` next, in order.
    pub fn take_bytes(&mut self, id: ConnectionId, now: Duration, out: &mut Vec<Bytes>) {
        match self.connections.get_mut(&id).map(|connection| &mut connection.way) {
            Some(Way::Writing { outgoing }) => outgoing.take(now, out),
            Some(Way::Reading { request, .. }) => out.extend(request.take()),
            Some(Way::Posting { request, .. }) => out.append(request),
            None => {}
        }
    }

    /// So many bytes were written to the connection `id`.
    pub fn written(&mut self, id: ConnectionId, bytes: usize, now: Duration) {
        let to = self.connections.get(&id).map(|connection| connection.member_id);
        to.into_iter().for_each(|to| self.count(to, |traffic| traffic.sent_bytes += bytes as u64));
        if let Some(Connection { way: Way::Writing { outgoing }, .. }) = self.connections.get_mut(&id) {
            outgoing.written(bytes, now);
        }
        self.has_room_again |= to.is_some_and(|to| self.awaits_room == Some(to) && self.room_of(to) > 0);
    }

    /// Looks after what is due with time: heartbeats, silence, dials. Called about once in [`DIAL_EVERY`].
    pub fn pass(&mut self, now: Duration) {
        let Options { silence_max, stall_max, .. } = self.options;
        let has_left = |peer: &Peer| peer.leaves_at.is_some_and(|at| at <= now);
        let gone: Vec<u64> = self.peers.iter().filter(|(_, peer)| has_left(peer)).map(|(id, _)| *id).collect();
        gone.into_iter().for_each(|id| self.forget(id));
        let mut ended = Vec::new();
        for (id, connection) in &mut self.connections {
            let is_over = match &mut connection.way {
                Way::Reading { heard_at, .. } => now.saturating_sub(*heard_at) >= silence_max,
                Way::Writing { outgoing } => {
                    outgoing.beat(now);
                    if outgoing.has_bytes() {
                        self.deeds.push(Deed::Write(*id));
                    }
                    outgoing.waits_for(now) >= stall_max
                }
                Way::Posting { is_waiting, since, .. } => {
                    let most = if *is_waiting { silence_max } else { IDLE_MAX };
                    now.saturating_sub(*since) >= most
                }
            };
            let is_idle = matches!(&connection.way, Way::Posting { is_waiting: false, .. });
            if is_over {
                ended.push((*id, connection.member_id, is_idle));
            }
        }
        for (id, member_id, is_idle) in ended {
            self.deeds.push(Deed::Close(id));
            self.lose(id);
            if !is_idle {
                tracing::warn!("peer-id" = %format!("{member_id:x}"), "nothing moves on a connection: it is closed");
                self.deactivate(member_id);
            }
        }
        self.dial_streams(now);
    }

    /// What is to be done with sockets, in order.
    pub fn take_deeds(&mut self) -> Vec<Deed> {
        std::mem::take(&mut self.deeds)
    }

    /// The messages that have arrived, in order for each connection.
    pub fn take_messages(&mut self) -> Vec<Arrived> {
        std::mem::take(&mut self.messages)
    }

    /// What has passed between this member and each other one.
    pub fn traffic(&self) -> impl Iterator<Item = (u64, Traffic)> {
        self.peers.iter().map(|(id, peer)| (*id, Traffic { is_active: peer.active_since.is_some(), ..peer.traffic }))
    }

    /// How many members are connected.
    pub fn active(&self) -> usize {
        self.peers.values().filter(|peer| peer.active_since.is_some()).count()
    }

    /// The peer URLs of a member, as far as it is known.
    pub fn urls(&self, member_id: u64) -> Vec<String> {
        self.peers.get(&member_id).map_or_else(Vec::new, |peer| peer.urls.clone())
    }

    /// Whether there is something for raft.
    pub fn has_news(&self) -> bool {
        !self.messages.is_empty()
            || !self.gone.is_empty()
            || self.is_just_removed
            || self.has_changed
            || self.has_room_again
    }

    /// Members to whom messages were lost.
    pub fn take_unreachable(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.unreachable)
    }

    /// Members who could not be told of a state.
    pub fn take_unsent_states(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.unsent_states)
    }

    /// Members whose processes are gone.
    pub fn take_gone(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.gone)
    }

    /// Whether another member has said that this one was removed: it ends for good.
    pub fn is_removed(&self) -> bool {
        self.is_removed
    }

    /// Whether another member has said that since the last look.
    pub fn take_removed(&mut self) -> bool {
        std::mem::take(&mut self.is_just_removed)
    }

    /// Since when members are connected, if that has changed.
    pub fn take_active(&mut self) -> Option<BTreeMap<u64, Duration>> {
        let active = || self.peers.iter().filter_map(|(id, peer)| Some((*id, peer.active_since?))).collect();
        std::mem::take(&mut self.has_changed).then(active)
    }
}
