//! Runs on: connection core.
//!
//! Reads the head of a request, and refuses what is none in the words of Go's server.
//!
//! **Source** Go 1.26 `net/http/{server,request}.go`, `net/url`, and the answers of a running one.

use bytes::Bytes;
use consensus::peer::http1::Headers;

use super::response::Refusal;

/// Header lines of a head at most.
const HEADERS_MAX: usize = 128;
/// A body up to this length is read and dropped, so that its connection can be used on. **Units** bytes. **Source** Go
/// 1.26 `net/http/server.go` `maxPostHandlerReadBytes`.
const BODY_BYTES_MAX: usize = 256 << 10;

/// A request, as far as the endpoints read it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The method as given.
    pub method: String,
    /// The path without the query, as given.
    pub raw_path: String,
    /// The path, decoded.
    pub path: String,
    /// What follows `?`, undecoded.
    pub query: String,
    /// Header lines. What is not text in their values is replaced.
    pub headers: Headers,
    /// The body, where the port reads bodies.
    pub body: Bytes,
    /// The body is longer than the port reads.
    pub is_cut: bool,
}

impl Request {
    /// The request of `method` for `text`: a path with its query, a URL, or `*`. `None` if it is neither.
    pub fn of(method: &str, text: &str) -> Option<Self> {
        target(method.to_owned(), text)
    }

    /// The decoded values of a parameter of the query. As in Go, a pair that does not decode is left out, and so is one
    /// with a semicolon.
    pub fn values<'a>(&'a self, name: &'a str) -> impl Iterator<Item = String> + 'a {
        let pairs = self.query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';'));
        pairs.filter_map(move |pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| decoded(&text.replace('+', " "));
            (decode(key)? == name).then(|| decode(value)).flatten()
        })
    }
}

/// A request head, and how to go on after it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) request: Request,
    /// Length of the head. **Units** bytes.
    pub(super) len: usize,
    /// Length of the body, which is dropped. **Units** bytes.
    pub(super) body_len: usize,
    /// Whether the client speaks HTTP/1.0.
    pub(super) is_old: bool,
    /// Whether the connection may be used for another request.
    pub(super) keep_alive: bool,
}

/// The head at the beginning of `buffer`; `None` if more bytes are needed.
///
/// **Errors** bytes that are no request.
pub(super) fn parse(buffer: &[u8]) -> Result<Option<Head>, Refusal> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let len = match parsed.parse(buffer) {
        Ok(httparse::Status::Complete(len)) => len,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::HeaderName) => return Err(Refusal::HeaderName),
        Err(httparse::Error::Version) => return Err(Refusal::Version),
        Err(httparse::Error::TooManyHeaders) => return Err(Refusal::TooLarge),
        Err(_) => return Err(Refusal::Malformed),
    };
    let is_old = parsed.version == Some(0);
    let values = |name: &'static str| {
        parsed.headers.iter().filter(move |header| header.name.eq_ignore_ascii_case(name)).map(|header| header.value)
    };
    match values("host").count() {
        0 if !is_old => return Err(Refusal::NoHost),
        0 | 1 => {}
        _ => return Err(Refusal::Malformed),
    }
    let has_token = |name: &'static str, token: &str| {
        let all = values(name).flat_map(|value| value.split(|byte| *byte == b','));
        all.into_iter().any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
    };
    let body_len = match values("content-length").next() {
        None => Some(0),
        Some(value) => Some(length(value).ok_or(Refusal::Malformed)?),
    };
    // A body without a length, or a long one, is not read: the connection ends after the answer. So it does where the
    // client waits to be asked for the body.
    let is_unread = values("transfer-encoding").next().is_some() || values("expect").next().is_some();
    let body_len = body_len.filter(|len| *len <= BODY_BYTES_MAX && !is_unread);
    let is_kept = if is_old { has_token("connection", "keep-alive") } else { !has_token("connection", "close") };
    let method = parsed.method.unwrap_or_default().to_owned();
    let mut request = target(method, parsed.path.unwrap_or_default()).ok_or(Refusal::Malformed)?;
    let line = |header: &httparse::Header<'_>| {
        let value = std::str::from_utf8(header.value);
        let value = value.map_or_else(|_not_text| header.value.escape_ascii().to_string(), str::to_owned);
        (header.name.to_ascii_lowercase(), value)
    };
    request.headers = Headers::new(parsed.headers.iter().map(line).collect());
    let keep_alive = is_kept && body_len.is_some();
    Ok(Some(Head { request, len, body_len: body_len.unwrap_or(0), is_old, keep_alive }))
}

fn length(value: &[u8]) -> Option<usize> {
    let is_number = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(value).ok()?.parse().ok()).flatten()
}

/// The request of `method` for `target`: a path, a URL, or `*`.
fn target(method: String, target: &str) -> Option<Request> {
    let local = match target.split_once("://") {
        Some((_, rest)) if !target.starts_with('/') => &rest[rest.find(['/', '?']).unwrap_or(rest.len())..],
        _ => target,
    };
    let (raw_path, query) = local.split_once('?').unwrap_or((local, ""));
    if !raw_path.starts_with('/') && raw_path != "*" && local.len() == target.len() {
        return None;
    }
    let path = decoded(raw_path)?;
    let (raw_path, query) = (raw_path.to_owned(), query.to_owned());
    Some(Request { method, raw_path, path, query, ..Request::default() })
}

/// `text` with its `%xx` replaced by what they stand for.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, behind)) = rest.split_first() {
        rest = behind;
        if *first == b'%' {
            let (digits, behind) = rest.split_at_checked(2)?;
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = behind;
        } else {
            bytes.push(*first);
        }
    }
    // No endpoint has a name that is not text, so what is unknown may stay unknown.
    Some(String::from_utf8(bytes).unwrap_or_else(|error| error.into_bytes().escape_ascii().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Head {
        parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn targets_are_paths_urls_or_an_asterisk() {
        let request = |target: &str| parse(format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes());
        let path = |target: &str| request(target).unwrap().unwrap().request.path;
        assert_eq!(path("/he%61lth?x=%zz"), "/health");
        assert_eq!(path("/health%2f"), "/health/");
        assert_eq!(path("http://x/health?y"), "/health");
        assert_eq!((path("*"), path("http://x"), path("/a://b")), ("*".into(), String::new(), "/a://b".into()));
        for target in ["health", "/%zz", "/%+1", "/%f"] {
            assert_eq!(request(target), Err(Refusal::Malformed), "{target}");
        }
    }

    #[test]
    fn a_query_gives_the_pairs_that_decode() {
        let query = "exclude=non%5flearner&exclude=&exclude=%zz&a;exclude=b&verbose&exclude=a+b";
        let head = head(&format!("GET /?{query} HTTP/1.1\r\nHost: x\r\n\r\n"));
        assert_eq!(head.request.values("exclude").collect::<Vec<_>>(), ["non_learner", "", "a b"]);
        assert_eq!(head.request.values("verbose").collect::<Vec<_>>(), [""]);
    }

    #[test]
    fn a_connection_is_used_on_unless_a_side_or_a_body_forbids_it() {
        let keeps =
            |version: &str, lines: &str| head(&format!("POST / HTTP/{version}\r\nHost: x\r\n{lines}\r\n")).keep_alive;
        assert!(keeps("1.1", "") && keeps("1.1", "Content-Length: 5\r\n") && keeps("1.1", "Connection: x\r\n"));
        assert!(keeps("1.0", "Connection: Keep-Alive\r\n") && !keeps("1.0", ""));
        assert!(!keeps("1.1", "Connection: a, Close\r\n") && !keeps("1.1", "Transfer-Encoding: chunked\r\n"));
        assert!(!keeps("1.1", "Content-Length: 262145\r\n") && !keeps("1.1", "Expect: 100-continue\r\n"));
    }

    #[test]
    fn what_is_no_request_is_refused() {
        let refused = |text: &str| parse(text.as_bytes()).unwrap_err();
        assert_eq!(refused("GET / HTTP/1.1\r\n\r\n"), Refusal::NoHost);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n"), Refusal::Malformed);
        assert_eq!(refused("GET / HTTP/1.1\r\nHost: x\r\nContent-Length: +1\r\n\r\n"), Refusal::Malformed);
        assert_eq!(refused("GET / HTTP/1.1\r\nBad Name: x\r\n\r\n"), Refusal::HeaderName);
        assert_eq!(refused("GET / HTTP/2.0\r\nHost: x\r\n\r\n"), Refusal::Version);
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(refused(&many), Refusal::TooLarge);
    }
}
