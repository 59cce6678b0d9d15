//! Runs on: connection core.
//!
//! HTTP/1.1 on the client port and on the metrics port: small requests with small answers, written byte for byte as
//! etcd's Go writes them. It knows no endpoint.
//!
//! - `request`: reads heads
//! - `response`: writes answers
//!
//! Bounds: a head has at most [`HEAD_BYTES_MAX`]. A body is dropped as it comes; one that is long or has no length ends
//! the connection after the answer. Requests are served one at a time; pipelined ones wait in the buffer. Who does not
//! send them in time ([`Waits`]) is let go: a port for few connections is not taken by those that say nothing.

use std::{
    io,
    pin::{Pin, pin},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
    time::{Sleep, sleep},
};

use self::{
    request::{Head, parse},
    response::{Asked, Refusal},
};
use super::stream::{SILENCE_MAX, Stream};

pub use self::{request::Request, response::Response};

mod request;
mod response;

/// **Units** bytes. Go's server takes 1 MiB.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// How long requests are waited for.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// The first one.
    pub first: Duration,
    /// Each other one. **Source** etcd v3.7.1 `server/embed/etcd.go`, the `ReadTimeout` of the peer port.
    pub next: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { first: SILENCE_MAX, next: Duration::from_secs(300) }
    }
}

/// Serves one connection until it closes, or until `stop` becomes true and no request is under way. `unix_us` is the
/// wall time.
///
/// **Errors** the socket's.
pub async fn serve(
    mut stream: Stream,
    stop: watch::Receiver<bool>,
    waits: Waits,
    unix_us: impl Fn() -> u64,
    endpoint: impl AsyncFn(Request) -> Response,
) -> io::Result<()> {
    serve_requests(&mut stream, stop, waits, unix_us, endpoint).await?;
    // An encrypted connection says that it ends.
    stream.shutdown().await
}

/// Writes all of an answer. An encrypted connection may hold back the end of what it was given until it is flushed.
async fn send(stream: &mut Stream, text: &str) -> io::Result<()> {
    stream.write_all(text.as_bytes()).await?;
    stream.flush().await
}

/// Reads what comes before `due`; nothing if that comes first, as at the end.
async fn read(stream: &mut Stream, buffer: &mut Vec<u8>, due: Pin<&mut Sleep>) -> io::Result<usize> {
    tokio::select! {
        biased;
        count = stream.read_buf(buffer) => count,
        () = due => Ok(0),
    }
}

async fn serve_requests(
    stream: &mut Stream,
    mut stop: watch::Receiver<bool>,
    waits: Waits,
    unix_us: impl Fn() -> u64,
    endpoint: impl AsyncFn(Request) -> Response,
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1024);
    let mut due = pin!(sleep(waits.first));
    loop {
        let head = match parse(&buffer) {
            Ok(Some(head)) => head,
            Ok(None) if buffer.len() >= HEAD_BYTES_MAX => {
                return send(stream, &Refusal::TooLarge.write()).await;
            }
            Ok(None) => {
                let count = tokio::select! {
                    biased;
                    count = read(stream, &mut buffer, due.as_mut()) => count?,
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
        due.set(sleep(waits.next));
        loop {
            let here = body_len.min(buffer.len());
            buffer.drain(..here);
            body_len -= here;
            if body_len == 0 {
                break;
            }
            if read(stream, &mut buffer, due.as_mut()).await? == 0 {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::wire::channel::Socket;

    #[tokio::test]
    async fn who_does_not_send_a_request_in_time_is_let_go() {
        const GET: &str = "GET / HTTP/1.1\r\nHost: m\r\n\r\n";
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(60));
        for (sent, waits, answers) in [
            ("", Waits { first: short, next: long }, 0),
            ("GET / HT", Waits { first: short, next: long }, 0),
            (GET, Waits { first: long, next: short }, 1),
            (&format!("{GET}{GET}G"), Waits { first: long, next: short }, 2),
        ] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let (_running, stop) = watch::channel(false);
            let stream = Stream::new(Socket::Unix(server));
            serve(stream, stop, waits, || 0, async |_| Response::text(200, "served")).await.unwrap();
            let mut received = String::new();
            client.read_to_string(&mut received).await.unwrap();
            assert_eq!(received.matches("200 OK").count(), answers, "{sent}");
        }
    }
}
