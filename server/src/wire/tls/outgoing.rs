//! Runs on: main thread (`orlop top`).
//!
//! TLS from the other side: a client of a member. What it trusts and shows is `trust`'s.

use std::{io, path::Path, sync::Arc};

use engine::disk::offline;
use rustls::{ClientConnection, Connection};
use trust::Trust;

use super::{Error, FILE_BYTES_MAX, handshake::shake};
use crate::wire::stream::Stream;

/// Encrypts a connection to `host`.
///
/// **Errors** a file cannot be read or used; `host` is no name; the handshake failed, or the member is not trusted.
pub async fn connect(mut stream: Stream, host: &str, trust: &Trust) -> Result<Stream, Error> {
    let read = |file: &str| offline::read_small(Path::new(file), FILE_BYTES_MAX).map_err(io::Error::other);
    let (config, name) = (Arc::new(trust.config(&read)?), trust::server_name(host)?);
    let mut tls = Connection::Client(ClientConnection::new(config, name)?);
    shake(&mut stream, &mut tls).await.map_err(|refusal| Error::content(host, refusal))?;
    stream.encrypt(tls);
    Ok(stream)
}
