//! Runs on: main thread (`orlop top`).
//!
//! TLS from the other side: what a client of a member shows and trusts, as etcdctl has it.

use std::{net::IpAddr, path::Path, sync::Arc};

use engine::disk::offline;
use rustls::{
    ClientConfig, ClientConnection, Connection, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
};

use super::{Error, FILE_BYTES_MAX, credentials::certificates, handshake::shake};
use crate::wire::stream::Stream;

/// What the flags of a client say about TLS. An empty text stands for a flag that was not given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trust {
    /// Certificates that sign those of members; without, those that the host trusts.
    pub cacert: String,
    /// The certificate that is shown to members.
    pub cert: String,
    /// Its key.
    pub key: String,
    /// Whether any certificate of a member is taken.
    pub skips_verify: bool,
}

/// Encrypts a connection to `host`.
///
/// **Errors** a file cannot be read or used; `host` is no name; the handshake failed, or the member is not trusted.
pub async fn connect(mut stream: Stream, host: &str, trust: &Trust) -> Result<Stream, Error> {
    let config = Arc::new(config(trust)?);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = match host.parse::<IpAddr>() {
        Ok(address) => ServerName::from(address),
        Err(_) => ServerName::try_from(host.to_owned()).map_err(|error| Error::content(host, error))?,
    };
    let mut tls = Connection::Client(ClientConnection::new(config, name)?);
    shake(&mut stream, &mut tls).await.map_err(|refusal| Error::content(host, refusal))?;
    stream.encrypt(tls);
    Ok(stream)
}

fn config(trust: &Trust) -> Result<ClientConfig, Error> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if trust.skips_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider)))
    } else {
        builder.with_root_certificates(trusted(&trust.cacert)?)
    };
    let mut config = if trust.cert.is_empty() && trust.key.is_empty() {
        builder.with_no_client_auth()
    } else {
        let key = offline::read_small(Path::new(&trust.key), FILE_BYTES_MAX)?;
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|error| Error::content(&trust.key, error))?;
        builder.with_client_auth_cert(certificates(&trust.cert)?, key)?
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn trusted(cacert: &str) -> Result<RootCertStore, Error> {
    let mut trusted = RootCertStore::empty();
    if cacert.is_empty() {
        trusted.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        return Ok(trusted);
    }
    for certificate in certificates(cacert)? {
        trusted.add(certificate).map_err(|error| Error::content(cacert, error))?;
    }
    Ok(trusted)
}

/// Takes every certificate, for `--insecure-skip-tls-verify`.
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
