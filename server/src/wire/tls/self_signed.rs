//! Runs on: main thread, at the start.
//!
//! The certificate that the member makes for itself where `--auto-tls` asks for it. It is kept in the data directory
//! beside its key, as etcd keeps it, and used again at the next start.
//!
//! It differs from etcd's in the curve: P-256, whose signature costs a tenth of P-521's.
//! **Source** etcd v3.7.1 `client/pkg/transport/listener.go`, `SelfCert`.

use std::{path::Path, time::Duration};

use engine::disk::offline;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

use super::Error;
use crate::{clock::Clock, config::TlsFiles};

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The files of a certificate for `hosts` below `dir`. They are made if there are none.
///
/// **Errors** they cannot be made.
pub fn files(dir: &Path, hosts: &[String], years: u64, clock: &Clock) -> Result<TlsFiles, Error> {
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    if !(offline::exists(&certificate)? && offline::exists(&key)?) {
        offline::create_dir_all(dir)?;
        make(&certificate, &key, hosts, years, clock)?;
    }
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(TlsFiles { cert_file: text(&certificate), key_file: text(&key), ..TlsFiles::default() })
}

fn make(certificate: &Path, key: &Path, hosts: &[String], years: u64, clock: &Clock) -> Result<(), Error> {
    let now = Duration::from_micros(clock.unix_us());
    let date = |at: Duration| rcgen::date_time_ymd(1970, 1, 1) + at;
    let years = u32::try_from(years).unwrap_or(u32::MAX);
    let end = now.saturating_add(YEAR.saturating_mul(years));
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "etcd");
    params.not_before = date(now);
    params.not_after = date(end.min(LAST_DATE));
    params.key_usages =
        vec![KeyUsagePurpose::KeyEncipherment, KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    tracing::warn!("certificate-validity-bound-not-after" = %params.not_after, "automatically generate certificates");
    let pair = KeyPair::generate()?;
    let signed = params.self_signed(&pair)?;
    // The key comes first: a certificate without its key would never be made whole.
    for (path, text) in [(key, pair.serialize_pem()), (certificate, signed.pem())] {
        if offline::exists(path)? {
            offline::remove_file(path)?;
        }
        offline::write_small(path, text.as_bytes())?;
    }
    tracing::info!(path = %certificate.display(), "created cert file");
    tracing::info!(path = %key.display(), "created key file");
    Ok(())
}

/// The last date that a certificate can name: the end of the year 9999. **Units** since 1970.
const LAST_DATE: Duration = Duration::from_secs(253_402_300_799);
