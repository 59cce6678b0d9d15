//! Runs on: connection core.
//!
//! HTTP/1.1 on the ports for clients, metrics and other members: small requests with small answers, written byte for
//! byte as etcd's Go writes them. A request may also take its connection over. It knows no endpoint.
//!
//! - `request`: reads heads
//! - `response`: writes answers
//!
//! Bounds: a head has at most [`HEAD_BYTES_MAX`]. A body is dropped as it comes, unless its port reads it ([`Taking`]);
//! one that is long or has no length ends the connection after the answer. Requests are served one at a time; pipelined
//! ones wait in the buffer. Who does not send them in time ([`Waits`]) is let go, and on some ports sooner if another
//! connection wants the place ([`Place`]): a port for few connections is not taken by those that say nothing.

use std::{io, pin::Pin, sync::Arc, time::Duration};

use bytes::{Buf, BytesMut};
use consensus::peer::http1::Body;
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
use crate::shared::Connections;

pub use self::{request::Request, response::Response};

mod request;
mod response;

/// **Units** bytes. Go's server takes 1 MiB.
const HEAD_BYTES_MAX: usize = 32 << 10;

/// The place of a connection that has waited for a request, given to one that wants it.
#[derive(Clone, Debug)]
pub struct Place {
    /// Tells when a place is wanted.
    pub connections: Arc<Connections>,
    /// It is kept for so long after the last request, or after the beginning.
    pub kept_for: Duration,
}

impl Place {
    /// Resolves when the place goes to another one, of a connection that waits from now on.
    async fn given(place: Option<&Self>) {
        let Some(Self { connections, kept_for }) = place else { return std::future::pending().await };
        sleep(*kept_for).await;
        connections.place_wanted().notified().await;
    }
}

/// How long requests are waited for.
#[derive(Clone, Debug)]
pub struct Waits {
    /// The first one.
    pub first: Duration,
    /// Each other one. **Source** etcd v3.7.1 `server/embed/etcd.go`, the `ReadTimeout` of the peer port.
    pub next: Duration,
    /// Whether the connection ends sooner for the sake of another one.
    pub place: Option<Place>,
}

impl Default for Waits {
    fn default() -> Self {
        Self { first: SILENCE_MAX, next: Duration::from_secs(300), place: None }
    }
}

/// What becomes of the body of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taking {
    /// It is dropped.
    Dropped,
    /// It is read before the request is answered, up to so many bytes.
    Read(usize),
    /// Whoever asked takes the connection, behind the head of this request.
    Over,
}

/// A connection that a request has taken over.
#[derive(Debug)]
pub struct Taken {
    /// The connection.
    pub stream: Stream,
    /// The request, without its body.
    pub request: Request,
    /// The body, of which nothing was taken.
    pub body: Body,
    /// What has arrived behind the head.
    pub rest: BytesMut,
}

/// Serves one connection until it closes, until `stop` becomes true and no request is under way, or until a request
/// takes it over. `unix_us` is the wall time.
///
/// **Errors** the socket's.
pub async fn serve(
    stream: Stream,
    stop: watch::Receiver<bool>,
    waits: Waits,
    unix_us: impl Fn() -> u64,
    taking: impl Fn(&Request) -> Taking,
    endpoint: impl AsyncFn(Request) -> Response,
) -> io::Result<Option<Taken>> {
    let mut serving = Serving { stream, buffer: BytesMut::with_capacity(1024), due: Box::pin(sleep(waits.first)) };
    if let Some((request, body)) = serving.requests(stop, &waits, unix_us, taking, endpoint).await? {
        let Serving { stream, buffer: rest, .. } = serving;
        return Ok(Some(Taken { stream, request, body, rest }));
    }
    // An encrypted connection says that it ends.
    serving.stream.shutdown().await.map(|()| None)
}

/// A connection that is served.
struct Serving {
    stream: Stream,
    /// What has arrived and is not taken.
    buffer: BytesMut,
    /// What comes later is not waited for.
    due: Pin<Box<Sleep>>,
}

impl Serving {
    /// Writes all of an answer. An encrypted connection may hold back the end of what it was given until it is flushed.
    async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Reads what comes before it is due; nothing if that comes first, as at the end.
    async fn read(&mut self) -> io::Result<usize> {
        tokio::select! {
            biased;
            count = self.stream.read_buf(&mut self.buffer) => count,
            () = self.due.as_mut() => Ok(0),
        }
    }

    /// Serves requests, up to one that takes the connection over, if there is one.
    async fn requests(
        &mut self,
        mut stop: watch::Receiver<bool>,
        waits: &Waits,
        unix_us: impl Fn() -> u64,
        taking: impl Fn(&Request) -> Taking,
        endpoint: impl AsyncFn(Request) -> Response,
    ) -> io::Result<Option<(Request, Body)>> {
        loop {
            let head = match parse(&self.buffer) {
                Ok(Some(head)) => head,
                Ok(None) if self.buffer.len() >= HEAD_BYTES_MAX => {
                    return self.send(Refusal::TooLarge.write().as_bytes()).await.map(|()| None);
                }
                Ok(None) => {
                    let is_idle = self.buffer.is_empty();
                    let count = tokio::select! {
                        biased;
                        count = self.read() => count?,
                        _ = stop.wait_for(|stop| *stop), if is_idle => 0,
                        () = Place::given(waits.place.as_ref()) => 0,
                    };
                    if count == 0 {
                        return Ok(None);
                    }
                    continue;
                }
                Err(refusal) => return self.send(refusal.write().as_bytes()).await.map(|()| None),
            };
            let Head { mut request, len, mut body_len, is_old, mut keep_alive } = head;
            self.buffer.advance(len);
            match taking(&request) {
                Taking::Dropped => {}
                Taking::Read(bytes_max) => {
                    let Some(is_whole) = self.read_body(&mut request, bytes_max).await? else { return Ok(None) };
                    keep_alive = is_whole && request.headers.get("connection") != "close" && !is_old;
                    body_len = 0;
                }
                Taking::Over => {
                    return match request.headers.request_body() {
                        Ok(body) => Ok(Some((request, body))),
                        Err(_) => self.send(Refusal::Malformed.write().as_bytes()).await.map(|()| None),
                    };
                }
            }
            let asked = Asked { is_head: request.method == "HEAD", is_old, keep_alive };
            let (text, keep_alive) = endpoint(request).await.write(asked, unix_us());
            self.send(&text).await?;
            if !keep_alive {
                return Ok(None);
            }
            self.due.set(sleep(waits.next));
            loop {
                let here = body_len.min(self.buffer.len());
                self.buffer.advance(here);
                body_len -= here;
                if body_len == 0 {
                    break;
                }
                if self.read().await? == 0 {
                    return Ok(None);
                }
            }
        }
    }

    /// Reads the body of `request`, up to `bytes_max`. Returns whether that is all of it; `None` if the connection is
    /// over.
    async fn read_body(&mut self, request: &mut Request, bytes_max: usize) -> io::Result<Option<bool>> {
        let Ok(mut body) = request.headers.request_body() else {
            return self.send(Refusal::Malformed.write().as_bytes()).await.map(|()| None);
        };
        if request.headers.get("expect").eq_ignore_ascii_case("100-continue") {
            self.send(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let mut whole = BytesMut::new();
        loop {
            while let Some(part) = match body.take(&mut self.buffer) {
                Ok(part) => part,
                Err(_) => return self.send(Refusal::Malformed.write().as_bytes()).await.map(|()| None),
            } {
                if whole.len() + part.len() > bytes_max {
                    request.is_cut = true;
                    return Ok(Some(false));
                }
                whole.extend_from_slice(&part);
            }
            if body.is_over() {
                request.body = whole.freeze();
                return Ok(Some(true));
            }
            if self.read().await? == 0 {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixStream;

    use super::*;
    use crate::wire::channel::Socket;

    async fn answered(sent: &str, waits: Waits, taking: Taking) -> (String, Option<Taken>) {
        let (mut client, server) = UnixStream::pair().unwrap();
        client.write_all(sent.as_bytes()).await.unwrap();
        let (_running, stop) = watch::channel(false);
        let stream = Stream::new(Socket::Unix(server));
        let answer = async |request: Request| {
            let body = String::from_utf8(request.body.into()).unwrap();
            Response::text(200, format!("served {body} {}", request.is_cut))
        };
        let taken = serve(stream, stop, waits, || 0, |_| taking, answer).await.unwrap();
        let mut received = String::new();
        if taken.is_none() {
            client.read_to_string(&mut received).await.unwrap();
        }
        (received, taken)
    }

    #[tokio::test]
    async fn who_does_not_send_a_request_in_time_is_let_go() {
        const GET: &str = "GET / HTTP/1.1\r\nHost: m\r\n\r\n";
        let (short, long) = (Duration::from_millis(20), Duration::from_secs(60));
        for (sent, waits, answers) in [
            ("", Waits { first: short, next: long, place: None }, 0),
            ("GET / HT", Waits { first: short, next: long, place: None }, 0),
            (GET, Waits { first: long, next: short, place: None }, 1),
            (&format!("{GET}{GET}G"), Waits { first: long, next: short, place: None }, 2),
        ] {
            let (received, _) = answered(sent, waits, Taking::Dropped).await;
            assert_eq!(received.matches("200 OK").count(), answers, "{sent}");
        }
    }

    #[tokio::test]
    async fn who_has_asked_nothing_for_a_while_gives_its_place_to_another_one() {
        let connections = Arc::new(Connections::new(1));
        let long = Duration::from_secs(60);
        let (_running, stop) = watch::channel(false);
        let answer = async |_: Request| Response::text(200, "served");
        let served = |server, kept_for| {
            let place = Some(Place { connections: Arc::clone(&connections), kept_for });
            let waits = Waits { first: long, next: long, place };
            serve(Stream::new(Socket::Unix(server)), stop.clone(), waits, || 0, |_| Taking::Dropped, answer)
        };
        let (mut idle, of_idle) = UnixStream::pair().unwrap();
        let (mut busy, of_busy) = UnixStream::pair().unwrap();
        let clients = async {
            for client in [&mut idle, &mut busy] {
                client.write_all(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n").await.unwrap();
                assert!(client.read(&mut [0; 1000]).await.unwrap() > 0);
            }
            connections.place_wanted().notify_one();
            assert_eq!(idle.read(&mut [0]).await.unwrap(), 0, "it is closed");
            busy.write_all(b"GET / HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n").await.unwrap();
            assert!(busy.read(&mut [0; 1000]).await.unwrap() > 0, "the other one is served");
        };
        let ended = tokio::join!(served(of_idle, Duration::from_millis(1)), served(of_busy, long), clients);
        assert!(ended.0.is_ok() && ended.1.is_ok());
    }

    #[tokio::test]
    async fn bodies_are_read_where_that_is_wanted_up_to_a_bound() {
        let waits = Waits { first: Duration::from_secs(60), next: Duration::from_millis(20), place: None };
        let post = |rest: &str| format!("POST / HTTP/1.1\r\nHost: m\r\n{rest}");
        let chunked = post("Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n");
        let twice = [chunked.clone(), post("Content-Length: 4\r\n\r\nefgh"), chunked].concat();
        let (received, _) = answered(&twice, waits.clone(), Taking::Read(4)).await;
        let bodies = ["abcd", "efgh", "abcd"].map(|body| received.contains(&format!("served {body} false")));
        assert_eq!((bodies, received.matches("200 OK").count()), ([true; 3], 3), "{received}");
        let asks = post("Content-Length: 1\r\nExpect: 100-continue\r\n\r\na");
        assert!(
            answered(&asks, waits.clone(), Taking::Read(4))
                .await
                .0
                .starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
        );
        let (received, _) = answered(&[twice.clone(), twice].concat(), waits.clone(), Taking::Read(3)).await;
        assert!(received.contains("served  true") && received.matches("200 OK").count() == 1, "{received}");
        let (_, taken) = answered(&post("Content-Length: 4\r\n\r\nef"), waits, Taking::Over).await;
        let taken = taken.unwrap();
        assert_eq!(
            (taken.request.method.as_str(), &taken.rest[..], taken.body.len_left()),
            ("POST", &b"ef"[..], Some(4))
        );
    }
}
