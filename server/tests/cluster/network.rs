//! Simulated TCP between members: bytes in order, late, cut anywhere, held up, reset, half open.
//!
//! Each member drives its connections with the machine that drives real ones (`server::peer::links`): it dials, asks
//! for streams, posts, gives up. Here is what is between two of them. A direction that is blocked holds bytes back, as
//! TCP does, until it is free again or an end gives up. A reset loses what had not arrived. Whose machine is without
//! power answers nothing; where only the process is gone, the machine resets and refuses. A process that stands still
//! has its connections made all the same.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use consensus::peer::{
    hello::{Asked, Channel, Remote, Verdict},
    http1::{self, Body},
};
use engine::disk::sim::Random;
use server::peer::{links::Deed, port};

use super::{
    member::member_of,
    plan::sequence,
    world::{Event, World},
};

/// What one direction of a connection holds that the other end has not taken.
const KERNEL_BYTES: usize = 256 << 10;
/// How long a connection may take to be established.
const DIAL_WAIT: Duration = Duration::from_secs(2);
/// Between two tries of the system to reach a machine.
const KNOCK_EVERY: Duration = Duration::from_millis(200);

/// Appends, and everything else, of one member to another: each may be blocked alone.
pub(crate) type Direction = (usize, usize, bool);

/// One end of a connection: a machine, and the life of its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct End {
    at: usize,
    life: u64,
}

/// Bytes from one end to the other.
#[derive(Debug, Default)]
struct Pipe {
    /// Taken from the sender, and not by the system yet.
    waiting: VecDeque<Bytes>,
    /// Pieces on their way, in order, with the time at which each arrives; `None` is the end.
    flying: VecDeque<(Duration, Option<Bytes>)>,
    flying_bytes: usize,
    last_arrival: Duration,
    is_ended: bool,
}

/// A connection. The first end has dialled.
#[derive(Debug)]
struct Connection {
    ends: [End; 2],
    pipes: [Pipe; 2],
    /// Whether it carries appends, once that is known.
    is_of_appends: bool,
    /// What the end that was dialled has read of requests; `None` once it is a stream.
    asked: Option<Reading>,
}

/// A request that is read.
#[derive(Debug, Default)]
struct Reading {
    buffer: BytesMut,
    head: Option<(http1::Request, Body)>,
    body: BytesMut,
}

/// See the head of this file.
pub(crate) struct Network {
    connections: BTreeMap<u64, Connection>,
    blocked: BTreeSet<Direction>,
    next: u64,
    random: Random,
}

impl Network {
    pub(crate) fn new(seed: u64) -> Self {
        let random = sequence(seed, "network", 0);
        Self { connections: BTreeMap::new(), blocked: BTreeSet::new(), next: 1, random }
    }

    pub(crate) fn block(&mut self, direction: Direction, is_blocked: bool) {
        if is_blocked {
            self.blocked.insert(direction);
        } else {
            self.blocked.remove(&direction);
        }
    }

    /// Whether nothing passes from one machine to another.
    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        [false, true].iter().any(|appends| self.blocked.contains(&(from, to, *appends)))
    }

    /// Connections with an end on the machine at `at`.
    fn of(&self, at: usize) -> Vec<u64> {
        let is_of = |(_, connection): &(&u64, &Connection)| connection.ends.iter().any(|end| end.at == at);
        self.connections.iter().filter(is_of).map(|(id, _)| *id).collect()
    }
}

impl World {
    /// Does what the member at `at` wants done with its connections.
    pub(crate) fn act(&mut self, at: usize) {
        let life = self.seats[at].life;
        let Some(member) = &mut self.seats[at].member else { return };
        for deed in member.links.take_deeds() {
            match deed {
                Deed::Dial { attempt, url } => {
                    let late = self.late();
                    let until = self.now + DIAL_WAIT;
                    self.plan(late, Event::Dial { at, life, attempt, to: id_of(&url), until });
                }
                Deed::Write(id) => self.pump(id, at),
                Deed::Close(id) => self.end(id, at),
            }
        }
    }

    /// A member that has heard of no membership yet knows those of its flags, whether they run at its start or not.
    pub(crate) fn know_others(&mut self, at: usize) {
        let others: Vec<u64> = self.seats.iter().filter_map(|seat| seat.id).collect();
        let has_joined = self.seats[at].id > Some(self.plan.members as u64);
        let Some(member) = self.seats[at].member.as_mut().filter(|_| has_joined) else { return };
        if member.shared.cluster.load().members.is_empty() {
            for id in others {
                member.links.add_remote(Remote { member_id: id, peer_urls: member_of(id).peer_urls });
            }
        }
    }

    fn late(&mut self) -> Duration {
        let random = &mut self.network.random;
        Duration::from_micros(if random.chance(1, 200) { random.below(80_000) } else { 200 + random.below(1500) })
    }

    /// A member tries to connect to another one.
    pub(crate) fn dial(&mut self, (at, life): (usize, u64), attempt: u64, to: u64, until: Duration) {
        let event = Event::Dial { at, life, attempt, to, until };
        if self.seats[at].life != life || !self.is_awake(at, event) {
            return;
        }
        let there = self.seat_of(to);
        let is_silent = there.is_some_and(|there| {
            self.seats[there].is_off || self.network.is_blocked(at, there) || self.network.is_blocked(there, at)
        });
        if is_silent && self.now < until {
            return self.plan(KNOCK_EVERY, event);
        }
        let to_life = |there: usize| self.seats[there].member.as_ref().map(|_| (there, self.seats[there].life));
        let reached = there.filter(|_| !is_silent).and_then(to_life);
        let now = self.seats[at].clock.now();
        let links = &mut self.seats[at].member.as_mut().expect("it is awake").links;
        let Some((there, there_life)) = reached else {
            links.failed(attempt, !is_silent, "nobody is there", now);
            self.act(at);
            return self.step(at);
        };
        let id = self.network.next;
        self.network.next += 1;
        let ends = [End { at, life }, End { at: there, life: there_life }];
        let (pipes, asked) = (Default::default(), Some(Reading::default()));
        self.network.connections.insert(id, Connection { ends, pipes, is_of_appends: false, asked });
        links.connected(attempt, id, now);
        self.act(at);
    }

    /// Takes from the member at `at` what is to be written to a connection, as far as there is room.
    fn pump(&mut self, id: u64, at: usize) {
        let Some(connection) = self.network.connections.get_mut(&id) else { return };
        let way = usize::from(connection.ends[0].at != at);
        let mut taken = Vec::new();
        let seat = &mut self.seats[at];
        if let Some(member) = seat.member.as_mut().filter(|_| connection.ends[way].life == seat.life) {
            let now = seat.clock.now();
            member.links.take_bytes(id, now, &mut taken);
            let pipe = &mut connection.pipes[way];
            pipe.waiting.extend(taken.drain(..));
            let mut written = 0;
            while pipe.flying_bytes + written < KERNEL_BYTES
                && let Some(bytes) = pipe.waiting.pop_front()
            {
                written += bytes.len();
                taken.push(bytes);
            }
            member.links.written(id, written, now);
        }
        self.fly(id, way, taken);
    }

    /// Sends bytes on their way, mostly whole, at times in pieces.
    fn fly(&mut self, id: u64, way: usize, bytes: Vec<Bytes>) {
        let whole = bytes.concat();
        let mut bytes = Bytes::from(whole);
        while !bytes.is_empty() {
            let random = &mut self.network.random;
            let len = if random.chance(1, 8) { 1 + random.below(bytes.len() as u64) } else { bytes.len() as u64 };
            let piece = bytes.split_to(usize::try_from(len).expect("small"));
            let arrival = self.now + self.late();
            let connection = self.network.connections.get_mut(&id).expect("it is there");
            let pipe = &mut connection.pipes[way];
            pipe.last_arrival = pipe.last_arrival.max(arrival);
            pipe.flying_bytes += piece.len();
            pipe.flying.push_back((pipe.last_arrival, Some(piece)));
            let at = pipe.last_arrival;
            self.plan_at(at, Event::Arrives { connection: id, way });
        }
    }

    /// The member at `at` closes its end. What it has written still arrives.
    fn end(&mut self, id: u64, at: usize) {
        let arrival = self.now + self.late();
        let Some(connection) = self.network.connections.get_mut(&id) else { return };
        let way = usize::from(connection.ends[0].at != at);
        let pipe = &mut connection.pipes[way];
        if std::mem::replace(&mut pipe.is_ended, true) {
            return;
        }
        pipe.waiting.clear();
        pipe.last_arrival = pipe.last_arrival.max(arrival);
        pipe.flying.push_back((pipe.last_arrival, None));
        let at = pipe.last_arrival;
        // The other direction is of no use any more.
        connection.pipes[1 - way].waiting.clear();
        self.plan_at(at, Event::Arrives { connection: id, way });
    }

    /// What has come on a connection by now arrives.
    pub(crate) fn arrives(&mut self, id: u64, way: usize) {
        let Some(connection) = self.network.connections.get(&id) else { return };
        let (from, to) = (connection.ends[way], connection.ends[1 - way]);
        if self.network.blocked.contains(&(from.at, to.at, connection.is_of_appends)) {
            return;
        }
        if self.seats[to.at].life != to.life || self.seats[to.at].member.is_none() {
            // Its process is gone. A machine with power says so to whoever still sends.
            if self.seats[to.at].is_off {
                return;
            }
            return self.reset(id, from, to);
        }
        if self.seats[to.at].paused_until > self.now {
            return self.plan_at(self.seats[to.at].paused_until, Event::Arrives { connection: id, way });
        }
        let mut came = Vec::new();
        let mut is_ended = false;
        let pipe = &mut self.network.connections.get_mut(&id).expect("just seen").pipes[way];
        while let Some((at, piece)) = pipe.flying.front()
            && *at <= self.now
        {
            match piece {
                Some(piece) => {
                    pipe.flying_bytes -= piece.len();
                    came.push(piece.clone());
                }
                None => is_ended = true,
            }
            pipe.flying.pop_front();
        }
        came.into_iter().for_each(|piece| self.land(id, way, &piece));
        if is_ended {
            self.closed(id, to, true);
        }
        self.act(to.at);
        self.pump(id, from.at);
        self.step(to.at);
    }

    /// A piece arrives at the end to which `way` leads.
    fn land(&mut self, id: u64, way: usize, piece: &[u8]) {
        let Some(connection) = self.network.connections.get_mut(&id) else { return };
        let to = connection.ends[1 - way];
        if way == 0
            && let Some(reading) = &mut connection.asked
        {
            reading.buffer.extend_from_slice(piece);
            return self.answer_requests(id);
        }
        let seat = &mut self.seats[to.at];
        let now = seat.clock.now();
        if let Some(member) = &mut seat.member {
            member.links.received(id, piece, now);
        }
    }

    /// The member that was dialled answers the requests that have come, as the peer port does.
    fn answer_requests(&mut self, id: u64) {
        loop {
            let Some(connection) = self.network.connections.get_mut(&id) else { return };
            let end = connection.ends[1];
            let seat = &mut self.seats[end.at];
            let Some(member) = seat.member.as_mut().filter(|_| seat.life == end.life) else { return };
            let Some(reading) = &mut connection.asked else { return };
            if reading.head.is_none() {
                reading.head = http1::take_request(&mut reading.buffer).expect("honest members");
            }
            let Some((head, body)) = &mut reading.head else { return };
            while let Some(part) = body.take(&mut reading.buffer).expect("honest members") {
                reading.body.extend_from_slice(&part);
            }
            if !body.is_over() {
                return;
            }
            let (head, body) = (head.clone(), std::mem::take(&mut reading.body).freeze());
            reading.head = None;
            let Some(Verdict { remote, asked }) = port::verdict(&member.shared, &head) else {
                return self.end(id, end.at);
            };
            if let Some(remote) = remote {
                member.links.add_remote(remote);
            }
            let now = seat.clock.now();
            let answer = match asked {
                Ok(Asked::Stream { channel, from }) => {
                    connection.asked = None;
                    connection.is_of_appends = channel == Channel::Appends;
                    let life = consensus::peer::hello::life(&head.headers);
                    return member.links.attach(channel, (from, life), id, now);
                }
                Ok(Asked::Message) => match port::posted(&head, body.clone()) {
                    Ok(Some((message, from))) => {
                        if member.links.posted(from, (message, body.len()), id) {
                            204
                        } else {
                            500
                        }
                    }
                    Ok(None) => 204,
                    Err((status, _)) => status,
                },
                Ok(Asked::Snapshot) => 501,
                Err(refusal) => refusal.status,
            };
            let own = port::hello(&member.shared);
            let text = format!("HTTP/1.1 {answer} -\r\nX-Server-Version: {}\r\nContent-Length: 0\r\n\r\n", own.version);
            self.fly(id, 1, vec![Bytes::from(text)]);
        }
    }

    /// An end of a connection hears that it is over.
    fn closed(&mut self, id: u64, end: End, is_clean: bool) {
        let way = {
            let Some(connection) = self.network.connections.get(&id) else { return };
            usize::from(connection.ends[0] != end)
        };
        let seat = &mut self.seats[end.at];
        let now = seat.clock.now();
        if let Some(member) = seat.member.as_mut().filter(|_| seat.life == end.life) {
            member.links.closed(id, is_clean, now);
        }
        let connection = self.network.connections.get_mut(&id).expect("just seen");
        connection.pipes[way].is_ended = true;
        self.network.connections.remove(&id);
        self.act(end.at);
    }

    /// The connection does not exist any more for the machine `by`, at the other side of `end`, which hears of that.
    fn reset(&mut self, id: u64, end: End, by: End) {
        if self.network.connections.contains_key(&id) && !self.network.is_blocked(by.at, end.at) {
            self.closed(id, end, false);
            self.step(end.at);
        }
    }

    /// All connections of a machine are reset: both sides hear of it, unless they have no power.
    pub(crate) fn reset_links_of(&mut self, at: usize) {
        for id in self.network.of(at) {
            let Some(connection) = self.network.connections.remove(&id) else { continue };
            for end in connection.ends {
                let seat = &mut self.seats[end.at];
                let now = seat.clock.now();
                if let Some(member) = seat.member.as_mut().filter(|_| seat.life == end.life) {
                    member.links.closed(id, false, now);
                    self.act(end.at);
                }
            }
        }
    }

    /// The process at `at` is gone: its machine ends its connections, which the others hear where nothing is blocked.
    pub(crate) fn end_links_of(&mut self, at: usize) {
        for id in self.network.of(at) {
            self.end(id, at);
        }
    }

    /// Nothing is blocked any more.
    pub(crate) fn unblock_all(&mut self) {
        for direction in self.network.blocked.clone() {
            self.unblock(direction, false);
        }
    }

    /// A direction is free again: what was held up arrives, or both sides have given up the connection.
    pub(crate) fn unblock(&mut self, direction: Direction, is_reset: bool) {
        self.network.block(direction, false);
        let (from, to, is_of_appends) = direction;
        let is_it = |connection: &Connection, way: usize| {
            let ends = (connection.ends[way].at, connection.ends[1 - way].at);
            ends == (from, to) && connection.is_of_appends == is_of_appends
        };
        for id in self.network.of(from) {
            for way in [0, 1] {
                let connection = self.network.connections.get(&id);
                if !connection.is_some_and(|connection| is_it(connection, way)) {
                    continue;
                }
                if is_reset {
                    let [one, other] = self.network.connections[&id].ends;
                    self.closed(id, one, false);
                    let seat = &mut self.seats[other.at];
                    let now = seat.clock.now();
                    if let Some(member) = seat.member.as_mut().filter(|_| seat.life == other.life) {
                        member.links.closed(id, false, now);
                    }
                    self.act(other.at);
                } else {
                    self.plan(Duration::ZERO, Event::Arrives { connection: id, way });
                }
            }
        }
    }
}

/// The member whose peer URL this is.
fn id_of(url: &str) -> u64 {
    let host = url.split("//").nth(1).and_then(|rest| rest.split(':').next()).unwrap_or_default();
    host.rsplit('.').next().and_then(|last| last.parse().ok()).unwrap_or(0)
}
