//! Runs on: connection core.
//!
//! The writer below h2. Everything that one turn of a connection produces leaves in one system call.
//!
//! h2 flushes after each DATA frame above its chaining threshold. Here, a flush by h2 only means "soon". The
//! connection's own loop calls [`Output::poll_drain`] once, at the end of its turn. The buffer is bounded: above
//! `bytes_max` a write waits for the socket.
//!
//! The writer also sees the heads of all frames. With them it enforces what h2 does not: how often a client may ping
//! (`pings`), and what the frames of a client may take of a turn and of memory (`ration`).
//!
//! Invariants: bytes leave in the order in which h2 wrote them; `sent <= pending.len()`.

use std::{
    cell::{Cell, RefCell},
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    frames::{self, Frames, Head, kind},
    pings::{self, Pings},
    ration::Ration,
};
use crate::{clock::Clock, wire::stream::Stream};

/// What a client sends before its first frame. **Units** bytes.
const PREFACE_BYTES: usize = 24;

/// A buffer that grew beyond this is given back once it is empty, so that idle connections stay small. **Units** bytes.
const BUFFER_BYTES_KEPT: usize = 64 * 1024;

thread_local! {
    /// The last large buffer that was given back, for the next connection that needs one. That is mostly the same
    /// connection, in the middle of a large answer.
    static SPARE: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A connection and what waits to be written to it.
pub struct Output {
    stream: Stream,
    pending: Vec<u8>,
    /// How much of `pending` the socket has taken.
    sent: usize,
    bytes_max: usize,
    received: Frames,
    written: Frames,
    watch: Watch,
}

/// The observer of a connection's frames.
struct Watch {
    pings: Pings,
    ration: Ration,
    clock: Clock,
    /// Calls under way.
    calls: Rc<Cell<usize>>,
    last_stream: u32,
    has_too_many: bool,
}

impl Watch {
    fn on_received(&mut self, head: Head) {
        self.ration.received(head);
        match head.kind {
            kind::HEADERS => self.last_stream = self.last_stream.max(head.stream),
            kind::PING if head.flags & 1 == 0 => {
                self.has_too_many |= self.pings.received(self.clock.now(), self.calls.get() > 0);
            }
            _ => {}
        }
    }

    fn on_written(&mut self, head: Head) {
        self.ration.written(head);
        if matches!(head.kind, kind::DATA | kind::HEADERS) {
            self.pings.sent();
        }
    }
}

impl Output {
    /// Whether the client has pinged too often. If so, it is told, provided that this is possible between two frames.
    /// The caller must then write as much as is possible at once, and close the connection.
    pub fn has_too_many_pings(&mut self) -> bool {
        if self.watch.has_too_many && self.written.is_between() {
            let last = frames::go_away(self.watch.last_stream, pings::CALM, pings::TOO_MANY);
            self.push(&last);
        }
        self.watch.has_too_many
    }

    /// Ends a turn: writes what is pending, as [`Output::poll_drain`]. The next turn reads anew.
    pub fn poll_end_turn(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch.ration.renew();
        self.poll_drain(cx)
    }

    /// Writes what is pending. `Pending` when the socket is full; the task is woken when there is room again.
    pub fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.pending.len() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.pending[self.sent..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += written;
        }
        // What was encrypted and did not fit into the socket.
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.pending.clear();
        self.sent = 0;
        self.watch.ration.sent();
        if self.pending.capacity() > BUFFER_BYTES_KEPT {
            SPARE.set(std::mem::take(&mut self.pending));
        }
        Poll::Ready(Ok(()))
    }

    /// Takes `bytes`, which will be written soon.
    fn push(&mut self, bytes: &[u8]) {
        let len = self.pending.len() + bytes.len();
        if len > self.pending.capacity() && len > BUFFER_BYTES_KEPT {
            let mut larger = SPARE.take();
            larger.extend_from_slice(&self.pending[self.sent..]);
            (self.pending, self.sent) = (larger, 0);
        }
        self.pending.extend_from_slice(bytes);
    }
}

/// The writer of one connection, shared by two owners: h2 owns this, the connection's loop owns the [`Output`].
pub struct Coalesced(Rc<RefCell<Output>>);

impl Coalesced {
    /// Wraps a connection. At most about `bytes_max` bytes wait to be written. `calls` counts the calls under
    /// way.
    pub fn new(
        stream: Stream,
        bytes_max: usize,
        pings: Pings,
        clock: Clock,
        calls: Rc<Cell<usize>>,
    ) -> (Self, Rc<RefCell<Output>>) {
        let watch = Watch { pings, ration: Ration::default(), clock, calls, last_stream: 0, has_too_many: false };
        let (received, written) = (Frames::behind(PREFACE_BYTES), Frames::behind(0));
        let output = Output { stream, pending: Vec::new(), sent: 0, bytes_max, received, written, watch };
        let output = Rc::new(RefCell::new(output));
        (Self(Rc::clone(&output)), output)
    }
}

impl AsyncRead for Coalesced {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let output = &mut *self.0.borrow_mut();
        if output.watch.ration.is_used_up() {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if output.watch.ration.is_unread() {
            ready!(output.poll_drain(cx))?;
        }
        let Output { stream, received, watch, .. } = output;
        let before = buf.filled().len();
        let polled = match watch.ration.read_bytes_max() {
            None => Pin::new(stream).poll_read(cx, buf),
            Some(bytes) => {
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(bytes.min(buf.remaining())));
                let polled = Pin::new(stream).poll_read(cx, &mut part);
                let len = part.filled().len();
                buf.advance(len);
                polled
            }
        };
        received.feed(&buf.filled()[before..], |head| watch.on_received(head));
        polled
    }
}

impl AsyncWrite for Coalesced {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut output = self.0.borrow_mut();
        if output.pending.len() - output.sent >= output.bytes_max {
            ready!(output.poll_drain(cx))?;
        }
        let Output { written, watch, .. } = &mut *output;
        written.feed(buf, |head| watch.on_written(head));
        output.push(buf);
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut output = self.0.borrow_mut();
        ready!(output.poll_drain(cx))?;
        Pin::new(&mut output.stream).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
    };

    use super::*;
    use crate::wire::channel::Socket;

    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const PREFACE: &[u8; PREFACE_BYTES] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    /// What h2 reads at a time.
    const READ_BYTES: usize = 8 * 1024;

    async fn connected() -> (TcpStream, Coalesced, Rc<RefCell<Output>>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        let pings = Pings::new(Duration::ZERO);
        let (coalesced, output) =
            Coalesced::new(Stream::new(Socket::Tcp(socket)), 1 << 20, pings, Clock::manual(1), Rc::default());
        (client, coalesced, output)
    }

    /// Reads until a read has to wait, as h2 does. Returns how much that was.
    async fn read_turn(coalesced: &mut Coalesced) -> usize {
        let mut bytes = vec![0; READ_BYTES];
        let mut taken = 0;
        poll_fn(|cx| {
            loop {
                let mut buf = ReadBuf::new(&mut bytes);
                match Pin::new(&mut *coalesced).poll_read(cx, &mut buf) {
                    Poll::Pending => return Poll::Ready(()),
                    Poll::Ready(result) => result.unwrap(),
                }
                taken += buf.filled().len();
            }
        })
        .await;
        taken
    }

    #[tokio::test]
    async fn a_turn_reads_little_of_a_flood_and_wakes_itself_for_the_rest() {
        let (mut client, mut coalesced, output) = connected().await;
        client.write_all(PREFACE).await.unwrap();
        client.write_all(&SETTINGS.repeat(10_000)).await.unwrap();
        poll_fn(|cx| coalesced.0.borrow().stream.poll_read_ready(cx)).await.unwrap();
        assert!(read_turn(&mut coalesced).await <= READ_BYTES, "the first turn ends after one read");
        let mut left = 10_000 * SETTINGS.len() - READ_BYTES;
        for _ in 0..20 {
            poll_fn(|cx| output.borrow_mut().poll_end_turn(cx)).await.unwrap();
            let taken = read_turn(&mut coalesced).await;
            assert!(taken > 0 && taken < 2048, "{taken} bytes in a later turn");
            left -= taken;
        }
        assert!(left > 0);
    }

    #[tokio::test]
    async fn nothing_is_read_while_many_answers_to_control_frames_wait() {
        let (mut client, mut coalesced, output) = connected().await;
        // The client's socket is filled, and then what may wait here.
        let answers = SETTINGS.repeat(1000);
        let mut written = 0;
        while output.borrow().pending.len() - output.borrow().sent < 50 * answers.len() {
            coalesced.write_all(&answers).await.unwrap();
            written += answers.len();
            poll_fn(|cx| Poll::Ready(output.borrow_mut().poll_end_turn(cx).is_ready())).await;
            // A task that never yields is refused its writes by the runtime.
            tokio::task::yield_now().await;
        }
        client.write_all(PREFACE).await.unwrap();
        poll_fn(|cx| coalesced.0.borrow().stream.poll_read_ready(cx)).await.unwrap();
        assert_eq!(read_turn(&mut coalesced).await, 0, "the client has to read first");
        let mut read = vec![0; written];
        let (drained, ended) =
            tokio::join!(client.read_exact(&mut read), poll_fn(|cx| output.borrow_mut().poll_end_turn(cx)));
        assert_eq!(drained.unwrap(), written);
        ended.unwrap();
        assert_eq!(read_turn(&mut coalesced).await, PREFACE_BYTES);
    }
}
