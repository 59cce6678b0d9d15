//! Runs on: handshake threads, connection core, main thread (`orlop top`).
//!
//! TLS of accepted connections, over rustls.
//!
//! - `credentials`: what a port shows and demands, from its files, which are read again when they change
//! - `demand`: the check of clients' certificates
//! - `handshake`: from a connection to an encrypted one
//! - `outgoing`: the other side, for `orlop top`
//! - `session`: the bytes of an encrypted connection
//! - `names`: the names in a certificate
//! - `refusal`: why a handshake failed, in Go's words
//! - `self_signed`: the certificate of `--auto-tls`
//!
//! Invariants:
//! - A client's certificate is checked at each handshake, also where a session is resumed: against the signers, the
//!   dates and the revoked ones of that moment.
//! - New files serve the next handshake. Files that cannot be used leave the old ones in place, and are told of.
//! - No handshake runs on a core that serves.
//!
//! Bounds: a handshake takes [`HANDSHAKE_MAX`] at most; a file has at most [`FILE_BYTES_MAX`].

use std::time::Duration;

pub mod credentials;
pub mod demand;
pub mod handshake;
pub mod names;
pub mod outgoing;
pub mod refusal;
pub mod self_signed;
pub mod session;

/// Longest handshake. **Source** etcd v3.7.1 `client/pkg/transport/listener_tls.go`.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(10);

/// Largest file of certificates or of revoked ones. **Units** bytes.
const FILE_BYTES_MAX: usize = 16 << 20;

/// Why TLS cannot be set up from its files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be read or written.
    #[error("{}", file_text(.0))]
    File(#[from] engine::Error),
    /// A file does not have what it must have.
    #[error("{file}: {why}")]
    Content {
        /// The file.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// Certificate and key belong to different owners.
    #[error("tls: private key does not match public key")]
    Mismatch,
    /// The pieces do not fit together.
    #[error("tls: {0}")]
    Tls(rustls::Error),
    /// A client's flags cannot be obeyed.
    #[error(transparent)]
    Trust(#[from] trust::Error),
    /// A certificate cannot be made.
    #[error("cannot generate x509 certificate: {0}")]
    Generate(#[from] rcgen::Error),
}

impl From<rustls::Error> for Error {
    fn from(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InconsistentKeys(_) => Self::Mismatch,
            other => Self::Tls(other),
        }
    }
}

/// The error of a file, in Go's words where it is one of the usual ones.
fn file_text(error: &engine::Error) -> String {
    match error {
        engine::Error::Io { path, source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            format!("open {}: no such file or directory", path.display())
        }
        engine::Error::Io { path, source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
            format!("open {}: permission denied", path.display())
        }
        other => other.to_string(),
    }
}

impl Error {
    fn content(file: &str, why: impl ToString) -> Self {
        Self::Content { file: file.to_owned(), why: why.to_string() }
    }
}
