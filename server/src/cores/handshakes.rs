//! Runs on: handshake threads.
//!
//! Handshakes of TLS, on threads of their own: one costs as much as a hundred puts, and none of those waits for it.
//!
//! Invariant: a connection comes back encrypted, or as it came where its port takes plaintext too, or not at all.
//!
//! Bounds: [`HANDSHAKES_MAX`] connections on one thread. Beyond it nobody is accepted on such a port. A client that
//! does not go on costs its place for [`HANDSHAKE_MAX`], and no CPU.

use std::{cell::RefCell, rc::Rc, sync::Arc};

use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_local,
};

use crate::wire::{
    socket::{Connection, Serves},
    tls::{HANDSHAKE_MAX, credentials::Credentials, handshake::handshake, refusal::Refusal},
};

/// Handshakes under way on one thread.
pub const HANDSHAKES_MAX: usize = 4096;

/// What the ports with TLS show and demand.
#[derive(Debug)]
pub struct Shown {
    /// Ports for clients, and for metrics.
    pub clients: Option<Credentials>,
    /// Ports for other members.
    pub peers: Option<Credentials>,
}

struct Thread {
    clients: Option<RefCell<Credentials>>,
    peers: Option<RefCell<Credentials>>,
    done: mpsc::Sender<Connection>,
}

/// Encrypts the connections that arrive, and hands them to `done`, until no sender is left.
pub async fn run(shown: Shown, mut arrivals: mpsc::Receiver<Connection>, done: mpsc::Sender<Connection>) {
    let Shown { clients, peers } = shown;
    let (clients, peers) = (clients.map(RefCell::new), peers.map(RefCell::new));
    let thread = Rc::new(Thread { clients, peers, done });
    let places = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    while let Some(connection) = arrivals.recv().await {
        // The semaphore is never closed.
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let thread = Rc::clone(&thread);
        spawn_local(async move {
            thread.encrypt(connection).await;
            drop(place);
        });
    }
}

impl Thread {
    async fn encrypt(&self, connection: Connection) {
        let (serves, remote) = (connection.serves(), connection.remote());
        let (credentials, endpoint) = match serves {
            Serves::Clients | Serves::Grpc | Serves::Http | Serves::Metrics => (&self.clients, "client"),
            Serves::Peers => (&self.peers, "peer"),
        };
        let credentials = credentials.as_ref().expect("a port with TLS has what it shows");
        let encrypted = connection.encrypted(|stream| handshake(stream, credentials));
        match tokio::time::timeout(HANDSHAKE_MAX, encrypted).await.unwrap_or(Err(Refusal::Late)) {
            // If nobody takes it, the member ends.
            Ok(connection) => drop(self.done.send(connection).await),
            Err(refusal) => refusal.log(endpoint, &remote),
        }
    }
}
