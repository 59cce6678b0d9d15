//! Runs on: main thread, before any core is started.
//!
//! Advertised URLs that are etcd's defaults, for a member that listens on all addresses: others cannot reach it as
//! `localhost`, so it advertises the address of this host. How that is found, the caller knows.
//!
//! **Source**: etcd v3.7.1 `server/embed/config.go`, `UpdateDefaultClusterFromName`. One thing differs: an IPv6
//! address gets its brackets.

use std::{io, net::IpAddr};

use super::{Config, url::Url};

const DEFAULT_CLIENT_URL: &str = "http://localhost:2379";
const DEFAULT_PEER_URL: &str = "http://localhost:2380";

impl Config {
    /// Puts the host that `ask` gives into the defaults. Returns what it gave, if it was asked.
    pub fn advertise(&mut self, ask: impl FnOnce() -> io::Result<IpAddr>) -> Option<io::Result<IpAddr>> {
        let is_peer = is_default(&self.advertise_peer_urls, DEFAULT_PEER_URL, &self.listen_peer_urls);
        let is_client = is_default(&self.advertise_client_urls, DEFAULT_CLIENT_URL, &self.listen_client_urls);
        if !is_peer && !is_client {
            return None;
        }
        let host = match ask() {
            Ok(host) => host,
            Err(error) => return Some(Err(error)),
        };
        if is_peer {
            self.advertise_peer_urls = vec![on(host, &self.listen_peer_urls[0])];
            if self.is_initial_cluster_derived {
                self.initial_cluster = [(self.name.clone(), self.advertise_peer_urls.clone())].into();
            }
        }
        if is_client {
            self.advertise_client_urls = vec![on(host, &self.listen_client_urls[0])];
        }
        Some(Ok(host))
    }
}

/// Whether the default is advertised, by a member that listens on all addresses.
fn is_default(advertised: &[Url], default: &str, listened: &[Url]) -> bool {
    let is_advertised = matches!(advertised, [only] if only.as_str() == default);
    is_advertised && listened.first().is_some_and(|url| url.host == "0.0.0.0")
}

/// The port of `listened` on `host`.
fn on(host: IpAddr, listened: &Url) -> Url {
    let host = match host {
        IpAddr::V4(host) => host.to_string(),
        IpAddr::V6(host) => format!("[{host}]"),
    };
    Url::parse(&format!("http://{host}:{}", listened.port)).expect("an address and a port that were checked")
}
