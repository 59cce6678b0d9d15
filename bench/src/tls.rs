//! TLS of a connection: encrypted bytes go in and out as the socket takes them. What is trusted and shown is `trust`'s.
//!
//! It decides nothing about connections.

use std::{
    io::{self, Read, Write},
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::{io::Errno, net::SendFlags};
use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};
use trust::Trust;

use crate::error::Error;

/// The settings of all connections with TLS.
///
/// **Errors**: a file that cannot be read or used.
pub(crate) fn config(trust: &Trust) -> Result<Arc<ClientConfig>, Error> {
    let mut config = trust.config(&|file| std::fs::read(file))?;
    // A connection that is replaced makes a whole handshake, like that of a client that is new.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(Arc::new(config))
}

/// How an endpoint's connections are encrypted.
#[derive(Clone, Debug)]
pub(crate) struct Secure {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl PartialEq for Secure {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.config, &other.config) && self.name == other.name
    }
}

impl Eq for Secure {}

impl Secure {
    /// Connections to `host`, which must be what the server's certificate names.
    ///
    /// **Errors**: no name of a host.
    pub(crate) fn new(config: &Arc<ClientConfig>, host: &str) -> Result<Secure, Error> {
        Ok(Secure { config: Arc::clone(config), name: trust::server_name(host)? })
    }

    /// A new connection, which has not said anything yet.
    ///
    /// **Errors**: rustls'.
    pub(crate) fn connect(&self) -> Result<Box<ClientConnection>, Error> {
        let mut tls = ClientConnection::new(Arc::clone(&self.config), self.name.clone()).map_err(failed)?;
        // What may wait is bounded by the session, which decides what is written.
        tls.set_buffer_limit(None);
        Ok(Box::new(tls))
    }
}

fn failed(error: rustls::Error) -> Error {
    Error::Tls { reason: error.to_string() }
}

/// A socket that does not wait.
struct Socket<'a>(&'a OwnedFd);

impl Read for Socket<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        rustix::io::read(self.0, buf).map_err(io::Error::from)
    }
}

impl Write for Socket<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        rustix::net::send(self.0, buf, SendFlags::NOSIGNAL).map_err(io::Error::from)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn socket_error(call: &'static str, error: io::Error) -> Error {
    Error::System { call, source: error }
}

/// Takes what the socket has, and hands what was decrypted to `take`, through `scratch`.
///
/// **Errors**: the end of the connection; the socket's, TLS', and those of `take`.
pub(crate) fn receive(
    tls: &mut ClientConnection,
    socket: &OwnedFd,
    scratch: &mut [u8],
    mut take: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    loop {
        match tls.read_tls(&mut Socket(socket)) {
            Ok(0) => return Err(Error::Closed),
            Ok(_) => {}
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(socket_error("recv", error)),
        }
        tls.process_new_packets().map_err(failed)?;
        loop {
            match tls.reader().read(scratch) {
                Ok(0) => return Err(Error::Closed),
                Ok(count) => take(&scratch[..count])?,
                Err(error) if is_later(&error) => break,
                Err(error) => return Err(socket_error("recv", error)),
            }
        }
    }
}

/// Encrypts `bytes`, and sends what the socket takes. Returns whether some of it waits.
///
/// **Errors**: the socket's.
pub(crate) fn send(tls: &mut ClientConnection, socket: &OwnedFd, bytes: &mut Vec<u8>) -> Result<bool, Error> {
    tls.writer().write_all(bytes).map_err(|error| socket_error("send", error))?;
    bytes.clear();
    while tls.wants_write() {
        match tls.write_tls(&mut Socket(socket)) {
            Ok(_) => {}
            Err(error) if is_later(&error) && error.raw_os_error() != Some(Errno::INTR.raw_os_error()) => break,
            Err(error) if is_later(&error) => {}
            Err(error) => return Err(socket_error("send", error)),
        }
    }
    Ok(tls.wants_write())
}
