//! Runs on: connection core.
//!
//! Finds the protocol that an accepted connection speaks, and counts the connection.
//!
//! Bounds: a client that sends nothing is let go after [`SILENCE_MAX`], here or by the protocol that was chosen when
//! its connection was encrypted.

use std::{
    io,
    rc::Rc,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::watch;

use super::{
    endpoints::{self, Port},
    http1::{self, Taking, Waits},
    http2::{self, Traffic},
    stream::{Chosen, FIRST_BYTES, Parked, SILENCE_MAX, Stream},
    tls::refusal::Refusal,
};
use crate::{api::desk::Desk, shared::Connections};

/// The first bytes of a client of HTTP/2.
const PREFACE: [u8; FIRST_BYTES] = *b"PRI ";

/// The first byte of a client of TLS: the type of a handshake's record.
const HANDSHAKE_RECORD: u8 = 22;

/// What a port serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serves {
    /// Clients: gRPC, and HTTP beside it.
    Clients,
    /// Clients, where other ports serve HTTP.
    Grpc,
    /// HTTP for clients, where other ports serve gRPC.
    Http,
    /// Metrics and health.
    Metrics,
    /// Other members.
    Peers,
}

impl Serves {
    /// Whether the port is for clients.
    pub fn is_for_clients(self) -> bool {
        matches!(self, Self::Clients | Self::Grpc | Self::Http)
    }

    /// The traffic of a client port, in etcd's words.
    pub fn traffic(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Http => "http",
            Self::Clients | Self::Metrics | Self::Peers => "grpc+http",
        }
    }
}

/// An accepted connection on its way to the core that serves it. It counts for that core from the moment it is
/// assigned. So many connections that come at once are spread over the cores.
#[derive(Debug)]
pub struct Connection {
    stream: Parked,
    serves: Serves,
    takes_plaintext: bool,
    count: Count,
}

/// Counts one connection of a core, as long as it lives.
#[derive(Debug)]
pub struct Count {
    connections: Arc<Connections>,
    core: usize,
}

impl Count {
    /// The connections among which it counts.
    pub fn connections(&self) -> &Arc<Connections> {
        &self.connections
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        self.connections.of(self.core).fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Takes `stream` off the runtime of this thread, and assigns it to the core at position `core`. `takes_plaintext`
    /// says whether its client may do without TLS.
    ///
    /// **Errors** the runtime's.
    pub fn new(
        stream: Stream,
        serves: Serves,
        takes_plaintext: bool,
        connections: &Arc<Connections>,
        core: usize,
    ) -> io::Result<Self> {
        connections.of(core).fetch_add(1, Ordering::Relaxed);
        let count = Count { connections: Arc::clone(connections), core };
        Ok(Self { stream: stream.park()?, serves, takes_plaintext, count })
    }

    /// What its port serves.
    pub fn serves(&self) -> Serves {
        self.serves
    }

    /// The client's address, for the log. A client of a Unix socket has Go's name for none.
    pub fn remote(&self) -> String {
        self.stream.remote().map_or_else(|| "@".to_owned(), |address| address.to_string())
    }

    /// Encrypts the connection by `handshake`. Where its port takes plaintext too, a client that does not begin with
    /// TLS is left as it is.
    ///
    /// **Errors** the handshake's.
    pub async fn encrypted(
        self,
        handshake: impl AsyncFnOnce(Stream) -> Result<Stream, Refusal>,
    ) -> Result<Self, Refusal> {
        let Self { stream, serves, takes_plaintext, count } = self;
        let mut stream = stream.unpark().map_err(Refusal::Socket)?;
        if !takes_plaintext || stream.first_byte().await.map_err(Refusal::Socket)? == HANDSHAKE_RECORD {
            stream = handshake(stream).await?;
        }
        let stream = stream.park().map_err(Refusal::Socket)?;
        Ok(Self { stream, serves, takes_plaintext, count })
    }

    /// The stream, on the runtime of this thread, and what counts the connection.
    ///
    /// **Errors** the runtime's.
    pub fn open(self) -> io::Result<(Stream, Count)> {
        Ok((self.stream.unpark()?, self.count))
    }

    /// The position of the core that serves it.
    pub fn core(&self) -> usize {
        self.count.core
    }
}

/// Serves one connection until it ends.
pub async fn serve(desk: Rc<Desk>, connection: Connection, options: http2::Options, stop: watch::Receiver<bool>) {
    let Connection { stream, serves, count, .. } = connection;
    let served = match stream.unpark() {
        Ok(stream) => serve_stream(desk, stream, serves, &options, stop).await,
        Err(error) => Err(error),
    };
    if let Err(error) = served {
        tracing::debug!(%error, "a connection ended");
    }
    drop(count);
}

async fn serve_stream(
    desk: Rc<Desk>,
    mut stream: Stream,
    serves: Serves,
    options: &http2::Options,
    stop: watch::Receiver<bool>,
) -> io::Result<()> {
    let port = match serves {
        Serves::Clients | Serves::Grpc | Serves::Http => Port::Clients,
        Serves::Metrics => Port::Metrics,
        Serves::Peers => unreachable!("the port for other members is served by `peer`"),
    };
    let is_http2 = match (stream.chosen(), serves) {
        (Some(chosen), _) => chosen == Chosen::Http2,
        (None, Serves::Metrics) => false,
        (None, _) => match speaks_http2(&mut stream, SILENCE_MAX).await? {
            Some(speaks) => speaks,
            None => return Ok(()),
        },
    };
    // Like etcd's, an encrypted port of HTTP speaks HTTP/2, too, and one for all looks at each request's content.
    let traffic = match (serves, stream.is_secure()) {
        (Serves::Clients, true) => Some(Traffic::Both(port)),
        (Serves::Clients | Serves::Grpc, _) => Some(Traffic::Grpc),
        (Serves::Http | Serves::Metrics, true) => Some(Traffic::Http(port)),
        (Serves::Http | Serves::Metrics, _) | (Serves::Peers, _) => None,
    };
    match (is_http2, traffic) {
        (true, Some(traffic)) => http2::serve(desk, stream, traffic, options, stop).await,
        (false, _) if serves != Serves::Grpc => {
            let now = || desk.clock.unix_us();
            let answer = async |request: http1::Request| endpoints::answer(&desk, port, &request).await;
            let taking = |_: &http1::Request| Taking::Dropped;
            http1::serve(stream, stop, Waits::default(), now, taking, answer).await.map(drop)
        }
        // Like etcd, a port closes a connection of a protocol that it does not serve.
        _ => Ok(()),
    }
}

/// Whether a client's first bytes are those of HTTP/2; `None` if they have not come after `silence_max`.
///
/// **Errors** the socket's; the client left.
async fn speaks_http2(stream: &mut Stream, silence_max: Duration) -> io::Result<Option<bool>> {
    tokio::time::timeout(silence_max, stream.begins_with(PREFACE)).await.ok().transpose()
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::UnixStream};

    use super::*;
    use crate::wire::channel::Socket;

    #[tokio::test]
    async fn a_client_that_stays_silent_is_let_go_and_one_that_speaks_is_not() {
        let silence_max = Duration::from_millis(20);
        let cases = [("", None), ("PRI", None), ("PRI ", Some(true)), ("PUT", Some(false)), ("GET ", Some(false))];
        for (sent, speaks) in cases {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut stream = Stream::new(Socket::Unix(server));
            assert_eq!(speaks_http2(&mut stream, silence_max).await.unwrap(), speaks, "{sent}");
        }
    }
}
