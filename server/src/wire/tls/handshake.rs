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
    if let Err(refusal) = shake(&mut stream, &mut tls).await {
        return Err(refusal.showing(settings.demand.as_ref().and_then(|demand| demand.take_refused())));
    }
    if let (Some(demand), Some(HandshakeKind::Resumed)) = (&settings.demand, tls.handshake_kind()) {
        // rustls trusts the check of the session's beginning. Meanwhile the certificate may be revoked or over.
        let (end_entity, intermediates) = match tls.peer_certificates() {
            Some([end_entity, intermediates @ ..]) => (end_entity, intermediates),
            _ => return Err(Refusal::from(rustls::Error::NoCertificatesPresented)),
        };
        let checked = demand.check(end_entity, intermediates, credentials::today(&clock));
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

#[cfg(test)]
mod tests {
    use std::{
        io::{Read, Write},
        os::unix::net::UnixStream,
        sync::Arc,
        time::Duration,
    };

    use rustls::{ClientConnection, ServerConfig, StreamOwned, pki_types::PrivateKeyDer};
    use tokio::{sync::watch, task::spawn_blocking};
    use trust::Trust;

    use super::*;
    use crate::wire::{channel::Socket, http1};

    /// Both ends of a connection that is not encrypted yet, and the session of each.
    fn ends() -> (UnixStream, ClientConnection, Stream, Connection) {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let shown =
            ServerConfig::builder().with_no_client_auth().with_single_cert(vec![made.cert.into()], key).unwrap();
        let trust = Trust { skips_verify: true, ..Trust::default() };
        let trusted = trust.config(&|path| std::fs::read(path)).unwrap();
        let name = trust::server_name("localhost").unwrap();
        let (client, server) = UnixStream::pair().unwrap();
        server.set_nonblocking(true).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let stream = Stream::new(Socket::Unix(tokio::net::UnixStream::from_std(server).unwrap()));
        let of_client = ClientConnection::new(Arc::new(trusted), name).unwrap();
        (client, of_client, stream, Connection::Server(ServerConnection::new(Arc::new(shown)).unwrap()))
    }

    #[tokio::test]
    async fn a_request_that_comes_with_the_end_of_the_handshake_is_answered_on_another_thread() {
        let (client, mut of_client, mut stream, mut tls) = ends();
        // It waits in the session until the handshake is over, and leaves with its last message.
        of_client.writer().write_all(b"GET / HTTP/1.1\r\nHost: m\r\n\r\n").unwrap();
        let client = spawn_blocking(move || {
            let (mut client, mut read) = (StreamOwned::new(of_client, client), [0; 15]);
            client.read_exact(&mut read).unwrap();
            client.sock.shutdown(std::net::Shutdown::Write).unwrap();
            read
        });
        shake(&mut stream, &mut tls).await.unwrap();
        stream.encrypt(tls);
        let stream = stream.park().unwrap().unpark().unwrap();
        let (_running, stop) = watch::channel(false);
        let served = http1::serve(
            stream,
            stop,
            http1::Waits::default(),
            || 0,
            |_| http1::Taking::Dropped,
            async |_| http1::Response::text(200, "served"),
        )
        .await;
        assert_eq!(served.unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "the client leaves without a word");
        assert_eq!(&client.await.unwrap(), b"HTTP/1.1 200 OK");
    }
}
