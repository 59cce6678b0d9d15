//! Runs on: handshake threads, connection core.
//!
//! The bytes of an encrypted connection: what the socket carries on one side, what the connection reads and writes on
//! the other.
//!
//! Invariants:
//! - Bytes that were taken are sent before further ones are taken: at most one write (64 KiB, rustls' own bound) waits
//!   encrypted.
//! - A connection that ends without the end of TLS is an error to its reader, as it may have been cut.

use std::{
    io::{self, IoSlice, Read, Write},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustls::Connection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::wire::channel::Socket;

/// See the head of this file.
pub type Session = Connection;

/// A socket as rustls wants it: it never waits, and the task is woken when it is worth another try.
struct Now<'a, 'b, S> {
    socket: &'a mut S,
    cx: &'a mut Context<'b>,
}

impl<S> Now<'_, '_, S> {
    fn is_ready<T>(polled: Poll<io::Result<T>>) -> io::Result<T> {
        match polled {
            Poll::Ready(result) => result,
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl<S: AsyncRead + Unpin> Read for Now<'_, '_, S> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut buf = ReadBuf::new(buf);
        Self::is_ready(Pin::new(&mut *self.socket).poll_read(self.cx, &mut buf))?;
        Ok(buf.filled().len())
    }
}

impl<S: AsyncWrite + Unpin> Write for Now<'_, '_, S> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        Self::is_ready(Pin::new(&mut *self.socket).poll_write(self.cx, buf))
    }

    fn write_vectored(&mut self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        Self::is_ready(Pin::new(&mut *self.socket).poll_write_vectored(self.cx, bufs))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pending_or<T>(error: io::Error) -> Poll<io::Result<T>> {
    if error.kind() == io::ErrorKind::WouldBlock { Poll::Pending } else { Poll::Ready(Err(error)) }
}

/// Sends what is encrypted and waits.
pub fn poll_send(tls: &mut Session, socket: &mut Socket, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
    while tls.wants_write() {
        match tls.write_tls(&mut Now { socket, cx }) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Ok(_) => {}
            Err(error) => return pending_or(error),
        }
    }
    Poll::Ready(Ok(()))
}

/// Takes what the socket has, and decrypts it. Returns the number of encrypted bytes; 0 at their end.
///
/// **Errors** the socket's; those of TLS, after the client was told as far as that was possible at once.
pub fn poll_take<S: AsyncRead + Unpin>(
    tls: &mut Session,
    from: &mut S,
    cx: &mut Context<'_>,
) -> Poll<io::Result<Result<usize, rustls::Error>>> {
    let count = match tls.read_tls(&mut Now { socket: from, cx }) {
        Ok(count) => count,
        Err(error) => return pending_or(error),
    };
    Poll::Ready(Ok(tls.process_new_packets().map(|_| count)))
}

/// Reads decrypted bytes.
pub fn poll_read(
    tls: &mut Session,
    socket: &mut Socket,
    cx: &mut Context<'_>,
    buf: &mut ReadBuf<'_>,
) -> Poll<io::Result<()>> {
    loop {
        match tls.reader().read(buf.initialize_unfilled()) {
            Ok(count) => {
                buf.advance(count);
                return Poll::Ready(Ok(()));
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Poll::Ready(Err(error)),
        }
        let taken = ready!(poll_take(tls, socket, cx))?;
        // Answers of TLS itself, such as to a new key or an alert. What the socket does not take now leaves with the
        // next write.
        if let Poll::Ready(Err(error)) = poll_send(tls, socket, cx) {
            return Poll::Ready(Err(error));
        }
        if let Err(error) = taken {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
        }
    }
}

/// Takes bytes to encrypt and send. It takes none before what it took earlier was sent.
pub fn poll_write(
    tls: &mut Session,
    socket: &mut Socket,
    cx: &mut Context<'_>,
    pieces: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    ready!(poll_send(tls, socket, cx))?;
    let count = tls.writer().write_vectored(pieces)?;
    match poll_send(tls, socket, cx) {
        Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        // The rest is sent by the next write or flush, for which this task is woken.
        Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
    }
}
