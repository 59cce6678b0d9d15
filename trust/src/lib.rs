//! What a client trusts and shows over TLS, as etcdctl's flags say it: `--cacert`, `--cert`, `--key`,
//! `--insecure-skip-tls-verify`. `bench` and the clients among Orlop's commands share it.
//!
//! It opens no socket and no file: files are read by the function that is passed in.
//!
//! - `itself`: certificates that are trusted for themselves, for servers too

use std::{io, net::IpAddr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};

use self::itself::{Itself, Usage};

pub mod itself;

/// Reads a whole file.
pub type ReadFile<'a> = &'a dyn Fn(&str) -> io::Result<Vec<u8>>;

/// See the head of this file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Certificates that sign those of servers; without, those that the host trusts.
    pub cacert: Option<String>,
    /// The certificate that is shown to servers.
    pub cert: Option<String>,
    /// Its key.
    pub key: Option<String>,
    /// Whether any certificate of a server is taken.
    pub skips_verify: bool,
}

/// Why the flags cannot be obeyed. Each names its flag.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or used.
    #[error("--{flag} {file}: {why}")]
    File {
        /// The flag.
        flag: &'static str,
        /// Its file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A flag is given without the one that belongs to it.
    #[error("--{0} needs --{1}")]
    Alone(&'static str, &'static str),
    /// An endpoint is no name that a certificate could have.
    #[error("{host}: {why}")]
    Name {
        /// The endpoint's host.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// The pieces do not fit together.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
}

impl Trust {
    /// The settings of a client of gRPC.
    ///
    /// **Errors** a file that cannot be read or used; a certificate without its key, or a key without its certificate.
    pub fn config(&self, read: ReadFile<'_>) -> Result<ClientConfig, Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder =
            ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
        let builder = if self.skips_verify {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(self.signed(read, provider)?))
        };
        let mut config = match (&self.cert, &self.key) {
            (None, None) => builder.with_no_client_auth(),
            (Some(cert), Some(file)) => {
                let failed = |why: String| Error::File { flag: "key", file: file.clone(), why };
                let bytes = read(file).map_err(|error| failed(error.to_string()))?;
                let key = PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| failed(error.to_string()))?;
                builder.with_client_auth_cert(certificates("cert", cert, read)?, key)?
            }
            (Some(_), None) => return Err(Error::Alone("cert", "key")),
            (None, Some(_)) => return Err(Error::Alone("key", "cert")),
        };
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    fn signed(&self, read: ReadFile<'_>, provider: Arc<CryptoProvider>) -> Result<Signed, Error> {
        let mut signers = RootCertStore::empty();
        let Some(file) = &self.cacert else {
            signers.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return Signed::new(signers, Itself::default(), provider, "the host's");
        };
        let trusted = certificates("cacert", file, read)?;
        for certificate in &trusted {
            signers.add(certificate.clone())?;
        }
        Signed::new(signers, Itself::new(trusted), provider, file)
    }
}

/// The name that the certificate of a server at `host` must have: an address, in brackets or not, or a name.
///
/// **Errors** neither.
pub fn server_name(host: &str) -> Result<ServerName<'static>, Error> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match host.parse::<IpAddr>() {
        Ok(address) => Ok(ServerName::from(address)),
        Err(_) => ServerName::try_from(host.to_owned())
            .map_err(|error| Error::Name { host: host.to_owned(), why: error.to_string() }),
    }
}

fn certificates(flag: &'static str, file: &str, read: ReadFile<'_>) -> Result<Vec<CertificateDer<'static>>, Error> {
    let failed = |why: String| Error::File { flag, file: file.to_owned(), why };
    let bytes = read(file).map_err(|error| failed(error.to_string()))?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let all = all.map_err(|error| failed(error.to_string()))?;
    if all.is_empty() { Err(failed("it holds no certificate".to_owned())) } else { Ok(all) }
}

/// Takes certificates that are signed by those that are trusted, or trusted themselves.
#[derive(Debug)]
struct Signed {
    signers: Arc<WebPkiServerVerifier>,
    itself: Itself,
}

impl Signed {
    fn new(signers: RootCertStore, itself: Itself, provider: Arc<CryptoProvider>, file: &str) -> Result<Self, Error> {
        let signers = WebPkiServerVerifier::builder_with_provider(Arc::new(signers), provider)
            .build()
            .map_err(|error| Error::File { flag: "cacert", file: file.to_owned(), why: error.to_string() })?;
        Ok(Self { signers, itself })
    }
}

impl ServerCertVerifier for Signed {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if !self.itself.is(end_entity) {
            return self.signers.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        }
        itself::verify(end_entity, now, Usage::Server)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signers.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.signers.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.signers.supported_verify_schemes()
    }
}

/// Takes every certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_obeyed_is_refused_by_the_name_of_its_flag() {
        let read = |file: &str| match file {
            "empty" => Ok(Vec::new()),
            _ => Err(io::ErrorKind::NotFound.into()),
        };
        let named = |name: &str| Some(name.to_owned());
        let refusal = |trust: Trust| trust.config(&read).map(drop).map_err(|error| error.to_string());
        let trust = |cacert, cert, key| Trust { cacert, cert, key, skips_verify: false };
        assert_eq!(refusal(trust(named("none"), None, None)).unwrap_err(), "--cacert none: entity not found");
        assert_eq!(refusal(trust(named("empty"), None, None)).unwrap_err(), "--cacert empty: it holds no certificate");
        assert_eq!(refusal(trust(None, named("c"), None)).unwrap_err(), "--cert needs --key");
        assert_eq!(refusal(trust(None, None, named("k"))).unwrap_err(), "--key needs --cert");
        assert!(refusal(trust(None, named("c"), named("k"))).unwrap_err().starts_with("--key k: "));
        assert_eq!(refusal(Trust { skips_verify: true, ..Trust::default() }), Ok(()));
    }

    #[test]
    fn hosts_are_addresses_or_names() {
        for (host, is_name) in [("127.0.0.1", true), ("[::1]", true), ("localhost", true), ("a b", false)] {
            assert_eq!(server_name(host).is_ok(), is_name, "{host}");
        }
    }
}
