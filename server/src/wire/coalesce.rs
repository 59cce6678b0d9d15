//! Runs on: connection core.
//!
//! The writer below h2: everything that one turn of a connection produces leaves in one system call.
//!
//! h2 flushes for each DATA frame above its chaining threshold. Here a flush asked for by h2 only means "soon"; the
//! connection's own loop calls [`Output::poll_drain`] once at the end of its turn. What is buffered is bounded: above
//! `bytes_max` a write waits for the socket.
//!
//! Invariants: bytes leave in the order in which h2 wrote them; `sent <= pending.len()`.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// **Units** bytes. A buffer that grew beyond this is given back once empty, so that idle connections stay small.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;

/// A socket and what waits to be written to it.
pub struct Output {
    socket: TcpStream,
    pending: BytesMut,
    bytes_max: usize,
}

impl Output {
    /// Writes what is pending; `Pending` when the socket is full (the task is woken when it is not).
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            let written = ready!(Pin::new(&mut self.socket).poll_write(cx, &self.pending))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.pending.advance(written);
        }
        if self.pending.capacity() > BUFFER_BYTES_KEPT {
            self.pending = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

/// The two ends of one connection: h2 owns this, the connection's loop the shared [`Output`].
pub struct Coalesced(Rc<RefCell<Output>>);

impl Coalesced {
    /// Wraps a connected socket; at most about `bytes_max` wait to be written.
    pub fn new(socket: TcpStream, bytes_max: usize) -> (Self, Rc<RefCell<Output>>) {
        let output = Rc::new(RefCell::new(Output { socket, pending: BytesMut::new(), bytes_max }));
        (Self(Rc::clone(&output)), output)
    }
}

impl AsyncRead for Coalesced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0.borrow_mut().socket).poll_read(cx, buf)
    }
}

impl AsyncWrite for Coalesced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut output = self.0.borrow_mut();
        if output.pending.len() >= output.bytes_max {
            ready!(output.poll_drain(cx))?;
        }
        output.pending.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.0.borrow_mut();
        ready!(output.poll_drain(cx))?;
        Pin::new(&mut output.socket).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}
