//! Runs on: connection core, main thread.
//!
//! Requests to the peer ports of members. What may be asked twice goes over connections that are kept; all else over
//! one of its own.
//!
//! Bounds: the body of an answer, by who asks. A core has at most [`asked_max`] questions over kept connections at a
//! time, and keeps as many connections for each URL. So all cores of a member together take few of the places of
//! another member's port: [`ASKED_MAX`], or one each if there are more cores ([`connections_max`]). Nothing is waited
//! for longer than who asks waits: dropping the future closes the connection.

use std::{cell::RefCell, collections::HashMap, net::IpAddr};

use bytes::{Bytes, BytesMut};
use consensus::peer::http1;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Semaphore,
};

use super::dial::{dial, host_of};
use crate::{
    api::others::{Answered, Asking, Awaited, Others},
    wire::stream::Stream,
};

/// Questions of a member over kept connections at once; others wait for their turn.
const ASKED_MAX: usize = 8;

/// The same of each of its `cores`.
const fn asked_max(cores: usize) -> usize {
    let share = ASKED_MAX / cores;
    if share == 0 { 1 } else { share }
}

/// Connections that a member with so many `cores` keeps with another one.
pub const fn connections_max(cores: usize) -> usize {
    cores * asked_max(cores)
}

const _: () = assert!(connections_max(1) == ASKED_MAX && connections_max(3) == 6 && connections_max(9) == 9);

/// Asks over the network.
#[derive(Debug)]
pub struct Network {
    /// The address of this host from which it asks, if that matters.
    from: Option<IpAddr>,
    /// Connections that are kept, by URL.
    kept: RefCell<HashMap<String, Vec<Stream>>>,
    places: Semaphore,
}

impl Network {
    /// Asks from the address `from` of this host, if that matters, on one of `cores` cores that do so.
    pub fn new(from: Option<IpAddr>, cores: usize) -> Self {
        Self { from, kept: RefCell::default(), places: Semaphore::new(asked_max(cores)) }
    }

    async fn ask_over_kept(&self, url: &str, asking: &Asking) -> Result<Answered, String> {
        let _place = self.places.acquire().await.expect("it is never closed");
        let kept = self.kept.borrow_mut().get_mut(url).and_then(Vec::pop);
        if let Some(mut stream) = kept {
            // The other side may have closed it meanwhile.
            if let Ok((answered, is_kept)) = ask_over(&mut stream, url, asking).await {
                self.keep(url, stream, is_kept);
                return Ok(answered);
            }
        }
        let mut stream = dial(url, self.from).await.map_err(|error| format!("{url}: {error}"))?;
        let (answered, is_kept) = ask_over(&mut stream, url, asking).await?;
        self.keep(url, stream, is_kept);
        Ok(answered)
    }

    fn keep(&self, url: &str, stream: Stream, is_kept: bool) {
        let mut kept = self.kept.borrow_mut();
        if is_kept {
            // What is kept for others is that of leaders before.
            kept.retain(|known, _| known == url);
            kept.entry(url.to_owned()).or_default().push(stream);
        }
    }
}

impl Others for Network {
    fn ask<'a>(&'a self, url: &'a str, asking: &'a Asking) -> Awaited<'a> {
        if asking.is_repeatable {
            return Box::pin(self.ask_over_kept(url, asking));
        }
        Box::pin(async move {
            let mut stream = dial(url, self.from).await.map_err(|error| format!("{url}: {error}"))?;
            ask_over(&mut stream, url, asking).await.map(|(answered, _)| answered)
        })
    }
}

/// Asks over a connection that is there. Returns the answer, and whether the connection can be used again.
///
/// **Errors** why there is no answer.
pub async fn ask_over(stream: &mut Stream, url: &str, asking: &Asking) -> Result<(Answered, bool), String> {
    let failed = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let Asking { method, path, lines, body, .. } = asking;
    let host = host_of(url);
    let len = body.len();
    let close = if asking.is_repeatable { "" } else { "Connection: close\r\n" };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\n{close}{lines}\r\n");
    let request = [head.as_bytes(), body].concat();
    stream.write_all(&request).await.map_err(|error| failed(&error))?;
    stream.flush().await.map_err(|error| failed(&error))?;
    let mut buffer = BytesMut::new();
    let (answer, mut body) = loop {
        if let Some(answered) = http1::take_answer(&mut buffer).map_err(|error| failed(&error))? {
            break answered;
        }
        if stream.read_buf(&mut buffer).await.map_err(|error| failed(&error))? == 0 {
            return Err(failed(&"the connection ended before the answer"));
        }
    };
    let mut whole = Vec::new();
    loop {
        while let Some(part) = body.take(&mut buffer).map_err(|error| failed(&error))? {
            whole.extend_from_slice(&part);
            if whole.len() > asking.answer_bytes_max {
                return Err(failed(&"the answer is too long"));
            }
        }
        if body.is_over() {
            break;
        }
        if stream.read_buf(&mut buffer).await.map_err(|error| failed(&error))? == 0 {
            // Its end is that of the connection, if the answer does not say otherwise.
            if body.ends_with_connection() {
                break;
            }
            return Err(failed(&"the connection ended within the answer"));
        }
    }
    let is_kept = answer.is_kept && body.is_over() && buffer.is_empty();
    Ok((Answered { status: answer.status, headers: answer.headers, body: Bytes::from(whole) }, is_kept))
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// What becomes of a question that is answered by `answer`; and the question.
    async fn asked(answer: &'static str) -> (Result<Answered, String>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1000];
            let mut len = 0;
            while !request[..len].ends_with(b"\r\n\r\nbody") {
                len += socket.read(&mut request[len..]).await.unwrap();
            }
            socket.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8(request[..len].to_vec()).unwrap()
        };
        let lines = "X-A: b\r\n".into();
        let body = Bytes::from_static(b"body");
        let asking =
            Asking { method: "POST", path: "/a?b".into(), lines, body, answer_bytes_max: 4, is_repeatable: false };
        let network = Network::new(None, 1);
        tokio::join!(network.ask(&url, &asking), serving)
    }

    #[tokio::test]
    async fn an_answer_is_taken_whole_or_not_at_all() {
        let (answered, request) = asked("HTTP/1.1 204 No Content\r\nX-B: c\r\n\r\n").await;
        let answered = answered.unwrap();
        assert_eq!((answered.status, answered.headers.get("x-b"), &answered.body[..]), (204, "c", &b""[..]));
        assert!(request.starts_with("POST /a?b HTTP/1.1\r\nHost: 127.0.0.1:"), "{request}");
        assert!(request.contains("\r\nX-A: b\r\n") && request.contains("\r\nContent-Length: 4\r\n"), "{request}");
        let body =
            async |answer| asked(answer).await.0.map(|answered| String::from_utf8(answered.body.into()).unwrap());
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfour").await.unwrap(), "four");
        assert_eq!(body("HTTP/1.1 200 OK\r\n\r\nthe").await.unwrap(), "the");
        let chunks = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n";
        assert_eq!(body(chunks).await.unwrap(), "ab");
        for (answer, why) in [
            ("", "before the answer"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfou", "within the answer"),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nfives", "too long"),
            ("\0\r\n\r\n", "malformed"),
        ] {
            let error = body(answer).await.unwrap_err();
            assert!(error.contains(why), "{answer:?}: {error}");
        }
    }
    #[tokio::test]
    async fn what_may_be_asked_twice_uses_a_connection_again_until_that_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        // Two questions on the first connection, which is closed then, and one on a second one.
        let serving = async {
            let mut connections = 0;
            for questions in [2, 1] {
                let (mut socket, _) = listener.accept().await.unwrap();
                connections += 1;
                for _ in 0..questions {
                    let mut request = vec![0; 1000];
                    let len = socket.read(&mut request).await.unwrap();
                    request.truncate(len);
                    assert!(!String::from_utf8(request).unwrap().contains("Connection"), "it is kept");
                    socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
                }
            }
            connections
        };
        let network = Network::new(None, 1);
        let asking =
            Asking { method: "GET", path: "/".into(), answer_bytes_max: 9, is_repeatable: true, ..Asking::default() };
        let asks = async {
            for _ in 0..3 {
                assert_eq!(network.ask(&url, &asking).await.unwrap().body, "ok");
            }
        };
        assert_eq!(tokio::join!(asks, serving).1, 2);
    }

    #[tokio::test]
    async fn all_cores_together_keep_few_connections_and_each_core_has_one() {
        for (cores, of_each, of_all) in [(1, 8, 8), (3, 2, 6), (8, 1, 8), (9, 1, 9)] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let asking = Asking {
                method: "GET",
                path: "/".into(),
                answer_bytes_max: 9,
                is_repeatable: true,
                ..Asking::default()
            };
            let network = Network::new(None, cores);
            let mut asks: Vec<_> = (0..of_each + 1).map(|_| network.ask(&url, &asking)).collect();
            let mut accepted = Vec::new();
            // Nobody is answered, so each question that may be asked comes over a connection of its own.
            while accepted.len() < of_each {
                tokio::select! {
                    biased;
                    () = poll_all(&mut asks) => unreachable!("nobody is answered"),
                    connection = listener.accept() => accepted.push(connection.unwrap()),
                }
            }
            assert_eq!((network.places.available_permits(), connections_max(cores)), (0, of_all), "{cores} cores");
        }
    }

    async fn poll_all(asks: &mut [Awaited<'_>]) {
        std::future::poll_fn(|context| {
            for ask in &mut *asks {
                assert!(ask.as_mut().poll(context).is_pending());
            }
            std::task::Poll::Pending
        })
        .await
    }
}
