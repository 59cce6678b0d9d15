//! Runs on: connection core.
//!
//! HTTP/1.1 on the client port and on the metrics port: small GETs with small answers. It knows no endpoint.
//!
//! Bounds: a head has at most [`HEAD_BYTES_MAX`]. Request bodies are not read: if a request announces one, it is
//! answered and the connection is closed. Requests are served one at a time; pipelined ones wait in the buffer.

use std::{fmt::Write as _, io};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// **Units** bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
const HEADERS_MAX: usize = 64;

/// A request head, as far as the endpoints read it.
pub struct Request {
    /// Method in upper case.
    pub method: String,
    /// Path without the query.
    pub path: String,
    /// What follows `?`, undecoded.
    pub query: String,
}

/// An answer.
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Media type.
    pub content_type: &'static str,
    /// Further header lines, without line ends.
    pub headers: &'static [&'static str],
    /// The body.
    pub body: String,
}

impl Response {
    /// Plain text, as Go's `http.Error` and `fmt.Fprint` send it.
    pub fn text(status: u16, body: impl Into<String>) -> Self {
        let headers: &'static [&'static str] = &["X-Content-Type-Options: nosniff"];
        Self { status, content_type: "text/plain; charset=utf-8", headers, body: body.into() }
    }

    /// JSON.
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self { status, content_type: "application/json", headers: &[], body: body.into() }
    }

    /// The answer to a method that the path does not take.
    pub fn method_not_allowed() -> Self {
        let headers: &'static [&'static str] = &["Allow: GET", "X-Content-Type-Options: nosniff"];
        Self { status: 405, content_type: "text/plain; charset=utf-8", headers, body: "Method Not Allowed\n".into() }
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        431 => "Request Header Fields Too Large",
        _ => "Service Unavailable",
    }
}

struct Head {
    request: Request,
    len: usize,
    keep_alive: bool,
}

fn parse(buffer: &[u8]) -> Result<Option<Head>, Response> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let len = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(Response::text(400, format!("400 Bad Request: {error}"))),
    };
    let target = parsed.path.unwrap_or("/");
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut keep_alive = parsed.version == Some(1);
    for header in parsed.headers.iter() {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("connection") && header.value.eq_ignore_ascii_case(b"close") {
            keep_alive = false;
        }
        if (is("content-length") && header.value != b"0") || is("transfer-encoding") {
            keep_alive = false;
        }
    }
    let method = parsed.method.unwrap_or("GET").to_owned();
    Ok(Some(Head { request: Request { method, path: path.to_owned(), query: query.to_owned() }, len, keep_alive }))
}

async fn send(socket: &mut TcpStream, response: &Response, keep_alive: bool, is_head: bool) -> io::Result<()> {
    let mut head = format!(
        "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\n",
        response.status,
        reason(response.status),
        response.content_type,
        response.body.len()
    );
    for line in response.headers {
        write!(head, "{line}\r\n").map_err(io::Error::other)?;
    }
    head.push_str(if keep_alive { "\r\n" } else { "Connection: close\r\n\r\n" });
    if !is_head {
        head.push_str(&response.body);
    }
    socket.write_all(head.as_bytes()).await
}

/// Serves one connection until it closes.
///
/// **Errors** the socket's.
pub async fn serve(mut socket: TcpStream, endpoint: impl AsyncFn(Request) -> Response) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(1024);
    loop {
        let head = match parse(&buffer) {
            Ok(Some(head)) => head,
            Ok(None) if buffer.len() >= HEAD_BYTES_MAX => {
                return send(&mut socket, &Response::text(431, "431 Request Header Fields Too Large"), false, false)
                    .await;
            }
            Ok(None) => {
                if socket.read_buf(&mut buffer).await? == 0 {
                    return Ok(());
                }
                continue;
            }
            Err(response) => return send(&mut socket, &response, false, false).await,
        };
        buffer.drain(..head.len);
        let is_head = head.request.method == "HEAD";
        let response = endpoint(head.request).await;
        send(&mut socket, &response, head.keep_alive, is_head).await?;
        if !head.keep_alive {
            return Ok(());
        }
    }
}
