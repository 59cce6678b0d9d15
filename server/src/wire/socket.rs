//! Runs on: connection core.
//!
//! Finds the protocol that an accepted connection speaks, and counts the connection.

use std::{
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::{net::TcpStream, sync::watch};

use super::{endpoints, http1, http2};
use crate::{api::desk::Desk, shared::Connections};

/// Longest wait for a client's first bytes.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(10);
/// The first bytes of a client of HTTP/2.
const PREFACE: &[u8; 4] = b"PRI ";

/// An accepted connection on its way to the core that serves it. It counts for that core from the moment it is
/// assigned. So many connections that come at once are spread over the cores.
#[derive(Debug)]
pub struct Connection {
    socket: std::net::TcpStream,
    count: Count,
}

/// Counts one connection of a core.
#[derive(Debug)]
struct Count {
    connections: Arc<Connections>,
    core: usize,
}

impl Drop for Count {
    fn drop(&mut self) {
        self.connections.of(self.core).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Takes `socket` off the runtime of this thread, and assigns it to the core at position `core`.
    ///
    /// **Errors** the runtime's.
    pub fn new(socket: TcpStream, connections: &Arc<Connections>, core: usize) -> io::Result<Self> {
        connections.of(core).fetch_add(1, Ordering::Relaxed);
        let count = Count { connections: Arc::clone(connections), core };
        Ok(Self { socket: socket.into_std()?, count })
    }
}

/// Serves one connection until it ends.
pub async fn serve(desk: Rc<Desk>, connection: Connection, options: http2::Options, stop: watch::Receiver<bool>) {
    let Connection { socket, count } = connection;
    if let Err(error) = serve_socket(desk, socket, &options, stop).await {
        tracing::debug!(%error, "a connection ended");
    }
    drop(count);
}

async fn serve_socket(
    desk: Rc<Desk>,
    socket: std::net::TcpStream,
    options: &http2::Options,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let socket = TcpStream::from_std(socket)?;
    match tokio::time::timeout(SNIFF_TIMEOUT, is_http2(&socket)).await {
        Ok(Ok(true)) => http2::serve(desk, socket, options, stop).await,
        Ok(Ok(false)) => {
            let now = || desk.clock.unix_us();
            http1::serve(socket, now, async |request| endpoints::answer(&desk, &request)).await
        }
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    }
}

/// Serves a connection of the metrics port: only the plain HTTP endpoints.
pub async fn serve_endpoints(desk: Rc<Desk>, socket: TcpStream) {
    let answer = async |request| endpoints::answer_metrics_port(&desk, &request);
    if let Err(error) = http1::serve(socket, || desk.clock.unix_us(), answer).await {
        tracing::debug!(%error, "a connection of the metrics port ended");
    }
}

async fn is_http2(socket: &TcpStream) -> io::Result<bool> {
    socket.set_nodelay(true)?;
    let mut head = [0; PREFACE.len()];
    loop {
        let len = socket.peek(&mut head).await?;
        if len == 0 || head[..len] != PREFACE[..len] {
            return Ok(false);
        }
        if len == PREFACE.len() {
            return Ok(true);
        }
        // The rest of the four bytes is on its way. Peeking does not wait for more bytes than there are.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
