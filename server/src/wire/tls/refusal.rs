//! Runs on: handshake threads.
//!
//! Why a handshake failed, in the words of Go's `crypto/tls`, and its line in the log. Tools look for both.
//!
//! **Source** Go 1.26 `crypto/tls/{alert,handshake_server,handshake_server_tls13}.go`, `crypto/x509/verify.go`; etcd
//! v3.7.1 `server/embed/config_logging.go`.

use std::{fmt, io, net::IpAddr};

use rustls::{
    AlertDescription as Alert, CertificateError, Connection, Error, InvalidMessage, PeerIncompatible,
    pki_types::CertificateDer,
};

use super::names::Names;
use crate::log::Object;

/// Why there is no encrypted connection.
#[derive(Debug)]
pub enum Refusal {
    /// The socket failed, or its client left.
    Socket(io::Error),
    /// The client did not send what TLS needs in time.
    Late,
    /// TLS failed.
    Tls {
        /// What failed.
        error: Error,
        /// The name that the client asked for.
        server_name: String,
        /// The certificate that the client showed.
        shown: Option<CertificateDer<'static>>,
    },
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Tls { error, server_name: String::new(), shown: None }
    }
}

impl Refusal {
    /// Adds the certificate that the client showed.
    #[must_use]
    pub fn showing(self, certificate: Option<CertificateDer<'static>>) -> Self {
        match self {
            Self::Tls { error, server_name, shown } => Self::Tls { error, server_name, shown: shown.or(certificate) },
            other => other,
        }
    }

    /// Adds what is known of the client.
    #[must_use]
    pub fn about(self, tls: &Connection) -> Self {
        let Self::Tls { error, .. } = self else { return self };
        let shown = tls.peer_certificates().and_then(|all| all.first()).map(|first| first.clone().into_owned());
        let server_name = match tls {
            Connection::Server(tls) => tls.server_name().unwrap_or_default().to_owned(),
            Connection::Client(_) => String::new(),
        };
        Self::Tls { error, server_name, shown }
    }

    /// Writes the line that etcd writes. `endpoint` is "client" or "peer", `remote` the client's address.
    pub fn log(&self, endpoint: &str, remote: &str) {
        let (server_name, shown) = match self {
            Self::Tls { server_name, shown, .. } => (server_name.as_str(), shown.as_ref()),
            Self::Socket(_) | Self::Late => ("", None),
        };
        let text = format!("rejected connection on {endpoint} endpoint");
        if matches!(self, Self::Socket(error) if error.kind() == io::ErrorKind::UnexpectedEof) {
            tracing::debug!("remote-addr" = remote, "server-name" = server_name, error = %self, "{text}");
            return;
        }
        let error = self.to_string();
        // As in Go, what TLS itself refuses is not known by its names.
        match shown.filter(|_| !error.starts_with("tls: ")).map(|shown| Names::of(shown)) {
            Some(Names { ips, hosts }) => {
                let ips: Vec<_> = ips.iter().map(IpAddr::to_string).collect();
                let fields = Object::default()
                    .list("ip-addresses", ips.iter().map(String::as_str))
                    .list("dns-names", hosts.iter().map(String::as_str));
                tracing::warn!("remote-addr" = remote, "server-name" = server_name, %fields, error, "{text}");
            }
            None => tracing::warn!("remote-addr" = remote, "server-name" = server_name, error, "{text}"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(error) if error.kind() == io::ErrorKind::UnexpectedEof => f.write_str("EOF"),
            Self::Socket(error) => error.fmt(f),
            Self::Late => f.write_str("i/o timeout"),
            Self::Tls { error, .. } => tls_text(error, f),
        }
    }
}

fn tls_text(error: &Error, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    match error {
        Error::AlertReceived(alert) => write!(f, "remote error: tls: {}", alert_text(*alert)),
        Error::NoCertificatesPresented => f.write_str("tls: client didn't provide a certificate"),
        Error::InvalidCertificate(why) => certificate_text(why, f),
        Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
            f.write_str("tls: first record does not look like a TLS handshake")
        }
        Error::NoApplicationProtocol => f.write_str("tls: client requested unsupported application protocols"),
        Error::PeerIncompatible(
            PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            // What older clients leave out of their first words.
            | PeerIncompatible::SignatureAlgorithmsExtensionRequired
            | PeerIncompatible::SupportedVersionsExtensionRequired,
        ) => f.write_str("tls: client offered only unsupported versions"),
        Error::PeerIncompatible(PeerIncompatible::NoCipherSuitesInCommon) => {
            f.write_str("tls: no cipher suite supported by both client and server")
        }
        Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon) => {
            f.write_str("tls: no key exchanges supported by both client and server")
        }
        Error::PeerIncompatible(PeerIncompatible::NoSignatureSchemesInCommon) => {
            f.write_str("tls: peer doesn't support any of the certificate's signature algorithms")
        }
        other => write!(f, "tls: {other}"),
    }
}

fn certificate_text(why: &CertificateError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    const FAILED: &str = "tls: failed to verify certificate: x509: ";
    match why {
        CertificateError::UnknownIssuer => write!(f, "{FAILED}certificate signed by unknown authority"),
        CertificateError::BadSignature => write!(f, "tls: invalid signature by the client certificate"),
        CertificateError::Expired
        | CertificateError::NotValidYet
        | CertificateError::ExpiredContext { .. }
        | CertificateError::NotValidYetContext { .. } => {
            write!(f, "{FAILED}certificate has expired or is not yet valid: {why}")
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            write!(f, "{FAILED}certificate specifies an incompatible key usage")
        }
        // It is not trusted itself. The error's type is rustls-webpki's.
        CertificateError::Other(other) if other.0.to_string() == "CaUsedAsEndEntity" => {
            write!(f, "{FAILED}certificate signed by unknown authority")
        }
        CertificateError::Other(other) => write!(f, "{}", other.0),
        other => write!(f, "{FAILED}{other}"),
    }
}

fn alert_text(alert: Alert) -> String {
    let text = match alert {
        Alert::CloseNotify => "close notify",
        Alert::UnexpectedMessage => "unexpected message",
        Alert::BadRecordMac => "bad record MAC",
        Alert::RecordOverflow => "record overflow",
        Alert::HandshakeFailure => "handshake failure",
        Alert::BadCertificate => "bad certificate",
        Alert::UnsupportedCertificate => "unsupported certificate",
        Alert::CertificateRevoked => "revoked certificate",
        Alert::CertificateExpired => "expired certificate",
        Alert::CertificateUnknown => "unknown certificate",
        Alert::IllegalParameter => "illegal parameter",
        Alert::UnknownCA => "unknown certificate authority",
        Alert::AccessDenied => "access denied",
        Alert::DecodeError => "error decoding message",
        Alert::DecryptError => "error decrypting message",
        Alert::ProtocolVersion => "protocol version not supported",
        Alert::InsufficientSecurity => "insufficient security level",
        Alert::InternalError => "internal error",
        Alert::InappropriateFallback => "inappropriate fallback",
        Alert::UserCanceled => "user canceled",
        Alert::NoRenegotiation => "no renegotiation",
        Alert::MissingExtension => "missing extension",
        Alert::UnsupportedExtension => "unsupported extension",
        Alert::UnrecognisedName => "unrecognized name",
        Alert::BadCertificateStatusResponse => "bad certificate status response",
        Alert::UnknownPSKIdentity => "unknown PSK identity",
        Alert::CertificateRequired => "certificate required",
        Alert::NoApplicationProtocol => "no application protocol",
        other => return format!("alert({})", u8::from(other)),
    };
    text.to_owned()
}
