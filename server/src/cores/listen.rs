//! Runs on: core 0.
//!
//! Owns the listening addresses, and chooses the core that serves a new connection: the one with the fewest
//! connections.
//!
//! Invariants:
//! - An address is bound before the member begins, and nobody is served before it is ready: until then connections
//!   wait in the backlog. Other members are turned away while this one asks them who it is.
//! - Beyond the bound on connections nobody is accepted either. Who comes then waits in the backlog, as with etcd, and
//!   one that is idle is asked for its place: other members' connections give it (`wire::http1::Place`). A connection
//!   that was accepted and whose core does not take messages is closed, with a line.
//! - A port for clients is closed at the first word of an end. Ports for metrics stay, so that probes are told.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use engine::disk::offline;
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{
    net::{TcpListener, TcpStream, UnixListener},
    sync::{mpsc, watch},
};

use super::{
    connection_loop::{self, Serving},
    outbox::{ToCore, Way},
};
use crate::{
    shared::Connections,
    wire::{
        channel::Socket as Channel,
        socket::{Connection, Serves},
        stream::Stream,
    },
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed, mostly because the process had no free descriptor; and between two looks for
/// room.
const PAUSE: Duration = Duration::from_millis(10);
/// Silence after which a client's host is asked whether it is still there, and the time between two such questions.
/// **Source** etcd v3.7.1 `client/pkg/transport/keepalive_listener.go`.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A place to listen at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// An address of TCP.
    Tcp(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// A bound address.
pub struct Listener {
    socket: Bound,
    port: Port,
}

/// What a port serves, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// What it serves.
    pub serves: Serves,
    /// Whether it takes clients without TLS.
    pub is_plain: bool,
    /// Whether it takes clients with TLS. At least one of them is true.
    pub is_secure: bool,
}

enum Bound {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

/// The connections of one kind of port, and their bound.
#[derive(Clone)]
pub struct Room {
    /// The connections there are.
    pub connections: Arc<Connections>,
    /// How many there may be.
    pub connections_max: usize,
}

impl Room {
    /// Waits until one more connection may come. `is_told` says whether the log says already that there is no room.
    async fn has_room(&self, is_told: &mut bool) {
        let is_full = || self.connections.total_and_least().0 >= self.connections_max;
        if !is_full() {
            *is_told = false;
        }
        while is_full() {
            if !std::mem::replace(is_told, true) {
                tracing::warn!(connections = self.connections_max, "no more connections are accepted until one ends");
            }
            self.connections.place_wanted().notify_one();
            tokio::time::sleep(PAUSE).await;
        }
    }
}

impl Listener {
    /// Binds an address. Like Go, it always sets SO_REUSEADDR, whatever the flag says. So a restart does not wait until
    /// the old connections are forgotten. Like etcd, it takes the place of an old Unix socket.
    ///
    /// **Errors** the socket's.
    pub fn bind(address: &Address, port: Port, reuse_port: bool) -> io::Result<Self> {
        assert!(port.is_plain || port.is_secure, "a port is for somebody");
        let socket = match address {
            Address::Tcp(address) => Bound::Tcp(bind_tcp(*address, reuse_port)?),
            Address::Unix(path) => {
                remove(path)?;
                Bound::Unix(UnixListener::bind(path)?, path.clone())
            }
        };
        Ok(Self { socket, port })
    }

    /// The bound address, with the port that was chosen, or the path.
    pub fn address(&self) -> String {
        match &self.socket {
            Bound::Tcp(listener) => {
                listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
            }
            Bound::Unix(_, path) => path.display().to_string(),
        }
    }

    /// What the port serves, and to whom.
    pub fn port(&self) -> Port {
        self.port
    }

    /// Closes each connection as soon as it comes. It ends when it is dropped.
    pub async fn decline(&self) -> Infallible {
        loop {
            drop(self.socket.accept().await);
        }
    }

    /// Accepts connections until `end` becomes true.
    pub async fn accept(self, room: Room, next: Next, mut end: watch::Receiver<bool>) {
        let Port { serves, is_plain, is_secure } = self.port;
        let mut is_told = false;
        loop {
            let accepted = async {
                room.has_room(&mut is_told).await;
                self.socket.accept().await
            };
            let stream = tokio::select! {
                stream = accepted => stream,
                _ = end.wait_for(|end| *end) => return,
            };
            let (_, least) = room.connections.total_and_least();
            let connection = match Connection::new(stream, serves, is_plain, &room.connections, least) {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "an accepted connection cannot be moved");
                    continue;
                }
            };
            match next.handshakes.get(least % next.handshakes.len().max(1)) {
                // If there is no place, everybody on this port waits.
                Some(thread) if is_secure => tokio::select! {
                    _ = thread.send(connection) => {}
                    _ = end.wait_for(|end| *end) => return,
                },
                _ => next.hand_over(connection),
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Bound::Unix(_, path) = &self.socket
            && let Err(error) = remove(path)
        {
            tracing::debug!(%error, "a Unix socket stays");
        }
    }
}

impl Bound {
    async fn accept(&self) -> Stream {
        loop {
            let accepted = match self {
                Self::Tcp(listener) => listener.accept().await.and_then(|(socket, _)| prepared(socket)),
                Self::Unix(listener, _) => listener.accept().await.map(|(socket, _)| Channel::Unix(socket)),
            };
            match accepted {
                Ok(socket) => return Stream::new(socket),
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// Where accepted connections go.
#[derive(Clone)]
pub struct Next {
    /// The ways to all cores that may serve one.
    pub ways: Vec<Way>,
    /// How they are served.
    pub serving: Serving,
    /// The ways to the threads for handshakes; none without TLS.
    pub handshakes: Vec<mpsc::Sender<Connection>>,
}

impl Next {
    /// Gives a connection to its core.
    fn hand_over(&self, connection: Connection) {
        let core = connection.core();
        match &self.ways[core] {
            Way::Here(desk) => connection_loop::serve(desk, connection, &self.serving),
            Way::There(way) => {
                if way.try_send(ToCore::Accept(connection)).is_err() {
                    tracing::warn!(core, "a core is too busy to take a connection");
                }
            }
        }
    }
}

/// Gives connections to their cores whose handshakes are `done`. Those of `Serves::is_for_clients` go to `clients`, the
/// rest to `others`.
pub async fn hand_over_done(mut done: mpsc::Receiver<Connection>, clients: Next, others: Next) {
    while let Some(connection) = done.recv().await {
        let next = if connection.serves().is_for_clients() { &clients } else { &others };
        next.hand_over(connection);
    }
}

fn bind_tcp(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(reuse_port)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets what every connection over TCP has: no delay of small writes, and a question to a silent host.
fn prepared(socket: TcpStream) -> io::Result<Channel> {
    socket.set_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
    socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
    Ok(Channel::Tcp(socket))
}

fn remove(path: &Path) -> io::Result<()> {
    match offline::exists(path).map_err(io::Error::other)? {
        true => offline::remove_file(path).map_err(io::Error::other),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hosts_of_silent_clients_are_asked_whether_they_are_still_there() {
        let address = Address::Tcp(([127, 0, 0, 1], 0).into());
        let port = Port { serves: Serves::Clients, is_plain: true, is_secure: false };
        let listener = Listener::bind(&address, port, false).unwrap();
        let client = TcpStream::connect(listener.address()).await.unwrap();
        let Bound::Tcp(bound) = &listener.socket else { unreachable!("it was bound so") };
        let (socket, _) = bound.accept().await.unwrap();
        let Channel::Tcp(socket) = prepared(socket).unwrap() else { unreachable!("it is one of TCP") };
        let options = socket2::SockRef::from(&socket);
        assert!(options.keepalive().unwrap() && options.tcp_nodelay().unwrap());
        assert_eq!(options.tcp_keepalive_time().unwrap(), KEEPALIVE);
        assert_eq!(options.tcp_keepalive_interval().unwrap(), KEEPALIVE);
        drop(client);
    }
}
