//! Runs on: main thread, before any core is started.
//!
//! The URLs of etcd's flags: lists of `scheme://host:port`, checked and refused in etcd's words.
//!
//! Invariants: an http or https `Url` has a host and a port, and no path. Lists are sorted by text and have no
//! duplicates, as in etcd. Names are never resolved here: no start waits for DNS.
//!
//! **Source**: etcd v3.7.1 `client/pkg/types/urls.go`, `server/embed/config.go`; Go's `net/url`.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use super::error::Invalid;

/// The protocol of a URL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Plaintext over TCP.
    Http,
    /// TLS over TCP.
    Https,
    /// Plaintext over a Unix socket.
    Unix,
    /// TLS over a Unix socket.
    Unixs,
}

/// One checked URL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    /// The protocol.
    pub scheme: Scheme,
    /// Host name or address, without brackets; for a Unix socket its path.
    pub host: String,
    /// The port as written; empty for a Unix socket.
    pub port: String,
    text: String,
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Whether who dials the URL `text` must speak TLS. The text need not be a URL.
pub fn needs_tls(text: &str) -> bool {
    let scheme = text.split_once(':').map(|(scheme, _)| scheme.trim_start());
    scheme.is_some_and(|scheme| ["https", "unixs"].iter().any(|secure| scheme.eq_ignore_ascii_case(secure)))
}

impl Url {
    /// One URL.
    ///
    /// **Errors**: etcd's or Go's text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        let (scheme, rest) = split_scheme(text)?;
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            "unix" => Scheme::Unix,
            "unixs" => Scheme::Unixs,
            _ => return Err(Invalid::UrlScheme(text.to_owned())),
        };
        if matches!(scheme, Scheme::Unix | Scheme::Unixs) {
            let host = rest.strip_prefix("//").unwrap_or(rest).to_owned();
            return Ok(Self { scheme, host, port: String::new(), text: text.to_owned() });
        }
        let no_address = || Invalid::UrlAddress(text.to_owned());
        let after = rest.strip_prefix("//").ok_or_else(no_address)?;
        let end = after.find(['/', '?', '#']).unwrap_or(after.len());
        let (authority, tail) = after.split_at(end);
        let address = authority.rsplit_once('@').map_or(authority, |(_user, address)| address);
        check_authority(text, address)?;
        let (host, port) = split_host_port(address).ok_or_else(no_address)?;
        if tail.starts_with('/') {
            return Err(Invalid::UrlPath(text.to_owned()));
        }
        Ok(Self { scheme, host: host.to_owned(), port: port.to_owned(), text: text.to_owned() })
    }

    /// Reads a comma-separated list. Returns it sorted, without duplicates.
    ///
    /// **Errors**: that of the first URL that is refused.
    pub fn parse_list(text: &str) -> Result<Vec<Self>, Invalid> {
        let mut urls = text.split(',').map(Self::parse).collect::<Result<Vec<_>, _>>()?;
        urls.sort_by(|a, b| a.text.cmp(&b.text));
        urls.dedup();
        Ok(urls)
    }

    /// The URL as text.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The address to listen on. `localhost` means 127.0.0.1, and an empty port means any port.
    ///
    /// **Errors**: etcd's text. Names are refused, because their addresses may change.
    pub fn bind_address(&self) -> Result<SocketAddr, Invalid> {
        let ip = match self.host.as_str() {
            "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            host => host.parse().map_err(|_not_an_address| Invalid::BindHost(self.text.clone()))?,
        };
        let port = if self.port.is_empty() { Ok(0) } else { self.port.parse() };
        let port = port.map_err(|_too_large| Invalid::BindPort(self.port.clone()))?;
        Ok(SocketAddr::new(ip, port))
    }
}

/// The texts of a list, separated by commas.
pub fn join(urls: &[Url]) -> String {
    urls.iter().map(Url::as_str).collect::<Vec<_>>().join(",")
}

/// Splits off the scheme, which may be empty, from the text after its colon. The rules are those of Go's `url.Parse`.
fn split_scheme(text: &str) -> Result<(&str, &str), Invalid> {
    let refused = |why: &str| Err(Invalid::Url { text: text.to_owned(), why: why.to_owned() });
    if text.bytes().any(|b| b.is_ascii_control()) {
        return refused("net/url: invalid control character in URL");
    }
    for (at, c) in text.char_indices() {
        match c {
            'a'..='z' | 'A'..='Z' => {}
            '0'..='9' | '+' | '-' | '.' if at > 0 => {}
            ':' if at == 0 => return refused("missing protocol scheme"),
            ':' => return Ok((&text[..at], &text[at + 1..])),
            _ => break,
        }
    }
    let first_segment = text.split('/').next().unwrap_or(text);
    if first_segment.contains(':') {
        return refused("first path segment in URL cannot contain colon");
    }
    Ok(("", text))
}

/// Go's checks of the host part.
fn check_authority(text: &str, address: &str) -> Result<(), Invalid> {
    let refused = |why: String| Err(Invalid::Url { text: text.to_owned(), why });
    if let Some(bad) = address.chars().find(|c| c.is_ascii() && " <>\"\\^`{|}".contains(*c)) {
        return refused(format!("invalid character \"{bad}\" in host name"));
    }
    let after_host = match address.strip_prefix('[') {
        Some(rest) => match rest.rsplit_once(']') {
            Some((_, after)) => after,
            None => return refused("missing ']' in host".into()),
        },
        None => address.rfind(':').map_or("", |colon| &address[colon..]),
    };
    let is_port = after_host.is_empty()
        || after_host.strip_prefix(':').is_some_and(|port| port.bytes().all(|b| b.is_ascii_digit()));
    if is_port { Ok(()) } else { refused(format!("invalid port {after_host:?} after host")) }
}

/// Go's `net.SplitHostPort`. The caller reports all its errors as one.
fn split_host_port(address: &str) -> Option<(&str, &str)> {
    let (host, port) = address.rsplit_once(':')?;
    match host.strip_prefix('[') {
        Some(inner) => inner.strip_suffix(']').map(|host| (host, port)),
        None if host.contains([':', '[', ']']) => None,
        None => Some((host, port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_taken_and_refused_in_the_words_of_etcd() {
        let rows = [
            ("http://localhost:2379", Ok(("localhost", "2379"))),
            (" http://127.0.0.1:2379 ", Ok(("127.0.0.1", "2379"))),
            ("https://[::1]:2379", Ok(("::1", "2379"))),
            ("HTTP://h:1", Ok(("h", "1"))),
            ("http://user@1.2.3.4:1", Ok(("1.2.3.4", "1"))),
            ("http://1.2.3.4:1?x=1", Ok(("1.2.3.4", "1"))),
            ("http://localhost:", Ok(("localhost", ""))),
            ("unix://foo", Ok(("foo", ""))),
            ("localhost:2379", Err("URL scheme must be http, https, unix, or unixs: localhost:2379")),
            ("ftp://localhost:2379", Err("URL scheme must be http, https, unix, or unixs: ftp://localhost:2379")),
            ("", Err("URL scheme must be http, https, unix, or unixs: ")),
            ("foo", Err("URL scheme must be http, https, unix, or unixs: foo")),
            ("http://localhost", Err("URL address does not have the form \"host:port\": http://localhost")),
            ("http://::1:2379", Err("URL address does not have the form \"host:port\": http://::1:2379")),
            ("http://localhost:2379/path", Err("URL must not contain a path: http://localhost:2379/path")),
            ("http://localhost:2379/", Err("URL must not contain a path: http://localhost:2379/")),
            ("http://[::1:2379", Err("parse \"http://[::1:2379\": missing ']' in host")),
            ("http://a b:1", Err("parse \"http://a b:1\": invalid character \" \" in host name")),
            ("http://localhost:x", Err("parse \"http://localhost:x\": invalid port \":x\" after host")),
            ("://a", Err("parse \"://a\": missing protocol scheme")),
            ("1.2.3.4:80", Err("parse \"1.2.3.4:80\": first path segment in URL cannot contain colon")),
        ];
        for (text, want) in rows {
            let got = Url::parse(text).map(|url| (url.host, url.port));
            let want = want.map(|(h, p)| (h.to_owned(), p.to_owned())).map_err(str::to_owned);
            assert_eq!(got.map_err(|why| why.to_string()), want, "{text:?}");
        }
    }

    #[test]
    fn lists_are_sorted_without_repetitions_and_name_their_first_fault() {
        let urls = Url::parse_list("http://b:1,http://a:1,http://b:1").unwrap();
        assert_eq!(join(&urls), "http://a:1,http://b:1");
        assert!(Url::parse_list("http://a:1,,").is_err());
    }

    #[test]
    fn only_addresses_and_localhost_are_bound() {
        let bind = |text| Url::parse(text).unwrap().bind_address();
        assert_eq!(bind("http://localhost:2379").unwrap().to_string(), "127.0.0.1:2379");
        assert_eq!(bind("http://[::]:1").unwrap().to_string(), "[::]:1");
        assert_eq!(bind("http://0.0.0.0:").unwrap().to_string(), "0.0.0.0:0");
        assert_eq!(
            bind("http://example.com:2379").unwrap_err().to_string(),
            "expected IP in URL for binding (http://example.com:2379)"
        );
        assert_eq!(bind("http://localhost:99999").unwrap_err().to_string(), "listen tcp: address 99999: invalid port");
    }
}
