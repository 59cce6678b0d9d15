//! Runs on: main thread, before any core is started.
//!
//! The settings of TLS: which files a port shows and demands, versions and cipher suites, in etcd's words.
//!
//! Not here: the files themselves, which are read where they are used (`wire/tls`), as they change while the member
//! runs.
//!
//! **Source**: etcd v3.7.1 `server/embed/{config,etcd}.go`, `client/pkg/transport/listener.go`,
//! `client/pkg/tlsutil`; Go 1.26, `crypto/tls`.

use super::{error::Error, url::Scheme, values::Values};

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2, the lowest that etcd and Orlop speak.
    Tls12,
    /// 1.3.
    Tls13,
}

/// What all ports with TLS speak.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ciphers {
    /// The lowest version.
    pub min: TlsVersion,
    /// The highest version.
    pub max: TlsVersion,
    /// The suites of TLS 1.2 by their numbers; none means all that there are. TLS 1.3 has all of its own, as in Go.
    pub suites: Vec<u16>,
    /// The same suites, as they were given.
    pub names: Vec<String>,
}

/// The files of one kind of port.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// Certificates, the member's own first.
    pub cert_file: String,
    /// The key of the first of them.
    pub key_file: String,
    /// Certificates that sign those of clients. If there is such a file, clients must show a certificate.
    pub trusted_ca_file: String,
    /// Whether clients must show a certificate. Without `trusted_ca_file` it is one that the host trusts.
    pub client_cert_auth: bool,
    /// Numbers of certificates that are not taken any more.
    pub crl_file: String,
    /// If there are any, a client's certificate must name one of these hosts.
    pub allowed_hostnames: Vec<String>,
    /// If there are any, a client's certificate must have one of these common names.
    pub allowed_cns: Vec<String>,
    /// Certificate and key for outgoing connections.
    pub client_cert_file: String,
    /// See `client_cert_file`.
    pub client_key_file: String,
}

/// TLS of the member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// What ports for clients and for metrics show and demand.
    pub clients: TlsFiles,
    /// What ports for other members show and demand.
    pub peers: TlsFiles,
    /// Whether clients are shown a certificate that the member made for itself, if no other is given.
    pub clients_auto: bool,
    /// The same for other members.
    pub peers_auto: bool,
    /// How long such a certificate is valid. **Units** years.
    pub self_signed_years: u64,
    /// Versions and suites.
    pub ciphers: Ciphers,
}

/// Every cipher suite that Go knows by name, and its number. `true`: Orlop has it.
const SUITES: &[(&str, u16, bool)] = &[
    ("TLS_AES_128_GCM_SHA256", 0x1301, true),
    ("TLS_AES_256_GCM_SHA384", 0x1302, true),
    ("TLS_CHACHA20_POLY1305_SHA256", 0x1303, true),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256", 0xc02b, true),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384", 0xc02c, true),
    ("TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256", 0xc02f, true),
    ("TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384", 0xc030, true),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256", 0xcca8, true),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256", 0xcca9, true),
    ("TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305", 0xcca8, true),
    ("TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305", 0xcca9, true),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA", 0xc009, false),
    ("TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA", 0xc00a, false),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA", 0xc013, false),
    ("TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA", 0xc014, false),
    ("TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256", 0xc023, false),
    ("TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256", 0xc027, false),
    ("TLS_RSA_WITH_AES_128_GCM_SHA256", 0x009c, false),
    ("TLS_RSA_WITH_AES_256_GCM_SHA384", 0x009d, false),
    ("TLS_RSA_WITH_AES_128_CBC_SHA256", 0x003c, false),
    ("TLS_RSA_WITH_AES_128_CBC_SHA", 0x002f, false),
    ("TLS_RSA_WITH_AES_256_CBC_SHA", 0x0035, false),
    ("TLS_RSA_WITH_3DES_EDE_CBC_SHA", 0x000a, false),
    ("TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA", 0xc012, false),
    ("TLS_RSA_WITH_RC4_128_SHA", 0x0005, false),
    ("TLS_ECDHE_ECDSA_WITH_RC4_128_SHA", 0xc007, false),
    ("TLS_ECDHE_RSA_WITH_RC4_128_SHA", 0xc011, false),
];

impl TlsFiles {
    /// Whether neither certificate nor key is given.
    pub fn is_empty(&self) -> bool {
        self.cert_file.is_empty() && self.key_file.is_empty()
    }

    fn of(values: &Values, prefix: &str) -> Self {
        let text = |name: &str| values.text(&format!("{prefix}{name}"));
        // The flags of clients and members differ only in their prefix, but for outgoing connections and the CRL.
        let (outgoing, crl) =
            if prefix.is_empty() { ("client-", "client-crl-file") } else { ("peer-client-", "peer-crl-file") };
        let names = |name: &str| list(&values.text(name));
        Self {
            cert_file: text("cert-file"),
            key_file: text("key-file"),
            trusted_ca_file: text("trusted-ca-file"),
            client_cert_auth: values.switch(&format!("{prefix}client-cert-auth")),
            crl_file: values.text(crl),
            allowed_hostnames: names(if prefix.is_empty() {
                "client-cert-allowed-hostname"
            } else {
                "peer-cert-allowed-hostname"
            }),
            allowed_cns: if prefix.is_empty() { Vec::new() } else { names("peer-cert-allowed-cn") },
            client_cert_file: values.text(&format!("{outgoing}cert-file")),
            client_key_file: values.text(&format!("{outgoing}key-file")),
        }
    }

    /// Checks what the reading of the files would find too late.
    ///
    /// **Errors** etcd's texts.
    pub fn check(&self) -> Result<(), Error> {
        let Self { cert_file, key_file, client_cert_file, client_key_file, allowed_cns, allowed_hostnames, .. } = self;
        let refused = |text: String| Err(Error::Refused(text));
        if cert_file.is_empty() || key_file.is_empty() {
            return refused(format!("KeyFile and CertFile must both be present[key: {key_file}, cert: {cert_file}]"));
        }
        if client_cert_file.is_empty() != client_key_file.is_empty() {
            return refused(format!(
                "ClientKeyFile and ClientCertFile must both be present or both absent: key: {client_key_file}, cert: \
                 {client_cert_file}]"
            ));
        }
        if !allowed_cns.is_empty() && !allowed_hostnames.is_empty() {
            return refused(format!(
                "AllowedCNs and AllowedHostnames are mutually exclusive (cns={allowed_cns:?}, \
                 hostnames={allowed_hostnames:?})"
            ));
        }
        Ok(())
    }
}

impl Tls {
    /// The settings that the flags gave.
    ///
    /// **Errors** etcd's texts.
    pub(super) fn of(values: &mut Values) -> Result<Self, Error> {
        let years = values.unsigned("self-signed-cert-validity");
        let (clients_auto, peers_auto) = (values.switch("auto-tls"), values.switch("peer-auto-tls"));
        if years == 0 && (clients_auto || peers_auto) {
            let text = "selfSignedCertValidity is invalid,it should be greater than 0";
            return Err(Error::Refused(text.to_owned()));
        }
        let tls = Self {
            clients: TlsFiles::of(values, ""),
            peers: TlsFiles::of(values, "peer-"),
            clients_auto,
            peers_auto,
            self_signed_years: years,
            ciphers: ciphers(values)?,
        };
        for (is_auto, files, what) in [(clients_auto, &tls.clients, "client"), (peers_auto, &tls.peers, "peer")] {
            if is_auto && !files.is_empty() {
                values.warn_plainly(&format!("ignoring {what} auto TLS since certs given"));
            }
        }
        Ok(tls)
    }
}

fn version(text: &str, default: TlsVersion) -> Result<TlsVersion, Error> {
    match text {
        "" => Ok(default),
        "TLS1.2" => Ok(TlsVersion::Tls12),
        "TLS1.3" => Ok(TlsVersion::Tls13),
        other => Err(Error::Refused(format!("unexpected TLS version {other:?} (must be one of: TLS1.2, TLS1.3)"))),
    }
}

fn ciphers(values: &mut Values) -> Result<Ciphers, Error> {
    let (lowest, highest) = (values.text("tls-min-version"), values.text("tls-max-version"));
    let (min, max) = (version(&lowest, TlsVersion::Tls12)?, version(&highest, TlsVersion::Tls13)?);
    if min > max {
        return Err(Error::Refused(format!("min version ({lowest}) is greater than max version ({highest})")));
    }
    let names = list(&values.text("cipher-suites"));
    if min == TlsVersion::Tls13 && !names.is_empty() {
        return Err(Error::Refused("cipher suites cannot be configured when only TLS1.3 is enabled".to_owned()));
    }
    let mut suites = Vec::new();
    for name in &names {
        match SUITES.iter().find(|(known, ..)| known == name) {
            Some((_, number, true)) => suites.push(*number),
            Some((_, _, false)) => values.warn("TLS cipher suite is not supported - ignoring", "cipher-suite", name),
            None => return Err(Error::Refused(format!("unexpected TLS cipher suite {name:?}"))),
        }
    }
    if suites.is_empty() && !names.is_empty() {
        return Err(Error::Refused(format!("none of the TLS cipher suites {names:?} is supported")));
    }
    Ok(Ciphers { min, max, suites, names })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(str::to_owned).collect()
}

impl Scheme {
    /// Whether connections of such a URL are encrypted.
    pub fn is_secure(self) -> bool {
        matches!(self, Self::Https | Self::Unixs)
    }
}
