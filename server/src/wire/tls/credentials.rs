//! Runs on: main thread at the start, handshake threads.
//!
//! What a port shows and demands: its certificates and key, the signers of its clients, versions and suites.
//!
//! Invariant: the settings in use come from one state of the files, and served a handshake or the start. A state that
//! cannot be used is told of once, by each thread that makes handshakes.

use std::{path::Path, sync::Arc};

use engine::disk::offline::{self, Stamp};
use rustls::{
    CipherSuite, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    time_provider::TimeProvider,
    version::{TLS12, TLS13},
};
use trust::itself::Itself;

use super::{Error, FILE_BYTES_MAX, demand::Demand};
use crate::{
    clock::Clock,
    config::{Ciphers, TlsFiles, TlsVersion},
};

/// Numbers of the suites of TLS 1.3.
const SUITES_TLS13: std::ops::RangeInclusive<u16> = 0x1301..=0x13ff;

/// The settings of one state of the files.
#[derive(Clone, Debug)]
pub struct Settings {
    /// For the next handshake.
    pub config: Arc<ServerConfig>,
    /// The check of a client's certificate, if one is demanded.
    pub demand: Option<Arc<Demand>>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Credentials {
    files: TlsFiles,
    ciphers: Ciphers,
    protocols: Vec<Vec<u8>>,
    clock: Clock,
    /// The state that was read last, whether it could be used or not.
    stamps: Vec<Option<Stamp>>,
    settings: Settings,
}

/// The wall clock, for the dates of certificates.
#[derive(Debug)]
struct Dates(Clock);

impl TimeProvider for Dates {
    fn current_time(&self) -> Option<UnixTime> {
        Some(today(&self.0))
    }
}

/// The present moment.
pub fn today(clock: &Clock) -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_micros(clock.unix_us()))
}

impl Credentials {
    /// Reads the files. `protocols` are offered to clients, the preferred one first.
    ///
    /// **Errors** a file cannot be read or used.
    pub fn read(files: TlsFiles, ciphers: Ciphers, protocols: &[&str], clock: Clock) -> Result<Self, Error> {
        let protocols: Vec<Vec<u8>> = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let stamps = stamps(&files);
        let settings = settings(&files, &ciphers, &protocols, &clock)?;
        Ok(Self { files, ciphers, protocols, clock, stamps, settings })
    }

    /// The settings for the next handshake, from the files of this moment.
    pub fn current(&mut self) -> &Settings {
        let stamps = stamps(&self.files);
        if stamps != self.stamps {
            self.stamps = stamps;
            match settings(&self.files, &self.ciphers, &self.protocols, &self.clock) {
                Ok(settings) => {
                    tracing::info!(cert = %self.files.cert_file, "the files of TLS have changed, and are in use");
                    self.settings = settings;
                }
                Err(error) => {
                    tracing::warn!(
                        "cert-file" = %self.files.cert_file,
                        "key-file" = %self.files.key_file,
                        %error,
                        "failed to create peer certificate; the old one stays in use"
                    );
                }
            }
        }
        &self.settings
    }

    /// The clock by which certificates are judged.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}

fn stamps(files: &TlsFiles) -> Vec<Option<Stamp>> {
    let paths = [&files.cert_file, &files.key_file, &files.trusted_ca_file];
    paths.into_iter().map(|path| offline::stamp(Path::new(path)).ok()).collect()
}

/// The provider, with the suites that are wanted, in Go's order: the key schedule of AES-128 hashes with SHA-256, for
/// which processors have instructions. That of AES-256 makes a handshake a tenth dearer.
fn provider(ciphers: &Ciphers) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | CipherSuite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => 1,
        _ => 2,
    });
    if !ciphers.suites.is_empty() {
        provider.cipher_suites.retain(|suite| {
            let number = u16::from(suite.suite());
            SUITES_TLS13.contains(&number) || ciphers.suites.contains(&number)
        });
    }
    Arc::new(provider)
}

fn versions(ciphers: &Ciphers) -> Vec<&'static SupportedProtocolVersion> {
    let all = [(TlsVersion::Tls13, &TLS13), (TlsVersion::Tls12, &TLS12)];
    all.into_iter().filter(|(version, _)| (ciphers.min..=ciphers.max).contains(version)).map(|(_, it)| it).collect()
}

fn settings(files: &TlsFiles, ciphers: &Ciphers, protocols: &[Vec<u8>], clock: &Clock) -> Result<Settings, Error> {
    let provider = provider(ciphers);
    let chain = certificates(&files.cert_file)?;
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key_file)?)
        .map_err(|error| Error::content(&files.key_file, error))?;
    let demand = demand(files, &provider)?;
    let time: Arc<dyn TimeProvider> = Arc::new(Dates(clock.clone()));
    let builder = ServerConfig::builder_with_details(provider, time).with_protocol_versions(&versions(ciphers))?;
    let builder = match &demand {
        Some(demand) => builder.with_client_cert_verifier(Arc::clone(demand) as Arc<dyn ClientCertVerifier>),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(chain, key)?;
    config.alpn_protocols = protocols.to_vec();
    config.ignore_client_order = true;
    // As many as Go sends. A client with several connections keeps several tickets.
    config.send_tls13_tickets = 1;
    // A session can be resumed for as long as these settings are in use: the keys of tickets go with them.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    Ok(Settings { config: Arc::new(config), demand })
}

/// The check of clients' certificates. Like etcd, it is made where signers are named, and where it is asked for.
fn demand(files: &TlsFiles, provider: &Arc<CryptoProvider>) -> Result<Option<Arc<Demand>>, Error> {
    if files.trusted_ca_file.is_empty() && !files.client_cert_auth {
        return Ok(None);
    }
    let (mut signers, mut itself) = (RootCertStore::empty(), Itself::default());
    if files.trusted_ca_file.is_empty() {
        signers.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    } else {
        let trusted = certificates(&files.trusted_ca_file)?;
        for certificate in &trusted {
            signers.add(certificate.clone()).map_err(|error| Error::content(&files.trusted_ca_file, error))?;
        }
        itself = Itself::new(trusted);
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(signers), Arc::clone(provider)).build();
    let verifier = verifier.map_err(|error| Error::content(&files.trusted_ca_file, error))?;
    Ok(Some(Arc::new(Demand::new(files, verifier, itself))))
}

fn read(file: &str) -> Result<Vec<u8>, Error> {
    Ok(offline::read_small(Path::new(file), FILE_BYTES_MAX)?)
}

fn certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, Error> {
    let read = read(file)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read).collect();
    let all = all.map_err(|error| Error::content(file, error))?;
    if all.is_empty() {
        return Err(Error::content(file, "tls: failed to find any PEM data in certificate input"));
    }
    Ok(all)
}
