//! TLS of a connection, as etcdctl sets it up: `--cacert`, `--cert` and `--key`, `--insecure-skip-tls-verify`, and
//! endpoints that begin with `https://`.
//!
//! Encrypted bytes go in and out as the socket takes them; it decides nothing about connections.

use std::{
    io::{self, Read, Write},
    net::IpAddr,
    os::fd::OwnedFd,
    sync::Arc,
};

use rustix::{io::Errno, net::SendFlags};
use rustls::{
    CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use crate::error::Error;

/// What the flags say about TLS.
#[derive(Debug, Default)]
pub(crate) struct Files<'a> {
    pub(crate) cacert: Option<&'a str>,
    pub(crate) cert: Option<&'a str>,
    pub(crate) key: Option<&'a str>,
    pub(crate) skips_verify: bool,
}

impl Files<'_> {
    /// The settings of all connections with TLS. Without `cacert` those are trusted that the host trusts.
    ///
    /// **Errors**: a file that cannot be read or used.
    pub(crate) fn config(&self) -> Result<Arc<ClientConfig>, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(|error| refused("cacert", &error))?;
        let builder = if self.skips_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        } else {
            builder.with_root_certificates(self.trusted()?)
        };
        let mut config = match (self.cert, self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(key)) => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| refused("key", &error))?;
                builder
                    .with_client_auth_cert(certificates("cert", cert)?, key)
                    .map_err(|error| refused("cert", &error))?
            }
            (Some(_), None) => return Err(refused("key", &"--cert needs it")),
            (None, Some(_)) => return Err(refused("cert", &"--key needs it")),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        // A connection that is replaced makes a whole handshake, like that of a client that is new.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Arc::new(config))
    }

    fn trusted(&self) -> Result<RootCertStore, Error> {
        let mut trusted = RootCertStore::empty();
        match self.cacert {
            Some(file) => {
                for certificate in certificates("cacert", file)? {
                    trusted.add(certificate).map_err(|error| refused("cacert", &error))?;
                }
            }
            None => {
                trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(trusted)
    }
}

fn refused(flag: &'static str, reason: &dyn std::fmt::Display) -> Error {
    Error::Flag { flag, reason: reason.to_string() }
}

fn certificates(flag: &'static str, file: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let read = read.map_err(|error| refused(flag, &format!("{file}: {error}")))?;
    if read.is_empty() { Err(refused(flag, &format!("{file} holds no certificate"))) } else { Ok(read) }
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
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let name = match host.parse::<IpAddr>() {
            Ok(address) => ServerName::from(address),
            Err(_) => ServerName::try_from(host.to_owned()).map_err(|error| refused("endpoints", &error))?,
        };
        Ok(Secure { config: Arc::clone(config), name })
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

/// Takes every certificate, for `--insecure-skip-tls-verify`.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if end_entity.is_empty() {
            return Err(rustls::Error::InvalidCertificate(CertificateError::BadEncoding));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
