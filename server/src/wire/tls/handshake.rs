//! Runs on: handshake threads.
//!
//! From an accepted connection to an encrypted one.

use std::{cell::RefCell, future::poll_fn, io, task::Poll};

use rustls::{Connection, HandshakeKind, ServerConnection};

use super::{
    credentials::{self, Credentials},
    refusal::Refusal,
};
use crate::wire::stream::Stream;

/// Encrypts `stream`. Afterwards its client is known to be one that the port wants.
///
/// **Errors** why there is no such connection.
pub async fn handshake(mut stream: Stream, credentials: &RefCell<Credentials>) -> Result<Stream, Refusal> {
    let (settings, clock) = {
        let mut credentials = credentials.borrow_mut();
        (credentials.current().clone(), credentials.clock().clone())
    };
    let mut tls = Connection::Server(ServerConnection::new(settings.config)?);
    shake(&mut stream, &mut tls).await?;
    if let (Some(demand), Some(HandshakeKind::Resumed)) = (&settings.demand, tls.handshake_kind()) {
        // rustls trusts the check of the session's beginning. Meanwhile the certificate may be revoked or over.
        let (end_entity, intermediates) = match tls.peer_certificates() {
            Some([end_entity, intermediates @ ..]) => (end_entity, intermediates),
            _ => return Err(Refusal::from(rustls::Error::NoCertificatesPresented)),
        };
        let checked = demand.verify_client_cert(end_entity, intermediates, credentials::today(&clock));
        checked.map_err(|error| Refusal::from(error).about(&tls))?;
    }
    stream.encrypt(tls);
    Ok(stream)
}

/// Makes the handshake of `tls` over `stream`, from either side.
///
/// **Errors** why it failed.
pub(super) async fn shake(stream: &mut Stream, tls: &mut Connection) -> Result<(), Refusal> {
    let shaken = poll_fn(|cx| {
        loop {
            if let Poll::Ready(Err(error)) = stream.poll_send(tls, cx) {
                return Poll::Ready(Err(Refusal::Socket(error)));
            }
            if !tls.is_handshaking() && !tls.wants_write() {
                return Poll::Ready(Ok(()));
            }
            if !tls.is_handshaking() {
                // The socket wakes the task.
                return Poll::Pending;
            }
            let taken = match stream.poll_take(tls, cx) {
                Poll::Ready(Ok(taken)) => taken,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(Refusal::Socket(error))),
                Poll::Pending => return Poll::Pending,
            };
            match taken {
                Ok(0) => return Poll::Ready(Err(Refusal::Socket(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => {
                    // The client is told, if its socket takes that at once.
                    drop(stream.poll_send(tls, cx));
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    });
    shaken.await.map_err(|refusal| refusal.about(tls))
}
