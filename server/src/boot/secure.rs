//! Runs on: main thread, core 0.
//!
//! TLS at the start: what the ports show, and the threads for handshakes.

use std::{path::Path, sync::Arc, thread};

use tokio::sync::mpsc;

use super::{
    error::{Error, system},
    options::Cores,
};
use crate::{
    clock::Clock,
    config::{Config, TlsFiles, Url},
    cores::{
        handshakes::{self, HANDSHAKES_MAX, Shown},
        thread::{block_on, stop_member},
    },
    log,
    wire::{
        socket::Connection,
        tls::{credentials::Credentials, self_signed},
    },
};

/// Serving cores for which one thread makes the handshakes. It makes some two thousand in a second.
const CORES_PER_THREAD: usize = 4;

/// HTTP/2 first: gRPC speaks nothing else, and HTTP speaks both.
const ALL: &[&str] = &["h2", "http/1.1"];
const HTTP1: &[&str] = &["http/1.1"];

/// Ports of one kind.
struct Kind<'a> {
    urls: Vec<&'a Url>,
    given: &'a TlsFiles,
    is_auto: bool,
}

impl<'a> Kind<'a> {
    fn clients(config: &'a Config) -> Self {
        let urls = config.listen_client_urls.iter().chain(&config.listen_client_http_urls);
        let urls = urls.chain(&config.listen_metrics_urls).collect();
        Self { urls, given: &config.tls.clients, is_auto: config.tls.clients_auto }
    }

    fn peers(config: &'a Config) -> Self {
        let urls = config.listen_peer_urls.iter().collect();
        Self { urls, given: &config.tls.peers, is_auto: config.tls.peers_auto }
    }

    fn is_secure(&self) -> bool {
        self.urls.iter().any(|url| url.scheme.is_secure())
    }

    /// Whether the member makes the files for itself.
    fn is_self_signed(&self) -> bool {
        self.given.is_empty() && self.is_auto
    }

    /// The files that are given, or else those that the member makes for itself in `dir`; `None` if no URL needs them.
    fn files(&self, dir: &Path, config: &Config, clock: &Clock) -> Result<Option<TlsFiles>, Error> {
        if !self.is_secure() {
            return Ok(None);
        }
        if !self.is_self_signed() {
            return Ok(Some(self.given.clone()));
        }
        let hosts: Vec<String> = self.urls.iter().map(|url| url.host.clone()).filter(|host| !host.is_empty()).collect();
        let made = self_signed::files(dir, &hosts, config.tls.self_signed_years, clock)?;
        // The demands on clients hold for this certificate as well, though etcd forgets them.
        Ok(Some(TlsFiles { cert_file: made.cert_file, key_file: made.key_file, ..self.given.clone() }))
    }
}

fn read(files: &TlsFiles, protocols: &[&str], config: &Config, clock: &Clock) -> Result<Credentials, Error> {
    Ok(Credentials::read(files.clone(), config.tls.ciphers.clone(), protocols, clock.clone())?)
}

/// Reads the files that the ports need, before the data is touched.
///
/// **Errors** a file cannot be read or used.
pub fn check(config: &Config, clock: &Clock) -> Result<(), Error> {
    for kind in [Kind::clients(config), Kind::peers(config)] {
        if kind.is_secure() && !kind.is_self_signed() {
            read(kind.given, ALL, config, clock)?;
        }
    }
    Ok(())
}

/// Reads what the ports show, and starts the threads for handshakes, if any port needs them. Returns the ways to the
/// threads, and back.
///
/// **Errors** a file cannot be read or used.
pub fn spawn(
    config: &Arc<Config>,
    clock: &Clock,
    cores: Cores,
) -> Result<(Vec<mpsc::Sender<Connection>>, mpsc::Receiver<Connection>), Error> {
    let (done, back) = mpsc::channel(HANDSHAKES_MAX);
    let dir = config.data_dir.join("fixtures");
    let clients = Kind::clients(config).files(&dir.join("client"), config, clock)?;
    let peers = Kind::peers(config).files(&dir.join("peer"), config, clock)?;
    warn_ignored(config);
    if clients.is_none() && peers.is_none() {
        return Ok((Vec::new(), back));
    }
    let mut ways = Vec::new();
    for position in 0..cores.serving.div_ceil(CORES_PER_THREAD) {
        let shown = Shown {
            clients: clients.as_ref().map(|files| read(files, ALL, config, clock)).transpose()?,
            peers: peers.as_ref().map(|files| read(files, HTTP1, config, clock)).transpose()?,
        };
        let (way, arrivals) = mpsc::channel(HANDSHAKES_MAX);
        ways.push(way);
        let done = done.clone();
        let run = move || {
            if let Err(source) = block_on(handshakes::run(shown, arrivals, done)) {
                stop_member(&Error::System { what: "the runtime of handshakes".into(), source });
            }
        };
        let spawned = thread::Builder::new().name(format!("tls-{position}")).spawn(run);
        spawned.map_err(system("a thread for handshakes"))?;
    }
    log_files(config, "client", clients.as_ref());
    log_files(config, "peer", peers.as_ref());
    Ok((ways, back))
}

fn log_files(config: &Config, kind: &str, files: Option<&TlsFiles>) {
    let Some(files) = files else { return };
    let TlsFiles { cert_file, key_file, trusted_ca_file, client_cert_auth, crl_file, .. } = files;
    let TlsFiles { client_cert_file, client_key_file, .. } = files;
    let info = format!(
        "cert = {cert_file}, key = {key_file}, client-cert={client_cert_file}, client-key={client_key_file}, \
         trusted-ca = {trusted_ca_file}, client-cert-auth = {client_cert_auth}, crl-file = {crl_file}"
    );
    tracing::info!("tls-info" = %info, "cipher-suites" = ?config.tls.ciphers.names, "starting with {kind} TLS");
}

/// Says which settings a plaintext URL leaves out, as etcd does.
fn warn_ignored(config: &Config) {
    let clients = config.listen_client_urls.iter().chain(&config.listen_client_http_urls);
    let kinds = [
        (clients.collect::<Vec<_>>(), &config.tls.clients, "client-url", "http or unix", "--client-cert-auth"),
        (config.listen_peer_urls.iter().collect(), &config.tls.peers, "peer-url", "HTTP", "--peer-client-cert-auth"),
    ];
    for (urls, files, field, schemes, auth) in kinds {
        for url in urls.into_iter().filter(|url| !url.scheme.is_secure()) {
            let fields = log::Object::default().text(field, url.as_str());
            if !files.is_empty() {
                tracing::warn!(
                    %fields,
                    "scheme is {schemes} while key and cert files are present; ignoring key and cert files"
                );
            }
            if files.client_cert_auth {
                tracing::warn!(
                    %fields,
                    "scheme is {schemes} while {auth} is enabled; ignoring client cert auth for this URL"
                );
            }
        }
    }
}
