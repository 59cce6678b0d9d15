//! Runs on: main thread (`orlop top`), tests.
//!
//! The smallest gRPC client: one connection over h2, with one unary call at a time.

use std::{future::poll_fn, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use http::{HeaderMap, Request, header::CONTENT_TYPE};
use prost::Message;
use tokio::net::TcpStream;
use trust::Trust;

use super::{
    channel::Socket,
    stream::Stream,
    tls::{self, outgoing},
};
use crate::protobuf::{PREFIX_BYTES, framed};

/// The reason why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The endpoint is not an address.
    #[error(transparent)]
    Endpoint(#[from] http::Error),
    /// The connection or its socket failed.
    #[error("{endpoint}: {source}")]
    Io {
        /// The member's address.
        endpoint: String,
        /// The system's error.
        source: std::io::Error,
    },
    /// TLS failed.
    #[error("{endpoint}: {source}")]
    Tls {
        /// The member's address.
        endpoint: String,
        /// The error of TLS or of its files.
        source: tls::Error,
    },
    /// HTTP/2 failed.
    #[error("{endpoint}: {source}")]
    Http {
        /// The member's address.
        endpoint: String,
        /// The error of h2.
        source: h2::Error,
    },
    /// The member refused the call.
    #[error("the member refused: {0}")]
    Refused(String),
    /// The answer did not come in time.
    #[error("no answer from {0} within {1:?}")]
    Late(String, Duration),
    /// The answer cannot be understood.
    #[error("the answer cannot be understood: {0}")]
    Answer(String),
}

/// Longest wait for a connection or an answer.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// A connection to one member.
pub struct Client {
    endpoint: String,
    scheme: &'static str,
    requests: SendRequest<Bytes>,
}

impl Client {
    /// Connects to `endpoint`, a host and port, without TLS. It must be called on a `LocalSet`.
    ///
    /// **Errors** there is no connection, or it was not made in time.
    pub async fn connect(endpoint: &str) -> Result<Self, Error> {
        Self::connect_with(endpoint, None).await
    }

    /// [`Self::connect`], with TLS if there is a `trust`.
    ///
    /// **Errors** as well those of TLS.
    pub async fn connect_with(endpoint: &str, trust: Option<&Trust>) -> Result<Self, Error> {
        let io = |source| Error::Io { endpoint: endpoint.to_owned(), source };
        let late = |_| Error::Late(endpoint.to_owned(), WAIT_MAX);
        let socket = tokio::time::timeout(WAIT_MAX, TcpStream::connect(endpoint)).await.map_err(late)?.map_err(io)?;
        let mut stream = Stream::new(Socket::Tcp(socket));
        if let Some(trust) = trust {
            let host = endpoint.rsplit_once(':').map_or(endpoint, |(host, _port)| host);
            let encrypted = tokio::time::timeout(WAIT_MAX, outgoing::connect(stream, host, trust)).await;
            let failed = |source| Error::Tls { endpoint: endpoint.to_owned(), source };
            stream = encrypted.map_err(late)?.map_err(failed)?;
        }
        let http = |source| Error::Http { endpoint: endpoint.to_owned(), source };
        let (requests, connection) = h2::client::handshake(stream).await.map_err(http)?;
        tokio::task::spawn_local(async move {
            // The call under way gets the error of its connection.
            drop(connection.await);
        });
        let scheme = if trust.is_some() { "https" } else { "http" };
        Ok(Self { endpoint: endpoint.to_owned(), scheme, requests })
    }

    /// Calls a unary method.
    ///
    /// **Errors** a refusal; a broken connection; no answer in time.
    pub async fn call<M: Message + Default>(&mut self, path: &str, request: &impl Message) -> Result<M, Error> {
        let message = framed(request);
        match tokio::time::timeout(WAIT_MAX, self.exchange(path, message)).await {
            Ok(answer) => {
                let body = answer?;
                M::decode(body).map_err(|error| Error::Answer(error.to_string()))
            }
            Err(_) => Err(Error::Late(self.endpoint.clone(), WAIT_MAX)),
        }
    }

    async fn exchange(&mut self, path: &str, message: Bytes) -> Result<Bytes, Error> {
        let endpoint = self.endpoint.clone();
        let http = |source| Error::Http { endpoint: endpoint.clone(), source };
        let request = Request::post(format!("{}://{}{path}", self.scheme, self.endpoint))
            .header(CONTENT_TYPE, "application/grpc")
            .header("te", "trailers")
            .body(())?;
        poll_fn(|cx| self.requests.poll_ready(cx)).await.map_err(http)?;
        let (answer, mut body) = self.requests.send_request(request, false).map_err(http)?;
        body.send_data(message, true).map_err(http)?;
        let (head, mut stream) = answer.await.map_err(http)?.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(data) = stream.data().await {
            let data = data.map_err(http)?;
            stream.flow_control().release_capacity(data.len()).map_err(http)?;
            bytes.extend_from_slice(&data);
        }
        let trailers = stream.trailers().await.map_err(http)?.unwrap_or_default();
        check_status(&head.headers, &trailers)?;
        if bytes.len() < PREFIX_BYTES {
            return Err(Error::Answer("it is empty".into()));
        }
        bytes.advance(PREFIX_BYTES);
        Ok(bytes.freeze())
    }
}

/// The status is in the trailers. If an answer has no body, the status is in its head.
fn check_status(head: &HeaderMap, trailers: &HeaderMap) -> Result<(), Error> {
    let find = |name: &str| trailers.get(name).or_else(|| head.get(name)).and_then(|value| value.to_str().ok());
    match find("grpc-status") {
        Some("0") => Ok(()),
        Some(code) => Err(Error::Refused(format!("code {code}: {}", find("grpc-message").unwrap_or("")))),
        None => Err(Error::Answer("it has no gRPC status: is this a client address?".into())),
    }
}
