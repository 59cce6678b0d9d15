//! Runs on: connection core.
//!
//! HTTP/1.1 on the client port and on the metrics port: small requests with small answers, written byte for byte as
//! etcd's Go writes them. It knows no endpoint.
//!
//! - `request`: reads heads
//! - `response`: writes answers
//!
//! Bounds: a head has at most [`HEAD_BYTES_MAX`]. A body is dropped as it comes; one that is long or has no length ends
//! the connection after the answer. Requests are served one at a time; pipelined ones wait in the buffer.

use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};

use self::{
    request::{Head, parse},
    response::{Asked, Refusal},
};
use super::stream::Stream;

pub use self::{request::Request, response::Response};

mod request;
mod response;

/// **Units** bytes. Go's server takes 1 MiB.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// Serves one connection until it closes, or until `stop` becomes true and no request is under way. `unix_us` is the
/// wall time.
///
/// **Errors** the socket's.
pub async fn serve(
    mut stream: Stream,
    stop: watch::Receiver<bool>,
    unix_us: impl Fn() -> u64,
    endpoint: impl AsyncFn(Request) -> Response,
) -> io::Result<()> {
    serve_requests(&mut stream, stop, unix_us, endpoint).await?;
    // An encrypted connection says that it ends.
    stream.shutdown().await
}

/// Writes all of an answer. An encrypted connection may hold back the end of what it was given until it is flushed.
async fn send(stream: &mut Stream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

async fn serve_requests(
    stream: &mut Stream,
    mut stop: watch::Receiver<bool>,
    unix_us: impl Fn() -> u64,
    endpoint: impl AsyncFn(Request) -> Response,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let head = match parse(&buffer) {
            Ok(Some(head)) => head,
            Ok(None) if buffer.len() >= HEAD_BYTES_MAX => {
                return send(stream, &Refusal::TooLarge.write()).await;
            }
            Ok(None) => {
                let count = tokio::select! {
                    biased;
                    count = stream.read_buf(&mut buffer) => count?,
                    _ = stop.wait_for(|stop| *stop), if buffer.is_empty() => 0,
                };
                if count == 0 {
                    return Ok(());
                }
                continue;
            }
            Err(refusal) => return send(stream, &refusal.write()).await,
        };
        let Head { request, len, mut body_len, is_old, keep_alive } = head;
        buffer.drain(..len);
        let asked = Asked { is_head: request.method == "HEAD", is_old, keep_alive };
        let (text, keep_alive) = endpoint(request).await.write(asked, unix_us());
        send(stream, &text).await?;
        if !keep_alive {
            return Ok(());
        }
        loop {
            let here = body_len.min(buffer.len());
            buffer.drain(..here);
            body_len -= here;
            if body_len == 0 {
                break;
            }
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
    }
}
