//! Runs on: connection core.
//!
//! Sockets: which protocol an accepted connection speaks, and its count.

use std::{io, rc::Rc, sync::atomic::Ordering, time::Duration};

use tokio::{net::TcpStream, sync::watch};

use super::{endpoints, http1, http2};
use crate::api::desk::Desk;

/// For a client's first bytes.
const SNIFF_TIMEOUT: Duration = Duration::from_secs(10);
/// What a client of HTTP/2 sends first.
const PREFACE: &[u8; 4] = b"PRI ";

/// Serves one connection until it ends.
pub async fn serve(desk: Rc<Desk>, socket: TcpStream, options: http2::Options, stop: watch::Receiver<bool>) {
    desk.shared.connections[desk.id].fetch_add(1, Ordering::Relaxed);
    let result = match tokio::time::timeout(SNIFF_TIMEOUT, is_http2(&socket)).await {
        Ok(Ok(true)) => http2::serve(Rc::clone(&desk), socket, &options, stop).await,
        Ok(Ok(false)) => http1::serve(socket, async |request| endpoints::answer(&desk, &request)).await,
        Ok(Err(error)) => Err(error),
        Err(_) => Ok(()),
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended");
    }
    desk.shared.connections[desk.id].fetch_sub(1, Ordering::Relaxed);
}

/// Serves only the plain HTTP endpoints, on a connection of the metrics port.
pub async fn serve_endpoints(desk: Rc<Desk>, socket: TcpStream) {
    if let Err(error) = http1::serve(socket, async |request| endpoints::answer_metrics_port(&desk, &request)).await {
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
        // The rest of the four bytes is on its way; peeking does not wait for more than there is.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
