//! Runs on: handshake threads.
//!
//! The names in a certificate, and whether a host is one of them, as Go judges it. rustls takes fewer patterns.
//!
//! **Source** Go 1.26 `crypto/x509/verify.go`, `VerifyHostname`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use x509_parser::{
    extensions::GeneralName,
    prelude::{FromDer, X509Certificate},
};

/// The alternative names of a certificate.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// Addresses.
    pub ips: Vec<IpAddr>,
    /// Hosts, as they are written there.
    pub hosts: Vec<String>,
}

impl Names {
    /// The names in a certificate; none in one that cannot be read.
    pub fn of(certificate: &[u8]) -> Self {
        let mut names = Self::default();
        let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return names };
        let Ok(Some(alternatives)) = parsed.subject_alternative_name() else { return names };
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(host) => names.hosts.push((*host).to_owned()),
                GeneralName::IPAddress(bytes) => names.ips.extend(address(bytes)),
                _ => {}
            }
        }
        names
    }

    /// Whether `host` is one of them. An address may stand in brackets.
    pub fn has(&self, host: &str) -> bool {
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
        if let Ok(ip) = bare.parse::<IpAddr>() {
            return self.ips.contains(&ip);
        }
        let is_name = is_valid(host, false);
        self.hosts.iter().any(|pattern| {
            if is_name && is_valid(pattern, true) { matches(pattern, host) } else { is_exactly(pattern, host) }
        })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(|four| Ipv4Addr::from(four).into()),
        _ => <[u8; 16]>::try_from(bytes).ok().map(|sixteen| Ipv6Addr::from(sixteen).into()),
    }
}

/// Whether `host` is a name of a host, or a pattern for such names.
fn is_valid(host: &str, is_pattern: bool) -> bool {
    let host = if is_pattern { host } else { host.strip_suffix('.').unwrap_or(host) };
    host != "*"
        && host.split('.').enumerate().all(|(at, part)| {
            let is_any = is_pattern && at == 0 && part == "*";
            let is_letter =
                |(at, byte): (usize, u8)| byte.is_ascii_alphanumeric() || byte == b'_' || (byte == b'-' && at > 0);
            is_any || (!part.is_empty() && part.bytes().enumerate().all(is_letter))
        })
}

/// A star stands for the first part of a name.
fn matches(pattern: &str, host: &str) -> bool {
    let host = host.strip_suffix('.').unwrap_or(host);
    let (patterns, parts) = (pattern.split('.'), host.split('.'));
    patterns.clone().count() == parts.clone().count()
        && patterns
            .zip(parts)
            .enumerate()
            .all(|(at, (pattern, part))| (at == 0 && pattern == "*") || pattern.eq_ignore_ascii_case(part))
}

fn is_exactly(pattern: &str, host: &str) -> bool {
    !host.is_empty() && host != "." && pattern.eq_ignore_ascii_case(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_matched_as_go_matches_them() {
        let ip = |text: &str| text.parse().unwrap();
        let hosts = ["foo.example", "*.Example.com", "*.svc.example.org", "*.top"].map(str::to_owned).to_vec();
        let names = Names { ips: vec![ip("10.0.0.1"), ip("fe80::1")], hosts };
        for host in [
            "foo.example",
            "FOO.example.",
            "a.example.com",
            "*.svc.example.org",
            "foo.top",
            "10.0.0.1",
            "[fe80::1]",
            "fe80:0::1",
        ] {
            assert!(names.has(host), "{host}");
        }
        for host in
            ["example", "example.com", "a.b.example.com", "*.foo.example", "10.0.0.2", "[10.0.0.2]", "", ".", "*"]
        {
            assert!(!names.has(host), "{host}");
        }
    }
}
