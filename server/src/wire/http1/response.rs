//! Runs on: connection core.
//!
//! Answers, with header lines in the order in which Go's server writes them: those of the endpoint by name, then the
//! date, then what the server adds.
//!
//! **Source** Go 1.26 `net/http/server.go`.

use std::{borrow::Cow, io::Write as _};

use bytes::Bytes;

use crate::log;

/// Go's server holds back an answer up to this length, and so knows its length. A longer one leaves in chunks.
/// **Units** bytes. **Source** Go 1.26 `net/http/server.go` `bufferBeforeChunkingSize`.
const MEASURED_BYTES_MAX: usize = 2048;

/// An answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines that stand before the date, sorted, without line ends. `Content-Length` and `Connection: close` are
    /// not written again.
    pub lines: Vec<Cow<'static, str>>,
    /// The media type, where the endpoint leaves it to Go's server to find one. It stands behind the length then.
    pub found_type: Option<&'static str>,
    /// The body.
    pub body: Bytes,
}

impl Response {
    /// An answer with these header lines.
    pub fn new(status: u16, lines: &[&'static str], body: impl Into<Bytes>) -> Self {
        let lines = lines.iter().map(|line| Cow::Borrowed(*line)).collect();
        Self { status, lines, found_type: None, body: body.into() }
    }

    /// Plain text, as Go's `http.Error` sends it.
    pub fn text(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, &["Content-Type: text/plain; charset=utf-8", "X-Content-Type-Options: nosniff"], body)
    }

    /// JSON.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        Self::new(status, &["Content-Type: application/json"], body)
    }

    /// Text whose media type is left to Go's server.
    pub fn untyped(status: u16, body: impl Into<Bytes>) -> Self {
        Self { found_type: Some("text/plain; charset=utf-8"), ..Self::new(status, &[], body) }
    }

    /// The answer for a path that leads nowhere.
    pub fn not_found() -> Self {
        Self::text(404, "404 page not found\n")
    }

    /// The answer to a method that the path does not take.
    pub fn method_not_allowed() -> Self {
        Self::allowing("GET")
    }

    /// As [`Response::method_not_allowed`], for a path that takes this method alone.
    pub fn allowing(method: &str) -> Self {
        Self::text(405, "Method Not Allowed\n").with(format!("Allow: {method}"))
    }

    /// The answer with one more header line.
    pub fn with(mut self, line: impl Into<Cow<'static, str>>) -> Self {
        self.lines.push(line.into());
        self.lines.sort();
        self
    }

    /// Its header fields, but for those about its length and the connection.
    pub fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.lines.iter().filter_map(|line| line.split_once(": "));
        let found = self.found_type.map(|found| ("Content-Type", found));
        fields.filter(|(name, _)| !matches!(*name, "Content-Length" | "Connection")).chain(found)
    }

    /// The bytes of the answer to a request, after which the connection ends.
    pub fn last(self, unix_us: u64) -> Vec<u8> {
        let asked = Asked { is_head: false, is_old: false, keep_alive: false };
        self.with("Connection: close").write(asked, unix_us).0
    }

    /// The bytes of the answer to a request. Returns also whether the connection may be used on.
    pub(super) fn write(&self, asked: Asked, unix_us: u64) -> (Vec<u8>, bool) {
        let Asked { is_head, is_old, keep_alive } = asked;
        let is_measured = self.body.len() <= MEASURED_BYTES_MAX;
        // Without a length and chunks, only its end ends a body.
        let is_told = |start: &str| self.lines.iter().any(|line| line.starts_with(start));
        let ends = is_told("Connection: close");
        let keep_alive = keep_alive && !ends && (is_measured || !is_old || is_head);
        let version = if is_old { "1.0" } else { "1.1" };
        let mut text = format!("HTTP/{version} {} {}\r\n", self.status, reason(self.status));
        let mut line = |line: &str| {
            text.push_str(line);
            text.push_str("\r\n");
        };
        self.lines.iter().for_each(|of_endpoint| line(of_endpoint));
        line(&format!("Date: {}", log::http_date(unix_us)));
        // Without a body, the length of what a GET gets is unknown.
        let is_unknown = is_head && self.body.is_empty();
        let has_body = self.status != 204;
        if has_body && is_measured && !is_unknown && !is_told("Content-Length") {
            line(&format!("Content-Length: {}", self.body.len()));
        }
        if let Some(found) = self.found_type {
            line(&format!("Content-Type: {found}"));
        }
        match (keep_alive, is_old) {
            (true, true) => line("Connection: keep-alive"),
            (false, false) if !ends => line("Connection: close"),
            _ => {}
        }
        let is_chunked = !is_measured && !is_old && !is_head;
        if is_chunked {
            line("Transfer-Encoding: chunked");
        }
        line("");
        let mut bytes = text.into_bytes();
        if is_chunked {
            write!(bytes, "{:x}\r\n", self.body.len()).expect("a Vec takes every write");
            bytes.extend_from_slice(&self.body);
            bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        } else if !is_head {
            bytes.extend_from_slice(&self.body);
        }
        (bytes, keep_alive)
    }
}

/// What of a request decides how its answer is written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) is_head: bool,
    /// The client speaks HTTP/1.0.
    pub(super) is_old: bool,
    /// The connection may be used on, as far as the client is concerned.
    pub(super) keep_alive: bool,
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        410 => "Gone",
        412 => "Precondition Failed",
        413 => "Request Entity Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        _ => "Service Unavailable",
    }
}

/// Why bytes are no request. The connection ends with such an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Bytes that Go's server cannot read either.
    Malformed,
    /// HTTP/1.1 without a Host.
    NoHost,
    /// A header line whose name is none.
    HeaderName,
    /// A head that is too long.
    TooLarge,
    /// A version other than 1.0 and 1.1.
    Version,
}

impl Refusal {
    /// The bytes of the answer: Go's server says why in the status line, too.
    pub(super) fn write(self) -> String {
        let status = match self {
            Self::Malformed => "400 Bad Request",
            Self::NoHost => "400 Bad Request: missing required Host header",
            Self::HeaderName => "400 Bad Request: invalid header name",
            Self::TooLarge => "431 Request Header Fields Too Large",
            Self::Version => "505 HTTP Version Not Supported: unsupported protocol version",
        };
        let head = "Content-Type: text/plain; charset=utf-8\r\nConnection: close";
        format!("HTTP/1.1 {status}\r\n{head}\r\n\r\n{status}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASKED: Asked = Asked { is_head: false, is_old: false, keep_alive: true };

    #[test]
    fn header_lines_stand_where_go_puts_them() {
        let written =
            |response: Response, asked| String::from_utf8(response.write(asked, 951_782_400_000_001).0).unwrap();
        assert_eq!(
            written(Response::untyped(200, "{}"), Asked { keep_alive: false, ..ASKED }),
            "HTTP/1.1 200 OK\r\nDate: Tue, 29 Feb 2000 00:00:00 GMT\r\nContent-Length: 2\r\n\
             Content-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\n{}"
        );
        assert_eq!(
            written(Response::method_not_allowed(), Asked { is_head: true, ..ASKED }),
            "HTTP/1.1 405 Method Not Allowed\r\nAllow: GET\r\nContent-Type: text/plain; charset=utf-8\r\n\
             X-Content-Type-Options: nosniff\r\nDate: Tue, 29 Feb 2000 00:00:00 GMT\r\nContent-Length: 19\r\n\r\n"
        );
    }

    #[test]
    fn a_long_body_leaves_in_chunks_or_ends_with_its_connection() {
        let long = || Response::new(200, &[], "a".repeat(MEASURED_BYTES_MAX + 1));
        let write = |asked| {
            let (bytes, is_kept) = long().write(asked, 0);
            (String::from_utf8(bytes).unwrap(), is_kept)
        };
        let (text, is_kept) = write(ASKED);
        assert!(is_kept && text.contains("GMT\r\nTransfer-Encoding: chunked\r\n\r\n801\r\naaa"), "{text}");
        assert!(text.ends_with("aaa\r\n0\r\n\r\n"));
        let (text, is_kept) = write(Asked { is_old: true, ..ASKED });
        assert!(!is_kept && text.contains("GMT\r\n\r\naaa") && text.ends_with("aaa"), "{text}");
        let (text, is_kept) = write(Asked { is_head: true, ..ASKED });
        assert!(is_kept && text.ends_with("GMT\r\n\r\n"), "{text}");
    }
}
