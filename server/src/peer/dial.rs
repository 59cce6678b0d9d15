//! Runs on: connection core, raft core, main thread.
//!
//! Connections to peer URLs.

use std::{io, net::IpAddr, time::Duration};

use socket2::TcpKeepalive;
use tokio::net::{TcpSocket, TcpStream, UnixStream, lookup_host};

use crate::{
    config::{Scheme, Url},
    wire::{channel::Socket, stream::Stream},
};

/// Silence after which another member's host is asked whether it is still there, and the time between two such
/// questions. **Source** etcd v3.7.1 `client/pkg/transport/timeout_dialer.go`.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Connects to the member at `url`, from the address `from` of this host if there is one given. Dropping the future
/// gives up.
///
/// **Errors** the system's; `InvalidInput` for a URL that is none; `Unsupported` for one with TLS, which is to come.
pub async fn dial(url: &str, from: Option<IpAddr>) -> io::Result<Stream> {
    let url = Url::parse(url).map_err(|why| io::Error::new(io::ErrorKind::InvalidInput, why.to_string()))?;
    match url.scheme {
        Scheme::Http => {
            let port = url.port.parse::<u16>();
            let port = port.map_err(|_not_a_port| io::Error::from(io::ErrorKind::InvalidInput))?;
            let socket = match from {
                None => TcpStream::connect((url.host.as_str(), port)).await?,
                Some(from) => connect_from(from, (&url.host, port)).await?,
            };
            refuse_itself(&socket)?;
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

/// Connects from the address `from` to the first address of the host that is of its kind and answers.
async fn connect_from(from: IpAddr, to: (&str, u16)) -> io::Result<TcpStream> {
    let mut failed = io::Error::new(io::ErrorKind::AddrNotAvailable, "the host has no address of that kind");
    for address in lookup_host(to).await?.filter(|address| address.is_ipv4() == from.is_ipv4()) {
        let socket = if from.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind((from, 0).into())?;
        match socket.connect(address).await {
            Ok(socket) => return Ok(socket),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Where nobody listens at a port from which the system may dial, a connection may come to be with itself. It would
/// keep whoever is to listen there from doing so.
fn refuse_itself(socket: &TcpStream) -> io::Result<()> {
    let is_itself = socket.local_addr()? == socket.peer_addr()?;
    if is_itself { Err(io::Error::new(io::ErrorKind::ConnectionRefused, "it is connected to itself")) } else { Ok(()) }
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
        let kind = async |url: &str| dial(url, None).await.map(drop).unwrap_err().kind();
        assert_eq!(kind("http://127.0.0.1:1").await, io::ErrorKind::ConnectionRefused);
        assert_eq!(kind("unix://no/such/socket").await, io::ErrorKind::NotFound);
        assert_eq!(kind("https://127.0.0.1:1").await, io::ErrorKind::Unsupported);
        for url in ["", "http://a", "http://127.0.0.1:99999", "ftp://a:1"] {
            assert_eq!(kind(url).await, io::ErrorKind::InvalidInput, "{url}");
        }
        assert_eq!((host_of("http://a:1"), host_of("unix://b/c")), ("a:1", "b"));
    }

    #[tokio::test]
    async fn a_connection_with_itself_is_none() {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let own = socket.local_addr().unwrap();
        let itself = socket.connect(own).await.unwrap();
        assert_eq!(refuse_itself(&itself).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn a_member_is_dialled_from_the_address_that_is_given() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let from: IpAddr = "127.0.0.7".parse().unwrap();
        let (dialled, accepted) = tokio::join!(dial(&url, Some(from)), listener.accept());
        assert_eq!((dialled.is_ok(), accepted.unwrap().1.ip()), (true, from));
        let error = dial(&url, Some("::1".parse().unwrap())).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrNotAvailable);
    }
}
