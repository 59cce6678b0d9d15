//! Runs on: raft core.
//!
//! Drives the sockets of the connections with other members, on raft's own thread: a message reaches raft without a
//! step between threads, and those of a turn leave in one write for each stream.
//!
//! Each connection has a task, which reads, and writes what `links` has gathered for it. A task that has brought much
//! yields, so raft takes that before much more is read.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    io::{self, IoSlice},
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use consensus::peer::hello::Remote;
use tokio::{
    io::{AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{Notify, mpsc},
    task::spawn_local,
    time::MissedTickBehavior,
};

use crate::{
    apply::fatal::Fatal,
    clock::Clock,
    metrics::registry::Registry,
    peer::{
        dial::dial,
        exchange,
        links::{ConnectionId, DIAL_EVERY, Deed, Links, Options},
        message::{ToPeers, ToStates},
        port::hello,
    },
    raft::machine::Raft,
    shared::{Cluster, Shared},
    wire::stream::Stream,
};

/// What is read at once. **Units** bytes.
const READ_BYTES: usize = 64 << 10;
/// How long after the start connections hasten the first election. **Source** etcd v3.7.1
/// `server/etcdserver/server.go adjustTicks`.
const HASTENS_FOR: Duration = Duration::from_secs(5);
/// Pieces that are written at once.
const PIECES_MAX: usize = 64;

/// A connection's task, as others see it.
#[derive(Debug, Default)]
struct Socket {
    /// There is something to write, or it is to end.
    wake: Notify,
    is_closing: Cell<bool>,
}

struct State {
    shared: Arc<Shared>,
    clock: Clock,
    /// How long a connection may take to be established.
    dial_wait: Duration,
    /// Until when connections with several others hasten the first election.
    hastens_until: Cell<Duration>,
    links: RefCell<Links>,
    sockets: RefCell<HashMap<ConnectionId, Rc<Socket>>>,
    /// There is something for raft.
    news: Notify,
    /// The members that `links` knows.
    members: RefCell<Arc<Cluster>>,
    states: mpsc::Sender<ToStates>,
    registry: Arc<Registry>,
}

/// The connections with other members, as raft's loop sees them.
#[derive(Clone)]
pub struct Peers(Rc<State>);

impl Peers {
    /// The connections of this member, on this thread. Connections that its peer port takes come by `inbox`.
    pub fn start(
        shared: Arc<Shared>,
        clock: Clock,
        options: Options,
        (dial_wait, hastens): (Duration, bool),
        (inbox, states): (mpsc::Receiver<ToPeers>, mpsc::Sender<ToStates>),
        registry: Arc<Registry>,
    ) -> Self {
        let hastens_until = Cell::new(if hastens { clock.now() + HASTENS_FOR } else { Duration::ZERO });
        let links = RefCell::new(Links::new(hello(&shared), options));
        let state = Rc::new(State {
            shared,
            clock,
            dial_wait,
            hastens_until,
            links,
            sockets: RefCell::default(),
            news: Notify::new(),
            members: RefCell::default(),
            states,
            registry,
        });
        spawn_local(receive(Rc::clone(&state), inbox));
        spawn_local(pass(Rc::clone(&state)));
        Self(state)
    }

    /// Knows ways to members before they are known by the log.
    pub fn add_remotes(&self, remotes: Vec<Remote>) {
        let mut links = self.0.links.borrow_mut();
        remotes.into_iter().for_each(|remote| links.add_remote(remote));
    }

    /// Resolves when there is something for raft. It may resolve once more without that.
    pub async fn news(&self) {
        self.0.news.notified().await;
    }

    /// Gives raft what has come from other members.
    ///
    /// **Errors** the member must stop.
    pub fn deliver(&self, raft: &mut Raft, now: Duration) -> Result<(), Fatal> {
        let state = &self.0;
        state.look_at_members(now);
        let links = &mut *state.links.borrow_mut();
        if links.active() > 1 && now < state.hastens_until.get() {
            tracing::info!("initialized peer connections; fast-forwarding election ticks");
            state.hastens_until.set(Duration::ZERO);
            raft.hasten_first_election();
        }
        let delivered = exchange::deliver(links, (raft, &state.shared), now, |_| {})?;
        for error in delivered.refused {
            tracing::warn!(%error, "a message of another member is refused");
        }
        for message in delivered.states {
            let urls = links.urls(message.from);
            state.tell_states(ToStates::Offered { message: Box::new(message), urls });
        }
        state.act(links);
        Ok(())
    }

    /// Takes from raft what it has for other members.
    pub fn collect(&self, raft: &mut Raft, now: Duration) {
        let messages = raft.take_messages();
        if !messages.is_empty() {
            let links = &mut *self.0.links.borrow_mut();
            links.send(messages, now);
            for message in links.take_states_to_post() {
                let (to, urls) = (message.to, links.urls(message.to));
                if !self.0.tell_states(ToStates::Post { message: Box::new(message), urls }) {
                    links.state_is_unsent(to);
                }
            }
            self.0.act(links);
        }
        for to in raft.take_wanted_states() {
            let is_posted = self.0.links.borrow().is_of_etcd(to);
            self.0.tell_states(ToStates::Wanted { to, is_posted });
        }
    }
}

impl State {
    /// Tells `links` of the members, if they are others than before.
    fn look_at_members(&self, now: Duration) {
        let (links, known) = (&mut *self.links.borrow_mut(), &mut *self.members.borrow_mut());
        if exchange::look_at_members(links, &self.shared, known, now) {
            let own = self.shared.identity.member_id;
            let others = known.members.iter().map(|member| member.id).filter(|id| *id != own);
            self.registry.peers.set_members(others);
        }
    }

    /// Publishes what has passed between this member and each other one.
    fn count(&self) {
        let counters = self.registry.peers.all();
        for (id, traffic) in self.links.borrow().traffic() {
            let Some(of) = counters.get(&id) else { continue };
            of.is_active.set(u64::from(traffic.is_active));
            of.disconnections.set(traffic.disconnections);
            of.sent_bytes.set(traffic.sent_bytes);
            of.received_bytes.set(traffic.received_bytes);
            of.send_failures.set(traffic.send_failures);
            of.receive_failures.set(traffic.receive_failures);
        }
    }

    /// Returns whether there was room. Raft asks again for what finds none.
    fn tell_states(&self, message: ToStates) -> bool {
        let is_told = self.states.try_send(message).is_ok();
        if !is_told {
            tracing::debug!("too much waits for a state");
        }
        is_told
    }

    /// Does what `links` wants done with sockets.
    fn act(self: &Rc<Self>, links: &mut Links) {
        for deed in links.take_deeds() {
            match deed {
                Deed::Dial { attempt, url } => drop(spawn_local(connect(Rc::clone(self), attempt, url))),
                Deed::Write(id) => {
                    if let Some(socket) = self.sockets.borrow().get(&id) {
                        socket.wake.notify_one();
                    }
                }
                Deed::Close(id) => {
                    if let Some(socket) = self.sockets.borrow_mut().remove(&id) {
                        socket.is_closing.set(true);
                        socket.wake.notify_one();
                    }
                }
            }
        }
        if links.has_news() {
            self.news.notify_one();
        }
    }

    /// Lets something happen to `links`, and does what it wants then.
    fn tell(self: &Rc<Self>, happens: impl FnOnce(&mut Links, Duration)) {
        let links = &mut *self.links.borrow_mut();
        happens(links, self.clock.now());
        self.act(links);
    }

    fn add_socket(&self, id: ConnectionId) -> Rc<Socket> {
        let socket = Rc::<Socket>::default();
        self.sockets.borrow_mut().insert(id, Rc::clone(&socket));
        socket
    }
}

/// Looks after what is due with time.
async fn pass(state: Rc<State>) {
    let mut ticks = tokio::time::interval(DIAL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = state.clock.now();
        state.look_at_members(now);
        state.tell(Links::pass);
        state.count();
    }
}

/// Takes what comes from the peer port.
async fn receive(state: Rc<State>, mut inbox: mpsc::Receiver<ToPeers>) {
    while let Some(message) = inbox.recv().await {
        let now = state.clock.now();
        state.look_at_members(now);
        match message {
            ToPeers::Stream { stream, rest, id, channel, from } => {
                let Ok(stream) = stream.unpark() else { continue };
                let socket = state.add_socket(id);
                state.tell(|links, now| links.attach(channel, from, id, now));
                spawn_local(hold(Rc::clone(&state), (id, socket), stream, rest));
            }
            ToPeers::Posted { message, bytes, from, id, taken } => {
                state.tell(|links, _| {
                    // Who has posted it may be gone.
                    taken.send(links.posted(from, (*message, bytes), id)).unwrap_or_default();
                });
            }
            ToPeers::Remote(remote) => state.links.borrow_mut().add_remote(remote),
        }
    }
}

/// Makes a connection, and holds it.
async fn connect(state: Rc<State>, attempt: u64, url: String) {
    let dialled = tokio::time::timeout(state.dial_wait, dial(&url, state.shared.limits.dial_from)).await;
    let stream = match dialled {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            let is_refused = matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound);
            return state.tell(|links, now| links.failed(attempt, is_refused, &error.to_string(), now));
        }
        Err(_late) => {
            return state.tell(|links, now| links.failed(attempt, false, "it does not answer", now));
        }
    };
    let id = state.shared.connection_numbers.fetch_add(1, Ordering::Relaxed);
    let socket = state.add_socket(id);
    state.tell(|links, now| links.connected(attempt, id, now));
    hold(state, (id, socket), stream, BytesMut::new()).await;
}

/// Reads and writes one connection until it ends.
async fn hold(state: Rc<State>, (id, socket): (ConnectionId, Rc<Socket>), stream: Stream, rest: BytesMut) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (mut buffer, mut queue, mut taken) = (rest, VecDeque::new(), Vec::new());
    // An encrypted connection may hold back the end of what it was given until it is flushed.
    let mut is_unflushed = false;
    let ended = loop {
        if socket.is_closing.get() {
            break None;
        }
        if !buffer.is_empty() {
            state.tell(|links, now| links.received(id, &buffer, now));
            let may_be_more = buffer.len() >= READ_BYTES / 2;
            buffer.clear();
            if may_be_more {
                tokio::task::yield_now().await;
            }
            continue;
        }
        state.links.borrow_mut().take_bytes(id, state.clock.now(), &mut taken);
        queue.extend(taken.drain(..));
        buffer.reserve(READ_BYTES);
        tokio::select! {
            biased;
            written = write(&mut writer, &mut queue), if !queue.is_empty() || is_unflushed => match written {
                Ok(bytes) => {
                    is_unflushed = bytes > 0;
                    state.tell(|links, now| links.written(id, bytes, now));
                }
                Err(error) => break Some(Err(error)),
            },
            read = reader.read_buf(&mut buffer) => match read {
                Ok(0) => break Some(Ok(())),
                Ok(_) => {}
                Err(error) => break Some(Err(error)),
            },
            () = socket.wake.notified() => {}
        }
    };
    if let Some(ended) = ended {
        if let Err(error) = &ended {
            tracing::debug!(%error, "a connection with another member has failed");
        }
        state.sockets.borrow_mut().remove(&id);
        state.tell(|links, now| links.closed(id, ended.is_ok(), now));
    }
}

/// Writes of `queue` what the socket takes at once, or flushes if there is nothing in it. Returns how much was taken.
/// Dropping the future loses nothing.
async fn write(writer: &mut (impl AsyncWrite + Unpin), queue: &mut VecDeque<Bytes>) -> io::Result<usize> {
    if queue.is_empty() {
        return writer.flush().await.map(|()| 0);
    }
    let count = {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let filled = slices.iter_mut().zip(queue.iter()).map(|(slice, piece)| *slice = IoSlice::new(piece)).count();
        writer.write_vectored(&slices[..filled]).await?
    };
    if count == 0 {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut left = count;
    while left > 0 {
        let first = queue.front_mut().expect("what was written was there");
        let here = first.len().min(left);
        first.advance(here);
        left -= here;
        if first.is_empty() {
            queue.pop_front();
        }
    }
    Ok(count)
}
