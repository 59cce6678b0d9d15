//! Runs on: core 0.
//!
//! The ports of the member: from the URLs of the configuration to bound addresses.
//!
//! Invariants:
//! - URLs of one address share one port. All ports are bound before the data is touched, so a port that is taken ends
//!   the start and changes nothing.
//! - The peer port has a place for each connection that the cores of [`ASKING_MAX`] other members keep, if they have as
//!   many cores as this one, and [`PASSING_MAX`] besides. If that is not enough, who is idle gives its place
//!   (`cores/listen`): who comes waits for about a second at most.

use std::{future::poll_fn, path::PathBuf, rc::Rc, sync::Arc, task::Poll};

use tokio::{
    sync::{mpsc, watch},
    task::spawn_local,
};

use super::error::{Error, system};
use crate::{
    api::desk::Desk,
    config::{self, Config, Scheme, Url},
    cores::{
        connection_loop::Serving,
        listen::{Address, Listener, Next, Port, Room, hand_over_done},
        outbox::Way,
    },
    peer::ask::connections_max,
    shared::Connections,
    wire::socket::{Connection, Serves},
};

/// Connections of metrics at most. They cannot take the places of other members, nor these theirs. Their files are
/// among those that the member keeps for itself.
const METRICS_MAX: usize = 128;
/// Other members whose cores all keep connections for questions.
const ASKING_MAX: usize = 8;
/// Places on the peer port for all else. Streams take one until they are granted, states and other questions for as
/// long as they last.
const PASSING_MAX: usize = 64;

/// Connections on the peer port at most, beside granted streams, of a member with so many `cores`.
pub const fn peers_max(cores: usize) -> usize {
    PASSING_MAX + ASKING_MAX * connections_max(cores)
}

/// Connections that the files allow for which the member keeps for itself.
pub const OTHERS_MAX: usize = METRICS_MAX + peers_max(1);

/// The bound ports.
pub struct Ports {
    /// For clients.
    pub clients: Vec<Listener>,
    /// For metrics, and for other members.
    pub others: Vec<Listener>,
}

impl Ports {
    /// Binds all ports.
    ///
    /// **Errors** a port is taken, or is not ours to take; a port is asked to serve gRPC and not to serve it.
    pub fn bind(config: &Config) -> Result<Self, Error> {
        let is_split = !config.listen_client_http_urls.is_empty();
        let grpc = if is_split { Serves::Grpc } else { Serves::Clients };
        let mut plans = Plans::default();
        plans.add(&config.listen_peer_urls, Serves::Peers)?;
        plans.add(&config.listen_metrics_urls, Serves::Metrics)?;
        let others = plans.bind(config)?;
        let mut plans = Plans::default();
        plans.add(&config.listen_client_urls, grpc)?;
        for url in &config.listen_client_http_urls {
            if plans.has(url, grpc)? {
                return Err(config::Error::Refused(format!(
                    "cannot bind both --listen-client-urls and --listen-client-http-urls on the same url {url}"
                ))
                .into());
            }
            plans.add(std::slice::from_ref(url), Serves::Http)?;
        }
        Ok(Self { clients: plans.bind(config)?, others })
    }

    /// Makes `asks`, which other members must answer, and turns them away meanwhile: who waited in the backlog would
    /// wait for as long as this member does.
    pub async fn decline_during<T>(&self, asks: impl Future<Output = T>) -> T {
        let peers = self.others.iter().filter(|listener| listener.port().serves == Serves::Peers);
        let mut declining: Vec<_> = peers.map(|listener| Box::pin(listener.decline())).collect();
        let declines = poll_fn(|context| {
            for listener in &mut declining {
                assert!(listener.as_mut().poll(context).is_pending(), "it has no end");
            }
            Poll::Pending
        });
        tokio::select! {
            biased;
            made = asks => made,
            never = declines => never,
        }
    }
}

/// Where accepted connections go, by kind of port.
pub struct Ways {
    clients: Next,
    others: Next,
}

impl Ways {
    /// The ways to the cores `all`, of which metrics and other members use the one of `desk`. `handshakes` leads to the
    /// threads for handshakes, and `done` brings back what they have encrypted. `end` becomes true at the end of all.
    pub fn new(
        desk: &Rc<Desk>,
        all: Vec<Way>,
        serving: &Serving,
        (handshakes, done): (Vec<mpsc::Sender<Connection>>, mpsc::Receiver<Connection>),
        end: watch::Receiver<bool>,
    ) -> Self {
        let to_clients = Next { ways: all, serving: serving.clone(), handshakes };
        let to_others = Next {
            ways: vec![Way::Here(Rc::clone(desk))],
            serving: Serving { stop: end, ..serving.clone() },
            handshakes: to_clients.handshakes.clone(),
        };
        spawn_local(hand_over_done(done, to_clients.clone(), to_others.clone()));
        Self { clients: to_clients, others: to_others }
    }

    /// Serves metrics and other members, whatever the number of clients, until the end of all. It may begin before the
    /// member is ready, so that probes are told why it is not.
    pub fn accept_others(&self, ports: Vec<Listener>) {
        let room = |connections_max| Room { connections: Arc::new(Connections::new(1)), connections_max };
        let (of_peers, of_metrics) = (room(peers_max(self.clients.ways.len())), room(METRICS_MAX));
        for listener in ports {
            let address = listener.address();
            let room = match listener.port().serves {
                Serves::Peers => {
                    tracing::info!(address, "serving peer traffic");
                    &of_peers
                }
                _ => {
                    tracing::info!(address, "serving metrics");
                    &of_metrics
                }
            };
            spawn_local(listener.accept(room.clone(), self.others.clone(), self.others.serving.stop.clone()));
        }
    }

    /// Serves clients until they are told to go.
    pub fn accept_clients(&self, ports: Vec<Listener>, desk: &Desk) {
        let shared = &desk.shared;
        let connections_max = shared.limits.connections_max;
        let room = Room { connections: Arc::clone(&shared.connections), connections_max };
        for listener in ports {
            let (address, port) = (listener.address(), listener.port());
            let traffic = port.serves.traffic();
            if port.is_plain {
                tracing::info!(traffic, address, "serving client traffic insecurely; this is strongly discouraged!");
            }
            if port.is_secure {
                tracing::info!(traffic, address, "serving client traffic securely");
            }
            spawn_local(listener.accept(room.clone(), self.clients.clone(), self.clients.serving.stop.clone()));
        }
    }
}

/// The addresses to bind, in the order of their URLs.
#[derive(Default)]
struct Plans(Vec<(Address, Port)>);

impl Plans {
    fn has(&self, url: &Url, serves: Serves) -> Result<bool, Error> {
        let address = address(url)?;
        Ok(self.0.iter().any(|plan| plan.0 == address && plan.1.serves == serves))
    }

    fn add(&mut self, urls: &[Url], serves: Serves) -> Result<(), Error> {
        for url in urls {
            let (address, is_secure) = (address(url)?, url.scheme.is_secure());
            match self.0.iter_mut().find(|plan| plan.0 == address && plan.1.serves == serves) {
                Some((_, port)) if is_secure => port.is_secure = true,
                Some((_, port)) => port.is_plain = true,
                None => self.0.push((address, Port { serves, is_plain: !is_secure, is_secure })),
            }
        }
        Ok(())
    }

    fn bind(self, config: &Config) -> Result<Vec<Listener>, Error> {
        let bind = |(address, port): (Address, Port)| {
            let bound = Listener::bind(&address, port, config.socket_reuse_port);
            bound.map_err(system(match address {
                Address::Tcp(address) => format!("listen tcp {address}: bind"),
                Address::Unix(path) => format!("listen unix {}: bind", path.display()),
            }))
        };
        self.0.into_iter().map(bind).collect()
    }
}

fn address(url: &Url) -> Result<Address, Error> {
    match url.scheme {
        Scheme::Unix | Scheme::Unixs => Ok(Address::Unix(PathBuf::from(&url.host))),
        Scheme::Http | Scheme::Https => Ok(Address::Tcp(url.bind_address().map_err(config::Error::from)?)),
    }
}
