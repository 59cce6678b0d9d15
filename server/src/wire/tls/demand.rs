//! Runs on: handshake threads.
//!
//! The check of clients' certificates: signers and dates by rustls, certificates that are trusted themselves, and what
//! etcd checks besides.
//!
//! rustls takes less than Go does: no certificate of X.509 v1, no RSA key below 2048 bits, no purpose "any", and no
//! certificate of a CA that is not trusted itself.
//!
//! Like etcd, a list of revoked certificates counts by serial number alone, whoever signed it, and for each certificate
//! that the client shows. It is read again when its file changes. As long as it cannot be read, nobody is let in.

use std::{
    collections::HashSet,
    fmt::Write as _,
    sync::{Arc, Mutex, PoisonError},
};

use engine::disk::offline::{self, Stamp};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, OtherError, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    pki_types::{CertificateDer, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use trust::itself::{self, Itself, Usage};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::{Error, FILE_BYTES_MAX, names::Names};
use crate::config::TlsFiles;

/// Why a client's certificate is not taken, where rustls would take it. In etcd's words.
#[derive(Debug, thiserror::Error)]
enum Unwanted {
    #[error("client certificate authentication failed")]
    Name,
    #[error("transport: certificate serial {0} revoked")]
    Revoked(String),
    #[error("{0}")]
    Unread(String),
}

impl From<Unwanted> for rustls::Error {
    fn from(unwanted: Unwanted) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(unwanted))))
    }
}

/// Serial numbers that are revoked, of one state of their file.
#[derive(Debug, Default)]
struct Revoked {
    stamp: Option<Stamp>,
    serials: HashSet<Vec<u8>>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Demand {
    signers: Arc<dyn ClientCertVerifier>,
    itself: Itself,
    allowed_hostnames: Vec<String>,
    allowed_cns: Vec<String>,
    crl_file: String,
    /// Each handshake thread has a `Demand` of its own, so nobody waits for this lock, nor for the next one.
    revoked: Mutex<Revoked>,
    /// The certificate that was refused last: rustls does not tell. The handshake that shows it ends at once, and takes
    /// it.
    refused: Mutex<Option<CertificateDer<'static>>>,
}

impl Demand {
    /// Demands of `files`, above those of `signers`; `itself` are certificates that need none.
    pub fn new(files: &TlsFiles, signers: Arc<dyn ClientCertVerifier>, itself: Itself) -> Self {
        Self {
            signers,
            itself,
            allowed_hostnames: files.allowed_hostnames.clone(),
            allowed_cns: files.allowed_cns.clone(),
            crl_file: files.crl_file.clone(),
            revoked: Mutex::default(),
            refused: Mutex::default(),
        }
    }

    /// The certificate that was refused since the last call.
    pub fn take_refused(&self) -> Option<CertificateDer<'static>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Checks what a client shows.
    ///
    /// **Errors** why it is not wanted.
    pub fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        if self.itself.is(end_entity) {
            itself::verify(end_entity, now, Usage::Client)?;
        } else {
            self.signers.verify_client_cert(end_entity, intermediates, now)?;
        }
        self.check_names(end_entity)?;
        let shown: Vec<_> = std::iter::once(end_entity).chain(intermediates).collect();
        self.check_revoked(&shown)
    }

    fn check_names(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        if !self.allowed_cns.is_empty() {
            let parsed = X509Certificate::from_der(certificate).ok();
            let name =
                parsed.as_ref().and_then(|(_, parsed)| parsed.subject().iter_common_name().next()?.as_str().ok());
            if !name.is_some_and(|name| self.allowed_cns.iter().any(|allowed| allowed == name)) {
                return Err(Unwanted::Name.into());
            }
        }
        if self.allowed_hostnames.is_empty() {
            return Ok(());
        }
        let names = Names::of(certificate);
        let is_named = self.allowed_hostnames.iter().any(|allowed| names.has(allowed));
        if is_named { Ok(()) } else { Err(Unwanted::Name.into()) }
    }

    fn check_revoked(&self, shown: &[&CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if self.crl_file.is_empty() {
            return Ok(());
        }
        let mut revoked = self.revoked.lock().unwrap_or_else(PoisonError::into_inner);
        let read = revoked.refresh(&self.crl_file);
        read.map_err(|error| Unwanted::Unread(error.to_string()))?;
        for certificate in shown {
            let (_, parsed) = X509Certificate::from_der(certificate)
                .map_err(|_unreadable| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
            let serial = significant(parsed.raw_serial());
            if revoked.serials.contains(serial) {
                let mut shown = String::new();
                serial.iter().for_each(|byte| write!(shown, "{byte:02x}").expect("a String takes every write"));
                return Err(Unwanted::Revoked(shown).into());
            }
        }
        Ok(())
    }
}

impl Revoked {
    /// Reads the file if it has changed.
    fn refresh(&mut self, file: &str) -> Result<(), Error> {
        let path = std::path::Path::new(file);
        let stamp = offline::stamp(path)?;
        if self.stamp == Some(stamp) {
            return Ok(());
        }
        // If the file cannot be read, the next handshake tries again.
        self.stamp = None;
        let bytes = offline::read_small(path, FILE_BYTES_MAX)?;
        let (_, list) = CertificateRevocationList::from_der(&bytes).map_err(|error| Error::content(file, error))?;
        self.serials = list.iter_revoked_certificates().map(|one| significant(one.raw_serial()).to_vec()).collect();
        self.stamp = Some(stamp);
        Ok(())
    }
}

/// A serial number without leading zeros.
fn significant(serial: &[u8]) -> &[u8] {
    let zeros = serial.iter().take_while(|byte| **byte == 0).count();
    &serial[zeros..]
}

impl ClientCertVerifier for Demand {
    fn offer_client_auth(&self) -> bool {
        self.signers.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.signers.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.signers.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let checked = self.check(end_entity, intermediates, now);
        if checked.is_err() {
            let refused = end_entity.clone().into_owned();
            *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refused);
        }
        checked.map(|()| ClientCertVerified::assertion())
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
