//! Runs on: connection core, main thread.
//!
//! One request to the peer port of a member, on a connection of its own.
//!
//! Bounds: the body of an answer, by who asks. Nothing is waited for longer than who asks waits: dropping the future
//! closes the connection.

use std::net::IpAddr;

use bytes::{Bytes, BytesMut};
use consensus::peer::http1;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::dial::{dial, host_of};
use crate::{
    api::others::{Answered, Asking, Awaited, Others},
    wire::stream::Stream,
};

/// Asks over the network.
#[derive(Clone, Copy, Debug, Default)]
pub struct Network {
    /// The address of this host from which it asks, if that matters.
    pub from: Option<IpAddr>,
}

impl Others for Network {
    fn ask<'a>(&'a self, url: &'a str, asking: &'a Asking) -> Awaited<'a> {
        Box::pin(ask(url, asking, self.from))
    }
}

/// Asks the member at `url`.
///
/// **Errors** why there is no answer.
pub async fn ask(url: &str, asking: &Asking, from: Option<IpAddr>) -> Result<Answered, String> {
    let mut stream = dial(url, from).await.map_err(|error| format!("{url}: {error}"))?;
    ask_over(&mut stream, url, asking).await
}

/// Asks over a connection that is there. It is of no use afterwards.
///
/// **Errors** why there is no answer.
pub async fn ask_over(stream: &mut Stream, url: &str, asking: &Asking) -> Result<Answered, String> {
    let failed = |error: &dyn std::fmt::Display| format!("{url}: {error}");
    let Asking { method, path, lines, body, .. } = asking;
    let host = host_of(url);
    let len = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len}\r\nConnection: close\r\n{lines}\r\n"
    );
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
    Ok(Answered { status: answer.status, headers: answer.headers, body: Bytes::from(whole) })
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
        let asking = Asking { method: "POST", path: "/a?b".into(), lines, body, answer_bytes_max: 4 };
        tokio::join!(ask(&url, &asking, None), serving)
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
}
