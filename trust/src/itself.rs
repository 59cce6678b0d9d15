//! Certificates that are trusted for themselves: who shows one needs nobody's signature. Go takes them, and people who
//! make a certificate with one command have one that is its own CA, which rustls takes for nobody's but a signer's.

use std::collections::HashSet;

use rustls::{
    CertificateError, Error,
    pki_types::{CertificateDer, UnixTime},
};
use x509_parser::prelude::{FromDer, X509Certificate};

/// The certificates that are trusted.
#[derive(Debug, Default)]
pub struct Itself(HashSet<CertificateDer<'static>>);

/// What a certificate is shown as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// A server's.
    Server,
    /// A client's.
    Client,
}

impl Itself {
    /// Those certificates.
    pub fn new(trusted: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        Self(trusted.into_iter().collect())
    }

    /// Whether `certificate` is one of them.
    pub fn is(&self, certificate: &CertificateDer<'_>) -> bool {
        self.0.contains(certificate)
    }
}

/// Checks the dates and the purpose of a certificate that is trusted itself.
///
/// **Errors** it is not valid at `now`, not meant for `usage`, or cannot be read.
pub fn verify(certificate: &CertificateDer<'_>, now: UnixTime, usage: Usage) -> Result<(), Error> {
    let unreadable = |_| CertificateError::BadEncoding;
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(unreadable)?;
    let time = |seconds: i64| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds.max(0).unsigned_abs()));
    let (not_before, not_after) = (parsed.validity().not_before.timestamp(), parsed.validity().not_after.timestamp());
    let (not_before, not_after) = (time(not_before), time(not_after));
    if now < not_before {
        return Err(CertificateError::NotValidYetContext { time: now, not_before }.into());
    }
    if now > not_after {
        return Err(CertificateError::ExpiredContext { time: now, not_after }.into());
    }
    let purposes = parsed.extended_key_usage().map_err(|_unreadable| CertificateError::BadEncoding)?;
    let is_meant = purposes.is_none_or(|purposes| {
        let purposes = purposes.value;
        purposes.any || if usage == Usage::Server { purposes.server_auth } else { purposes.client_auth }
    });
    if is_meant { Ok(()) } else { Err(CertificateError::InvalidPurpose.into()) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair, date_time_ymd};

    use super::*;

    #[test]
    fn one_that_is_trusted_itself_is_taken_within_its_dates_and_for_its_purpose() {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        let made = |params: &CertificateParams| {
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            certificate.der().clone()
        };
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let (before, within, after) = (at(1_500_000_000), at(1_600_000_000), at(1_700_000_000));
        let any = made(&params);
        assert_eq!(verify(&any, within, Usage::Server), Ok(()));
        assert_eq!(verify(&any, within, Usage::Client), Ok(()));
        assert!(matches!(
            verify(&any, before, Usage::Server),
            Err(Error::InvalidCertificate(CertificateError::NotValidYetContext { .. }))
        ));
        assert!(matches!(
            verify(&any, after, Usage::Server),
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { .. }))
        ));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let of_server = made(&params);
        assert_eq!(verify(&of_server, within, Usage::Server), Ok(()));
        assert_eq!(verify(&of_server, within, Usage::Client), Err(CertificateError::InvalidPurpose.into()));
        let trusted = Itself::new([any.clone()]);
        assert!(trusted.is(&any) && !trusted.is(&of_server));
    }
}
