//! HTTP/1.1 as members speak it: heads of requests and of answers, and bodies as they arrive.
//!
//! Invariants: a head takes at most [`HEAD_BYTES_MAX`]; what is longer, or is no head, is refused. A body knows its
//! end: by a length, by its chunks, or by that of the connection. Bytes behind a body belong to the next head.
//!
//! It knows no endpoint, no member and no header's meaning beyond those of framing.

use bytes::{Buf, Bytes, BytesMut};

use crate::error::Error;

/// **Units**: bytes.
pub const HEAD_BYTES_MAX: usize = 32 << 10;

/// Header lines of a head at most.
const HEADERS_MAX: usize = 64;

/// Bytes of the line before a chunk at most. Go takes 4096 of them with extensions; members send none.
const CHUNK_LINE_MAX: usize = 256;

fn malformed<T>(what: &'static str) -> Result<T, Error> {
    Err(Error::Malformed { what })
}

/// Header lines: lower-case names with their values, in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// These lines, whose names are in lower case.
    pub fn new(lines: Vec<(String, String)>) -> Self {
        Self(lines)
    }

    fn of(parsed: &[httparse::Header<'_>]) -> Result<Self, Error> {
        let line = |header: &httparse::Header<'_>| {
            let value = std::str::from_utf8(header.value).or(malformed("HTTP head: a value that is not text"))?;
            Ok((header.name.to_ascii_lowercase(), value.to_owned()))
        };
        parsed.iter().map(line).collect::<Result<_, Error>>().map(Self)
    }

    /// The first value of the header `name`, which is in lower case. Empty if there is none, as in Go.
    pub fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value.as_str())
    }

    fn has_token(&self, name: &str, token: &str) -> bool {
        let values = self.0.iter().filter(|(found, _)| found == name);
        values.flat_map(|(_, value)| value.split(',')).any(|item| item.trim().eq_ignore_ascii_case(token))
    }

    /// The body of a request with these headers.
    ///
    /// **Errors**: `Malformed`.
    pub fn request_body(&self) -> Result<Body, Error> {
        self.body(Left::Bytes(0))
    }

    /// The body behind these headers; `otherwise` if they say nothing of one.
    fn body(&self, otherwise: Left) -> Result<Body, Error> {
        let left = if self.has_token("transfer-encoding", "chunked") {
            Left::Line
        } else {
            match self.get("content-length") {
                "" => otherwise,
                length if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                    Left::Bytes(length.parse().or(malformed("HTTP head: a length"))?)
                }
                _ => return malformed("HTTP head: a length"),
            }
        };
        Ok(Body { left })
    }
}

/// The head of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path, with the query if there is one.
    pub path: String,
    /// Header lines.
    pub headers: Headers,
    /// Whether another request may follow on the connection.
    pub is_kept: bool,
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Header lines.
    pub headers: Headers,
    /// Whether the connection may be used for another request.
    pub is_kept: bool,
}

/// What httparse says of a head at the beginning of `buffer`: its length, if it is all there.
fn is_complete(parsed: httparse::Result<usize>, buffer: &[u8]) -> Result<Option<usize>, Error> {
    match parsed {
        Ok(httparse::Status::Complete(len)) if len <= HEAD_BYTES_MAX => Ok(Some(len)),
        Ok(httparse::Status::Partial) if buffer.len() < HEAD_BYTES_MAX => Ok(None),
        Ok(_) => malformed("HTTP head: it is too long"),
        Err(_) => malformed("HTTP head"),
    }
}

/// Whether a connection with this version and these headers lives on.
fn is_kept(version: Option<u8>, headers: &Headers) -> bool {
    match version {
        Some(1) => !headers.has_token("connection", "close"),
        _ => headers.has_token("connection", "keep-alive"),
    }
}

/// Takes the head of a request off `buffer`, if it is all there, with what its body is.
///
/// **Errors**: `Malformed`.
pub fn take_request(buffer: &mut BytesMut) -> Result<Option<(Request, Body)>, Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let status = parsed.parse(buffer);
    let Some(len) = is_complete(status, buffer)? else { return Ok(None) };
    let headers = Headers::of(parsed.headers)?;
    let request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: parsed.path.unwrap_or_default().to_owned(),
        is_kept: is_kept(parsed.version, &headers),
        headers,
    };
    let body = request.headers.request_body()?;
    buffer.advance(len);
    Ok(Some((request, body)))
}

/// Takes the head of an answer off `buffer`, if it is all there, with what its body is.
///
/// **Errors**: `Malformed`.
pub fn take_answer(buffer: &mut BytesMut) -> Result<Option<(Answer, Body)>, Error> {
    loop {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut headers);
        let status = parsed.parse(buffer);
        let Some(len) = is_complete(status, buffer)? else { return Ok(None) };
        let headers = Headers::of(parsed.headers)?;
        let status = parsed.code.unwrap_or_default();
        let kept = is_kept(parsed.version, &headers);
        buffer.advance(len);
        if status == 100 {
            continue; // It announces the answer.
        }
        let has_no_body = status < 200 || status == 204 || status == 304;
        let body = if has_no_body { Body { left: Left::Bytes(0) } } else { headers.body(Left::Connection)? };
        let is_kept = kept && body.left != Left::Connection;
        return Ok(Some((Answer { status, headers, is_kept }, body)));
    }
}

/// What is left of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// So many bytes.
    Bytes(u64),
    /// All that comes on the connection.
    Connection,
    /// A line with the length of a chunk.
    Line,
    /// So many bytes of a chunk.
    Chunk(u64),
    /// The line end behind a chunk.
    ChunkEnd,
    /// Lines behind the last chunk, up to an empty one.
    Trailer,
}

/// A body, as far as it has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Body {
    left: Left,
}

impl Body {
    /// Whether all of it was taken. A body without length or chunks is over when its connection is.
    pub fn is_over(&self) -> bool {
        self.left == Left::Bytes(0)
    }

    /// Whether its end is that of the connection.
    pub fn ends_with_connection(&self) -> bool {
        self.left == Left::Connection
    }

    /// The length that is left, if that is known. **Units**: bytes.
    pub fn len_left(&self) -> Option<u64> {
        if let Left::Bytes(left) = self.left { Some(left) } else { None }
    }

    /// Takes the next bytes of the body off `buffer`. `None` if they have not arrived, or if the body is over.
    ///
    /// **Errors**: `Malformed`.
    pub fn take(&mut self, buffer: &mut BytesMut) -> Result<Option<Bytes>, Error> {
        loop {
            let left = match self.left {
                Left::Bytes(left) | Left::Chunk(left) => left,
                Left::Connection => u64::MAX,
                Left::Line | Left::ChunkEnd | Left::Trailer => match take_line(buffer)? {
                    None => return Ok(None),
                    Some(line) => {
                        self.left = self.after(&line)?;
                        continue;
                    }
                },
            };
            let taken = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            if taken == 0 {
                return Ok(None);
            }
            let bytes = buffer.split_to(taken).freeze();
            let left = left - taken as u64;
            self.left = match self.left {
                Left::Bytes(_) => Left::Bytes(left),
                Left::Chunk(_) if left == 0 => Left::ChunkEnd,
                Left::Chunk(_) => Left::Chunk(left),
                other => other,
            };
            return Ok(Some(bytes));
        }
    }

    /// What is left behind a line of a chunked body.
    fn after(&self, line: &[u8]) -> Result<Left, Error> {
        match self.left {
            Left::Line => {
                let size = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let is_hex = !size.is_empty() && size.len() <= 16 && size.iter().all(u8::is_ascii_hexdigit);
                let size = std::str::from_utf8(size).ok().filter(|_| is_hex);
                let size = size.and_then(|size| u64::from_str_radix(size, 16).ok());
                match size.ok_or(Error::Malformed { what: "HTTP body: the length of a chunk" })? {
                    0 => Ok(Left::Trailer),
                    size => Ok(Left::Chunk(size)),
                }
            }
            Left::ChunkEnd if line.is_empty() => Ok(Left::Line),
            Left::ChunkEnd => malformed("HTTP body: the end of a chunk"),
            Left::Trailer => Ok(if line.is_empty() { Left::Bytes(0) } else { Left::Trailer }),
            Left::Bytes(_) | Left::Connection | Left::Chunk(_) => unreachable!("no line is expected"),
        }
    }
}

/// Takes a line off `buffer`, if all of it has arrived, without its end.
fn take_line(buffer: &mut BytesMut) -> Result<Option<Bytes>, Error> {
    let Some(end) = buffer.iter().take(CHUNK_LINE_MAX).position(|byte| *byte == b'\n') else {
        return if buffer.len() < CHUNK_LINE_MAX { Ok(None) } else { malformed("HTTP body: a line is too long") };
    };
    let line = buffer.split_to(end + 1).freeze();
    let line = line.slice(..end);
    Ok(Some(if line.ends_with(b"\r") { line.slice(..end - 1) } else { line }))
}

/// The bytes in front of a chunk of `len` bytes, which has at least one. Behind it comes [`CHUNK_END`].
pub fn chunk_head(len: usize) -> Bytes {
    assert!(len > 0, "an empty chunk ends a body");
    Bytes::from(format!("{len:x}\r\n"))
}

/// The bytes behind a chunk.
pub const CHUNK_END: &[u8] = b"\r\n";

/// The end of a chunked body.
pub const BODY_END: &[u8] = b"0\r\n\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(text: &str) -> BytesMut {
        BytesMut::from(text.as_bytes())
    }

    fn all(body: &mut Body, buffer: &mut BytesMut) -> Vec<u8> {
        let mut whole = Vec::new();
        while let Some(part) = body.take(buffer).unwrap() {
            whole.extend_from_slice(&part);
        }
        whole
    }

    #[test]
    fn a_body_ends_where_it_says_and_the_next_head_follows() {
        let chunked = "POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
            3\r\nabc\r\nA;x=y\r\n0123456789\r\n0\r\nT: v\r\n\r\n";
        let counted = "POST /b?c HTTP/1.1\r\ncontent-LENGTH: 4\r\nConnection: Close\r\n\r\nbody";
        let text = [chunked, counted].concat();
        // Whatever arrives first.
        for cut in 0..text.len() {
            let mut buffer = buffer(&text[..cut]);
            let (mut bodies, mut heads, mut body, mut rest) = (vec![], vec![], None::<Body>, &text.as_bytes()[cut..]);
            loop {
                match &mut body {
                    None => match take_request(&mut buffer).unwrap() {
                        Some((head, next)) => {
                            heads.push((head.path, head.is_kept));
                            bodies.push(Vec::new());
                            body = Some(next);
                            continue;
                        }
                        None if rest.is_empty() => break,
                        None => {}
                    },
                    Some(under_way) => {
                        bodies.last_mut().unwrap().extend(all(under_way, &mut buffer));
                        if under_way.is_over() {
                            body = None;
                            continue;
                        }
                    }
                }
                buffer.extend_from_slice(&rest[..1]);
                rest = &rest[1..];
            }
            assert_eq!(heads, [("/a".into(), true), ("/b?c".into(), false)], "{cut}");
            assert_eq!(bodies, [&b"abc0123456789"[..], b"body"], "{cut}");
        }
    }

    #[test]
    fn answers_have_bodies_by_their_status_their_length_or_their_connection() {
        let read = |text: &str| {
            let mut buffer = buffer(text);
            let (answer, mut body) = take_answer(&mut buffer).unwrap().unwrap();
            let found = all(&mut body, &mut buffer);
            (answer.status, answer.is_kept, body.is_over(), String::from_utf8(found).unwrap())
        };
        let no_content = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\nX: y\r\n\r\n";
        assert_eq!(read(no_content), (204, true, true, String::new()));
        assert_eq!(read("HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno"), (404, true, true, "no".into()));
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nwhatever comes"), (200, false, false, "whatever comes".into()));
    }

    #[test]
    fn what_is_no_head_or_no_chunk_is_refused() {
        let mut endless = buffer(&format!("GET / HTTP/1.1\r\nA: {}", "a".repeat(HEAD_BYTES_MAX)));
        assert!(take_request(&mut endless).is_err());
        for head in ["\0", "GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", "GET / HTTP/1.1\r\nA: \u{e9}\r\n\r\n"] {
            let refused = take_request(&mut buffer(head));
            assert_eq!(refused.is_err(), !head.contains('\u{e9}'), "{head:?}");
        }
        assert!(take_request(&mut BytesMut::from(&b"GET / HTTP/1.1\r\nA: \xff\r\n\r\n"[..])).is_err());
        let long_line = "a".repeat(CHUNK_LINE_MAX);
        for body in ["x\r\n", "\r\n", "11111111111111111\r\n", "+1\r\na\r\n", "1\r\nab", &long_line] {
            let mut buffer = buffer(&format!("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{body}\r\n"));
            let (_, mut chunks) = take_request(&mut buffer).unwrap().unwrap();
            let refused = (0..3).any(|_| chunks.take(&mut buffer).is_err());
            assert!(refused, "{body:?}");
        }
        assert_eq!(chunk_head(26)[..], b"1a\r\n"[..]);
    }
}
