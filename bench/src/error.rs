//! Why the generator stops, or a connection is given up. What a server answers to a request is a result, not an error
//! here.

/// The crate's error.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("--{flag}: {reason}")]
    Flag { flag: &'static str, reason: String },
    #[error("cannot connect to {endpoint}: {reason}")]
    Connect { endpoint: String, reason: String },
    #[error("{what}: {reason}")]
    Setup { what: &'static str, reason: String },
    #[error("{call}: {source}")]
    System { call: &'static str, source: std::io::Error },
    #[error("connection closed by the server")]
    Closed,
    #[error("HTTP/2: {reason}")]
    Http2 { reason: &'static str },
    #[error("HTTP/2: server sent GOAWAY, code {code}")]
    GoAway { code: u32 },
    #[error(transparent)]
    Trust(#[from] trust::Error),
    #[error("TLS: {reason}")]
    Tls { reason: String },
    #[error("gRPC: {reason}")]
    Grpc { reason: &'static str },
    #[error("gRPC: malformed reply")]
    Reply(#[from] proto::error::Error),
    #[error("cannot write the report: {0}")]
    Report(#[from] std::io::Error),
}

impl Error {
    /// Turns a failed system call, named, into an error.
    pub(crate) fn system(call: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
        move |errno| Error::System { call, source: errno.into() }
    }
}
