//! Runs on: core 0.
//!
//! Addresses, and connections as they come.

use std::{io, net::SocketAddr, time::Duration};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpListener;

/// A connection on the core that serves it.
pub type Connection = tokio::net::TcpStream;

/// A connection on its way to another core.
pub type Moved = std::net::TcpStream;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 4096;
/// After an accept that failed, mostly for want of descriptors.
const PAUSE: Duration = Duration::from_millis(10);

/// An address that is listened on.
pub struct Listener(TcpListener);

impl Listener {
    /// Binds an address. Go binds with SO_REUSEADDR always, so that a restart does not wait for old connections to be
    /// forgotten; so do we, whatever the flag says.
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

    /// The address, with the port that the system chose if none was given.
    ///
    /// **Errors** the socket's.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }

    /// The next connection.
    pub async fn accept(&self) -> Connection {
        loop {
            match self.0.accept().await {
                Ok((connection, _)) => return connection,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}
