//! A connection to one of the endpoints: its socket, its HTTP/2 session, and its return after a loss.
//!
//! - `state` is the whole life cycle; a socket and a session exist only in `Connecting` and `Open`, and die together.
//! - One `recv` and one `send` for each wake-up: whatever the session has gathered is written at once.
//! - The back-off between attempts doubles up to a bound and is forgotten when a session becomes ready.
//!
//! It decides nothing about load: when to reconnect or give up is asked by the loop that owns it.

use std::{net::SocketAddr, os::fd::OwnedFd};

use rustix::{
    event::epoll,
    io::Errno,
    net::{AddressFamily, SendFlags, SocketFlags, SocketType, sockopt},
};
use rustls::ClientConnection;

use crate::{
    error::Error,
    http2::{Session, Sink},
    tls::{self, Secure},
};

const BACKOFF_NS_MIN: u64 = 50_000_000;
const BACKOFF_NS_MAX: u64 = 1_000_000_000;

/// Where a server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// As the user wrote it, for `:authority` and messages.
    pub(crate) authority: String,
    pub(crate) address: SocketAddr,
    /// Set for `https://`.
    pub(crate) secure: Option<Secure>,
}

#[expect(clippy::large_enum_variant, reason = "all but a moment of a connection's life is the large variant")]
enum State<C> {
    Down,
    Connecting { socket: OwnedFd },
    Open { socket: OwnedFd, tls: Option<Box<ClientConnection>>, session: Session<C> },
}

/// One connection, through all its sockets.
pub(crate) struct Connection<C> {
    endpoint: Endpoint,
    /// Calls after which it is replaced.
    calls_max: u32,
    /// What its readiness events are marked with.
    token: u64,
    state: State<C>,
    is_waiting_to_write: bool,
    backoff_ns: u64,
    /// When it is worth trying again; meaningful while down.
    pub(crate) retry_at_ns: u64,
    /// Why the last attempt failed.
    last_failure: Option<String>,
    /// Since when it has not been usable; `None` while it is.
    pub(crate) down_since_ns: Option<u64>,
}

impl<C> Connection<C> {
    pub(crate) fn new(endpoint: Endpoint, calls_max: u32, token: u64, now_ns: u64) -> Connection<C> {
        Connection {
            endpoint,
            calls_max,
            token,
            state: State::Down,
            is_waiting_to_write: false,
            backoff_ns: BACKOFF_NS_MIN,
            retry_at_ns: now_ns,
            last_failure: None,
            down_since_ns: Some(now_ns),
        }
    }

    /// Why the last attempt, or the last session, failed.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(crate) fn is_down(&self) -> bool {
        matches!(self.state, State::Down)
    }

    /// The session, once the TCP connection stands.
    pub(crate) fn session(&mut self) -> Option<&mut Session<C>> {
        match &mut self.state {
            State::Open { session, .. } => Some(session),
            State::Down | State::Connecting { .. } => None,
        }
    }

    /// Begins a connection attempt.
    ///
    /// **Errors**: it failed at once; the caller reports that to [`Connection::fail`].
    pub(crate) fn connect(&mut self, epoll: &OwnedFd) -> Result<(), Error> {
        assert!(self.is_down());
        let family = if self.endpoint.address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(family, SocketType::STREAM, flags, None).map_err(Error::system("socket"))?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(Error::system("TCP_NODELAY"))?;
        match rustix::net::connect(&socket, &self.endpoint.address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(self.connect_error(errno)),
        }
        let interest = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(epoll, &socket, epoll::EventData::new_u64(self.token), interest)
            .map_err(Error::system("epoll_ctl"))?;
        self.is_waiting_to_write = true;
        self.state = State::Connecting { socket };
        Ok(())
    }

    /// Handles a readiness event: finishes connecting, or reads once and hands what came to `sink`.
    pub(crate) fn on_ready(
        &mut self,
        flags: epoll::EventFlags,
        scratch: &mut [u8],
        sink: &mut impl Sink<C>,
    ) -> Result<(), Error> {
        if let State::Connecting { socket } = &self.state {
            match sockopt::socket_error(socket).map_err(Error::system("SO_ERROR"))? {
                Ok(()) => {}
                Err(errno) => return Err(self.connect_error(errno)),
            }
            if !flags.contains(epoll::EventFlags::OUT) {
                return Ok(());
            }
            self.establish()?;
        }
        let readable = epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR;
        let State::Open { socket, tls, session } = &mut self.state else { return Ok(()) };
        if !flags.intersects(readable) {
            return Ok(());
        }
        let was_ready = session.is_ready();
        match tls {
            Some(tls) => tls::receive(tls, socket, scratch, |bytes| session.receive(bytes, sink))?,
            None => match rustix::io::read(&*socket, &mut *scratch) {
                Ok(0) => return Err(Error::Closed),
                Ok(bytes) => session.receive(&scratch[..bytes], sink)?,
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(errno) => return Err(Error::system("recv")(errno)),
            },
        }
        if session.is_ready() && !was_ready {
            self.down_since_ns = None;
            self.backoff_ns = BACKOFF_NS_MIN;
        }
        Ok(())
    }

    /// Writes what the session has gathered, and asks for an event if the socket does not take it all.
    pub(crate) fn flush(&mut self, epoll: &OwnedFd) -> Result<(), Error> {
        let State::Open { socket, tls, session } = &mut self.state else { return Ok(()) };
        let is_blocked = match tls {
            Some(tls) => tls::send(tls, socket, &mut session.out)?,
            None => send(socket, &mut session.out)?,
        };
        if is_blocked != self.is_waiting_to_write {
            let out = if is_blocked { epoll::EventFlags::OUT } else { epoll::EventFlags::empty() };
            let interest = epoll::EventFlags::IN | out;
            epoll::modify(epoll, &*socket, epoll::EventData::new_u64(self.token), interest)
                .map_err(Error::system("epoll_ctl"))?;
            self.is_waiting_to_write = is_blocked;
        }
        Ok(())
    }

    /// Drops socket and session, ends their calls, and moves the next attempt away by the back-off.
    pub(crate) fn fail(&mut self, reason: &str, now_ns: u64, sink: &mut impl Sink<C>) {
        if let State::Open { session, .. } = &mut self.state {
            session.abandon(reason, sink);
        }
        self.state = State::Down;
        self.is_waiting_to_write = false;
        self.last_failure = Some(reason.to_owned());
        self.down_since_ns.get_or_insert(now_ns);
        self.retry_at_ns = now_ns + self.backoff_ns;
        self.backoff_ns = (self.backoff_ns * 2).min(BACKOFF_NS_MAX);
    }

    /// Drops a connection that has had its calls, or that the server has politely asked us to leave, to be replaced at
    /// once.
    pub(crate) fn retire(&mut self, now_ns: u64) {
        let State::Open { session, .. } = &self.state else { unreachable!("only an open session is spent") };
        assert!(session.is_spent() && session.calls() == 0);
        self.state = State::Down;
        self.is_waiting_to_write = false;
        self.down_since_ns = Some(now_ns);
        self.retry_at_ns = now_ns;
    }

    fn establish(&mut self) -> Result<(), Error> {
        let tls = self.endpoint.secure.as_ref().map(Secure::connect).transpose()?;
        match std::mem::replace(&mut self.state, State::Down) {
            State::Connecting { socket } => {
                let session = Session::new(&self.endpoint.authority, self.calls_max);
                self.state = State::Open { socket, tls, session };
            }
            State::Down | State::Open { .. } => unreachable!("asked only while connecting"),
        }
        Ok(())
    }

    fn connect_error(&self, errno: Errno) -> Error {
        let reason = std::io::Error::from(errno).to_string();
        Error::Connect { endpoint: self.endpoint.authority.clone(), reason }
    }
}

/// Sends what the socket takes of `bytes`. Returns whether some of it waits.
fn send(socket: &OwnedFd, bytes: &mut Vec<u8>) -> Result<bool, Error> {
    let mut sent_bytes = 0;
    while sent_bytes < bytes.len() {
        match rustix::net::send(socket, &bytes[sent_bytes..], SendFlags::NOSIGNAL) {
            Ok(count) => sent_bytes += count,
            Err(Errno::AGAIN) => break,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(Error::system("send")(errno)),
        }
    }
    bytes.drain(..sent_bytes);
    Ok(!bytes.is_empty())
}
