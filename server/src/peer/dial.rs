//! Runs on: connection core, raft core, main thread.
//!
//! Connections to peer URLs.

use std::{io, time::Duration};

use socket2::TcpKeepalive;
use tokio::net::{TcpStream, UnixStream};

use crate::{
    config::{Scheme, Url},
    wire::{channel::Socket, stream::Stream},
};

/// Silence after which another member's host is asked whether it is still there, and the time between two such
/// questions. **Source** etcd v3.7.1 `client/pkg/transport/timeout_dialer.go`.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connects to the member at `url`. Dropping the future gives up.
///
/// **Errors** the system's; `InvalidInput` for a URL that is none; `Unsupported` for one with TLS, which is to come.
pub async fn dial(url: &str) -> io::Result<Stream> {
    let url = Url::parse(url).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why.to_string()))?;
    match url.scheme {
        Scheme::Http => {
            let port = url.port.parse::<u16>();
            let port = port.map_err(|_not_a_port| io::Error::from(io::ErrorKind::InvalidInput))?;
            let socket = TcpStream::connect((url.host.as_str(), port)).await?;
            socket.set_nodelay(true)?;
            let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE);
            socket2::SockRef::from(&socket).set_tcp_keepalive(&keepalive)?;
            Ok(Stream::new(Socket::Tcp(socket)))
        }
        Scheme::Unix => Ok(Stream::new(Socket::Unix(UnixStream::connect(&url.host).await?))),
        Scheme::Https | Scheme::Unixs => {
            Err(io::Error::new(io::ErrorKind::Unsupported, "TLS between members is not supported yet"))
        }
    }
}

/// What a request to `url` names as its host.
pub fn host_of(url: &str) -> &str {
    let host = url.split_once("://").map_or(url, |(_, rest)| rest);
    // Go names a Unix socket by its path, cut at its first slash.
    host.split('/').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_url_that_leads_nowhere_says_why() {
        let kind = async |url: &str| dial(url).await.map(drop).unwrap_err().kind();
        assert_eq!(kind("http://127.0.0.1:1").await, io::ErrorKind::ConnectionRefused);
        assert_eq!(kind("unix://no/such/socket").await, io::ErrorKind::NotFound);
        assert_eq!(kind("https://127.0.0.1:1").await, io::ErrorKind::Unsupported);
        for url in ["", "http://a", "http://127.0.0.1:99999", "ftp://a:1"] {
            assert_eq!(kind(url).await, io::ErrorKind::InvalidInput, "{url}");
        }
        assert_eq!((host_of("http://a:1"), host_of("unix://b/c")), ("a:1", "b"));
    }
}
