//! Runs on: core 0.
//!
//! Owns the listening addresses, and chooses the core that serves a new connection: the one with the fewest
//! connections.

use std::{io, net::SocketAddr, rc::Rc, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    task::spawn_local,
};

use super::{
    connection_loop::{self, Serving},
    outbox::{ToCore, Way},
};
use crate::{
    api::desk::Desk,
    wire::socket::{self, Connection},
};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 4096;
/// Pause after an accept that failed, mostly because the process had no free descriptor.
const PAUSE: Duration = Duration::from_millis(10);

/// An address that accepts connections.
pub struct Listener(TcpListener);

impl Listener {
    /// Binds an address. Like Go, it always sets SO_REUSEADDR, whatever the flag says. So a restart does not wait until
    /// the old connections are forgotten.
    ///
    /// **Errors** the socket's.
    pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(reuse_port)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        TcpListener::from_std(socket.into()).map(Self)
    }

    /// The bound address, with the port that was chosen.
    ///
    /// **Errors** the socket's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// Accepts connections of clients for all cores that serve. `ways` leads to each of these cores. `desk` is the desk
    /// of the core that accepts.
    pub async fn accept_clients(self, desk: Rc<Desk>, ways: Vec<Way>, serving: Serving) {
        let connections = &desk.shared.connections;
        loop {
            let socket = accept(&self.0).await;
            let (total, least) = connections.total_and_least();
            if total >= desk.shared.limits.connections_max {
                tracing::warn!(connections = total, "no more connections are accepted");
                continue;
            }
            let connection = match Connection::new(socket, connections, least) {
                Ok(connection) => connection,
                Err(error) => {
                    tracing::warn!(%error, "an accepted connection cannot be moved");
                    continue;
                }
            };
            match &ways[least] {
                Way::Here(desk) => connection_loop::serve(desk, connection, &serving),
                Way::There(core) => {
                    if core.try_send(ToCore::Accept(connection)).is_err() {
                        tracing::warn!(core = least, "a core is too busy to take a connection");
                    }
                }
            }
        }
    }

    /// Accepts connections of the metrics port, which this core serves.
    pub async fn accept_metrics(self, desk: Rc<Desk>) {
        loop {
            let socket = accept(&self.0).await;
            spawn_local(socket::serve_endpoints(Rc::clone(&desk), socket));
        }
    }
}

async fn accept(listener: &TcpListener) -> TcpStream {
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return socket,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
