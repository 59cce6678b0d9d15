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

/// The files of one kind of port, if any of its URLs needs them.
struct Needed {
    files: Option<TlsFiles>,
}

impl Needed {
    /// The files that `given` names, or else those that the member makes for itself in `dir`.
    fn of(
        given: &TlsFiles,
        is_auto: bool,
        urls: &[&Url],
        dir: &Path,
        config: &Config,
        clock: &Clock,
    ) -> Result<Self, Error> {
        if !urls.iter().any(|url| url.scheme.is_secure()) {
            return Ok(Self { files: None });
        }
        if !given.is_empty() || !is_auto {
            return Ok(Self { files: Some(given.clone()) });
        }
        let hosts: Vec<String> = urls.iter().map(|url| url.host.clone()).filter(|host| !host.is_empty()).collect();
        let made = self_signed::files(dir, &hosts, config.tls.self_signed_years, clock)?;
        // The demands on clients hold for this certificate as well, though etcd forgets them.
        let files = TlsFiles { cert_file: made.cert_file, key_file: made.key_file, ..given.clone() };
        Ok(Self { files: Some(files) })
    }

    fn read(&self, protocols: &[&str], config: &Config, clock: &Clock) -> Result<Option<Credentials>, Error> {
        let read =
            |files: &TlsFiles| Credentials::read(files.clone(), config.tls.ciphers.clone(), protocols, clock.clone());
        Ok(self.files.as_ref().map(read).transpose()?)
    }
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
    let client_urls = config.listen_client_urls.iter().chain(&config.listen_client_http_urls);
    let client_urls: Vec<&Url> = client_urls.chain(&config.listen_metrics_urls).collect();
    let peer_urls: Vec<&Url> = config.listen_peer_urls.iter().collect();
    let (tls, dir) = (&config.tls, config.data_dir.join("fixtures"));
    let clients = Needed::of(&tls.clients, tls.clients_auto, &client_urls, &dir.join("client"), config, clock)?;
    let peers = Needed::of(&tls.peers, tls.peers_auto, &peer_urls, &dir.join("peer"), config, clock)?;
    warn_ignored(config);
    if clients.files.is_none() && peers.files.is_none() {
        return Ok((Vec::new(), back));
    }
    let mut ways = Vec::new();
    for position in 0..cores.serving.div_ceil(CORES_PER_THREAD) {
        let shown = Shown { clients: clients.read(ALL, config, clock)?, peers: peers.read(HTTP1, config, clock)? };
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
    log_files(config, "client", clients.files.as_ref());
    log_files(config, "peer", peers.files.as_ref());
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
            if !files.is_empty() {
                tracing::warn!(
                    field,
                    %url,
                    "scheme is {schemes} while key and cert files are present; ignoring key and cert files"
                );
            }
            if files.client_cert_auth {
                tracing::warn!(
                    field,
                    %url,
                    "scheme is {schemes} while {auth} is enabled; ignoring client cert auth for this URL"
                );
            }
        }
    }
}
