//! Runs on: connection core.
//!
//! The bytes of an accepted connection, over TCP or a Unix socket, encrypted or not.
//!
//! Invariant: bytes that were read to tell the protocol are read again by whoever serves the connection, in order and
//! once.

use std::{
    io::{self, IoSlice},
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};

use super::{
    channel::Socket,
    tls::session::{self, Session},
};

/// Longest wait for what a client says first: its first bytes, its first request, the preface of HTTP/2.
pub const SILENCE_MAX: Duration = Duration::from_secs(60);

/// Bytes that tell the protocol of a connection. **Units** bytes.
pub const FIRST_BYTES: usize = 4;

/// A connected socket between two threads.
#[derive(Debug)]
enum Detached {
    Tcp(std::net::TcpStream),
    Unix(std::os::unix::net::UnixStream),
}

/// The first bytes of a connection, until they are read again.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    bytes: [u8; FIRST_BYTES],
    len: usize,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Stream {
    socket: Socket,
    first: First,
    tls: Option<Box<Session>>,
}

/// The protocol that a handshake chose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chosen {
    /// HTTP/2.
    Http2,
    /// HTTP/1.1.
    Http1,
}

/// A [`Stream`] on its way to another thread.
#[derive(Debug)]
pub struct Parked {
    socket: Detached,
    first: First,
    tls: Option<Box<Session>>,
}

impl Stream {
    /// A connection of which nothing was read yet.
    pub fn new(socket: Socket) -> Self {
        Self { socket, first: First::default(), tls: None }
    }

    /// The client's address; a client of a Unix socket has none.
    pub fn remote(&self) -> Option<SocketAddr> {
        match &self.socket {
            Socket::Tcp(socket) => socket.peer_addr().ok(),
            Socket::Unix(_) => None,
        }
    }

    /// Whether the first bytes are `start`. It waits until they differ or are all there.
    ///
    /// **Errors** the socket's; the client sent less, and left.
    pub async fn begins_with(&mut self, start: [u8; FIRST_BYTES]) -> io::Result<bool> {
        loop {
            let First { bytes, len } = &mut self.first;
            if bytes[..*len] != start[..*len] {
                return Ok(false);
            }
            if *len == FIRST_BYTES {
                return Ok(true);
            }
            match (Below { socket: &mut self.socket, tls: &mut self.tls }).read(&mut bytes[*len..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => *len += count,
            }
        }
    }

    /// Whether what the client says is encrypted.
    pub fn is_secure(&self) -> bool {
        self.tls.is_some()
    }

    /// The protocol that was chosen when the connection was encrypted, if its client named any.
    pub fn chosen(&self) -> Option<Chosen> {
        match self.tls.as_ref()?.alpn_protocol()? {
            b"h2" => Some(Chosen::Http2),
            _ => Some(Chosen::Http1),
        }
    }

    /// Makes everything that follows encrypted by `tls`, whose handshake is over.
    pub fn encrypt(&mut self, tls: Session) {
        assert!(!tls.is_handshaking() && tls.protocol_version().is_some(), "it is set up");
        assert!(self.tls.is_none() && self.first.len == 0, "all that was read before belongs to the handshake");
        self.tls = Some(Box::new(tls));
    }

    /// Sends what `tls` has to say in its handshake.
    pub fn poll_send(&mut self, tls: &mut Session, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        session::poll_send(tls, &mut self.socket, cx)
    }

    /// Takes what the client says to `tls` in its handshake. See [`session::poll_take`].
    pub fn poll_take(
        &mut self,
        tls: &mut Session,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<Result<usize, rustls::Error>>> {
        session::poll_take(tls, self, cx)
    }

    /// The first byte, which is read again.
    ///
    /// **Errors** the socket's; the client left.
    pub async fn first_byte(&mut self) -> io::Result<u8> {
        let First { bytes, len } = &mut self.first;
        if *len == 0 {
            *len = self.socket.read(&mut bytes[..1]).await?;
        }
        if *len == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(bytes[0]) }
    }

    /// Whether the socket has something to read.
    #[cfg(test)]
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            Socket::Tcp(socket) => socket.poll_read_ready(cx),
            Socket::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    /// Takes the connection off the runtime of this thread.
    ///
    /// **Errors** the runtime's.
    pub fn park(self) -> io::Result<Parked> {
        let socket = match self.socket {
            Socket::Tcp(socket) => Detached::Tcp(socket.into_std()?),
            Socket::Unix(socket) => Detached::Unix(socket.into_std()?),
        };
        Ok(Parked { socket, first: self.first, tls: self.tls })
    }
}

impl Parked {
    /// The client's address; a client of a Unix socket has none.
    pub fn remote(&self) -> Option<SocketAddr> {
        match &self.socket {
            Detached::Tcp(socket) => socket.peer_addr().ok(),
            Detached::Unix(_) => None,
        }
    }

    /// Brings the connection onto the runtime of this thread.
    ///
    /// **Errors** the runtime's.
    pub fn unpark(self) -> io::Result<Stream> {
        let socket = match self.socket {
            Detached::Tcp(socket) => Socket::Tcp(TcpStream::from_std(socket)?),
            Detached::Unix(socket) => Socket::Unix(UnixStream::from_std(socket)?),
        };
        Ok(Stream { socket, first: self.first, tls: self.tls })
    }
}

/// What a connection reads once its first bytes are read.
struct Below<'a> {
    socket: &'a mut Socket,
    tls: &'a mut Option<Box<Session>>,
}

impl AsyncRead for Below<'_> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls } = self.get_mut();
        match tls {
            None => Pin::new(&mut **socket).poll_read(cx, buf),
            Some(tls) => session::poll_read(tls, socket, cx, buf),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { socket, first, tls } = self.get_mut();
        if first.len > 0 {
            let count = first.len.min(buf.remaining());
            buf.put_slice(&first.bytes[..count]);
            first.bytes.copy_within(count..first.len, 0);
            first.len -= count;
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut Below { socket, tls }).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { socket, tls, .. } = self.get_mut();
        match tls {
            None => Pin::new(socket).poll_write(cx, buf),
            Some(tls) => session::poll_write(tls, socket, cx, &[IoSlice::new(buf)]),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self { socket, tls, .. } = self.get_mut();
        match tls {
            None => Pin::new(socket).poll_write_vectored(cx, pieces),
            Some(tls) => session::poll_write(tls, socket, cx, pieces),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls, .. } = self.get_mut();
        match tls {
            None => Poll::Ready(Ok(())),
            Some(tls) => session::poll_send(tls, socket, cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { socket, tls, .. } = self.get_mut();
        if let Some(tls) = tls {
            tls.send_close_notify();
            ready!(session::poll_send(tls, socket, cx))?;
        }
        Pin::new(socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::UnixStream,
    };

    use super::*;

    #[tokio::test]
    async fn first_bytes_tell_the_protocol_and_are_read_again() {
        for (sent, is_preface) in [("PRI * HTTP", true), ("GET /", false), ("POST", false), ("P?", false)] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            drop(client);
            let mut stream = Stream::new(Socket::Unix(server));
            assert_eq!(stream.begins_with(*b"PRI ").await.unwrap(), is_preface, "{sent}");
            let mut stream = stream.park().unwrap().unpark().unwrap();
            let mut read = String::new();
            stream.read_to_string(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }

    #[tokio::test]
    async fn pieces_leave_together() {
        let (server, client) = UnixStream::pair().unwrap();
        let (mut stream, pieces) = (Stream::new(Socket::Unix(server)), ["a", "bc", "def"]);
        let written = stream.write_vectored(&pieces.map(|piece| IoSlice::new(piece.as_bytes()))).await.unwrap();
        let mut read = [0; 8];
        client.readable().await.unwrap();
        assert_eq!((written, client.try_read(&mut read).unwrap(), &read[..6]), (6, 6, &b"abcdef"[..]));
    }

    #[tokio::test]
    async fn a_client_that_leaves_before_its_first_bytes_is_seen_at_once() {
        for sent in ["", "P", "PRI"] {
            let (mut client, server) = UnixStream::pair().unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            drop(client);
            let error = Stream::new(Socket::Unix(server)).begins_with(*b"PRI ").await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
    }
}
